"""What a customer's actor decides: every fact once, windows, routing, admission, the life of each send, doubt.

`decide` takes one record (or a deadline that fell due) and returns the state after it and what is to be done. The life
of a send moves forward only:

    taken ─▶ held (it speaks of a send whose wamid is not known yet, or one before it in its lane does)
      └────▶ admitted, attempt 1 ─▶ accepted · refused · expired                      settled: out of `sends`
                     ▲    └──▶ in doubt ─▶ accepted or failed by its status, or by a late answer ─▶ settled
                     └─ attempt 2 ─┘  └──▶ unknown, when nothing can be learned any more ─────────▶ settled

Statuses (sent, delivered, read, played, failed) are forwarded once each, to whoever sent, and mark the send's entry in
the dedupe ring; marks are only ever added. Times are Unix ms. Everything a customer can make us remember has a limit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from broker.core import botview, consent, dedupe, idmap, marketing_rest, reference, window
from broker.core.autoreply import NOT_ANSWERED, AutoReply
from broker.core.consent import Change
from broker.core.customer_context import Context, NumberFacts
from broker.core.customer_state import (
    ACCEPTED,
    ACCEPTED_TWICE,
    KNOWN_MAX,
    REPLIED_MAX,
    SEEN_EVERY_MS,
    STATUS_MARKS,
    WINDOWS_MAX,
    Customer,
    Held,
    Known,
    Send,
    pack,
    pack_send_id,
    pack_wamid,
    unpack,
    unpack_send_id,
    unpack_wamid,
)
from broker.core.identity import address, group_of, is_customer, normalise_wa_id
from broker.core.moves import Append, Moved, Residence, next_look
from broker.core.opaque import Opaque, derived_send_id, is_send_id, unwrap, wrap
from broker.core.outcome import is_of_number, rule_of
from broker.core.refusals import (
    ADDRESS_TOO_LONG,
    BACKLOG,
    EPOCH_STALE,
    NUMBER_UNKNOWN,
    OPTED_OUT,
    OUTCOME_UNKNOWN,
    REFERENCE_GONE,
    TOO_OLD,
    UNREADABLE,
    WINDOW_CLOSED,
    Refusal,
    resting,
)
from broker.core.routing import BOT, Case, Routed, routed
from broker.core.status import StatusBody, failed
from broker.core.template_class import by_window
from broker.core.view import template_language, view
from schemas.ids import CustomerKey, SendId, Sink
from schemas.records import (
    LANE_OF,
    ConversationRecord,
    DeliveryEvent,
    DeliveryFailed,
    Handover,
    Item,
    Lane,
    NumberFault,
    Ready,
    RouteDebounce,
    SendClass,
    SendOutcome,
    SendRequest,
    Settle,
    Withdraw,
    decode_delivery,
    encode,
)

WAITING_BYTES_MAX = 1_000_000
"""Payloads of one customer's waiting sends, written with every change of its state. One send of the gateway's limit
(512 kB) always fits beside others, and the state stays far below a record's limit."""

ATTEMPTS_MAX = 2
"""A send in doubt is repeated once: each repetition may be a duplicate, and doubt that returns has a cause that
repeating does not cure."""

LOOK_AGAIN_MS = 5_000
"""How often a doubt is looked at whose time is over while nothing proves that webhooks arrive."""

EVIDENCE_SLACK_MS = 2_000
"""How much later than the doubtful call something must be: Meta's instants are whole seconds, by its clock."""

FAILED_WITHIN_MS = 600_000
"""How soon after a call a status says that its window was closed. A customer who wrote within that time may have opened
the window after the call: then it is open, whatever the status says."""

SILENT_MS_MIN = 60_000
"""A doubt is not given up sooner after its call, however soon the send would have been too old."""

LOST_AFTER_MS = 600_000
"""A send nobody reported on is given up this long after the last moment its call could begin: its log was lost."""

HOLD_MS_MAX = 10_000
"""How long an update waits that may speak of a send whose wamid we do not know yet. A status names it within a second
or two, mostly; a customer must not wait longer for a bot than a bot's own time-out."""

HELD_MAX = 32
HELD_BYTES_MAX = 128_000
"""Updates of one customer that wait so, and their bytes: above it the first goes as it is. Written with the state."""

LIFE_MS: dict[SendClass, int] = {
    "otp": 10 * 60_000,
    "reply": window.WINDOW_MS,
    "transactional": window.WINDOW_MS,
    "campaign": window.WINDOW_MS,
}
"""How long a send may wait when its sender does not say. A one-time code lives 10 min at Meta, too."""

WORDED = frozenset(("text", "button", "interactive"))
"""Types of message that may be a word: written, or tapped."""

PROOF_CHARS_MAX = 160
"""Of what proves a change of consent. A wamid has some 60 characters; what is longer is not one of Meta's today."""

MARK_LIFE_MS = 10 * 60_000
"""A read mark or typing indicator later than this tells the customer nothing."""

REPLY_LIFE_MS = 60 * 60_000
"""A reply of the broker's own later than this after the message answers nothing any more."""

REPLY_KEY = "#reply"
"""In the place of a bot key's name, which cannot be this."""


# ---- events and commands


class Due(Struct, frozen=True):
    """A deadline of this customer fell due. `heard`: for each business number, Meta's instant of the newest first
    status that arrived (`heard_of`)."""

    heard: Mapping[str, int]


Event = ConversationRecord | Due


class Dispatch(Struct, frozen=True, gc=False):
    """Append to the number's lane at this slot."""

    slot: int
    record: Ready | Settle | NumberFault | Withdraw


class Deliver(Struct, frozen=True, gc=False):
    """Append to the sink's log."""

    sink: str
    event: DeliveryEvent


class Note(Struct, frozen=True, gc=False):
    """Count it, once the step is durable. `what` is one of `NOTES`, `label` few or configured."""

    what: str
    label: str


NOTES: Final = (
    "admitted", "routed", "replied", "duplicate", "status", "resolved", "accepted_twice", "consent", "failed", "moved",
)  # fmt: skip
"""Admission; the route that took an item; the route whose own reply is to be sent; what dedupe removed, by kind; where
a status went; how doubt ended; a second acceptance of one send; a customer who said stop or resume; the code of a
message that failed after it was accepted; a step of a customer's move from one key to another (`moves.Moved`)."""

Command = Dispatch | Deliver | Append | Note


# ---- decide


def decide(
    customer: Customer | None, key: CustomerKey, event: Event, context: Context, now: int, *, apart: bool = False
) -> tuple[Customer | None, list[Command]]:
    """Advance one customer by one event. The state given is used up: it may be changed in place and returned.

    None is a customer nothing is known of; marks leave it so. `apart`: what waited for this event is not decided with
    it but put on the log again, because what came of it together did not fit. Total: it raises for no record the
    log's types allow, except that a send whose id is not of our making is a fault of ours (`ValueError`).
    """
    commands: list[Command] = []
    kind = type(event)
    if kind is SendRequest and event.kind == "mark":  # type: ignore[union-attr]
        _mark(key, event, context, now, commands)  # type: ignore[arg-type]
        return customer, commands
    if kind is DeliveryFailed:
        return customer, commands  # the delivery stage has set it aside and counted it
    if customer is None:
        customer = Customer()
    if not is_customer(key):
        _decide_here(Turn(customer, key, context, now, commands, key), event)
        _see(customer, event, now)
        return customer, commands
    residence = Residence(customer, key, now, apart=apart)
    if kind is Due:
        residence.look()
    else:
        residence.take(event)  # type: ignore[arg-type]
    while residence.arrivals:
        arrival = residence.arrivals.popleft()
        if residence.lets_in(arrival):
            before = (pack(residence.customer), len(commands)) if arrival.was_parked else None
            turn = Turn(residence.customer, key, context, now, commands, arrival.origin)
            try:
                _decide_here(turn, arrival.record)
            except Exception:
                if before is None:
                    raise
                residence.customer = unpack(before[0])
                del commands[before[1] :]
                residence.give_back(arrival)
            else:
                _see(residence.customer, arrival.record, now)
        elif type(arrival.record) is Handover:  # one of the two keys may have said stop, and sends of the other wait
            Turn(residence.customer, key, context, now, commands, key).withdraw()
        if residence.commands:
            _tell(residence, commands)
    if residence.commands:
        _tell(residence, commands)
    if kind is Due:
        Turn(residence.customer, key, context, now, commands, key).due(event)  # type: ignore[arg-type]
    return residence.customer, commands


def _decide_here(turn: Turn, event: Event) -> None:
    """Decide about a record of somebody who lives here. What has waited long enough goes before it, whatever it is."""
    turn.let_go()
    kind = type(event)
    if kind is Item:
        turn.item(event)  # type: ignore[arg-type]
    elif kind is SendRequest:
        turn.request(event)  # type: ignore[arg-type]
    elif kind is SendOutcome:
        turn.outcome(event)  # type: ignore[arg-type]
    elif kind is Due:
        turn.due(event)  # type: ignore[arg-type]


def _see(customer: Customer, event: Event, now: int) -> None:
    if type(event) is not Due and now >= customer.seen_at + SEEN_EVERY_MS:
        customer.seen_at = now


def _tell(residence: Residence, commands: list[Command]) -> None:
    """Take over what a residence wants done, in its place among what is decided."""
    commands += (
        Note("moved", command.what) if isinstance(command, Moved) else command for command in residence.commands
    )
    residence.commands.clear()


def _mark(key: CustomerKey, request: SendRequest, context: Context, now: int, commands: list[Command]) -> None:
    """A read mark or typing indicator has no customer, no state and no status."""
    number = context.numbers.get(request.phone_number_id)
    if number is None:
        commands.append(Note("admitted", "number"))
        return
    not_after = request.not_after or request.requested_at + MARK_LIFE_MS
    ready = Ready(
        send_id=request.send_id,
        attempt=1,
        phone_number_id=request.phone_number_id,
        customer=key,
        lane="reply",
        send_class="reply",
        kind="mark",
        body=request.body,
        admitted_at=now,
        not_after=not_after,
        requested_at=request.requested_at,
    )
    commands.append(Dispatch(number.slot, ready))
    commands.append(Note("admitted", "mark"))


def next_due(customer: Customer, now: int) -> int:
    """Return when the customer is to be looked at without a record, 0 for never."""
    earliest = 0
    for send in customer.sends:
        if not send.attempt:
            at = send.not_after
        elif send.doubt_until:
            at = send.doubt_until if send.doubt_until > now else now + LOOK_AGAIN_MS
            at = max(min(at, given_up_at(send)), now + 1)
        else:
            at = send.not_after + LOST_AFTER_MS
        if not earliest or at < earliest:
            earliest = at
    if customer.held:
        at = max(customer.held[0].until, now + 1)
        earliest = min(earliest, at) if earliest else at
    look_at = next_look(customer)
    return min(earliest, look_at) if earliest and look_at else earliest or look_at


def given_up_at(send: Send) -> int:
    """Return when a doubt ends without having been resolved."""
    return max(send.not_after, send.called_at + SILENT_MS_MIN)


def heard_of(record: ConversationRecord) -> tuple[str, int] | None:
    """Return what a record proves about intake: (number, Meta's instant) of the first status of a send of ours.

    Only `sent` and `failed` follow the call at once; a `read` may be of a message sent yesterday.
    """
    if type(record) is Item and record.send_id and record.kind == "status" and record.status in ("sent", "failed"):
        return record.phone_number_id, record.at
    return None


class Turn:
    """One decision at work: the state it changes and the commands it gives. Lives for one event. `origin`: the key it
    came in by, which is another one when its customer has moved."""

    __slots__ = ("_commands", "_context", "_customer", "_key", "_now", "_origin")

    def __init__(
        self, customer: Customer, key: CustomerKey, context: Context, now: int, commands: list[Command], origin: str
    ) -> None:
        self._customer = customer
        self._origin = origin
        self._key = key
        self._context = context
        self._now = now
        self._commands = commands

    # -- items of webhooks

    def item(self, item: Item) -> None:
        """Take what Meta told us about a customer."""
        customer, now = self._customer, self._now
        at = item.at
        if customer.heard_at < at <= now + window.SKEW_MS_MAX:
            customer.heard_at = at
        if not customer.bsuid and item.bsuid and self._key.endswith(f":{item.bsuid}"):
            customer.bsuid = item.bsuid  # a phone's is `moves.py`'s
        if item.kind == "status" and (item.send_id or self._is_ours_after_all(item)):
            self._status(item)
            return
        if item.dedupe and not self._take(item.dedupe):
            self._commands.append(Note("duplicate", item.kind))
            return
        first = False
        if item.kind == "message":
            number = item.phone_number_id
            opened_at = customer.windows.get(number, 0)
            first = not opened_at
            if first and len(customer.windows) >= WINDOWS_MAX:
                del customer.windows[min(customer.windows, key=lambda each: (customer.windows[each], each))]
            customer.windows[number] = window.opened(opened_at, at or item.received_at, now)
            self._hear_word(item)
        elif item.kind == "preference":
            self._prefer(item)
        self._route(item, first)

    # -- consent

    def _hear_word(self, item: Item) -> None:
        """A message that is nothing but a word for stop or start, written or tapped."""
        context = self._context
        if item.message_type not in WORDED or not (context.stop_words or context.start_words):
            return
        word = consent.plain(view(item.body).text)
        if word in context.stop_words or word in context.start_words:
            self._change_consent(item, word in context.stop_words, f"word:{word}", item.wamid)

    def _prefer(self, item: Item) -> None:
        """WhatsApp's own switch. A value we do not know changes nothing: it is passed on like any other."""
        if item.message_type == consent.CATEGORY and item.status in ("stop", "resume"):
            self._change_consent(item, item.status == "stop", "preference", item.dedupe)

    def _instant(self, fact: Item | SendOutcome) -> int:
        """Return when something was said, as far as that can be."""
        return fact.at if 0 < fact.at <= self._now + window.SKEW_MS_MAX else self._now

    def _change_consent(self, fact: Item | SendOutcome, stopped: bool, source: str, proof: str) -> None:
        change = Change(self._instant(fact), stopped, fact.phone_number_id, source, proof[:PROOF_CHARS_MAX])
        changes = consent.changed(self._customer.consent, change)
        if changes != self._customer.consent:
            self._customer.consent = changes
            self._commands.append(Note("consent", "stop" if stopped else "resume"))
            self.withdraw(besides=proof)

    def withdraw(self, besides: str = "") -> None:
        """Tell senders not to begin what waits there and is not wanted any more. They may have begun: what comes of it
        is reported as ever. `besides`: the send whose failure told us of the stop. A send in doubt is not sent again
        by us (`_presume`), and one that is held is refused when it would leave (`_admit`)."""
        for send in self._customer.sends:
            if not send.attempt or send.doubt_until or send.withdrawn >= send.attempt or send.send_id == besides:
                continue
            number = self._context.numbers.get(send.phone_number_id)
            if number is not None and self._is_unwanted(send):
                send.withdrawn = send.attempt
                who = self._order_key(send)
                record = Withdraw(send.send_id, send.attempt, send.phone_number_id, who, send.not_after)
                self._commands.append(Dispatch(number.slot, record))

    def _is_unwanted(self, send: Send) -> bool:
        """Whether a send is marketing to somebody who does not want any."""
        if not self._customer.consent or not send.is_marketing:
            return False
        return consent.stopped(self._customer.consent, send.phone_number_id, self._context.consent_scope)

    def _rest(self, fact: Item | SendOutcome) -> None:
        """Meta says that this customer gets no more marketing now. A group's members are told apart nowhere here."""
        if is_customer(self._key):
            self._customer.marketing_refused_at = max(self._customer.marketing_refused_at, self._instant(fact))

    def _rests_until(self, send: Send, at: int) -> int:
        """Return until when a template may not go that would leave at this instant, because it is marketing and that
        rests; 0 when it may. Inside the window Meta does not count it."""
        ends_at = marketing_rest.ends_at(self._customer.marketing_refused_at, self._context.marketing_rest_ms)
        is_meant = at < ends_at and send.is_marketing and send.template
        return ends_at if is_meant and not self._is_open(send.phone_number_id, at) else 0

    # -- items, continued

    def _is_ours_after_all(self, item: Item) -> bool:
        """Whether a status without our line is of a send of ours, and was not taken for a stranger's before."""
        if not self._customer.known or self._by_wamid(item.wamid) is None:
            return False
        return not item.dedupe or dedupe.find(self._customer.taken, dedupe.fingerprint(item.dedupe)) < 0

    def _route(self, item: Item, first: bool) -> None:
        customer = self._customer
        routed = self._routed(item, first)
        if item.kind == "status":
            self._commands.append(Note("status", "routed" if routed.sinks else "foreign"))
        elif routed.rules:
            for name in routed.rules:
                self._commands.append(Note("routed", name))
        else:
            self._commands.append(Note("routed", "none"))
        is_written = item.kind == "message" and is_customer(self._key)
        if is_written:
            self._heed(routed)
        if routed.sinks:
            self._fan_out(item, routed, customer.epoch if is_written else 0)
        if routed.reply is not None and is_written:
            self._reply(item, routed.reply)

    def _routed(self, item: Item, first: bool) -> Routed:
        customer, context = self._customer, self._context
        language = customer.language or customer.sent_language
        case = Case(item, first=first, holder=self._holder(), language=language)
        return routed(context.rules, context.account_sinks, case)

    def _holder(self) -> str:
        """Who holds the conversation: a sink that is configured, else the bot. One that left can answer nobody."""
        holder = self._customer.holder
        return holder if holder in self._context.sinks else BOT

    def _heed(self, routed: Routed) -> None:
        """Take what routes say of the conversation and its customer."""
        customer = self._customer
        if routed.holder and routed.holder != self._holder():
            customer.holder = "" if routed.holder == BOT else routed.holder
            customer.epoch += 1
        if routed.language:
            customer.language = routed.language

    def _fan_out(self, item: Item, routed: Routed, epoch: int) -> None:
        body = self._seen_by_bots(item)
        fact = item.dedupe or f"{item.received_at}:{hashlib.blake2b(item.body, digest_size=16).hexdigest()}"
        strange = self._strange(item) if self._customer.sends and item.kind == "message" else ()
        for sink in routed.sinks:
            self._deliver(
                sink,
                fact,
                item.kind,
                item.phone_number_id,
                body,
                at=item.at,
                accepted_at=item.received_at,
                tags=routed.tags,
                epoch=epoch,
                strange=strange,
                debounce=routed.debounce_of(sink),
            )
        self.let_go()

    def _reply(self, item: Item, reply: AutoReply) -> None:
        """Ask for the broker's own reply, unless the customer had it not long ago. It is a send like any other, and its
        id follows from the message's: decided twice, it is taken once."""
        if item.message_type in NOT_ANSWERED or not item.dedupe or not (item.wa_id or item.bsuid):
            return
        replied, at = self._customer.replied, item.received_at
        mark = dedupe.fingerprint(f"{item.phone_number_id}\0{reply.rule}")
        if at < replied.get(mark, 0):
            return
        if mark not in replied and len(replied) >= REPLIED_MAX:
            del replied[min(replied, key=lambda each: (replied[each], each))]
        replied[mark] = at + reply.every_ms
        self._commands.append(Note("replied", reply.rule))
        self.request(
            SendRequest(
                send_id=derived_send_id(REPLY_KEY, f"{item.dedupe}\0{reply.rule}"),
                phone_number_id=item.phone_number_id,
                kind="message",
                message_type=reply.message_type,
                send_class="reply",
                key_name=REPLY_KEY,
                sink="",
                body=reply.body(item.wa_id, item.bsuid),
                requested_at=at,
                wa_id=item.wa_id,
                bsuid="" if item.wa_id else item.bsuid,
                template=reply.template,
                not_after=at + REPLY_LIFE_MS,
            )
        )

    def _seen_by_bots(self, item: Item) -> bytes:
        """Return an update's body as sinks get it."""
        body = item.body
        if self._customer.known:
            body = botview.with_our_ids(body, self._our_id)
        number = self._context.numbers.get(item.phone_number_id)
        if number is not None and number.media_secret:
            link = botview.linked(item.phone_number_id, self._context.public_url, number.media_secret)
            body = botview.with_our_urls(body, link)
        return body

    def _status(self, item: Item) -> None:
        """Take a status of a send of ours: it moves the send's life, settles its doubt, and goes to whoever sent it."""
        try:
            opened: StatusBody | None = StatusBody(item.body)
        except ValueError:
            opened = None  # the receiver read it, so this is odd; whoever sent gets it as it came
        line = unwrap(opened.opaque) if opened is not None and opened.opaque else None
        send_id = item.send_id
        if not send_id:
            remembered = self._by_wamid(item.wamid)
            assert remembered is not None
            send_id = unpack_send_id(remembered.send_id)
        known, send, before = self._by_send_id(send_id), self._waiting(send_id), self._marks(send_id)
        mark = STATUS_MARKS.get(item.status, 0)
        if mark and is_customer(self._key):
            new = self._advance(send_id, mark)
        else:  # a group's status comes once for each participant; a status we have no mark for is a fact of its own
            new = not item.dedupe or self._take(item.dedupe)
        if item.status == "failed" and new and opened is not None:
            self._failed(item, opened.code, send_id)
        sink, own = _owner(line, send, known)
        if known is not None:
            self._compare(send_id, known, item.wamid)
        elif item.status != "failed" and (send is not None or before in (0, STATUS_MARKS["failed"])):
            self._know(send_id, item.wamid, sink, None if line is None or line.own_kept else own)
        if send is not None:
            self._settled(send, "status", overtaken=send.attempt > 1)
            self._remove(send)
        if new:
            body = opened.rewritten(send_id, own) if opened is not None else item.body
            told = self._tell(item, sink, item.dedupe or f"st:{send_id}:{item.status}", body)
            self._commands.append(Note("status", "forwarded" if sink else "routed" if told else "foreign"))
        else:
            self._commands.append(Note("duplicate", "status"))
        self._release()
        self.let_go()

    def _failed(self, item: Item, code: int, send_id: str) -> None:
        """Learn from a message that failed after Meta had accepted it. It is never sent again by itself: 131049, 130472
        and their like are about this recipient now, and whoever sent decides."""
        self._commands.append(Note("failed", str(code) if rule_of(code) is not None else "other"))
        if code == OPTED_OUT.code and is_customer(self._key):  # a group's is of one participant, not of the others
            self._change_consent(item, True, f"error:{code}", send_id)
        elif code == marketing_rest.CODE:
            self._rest(item)
        elif code == WINDOW_CLOSED.code:
            self._close_window(item.phone_number_id, (item.at or item.received_at) - FAILED_WITHIN_MS)
        number = self._context.numbers.get(item.phone_number_id)
        if number is not None and is_of_number(code):
            fault = NumberFault(item.phone_number_id, self._key, code, item.at or item.received_at)
            self._commands.append(Dispatch(number.slot, fault))

    def _tell(self, item: Item, sink: str, fact: str, body: bytes) -> bool:
        """Tell whoever sent of a status, and whom a rule names for statuses, all in the same words; False: nobody."""
        routed = self._routed(item, False)
        sinks = (sink, *(other for other in routed.sinks if other != sink)) if sink else routed.sinks
        for each in sinks:
            self._deliver(
                each,
                fact,
                "status",
                item.phone_number_id,
                body,
                at=item.at,
                accepted_at=item.received_at,
                tags=routed.tags,
                debounce=routed.debounce_of(each),
            )
        return bool(sinks)

    # -- sends

    def request(self, request: SendRequest) -> None:
        """Take a send once, admit it, hold it, or refuse it."""
        if not is_send_id(request.send_id):
            raise ValueError("a send request carries an id that is not of our making")
        if self._waiting(request.send_id) is not None or not self._take(request.send_id):
            self._commands.append(Note("duplicate", "send"))
            return
        send_class, lane = self._class_and_lane(request)
        send = Send(
            send_id=request.send_id,
            phone_number_id=request.phone_number_id,
            send_class=send_class,
            sink=request.sink,
            attempt=0,
            body=request.body,
            requested_at=request.requested_at,
            not_after=request.not_after or request.requested_at + LIFE_MS[send_class],
            wa_id=request.wa_id,
            bsuid=request.bsuid,
            template=request.template,
            own=request.opaque,
            marketing=request.marketing,
            edge=request.edge,
            other_lane=None if lane == LANE_OF[send_class] else lane,
        )
        label, refusal = self._refusal(send, request)
        if refusal is not None:
            self._refuse(send, label, refusal)
            return
        if send.template and is_customer(self._key):
            self._customer.sent_language = template_language(send.body) or self._customer.sent_language
        self._customer.sends.append(send)
        try:
            speaks = reference.own_ids(send.body)
        except ValueError:
            self._remove(send)
            self._refuse(send, "unreadable", UNREADABLE)
            return
        if not speaks and not self._held_before(send):
            self._admit(send, {})
            return
        self._release()
        if not send.attempt and self._waiting(send.send_id) is not None:
            self._commands.append(Note("admitted", "held"))

    def _class_and_lane(self, request: SendRequest) -> tuple[SendClass, Lane]:
        """Say why a send exists and where it waits: as it was asked for, or where nobody said, by the window."""
        if not request.class_presumed:
            return request.send_class, LANE_OF[request.send_class]
        is_open = is_customer(self._key) and self._is_open(request.phone_number_id, self._now)
        return by_window("campaign" if request.marketing else request.send_class, is_open=is_open)

    def _closes_at(self, phone_number_id: str) -> int:
        """Return when the customer's window with a number closes, with the margin for a send's way to Meta; 0 when it
        was never open."""
        return window.closes_at(self._customer.windows.get(phone_number_id, 0), self._context.window_margin_ms)

    def _is_open(self, phone_number_id: str, at: int) -> bool:
        return at < self._closes_at(phone_number_id)

    def _refusal(self, send: Send, request: SendRequest) -> tuple[str, Refusal | None]:
        """Say why a send is not admitted. May bring its `not_after` forward: to the close of the window."""
        customer, context, now = self._customer, self._context, self._now
        if send.phone_number_id not in context.numbers:
            return "number", NUMBER_UNKNOWN
        if request.epoch is not None and request.epoch != customer.epoch:
            return "epoch", EPOCH_STALE
        if now >= send.not_after:
            return "expired", TOO_OLD
        if self._is_unwanted(send):
            return "consent", OPTED_OUT
        if not send.template and is_customer(self._key):
            closes_at = self._closes_at(send.phone_number_id)
            if now >= closes_at:
                return "window", WINDOW_CLOSED
            send.not_after = min(send.not_after, closes_at)
        elif rests_until := self._rests_until(send, now):
            return "resting", resting(rests_until)
        if (
            len(customer.sends) >= context.waiting_sends_max
            or sum(len(waiting.body) for waiting in customer.sends) + len(send.body) > WAITING_BYTES_MAX
        ):
            return "backlog", BACKLOG
        return "", None

    def _too_late(self, send: Send) -> Refusal:
        """Say, as Meta would, why a send that waited is too late: its window closed, or its own time is over."""
        at = max(self._now, send.not_after)
        if not send.template and is_customer(self._key):
            if not self._is_open(send.phone_number_id, at):
                return WINDOW_CLOSED
        elif rests_until := self._rests_until(send, at):
            return resting(rests_until)
        return TOO_OLD

    def _admit(self, send: Send, wamids: Mapping[str, str]) -> None:
        """Hand a send to its sender: attempt 1."""
        number = self._context.numbers.get(send.phone_number_id)
        if number is None:  # it was held, and the number left the configuration
            self._remove(send)
            self._refuse(send, "number", NUMBER_UNKNOWN)
            return
        if self._is_unwanted(send):  # it was held, and they said stop meanwhile
            self._remove(send)
            self._refuse(send, "consent", OPTED_OUT)
            return
        if rests_until := self._rests_until(send, self._now):
            self._remove(send)
            self._refuse(send, "resting", resting(rests_until))
            return
        try:
            line = wrap(SendId(send.send_id), Sink(send.sink), self._key, send.own)
        except ValueError:
            self._remove(send)
            self._refuse(send, "address", ADDRESS_TOO_LONG)
            return
        body = reference.for_graph(send.body, line, wamids)
        send.attempt = 1
        send.body = body if self._context.doubt_ms[send.send_class] >= 0 else b""
        self._dispatch(send, number, body)
        self._commands.append(Note("admitted", "admitted"))

    def _order_key(self, send: Send | None = None) -> str:
        """Return the key the logs keep this customer's order under: it does not change when they move."""
        return (send.order_key if send is not None else "") or self._customer.order_key or self._key

    def _dispatch(self, send: Send, number: NumberFacts, body: bytes) -> None:
        closes_at = self._closes_at(send.phone_number_id)
        if self._now < closes_at and self._rests_until(send, closes_at):  # it may go inside the window alone
            send.not_after = min(send.not_after, closes_at)
        ready = Ready(
            send_id=send.send_id,
            attempt=send.attempt,
            phone_number_id=send.phone_number_id,
            customer=self._order_key(send),
            lane=send.lane,
            send_class=send.send_class,
            kind="message",
            body=body,
            admitted_at=self._now,
            not_after=send.not_after,
            requested_at=send.requested_at,
            template=send.template,
            edge=send.edge,
        )
        self._commands.append(Dispatch(number.slot, ready))

    def _held_before(self, send: Send) -> bool:
        """Whether an earlier send of the same lane is held: then this one must wait behind it."""
        return any(
            not other.attempt and other is not send and other.lane == send.lane for other in self._customer.sends
        )

    def _release(self) -> None:
        """Admit, in order, what was held for something that is known by now; refuse what can never go."""
        if not self._customer.sends:
            return
        closed: dict[str, None] = {}
        for send in list(self._customer.sends):
            if send.attempt:
                continue
            if self._now >= send.not_after:  # also behind one that still waits: it would be looked at for ever
                self._remove(send)
                self._refuse(send, "expired", self._too_late(send))
                continue
            if send.lane in closed:
                continue
            wamids: dict[str, str] = {}
            verdict = ""
            for send_id in reference.own_ids(send.body):
                wamid = self._wamid(send_id)
                if wamid:
                    wamids[send_id] = wamid
                elif self._waiting(send_id) is not None and send_id != send.send_id:
                    verdict = "wait"
                    break
                else:
                    verdict = "gone"
                    break
            if verdict == "wait":
                closed[send.lane] = None
            elif verdict == "gone":
                self._remove(send)
                self._refuse(send, "reference", REFERENCE_GONE)
            else:
                self._admit(send, wamids)

    def outcome(self, outcome: SendOutcome) -> None:
        """Take what a sender reports of one attempt."""
        customer = self._customer
        send = self._waiting(outcome.send_id)
        if send is not None and not send.attempt:
            send = None  # held: nobody was asked to send it
        if outcome.outcome == "in_doubt":
            self._doubt(outcome, send)
            return
        if outcome.outcome == "accepted":
            self._accepted(outcome, send)
        elif send is None or outcome.attempt < send.attempt:
            self._commands.append(Note("duplicate", "outcome"))  # the attempt in force speaks for itself
        else:
            self._settled(send, "answer")
            self._remove(send)
            if outcome.outcome == "expired":
                refusal = self._too_late(send)
            else:
                refusal = Refusal(outcome.code or OUTCOME_UNKNOWN.code, outcome.title or "Refused", outcome.details)
                if outcome.code == WINDOW_CLOSED.code:
                    self._close_window(outcome.phone_number_id, outcome.called_at or outcome.at)
                elif outcome.code == OPTED_OUT.code and not outcome.called_at:  # withdrawn: nobody said anything new
                    refusal = refusal if outcome.attempt == 1 else OUTCOME_UNKNOWN  # the first one may have arrived
                elif outcome.code == OPTED_OUT.code:  # said to Meta at a time we heard nothing of
                    self._change_consent(outcome, True, f"error:{outcome.code}", outcome.send_id)
                elif outcome.code == marketing_rest.CODE:
                    self._rest(outcome)
            self._fail(send, refusal)
        if outcome.wa_id and is_customer(self._key):
            how, value = address(self._key)
            if outcome.wa_id != value and (how == "bsuid" or normalise_wa_id(outcome.wa_id) == value):
                customer.wa_id = outcome.wa_id
        self._release()
        self.let_go()

    def _accepted(self, outcome: SendOutcome, send: Send | None) -> None:
        known = self._by_send_id(outcome.send_id)
        if known is not None:
            self._compare(outcome.send_id, known, outcome.wamid)
        self._advance(outcome.send_id, ACCEPTED)
        if send is None:
            self._commands.append(Note("duplicate", "outcome"))
            return
        if known is None:
            own = send.own
            if own is not None and not send.order_key:  # who has moved has another key in the line, of another length
                line = unwrap(wrap(SendId(send.send_id), Sink(send.sink), self._key, own))
                own = None if line is not None and line.own_kept else own
            self._know(send.send_id, outcome.wamid, send.sink, own)
        self._settled(send, "answer", overtaken=outcome.attempt < send.attempt)
        self._remove(send)

    def _compare(self, send_id: str, known: Known, wamid: str) -> None:
        """Count, once, that Meta took a send twice."""
        if wamid and known.wamid and known.wamid != pack_wamid(wamid) and self._advance(send_id, ACCEPTED_TWICE):
            self._commands.append(Note("accepted_twice", ""))

    def _close_window(self, phone_number_id: str, called_at: int) -> None:
        """Meta says the window is closed: believe it, unless the customer wrote after the call."""
        opened_at = self._customer.windows.get(phone_number_id, 0)
        if opened_at and opened_at < called_at:
            closed_at = self._now - window.WINDOW_MS
            self._customer.windows[phone_number_id] = max(1, min(opened_at, closed_at))

    # -- doubt

    def _doubt(self, outcome: SendOutcome, send: Send | None) -> None:
        """Nobody knows whether an attempt reached Meta. The sender holds the customer's lane until it is answered."""
        if send is None:
            self._settle(outcome.phone_number_id, outcome.send_id, outcome.lane, self._origin)
            return
        if outcome.attempt < send.attempt or send.doubt_until:
            return  # the next attempt is on its way, or the doubt has its deadline
        called_at = outcome.called_at or outcome.at
        send.attempt = max(send.attempt, outcome.attempt)
        send.called_at = min(called_at, self._now)
        wait_ms = self._context.doubt_ms[send.send_class]
        send.doubt_until = max(1, send.called_at + wait_ms if wait_ms >= 0 else given_up_at(send))

    def due(self, due: Due) -> None:
        """Look at what waits for something that may never come."""
        now = self._now
        for send in list(self._customer.sends):
            if not send.attempt:
                continue  # held ones are looked at by `_release`
            if not send.doubt_until:
                if now >= send.not_after + LOST_AFTER_MS:
                    self._give_up(send)
            elif now >= given_up_at(send):
                self._settled(send, "expired")
                self._give_up(send)
            elif now >= send.doubt_until and self._webhooks_arrive(send, due):
                self._presume(send)
        self._release()
        self.let_go()

    def _webhooks_arrive(self, send: Send, due: Due) -> bool:
        """Whether what happened at Meta after the doubtful call reaches us: only then does silence mean something."""
        since = send.called_at + EVIDENCE_SLACK_MS
        return self._customer.heard_at > since or due.heard.get(send.phone_number_id, 0) > since

    def _presume(self, send: Send) -> None:
        """Webhooks arrive and this send's did not: send it again, where its class and the clock allow."""
        number = self._context.numbers.get(send.phone_number_id)
        if self._context.doubt_ms[send.send_class] < 0:
            return  # never; it waits for its status until it is given up
        if (
            number is None
            or send.attempt >= ATTEMPTS_MAX
            or not send.body
            or self._now >= send.not_after
            or self._is_unwanted(send)
            or self._rests_until(send, self._now)
        ):
            self._settled(send, "expired")
            self._give_up(send)
            return
        send.attempt += 1
        send.doubt_until = send.called_at = 0
        self._commands.append(Note("resolved", "policy"))
        self._dispatch(send, number, send.body)

    def _give_up(self, send: Send) -> None:
        self._remove(send)
        self._fail(send, OUTCOME_UNKNOWN)

    def _settled(self, send: Send, by: str, *, overtaken: bool = False) -> None:
        """Tell the sender that nothing more comes for this send: it holds a lane for it, or (`overtaken`: the attempt
        before was taken after all) the next attempt may still be in its queue."""
        if send.doubt_until:
            self._commands.append(Note("resolved", by))
        if send.doubt_until or overtaken:
            self._settle(send.phone_number_id, send.send_id, send.lane, self._order_key(send))

    def _settle(self, phone_number_id: str, send_id: str, lane: Lane, customer: str) -> None:
        number = self._context.numbers.get(phone_number_id)
        if number is not None:  # without a setting there is no sender that could hold anything
            settle = Settle(send_id=send_id, phone_number_id=phone_number_id, customer=customer, lane=lane)
            self._commands.append(Dispatch(number.slot, settle))

    # -- refusals

    def _refuse(self, send: Send, label: str, refusal: Refusal) -> None:
        self._commands.append(Note("admitted", label))
        self._fail(send, refusal)

    def _fail(self, send: Send, refusal: Refusal) -> None:
        """Tell whoever sent (and who observes), once, in Meta's words."""
        if not self._advance(send.send_id, STATUS_MARKS["failed"]):
            return
        number = self._context.numbers.get(send.phone_number_id)
        wa_id, bsuid = send.wa_id, send.bsuid
        if not (wa_id or bsuid) and is_customer(self._key):
            how, value = address(self._key)
            wa_id, bsuid = (value, "") if how == "wa_id" else ("", value)
        body = failed(
            message_id=send.send_id,
            waba_id="" if number is None else number.waba_id,
            phone_number_id=send.phone_number_id,
            display_phone_number="" if number is None else number.display_phone_number,
            wa_id=normalise_wa_id(wa_id) or wa_id,
            bsuid=bsuid,
            at=self._now,
            code=refusal.code,
            title=refusal.title,
            details=refusal.details,
            own=send.own,
            group_id=group_of(self._key),
        )
        fact = f"st:{send.send_id}:failed"
        item = Item(
            kind="status",
            field="messages",
            app="",
            waba_id="" if number is None else number.waba_id,
            phone_number_id=send.phone_number_id,
            dedupe=fact,
            at=self._now,
            received_at=self._now,
            body=body,
            wa_id=wa_id,
            bsuid=bsuid,
            status="failed",
            send_id=send.send_id,
        )
        self._tell(item, send.sink, fact, body)

    # -- the state

    def _take(self, fact: str) -> bool:
        """Take a fact; False when it was taken before."""
        customer, hashed = self._customer, dedupe.fingerprint(fact)
        if dedupe.find(customer.taken, hashed) >= 0:
            return False
        customer.taken = dedupe.added(customer.taken, hashed, self._now)
        return True

    def _marks(self, send_id: str) -> int:
        """Return the marks of a send's entry, -1 when there is none (any more)."""
        taken = self._customer.taken
        at = dedupe.find(taken, dedupe.fingerprint(send_id))
        return -1 if at < 0 else dedupe.marks(taken, at)

    def _advance(self, send_id: str, mark: int) -> bool:
        """Add a mark to a send's entry; False when it has it already."""
        customer, hashed = self._customer, dedupe.fingerprint(send_id)
        at = dedupe.find(customer.taken, hashed)
        if at < 0:
            customer.taken = dedupe.added(customer.taken, hashed, self._now, mark)
            return True
        if dedupe.marks(customer.taken, at) & mark:
            return False
        customer.taken = dedupe.marked(customer.taken, at, mark)
        return True

    def _waiting(self, send_id: str) -> Send | None:
        for send in self._customer.sends:
            if send.send_id == send_id:
                return send
        return None

    def _remove(self, send: Send) -> None:
        self._customer.sends = [other for other in self._customer.sends if other is not send]

    def _know(self, send_id: str, wamid: str, sink: str, own: str | None) -> None:
        known = self._customer.known
        known.append(Known(pack_send_id(send_id), pack_wamid(wamid), sink, own))
        while len(known) > KNOWN_MAX:
            old = known.pop(0)
            self._customer.older = idmap.added(self._customer.older, old.send_id, old.wamid)

    def _by_send_id(self, send_id: str) -> Known | None:
        if not self._customer.known or not is_send_id(send_id):
            return None
        packed = pack_send_id(send_id)
        for known in self._customer.known:
            if known.send_id == packed:
                return known
        return None

    def _by_wamid(self, wamid: str) -> Known | None:
        if not self._customer.known or not wamid:
            return None
        packed = pack_wamid(wamid)
        for known in self._customer.known:
            if known.wamid == packed:
                return known
        return None

    def _our_id(self, wamid: str) -> str:
        known = self._by_wamid(wamid)
        if known is not None:
            return unpack_send_id(known.send_id)
        packed = idmap.send_id_of(self._customer.older, pack_wamid(wamid)) if self._customer.older else b""
        return unpack_send_id(packed) if packed else ""

    def _wamid(self, send_id: str) -> str:
        """Return Meta's id of a settled send of ours, "" when it is not known (any more)."""
        known = self._by_send_id(send_id)
        return unpack_wamid(
            known.wamid if known is not None else idmap.wamid_of(self._customer.older, pack_send_id(send_id))
        )

    # -- what waits for a wamid

    def _strange(self, item: Item) -> tuple[str, ...]:
        """Return the wamids an update speaks of that may be of a send under way: of neither a known send nor a message
        of the customer's own."""
        if not self._is_under_way(item.phone_number_id, item.at):
            return ()
        return tuple(
            wamid
            for wamid in dict.fromkeys(botview.speaks_of(item.body))
            if wamid != item.wamid
            and not self._our_id(wamid)
            and dedupe.find(self._customer.taken, dedupe.fingerprint(f"msg:{item.phone_number_id}:{wamid}")) < 0
        )

    def _is_under_way(self, phone_number_id: str, at: int) -> bool:
        """Whether a send of that number's may be what something of that instant (0: unknown) speaks of."""
        return any(
            send.attempt
            and send.phone_number_id == phone_number_id
            and (not at or send.requested_at < at + EVIDENCE_SLACK_MS)
            for send in self._customer.sends
        )

    def _waits(self, held: Held, event: DeliveryEvent) -> bool:
        return (
            self._now < held.until
            and not all(self._our_id(wamid) for wamid in held.wamids)
            and self._is_under_way(event.phone_number_id, held.at)
        )

    def let_go(self) -> None:
        """Deliver, in order, what waits no longer: in our ids, where they were learned meanwhile."""
        held = self._customer.held
        if not held:
            return
        size, gone = sum(len(each.event) for each in held), 0
        for each in held:
            event = decode_delivery(each.event)
            if len(held) - gone <= HELD_MAX and size <= HELD_BYTES_MAX and self._waits(each, event):
                break
            gone += 1
            size -= len(each.event)
            if each.wamids:
                event = replace(event, body=botview.with_our_ids(event.body, self._our_id))
            self._commands.append(Deliver(each.sink, event))
        self._customer.held = held[gone:]

    def _deliver(
        self,
        sink: str,
        fact: str,
        kind: str,
        phone_number_id: str,
        body: bytes,
        *,
        at: int,
        accepted_at: int,
        tags: tuple[str, ...] = (),
        epoch: int = 0,
        strange: tuple[str, ...] = (),
        debounce: RouteDebounce | None = None,
    ) -> None:
        event = DeliveryEvent(
            delivery_id=delivery_id(fact, sink),
            kind=kind,
            phone_number_id=phone_number_id,
            customer=self._order_key(),
            body=body,
            at=at or accepted_at,
            accepted_at=accepted_at,
            tags=tags,
            epoch=epoch,
            debounce=debounce,
        )
        if strange:
            self._customer.held.append(Held(sink, encode(event), self._now + HOLD_MS_MAX, at, strange))
        elif self._customer.held:
            self._customer.held.append(Held(sink, encode(event)))
        else:
            self._commands.append(Deliver(sink, event))


def _owner(line: Opaque | None, send: Send | None, known: Known | None) -> tuple[str, str | None]:
    """Return who sent and the caller's own data: from the line Meta handed back, else from what is remembered."""
    remembered: Send | Known | None = send if send is not None else known
    if line is not None:
        if line.own_kept:
            return line.sink, line.own
        return line.sink, None if remembered is None else remembered.own
    return ("", None) if remembered is None else (remembered.sink, remembered.own)


def delivery_id(fact: str, sink: str) -> str:
    """Return the id of a delivery: the same fact to the same sink has the same id after every crash and replay."""
    return hashlib.blake2b(f"{fact}\0{sink}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
