"""What an operator reads about a sink that fails: soon, seldom, and nothing of a customer's."""

from __future__ import annotations

import asyncio
import logging

import pytest

from broker.clock import SystemClock
from tests.actors.bots import until
from tests.actors.test_delivery_stage import World, target, world
from workers import delivery, sink_news
from workers.sink_news import AGAIN_AFTER_S, ANEW_AFTER_S, SETTLED_S, SinkNews

__all__ = ["world"]

STAGE_LOG = "workers.sink_news"


class HandClock(SystemClock):
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.at = 1_000.0

    def monotonic(self) -> float:
        """Return where the hand stands."""
        return self.at


class Desk:
    """One sink's news, its clock, and what was said so far."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, STAGE_LOG)
        self.clock = HandClock()
        self.news = SinkNews("bot", self.clock, lambda: 7)
        self._caplog = caplog

    def said(self) -> list[tuple[str, str]]:
        """Return (level, line) of what was said since the last call."""
        lines = [(each.levelname, each.getMessage()) for each in self._caplog.records if each.name == STAGE_LOG]
        self._caplog.clear()
        return lines

    def wait(self, seconds: float) -> None:
        """Let time pass as it does in the stage, which looks every second here."""
        for _ in range(round(seconds)):
            self.clock.at += 1
            self.news.look()


@pytest.fixture
def desk(caplog: pytest.LogCaptureFixture) -> Desk:
    return Desk(caplog)


def test_the_first_failure_is_said_at_once_and_the_outage_once_a_minute(desk: Desk) -> None:
    """Silence hides a broken bot; a line for each attempt would fill the disk of whoever has 100,000 events waiting."""
    desk.news.failed("message", "status 500")
    assert desk.said() == [
        ("WARNING", "sink bot: begins to fail: status 500 at an update of kind message; events waiting: 7")
    ]
    for _ in range(round(3 * AGAIN_AFTER_S)):
        desk.clock.at += 1
        desk.news.failed("status", "timeout: no answer within 5 s")
        desk.news.look()
    said = desk.said()
    assert len(said) == 3
    assert said[0] == (
        "WARNING",
        "sink bot: goes on failing: 61 failed attempts in 60 s, the last: timeout: no answer within 5 s at an update of"
        " kind status; events waiting: 7",
    )


def test_a_sink_at_which_nothing_is_attempted_is_not_spoken_of_again(desk: Desk) -> None:
    """While its events rest, or all are set aside, there is no news of it."""
    desk.news.failed("message", "status 500")
    desk.said()
    desk.wait(3 * AGAIN_AFTER_S)
    assert desk.said() == []


def test_it_works_again_once_it_took_something_and_failed_at_nothing_since(desk: Desk) -> None:
    """One late success at the beginning of an outage is no good news."""
    desk.news.failed("message", "status 503")
    desk.news.took()
    desk.wait(SETTLED_S - 1)
    desk.news.failed("message", "status 503")
    desk.said()
    desk.wait(SETTLED_S + 1)
    assert desk.said() == []
    desk.news.took()
    desk.wait(SETTLED_S - 1)
    assert desk.said() == []
    desk.wait(1)
    assert desk.said() == [("INFO", "sink bot: works again, after 2 failed attempts in 10 s")]
    desk.news.took()
    desk.wait(2 * SETTLED_S)
    assert desk.said() == []


def test_a_sink_that_fails_anew_is_said_anew_within_seconds(desk: Desk) -> None:
    """Whoever mends a bot looks at the log now, not in a minute; yet one that comes and goes does not flood it."""
    desk.news.failed("message", "status 500")
    desk.news.took()
    desk.wait(SETTLED_S)
    desk.said()
    desk.news.failed("message", "status 501")
    desk.news.failed("message", "status 501")
    assert desk.said() == []
    desk.wait(ANEW_AFTER_S - SETTLED_S)
    assert desk.said() == [
        (
            "WARNING",
            "sink bot: fails: 2 failed attempts in 5 s, the last: status 501 at an update of kind message;"
            " events waiting: 7",
        )
    ]


def test_a_sink_that_refuses_one_event_of_many_is_named_once_a_minute(desk: Desk) -> None:
    """It takes and fails every second: that is one trouble, not sixty."""
    for _ in range(round(2 * AGAIN_AFTER_S)):
        desk.news.failed("message", "status 422")
        desk.news.took()
        desk.wait(1)
    assert len(desk.said()) == 3


def test_dead_letters_are_counted_and_said_once_a_minute_with_the_command(desk: Desk) -> None:
    """Each is an event a bot never got: an error, with the way to it; a thousand of them are still one line."""
    desk.news.set_aside("gave_up")
    see = "see: depesche deadletters list --sink bot"
    assert desk.said() == [("ERROR", f"sink bot: new dead letters: 1, the last: gave_up; {see}")]
    for _ in range(1_000):
        desk.news.set_aside("poison")
    desk.wait(AGAIN_AFTER_S - 1)
    assert desk.said() == []
    desk.wait(1)
    assert desk.said() == [("ERROR", f"sink bot: new dead letters: 1000, the last: poison; {see}")]
    desk.news.set_aside("gave_up")
    desk.news.close()
    assert len(desk.said()) == 1, "what the process still owes is said when it ends"


async def test_a_failing_bot_is_in_the_log_from_its_first_failure_to_its_recovery(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who runs the broker sees it, and reads neither a customer's number nor a word of theirs."""
    monkeypatch.setattr(delivery, "MEASURE_EVERY_S", 0.05)
    monkeypatch.setattr(sink_news, "SETTLED_S", 0.2)
    caplog.set_level(logging.INFO)
    works = False

    async def broken(customer: str, number: int, earlier: int) -> int:
        return 200 if works else 422

    bot = await world.bot(broken)
    await world.deliver(target(bot, give_up_after_s=0.4))
    await world.append("4915200000001", 0, 1)

    def said(level: int, words: str) -> list[str]:
        lines = (each.getMessage() for each in caplog.records if each.levelno == level)
        return [line for line in lines if line.startswith("sink bot: ") and words in line]

    await until(lambda: bool(said(logging.WARNING, "begins to fail: status 422 at an update of kind message")))
    await until(lambda: bool(said(logging.ERROR, "depesche deadletters list --sink bot")))
    works = True
    await until(lambda: bool(said(logging.INFO, "works again")))
    await asyncio.sleep(0.2)
    assert len(said(logging.WARNING, "fail")) == 1
    (waiting,) = said(logging.WARNING, "events waiting: ")
    assert waiting.endswith(("events waiting: 1", "events waiting: 2"))
    assert "4915200000001" not in caplog.text
    assert "ä" not in caplog.text


async def test_a_bot_that_is_not_there_is_in_the_log_with_its_breaker(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The commonest fault of all: a wrong port. Nothing was answered, so the error's class is said."""
    caplog.set_level(logging.INFO)
    bot = await world.bot()
    await bot.stop()
    await world.deliver(target(bot))
    for index in range(15):
        await world.append(f"491520000001{index}", 0)
    await until(lambda: "sink bot: breaker open" in caplog.text)
    assert "sink bot: begins to fail: connection: ClientConnectorError at an update of kind message" in caplog.text
    await bot.start()
    await until(lambda: len(bot.taken()) == 15)
    await until(lambda: "sink bot: breaker closed again" in caplog.text)
    assert "491520000001" not in caplog.text
