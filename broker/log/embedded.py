"""The embedded log: an engine for one process, on one SQLite file. Owns appends and their bound; joins the rest.

embedded.py        appends, opening and closing                 store.py    the file, the thread that writes it
embedded_lease.py  leases, followers, steps                     reading.py  committed records, from memory or file
coordinator.py     who in this process has which partition      upkeep.py   retention, compaction, checkpoints
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from broker import metrics
from broker.clock import Clock
from broker.errors import LogUnavailable, Misconfigured, RecordTooLarge
from broker.log.contract import Draft, Entry, Follow, Lease, LogSpec, Stage
from broker.log.coordinator import Group, Held, Item, Member, Opener
from broker.log.embedded_lease import RECORD_OVERHEAD_BYTES, Desk, EmbeddedFollow, EmbeddedLease, Pending, partition_of
from broker.log.glance import commits
from broker.log.index import Index
from broker.log.partitioning import partition_for
from broker.log.position import POSITION, check_drafts, check_stage
from broker.log.reading import Reader, Slice
from broker.log.store import Job, Row, Store, Transaction
from broker.log.upkeep import Upkeep

logger = logging.getLogger("depesche.log")

LOCK_S_MAX = 5.0
"""How long a start waits for another process to leave the folder: a restart overlaps by some seconds."""

BYTES_IN_FLIGHT_MAX = 64 * 1024 * 1024
"""Appended and not yet durable. Some seconds of a disk that has become slow."""

READ_RECORDS = 512
"""Records a tool's reader takes at a time."""

TAIL_WAIT_S = 5.0
"""How often a reader of the tail looks whether the log was closed."""


class Append(Pending):
    """One call of `append`: its records, and until when its caller waits."""

    def __init__(self, log: str, at: int, records: Sequence[tuple[int, bytes, bytes | None]]) -> None:
        super().__init__(sum(len(key) + len(value or b"") + RECORD_OVERHEAD_BYTES for _, key, value in records))
        self.log = log
        self._at = at
        self._records = records

    def apply(self, tx: Transaction) -> object:
        """Write."""
        for place, key, value in self._records:
            tx.insert(place, self._at, key, value)
        return None


class EmbeddedLog:
    """A log engine (`broker.log.contract.LogEngine`) in a folder, for one process and one event loop."""

    def __init__(
        self,
        path: Path,
        specs: Sequence[LogSpec],
        *,
        clock: Clock,
        rng: random.Random,
        bytes_in_flight_max: int = BYTES_IN_FLIGHT_MAX,
        bytes_max: int | None = None,
        lock_s_max: float = LOCK_S_MAX,
        upkeep_s: float = 30.0,
    ) -> None:
        """Prepare; `start` opens. `path` is a folder. `bytes_max` bounds the database (None: the disk does);
        `upkeep_s` is how often retention and compaction look for work."""
        self._logs = {spec.name: spec for spec in specs}
        self._clock = clock
        self._rng = rng
        self._store = Store(path, clock, self._from_writer, bytes_max)
        self._reader = Reader(self._store)
        self._incarnations: dict[str, str] = {}
        self.desk = Desk(self._store, self._reader, self._logs, self._incarnations, clock)
        self._groups: dict[tuple[str, str], Group] = {}
        self._upkeep = Upkeep(self.desk, upkeep_s)
        self._lock_s_max = lock_s_max
        self._bytes_in_flight_max = bytes_in_flight_max
        self._in_flight = 0
        self._under_way: dict[Append, None] = {}
        self._waiting: dict[Append, None] = {}
        self._taken = {spec.name: metrics.log_appends.labels(spec.name, "ok") for spec in specs}
        self._durations = {spec.name: metrics.log_append_duration.labels(spec.name) for spec in specs}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = False

    @property
    def logs(self) -> dict[str, LogSpec]:
        """Every log by name."""
        return self._logs

    # Opening and closing

    async def start(self) -> None:
        """Open. Raises `LogUnavailable` (the folder cannot be used, or another process has it), `Misconfigured`."""
        self._loop = asyncio.get_running_loop()
        ends_at = self._clock.monotonic() + self._lock_s_max
        while True:
            try:
                self._store.take_lock()
                break
            except LogUnavailable:
                if self._clock.monotonic() >= ends_at:
                    raise
                await asyncio.sleep(0.1)
        try:
            slices = await asyncio.to_thread(self._load)
        except BaseException:
            self._store.end(0.0)
            raise
        for part in slices:
            self._reader.add(self._logs[part.log], part)
        self._open = True
        self._upkeep.start()
        logger.info("%s: open, %d records", self._store.path, sum(len(part.index) for part in slices))

    async def close(self, timeout_s: float = 10.0) -> None:
        """Leave every membership, settle or give up open appends, release everything."""
        if not self._open:
            return
        self._open = False
        ends_at = self._clock.monotonic() + timeout_s
        await self._upkeep.stop()
        members = [(group, member) for group in self._groups.values() for member in list(group.members)]
        if members:
            leaving = [asyncio.create_task(group.leave(member, timeout_s * 0.6)) for group, member in members]
            await asyncio.wait(leaving, timeout=timeout_s * 0.6)
        for group in self._groups.values():
            group.abandon()
        self.desk.closed = True
        for job in list(self._waiting):
            self._expire(job, "the log was closed; nothing was written")
        left_s = max(0.1, ends_at - self._clock.monotonic())
        ended = await asyncio.to_thread(self._store.end, left_s)
        await asyncio.sleep(0)  # what the writer has said last
        if not ended:
            logger.error("%s: the disk hangs; the writer is left behind and the folder stays locked", self._store.path)
        for job in list(self._under_way):
            job.done(None, LogUnavailable(f"{self._store.path}: closed; a record may have been written"))
        for spec in self._logs.values():
            for part in self._reader.of(spec.name):
                part.arrived.set()
        self._reader.close()

    # Appends

    def partition_of(self, log: str, key: bytes) -> int:
        """Return the partition of a key."""
        return partition_for(key, self._logs[log].partitions)

    async def append(self, log: str, drafts: Sequence[Draft], timeout_s: float) -> None:
        """Append records; durable when it returns."""
        spec = self._logs.get(log)
        if spec is None:
            raise Misconfigured(f"there is no log {log!r}; configured are {', '.join(self._logs)}")
        if not self._open or self._loop is None:
            raise LogUnavailable(f"{self._store.path}: the log is not open")
        try:
            check_drafts(log, drafts, spec.partitions)
        except RecordTooLarge:
            metrics.log_appends.labels(log, "refused").inc(len(drafts))
            raise
        if not drafts:
            return
        began = self._clock.monotonic()
        records = [(self._reader.slice(log, partition_of(spec, draft)).id, draft.key, draft.value) for draft in drafts]
        job = Append(log, self._clock.now(), records)
        deadline = self._loop.call_later(timeout_s, self._too_late, job, timeout_s)
        self._waiting[job] = None
        self._admit()
        result = "unavailable"
        try:
            await job.future
            result = "ok"
        except TimeoutError as error:
            result = "timeout"
            raise LogUnavailable(str(error)) from None
        except asyncio.CancelledError:
            result = "timeout"  # the caller went away; what came of it is not known to anybody
            raise
        finally:
            if job not in self._waiting:
                deadline.cancel()
            if result != "ok":
                metrics.log_appends.labels(log, result).inc(len(drafts))
        self._taken[log].inc(len(drafts))
        self._durations[log].observe(self._clock.monotonic() - began)

    def _admit(self) -> None:
        """Hand the writer what waits, in order, as far as the bytes in flight allow; a single one always may."""
        while self._waiting:
            job = next(iter(self._waiting))
            if self._in_flight and self._in_flight + job.size > self._bytes_in_flight_max:
                metrics.backpressure_active.labels("log").set(1)
                return
            del self._waiting[job]
            self._under_way[job] = None
            self._in_flight += job.size
            self._store.put(job)
        metrics.backpressure_active.labels("log").set(0)

    def _too_late(self, job: Append, timeout_s: float) -> None:
        if job in self._waiting:
            self._expire(job, f"no room within {timeout_s} s ({self._in_flight} bytes in flight); nothing was written")
        elif not job.future.done():
            job.future.set_exception(
                TimeoutError(f"{self._store.path}: not durable within {timeout_s} s; it may still")
            )

    def _expire(self, job: Append, why: str) -> None:
        del self._waiting[job]
        job.done(None, LogUnavailable(f"{self._store.path}: {why}"))

    # From the writer's thread

    def _from_writer(
        self, rows: list[Row], outcomes: list[tuple[Job, object, Exception | None]], commit_s: float
    ) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(self._landed, rows, outcomes, commit_s)
            except RuntimeError:
                logger.warning("%s: the event loop was closed while records were written", self._store.path)

    def _landed(self, rows: list[Row], outcomes: list[tuple[Job, object, Exception | None]], commit_s: float) -> None:
        if commit_s:
            metrics.log_fsync_duration.observe(commit_s)
        self._reader.landed(rows)
        for job, result, error in outcomes:
            if isinstance(job, Append):
                self._in_flight -= job.size
                del self._under_way[job]
            job.done(result, error)
        if self._open:
            self._admit()

    # Stages, groups, readers

    async def own(self, stage: Stage, run: Callable[[Lease], Awaitable[None]]) -> Member:
        """Join the stage."""
        self._must_be_open()
        partitions = check_stage(stage, self._logs)

        def opener(item: Item) -> Opener:
            async def open_and_run() -> tuple[Held, Callable[[], Awaitable[None]]]:
                lease = await EmbeddedLease.open(self.desk, stage, item[1])
                return lease, partial(run, lease)

            return open_and_run

        group = self._group("stage", stage.name)
        member = Member(group, (stage.name,), opener)
        await group.join(member, {stage.name: partitions})
        return member

    async def follow(self, group: str, logs: Sequence[str], run: Callable[[Follow], Awaitable[None]]) -> Member:
        """Join the group."""
        self._must_be_open()
        for log in logs:
            if log not in self._logs:
                raise Misconfigured(f"group {group!r} follows {log!r}, which is no log of this engine")

        def opener(item: Item) -> Opener:
            async def open_and_run() -> tuple[Held, Callable[[], Awaitable[None]]]:
                follow = await EmbeddedFollow.open(self.desk, group, *item)
                return follow, partial(run, follow)

            return open_and_run

        sharing = self._group("group", group)
        member = Member(sharing, logs, opener)
        await sharing.join(member, {log: self._logs[log].partitions for log in logs})
        return member

    async def seize(self, stage: Stage, partition: int) -> EmbeddedLease:
        """Take a partition outside of the group, fencing who has it: for tools that repair a state by hand.

        The member that believes it owns the partition finds out with its next step. Raises `WrongIncarnation`,
        `LogUnavailable`.
        """
        self._must_be_open()
        check_stage(stage, self._logs)
        return await EmbeddedLease.open(self.desk, stage, partition)

    async def committed(self, group: str, log: str) -> list[tuple[int | None, str]]:
        """Return what a group committed for each partition of a log, with its text: for tools. Raises
        `LogUnavailable`, `Misconfigured`."""
        self._must_be_open()
        return await asyncio.to_thread(commits, self._store.folder, group, log)

    async def rebalance(self, name: str) -> None:
        """Revoke and grant a stage's or group's partitions anew, as if a member had come and gone."""
        for (_, group_name), group in self._groups.items():
            if group_name == name:
                await group.rebalance()

    async def tidy(self) -> None:
        """Look at every partition once for what retention and compaction may remove. Raises `LogUnavailable`."""
        self._must_be_open()
        await self._upkeep.round()

    async def check(self) -> list[str]:
        """Check the file's structure and return what is damaged. Done by itself, in the background, at each start."""
        self._must_be_open()
        return await self._upkeep.check()

    async def read(
        self, log: str, partition: int, start: int | None = None, *, tail: bool = False
    ) -> AsyncIterator[Entry]:
        """Read committed records. Raises `LogUnavailable`."""
        self._must_be_open()
        part = self._reader.slice(log, partition)
        offset = part.index.first if start is None else start
        end = part.index.next
        while tail or offset < end:
            self._must_be_open()
            entries, offset = await self._reader.read(part, offset, READ_RECORDS)
            for entry in entries:
                if tail or entry.offset < end:
                    yield entry
            if tail and offset >= part.index.next:
                await part.arrived.wait(TAIL_WAIT_S)

    async def ends(self, log: str) -> list[tuple[int, int]]:
        """Return, for each partition, the first kept offset and the next one."""
        self._must_be_open()
        return [(part.index.first, part.index.next) for part in self._reader.of(log)]

    def _must_be_open(self) -> None:
        if not self._open:
            raise LogUnavailable(f"{self._store.path}: the log is not open")

    def _group(self, kind: str, name: str) -> Group:
        group = self._groups.get((kind, name))
        if group is None:
            group = self._groups[kind, name] = Group(self._clock, self._rng)
        return group

    # Loading, in a thread, before anything else runs

    def _load(self) -> list[Slice]:
        """Open the file, create or check the logs, rebuild the index, start the writer."""
        self._store.probe()
        try:
            db = self._store.open()
            db.execute("BEGIN IMMEDIATE")
            for spec in self._logs.values():
                self._create_or_check(db, spec)
            db.execute("COMMIT")
            return self._index(db)
        except (sqlite3.Error, UnicodeError) as error:
            raise LogUnavailable(f"{self._store.path}: cannot be opened: {error}") from error

    def _create_or_check(self, db: sqlite3.Connection, spec: LogSpec) -> None:
        row = db.execute("SELECT incarnation, partitions FROM logs WHERE name = ?", (spec.name,)).fetchone()
        if row is None:
            incarnation = self._rng.randbytes(16).hex()
            db.execute("INSERT INTO logs VALUES (?, ?, ?)", (spec.name, incarnation, spec.partitions))
            db.executemany(
                "INSERT INTO places (log, partition, next) VALUES (?, ?, 0)",
                [(spec.name, partition) for partition in range(spec.partitions)],
            )
        else:
            incarnation, partitions = row
            if partitions != spec.partitions:
                raise Misconfigured(
                    f"{self._store.path}: log {spec.name!r} was created with {partitions} partitions and is now "
                    f"configured with {spec.partitions}; the number is fixed, for the key decides the partition"
                )
        self._incarnations[spec.name] = incarnation

    def _index(self, db: sqlite3.Connection) -> list[Slice]:
        slices: dict[int, Slice] = {}
        others: set[int] = set()
        configured = [(spec.name, partition) for spec in self._logs.values() for partition in range(spec.partitions)]
        for place, log, partition, following in db.execute(
            "SELECT id, log, partition, next FROM places ORDER BY log, partition"
        ):
            if log not in self._logs:
                others.add(place)  # of a log that is not configured now
            else:
                slices[place] = Slice(place, log, partition, Index(following))
        if sorted(configured) != sorted((part.log, part.partition) for part in slices.values()):
            raise LogUnavailable(f"{self._store.path}: damaged: its table of partitions is not what was created")
        last_id = 0
        for row_id, place, offset, size, mark in db.execute(
            "SELECT id, place, offset, length(key) + ifnull(length(value), 0), "
            "CASE WHEN substr(key, 1, 1) = x'00' THEN key END FROM records ORDER BY id"
        ):
            last_id = row_id
            part = slices.get(place)
            if part is None:
                if place not in others:
                    logger.critical("%s: damaged record in row %d; it is left out", self._store.path, row_id)
                continue
            index = part.index
            if len(index) and offset < index.next:
                self._reader.report(part, offset, f"its offset is out of order (row {row_id})")
                continue
            index.add(offset, row_id, size)
            if mark == POSITION:
                index.position_at = offset
            elif mark is not None and self._logs[part.log].kept == "journal":
                index.snapshot_at = offset
        for part in slices.values():
            part.since_compaction = len(part.index)
        self._store.begin(last_id + 1, {part.id: part.index.next for part in slices.values()})
        return list(slices.values())
