"""Durable appends from outside a step: one idempotent producer for the process, one writer for each log.

    append ─▶ budget of bytes in flight ─▶ lane of its partition ─▶ writer: one batch a lane ─▶ producer ─▶ acks=all

A **lane** is one partition's queue. It has one batch under way at a time and gathers the next meanwhile, so order holds
through every retry and batches grow by themselves when the broker is slow. The client never gives an idempotent batch
up; a caller's deadline does: what is still in the lane is dropped then, what is under way may land later.

A producer that refused anything is replaced: after a refused batch its partition is wedged, and what the client says
after fencing, expiry or a dead sender differs from time to time. What was under way then is not known to its callers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch

from broker import metrics
from broker.clock import Clock
from broker.errors import LogUnavailable
from broker.log.contract import Draft, LogSpec
from broker.log.kafka_connection import CLIENT_ERRORS, Deadline, at_once, end_task, producer_of, topic_name
from broker.log.kafka_seat import Cluster
from broker.log.lease import Backoff, Signal
from broker.log.partitioning import partition_for
from broker.log.position import check_drafts

log = logging.getLogger(__name__)

BATCH_BYTES_MAX = 256 * 1024
"""What one lane hands over at a time. One larger record still goes alone, up to the request's limit."""

SMALL_BATCH_RECORDS = 10
SMALL_BATCH_BYTES = 16 * 1024
"""Batches of up to so much are compressed by snappy, larger ones by zstd, as the producer does: zstd costs 14 to 27 µs
before it has done anything, snappy 7. One webhook becomes 0.56 of itself instead of 0.43, ten 0.12 instead of 0.07; a
partition that gets few records at a time, the usual case with 24 of them, pays zstd's price for each."""

REQUEST_BYTES_MAX = 4_500_000
"""Above one record (4 MB), below the topic's limit (5 MiB): the client's check, should ours ever be wrong."""

RECORD_OVERHEAD_BYTES = 100
"""What a small record costs in memory beside its bytes, so that a flood of tiny ones is bounded too."""

RECORDS_MAX = 1_000_000_000
"""A producer is replaced after so many: its sequence numbers are 31 bits wide and the client wraps them wrongly."""

AGE_S_MAX = 24 * 3_600.0
"""And after so long, so that what a client accumulates never grows for weeks."""

REPLACE_FLUSH_S_MAX = 1.0
"""What is under way when a producer is replaced may still come through for so long."""

START_S_MAX = 10.0


class Call:
    """One `append`: how many of its drafts are not settled, and what became of them."""

    __slots__ = ("error", "given_up", "left", "settled")

    def __init__(self, drafts: int, settled: asyncio.Future[None]) -> None:
        self.left = drafts
        self.settled = settled
        self.error: Exception | None = None
        self.given_up = False

    def settle(self, error: Exception | None) -> None:
        """Note what became of one draft."""
        self.left -= 1
        if error is not None:
            self.error = error
        if self.left == 0 and not self.settled.done():
            self.settled.set_result(None)


class Queued(NamedTuple):
    """A record in a lane."""

    call: Call
    key: bytes
    value: bytes | None
    size: int


class Budget:
    """Bytes in flight. Who finds no room waits in line; one larger than the whole goes alone."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used = 0
        self.given_back = Signal()
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    def _fits(self, size: int) -> bool:
        return self.used == 0 or self.used + size <= self.bytes_max

    async def take(self, size: int, timeout_s: float) -> bool:
        """Take so many bytes; False when there was no room in time."""
        if not self._line and self._fits(size):
            self.used += size
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((size, future))
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except BaseException as error:
            if future.done() and not future.cancelled():
                self.give_back(size)
            else:
                self._line.remove((size, future))
                self._let_in()
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    def give_back(self, size: int) -> None:
        """Return bytes and let in who waits."""
        self.used -= size
        self._let_in()
        self.given_back.set()

    def _let_in(self) -> None:
        while self._line and self._fits(self._line[0][0]):
            size, future = self._line.popleft()
            if not future.done():
                self.used += size
                future.set_result(None)


class Lane:
    """One partition's queue, and whether a batch of it is under way."""

    __slots__ = ("busy", "in_line", "place", "queue")

    def __init__(self, place: TopicPartition) -> None:
        self.place = place
        self.queue: deque[Queued] = deque()
        self.busy = False
        self.in_line = False


class ProducerSupervisor:
    """Keeps one idempotent producer alive: starts it, replaces it when it failed or is old."""

    def __init__(self, cluster: Cluster) -> None:
        self._connect = cluster.connect
        self._clock = cluster.clock
        self._backoff = Backoff(cluster.rng)
        self._reaper = cluster.reaper
        self._producer: AIOKafkaProducer | None = None
        self._started_at = 0.0
        self._records = 0
        self._starting = asyncio.Lock()
        self._closed = False

    async def get(self) -> AIOKafkaProducer:
        """Return a producer that was alive a moment ago; waits, for ever if need be, for one that starts."""
        producer = self._producer
        if producer is not None and not self._is_spent(producer):
            return producer
        async with self._starting:
            while True:
                if self._closed:
                    raise LogUnavailable("the log is closed")
                if self._producer is not None:
                    reason = self._is_spent(self._producer)
                    if not reason:
                        return self._producer
                    self.replace(self._producer, reason)
                try:
                    self._producer = await self._start()
                except CLIENT_ERRORS as error:
                    log.warning("no Kafka producer could be started: %r", error)
                    await asyncio.sleep(self._backoff.next_s())
                else:
                    self._backoff.succeeded()

    def count(self, records: int) -> None:
        """Note records handed to it."""
        self._records += records

    def replace(self, producer: AIOKafkaProducer, reason: str) -> None:
        """Discard this producer, unless that was done already; the next `get` starts another."""
        if self._producer is producer:
            self._producer = None
            metrics.log_engine_restarts.labels("producer", reason).inc()
            log.warning("the Kafka producer for appends is replaced: %s", reason)
            self._reaper.producer(producer, REPLACE_FLUSH_S_MAX)

    async def close(self, timeout_s: float) -> None:
        """Let the producer go, sending what is under way within the timeout."""
        self._closed = True
        producer, self._producer = self._producer, None
        if producer is not None:
            await self._reaper.producer(producer, timeout_s)

    def _is_spent(self, producer: AIOKafkaProducer) -> str:
        sender = producer._sender.sender_task
        if sender is None or sender.done():
            return "sender_dead"
        if self._records >= RECORDS_MAX or self._clock.monotonic() - self._started_at >= AGE_S_MAX:
            return "age"
        return ""

    async def _start(self) -> AIOKafkaProducer:
        producer = producer_of(self._connect, max_batch_size=BATCH_BYTES_MAX, max_request_size=REQUEST_BYTES_MAX)
        try:
            async with asyncio.timeout(START_S_MAX):
                await producer.start()
        except BaseException:
            self._reaper.producer(producer)
            raise
        self._started_at = self._clock.monotonic()
        self._records = 0
        return producer


class LogWriter:
    """The lanes of one log, and the task that turns them into batches."""

    def __init__(self, spec: LogSpec, topic: str, producers: ProducerSupervisor, budget: Budget, clock: Clock) -> None:
        self._spec = spec
        self._topic = topic
        self._producers = producers
        self._budget = budget
        self._clock = clock
        self._lanes = [Lane(TopicPartition(topic, partition)) for partition in range(spec.partitions)]
        self._line: deque[Lane] = deque()
        self._wake = Signal()
        self._closed = False
        self._task = asyncio.get_running_loop().create_task(self._write(), name=f"append {spec.name}")

    def put(self, call: Call, drafts: Sequence[Draft]) -> None:
        """Queue the drafts of a call, in order."""
        partitions = self._spec.partitions
        for key, value, named in drafts:
            lane = self._lanes[partition_for(key, partitions) if named is None else named]
            size = len(key) + (0 if value is None else len(value)) + RECORD_OVERHEAD_BYTES
            lane.queue.append(Queued(call, key, value, size))
            self._ready(lane)

    def _ready(self, lane: Lane) -> None:
        if not lane.busy and not lane.in_line and lane.queue:
            lane.in_line = True
            self._line.append(lane)
            self._wake.set()

    async def _write(self) -> None:
        while True:
            while self._line:
                lane = self._line.popleft()
                lane.in_line = False
                try:
                    await self._send(lane)
                except LogUnavailable:
                    return  # closed
            await self._wake.wait(60.0)

    async def _send(self, lane: Lane) -> None:
        """Hand one batch of a lane to the client."""
        producer = await self._producers.get()
        batch = _small_batch() if _is_small(lane.queue) else producer.create_batch()
        taken = self._fill(batch, lane.queue)
        if not taken:
            return
        lane.busy = True
        try:
            future = at_once(producer, batch, lane.place)
            if future is None:
                future = await producer.send_batch(batch, lane.place.topic, partition=lane.place.partition)
        except asyncio.CancelledError:
            self._settle(lane, taken, LogUnavailable(f"{self._spec.name!r}: the log was closed"))
            raise
        except Exception as error:  # whatever the client can think of: it is replaced and the callers told
            self._producers.replace(producer, type(error).__name__)
            self._settle(lane, taken, error)
            return
        self._producers.count(len(taken))
        future.add_done_callback(lambda done: self._came_back(producer, lane, taken, done))

    def _fill(self, batch: Any, queue: deque[Queued]) -> list[Queued]:
        """Move records from a lane into a batch until it is full; leave out those nobody waits for any more."""
        now = self._clock.now()
        taken: list[Queued] = []
        dropped = 0
        while queue:
            queued = queue[0]
            if queued.call.given_up:
                dropped += queued.size
            elif batch.append(timestamp=now, key=queued.key, value=queued.value) is None:
                break
            else:
                taken.append(queued)
            queue.popleft()
        if dropped:
            self._budget.give_back(dropped)
        batch.close()
        return taken

    def _came_back(
        self, producer: AIOKafkaProducer, lane: Lane, taken: list[Queued], done: asyncio.Future[Any]
    ) -> None:
        error = asyncio.CancelledError("given up") if done.cancelled() else done.exception()
        if error is not None:
            self._producers.replace(producer, type(error).__name__)
        self._settle(lane, taken, error)

    def _settle(self, lane: Lane, taken: list[Queued], error: BaseException | None) -> None:
        told = None
        if error is not None:
            told = LogUnavailable(f"{self._spec.name!r}: the append is in doubt: {error!r}")
        size = 0
        for queued in taken:
            size += queued.size
            queued.call.settle(told)
        self._budget.give_back(size)
        lane.busy = False
        if not self._closed:
            self._ready(lane)

    async def close(self) -> None:
        """End the writer and tell every caller that is left."""
        self._closed = True
        await end_task(self._task, 0.5)
        gone = LogUnavailable(f"{self._spec.name!r}: the log was closed")
        for lane in self._lanes:
            while lane.queue:
                queued = lane.queue.popleft()
                self._budget.give_back(queued.size)
                queued.call.settle(gone)


def _is_small(queue: deque[Queued]) -> bool:
    return len(queue) <= SMALL_BATCH_RECORDS and sum(queued.size for queued in queue) <= SMALL_BATCH_BYTES


def _small_batch() -> BatchBuilder:
    return BatchBuilder(BATCH_BYTES_MAX, DefaultRecordBatch.CODEC_SNAPPY)


class Appends:
    """All durable appends of a process."""

    def __init__(self, cluster: Cluster, bytes_in_flight_max: int) -> None:
        """Made inside the running loop."""
        self._specs = cluster.specs
        self._clock = cluster.clock
        self._prefix = cluster.settings.prefix
        self._budget = Budget(bytes_in_flight_max)
        self._producers = ProducerSupervisor(cluster)
        self._writers: dict[str, LogWriter] = {}
        self._closed = False

    @property
    def bytes_in_flight(self) -> int:
        """Handed over by callers and not settled."""
        return self._budget.used

    async def start(self, timeout_s: float) -> None:
        """Start the producer, so that the first append does not wait for it. Raises `LogUnavailable`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._producers.get()
        except TimeoutError:
            raise LogUnavailable(f"Kafka took no producer within {timeout_s:.0f} s") from None

    async def append(self, name: str, drafts: Sequence[Draft], timeout_s: float) -> None:
        """See `LogEngine.append`."""
        spec = self._specs[name]
        check_drafts(name, drafts, spec.partitions)
        if not drafts:
            return
        if self._closed:
            raise LogUnavailable(f"{name!r}: the log is closed")
        began = self._clock.monotonic()
        deadline = Deadline(self._clock, timeout_s)
        size = sum(len(key) + len(value or b"") + RECORD_OVERHEAD_BYTES for key, value, _ in drafts)
        if not await self._budget.take(size, deadline.left_s()):
            metrics.log_appends.labels(name, "timeout").inc(len(drafts))
            raise LogUnavailable(
                f"{name!r}: {self._budget.used} bytes are in flight, at most {self._budget.bytes_max} may be, and none "
                f"of them came to rest within {timeout_s:g} s"
            )
        call = Call(len(drafts), asyncio.get_running_loop().create_future())
        self._writer(name).put(call, drafts)
        try:
            async with asyncio.timeout(deadline.left_s()):
                await asyncio.shield(call.settled)
        except TimeoutError:
            call.given_up = True
            metrics.log_appends.labels(name, "timeout").inc(len(drafts))
            raise LogUnavailable(f"{name!r}: not durable within {timeout_s:g} s; it may still land") from None
        if call.error is not None:
            metrics.log_appends.labels(name, "unavailable").inc(len(drafts))
            raise call.error
        metrics.log_appends.labels(name, "ok").inc(len(drafts))
        metrics.log_append_duration.labels(name).observe(self._clock.monotonic() - began)

    async def close(self, timeout_s: float) -> None:
        """Settle what is under way within the timeout, then tell the rest that it is in doubt."""
        self._closed = True
        deadline = Deadline(self._clock, timeout_s)
        while self._budget.used and await self._budget.given_back.wait(deadline.left_s()):
            pass
        for writer in self._writers.values():
            await writer.close()
        await self._producers.close(min(1.0, max(0.2, deadline.left_s())))

    def _writer(self, name: str) -> LogWriter:
        writer = self._writers.get(name)
        if writer is None:
            topic = topic_name(self._prefix, name)
            writer = LogWriter(self._specs[name], topic, self._producers, self._budget, self._clock)
            self._writers[name] = writer
        return writer
