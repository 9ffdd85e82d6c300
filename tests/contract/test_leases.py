"""Leases: how partitions move between members, what is kept, what is given up."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

from broker.errors import LeaseLost, LeaseRevoked, LogUnavailable, Misconfigured, WrongIncarnation
from broker.log.contract import DRAIN_S_MAX, Draft, Entry, Lease, LeaseState, LogSpec, Stage, Step
from tests.contract.harness import Harness
from tests.contract.programs import (
    COPY,
    IN,
    LOGS,
    MERGE,
    OUT,
    STATE,
    Copying,
    Idle,
    everything,
    numbered,
    shown,
    state_of,
    until,
)


async def test_one_member_is_granted_every_partition(harness: Harness) -> None:
    """A single worker does all the work."""
    engine = await harness.open(LOGS)
    copying = Copying()
    member = await engine.own(COPY, copying)
    await until(lambda: len(member.held()) == 4)
    assert member.held() == {("copy", partition) for partition in range(4)}
    assert sorted(copying.runs) == [0, 1, 2, 3]
    assert member.failure is None


async def test_partitions_move_between_members_without_loss_or_double(harness: Harness) -> None:
    """Scaling out and in under load: the counts beside the copies are right to the last."""
    engine = await harness.open(LOGS)
    other = await harness.another(engine)
    third = await harness.another(engine)
    programs = [Copying(20) for _ in range(3)]
    members = [await engine.own(COPY, programs[0])]
    stop = asyncio.Event()
    appended = 0

    async def load() -> None:
        nonlocal appended
        while not stop.is_set():
            await engine.append("in", numbered(20, keys=13, first=appended), 10)
            appended += 20
            await asyncio.sleep(0.005)

    loading = asyncio.create_task(load())
    await until(lambda: programs[0].copied > 50)
    members.append(await other.own(COPY, programs[1]))
    await until(lambda: programs[1].copied > 50)
    members.append(await third.own(COPY, programs[2]))
    await until(lambda: all(member.held() for member in members))
    await until(lambda: programs[2].copied > 20)
    assert {partition for member in members for _, partition in member.held()} == {0, 1, 2, 3}
    await members[0].leave()
    assert members[0].held() == frozenset()
    await until(lambda: sum(len(member.held()) for member in members) == 4)
    await members[2].leave()
    stop.set()
    await loading
    reached = {"n": 0}

    async def all_copied() -> None:
        while len(await everything(engine, "out")) < appended:
            await asyncio.sleep(0.05)
            reached["n"] += 1

    await asyncio.wait_for(all_copied(), 30)
    seen: dict[bytes, int] = {}
    values = []
    for entry in await everything(engine, "out"):
        value, count = entry.value.split(b" #")
        seen[entry.key] = seen.get(entry.key, 0) + 1
        assert int(count) == seen[entry.key]
        values.append(int(value))
    assert sorted(values) == list(range(appended))


async def test_a_partition_that_comes_back_unfenced_keeps_its_memory_and_its_cursor(harness: Harness) -> None:
    """A rebalance that changes nothing costs no restore, and hands no record out twice."""
    engine = await harness.open(LOGS)
    copying = Copying()
    member = await engine.own(COPY, copying)
    await engine.append("in", numbered(40), 10)
    await until(lambda: copying.copied == 40)
    leases = dict(copying.leases)
    await harness.rebalance(engine, "copy")
    await until(lambda: len(member.held()) == 4, harness.patience_s * 2)
    await engine.append("in", numbered(40, first=40), 10)
    await until(lambda: copying.copied == 80)
    assert len(copying.runs) == 4
    assert copying.leases == leases
    values = sorted(int(entry.value.split(b" #")[0]) for entry in await shown(engine, "out", 80))
    assert values == list(range(80))


async def test_records_fetched_and_not_committed_are_not_handed_out_again_after_a_rebalance(harness: Harness) -> None:
    """They are the stage's own until the lease is lost."""
    engine = await harness.open(LOGS)
    idle = Idle()
    member = await engine.own(COPY, idle)
    lease = await idle.lease(0)
    await engine.append("in", [Draft(b"k", b"%d" % number, 0) for number in range(10)], 10)
    mine = await _fetched(lease, 4)
    await harness.rebalance(engine, "copy")
    await until(lambda: len(member.held()) == 4, harness.patience_s * 2)
    rest = await _fetched(lease, 6)
    assert [int(entry.value) for entry in [*mine, *rest]] == list(range(10))
    await lease.commit(Step({"in": 10}))


async def test_nothing_is_written_while_a_partition_is_away(harness: Harness) -> None:
    """`LeaseRevoked` says so, and the memory is kept for when it comes back."""
    engine = await harness.open(LOGS)
    idle = Idle()
    await engine.own(COPY, idle)
    lease = await idle.lease(3)
    refused: list[LeaseState] = []

    async def watching() -> None:
        while not refused:
            if lease.state is LeaseState.AWAY:
                with pytest.raises(LeaseRevoked):
                    await lease.commit(Step({"in": 1}, [("out", Draft(b"k", b"away"))]))
                refused.append(lease.state)
            await asyncio.sleep(0.001)

    # Another partition keeps the rebalance open while ours is away.
    busy = await idle.lease(0)
    watcher = asyncio.create_task(watching())
    with busy.working():
        moving = asyncio.create_task(harness.rebalance(engine, "copy"))
        await asyncio.wait_for(watcher, 20)
    await moving
    await until(lambda: lease.state is LeaseState.HELD)
    await lease.commit(Step({"in": 1}, [("out", Draft(b"k", b"back"))]))
    assert [entry.value for entry in await shown(engine, "out", 1)] == [b"back"]


async def test_working_delays_a_revocation_until_it_is_done(harness: Harness) -> None:
    """A Graph call under way is better finished: else it ends in doubt."""
    engine = await harness.open(LOGS)
    idle = Idle()
    member = await engine.own(COPY, idle)
    lease = await idle.lease(1)
    began = time.monotonic()
    with lease.working():
        leaving = asyncio.create_task(member.leave())
        await until(lambda: lease.state is LeaseState.DRAINING)
        await asyncio.sleep(0.5)
        assert lease.state is LeaseState.DRAINING
        await lease.commit(Step({"in": 3}, [], [(b"a", b"finished")]))
    await leaving
    assert 0.4 < time.monotonic() - began < DRAIN_S_MAX
    assert dict((await state_of(engine, COPY, 1)).records) == {b"a": b"finished"}


async def test_working_delays_a_revocation_at_most_five_seconds(harness: Harness) -> None:
    """A hung call must not hold up a whole group."""
    engine = await harness.open(LOGS)
    idle = Idle()
    member = await engine.own(COPY, idle)
    lease = await idle.lease(1)
    began = time.monotonic()
    with lease.working():
        await member.leave(20.0)
        took = time.monotonic() - began
        assert lease.state is LeaseState.LOST
    assert DRAIN_S_MAX - 0.2 < took < DRAIN_S_MAX + harness.patience_s


async def test_leaving_is_quick_when_nobody_is_working(harness: Harness) -> None:
    """A rolling update costs each worker under a second or two, not a session timeout."""
    engine = await harness.open(LOGS)
    other = await harness.another(engine)
    first, second = Copying(), Copying()
    member = await engine.own(COPY, first)
    staying = await other.own(COPY, second)
    await until(lambda: len(member.held()) == 2 and len(staying.held()) == 2)
    began = time.monotonic()
    await member.leave()
    assert time.monotonic() - began < 3.0
    await until(lambda: len(staying.held()) == 4, harness.patience_s)
    assert all(lease.state is LeaseState.LOST for lease in first.leases.values())


async def test_leaving_twice_is_harmless(harness: Harness) -> None:
    """Shutdown paths meet."""
    engine = await harness.open(LOGS)
    member = await engine.own(COPY, Idle())
    await member.leave()
    await member.leave()
    assert member.held() == frozenset()


async def test_a_coroutine_given_to_another_member_is_cancelled(harness: Harness) -> None:
    """Its memory is somebody else's from then on."""
    engine = await harness.open(LOGS)
    other = await harness.another(engine)
    first, second = Idle(), Idle()
    await engine.own(COPY, first)
    for partition in range(4):
        await first.lease(partition)
    await other.own(COPY, second)
    await until(lambda: first.cancelled == 2 and len(second.leases) == 2)
    for partition, moved in second.leases.items():
        with pytest.raises(LeaseLost):
            await first.leases[partition].commit(Step({"in": 9}))
        await moved.commit(Step({"in": 1}))


async def test_a_coroutine_that_crashes_is_started_again_with_what_was_committed(harness: Harness) -> None:
    """A bug in a stage costs a restart and a rest, not a record."""
    engine = await harness.open(LOGS)
    starts: list[float] = []
    restored = []

    async def crashing(lease: Lease) -> None:
        state = await lease.restore()
        if lease.partition != 0:
            await asyncio.Event().wait()
        starts.append(time.monotonic())
        restored.append((dict(state.records), dict(state.position)))
        entries = await lease.fetch(1, 5.0)
        position = {"in": entries[0].offset + 1}
        await lease.commit(Step(position, [("out", Draft(b"k", entries[0].value))], [(b"a", entries[0].value)]))
        raise ValueError("a bug of the stage")

    await engine.append("in", [Draft(b"k", b"%d" % number, 0) for number in range(3)], 10)
    await engine.own(COPY, crashing)
    await until(lambda: len(starts) >= 4)
    assert restored[:3] == [({}, {}), ({b"a": b"0"}, {"in": 1}), ({b"a": b"1"}, {"in": 2})]
    assert [entry.value for entry in await shown(engine, "out", 3)] == [b"0", b"1", b"2"]
    assert all(later - earlier > 0.04 for earlier, later in pairwise(starts))


async def test_a_crashing_coroutine_rests_longer_each_time(harness: Harness) -> None:
    """It must not burn the processor, nor the disk with fencing."""
    engine = await harness.open(LOGS)
    starts: list[float] = []

    async def crashing(lease: Lease) -> None:
        if lease.partition == 0:
            starts.append(time.monotonic())
            raise ValueError("at once")
        await asyncio.Event().wait()

    await engine.own(COPY, crashing)
    await until(lambda: len(starts) >= 5)
    rests = [later - earlier for earlier, later in pairwise(starts)]
    assert rests[3] > 2 * rests[0]


async def test_fetch_is_limited_to_some_inputs(harness: Harness) -> None:
    """How a stage takes no more of a lane than it can hold."""
    engine = await harness.open(LOGS)
    idle = Idle()
    await engine.own(MERGE, idle)
    lease = await idle.lease(0)
    await engine.append("in", [Draft(b"a", b"in", 0)] * 3, 10)
    await engine.append("second", [Draft(b"a", b"second", 0)] * 3, 10)
    assert {entry.log for entry in await _fetched(lease, 3, ("second",))} == {"second"}
    assert await lease.fetch(10, 0.05, ("second",)) == []
    assert {entry.log for entry in await _fetched(lease, 3, ("in",))} == {"in"}
    assert await lease.fetch(10, 0.05, ()) == []


async def test_no_input_starves_another(harness: Harness) -> None:
    """A million campaign sends must not hide a reply."""
    engine = await harness.open(LOGS)
    idle = Idle()
    await engine.own(MERGE, idle)
    lease = await idle.lease(0)
    await engine.append("in", [Draft(b"a", b"flood", 0) for _ in range(500)], 10)
    await engine.append("second", [Draft(b"a", b"reply", 0)], 10)
    taken = []
    for _ in range(40):  # the flood lasts for fifty
        taken += await lease.fetch(10, 5.0)
        await asyncio.sleep(0.005)
    assert b"reply" in [entry.value for entry in taken]


async def test_fetch_returns_at_once_when_there_is_something_and_nothing_after_its_timeout(harness: Harness) -> None:
    """A stage wakes for records and for its deadlines."""
    engine = await harness.open(LOGS)
    idle = Idle()
    await engine.own(COPY, idle)
    lease = await idle.lease(0)
    began = time.monotonic()
    assert await lease.fetch(10, 0.2) == []
    assert 0.15 < time.monotonic() - began < 2.0
    waiting = asyncio.create_task(lease.fetch(10, 20.0))
    await asyncio.sleep(0.05)
    await engine.append("in", [Draft(b"a", b"wake", 0)], 10)
    (entry,) = await asyncio.wait_for(waiting, 5.0)
    assert entry.value == b"wake"


async def test_a_position_of_another_incarnation_is_refused_loudly(harness: Harness) -> None:
    """The log was deleted and made again: an offset in it means nothing, and silence would lose or repeat."""
    engine = await harness.open(LOGS)
    copying = Copying()
    await engine.own(COPY, copying)
    await engine.append("in", [Draft(b"k", b"%d" % number, 0) for number in range(5)], 10)
    await until(lambda: copying.copied == 5)
    await engine.close()
    await harness.recreate("in")
    engine = await harness.open(LOGS)
    again = Copying()
    member = await engine.own(COPY, again)
    await until(lambda: member.failure is not None)
    assert isinstance(member.failure, WrongIncarnation)
    assert "in" in str(member.failure)
    await until(lambda: len(member.held()) == 3)
    assert sorted(again.runs) == [1, 2, 3]


async def test_logs_of_a_stage_must_have_one_number_of_partitions(harness: Harness) -> None:
    """Partition 7 of one is partition 7 of all."""
    engine = await harness.open((IN, OUT, LogSpec("narrow", 2, "last")))
    with pytest.raises(Misconfigured, match=r"in 4.*narrow 2"):
        await engine.own(Stage("copy", ("in",), "narrow"), Idle())
    with pytest.raises(Misconfigured, match="absent"):
        await engine.own(Stage("copy", ("in",), "absent"), Idle())


async def test_another_number_of_partitions_is_refused_at_the_start(harness: Harness) -> None:
    """The key decides the partition, so the number is fixed when a log is created."""
    engine = await harness.open((IN, STATE))
    await engine.close()
    with pytest.raises(Misconfigured, match=r"'?in'?.*4.*6"):
        await harness.open((LogSpec("in", 6), STATE))
    engine = await harness.open((IN, STATE))
    await engine.append("in", [Draft(b"a", b"b")], 10)


async def test_a_log_can_be_added_later(harness: Harness) -> None:
    """A new sink is a new log."""
    engine = await harness.open((IN, STATE))
    await engine.append("in", [Draft(b"a", b"kept")], 10)
    await engine.close()
    engine = await harness.open((IN, STATE, LogSpec("deliveries.new", 2)))
    await engine.append("deliveries.new", [Draft(b"a", b"new")], 10)
    assert [entry.value for entry in await everything(engine, "in")] == [b"kept"]
    assert [entry.value for entry in await everything(engine, "deliveries.new")] == [b"new"]


async def test_closing_while_busy_is_bounded_and_loses_nothing(harness: Harness) -> None:
    """SIGTERM under load."""
    engine = await harness.open(LOGS)
    copying = Copying(10)
    await engine.own(COPY, copying)
    returned: list[int] = []

    async def appending() -> None:
        for number in range(0, 100_000, 10):
            await engine.append("in", numbered(10, first=number), 10)
            returned.append(number)

    loading = asyncio.create_task(appending())
    await until(lambda: copying.copied > 100)
    began = time.monotonic()
    await engine.close(10.0)
    assert time.monotonic() - began < 10.5
    with pytest.raises(LogUnavailable):
        await loading
    engine = await harness.open(LOGS)
    there = {int(entry.value) for entry in await everything(engine, "in")}
    assert {first + more for first in returned for more in range(10)} <= there
    rest = Copying()
    await engine.own(COPY, rest)
    await until(lambda: copying.copied + rest.copied >= len(there), 60)
    values = sorted(int(entry.value.split(b" #")[0]) for entry in await shown(engine, "out", len(there)))
    assert values == sorted(there)


async def _fetched(lease: Lease, count: int, logs: tuple[str, ...] | None = None) -> list[Entry]:
    entries: list[Entry] = []
    while len(entries) < count:
        more = await lease.fetch(count - len(entries), 10.0, logs)
        assert more, "nothing came within 10 s"
        entries += more
    return entries
