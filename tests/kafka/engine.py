"""A `KafkaLog` as tests want it: a prefix of its own, one copy of each topic, timings as short as the broker allows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from broker.clock import SystemClock
from broker.log.contract import LogSpec
from broker.log.kafka import KafkaLog
from schemas.settings import KafkaSettings


def kafka_settings(bootstrap: str, prefix: str, *, session_timeout_ms: int = 3_000) -> KafkaSettings:
    """Settings for one broker, with sessions that end soon after their member."""
    return KafkaSettings(
        bootstrap_servers=bootstrap,
        prefix=prefix,
        replication_factor=1,
        min_insync_replicas=1,
        session_timeout_ms=session_timeout_ms,
        heartbeat_interval_ms=200,
        rebalance_timeout_ms=8_000,
        transaction_timeout_ms=2_000,
    )


@asynccontextmanager
async def kafka_log(
    bootstrap: str, prefix: str, specs: Sequence[LogSpec], *, seed: int = 0, bytes_in_flight_max: int = 64 * 1024 * 1024
) -> AsyncIterator[KafkaLog]:
    """An open engine, closed at the end whatever happened."""
    log = KafkaLog(
        kafka_settings(bootstrap, prefix),
        specs,
        clock=SystemClock(),
        rng=random.Random(seed),
        bytes_in_flight_max=bytes_in_flight_max,
    )
    try:
        await log.start()
        yield log
    finally:
        await log.close(5.0)


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Return when the condition holds. Raises `TimeoutError`."""
    async with asyncio.timeout(timeout_s):
        for _ in range(1_000_000):
            if condition():
                return
            await asyncio.sleep(0.01)
