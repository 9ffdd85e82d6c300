"""Processes that are killed or frozen: kill −9 and SIGSTOP at every point of an append and a step."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.errors import LogUnavailable
from broker.log.contract import LogEngine
from tests.contract.child import PARTITION
from tests.contract.engines import ENGINES
from tests.contract.harness import Harness
from tests.contract.programs import COPY, LOGS, everything, shown, state_of

ROOT = Path(__file__).parents[2]
CHILDREN = [engine for engine in ENGINES if engine.child is not None]
POINTS = [
    pytest.param(engine.name, point, id=f"{engine.name}-{point}", marks=engine.marks)
    for engine in CHILDREN
    if engine.child is not None
    for point in engine.child().points
]


class Child:
    """A running child, and the lines it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def line(self, timeout_s: float = 60.0) -> str:
        """Return its next line, "" when it is gone."""
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout_s):
            line = (await self.process.stdout.readline()).decode().strip()
        self.lines.append(line)
        return line

    async def until(self, word: str) -> None:
        """Read on until it prints a word."""
        while (line := await self.line()) != word:
            assert line, f"the child ended before it said {word!r}"

    async def kill(self) -> None:
        """Kill it −9 and read what it had printed."""
        if self.process.returncode is None:
            self.process.kill()
        while await self.line():
            pass
        await self.process.wait()

    def numbers(self) -> set[int]:
        """Return the numbers it was told are durable."""
        return {int(line) for line in self.lines if line.isdigit()}


@asynccontextmanager
async def started(harness: Harness, mode: str, point: str = "-", nth: int = -1) -> AsyncIterator[Child]:
    """Start a child, and leave none behind."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.contract.child", mode, point, str(nth), *harness.child_arguments()),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    child = Child(process)
    try:
        yield child
    finally:
        await child.kill()


@pytest.mark.parametrize(
    "engine_name", [pytest.param(engine.name, marks=engine.marks) for engine in CHILDREN], indirect=True
)
async def test_an_append_that_returned_outlives_kill_9(harness: Harness) -> None:
    """The one sin is a 200 we cannot keep."""
    for more in range(3):
        async with started(harness, "append") as child:
            await child.until("open")
            for _ in range(100 + 37 * more):
                await child.line()
            await child.kill()
        assert len(child.numbers()) >= 100
        engine = await harness.open(LOGS)
        there = {int(entry.value) for entry in await everything(engine, "in")}
        assert child.numbers() <= there
        await harness.crash(engine)


@pytest.mark.parametrize(("engine_name", "point"), POINTS, indirect=["engine_name"])
async def test_a_step_killed_at_any_point_leaves_all_or_nothing(harness: Harness, point: str) -> None:
    """No half of a step is ever read, and no committed one is missed."""
    async with started(harness, "steps", point, 5) as child:
        await child.until("reached")
        await child.kill()
    assert child.numbers() == {0, 1, 2, 3, 4}
    engine = await harness.open(LOGS)
    last = await whole(engine, harness)
    assert last == 5 if point == "after" else last in (4, 5)
    if point == "before":
        assert last == 4


@pytest.mark.parametrize(("engine_name", "point"), POINTS, indirect=["engine_name"])
async def test_a_frozen_owner_is_shut_out_or_shuts_others_out(harness: Harness, point: str) -> None:
    """A process stopped in mid-step thaws believing. Where processes share logs its step is refused; where they do
    not, nobody else came in."""
    async with started(harness, "steps", point, 3) as child:
        await child.until("reached")
        child.process.send_signal(signal.SIGSTOP)
        if not harness.spans_processes:
            with pytest.raises(LogUnavailable, match=str(child.process.pid)):
                await harness.open(LOGS)
            await child.kill()
            engine = await harness.open(LOGS)
            await whole(engine, harness)
        else:
            engine = await harness.open(LOGS)
            last = await whole(engine, harness)
            child.process.send_signal(signal.SIGCONT)
            await asyncio.sleep(3.0)
            assert await whole(engine, harness) == last


async def whole(engine: LogEngine, harness: Harness) -> int:
    """Check that state, position, memo and both derived records tell of the same last step; return it."""
    restored = await state_of(engine, COPY, PARTITION, harness.patience_s * 6)
    last = int(dict(restored.records)[b"number"])
    assert restored.position == {"in": last}
    assert restored.memo == b"%d" % last
    for partition in (0, 3):
        values = [int(entry.value) for entry in await shown(engine, "out", last + 1, partition)]
        assert values == list(range(last + 1))
    return last
