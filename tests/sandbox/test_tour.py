"""The tour: a bot that does all of it passes, and each thing that can go wrong is seen and named."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from broker.sandbox.load import Load, LoadReport, run_load
from broker.sandbox.referee import Referee
from broker.sandbox.tour import STEPS
from tests.sandbox.guide import Guide, Twist, image, text
from tests.sandbox.rig import NUMBER, OTHER_NUMBER, Rig, play

Json = dict[str, Any]


def toured(load: Load, twist: Twist | None = None) -> tuple[LoadReport, Referee]:
    """Let customers tour a bot, whose answers may be twisted; return the report and what the referee saw."""
    found: list[tuple[LoadReport, Referee]] = []

    async def scene(rig: Rig) -> None:
        rig.platform.postbox.poster = Guide(rig, twist) if twist is not None else Guide(rig)
        referee = Referee({NUMBER: 80, OTHER_NUMBER: 80})
        rig.platform.journal.listen(referee.see)
        found.append((await run_load(rig.platform, load, Random(1)), referee))

    play(scene)
    return found[0]


def one(**more: Any) -> Load:
    """One customer's tour of the first number; answers may take a while, for the pair limit holds the bot back."""
    return Load(conversations=1, script="tour", think_s=30.0, numbers=[NUMBER], answer_within_s=30, name="t", **more)


@pytest.mark.parametrize("known_by", ["both", "phone", "bsuid"])
def test_a_bot_that_does_all_of_it_is_found_whole(known_by: str) -> None:
    """Whichever of its ids a customer is known by."""
    report, referee = toured(one(people=[known_by]))
    assert report.broken == []
    assert (report.begun, report.whole, report.answered, report.unanswered) == (1, 1, STEPS, 0)
    assert report.written == STEPS
    assert len(report.latencies_s) == STEPS
    referee.check()
    assert referee.numbers[NUMBER].dialogues == 1
    assert referee.numbers[NUMBER].marks == 1


def at(place: str, *instead: Json) -> Twist:
    """Send something else in one place."""
    return lambda where, answer: list(instead) if where == place else [answer]


def without_context(where: str, answer: Json) -> list[Json]:
    """Quote nothing."""
    return [{key: value for key, value in answer.items() if key != "context"}]


def twice_at_two(where: str, answer: Json) -> list[Json]:
    """Answer the pick twice."""
    return [answer, answer] if where == "2" else [answer]


def one_more_at_the_end(where: str, answer: Json) -> list[Json]:
    """Say something nobody asked for, at the very end."""
    return [answer, text("By the way")] if where == "11" else [answer]


def silent_at_six(where: str, answer: Json) -> list[Json]:
    """Do not send the template."""
    return [] if where == "6" else [answer]


def swapped_bytes(where: str, answer: Json) -> list[Json]:
    """Send a picture back that the platform does not have."""
    return [{**answer, **image({**answer["image"], "id": "4711"})}] if where == "3" else [answer]


@pytest.mark.parametrize(
    ("twist", "why"),
    [
        (without_context, "the answer at [t-0:0] quotes"),
        (twice_at_two, "the answer at [t-0:3], not 'Tulips [t-0:2]'"),
        (at("1", text("no list [t-0:1]")), "interactive at [t-0:1], not text"),
        (at("2", image({"link": "https://example.com/a.jpg", "caption": "Roses [t-0:2]"})), "names the row"),
        (swapped_bytes, "the picture comes back as it was"),
        (at("4", text("Where are you? [t-0:4]")), "interactive at [t-0:4], not text"),
        (silent_at_six, "nothing that matches"),
        (at("8", text("👍 to 5 [t-0:8]")), "which of its messages"),
        (one_more_at_the_end, "no answer more than was asked for: ['By the way']"),
    ],
)
def test_what_goes_wrong_is_seen_and_named(twist: Twist, why: str) -> None:
    """A judge that lets something pass is worth nothing."""
    report, referee = toured(one(), twist)
    assert report.whole == 0
    assert len(report.broken) == 1
    assert why in report.broken[0]
    assert referee.counts["dialogue broken"] == 1
    assert referee.numbers[NUMBER].dialogues == 0


def test_a_mark_of_an_unknown_message_is_held_against_the_sender() -> None:
    """An id that was not translated is refused by Meta, and nobody else would notice."""

    async def scene(rig: Rig) -> None:
        referee = Referee({NUMBER: 80})
        rig.platform.journal.listen(referee.see)
        await rig.call({"messaging_product": "whatsapp", "status": "read", "message_id": "wamid.DOURS"})
        await asyncio.sleep(1)
        assert referee.counts == {"unknown message marked": 1}

    play(scene)
