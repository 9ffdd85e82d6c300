"""Readers without a lease: committed records only, to the present end or on for ever."""

from __future__ import annotations

import asyncio

from broker.errors import LeaseLost
from broker.log.contract import Draft, Entry, Step
from tests.contract.harness import Harness
from tests.contract.programs import COPY, LOGS, Copying, Idle, everything, numbered, shown, until


async def test_reading_ends_at_the_present_end(harness: Harness) -> None:
    """A tool that prints a log comes to an end, while records keep coming."""
    engine = await harness.open(LOGS)
    await engine.append("in", [Draft(b"k", b"%d" % number, 0) for number in range(600)], 10)
    values = []
    async for entry in engine.read("in", 0):
        values.append(int(entry.value))
        if len(values) == 1:
            await engine.append("in", [Draft(b"k", b"600", 0)], 10)
    assert values == list(range(600))


async def test_reading_begins_at_an_offset(harness: Harness) -> None:
    """A replay begins where somebody pointed."""
    engine = await harness.open(LOGS)
    await engine.append("in", [Draft(b"k", b"%d" % number, 0) for number in range(10)], 10)
    assert [int(entry.value) async for entry in engine.read("in", 0, 7)] == [7, 8, 9]
    assert [entry async for entry in engine.read("in", 0, 10)] == []
    assert [entry async for entry in engine.read("in", 1)] == []


async def test_a_tail_reader_is_given_what_comes(harness: Harness) -> None:
    """Every sender reads all of `accounts`, for ever."""
    engine = await harness.open(LOGS)
    await engine.append("in", [Draft(b"k", b"0", 0)], 10)
    seen: list[Entry] = []

    async def tailing() -> None:
        async for entry in engine.read("in", 0, tail=True):
            seen.append(entry)

    task = asyncio.create_task(tailing())
    await until(lambda: len(seen) == 1)
    for number in range(1, 20):
        await engine.append("in", [Draft(b"k", b"%d" % number, 0)], 10)
    await until(lambda: len(seen) == 20)
    assert [int(entry.value) for entry in seen] == list(range(20))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_reader_never_sees_a_refused_step(harness: Harness) -> None:
    """Not while it is open, not after: a tail reader is given committed records only."""
    engine = await harness.open(LOGS)
    idle = Idle()
    await engine.own(COPY, idle)
    lease = await idle.lease(0)
    seen: list[bytes] = []

    async def tailing() -> None:
        async for entry in engine.read("out", 0, tail=True):
            seen.append(entry.value)

    task = asyncio.create_task(tailing())
    await lease.commit(Step({"in": 1}, [("out", Draft(b"k", b"1", 0))]))
    await harness.usurp(engine, COPY, 0)
    try:
        await lease.commit(Step({"in": 2}, [("out", Draft(b"k", b"refused", 0))]))
        raise AssertionError("a fenced owner's step was taken")
    except LeaseLost:
        await engine.append("out", [Draft(b"k", b"2", 0)], 10)
    await until(lambda: len(seen) >= 2)
    assert seen == [b"1", b"2"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_step_is_seen_whole(harness: Harness) -> None:
    """Whoever sees a step's first record finds all of its records, in every log it touched."""
    engine = await harness.open(LOGS)
    idle = Idle()
    await engine.own(COPY, idle)
    lease = await idle.lease(0)
    done = asyncio.Event()

    async def watching() -> None:
        while not done.is_set():
            first = len(await everything(engine, "out", 0))
            if first:
                await shown(engine, "second", first, 3)  # fails when it stays behind
            await asyncio.sleep(0)

    watcher = asyncio.create_task(watching())
    for number in range(50):
        both = [("out", Draft(b"k", b"%d" % number, 0)), ("second", Draft(b"k", b"%d" % number, 3))]
        await lease.commit(Step({"in": number}, both))
    done.set()
    await watcher
    assert len(await shown(engine, "second", 50, 3)) == 50


async def test_old_records_are_read_as_well_as_new_ones(harness: Harness) -> None:
    """Catching up after hours reads the disk, keeping up does not: nobody must notice the seam."""
    engine = await harness.open(LOGS)
    await engine.append("in", numbered(300), 10)
    await engine.close()
    engine = await harness.open(LOGS)
    await engine.append("in", numbered(300, first=300), 10)
    copying = Copying(records_max=37)
    await engine.own(COPY, copying)
    await until(lambda: copying.copied == 600)
    values = sorted(int(entry.value.split(b" #")[0]) for entry in await shown(engine, "out", 600))
    assert values == list(range(600))
