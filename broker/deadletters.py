"""Dead letters as an operator sees them: which stand, which were put back, and how one is put back.

A letter is put back by appending the record it holds to the log that record stood on, and then, behind the letter,
a `Replayed` that names it. Between the two a crash may leave a record that is back and a letter that says it is not:
putting it back again is safe, since every fact on our logs carries an id and is taken once (promise 2).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec

from broker.clock import Clock
from broker.errors import DepescheError, Misconfigured
from broker.inspect import as_tree, instant, readable
from broker.log.catalogue import DEADLETTERS
from broker.log.contract import Draft, Entry
from broker.masking import Masking
from broker.visit import Visit
from schemas.records import DeadLetter, DeadLetterRecord, Replayed, decode_dead_letters, encode

MARKS_MAX = 1_000_000
"""Marks kept in memory while letters are looked at, about 100 MB: 30 days of a thousand replays an hour."""

STRETCH_RECORDS = 500
"""Read at a time on the way back from the end of the log."""

LOOKED_AT_MAX = 50_000
"""Records looked at for one page, beyond those that a page before showed."""

STAGES = ("receiver", "customer", "sender", "delivery")

REASONS = (
    *("not_json", "another_shape", "not_an_object", "malformed_item", "crash", "malformed", "poison", "too_large"),
    *("unknown_sink", "gave_up"),
)
"""Why something is set aside, by this version: those of the receiver first."""

_CUT = re.compile(r"\[first \d+ of \d+ bytes kept\]$")
"""How `workers.supervisor.dead_letter` says that the letter does not hold the whole record."""


Place = tuple[int, int]
"""Partition and offset of a letter."""


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
    log: str = ""
    """The log it stood on."""
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
            and (not self.log or (letter is not None and letter.log == self.log))
            and (not self.sink or one.sink == self.sink)
            and (not self.reason or (letter is not None and letter.reason == self.reason))
            and (not self.stage or (letter is not None and letter.stage == self.stage))
            and self.since <= (one.entry.appended_at if letter is None else letter.at)
            and (self.replayed is None or self.replayed == (one.replayed_at is not None))
        )


class Page(NamedTuple):
    """Letters without what they hold, newest first. `before`: where to go on, None when there are no older ones."""

    letters: list[dict[str, Any]]
    before: Place | None


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


async def find(visit: Visit, place: Place) -> Standing | None:
    """Return the letter at a place, None when there is none. Raises `LogUnavailable`, `Misconfigured`.

    What stands before it is not read: whether it was put back is said behind it.
    """
    partition, offset = place
    found: Standing | None = None
    if not 0 <= partition < visit.partitions(DEADLETTERS):
        return None
    async with aclosing(visit.read(DEADLETTERS, partition, offset)) as entries:
        async for entry in entries:
            record = _record(entry)
            if found is None:
                if entry.offset != offset or isinstance(record, Replayed):
                    return None
                found = Standing(entry, record)
            elif isinstance(record, Replayed) and (record.partition, record.offset) == place:
                found = found._replace(replayed_at=record.at)
    return found


async def newest(visit: Visit, wanted: Wanted, masking: Masking, limit: int, before: Place | None = None) -> Page:
    """Read the letters that are wanted from the end of the log backwards, at most `limit` of them, those older than
    `before` alone. After `LOOKED_AT_MAX` records it ends with what it has, and says where to go on.

    Marks stand behind their letters, so one look from the end knows both. Raises `LogUnavailable`, `Misconfigured`.
    """
    marks: dict[Place, int] = {}
    letters: list[dict[str, Any]] = []
    left = LOOKED_AT_MAX
    edges = await visit.ends(DEADLETTERS)
    for partition in reversed(range(len(edges))):
        first, top = edges[partition]
        while top > first:
            start = max(first, top - STRETCH_RECORDS)
            found: list[tuple[Place, dict[str, Any]]] = []
            async with aclosing(visit.read(DEADLETTERS, partition, start)) as entries:
                async for entry in entries:
                    if entry.offset >= top:
                        break
                    record, place = _record(entry), (entry.partition, entry.offset)
                    if isinstance(record, Replayed):
                        if len(marks) < MARKS_MAX:
                            marks[record.partition, record.offset] = record.at
                    elif (before is None or place < before) and wanted.takes(one := Standing(entry, record)):
                        found.append((place, as_headline(one, masking)))
            for place, headline in reversed(found):
                if place in marks:
                    headline["replayed_at"] = instant(marks[place])
                letters.append(headline)
                if len(letters) == limit:
                    return Page(letters, place if place > (0, edges[0][0]) else None)
            if before is None or (partition, start) < before:
                left -= top - start
            top = start
            if left <= 0 and (partition, top) > (0, edges[0][0]):
                return Page(letters, (partition, top))
    return Page(letters, None)


def as_headline(one: Standing, masking: Masking) -> dict[str, Any]:
    """Return a letter without what it holds, masked, as a tree JSON can say."""
    letter, entry = one.letter, one.entry
    if letter is None:
        letter = DeadLetter("", -1, -1, entry.key, entry.value, "", "", "of another version", 0, entry.appended_at)
    return {
        "id": written((entry.partition, entry.offset)),  # not masked: these are no digits of a customer's
        "at": instant(letter.at),
        "stage": letter.stage,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "log": letter.log,
        "partition": letter.partition,
        "offset": letter.offset,
        "sink": one.sink,
        "key": masking.text(readable(letter.key), "key"),
        "detail": masking.text(letter.detail),
        "bytes": len(letter.value),
        "replayed_at": None if one.replayed_at is None else instant(one.replayed_at),
    }


def as_whole(one: Standing, masking: Masking | None) -> dict[str, Any]:
    """Return a letter with what it holds, masked or not, as a tree JSON can say."""
    tree: dict[str, Any] = as_tree(one.entry)
    tree["replayed_at"] = None if one.replayed_at is None else instant(one.replayed_at)
    return tree if masking is None else dict(masking.tree(tree))


def written(place: Place) -> str:
    """Return a place as it stands in a path, where a slash would be one."""
    return f"{place[0]}-{place[1]}"


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
