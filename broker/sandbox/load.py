"""A load of simulated customers: many conversations, begun at a stated rate, and what came of them."""

from __future__ import annotations

import asyncio
import re
from random import Random

from msgspec import Struct, field

from broker.sandbox.customers import Customer, Screens, Unanswered
from broker.sandbox.faults import Fault
from broker.sandbox.people import Person, bsuid_of
from broker.sandbox.platform import Platform


class Load(Struct, frozen=True):
    """A load of customers: how many conversations of how many turns, begun at which rate.

    Open loop: conversations begin when they are due, whether or not the ones before were answered. `think_s` lies
    between an answer and the next turn. `duplicates` (0 … 1) and `batch_items` say how webhooks come.
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


class LoadReport(Struct):
    """What came of a load. Latencies run from a customer's message to its answer on the screen."""

    begun: int = 0
    written: int = 0
    answered: int = 0
    unanswered: int = 0
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
    A third of the customers each has phone and business-scoped id, the phone alone, or the business-scoped id alone.
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
            person = platform.people.add(_person(load.first_phone + i, i % 3), named=False)
            customer = screens.customer(numbers[i % len(numbers)], person.id)
            report.begun += 1
            thinks_s = [load.think_s * rng.uniform(0.5, 1.5) for _ in range(load.turns)]
            tasks.append(asyncio.create_task(_converse(screens, customer, i, load, thinks_s, report)))
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        screens.close()
    return report


async def _converse(
    screens: Screens, customer: Customer, i: int, load: Load, thinks_s: list[float], report: LoadReport
) -> None:
    clock = screens.platform.clock
    for turn in range(load.turns):
        place = f"[load-{i}:{turn}]"
        wrote_at = clock.monotonic()
        customer.say(f"Turn {turn + 1} of conversation {i} {place}")
        report.written += 1
        try:
            received = await customer.wait(re.escape(place), load.answer_within_s)
        except Unanswered:
            report.unanswered += 1
            break
        report.answered += 1
        report.latencies_s.append(received.delivered_at - wrote_at)
        customer.read()
        await asyncio.sleep(thinks_s[turn])
    screens.forget(customer)


def _person(phone: int, kind: int) -> Person:
    wa_id = str(phone)
    if kind == 0:
        return Person(wa_id=wa_id, bsuid=bsuid_of(wa_id), name=f"Customer {phone % 100_000}")
    if kind == 1:
        return Person(wa_id=wa_id, name=f"Customer {phone % 100_000}")
    return Person(bsuid=bsuid_of(wa_id), name=f"Customer {phone % 100_000}", username=f"customer.{phone % 100_000}")
