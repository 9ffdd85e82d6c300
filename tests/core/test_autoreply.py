"""What a route says beside where a message goes: the broker's own reply, tags, holder, language."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from broker.core.customer import REPLY_LIFE_MS, Command, Deliver
from broker.core.customer_context import context_of
from broker.core.customer_state import QUIET_BYTES_MAX, REPLIED_MAX, is_forgotten, pack, quieted
from broker.core.dedupe import KEPT_MS
from schemas.records import DeliveryEvent, SendOutcome
from schemas.settings import Hours, Reply, Route, Then, When
from tests.core.conversation import (
    NUMBER,
    PHONE,
    SETTINGS,
    START,
    Story,
    codes,
    delivered,
    line_of,
    message,
    notes,
    outcome,
    readies,
    request,
    status,
)

HOUR_MS = 3_600_000
CLOSED = Route(
    name="closed",
    when=When(closed="office"),
    then=Then(tags=["late"], reply=Reply(text="We are back at nine.", every_s=7_200)),
    go_on=True,
)
OFFICE = Hours(name="office", time_zone="Europe/Berlin", open=["tue 09:00-18:00"])
"""START is a Monday."""


def story(*routes: Route) -> Story:
    """A customer of a brand with these routes, and a bot that takes everything else."""
    bot = Route(name="rest", then=Then(sinks=["bot"]))
    return Story(context_of(replace(SETTINGS, hours=[OFFICE], routes=[*routes, bot])))


def events(commands: list[Command]) -> list[DeliveryEvent]:
    return [command.event for command in commands if isinstance(command, Deliver)]


def test_outside_business_hours_the_broker_answers_and_the_bot_gets_it_too() -> None:
    """The reply goes the way of every send: admitted, with our line, into the reply lane at the number's slot."""
    told = story(CLOSED).writes()
    (ready,) = readies(told)
    payload = json.loads(ready.body)
    line = payload.pop("biz_opaque_callback_data")
    assert payload == {
        "messaging_product": "whatsapp",
        "recipient_type": "individual",
        "to": PHONE,
        "type": "text",
        "text": {"body": "We are back at nine."},
    }
    assert ready.send_id in line
    assert (ready.lane, ready.send_class, ready.phone_number_id) == ("reply", "reply", NUMBER)
    assert ready.not_after <= START + REPLY_LIFE_MS
    assert [event.tags for event in events(told)] == [("late",)]
    assert ("replied", "closed") in notes(told)
    assert ("admitted", "admitted") in notes(told)


def test_a_customer_gets_it_once_in_its_time_and_each_number_for_itself() -> None:
    """Ten messages in a night are answered once; the other number has not said it yet."""
    told = story(CLOSED)
    assert len(readies(told.writes("first"))) == 1
    told.now += 7_199_000
    assert readies(told.writes("again")) == []
    told.now += 1_000
    assert len(readies(told.writes("next"))) == 1
    other = replace(message("other", told.now), phone_number_id="999")
    assert ("replied", "closed") in notes(told.take(other)), "the other number is not configured, but it was asked"


def test_a_message_that_comes_twice_is_answered_once_and_decided_again_with_the_same_id() -> None:
    """A step that was refused is decided anew; a webhook is repeated for days."""
    one, other = story(CLOSED), story(CLOSED)
    item = message("hello", START)
    (first,) = readies(one.take(item))
    (again,) = readies(other.take(item, after_ms=50))
    assert first.send_id == again.send_id
    assert readies(one.take(item, after_ms=HOUR_MS * 3)) == []


def test_its_statuses_go_to_onlookers_without_our_line() -> None:
    """No bot sent it, so none expects them; who watches statuses sees the id we gave it."""
    audit = Route(name="audit", when=When(types=["status"]), then=Then(sinks=["audit"]))
    told = story(audit, CLOSED)
    (ready,) = readies(told.writes())
    accepted = SendOutcome(ready.send_id, 1, "accepted", NUMBER, "reply", told.now, told.now, "wamid.HX", PHONE)
    assert delivered(told.take(accepted)) == []
    line = json.loads(ready.body)["biz_opaque_callback_data"]
    assert line_of(ready).sink == ""
    (seen,) = delivered(told.take(status("x", "sent", told.now, message_id="wamid.HX", line=line)), "audit")
    assert seen["id"] == ready.send_id
    assert "biz_opaque_callback_data" not in seen
    assert told.customer.sends == []


def test_a_failure_of_it_is_told_to_nobody() -> None:
    """There is no bot that could act on it; it is counted."""
    told = story(CLOSED)
    (ready,) = readies(told.writes())
    refused = SendOutcome(ready.send_id, 1, "refused", NUMBER, "reply", told.now, told.now, code=131026)
    commands = told.take(refused)
    assert codes(commands) == []
    assert events(commands) == []
    assert told.customer.sends == []


def test_a_message_that_waited_too_long_is_not_answered() -> None:
    """We were down for two hours: "we are closed" would come when we are open."""
    told = story(CLOSED)
    item = message("hello", START)
    commands = told.take(item, after_ms=REPLY_LIFE_MS)
    assert readies(commands) == []
    assert ("admitted", "expired") in notes(commands)
    assert len(delivered(commands, "bot")) == 1


@pytest.mark.parametrize(
    "content",
    [
        {"type": "reaction", "reaction": {"message_id": "wamid.X", "emoji": "👍"}},
        {"type": "unsupported", "errors": [{"code": 131051}]},
    ],
)
def test_what_expects_no_answer_gets_none(content: dict[str, Any]) -> None:
    """A thumb at night is no question."""
    assert readies(story(CLOSED).writes("x", **content)) == []


def test_a_reply_may_be_a_template_or_have_buttons() -> None:
    """Whatever Graph takes, checked as the gateway checks it."""
    button = {"type": "reply", "reply": {"id": "call-me", "title": "Call me"}}
    content = {
        "type": "interactive",
        "interactive": {"type": "button", "body": {"text": "Closed."}, "action": {"buttons": [button]}},
    }
    (ready,) = readies(story(Route(name="x", then=Then(reply=Reply(message=content)))).writes())
    assert json.loads(ready.body)["interactive"] == content["interactive"]
    with pytest.raises(ValueError, match=r"routes\[0\]\.then\.reply\.message"):
        story(Route(name="x", then=Then(reply=Reply(message={"type": "text", "text": {}}))))


def test_a_handover_changes_holder_and_epoch_and_the_old_holder_is_refused() -> None:
    """Whoever takes over learns its epoch with the very message; a send of the epoch before is stale."""
    told = story(
        Route(name="with-people", when=When(holders=["audit"]), then=Then(sinks=["audit"])),
        Route(name="person", when=When(keywords=["human"]), then=Then(sinks=["audit"], holder="audit")),
    )
    (event,) = events(told.writes("a"))
    assert event.epoch == 1
    told.now += 1_000
    (event,) = events(told.writes("b", type="text", text={"body": "A human, please"}))
    assert event.epoch == 2
    told.now += 1_000
    assert [command.sink for command in told.writes("c") if isinstance(command, Deliver)] == ["audit"]
    assert codes(told.take(request("stale", told.now, epoch=1))) == [131005]
    assert len(readies(told.take(request("fresh", told.now, epoch=2)))) == 1


def test_a_holder_that_left_the_configuration_holds_nothing() -> None:
    """Its conversations are the bot's again, or nobody would ever answer them."""
    told = story(
        Route(name="person", when=When(keywords=["human"]), then=Then(sinks=["audit"], holder="audit")),
        Route(name="bot", when=When(holders=["bot"]), then=Then(sinks=["bot"])),
    )
    told.writes("a", type="text", text={"body": "human"})
    told.now += 1_000
    assert told.customer.holder == "audit"
    told.context = replace(told.context, sinks=frozenset({"bot"}))
    assert [command.sink for command in told.writes("b") if isinstance(command, Deliver)] == ["bot"]


def test_a_conversation_comes_back_and_counts_on() -> None:
    """Back at the bot it is not the epoch of before; to hand over to who holds it changes nothing."""
    told = story(
        Route(name="take", when=When(keywords=["human"]), then=Then(sinks=["audit"], holder="audit")),
        Route(name="back", when=When(keywords=["bye"]), then=Then(sinks=["bot"], holder="bot")),
    )
    for number, word in enumerate(("human", "human", "bye", "bye", "human")):
        told.now += 1_000
        told.writes(f"m{number}", type="text", text={"body": word})
    assert (told.customer.holder, told.customer.epoch) == ("audit", 4)


def test_a_language_is_what_a_route_said_else_the_last_templates() -> None:
    """A brand knows its customers' language when it writes first; who chose one keeps it."""
    told = story(
        Route(name="choose", when=When(payloads=["language:de"]), then=Then(language="de", sinks=["bot"])),
        Route(name="german", when=When(languages=["de"]), then=Then(sinks=["audit"])),
        Route(name="portuguese", when=When(languages=["pt"]), then=Then(tags=["pt"], sinks=["bot"])),
    )
    template = {
        "messaging_product": "whatsapp",
        "to": PHONE,
        "type": "template",
        "template": {"name": "hello", "language": {"code": "pt_BR"}},
    }
    told.take(request("t", told.now, template="hello", body=template))
    assert [event.tags for event in events(told.writes("a"))] == [("pt",)]
    tap = {"type": "button_reply", "button_reply": {"id": "language:de", "title": "Deutsch"}}
    told.now += 1_000
    told.writes("b", type="interactive", interactive=tap)
    told.take(request("t2", told.now, template="hello", body=template))
    told.now += 1_000
    assert [command.sink for command in told.writes("c") if isinstance(command, Deliver)] == ["audit"]


def test_what_is_remembered_of_replies_is_bounded_and_ends() -> None:
    """A customer of twenty numbers costs no more than of four; silence makes the state small again."""
    told = story(CLOSED)
    for number in range(20):
        told.take(replace(message(f"m{number}", told.now), phone_number_id=str(number)), after_ms=1_000)
    customer = told.customer
    assert len(customer.replied) == REPLIED_MAX
    assert not quieted(customer, told.now)
    later = told.now + KEPT_MS + 2 * HOUR_MS
    assert quieted(customer, later)
    assert customer.replied == {}
    customer.windows = {NUMBER: START}
    assert len(pack(customer)) <= QUIET_BYTES_MAX
    assert is_forgotten(customer, later + 30 * 24 * HOUR_MS)
    customer.language = "de"
    assert not is_forgotten(customer, later + 30 * 24 * HOUR_MS), "who chose a language is not asked again"


def test_outcomes_of_ordinary_sends_are_told_as_before() -> None:
    """A send of a bot beside it has its own sink."""
    told = story(CLOSED)
    told.writes()
    told.take(request("r", told.now))
    assert codes(told.take(outcome("r", "refused", told.now, code=131026))) == [131026]
