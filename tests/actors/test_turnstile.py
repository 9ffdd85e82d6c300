"""The line before a number's window: one asks at a time, replies first, and nobody is kept out."""

from __future__ import annotations

import asyncio

import pytest

from broker.core.sender import AHEAD_S, INTENT_S_MAX, LANE_SHARE_MAX
from schemas.records import Lane
from workers.turnstile import SLACK_S, Place, Turnstile

pytestmark = pytest.mark.timeout(10)


def enter(turnstile: Turnstile, count: int, lane: Lane = "reply", now: float = 0.0) -> list[asyncio.Task[None]]:
    """Let so many callers join one after the other; each leaves when it is its turn."""

    async def pass_through() -> None:
        with turnstile.join(lane, now) as place:
            while turnstile.first() is not place:
                await place.moved(None)

    return [asyncio.create_task(pass_through()) for _ in range(count)]


def order_of(turnstile: Turnstile) -> list[Place]:
    """Call one after the other to the front and away; return them in the order of their turns."""
    order = []
    while (place := turnstile.first()) is not None:
        order.append(place)
        place.gone = True
    return order


async def test_who_came_first_goes_first() -> None:
    """Within a lane nobody passes anybody."""
    turnstile = Turnstile()
    with turnstile.join("reply", 1.0) as first, turnstile.join("reply", 1.0) as second:
        assert turnstile.first() is first
        assert len(turnstile) == 2
        assert order_of(turnstile) == [first, second]


async def test_a_reply_passes_what_a_campaign_has_ahead() -> None:
    """Everything a campaign may have intended is called within its share of half a second: less than its slack."""
    turnstile = Turnstile()
    with (
        turnstile.join("campaign", 1.0) as campaign,
        turnstile.join("transactional", 1.0) as order,
        turnstile.join("reply", 1.0 + AHEAD_S * LANE_SHARE_MAX["transactional"]) as reply,
    ):
        assert order_of(turnstile) == [reply, order, campaign]
    for lane in ("transactional", "campaign"):
        assert SLACK_S[lane] > AHEAD_S * LANE_SHARE_MAX[lane]
    assert SLACK_S["campaign"] + AHEAD_S < INTENT_S_MAX, "what a reply may pass it by is over before its intent is old"


async def test_a_campaign_that_has_waited_passes_later_replies() -> None:
    """However many replies come, a campaign's call is kept for its slack only, and its intent stays young enough."""
    turnstile = Turnstile()
    with turnstile.join("campaign", 1.0) as campaign, turnstile.join("reply", 1.0 + SLACK_S["campaign"] + 0.01):
        assert turnstile.first() is campaign


async def test_who_leaves_calls_the_next() -> None:
    """Nobody sleeps at the head of the line, whether the one before was let through or gave up."""
    turnstile = Turnstile()
    tasks = enter(turnstile, 50)
    async with asyncio.timeout(5.0):
        await asyncio.gather(*tasks)
    assert turnstile.first() is None
    assert len(turnstile) == 0


async def test_a_cancelled_caller_leaves_its_place() -> None:
    """A call that is given up while it waits must not hold those behind it."""
    turnstile = Turnstile()
    with turnstile.join("reply", 0.0):
        tasks = enter(turnstile, 4, now=1.0)
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[2].cancel()
        await asyncio.sleep(0)
        assert len(turnstile) == 3
    async with asyncio.timeout(5.0):
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in ended] == [True, False, True, False]
    assert turnstile.first() is None


async def test_everybody_can_be_made_to_look() -> None:
    """A lease that is gone concerns all who wait, not only the first."""
    turnstile = Turnstile()
    looked = 0

    async def look() -> None:
        nonlocal looked
        with turnstile.join("reply", 0.0) as place:
            await place.moved(None)
            looked += 1

    with turnstile.join("reply", -1.0):
        tasks = [asyncio.create_task(look()) for _ in range(5)]
        await asyncio.sleep(0)
        turnstile.call_all()
        async with asyncio.timeout(5.0):
            await asyncio.gather(*tasks)
    assert looked == 5


async def test_a_wait_ends_with_its_time() -> None:
    """The first in line looks up although nobody calls: intents age, and windows open by time alone."""
    turnstile = Turnstile()
    loop = asyncio.get_running_loop()
    with turnstile.join("reply", 0.0) as place:
        began = loop.time()
        await place.moved(0.05)
        assert 0.045 <= loop.time() - began < 1.0
