"""Keeps the embedded log's file small: retention, compaction, checkpoints. Off the append path, in small ranges.

Each round looks at one partition after the other and gives the writer small jobs, one at a time, with a rest between
them; an append waits for one of them at most. Rows that are removed leave free pages, which new records fill: the
file does not shrink, it stops growing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Sequence

from broker import metrics
from broker.errors import LogUnavailable
from broker.log.embedded_lease import RECORD_OVERHEAD_BYTES, Desk, Pending
from broker.log.reading import Slice
from broker.log.store import Transaction

logger = logging.getLogger("depesche.log")

TRIM_ROWS = 256
"""Rows removed in one transaction: some 2 ms that an append may have to wait."""

TRIM_REST_S = 0.005
"""Between two of them."""

COMPACT_MIN = 1_000
"""New records before a compacted partition is looked at: a handful is not worth a pass."""

CHECKPOINT_S = 0.5
CHECKPOINT_QUIET = 20
CHECKPOINT_BYTES = 8 * 1024 * 1024
"""Looked at each half second: the WAL is copied into the database after 8 MB, or after 10 s whatever there is."""


class Trim(Pending):
    """Remove some rows of a partition; its offsets go on where they were even when all is gone."""

    def __init__(self, place: int, ids: Sequence[int], following: int) -> None:
        super().__init__(RECORD_OVERHEAD_BYTES * len(ids))
        self._place = place
        self._ids = ids
        self._following = following

    def apply(self, tx: Transaction) -> object:
        """Write."""
        tx.db.execute(f"DELETE FROM records WHERE id IN ({','.join(map(str, self._ids))})")  # noqa: S608 - numbers
        tx.db.execute("UPDATE places SET next = max(next, ?) WHERE id = ?", (self._following, self._place))
        return None


class Upkeep:
    """The engine's housekeeper: one task for retention and compaction, one for checkpoints."""

    def __init__(self, desk: Desk, every_s: float) -> None:
        self._desk = desk
        self._every_s = every_s
        self._tasks: list[asyncio.Task[None]] = []
        self._one_round = asyncio.Lock()

    def start(self) -> None:
        """Begin."""
        self._tasks = [
            asyncio.create_task(self._rounds(), name="log-upkeep"),
            asyncio.create_task(self._checkpoints(), name="log-checkpoints"),
            asyncio.create_task(self._check_once(), name="log-check"),
        ]

    async def stop(self) -> None:
        """End, at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=1.0)

    async def round(self) -> None:
        """Look at every partition once. Raises `LogUnavailable`."""
        async with self._one_round:
            for spec in self._desk.logs.values():
                for part in self._desk.reader.of(spec.name):
                    if spec.kept == "last":
                        await self._compact(part)
                    else:
                        await self._retain(part, self._desk.clock.now() - spec.retention_ms, spec.kept == "journal")

    async def check(self) -> list[str]:
        """Check the file's structure, beside everything else, and say loudly what is damaged.

        A checksum finds a damaged record when it is read; this finds rows that a damaged page no longer shows.
        """
        damages = await asyncio.to_thread(self._desk.store.check)
        for damage in damages:
            metrics.log_corrupt_records.labels("(structure)").inc()
            logger.critical("%s: damaged: %s", self._desk.store.path, damage)
        return damages

    async def _check_once(self) -> None:
        with contextlib.suppress(LogUnavailable):
            await self.check()

    async def _rounds(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                metrics.log_free_bytes.set(shutil.disk_usage(self._desk.store.folder).free)
                await self.round()
            except (LogUnavailable, OSError) as error:
                logger.warning("%s: upkeep failed, will be tried again: %s", self._desk.store.path, error)

    async def _retain(self, part: Slice, before: int, journal: bool) -> None:
        """Remove what is older than an instant, but never what a journal's restore needs."""
        index = part.index
        limit = len(index)
        if journal:
            limit = 0 if index.snapshot_at is None else index.before(index.snapshot_at)
        count = await self._older(part, before, limit)
        while count > 0:
            some = min(count, TRIM_ROWS)
            ids = [index.row_at(at) for at in range(some)]
            await self._desk.write(Trim(part.id, ids, index.next))
            part.index.drop_front(some)
            count -= some
            await asyncio.sleep(TRIM_REST_S)

    async def _older(self, part: Slice, before: int, limit: int) -> int:
        """Return how many of the first `limit` records are older than an instant, by bisection: appends come in the
        order of time, and a clock that jumped only moves the cut."""
        low, high = 0, limit
        while low < high:
            middle = (low + high) // 2
            found = await self._desk.reader.in_thread(part.id, [part.index.row_at(middle)])
            if found and found[0].sound and found[0].at >= before:
                high = middle
            else:
                low = middle + 1
        return low

    async def _compact(self, part: Slice) -> None:
        """Keep the last value of every key, and no tombstone, once half of a partition is likely superseded."""
        kept_before = len(part.index) - part.since_compaction
        if part.since_compaction < max(COMPACT_MIN, kept_before):
            return
        async with part.compacting:
            index = part.index
            end = index.next
            added = part.since_compaction
            last: dict[bytes, tuple[int, int, bool]] = {}
            gone: list[tuple[int, int]] = []
            offset = index.first
            while offset < end:
                found, offset = await self._desk.reader.stored(part, offset, TRIM_ROWS)
                for at, record in found:
                    previous = last.get(record.key)
                    if previous is not None:
                        gone.append(previous[:2])
                    last[record.key] = (at, record.id, record.value is None)
            gone += [(at, row_id) for at, row_id, deleted in last.values() if deleted]
            gone.sort()  # an older value goes before the tombstone that hides it
            for begin in range(0, len(gone), TRIM_ROWS):
                some = gone[begin : begin + TRIM_ROWS]
                await self._desk.write(Trim(part.id, [row_id for _, row_id in some], index.next))
                await asyncio.sleep(TRIM_REST_S)
            index.drop([at for at, _ in gone])
            part.since_compaction -= added

    async def _checkpoints(self) -> None:
        store = self._desk.store
        done_bytes, quiet = 0, 0
        while True:
            await asyncio.sleep(CHECKPOINT_S)
            quiet += 1
            waiting = store.written_bytes - done_bytes
            if waiting >= CHECKPOINT_BYTES or (waiting and quiet >= CHECKPOINT_QUIET):
                done_bytes, quiet = store.written_bytes, 0
                with contextlib.suppress(LogUnavailable):
                    await asyncio.to_thread(store.checkpoint)
