"""What holds for customers in every history of moves, whichever partition is read first and whatever crashes."""

from __future__ import annotations

import json
from random import Random
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.core import dedupe
from tests.core.conversation import NUMBER, START, send_id
from tests.core.town import Ids, Told, Town, webhook

STEP_MS = 20 * 60_000
"""Between two things that happen: more than webhooks of one person are out of order."""


class Act(NamedTuple):
    """Something that happens: what, to which person, and how."""

    what: str
    who: int
    how: int


WHATS = ("writes", "writes", "writes", "hides", "moves", "moves", "returns", "renames", "asks", "settles", "recycles")
acts = st.lists(st.builds(Act, st.sampled_from(WHATS), st.integers(0, 2), st.integers(0, 7)), min_size=1, max_size=25)
seeds = st.integers(0, 2**32 - 1)


class Person:
    """Somebody with a phone and a BSUID, who may hide the phone. `is_old`: no webhook of theirs carries a BSUID."""

    def __init__(self, number: int, kind: int) -> None:
        self.number = number
        self.phones = [f"1555{number}000001"]
        self.bsuid = f"US.{number}001"
        self.is_hidden = kind == 1
        self.is_old = kind == 2
        self.is_gone = False
        self.known_as = ""
        """The key a bot knows them by: of their last message."""
        self.is_seen = False
        """Whether their phone was seen with their BSUID; before, nobody can tell them from who had it before."""
        self.wrote: list[str] = []

    @property
    def phone(self) -> str:
        return self.phones[-1]

    @property
    def shown(self) -> Ids:
        """What an item shows of them."""
        return Ids("" if self.is_hidden else self.phone, "" if self.is_old else self.bsuid)


class Life:
    """A history played in a town: webhooks in Meta's order, partitions read in any."""

    def __init__(self, seed: int, *, partitions: int, crashes: float, is_disordered: bool) -> None:
        self.random = Random(seed)
        self.town = Town(partitions, self.random)
        self.town.crashes = crashes
        self.people = [Person(number, number % 3) for number in range(3)]
        self.is_disordered = is_disordered
        self.bodies: list[bytes] = []
        self.owner: dict[bytes, int] = {}
        """Whose a fact is, by its fingerprint."""
        self.asked: dict[str, int] = {}
        self.count = 0

    def play(self, history: list[Act]) -> None:
        """Play all of it, and let everything come to its end."""
        for act in history:
            person = self.people[act.who]
            if not person.is_gone or act.what == "settles":
                getattr(self, act.what)(person, act.how)
            self.town.now += STEP_MS
            if self.is_disordered and self.bodies and self.random.random() < 0.3:
                self.town.receive(self.random.choice(self.bodies))  # once more, late
            self.town.some()
        for _ in range(3):
            self.town.drain()
            self.town.settle()
        self.town.drain()

    def happens(self, person: Person, ids: Ids, message: dict[str, Any], dedupe_name: str) -> None:
        """Meta says something about somebody."""
        body = webhook(message, ids, self.town.now)
        self.owner[dedupe.fingerprint(dedupe_name)] = person.number
        person.wrote.append(message["id"])
        self.bodies.append(body)
        self.town.receive(body)

    def says(self, person: Person, ids: Ids, message: dict[str, Any]) -> None:
        self.count += 1
        name = f"wamid.{person.number}.{self.count}"
        self.happens(person, ids, {"id": name, **message}, f"msg:{NUMBER}:{name}")

    def writes(self, person: Person, how: int) -> None:
        self.says(person, person.shown, {"type": "text", "text": {"body": "x"}})
        person.known_as = f"main:{person.shown.wa_id or person.shown.bsuid}"
        person.is_seen = person.is_seen or bool(person.shown.wa_id and person.shown.bsuid)

    def hides(self, person: Person, how: int) -> None:
        """The phone goes out of sight, or comes back. Who was seen with it is seen with it for 30 more days (Meta,
        "Business-scoped user IDs"), so all that shows it has long been read when it goes. Nor does it come back to who
        saw it before while what was said without it is unread: the phone's key cannot know of that (ARCHITECTURE.md,
        "One person, several keys"). When it is shown for the first time, anything may be unread."""
        if person.is_hidden:
            if person.is_seen:
                self.town.drain()
            person.is_hidden = False
        elif person.is_seen:
            self.town.drain()
            person.is_hidden = True

    def moves(self, person: Person, how: int, phone: str = "") -> None:
        """They get another phone, and with it another BSUID. What Meta says of it differs."""
        before = person.bsuid
        if not (person.is_seen or person.is_old):
            how |= 1  # a phone that was never seen with its BSUID says nothing of whose it was; its system message must
        person.is_seen = False
        self.count += 1
        old = person.phone
        person.phones.append(phone or f"1555{person.number}{self.count:06}")
        person.bsuid = f"US.{person.number}{self.count:03}"
        system: dict[str, Any] = {"type": "user_changed_number", "wa_id": person.phone}
        if how & 1 and not person.is_old:
            system |= {"user_id": person.bsuid, "previous_user_id": before}
        if person.is_hidden:
            self.says(person, Ids(), {"type": "system", "system": {
                "type": "user_changed_user_id", "user_id": person.bsuid, "previous_user_id": before}})  # fmt: skip
            return
        self.says(person, Ids(old), {"type": "system", "system": system})

    def returns(self, person: Person, how: int) -> None:
        """Back to a phone they had: A → B → A."""
        if len(person.phones) > 1:
            self.moves(person, how, person.phones[how % (len(person.phones) - 1)])

    def renames(self, person: Person, how: int) -> None:
        """Another BSUID at the same phone."""
        if person.is_old:
            return
        before, self.count = person.bsuid, self.count + 1
        person.bsuid = f"US.{person.number}{self.count:03}"
        system = {"type": "user_changed_user_id", "user_id": person.bsuid, "previous_user_id": before}
        self.says(person, Ids("" if person.is_hidden else person.phone), {"type": "system", "system": system})

    def recycles(self, person: Person, how: int) -> None:
        """Somebody new gets their phone, unannounced; whoever had it is heard of no more, but for what is late."""
        if person.is_hidden or not person.is_seen or len(self.people) > 5:
            return
        person.is_gone = True
        new = Person(len(self.people), 0)
        new.phones = [person.phone]
        self.people.append(new)
        self.writes(new, how)

    def asks(self, person: Person, how: int) -> None:
        """A bot sends to who it knows by what it saw last."""
        if person.known_as:
            self.count += 1
            name = f"send {self.count}"
            self.town.request(name, person.known_as)
            self.owner[dedupe.fingerprint(send_id(name))] = person.number
            self.asked[send_id(name)] = person.number

    def settles(self, person: Person, how: int) -> None:
        self.town.settle()

    # -- what came of it

    def heard(self) -> list[str]:
        """The messages the bot was told, in the order they were decided."""
        return [name for told in self.town.told if (name := self.message_of(told))]

    def message_of(self, told: Told) -> str:
        """The id of the message an event tells of, "" when it tells of none."""
        if told.event.kind != "message":
            return ""
        name: str = json.loads(told.event.body)["entry"][0]["changes"][0]["value"]["messages"][0]["id"]
        return name


relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def check(life: Life) -> None:
    """What holds in every history."""
    town = life.town
    heard = life.heard()
    wrote = [name for person in life.people for name in person.wrote]
    assert sorted(heard) == sorted(wrote), "each message once: nothing lost, nothing doubled"
    assert len({told.event.delivery_id for told in town.told}) == len(town.told)
    for key in town.packed:
        state = town.state(key)
        owners = town.facts(key, life.owner) | {int(change.proof.split(".")[1]) for change in state.consent}
        assert len(owners) <= 1, "no record of one person reaches another's state"
        assert state.claim is None, "nobody waits for ever"
        assert state.sends == [], "every send comes to its end"
    sent = [json.loads(told.event.body)["entry"][0]["changes"][0]["value"]["statuses"][0]["id"]
            for told in town.told if (told.sink, told.event.kind) == ("bot", "status")]  # fmt: skip
    assert sorted(sent) == sorted(life.asked), "and is told it once"


@relaxed
@given(acts, seeds, st.integers(1, 4))
def test_nobody_is_lost_doubled_or_mistaken_for_somebody_else(history: list[Act], seed: int, partitions: int) -> None:
    """Whatever is repeated late, in whatever order partitions are read, however often a step is not committed."""
    life = Life(seed, partitions=partitions, crashes=0.2, is_disordered=True)
    life.play(history)
    check(life)


@relaxed
@given(acts, seeds, st.integers(1, 4))
def test_order_per_person_holds_across_moves(history: list[Act], seed: int, partitions: int) -> None:
    """What somebody wrote under one id is decided before what they wrote under the next, though two partitions with two
    owners hold them; and what follows from it goes on under one key, so that no later stage turns it round."""
    life = Life(seed, partitions=partitions, crashes=0.1, is_disordered=False)
    life.play(history)
    check(life)
    heard = life.heard()
    for person in life.people:
        assert [name for name in heard if name in set(person.wrote)] == person.wrote
        keys = {told.event.customer for told in life.town.told if life.message_of(told) in set(person.wrote)}
        assert len(keys) <= 1


def test_the_histories_contain_what_they_are_about() -> None:
    """A property over histories in which nobody moves would prove nothing."""
    life = Life(1, partitions=3, crashes=0.0, is_disordered=False)
    what = [
        "writes",
        "moves",
        "writes",
        "returns",
        "writes",
        "hides",
        "writes",
        "renames",
        "writes",
        "asks",
        "recycles",
    ]
    life.play([Act(name, who, 1) for name in what for who in range(3)])
    check(life)
    moved = [key for key in life.town.packed if life.town.state(key).addresses]
    assert len(moved) >= 8
    assert life.town.now > START
