"""One customer's story, told record by record: what the tests of its actor are written in."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Any, Literal

from broker.core.customer import Command, Deliver, Dispatch, Due, Event, Note, decide
from broker.core.customer_context import context_of
from broker.core.customer_state import Customer, pack, unpack
from broker.core.moves import Append
from broker.core.opaque import derived_send_id, unwrap, wrap
from broker.core.webhook import split
from schemas.ids import CustomerKey, SendId, Sink
from schemas.records import Claim, Handover, Item, Ready, SendClass, SendOutcome, SendRequest, Settle
from schemas.settings import CustomerSettings, Number, Route, SecretSource, Settings, SinkSettings, Then, When

NUMBER = "106540352242922"
WABA = "102290129340398"
PHONE = "15550001234"
KEY = CustomerKey(f"main:{PHONE}")
START = 1_790_000_000_000
"""A Monday in September 2026."""

SETTINGS = Settings(
    numbers=[
        Number(
            phone_number_id=NUMBER,
            waba_id=WABA,
            token=SecretSource(env="TOKEN"),
            slot=3,
            display_phone_number="15550001000",
        )
    ],
    sinks=[
        SinkSettings(name=name, kind="meta", url="https://bot.example/", secret=SecretSource(env="SECRET"))
        for name in ("bot", "audit")
    ],
    routes=[
        Route(name="audit", when=When(types=["status"]), then=Then(sinks=["audit"])),
        Route(name="bot", then=Then(sinks=["bot"])),
    ],
    customer=CustomerSettings(waiting_sends_max=5),
)
CONTEXT = context_of(SETTINGS)


def send_id(name: str) -> SendId:
    """An id of ours that a test can write down."""
    return derived_send_id("tests", name)


def wamid(name: str) -> str:
    """A wamid as Meta makes them: base 64 of some bytes, the customer's digits and a random part."""
    raw = b"\x1c\x18\x0b" + PHONE.encode() + b"\x15\x02\x00\x11\x18\x12" + send_id(name)[-18:].encode() + b"\0"
    return "wamid." + b64encode(raw).decode()


def post(value: dict[str, Any], at: int) -> bytes:
    """A webhook body as Meta sends it."""
    whole = {
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": "15550001000", "phone_number_id": NUMBER},
        **value,
    }
    entry = {"id": WABA, "changes": [{"value": whole, "field": "messages"}]}
    return json.dumps({"object": "whatsapp_business_account", "entry": [entry]}, separators=(",", ":")).encode()


def items(body: bytes, now: int) -> list[tuple[CustomerKey, Item]]:
    """What the receiver makes of it."""
    return [
        (CustomerKey(key.decode()), item) for key, item in split(body, "brand", now, {NUMBER: "main"}).conversations
    ]


def message(name: str, at: int, received_at: int | None = None, **content: Any) -> Item:
    """The customer writes."""
    content = content or {"type": "text", "text": {"body": "Hello"}}
    inner = {"from": PHONE, "from_user_id": "US.13", "id": wamid(name), "timestamp": str(at // 1_000), **content}
    contact = {"profile": {"name": "Ada"}, "wa_id": PHONE, "user_id": "US.13"}
    ((_, item),) = items(post({"contacts": [contact], "messages": [inner]}, at), received_at or at)
    return item


def status(
    send: str,
    what: str,
    at: int,
    *,
    message_id: str = "",
    line: str | None = None,
    own: str | None = None,
    received_at: int | None = None,
    code: int = 131026,
) -> Item:
    """Meta reports on a send of ours (or with `line` "" on somebody else's)."""
    inner: dict[str, Any] = {
        "id": message_id or wamid(send),
        "status": what,
        "timestamp": str(at // 1_000),
        "recipient_id": PHONE,
    }
    if what == "failed":
        inner["errors"] = [{"code": code, "title": "Message undeliverable"}]
    line = wrap(send_id(send), Sink("bot"), KEY, own) if line is None else line
    if line:
        inner["biz_opaque_callback_data"] = line
    ((key, item),) = items(post({"statuses": [inner]}, at), received_at or at)
    assert key == KEY
    return item


def request(
    name: str,
    at: int,
    *,
    send_class: SendClass = "reply",
    template: str = "",
    own: str | None = None,
    epoch: int | None = None,
    not_after: int = 0,
    number: str = NUMBER,
    body: dict[str, Any] | None = None,
) -> SendRequest:
    """A bot asks for a send."""
    payload = body or {"messaging_product": "whatsapp", "to": PHONE, "type": "text", "text": {"body": name}}
    return SendRequest(
        send_id=send_id(name),
        phone_number_id=number,
        kind="message",
        message_type="template" if template else "text",
        send_class=send_class,
        key_name="bot",
        sink="bot",
        body=json.dumps(payload).encode(),
        requested_at=at,
        wa_id=PHONE,
        template=template,
        opaque=own,
        not_after=not_after,
        epoch=epoch,
    )


def outcome(
    name: str,
    what: Literal["accepted", "refused", "expired", "in_doubt"],
    at: int,
    *,
    attempt: int = 1,
    lane: Literal["reply", "transactional", "campaign"] = "reply",
    code: int = 0,
    message_id: str = "",
    wa_id: str = PHONE,
) -> SendOutcome:
    """A sender reports."""
    return SendOutcome(
        send_id=send_id(name),
        attempt=attempt,
        outcome=what,
        phone_number_id=NUMBER,
        lane=lane,
        at=at,
        called_at=at,
        wamid=(message_id or wamid(name)) if what == "accepted" else "",
        wa_id=wa_id if what == "accepted" else "",
        code=code,
        title="Refused by Meta" if code else "",
        details="why" if code else "",
    )


class Story:
    """A customer's actor with its clock. The state goes through its packed form between any two records."""

    def __init__(self, context: Any = CONTEXT, key: CustomerKey = KEY) -> None:
        self.now = START
        self.context = context
        self.key = key
        self.packed: bytes | None = None
        self.heard: dict[str, int] = {}
        self.commands: list[Command] = []
        """Of the last record."""
        self.told: list[Command] = []
        """Of all records."""

    @property
    def customer(self) -> Customer:
        """What is remembered now."""
        return unpack(self.packed) if self.packed is not None else Customer()

    def take(self, event: Event, after_ms: int = 0) -> list[Command]:
        """Let some time pass and decide about a record. Other keys know nothing of them, and say so at once."""
        self.now += after_ms
        self.commands = self._decide(event)
        for command in list(self.commands):
            if isinstance(command, Append) and isinstance(command.record, Claim):
                self.commands += self._decide(
                    Handover(command.key, command.record.move, is_move=command.record.is_move)
                )
        self.told += self.commands
        return self.commands

    def _decide(self, event: Event) -> list[Command]:
        customer = unpack(self.packed) if self.packed is not None else None
        customer, commands = decide(customer, self.key, event, self.context, self.now)
        self.packed = pack(customer) if customer is not None else None
        return commands

    def due(self, after_ms: int = 0) -> list[Command]:
        """Let some time pass and look again."""
        return self.take(Due(dict(self.heard)), after_ms)

    def writes(self, name: str = "hello", **content: Any) -> list[Command]:
        """The customer writes now."""
        return self.take(message(name, self.now, **content))


def readies(commands: list[Command]) -> list[Ready]:
    """What senders are asked to send."""
    return [
        command.record for command in commands if isinstance(command, Dispatch) and isinstance(command.record, Ready)
    ]


def settles(commands: list[Command]) -> list[Settle]:
    """The doubts senders are told the end of."""
    return [
        command.record for command in commands if isinstance(command, Dispatch) and isinstance(command.record, Settle)
    ]


def delivered(commands: list[Command], sink: str = "bot") -> list[dict[str, Any]]:
    """The messages and statuses a sink gets, opened."""
    return list(_opened(commands, sink))


def _opened(commands: list[Command], sink: str) -> Iterator[dict[str, Any]]:
    for command in commands:
        if isinstance(command, Deliver) and command.sink == sink:
            value = json.loads(command.event.body)["entry"][0]["changes"][0]["value"]
            yield from value.get("messages", []) + value.get("statuses", [])


def notes(commands: list[Command]) -> list[tuple[str, str]]:
    """What is counted."""
    return [(command.what, command.label) for command in commands if isinstance(command, Note)]


def codes(commands: list[Command]) -> list[int]:
    """The error codes of the failures that are told."""
    return [one["errors"][0]["code"] for one in delivered(commands) if one.get("status") == "failed"]


def line_of(ready: Ready) -> Any:
    """Our line in what goes to Graph, read."""
    return unwrap(json.loads(ready.body)["biz_opaque_callback_data"])
