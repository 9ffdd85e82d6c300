"""Sinks of kind `kafka`: events from the embedded log onto a topic of a real Kafka, as a stranger reads them there."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from broker.clock import SystemClock
from broker.core.breaker import BreakerLimits
from broker.core.retry import Schedule
from broker.log.catalogue import CONTROL, CONVERSATIONS, DEADLETTERS, deliveries
from broker.log.contract import Draft, LogSpec
from broker.log.embedded import EmbeddedLog
from schemas.records import DeliveryEvent, decode_dead_letter, encode
from schemas.settings import KafkaAccess, SinkSettings
from tests.actors.bots import until
from tests.kafka.cluster import LocalKafka
from tests.kafka.fixtures import KafkaForTests
from workers.delivery import DeliveryLimits, DeliveryStage
from workers.poster import Posted, PostFailed
from workers.sinks import Target
from workers.topics import TopicPublisher

LIMITS = DeliveryLimits(
    commit_every_s=0.05,
    schedule=Schedule(pauses_s=(0.05, 0.1)),
    breaker=BreakerLimits(cool_down_s=0.2, cool_down_s_max=0.5),
)


class NoPoster:
    """No HTTP is spoken here."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Posted:
        raise AssertionError(f"a POST to {url}")


def value(customer: str, number: int, body: bytes | None = None, **more: Any) -> bytes:
    body = (
        body if body is not None else json.dumps({"entry": [{"n": number, "text": "ä"}]}, ensure_ascii=False).encode()
    )
    at = 1_700_000_000_000 + number
    return encode(DeliveryEvent(f"e-{customer}-{number}", "message", "1", customer, body, at, at + 5, **more))


class Rig:
    """An embedded log with one sink, and whoever reads its topic."""

    def __init__(self, folder: Path, bootstrap: str, topic: str, **settings: Any) -> None:
        specs = [LogSpec(deliveries("events"), 2), LogSpec(CONVERSATIONS, 2), LogSpec(DEADLETTERS, 1)]
        clock = SystemClock()
        self.log = EmbeddedLog(folder, [*specs, LogSpec(CONTROL, 1, "last")], clock=clock, rng=random.Random(1))
        sink = SinkSettings(
            name="events", kind="kafka", topic=topic, kafka=KafkaAccess(bootstrap_servers=bootstrap), **settings
        )
        self.publisher = TopicPublisher()
        target = Target(sink, [], {"bootstrap_servers": [bootstrap], "security_protocol": "PLAINTEXT"})
        self.stage = DeliveryStage(
            self.log, [target], NoPoster(), clock, random.Random(2), LIMITS, publisher=self.publisher
        )

    async def append(self, customer: str, *values: bytes) -> None:
        await self.log.append(deliveries("events"), [Draft(customer.encode(), one) for one in values], 10.0)


@asynccontextmanager
async def delivering(folder: Path, bootstrap: str, topic: str, **settings: Any) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        rig = Rig(folder, bootstrap, topic, **settings)
        await rig.log.start()
        stack.push_async_callback(rig.log.close)
        stack.push_async_callback(rig.publisher.stop)
        await rig.stage.start()
        stack.push_async_callback(rig.stage.stop)
        yield rig


async def make_topic(bootstrap: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 3, 1)])
    finally:
        await admin.close()


async def strangers_view(bootstrap: str, topic: str, records: int, timeout_s: float = 20.0) -> list[Any]:
    """Read a topic from its beginning until so many records came."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    found: list[Any] = []
    try:
        async with asyncio.timeout(timeout_s):
            while len(found) < records:
                for batch in (await consumer.getmany(timeout_ms=200)).values():
                    found += batch
    finally:
        await consumer.stop()
    return found


@pytest.mark.kafka
async def test_a_stranger_reads_events_by_customer_in_order(
    kafka: KafkaForTests, kafka_prefix: str, tmp_path: Path
) -> None:
    """What kcat shows a person: a key, JSON in one line with Meta's update in it, and our envelope around."""
    topic = f"{kafka_prefix}brand"
    await make_topic(kafka.bootstrap, topic)
    async with delivering(tmp_path / "log", kafka.bootstrap, topic) as rig:
        for number in range(20):
            for customer in ("main:491", "main:492", "main:493"):
                await rig.append(customer, value(customer, number))
        await rig.append("main:491", value("main:491", 20, tags=("vip",), epoch=3, replayed_at=1_700_000_100_000))
        found = await strangers_view(kafka.bootstrap, topic, 61)
    assert len(found) == 61
    for customer in ("main:491", "main:492", "main:493"):
        own = [record for record in found if record.key == customer.encode()]
        assert len({record.partition for record in own}) == 1
        numbers = [json.loads(record.value)["data"]["entry"][0]["n"] for record in own]
        assert numbers == list(range(len(own)))
    first = next(record for record in found if record.key == b"main:491")
    assert first.value.isascii()
    assert json.loads(first.value) == {
        "id": "e-main:491-0",
        "type": "whatsapp.message",
        "timestamp": "2023-11-14T22:13:20.000Z",
        "received_at": "2023-11-14T22:13:20.005Z",
        "sink": "events",
        "customer": "main:491",
        "phone_number_id": "1",
        "data": {"entry": [{"n": 0, "text": "ä"}]},
    }
    assert dict(first.headers) == {"content-type": b"application/json", "depesche-id": b"e-main:491-0"}
    last = [record for record in found if record.key == b"main:491"][-1]
    assert json.loads(last.value)["tags"] == ["vip"]
    assert dict(last.headers)["X-Depesche-Replay"] == b"2023-11-14T22:15:00.000Z"
    assert dict(last.headers)["X-Depesche-Epoch"] == b"3"


@pytest.mark.kafka
async def test_a_message_the_topic_cannot_hold_holds_up_its_customer_alone(
    kafka: KafkaForTests, kafka_prefix: str, tmp_path: Path
) -> None:
    """It becomes a dead letter after its time, whether our bound or the broker's is the one that is met."""
    topic = f"{kafka_prefix}brand"
    await make_topic(kafka.bootstrap, topic)
    noise = random.Random(4).randbytes(1_200_000).hex().encode()
    async with delivering(
        tmp_path / "log", kafka.bootstrap, topic, message_bytes_max=2_500_000, give_up_after_s=0.5
    ) as rig:
        await rig.append(
            "a", value("a", 0, b'{"x":"%b"}' % (noise + noise[:200_000])), value("a", 1)
        )  # above our bound
        await rig.append("b", value("b", 0, b'{"x":"%b"}' % noise), value("b", 1))  # above the topic's
        for number in range(20):
            await rig.append("c", value("c", number))
        found = await strangers_view(kafka.bootstrap, topic, 22)
        ids = {json.loads(record.value)["id"] for record in found}
        assert {"e-a-1", "e-b-1", *(f"e-c-{number}" for number in range(20))} <= ids
        letters = [decode_dead_letter(entry.value) async for entry in rig.log.read(DEADLETTERS, 0)]
    assert sorted(letter.key for letter in letters) == [b"a", b"b"]
    assert {letter.reason for letter in letters} == {"gave_up"}


@pytest.mark.kafka
async def test_a_cluster_that_was_away_gets_everything_in_order(
    breakable_kafka: LocalKafka, kafka_prefix: str, tmp_path: Path
) -> None:
    """Nothing is given up for it; what is repeated is what was in doubt, behind its first, and never out of order."""
    topic = f"{kafka_prefix}brand"
    await make_topic(breakable_kafka.bootstrap, topic)
    customers = [f"c{index}" for index in range(6)]
    async with delivering(
        tmp_path / "log", breakable_kafka.bootstrap, topic, timeout_s=2.0, give_up_after_s=1.0
    ) as rig:
        for customer in customers:
            await rig.append(customer, value(customer, 0))
        await strangers_view(breakable_kafka.bootstrap, topic, 6)
        await asyncio.to_thread(breakable_kafka.kill)
        for number in range(1, 6):
            for customer in customers:
                await rig.append(customer, value(customer, number))
        await asyncio.sleep(2.5)
        await asyncio.to_thread(breakable_kafka.heal)
        await until(lambda: all(one.oldest_at() is None for one in rig.stage._running), 40)
        assert [entry async for entry in rig.log.read(DEADLETTERS, 0)] == []
        found = await strangers_view(breakable_kafka.bootstrap, topic, 36)
    for customer in customers:
        numbers = [
            int(json.loads(record.value)["id"].split("-")[2]) for record in found if record.key == customer.encode()
        ]
        assert sorted(set(numbers)) == list(range(6))
        assert numbers == sorted(numbers)


async def test_a_cluster_nobody_is_at_is_the_sinks_trouble() -> None:
    """Not the event's: it waits for as long as it takes, and no message is spent on finding out."""
    publisher = TopicPublisher()
    sink = SinkSettings(name="events", kind="kafka", topic="brand", timeout_s=1.0)
    connect = {"bootstrap_servers": ["127.0.0.1:9"], "security_protocol": "PLAINTEXT"}
    try:
        with pytest.raises(PostFailed) as failed:
            await publisher.publish(sink, connect, b"k", {}, b"{}")
        assert failed.value.reason == "connection"
    finally:
        await publisher.stop()
