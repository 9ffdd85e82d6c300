"""The logs and the stages the suite runs: small programs that do what real stages do, and tell what they saw."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from broker.errors import LeaseRevoked
from broker.log.contract import Draft, Entry, Follow, Lease, LogEngine, LogSpec, Restored, Stage, Step

IN = LogSpec("in", 4)
SECOND = LogSpec("second", 4)
OUT = LogSpec("out", 4)
STATE = LogSpec("state", 4, "last")
JOURNAL = LogSpec("journal", 4, "journal", 60_000)
LOGS = (IN, SECOND, OUT, STATE, JOURNAL)

SHOWN_S_MAX = 20.0
"""From a commit that returned until readers see it: milliseconds, but for a broker that waits for its disk."""

COPY = Stage("copy", ("in",), "state")
MERGE = Stage("merge", ("in", "second"), "state")


class Copying:
    """Copies each record of its inputs to `out`, and keeps for each key how many it has seen.

    The count goes with the copy: `out` says whether a record was handled twice, or with a state that was not its own.
    """

    def __init__(self, records_max: int = 100) -> None:
        self.records_max = records_max
        self.runs: list[int] = []
        self.restored: list[Restored] = []
        self.copied = 0
        self.errors: list[BaseException] = []
        self.leases: dict[int, Lease] = {}
        self.counts: dict[int, dict[bytes, int]] = {}

    async def __call__(self, lease: Lease) -> None:
        """Run for one partition."""
        self.runs.append(lease.partition)
        self.leases[lease.partition] = lease
        try:
            restored = await lease.restore()
            self.restored.append(restored)
            counts = {key: int(value) for key, value in restored.records}
            self.counts[lease.partition] = counts
            position = dict(restored.position)
            while True:
                entries = await lease.fetch(self.records_max, 5.0)
                if entries:
                    await self.step(lease, entries, counts, position)
        except BaseException as error:
            self.errors.append(error)
            raise

    async def step(
        self, lease: Lease, entries: list[Entry], counts: dict[bytes, int], position: dict[str, int]
    ) -> None:
        """Take one batch and commit it."""
        after = dict(counts)
        derived = []
        for entry in entries:
            after[entry.key] = after.get(entry.key, 0) + 1
            derived.append(("out", Draft(entry.key, b"%s #%d" % (entry.value, after[entry.key]))))
            position[entry.log] = entry.offset + 1
        changes: list[tuple[bytes, bytes | None]] = [
            (key, b"%d" % after[key]) for key in dict.fromkeys(entry.key for entry in entries)
        ]
        await retried(lambda: lease.commit(Step(position, derived, changes)))
        counts.update(after)
        self.copied += len(entries)


async def retried(commit: Callable[[], Awaitable[None]]) -> None:
    """Commit, and wait while the partition is away."""
    while True:
        try:
            return await commit()
        except LeaseRevoked:
            await asyncio.sleep(0.02)


class Listening:
    """Follows logs, keeps what it was given, commits after each batch."""

    def __init__(self, metadata: str = "") -> None:
        self.metadata = metadata
        self.restored: dict[tuple[str, int], tuple[int | None, str]] = {}
        self.seen: list[Entry] = []
        self.follows: dict[tuple[str, int], Follow] = {}
        self.runs = 0

    async def __call__(self, follow: Follow) -> None:
        """Run for one partition."""
        self.runs += 1
        self.follows[follow.log, follow.partition] = follow
        self.restored[follow.log, follow.partition] = await follow.restore()
        while True:
            entries = await follow.fetch(100, 5.0)
            if entries:
                self.seen.extend(entries)
                last = entries[-1].offset + 1
                await retried(lambda at=last: follow.commit(at, self.metadata))  # type: ignore[misc]


class Idle:
    """Restores, then waits: a stage whose lease the test itself works with."""

    def __init__(self) -> None:
        self.leases: dict[int, Lease] = {}
        self.restored: dict[int, Restored] = {}
        self.runs = 0
        self.cancelled = 0

    async def __call__(self, lease: Lease) -> None:
        """Run for one partition."""
        self.restored[lease.partition] = await lease.restore()
        self.leases[lease.partition] = lease
        self.runs += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def lease(self, partition: int, timeout_s: float = 30.0) -> Lease:
        """Return a partition's lease once it runs."""
        await until(lambda: partition in self.leases, timeout_s)
        return self.leases[partition]


async def until(done: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Wait until something is so; fail with a plain message when it is not in time."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + timeout_s
    while not done():
        assert loop.time() < ends_at, f"not so within {timeout_s} s"
        await asyncio.sleep(0.01)


async def everything(engine: LogEngine, log: str, partition: int | None = None) -> list[Entry]:
    """Read a log, or one partition of it, from the first kept record to the present end."""
    partitions = range(engine.logs[log].partitions) if partition is None else (partition,)
    return [entry for number in partitions async for entry in engine.read(log, number)]


async def shown(engine: LogEngine, log: str, count: int, partition: int | None = None) -> list[Entry]:
    """Read a log once it shows so many records, or more: what a step derived is seen a moment after its commit."""
    ends_at = asyncio.get_running_loop().time() + SHOWN_S_MAX
    while len(entries := await everything(engine, log, partition)) < count:
        assert asyncio.get_running_loop().time() < ends_at, f"{len(entries)} of {count} records within {SHOWN_S_MAX} s"
        await asyncio.sleep(0.01)
    return entries


async def state_of(engine: LogEngine, stage: Stage, partition: int, timeout_s: float = 30.0) -> Restored:
    """Join a stage for as long as it takes to restore one partition."""
    idle = Idle()
    member = await engine.own(stage, idle)
    await idle.lease(partition, timeout_s)
    await member.leave()
    return idle.restored[partition]


def numbered(count: int, keys: int = 7, first: int = 0) -> list[Draft]:
    """Return drafts whose values tell their order: "3", "4", … spread over some keys."""
    return [Draft(b"key-%d" % (number % keys), b"%d" % number) for number in range(first, first + count)]
