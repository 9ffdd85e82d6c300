"""Simulated customers: each looks at a chat on a phone, writes, waits, taps, or plays a script of turns.

A customer sees a message when it is delivered, not when it is accepted. Time comes from the platform's clock and
asyncio's timers.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from broker.sandbox.journal import Called, Entry, Posted, Ticked, Webhook
from broker.sandbox.payload import unfolded
from broker.sandbox.people import Person
from broker.sandbox.platform import Platform
from broker.sandbox.shapes import Json

UNREAD_MAX = 1_000
"""Messages that wait for one customer's attention; the oldest are passed over."""

ON_THEIR_WAY_MAX = 200_000
"""Messages under way at once: accepted and not delivered yet, or written and not arrived."""

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
    quick_replies: tuple[tuple[str, str], ...] = ()
    """Of a template: (payload, title) of its buttons."""

    @property
    def quoting(self) -> str:
        """The id of the message that is shown above this one as quoted, "" when there is none."""
        return str(self.body.get("context", {}).get("message_id", ""))

    def choices(self) -> list[tuple[str, str]]:
        """Return what can be tapped: (id, title) of reply buttons, list rows or a template's quick replies."""
        if self.quick_replies:
            return list(self.quick_replies)
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
        self._written: dict[int, tuple[Customer, str]] = {}
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
        elif isinstance(entry, Webhook):
            if entry.kind == "message" and (customer := self._customers.get((entry.number, entry.person))) is not None:
                self._written[entry.seq] = (customer, entry.wamid)
                if len(self._written) > ON_THEIR_WAY_MAX:
                    del self._written[next(iter(self._written))]
        elif isinstance(entry, Posted) and entry.answer == 200:
            for seq in entry.items:
                if (written := self._written.pop(seq, None)) is not None:
                    written[0].arrived(written[1])


class Customer:
    """One customer in one chat: writes, waits, taps, sends a picture or a place, reacts, reads."""

    def __init__(self, platform: Platform, number: str, person: str) -> None:
        self._platform = platform
        self.number = number
        self.person = person
        self.seen: deque[Received] = deque(maxlen=UNREAD_MAX)
        self.written = 0
        """Messages this customer wrote."""
        self._unread: deque[Received] = deque(maxlen=UNREAD_MAX)
        self._arrived: dict[str, None] = {}
        self._news = asyncio.Event()

    def receive(self, called: Called, at: float) -> None:
        """A message is on the screen."""
        body = unfolded(json.loads(called.request))
        received = Received(called.wamid, called.type, body, shown_text(body), at)
        if called.type == "template":
            shown = self._platform.templates.render(body["template"])
            replies = tuple((button["payload"], button["title"]) for button in shown["buttons"])
            received = received._replace(text=shown["text"], quick_replies=replies)
        self.seen.append(received)
        self._unread.append(received)
        self._news.set()

    def arrived(self, wamid: str) -> None:
        """A message of this customer's arrived: its webhook was answered with 200."""
        self._arrived[wamid] = None
        self._news.set()

    def say(self, text: str, quoting: str = "") -> str:
        """Write a text; return its wamid."""
        return self._write("text", {"body": text}, quoting)

    def tap(self, choice: str) -> str:
        """Tap what has this title or id, on the newest message that has it. Raises `Unanswered` when none has."""
        for received in reversed(self.seen):
            for choice_id, title in received.choices():
                if choice not in (choice_id, title):
                    continue
                if received.quick_replies:
                    return self._write("button", {"payload": choice_id, "text": title}, received.wamid)
                kind = "button_reply" if received.body["interactive"]["type"] == "button" else "list_reply"
                return self._write(
                    "interactive", {"type": kind, kind: {"id": choice_id, "title": title}}, received.wamid
                )
        raise Unanswered(f"nothing to tap says {choice!r}")

    def show(self, data: bytes, mime_type: str, caption: str = "", quoting: str = "") -> str:
        """Send a picture; return the message's wamid. Raises ValueError when it is too large."""
        image = self._platform.attach(self.number, mime_type, data)
        return self._write("image", {"caption": caption, **image} if caption else image, quoting)

    def locate(self, latitude: float, longitude: float, name: str = "", quoting: str = "") -> str:
        """Send a place; return the message's wamid. `quoting`: the request it answers."""
        place: Json = {"latitude": latitude, "longitude": longitude}
        return self._write("location", place | {"name": name} if name else place, quoting)

    def react(self, wamid: str, emoji: str) -> str:
        """React to a message of the chat; return the reaction's wamid."""
        return self._write("reaction", {"message_id": wamid, "emoji": emoji}, "")

    @property
    def unread(self) -> list[Received]:
        """What came and was not waited for yet, oldest first."""
        return list(self._unread)

    def medium(self, received: Received) -> bytes:
        """Return the bytes of a received medium that was sent by its id; b"" when the platform has none of that id."""
        medium = self._platform.medium(str(received.body.get(received.type, {}).get("id", "")))
        return medium.data if medium is not None else b""

    def read(self) -> int:
        """Open the chat; return how many messages are read by that."""
        return self._platform.open_chat(self.number, self.person)

    async def wait(self, pattern: str = "", timeout_s: float = 30.0) -> Received:
        """Wait for a message whose text matches; those before it are passed over. Raises `Unanswered`."""
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

    async def wait_until_arrived(self, wamid: str, timeout_s: float) -> None:
        """Wait until a message of one's own arrived: what is written after that is later for everybody, while Meta
        keeps no order among what it still carries. Raises `Unanswered`."""
        try:
            async with asyncio.timeout(timeout_s):
                while wamid not in self._arrived:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise Unanswered(f"{wamid} did not arrive within {timeout_s} s") from None

    def _write(self, kind: str, content: Json, quoting: str) -> str:
        self.written += 1
        return self._platform.write(self.number, self.person, kind, content, quoting=quoting)

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
