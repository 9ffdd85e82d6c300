"""A town of customers over partitioned logs: people who write, change phones and BSUIDs, hide and show them; and what
each key's actor makes of it, a record at a time, partitions in any order. What tests of moves are told in."""

from __future__ import annotations

import json
import zlib
from random import Random
from typing import Any, NamedTuple

from broker.core import dedupe
from broker.core.customer import Deliver, Dispatch, decide
from broker.core.customer_state import Customer, pack, unpack
from broker.core.identity import portfolio_of
from broker.core.moves import Append
from broker.core.opaque import unwrap
from broker.core.webhook import split
from schemas.ids import CustomerKey
from schemas.records import (
    ConversationRecord,
    DeliveryEvent,
    Ready,
    SendOutcome,
    SendRequest,
    Withdraw,
    decode_conversation,
    encode,
)
from tests.core.conversation import CONTEXT, NUMBER, START, WABA, send_id


class Ids(NamedTuple):
    """What an item shows of a person."""

    wa_id: str = ""
    bsuid: str = ""


def webhook(message: dict[str, Any], ids: Ids, at: int, number: str = NUMBER) -> bytes:
    """A webhook body with one message, and its contact unless it is a system message."""
    inner = {"timestamp": str(at // 1_000), **message}
    if ids.wa_id:
        inner["from"] = ids.wa_id
    if ids.bsuid:
        inner["from_user_id"] = ids.bsuid
    value: dict[str, Any] = {"messaging_product": "whatsapp"}
    value["metadata"] = {"display_phone_number": "15550001000", "phone_number_id": number}
    if message["type"] != "system":
        contact = {"profile": {"name": "Ada"}}
        if ids.wa_id:
            contact["wa_id"] = ids.wa_id  # type: ignore[assignment]
        if ids.bsuid:
            contact["user_id"] = ids.bsuid  # type: ignore[assignment]
        value["contacts"] = [contact]
    value["messages"] = [inner]
    entry = {"id": WABA, "changes": [{"value": value, "field": "messages"}]}
    return json.dumps({"object": "whatsapp_business_account", "entry": [entry]}).encode()


class Told(NamedTuple):
    """An event for a sink: the key whose actor decided it, and the event."""

    by: str
    sink: str
    event: DeliveryEvent


class Town:
    """The logs, the states, and what the bot was told. A step is one record, and whole."""

    def __init__(self, partitions: int, random: Random) -> None:
        self.now = START
        self.random = random
        self.logs: list[list[tuple[str, bytes]]] = [[] for _ in range(partitions)]
        self.read: list[int] = [0] * partitions
        self.packed: dict[str, bytes] = {}
        self.told: list[Told] = []
        self.handed: list[Ready] = []
        self.withdrawn: list[Withdraw] = []
        self.crashes = 0.0
        """How often a step is thought through and not committed."""

    def append(self, key: str, record: ConversationRecord) -> None:
        """Append to conversations."""
        self.logs[zlib.crc32(key.encode()) % len(self.logs)].append((key, encode(record)))

    def receive(self, body: bytes) -> None:
        """What the receiver does with a webhook."""
        for key, item in split(body, "brand", self.now, PORTFOLIOS).conversations:
            self.append(key.decode(), item)

    def state(self, key: str) -> Customer:
        """What a key's actor remembers."""
        return unpack(self.packed[key]) if key in self.packed else Customer()

    def step(self, partition: int) -> bool:
        """Let a partition's owner decide about its next record; False when there is none."""
        if self.read[partition] >= len(self.logs[partition]):
            return False
        key, value = self.logs[partition][self.read[partition]]
        packed = self.packed.get(key)
        customer, commands = decide(
            unpack(packed) if packed is not None else None,
            CustomerKey(key),
            decode_conversation(value),
            CONTEXT,
            self.now,
        )
        if self.random.random() < self.crashes:
            return True  # not committed: the next owner reads the same record again
        self.read[partition] += 1
        if customer is not None:
            self.packed[key] = pack(customer)
        for command in commands:
            if isinstance(command, Append):
                assert portfolio_of(command.key) == portfolio_of(key)
                self.append(command.key, command.record)
            elif isinstance(command, Deliver):
                self.told.append(Told(key, command.sink, command.event))
            elif isinstance(command, Dispatch) and isinstance(command.record, Ready):
                self.handed.append(command.record)
            elif isinstance(command, Dispatch) and isinstance(command.record, Withdraw):
                self.withdrawn.append(command.record)
        return True

    def drain(self) -> None:
        """Let all partitions run until nothing is left, in any order."""
        for _ in range(100_000):
            waiting = [p for p in range(len(self.logs)) if self.read[p] < len(self.logs[p])]
            if not waiting:
                return
            self.step(self.random.choice(waiting))
        raise AssertionError("records go round for ever")

    def some(self) -> None:
        """Let some partitions run for a while."""
        for _ in range(self.random.randrange(4)):
            self.step(self.random.randrange(len(self.logs)))

    def settle(self) -> None:
        """Let Meta take what was handed over and report: an outcome at the key of the hand-over, then a status."""
        handed, self.handed = self.handed, []
        for ready in handed:
            line = unwrap(json.loads(ready.body)["biz_opaque_callback_data"])
            assert line is not None
            wamid = f"wamid.M{ready.send_id[7:]}"
            outcome = SendOutcome(
                ready.send_id, ready.attempt, "accepted", ready.phone_number_id, ready.lane, self.now,
                called_at=self.now, wamid=wamid,
            )  # fmt: skip
            self.append(ready.customer, outcome)
            status = {"id": wamid, "status": "sent", "timestamp": str(self.now // 1_000),
                      "biz_opaque_callback_data": json.loads(ready.body)["biz_opaque_callback_data"]}  # fmt: skip
            value = {"metadata": {"phone_number_id": NUMBER}, "statuses": [status]}
            body = {"entry": [{"id": WABA, "changes": [{"value": value, "field": "messages"}]}]}
            self.receive(json.dumps(body).encode())

    def request(self, name: str, key: str) -> SendRequest:
        """A bot asks for a template to whoever it knows by this key."""
        body = {"messaging_product": "whatsapp", "to": "x", "type": "template", "template": {"name": "t"}}
        request = SendRequest(
            send_id(name), NUMBER, "message", "template", "transactional", "bot", "bot", json.dumps(body).encode(),
            self.now, template="t",
        )  # fmt: skip
        self.append(key, request)
        return request

    def facts(self, key: str, known: dict[bytes, Any]) -> set[Any]:
        """Whose facts a state remembers. `known`: fingerprints and whose they are."""
        ring = self.state(key).taken
        found = set()
        for at in range(0, len(ring), dedupe.ENTRY_BYTES):
            owner = known.get(ring[at : at + 8])
            if owner is not None:
                found.add(owner)
        return found


SISTER = "106540352242977"
PORTFOLIOS = {NUMBER: "main", SISTER: "main", "106540352242955": "other"}
