"""A command's visit to the logs: reads what is committed, and appends, whichever engine it is and whoever has it open.

On Kafka it is a client like any other. The embedded log is one process's: it is read beside its owner
(`broker.log.glance`), and appended to through the owner's door (`broker.log.door`), or directly when nobody
has it open.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import NamedTuple, Protocol

from broker.errors import LogUnavailable, Misconfigured
from broker.log.contract import Draft, Entry, LogEngine
from broker.log.door import Visitor
from broker.log.embedded import EmbeddedLog
from broker.log.glance import glance, must_exist, progress
from broker.log.kafka import KafkaLog

OPEN_S_MAX = 60.0
"""A log that cannot be opened in this time is an error to be seen, not a wait."""

APPEND_S_MAX = 10.0
NEAR_RECORDS = 2_000
"""Fewer are read quicker than another place is looked up."""

CHUNK_RECORDS_MAX = 100
CHUNK_BYTES_MAX = 1_000_000
"""What is appended at a time: a frame through the door, and what is repeated after a crash."""


class Reached(NamedTuple):
    """How far a group is in one partition: the first kept offset, the next one, and what the group committed (None:
    never) with its text."""

    first: int
    end: int
    committed: int | None
    text: str


class Visit(Protocol):
    """What a command may do with the logs. Use it as a context manager."""

    async def __aenter__(self) -> Visit:
        """Open. Raises `LogUnavailable`, `Misconfigured`."""
        ...

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        ...

    def partitions(self, log: str) -> int:
        """Return a log's number of partitions. Raises `Misconfigured` when there is no such log."""
        ...

    def read(self, log: str, partition: int, start: int = 0) -> AsyncGenerator[Entry, None]:
        """Read committed records of a partition, from an offset to the present end."""
        ...

    async def ends(self, log: str) -> list[tuple[int, int]]:
        """Return the first kept offset and the next one of each partition. Raises `LogUnavailable`."""
        ...

    async def reached(self, group: str, log: str) -> list[Reached]:
        """Return how far a group of followers is in each partition of a log. Raises `LogUnavailable`."""
        ...

    async def append(self, log: str, drafts: Sequence[Draft]) -> None:
        """Append; durable when it returns. Raises `LogUnavailable`, `RecordTooLarge`."""
        ...


class EngineVisit:
    """A visit by means of an engine of our own, which it starts and closes: Kafka, or an embedded log nobody has."""

    def __init__(self, engine: EmbeddedLog | KafkaLog) -> None:
        self.engine = engine

    async def __aenter__(self) -> EngineVisit:
        try:
            async with asyncio.timeout(OPEN_S_MAX):
                await self.engine.start()
        except TimeoutError:
            await self.engine.close()
            raise LogUnavailable(f"not opened within {OPEN_S_MAX:.0f} s: is the log reachable?") from None
        except BaseException:
            await self.engine.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.close()

    def partitions(self, log: str) -> int:
        """Return a log's number of partitions."""
        return _partitions(self.engine, log)

    async def read(self, log: str, partition: int, start: int = 0) -> AsyncGenerator[Entry, None]:
        """Read committed records."""
        async for entry in self.engine.read(log, partition, start or None):
            yield entry

    async def ends(self, log: str) -> list[tuple[int, int]]:
        """Return where each partition begins and ends."""
        return await self.engine.ends(log)

    async def reached(self, group: str, log: str) -> list[Reached]:
        """Return how far a group is."""
        ends, committed = await self.engine.ends(log), await self.engine.committed(group, log)
        return [Reached(*edges, *done) for edges, done in zip(ends, committed, strict=True)]

    async def append(self, log: str, drafts: Sequence[Draft]) -> None:
        """Append."""
        for chunk in chunks(drafts):
            await self.engine.append(log, chunk, APPEND_S_MAX)


class LentVisit(EngineVisit):
    """A visit by means of the engine of a running process, which neither starts nor closes it."""

    async def __aenter__(self) -> LentVisit:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class EmbeddedVisit:
    """A visit to an embedded log that another process may have open. It opens it for writing only when it must."""

    def __init__(self, folder: Path, engine: EmbeddedLog) -> None:
        """`engine`: for the case that nobody has the log open; made not to wait for the lock."""
        self._folder = folder
        self._engine = engine
        self._stack = AsyncExitStack()
        self._appender: Visitor | EngineVisit | None = None

    async def __aenter__(self) -> EmbeddedVisit:
        must_exist(self._folder)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def partitions(self, log: str) -> int:
        """Return a log's number of partitions."""
        return _partitions(self._engine, log)

    async def read(self, log: str, partition: int, start: int = 0) -> AsyncGenerator[Entry, None]:
        """Read committed records."""
        async with aclosing(glance(self._folder, log, partition=partition, offset=start)) as entries:
            async for entry in entries:
                yield entry

    async def ends(self, log: str) -> list[tuple[int, int]]:
        """Return where each partition begins and ends."""
        return [(one.first, one.end) for one in await self.reached("", log)]

    async def reached(self, group: str, log: str) -> list[Reached]:
        """Return how far a group is."""
        self.partitions(log)
        return [Reached(*found) for found in await asyncio.to_thread(progress, self._folder, group, log)]

    async def append(self, log: str, drafts: Sequence[Draft]) -> None:
        """Append, through the door or with the log opened for it."""
        if self._appender is None:
            self._appender = await self._open()
        for chunk in chunks(drafts):
            await self._appender.append(log, chunk)

    async def _open(self) -> Visitor | EngineVisit:
        try:
            return await self._stack.enter_async_context(EngineVisit(self._engine))
        except LogUnavailable as taken:
            try:
                return await self._stack.enter_async_context(Visitor(self._folder))
            except LogUnavailable as shut:
                raise LogUnavailable(f"{taken}; and its door: {shut}") from None


async def first_since(visit: Visit, log: str, partition: int, since: int, edges: tuple[int, int]) -> int:
    """Return an offset before which nothing was appended at `since` (Unix ms) or later, few records before the first
    that was: a search by halves, since a log may hold millions. Times in a partition grow, but for clocks put back."""
    low, high = edges
    while high - low > NEAR_RECORDS:
        middle = (low + high) // 2
        at: int | None = None
        async with aclosing(visit.read(log, partition, middle)) as entries:
            async for entry in entries:
                at = entry.appended_at
                break
        if at is not None and at < since:
            low = middle
        else:
            high = middle
    return low


def chunks(drafts: Sequence[Draft]) -> list[list[Draft]]:
    """Cut drafts into what is appended at a time, in order."""
    made: list[list[Draft]] = []
    size = 0
    for draft in drafts:
        bytes_ = len(draft.key) + len(draft.value or b"")
        if not made or len(made[-1]) >= CHUNK_RECORDS_MAX or size + bytes_ > CHUNK_BYTES_MAX:
            made.append([])
            size = 0
        made[-1].append(draft)
        size += bytes_
    return made


def _partitions(engine: LogEngine, log: str) -> int:
    spec = engine.logs.get(log)
    if spec is None:
        raise Misconfigured(f"no log {log!r}; there are {', '.join(sorted(engine.logs))}")
    return spec.partitions
