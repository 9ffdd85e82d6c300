"""Which lane a template goes in: by its category and by the customer's window, unless somebody said."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from broker.core.customer import LIFE_MS
from broker.core.customer_state import Customer, Send, pack, unpack
from broker.core.template_class import by_window
from broker.core.window import WINDOW_MS
from schemas.records import Ready, SendClass, SendRequest, decode_conversation, encode
from tests.core.conversation import NUMBER, Story, codes, outcome, readies, request, send_id, settles

MINUTE_MS = 60_000
OPEN, SHUT = True, False


def templated(name: str, at: int, send_class: SendClass, *, marketing: bool = False, **more: Any) -> SendRequest:
    """A template nobody named a class for, as the gateway hands it on."""
    asked = request(name, at, send_class=send_class, template=name, **more)
    return replace(asked, class_presumed=True, marketing=marketing)


def sent(story: Story, asked: SendRequest) -> Ready:
    """The one send it becomes."""
    (ready,) = readies(story.take(asked))
    return ready


@pytest.mark.parametrize(
    ("presumed", "is_open", "send_class", "lane"),
    [
        ("campaign", OPEN, "campaign", "campaign"),
        ("campaign", SHUT, "campaign", "campaign"),
        ("transactional", OPEN, "reply", "reply"),
        ("transactional", SHUT, "transactional", "transactional"),
        ("otp", OPEN, "otp", "reply"),
        ("otp", SHUT, "otp", "transactional"),
        ("reply", OPEN, "reply", "reply"),
        ("reply", SHUT, "transactional", "transactional"),
    ],
)
def test_class_and_lane_follow_from_category_and_window(
    presumed: SendClass, is_open: bool, send_class: str, lane: str
) -> None:
    """Marketing delays nobody, what somebody waits for goes with the conversation, and the rest comes between."""
    assert by_window(presumed, is_open=is_open) == (send_class, lane)


def test_a_template_inside_the_window_is_part_of_the_conversation() -> None:
    """A receipt sent between two answers must not be the last of three. A doubt about it lasts as long as a reply's:
    the customer's lane waits for it."""
    story = Story()
    story.writes()
    assert sent(story, request("thanks", story.now)).lane == "reply"
    ready = sent(story, templated("receipt", story.now, "transactional"))
    assert (ready.lane, ready.send_class) == ("reply", "reply")
    story.take(outcome("thanks", "accepted", story.now))
    story.take(outcome("receipt", "in_doubt", story.now))
    story.heard[NUMBER] = story.now + 30_000
    assert readies(story.due(59_000)) == []
    (again,) = readies(story.due(1_000))
    assert (again.send_id, again.attempt, again.lane) == (send_id("receipt"), 2, "reply")


def test_outside_the_window_a_template_waits_behind_replies() -> None:
    """To whoever never wrote, and to whoever wrote too long ago for it to reach Meta in time."""
    story = Story()
    ready = sent(story, templated("first", story.now, "transactional"))
    assert (ready.lane, ready.send_class) == ("transactional", "transactional")
    story.take(outcome("first", "accepted", story.now, lane="transactional"))
    story.writes()
    story.now += WINDOW_MS - story.context.window_margin_ms - 1
    assert sent(story, templated("inside", story.now, "transactional")).lane == "reply"
    story.now += 1
    assert sent(story, templated("outside", story.now, "transactional")).lane == "transactional"


def test_a_window_with_one_number_says_nothing_of_another() -> None:
    """Who writes to sales has no conversation with support."""
    story = Story()
    (number,) = story.context.numbers.values()
    story.context = replace(story.context, numbers={NUMBER: number, "2": number})
    story.writes()
    assert sent(story, templated("parcel", story.now, "transactional", number="2")).lane == "transactional"


@pytest.mark.parametrize("presumed", ["campaign", "transactional"])
def test_marketing_is_a_campaign_inside_the_window_too(presumed: SendClass) -> None:
    """A brand's sale to all who wrote today would stand before every answer."""
    story = Story()
    story.writes()
    ready = sent(story, templated("sale", story.now, presumed, marketing=True))
    assert (ready.lane, ready.send_class) == ("campaign", "campaign")


def test_a_code_outside_the_window_keeps_its_class_and_its_life() -> None:
    """The business begins it, so it stops with what the business begins; but it is dead after ten minutes, and a doubt
    about it is decided in seconds, in the lane it went by."""
    story = Story()
    ready = sent(story, templated("code", story.now, "otp"))
    assert (ready.lane, ready.send_class, ready.not_after) == ("transactional", "otp", story.now + LIFE_MS["otp"])
    story.take(outcome("code", "in_doubt", story.now, lane="transactional"))
    story.heard[NUMBER] = story.now + 5_000
    (again,) = readies(story.due(10_000))
    assert (again.attempt, again.lane, again.send_class) == (2, "transactional", "otp")
    story.take(outcome("code", "in_doubt", story.now, attempt=2, lane="transactional"))
    (settle,) = settles(story.due(LIFE_MS["otp"]))
    assert (settle.send_id, settle.lane) == (send_id("code"), "transactional")
    assert codes(story.commands) == [131000]


def test_what_waits_for_a_wamid_holds_up_the_lane_it_is_in() -> None:
    """The code is a reply by its class alone: what the customer is answered meanwhile need not wait for it."""
    story = Story()
    first = sent(story, templated("first", story.now, "otp"))
    quoting = {"type": "template", "template": {}, "context": {"message_id": first.send_id}}
    assert readies(story.take(templated("second", story.now, "otp", body=quoting))) == []
    assert readies(story.take(templated("third", story.now, "transactional"))) == []
    story.writes()
    assert sent(story, request("answer", story.now)).lane == "reply"
    released = readies(story.take(outcome("first", "accepted", story.now, lane="transactional")))
    assert [(ready.send_id, ready.lane) for ready in released] == [
        (send_id("second"), "transactional"),
        (send_id("third"), "transactional"),
    ]


@pytest.mark.parametrize("send_class", ["campaign", "transactional", "otp", "reply"])
def test_a_class_that_was_said_stays(send_class: SendClass) -> None:
    """Whoever says it knows more than a category does. So do requests that were written before anybody asked."""
    lane = {"otp": "reply"}.get(send_class, send_class)
    for is_open in (OPEN, SHUT):
        story = Story()
        if is_open:
            story.writes()
        ready = sent(story, request("said", story.now, send_class=send_class, template="t"))
        assert (ready.lane, ready.send_class) == (lane, send_class)


def test_requests_and_states_from_before_are_read_as_they_were() -> None:
    """A log holds seven days, a state for ever: an upgrade meets both."""
    asked = request("old", 1, send_class="otp", template="t")
    assert b"class_presumed" not in encode(asked)
    assert decode_conversation(encode(asked)) == asked
    story = Story()
    sent(story, request("code", story.now, send_class="otp", template="t"))
    tree = msgspec.msgpack.decode(pack(story.customer))
    sends = tree[Customer.__struct_fields__.index("sends")]
    sends[:] = [send[: Send.__struct_fields__.index("other_lane")] for send in sends]
    (send,) = unpack(msgspec.msgpack.encode(tree)).sends
    assert (send.send_id, send.lane) == (send_id("code"), "reply")
