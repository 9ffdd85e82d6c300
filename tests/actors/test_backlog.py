"""More sends than memory holds, on virtual time: order, doubt and neighbours, through restarts, with the real stage."""

from __future__ import annotations

import asyncio

import pytest

from broker.sandbox.faults import Fault
from broker.sandbox.journal import Called
from schemas.records import Settle
from tests.actors.sending import GREETING, Sending, numbers, play, settings_of, template_send

pytestmark = pytest.mark.timeout(60)

ROOM = 40
SETTINGS = settings_of(numbers(2, slots=1), slots=1, pending_max=ROOM)
"""Two numbers at one slot: twenty sends of a lane in memory for each."""

FIRST, SECOND = (number.phone_number_id for number in SETTINGS.numbers)


def accepted(sending: Sending, number: str) -> list[str]:
    """Return what the platform accepted of a number, in order."""
    entries = sending.platform.journal.since(0, 200_000)
    return [entry.send for entry in entries if isinstance(entry, Called) and entry.accepted and entry.number == number]


async def campaign(sending: Sending, number: str, count: int, people: int) -> list[str]:
    """Put a campaign of so many sends to so many people, one after the other each."""
    names = [f"{n % people}/{n // people}" for n in range(count)]
    for n, name in enumerate(names):
        await sending.put(template_send(name, number, f"49151{n % people:07d}", "campaign", GREETING))
    return names


def test_a_campaign_larger_than_memory_goes_out_whole_once_and_in_order() -> None:
    """What is left in the log is read again as room comes, also by the next owner."""

    async def scene(sending: Sending) -> None:
        names = await campaign(sending, FIRST, 400, 100)
        await asyncio.sleep(1.0)
        await sending.restart_stage()
        await asyncio.sleep(120.0)
        gone = accepted(sending, FIRST)
        assert sorted(gone) == sorted(names), "each once"
        for person in range(100):
            mine = [name for name in gone if name.startswith(f"{person}/")]
            assert mine == [f"{person}/{turn}" for turn in range(4)]

    play(scene, SETTINGS)


def test_a_stopped_numbers_backlog_keeps_no_other_number_of_its_slot_waiting() -> None:
    """A dead token is a matter of one brand's number; the lanes are shared by all of the slot."""

    async def scene(sending: Sending) -> None:
        sending.faults.set("answer", Fault(code=190, number=FIRST))
        stopped = await campaign(sending, FIRST, 300, 300)
        await sending.put(template_send("other", SECOND, "4915200001", "campaign"))
        await asyncio.sleep(2.0)
        assert sending.came_of("other") == "accepted"
        await sending.restart_stage()
        await sending.put(template_send("after", SECOND, "4915200002", "campaign"))
        await asyncio.sleep(5.0)
        assert sending.came_of("after") == "accepted"
        sending.faults.clear()
        await asyncio.sleep(120.0)
        assert sorted(accepted(sending, FIRST)) == sorted(stopped), "each once"

    play(scene, SETTINGS)


def test_a_doubt_that_ends_behind_a_full_lane_frees_it() -> None:
    """A customer in doubt who is written to more often than memory holds waited until the sends were too old."""

    async def scene(sending: Sending) -> None:
        sending.faults.set("lost_answer", Fault(number=FIRST, times=1))
        await sending.put(template_send("doubtful", FIRST, "4915100001", "reply"))
        await asyncio.sleep(2.0)
        assert sending.came_of("doubtful") == "in_doubt"
        names = [f"r{n}" for n in range(60)]
        for name in names:
            await sending.put(template_send(name, FIRST, "4915100001", "reply"))
        await asyncio.sleep(5.0)
        assert not any(sending.calls(name) for name in names)
        await sending.put(Settle("doubtful", FIRST, "main:4915100001", "reply"))
        await asyncio.sleep(900.0)
        assert accepted(sending, FIRST) == ["doubtful", *names]

    play(scene, SETTINGS)


def test_what_waits_in_the_log_expires_in_time() -> None:
    """Nobody hears of a send too late because it was never in memory."""

    async def scene(sending: Sending) -> None:
        sending.faults.set("answer", Fault(code=190, number=FIRST))
        not_after = sending.clock.now() + 30_000
        for n in range(200):
            record = template_send(f"e{n}", FIRST, f"49151{n:07d}", "campaign", not_after=not_after)
            await sending.put(record)
        await asyncio.sleep(60.0)
        assert {sending.came_of(f"e{n}") for n in range(200)} == {"expired"}

    play(scene, SETTINGS)
