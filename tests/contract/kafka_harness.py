"""The Kafka engine under the suite: a corner of the session's cluster, a clock that can jump, a broker that freezes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from broker.clock import SystemClock
from broker.log.contract import LogEngine, LogSpec, Stage, Step
from broker.log.kafka import BYTES_IN_FLIGHT_MAX, KafkaLog
from tests.contract.embedded_harness import JumpingClock
from tests.contract.harness import Reached
from tests.kafka.cluster import LocalKafka
from tests.kafka.engine import kafka_settings

SESSION_MS = 1_500
"""Every test in which somebody dies waits for it."""


class KafkaHarness:
    """Engines on one cluster, under one prefix."""

    name = "kafka"
    spans_processes = True
    patience_s = 20.0
    steps_many = 100

    def __init__(self, cluster: LocalKafka, prefix: str) -> None:
        self.cluster = cluster
        self.prefix = prefix
        self.clock = JumpingClock()
        self._engines: list[KafkaLog] = []
        self._away = False

    @classmethod
    def for_test(cls, request: pytest.FixtureRequest) -> KafkaHarness:
        """Make a harness on a cluster that may be frozen."""
        cluster = request.getfixturevalue("breakable_kafka")
        prefix = request.getfixturevalue("kafka_prefix")
        assert isinstance(cluster, LocalKafka)
        assert isinstance(prefix, str)
        return cls(cluster, prefix)

    async def open(self, specs: Sequence[LogSpec], *, bytes_in_flight_max: int | None = None) -> KafkaLog:
        """Make an engine and start it."""
        engine = KafkaLog(
            kafka_settings(self.cluster.bootstrap, self.prefix, session_timeout_ms=SESSION_MS),
            specs,
            clock=self.clock,
            rng=random.Random(len(self._engines)),
            bytes_in_flight_max=BYTES_IN_FLIGHT_MAX if bytes_in_flight_max is None else bytes_in_flight_max,
        )
        self._engines.append(engine)
        await engine.start()
        return engine

    async def another(self, engine: LogEngine) -> LogEngine:
        """A second process would have an engine of its own."""
        return await self.open(list(engine.logs.values()))

    async def crash(self, engine: LogEngine) -> None:
        """Close without time for anything: the group and the coordinator of transactions are told nothing."""
        await engine.close(0.0)

    async def usurp(self, engine: LogEngine, stage: Stage, partition: int, step: Step | None = None) -> None:
        """Seize the partition past the group."""
        assert isinstance(engine, KafkaLog)
        lease = await engine.seize(stage, partition)
        if step is not None:
            await lease.restore()
            await lease.commit(step)
        lease.tenure.lose("the test is done with it")

    async def rebalance(self, engine: LogEngine, name: str) -> None:
        """Revoke and grant."""
        assert isinstance(engine, KafkaLog)
        await engine.rebalance(name)

    async def recreate(self, log: str) -> None:
        """Delete the topic and wait until the cluster has forgotten it."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.cluster.bootstrap)
        await admin.start()
        try:
            await admin.delete_topics([self.prefix + log])
            for _ in range(200):
                if self.prefix + log not in await admin.list_topics():
                    return
                await asyncio.sleep(0.05)
            raise AssertionError("the topic is still there after 10 s")
        finally:
            await admin.close()

    async def take_away(self) -> None:
        """Freeze the broker."""
        self._away = True
        self.cluster.pause()

    async def bring_back(self) -> None:
        """Thaw it."""
        if self._away:
            self._away = False
            self.cluster.resume()

    def advance(self, by_ms: int) -> None:
        """Set the wall clock ahead."""
        self.clock.ahead_ms += by_ms

    async def tidy(self, engine: LogEngine) -> bool:
        """The brokers clean up when they think it right."""
        return False

    def child_arguments(self) -> list[str]:
        """The engine's name, the cluster and the prefix."""
        return [self.name, self.cluster.bootstrap, self.prefix]

    async def close(self) -> None:
        """Close what is open."""
        await self.bring_back()
        await asyncio.gather(*(engine.close(5.0) for engine in self._engines))


class KafkaChild:
    """The Kafka engine in a child process."""

    points: tuple[str, ...] = ("before", "begun", "written", "after")

    async def open(self, arguments: Sequence[str], specs: Sequence[LogSpec]) -> LogEngine:
        """Open the logs under the prefix."""
        bootstrap, prefix = arguments
        engine = KafkaLog(
            kafka_settings(bootstrap, prefix, session_timeout_ms=SESSION_MS),
            specs,
            clock=SystemClock(),
            rng=random.Random(7),
        )
        await engine.start()
        return engine

    def arm(self, point: str, reached: Reached) -> None:
        """Stop the next transaction: before anything is sent, or when all of it is on the brokers but the commit."""

        async def stopping(producer: AIOKafkaProducer) -> None:
            reached()

        if point == "begun":
            AIOKafkaProducer.begin_transaction = stopping
        if point == "written":
            AIOKafkaProducer.commit_transaction = stopping
