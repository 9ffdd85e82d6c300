"""The embedded engine under the suite: a folder, a clock that can jump, and a disk that can fail."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from broker.clock import SystemClock
from broker.log.contract import LogEngine, LogSpec, Stage, Step
from broker.log.embedded import BYTES_IN_FLIGHT_MAX, EmbeddedLog
from broker.log.store import Transaction
from tests.contract.harness import Reached


class JumpingClock(SystemClock):
    """The machine's clocks; the wall clock may be set ahead."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now(self) -> int:
        """Return Unix ms."""
        return super().now() + self.ahead_ms


class EmbeddedHarness:
    """Engines on one folder, one at a time."""

    name = "embedded"
    spans_processes = False
    patience_s = 5.0
    steps_many = 1_100

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = JumpingClock()
        self._engines: list[EmbeddedLog] = []
        self._limits: tuple[int, int] | None = None

    @classmethod
    def for_test(cls, request: pytest.FixtureRequest) -> EmbeddedHarness:
        """Make a harness in the test's own folder."""
        folder = request.getfixturevalue("tmp_path")
        assert isinstance(folder, Path)
        return cls(folder / "log")

    async def open(self, specs: Sequence[LogSpec], *, bytes_in_flight_max: int | None = None) -> EmbeddedLog:
        """Make an engine and start it."""
        engine = EmbeddedLog(
            self.folder,
            specs,
            clock=self.clock,
            rng=random.Random(len(self._engines)),
            bytes_in_flight_max=BYTES_IN_FLIGHT_MAX if bytes_in_flight_max is None else bytes_in_flight_max,
            lock_s_max=0.3,
            upkeep_s=3_600.0,
        )
        await engine.start()
        self._engines.append(engine)
        return engine

    async def another(self, engine: LogEngine) -> LogEngine:
        """Members of this process share the engine."""
        return engine

    async def crash(self, engine: LogEngine) -> None:
        """Close without time for anything."""
        await engine.close(0.0)

    async def usurp(self, engine: LogEngine, stage: Stage, partition: int, step: Step | None = None) -> None:
        """Seize the partition past the group."""
        assert isinstance(engine, EmbeddedLog)
        lease = await engine.seize(stage, partition)
        if step is not None:
            await lease.restore()
            await lease.commit(step)

    async def rebalance(self, engine: LogEngine, name: str) -> None:
        """Revoke and grant."""
        assert isinstance(engine, EmbeddedLog)
        await engine.rebalance(name)

    async def recreate(self, log: str) -> None:
        """Delete the log's rows, records and places."""
        db = sqlite3.connect(self.folder / "log.db")
        with contextlib.closing(db), db:
            db.execute("DELETE FROM records WHERE place IN (SELECT id FROM places WHERE log = ?)", (log,))
            db.execute("DELETE FROM places WHERE log = ?", (log,))
            db.execute("DELETE FROM logs WHERE name = ?", (log,))

    async def take_away(self) -> None:
        """Let the kernel refuse every write of this process to a file, as a full or broken disk would."""
        assert self._limits is None
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._limits[1]))

    async def bring_back(self) -> None:
        """Let it write again."""
        if self._limits is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
            self._limits = None

    def advance(self, by_ms: int) -> None:
        """Set the wall clock ahead."""
        self.clock.ahead_ms += by_ms

    async def tidy(self, engine: LogEngine) -> bool:
        """Have a round of upkeep done."""
        assert isinstance(engine, EmbeddedLog)
        await engine.tidy()
        return True

    def child_arguments(self) -> list[str]:
        """The engine's name and its folder."""
        return [self.name, str(self.folder)]

    async def close(self) -> None:
        """Close what is open."""
        await self.bring_back()
        for engine in self._engines:
            await engine.close(5.0)
        await asyncio.sleep(0)


class EmbeddedChild:
    """The embedded engine in a child process."""

    points: tuple[str, ...] = ("before", "begun", "written", "after")

    async def open(self, arguments: Sequence[str], specs: Sequence[LogSpec]) -> LogEngine:
        """Open the folder."""
        engine = EmbeddedLog(
            Path(arguments[0]), specs, clock=SystemClock(), rng=random.Random(7), lock_s_max=0.3, upkeep_s=3_600.0
        )
        await engine.start()
        return engine

    def arm(self, point: str, reached: Reached) -> None:
        """Stop the writer's thread in the next transaction: before its rows are inserted, or before COMMIT."""
        flush = Transaction.flush

        def stopping(self: Transaction) -> None:
            if point == "written":
                flush(self)
            reached()

        if point in ("begun", "written"):
            Transaction.flush = stopping  # type: ignore[method-assign]
