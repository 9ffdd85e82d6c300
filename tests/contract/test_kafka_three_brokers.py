"""Three brokers, of which one is killed and comes back: what production runs on."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator

import msgspec
import pytest

from broker.clock import SystemClock
from broker.errors import LogUnavailable
from broker.log.contract import Draft
from broker.log.kafka import KafkaLog
from tests.contract.programs import COPY, LOGS, Copying, everything
from tests.kafka.cluster import LocalKafka
from tests.kafka.engine import kafka_settings
from tests.kafka.fixtures import answering, give_up
from tests.kafka.jars import KafkaMissing

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

STALL_S_MAX = 30.0
"""Promised are 15 s to append and 20 s to consume (fault matrix); more on a machine that also runs the brokers."""


@pytest.fixture
def three() -> Iterator[LocalKafka]:
    """Three nodes, for this file alone: they take a gigabyte."""
    try:
        cluster = LocalKafka(3)
    except KafkaMissing as error:
        give_up(str(error))
        return
    try:
        answering(cluster.bootstrap)
        yield cluster
    finally:
        cluster.stop()


async def test_one_broker_of_three_may_die_and_come_back(three: LocalKafka) -> None:
    """Appends and steps go on with two; leaders and coordinators move; each record is copied once, in its order."""
    settings = msgspec.structs.replace(kafka_settings(three.bootstrap, "three."), replication_factor=3,
                                       min_insync_replicas=2)  # fmt: skip
    engine = KafkaLog(settings, LOGS, clock=SystemClock(), rng=random.Random(3))
    await engine.start()
    try:
        copying = Copying(records_max=20)
        await engine.own(COPY, copying)
        acknowledged: list[int] = []
        stalls: list[float] = []

        async def feed(seconds: float) -> None:
            ends_at = time.monotonic() + seconds
            while time.monotonic() < ends_at:
                number = len(acknowledged)
                began = time.monotonic()
                while True:  # the caller's repetition; it may double, which its ids would take
                    try:
                        await engine.append("in", [Draft(b"k%d" % (number % 20), b"%d" % number)], 60.0)
                        break
                    except LogUnavailable:
                        assert time.monotonic() - began < STALL_S_MAX
                stalls.append(time.monotonic() - began)
                acknowledged.append(number)
                await asyncio.sleep(0.01)

        await feed(2)
        for node in range(3):
            await asyncio.to_thread(three.kill, node)
            await feed(4)
            await asyncio.to_thread(three.restart, node)
            await feed(2)
        began = time.monotonic()
        values: list[int] = []
        while len(values) < len(acknowledged):
            assert time.monotonic() - began < 2 * STALL_S_MAX, f"{len(values)} of {len(acknowledged)} were copied"
            await asyncio.sleep(0.3)
            try:
                values = [int(entry.value.split(b" #")[0]) for entry in await everything(engine, "out")]
            except LogUnavailable:
                continue
        assert sorted(values) == acknowledged
        assert max(stalls) < STALL_S_MAX
        caught_up_s = time.monotonic() - began
        print(f"{len(acknowledged)} records, longest append {max(stalls):.1f} s, caught up {caught_up_s:.1f} s")
    finally:
        await engine.close(5.0)
