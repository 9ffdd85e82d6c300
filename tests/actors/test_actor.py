"""What every actor can rely on: order, back-pressure, restarts, and an end when nothing is left to do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker import metrics
from broker.clock import SystemClock
from broker.errors import OutOfTurn
from workers.actor import Actor, Woke

Receive = Callable[["Recorder", object], Coroutine[Any, Any, None]]


async def finish_at_once(actor: Recorder, event: object) -> None:
    actor.finish()


class Recorder(Actor[str, tuple[str, object]]):
    """Writes down what it receives and leaves the rest to a function of the test."""

    kind = "recorder"

    def __init__(self, react: Receive = finish_at_once, mailbox_max: int = 10, idle_s: float | None = None) -> None:
        super().__init__(SystemClock(), random.Random(1), mailbox_max=mailbox_max, idle_s=idle_s)
        self.seen: list[object] = []
        self.crashes: list[tuple[str, str]] = []
        self.restarts = 0
        self.attempts_max = 3
        self.react = react

    async def receive(self, event: str | tuple[str, object] | Woke) -> None:
        self.seen.append("woke" if isinstance(event, Woke) else event)
        await self.react(self, event)

    async def crashed(self, mail: str, error: Exception) -> bool:
        self.crashes.append((mail, str(error)))
        return len([crash for crash in self.crashes if crash[0] == mail]) >= self.attempts_max

    def restart(self) -> None:
        self.restarts += 1

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - a condition on an object, not an event
                await asyncio.sleep(0.001)


@asynccontextmanager
async def running(actor: Recorder) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(actor.run())
    try:
        yield task
    finally:
        task.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(task, return_exceptions=True)


async def test_mail_is_taken_in_order_one_at_a_time() -> None:
    """Order per customer rests on this."""
    inside = 0

    async def react(actor: Recorder, event: object) -> None:
        nonlocal inside
        inside += 1
        assert inside == 1
        await asyncio.sleep(0)
        inside -= 1
        actor.finish()

    actor = Recorder(react, mailbox_max=100)
    async with running(actor):
        for number in range(50):
            await actor.put(str(number))
        await actor.until(lambda: len(actor.seen) == 50)
    assert actor.seen == [str(number) for number in range(50)]


async def test_answers_and_wake_ups_come_before_mail_and_no_mail_before_finish() -> None:
    """A record is finished before the next is taken, however long its I/O and its pauses."""

    async def work() -> tuple[str, object]:
        await asyncio.sleep(0.01)
        return ("answer", 1)

    async def react(actor: Recorder, event: object) -> None:
        match event:
            case "a":
                actor.begin(work())
            case ("answer", _):
                actor.wake_at(actor.clock.monotonic() + 0.01)
            case _:
                actor.finish()

    actor = Recorder(react)
    async with running(actor):
        for mail in "abc":
            await actor.put(mail)
        await actor.until(lambda: len(actor.seen) == 5)
    assert actor.seen == ["a", ("answer", 1), "woke", "b", "c"]


async def test_a_later_wake_up_replaces_an_earlier_one() -> None:
    """An actor has one alarm clock, so a changed mind leaves no stray wake-up behind."""

    async def react(actor: Recorder, event: object) -> None:
        if event == "a":
            actor.wake_at(actor.clock.monotonic() + 0.005)
            actor.wake_at(actor.clock.monotonic() + 0.02)
        else:
            actor.finish()

    actor = Recorder(react)
    async with running(actor):
        await actor.put("a")
        await actor.until(lambda: len(actor.seen) == 2)
        await asyncio.sleep(0.03)
    assert actor.seen == ["a", "woke"]


async def test_a_later_wake_up_replaces_one_whose_time_has_come() -> None:
    """Whoever is hastened in the very turn in which its pause ends would else begin its work twice."""

    async def react(actor: Recorder, event: object) -> None:
        if event == "a":
            actor.wake_at(actor.clock.monotonic())
            await asyncio.sleep(0.01)
            assert actor._timer is None, "its time has come, and it was not received"
            actor.wake_at(actor.clock.monotonic() + 0.01)
            return
        actor.finish()

    actor = Recorder(react)
    async with running(actor):
        for mail in "ab":
            await actor.put(mail)
        await actor.until(lambda: "b" in actor.seen)
        await asyncio.sleep(0.03)
    assert actor.seen == ["a", "woke", "b"]


async def test_whoever_puts_waits_while_the_mailbox_is_full() -> None:
    """Bounded memory: the wait travels up to whoever reads the log."""
    go_on = asyncio.Event()

    async def react(actor: Recorder, event: object) -> None:
        await go_on.wait()
        actor.finish()

    actor = Recorder(react, mailbox_max=2)
    waiting = metrics.actor_mailbox_records.labels("recorder")
    before = waiting._value.get()
    async with running(actor):
        for mail in "abc":
            await asyncio.wait_for(actor.put(mail), 1)  # one in hand, two in the mailbox
            await asyncio.sleep(0.001)
        late = [asyncio.create_task(actor.put(mail)) for mail in "de"]
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in late)
        assert waiting._value.get() == before + 2
        go_on.set()
        await asyncio.wait_for(asyncio.gather(*late), 1)
        await actor.until(lambda: len(actor.seen) == 5)
    assert actor.seen == list("abcde")
    assert waiting._value.get() == before


async def test_a_crash_restarts_the_actor_and_the_mail_comes_again() -> None:
    """A crash by chance costs a rest, not a record."""

    async def react(actor: Recorder, event: object) -> None:
        if event == "b" and actor.restarts == 0:
            raise ValueError("by chance")
        actor.finish()

    actor = Recorder(react)
    async with running(actor):
        for mail in "abc":
            await actor.put(mail)
        await actor.until(lambda: len(actor.seen) == 4)
    assert actor.seen == ["a", "b", "b", "c"]
    assert actor.crashes == [("b", "by chance")]
    assert actor.restarts == 1


async def test_mail_that_crashes_thrice_is_set_aside_and_the_next_is_taken() -> None:
    """One poisonous record must not stop its actor for ever."""

    async def react(actor: Recorder, event: object) -> None:
        if event == "poison":
            raise ValueError("always")
        actor.finish()

    actor = Recorder(react)
    async with running(actor):
        await actor.put("poison")
        await actor.put("b")
        await actor.until(lambda: "b" in actor.seen)
    assert actor.seen == ["poison", "poison", "poison", "b"]
    assert len(actor.crashes) == 3


async def test_crashed_work_crashes_the_actor_and_drops_what_else_it_began() -> None:
    """State made anew must not be given answers meant for the old one."""
    cancelled = asyncio.Event()

    async def fails() -> tuple[str, object]:
        await asyncio.sleep(0.005)
        raise ValueError("in the work")

    async def lasts() -> tuple[str, object]:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()
        return ("late", None)

    async def react(actor: Recorder, event: object) -> None:
        if actor.restarts == 0:
            actor.wake_at(actor.clock.monotonic() + 0.05)
            actor.begin(lasts())
            actor.begin(fails())
        else:
            actor.finish()

    actor = Recorder(react)
    async with running(actor):
        await actor.put("a")
        await actor.until(lambda: len(actor.seen) == 2)
        assert cancelled.is_set()
        await asyncio.sleep(0.1)
    assert actor.seen == ["a", "a"]
    assert actor.crashes == [("a", "in the work")]


async def test_mail_in_hand_with_nothing_to_wait_for_is_a_crash_not_a_silence() -> None:
    """Forgetting `finish` would stop a customer for ever without a word."""

    async def react(actor: Recorder, event: object) -> None:
        if event != "forgotten":
            actor.finish()

    actor = Recorder(react)
    async with running(actor):
        await actor.put("forgotten")
        await actor.put("b")
        await actor.until(lambda: "b" in actor.seen)
    assert "waits for nothing" in actor.crashes[0][1]


@pytest.mark.parametrize("idle_s", [0.0, 0.02])
async def test_an_idle_actor_ends_and_takes_no_more_mail(idle_s: float) -> None:
    """A million customers write in a day; only those with something to do occupy memory."""
    actor = Recorder(idle_s=idle_s)
    live = metrics.actors_live.labels("recorder")
    before = live._value.get()
    await actor.put("a")
    async with running(actor) as task:
        await asyncio.wait_for(asyncio.shield(task), 5)
        assert actor.seen == ["a"]
        assert actor.has_ended
        with pytest.raises(OutOfTurn):
            await asyncio.wait_for(actor.put("b"), 1)
    assert live._value.get() == before


async def test_an_actor_with_a_wake_up_or_work_is_not_idle() -> None:
    """Passivation must not forget a promise the actor made to itself."""

    async def react(actor: Recorder, event: object) -> None:
        actor.finish()
        if event == "a":
            actor.wake_at(actor.clock.monotonic() + 0.05)

    actor = Recorder(react, idle_s=0.01)
    async with running(actor) as task:
        await actor.put("a")
        await asyncio.wait_for(asyncio.shield(task), 5)
    assert actor.seen == ["a", "woke"]


async def test_whoever_waits_to_put_learns_that_the_actor_ended() -> None:
    """A lost lease ends a partition's actors while its reader waits for room; it must not wait for ever."""

    async def react(actor: Recorder, event: object) -> None:
        await asyncio.sleep(60)

    actor = Recorder(react, mailbox_max=1)
    async with running(actor):
        await actor.put("a")
        await asyncio.sleep(0.001)
        await actor.put("b")
        late = [asyncio.create_task(actor.put(mail)) for mail in "cde"]
        await asyncio.sleep(0.001)
    results = await asyncio.wait_for(asyncio.gather(*late, return_exceptions=True), 1)
    assert [type(result) for result in results] == [OutOfTurn] * 3


async def test_an_error_of_setting_aside_ends_the_actor() -> None:
    """Who cannot even set a record aside must not go on as if it had: whoever runs the actor decides."""

    class Hopeless(Recorder):
        async def crashed(self, mail: str, error: Exception) -> bool:
            raise RuntimeError("no place for dead letters")

    async def react(actor: Recorder, event: object) -> None:
        raise ValueError("always")

    actor = Hopeless(react)
    async with running(actor) as task:
        await actor.put("a")
        with pytest.raises(RuntimeError, match="no place"):
            await asyncio.wait_for(asyncio.shield(task), 5)
