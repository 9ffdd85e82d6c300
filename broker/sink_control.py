"""What an operator does with a sink from outside: look at it, hold it back, let it go, have events delivered once more.

A word about a sink is a record on `control`, which every process that delivers follows: the newest holds. Events that
are to be delivered once more are appended to the sink's log again, marked with the time: a log is the only thing two
processes share, and their order within a customer stays what it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec

from broker.clock import Clock
from broker.core.watermark import Watermark
from broker.inspect import instant
from broker.log.catalogue import CONTROL, DELIVERY_GROUP, deliveries
from broker.log.contract import Draft
from broker.visit import CHUNK_RECORDS_MAX, Visit, first_since
from schemas.records import DeliveryEvent, SinkControl, decode_control, decode_delivery, encode
from schemas.settings import SinkSettings


class SinkState(NamedTuple):
    """A sink as it stands. `waiting`: events on its log that no commit says are delivered, up to a second old."""

    paused: bool
    paused_at: int
    note: str
    waiting: int
    kept: int


class Again(NamedTuple):
    """What a replay found and did: events appended once more, those that were replays already (left alone), those that
    cannot be read; `is_cut` when the limit ended it."""

    appended: int
    copies: int
    unreadable: int
    is_cut: bool


async def words(visit: Visit) -> dict[str, SinkControl]:
    """Return the last word about each sink there is one about. Raises `LogUnavailable`, `Misconfigured`."""
    found: dict[str, SinkControl] = {}
    async with aclosing(visit.read(CONTROL, 0)) as entries:
        async for entry in entries:
            try:
                record = decode_control(entry.value)
            except msgspec.MsgspecError:
                continue  # deleted, or of a version to come: running processes pass it over, too
            found[record.sink] = record
    return found


async def state(visit: Visit, sink: str, word: SinkControl | None) -> SinkState:
    """Return how a sink stands. Raises `LogUnavailable`, `Misconfigured`."""
    waiting = kept = 0
    for one in await visit.reached(DELIVERY_GROUP, deliveries(sink)):
        mark = Watermark.from_text(one.first if one.committed is None else one.committed, one.text)
        begin = max(mark.offset, one.first)
        done = sum(max(0, min(end, one.end) - max(start, begin)) for start, end in mark.runs)
        waiting += max(0, one.end - begin - done)
        kept += one.end - one.first
    if word is None or not word.paused:
        return SinkState(False, 0, "", waiting, kept)
    return SinkState(True, word.at, word.note, waiting, kept)


async def states(visit: Visit, sinks: Sequence[SinkSettings]) -> list[SinkState]:
    """Return how each sink stands, in order. Raises `LogUnavailable`, `Misconfigured`."""
    said = await words(visit)
    return [await state(visit, sink.name, said.get(sink.name)) for sink in sinks]


def as_tree(sink: SinkSettings, one: SinkState) -> dict[str, Any]:
    """Return a sink and how it stands as a tree JSON can say."""
    return {
        "name": sink.name,
        "kind": sink.kind,
        "state": "paused" if one.paused else "running",
        "paused_at": instant(one.paused_at) if one.paused else None,
        "note": one.note,
        "waiting": one.waiting,
        "kept": one.kept,
        "to": place(sink),
    }


def place(sink: SinkSettings) -> str:
    """Say where a sink's events go."""
    if sink.kind != "kafka":
        return sink.url
    return f"topic {sink.topic}" + ("" if sink.kafka is None else f" at {sink.kafka.bootstrap_servers}")


async def set_paused(visit: Visit, sink: str, clock: Clock, *, paused: bool, note: str = "") -> SinkControl:
    """Say that a sink is to be held back, or let go; return what was said. Durable when it returns. Raises
    `LogUnavailable`."""
    word = SinkControl(sink, paused, clock.now(), note)
    await visit.append(CONTROL, [Draft(sink.encode(), encode(word), 0)])
    return word


async def replay_since(visit: Visit, sink: str, since: int, clock: Clock, limit: int, *, dry_run: bool) -> Again:
    """Append the events of a sink's log that were appended at `since` (Unix ms) or later once more, at most `limit`.

    Each keeps its delivery id. What is a replay already is left alone, so that a second command doubles nothing.
    Raises `LogUnavailable`, `Misconfigured`.
    """
    log, at = deliveries(sink), clock.now()
    appended = copies = unreadable = 0
    for partition, reached in enumerate(await visit.reached(DELIVERY_GROUP, log)):
        start = await first_since(visit, log, partition, since, (reached.first, reached.end))
        drafts: list[Draft] = []
        async with aclosing(visit.read(log, partition, start)) as entries:
            async for entry in entries:
                if entry.offset >= reached.end:
                    break  # what came since we began, our own copies first of all
                if entry.appended_at < since:
                    continue
                try:
                    event: DeliveryEvent = decode_delivery(entry.value)
                except msgspec.MsgspecError:
                    unreadable += 1
                    continue
                if event.replayed_at:
                    copies += 1
                    continue
                if appended == limit:
                    await _append(visit, log, drafts)
                    return Again(appended, copies, unreadable, True)
                appended += 1
                if not dry_run:
                    again = msgspec.structs.replace(event, replayed_at=at)
                    drafts.append(Draft(entry.key, encode(again), partition))
                if len(drafts) >= CHUNK_RECORDS_MAX:
                    await _append(visit, log, drafts)
        await _append(visit, log, drafts)
    return Again(appended, copies, unreadable, False)


async def _append(visit: Visit, log: str, drafts: list[Draft]) -> None:
    await visit.append(log, drafts)
    drafts.clear()
