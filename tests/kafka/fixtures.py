"""What a test asks for: `kafka` (a cluster), `breakable_kafka` (one it may kill), `kafka_prefix` (a corner of its own).

`DEPESCHE_TEST_KAFKA=host:port` names an existing cluster. Else a broker is started once per test session, when the
first test asks. Where neither can be had such tests are skipped with the reason; with CI=true they fail.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from tests.kafka.cluster import READY_S_MAX, LocalKafka
from tests.kafka.jars import KafkaMissing


class KafkaForTests(NamedTuple):
    """A cluster that answers. `local` is None when it is somebody else's and must not be harmed."""

    bootstrap: str
    local: LocalKafka | None


async def warm_up(bootstrap: str) -> None:
    """Make one group and one transaction, so that no test pays for the broker's first internal topics."""
    topic = f"warm-up-{uuid.uuid4().hex}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=10_000)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=topic)
        await producer.start()
        try:
            async with producer.transaction():
                await producer.send_and_wait(topic, b"warm", partition=0)
        finally:
            await producer.stop()
        consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, group_id=topic, auto_offset_reset="earliest")
        await consumer.start()
        try:
            await consumer.getone()
            await consumer.commit()
        finally:
            await consumer.stop()
        await admin.delete_topics([topic])
    finally:
        await admin.close()


def warm_up_within(bootstrap: str, timeout_s: float) -> None:
    """Warm up on a loop of its own. Raises `TimeoutError`."""
    asyncio.run(asyncio.wait_for(warm_up(bootstrap), timeout_s))


def answering(bootstrap: str) -> None:
    """Return when the cluster makes topics, transactions and groups. Raises `KafkaMissing`."""
    deadline = time.monotonic() + READY_S_MAX
    while True:
        left = deadline - time.monotonic()
        try:
            # In a thread of its own: an asynchronous fixture may ask while its loop runs.
            with ThreadPoolExecutor(1) as beside:
                beside.submit(warm_up_within, bootstrap, max(1.0, left)).result()
        except (KafkaError, OSError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise KafkaMissing(f"Kafka at {bootstrap} does not answer: {error!r}") from error
            time.sleep(0.2)
        else:
            return


def give_up(reason: str) -> None:
    """Skip with the reason, or fail where the whole suite is owed."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"CI=true and no Kafka: {reason}", pytrace=False)
    pytest.skip(f"no Kafka: {reason}")


@pytest.fixture(scope="session")
def session_kafka() -> Iterator[KafkaForTests | str]:
    """The session's cluster, or why there is none. A reason is remembered, not tried again for each test."""
    named = os.environ.get("DEPESCHE_TEST_KAFKA")
    local: LocalKafka | None = None
    try:
        if named is None:
            local = LocalKafka()
        bootstrap = named if local is None else local.bootstrap
        assert bootstrap is not None
        answering(bootstrap)
    except KafkaMissing as error:
        yield str(error)
    else:
        yield KafkaForTests(bootstrap, local)
    finally:
        if local is not None:
            local.stop()


@pytest.fixture
def kafka(session_kafka: KafkaForTests | str) -> KafkaForTests:
    """A cluster shared with all other tests: keep to `kafka_prefix`, and leave its processes alone."""
    if isinstance(session_kafka, str):
        give_up(session_kafka)
        raise AssertionError("unreachable")
    if session_kafka.local is not None:
        session_kafka.local.heal()
    return session_kafka


@pytest.fixture(scope="session")
def own_kafka(session_kafka: KafkaForTests | str) -> Iterator[LocalKafka | str]:
    """The session's cluster when we started it, else one of our own beside the one that was named."""
    if isinstance(session_kafka, KafkaForTests) and session_kafka.local is not None:
        yield session_kafka.local
        return
    try:
        own = LocalKafka()
    except KafkaMissing as error:
        yield str(error)
        return
    try:
        answering(own.bootstrap)
        yield own
    finally:
        own.stop()


@pytest.fixture
def breakable_kafka(own_kafka: LocalKafka | str) -> Iterator[LocalKafka]:
    """A cluster whose nodes may be frozen, killed and restarted; afterwards it is whole again."""
    if isinstance(own_kafka, str):
        give_up(own_kafka)
        raise AssertionError("unreachable")
    own_kafka.heal()
    yield own_kafka
    own_kafka.heal()


_numbers = itertools.count()


@pytest.fixture
def kafka_prefix() -> str:
    """A prefix for topics, groups and transactional ids that no other test or run has."""
    return f"t{next(_numbers)}-{uuid.uuid4().hex[:8]}."
