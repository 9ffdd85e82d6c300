"""The platform itself: takes Graph calls, decides as Meta does, lets statuses and messages out as webhooks.

Every decision is made at one instant without waiting, between a call's way in and its way out: a caller that goes away
meanwhile has sent its message all the same. Nothing here knows HTTP: a call comes as method, path, headers and body.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from random import Random
from typing import Any, Literal
from urllib.parse import parse_qsl

from msgspec import Struct

from broker.clock import Clock
from broker.sandbox.account import Accounts
from broker.sandbox.errors import ERRORS
from broker.sandbox.faults import GIVES_UP_ANSWER_S, Faults
from broker.sandbox.journal import (
    Called,
    Entry,
    Introduced,
    Journal,
    Posted,
    Switched,
    Ticked,
    Uploaded,
    Webhook,
    Wrote,
)
from broker.sandbox.limits import PairLimits, PairReading, PortfolioLimit, SlidingSecond, Windows
from broker.sandbox.media import UPLOAD_BYTES_MAX, Media, node_of, read_upload
from broker.sandbox.payload import Outgoing, read, unfolded
from broker.sandbox.people import People, Person
from broker.sandbox.postbox import Postage, Postbox, Poster
from broker.sandbox.shapes import (
    NOT_FOUND,
    Answer,
    GraphError,
    Json,
    encode_answer,
    error_body,
    trace_id,
    wamid,
    webhook_error,
)
from broker.sandbox.templates import Templates

VERSION_MAX = 26
VERSION_LIVE_MIN = 21
"""Older versions are answered by the oldest live one. Source: Graph API changelog, September 2026."""

MESSAGES_KEPT_MAX = 300_000
"""Messages the platform can still be asked about: marked as read, quoted, reacted to."""

REACTABLE_MS = 30 * 24 * 3_600_000
BODY_BYTES_MAX = 1_000_000


class BusinessNumber(Struct, frozen=True):
    """A number the platform serves, as its owner configured it.

    `display_phone_number`: digits alone, as in webhooks. `allowed_recipients`: of a test number, all others are
    refused with 131030.
    """

    phone_number_id: str
    waba_id: str
    display_phone_number: str
    token: str
    throughput_mps: int = 80
    name: str = ""
    portfolio: str = "main"
    allowed_recipients: tuple[str, ...] = ()


class Rules(Struct, frozen=True):
    """Where Meta's documents leave a choice, or an account differs.

    `closed_window`: whether a message outside the customer service window is refused in the answer or accepted and
    failed by webhook. `portfolio_people_max`: 0 is no limit.
    """

    pair: PairReading = "debt"
    closed_window: Literal["answer", "webhook"] = "answer"
    portfolio_people_max: int = 0
    enforce_throughput: bool = True
    enforce_pair: bool = True


class Timings(Struct, frozen=True):
    """How long after the step before a message is sent, delivered and read: two bounds, in ms."""

    sent_ms: tuple[int, int] = (80, 350)
    delivered_ms: tuple[int, int] = (150, 1_200)
    read_ms: tuple[int, int] = (800, 4_000)
    failed_ms: tuple[int, int] = (300, 2_000)


class ConnectionCut(ConnectionError):
    """The platform cut the connection and answered nothing: whoever carries the call lets its caller feel that."""


class Overfull(Exception):
    """The postbox has no room for another message; whoever drives customers slows down."""


class MessageRef(Struct):
    """What the platform still knows of a message. `gone`: it failed."""

    wamid: str
    number: str
    person: str
    type: str
    outgoing: bool
    at: int
    send: str = ""
    opaque: str | None = None
    to_phone: bool = True
    category: str = "service"
    status: str = ""


class Platform:
    """Meta's platform for some numbers and everybody on WhatsApp.

    `start` before the first webhook is to leave, `stop` when it is over; calls are taken at any time.
    """

    def __init__(
        self,
        numbers: Iterable[BusinessNumber],
        faults: Faults,
        clock: Clock,
        rng: Random,
        poster: Poster,
        *,
        webhook_url: str,
        app_secret: str,
        journal: Journal | None = None,
        people: People | None = None,
        templates: Templates | None = None,
        rules: Rules | None = None,
        timings: Timings | None = None,
        postage: Postage | None = None,
        base_url: str = "https://graph.facebook.com",
    ) -> None:
        self.numbers = {number.phone_number_id: number for number in numbers}
        self.faults = faults
        self.clock = clock
        self.journal = journal or Journal()
        self.journal.remembered = self._remembered
        self.people = people or People()
        self.templates = templates or Templates()
        self.rules = rules or Rules()
        self.timings = timings or Timings()
        self.base_url = base_url
        self._rng = rng
        self.postbox = Postbox(
            webhook_url,
            app_secret,
            poster,
            self.journal,
            faults,
            clock,
            Random(rng.getrandbits(64)),  # noqa: S311  # chance to be repeated by seed, not a secret
            postage,
        )
        self._seconds = {
            number.phone_number_id: SlidingSecond(number.throughput_mps) for number in self.numbers.values()
        }
        self._pairs = PairLimits(self.rules.pair)
        self.windows = Windows()
        self._portfolios: dict[str, PortfolioLimit] = {}
        self._messages: OrderedDict[str, MessageRef] = OrderedDict()
        self._unread: dict[tuple[str, str], dict[str, MessageRef]] = {}
        """Delivered and not read yet, by number and person: a chat is opened often, and there are many messages."""
        self._media = Media()
        self._accounts = Accounts(self.people, self.windows, self.templates, rng)
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._timer_count = 0
        self._resume: list[Callable[[], None]] = []
        self._running = False

    # Life

    def restore(self, also: Callable[[Entry], None] = lambda entry: None) -> int:
        """Read the journal's file back: people, windows, debts, messages; return how many entries there were.

        `also` is shown every entry.

        What was under way when the process ended goes on after `start`: webhooks that were never answered with 200 are
        posted again, messages take their next step.
        """
        count = 0
        unanswered: dict[int, Webhook] = {}
        shift_s = self.clock.monotonic() - self.clock.now() / 1_000
        for entry in self.journal.open():
            count += 1
            self._remember(entry, unanswered, shift_s)
            also(entry)
        self._resume.extend(partial(self.postbox.put, item) for item in unanswered.values())
        self._resume.extend(
            partial(self._next_step, message)
            for message in self._messages.values()
            if message.outgoing and message.status in ("", "sent", "delivered")
        )
        return count

    def start(self) -> None:
        """Let webhooks out, and go on with what a restart interrupted."""
        self._running = True
        self.postbox.start()
        resume, self._resume = self._resume, []
        for go_on in resume:
            go_on()

    async def stop(self) -> None:
        """Stop at once. What is under way stays in the journal."""
        self._running = False
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        await self.postbox.stop()
        self.journal.close()

    # Graph calls

    async def graph(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Take one Graph call and answer it. `path` begins with a slash and may have a query.

        Raises `ConnectionCut` when the caller is to hear nothing.
        """
        uplink_s = self.faults.uplink_s()
        if uplink_s:
            await asyncio.sleep(uplink_s)
        route = ROUTE.fullmatch(path.partition("?")[0])
        if route is None:
            return self._refused(GraphError(2500, message=f"Unknown path components: {path.partition('?')[0][:80]}"))
        if int(route["version"]) > VERSION_MAX:
            return self._refused(GraphError(2500, message=f"Unknown path components: /v{route['version'][:8]}.0"))
        refusal = self._unauthorised(route["node"], headers)
        if refusal is not None:
            self._note(path, body, number=route["node"] if route["node"] in self.numbers else "", refusal=refusal)
            return self._refused(refusal)
        node, edge = route["node"], route["edge"] or ""
        if method == "POST" and edge in ("messages", "marketing_messages"):
            return await self._message_call(self.numbers[node], path, body, marketing=edge == "marketing_messages")
        return self._other_call(method, path, node, edge, headers, body)

    def _unauthorised(self, node: str, headers: Mapping[str, str]) -> GraphError | None:
        scheme, _, token = _header(headers, "authorization").partition(" ")
        if not token.strip() or scheme.lower() not in ("bearer", "oauth"):
            return GraphError(104)
        owned = [number for number in self.numbers.values() if number.token == token.strip()]
        if not owned:
            return GraphError(190)
        for number in owned:
            if (subcode := self.faults.revoked.get(number.phone_number_id)) is not None and (
                node in (number.phone_number_id, number.waba_id) or len(owned) == 1
            ):
                self.faults.struck["token_revoked"] += 1
                return GraphError(190, message=REVOKED.get(subcode, REVOKED[467]), subcode=subcode)
        known = {number.phone_number_id for number in owned} | {number.waba_id for number in owned}
        if node not in known and node not in self._media:
            return _not_found(node)
        return None

    async def _message_call(self, number: BusinessNumber, path: str, raw: bytes, *, marketing: bool) -> Answer:
        pnid = number.phone_number_id
        if self.faults.frozen_until > self.clock.monotonic():
            return await self._frozen_call(number, path, raw, marketing=marketing)
        if self.faults.strikes("lost_request", pnid):
            self._note(path, raw, number=pnid, fault="lost_request")
            raise ConnectionCut("lost_request")
        if self.faults.strikes("error_before", pnid):
            self._note(path, raw, number=pnid, fault="error_before", http=502)
            return BAD_GATEWAY
        if (lie := self.faults.answers(pnid)) is not None:
            code, subcode, accepted = lie
            error = GraphError(code, subcode=subcode)
            answer = self._refused(error)
            if accepted:
                self._decide(number, path, raw, marketing=marketing, fault=f"answer_{code}", told=answer)
            else:
                self._note(path, raw, number=pnid, fault=f"answer_{code}", refusal=error)
            return await self._answered(pnid, answer)
        fault = ""
        if self.faults.strikes("lost_answer", pnid):
            fault = "lost_answer"
        elif (silence := self.faults.strikes("silence", pnid)) is not None:
            fault = "silence"
        elif self.faults.strikes("error_after", pnid):
            fault = "error_after"
        answer = self._decide(
            number, path, raw, marketing=marketing, fault=fault, told=BAD_GATEWAY if fault == "error_after" else None
        )
        if fault == "lost_answer":
            await asyncio.sleep(self.faults.answer_s())
            raise ConnectionCut(fault)
        if fault == "silence":
            assert silence is not None
            await asyncio.sleep(min(self.faults.length_s(silence, "silence"), GIVES_UP_ANSWER_S))
            raise ConnectionCut(fault)
        return await self._answered(pnid, answer)

    async def _frozen_call(self, number: BusinessNumber, path: str, raw: bytes, *, marketing: bool) -> Answer:
        """A call into a frozen platform hangs. Half of them were taken in before it froze, and are answered late."""
        if self.faults.chance() < 0.5:
            answer = self._decide(number, path, raw, marketing=marketing, fault="freeze")
            await self.faults.wait_for_thaw(self.clock, GIVES_UP_ANSWER_S)
            return answer
        self._note(path, raw, number=number.phone_number_id, fault="freeze")
        await self.faults.wait_for_thaw(self.clock, GIVES_UP_ANSWER_S)
        raise ConnectionCut("freeze")

    async def _answered(self, number: str, answer: Answer) -> Answer:
        wait_s = self.faults.answer_s()
        if slow := self.faults.strikes("slow", number):
            wait_s += self.faults.length_s(slow, "slow")
        if wait_s:
            await asyncio.sleep(wait_s)
        return answer

    def _decide(
        self,
        number: BusinessNumber,
        path: str,
        raw: bytes,
        *,
        marketing: bool,
        fault: str = "",
        told: Answer | None = None,
    ) -> Answer:
        """Decide about one call at this instant, write it down, and begin what follows from it.

        `told` is what the caller is told instead of the truth.
        """
        now, at = self.clock.monotonic(), self.clock.now()
        called = Called(
            at=at,
            mono=now,
            number=number.phone_number_id,
            path=path,
            request=raw[:BODY_BYTES_MAX].decode("utf-8", "replace"),
            fault=fault,
            answered=fault not in ("lost_answer", "silence"),
        )
        verdict = self._verdict(number, called, raw, now, at, marketing=marketing)
        if isinstance(verdict, GraphError):
            truth = self._refused(verdict)
            called.code = verdict.code
        else:
            truth = self._json(200, verdict)
        shown = truth if told is None else told
        called.http = shown.status
        called.response = shown.body.decode("utf-8", "replace")
        self.journal.write(called)
        if called.accepted and called.kind == "message":
            self._next_step(self._messages[called.wamid])
        return shown

    def _verdict(
        self, number: BusinessNumber, called: Called, raw: bytes, now: float, at: int, *, marketing: bool
    ) -> Json | GraphError:
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            return GraphError(100, "The request body is not valid JSON.")
        outgoing = read(body, marketing=marketing)
        if isinstance(outgoing, GraphError):
            return outgoing
        called.kind, called.type = outgoing.kind, outgoing.type
        if outgoing.kind == "mark":
            return self._mark(number, called, outgoing)
        called.opaque = outgoing.opaque
        called.send = send_of(outgoing.opaque)
        if outgoing.group:
            return GraphError(131041)
        person = self._recipient(number, outgoing)
        if isinstance(person, GraphError):
            return person
        called.person = person.id
        called.to_phone = bool(outgoing.to)
        if self._accounts.is_blocked(number.phone_number_id, person.id):
            return GraphError(130403)
        called.context_id = outgoing.context_id
        called.context_known = not outgoing.context_id or outgoing.context_id in self._messages
        refusal = self._limits(number, person, now)
        if refusal is not None:
            return refusal
        category = "service"
        message_status = ""
        in_window = self.windows.is_open(number.phone_number_id, person.id, at)
        if outgoing.type == "template":
            content = outgoing.content or {}
            refusal = self.templates.check(content)
            if refusal is not None:
                return refusal
            template = self.templates.find(content["name"], content["language"]["code"])
            assert template is not None
            category = template.category.lower()
            message_status = "held_for_quality_assessment" if template.status == "HELD" else "accepted"
            if template.category == "AUTHENTICATION" and not outgoing.to:
                return GraphError(131062)
            if not in_window and not self._portfolio(number.portfolio).allows(person.id, at):
                return GraphError(131048)
        if marketing and category != "marketing":
            return GraphError(134100)
        if category == "service" and not in_window and self.rules.closed_window == "answer":
            return GraphError(131047)
        if outgoing.type == "reaction" and (refusal := self._reaction(number, person, outgoing, at)):
            return refusal
        return self._accept(number, called, outgoing, person, category, message_status, in_window)

    def _limits(self, number: BusinessNumber, person: Person, now: float) -> GraphError | None:
        pnid = number.phone_number_id
        if self.rules.enforce_throughput and not self._seconds[pnid].has_room(now):
            return GraphError(130429)
        if self.rules.enforce_pair and not self._pairs.allows(pnid, person.id, now):
            return GraphError(131056)
        return None

    def _accept(
        self,
        number: BusinessNumber,
        called: Called,
        outgoing: Outgoing,
        person: Person,
        category: str,
        message_status: str,
        in_window: bool,
    ) -> Json:
        pnid = number.phone_number_id
        self._seconds[pnid].charge(called.mono)
        self._pairs.charge(pnid, person.id, called.mono)
        if category != "service" and not in_window:
            self._portfolio(number.portfolio).charge(person.id, called.at)
        if outgoing.to:
            person.disclose(pnid, called.at)
        called.wamid = wamid(person.digits, True, called.at, self._rng)
        called.accepted = True
        self._keep(
            MessageRef(
                wamid=called.wamid,
                number=pnid,
                person=person.id,
                type=outgoing.type,
                outgoing=True,
                at=called.at,
                send=called.send,
                opaque=outgoing.opaque,
                to_phone=called.to_phone,
                category=category,
            )
        )
        contact: Json = {"input": outgoing.to or outgoing.recipient}
        if outgoing.to:
            contact["wa_id"] = person.wa_id
        if outgoing.recipient and person.bsuid:
            contact["user_id"] = person.bsuid
        message: Json = {"id": called.wamid}
        if message_status:
            message["message_status"] = message_status
        return {"messaging_product": "whatsapp", "contacts": [contact], "messages": [message]}

    def _recipient(self, number: BusinessNumber, outgoing: Outgoing) -> Person | GraphError:
        if outgoing.to:
            person = self.people.by_phone(outgoing.to)
            if person is None:
                return GraphError(131009, "Recipient is not a valid phone number.")
            if person.wa_id == number.display_phone_number:
                return GraphError(131021)
        else:
            person = self.people.by_bsuid(outgoing.recipient)
            if person is None:
                return GraphError(131026)
        if number.allowed_recipients and person.id not in number.allowed_recipients:
            return GraphError(131030)
        return person

    def _mark(self, number: BusinessNumber, called: Called, outgoing: Outgoing) -> Json | GraphError:
        called.message_id = outgoing.message_id
        message = self._messages.get(outgoing.message_id)
        if message is None or message.outgoing or message.number != number.phone_number_id:
            return GraphError(131009, "Parameter message_id is not the id of a message to this number.")
        called.person = message.person
        called.accepted = True
        return {"success": True}

    def _reaction(self, number: BusinessNumber, person: Person, outgoing: Outgoing, at: int) -> GraphError | None:
        content = outgoing.content or {}
        target = self._messages.get(content["message_id"])
        if (
            target is None
            or target.number != number.phone_number_id
            or target.person != person.id
            or target.type == "reaction"
            or target.at < at - REACTABLE_MS
        ):
            return GraphError(131009, "Reactions need the id of a message of this chat that is no reaction itself.")
        return None

    # What becomes of a message

    def _next_step(self, message: MessageRef) -> None:
        """Plan the message's next status, if it has one."""
        timings = self.timings
        person = self.people.get(message.person)
        if person is None:
            return
        if message.status == "":
            failure = self._failure(message, person)
            if failure:
                self._soon(timings.failed_ms, lambda: self._tick(message, "failed", failure))
            else:
                self._soon(timings.sent_ms, lambda: self._tick(message, "sent"))
        elif message.status == "sent" and person.online:
            self._soon(timings.delivered_ms, lambda: self._tick(message, "delivered"))
        elif message.status == "delivered" and person.reads == "auto" and message.type != "reaction":
            self._soon(timings.read_ms, lambda: self._tick(message, "read"))

    def _failure(self, message: MessageRef, person: Person) -> int:
        if not person.on_whatsapp:
            return 131026
        if message.category == "marketing" and person.opted_out:
            return 131050
        if message.category == "service" and not self.windows.is_open(message.number, message.person, message.at):
            return 131047
        return 0

    def _tick(self, message: MessageRef, status: str, code: int = 0) -> None:
        person = self.people.get(message.person)
        if person is None or RANK.get(status, 0) <= RANK.get(message.status, -1):
            return
        if status == "delivered" and not person.online:
            return
        self._move(message, status)
        at = self.clock.now()
        self.journal.write(
            Ticked(
                at=at,
                mono=self.clock.monotonic(),
                number=message.number,
                person=message.person,
                wamid=message.wamid,
                status=status,
                send=message.send,
                code=code,
                details=ERRORS[code].details if code else "",
            )
        )
        if code and message.category != "service":
            self._portfolio(self.numbers[message.number].portfolio).release(message.person)
        self._out(message.number, person, "status", self._status_value(message, person, status, code, at), message)
        self._next_step(message)

    def _status_value(self, message: MessageRef, person: Person, status: str, code: int, at: int) -> Json:
        failed = status == "failed"
        item: Json = {"id": message.wamid, "status": status, "timestamp": str(at // 1_000)}
        if message.to_phone or (person.shows_phone(message.number, at) and not failed):
            item["recipient_id"] = person.wa_id
        if person.bsuid and not (failed and message.to_phone):
            item["recipient_user_id"] = person.bsuid
        if status in ("sent", "delivered"):
            item["pricing"] = {
                "billable": True,
                "pricing_model": "PMP",
                "type": "regular",
                "category": message.category,
            }
        if failed:
            item["errors"] = [webhook_error(code)]
        if message.opaque is not None:
            item["biz_opaque_callback_data"] = message.opaque
        value: Json = {"messaging_product": "whatsapp", "metadata": self._metadata(message.number)}
        if not failed:
            value["contacts"] = [person.contact(message.number, at, username=status != "sent")]
        value["statuses"] = [item]
        return value

    # Customers

    def introduce(self, person: Person) -> Person:
        """Make a person known to the platform and to whoever looks at the journal; again to change them."""
        self.people.add(person)
        self.journal.write(Introduced(at=self.clock.now(), person=person))
        return person

    def change(
        self, person_id: str, *, online: bool | None = None, reads: str | None = None, on_whatsapp: bool | None = None
    ) -> Person:
        """Switch a person's phone on or off, their read receipts, their account. What waited for it goes on."""
        person = self.people.get(person_id)
        if person is None:
            raise KeyError(person_id)
        came_online = online is True and not person.online
        if online is not None:
            person.online = online
        if reads is not None:
            if reads not in ("auto", "open", "never"):
                raise ValueError("reads: one of auto, open, never")
            person.reads = reads  # type: ignore[assignment]
        if on_whatsapp is not None:
            person.on_whatsapp = on_whatsapp
        self.journal.write(Introduced(at=self.clock.now(), person=person))
        if came_online:
            for message in self._recent():
                if message.outgoing and message.person == person_id and message.status == "sent":
                    self._next_step(message)
        return person

    def write(self, number: str, person_id: str, kind: str, content: Any, *, quoting: str = "") -> str:
        """A customer writes: `kind` is the message's type, `content` the object of that name. Returns the wamid.

        Opens the customer service window and counts against the number's tier, as every inbound message does.
        Raises KeyError for an unknown number or person, `Overfull` when webhooks cannot be kept any more.
        """
        business = self.numbers[number]
        person = self.people.get(person_id)
        if person is None:
            raise KeyError(person_id)
        if self.postbox.waiting >= 900_000:  # below the postbox's own bound, so that statuses still find room
            raise Overfull(f"{self.postbox.waiting} webhook items are waiting for a 200")
        now, at = self.clock.monotonic(), self.clock.now()
        message_id = wamid(person.digits, False, at, self._rng)
        item: Json = {}
        if person.shows_phone(number, at):
            item["from"] = person.wa_id
        if person.bsuid:
            item["from_user_id"] = person.bsuid
        item |= {"id": message_id, "timestamp": str(at // 1_000), "type": kind}
        if quoting:
            item["context"] = {"from": business.display_phone_number, "id": quoting}
        item[kind] = content
        self._seconds[number].charge(now)
        self.windows.wrote(number, person_id, at)
        ref = MessageRef(wamid=message_id, number=number, person=person_id, type=kind, outgoing=False, at=at)
        self._keep(ref)
        self.journal.write(Wrote(at=at, mono=now, number=number, person=person_id, wamid=message_id, message=item))
        value = {
            "messaging_product": "whatsapp",
            "metadata": self._metadata(number),
            "contacts": [person.contact(number, at)],
            "messages": [item],
        }
        self._out(number, person, "message", value, ref)
        return message_id

    def renumber(self, number: str, person_id: str, *, wa_id: str = "", bsuid: str = "") -> str:
        """A person gets another phone, another BSUID, or both; this number is told by a system message. Returns its
        wamid. What is sent to the old phone still reaches them: it was theirs a moment ago.

        Raises KeyError for an unknown number or person.
        """
        person = self.people.get(person_id)
        if person is None:
            raise KeyError(person_id)
        at = self.clock.now()
        was_shown, before = person.shows_phone(number, at), (person.wa_id, person.bsuid)
        person.handle = person.id
        person.wa_id, person.bsuid = wa_id or person.wa_id, bsuid or person.bsuid
        self.introduce(person)
        says_number = bool(wa_id) and was_shown
        system: Json = {"type": "user_changed_number" if says_number else "user_changed_user_id"}
        system["body"] = f"{person.name or 'A customer'} changed"
        if says_number:
            system["wa_id"] = person.wa_id
        if bsuid:
            system |= {"user_id": person.bsuid, "previous_user_id": before[1]}
        message_id = wamid(person.digits, False, at, self._rng)
        item: Json = {"from": before[0]} if was_shown else {}
        item |= {"id": message_id, "timestamp": str(at // 1_000), "type": "system", "system": system}
        value = {"messaging_product": "whatsapp", "metadata": self._metadata(number), "messages": [item]}
        ref = MessageRef(wamid=message_id, number=number, person=person_id, type="system", outgoing=False, at=at)
        self._out(number, person, "message", value, ref)
        return message_id

    def open_chat(self, number: str, person_id: str) -> int:
        """The customer looks at the chat: what was delivered is read, if receipts are on. Returns how many were."""
        person = self.people.get(person_id)
        if person is None or person.reads == "never" or not person.online:
            return 0
        unread = list(self._unread.get((number, person_id), {}).values())
        for message in unread:
            self._tick(message, "read")
        return len(unread)

    def prefer(self, number: str, person_id: str, *, marketing: bool) -> None:
        """The customer stops or resumes marketing messages with the platform's own switch."""
        person = self.people.get(person_id)
        if person is None:
            raise KeyError(person_id)
        at = self.clock.now()
        person.opted_out = not marketing
        self.journal.write(Introduced(at=at, person=person))
        preference: Json = {}
        if person.shows_phone(number, at):
            preference["wa_id"] = person.wa_id
        if person.bsuid:
            preference["user_id"] = person.bsuid
        preference |= {
            "detail": f"User requested to {'resume' if marketing else 'stop'} marketing messages",
            "category": "marketing_messages",
            "value": "resume" if marketing else "stop",
            "timestamp": at // 1_000,
        }
        value = {
            "messaging_product": "whatsapp",
            "metadata": self._metadata(number),
            "contacts": [person.contact(number, at)],
            "user_preferences": [preference],
        }
        self._out(number, person, "preference", value, None, field="user_preferences")

    # Faults that are events rather than chances

    def freeze(self, seconds: float) -> None:
        """Fall silent for a while."""
        self.faults.freeze(self.clock.monotonic(), seconds)
        self.journal.write(Switched(at=self.clock.now(), name="freeze", value={"seconds": seconds}))

    def throttle_inbound(self, number: str, count: int) -> None:
        """Charge inbound messages that reach no webhook of ours: another app's, another system's."""
        now = self.clock.monotonic()
        for _ in range(count):
            self._seconds[number].charge(now)

    def used_mps(self, number: str) -> int:
        """Return how many messages the last second held."""
        return self._seconds[number].used(self.clock.monotonic())

    # Media and the rest of Graph

    def upload(self, number: str, mime_type: str, data: bytes, filename: str = "") -> str:
        """Keep a medium, return its id. Raises ValueError when it is too large."""
        if len(data) > UPLOAD_BYTES_MAX:
            raise ValueError(f"{len(data)} bytes; at most {UPLOAD_BYTES_MAX}")
        medium = Uploaded(
            at=self.clock.now(),
            id=f"{self.clock.now()}{self._rng.randrange(1_000):03d}",
            mime_type=mime_type,
            data=data,
            filename=filename,
            number=number,
        )
        self._media.keep(medium)
        self.journal.write(medium)
        return medium.id

    def medium(self, media_id: str) -> Uploaded | None:
        """Return an uploaded medium."""
        return self._media.get(media_id)

    def attach(self, number: str, mime_type: str, data: bytes, filename: str = "") -> Json:
        """A customer attaches a medium: keep it, return what a webhook says of it. Raises ValueError when too large."""
        media_id = self.upload(number, mime_type, data, filename)
        return {
            "mime_type": mime_type,
            "sha256": b64encode(hashlib.sha256(data).digest()).decode(),
            "id": media_id,
            "url": f"{self.base_url}/sandbox/media/{media_id}",
        }

    def _other_call(
        self, method: str, path: str, node: str, edge: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        query = dict(parse_qsl(path.partition("?")[2]))
        number = self.numbers.get(node)
        medium = self._media.get(node)
        if medium is not None and query.get("phone_number_id", medium.number) != medium.number:
            return self._refused(_not_found(node, method))
        if number is not None and edge == "" and method == "GET":
            return self._json(200, self._number_node(number))
        if number is not None and edge == "media" and method == "POST":
            return self._upload_call(number, headers, body)
        if medium is not None and edge == "" and method == "GET":
            return self._json(200, node_of(medium, self.base_url, self.clock.now()))
        if medium is not None and edge == "" and method == "DELETE":
            self._media.drop(node)
            return self._json(200, {"success": True})
        if edge == "subscribed_apps" and method in ("GET", "POST"):
            return self._json(200, {"success": True} if method == "POST" else {"data": []})
        if number is not None:
            found = self._accounts.of_number(method, node, edge, body, self.clock.now())
        else:
            token = _header(headers, "authorization").partition(" ")[2].strip()
            found = self._accounts.of_waba(method, node, edge, query, self.base_url, token)
        if found is None:
            return self._refused(_not_found(node, method))
        return self._refused(found) if isinstance(found, GraphError) else self._json(200, found)

    def _upload_call(self, number: BusinessNumber, headers: Mapping[str, str], body: bytes) -> Answer:
        upload = read_upload(_header(headers, "content-type"), body)
        if isinstance(upload, GraphError):
            return self._refused(upload)
        return self._json(200, {"id": self.upload(number.phone_number_id, *upload)})

    def _number_node(self, number: BusinessNumber) -> Json:
        digits = number.display_phone_number
        return {
            "id": number.phone_number_id,
            "display_phone_number": f"+{digits}",
            "verified_name": number.name or "Example Shop",
            "quality_rating": "GREEN",
            "platform_type": "CLOUD_API",
            "throughput": {"level": "HIGH" if number.throughput_mps > 80 else "STANDARD"},
            "whatsapp_business_manager_messaging_limit": "TIER_UNLIMITED",
            "webhook_configuration": {"application": self.postbox.url},
        }

    # Small things

    def _out(
        self,
        number: str,
        person: Person,
        kind: str,
        value: Json,
        message: MessageRef | None,
        *,
        field: str = "messages",
    ) -> None:
        item = Webhook(
            at=self.clock.now(),
            number=number,
            waba=self.numbers[number].waba_id,
            person=person.id,
            kind=kind,
            change={"value": value, "field": field},
            wamid=message.wamid if message else "",
            status=message.status if message and kind == "status" else "",
        )
        self.journal.write(item)
        self.postbox.put(item)

    def _note(
        self,
        path: str,
        raw: bytes,
        *,
        number: str,
        fault: str = "",
        http: int = 0,
        refusal: GraphError | None = None,
    ) -> None:
        """Write down a call the platform did not look into, as far as it can be read."""
        called = Called(
            at=self.clock.now(),
            mono=self.clock.monotonic(),
            number=number,
            path=path,
            request=raw[:BODY_BYTES_MAX].decode("utf-8", "replace"),
            fault=fault,
            answered=refusal is not None or http != 0,
            http=ERRORS[refusal.code].status if refusal else http,
            code=refusal.code if refusal else 0,
        )
        try:
            outgoing = read(json.loads(raw))
        except (ValueError, RecursionError):
            outgoing = None
        if isinstance(outgoing, Outgoing):
            called.kind, called.type, called.opaque = outgoing.kind, outgoing.type, outgoing.opaque
            called.send = send_of(outgoing.opaque)
            person = self.people.by_phone(outgoing.to) if outgoing.to else self.people.by_bsuid(outgoing.recipient)
            called.person = person.id if person else ""
        self.journal.write(called)

    def _metadata(self, number: str) -> Json:
        return {"display_phone_number": self.numbers[number].display_phone_number, "phone_number_id": number}

    def _portfolio(self, name: str) -> PortfolioLimit:
        return self._portfolios.setdefault(name, PortfolioLimit(self.rules.portfolio_people_max))

    def _recent(self) -> list[MessageRef]:
        """Return the messages somebody may still look at, oldest first. Bounded, for a chat is opened often."""
        return list(islice(reversed(self._messages.values()), 20_000))[::-1]

    def _keep(self, message: MessageRef) -> None:
        self._messages[message.wamid] = message
        if len(self._messages) > MESSAGES_KEPT_MAX:
            _, oldest = self._messages.popitem(last=False)
            self._is_seen(oldest)

    def _move(self, message: MessageRef, status: str) -> None:
        message.status = status
        if status == "delivered" and message.type != "reaction":
            self._unread.setdefault((message.number, message.person), {})[message.wamid] = message
        else:
            self._is_seen(message)

    def _is_seen(self, message: MessageRef) -> None:
        chat = (message.number, message.person)
        if unread := self._unread.get(chat):
            unread.pop(message.wamid, None)
            if not unread:
                del self._unread[chat]

    def _soon(self, bounds_ms: tuple[int, int], what: Callable[[], None]) -> None:
        """Do something after a drawn time; while the platform does not run, keep it for its start."""
        delay_s = self._rng.uniform(*bounds_ms) / 1_000
        if not self._running:
            self._resume.append(what)
            return
        self._timer_count += 1
        key = self._timer_count

        def due() -> None:
            self._timers.pop(key, None)
            what()

        self._timers[key] = asyncio.get_running_loop().call_later(delay_s, due)

    def _json(self, status: int, body: Json) -> Answer:
        return Answer(
            status,
            {
                "Content-Type": "application/json; charset=UTF-8",
                "x-fb-request-id": trace_id(self._rng),
                "x-fb-trace-id": trace_id(self._rng)[:11],
                "facebook-api-version": f"v{VERSION_MAX}.0",
            },
            encode_answer(body),
        )

    def _refused(self, error: GraphError) -> Answer:
        return self._json(ERRORS[error.code].status, error_body(error, trace_id(self._rng)))

    def _remembered(self) -> list[Entry]:
        entries: list[Entry] = [Introduced(at=self.clock.now(), person=person) for person in self.people.named.values()]
        entries.extend(self._media.all())
        return entries

    def _remember(self, entry: Entry, unanswered: dict[int, Webhook], shift_s: float) -> None:
        """Take one entry of an earlier process in. `shift_s` leads from its wall clock to our monotonic one."""
        match entry:
            case Introduced(person=person):
                self.people.add(person)
            case Uploaded():
                self._media.keep(entry)
            case Wrote() if entry.number in self.numbers:
                self.windows.wrote(entry.number, entry.person, entry.at)
                self._keep(
                    MessageRef(
                        wamid=entry.wamid,
                        number=entry.number,
                        person=entry.person,
                        type=entry.message.get("type", ""),
                        outgoing=False,
                        at=entry.at,
                    )
                )
            case Called(accepted=True, kind="message") if entry.number in self.numbers:
                self._remember_send(entry, shift_s)
            case Ticked() if entry.wamid in self._messages:
                self._move(self._messages[entry.wamid], entry.status)
            case Webhook() if entry.number in self.numbers:
                unanswered[entry.seq] = entry
            case Posted() if entry.answer == 200 or entry.given_up:
                for seq in entry.items:
                    unanswered.pop(seq, None)
            case _:
                pass

    def _remember_send(self, called: Called, shift_s: float) -> None:
        if self.people.get(called.person) is None:
            self.people.by_phone(called.person)
        self._pairs.charge(called.number, called.person, called.at / 1_000 + shift_s)
        category = "service"
        if called.type == "template":
            content = unfolded(json.loads(called.request))["template"]
            template = self.templates.find(content["name"], content["language"]["code"])
            category = template.category.lower() if template else "utility"
            if not self.windows.is_open(called.number, called.person, called.at):
                self._portfolio(self.numbers[called.number].portfolio).charge(called.person, called.at)
        self._keep(
            MessageRef(
                wamid=called.wamid,
                number=called.number,
                person=called.person,
                type=called.type,
                outgoing=True,
                at=called.at,
                send=called.send,
                opaque=called.opaque,
                to_phone=called.to_phone,
                category=category,
            )
        )


ROUTE = re.compile(r"/v(?P<version>\d{1,3})\.0/(?P<node>[\w.-]{1,80})(?:/(?P<edge>\w{1,40}))?/?")

RANK = {"": 0, "sent": 1, "delivered": 2, "read": 3, "failed": 4}

REVOKED = {
    463: "Error validating access token: Session has expired on Monday, 14-Sep-26 05:00:00 PDT.",
    460: "Error validating access token: The session has been invalidated because the user changed their password.",
    467: "Error validating access token: The session is invalid because the user logged out.",
}

BAD_GATEWAY = Answer(
    502,
    {"Content-Type": "text/html"},
    b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>",
)


def send_of(opaque: str | None) -> str:
    """Return the sender's own id of a send: the second part of Depesche's opaque data, else the data itself."""
    if opaque is None:
        return ""
    if opaque.startswith(("dp1|", "dp1-|")):
        return opaque.split("|", 2)[1]
    return opaque


def _not_found(node: str, method: str = "POST") -> GraphError:
    return GraphError(
        100,
        subcode=NOT_FOUND,
        message=f"Unsupported {method.lower()} request. Object with ID '{node}' does not exist, cannot be loaded due "
        "to missing permissions, or does not support this operation.",
    )


def _header(headers: Mapping[str, str], name: str) -> str:
    for key, value in headers.items():
        if key.lower() == name:
            return value
    return ""
