"""How our Kafka clients connect, and how they are let go: with a bound, whatever state they are in.

The client's own `stop()` hangs while brokers are down, and what it leaves behind keeps running. So each object is
stopped politely for a moment, then its tasks are cancelled and its sockets closed. That reaches into the client's
insides; every such place is in this module and in `kafka_group`, and the client's version is locked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, ProducerClosed

from broker.clock import Clock
from broker.errors import Misconfigured
from broker.secrets import Secret
from schemas.settings import KafkaAccess

CLIENT_ERRORS = (KafkaError, OSError, TimeoutError, AssertionError)
"""What the client raises when something is wrong outside of us. AssertionError: what it says after a fatal error."""

SAME_LINE_S = 10.0
"""A line of the client's is let through this often; with brokers down it writes thousands a second."""

TEMPLATES_MAX = 500
"""Different lines remembered. The client has about 150."""

REQUEST_TIMEOUT_MS = 5_000
"""Of produce and metadata requests. Not of a joining consumer: a join is answered when the whole group has joined."""


def connection(settings: KafkaAccess, password: Secret | None, where: str = "log.kafka") -> dict[str, Any]:
    """Return what every client object is given. Raises `Misconfigured` when files or names do not fit; `where` is the
    settings' path."""
    made: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in settings.bootstrap_servers.split(",") if server.strip()],
        "security_protocol": settings.security_protocol,
    }
    if not made["bootstrap_servers"]:
        raise Misconfigured(f"{where}.bootstrap_servers: is empty; it must name at least one host:port")
    if settings.security_protocol in ("SSL", "SASL_SSL"):
        try:
            context = ssl.create_default_context(cafile=settings.ca_file or None)
            if settings.cert_file:
                context.load_cert_chain(settings.cert_file, settings.key_file or None)
        except (OSError, ssl.SSLError) as error:
            raise Misconfigured(f"{where}: the TLS files cannot be used: {error}") from None
        made["ssl_context"] = context
    if settings.security_protocol.startswith("SASL"):
        if not settings.sasl_mechanism or not settings.sasl_username or password is None:
            raise Misconfigured(f"{where}: SASL needs sasl_mechanism, sasl_username and sasl_password")
        made["sasl_mechanism"] = settings.sasl_mechanism
        made["sasl_plain_username"] = settings.sasl_username
        made["sasl_plain_password"] = password.reveal()
    return made


class ClientLines(logging.Handler):
    """Passes the client's log lines on, each kind at most once in `SAME_LINE_S`, saying how many were left out."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._seen: dict[tuple[str, object], tuple[float, int]] = {}
        self._to = logging.getLogger("broker.log.kafka.client")

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on or count. The kind of a line is its template: the arguments are hosts, partitions, errors."""
        kind = (record.name, record.msg)
        last_at, left_out = self._seen.get(kind, (-SAME_LINE_S, 0))
        if record.created - last_at < SAME_LINE_S:
            self._seen[kind] = (last_at, left_out + 1)
            return
        if len(self._seen) >= TEMPLATES_MAX:
            self._seen.clear()
        self._seen[kind] = (record.created, 0)
        # The client calls half of a normal rebalance a warning and a lost broker an error: both are ours to judge.
        level = min(record.levelno, logging.WARNING)
        if self._to.isEnabledFor(level):
            suffix = f" ({left_out} like it left out)" if left_out else ""
            self._to.log(level, "%s: %s%s", record.name, record.getMessage(), suffix)


def quieten() -> None:
    """Put `ClientLines` between the client's loggers and everybody else's handlers. Once for each process."""
    client = logging.getLogger("aiokafka")
    if not any(isinstance(handler, ClientLines) for handler in client.handlers):
        client.addHandler(ClientLines())
        client.propagate = False


async def end_task(task: asyncio.Task[Any] | None, timeout_s: float = 1.0) -> bool:
    """Cancel a task until it is done, again and again: some of the client's wait for others when cancelled, and the
    next cancellation reaches those. Returns whether it ended."""
    if task is None:
        return True
    for _ in range(20):
        if task.done():
            break
        task.cancel()
        await asyncio.wait({task}, timeout=timeout_s / 20)
    if task.done() and not task.cancelled():
        task.exception()  # retrieved: nobody else will
    return task.done()


async def _politely(stop: Callable[[], Awaitable[None]], timeout_s: float) -> bool:
    """Whether `stop` came to its end within the time; it is cancelled if not."""

    async def stopping() -> None:
        await stop()

    task = asyncio.ensure_future(stopping())
    try:
        await asyncio.wait({task}, timeout=timeout_s)
    finally:
        ended = task.done()
        await end_task(task, 0.2)
    return ended and not task.cancelled() and task.exception() is None


def producer_of(connect: Mapping[str, Any], **differing: Any) -> AIOKafkaProducer:
    """Make a producer, not started, as all of ours are: idempotent, acks=all, no lingering (whoever appends batches).
    `connect`: see `connection`; `differing`: what this one has beside, sizes or a transactional id."""
    return AIOKafkaProducer(
        **connect,
        acks="all",
        enable_idempotence=True,
        compression_type="zstd",
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        retry_backoff_ms=50,
        linger_ms=0,
        **differing,
    )


def at_once(producer: AIOKafkaProducer, batch: Any, place: TopicPartition) -> asyncio.Future[Any] | None:
    """Do what `send_batch` does when nothing is in its way; None when something is, and it has to be awaited.

    It makes two sets of all of a topic's partitions, a coroutine and a second future for each batch, which for a batch
    of one or two records is a fifth of their price. Not for a producer with transactions.
    """
    accumulator = producer._message_accumulator
    if (
        producer._closed
        or accumulator._closed
        or accumulator._exception is not None
        or accumulator._batches.get(place)
        or place.topic not in producer.client.cluster._partitions
    ):
        return None
    future: asyncio.Future[Any] = accumulator._append_batch(batch, place).future
    return future


async def discard_producer(producer: AIOKafkaProducer, timeout_s: float = 1.0) -> None:
    """Let a producer go within about twice the timeout. What it has not sent is given up. Never raises."""
    _hear_out(producer)
    with contextlib.suppress(*CLIENT_ERRORS):
        if not await _politely(producer.stop, timeout_s):
            producer._closed = True
            await end_task(producer._sender.sender_task, timeout_s / 2)
            # Ends the flush that a cancelled stop leaves behind; whoever sent the batches reads their errors.
            producer._message_accumulator.fail_all(ProducerClosed())
            await _politely(producer.client.close, timeout_s / 2)
    _hear_out(producer)


def _hear_out(producer: AIOKafkaProducer) -> None:
    """Read the errors that a failed producer leaves in futures of its own, which nobody can wait for."""
    waiting = [] if producer._txn_manager is None else [producer._txn_manager._transaction_waiter]
    for batches in producer._message_accumulator._batches.values():
        waiting += [future for batch in batches for future in (batch._drain_waiter, batch.future)]
    for future in waiting:
        if future is not None and future.done() and not future.cancelled():
            future.exception()


async def discard_consumer(consumer: AIOKafkaConsumer, timeout_s: float = 5.0) -> None:
    """Let a consumer go within about the timeout and a second, leaving its group when the broker answers. Never
    raises."""
    with contextlib.suppress(*CLIENT_ERRORS):
        if await _politely(consumer.stop, timeout_s):
            return
        consumer._closed = True
        coordinator, fetcher = consumer._coordinator, consumer._fetcher
        if coordinator is not None:
            if not coordinator._closing.done():
                coordinator._closing.set_result(None)
            for name in ("_coordination_task", "_heartbeat_task", "_commit_refresh_task"):
                await end_task(getattr(coordinator, name, None), 0.3)
        if fetcher is not None:
            fetcher._closed = True
            await end_task(fetcher._fetch_task, 0.3)
            for task in tuple(fetcher._pending_tasks):
                await end_task(task, 0.1)
        await _politely(consumer._client.close, 0.5)


class Reaper:
    """Discards clients beside the work, and waits for what is still being discarded when the engine closes."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def producer(self, producer: AIOKafkaProducer, timeout_s: float = 1.0) -> asyncio.Task[None]:
        """Begin to discard a producer."""
        return self._begin(discard_producer(producer, timeout_s))

    def consumer(self, consumer: AIOKafkaConsumer, timeout_s: float = 5.0) -> asyncio.Task[None]:
        """Begin to discard a consumer."""
        return self._begin(discard_consumer(consumer, timeout_s))

    def _begin(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self, timeout_s: float) -> None:
        """Wait for the discarding to end, then cancel what has not."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=max(0.0, timeout_s))
        for task in tuple(self._tasks):
            await end_task(task, 0.2)


class Deadline:
    """A point in time by the monotonic clock, and what is left until then."""

    __slots__ = ("_at", "_clock")

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        self._clock = clock
        self._at = clock.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._at - self._clock.monotonic())


def topic_name(prefix: str, log: str) -> str:
    """Return the topic of a log."""
    return prefix + log


def topics_of(prefix: str, logs: Mapping[str, object]) -> dict[str, str]:
    """Return the log of each topic."""
    return {topic_name(prefix, log): log for log in logs}
