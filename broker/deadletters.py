"""Dead letters as an operator sees them: which stand, which were put back, and how one is put back.

A letter is put back by appending the record it holds to the log that record stood on, and then, behind the letter,
a `Replayed` that names it. Between the two a crash may leave a record that is back and a letter that says it is not:
putting it back again is safe, since every fact on our logs carries an id and is taken once (promise 2).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import NamedTuple

import msgspec

from broker.clock import Clock
from broker.errors import DepescheError, Misconfigured
from broker.log.catalogue import DEADLETTERS
from broker.log.contract import Draft, Entry
from broker.visit import Visit
from schemas.records import DeadLetter, DeadLetterRecord, Replayed, decode_dead_letters, encode

MARKS_MAX = 1_000_000
"""Marks kept in memory while letters are looked at, about 100 MB: 30 days of a thousand replays an hour."""

STAGES = ("receiver", "customer", "sender", "delivery")

REASONS = (
    *("not_json", "another_shape", "not_an_object", "malformed_item", "crash", "malformed", "poison", "too_large"),
    *("unknown_sink", "gave_up"),
)
"""Why something is set aside, by this version: those of the receiver first."""

_CUT = re.compile(r"\[first \d+ of \d+ bytes kept\]$")
"""How `workers.supervisor.dead_letter` says that the letter does not hold the whole record."""


class Standing(NamedTuple):
    """A dead letter, its place, and when it was put back (Unix ms; None: it was not). `letter` is None when it is of
    a version we do not know."""

    entry: Entry
    letter: DeadLetter | None
    replayed_at: int | None = None

    @property
    def place(self) -> str:
        """Its name for an operator."""
        return f"{self.entry.partition}/{self.entry.offset}"

    @property
    def sink(self) -> str:
        """The sink it was meant for, "" when for none."""
        log = "" if self.letter is None else self.letter.log
        return log.removeprefix("deliveries.") if log.startswith("deliveries.") else ""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which letters: everything named must hold. `since`: Unix ms at which it was set aside, or later."""

    places: frozenset[str] = frozenset()
    sink: str = ""
    reason: str = ""
    stage: str = ""
    since: int = 0
    replayed: bool | None = None
    """Whether it was put back already; None: either way."""

    def takes(self, one: Standing) -> bool:
        """Whether it is one of these."""
        letter = one.letter
        return (
            (not self.places or one.place in self.places)
            and (not self.sink or one.sink == self.sink)
            and (not self.reason or (letter is not None and letter.reason == self.reason))
            and (not self.stage or (letter is not None and letter.stage == self.stage))
            and self.since <= (one.entry.appended_at if letter is None else letter.at)
            and (self.replayed is None or self.replayed == (one.replayed_at is not None))
        )


class Replay(NamedTuple):
    """What became of one letter: `refused` says why it was left, "" when it was put back (or would be)."""

    place: str
    log: str
    reason: str
    refused: str = ""


async def check_names(visit: Visit, wanted: Wanted, sinks: Iterable[str]) -> None:
    """Raise `Misconfigured` when a name that is asked for is nobody's: mistyped, it would look like "no letters".

    Known are the configured sinks, our stages and reasons; and what occurs in a letter, of a sink that was removed
    since, or of another version. Raises `LogUnavailable`.
    """
    asked = (("sink", wanted.sink, sinks), ("reason", wanted.reason, REASONS), ("stage", wanted.stage, STAGES))
    strange = {what: (name, tuple(known)) for what, name, known in asked if name and name not in known}
    if not strange:
        return
    async with aclosing(standing(visit, Wanted())) as letters:
        async for one in letters:
            if one.letter is not None:
                found = {"sink": one.sink, "reason": one.letter.reason, "stage": one.letter.stage}
                strange = {what: each for what, each in strange.items() if each[0] != found[what]}
            if not strange:
                return
    raise Misconfigured(
        "\n".join(
            f"no {what} {name!r}, and no letter of one; there are {', '.join(known) or 'none'}"
            for what, (name, known) in strange.items()
        )
    )


async def standing(visit: Visit, wanted: Wanted) -> AsyncGenerator[Standing, None]:
    """Read the letters that are wanted, oldest first. Raises `LogUnavailable`, `Misconfigured`.

    The log is read twice, the marks first: letters may be large and many, and none is kept.
    """
    replayed: dict[tuple[int, int], int] = {}
    partitions = range(visit.partitions(DEADLETTERS))
    for partition in partitions:
        async for entry in visit.read(DEADLETTERS, partition):
            if isinstance(record := _record(entry), Replayed) and len(replayed) < MARKS_MAX:
                replayed[record.partition, record.offset] = record.at
    for partition in partitions:
        async for entry in visit.read(DEADLETTERS, partition):
            record = _record(entry)
            if not isinstance(record, Replayed):
                one = Standing(entry, record, replayed.get((entry.partition, entry.offset)))
                if wanted.takes(one):
                    yield one


def _record(entry: Entry) -> DeadLetterRecord | None:
    try:
        record: DeadLetterRecord = decode_dead_letters(entry.value)
    except msgspec.MsgspecError:
        return None
    return record


async def replay(visit: Visit, one: Standing, clock: Clock, *, dry_run: bool) -> Replay:
    """Put a letter back and say what became of it. Raises `LogUnavailable`."""
    log, reason = ("?", "?") if one.letter is None else (one.letter.log or "-", one.letter.reason)
    try:
        draft = await _draft(visit, one)
    except _Refused as refused:
        return Replay(one.place, log, reason, str(refused))
    if not dry_run:
        await visit.append(log, [draft])
        mark = Replayed(one.entry.partition, one.entry.offset, clock.now())
        await visit.append(DEADLETTERS, [Draft(one.entry.key, encode(mark), one.entry.partition)])
    return Replay(one.place, log, reason)


class _Refused(DepescheError):
    """This letter cannot be put back, and why."""


async def _draft(visit: Visit, one: Standing) -> Draft:
    """Return the record to append: whole, and for the partition it stood on."""
    letter = one.letter
    if letter is None:
        raise _Refused("it was written by a version that is newer than this one")
    if not letter.log:
        raise _Refused("it never stood on a log: it was malformed as it came in")
    try:
        partitions = visit.partitions(letter.log)
    except DepescheError as gone:
        raise _Refused(str(gone)) from None
    value = letter.value
    if _CUT.search(letter.detail):
        whole = await _original(visit, letter)
        if whole is None:
            raise _Refused(f"it was cut to fit, and {letter.log} no longer holds the whole record")
        value = whole
    # The number's slot and the customer's hash alike: where it stood is where it belongs, while the log has that many.
    return Draft(letter.key, value, letter.partition if letter.partition < partitions else None)


async def _original(visit: Visit, letter: DeadLetter) -> bytes | None:
    async for entry in visit.read(letter.log, letter.partition, letter.offset):
        same = entry.offset == letter.offset and entry.key == letter.key
        return entry.value if same and entry.value.startswith(letter.value) else None
    return None
