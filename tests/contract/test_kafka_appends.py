"""What the Kafka engine's appends, readers and topics owe beyond the contract: outages, refusals, strange topics."""

from __future__ import annotations

import asyncio
import logging
import random
import time

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.partitioner import DefaultPartitioner

from broker.clock import SystemClock
from broker.errors import LogUnavailable, Misconfigured, RecordTooLarge
from broker.log.contract import RECORD_BYTES_MAX, Draft, LogSpec
from broker.log.kafka import KafkaLog
from broker.log.kafka_connection import connection
from broker.log.kafka_metadata import describe
from broker.log.kafka_topics import Topics
from broker.secrets import Secret
from schemas.settings import KafkaSettings
from tests.kafka.cluster import LocalKafka
from tests.kafka.engine import kafka_log, kafka_settings, until
from tests.kafka.fixtures import KafkaForTests

pytestmark = pytest.mark.kafka

EVENTS = LogSpec("events", 3)
STATE = LogSpec("state", 3, "last")


async def everything(log: KafkaLog, name: str, partition: int) -> list[bytes]:
    """The values of one partition."""
    return [entry.value async for entry in log.read(name, partition)]


async def test_appends_are_read_back_in_order_for_each_partition(kafka: KafkaForTests, kafka_prefix: str) -> None:
    """Thousands of calls at once: batches, lanes and retries must not mix what one caller appended after another."""
    async with kafka_log(kafka.bootstrap, kafka_prefix, [EVENTS]) as log, asyncio.timeout(60):
        calls = [
            log.append("events", [Draft(b"%d" % (n % 50), b"%d-%d" % (n, part)) for part in range(3)], 20)
            for n in range(2_000)
        ]
        await asyncio.gather(*calls)
        seen: dict[bytes, list[tuple[int, int]]] = {}
        for partition in range(3):
            async for entry in log.read("events", partition):
                assert log.partition_of("events", entry.key) == partition
                n, part = entry.value.split(b"-")
                seen.setdefault(entry.key, []).append((int(n), int(part)))
        assert sum(map(len, seen.values())) == 6_000
        assert all(values == sorted(values) for values in seen.values())


async def test_a_key_goes_where_kafkas_own_partitioner_puts_it(kafka: KafkaForTests, kafka_prefix: str) -> None:
    """The brand's own producers must meet ours in the same partition."""
    async with kafka_log(kafka.bootstrap, kafka_prefix, [LogSpec("many", 24)]) as log:
        partitioner = DefaultPartitioner()
        for n in range(300):
            key = b"49151%d" % n
            assert log.partition_of("many", key) == partitioner(key, list(range(24)), list(range(24)))


async def test_a_record_at_the_limit_lands_and_one_above_it_is_refused_at_once(
    kafka: KafkaForTests, kafka_prefix: str
) -> None:
    """One refused batch would wedge its partition for this producer for ever: size is checked before the client."""
    async with kafka_log(kafka.bootstrap, kafka_prefix, [EVENTS]) as log, asyncio.timeout(60):
        noise = random.Random(1).randbytes(RECORD_BYTES_MAX - 1)  # does not compress
        with pytest.raises(RecordTooLarge):
            await log.append("events", [Draft(b"k", b"small"), Draft(b"k", noise + b"12")], 20)
        await log.append("events", [Draft(b"k", noise)], 20)
        assert await everything(log, "events", log.partition_of("events", b"k")) == [noise]


async def test_a_caller_that_goes_away_does_not_cancel_its_append(kafka: KafkaForTests, kafka_prefix: str) -> None:
    """A closed webhook connection must not decide what becomes of the record."""
    async with kafka_log(kafka.bootstrap, kafka_prefix, [EVENTS]) as log, asyncio.timeout(30):
        task = asyncio.ensure_future(log.append("events", [Draft(b"k", b"kept")], 20))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        partition = log.partition_of("events", b"k")
        await log.append("events", [Draft(b"k", b"next")], 20)
        assert await everything(log, "events", partition) == [b"kept", b"next"]


async def test_a_frozen_broker_costs_a_deadline_and_nothing_more(
    breakable_kafka: LocalKafka, kafka_prefix: str
) -> None:
    """A caller has its answer in time (503), bytes in flight stay bounded, and the log is whole again afterwards."""
    async with (
        kafka_log(breakable_kafka.bootstrap, kafka_prefix, [EVENTS], bytes_in_flight_max=4_096) as log,
        asyncio.timeout(90),
    ):
        await log.append("events", [Draft(b"k", b"before")], 20)
        breakable_kafka.pause()
        began = time.monotonic()
        drafts = [Draft(b"k", b"lost %d" % n + b"." * 500) for n in range(50)]
        results = await asyncio.gather(
            *(log.append("events", [draft], 1.0) for draft in drafts), return_exceptions=True
        )
        assert all(isinstance(result, LogUnavailable) for result in results)
        assert time.monotonic() - began < 2.0
        breakable_kafka.resume()
        await log.append("events", [Draft(b"k", b"after")], 20)
        values = await everything(log, "events", log.partition_of("events", b"k"))
        assert values[0] == b"before"
        assert values[-1] == b"after"
        assert len(values) < 12, "records nobody waits for any more are not sent"


async def test_appends_go_on_after_the_broker_was_killed_and_restarted(
    breakable_kafka: LocalKafka, kafka_prefix: str
) -> None:
    """An outage ends by itself: no hand on the process, nothing acknowledged is missing."""
    async with kafka_log(breakable_kafka.bootstrap, kafka_prefix, [EVENTS]) as log, asyncio.timeout(110):
        acknowledged: list[bytes] = []

        async def keep_appending() -> None:
            for n in range(100_000):
                value = b"%d" % n
                try:
                    await log.append("events", [Draft(b"k", value)], 1.0)
                except LogUnavailable:
                    continue
                acknowledged.append(value)

        task = asyncio.ensure_future(keep_appending())
        await asyncio.sleep(0.5)
        before = len(acknowledged)
        assert before > 10
        await asyncio.to_thread(breakable_kafka.kill)
        await asyncio.sleep(1.5)
        await asyncio.to_thread(breakable_kafka.restart)
        restarted_at = time.monotonic()
        count = len(acknowledged)
        while len(acknowledged) < count + 20:
            await asyncio.sleep(0.05)
            assert time.monotonic() - restarted_at < 30
        task.cancel()
        await asyncio.wait({task})
        values = await everything(log, "events", log.partition_of("events", b"k"))
        assert set(acknowledged) <= set(values)
        numbers = [int(value) for value in values]
        assert numbers == sorted(numbers)


async def test_closing_while_the_broker_is_frozen_takes_no_longer_than_allowed(
    breakable_kafka: LocalKafka, kafka_prefix: str
) -> None:
    """The client's own stop hangs in an outage; a pod that cannot be stopped is killed in mid-step."""
    async with kafka_log(breakable_kafka.bootstrap, kafka_prefix, [EVENTS]) as log, asyncio.timeout(60):
        await log.append("events", [Draft(b"k", b"before")], 20)
        assert await log.ends("events")
        breakable_kafka.pause()
        append = asyncio.ensure_future(log.append("events", [Draft(b"k", b"in doubt")], 30.0))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await log.close(3.0)
        assert time.monotonic() - began < 5.0
        with pytest.raises(LogUnavailable):
            await append
        with pytest.raises(LogUnavailable):
            await log.append("events", [Draft(b"k", b"too late")], 1.0)
        breakable_kafka.resume()


async def test_a_refused_batch_does_not_wedge_its_partition(kafka: KafkaForTests, kafka_prefix: str) -> None:
    """After one refusal the client answers OutOfOrderSequence for ever: so the client is replaced."""
    async with kafka_log(kafka.bootstrap, kafka_prefix, [EVENTS]) as log, asyncio.timeout(60):
        await log.append("events", [Draft(b"k", b"before")], 20)
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        await admin.start()
        try:
            topic = ConfigResource(ConfigResourceType.TOPIC, kafka_prefix + "events", {"max.message.bytes": "2000"})
            await admin.alter_configs([topic])
        finally:
            await admin.close()
        with pytest.raises(LogUnavailable, match="MessageSizeTooLarge"):
            await log.append("events", [Draft(b"k", random.Random(1).randbytes(4_000))], 20)
        for n in range(3):
            await log.append("events", [Draft(b"k", b"after %d" % n)], 20)
        values = await everything(log, "events", log.partition_of("events", b"k"))
        assert values == [b"before", b"after 0", b"after 1", b"after 2"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (KafkaSettings(bootstrap_servers=" , "), "bootstrap_servers"),
        (KafkaSettings(security_protocol="SSL", ca_file="/nowhere/ca.pem"), "TLS files"),
        (KafkaSettings(security_protocol="SASL_PLAINTEXT", sasl_mechanism="SCRAM-SHA-512"), "sasl_username"),
        (
            KafkaSettings(security_protocol="SASL_SSL", sasl_mechanism="SCRAM-SHA-512", sasl_username="u"),
            "sasl_password",
        ),
    ],
)
def test_a_connection_that_cannot_be_right_is_refused_by_name(settings: KafkaSettings, said: str) -> None:
    """An operator is told which setting, before anything tries to connect for half a minute."""
    with pytest.raises(Misconfigured, match=said):
        connection(settings, None)


def test_credentials_are_handed_to_the_client_and_not_shown() -> None:
    """SCRAM over TLS is what production uses."""
    settings = KafkaSettings(security_protocol="SASL_SSL", sasl_mechanism="SCRAM-SHA-512", sasl_username="depesche")
    made = connection(settings, Secret("hidden"))
    assert (made["sasl_mechanism"], made["sasl_plain_username"]) == ("SCRAM-SHA-512", "depesche")
    assert made["sasl_plain_password"] == "hidden"
    assert made["ssl_context"].check_hostname
    log = KafkaLog(settings, [EVENTS], clock=SystemClock(), rng=random.Random(1), password=Secret("hidden"))
    assert "hidden" not in repr(log)


async def test_topics_are_made_as_their_logs_say(kafka: KafkaForTests, kafka_prefix: str) -> None:
    """Retention, compaction and sizes are promises (nothing lost, restores bounded), not defaults of a cluster."""
    settings = kafka_settings(kafka.bootstrap, kafka_prefix)
    specs = [EVENTS, STATE, LogSpec("ledger", 2, "journal", 2 * 86_400_000), LogSpec("traffic", 1, "time", 3_600_000)]
    topics = Topics(settings, specs, connection(settings, None))
    with pytest.raises(Misconfigured, match="missing"):
        await topics.differences()
    assert await topics.apply() == [kafka_prefix + spec.name for spec in specs]
    assert await topics.apply() == []
    assert await topics.differences() == []


async def test_a_topic_that_differs_is_refused_with_both_values(kafka: KafkaForTests, kafka_prefix: str) -> None:
    """Another number of partitions would send every customer somewhere else."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(kafka_prefix + "events", 7, 1)])
    finally:
        await admin.close()
    with pytest.raises(
        Misconfigured, match=r"partitions is 7, and should be 3.*max\.message\.bytes is 1048588"
    ) as told:
        async with kafka_log(kafka.bootstrap, kafka_prefix, [EVENTS]):
            pass
    assert "cleanup.policy" not in str(told.value)


async def test_a_topic_made_again_has_another_incarnation(kafka: KafkaForTests, kafka_prefix: str) -> None:
    """An offset of the old one means nothing in the new one."""
    settings = kafka_settings(kafka.bootstrap, kafka_prefix)
    topics = Topics(settings, [EVENTS, STATE], connection(settings, None))
    await topics.apply()
    first = await topics.incarnations()
    assert await topics.incarnations() == first
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([kafka_prefix + "events"])
        for _ in range(100):
            try:
                if await topics.apply():
                    break
            except (LogUnavailable, Misconfigured):
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.05)
    finally:
        await admin.close()
    second = await topics.incarnations()
    assert second["events"] != first["events"]
    assert second["state"] == first["state"]


async def test_nobody_there_is_said_within_the_start_and_without_a_flood_of_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With brokers down the client writes thousands of lines a second; an operator needs one."""
    caplog.set_level(logging.INFO)
    began = time.monotonic()
    with pytest.raises(LogUnavailable):
        async with kafka_log("127.0.0.1:1", "nowhere.", [EVENTS]):
            pass
    assert time.monotonic() - began < 20
    assert len(caplog.records) < 20


async def test_a_tail_sees_what_comes_later(kafka: KafkaForTests, kafka_prefix: str) -> None:
    """Logs that everybody reads (account news) are followed without a group."""
    async with kafka_log(kafka.bootstrap, kafka_prefix, [LogSpec("accounts", 1)]) as log, asyncio.timeout(30):
        await log.append("accounts", [Draft(b"a", b"1")], 10)
        got: list[bytes] = []

        async def follow() -> None:
            async for entry in log.read("accounts", 0, tail=True):
                got.append(entry.value)

        task = asyncio.ensure_future(follow())
        await until(lambda: got == [b"1"])
        await log.append("accounts", [Draft(b"a", b"2")], 10)
        await until(lambda: got == [b"1", b"2"])
        task.cancel()
        await asyncio.wait({task})
        assert await log.ends("accounts") == [(0, 2)]


async def test_topics_are_described_once_a_broker_is_ready_again(kafka: KafkaForTests, kafka_prefix: str) -> None:
    """One that just started, or missed its heartbeats, answers at once and names no broker, itself included."""
    async with kafka_log(kafka.bootstrap, kafka_prefix, [EVENTS]), asyncio.timeout(30):
        client = AIOKafkaClient(bootstrap_servers=kafka.bootstrap)
        await client.bootstrap()
        try:
            # What the client is left with by such an answer: the first connection, and no broker.
            client._conns["bootstrap", ConnectionGroup.DEFAULT] = await client._get_conn(client.get_random_node())
            client.cluster._brokers.clear()
            assert list(await describe(client, [kafka_prefix + "events"])) == [kafka_prefix + "events"]
        finally:
            await client.close()
