"""Followers: groups without state, at least once, with a text beside the offset."""

from __future__ import annotations

import asyncio

import pytest

from broker.errors import LeaseLost, RecordTooLarge
from broker.log.contract import METADATA_CHARS_MAX, Draft, Follow, LeaseState
from tests.contract.harness import Harness
from tests.contract.programs import LOGS, Listening, numbered, until


async def test_a_group_is_given_every_record_in_order(harness: Harness) -> None:
    """Each sink's events reach it as they were decided."""
    engine = await harness.open(LOGS)
    await engine.append("out", numbered(50), 10)
    listening = Listening()
    await engine.follow("delivery", ["out"], listening)
    await engine.append("out", numbered(50, first=50), 10)
    await until(lambda: len(listening.seen) == 100)
    for partition in range(4):
        values = [int(entry.value) for entry in listening.seen if entry.partition == partition]
        assert values == sorted(values)
    assert sorted(int(entry.value) for entry in listening.seen) == list(range(100))


async def test_a_group_goes_on_where_it_committed(harness: Harness) -> None:
    """A restart repeats what was not committed, and nothing else."""
    engine = await harness.open(LOGS)
    follows: dict[int, Follow] = {}
    restored: dict[int, tuple[int | None, str]] = {}

    async def run(follow: Follow) -> None:
        restored[follow.partition] = await follow.restore()
        follows[follow.partition] = follow
        await asyncio.Event().wait()

    await engine.append("out", [Draft(b"k", b"%d" % number, 1) for number in range(10)], 10)
    member = await engine.follow("delivery", ["out"], run)
    await until(lambda: len(follows) == 4)
    never: tuple[int | None, str] = (None, "")
    assert restored == dict.fromkeys(range(4), never)
    assert len(await follows[1].fetch(10, 5.0)) == 10
    await follows[1].commit(4, "0-3;7")
    await member.leave()
    follows.clear()
    await engine.follow("delivery", ["out"], run)
    await until(lambda: 1 in follows)
    assert restored.get(1) == (4, "0-3;7")
    assert [int(entry.value) for entry in await follows[1].fetch(10, 5.0)] == [4, 5, 6, 7, 8, 9]


async def test_a_committed_offset_and_its_text_outlive_a_crash(harness: Harness) -> None:
    """What is done above the watermark is remembered."""
    engine = await harness.open(LOGS)
    listening = Listening("done: 1-4")
    await engine.follow("delivery", ["out"], listening)
    await engine.append("out", [Draft(b"k", b"x", 2)] * 6, 10)
    await until(lambda: len(listening.seen) == 6)
    await asyncio.sleep(0.3)
    await harness.crash(engine)
    engine = await harness.open(LOGS)
    again = Listening()
    await engine.follow("delivery", ["out"], again)
    await until(lambda: ("out", 2) in again.restored)
    assert again.restored["out", 2] == (6, "done: 1-4")


async def test_the_text_holds_4096_characters_and_no_more(harness: Harness) -> None:
    """Characters, not bytes: what does not fit is refused before anything is written."""
    engine = await harness.open(LOGS)
    listening = Listening()
    member = await engine.follow("delivery", ["out"], listening)
    await until(lambda: ("out", 0) in listening.restored)
    follow = listening.follows["out", 0]
    text = "ü" * METADATA_CHARS_MAX
    await follow.commit(1, text)
    with pytest.raises(RecordTooLarge):
        await follow.commit(2, text + "x")
    assert follow.state is LeaseState.HELD
    await member.leave()
    again = Listening()
    await engine.follow("delivery", ["out"], again)
    await until(lambda: ("out", 0) in again.restored)
    assert again.restored["out", 0] == (1, text)


async def test_groups_do_not_share_their_offsets(harness: Harness) -> None:
    """Every sink reads by itself."""
    engine = await harness.open(LOGS)
    first, second = Listening(), Listening()
    await engine.append("out", numbered(20), 10)
    await engine.follow("one", ["out"], first)
    await until(lambda: len(first.seen) == 20)
    await engine.follow("two", ["out"], second)
    await until(lambda: len(second.seen) == 20)


async def test_a_group_follows_several_logs(harness: Harness) -> None:
    """One delivery worker serves many sinks."""
    engine = await harness.open(LOGS)
    listening = Listening()
    member = await engine.follow("delivery", ["out", "second"], listening)
    await engine.append("out", numbered(10), 10)
    await engine.append("second", numbered(10), 10)
    await until(lambda: len(listening.seen) == 20)
    await until(lambda: len(member.held()) == 8)
    assert member.held() == {(log, partition) for log in ("out", "second") for partition in range(4)}


async def test_members_share_and_a_leaver_hands_over(harness: Harness) -> None:
    """At least once: nothing is missed in a move, and what is repeated was not committed."""
    engine = await harness.open(LOGS)
    other = await harness.another(engine)
    first, second = Listening(), Listening()
    member = await engine.follow("delivery", ["out"], first)
    await until(lambda: len(member.held()) == 4)
    staying = await other.follow("delivery", ["out"], second)
    await until(lambda: len(member.held()) == 2 and len(staying.held()) == 2)
    await engine.append("out", numbered(40), 10)
    await until(lambda: len(first.seen) + len(second.seen) >= 40)
    await member.leave()
    await engine.append("out", numbered(40, first=40), 10)
    await until(lambda: len({entry.value for entry in [*first.seen, *second.seen]}) == 80)
    assert {int(entry.value) for entry in second.seen} >= set(range(40, 80))


async def test_a_member_that_lost_a_partition_cannot_commit_it(harness: Harness) -> None:
    """Its offset would take the new owner's work back."""
    engine = await harness.open(LOGS)
    other = await harness.another(engine)
    first, second = Listening(), Listening()
    member = await engine.follow("delivery", ["out"], first)
    await until(lambda: len(member.held()) == 4)
    follows = dict(first.follows)
    staying = await other.follow("delivery", ["out"], second)
    await until(lambda: len(staying.held()) == 2)
    for (log, partition), follow in follows.items():
        if (log, partition) in staying.held():
            with pytest.raises(LeaseLost):
                await follow.commit(99)
            with pytest.raises(LeaseLost):
                await follow.fetch(1, 0.1)
    await engine.append("out", numbered(40), 10)
    await until(lambda: len(first.seen) + len(second.seen) >= 40)


async def test_a_follower_that_crashes_starts_again_where_it_committed(harness: Harness) -> None:
    """At least once, also within a process."""
    engine = await harness.open(LOGS)
    seen: list[bytes] = []

    async def crashing(follow: Follow) -> None:
        await follow.restore()
        while True:
            for entry in await follow.fetch(2, 5.0):
                seen.append(entry.value)
                if len(seen) == 3:
                    raise ValueError("a bug")
                await follow.commit(entry.offset + 1)

    await engine.append("out", [Draft(b"k", b"%d" % number, 0) for number in range(6)], 10)
    await engine.follow("delivery", ["out"], crashing)
    await until(lambda: b"5" in seen)
    assert seen == [b"0", b"1", b"2", b"2", b"3", b"4", b"5"]
