"""Webhooks on their way out: signed, batched, repeated, late, and again until they are answered with 200.

Meta delivers over several connections at once and promises no order, so neither does the postbox. Anything but 200
brings the whole POST back, after a growing pause, for up to 7 days. Source: Meta Cloud API, "Webhooks overview".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from msgspec import Struct

from broker.clock import Clock
from broker.sandbox.faults import DEFAULT_MS, Fault, FaultName, Faults
from broker.sandbox.journal import Journal, Posted, Webhook
from broker.sandbox.shapes import Json, encode_webhook, sign

POST_BYTES_MAX = 3_000_000
"""The largest body Meta sends."""

WAITING_MAX = 1_000_000
"""Items waiting to be posted or posted again. Meta's own queue has no bound we know; our memory does."""

KEPT_FOR_MS = 7 * 24 * 3_600_000


class Poster(Protocol):
    """Whoever carries a POST: HTTP, or a call inside the process."""

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        """Return the answer's HTTP status. Raises OSError or TimeoutError when there is none."""
        ...


class Postage(Struct, frozen=True, forbid_unknown_fields=True):
    """How webhooks are delivered. `connections`: POSTs under way at once. The first repetition comes after about
    `retry_first_ms`, each later one after twice as long, up to `retry_max_ms`: seconds where Meta takes hours, so that
    an outage can be watched to its end."""

    connections: int = 16
    timeout_s: float = 10.0
    retry_first_ms: int = 1_000
    retry_max_ms: int = 30_000


class Parcel(Struct):
    """One POST: what it holds, how often it was tried, and since when."""

    items: list[Webhook]
    body: bytes
    begun_at: int
    attempt: int = 0
    repeat: bool = False


class Postbox:
    """Delivers the items put into it to one URL, signed with one app's secret."""

    def __init__(
        self,
        url: str,
        app_secret: str,
        poster: Poster,
        journal: Journal,
        faults: Faults,
        clock: Clock,
        rng: Random,
        postage: Postage | None = None,
    ) -> None:
        self.url = url
        self._secret = app_secret
        self.poster = poster
        self._journal = journal
        self._faults = faults
        self._clock = clock
        self._rng = rng
        self._postage = postage or Postage()
        self._due: asyncio.Queue[Parcel] = asyncio.Queue()
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._timer_count = 0
        self._workers: list[asyncio.Task[None]] = []
        self._pool: list[Webhook] = []
        self._pool_timer: int | None = None
        self._not_before: dict[str, float] = {}
        self.waiting = 0
        """Items that are not answered with 200 yet."""
        self.dropped = 0
        """Items the postbox had no room for."""

    def start(self) -> None:
        """Begin to deliver."""
        if not self._workers:
            self._workers = [asyncio.create_task(self._deliver()) for _ in range(self._postage.connections)]

    async def stop(self) -> None:
        """Stop at once; what is not answered yet stays in the journal."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._workers = []

    def put(self, item: Webhook) -> None:
        """Take an item; faults decide when it leaves and with whom."""
        if self.waiting >= WAITING_MAX:
            self.dropped += 1
            return
        self.waiting += 1
        delay_s = self._delay_s(item)
        if delay_s > 0:
            self._later(delay_s, lambda: self._leave(item))
        else:
            self._leave(item)

    def _delay_s(self, item: Webhook) -> float:
        number = item.number
        delay_s = 0.0
        if fault := self._faults.strikes("delay", number):
            delay_s += self._faults.length_s(fault, "delay")
        name: FaultName = "reorder_statuses" if item.kind == "status" else "reorder_messages"
        if fault := self._faults.strikes(name, number):
            delay_s += self._faults.up_to_s(fault, name)
        now = self._clock.monotonic()
        if item.person and (fault := self._faults.strikes("reorder_customers", number)):
            until = max(now + self._faults.up_to_s(fault, "reorder_customers"), self._not_before.get(item.person, 0.0))
            self._not_before[item.person] = until
            delay_s = max(delay_s, until - now)
        elif self._not_before:
            delay_s = max(delay_s, self._not_before.get(item.person, 0.0) - now)
            if len(self._not_before) > 10_000:
                self._not_before = {person: at for person, at in self._not_before.items() if at > now}
        return delay_s

    def _leave(self, item: Webhook) -> None:
        if fault := self._faults.strikes("batch", item.number):
            self._pool.append(item)
            if len(self._pool) >= fault.items:
                self._empty_pool()
            elif self._pool_timer is None:
                ms = fault.ms or DEFAULT_MS["batch"]
                self._pool_timer = self._later(ms / 1_000, self._empty_pool)
        else:
            self._pack([item])

    def _empty_pool(self) -> None:
        if self._pool_timer is not None and (timer := self._timers.pop(self._pool_timer, None)):
            timer.cancel()
        self._pool_timer = None
        pool, self._pool = self._pool, []
        batch: list[Webhook] = []
        size = 0
        for item in pool:
            item_size = len(encode_webhook(item.change)) + 100
            if batch and (size + item_size > POST_BYTES_MAX - 1_000 or len(batch) == 1_000):
                self._pack(batch)
                batch, size = [], 0
            batch.append(item)
            size += item_size
        if batch:
            self._pack(batch)

    def _pack(self, items: list[Webhook]) -> None:
        body = encode_webhook(envelope(items, merge=len(items) > 1 and self._rng.random() < 0.5))
        self._due.put_nowait(Parcel(items, body, self._clock.now()))

    async def _deliver(self) -> None:
        while True:
            parcel = await self._due.get()
            await self._faults.wait_for_thaw(self._clock)
            await self._post(parcel)

    async def _post(self, parcel: Parcel) -> None:
        parcel.attempt += 1
        signature = sign(parcel.body, self._secret)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "facebookexternalua",
            "X-Hub-Signature-256": signature,
        }
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._postage.timeout_s):
                answer = await self.poster.post(self.url, headers, parcel.body)
        except (OSError, TimeoutError):
            answer = 0
        ended = self._clock.monotonic()
        posted = Posted(
            at=self._clock.now(),
            mono=ended,
            items=[item.seq for item in parcel.items],
            attempt=parcel.attempt,
            answer=answer,
            ms=round((ended - began) * 1_000),
            bytes=len(parcel.body),
            signature=signature,
            repeat=parcel.repeat,
        )
        if answer != 200:
            self._faults.struck["webhook_refused"] += 1
            if self._clock.now() - parcel.begun_at > KEPT_FOR_MS:
                posted.given_up = True
                self.waiting -= 0 if parcel.repeat else len(parcel.items)
            else:
                self._again(parcel, self._pause_s(parcel.attempt))
        elif not parcel.repeat:
            self.waiting -= len(parcel.items)
        self._journal.write(posted)
        if answer == 200 and (fault := self._faults.strikes("duplicate", parcel.items[0].number)):
            self._repeat(parcel, fault)

    def _pause_s(self, attempt: int) -> float:
        postage = self._postage
        pause_ms: float = min(postage.retry_max_ms, postage.retry_first_ms * 2.0 ** min(attempt - 1, 20))
        return pause_ms * self._rng.uniform(0.75, 1.25) / 1_000

    def _again(self, parcel: Parcel, pause_s: float) -> None:
        self._later(pause_s, lambda: self._due.put_nowait(parcel))

    def _repeat(self, parcel: Parcel, fault: Fault) -> None:
        repeat = Parcel(parcel.items, parcel.body, self._clock.now(), repeat=True)
        self._again(repeat, self._faults.up_to_s(fault, "duplicate"))

    def _later(self, delay_s: float, what: Callable[[], None]) -> int:
        self._timer_count += 1
        key = self._timer_count

        def due() -> None:
            self._timers.pop(key, None)
            what()

        self._timers[key] = asyncio.get_running_loop().call_later(delay_s, due)
        return key


def envelope(items: Sequence[Webhook], *, merge: bool = False) -> Json:
    """Return the POST body of some items: entries by account, a change for each item.

    With `merge`, items of the same number that follow each other share one change, as Meta's batches sometimes do.
    """
    entries: dict[str, list[Json]] = {}
    for item in items:
        changes = entries.setdefault(item.waba, [])
        if merge and changes and _may_share(changes[-1], item.change):
            changes[-1] = _shared(changes[-1], item.change)
        else:
            changes.append(item.change)
    return {
        "object": "whatsapp_business_account",
        "entry": [{"id": waba, "changes": changes} for waba, changes in entries.items()],
    }


def _may_share(one: Json, other: Json) -> bool:
    return (
        one["field"] == other["field"] == "messages"
        and one["value"].get("metadata") == other["value"].get("metadata")
        and ("messages" in one["value"]) == ("messages" in other["value"])
    )


def _shared(one: Json, other: Json) -> Json:
    value = dict(one["value"])
    contacts = list(value.get("contacts", []))
    contacts += [contact for contact in other["value"].get("contacts", []) if contact not in contacts]
    if contacts:
        value["contacts"] = contacts
    for name in ("messages", "statuses"):
        if name in other["value"]:
            value[name] = [*value.get(name, []), *other["value"][name]]
    return {"value": value, "field": one["field"]}
