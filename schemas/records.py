"""Facts and requests on our logs: tagged, and written so that an older reader survives a newer writer.

Encoding is MessagePack; a field added later has a default. The tag is short because it is written a thousand times a
second. Times are Unix ms. `body` is JSON as it came, or as it is to leave: bytes, so that nothing is lost on the way.
A record whose tag or version a reader does not know becomes a dead letter, not a crash. None can be part of a cycle, so
Python's collector need not look at them (`gc=False`): a batch holds thousands.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

ItemKind = Literal[
    "message",
    "status",
    "echo",
    "standby",
    "call",
    "call_status",
    "preference",
    "group",
    "history",
    "account",
    "unknown",
]
"""What an item of a webhook is about. "status" is the status of a message; statuses of calls are "call_status"."""

Lane = Literal["reply", "transactional", "campaign"]
"""Which of a number's queues a send waits in. Replies first; campaigns never starve."""

SendClass = Literal["otp", "reply", "transactional", "campaign"]
"""Why a send exists, which decides its lane and what happens when its outcome is not known. "otp" goes by "reply"."""

Edge = Literal["messages", "marketing_messages"]
"""By which of Graph's two endpoints a send goes; the second takes marketing templates only."""

LANES: tuple[Lane, ...] = ("reply", "transactional", "campaign")


LANE_OF: dict[SendClass, Lane] = {
    "otp": "reply",
    "reply": "reply",
    "transactional": "transactional",
    "campaign": "campaign",
}


class Item(Struct, tag="item", frozen=True, omit_defaults=True, gc=False):
    """One item of a webhook, as the receiver found it. On `conversations`; account-level ones on `accounts`.

    `body` is a whole POST body in Meta's shape that holds this item alone, with its own contact only: what a sink of
    kind `meta` receives. `dedupe` names the fact, empty when it must not be deduplicated.
    `at` is Meta's timestamp, 0 when it has none. `send_id` is set when a status carries our own opaque data.
    `previous_wa_id`, `previous_bsuid`: the ids a system message says its customer had until now.
    """

    kind: ItemKind
    field: str
    app: str
    waba_id: str
    phone_number_id: str
    dedupe: str
    at: int
    received_at: int
    body: bytes
    wa_id: str = ""
    bsuid: str = ""
    parent_bsuid: str = ""
    message_type: str = ""
    status: str = ""
    wamid: str = ""
    send_id: str = ""
    previous_wa_id: str = ""
    previous_bsuid: str = ""


class SendRequest(Struct, tag="send", frozen=True, omit_defaults=True, gc=False):
    """What a bot, an agent or a campaign asks to be sent; durable before the caller is answered.

    `body` is the caller's JSON. `sink` is where its statuses go, `key_name` the name of the bot key that asked.
    `kind` "mark" is a read mark or typing indicator: it has no customer and no status. `epoch` is the conversation's
    epoch the caller was given, None when it says nothing. `marketing`: it is marketing whatever its class, because it
    came by `/marketing_messages` or its template is of that category; a send of class "campaign" always is.
    `class_presumed`: it goes by a template and nobody named its class, neither the caller nor a setting: the customer
    stage, which knows the window, may make it part of a conversation.
    """

    send_id: str
    phone_number_id: str
    kind: Literal["message", "mark"]
    message_type: str
    send_class: SendClass
    key_name: str
    sink: str
    body: bytes
    requested_at: int
    wa_id: str = ""
    bsuid: str = ""
    template: str = ""
    opaque: str | None = None
    not_after: int = 0
    epoch: int | None = None
    fingerprint: bytes = b""
    marketing: bool = False
    edge: Edge = "messages"
    class_presumed: bool = False


class SendOutcome(Struct, tag="outcome", frozen=True, omit_defaults=True, gc=False):
    """What came of one attempt of a send, reported by its sender.

    "accepted": Meta took it, `wamid` is its id. "refused": it was not sent and will not be, `code` says why;
    131050 without `called_at`: it was withdrawn.
    "expired": it was too late to send. "in_doubt": the call began and its answer is not known (or an owner died
    between the intent and the answer). `body` is Graph's answer where there was one.
    """

    send_id: str
    attempt: int
    outcome: Literal["accepted", "refused", "expired", "in_doubt"]
    phone_number_id: str
    lane: Lane
    at: int
    called_at: int = 0
    wamid: str = ""
    wa_id: str = ""
    user_id: str = ""
    code: int = 0
    title: str = ""
    details: str = ""
    body: bytes = b""


class DeliveryFailed(Struct, tag="undelivered", frozen=True, omit_defaults=True, gc=False):
    """A sink did not take an event in its time; it is a dead letter now, and the conversation may want to know."""

    delivery_id: str
    sink: str
    reason: str
    attempts: int
    at: int


class Claim(Struct, tag="claim", frozen=True, omit_defaults=True, gc=False):
    """One key asks another for the person it knows: both name one person, who from now on lives at `by`.

    On `conversations`, at the key that is asked. `move` orders moves: Meta's instant of what proves it (Unix ms).
    `is_move`: a system message says that the person moved; else both ids were seen together. `bsuid`: of that person,
    as the asked key may know it; "" when it was not said.
    """

    by: str
    move: int
    is_move: bool = False
    bsuid: str = ""


class Handover(Struct, tag="handover", frozen=True, omit_defaults=True, gc=False):
    """The answer to a claim, or (`is_return`) what a person left behind under a phone that is somebody else's now.

    `state` is a packed customer, empty when nothing was known. `move` is the claim's.
    """

    source: str
    move: int
    state: bytes = b""
    is_move: bool = False
    is_return: bool = False


class Forwarded(Struct, tag="forwarded", frozen=True, omit_defaults=True, gc=False):
    """A record on its way to where its person lives: `key` is where it came in, `hops` how often it was sent on, `move`
    the instant at which its person came to the key it is sent to, 0 when that is not known."""

    key: str
    hops: int
    record: bytes
    move: int = 0


ConversationRecord = Item | SendRequest | SendOutcome | DeliveryFailed | Claim | Handover | Forwarded


class Ready(Struct, tag="ready", frozen=True, omit_defaults=True, gc=False):
    """A send that is admitted: a customer stage's request to a sender, on `sends.<lane>` at the number's slot.

    `body` is the JSON for Graph with our opaque data in it. `customer` is the customer key, the unit of the pair
    limit and of order. `attempt` counts from 1; a second one exists only because doubt was decided so. A send whose
    call cannot begin by `not_after` is "expired".
    """

    send_id: str
    attempt: int
    phone_number_id: str
    customer: str
    lane: Lane
    send_class: SendClass
    kind: Literal["message", "mark"]
    body: bytes
    admitted_at: int
    not_after: int
    requested_at: int = 0
    template: str = ""
    edge: Edge = "messages"


class Settle(Struct, tag="settle", frozen=True, omit_defaults=True, gc=False):
    """The doubt about a send is over and it will not be sent again: its customer's lane may go on."""

    send_id: str
    phone_number_id: str
    customer: str
    lane: Lane


class NumberFault(Struct, tag="fault", frozen=True, omit_defaults=True, gc=False):
    """A message failed after it was accepted, by a code that says something of the number or its account, not of the
    customer. On `sends.reply`, which no backlog closes. `at`: Meta's instant of the status."""

    phone_number_id: str
    customer: str
    code: int
    at: int
    lane: Lane = "reply"


class Withdraw(Struct, tag="withdraw", frozen=True, omit_defaults=True, gc=False):
    """A send is not to begin any more: its customer said that they want no marketing. `attempt`: this one and those
    before it. What has begun is not touched; else its outcome is "refused" with 131050.

    On `sends.reply`, where it is read at once, while the send may wait in another lane's log for hours: it may be read
    before the send or after it. `not_after`: the send's own, which is never 0; later there is nothing to withdraw.
    """

    send_id: str
    attempt: int
    phone_number_id: str
    customer: str
    not_after: int
    lane: Lane = "reply"


SendsRecord = Ready | Settle | NumberFault | Withdraw


class RouteDebounce(Struct, frozen=True, omit_defaults=True, gc=False):
    """What a route says of joining a customer's events at a sink. `silence_ms` 0: they are not joined. A bound of 0 is
    the sink's own."""

    silence_ms: int
    events_max: int = 0
    wait_ms_max: int = 0


class DeliveryEvent(Struct, tag="event", frozen=True, omit_defaults=True, gc=False):
    """One event for one sink, on `deliveries.<sink>`, keyed by customer. `body` is the POST body in Meta's shape.

    `delivery_id` is stable over every retry and replay. `accepted_at` is when the webhook (or our own fact) was
    accepted: the beginning of the freshness objective. `tags` are those of the routes that took it; `epoch` is the
    conversation's after it, 0 where it says nothing about a conversation.
    """

    delivery_id: str
    kind: str
    phone_number_id: str
    customer: str
    body: bytes
    at: int
    accepted_at: int
    tags: tuple[str, ...] = ()
    epoch: int = 0
    replayed_at: int = 0
    """When an operator had it delivered once more; 0 for the first time. The sink is told in a header."""
    debounce: RouteDebounce | None = None
    """What the route that took it said; None, as of all that no route took: as the sink is set."""


class InboundDigest(Struct, tag="inbound", frozen=True, omit_defaults=True, gc=False):
    """How many inbound messages a receiver saw for a number in the 100 ms up to `at`. On `traffic`; may be lost."""

    phone_number_id: str
    count: int
    at: int


class DeadLetter(Struct, tag="dead", frozen=True, omit_defaults=True, gc=False):
    """A record set aside: its place, the stage and reason, and all that is needed to replay it.

    `log` is "" (and `partition`, `offset` are -1) for what never stood on a log, such as a body that does not parse.
    """

    log: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    stage: str
    reason: str
    detail: str
    attempts: int
    at: int


class Replayed(Struct, tag="replayed", frozen=True, omit_defaults=True, gc=False):
    """A dead letter was put back: the record it held was appended once more. On `deadletters`, behind the letter whose
    place it names."""

    partition: int
    offset: int
    at: int


DeadLetterRecord = DeadLetter | Replayed


class SinkControl(Struct, tag="control", frozen=True, omit_defaults=True, gc=False):
    """What an operator wants of a sink, on `control` under the sink's name; the last one holds."""

    sink: str
    paused: bool
    at: int
    note: str = ""


Record = (
    Item
    | SendRequest
    | SendOutcome
    | DeliveryFailed
    | Ready
    | Settle
    | NumberFault
    | Withdraw
    | DeliveryEvent
    | InboundDigest
    | DeadLetter
    | Replayed
    | SinkControl
)

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
"""Encode any record. Thread-safe, no state."""

decode_conversation = msgspec.msgpack.Decoder(ConversationRecord).decode
decode_sends = msgspec.msgpack.Decoder(SendsRecord).decode
decode_delivery = msgspec.msgpack.Decoder(DeliveryEvent).decode
decode_digest = msgspec.msgpack.Decoder(InboundDigest).decode
decode_dead_letter = msgspec.msgpack.Decoder(DeadLetter).decode
decode_dead_letters = msgspec.msgpack.Decoder(DeadLetterRecord).decode
decode_control = msgspec.msgpack.Decoder(SinkControl).decode
decode_item = msgspec.msgpack.Decoder(Item).decode
decode_any = msgspec.msgpack.Decoder(Record).decode
"""Decoders by log. They raise `msgspec.DecodeError` or `msgspec.ValidationError`: a dead letter for whoever reads."""
