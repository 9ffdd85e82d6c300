"""Steps on Kafka: one transactional producer for each leased partition, and the restore of what was committed.

Starting a producer with the partition's transactional id fences the predecessor and settles what it had open. A step
is one transaction over derived records, state and position. What is in doubt is not repaired: the lease is lost, and
the next one believes what is committed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import InvalidProducerEpoch, ProducerFenced

from broker import metrics
from broker.errors import LeaseLost, LeaseRevoked, LogUnavailable, OutOfTurn, WrongIncarnation
from broker.log.contract import SNAPSHOT, Entry, LeaseState, Restored, Stage, Step
from broker.log.kafka_connection import CLIENT_ERRORS, Reaper, producer_of, topic_name
from broker.log.kafka_seat import Cluster, Fetching, Seat
from broker.log.partitioning import partition_for
from broker.log.position import (
    NOWHERE,
    POSITION,
    Position,
    advanced,
    check_incarnations,
    check_step,
    decode_position,
    encode_position,
)

log = logging.getLogger(__name__)

COMMIT_S_MAX = 8.0
"""A commit has no deadline of its own in the client. Later than this it is in doubt."""

FENCE_S_MAX = 30.0
"""A predecessor's open step is settled first: at most its transaction timeout and the broker's look-round."""

RESTORE_S_MAX = 60.0
"""17 M small records at the measured 280,000 a second; a partition's state is a tenth of that."""

APART_S = 0.02
"""Between the end of a step and the next: back to back the coordinator still writes the last one's marks and answers
ConcurrentTransactions; measured 34 ms a step, 20 ms apart 7 ms."""

PACE_S_MIN = 0.025
PACE_LEASED_S = 0.004
"""From step to step at least this for each partition leased: what costs is the number of transactions."""

BATCH_BYTES_MAX = 768 * 1024
"""A second batch on a partition waits for the first: most steps fit one."""

STRETCH_OFFSETS = 2_000
STRETCH_GROWTH = 4
"""A journal is read backwards in stretches that grow: its snapshot is half a minute old at most, but how many records
that is depends on the traffic."""


class Lane(NamedTuple):
    """Records of a step for one partition of one topic, in order."""

    topic: str
    partition: int
    records: list[tuple[bytes, bytes | None]]


class Committed(NamedTuple):
    """What a restore found."""

    records: Sequence[tuple[bytes, bytes]]
    position: Position


class KafkaLease(Seat):
    """The right to act for one partition of a stage, on Kafka. See `Lease`."""

    def __init__(
        self,
        cluster: Cluster,
        group: Fetching,
        stage: Stage,
        partition: int,
        producer: AIOKafkaProducer,
        begun_at: float,
    ) -> None:
        """Made by `open_lease`, with a producer that has fenced the predecessor."""
        super().__init__(cluster, group, f"{stage.name}-{partition}", stage.inputs, partition)
        self.tenure.proven_at = begun_at
        self._stage = stage
        self._producer = producer
        self._incarnations: Mapping[str, str] = {}
        self._found = Committed((), NOWHERE)
        self._position = NOWHERE
        self._committing = False
        self._ended_at = 0.0
        self._watch = asyncio.get_running_loop().create_task(self._let_go_when_lost(cluster.reaper))

    def watermarks(self) -> dict[str, int]:
        """How far the newest step has read."""
        return {name: offset for name, offset in self._position.offsets.items() if name in self.logs}

    async def load(self) -> None:
        """Read back what was committed. Raises `WrongIncarnation`, `LogUnavailable`."""
        cluster = self._cluster
        self._incarnations = await cluster.topics.incarnations()
        name, partition = self._stage.state, self._partition
        first, end = await cluster.reading.edges(name, partition)
        if cluster.specs[name].kept == "journal":
            self._found = await self._load_journal(first, end)
        else:
            self._found = await self._load_last(first, end)
        self._position = self._found.position
        check_incarnations(self.tenure.name, self._position, self._incarnations)
        offsets = self._position.offsets
        for one in self.logs:
            self.next[one] = offsets[one] if one in offsets else (await cluster.reading.edges(one, partition))[0]

    async def restore(self) -> Restored:
        """Return what was committed."""
        found, self._found = self._found, Committed((), NOWHERE)
        self.begin()
        return Restored(found.records, self._position.offsets, self._position.memo)

    async def fetch(self, records_max: int, timeout_s: float, logs: Collection[str] | None = None) -> list[Entry]:
        """Return the next records, not sooner after the last step than the pace."""
        return await self._next(records_max, timeout_s, logs)

    async def commit(self, step: Step) -> None:
        """Make a step durable and visible, whole."""
        self.tenure.raise_unless_committing()
        check_step(self._stage, step, self._cluster.specs)
        if self._committing:
            raise OutOfTurn(f"{self.tenure.name}: a step was committed while another was under way")
        position = advanced(self._position, step, self._incarnations)
        lanes = self._lanes(step, position)
        clock = self._cluster.clock
        result = "aborted"
        self._committing = True
        try:
            with self.tenure.working():
                await asyncio.sleep(max(0.0, self._ended_at + APART_S - clock.monotonic()))
                self.tenure.raise_unless_committing()
                begun_at = clock.monotonic()
                async with asyncio.timeout(COMMIT_S_MAX):
                    await self._transact(lanes)
            result = "committed"
        except LeaseRevoked:
            result = "revoked"
            raise
        except (ProducerFenced, InvalidProducerEpoch) as error:
            result = "fenced"
            metrics.lease_changes.labels("fenced").inc()
            self.tenure.lose(f"fenced by a successor, or the step took too long; it was refused: {error!r}")
            raise LeaseLost(f"{self.tenure.name}: {self.tenure.lost_because}") from error
        except CLIENT_ERRORS as error:
            self.tenure.lose(f"a step is in doubt: {error!r}")
            raise LeaseLost(f"{self.tenure.name}: {self.tenure.lost_because}") from error
        finally:
            self._committing = False
            metrics.steps.labels(self._stage.name, result).inc()
            if result == "aborted":  # cancelled, or we are wrong: it may still commit
                self.tenure.lose("a step was given up and is in doubt")
        self.tenure.prove(begun_at)
        self._ended_at = clock.monotonic()
        self._rests_until = self._ended_at + max(PACE_S_MIN, PACE_LEASED_S * self._group.leased())
        metrics.step_duration.labels(self._stage.name).observe(self._ended_at - begun_at)
        metrics.step_records.labels(self._stage.name).observe(moved(self._position, position))
        self._position = position

    async def _transact(self, lanes: Sequence[Lane]) -> None:
        """One transaction. Every batch's answer is awaited before the commit: the client's commit ignores a refused
        batch, and readers would see half a step."""
        producer = self._producer
        await producer.begin_transaction()
        now = self._cluster.clock.now()
        rest = [(lane, 0) for lane in lanes]
        sent: list[asyncio.Future[Any]] = []
        while rest:
            left = []
            for lane, done in rest:
                batch = producer.create_batch()
                end = len(lane.records)
                for index in range(done, end):
                    key, value = lane.records[index]
                    if batch.append(timestamp=now, key=key, value=value) is None:
                        left.append((lane, index))
                        break
                batch.close()
                sent.append(await producer.send_batch(batch, lane.topic, partition=lane.partition))
            rest = left
        await asyncio.gather(*sent)
        await producer.commit_transaction()

    def _lanes(self, step: Step, position: Position) -> list[Lane]:
        """The step's records by partition. The position comes last, and always: an empty transaction sends nothing
        and succeeds even when fenced."""
        prefix, specs = self._cluster.settings.prefix, self._cluster.specs
        lanes: dict[tuple[str, int], Lane] = {}
        for name, (key, value, named) in step.derived:
            partition = partition_for(key, specs[name].partitions) if named is None else named
            lane = lanes.get((name, partition))
            if lane is None:
                lane = lanes[name, partition] = Lane(topic_name(prefix, name), partition, [])
            lane.records.append((key, value))
        state = lanes.setdefault(
            (self._stage.state, self._partition),
            Lane(topic_name(prefix, self._stage.state), self._partition, []),
        )
        state.records.extend(step.changes)
        state.records.append((POSITION, encode_position(position)))
        return list(lanes.values())

    async def _load_last(self, first: int, end: int) -> Committed:
        last: dict[bytes, bytes] = {}
        async for records in self._cluster.reading.stretch(self._stage.state, self._partition, first, end):
            for record in records:
                if record.value is None:
                    last.pop(record.key, None)
                else:
                    last[record.key] = record.value
        position = self._decode(last.pop(POSITION, None))
        return Committed(list(last.items()), position)

    async def _load_journal(self, first: int, end: int) -> Committed:
        """Read stretches, each before the last and larger, until one holds a snapshot."""
        stretches: list[list[tuple[bytes, bytes]]] = []
        position: bytes | None = None
        upto, size = end, STRETCH_OFFSETS
        while upto > first:
            start = max(first, upto - size)
            found: list[tuple[bytes, bytes]] = []
            newest: bytes | None = None
            has_snapshot = False
            async for records in self._cluster.reading.stretch(self._stage.state, self._partition, start, upto):
                for record in records:
                    if record.key == POSITION:
                        newest = record.value
                        continue
                    if record.key == SNAPSHOT:
                        found.clear()
                        has_snapshot = True
                    found.append((record.key, record.value or b""))
            stretches.append(found)
            position = newest if position is None else position
            if has_snapshot:
                break
            upto, size = start, size * STRETCH_GROWTH
        if position is None and first > 0:
            raise WrongIncarnation(
                f"{self.tenure.name}: the journal {self._stage.state!r} begins at offset {first} and has no position, "
                "which its retention has eaten. Where to go on reading is an operator's decision"
            )
        return Committed([record for found in reversed(stretches) for record in found], self._decode(position))

    def _decode(self, value: bytes | None) -> Position:
        if value is None:
            return NOWHERE
        try:
            return decode_position(value)
        except msgspec.DecodeError as error:
            raise LogUnavailable(f"{self.tenure.name}: the position cannot be read: {error}") from error

    async def _let_go_when_lost(self, reaper: Reaper) -> None:
        """However the lease ends, its producer is let go."""
        try:
            while not self.tenure.stands(LeaseState.LOST):
                await self.tenure.changed.wait(60.0)
        finally:
            self.detach()
            reaper.producer(self._producer)


async def open_lease(cluster: Cluster, group: Fetching, stage: Stage, partition: int) -> KafkaLease:
    """Fence whoever owned the partition and read back what was committed. Raises `WrongIncarnation`,
    `LogUnavailable`."""
    begun_at = cluster.clock.monotonic()
    producer = producer_of(
        cluster.connect,
        transactional_id=f"{cluster.settings.prefix}{stage.name}-{partition}",
        transaction_timeout_ms=cluster.settings.transaction_timeout_ms,
        max_batch_size=BATCH_BYTES_MAX,
    )
    try:
        async with asyncio.timeout(FENCE_S_MAX):
            await producer.start()
    except BaseException as error:
        cluster.reaper.producer(producer, 0.5)
        if isinstance(error, CLIENT_ERRORS):
            raise LogUnavailable(f"{stage.name}-{partition}: the predecessor was not fenced: {error!r}") from error
        raise
    lease = KafkaLease(cluster, group, stage, partition, producer, begun_at)
    try:
        async with asyncio.timeout(RESTORE_S_MAX):
            await lease.load()
    except BaseException as error:
        lease.tenure.lose("it was not restored")
        if isinstance(error, TimeoutError):
            raise LogUnavailable(f"{lease.tenure.name}: not restored within {RESTORE_S_MAX:.0f} s") from error
        raise
    metrics.lease_restored_records.labels(stage.name).inc(len(lease._found.records))
    metrics.lease_restore_duration.labels(stage.name).observe(cluster.clock.monotonic() - begun_at)
    return lease


def moved(before: Position, after: Position) -> int:
    """How many offsets a step went on, over all inputs."""
    offsets = before.offsets
    return sum(max(0, offset - offsets.get(name, 0)) for name, offset in after.offsets.items())
