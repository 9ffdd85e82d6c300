"""Who a customer is, over time: phones and BSUIDs come, go and change hands, and nobody reads another's letters."""

from __future__ import annotations

import json
from collections import Counter
from random import Random
from typing import Any

import pytest

from broker.core import dedupe
from broker.core.customer import Command, Due, Event, decide, next_due
from broker.core.customer_state import QUIET_BYTES_MAX, Address, Customer, Send, is_forgotten, pack, unpack
from broker.core.moves import HOPS_MAX, PARKED_MAX, WAIT_MS, Append, Residence, joined_consent, lives
from broker.core.webhook import split
from schemas.ids import CustomerKey
from schemas.records import Claim, Forwarded, Handover, Item, SendRequest, decode_conversation, encode
from tests.core.conversation import CONTEXT, KEY, NUMBER, PHONE, START, Story, message, notes, readies, request
from tests.core.town import PORTFOLIOS, SISTER, Ids, Town, webhook

B1, B2, B3 = "US.1", "US.2", "US.3"
P1, P2, P3 = "15550000001", "15550000002", "15550000003"


class Tale:
    """A town in which one thing happens after another, and all logs are read between two."""

    def __init__(self, partitions: int = 3) -> None:
        self.town = Town(partitions, Random(7))
        self.count = 0
        self.slow_ms = {"receiver": 0, "worker": 0}
        """How far a clock is behind Meta's."""

    def happens(self, body: bytes) -> None:
        """A webhook arrives, and everything that follows from it."""
        now = self.town.now
        self.town.now = now - self.slow_ms["receiver"]
        self.town.receive(body)
        self.town.now = now - self.slow_ms["worker"]
        self.town.drain()
        self.town.now = now

    def writes(self, wa_id: str = "", bsuid: str = "", text: str = "") -> str:
        """Somebody writes; returns what, and a minute passes."""
        self.count += 1
        name = text or f"m{self.count}"
        self.happens(
            webhook(
                {"id": f"wamid.{self.count}", "type": "text", "text": {"body": name}}, Ids(wa_id, bsuid), self.town.now
            )
        )
        self.town.now += 60_000
        return name

    def system(self, ids: Ids, **system: Any) -> None:
        """Meta says that somebody has another id."""
        self.count += 1
        self.happens(webhook({"id": f"wamid.{self.count}", "type": "system", "system": system}, ids, self.town.now))
        self.town.now += 60_000

    def heard(self) -> list[str]:
        """What the bot was told, in order, and that it was told each once."""
        told = [json.loads(one.event.body)["entry"][0]["changes"][0]["value"]["messages"][0] for one in self.town.told]
        assert max(Counter(one["id"] for one in told).values(), default=1) == 1
        return [one["text"]["body"] if one["type"] == "text" else one["type"] for one in told]

    def windows(self, value: str) -> int:
        """How many windows a key's customer has open."""
        return len(self.town.state(f"main:{value}").windows)


def test_the_phone_claims_what_its_bsuid_knows_and_then_both_are_one() -> None:
    """Somebody wrote under a username and then shows the phone: window, dedupe and consent go with them."""
    tale = Tale()
    tale.writes(bsuid=B1)
    tale.writes(bsuid=B1, text="stop")
    tale.writes(P1, B1)
    assert tale.heard() == ["m1", "stop", "m3"]
    one = tale.town.state(f"main:{P1}")
    assert [change.stopped for change in one.consent] == [True]
    assert (one.bsuid, one.is_linked) == (B1, True)
    assert not lives(tale.town.state(f"main:{B1}"))
    tale.writes(bsuid=B1)  # hidden again
    assert tale.heard()[-1] == "m4"
    assert tale.town.state(f"main:{P1}").windows[NUMBER] == START + 180_000
    assert tale.windows(B1) == 0
    assert {one.event.customer for one in tale.town.told} == {f"main:{B1}"}, "one order, whatever the key"


def test_a_repetition_is_taken_once_whichever_key_it_comes_by() -> None:
    """Meta repeats for days: the copy of a message that was taken under the BSUID comes after the move."""
    tale = Tale()
    body = webhook({"id": "wamid.x", "type": "text", "text": {"body": "once"}}, Ids(bsuid=B1), tale.town.now)
    tale.happens(body)
    tale.writes(P1, B1)
    tale.happens(body)
    assert tale.heard() == ["once", "m1"]


@pytest.mark.parametrize("told", [{}, {"user_id": B2, "previous_user_id": B1}])
def test_a_new_number_by_system_message_takes_its_person_along(told: dict[str, str]) -> None:
    """With or without the BSUIDs, which Meta does not always say. What comes for the old number follows."""
    tale = Tale()
    tale.writes(P1, B1)
    tale.system(Ids(P1), type="user_changed_number", wa_id=P2, **told)
    assert tale.heard() == ["m1", "system"]
    assert (tale.windows(P1), tale.windows(P2)) == (0, 1)
    tale.writes(P2, B2)
    assert tale.heard()[-1] == "m3"
    one = tale.town.state(f"main:{P2}")
    assert (one.bsuid, one.former_bsuids) == (B2, [B1])
    tale.writes(bsuid=B1)  # late, under what they were called before
    tale.writes(bsuid=B2)
    assert tale.town.state(f"main:{P2}").windows[NUMBER] == START + 240_000
    assert {one.event.customer for one in tale.town.told} == {f"main:{P1}"}


def test_from_a_to_b_and_back_to_a_ends_at_a() -> None:
    """And a late copy of the first system message does not send them to B again."""
    tale = Tale()
    tale.writes(P1)
    first = webhook(
        {"id": "wamid.s", "type": "system", "system": {"type": "user_changed_number", "wa_id": P2}},
        Ids(P1),
        tale.town.now,
    )
    tale.happens(first)
    tale.town.now += 60_000
    tale.writes(P2)
    tale.system(Ids(P2), type="user_changed_number", wa_id=P1)
    tale.writes(P1)
    tale.happens(first)
    tale.writes(P1)
    assert tale.heard() == ["m1", "system", "m2", "system", "m4", "m5"]
    assert lives(tale.town.state(f"main:{P1}"))
    assert not lives(tale.town.state(f"main:{P2}"))


def test_a_system_message_moves_its_person_once_though_our_clock_is_behind() -> None:
    """Its instant is Meta's. By our own clock it came from the future, and each look at it would be another move."""
    tale = Tale()
    tale.writes(P1)
    moves = {"id": "wamid.s", "type": "system", "system": {"type": "user_changed_number", "wa_id": P2}}
    tale.town.receive(webhook(moves, Ids(P1), tale.town.now))
    tale.town.now -= 400_000
    for _ in range(200):
        for partition in range(3):
            tale.town.step(partition)
        tale.town.now += 10
    claims = [value for log in tale.town.logs for _, value in log if isinstance(decode_conversation(value), Claim)]
    assert len(claims) == 1
    assert tale.heard() == ["m1", "system"]
    assert tale.windows(P2) == 1


@pytest.mark.parametrize("whose", ["receiver", "worker"])
def test_who_moved_last_is_known_as_well_by_a_slow_clock(whose: str) -> None:
    """Ten minutes behind, where Meta and the other one agree: by that clock alone the way back to A came before the way
    to B, and the person's window, consent and order would stay at B."""
    tale = Tale()
    tale.writes(P1)
    tale.system(Ids(P1), type="user_changed_number", wa_id=P2)
    tale.writes(P2)
    tale.slow_ms[whose] = 600_000
    tale.system(Ids(P2), type="user_changed_number", wa_id=P1)
    tale.writes(P1)
    assert tale.heard() == ["m1", "system", "m3", "system", "m5"]
    assert (lives(tale.town.state(f"main:{P1}")), lives(tale.town.state(f"main:{P2}"))) == (True, False)
    assert {one.event.customer for one in tale.town.told} == {f"main:{P1}"}


def test_a_username_alone_changes_its_bsuid_and_stays_the_same_person() -> None:
    """`user_changed_user_id`, without any phone."""
    tale = Tale()
    tale.writes(bsuid=B1, text="stop")
    tale.system(Ids(), type="user_changed_user_id", user_id=B2, previous_user_id=B1)
    tale.writes(bsuid=B2)
    one = tale.town.state(f"main:{B2}")
    assert [change.stopped for change in one.consent] == [True]
    assert one.former_bsuids == [B1]
    assert tale.heard() == ["stop", "system", "m3"]


def test_a_phone_whose_bsuid_changes_by_system_message_is_the_same_person() -> None:
    """The message of the new BSUID may even come first: who was taken for gone is found again, and their stop holds."""
    for is_first in (True, False):
        tale = Tale()
        tale.writes(P1, B1, text="stop")
        if not is_first:
            tale.writes(P1, B2)
            assert tale.town.state(f"main:{P1}").consent == [], "another person, as far as we can know"
        tale.system(Ids(P1), type="user_changed_user_id", user_id=B2, previous_user_id=B1)
        tale.writes(P1, B2)
        one = tale.town.state(f"main:{P1}")
        assert (one.bsuid, B1 in one.former_bsuids) == (B2, True)
        assert [change.stopped for change in one.consent] == [True]


def test_a_phone_that_comes_back_with_another_bsuid_is_somebody_else() -> None:
    """A recycled number: state and consent start anew, and what is late for whoever had it reaches them alone."""
    tale = Tale()
    tale.writes(P1, B1, text="stop")
    late = webhook({"id": "wamid.late", "type": "text", "text": {"body": "late"}}, Ids(P1, B1), tale.town.now - 1_000)
    tale.writes(P1, B2)
    tale.happens(late)
    new, old = tale.town.state(f"main:{P1}"), tale.town.state(f"main:{B1}")
    assert (new.consent, new.bsuid, len(new.windows)) == ([], B2, 1)
    assert [change.stopped for change in old.consent] == [True]
    assert tale.heard() == ["stop", "m2", "late"]
    fact = dedupe.fingerprint(f"msg:{NUMBER}:wamid.late")
    assert dedupe.find(new.taken, fact) == -1
    assert dedupe.find(old.taken, fact) >= 0
    tale.writes(bsuid=B1)
    assert tale.town.state(f"main:{P1}").windows[NUMBER] < tale.town.state(f"main:{B1}").windows[NUMBER]


@pytest.mark.parametrize(
    "before",
    [
        [("shown", SISTER)],
        [("hidden", NUMBER), ("shown", SISTER), ("hidden", NUMBER)],
        [("shown", NUMBER), ("hidden", NUMBER)],
        [("shown", NUMBER), ("shown", SISTER), ("hidden", NUMBER), ("shown", SISTER)],
    ],
)
@pytest.mark.parametrize("unread", [1, 3])
def test_what_a_number_was_written_before_it_saw_the_phone_comes_first(
    before: list[tuple[str, str]], unread: int
) -> None:
    """Each of our numbers sees the phone or not. One that wrote to it sees it from then on, while what it was written
    until then still waits at the BSUID's key, for a worker that is just starting again: a chat would be turned round.
    """
    for seed in range(20):
        town = Town(3, Random(seed))
        sent: list[str] = []

        def write(how: str, number: str, town: Town = town, sent: list[str] = sent) -> None:
            ids = Ids(P1 if how == "shown" else "", B1)
            text = {"id": f"wamid.{len(sent)}", "type": "text", "text": {"body": f"m{len(sent)}"}}
            sent.append(f"m{len(sent)}")
            town.receive(webhook(text, ids, town.now, number=number))
            town.now += 1_000

        for how, number in before:
            write(how, number)
            town.drain()
        for _ in range(unread):
            write("hidden", NUMBER)
        write("shown", NUMBER)
        write("shown", NUMBER)
        town.drain()
        told = [json.loads(one.event.body)["entry"][0]["changes"][0]["value"] for one in town.told]
        assert [value["messages"][0]["text"]["body"] for value in told] == sent
        assert town.state(f"main:{P1}").claim is None


def test_who_always_shows_the_phone_is_asked_for_once_by_each_number() -> None:
    """A question is two records and a wait: not one for each message."""
    tale = Tale()
    for _ in range(3):
        tale.writes(P1, B1)
        text = {"id": f"wamid.s{tale.count}", "type": "text", "text": {"body": "x"}}
        tale.happens(webhook(text, Ids(P1, B1), tale.town.now, number=SISTER))
    claims = [value for log in tale.town.logs for _, value in log if isinstance(decode_conversation(value), Claim)]
    assert len(claims) == 2
    assert tale.town.state(f"main:{P1}").shown_to == [NUMBER, SISTER]


def test_one_bsuid_with_two_phones_makes_no_one_person_of_them() -> None:
    """Fixtures of the field use Meta's sample BSUID for everybody."""
    tale = Tale()
    tale.writes(P1, B1, text="stop")
    tale.writes(P2, B1)
    tale.writes(P1, B1)
    assert tale.town.state(f"main:{P2}").consent == []
    assert [change.stopped for change in tale.town.state(f"main:{P1}").consent] == [True]
    tale.writes(bsuid=B1)
    assert tale.heard() == ["stop", "m2", "m3", "m4"]


def test_one_bsuid_in_two_portfolios_is_two_people() -> None:
    """It means something within a portfolio only."""
    tale = Tale()
    tale.writes(bsuid=B1, text="stop")
    words = {"id": "wamid.o", "type": "text", "text": {"body": "other"}}
    tale.happens(webhook(words, Ids(P1, B1), tale.town.now, number="106540352242955"))
    assert [change.stopped for change in tale.town.state(f"main:{B1}").consent] == [True]
    assert tale.town.state(f"other:{P1}").consent == []


def test_a_shared_phone_links_both_ids() -> None:
    """They were asked for it and tapped: the card is theirs, as `origin` says. Anybody else's links nothing."""
    for origin, is_linked in (("contact_request", True), ("other", False)):
        tale = Tale()
        tale.writes(bsuid=B1)
        card = [{"origin": origin, "phones": [{"phone": "+1 555", "wa_id": P1}]}]
        tale.happens(webhook({"id": "wamid.c", "type": "contacts", "contacts": card}, Ids(bsuid=B1), tale.town.now))
        assert (tale.town.state(f"main:{P1}").bsuid == B1) is is_linked
        assert tale.heard() == ["m1", "contacts"]


def test_sends_come_to_their_end_over_a_move() -> None:
    """Asked for under the BSUID, reported on under the phone, or the other way round: told once, to the bot."""
    tale = Tale()
    tale.town.request("one", f"main:{B1}")
    tale.town.drain()
    tale.writes(P1, B1)
    tale.town.request("two", f"main:{B1}")
    tale.town.request("three", f"main:{P1}")
    tale.town.drain()
    assert [ready.customer for ready in tale.town.handed] == [f"main:{B1}"] * 3, "one queue, one pair budget"
    tale.system(Ids(P1), type="user_changed_number", wa_id=P2)
    tale.town.settle()
    tale.town.drain()
    assert tale.town.state(f"main:{P2}").sends == []
    told = [one.event for one in tale.town.told if (one.sink, one.event.kind) == ("bot", "status")]
    assert len(told) == 3
    assert {one.by for one in tale.town.told[-3:]} == {f"main:{P2}"}


@pytest.mark.parametrize(
    ("theirs", "mine", "both"),
    [
        ([("a", 90), ("b", 30)], [], "ab"),
        ([("a", 90), ("b", 30)], [("c", 40)], "cab"),
        ([("a", 10), ("c", 30)], [("b", 20), ("d", 40)], "abcd"),
        ([("b", 50)], [("a", 40), ("c", 20)], "acb"),
    ],
)
@pytest.mark.parametrize("late_ms", [0, WAIT_MS])
def test_sends_keep_the_order_they_were_asked_for_in_over_a_move(
    theirs: list[tuple[str, int]], mine: list[tuple[str, int]], both: str, late_ms: int
) -> None:
    """The instants are the gateway's: a clock of its that is set back must not turn round what one bot asked for."""

    def sends(asked: list[tuple[str, int]]) -> list[Send]:
        return [Send(name, NUMBER, "reply", "bot", 0, b"{}", START + at, START + 3_600_000) for name, at in asked]

    story = waiting()
    asked_at, waits = story.now, story.customer
    if late_ms:
        story.due(after_ms=late_ms)
        waits = story.customer
    waits.sends = sends(mine)
    claiming = Residence(waits, KEY, story.now)
    claiming.take(Handover("main:US.13", asked_at, pack(Customer(bsuid="US.13", sends=sends(theirs)))))
    assert not claiming.lets_in(claiming.arrivals.popleft())
    assert "".join(send.send_id for send in claiming.customer.sends) == both


def unanswered(story: Story, event: Event, *, apart: bool = False) -> list[Command]:
    """Decide about a record, and let what it asks other keys go without an answer."""
    before = unpack(story.packed) if story.packed is not None else None
    customer, commands = decide(before, KEY, event, CONTEXT, story.now, apart=apart)
    assert customer is not None
    story.packed = pack(customer)
    return commands


def waiting() -> Story:
    """A phone that has asked its BSUID's key and has no answer yet."""
    story = Story()
    unanswered(story, message("first", story.now))
    assert story.customer.claim is not None
    return story


def test_what_arrives_while_it_waits_is_kept_and_decided_in_order() -> None:
    """In the state, so that a crash loses nothing of it."""
    story = waiting()
    assert story.take(message("second", story.now)) == []
    assert story.take(request("one", story.now, template="t")) == []
    commands = story.take(Handover("main:US.13", story.now))
    kinds = [(type(command).__name__, getattr(command, "what", "")) for command in commands]
    assert [kind for kind, _ in kinds if kind != "Note"] == ["Deliver", "Deliver", "Dispatch"]
    assert story.customer.claim is None


def moving(text: str = "changed") -> Item:
    """A system message: who had another phone has this one."""
    told = {"type": "user_changed_number", "wa_id": PHONE, "body": text}
    body = webhook({"id": "wamid.s", "type": "system", "system": told}, Ids(P1), START)
    ((key, item),) = split(body, "brand", START, PORTFOLIOS).conversations
    assert key.decode() == KEY
    return item


def test_a_system_message_too_large_to_wait_is_decided() -> None:
    """It asks, and goes on alone at once."""
    story = Story()
    commands = story.take(moving("x" * 1_000_000))
    assert [one for one in notes(commands) if one[0] in ("moved", "routed")] == [
        ("moved", "claimed"),
        ("moved", "late"),
        ("routed", "bot"),
    ]


def test_what_is_put_back_on_the_log_does_not_ask_again() -> None:
    """What comes of all that waited may be too large to be written; together again, it would be again."""
    story = Story()
    unanswered(story, moving())
    unanswered(story, request("one", START, template="t"))
    commands = unanswered(story, Handover(f"main:{P1}", START, is_move=True), apart=True)
    back = [one for one in commands if isinstance(one, Append)]
    assert [one.key for one in back] == [KEY, KEY]
    first, second = (unanswered(story, one.record) for one in back)
    assert notes(first).count(("routed", "bot")) == 1
    assert len(readies(second)) == 1
    assert story.customer.claim is None


def test_who_gets_no_answer_goes_on_alone_and_takes_it_when_it_comes() -> None:
    """30 s: the other key's owner is gone longer than any rebalance takes. Nothing of the answer is lost."""
    story = waiting()
    asked_at = story.now
    assert next_due(story.customer, story.now) == asked_at + WAIT_MS
    assert story.due(after_ms=WAIT_MS - 1) == []
    commands = story.due(after_ms=1)
    assert ("moved", "late") in notes(commands)
    assert ("routed", "bot") in notes(commands)
    theirs = Customer(heard_at=1, windows={"other": START}, bsuid="US.13")
    story.take(Handover("main:US.13", asked_at, pack(theirs)))
    assert story.customer.windows == {"other": START, NUMBER: START}


def test_what_waits_has_a_bound() -> None:
    """A state is written with each record that waits in it."""
    story = waiting()
    for number in range(PARKED_MAX - 1):
        assert story.take(message(f"more {number}", story.now)) == []
    commands = story.take(message("one too many", story.now))
    assert ("moved", "late") in notes(commands)
    assert len([note for note in notes(commands) if note == ("routed", "bot")]) == PARKED_MAX + 1
    large = waiting()
    assert large.take(message("large", large.now, type="text", text={"body": "x" * 1_000_000})) != []


def test_a_record_that_crashes_after_it_waited_takes_nothing_with_it() -> None:
    """It goes to the log again, alone, and is set aside there; the state that came with the answer stays."""
    story = waiting()
    broken = request("one", story.now, template="t")
    story.take(
        type(broken)(**{name: getattr(broken, name) for name in broken.__struct_fields__} | {"send_id": "wrong"})
    )
    theirs = Customer(heard_at=1, windows={"other": START}, bsuid="US.13")
    commands = story.take(Handover("main:US.13", story.now, pack(theirs)))
    (back,) = [command for command in commands if isinstance(command, Append)]
    assert isinstance(back.record, SendRequest)
    assert back.key == KEY
    assert set(story.customer.windows) == {"other", NUMBER}
    with pytest.raises(ValueError, match="not of our making"):
        decide(story.customer, KEY, back.record, CONTEXT, story.now)


def test_a_record_is_not_sent_on_for_ever() -> None:
    """Two keys that each believe the other has moved: a fault, and still nothing is lost."""
    story = Story()
    gone = pack(Customer(addresses=[Address("main:US.13", START + 60_000, ("US.13",))]))
    story.packed = gone
    item = encode(message("round", story.now))
    commands = story.take(Forwarded("main:US.99", HOPS_MAX, item))
    assert ("moved", "hops") in notes(commands)
    assert ("routed", "bot") in notes(commands)
    story.packed = gone
    commands = story.take(Forwarded("main:US.99", HOPS_MAX - 1, item))
    assert [command.key for command in commands if isinstance(command, Append)] == ["main:US.13"]


def test_two_keys_that_ask_each_other_do_not_wait_for_ever() -> None:
    """A → B and B → A at once: the later move is where the person is."""
    town = Town(2, Random(1))
    at = town.now
    town.receive(webhook({"id": "wamid.1", "type": "text", "text": {"body": "x"}}, Ids(P1), at))
    town.drain()
    for name, old, new, when in (("a", P1, P2, at + 1_000), ("b", P2, P1, at + 2_000)):
        system = {"type": "user_changed_number", "wa_id": new}
        town.receive(webhook({"id": f"wamid.{name}", "type": "system", "system": system}, Ids(old), when))
    town.drain()
    one, other = town.state(f"main:{P1}"), town.state(f"main:{P2}")
    assert (one.claim, other.claim) == (None, None)
    assert (lives(one), lives(other)) == (True, False)
    assert len(one.windows) == 1


@pytest.mark.parametrize(("old", "new"), [(P1, P2), (P2, P1)])
def test_what_was_written_in_the_second_of_a_move_comes_before_what_was_written_after_it(old: str, new: str) -> None:
    """The first message with an id that is new to us waits for its BSUID's key as the move is read. Meta's clock has
    whole seconds, so nothing but its log says that the message was first."""
    for seed in range(20):
        town = Town(3, Random(seed))
        for name, system, ids in (
            ("before", {}, Ids(old, B1)),
            ("moved", {"type": "user_changed_number", "wa_id": new}, Ids(old, B1)),
            ("after", {}, Ids(new, B2)),
        ):
            said = {"type": "system", "system": system} if system else {"type": "text", "text": {"body": name}}
            town.receive(webhook({"id": f"wamid.{name}", **said}, ids, town.now))
        town.drain()
        told = [json.loads(one.event.body)["entry"][0]["changes"][0]["value"]["messages"][0] for one in town.told]
        assert [one["id"] for one in told if one["type"] == "text"] == ["wamid.before", "wamid.after"]


def test_opt_out_beats_opt_in_and_an_agent_beats_a_bot_when_two_become_one() -> None:
    """Who overlooks a stop pesters; who loses the agent leaves the customer with a bot that knows nothing."""
    stop = webhook({"id": "wamid.s", "type": "text", "text": {"body": "stop"}}, Ids(bsuid=B1), START)
    start = webhook({"id": "wamid.g", "type": "text", "text": {"body": "start"}}, Ids(P1), START + 60_000)
    town = Town(2, Random(1))
    town.now += 60_000
    town.receive(stop)
    town.receive(start)
    town.drain()
    agent = town.state(f"main:{B1}")
    agent.epoch, agent.holder = 2, "audit"
    town.packed[f"main:{B1}"] = pack(agent)
    town.receive(webhook({"id": "wamid.b", "type": "text", "text": {"body": "x"}}, Ids(P1, B1), START + 60_000))
    town.drain()
    one = town.state(f"main:{P1}")
    assert [change.stopped for change in one.consent] == [True, False, True]
    assert one.consent[-1].source == "merged"
    assert (one.epoch, one.holder) == (2, "audit")


def test_every_field_of_a_customer_has_its_rule_for_when_two_become_one() -> None:
    """A field added to the state and forgotten here would be lost with the first move."""
    moved = {"addresses", "claim", "moved_at", "is_linked", "order_key", "shown_to"}
    joined = {
        "seen_at", "heard_at", "taken", "windows", "known", "sends", "epoch", "wa_id", "bsuid", "holder", "language",
        "sent_language", "replied", "consent", "former_bsuids", "older", "held", "marketing_refused_at",
    }  # fmt: skip
    assert set(Customer.__struct_fields__) == moved | joined
    assert joined_consent([], []) == []


def test_an_address_is_small_and_is_never_forgotten() -> None:
    """One stands for each customer with a BSUID; without it, who hides the phone later would be a stranger."""
    tale = Tale()
    tale.writes(P1, "US.13491208655302741918")
    packed = tale.town.packed["main:US.13491208655302741918"]
    assert len(packed) <= 100
    assert not is_forgotten(unpack(packed), START + 10**12)
    assert len(tale.town.packed[f"main:{P1}"]) <= QUIET_BYTES_MAX


def test_a_state_of_before_is_read_and_asks_at_its_next_message() -> None:
    """States on the log were written before there were moves: nothing is lost, and the BSUID's key learns where its
    person lives."""
    old = [START, START, b"", {NUMBER: START}, [], [], 1, "", B1]
    story = Story(key=CustomerKey(f"main:{PHONE}"))
    import msgspec

    story.packed = msgspec.msgpack.encode(old)
    assert (story.customer.bsuid, story.customer.is_linked, story.customer.addresses) == (B1, False, [])
    ((key, item),) = split(
        webhook({"id": "wamid.1", "type": "text", "text": {"body": "x"}}, Ids(PHONE, B1), START), "a", START, PORTFOLIOS
    ).conversations
    customer, commands = decide(story.customer, CustomerKey(key.decode()), item, CONTEXT, START)
    assert [command.record for command in commands if isinstance(command, Append)] == [
        Claim(f"main:{PHONE}", START, bsuid=B1)
    ]
    assert customer is not None
    assert decide(customer, KEY, Due({}), CONTEXT, START)[1] == []
