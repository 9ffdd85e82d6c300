"""Reads what is committed in the embedded log: the newest records from memory, older ones from the file.

Who keeps up never touches the file: the last `TAIL_BYTES_MAX` of records stay in memory, over all partitions. Older
ones are read by a few threads. A record whose checksum is wrong is reported with its place and left out; its
neighbours are read.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from broker import metrics
from broker.errors import LogUnavailable
from broker.log.contract import SNAPSHOT, Entry, LogSpec
from broker.log.index import Index
from broker.log.lease import Signal
from broker.log.position import POSITION
from broker.log.store import Row, Store, Stored

logger = logging.getLogger("depesche.log")

TAIL_BYTES_MAX = 32 * 1024 * 1024
"""Some ten seconds of inbound traffic at a number's full tier, counted with `ENTRY_OVERHEAD_BYTES`."""

ENTRY_OVERHEAD_BYTES = 300
"""What an `Entry` costs beside its key and value: the tuple, two bytes objects, four numbers."""

READERS = 2
"""Threads that read: the file is read while somebody catches up or restores, two of them at a time."""

READ_BYTES_MAX = 4 * 1024 * 1024
"""Of one read, but for a single larger record."""

READ_S_MAX = 30.0
"""A read that takes longer means a disk that hangs."""


class Slice:
    """One partition of a log as readers see it: its index, its newest records, and who waits for more."""

    __slots__ = ("_head", "_tail", "arrived", "compacting", "id", "index", "log", "partition", "since_compaction")

    def __init__(self, place: int, log: str, partition: int, index: Index) -> None:
        self.id = place
        self.log = log
        self.partition = partition
        self.index = index
        self.arrived = Signal()
        self.compacting = asyncio.Lock()
        """Held while rows are removed by compaction, and by a restore, which must see one state of the partition."""
        self.since_compaction = len(index)
        self._tail: list[Entry] = []
        self._head = 0

    def remember(self, entry: Entry) -> None:
        """Keep a new record in memory."""
        self._tail.append(entry)

    def forget_oldest(self) -> int:
        """Let the oldest record in memory go; return its bytes."""
        entry = self._tail[self._head]
        self._head += 1
        if self._head >= 256 and self._head * 2 >= len(self._tail):
            del self._tail[: self._head]
            self._head = 0
        return _cost(entry)

    def recent(self, start: int, records_max: int) -> list[Entry] | None:
        """Return records from memory, None when `start` is older than what is there. Only for logs without holes."""
        if self._head >= len(self._tail):
            return None
        begin = start - self._tail[self._head].offset
        if begin < 0:
            return None
        begin += self._head
        return self._tail[begin : begin + records_max]


class Batch(NamedTuple):
    """Records read, and the offset to go on from: it is beyond them when records were damaged or removed."""

    entries: list[Entry]
    next: int


class Reader:
    """Every partition of the engine's logs, and the threads that read the file."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._slices: dict[tuple[str, int], Slice] = {}
        self._by_id: dict[int, Slice] = {}
        self._remembered: deque[Slice] = deque()
        self._remembered_bytes = 0
        self._kept: dict[str, str] = {}
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="log-reader")

    def add(self, spec: LogSpec, shelf: Slice) -> None:
        """Take a partition into care."""
        self._slices[spec.name, shelf.partition] = shelf
        self._by_id[shelf.id] = shelf
        self._kept[spec.name] = spec.kept

    def slice(self, log: str, partition: int) -> Slice:
        """Return a partition. Raises `KeyError` when there is none."""
        return self._slices[log, partition]

    def of(self, log: str) -> list[Slice]:
        """Return every partition of a log, in order."""
        return [part for (name, _), part in self._slices.items() if name == log]

    def landed(self, rows: Sequence[Row]) -> None:
        """Take in what was just committed, and wake who waits for it. On the event loop, in the order of commits."""
        touched: dict[int, Slice] = {}
        for row_id, place, offset, at, key, value in rows:
            part = self._by_id[place]
            index = part.index
            size = len(key) + (0 if value is None else len(value))
            index.add(offset, row_id, size)
            touched[place] = part
            if self._kept[part.log] == "time":
                entry = Entry(part.log, part.partition, offset, key, b"" if value is None else value, at)
                part.remember(entry)
                self._remembered.append(part)
                self._remembered_bytes += size + ENTRY_OVERHEAD_BYTES
            else:
                part.since_compaction += 1
                if key == POSITION:
                    index.position_at = offset
                elif key == SNAPSHOT:
                    index.snapshot_at = offset
        while self._remembered_bytes > TAIL_BYTES_MAX:
            self._remembered_bytes -= self._remembered.popleft().forget_oldest()
        for part in touched.values():
            part.arrived.set()

    async def read(self, part: Slice, start: int, records_max: int) -> Batch:
        """Return the next records from `start` on, at least one if there is any. Raises `LogUnavailable`."""
        index = part.index
        if start >= index.next or records_max <= 0:
            return Batch([], start)
        if self._kept[part.log] == "time":
            recent = part.recent(start, records_max)
            if recent:
                return Batch(recent, recent[-1].offset + 1)
        stored, after = await self.stored(part, start, records_max)
        entries = [
            Entry(
                part.log, part.partition, offset, record.key, b"" if record.value is None else record.value, record.at
            )
            for offset, record in stored
        ]
        return Batch(entries, after)

    async def stored(self, part: Slice, start: int, records_max: int) -> tuple[list[tuple[int, Stored]], int]:
        """Read (offset, record) from the file, and the offset to go on from. Raises `LogUnavailable`."""
        span = part.index.span(start, records_max, READ_BYTES_MAX)
        if not span:
            return [], max(start, part.index.next)
        offsets = {row_id: offset for offset, row_id in span}
        found = await self.in_thread(part.id, list(offsets))
        if len(found) < len(span):
            self._report_missing(part, offsets, found)
        sound = []
        for record in found:
            offset = offsets[record.id]
            if record.sound and record.offset == offset:
                sound.append((offset, record))
            else:
                self.report(part, offset, "its checksum does not match")
        return sound, span[-1][0] + 1

    async def in_thread(self, place: int, ids: Sequence[int]) -> list[Stored]:
        """Read rows in a reader's thread. Raises `LogUnavailable`."""
        try:
            async with asyncio.timeout(READ_S_MAX):
                return await asyncio.get_running_loop().run_in_executor(
                    self._threads, self._store.read_rows, place, ids
                )
        except TimeoutError:
            raise LogUnavailable(f"{self._store.path}: a read took longer than {READ_S_MAX:.0f} s") from None
        except RuntimeError as error:
            raise LogUnavailable(f"{self._store.path}: the log is closed") from error

    def report(self, part: Slice, offset: int, why: str) -> None:
        """Say loudly that a record is damaged."""
        metrics.log_corrupt_records.labels(part.log).inc()
        logger.critical(
            "%s: damaged record in log %r, partition %d, offset %d: %s; it is left out",
            self._store.path, part.log, part.partition, offset, why,
        )  # fmt: skip

    def close(self) -> None:
        """Take no more reads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _report_missing(self, part: Slice, offsets: dict[int, int], found: Sequence[Stored]) -> None:
        present = {record.id for record in found}
        for row_id, offset in offsets.items():
            if row_id not in present and part.index.has(offset):
                self.report(part, offset, "its row is gone")


def _cost(entry: Entry) -> int:
    return len(entry.key) + len(entry.value) + ENTRY_OVERHEAD_BYTES
