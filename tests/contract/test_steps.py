"""Steps: whole or not at all, read back as committed, refused once fenced."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.errors import LeaseLost, RecordTooLarge
from broker.log.contract import RECORD_BYTES_MAX, SNAPSHOT, Draft, LeaseState, Stage, Step
from tests.contract.harness import Harness
from tests.contract.programs import COPY, LOGS, MERGE, Copying, Idle, everything, numbered, shown, state_of, until

JOURNALLED = Stage("journalled", ("in",), "journal")


async def test_each_record_is_handled_once_with_the_state_before_it(harness: Harness) -> None:
    """The count beside each copy would tell of a loss, a double or a disorder."""
    engine = await harness.open(LOGS)
    copying = Copying(records_max=30)
    await engine.own(COPY, copying)
    await engine.append("in", numbered(400), 10)
    await until(lambda: copying.copied == 400)
    seen: dict[bytes, int] = {}
    values = []
    for entry in await shown(engine, "out", 400):
        value, count = entry.value.split(b" #")
        seen[entry.key] = seen.get(entry.key, 0) + 1
        assert int(count) == seen[entry.key]
        values.append(int(value))
    assert sorted(values) == list(range(400))


async def test_what_a_step_derives_stands_in_its_order(harness: Harness) -> None:
    """A conversation's deliveries leave as they were decided."""
    engine = await harness.open(LOGS)
    idle = Idle()
    await engine.own(COPY, idle)
    lease = await idle.lease(1)
    for step in range(5):
        derived = [("out", Draft(b"one", b"%d.%d" % (step, number), 3)) for number in range(4)]
        await lease.commit(Step({"in": step}, derived))
    assert [entry.value for entry in await shown(engine, "out", 20, 3)] == [
        b"%d.%d" % (step, number) for step in range(5) for number in range(4)
    ]


async def test_state_position_and_memo_come_back(harness: Harness) -> None:
    """A restored owner goes on exactly where the last committed step ended."""
    engine = await harness.open(LOGS)
    idle = Idle()
    member = await engine.own(MERGE, idle)
    lease = await idle.lease(2)
    assert idle.restored[2].position == {}
    assert idle.restored[2].memo == b""
    await lease.commit(Step({"in": 17}, [], [(b"a", b"1"), (b"b", b"2")], b"first"))
    await lease.commit(Step({"second": 4}, [], [(b"a", b"3"), (b"b", None)], b"\x00\xffsecond"))
    await member.leave()
    restored = await state_of(engine, MERGE, 2)
    assert dict(restored.records) == {b"a": b"3"}
    assert restored.position == {"in": 17, "second": 4}
    assert restored.memo == b"\x00\xffsecond"
    assert (await state_of(engine, MERGE, 1)).position == {}


async def test_the_last_of_two_changes_of_a_step_wins(harness: Harness) -> None:
    """Changes are in order, within a step too."""
    engine = await harness.open(LOGS)
    idle = Idle()
    member = await engine.own(COPY, idle)
    changes: list[tuple[bytes, bytes | None]] = [(b"a", b"1"), (b"a", b"2"), (b"b", None), (b"b", b""), (b"c", b"x")]
    await (await idle.lease(0)).commit(Step({"in": 1}, [], [*changes, (b"c", None)]))
    await member.leave()
    assert dict((await state_of(engine, COPY, 0)).records) == {b"a": b"2", b"b": b""}


Changes = list[tuple[int, int | None]]


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    history=st.lists(
        st.one_of(
            st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 99))), min_size=1, max_size=8),
            st.sampled_from(["crash", "leave", "usurp"]),
        ),
        max_size=10,
    )
)
def test_restored_state_equals_committed_state_whatever_happened(
    harness: Harness, history: list[Changes | str]
) -> None:
    """Changes, tombstones, departures, crashes and successors in any order."""
    loop = asyncio.get_event_loop_policy().get_event_loop()  # the one the fixtures run on
    loop.run_until_complete(asyncio.wait_for(_live(harness, history), 110))


async def _live(harness: Harness, history: list[Changes | str]) -> None:
    engine = await harness.open(LOGS)
    idle = Idle()
    member = await engine.own(COPY, idle)
    # Earlier examples left their state: go on from it.
    lease = await idle.lease(3)
    expected = dict(idle.restored[3].records)
    position = dict(idle.restored[3].position).get("in", 0)
    for happening in history:
        if happening == "leave":
            await member.leave()
        elif happening == "crash":
            await harness.crash(engine)
            engine = await harness.open(LOGS)
        elif happening == "usurp":
            position += 1
            expected[b"usurper"] = b"%d" % position
            await harness.usurp(engine, COPY, 3, Step({"in": position}, [], [(b"usurper", b"%d" % position)]))
            with pytest.raises(LeaseLost):
                await lease.commit(Step({"in": 0}, [], [(b"usurper", b"overwritten")]))
            await member.leave()
        else:
            assert not isinstance(happening, str)
            position += 1
            changes = [(b"%d" % key, None if value is None else b"%d" % value) for key, value in happening]
            await lease.commit(Step({"in": position}, [], list(changes)))
            for key, value in changes:
                if value is None:
                    expected.pop(key, None)
                else:
                    expected[key] = value
            continue
        idle = Idle()
        member = await engine.own(COPY, idle)
        lease = await idle.lease(3)
        assert dict(idle.restored[3].records) == expected
        assert dict(idle.restored[3].position).get("in", 0) == position
    await engine.close()


async def test_a_journal_is_read_back_from_its_last_snapshot(harness: Harness) -> None:
    """A sender's memory of a crash: all records since, in order, the snapshot first."""
    engine = await harness.open(LOGS)
    idle = Idle()
    member = await engine.own(JOURNALLED, idle)
    lease = await idle.lease(1)
    await lease.commit(Step({"in": 1}, [], [(b"intent", b"1"), (b"intent", b"2")]))
    await lease.commit(Step({"in": 2}, [], [(SNAPSHOT, b"old"), (b"intent", b"3")]))
    await lease.commit(Step({"in": 3}, [], [(SNAPSHOT, b"new"), (b"intent", b"4")]))
    await lease.commit(Step({"in": 4}, [], [(b"intent", b"5"), (b"answer", b"4")], b"memo"))
    await member.leave()
    restored = await state_of(engine, JOURNALLED, 1)
    assert restored.records == [
        (SNAPSHOT, b"new"),
        (b"intent", b"4"),
        (b"intent", b"5"),
        (b"answer", b"4"),
    ]
    assert (restored.position, restored.memo) == ({"in": 4}, b"memo")


async def test_a_journal_without_a_snapshot_is_read_back_whole(harness: Harness) -> None:
    """Before the first snapshot everything is needed."""
    engine = await harness.open(LOGS)
    idle = Idle()
    member = await engine.own(JOURNALLED, idle)
    lease = await idle.lease(0)
    for number in range(3):
        await lease.commit(Step({"in": number}, [], [(b"intent", b"%d" % number)]))
    await member.leave()
    assert (await state_of(engine, JOURNALLED, 0)).records == [(b"intent", b"0"), (b"intent", b"1"), (b"intent", b"2")]


async def test_an_oversized_record_refuses_the_step_and_spares_the_lease(harness: Harness) -> None:
    """One customer's monster must not cost the partition its memory."""
    engine = await harness.open(LOGS)
    idle = Idle()
    await engine.own(COPY, idle)
    lease = await idle.lease(0)
    large = b"x" * (RECORD_BYTES_MAX + 1)
    for step in (
        Step({"in": 1}, [("out", Draft(b"a", b"1")), ("out", Draft(b"a", large))], [(b"a", b"1")]),
        Step({"in": 1}, [("out", Draft(b"a", b"1"))], [(b"b", large)]),
        Step({"in": 1}, [("out", Draft(b"a", b"1"))], [], b"m" * 65_537),
    ):
        with pytest.raises(RecordTooLarge):
            await lease.commit(step)
    assert await everything(engine, "out") == []
    assert lease.state is LeaseState.HELD
    await lease.commit(Step({"in": 1}, [("out", Draft(b"a", b"2"))], [(b"a", b"2")]))
    assert [entry.value for entry in await shown(engine, "out", 1)] == [b"2"]
    assert idle.runs == 4


async def test_a_successor_fences_and_the_refused_step_is_never_read(harness: Harness) -> None:
    """The zombie's step: derived records, state and position are all refused."""
    engine = await harness.open(LOGS)
    idle = Idle()
    member = await engine.own(COPY, idle)
    lease = await idle.lease(2)
    await lease.commit(Step({"in": 1}, [("out", Draft(b"k", b"mine"))], [(b"a", b"mine")], b"mine"))
    theirs = Step({"in": 5}, [("out", Draft(b"k", b"theirs"))], [(b"a", b"theirs")], b"theirs")
    await harness.usurp(engine, COPY, 2, theirs)
    with pytest.raises(LeaseLost):
        await lease.commit(Step({"in": 2}, [("out", Draft(b"k", b"zombie"))], [(b"a", b"zombie")], b"zombie"))
    assert lease.state is LeaseState.LOST
    with pytest.raises(LeaseLost):
        await lease.fetch(1, 0.1)
    with pytest.raises(LeaseLost):
        await lease.commit(Step({"in": 3}))
    await member.leave()
    assert [entry.value for entry in await shown(engine, "out", 2)] == [b"mine", b"theirs"]
    restored = await state_of(engine, COPY, 2)
    assert (dict(restored.records), restored.position, restored.memo) == ({b"a": b"theirs"}, {"in": 5}, b"theirs")


async def test_an_empty_step_of_a_fenced_owner_is_refused_too(harness: Harness) -> None:
    """A step that only moves the position is still a step."""
    engine = await harness.open(LOGS)
    idle = Idle()
    await engine.own(COPY, idle)
    lease = await idle.lease(0)
    await harness.usurp(engine, COPY, 0)
    with pytest.raises(LeaseLost):
        await lease.commit(Step({}))


async def test_a_fenced_owner_runs_again_with_what_was_committed(harness: Harness) -> None:
    """While the partition is still granted to us, a new coroutine restores and goes on."""
    engine = await harness.open(LOGS)
    copying = Copying()
    await engine.own(COPY, copying)
    await engine.append("in", [Draft(b"k", b"0", 1)], 10)
    await until(lambda: copying.copied == 1)
    await harness.usurp(engine, COPY, 1, Step({"in": 2}, [], [(b"k", b"70")]))
    await engine.append("in", [Draft(b"k", b"1", 1), Draft(b"k", b"2", 1)], 10)
    await until(lambda: copying.copied >= 2)
    await until(lambda: copying.counts[1] == {b"k": 71})
    values = [entry.value for entry in await shown(engine, "out", 2)]
    assert values == [b"0 #1", b"2 #71"]


async def test_a_partition_of_another_stage_is_not_fenced(harness: Harness) -> None:
    """Stages scale and fail by themselves, though they read the same log."""
    engine = await harness.open(LOGS)
    idle, other = Idle(), Idle()
    await engine.own(COPY, idle)
    await engine.own(Stage("other", ("in",), "journal"), other)
    lease, spared = await idle.lease(0), await other.lease(0)
    await harness.usurp(engine, COPY, 0)
    await spared.commit(Step({"in": 1}, [], [(b"a", b"1")]))
    with pytest.raises(LeaseLost):
        await lease.commit(Step({"in": 1}))


async def test_proof_of_ownership_moves_with_each_step(harness: Harness) -> None:
    """A sender asks how old it is before its bytes leave."""
    engine = await harness.open(LOGS)
    idle = Idle()
    await engine.own(COPY, idle)
    lease = await idle.lease(0)
    before = lease.proven_at
    await asyncio.sleep(0.05)
    assert lease.proven_at == before
    await lease.commit(Step({"in": 1}))
    assert lease.proven_at >= before + 0.04


async def test_two_stages_with_one_input_each_see_all_of_it(harness: Harness) -> None:
    """Inputs are shared, positions are not."""
    engine = await harness.open(LOGS)
    first, second = Copying(), Copying()
    await engine.own(COPY, first)
    await engine.own(Stage("again", ("in",), "journal"), second)
    await engine.append("in", numbered(50), 10)
    await until(lambda: first.copied == 50)
    await until(lambda: second.copied == 50)
