"""A load of simulated customers: many conversations, begun at a stated rate, and what came of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from random import Random
from typing import Literal

from msgspec import Struct, field

from broker.sandbox.customers import Customer, Received, Screens, Unanswered
from broker.sandbox.faults import Fault
from broker.sandbox.journal import Ended
from broker.sandbox.people import Person, bsuid_of
from broker.sandbox.platform import Platform
from broker.sandbox.tour import Broken, Tour

BROKEN_MAX = 50
"""Reasons of broken dialogues kept with their words."""

KnownBy = Literal["both", "phone", "bsuid"]


class Load(Struct, frozen=True):
    """A load of customers: how many conversations, begun at which rate.

    Open loop: conversations begin when they are due, whether or not the ones before were answered. `script`: "turns"
    writes `turns` texts and waits for an answer to each; "tour" asks for everything a bot can do. `think_s` lies
    between an answer and the next turn. `duplicates` (0 … 1) and `batch_items` say how webhooks come. `people`: by
    which ids the customers are known, in turn. `name` begins the names of the conversations.
    """

    conversations: int = 100
    turns: int = 3
    conversations_per_s: float = 10.0
    think_s: float = 1.0
    answer_within_s: float = 60.0
    duplicates: float = 0.0
    batch_items: int = 1
    numbers: list[str] = field(default_factory=list)
    first_phone: int = 15_550_100_000
    name: str = "load"
    script: Literal["turns", "tour"] = "turns"
    people: list[KnownBy] = field(default_factory=lambda: ["both", "phone", "bsuid"])


class LoadReport(Struct):
    """What came of a load. Latencies run from what a customer did to the answer on the screen.

    `whole`: conversations that came to their end as they had to. `broken`: why the first of the others did not.
    """

    begun: int = 0
    written: int = 0
    answered: int = 0
    unanswered: int = 0
    whole: int = 0
    broken: list[str] = field(default_factory=list)
    late_s_max: float = 0.0
    """How far behind its schedule a conversation began: above a few ms, the load itself was too slow."""
    latencies_s: list[float] = field(default_factory=list)

    def quantile_s(self, share: float) -> float:
        """Return a quantile of the latencies, 0 when there are none."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def run_load(platform: Platform, load: Load, rng: Random, report: LoadReport | None = None) -> LoadReport:
    """Run a load to its end: every conversation is over or has waited `answer_within_s` for an answer. `report`: one
    that is filled as it goes, for whoever watches.

    Each text says its place, `[conversation:turn]`, so that the referee can tell whether it was answered and in order.
    By default a third of the customers each has phone and business-scoped id, the phone alone, or the business-scoped
    id alone.
    """
    if load.duplicates:
        platform.faults.set("duplicate", Fault(rate=load.duplicates))
    if load.batch_items > 1:
        platform.faults.set("batch", Fault(items=load.batch_items))
    numbers = load.numbers or list(platform.numbers)
    screens = Screens(platform)
    report = report if report is not None else LoadReport()
    began = platform.clock.monotonic()
    tasks: list[asyncio.Task[None]] = []
    try:
        for i in range(load.conversations):
            due = began + i / load.conversations_per_s
            wait_s = due - platform.clock.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            report.late_s_max = max(report.late_s_max, platform.clock.monotonic() - due)
            person = platform.people.add(_person(load.first_phone + i, load.people[i % len(load.people)]), named=False)
            customer = screens.customer(numbers[i % len(numbers)], person.id)
            report.begun += 1
            chance = Random(rng.getrandbits(64))  # noqa: S311  # chance to be repeated by seed, not a secret
            talk = _converse if load.script == "turns" else _tour
            tasks.append(asyncio.create_task(_talk(screens, customer, f"{load.name}-{i}", load, chance, report, talk)))
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        screens.close()
    return report


Talk = Callable[[Screens, Customer, str, Load, Random, LoadReport], Awaitable[None]]
"""One conversation to its end, by its name. Raises `Unanswered` or `Broken`."""


async def _talk(
    screens: Screens, customer: Customer, name: str, load: Load, chance: Random, report: LoadReport, talk: Talk
) -> None:
    why = ""
    try:
        await talk(screens, customer, name, load, chance, report)
        report.whole += 1
    except Unanswered as error:
        report.unanswered += 1
        why = str(error)
    except Broken as error:
        why = str(error)
    if why and len(report.broken) < BROKEN_MAX:
        report.broken.append(f"{name}: {why}")
    platform = screens.platform
    platform.journal.write(
        Ended(at=platform.clock.now(), number=customer.number, person=customer.person, name=name, why=why)
    )
    screens.forget(customer)


async def _converse(
    screens: Screens, customer: Customer, name: str, load: Load, chance: Random, report: LoadReport
) -> None:
    """Write texts, wait for an answer to each; whatever else comes is passed over."""
    clock = screens.platform.clock
    for turn in range(load.turns):
        place = f"[{name}:{turn}]"
        wrote_at = clock.monotonic()
        customer.say(f"Turn {turn + 1} of conversation {name} {place}")
        report.written += 1
        received = await customer.wait(re.escape(place), load.answer_within_s)
        report.answered += 1
        report.latencies_s.append(received.delivered_at - wrote_at)
        customer.read()
        await asyncio.sleep(load.think_s * chance.uniform(0.5, 1.5))


async def _tour(
    screens: Screens, customer: Customer, name: str, load: Load, chance: Random, report: LoadReport
) -> None:
    """Ask for everything; take nothing else for an answer."""
    clock = screens.platform.clock
    asked_at = clock.monotonic()

    async def pause(seconds: float) -> None:
        nonlocal asked_at
        await asyncio.sleep(seconds * chance.uniform(0.5, 1.5))
        asked_at = clock.monotonic()

    def answered(received: Received) -> None:
        report.answered += 1
        report.latencies_s.append(received.delivered_at - asked_at)

    try:
        await Tour(customer, name, load.answer_within_s, pause, answered).run(load.think_s)
    finally:
        report.written += customer.written


def _person(phone: int, known_by: KnownBy) -> Person:
    wa_id, name = str(phone), f"Customer {phone % 100_000}"
    if known_by == "both":
        return Person(wa_id=wa_id, bsuid=bsuid_of(wa_id), name=name)
    if known_by == "phone":
        return Person(wa_id=wa_id, name=name)
    return Person(bsuid=bsuid_of(wa_id), name=name, username=f"customer.{phone % 100_000}")
