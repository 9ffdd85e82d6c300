"""The pieces around a lease: the state machine, signals, rests, buffers."""

from __future__ import annotations

import asyncio
import random

import pytest

from broker.clock import SystemClock
from broker.errors import LeaseLost, LeaseRevoked, OutOfTurn
from broker.log.contract import Entry, LeaseState
from broker.log.lease import (
    BUFFER_PAUSE_RECORDS,
    BUFFER_RESUME_RECORDS,
    Backoff,
    Buffer,
    Signal,
    Tenure,
    wait_any,
)


def entry(log: str, offset: int) -> Entry:
    """A record of no interest but for its place."""
    return Entry(log, 0, offset, b"k", b"v", 0)


async def test_draining_ends_away_at_once_when_nobody_works() -> None:
    """A revocation costs nothing to an idle partition."""
    tenure = Tenure("s-0", SystemClock())
    await asyncio.wait_for(tenure.drain(), 0.5)
    assert tenure.state is LeaseState.AWAY
    with pytest.raises(LeaseRevoked):
        tenure.raise_unless_committing()
    tenure.grant()
    assert tenure.stands(LeaseState.HELD)


async def test_draining_waits_for_the_last_of_two_who_work() -> None:
    """Several calls run under one lease."""
    tenure = Tenure("s-0", SystemClock())
    with tenure.working():
        with tenure.working():
            draining = asyncio.create_task(tenure.drain())
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        assert tenure.state is LeaseState.DRAINING
        tenure.raise_unless_committing()
    await asyncio.wait_for(draining, 0.5)
    assert tenure.stands(LeaseState.AWAY)


async def test_draining_does_not_wait_longer_than_it_may() -> None:
    """Half of a rebalance's patience at the most, less if asked for less."""
    tenure = Tenure("s-0", SystemClock())
    with tenure.working():
        await asyncio.wait_for(tenure.drain(0.05), 0.5)
        assert tenure.state is LeaseState.AWAY


async def test_a_cancelled_draining_still_ends_away() -> None:
    """Nothing may stay DRAINING for ever."""
    tenure = Tenure("s-0", SystemClock())
    with tenure.working():
        draining = asyncio.create_task(tenure.drain())
        await asyncio.sleep(0.01)
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)
        assert tenure.state is LeaseState.AWAY


async def test_a_lost_lease_stays_lost_and_says_why() -> None:
    """A new one is made instead."""
    tenure = Tenure("s-0", SystemClock())
    tenure.lose("fenced by a successor")
    tenure.lose("another reason")
    await tenure.drain()
    assert tenure.state is LeaseState.LOST
    with pytest.raises(LeaseLost, match=r"s-0: fenced by a successor"):
        tenure.raise_unless_committing()
    with pytest.raises(OutOfTurn):
        tenure.grant()


async def test_losing_a_lease_while_it_drains_ends_the_draining() -> None:
    """Fenced in the middle of a rebalance."""
    tenure = Tenure("s-0", SystemClock())
    with tenure.working():
        draining = asyncio.create_task(tenure.drain())
        await asyncio.sleep(0.01)
        tenure.lose("fenced")
        await asyncio.wait_for(draining, 0.5)
        assert tenure.stands(LeaseState.LOST)


async def test_a_signal_wakes_those_who_wait_and_not_those_who_come_later() -> None:
    """Nobody is woken by what they have already seen."""
    signal, other = Signal(), Signal()
    first = asyncio.create_task(signal.wait(1.0))
    second = asyncio.create_task(wait_any((other, signal), 1.0))
    await asyncio.sleep(0.01)
    signal.set()
    assert await first
    assert await second
    assert not await signal.wait(0.01)
    assert not await wait_any((signal, other), 0.0)


def test_a_rest_doubles_up_to_its_bound_and_begins_anew_after_success() -> None:
    """Jittered, so that partitions that fell together do not rise together."""
    backoff = Backoff(random.Random(1), 0.1, 2.0)
    rests = [backoff.next_s() for _ in range(8)]
    for number, rest in enumerate(rests):
        step = min(2.0, 0.1 * 2**number)
        assert step / 2 <= rest <= step
    backoff.succeeded()
    assert backoff.next_s() <= 0.1


def test_a_buffer_hands_out_each_log_in_order_and_each_its_share() -> None:
    """A flood on one input leaves room for the others."""
    buffer = Buffer(("a", "b"))
    buffer.put("a", [entry("a", offset) for offset in range(100)])
    buffer.put("b", [entry("b", offset) for offset in range(3)])
    taken = buffer.take(10)
    assert len(taken) == 10
    assert [record.offset for record in taken if record.log == "b"] == [0, 1, 2]
    rest = buffer.take(1_000, ("a",))
    assert [record.offset for record in [*taken, *rest] if record.log == "a"] == list(range(100))
    assert len(buffer) == 0
    assert buffer.take(10) == []


def test_a_buffer_rests_from_full_to_half() -> None:
    """Pausing and resuming at one mark would flutter."""
    buffer = Buffer(("a",))
    buffer.put("a", [entry("a", offset) for offset in range(BUFFER_PAUSE_RECORDS)])
    assert not buffer.is_paused("a")
    buffer.put("a", [entry("a", BUFFER_PAUSE_RECORDS)])
    assert buffer.is_paused("a")
    buffer.take(BUFFER_PAUSE_RECORDS - BUFFER_RESUME_RECORDS)
    assert buffer.is_paused("a")
    buffer.take(1)
    assert not buffer.is_paused("a")
