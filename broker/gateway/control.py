"""Control over HTTP: what an operator asks for with a key of their own, answered from the logs and written to them.

It does what the commands do, by the same functions (`broker.sink_control`, `broker.deadletters`), on the log that this
process has open. What is changed is durable when it is answered, and a line in the log says which key changed it. Each
request has a bounded time, and few run at once: the gateway's first duty is to the bots.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from broker.clock import Clock
from broker.core.control import (
    EXPLAIN,
    LETTER_ID,
    LETTERS,
    NOTE_CHARS_MAX,
    PAUSE,
    REPLAY,
    RESUME,
    SHOW,
    SINKS,
    Asked,
    Operation,
    Value,
    Wrong,
    read,
)
from broker.core.routing import BOT, explain
from broker.deadletters import REASONS, Place, Standing, Wanted, as_headline, as_whole, find, newest, replay, written
from broker.errors import LogUnavailable, Misconfigured, RecordTooLarge
from broker.explanations import as_tree as explanation
from broker.gateway.keys import Keys, bearer
from broker.inspect import instant
from broker.listener import Answer
from broker.log.embedded import EmbeddedLog
from broker.log.kafka import KafkaLog
from broker.masking import Masking
from broker.route_cases import asked as case_of
from broker.route_cases import follows, read_samples, rules_of
from broker.sink_control import as_tree, set_paused, states
from broker.visit import LentVisit
from schemas.settings import BotKey, Settings, SinkSettings

logger = logging.getLogger("depesche.control")

WORK_S_MAX = 10.0
"""Of one request, from its body to its answer. Clients of HTTP wait longer; operators do not like to."""

AT_ONCE_MAX = 4
"""Requests under way: each may read a log from its beginning, with up to 5 MB fetched at a time."""

RETRY_AFTER_S = 5

LETTERS_UNLESS_SAID = 50

SHOWN_BYTES_MAX = 256 * 1024
"""A letter that holds more is shown without it: to read and mask megabytes would keep the bots waiting."""

EXPLAINED_MAX = 20
"""Messages of one body. Each asks every route, and the worst pattern takes a tenth of a second."""

MESSAGE_CHARS_MAX = 500
"""Of what is said of a body that is wrong."""

_JSON: Final = {"Content-Type": "application/json", "Cache-Control": "no-store"}


class ControlCall(NamedTuple):
    """A request whose key and path are in order; its body is still to come."""

    key: BotKey
    asked: Asked


class Note(msgspec.Struct, forbid_unknown_fields=True):
    """What may be said with a pause."""

    note: str = ""


class Refusal(Exception):
    """A request that is not done, and why."""

    def __init__(self, wrong: Wrong) -> None:
        super().__init__(wrong.message)
        self.wrong = wrong


def admit(
    method: str, raw: str, headers: Mapping[str, str], keys: Keys, wait_s: Callable[[BotKey], int]
) -> ControlCall | Answer:
    """Say what is asked and by whom before the body is read, or refuse it. `wait_s` takes one request of a key and
    returns the seconds until it may be made, 0: now."""
    key = keys.find(bearer(headers.get("Authorization")))
    if key is None:
        message = "needs a key with control = true, as `Authorization: Bearer <key>` (`depesche key new`)"
        answer = refused(Wrong(401, "unauthorized", message, "header.Authorization"), close=True)
        return answer._replace(headers={**answer.headers, "WWW-Authenticate": "Bearer"})
    if not key.control:
        message = f"the key {key.name!r} is a bot's; keys[].control = true makes one an operator's"
        return refused(Wrong(403, "forbidden", message, "header.Authorization"), close=True)
    asked = read(method, raw)
    if isinstance(asked, Wrong):
        return refused(asked, close=True)
    if "Content-Encoding" in headers:
        message = "the body must be sent without a content encoding"
        return refused(Wrong(415, "unsupported", message, "header.Content-Encoding"), close=True)
    if wait := wait_s(key):
        message = f"the key {key.name!r} may make {key.requests_per_s_max:g} requests a second; nothing was done"
        return refused(Wrong(429, "limited", message, "header.Authorization"), retry_after_s=wait, close=True)
    return ControlCall(key, asked)


def unread(status: int, bytes_max: int) -> Answer:
    """Answer a request whose body was not read to its end."""
    if status == 503:
        wrong = Wrong(503, "overloaded", "too much is under way at this moment; nothing was done", "")
        return refused(wrong, retry_after_s=1, close=True)
    if status == 413:
        return refused(Wrong(413, "too_large", f"holds more than {bytes_max} bytes", "body"), close=True)
    code, why = ("timeout", "took too long") if status == 408 else ("invalid", "broke off")
    return refused(Wrong(status, code, why, "body"), close=True)


def refused(wrong: Wrong, *, retry_after_s: int = 0, close: bool = False) -> Answer:
    """Answer why something is not done."""
    headers = dict(_JSON)
    if retry_after_s:
        headers["Retry-After"] = str(retry_after_s)
    if wrong.allow:
        headers["Allow"] = ", ".join(wrong.allow)
    body = msgspec.json.encode({"error": {"code": wrong.code, "message": wrong.message, "where": wrong.where}})
    return Answer(wrong.status, headers, body, _RESULTS.get(wrong.code, "refused"), close)


_RESULTS: Final = {
    "unauthorized": "unauthorized",
    "forbidden": "forbidden",
    "limited": "limited",
    "not_found": "not_found",
    "method_not_allowed": "not_found",
    "too_large": "too_large",
    "unavailable": "log_unavailable",
    "overloaded": "overloaded",
}
"""Codes by their name in our metrics; all others are "refused"."""


class Control:
    """Answers operators. Owns which settings it answers from, and how many requests are under way."""

    def __init__(self, settings: Settings, engine: EmbeddedLog | KafkaLog, clock: Clock) -> None:
        """`engine`: the open one of this process."""
        self._visit = LentVisit(engine)
        self._clock = clock
        self._under_way = 0
        self._replaying = asyncio.Lock()
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Answer from these settings from now on. Raises `ValueError` when they are wrong; the ones before stay."""
        self._rules = rules_of(settings)
        self._settings = settings
        self._sinks = {sink.name: sink for sink in settings.sinks}
        self._masking = Masking.of(settings)

    async def take(self, call: ControlCall, body: bytes) -> Answer:
        """Answer an admitted request. Never raises for what it holds, nor when the log is away."""
        operation = call.asked.operation
        if self._under_way >= AT_ONCE_MAX:
            message = f"{AT_ONCE_MAX} requests for control are under way; nothing was done"
            return refused(Wrong(503, "overloaded", message, ""), retry_after_s=1)
        self._under_way += 1
        try:
            async with asyncio.timeout(WORK_S_MAX):
                tree = await self._do(call, body)
        except Refusal as refusal:
            return refused(refusal.wrong)
        except (LogUnavailable, TimeoutError) as away:
            why = str(away) or f"the log did not answer within {WORK_S_MAX:.0f} s"
            logger.warning("key %s: %s: the log is away: %s", call.key.name, operation.name, why)
            message = f"the log is away{_in_doubt(operation)}; ask again later"
            return refused(Wrong(503, "unavailable", message, "log"), retry_after_s=RETRY_AFTER_S)
        finally:
            self._under_way -= 1
        return Answer(200, _JSON, msgspec.json.encode(tree), "controlled")

    async def _do(self, call: ControlCall, body: bytes) -> Any:
        operation, slots, query = call.asked
        if operation is SINKS:
            sinks = list(self._sinks.values())
            found = await states(self._visit, sinks)
            return {"sinks": [as_tree(sink, one) for sink, one in zip(sinks, found, strict=True)]}
        if operation is PAUSE:
            return await self._set_paused(call.key, self._sink(slots["name"]), paused=True, note=_note(body))
        if operation is RESUME:
            return await self._set_paused(call.key, self._sink(slots["name"]), paused=False, note="")
        if operation is LETTERS:
            return await self._letters(query)
        if operation is SHOW:
            one = await self._letter(slots["id"])
            if len(one.entry.value) > SHOWN_BYTES_MAX:
                return {**as_headline(one, self._masking), "record": None}
            return {**as_headline(one, self._masking), "record": as_whole(one, self._masking)["record"]}
        if operation is REPLAY:
            return await self._replay(call.key, slots["id"], query)
        if operation is EXPLAIN:
            return await self._explain(body, query)
        raise AssertionError(operation)

    # ---- sinks

    def _sink(self, name: str) -> SinkSettings:
        sink = self._sinks.get(name)
        if sink is None:
            there = ", ".join(self._sinks) or "none"
            raise Refusal(Wrong(404, "not_found", f"there is no such sink; there are {there}", "path.name"))
        return sink

    async def _set_paused(self, key: BotKey, sink: SinkSettings, *, paused: bool, note: str) -> Any:
        word = await set_paused(self._visit, sink.name, self._clock, paused=paused, note=note)
        logger.info("key %s: sink %s is %s", key.name, sink.name, "paused" if paused else "resumed")
        return {
            "name": sink.name,
            "state": "paused" if paused else "running",
            "paused_at": instant(word.at) if paused else None,
            "note": note,
        }

    # ---- dead letters

    async def _letters(self, query: Mapping[str, Value]) -> Any:
        wanted = Wanted(log=str(query.get("log", "")), reason=str(query.get("reason", "")))
        before = _place(str(query["before"])) if "before" in query else None
        page = await newest(self._visit, wanted, self._masking, int(query.get("limit", LETTERS_UNLESS_SAID)), before)
        if not page.letters and page.before is None and before is None:
            self._must_be_known(wanted)
        return {"deadletters": page.letters, "before": None if page.before is None else written(page.before)}

    def _must_be_known(self, wanted: Wanted) -> None:
        """Refuse a name that is nobody's and in no letter: an empty list would look like good news."""
        if wanted.reason and wanted.reason not in REASONS:
            message = f"there is no such reason, and no letter of one; there are {', '.join(REASONS)}"
            raise Refusal(Wrong(400, "invalid", message, "query.reason"))
        if wanted.log:
            try:
                self._visit.partitions(wanted.log)
            except Misconfigured as error:
                raise Refusal(Wrong(400, "invalid", f"{error}; and no letter of it", "query.log")) from None

    async def _letter(self, id_: str) -> Standing:
        place = _place(id_)
        one = None if place is None else await find(self._visit, place)
        if one is None:
            message = "there is no such dead letter; ids are as the list says them, like 0-17"
            raise Refusal(Wrong(404, "not_found", message, "path.id"))
        return one

    async def _replay(self, key: BotKey, id_: str, query: Mapping[str, Value]) -> Any:
        async with self._replaying:  # two at once would both find it not put back yet
            one = await self._letter(id_)
            if one.replayed_at is not None and not query.get("again"):
                message = f"it was put back at {instant(one.replayed_at)}; again=true does it once more"
                raise Refusal(Wrong(409, "conflict", message, "path.id"))
            try:
                done = await replay(self._visit, one, self._clock, dry_run=bool(query.get("dry_run")))
            except RecordTooLarge as error:
                raise Refusal(Wrong(409, "conflict", str(error), "path.id")) from None
        if done.refused:
            raise Refusal(Wrong(409, "conflict", done.refused, "path.id"))
        if not query.get("dry_run"):
            logger.info("key %s: dead letter %s is put back on %s", key.name, done.place, done.log)
        return {"id": id_, "log": done.log, "reason": done.reason, "replayed": not query.get("dry_run")}

    # ---- routes

    async def _explain(self, body: bytes, query: Mapping[str, Value]) -> Any:
        rules, settings, masking = self._rules, self._settings, self._masking
        try:
            at = int(query.get("at", self._clock.now()))
            items = read_samples(body, settings, at, str(query.get("number", "")))
        except (Misconfigured, RecursionError) as error:
            said = str(error)[:MESSAGE_CHARS_MAX]
            raise Refusal(Wrong(400, "invalid", said, "body" if not said.startswith("number ") else "query")) from None
        if len(items) > EXPLAINED_MAX:
            message = f"holds {len(items)} updates, at most {EXPLAINED_MAX} are explained at once"
            raise Refusal(Wrong(400, "invalid", message, "body"))
        explained = []
        for item in items:
            first, holder = bool(query.get("first")), str(query.get("holder", BOT))
            about = case_of(item, first, holder, str(query.get("language", "")))
            tree = explanation(about, explain(rules, about), follows(rules, settings, about), settings)
            explained.append(masking.tree(tree))
            await asyncio.sleep(0)
        return {"explained": explained}


def _place(id_: str) -> Place | None:
    """Return the place that an id of a dead letter names."""
    if not re.fullmatch(LETTER_ID, id_):
        return None
    partition, _, offset = id_.partition("-")
    return int(partition), int(offset)


def _in_doubt(operation: Operation) -> str:
    return ", and it is not known whether this was done" if operation.is_change else ""


def _note(body: bytes) -> str:
    """Return the note of a pause; a request without a body has none."""
    if not body.strip():
        return ""
    try:
        note = msgspec.json.decode(body, type=Note).note
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(Wrong(400, "invalid", f'must be like {{"note": "why"}}, or empty: {error}', "body")) from None
    if len(note) > NOTE_CHARS_MAX or not note.isprintable():
        message = f"must be at most {NOTE_CHARS_MAX} printable characters, in one line"
        raise Refusal(Wrong(400, "invalid", message, "body.note"))
    return note
