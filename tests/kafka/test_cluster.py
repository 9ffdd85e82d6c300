"""The broker that other tests lean on does what they ask of it."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.kafka.cluster import LocalKafka
from tests.kafka.fixtures import KafkaForTests, answering

pytestmark = pytest.mark.kafka


async def make_topic(bootstrap: str, topic: str) -> None:
    """One partition, one copy."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()


async def test_a_record_goes_in_and_comes_out(kafka: KafkaForTests, kafka_prefix: str) -> None:
    """The plainest use, within a time a developer waits for."""
    topic = f"{kafka_prefix}plain"
    await make_topic(kafka.bootstrap, topic)
    async with asyncio.timeout(30):
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
            await producer.send_and_wait(topic, b"hello")
        async with AIOKafkaConsumer(topic, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest") as consumer:
            assert (await consumer.getone()).value == b"hello"


async def test_a_killed_broker_comes_back_on_its_port_with_its_records(
    breakable_kafka: LocalKafka, kafka_prefix: str
) -> None:
    """Fault tests lose brokers on purpose; what was acknowledged must be there afterwards."""
    topic = f"{kafka_prefix}kept"
    await make_topic(breakable_kafka.bootstrap, topic)
    async with asyncio.timeout(90):
        async with AIOKafkaProducer(bootstrap_servers=breakable_kafka.bootstrap, acks="all") as producer:
            await producer.send_and_wait(topic, b"before")
        await asyncio.to_thread(breakable_kafka.kill)
        with pytest.raises(OSError):  # noqa: PT011
            await asyncio.open_connection("127.0.0.1", breakable_kafka.brokers[0].port)
        await asyncio.to_thread(breakable_kafka.restart)
        await asyncio.to_thread(answering, breakable_kafka.bootstrap)
        async with AIOKafkaConsumer(
            topic, bootstrap_servers=breakable_kafka.bootstrap, auto_offset_reset="earliest"
        ) as consumer:
            assert (await consumer.getone()).value == b"before"


async def test_a_frozen_broker_answers_when_it_is_thawed(breakable_kafka: LocalKafka, kafka_prefix: str) -> None:
    """A freeze is the cruellest outage: connections stand and nothing comes."""
    topic = f"{kafka_prefix}frozen"
    await make_topic(breakable_kafka.bootstrap, topic)
    async with asyncio.timeout(60), AIOKafkaProducer(bootstrap_servers=breakable_kafka.bootstrap) as producer:
        await producer.send_and_wait(topic, b"before")
        breakable_kafka.pause()
        began = time.monotonic()
        sent = await producer.send(topic, b"patience")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(sent), 1.0)
        breakable_kafka.resume()
        await sent
        assert time.monotonic() - began >= 1.0
