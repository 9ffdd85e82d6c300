"""Appends from outside: durable when they return, in order, bounded."""

from __future__ import annotations

import asyncio

import pytest

from broker.errors import LogUnavailable, Misconfigured, RecordTooLarge
from broker.log.contract import RECORD_BYTES_MAX, Draft
from tests.contract.harness import Harness
from tests.contract.programs import LOGS, everything, numbered


async def test_records_of_a_partition_stand_in_the_order_of_calls_and_drafts(harness: Harness) -> None:
    """A customer's messages are handled as they came."""
    engine = await harness.open(LOGS)
    calls = [engine.append("in", numbered(3, keys=2, first=3 * call), 10) for call in range(100)]
    await asyncio.gather(*(asyncio.create_task(call) for call in calls))
    for partition in range(4):
        values = [int(entry.value) for entry in await everything(engine, "in", partition)]
        assert values == sorted(values)
    assert len(await everything(engine, "in")) == 300


async def test_a_key_always_goes_to_its_partition(harness: Harness) -> None:
    """Whoever has a partition has all of a customer."""
    engine = await harness.open(LOGS)
    drafts = [Draft(b"49151%08d" % number, b"x") for number in range(200)]
    await engine.append("in", drafts, 10)
    for entry in await everything(engine, "in"):
        assert entry.partition == engine.partition_of("in", entry.key)


async def test_a_named_partition_wins_over_the_key(harness: Harness) -> None:
    """Slots are written in the configuration, not hashed."""
    engine = await harness.open(LOGS)
    await engine.append("in", [Draft(b"same", b"%d" % partition, partition) for partition in range(4)], 10)
    assert [int(entry.value) for entry in await everything(engine, "in")] == [0, 1, 2, 3]


async def test_offsets_grow_by_one_and_say_where_reading_goes_on(harness: Harness) -> None:
    """`ends` is what lag and tools are reckoned from."""
    engine = await harness.open(LOGS)
    assert await engine.ends("in") == [(0, 0)] * 4
    await engine.append("in", [Draft(b"k", b"%d" % number, 2) for number in range(5)], 10)
    assert [entry.offset for entry in await everything(engine, "in", 2)] == [0, 1, 2, 3, 4]
    assert await engine.ends("in") == [(0, 0), (0, 0), (0, 5), (0, 0)]


async def test_an_entry_carries_what_was_appended_and_when(harness: Harness) -> None:
    """Bytes are bytes: zeros and invalid UTF-8 come back as they went in."""
    engine = await harness.open(LOGS)
    key, value = bytes(range(256)), bytes(range(255, -1, -1)) * 3
    await engine.append("in", [Draft(key, value, 1), Draft(b"", b"", 1)], 10)
    first, second = await everything(engine, "in", 1)
    assert (first.log, first.partition, first.key, first.value) == ("in", 1, key, value)
    assert (second.key, second.value) == (b"", b"")
    assert first.appended_at > 1_600_000_000_000


async def test_a_record_over_the_limit_is_refused_and_its_neighbours_are_not_written(harness: Harness) -> None:
    """One call is one request: nothing of it may be half there."""
    engine = await harness.open(LOGS)
    with pytest.raises(RecordTooLarge):
        await engine.append("in", [Draft(b"a", b"small"), Draft(b"b", b"x" * RECORD_BYTES_MAX)], 10)
    await engine.append("in", [Draft(b"c", b"fine")], 10)
    assert [entry.value for entry in await everything(engine, "in")] == [b"fine"]


async def test_a_record_at_the_limit_is_written(harness: Harness) -> None:
    """3 MB webhooks are possible."""
    engine = await harness.open(LOGS)
    value = b"\x00\xff" * ((RECORD_BYTES_MAX - 2) // 2)
    await engine.append("in", [Draft(b"ab", value, 0)], 30)
    (entry,) = await everything(engine, "in", 0)
    assert entry.value == value


async def test_an_unknown_log_or_partition_is_said(harness: Harness) -> None:
    """A typing error in a name must not wait for a timeout."""
    engine = await harness.open(LOGS)
    with pytest.raises(Misconfigured, match="nowhere"):
        await engine.append("nowhere", [Draft(b"a", b"b")], 10)
    with pytest.raises(Misconfigured, match="4"):
        await engine.append("in", [Draft(b"a", b"b", 4)], 10)


async def test_appended_records_are_there_after_a_crash(harness: Harness) -> None:
    """What `append` returned for was durable then, not at the next close."""
    engine = await harness.open(LOGS)
    await engine.append("in", numbered(500), 10)
    await harness.crash(engine)
    engine = await harness.open(LOGS)
    assert sorted(int(entry.value) for entry in await everything(engine, "in")) == list(range(500))
    await engine.append("in", numbered(10, first=500), 10)
    assert sum(end for _, end in await engine.ends("in")) == 510


async def test_a_caller_that_goes_away_does_not_cancel_its_append(harness: Harness) -> None:
    """A client that hangs up in mid-request must not leave holes behind the records that follow."""
    engine = await harness.open(LOGS)
    task = asyncio.create_task(engine.append("in", [Draft(b"a", b"left", 0)], 10))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await engine.append("in", [Draft(b"a", b"after", 0)], 10)
    assert [entry.value for entry in await everything(engine, "in", 0)] == [b"left", b"after"]


async def test_more_than_the_bytes_in_flight_waits_and_then_goes_on(harness: Harness) -> None:
    """A burst is taken as fast as the disk or the brokers take it, not as fast as memory does."""
    engine = await harness.open(LOGS, bytes_in_flight_max=50_000)
    calls = [engine.append("in", [Draft(b"k", b"%04d" % number + b"x" * 20_000, 0)], 30) for number in range(40)]
    await asyncio.gather(*(asyncio.create_task(call) for call in calls))
    assert [int(entry.value[:4]) for entry in await everything(engine, "in", 0)] == list(range(40))


async def test_an_append_that_finds_no_room_in_time_is_unavailable(harness: Harness) -> None:
    """The receiver answers 503 in time; Meta keeps the webhook."""
    engine = await harness.open(LOGS, bytes_in_flight_max=1_000)
    await engine.append("in", [Draft(b"k", b"warm", 0)], 30)
    first = asyncio.create_task(engine.append("in", [Draft(b"k", b"x" * 900, 0)], 30))
    await asyncio.sleep(0)
    with pytest.raises(LogUnavailable):
        await engine.append("in", [Draft(b"k", b"y" * 900, 0)], 0.0)
    await first
    await engine.append("in", [Draft(b"k", b"z" * 900, 0)], 30)
    values = [entry.value[:1] for entry in await everything(engine, "in", 0)]
    assert values[:2] == [b"w", b"x"]
    assert values[-1] == b"z"


async def test_an_empty_append_returns(harness: Harness) -> None:
    """Nothing to write is not an error."""
    engine = await harness.open(LOGS)
    await engine.append("in", [], 10)
    assert await engine.ends("in") == [(0, 0)] * 4


async def test_nothing_is_appended_to_a_closed_engine(harness: Harness) -> None:
    """A request that comes while we go down keeps its record."""
    engine = await harness.open(LOGS)
    await engine.close()
    with pytest.raises(LogUnavailable):
        await engine.append("in", [Draft(b"a", b"b")], 1)
