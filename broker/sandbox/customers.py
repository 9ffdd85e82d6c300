"""Simulated customers: each plays a script of turns, or a load of many writes at a stated rate.

A customer sees a message when it is delivered, not when it is accepted. Time comes from the platform's clock and
asyncio's timers, chance from an injected generator.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from msgspec import Struct, field

from broker.sandbox.faults import Fault
from broker.sandbox.journal import Called, Entry, Ticked
from broker.sandbox.people import Person, bsuid_of
from broker.sandbox.platform import Platform
from broker.sandbox.shapes import Json

UNREAD_MAX = 1_000
"""Messages that wait for one customer's attention; the oldest are passed over."""

ON_THEIR_WAY_MAX = 200_000
"""Accepted messages that are not delivered yet."""

DEMO: tuple[Person, ...] = (
    Person(wa_id="15550001234", bsuid="US.13000000000000000001", name="Ada Example", reads="open"),
    Person(wa_id="4915550001234", bsuid="DE.17000000000000000002", name="Jörg Beispiel", reads="open"),
    Person(wa_id="15550005678", name="Leo Legacy", reads="open"),
    Person(bsuid="US.19000000000000000003", name="Cleo Sample", username="cleo.sample", reads="open"),
)
"""The customers of the phone page: two with phone and business-scoped id, one as before 2026 with the phone alone, one
with a username who hides the phone."""


class Received(NamedTuple):
    """A message on a customer's screen."""

    wamid: str
    type: str
    body: Json
    text: str
    delivered_at: float

    def choices(self) -> list[tuple[str, str]]:
        """Return what can be tapped: (id, title) of reply buttons or list rows."""
        interactive = self.body.get("interactive", {})
        action = interactive.get("action", {})
        if interactive.get("type") == "button":
            return [(button["reply"]["id"], button["reply"]["title"]) for button in action.get("buttons", [])]
        return [(row["id"], row["title"]) for section in action.get("sections", []) for row in section.get("rows", [])]


class Say(Struct, frozen=True):
    """Write a text."""

    text: str


class Await(Struct, frozen=True):
    """Wait for a message whose text matches; earlier ones are passed over."""

    pattern: str = ""
    timeout_s: float = 30.0


class Tap(Struct, frozen=True):
    """Tap the button or row with this title (or id) of the newest message that has it."""

    choice: str


class Pause(Struct, frozen=True):
    """Do nothing."""

    seconds: float


class Read(Struct, frozen=True):
    """Open the chat: delivered messages are read."""


class OptOut(Struct, frozen=True):
    """Stop marketing with the platform's own switch."""


class OptIn(Struct, frozen=True):
    """Resume marketing."""


Turn = Say | Await | Tap | Pause | Read | OptOut | OptIn


class Unanswered(Exception):
    """What a customer waited for did not come in time."""


class Screens:
    """Brings delivered messages to the customers that look at their phones. One listener for all of them."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self._customers: dict[tuple[str, str], Customer] = {}
        self._on_their_way: dict[str, Called] = {}
        self._stop = platform.journal.listen(self._see)

    def customer(self, number: str, person_id: str) -> Customer:
        """Return the customer of a chat; the same one each time."""
        key = (number, person_id)
        if key not in self._customers:
            self._customers[key] = Customer(self.platform, number, person_id)
        return self._customers[key]

    def forget(self, customer: Customer) -> None:
        """The customer puts the phone away."""
        self._customers.pop((customer.number, customer.person), None)

    def close(self) -> None:
        """Stop listening."""
        self._stop()

    def _see(self, entry: Entry) -> None:
        if isinstance(entry, Called):
            if entry.accepted and entry.kind == "message" and (entry.number, entry.person) in self._customers:
                self._on_their_way[entry.wamid] = entry
                if len(self._on_their_way) > ON_THEIR_WAY_MAX:
                    del self._on_their_way[next(iter(self._on_their_way))]
        elif isinstance(entry, Ticked) and entry.status in ("delivered", "failed"):
            called = self._on_their_way.pop(entry.wamid, None)
            customer = self._customers.get((entry.number, entry.person))
            if called is not None and customer is not None and entry.status == "delivered":
                customer.receive(called, entry.mono)


class Customer:
    """One customer in one chat: writes, waits, taps, reads."""

    def __init__(self, platform: Platform, number: str, person: str) -> None:
        self._platform = platform
        self.number = number
        self.person = person
        self.seen: deque[Received] = deque(maxlen=UNREAD_MAX)
        self._unread: deque[Received] = deque(maxlen=UNREAD_MAX)
        self._news = asyncio.Event()

    def receive(self, called: Called, at: float) -> None:
        """A message is on the screen."""
        body = json.loads(called.request)
        received = Received(called.wamid, called.type, body, shown_text(body), at)
        self.seen.append(received)
        self._unread.append(received)
        self._news.set()

    def say(self, text: str, quoting: str = "") -> str:
        """Write a text; return its wamid."""
        return self._platform.write(self.number, self.person, "text", {"body": text}, quoting=quoting)

    def tap(self, choice: str) -> str:
        """Tap what has this title or id, on the newest message that has it. Raises `Unanswered` when none has."""
        for received in reversed(self.seen):
            for choice_id, title in received.choices():
                if choice in (choice_id, title):
                    kind = "button_reply" if received.body["interactive"]["type"] == "button" else "list_reply"
                    content = {"type": kind, kind: {"id": choice_id, "title": title}}
                    return self._platform.write(
                        self.number, self.person, "interactive", content, quoting=received.wamid
                    )
        raise Unanswered(f"nothing to tap says {choice!r}")

    def read(self) -> int:
        """Open the chat; return how many messages are read by that."""
        return self._platform.open_chat(self.number, self.person)

    async def wait(self, pattern: str = "", timeout_s: float = 30.0) -> Received:
        """Wait for a message whose text matches. Raises `Unanswered`."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    while self._unread:
                        received = self._unread.popleft()
                        if re.search(pattern, received.text):
                            return received
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise Unanswered(f"nothing that matches {pattern!r} within {timeout_s} s") from None

    async def play(self, turns: Sequence[Turn]) -> list[Received]:
        """Play a script; return what was waited for. Raises `Unanswered`."""
        received = []
        for turn in turns:
            match turn:
                case Say(text):
                    self.say(text)
                case Await(pattern, timeout_s):
                    received.append(await self.wait(pattern, timeout_s))
                case Tap(choice):
                    self.tap(choice)
                case Pause(seconds):
                    await asyncio.sleep(seconds)
                case Read():
                    self.read()
                case OptOut():
                    self._platform.prefer(self.number, self.person, marketing=False)
                case OptIn():
                    self._platform.prefer(self.number, self.person, marketing=True)
        return received


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


def shown_text(body: Json) -> str:
    """Return the words of a send as its reader sees them."""
    kind = body.get("type", "text")
    content = body.get(kind, {})
    if kind == "text":
        return str(content.get("body", ""))
    if kind == "interactive":
        return str(content.get("body", {}).get("text", ""))
    if kind == "template":
        return str(content.get("name", ""))
    if kind == "reaction":
        return str(content.get("emoji", ""))
    return str(content.get("caption", "")) if isinstance(content, dict) else ""
