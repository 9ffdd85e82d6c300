"""The world's people and campaigns: who writes what and when, by seed."""

from __future__ import annotations

import asyncio
from typing import Any

from broker.sandbox.people import Person
from broker.sandbox.platform import Platform
from tests.simulation.bots import NotTaken, ask
from tests.simulation.brand import LINES, UNKNOWN_NUMBER, people
from tests.simulation.evidence import Asked, Evidence
from tests.simulation.loop import Process
from tests.simulation.net import Net

CAMPAIGN_LIFE_S = 90.0
"""A campaign's message is good for so long: a doubt about one is over soon."""

CAMPAIGN_REST_S = (15.0, 45.0)
"""Between two campaigns, each of one to three messages to everybody: often enough that storms meet full queues."""


class Crowd:
    """Customers. Each has a number they mostly write to, a stream of places, and moods."""

    def __init__(self, process: Process, platform: Platform, evidence: Evidence) -> None:
        self._process = process
        self._platform = platform
        self._evidence = evidence
        self._random = evidence.sim.random("crowd")
        self._people = people()
        self._places: dict[tuple[str, str], int] = {}
        self._moving = evidence.sim.random("moves")
        self._phones: dict[int, list[str]] = {}
        """Those each person had, by their place in the list, the present one last."""
        self.moves = 0
        self.quiet = False
        self.rate = 1.0
        """Turns to write a second, all customers together: the most talkative is answered as fast as a pair allows."""

    def introduce(self) -> None:
        """Make everybody known to the platform."""
        for person in self._people:
            self._platform.introduce(person)

    async def live(self) -> None:
        """Write until the process is to stop."""
        random = self._random
        while not self._process.stopping.is_set():
            await asyncio.sleep(random.expovariate(self.rate))
            if self.quiet:
                continue
            index = int(random.random() ** 1.2 * len(self._people))
            person = self._people[index]
            line = LINES[index % len(LINES)] if random.random() < 0.9 else random.choice(LINES)
            number = UNKNOWN_NUMBER if random.random() < 0.01 else line.phone_number_id
            if random.random() < 0.02:
                self._platform.prefer(number, person.id, marketing=random.random() < 0.5)
                continue
            if self._moving.random() < MOVES:
                self.move(line.phone_number_id, index)
            for _ in range(random.choice([1, 1, 1, 1, 1, 2, 5])):
                self.say(number, person)

    def move(self, number: str, index: int) -> None:
        """Let somebody get another phone, or go back to one they had, and with it another BSUID."""
        person, self.moves = self._people[index], self.moves + 1
        bsuid = f"US.77{self.moves:018d}" if person.bsuid else ""
        if not person.wa_id:
            self._platform.renumber(number, person.id, bsuid=bsuid)
            return
        phones = self._phones.setdefault(index, [person.wa_id])
        phone = f"1555100{self.moves:04d}"
        if len(phones) > 1 and self._moving.random() < 0.4:
            phone = self._moving.choice(phones[:-1])
        phones.append(phone)
        self._platform.renumber(number, person.id, wa_id=phone, bsuid=bsuid)

    def greet(self, number: str, index: int) -> None:
        """Let somebody write to a number, so that it has statuses and we hear that Meta's webhooks arrive."""
        self.say(number, self._people[index % len(self._people)], "")

    def say(self, number: str, person: Person, words: str | None = None) -> None:
        """Write one text; its place in the customer's stream stands in it."""
        random = self._random
        place = self._places[number, person.id] = self._places.get((number, person.id), -1) + 1
        if words is None:
            words = " ".join(word for word, chance in _WORDS if random.random() < chance)
        stream = f"{number[-1]}x{self._people.index(person)}"
        self._platform.write(number, person.id, "text", {"body": f"[{stream}:{place}] {words}"})


MOVES = 0.05
"""Of those who write, how many have another phone since: a dozen or two in a run, where a year has one for each."""

_WORDS = (("#2", 0.15), ("#3", 0.08), ("#quote", 0.1), ("#mark", 0.2), ("#code", 0.08), ("#poison", 0.006))


class Campaigns:
    """The brand's own system: sends templates to many at once, again and again until it is told they are taken."""

    def __init__(self, net: Net, process: Process, evidence: Evidence) -> None:
        self._net = net
        self._process = process
        self._evidence = evidence
        self._random = evidence.sim.random("campaigns")
        self._people = people()
        self.quiet = False

    async def live(self) -> None:
        """Begin a campaign now and then until the process is to stop."""
        random, number = self._random, 0
        while not self._process.stopping.is_set():
            await asyncio.sleep(random.uniform(*CAMPAIGN_REST_S))
            if self.quiet:
                continue
            number += 1
            line = random.choice(LINES)
            rounds = random.choice([1, 2, 3])
            send_class = random.choice(["campaign", "campaign", "transactional"])
            for turn in range(rounds):
                for index, person in enumerate(self._people):
                    await self._send(f"c{number}/{turn}/{index}", line.phone_number_id, person, send_class)

    async def _send(self, name: str, number: str, person: Person, send_class: str) -> None:
        to = {"to": person.wa_id} if person.wa_id else {"recipient": person.bsuid}
        body: dict[str, Any] = {"messaging_product": "whatsapp", **to, "type": "template"}
        body["template"] = {"name": "hello_world", "language": {"code": "en_US"}}
        headers = {"Idempotency-Key": name, "X-Depesche-Class": send_class}
        headers["X-Depesche-Not-After"] = str(self._process.clock.now() + int(CAMPAIGN_LIFE_S * 1_000))
        for _ in range(20):
            if self._process.stopping.is_set():
                return
            try:
                answer = await ask(self._net, self._process, "campaigns", number, body, headers)
            except NotTaken:
                await asyncio.sleep(2.0)
                continue
            if "messages" in answer:
                self._evidence.asked.append(Asked(self._evidence.sim.now, "steady", answer["messages"][0]["id"], ""))
            return
