"""Conversations as a brand has them, written as records of `conversations`: what the customer stage is fed with.

A turn has six records: a customer's text, the bot's answer asked for, what Graph said of it, and three statuses. They
are made by the receiver's own code out of Meta's bodies. A customer's next record comes hundreds of others' later, as
on a busy number, so that hardly two of a step are about one customer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from msgspec.structs import replace

from benchmarks.load import APP
from benchmarks.webhook_servers import NOWHERE
from broker.core.customer import decide
from broker.core.customer_context import context_of
from broker.core.customer_state import SEEN_EVERY_MS, Customer, pack, quieted
from broker.core.moves import Append
from broker.core.opaque import derived_send_id, wrap
from broker.core.webhook import split
from broker.log.contract import Draft
from schemas.ids import CustomerKey, SendId, Sink
from schemas.records import ConversationRecord, SendOutcome, SendRequest, decode_conversation, encode
from schemas.settings import App, LogSettings, Number, Route, Settings, SinkSettings, Then, When

WABA = "102290129340398"
FIRST_NUMBER = 106_540_352_242_922
FIRST_PHONE = 4_915_550_000_000
STATUSES = ("sent", "delivered", "read")
TURN_RECORDS = 3 + len(STATUSES)
TURN_DERIVED = 1 + 1 + len(STATUSES)
"""An event for the text, the send for its lane, an event for each status; an outcome changes a state and no more."""

KEPT_TURNS = 2
"""Answers that a silent customer's state still knows: 250 bytes."""

DAY_MS = 24 * 3_600_000

APART = 5
"""A customer's next record comes a fifth of all customers later."""


def brand(partitions: int, *, numbers: int = 1, sinks: int = 1) -> Settings:
    """A brand with so many numbers and bots, at least a number for each bot, and all else at its default."""
    names = [str(FIRST_NUMBER + n) for n in range(max(numbers, sinks))]
    log = LogSettings(partitions=partitions)
    return Settings(
        apps=[App(name=APP, secrets=[NOWHERE], verify_token=NOWHERE)],
        numbers=[
            Number(phone_number_id=name, waba_id=WABA, token=NOWHERE, slot=n % log.slots)
            for n, name in enumerate(names)
        ],
        sinks=[
            SinkSettings(name=f"bot-{n}", kind="meta", url="https://bot.example/", secret=NOWHERE) for n in range(sinks)
        ],
        routes=[
            Route(
                name=f"route-{n}",
                when=When(numbers=[name for m, name in enumerate(names) if m % sinks == n] if sinks > 1 else []),
                then=Then(sinks=[f"bot-{n}"]),
            )
            for n in range(sinks)
        ],
        log=log,
    )


class Turn:
    """One customer's n-th turn, record by record."""

    def __init__(self, customer: int, n: int, of: Settings, now_ms: int) -> None:
        self._now_ms = now_ms
        self._n = n
        self._number = of.numbers[customer % len(of.numbers)].phone_number_id
        self._sink = Sink(f"bot-{customer % len(of.numbers) % len(of.sinks)}")
        self._phone = str(FIRST_PHONE + customer)
        self._key = CustomerKey(f"main:{self._phone}")
        self._send_id: SendId = derived_send_id("bench", f"{customer} {n}")
        self._wamid = f"wamid.HBgNNDkxNTU1MDAwMTIzNBUCABEYEjND{customer:012}{n:08}AA=="

    def record(self, step: int) -> Draft:
        """The turn's record number `step`."""
        if step == 1:
            return Draft(self._key.encode(), encode(self._request()))
        if step == 2:
            return Draft(self._key.encode(), encode(self._accepted()))
        body = self._written() if step == 0 else self._status(STATUSES[step - 3])
        ((key, item),) = split(body, APP, self._now_ms, {self._number: "main"}).conversations
        return Draft(key, encode(item))

    def _post(self, contact: str, content: str) -> bytes:
        return (
            f'{{"object":"whatsapp_business_account","entry":[{{"id":"{WABA}","changes":[{{"value":{{'
            f'"messaging_product":"whatsapp","metadata":{{"display_phone_number":"15550001000","phone_number_id":'
            f'"{self._number}"}},"contacts":[{{{contact}"wa_id":"{self._phone}","user_id":"DE.1{self._phone}0000002"}}]'
            f',{content}}},"field":"messages"}}]}}]}}'
        ).encode()

    def _written(self) -> bytes:
        wamid = f"wamid.HBgNNDkxNTU1MDAwMTIzNBUCABIYFDNB{self._phone[-8:]:0>12}{self._n:08}AA=="
        return self._post(
            '"profile":{"name":"J\\u00f6rg Beispiel"},',
            f'"messages":[{{"from":"{self._phone}","from_user_id":"DE.1{self._phone}0000002","id":"{wamid}",'
            f'"timestamp":"{self._now_ms // 1_000}","type":"text","text":{{"body":"Gr\\u00fc\\u00dfe \\ud83d\\ude00 '
            'is my order on its way? https:\\/\\/example.com\\/a?b=1"}}]',
        )

    def _status(self, name: str) -> bytes:
        priced = '"pricing":{"billable":false,"pricing_model":"PMP","category":"service","type":"regular"},'
        return self._post(
            "",
            f'"statuses":[{{"id":"{self._wamid}","status":"{name}","timestamp":"{self._now_ms // 1_000 + 1}",'
            f'"recipient_id":"{self._phone}","recipient_user_id":"DE.1{self._phone}0000002",{priced}'
            f'"biz_opaque_callback_data":"{wrap(self._send_id, self._sink, self._key, None)}"}}]',
        )

    def _request(self) -> SendRequest:
        body = (
            f'{{"messaging_product":"whatsapp","recipient_type":"individual","to":"{self._phone}","type":"text","text":'
            f'{{"preview_url":false,"body":"Your order {self._n:06} left our warehouse and arrives tomorrow."}}}}'
        )
        return SendRequest(
            send_id=self._send_id,
            phone_number_id=self._number,
            kind="message",
            message_type="text",
            send_class="reply",
            key_name="bot",
            sink=self._sink,
            body=body.encode(),
            requested_at=self._now_ms,
            wa_id=self._phone,
        )

    def _accepted(self) -> SendOutcome:
        return SendOutcome(
            send_id=self._send_id,
            attempt=1,
            outcome="accepted",
            phone_number_id=self._number,
            lane="reply",
            at=self._now_ms,
            called_at=self._now_ms,
            wamid=self._wamid,
            wa_id=self._phone,
            body=f'{{"messaging_product":"whatsapp","messages":[{{"id":"{self._wamid}"}}]}}'.encode(),
        )


def states(customers: int, of: Settings, now_ms: int, *, silent_ms: int = 9 * DAY_MS) -> Iterator[tuple[bytes, bytes]]:
    """Key and packed state of customers the brand knows, silent for so long, as the customer stage leaves them.

    The first one's is decided, out of `KEPT_TURNS` turns; the others' are the same with ids of their own.
    """
    context, town = context_of(of), dict[str, Customer | None]()

    def tell(key: str, record: ConversationRecord, at: int) -> None:
        town[key], commands = decide(town.get(key), CustomerKey(key), record, context, at)
        for command in commands:
            if type(command) is Append:
                tell(command.key, command.record, at)

    for n in range(KEPT_TURNS):
        at = now_ms - silent_ms - (KEPT_TURNS - n) * SEEN_EVERY_MS
        turn = Turn(0, n, of, at)
        for step in range(TURN_RECORDS):
            key, value, _ = turn.record(step)
            tell(key.decode(), decode_conversation(value or b""), at)
    model = town[f"main:{FIRST_PHONE}"]
    assert model is not None
    quieted(model, now_ms)
    chance = random.Random(5)
    (window,) = model.windows.values()
    for n in range(customers):
        number = of.numbers[n % len(of.numbers)].phone_number_id
        phone = FIRST_PHONE + n
        model.bsuid = f"DE.1{phone}0000002"
        model.windows = {number: window}
        model.shown_to = [number]
        model.known = [
            replace(each, send_id=chance.randbytes(16), wamid=each.wamid[:-24] + chance.randbytes(24))
            for each in model.known
        ]
        yield f"main:{phone}".encode(), pack(model)


def records(
    customers: int, turns: int, of: Settings, now_ms: int, *, every: int = 1, steps: int = TURN_RECORDS
) -> Iterator[Draft]:
    """All records of so many customers' turns, in the order in which they come.

    `every`: of more that are known, each how manieth writes. `steps`: how far a turn comes; after two the answer is
    under way and nothing is known of it.
    """
    apart = max(1, customers // APART)
    under_way: list[Turn | None] = []
    for slot in range(customers * turns + apart * (TURN_RECORDS - 1)):
        if slot < customers * turns:
            under_way.append(Turn(slot % customers * every, slot // customers, of, now_ms))
        for step in reversed(range(steps)):
            begun = slot - step * apart
            turn = under_way[begun] if 0 <= begun < len(under_way) else None
            if turn is not None:
                yield turn.record(step)
                if step == steps - 1:
                    under_way[begun] = None
