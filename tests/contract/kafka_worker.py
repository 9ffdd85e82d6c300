"""A worker that is killed: `python -m tests.contract.kafka_worker BOOTSTRAP PREFIX SEED`. Runs the copying stage until
SIGTERM, then leaves."""

from __future__ import annotations

import asyncio
import random
import signal
import sys

from broker.clock import SystemClock
from broker.log.kafka import KafkaLog
from tests.contract.programs import COPY, LOGS, Copying
from tests.kafka.engine import kafka_settings


async def main(bootstrap: str, prefix: str, seed: int) -> None:
    """Work, and go when told to."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    settings = kafka_settings(bootstrap, prefix, session_timeout_ms=1_500)
    engine = KafkaLog(settings, LOGS, clock=SystemClock(), rng=random.Random(seed))
    await engine.start()
    await engine.own(COPY, Copying(records_max=20))
    await told.wait()
    await engine.close(8.0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
