"""Committed records by offset, without a group: for restores, tools, and logs that everybody reads.

Consumers are lent and given back: starting one costs five round trips, and a takeover restores many partitions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import ConsumerRecord, TopicPartition

from broker.clock import Clock
from broker.errors import LogUnavailable, WrongIncarnation
from broker.log.contract import Entry, LogSpec
from broker.log.kafka_connection import CLIENT_ERRORS, REQUEST_TIMEOUT_MS, Deadline, Reaper, topic_name

LENT_MAX = 4
"""Restores at once: each holds up to `FETCH_BYTES_MAX` of fetched records."""

IDLE_MAX = 4

FETCH_BYTES_MAX = 5 * 1024 * 1024
"""Of one partition in one fetch: at least the largest batch, else the client says it can never return it."""

RECORDS_AT_ONCE_MAX = 2_000
"""Decoded without giving the loop away: about 6 ms."""

WAIT_MS = 50
"""How long the broker may hold a fetch that finds nothing; the next question on that connection waits behind it."""

START_S_MAX = 15.0
SILENCE_S_MAX = 30.0
"""A reader of a stretch that is known to exist gives up after so long without progress: it waits behind an open step
of a dead owner for the transaction's timeout, at most."""


def consumer_for_reading(connect: Mapping[str, Any]) -> AIOKafkaConsumer:
    """Make a consumer without a group, for committed records."""
    return AIOKafkaConsumer(
        **connect,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="none",
        fetch_max_wait_ms=WAIT_MS,
        max_partition_fetch_bytes=FETCH_BYTES_MAX,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        retry_backoff_ms=50,
    )


class Reading:
    """Reads stretches of partitions, and says where they begin and end."""

    def __init__(
        self, prefix: str, specs: Mapping[str, LogSpec], connect: Mapping[str, Any], clock: Clock, reaper: Reaper
    ) -> None:
        """Made inside the running loop."""
        self._prefix = prefix
        self._specs = specs
        self._connect = connect
        self._clock = clock
        self._reaper = reaper
        self._idle: list[AIOKafkaConsumer] = []
        self._lent = asyncio.Semaphore(LENT_MAX)
        self._closed = False

    @asynccontextmanager
    async def _consumer(self) -> AsyncIterator[AIOKafkaConsumer]:
        """Lend a consumer. Client errors become `LogUnavailable` and cost the consumer its place."""
        if self._closed:
            raise LogUnavailable("the log is closed")
        consumer = self._idle.pop() if self._idle else consumer_for_reading(self._connect)
        sound = False
        try:
            if consumer._fetcher is None:
                async with asyncio.timeout(START_S_MAX):
                    await consumer.start()
            yield consumer
            sound = True
        except CLIENT_ERRORS as error:
            raise LogUnavailable(f"Kafka could not be read: {error!r}") from error
        finally:
            if sound and len(self._idle) < IDLE_MAX and not self._closed:
                consumer.pause(*consumer.assignment())
                self._idle.append(consumer)
            else:
                self._reaper.consumer(consumer, 0.5)

    async def ends(self, name: str) -> list[tuple[int, int]]:
        """For each partition the first kept offset and the end of what is committed. Raises `LogUnavailable`."""
        topic = topic_name(self._prefix, name)
        places = [TopicPartition(topic, partition) for partition in range(self._specs[name].partitions)]
        async with self._lent, self._consumer() as consumer, asyncio.timeout(START_S_MAX):
            first = await consumer.beginning_offsets(places)
            end = await consumer.end_offsets(places)
        return [(first[place], end[place]) for place in places]

    async def edges(self, name: str, partition: int) -> tuple[int, int]:
        """First kept offset and committed end of one partition."""
        place = TopicPartition(topic_name(self._prefix, name), partition)
        async with self._lent, self._consumer() as consumer, asyncio.timeout(START_S_MAX):
            first = await consumer.beginning_offsets([place])
            end = await consumer.end_offsets([place])
        return first[place], end[place]

    async def stretch(self, name: str, partition: int, start: int, end: int) -> AsyncIterator[list[ConsumerRecord]]:
        """Yield the committed records of [start, end), in pieces. Raises `LogUnavailable`.

        Offsets in it may be missing (compacted, aborted, the log's own marks): it ends by position, not by count.
        """
        if start >= end:
            return
        place = TopicPartition(topic_name(self._prefix, name), partition)
        async with self._lent, self._consumer() as consumer:
            consumer.assign([place])
            consumer.seek(place, start)
            consumer.resume(place)
            silent = Deadline(self._clock, SILENCE_S_MAX)
            position = start
            while position < end:
                fetched = await consumer.getmany(place, timeout_ms=WAIT_MS, max_records=RECORDS_AT_ONCE_MAX)
                records = fetched.get(place, [])
                reached = await consumer.position(place)
                if reached > position:
                    silent = Deadline(self._clock, SILENCE_S_MAX)
                    position = reached
                elif silent.left_s() == 0:
                    raise LogUnavailable(
                        f"{name!r} partition {partition}: no progress at offset {position} of {end} for "
                        f"{SILENCE_S_MAX:.0f} s"
                    )
                if records and records[-1].offset >= end:
                    records = [record for record in records if record.offset < end]
                if records:
                    yield records
                await asyncio.sleep(0)

    async def read(self, name: str, partition: int, start: int | None, *, tail: bool) -> AsyncIterator[Entry]:
        """See `LogEngine.read`."""
        first, end = await self.edges(name, partition)
        at = first if start is None else max(start, first)
        if not tail:
            async for records in self.stretch(name, partition, at, end):
                for record in records:
                    yield entry(name, record)
            return
        place = TopicPartition(topic_name(self._prefix, name), partition)
        async with self._consumer() as consumer:  # for ever: not one of the few that restores share
            consumer.assign([place])
            consumer.seek(place, at)
            consumer.resume(place)
            while not self._closed:
                fetched = await consumer.getmany(place, timeout_ms=1_000, max_records=RECORDS_AT_ONCE_MAX)
                for record in fetched.get(place, []):
                    yield entry(name, record)
        raise LogUnavailable(f"{name!r}: the log was closed")

    async def close(self) -> None:
        """Let the idle ones go; who reads still, ends at their next record."""
        self._closed = True
        while self._idle:
            self._reaper.consumer(self._idle.pop(), 0.5)


def entry(name: str, record: ConsumerRecord) -> Entry:
    """Return a record in our terms. A deleted value is empty bytes: `Entry` knows no None."""
    return Entry(name, record.partition, record.offset, record.key or b"", record.value or b"", record.timestamp)


def check_within(where: str, position: int, first: int, end: int) -> int:
    """Return how many offsets were lost to retention before a position. Raises `WrongIncarnation` when the log ends
    before it: what was committed is gone, and reading on would repeat or miss records without a word."""
    if position > end:
        raise WrongIncarnation(
            f"{where}: the position is offset {position}, but the log ends at {end}: it was cut off. Nothing is read "
            "until an operator has decided where to go on"
        )
    return max(0, first - position)
