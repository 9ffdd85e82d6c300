"""How far a stage has read, as it stands beside the stage's state.

One record of the state log, under a reserved key, written with every step: for each input its incarnation and the
offset to go on from, and the stage's memo. The incarnation is the log's identity (Kafka's topic id, a random id on the
embedded log): an offset means nothing in a log that was deleted and made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from broker.errors import Misconfigured, RecordTooLarge, WrongIncarnation
from broker.log.contract import METADATA_CHARS_MAX, RECORD_BYTES_MAX, Draft, LogSpec, Stage, Step

POSITION = b"\x00position"
"""The reserved key. No customer number, slot or team begins with a zero byte."""

MEMO_BYTES_MAX = 65_536
"""What a stage may keep beside its position. It is written with every step, so it had better be small."""


class Place(NamedTuple):
    """An offset in one incarnation of a log."""

    incarnation: str
    offset: int


class Position(NamedTuple):
    """How far a stage has read one partition of each of its inputs, and its memo."""

    places: dict[str, Place]
    memo: bytes

    @property
    def offsets(self) -> dict[str, int]:
        """The offsets alone, as a stage knows them."""
        return {log: place.offset for log, place in self.places.items()}


NOWHERE = Position({}, b"")
"""Before the first step."""

_decoder = msgspec.msgpack.Decoder(Position)
_encoder = msgspec.msgpack.Encoder()


def encode_position(position: Position) -> bytes:
    """Return the value of the position's record."""
    return _encoder.encode(position)


def decode_position(value: bytes) -> Position:
    """Read the value of a position's record. Raises `msgspec.DecodeError`: then somebody else wrote under our key."""
    return _decoder.decode(value)


def advanced(position: Position, step: Step, incarnations: Mapping[str, str]) -> Position:
    """Return the position after a step. An input the step does not speak of stays where it was."""
    places = dict(position.places)
    for log, offset in step.position.items():
        places[log] = Place(incarnations[log], offset)
    return Position(places, step.memo)


def check_incarnations(where: str, position: Position, incarnations: Mapping[str, str]) -> None:
    """Raise `WrongIncarnation` when an input is not the log the position was taken in.

    An input that the stage no longer reads is left alone. `where` names stage and partition.
    """
    for log, place in position.places.items():
        present = incarnations.get(log)
        if present is not None and present != place.incarnation:
            raise WrongIncarnation(
                f"{where}: the position in {log!r} (offset {place.offset}) belongs to incarnation {place.incarnation}, "
                f"but the log is now {present}: it was deleted and made again. Bring it back, or reset the position"
            )


def check_drafts(log: str, drafts: Iterable[Draft], partitions: int) -> None:
    """Raise `RecordTooLarge` or `Misconfigured` before anything is written."""
    for key, value, partition in drafts:
        size = len(key) + (0 if value is None else len(value))
        if size > RECORD_BYTES_MAX:
            raise RecordTooLarge(f"a record for {log!r} has {size} bytes, at most {RECORD_BYTES_MAX} are allowed")
        if partition is not None and not 0 <= partition < partitions:
            raise Misconfigured(f"{log!r} has {partitions} partitions, so there is no partition {partition}")


def check_step(stage: Stage, step: Step, logs: Mapping[str, LogSpec]) -> None:
    """Raise `RecordTooLarge` when a part cannot be written, `Misconfigured` when it names what is not there."""
    for log, draft in step.derived:
        if log not in logs:
            raise Misconfigured(f"stage {stage.name!r} derives a record for {log!r}, which is no log of this engine")
        check_drafts(log, (draft,), logs[log].partitions)
    for key, value in step.changes:
        size = len(key) + (0 if value is None else len(value))
        if size > RECORD_BYTES_MAX:
            raise RecordTooLarge(
                f"a change for {stage.state!r} has {size} bytes, at most {RECORD_BYTES_MAX} are allowed"
            )
    if len(step.memo) > MEMO_BYTES_MAX:
        raise RecordTooLarge(f"stage {stage.name!r}: a memo has {len(step.memo)} bytes, at most {MEMO_BYTES_MAX}")
    for log in step.position:
        if log not in stage.inputs:
            raise Misconfigured(f"stage {stage.name!r} moves its position in {log!r}, which is none of its inputs")


def check_metadata(name: str, metadata: str) -> None:
    """Raise `RecordTooLarge` when a text does not fit beside a committed offset."""
    if len(metadata) > METADATA_CHARS_MAX:
        raise RecordTooLarge(f"{name}: a commit's text has {len(metadata)} characters, at most {METADATA_CHARS_MAX}")


def check_stage(stage: Stage, logs: Mapping[str, LogSpec]) -> int:
    """Return the number of partitions of a stage. Raises `Misconfigured` when its logs do not share one."""
    names = (*stage.inputs, stage.state)
    for name in names:
        if name not in logs:
            raise Misconfigured(f"stage {stage.name!r} needs the log {name!r}, which is not configured")
    counts = {name: logs[name].partitions for name in names}
    if len(set(counts.values())) != 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise Misconfigured(f"stage {stage.name!r}: its logs must have one number of partitions, but have {said}")
    return counts[stage.state]
