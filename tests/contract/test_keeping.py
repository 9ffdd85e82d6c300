"""What is kept and what goes: last values, journals, retention."""

from __future__ import annotations

from broker.log.contract import SNAPSHOT, Draft, LogSpec, Stage, Step
from tests.contract.harness import Harness
from tests.contract.programs import COPY, IN, LOGS, Idle, everything, state_of

HOUR_MS = 3_600_000


async def test_compaction_keeps_the_last_value_of_each_key_and_drops_tombstones(harness: Harness) -> None:
    """The state log's size is that of the state, not of its history."""
    engine = await harness.open(LOGS)
    idle = Idle()
    member = await engine.own(COPY, idle)
    lease = await idle.lease(0)
    many = harness.steps_many
    for number in range(many):
        gone = (b"gone-%d" % (number % 50), None if number >= many - 50 else b"x")
        await lease.commit(Step({"in": number}, [], [(b"key-%d" % (number % 10), b"%d" % number), gone], b"memo"))
    expected = {b"key-%d" % (number % 10): b"%d" % number for number in range(many - 10, many)}
    end = (await engine.ends("state"))[0][1]
    if await harness.tidy(engine):
        assert len(await everything(engine, "state", 0)) == 11  # ten keys and the position
    await member.leave()
    restored = await state_of(engine, COPY, 0)
    assert dict(restored.records) == expected
    assert (restored.position, restored.memo) == ({"in": many - 1}, b"memo")
    await engine.close()
    engine = await harness.open(LOGS)
    assert dict((await state_of(engine, COPY, 0)).records) == expected
    assert (await engine.ends("state"))[0][1] >= end


async def test_steps_go_on_while_a_partition_is_compacted(harness: Harness) -> None:
    """Housekeeping must not lose what is written meanwhile."""
    engine = await harness.open(LOGS)
    idle = Idle()
    member = await engine.own(COPY, idle)
    lease = await idle.lease(2)
    for round_number in range(3):
        for number in range(harness.steps_many):
            await lease.commit(
                Step({"in": number}, [], [(b"k-%d" % (number % 5), b"%d" % (round_number * 10_000 + number))])
            )
        await harness.tidy(engine)
    await lease.commit(Step({"in": 9}, [], [(b"k-0", b"last"), (b"k-1", None)]))
    await member.leave()
    restored = await state_of(engine, COPY, 2)
    ends = {b"k-%d" % (number % 5): b"%d" % (20_000 + number) for number in range(harness.steps_many)}
    assert dict(restored.records) == {b"k-0": b"last", b"k-2": ends[b"k-2"], b"k-3": ends[b"k-3"], b"k-4": ends[b"k-4"]}


async def test_retention_drops_what_is_old_and_keeps_what_is_not(harness: Harness) -> None:
    """Seven days of conversations, an hour of traffic."""
    engine = await harness.open((LogSpec("traffic", 2, "time", HOUR_MS), LogSpec("kept", 2, "time", 100 * HOUR_MS)))
    old = [Draft(b"k", b"old %d" % number, 0) for number in range(600)]
    await engine.append("traffic", old, 10)
    await engine.append("kept", old, 10)
    harness.advance(2 * HOUR_MS)
    await engine.append("traffic", [Draft(b"k", b"new", 0)], 10)
    if await harness.tidy(engine):
        assert [entry.value for entry in await everything(engine, "traffic", 0)] == [b"new"]
        assert await engine.ends("traffic") == [(600, 601), (0, 0)]
    assert len(await everything(engine, "kept")) == 600


async def test_offsets_go_on_when_everything_was_dropped(harness: Harness) -> None:
    """A committed offset must never come to mean another record."""
    specs = (LogSpec("traffic", 1, "time", HOUR_MS),)
    engine = await harness.open(specs)
    await engine.append("traffic", [Draft(b"k", b"%d" % number) for number in range(10)], 10)
    harness.advance(2 * HOUR_MS)
    await harness.tidy(engine)
    await engine.close()
    engine = await harness.open(specs)
    await engine.append("traffic", [Draft(b"k", b"next")], 10)
    assert (await everything(engine, "traffic"))[-1].offset == 10


async def test_a_journal_keeps_its_last_snapshot_however_old(harness: Harness) -> None:
    """A number that was silent for a week still knows what it had sent."""
    journalled = Stage("journalled", ("in",), "short")
    specs = (IN, LogSpec("short", 4, "journal", HOUR_MS))
    engine = await harness.open(specs)
    idle = Idle()
    member = await engine.own(journalled, idle)
    lease = await idle.lease(0)
    await lease.commit(Step({"in": 1}, [], [(SNAPSHOT, b"old")]))
    await lease.commit(Step({"in": 2}, [], [(b"intent", b"forgotten")]))
    await lease.commit(Step({"in": 3}, [], [(SNAPSHOT, b"last")]))
    await lease.commit(Step({"in": 4}, [], [(b"intent", b"needed")], b"memo"))
    harness.advance(50 * HOUR_MS)
    await harness.tidy(engine)
    await member.leave()
    restored = await state_of(engine, journalled, 0)
    assert restored.records == [(SNAPSHOT, b"last"), (b"intent", b"needed")]
    assert (restored.position, restored.memo) == ({"in": 4}, b"memo")
