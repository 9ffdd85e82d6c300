"""Steps, leases and followers on a real Kafka that fails: brokers die or freeze, topics shrink, batches are refused."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.admin.records_to_delete import RecordsToDelete

from broker import metrics
from broker.errors import LeaseLost, WrongIncarnation
from broker.log import kafka_group
from broker.log.contract import Draft, LeaseState, Stage, Step
from tests.contract.kafka_harness import KafkaHarness
from tests.contract.programs import COPY, LOGS, Copying, Idle, Listening, everything, numbered, shown, state_of, until
from tests.kafka.cluster import LocalKafka

pytestmark = pytest.mark.kafka


@pytest.fixture
async def here(breakable_kafka: LocalKafka, kafka_prefix: str) -> AsyncIterator[KafkaHarness]:
    """A corner of the cluster, whose nodes may be broken."""
    harness = KafkaHarness(breakable_kafka, kafka_prefix)
    yield harness
    await harness.close()


@asynccontextmanager
async def operator(here: KafkaHarness) -> AsyncIterator[AIOKafkaAdminClient]:
    """Somebody with Kafka's own tools."""
    admin = AIOKafkaAdminClient(bootstrap_servers=here.cluster.bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def change(here: KafkaHarness, log: str, settings: dict[str, str]) -> None:
    """Set a topic's settings; those not named go back to the cluster's."""
    async with operator(here) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, here.prefix + log, settings)])


async def copied(here: KafkaHarness, count: int, timeout_s: float) -> list[int]:
    """The numbers that stand in `out`, once there are so many, read by an engine of its own."""
    reader = await here.open(LOGS)
    ends_at = time.monotonic() + timeout_s
    while True:
        values = sorted(int(one.value.split(b" #")[0]) for one in await everything(reader, "out"))
        if len(values) >= count:
            return values
        assert time.monotonic() < ends_at, f"{len(values)} of {count} within {timeout_s} s"
        await asyncio.sleep(0.2)


async def test_every_record_is_copied_once_though_the_broker_is_killed_in_mid_step(here: KafkaHarness) -> None:
    """Steps in doubt are not repaired: what is committed is believed, and no hand is needed."""
    engine = await here.open(LOGS)
    copying = Copying(records_max=5)
    await engine.own(COPY, copying)
    await engine.append("in", numbered(400), 10)
    await until(lambda: copying.copied > 20)
    await asyncio.to_thread(here.cluster.kill)
    await asyncio.sleep(0.5)
    await asyncio.to_thread(here.cluster.restart)
    assert await copied(here, 400, 60) == list(range(400))


async def test_a_client_that_hears_nothing_is_replaced(here: KafkaHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog: an outage longer than three sessions must not leave a consumer that waits for ever."""
    monkeypatch.setattr(kafka_group, "SILENT_SESSIONS", 1)
    engine = await here.open(LOGS)
    copying = Copying()
    member = await engine.own(COPY, copying)
    await until(lambda: len(member.held()) == 4)
    first = member.consumer
    here.cluster.pause()
    await until(lambda: member.consumer is not None and member.consumer is not first, 60)
    assert member.held() == frozenset()
    here.cluster.resume()
    await engine.append("in", numbered(20), 30)
    assert await copied(here, 20, 60) == list(range(20))


async def test_a_step_with_a_refused_batch_is_not_seen_at_all(here: KafkaHarness) -> None:
    """The client's commit ignores a refused batch: readers saw half a step until every answer was awaited first."""
    engine = await here.open(LOGS)
    idle = Idle()
    await engine.own(COPY, idle)
    lease = await idle.lease(0)
    await change(here, "second", {"max.message.bytes": "2000"})
    large = random.Random(1).randbytes(4_000)  # does not compress
    step = Step({"in": 1}, [("out", Draft(b"a", b"half")), ("second", Draft(b"a", large))], [(b"a", b"1")])
    with pytest.raises(LeaseLost, match="in doubt"):
        await lease.commit(step)
    assert lease.state is LeaseState.LOST
    assert await everything(engine, "out") == []
    await until(lambda: idle.leases[0] is not lease)
    assert idle.restored[0].position == {}
    await idle.leases[0].commit(Step({"in": 1}, [("out", Draft(b"a", b"whole"))]))
    assert [one.value for one in await shown(engine, "out", 1)] == [b"whole"]


async def test_records_lost_to_retention_are_counted_and_reading_goes_on(here: KafkaHarness) -> None:
    """A gap is never silent."""
    engine = await here.open(LOGS)
    copying = Copying()
    member = await engine.own(COPY, copying)
    await engine.append("in", [Draft(b"k", b"%d" % n, 0) for n in range(5)], 10)
    await until(lambda: copying.copied == 5)
    await member.leave()
    await engine.append("in", [Draft(b"k", b"%d" % n, 0) for n in range(5, 15)], 10)
    before = metrics.log_gap_records.labels("in")._value.get()
    async with operator(here) as admin:
        await admin.delete_records({TopicPartition(here.prefix + "in", 0): RecordsToDelete(before_offset=12)})
    again = Copying()
    await engine.own(COPY, again)
    await until(lambda: again.copied == 3)
    assert metrics.log_gap_records.labels("in")._value.get() - before == 7


async def test_a_log_that_ends_before_our_position_is_said_and_not_read(
    here: KafkaHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off by an unclean election or a restored backup: reading on would skip or repeat without a word."""
    monkeypatch.setattr(kafka_group, "CUT_S_MAX", 1.0)
    engine = await here.open(LOGS)
    await here.usurp(engine, COPY, 1, Step({"in": 50}))
    copying = Copying()
    member = await engine.own(COPY, copying)
    await until(lambda: member.failure is not None)
    assert isinstance(member.failure, WrongIncarnation)
    assert "offset 50" in str(member.failure)
    await engine.append("in", [Draft(b"k", b"0", 0), *(Draft(b"k", b"x", 1) for _ in range(60))], 10)
    await until(lambda: copying.copied == 1)
    await asyncio.sleep(0.5)
    assert copying.copied == 1, "the other partitions go on, this one waits for an operator"


async def test_a_journal_whose_position_was_eaten_by_retention_is_not_begun_anew(here: KafkaHarness) -> None:
    """Sends of a week would go out a second time."""
    engine = await here.open(LOGS)
    journalled = Stage("journalled", ("in",), "journal")
    idle = Idle()
    member = await engine.own(journalled, idle)
    await (await idle.lease(2)).commit(Step({"in": 3}, [], [(b"intent", b"1")]))
    await member.leave()
    async with operator(here) as admin:
        await admin.delete_records({TopicPartition(here.prefix + "journal", 2): RecordsToDelete(before_offset=-1)})
    again = await engine.own(journalled, Idle())
    await until(lambda: again.failure is not None)
    assert isinstance(again.failure, WrongIncarnation)


async def test_a_long_journal_is_read_back_from_its_snapshot_alone(here: KafkaHarness) -> None:
    """A takeover costs what happened since the snapshot, not two days of records; found however far back it lies."""
    engine = await here.open(LOGS)
    journalled = Stage("journalled", ("in",), "journal")
    idle = Idle()
    member = await engine.own(journalled, idle)
    lease = await idle.lease(0)
    old = [(b"old", b"%d" % n) for n in range(4_000)]
    await lease.commit(Step({"in": 1}, [], [*old, *old]))
    await lease.commit(Step({"in": 2}, [], [(b"\x00snapshot", b"S"), *((b"new", b"%d" % n) for n in range(5_000))]))
    await member.leave()
    restored = await state_of(engine, journalled, 0)
    assert restored.records[0] == (b"\x00snapshot", b"S")
    assert [value for _, value in restored.records[1:]] == [b"%d" % n for n in range(5_000)]
    assert restored.position == {"in": 2}


async def test_compaction_by_the_broker_keeps_what_a_restore_needs(here: KafkaHarness) -> None:
    """The cleaner drops old values and positions; the last of each, and the position, are there after it."""
    engine = await here.open(LOGS)
    await change(
        here,
        "state",
        {"cleanup.policy": "compact", "segment.bytes": "1048576", "min.cleanable.dirty.ratio": "0.01",
         "max.message.bytes": str(5 * 1024 * 1024), "message.timestamp.type": "LogAppendTime"},
    )  # fmt: skip
    idle = Idle()
    member = await engine.own(COPY, idle)
    lease = await idle.lease(0)
    expected: dict[bytes, bytes] = {}
    noise, raw = random.Random(1), 0
    for number in range(30):
        changes: list[tuple[bytes, bytes | None]] = []
        for key in range(100):
            value = noise.randbytes(1_500)  # does not compress, so that segments fill
            changes.append((b"key-%d" % key, value))
            expected[b"key-%d" % key] = value
        raw += len(changes) + 1
        await lease.commit(Step({"in": number}, [], changes, b"%d" % number))
    await member.leave()

    async def standing() -> int:
        return len(await everything(engine, "state", 0))

    ends_at = time.monotonic() + 60
    while await standing() > raw * 0.8:
        assert time.monotonic() < ends_at, "the broker's cleaner did nothing"
        await asyncio.sleep(0.5)
    restored = await state_of(engine, COPY, 0)
    assert dict(restored.records) == expected
    assert (restored.position, restored.memo) == ({"in": 29}, b"29")


async def test_a_member_that_leaves_hands_over_within_two_seconds(here: KafkaHarness) -> None:
    """A rolling restart must not be felt: no session has to end."""
    engine = await here.open(LOGS)
    other = await here.another(engine)
    first, second = Copying(), Copying()
    leaving = await engine.own(COPY, first)
    staying = await other.own(COPY, second)
    await until(lambda: len(leaving.held()) == 2 and len(staying.held()) == 2)
    began = time.monotonic()
    await leaving.leave()
    await until(lambda: len(staying.held()) == 4)
    assert time.monotonic() - began < 4.0
    await engine.append("in", numbered(40), 10)
    assert await copied(here, 40, 10) == list(range(40))


async def test_lag_tools_see_how_far_a_stage_is(here: KafkaHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are scaled on the group's lag; the position itself lives in the state log."""
    monkeypatch.setattr(kafka_group, "LAG_S", 0.2)
    engine = await here.open(LOGS)
    copying = Copying()
    await engine.own(COPY, copying)
    await engine.append("in", [Draft(b"k", b"%d" % n, 2) for n in range(30)], 10)
    await until(lambda: copying.copied == 30)
    consumer = AIOKafkaConsumer(bootstrap_servers=here.cluster.bootstrap, group_id=here.prefix + COPY.name)
    place = TopicPartition(here.prefix + "in", 2)
    consumer.assign([place])
    await consumer.start()
    try:
        async with asyncio.timeout(20):
            for _ in range(200):
                if await consumer.committed(place) == 30:
                    return
                await asyncio.sleep(0.1)
        pytest.fail("the group's committed offset never came to the stage's position")
    finally:
        await consumer.stop()


async def test_a_rebalance_in_mid_stream_neither_loses_nor_repeats_for_a_follower(here: KafkaHarness) -> None:
    """Members that come and go while records flow: what was committed is not read again by who keeps the partition."""
    engine = await here.open(LOGS)
    listening = Listening()
    member = await engine.follow("followers", ["in"], listening)
    await until(lambda: len(member.held()) == 4)
    for round_number in range(4):
        await engine.append("in", numbered(50, first=50 * round_number), 10)
        await engine.rebalance("followers")
        await asyncio.sleep(0.3)
    await until(lambda: len(listening.seen) >= 200)
    assert sorted(int(one.value) for one in listening.seen) == list(range(200))
    assert listening.runs == 4
