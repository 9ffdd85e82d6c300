"""After 131049 marketing to that customer rests: before it costs a call, for as long as Meta asks, and no longer."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from broker.core.customer_state import QUIET_AFTER_MS, Customer, pack, quieted, unpack
from broker.core.identity import customer_key
from broker.core.marketing_rest import CODE, HOURS_MAX, MS_PER_H, TITLE, details, ends_at
from broker.core.window import WINDOW_MS
from schemas.records import SendClass, SendRequest
from tests.core.conversation import (
    CONTEXT,
    KEY,
    NUMBER,
    START,
    Story,
    codes,
    delivered,
    notes,
    outcome,
    readies,
    request,
    send_id,
    status,
)
from tests.core.town import Ids, Town, webhook

DAY_MS = 24 * MS_PER_H
OTHER = "2"


def offer(name: str, at: int, send_class: SendClass = "campaign", **more: Any) -> SendRequest:
    """A sale by a template."""
    return replace(request(name, at, send_class=send_class, template="summer", **more), marketing=True)


def refused(told: str = "status", context: Any = CONTEXT) -> Story:
    """Meta did not deliver a sale, ten seconds after it was asked for."""
    story = Story(context)
    story.take(offer("first", story.now))
    if told == "answer":
        story.take(outcome("first", "refused", story.now + 10_000, lane="campaign", code=CODE), after_ms=10_000)
    else:
        story.take(outcome("first", "accepted", story.now, lane="campaign"))
        story.take(status("first", "failed", story.now + 10_000, code=CODE), after_ms=10_000)
    assert codes(story.commands) == [CODE]
    return story


def two_numbers() -> Any:
    """A brand with a second number."""
    return replace(CONTEXT, numbers={**CONTEXT.numbers, OTHER: CONTEXT.numbers[NUMBER]})


@pytest.mark.parametrize("told", ["status", "answer"])
def test_marketing_rests_for_a_day_from_when_meta_said_so(told: str) -> None:
    """Sooner it fails again, and Meta may limit an account that tries all the same. The bot is told in Meta's words,
    and until when."""
    story = refused(told)
    story.take(offer("soon", story.now, own="mine"), after_ms=60_000)
    (failure,) = delivered(story.commands)
    (error,) = failure["errors"]
    assert (failure["id"], failure["status"], failure["biz_opaque_callback_data"]) == (
        send_id("soon"),
        "failed",
        "mine",
    )
    assert (error["code"], error["title"]) == (CODE, TITLE)
    assert "2026-09-22T14:13:30Z" in error["error_data"]["details"]
    assert readies(story.commands) == []
    assert ("admitted", "resting") in notes(story.commands)
    assert story.customer.sends == []
    story.now = START + 10_000 + DAY_MS - 1
    assert codes(story.take(offer("almost", story.now))) == [CODE]
    story.now += 1
    assert len(readies(story.take(offer("after", story.now)))) == 1


def test_all_but_marketing_goes_on() -> None:
    """The limit is on marketing alone: a parcel's news is not to be kept from anybody for a sale they did not see."""
    story = refused()
    for send_class in ("transactional", "otp", "reply"):
        asked = request(send_class, story.now, send_class=send_class, template="parcel")
        assert len(readies(story.take(asked))) == 1
    assert codes(story.take(offer("disguised", story.now, "transactional"))) == [CODE]


def test_it_rests_at_all_numbers_of_the_portfolio() -> None:
    """The limit is the person's, over all businesses: another number of the brand fares no better."""
    story = refused(context=two_numbers())
    assert codes(story.take(offer("other", story.now, number=OTHER))) == [CODE]


def test_inside_the_window_it_goes_and_no_later_than_that() -> None:
    """Meta does not count what is delivered inside an open window, to the number the customer wrote to. What waits
    until it closes would be what the rest is there to prevent."""
    story = refused(context=two_numbers())
    story.now += 3_600_000
    story.writes()
    story.now += DAY_MS - 2 * 3_600_000
    story.take(status("first", "failed", story.now, code=CODE))  # a repetition: it begins no new rest
    (ready,) = readies(story.take(offer("near the end", story.now)))
    assert ready.not_after == story.now + DAY_MS, "the rest is over before the window is"
    story = refused(context=two_numbers())
    story.writes()
    wrote_at = story.now
    story.take(offer("second", story.now))
    story.take(outcome("second", "accepted", story.now, lane="campaign"))
    story.take(status("second", "failed", story.now + 3_600_000, code=CODE), after_ms=3_600_000)
    (ready,) = readies(story.take(offer("inside", story.now)))
    assert ready.not_after == wrote_at + WINDOW_MS - CONTEXT.window_margin_ms
    assert codes(story.take(offer("other number", story.now, number=OTHER))) == [CODE]
    story.now = ready.not_after
    story.take(outcome("inside", "expired", story.now, lane="campaign"))
    assert codes(story.commands) == [CODE], "not merely late: it may go again when the rest is over"


def test_a_window_of_before_the_rest_shortens_no_send_after_it() -> None:
    """Both are long over: nothing is left of them."""
    story = refused()
    story.writes()
    story.take(offer("second", story.now))
    story.take(outcome("second", "accepted", story.now, lane="campaign"))
    story.take(status("second", "failed", story.now + 3_600_000, code=CODE), after_ms=3_600_000)
    (ready,) = readies(story.take(offer("later", story.now + DAY_MS), after_ms=DAY_MS))
    assert ready.not_after == story.now + DAY_MS


def test_what_was_held_when_it_began_does_not_go() -> None:
    """It waits for the message it speaks of; what counts is when it would leave."""
    story = Story()
    story.take(offer("first", story.now))
    story.take(offer("other", story.now))
    quoting = {"type": "template", "template": {}, "context": {"message_id": send_id("first")}}
    story.take(offer("second", story.now, body=quoting))
    assert notes(story.commands) == [("admitted", "held")]
    story.take(outcome("other", "refused", story.now + 1_000, lane="campaign", code=CODE), after_ms=1_000)
    story.take(outcome("first", "accepted", story.now, lane="campaign"))
    assert readies(story.commands) == []
    assert codes(story.commands) == [CODE]


def test_what_was_held_and_goes_inside_the_window_goes_no_later_than_that() -> None:
    """It was asked for when nothing rested, so its own time is longer than the window has left."""
    story = Story()
    story.writes()
    closes_at = story.now + WINDOW_MS - CONTEXT.window_margin_ms
    story.take(offer("first", story.now))
    story.take(offer("other", story.now))
    quoting = {"type": "template", "template": {}, "context": {"message_id": send_id("first")}}
    story.take(offer("second", story.now + 1_000, body=quoting), after_ms=1_000)
    story.take(outcome("other", "refused", story.now, lane="campaign", code=CODE))
    (ready,) = readies(story.take(outcome("first", "accepted", story.now, lane="campaign")))
    assert (ready.send_id, ready.not_after) == (send_id("second"), closes_at)


def test_a_doubt_is_not_ended_by_trying_while_it_rests() -> None:
    """A second attempt is a call like any other; whoever sent is told that the fate of the first is not known."""
    story = Story()
    story.take(offer("doubtful", story.now, "transactional"))
    story.take(outcome("doubtful", "in_doubt", story.now, lane="transactional"))
    story.take(offer("other", story.now))
    story.take(outcome("other", "refused", story.now + 1_000, lane="campaign", code=CODE), after_ms=1_000)
    story.heard[NUMBER] = story.now + 30_000
    assert readies(story.due(600_000)) == []
    assert codes(story.commands) == [131000]


def test_what_meta_said_first_may_come_last() -> None:
    """Statuses keep no order: the later instant counts, and one from the future is not believed."""
    story = Story()
    for name in ("first", "second", "third"):
        story.take(offer(name, story.now))
        story.take(outcome(name, "accepted", story.now, lane="campaign"))
    story.now += 7_200_000
    story.take(status("first", "failed", START + 7_200_000, code=CODE))
    story.take(status("second", "failed", START + 3_600_000, code=CODE))
    assert story.customer.marketing_refused_at == START + 7_200_000
    story.take(status("third", "failed", START + 100 * DAY_MS, code=CODE))
    assert story.customer.marketing_refused_at == START + 7_200_000


def test_the_setting_counts_as_it_is_now() -> None:
    """Who switches it off, or makes it longer, means the rests that have begun, too."""
    story = refused()
    story.context = replace(CONTEXT, marketing_rest_ms=0)
    (ready,) = readies(story.take(offer("off", story.now)))
    assert ready.not_after == story.now + DAY_MS
    story.context = replace(CONTEXT, marketing_rest_ms=HOURS_MAX * MS_PER_H)
    assert codes(story.take(offer("longer", story.now + 6 * DAY_MS), after_ms=6 * DAY_MS)) == [CODE]
    assert CONTEXT.marketing_rest_ms == DAY_MS


def test_it_moves_with_its_person_and_the_later_one_counts() -> None:
    """Whoever shows the phone gets no more marketing than they got under their username."""
    for under_phone, under_bsuid in ((5_000, 9_000), (9_000, 5_000), (0, 9_000), (9_000, 0)):
        town = Town(2, Random(1))
        phone, hidden = customer_key("main", "15550000001", ""), customer_key("main", "", "US.1")
        town.packed[phone] = pack(Customer(seen_at=START, windows={NUMBER: 1}, marketing_refused_at=under_phone))
        town.packed[hidden] = pack(Customer(seen_at=START, bsuid="US.1", marketing_refused_at=under_bsuid))
        seen_together = Ids("15550000001", "US.1")
        town.receive(webhook({"id": "wamid.b", "type": "text", "text": {"body": "x"}}, seen_together, START))
        town.drain()
        assert town.state(phone).marketing_refused_at == 9_000
        assert town.state(hidden).marketing_refused_at == 0


def test_a_state_of_before_is_read_and_silence_leaves_nothing_of_a_rest() -> None:
    """States on the log were written before there were rests; and a rest is over long before a customer is quiet."""
    story = refused()
    tree = msgspec.msgpack.decode(pack(story.customer))
    older = msgspec.msgpack.encode(tree[: Customer.__struct_fields__.index("marketing_refused_at")])
    assert unpack(older).marketing_refused_at == 0
    assert HOURS_MAX * MS_PER_H < QUIET_AFTER_MS
    customer = Customer(seen_at=START, marketing_refused_at=START)
    assert not quieted(customer, START + HOURS_MAX * MS_PER_H)
    assert quieted(customer, START + QUIET_AFTER_MS + DAY_MS)
    assert customer.marketing_refused_at == 0


def test_a_group_does_not_rest_for_one_of_its_members() -> None:
    """Its statuses come once for each of them, and whom the limit is about is one person."""
    story = Story(key=type(KEY)("main:#group:g1"))
    story.take(offer("first", story.now))
    story.take(status("first", "failed", story.now, code=CODE))
    assert story.customer.marketing_refused_at == 0


def test_the_end_of_a_rest_is_told_to_the_second_and_never_too_early() -> None:
    """Whoever waits until then and not a moment longer is not to be refused once more."""
    assert "2026-09-21T14:13:20Z" in details(START)
    assert "2026-09-21T14:13:21Z" in details(START + 1)
    assert (ends_at(0, DAY_MS), ends_at(START, 0), ends_at(START, 5)) == (0, 0, START + 5)
