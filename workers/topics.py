"""Messages onto topics of the brand's own, on a cluster that may be another than ours: the publisher of `kafka` sinks.

One idempotent producer for each cluster, acks=all. A message whose answer did not come in time may land all the same,
and comes again: at least once, with its id in a header. Whatever fails replaces the producer, so that nothing piles up
in a client that never gives an idempotent batch up; the next one starts when the last is gone, or what the old one
still had could land behind what came after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidMessageError,
    InvalidTopicError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from broker.log.kafka_connection import CLIENT_ERRORS, discard_producer, producer_of, quieten
from schemas.settings import SinkSettings
from workers.poster import PostFailed

REQUEST_BYTES_MAX = 4_500_000
"""Above the largest `message_bytes_max`, so that its bound is the one that is met."""

OVERHEAD_BYTES = 100
"""Of a message in its batch: lengths, offset and time deltas, the batch's own head."""

CLUSTERS_MAX = 16
"""Producers kept. A configuration that is changed again and again must not gather them."""

LET_GO_S_MAX = 1.0
START_S_MAX = 10.0

BY_ITSELF = (MessageSizeTooLargeError, InvalidMessageError)
"""What is wrong with the message; everything else is wrong with the topic, the cluster or the way to it."""

THE_TOPIC = (UnknownTopicOrPartitionError, TopicAuthorizationFailedError, InvalidTopicError)

_Cluster = tuple[str, ...]


class Line:
    """The producer towards one cluster, made when it is first needed and made anew after a failure."""

    def __init__(self, connect: Mapping[str, Any]) -> None:
        self._connect = dict(connect)
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._going: asyncio.Task[None] | None = None

    async def get(self) -> AIOKafkaProducer:
        """Return a producer. Raises what the client does."""
        if self._producer is not None:
            return self._producer
        async with self._starting:
            if self._producer is None:
                if self._going is not None:
                    await asyncio.wait([self._going])
                self._producer = await self._start()
            return self._producer

    def replace(self, producer: AIOKafkaProducer) -> None:
        """Let this producer go, unless that was done already."""
        if self._producer is producer:
            self._producer = None
            self._going = asyncio.create_task(discard_producer(producer, LET_GO_S_MAX))

    async def close(self, timeout_s: float) -> None:
        """Let go of all there is."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await discard_producer(producer, timeout_s)
        if self._going is not None:
            await asyncio.wait([self._going], timeout=timeout_s + LET_GO_S_MAX)

    async def _start(self) -> AIOKafkaProducer:
        producer = producer_of(self._connect, max_request_size=REQUEST_BYTES_MAX)
        try:
            async with asyncio.timeout(START_S_MAX):
                await producer.start()
        except BaseException:
            self._going = asyncio.create_task(discard_producer(producer, LET_GO_S_MAX))
            raise
        return producer


class TopicPublisher:
    """A `Publisher` over aiokafka. Bounded by those who publish: each sink's `in_flight_max` messages at a time."""

    def __init__(self) -> None:
        quieten()
        self._lines: dict[_Cluster, Line] = {}
        self._closing: dict[asyncio.Task[None], None] = {}

    async def publish(
        self, sink: SinkSettings, connect: Mapping[str, Any], key: bytes, headers: Mapping[str, str], value: bytes
    ) -> None:
        """Return when the message is durable on the topic. Raises `PostFailed`."""
        named = [(name, text.encode()) for name, text in headers.items()]
        size = OVERHEAD_BYTES + len(key) + len(value) + sum(len(name) + len(text) for name, text in named)
        if size > sink.message_bytes_max:
            raise PostFailed("refused", f"{size} bytes, and message_bytes_max is {sink.message_bytes_max}")
        line = self._line(connect)
        producer: AIOKafkaProducer | None = None
        try:
            async with asyncio.timeout(sink.timeout_s):
                producer = await line.get()
                answer = await producer.send(sink.topic, value, key=key, headers=named)
                answer.add_done_callback(_hear)
                await asyncio.shield(answer)
        except TimeoutError:
            # Silence of a cluster says nothing about the message: it is the cluster's trouble.
            if producer is not None:
                line.replace(producer)
            raise PostFailed("connection", f"not durable within {sink.timeout_s:g} s") from None
        except BY_ITSELF as error:
            if producer is not None:
                line.replace(producer)  # the partition of a refused batch is wedged for this producer
            raise PostFailed("refused", type(error).__name__) from None
        except THE_TOPIC as error:
            raise PostFailed("connection", f"topic {sink.topic}: {type(error).__name__}") from None
        except CLIENT_ERRORS as error:
            if producer is not None:
                line.replace(producer)
            raise PostFailed("connection", type(error).__name__) from None

    async def stop(self, timeout_s: float = 2.0) -> None:
        """Close every producer; what is under way may still be sent, within the timeout."""
        lines, self._lines = list(self._lines.values()), {}
        await asyncio.gather(*(line.close(timeout_s) for line in lines), *self._closing)

    def _line(self, connect: Mapping[str, Any]) -> Line:
        """Return the line towards a cluster; beyond the bound the one that was not asked for longest is closed."""
        cluster = tuple(f"{name}={value}" for name, value in sorted(connect.items()) if name != "ssl_context")
        cluster += (str(id(connect.get("ssl_context"))),)
        line = self._lines.pop(cluster, None) or Line(connect)
        self._lines[cluster] = line
        while len(self._lines) > CLUSTERS_MAX:
            oldest = self._lines.pop(next(iter(self._lines)))
            task = asyncio.create_task(oldest.close(LET_GO_S_MAX))
            self._closing[task] = None
            task.add_done_callback(lambda done: self._closing.pop(done, None))
        return line


def _hear(answer: asyncio.Future[Any]) -> None:
    """Read what came of a message, also when nobody waits for it any more."""
    if not answer.cancelled():
        answer.exception()
