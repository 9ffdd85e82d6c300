"""Leases and followers of the embedded log: what a stage's coroutine holds, and the jobs it gives the writer.

The epoch of a lease stands in the database and is checked in the transaction of the step itself: whoever opens a
lease raises it, and from then on the predecessor's step is refused, whatever it still believes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager

from broker import metrics
from broker.clock import Clock
from broker.errors import LeaseLost, LogUnavailable, OutOfTurn
from broker.log.contract import Draft, Entry, LeaseState, LogSpec, Restored, Stage, Step
from broker.log.lease import Signal, Tenure, wait_any
from broker.log.partitioning import partition_for
from broker.log.position import (
    NOWHERE,
    POSITION,
    Position,
    advanced,
    check_incarnations,
    check_metadata,
    check_step,
    decode_position,
    encode_position,
)
from broker.log.reading import Reader, Slice
from broker.log.store import Job, Store, Transaction

COMMIT_S_MAX = 8.0
"""A commit that takes longer is in doubt: the lease is lost, and what was committed is read back. As on Kafka."""

RESTORE_RECORDS = 1_024
"""Records a read while a lease is restored; between two reads the event loop does other things."""

RECORD_OVERHEAD_BYTES = 64
"""A row's share of the database, counted against the bytes in flight."""


class Pending(Job):
    """A job somebody waits for, at most for a time; what it was told stands in `future`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.future.add_done_callback(_retrieved)

    @property
    def size(self) -> int:
        """Bytes, for limits."""
        return self._size

    def apply(self, tx: Transaction) -> object:
        """Write nothing: only learn that everything before is durable."""
        return None

    def done(self, result: object, error: Exception | None) -> None:
        """Tell who waits, if it still does."""
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Fence(Pending):
    """Raise the epoch of a stage's partition; the result is the new one."""

    def __init__(self, stage: str, partition: int) -> None:
        super().__init__(RECORD_OVERHEAD_BYTES)
        self._owner = (stage, partition)

    def apply(self, tx: Transaction) -> object:
        """Write."""
        return tx.db.execute(
            "INSERT INTO owners VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET epoch = epoch + 1 RETURNING epoch",
            self._owner,
        ).fetchone()[0]


class StepJob(Pending):
    """A step, whole: refused when the epoch is no longer the lease's."""

    def __init__(
        self, stage: str, partition: int, epoch: int, at: int, records: Sequence[tuple[int, bytes, bytes | None]]
    ) -> None:
        super().__init__(sum(len(key) + len(value or b"") + RECORD_OVERHEAD_BYTES for _, key, value in records))
        self._owner = (stage, partition)
        self._epoch = epoch
        self._at = at
        self._records = records

    def apply(self, tx: Transaction) -> object:
        """Write, or raise `LeaseLost`."""
        row = tx.db.execute("SELECT epoch FROM owners WHERE stage = ? AND partition = ?", self._owner).fetchone()
        if row is None or row[0] != self._epoch:
            raise LeaseLost(f"{self._owner[0]}-{self._owner[1]}: fenced by a successor; the step was refused")
        for place, key, value in self._records:
            tx.insert(place, self._at, key, value)
        return None


class FenceFollower(Pending):
    """Raise the epoch of a group's partition; the result is (epoch, committed offset, its text)."""

    def __init__(self, group: str, place: int) -> None:
        super().__init__(RECORD_OVERHEAD_BYTES)
        self._owner = (group, place)

    def apply(self, tx: Transaction) -> object:
        """Write."""
        return tx.db.execute(
            "INSERT INTO followers VALUES (?, ?, 1, NULL, '') ON CONFLICT DO UPDATE SET epoch = epoch + 1 "
            "RETURNING epoch, offset, metadata",
            self._owner,
        ).fetchone()


class CommitJob(Pending):
    """A follower's offset and text: refused when the epoch is no longer its own."""

    def __init__(self, group: str, place: int, epoch: int, offset: int, metadata: str) -> None:
        super().__init__(RECORD_OVERHEAD_BYTES + 4 * len(metadata))
        self._values = (offset, metadata, group, place, epoch)

    def apply(self, tx: Transaction) -> object:
        """Write, or raise `LeaseLost`."""
        done = tx.db.execute(
            "UPDATE followers SET offset = ?, metadata = ? WHERE name = ? AND place = ? AND epoch = ?", self._values
        )
        if done.rowcount != 1:
            raise LeaseLost(f"{self._values[2]}: fenced by a successor; the commit was refused")
        return None


class Desk:
    """What leases share: the store, the readers, the engine's logs, and a bounded way to have something written."""

    def __init__(
        self, store: Store, reader: Reader, logs: Mapping[str, LogSpec], incarnations: Mapping[str, str], clock: Clock
    ) -> None:
        self.store = store
        self.reader = reader
        self.logs = logs
        self.incarnations = incarnations
        self.clock = clock
        self.closed = False

    async def write(self, job: Pending, timeout_s: float = COMMIT_S_MAX) -> object:
        """Have a job written. Raises its own error, or `LogUnavailable` when it is not known in time."""
        if self.closed:
            raise LogUnavailable(f"{self.store.path}: the log is closed")
        self.store.put(job)
        try:
            async with asyncio.timeout(timeout_s):
                return await job.future
        except TimeoutError:
            raise LogUnavailable(f"{self.store.path}: not written within {timeout_s:.0f} s") from None


class Reading:
    """The reading half of a lease: a cursor for each log, and records handed out once."""

    def __init__(self, desk: Desk, name: str, parts: Sequence[Slice], proven_at: float) -> None:
        self._desk = desk
        self._parts = {part.log: part for part in parts}
        self._cursors = dict.fromkeys(self._parts, 0)
        self._turn = 0
        self.tenure = Tenure(name, desk.clock, Signal())
        self.tenure.proven_at = proven_at
        self.restored = False

    @property
    def state(self) -> LeaseState:
        """What we may do now."""
        return self.tenure.state

    def working(self) -> AbstractContextManager[None]:
        """Keep a revocation waiting while something runs that is better finished."""
        return self.tenure.working()

    async def _next(self, records_max: int, timeout_s: float, logs: Collection[str] | None) -> list[Entry]:
        ends_at = self._desk.clock.monotonic() + timeout_s
        parts = [part for log, part in self._parts.items() if logs is None or log in logs]
        while True:
            self.tenure.raise_if_lost()
            if self.tenure.stands(LeaseState.HELD):
                taken = await self._take(parts, records_max)
                if taken:
                    return taken
            left_s = ends_at - self._desk.clock.monotonic()
            if left_s <= 0:
                return []
            if not self._behind(parts) or not self.tenure.stands(LeaseState.HELD):
                await wait_any([self.tenure.changed, *(part.arrived for part in parts)], left_s)

    def _behind(self, parts: Sequence[Slice]) -> bool:
        return any(part.index.next > self._cursors[part.log] for part in parts)

    async def _take(self, parts: Sequence[Slice], records_max: int) -> list[Entry]:
        """Take from each log its share of the records, the first being another each time."""
        behind = [part for part in parts if part.index.next > self._cursors[part.log]]
        taken: list[Entry] = []
        self._turn += 1
        for number in range(len(behind)):
            part = behind[(number + self._turn) % len(behind)]
            share = -(-(records_max - len(taken)) // (len(behind) - number))
            if share <= 0:
                break
            begin = self._cursors[part.log]
            try:
                entries, after = await self._desk.reader.read(part, begin, share)
            except LogUnavailable as error:
                if taken:
                    return taken
                self.tenure.lose(str(error))
                self.tenure.raise_if_lost()
            if not self.tenure.stands(LeaseState.HELD):
                return taken
            if self._cursors[part.log] == begin:  # nobody else has taken them meanwhile
                if begin < part.index.first and entries:
                    metrics.log_gap_records.labels(part.log).inc(entries[0].offset - begin)
                self._cursors[part.log] = after
                taken.extend(entries)
        return taken


class EmbeddedLease(Reading):
    """The right to act for one partition of a stage, on the embedded log."""

    def __init__(self, desk: Desk, stage: Stage, partition: int, epoch: int, position: Position, begun_at: float):
        parts = [desk.reader.slice(log, partition) for log in stage.inputs]
        super().__init__(desk, f"{stage.name}-{partition}", parts, begun_at)
        self._stage = stage
        self._partition = partition
        self._epoch = epoch
        self._position = position
        self._committing = False
        self._cursors.update({log: offset for log, offset in position.offsets.items() if log in self._cursors})

    @classmethod
    async def open(cls, desk: Desk, stage: Stage, partition: int) -> EmbeddedLease:
        """Fence whoever owned it, and learn the position. Raises `WrongIncarnation`, `LogUnavailable`."""
        begun_at = desk.clock.monotonic()
        epoch = await desk.write(Fence(stage.name, partition))
        part = desk.reader.slice(stage.state, partition)
        position = NOWHERE
        if part.index.position_at is not None:
            found, _ = await desk.reader.stored(part, part.index.position_at, 1)
            if not found or found[0][1].key != POSITION or found[0][1].value is None:
                raise LogUnavailable(f"{stage.name}-{partition}: the position in {stage.state!r} cannot be read")
            position = decode_position(found[0][1].value)
        check_incarnations(f"{stage.name}-{partition}", position, desk.incarnations)
        assert isinstance(epoch, int)
        return cls(desk, stage, partition, epoch, position, begun_at)

    @property
    def partition(self) -> int:
        """The partition."""
        return self._partition

    @property
    def proven_at(self) -> float:
        """When the newest thing was begun that only an owner succeeds in."""
        return self.tenure.proven_at

    async def restore(self) -> Restored:
        """Read back what was committed."""
        self.tenure.raise_if_lost()
        began = self._desk.clock.monotonic()
        part = self._desk.reader.slice(self._stage.state, self._partition)
        journal = self._desk.logs[self._stage.state].kept == "journal"
        last: dict[bytes, bytes] = {}
        records: list[tuple[bytes, bytes]] = []
        async with part.compacting:
            offset = (part.index.snapshot_at if journal else None) or part.index.first
            while offset < part.index.next:
                found, offset = await self._desk.reader.stored(part, offset, RESTORE_RECORDS)
                self.tenure.raise_if_lost()
                for _, record in found:
                    if record.key == POSITION:
                        continue
                    if journal:
                        records.append((record.key, record.value or b""))
                    elif record.value is None:
                        last.pop(record.key, None)
                    else:
                        last[record.key] = record.value
        if not journal:
            records = list(last.items())
        self.restored = True
        metrics.lease_restored_records.labels(self._stage.name).inc(len(records))
        metrics.lease_restore_duration.labels(self._stage.name).observe(self._desk.clock.monotonic() - began)
        return Restored(records, self._position.offsets, self._position.memo)

    async def fetch(self, records_max: int, timeout_s: float, logs: Collection[str] | None = None) -> list[Entry]:
        """Return the next records."""
        return await self._next(records_max, timeout_s, logs)

    async def commit(self, step: Step) -> None:
        """Make a step durable and visible, whole."""
        self.tenure.raise_unless_committing()
        check_step(self._stage, step, self._desk.logs)
        if self._committing:
            raise OutOfTurn(f"{self.tenure.name}: a step was committed while another was under way")
        position = advanced(self._position, step, self._desk.incarnations)
        job = StepJob(
            self._stage.name, self._partition, self._epoch, self._desk.clock.now(), self._rows(step, position)
        )
        begun_at = self._desk.clock.monotonic()
        self._committing = True
        result = "aborted"
        try:
            with self.tenure.working():
                await self._desk.write(job)
            result = "committed"
        except LeaseLost as error:
            result = "fenced"
            metrics.lease_changes.labels("fenced").inc()
            self.tenure.lose(str(error))
            raise
        except LogUnavailable as error:
            self.tenure.lose(f"a step is in doubt: {error}")
            raise LeaseLost(f"{self.tenure.name}: a step is in doubt: {error}") from error
        finally:
            self._committing = False
            metrics.steps.labels(self._stage.name, result).inc()
            if result == "aborted":
                self.tenure.lose("a step was given up and is in doubt")
        self.tenure.prove(begun_at)
        metrics.step_duration.labels(self._stage.name).observe(self._desk.clock.monotonic() - begun_at)
        metrics.step_records.labels(self._stage.name).observe(_moved(self._position, position))
        self._position = position

    def _rows(self, step: Step, position: Position) -> list[tuple[int, bytes, bytes | None]]:
        reader = self._desk.reader
        rows: list[tuple[int, bytes, bytes | None]] = []
        for log, draft in step.derived:
            rows.append((reader.slice(log, partition_of(self._desk.logs[log], draft)).id, draft.key, draft.value))
        state = reader.slice(self._stage.state, self._partition).id
        rows.extend((state, key, value) for key, value in step.changes)
        rows.append((state, POSITION, encode_position(position)))
        return rows


class EmbeddedFollow(Reading):
    """The right to read one partition of one log for a group, on the embedded log."""

    def __init__(self, desk: Desk, group: str, part: Slice, epoch: int, offset: int | None, metadata: str, at: float):
        super().__init__(desk, f"{group} of {part.log}-{part.partition}", [part], at)
        self._group = group
        self._part = part
        self._epoch = epoch
        self._offset = offset
        self._metadata = metadata
        if offset is not None:
            self._cursors[part.log] = offset

    @classmethod
    async def open(cls, desk: Desk, group: str, log: str, partition: int) -> EmbeddedFollow:
        """Fence whoever read it for the group. Raises `LogUnavailable`."""
        begun_at = desk.clock.monotonic()
        part = desk.reader.slice(log, partition)
        row = await desk.write(FenceFollower(group, part.id))
        assert isinstance(row, tuple)
        epoch, offset, metadata = row
        return cls(desk, group, part, epoch, offset, metadata, begun_at)

    @property
    def log(self) -> str:
        """The log's name."""
        return self._part.log

    @property
    def partition(self) -> int:
        """The partition."""
        return self._part.partition

    async def restore(self) -> tuple[int | None, str]:
        """Return the committed offset and its text."""
        self.tenure.raise_if_lost()
        self.restored = True
        return self._offset, self._metadata

    async def fetch(self, records_max: int, timeout_s: float) -> list[Entry]:
        """Return the next records."""
        return await self._next(records_max, timeout_s, None)

    async def commit(self, offset: int, metadata: str = "") -> None:
        """Commit the offset of the first record not done, with a text."""
        self.tenure.raise_unless_committing()
        check_metadata(self.tenure.name, metadata)
        begun_at = self._desk.clock.monotonic()
        result = "failed"
        try:
            with self.tenure.working():
                await self._desk.write(CommitJob(self._group, self._part.id, self._epoch, offset, metadata))
            result = "ok"
        except LeaseLost as error:
            result = "fenced"
            self.tenure.lose(str(error))
            raise
        finally:
            metrics.log_commits.labels(self._part.log, result).inc()
        self.tenure.prove(begun_at)


def partition_of(spec: LogSpec, draft: Draft) -> int:
    """Return the partition a draft goes to."""
    return draft.partition if draft.partition is not None else partition_for(draft.key, spec.partitions)


def _moved(before: Position, after: Position) -> int:
    offsets = before.offsets
    return sum(max(0, offset - offsets.get(log, 0)) for log, offset in after.offsets.items())


def _retrieved(future: asyncio.Future[object]) -> None:
    if not future.cancelled():
        future.exception()
