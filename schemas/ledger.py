"""What a slot's sender writes down: its memory of a crash. The records of the `ledger` log.

One record for each step: what it intended before the calls began, what it learned of earlier ones, which doubts were
lifted. Twice a minute a snapshot takes the place of all before. Payloads are never repeated: they stand on the `sends`
logs at the offsets the position still covers. Instants are Unix ms. Encoding is MessagePack, structs as arrays:
a field added later goes to the end and has a default.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

from schemas.records import Lane

Learned = Literal["done", "back", "doubt"]
"""What an intent came to: "done" (accepted, refused or expired, and reported), "back" (no message went out: it waits in
its queue again), "doubt" (reported; its customer's lane waits)."""


class Intent(Struct, frozen=True, array_like=True):
    """A send that will be called once this stands. `offset` is its place in its lane's log."""

    send_id: str
    attempt: int
    phone_number_id: str
    customer: str
    lane: Lane
    offset: int
    at: int
    is_mark: bool = False


class Answer(Struct, frozen=True, array_like=True):
    """What came of an intent. `called_at` is 0 when no call was made; `is_struck` after an answer 131056."""

    send_id: str
    attempt: int
    learned: Learned
    called_at: int
    is_struck: bool = False


class Doubt(Struct, frozen=True, array_like=True):
    """A send whose outcome is not known: its customer's lane waits."""

    phone_number_id: str
    customer: str
    lane: Lane
    send_id: str
    attempt: int


class Withdrawn(Struct, frozen=True, array_like=True):
    """A send that is not to begin any more, up to this attempt, though its record may still be read: until `until`."""

    send_id: str
    attempt: int
    until: int


class Debt(Struct, frozen=True, array_like=True):
    """What a number owes a customer (`broker.core.pacing.PairDebt`), in Unix ms."""

    phone_number_id: str
    customer: str
    since: int
    count: int
    free_at: int
    strikes: int
    struck_at: int


class Behind(Struct, frozen=True, array_like=True):
    """Sends of a number that wait in a lane's log from an offset to an end, though the lane's position may have passed
    them; `runs` are those among them that are done."""

    lane: Lane
    phone_number_id: str
    offset: int
    end: int
    runs: bytes = b""


class Written(Struct, frozen=True, array_like=True, tag="step"):
    """One step. `lifted` are doubts that are over. `done`: for each lane the runs of done offsets above its position,
    and `behind`, only when they did not fit the step's memo. `withdrawn` are those heard of since the step before."""

    answers: list[Answer]
    lifted: list[Doubt]
    intents: list[Intent]
    done: dict[Lane, bytes] = {}
    behind: list[Behind] = []
    withdrawn: list[Withdrawn] = []


class Snapshot(Struct, frozen=True, array_like=True, tag="snapshot"):
    """What is open as of its step; debts, doubts and withdrawn sends follow in parts. `recent`: 8 bytes for each
    attempt done lately, so that a repetition is known. `tiers`: throughput in messages a second of numbers that Meta
    has upgraded; it is told once, and the log of accounts forgets."""

    at: int
    intents: list[Intent]
    recent: bytes
    done: dict[Lane, bytes] = {}
    tiers: dict[str, int] = {}
    behind: list[Behind] = []


class Part(Struct, frozen=True, array_like=True, tag="part"):
    """More of a snapshot, or of a step's withdrawn sends, which stands right before it: so no record grows beyond
    bounds."""

    debts: list[Debt]
    doubts: list[Doubt]
    withdrawn: list[Withdrawn] = []


LedgerRecord = Written | Snapshot | Part

encode_ledger = msgspec.msgpack.Encoder().encode
decode_ledger = msgspec.msgpack.Decoder(LedgerRecord).decode


class Memo(Struct, frozen=True, array_like=True):
    """What goes beside a step's position: for each lane the runs of done offsets above it, and what is behind it.
    `fits` is False when they are in the ledger instead."""

    done: dict[Lane, bytes]
    fits: bool = True
    behind: list[Behind] = []


encode_memo = msgspec.msgpack.Encoder().encode
decode_memo = msgspec.msgpack.Decoder(Memo).decode
