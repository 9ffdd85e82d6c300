"""What a customer's actor decides."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from broker.core.customer import LOOK_AGAIN_MS, LOST_AFTER_MS, Dispatch, decide, heard_of, next_due
from broker.core.customer_context import Context, context_of
from broker.core.customer_state import (
    KNOWN_MAX,
    QUIET_AFTER_MS,
    QUIET_BYTES_MAX,
    is_forgotten,
    life_of,
    pack,
    pack_send_id,
    pack_wamid,
    quieted,
    unpack_send_id,
    unpack_wamid,
)
from broker.core.identity import mark_key
from broker.core.idmap import RING_BYTES_MAX
from broker.core.window import WINDOW_MS
from schemas.ids import CustomerKey
from schemas.records import DeliveryFailed, NumberFault, Ready, SendRequest
from schemas.settings import Route, Settings, Then, When
from tests.core.conversation import (
    CONTEXT,
    KEY,
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
    send_id,
    settles,
    status,
    wamid,
)

MINUTE_MS = 60_000


def asked(name: str = "one", **how: object) -> Story:
    """A customer who wrote, and a send that was handed to its sender."""
    story = Story()
    story.writes()
    story.take(request(name, story.now, **how))  # type: ignore[arg-type]
    assert len(readies(story.commands)) == 1
    return story


def doubtful(name: str = "one", **how: object) -> Story:
    """A send whose answer was lost."""
    story = asked(name, **how)
    lane = readies(story.commands)[0].lane
    story.take(outcome(name, "in_doubt", story.now + 1_000, lane=lane), after_ms=1_000)
    assert story.commands == []
    return story


# ---- what the customer does


def test_a_message_is_delivered_once() -> None:
    """Meta repeats webhooks for a week."""
    story = Story()
    assert [one["id"] for one in delivered(story.writes("a"), "bot")] == [wamid("a")]
    assert delivered(story.writes("a")) == []
    assert notes(story.commands) == [("duplicate", "message")]
    assert delivered(story.take(message("a", START), after_ms=7 * 24 * 3_600_000)) == []


def test_a_delivery_has_the_same_id_after_every_crash() -> None:
    """A bot removes what it got twice by this id."""
    first, second = Story(), Story()
    second.now += 5_000
    (one,) = [command for command in first.writes("a") if hasattr(command, "event")]
    (other,) = [command for command in second.take(message("a", START)) if hasattr(command, "event")]
    assert one.event.delivery_id == other.event.delivery_id


def test_only_the_first_message_to_a_number_is_the_first() -> None:
    """A welcome comes once."""
    settings = Settings(
        numbers=SETTINGS.numbers,
        routes=[Route(name="welcome", when=When(first_message=True), then=Then(sinks=["bot"]))],
    )
    story = Story(context_of(settings))
    assert len(delivered(story.writes("a"))) == 1
    assert delivered(story.writes("b")) == []
    assert notes(story.commands) == [("routed", "none")]


def test_what_no_rule_takes_is_counted() -> None:
    """Nothing is dropped in silence."""
    story = Story(context_of(Settings(numbers=SETTINGS.numbers)))
    assert notes(story.writes())[-1] == ("routed", "none")


def test_a_status_of_somebody_elses_send_goes_where_it_is_named() -> None:
    """Other apps on the account send, too; whoever wants their statuses says so."""
    story = Story()
    assert [one["status"] for one in delivered(story.take(status("x", "sent", story.now, line="")), "audit")] == [
        "sent"
    ]
    assert notes(story.take(status("x", "sent", story.now, line=""))) == [("duplicate", "status")]
    story = Story(context_of(Settings(numbers=SETTINGS.numbers)))
    assert notes(story.take(status("x", "sent", story.now, line=""))) == [("status", "foreign")]


def test_a_tap_speaks_of_our_send_by_the_id_we_gave() -> None:
    """A bot looks its own message up by the id it was given, which is not Meta's."""
    story = asked()
    story.take(outcome("one", "accepted", story.now))
    story.writes("tap", type="button", button={"payload": "P", "text": "T"}, context={"from": "1", "id": wamid("one")})
    (tap,) = delivered(story.commands, "bot")
    assert tap["context"] == {"from": "1", "id": send_id("one")}
    story.writes("r", type="reaction", reaction={"message_id": wamid("one"), "emoji": "\U0001f44d"})
    assert delivered(story.commands, "bot")[0]["reaction"] == {"message_id": send_id("one"), "emoji": "\U0001f44d"}
    story.writes("s", type="text", text={"body": "x"}, context={"from": "1", "id": wamid("strange")})
    assert delivered(story.commands, "bot")[0]["context"]["id"] == wamid("strange")


# ---- admission


def test_an_admitted_send_carries_our_line_and_what_the_caller_wrote() -> None:
    """The line settles doubt without a look-up; the rest is the caller's."""
    story = Story()
    story.writes()
    body = {"messaging_product": "whatsapp", "to": PHONE, "type": "text", "text": {"body": "7.90"}, "price": 7.90}
    commands = story.take(request("one", story.now, body=body, own="mine"))
    (dispatch,) = [command for command in commands if isinstance(command, Dispatch)]
    ready = dispatch.record
    assert isinstance(ready, Ready)
    assert dispatch.slot == 3
    assert (ready.send_id, ready.attempt, ready.lane, ready.customer) == (send_id("one"), 1, "reply", KEY)
    assert ready.not_after == story.now + WINDOW_MS - CONTEXT.window_margin_ms
    line = line_of(ready)
    assert (line.send_id, line.sink, line.customer, line.own) == (send_id("one"), "bot", KEY, "mine")
    assert {**json.loads(ready.body), "biz_opaque_callback_data": None} == {**body, "biz_opaque_callback_data": None}


def test_a_request_is_taken_once() -> None:
    """The gateway's append may land twice, and an `Idempotency-Key` promises one."""
    story = asked()
    story.take(request("one", story.now))
    assert readies(story.commands) == []
    story.take(outcome("one", "accepted", story.now))
    story.take(request("one", story.now))
    assert notes(story.commands) == [("duplicate", "send")]
    assert readies(story.commands) == []


@pytest.mark.parametrize(
    ("how", "code", "label"),
    [
        ({"number": "999"}, 100, "number"),
        ({"epoch": 2}, 131005, "epoch"),
        ({"not_after": START - 1}, 131026, "expired"),
        ({"body": []}, 100, "unreadable"),
    ],
)
def test_what_cannot_be_sent_fails_in_metas_words(how: dict[str, object], code: int, label: str) -> None:
    """The caller was told "accepted" long ago: it learns the rest as from Meta, under the id it was given."""
    story = Story()
    story.writes()
    asking = request("one", story.now, own="mine", **{key: value for key, value in how.items() if key != "body"})  # type: ignore[arg-type]
    if "body" in how:
        asking = SendRequest(**{name: getattr(asking, name) for name in asking.__struct_fields__} | {"body": b"[]"})
    commands = story.take(asking)
    assert readies(commands) == []
    assert codes(commands) == [code]
    (failure,) = delivered(commands, "bot")
    assert (failure["id"], failure["biz_opaque_callback_data"]) == (send_id("one"), "mine")
    assert failure["recipient_id"] == PHONE
    assert ("admitted", label) in notes(commands)
    assert story.customer.sends == []


def test_outside_the_window_only_templates_go() -> None:
    """Meta answers 131047, and charges nothing for asking us first."""
    story = Story()
    assert codes(story.take(request("free", story.now))) == [131047]
    assert len(readies(story.take(request("template", story.now, template="hello", send_class="transactional")))) == 1
    story.writes()
    assert len(readies(story.take(request("inside", story.now)))) == 1
    assert codes(story.take(request("late", story.now + WINDOW_MS), after_ms=WINDOW_MS - MINUTE_MS)) == [131047]


def test_a_window_belongs_to_one_number() -> None:
    """Who wrote to sales did not write to support."""
    other = Settings(numbers=[*SETTINGS.numbers, SETTINGS.numbers[0].__class__(
        phone_number_id="2", waba_id="1", token=SETTINGS.numbers[0].token, slot=4)])  # fmt: skip
    story = Story(context_of(other))
    story.writes()
    assert codes(story.take(request("one", story.now, number="2"))) == [131047]


def test_the_callers_expiry_and_the_window_both_count() -> None:
    """Whichever comes first."""
    story = Story()
    story.writes()
    (ready,) = readies(story.take(request("soon", story.now, not_after=story.now + 1_000)))
    assert ready.not_after == story.now + 1_000
    (ready,) = readies(story.take(request("late", story.now, not_after=story.now + 10 * WINDOW_MS)))
    assert ready.not_after == story.now + WINDOW_MS - CONTEXT.window_margin_ms


def test_what_waits_for_one_customer_is_bounded() -> None:
    """In number and in bytes: the state is written with every change."""
    story = Story()
    story.writes()
    for index in range(CONTEXT.waiting_sends_max):
        assert len(readies(story.take(request(str(index), story.now)))) == 1
    assert codes(story.take(request("more", story.now))) == [131056]
    story.take(outcome("0", "accepted", story.now))
    large = {"type": "text", "text": {"body": "x" * 600_000}}
    assert len(readies(story.take(request("large", story.now, body=large)))) == 1
    story.take(outcome("1", "accepted", story.now))
    assert codes(story.take(request("larger", story.now, body=large))) == [131056]


def test_a_mark_goes_straight_to_the_sender_and_leaves_no_state() -> None:
    """A state for every read message would be a state for every message."""
    mark = SendRequest(
        send_id=send_id("mark"), phone_number_id=NUMBER, kind="mark", message_type="", send_class="reply",
        key_name="bot", sink="bot", body=b'{"status":"read","message_id":"wamid.H"}', requested_at=START,
    )  # fmt: skip
    key = mark_key("main", "wamid.H")
    customer, commands = decide(None, key, mark, CONTEXT, START)
    assert customer is None
    (ready,) = readies(commands)
    assert (ready.kind, ready.lane, ready.customer, ready.body) == ("mark", "reply", key, mark.body)


def test_a_send_under_a_foreign_id_is_a_fault_of_ours() -> None:
    """It could never be told from Meta's ids again."""
    story = Story()
    asking = request("one", START)
    odd = SendRequest(**{name: getattr(asking, name) for name in asking.__struct_fields__} | {"send_id": "wamid.H"})
    with pytest.raises(ValueError, match="not of our making"):
        story.take(odd)


# ---- ids


def test_our_ids_become_wamids_on_the_way_out() -> None:
    """Meta knows no id of ours."""
    story = asked()
    story.take(outcome("one", "accepted", story.now))
    reply = {"type": "text", "text": {"body": "x"}, "context": {"message_id": send_id("one")}}
    (ready,) = readies(story.take(request("two", story.now, body=reply)))
    assert json.loads(ready.body)["context"] == {"message_id": wamid("one")}
    reaction = {"type": "reaction", "reaction": {"message_id": send_id("one"), "emoji": "x"}}
    (ready,) = readies(story.take(request("three", story.now, body=reaction)))
    assert json.loads(ready.body)["reaction"] == {"message_id": wamid("one"), "emoji": "x"}
    theirs = {"type": "text", "context": {"message_id": wamid("hello")}}
    (ready,) = readies(story.take(request("four", story.now, body=theirs)))
    assert json.loads(ready.body)["context"] == {"message_id": wamid("hello")}


def test_a_send_waits_for_the_wamid_it_speaks_of_and_its_lane_behind_it() -> None:
    """A bot that reacts to its own message is quicker than Meta's answer; its next message must not overtake."""
    story = asked()
    reply = {"type": "text", "context": {"message_id": send_id("one")}}
    assert readies(story.take(request("two", story.now, body=reply))) == []
    assert notes(story.commands) == [("admitted", "held")]
    assert readies(story.take(request("three", story.now))) == []
    assert len(readies(story.take(request("other lane", story.now, send_class="transactional", template="t")))) == 1
    released = readies(story.take(outcome("one", "accepted", story.now)))
    assert [ready.send_id for ready in released] == [send_id("two"), send_id("three")]
    assert json.loads(released[0].body)["context"]["message_id"] == wamid("one")


def test_a_status_releases_what_was_held_as_well() -> None:
    """It may come before the answer, and instead of it."""
    story = asked()
    story.take(request("two", story.now, body={"context": {"message_id": send_id("one")}}))
    assert len(readies(story.take(status("one", "sent", story.now)))) == 1


def test_what_speaks_of_a_send_that_never_went_is_refused() -> None:
    """Without its target Meta would refuse it, or send a reply to nothing."""
    story = asked()
    story.take(request("two", story.now, body={"context": {"message_id": send_id("one")}}))
    story.take(outcome("one", "refused", story.now, code=131026))
    assert codes(story.commands) == [131026, 131009]
    assert codes(story.take(request("three", story.now, body={"context": {"message_id": send_id("never")}}))) == [
        131009
    ]
    assert codes(story.take(request("four", story.now, body={"context": {"message_id": send_id("four")}}))) == [131009]


def test_a_held_send_expires() -> None:
    """The send it speaks of may stay in doubt for a day."""
    story = doubtful(send_class="campaign", template="t")
    story.take(request("two", story.now, body={"context": {"message_id": send_id("one")}}, not_after=story.now + 1_000))
    assert next_due(story.customer, story.now) == story.now + 1_000
    assert codes(story.due(after_ms=1_000)) == [131026]


def test_a_send_expires_behind_one_that_is_held() -> None:
    """It would be due, and left alone, again and again."""
    story = asked()
    story.take(request("two", story.now, body={"context": {"message_id": send_id("one")}}))
    story.take(request("three", story.now, not_after=story.now + 1_000))
    assert codes(story.due(after_ms=1_000)) == [131026]
    assert next_due(story.customer, story.now) > story.now


def test_only_the_newest_ids_are_remembered() -> None:
    """A state must stay small."""
    story = Story()
    story.writes()
    for index in range(KNOWN_MAX + 100):
        story.take(request(str(index), story.now))
        story.take(outcome(str(index), "accepted", story.now))
    assert len(story.customer.known) == KNOWN_MAX
    assert codes(story.take(request("old", story.now, body={"context": {"message_id": send_id("0")}}))) == [131009]
    assert len(story.customer.older) <= RING_BYTES_MAX
    assert len(story.packed or b"") < 8_000


# ---- the life of a send


def test_each_status_reaches_whoever_sent_once() -> None:
    """Under the id it was given, with its own data and without ours."""
    story = asked(own="mine")
    story.take(outcome("one", "accepted", story.now))
    for what in ("sent", "delivered", "read", "read", "sent"):
        story.take(status("one", what, story.now, own="mine"))
    told = delivered(story.told, "bot")[1:]
    assert [one["status"] for one in told] == ["sent", "delivered", "read"]
    assert {one["id"] for one in told} == {send_id("one")}
    assert {one["biz_opaque_callback_data"] for one in told} == {"mine"}
    assert delivered(story.told, "audit") == told
    assert life_of(story.customer, send_id("one")) == "read"


def test_a_caller_without_own_data_gets_none() -> None:
    """Our line is not its business."""
    story = asked()
    story.take(status("one", "sent", story.now))
    assert "biz_opaque_callback_data" not in delivered(story.commands)[0]


def test_own_data_that_does_not_fit_the_line_comes_back_all_the_same() -> None:
    """Meta's 512 characters are the caller's to use."""
    own = "x" * 512
    story = asked(own=own)
    line = json.loads(readies(story.commands)[0].body)["biz_opaque_callback_data"]
    assert own not in line
    assert delivered(story.take(status("one", "sent", story.now, line=line)))[0]["biz_opaque_callback_data"] == own
    story.take(outcome("one", "accepted", story.now))
    assert delivered(story.take(status("one", "read", story.now, line=line)))[0]["biz_opaque_callback_data"] == own
    story = asked(own=own)
    story.take(outcome("one", "accepted", story.now))
    assert delivered(story.take(status("one", "read", story.now, line=line)))[0]["biz_opaque_callback_data"] == own


def test_a_late_status_never_takes_a_send_back() -> None:
    """Statuses come in any order; `failed` after `delivered` is told, and believed no longer."""
    story = asked()
    story.take(outcome("one", "accepted", story.now))
    lives = []
    for what in ("delivered", "sent", "failed", "read"):
        story.take(status("one", what, story.now))
        lives.append(life_of(story.customer, send_id("one")))
    assert lives == ["delivered", "delivered", "delivered", "read"]


def test_a_status_without_our_line_is_known_by_its_wamid() -> None:
    """A redelivery, or a field Meta left out."""
    story = asked()
    story.take(outcome("one", "accepted", story.now))
    story.take(status("one", "read", story.now, line=""))
    assert [one["id"] for one in delivered(story.commands, "bot")] == [send_id("one")]


def test_a_refusal_is_told_and_settles_the_send() -> None:
    """With Meta's own code."""
    story = asked(own="mine")
    story.take(outcome("one", "refused", story.now, code=131030))
    assert codes(story.commands) == [131030]
    assert story.customer.sends == []
    assert settles(story.commands) == []
    assert codes(story.take(outcome("one", "refused", story.now, code=131030))) == []
    assert delivered(story.take(status("one", "failed", story.now))) == []


def test_metas_closed_window_is_believed_unless_the_customer_wrote_since() -> None:
    """Our window may be wrong: a message that reached another number of ours, a clock."""
    story = asked()
    story.take(request("two", story.now))
    story.take(outcome("one", "refused", story.now + 1_000, code=131047), after_ms=1_000)
    assert codes(story.take(request("three", story.now))) == [131047]
    story.take(message("again", story.now + 5_000), after_ms=5_000)
    story.take(outcome("two", "refused", story.now - 2_000, code=131047))
    assert len(readies(story.take(request("four", story.now)))) == 1


def test_an_expired_send_is_told() -> None:
    """Whatever kept it, its time is over."""
    story = asked()
    story.take(request("two", story.now, not_after=story.now + 1_000))
    assert codes(story.take(outcome("two", "expired", story.now), after_ms=2_000)) == [131026]
    assert [send.send_id for send in story.customer.sends] == [send_id("one")]


def test_a_send_whose_window_closed_while_it_waited_is_refused_as_meta_would() -> None:
    """It never cost a call; a template, which needs no window, was merely too late."""
    story = asked()
    story.take(request("two", story.now, template="t", not_after=story.now + 1_000))
    assert codes(story.take(outcome("two", "expired", story.now), after_ms=2_000)) == [131026]
    assert codes(story.take(outcome("one", "expired", story.now), after_ms=WINDOW_MS)) == [131047]


def test_a_held_send_whose_window_closes_is_refused_as_meta_would() -> None:
    """The send it speaks of stays in doubt for a day."""
    story = doubtful()
    story.take(request("two", story.now, body={"context": {"message_id": send_id("one")}}))
    assert 131047 in codes(story.due(after_ms=WINDOW_MS))


@pytest.mark.parametrize("code", [368, 131031, 131042, 131048, 131064, 130429])
def test_a_failure_that_is_the_numbers_reaches_its_sender_and_the_bot(code: int) -> None:
    """Meta accepts first and fails later: without this the campaign would go on into the wall."""
    story = asked()
    story.take(outcome("one", "accepted", story.now))
    failed = status("one", "failed", story.now, code=code)
    commands = story.take(failed)
    assert codes(commands) == [code]
    [fault] = [c.record for c in commands if isinstance(c, Dispatch) and isinstance(c.record, NumberFault)]
    assert (fault.phone_number_id, fault.code, fault.at) == (NUMBER, code, failed.at)
    assert ("failed", str(code)) in notes(commands)
    assert not any(isinstance(c, Dispatch) for c in story.take(failed)), "once"


@pytest.mark.parametrize("code", [131049, 130472, 131026, 131053, 999_999])
def test_a_failure_that_is_the_recipients_is_told_and_never_repeated(code: int) -> None:
    """131049 sent again within a day fails again, and Meta limits accounts that do so."""
    story = asked()
    story.take(outcome("one", "accepted", story.now))
    commands = story.take(status("one", "failed", story.now, code=code))
    assert codes(commands) == [code]
    assert not any(isinstance(command, Dispatch) for command in commands)
    assert ("failed", str(code) if code < 999_999 else "other") in notes(commands)
    assert story.customer.sends == []


def test_a_window_that_a_failed_status_calls_closed_is_closed_unless_the_customer_wrote_lately() -> None:
    """Meta often accepts first and says so by webhook; each further send would fail the same way, after a wait."""
    story = asked()
    story.take(outcome("one", "accepted", story.now))
    story.take(status("one", "failed", story.now + 60_000, code=131047), after_ms=60_000)
    story.take(request("two", story.now), after_ms=1_000)
    assert len(story.customer.sends) == 1, "who wrote a minute ago may have opened it after the call"
    story.take(outcome("two", "accepted", story.now))
    story.take(status("two", "failed", story.now + 900_000, code=131047), after_ms=900_000)
    assert codes(story.take(request("three", story.now), after_ms=1_000)) == [131047]
    story.take(message("again", story.now + 1_000), after_ms=1_000)
    assert len(readies(story.take(request("four", story.now)))) == 1


def test_a_send_nobody_reports_on_is_given_up() -> None:
    """Its lane's log may be lost; the caller must not wait for ever."""
    story = asked(not_after=START + 10_000)
    assert next_due(story.customer, story.now) == START + 10_000 + LOST_AFTER_MS
    story.now = START + 10_000 + LOST_AFTER_MS
    assert codes(story.due()) == [131000]
    assert story.customer.sends == []


# ---- doubt


def test_a_status_settles_doubt_and_the_sender_is_told() -> None:
    """Its answer was lost, yet Meta took it: nothing is sent again."""
    story = doubtful()
    story.take(status("one", "delivered", story.now))
    assert [settle.send_id for settle in settles(story.commands)] == [send_id("one")]
    assert ("resolved", "status") in notes(story.commands)
    assert readies(story.due(after_ms=10 * MINUTE_MS)) == []
    reply = {"context": {"message_id": send_id("one")}}
    (ready,) = readies(story.take(request("two", story.now, body=reply)))
    assert json.loads(ready.body)["context"]["message_id"] == wamid("one")


def test_a_failed_status_settles_doubt_as_well() -> None:
    """Meta took it and could not deliver it: that is told by Meta's own status."""
    story = doubtful()
    story.take(status("one", "failed", story.now))
    assert codes(story.commands) == [131026]
    assert len(settles(story.commands)) == 1
    assert story.customer.sends == []


def test_a_late_answer_settles_doubt() -> None:
    """The one before us had appended it after all."""
    story = doubtful()
    story.take(outcome("one", "accepted", story.now))
    assert len(settles(story.commands)) == 1
    assert ("resolved", "answer") in notes(story.commands)


def test_doubt_about_a_settled_send_is_answered_at_once() -> None:
    """A new owner of the slot found an intent without an answer; the answer stood in our log all the time."""
    story = asked()
    story.take(outcome("one", "accepted", story.now))
    assert len(settles(story.take(outcome("one", "in_doubt", story.now)))) == 1
    assert len(settles(Story().take(outcome("nobody's", "in_doubt", START)))) == 1


@pytest.mark.parametrize(("send_class", "after_ms"), [("otp", 10_000), ("reply", 60_000), ("transactional", 600_000)])
def test_silence_is_presumed_to_mean_no_after_the_time_of_the_class(send_class: str, after_ms: int) -> None:
    """A one-time code is worth a duplicate sooner than a receipt. Webhooks do arrive, this one's did not."""
    story = doubtful(send_class=send_class)
    called_at = story.now
    assert next_due(story.customer, story.now) == called_at + after_ms
    story.heard[NUMBER] = called_at + 5_000
    assert story.due(after_ms=after_ms - 1) == []
    (again,) = readies(story.due(after_ms=1))
    assert (again.send_id, again.attempt) == (send_id("one"), 2)
    assert line_of(again).send_id == send_id("one")
    assert notes(story.commands) == [("resolved", "policy")]


def test_without_proof_that_webhooks_arrive_nothing_is_sent_again() -> None:
    """When intake is down every send is silent: repeating them would double all of them."""
    story = doubtful()
    assert story.due(after_ms=10 * MINUTE_MS) == []
    assert next_due(story.customer, story.now) == story.now + LOOK_AGAIN_MS
    story.heard[NUMBER] = story.customer.sends[0].called_at
    assert story.due(after_ms=LOOK_AGAIN_MS) == []
    story.writes("later")
    assert len(readies(story.due(after_ms=LOOK_AGAIN_MS))) == 1


def test_a_status_of_a_later_send_is_proof_of_its_number() -> None:
    """A `read` may be of yesterday's message; `sent` and `failed` follow the call."""
    assert heard_of(status("x", "sent", START)) == (NUMBER, START)
    assert heard_of(status("x", "failed", START)) == (NUMBER, START)
    assert heard_of(status("x", "read", START)) is None
    assert heard_of(status("x", "sent", START, line="")) is None
    assert heard_of(message("x", START)) is None


def test_a_campaign_message_is_never_sent_again() -> None:
    """A template held for quality assessment is silent although accepted."""
    story = doubtful(send_class="campaign", template="t", not_after=START + 3_600_000)
    story.heard[NUMBER] = story.now + 30 * MINUTE_MS
    assert story.customer.sends[0].body == b""
    assert story.due(after_ms=40 * MINUTE_MS) == []
    story.now = START + 3_600_000
    assert codes(story.due()) == [131000]
    assert len(settles(story.commands)) == 1
    assert ("resolved", "expired") in notes(story.commands)


def test_doubt_ends_at_the_latest_when_the_send_would_be_too_old() -> None:
    """It holds the customer's lane: for ever is too long."""
    story = doubtful()
    story.now = START + WINDOW_MS
    assert codes(story.due()) == [131000]
    assert len(settles(story.commands)) == 1
    assert next_due(story.customer, story.now) == 0
    story.take(status("one", "sent", story.now))
    assert [one["status"] for one in delivered(story.commands, "bot")] == ["sent"]


def test_a_marketing_send_keeps_its_endpoint_through_doubt() -> None:
    """Sent again by the other endpoint, it would be another product with other prices."""
    story = Story()
    story.writes()
    story.take(replace(request("one", story.now), edge="marketing_messages"))
    assert [ready.edge for ready in readies(story.commands)] == ["marketing_messages"]
    story.take(outcome("one", "in_doubt", story.now))
    story.heard[NUMBER] = story.now + WINDOW_MS // 2
    assert [ready.edge for ready in readies(story.due(after_ms=MINUTE_MS))] == ["marketing_messages"]


def test_doubt_that_returns_is_given_up() -> None:
    """One repetition may be one duplicate; a loop would be many."""
    story = doubtful()
    story.heard[NUMBER] = story.now + WINDOW_MS // 2
    assert len(readies(story.due(after_ms=MINUTE_MS))) == 1
    story.take(outcome("one", "in_doubt", story.now, attempt=2))
    assert story.commands == []
    story.due(after_ms=MINUTE_MS)
    assert readies(story.commands) == []
    assert codes(story.commands) == [131000]
    assert len(settles(story.commands)) == 1


def test_a_second_acceptance_is_counted_once() -> None:
    """The price of the repetition, where the presumption was wrong."""
    story = doubtful()
    story.heard[NUMBER] = story.now + WINDOW_MS // 2
    story.due(after_ms=MINUTE_MS)
    story.take(status("one", "sent", story.now))
    assert len(settles(story.commands)) == 1  # the second attempt may still be in its queue
    story.take(outcome("one", "accepted", story.now, attempt=2, message_id=wamid("twice")))
    assert ("accepted_twice", "") in notes(story.commands)
    story.take(status("one", "delivered", story.now, message_id=wamid("twice")))
    assert [label for what, label in notes(story.commands) if what == "accepted_twice"] == []
    assert [one["status"] for one in delivered(story.told, "bot")[1:]] == ["sent", "delivered"]


def test_a_repeated_report_of_doubt_changes_nothing() -> None:
    """Reports are at least once; the deadline must not move with each."""
    story = doubtful()
    due_at = next_due(story.customer, story.now)
    assert story.take(outcome("one", "in_doubt", story.now + 5_000), after_ms=5_000) == []
    assert next_due(story.customer, story.now) == due_at


def test_brands_can_forbid_repetition() -> None:
    """Each class may be set to never."""
    context = Context(CONTEXT.rules, CONTEXT.numbers, {**CONTEXT.doubt_ms, "reply": -1}, 60_000, 100)
    story = Story(context)
    story.writes()
    story.take(request("one", story.now))
    story.take(outcome("one", "in_doubt", story.now))
    story.heard[NUMBER] = story.now + WINDOW_MS // 2
    assert story.due(after_ms=3_600_000) == []


# ---- the state


def talk(story: Story, exchanges: int) -> None:
    """Question and answer, each answer read."""
    for index in range(exchanges):
        story.writes(f"in {index}")
        story.take(request(f"out {index}", story.now, own="order:7f3a"))
        story.take(outcome(f"out {index}", "accepted", story.now))
        for what in ("sent", "delivered", "read"):
            story.take(status(f"out {index}", what, story.now, own="order:7f3a"), after_ms=3_000)


def test_a_quiet_customer_is_small() -> None:
    """Millions of them are held in memory, and each change is written."""
    story = Story()
    talk(story, 3)
    assert story.packed is not None
    assert len(story.packed) <= QUIET_BYTES_MAX
    assert story.customer.bsuid == "US.13"


def test_silence_makes_the_busiest_customer_small_and_costs_nothing_that_matters() -> None:
    """After eight days Meta repeats nothing; a tap on one of the last messages still finds it."""
    story = Story()
    talk(story, 200)
    customer = story.customer
    assert len(pack(customer)) > QUIET_BYTES_MAX
    assert not quieted(customer, story.now + QUIET_AFTER_MS)
    assert quieted(customer, story.now + QUIET_AFTER_MS + 2 * 3_600_000)
    assert len(pack(customer)) <= QUIET_BYTES_MAX
    assert customer.windows == story.customer.windows
    assert unpack_send_id(customer.known[-1].send_id) == send_id("out 199")
    assert not quieted(customer, story.now + QUIET_AFTER_MS + 2 * 3_600_000)


def test_who_is_silent_for_a_month_is_forgotten() -> None:
    """Unless something must be remembered."""
    story = Story()
    story.writes()
    month_ms = 30 * 24 * 3_600_000
    assert not is_forgotten(story.customer, START + month_ms)
    assert is_forgotten(story.customer, START + month_ms + 1)
    assert not is_forgotten(doubtful().customer, START + 2 * month_ms)


def test_another_spelling_of_the_phone_is_remembered() -> None:
    """Meta may answer with another form than was dialled."""
    story = Story(key=CustomerKey("main:5511987654321"))
    story.take(request("one", story.now, template="t"))
    story.take(outcome("one", "accepted", story.now, wa_id="551187654321"))
    assert story.customer.wa_id == "551187654321"


def test_an_undelivered_event_changes_nothing_here() -> None:
    """The delivery stage has set it aside."""
    story = Story()
    story.take(DeliveryFailed(delivery_id="1", sink="bot", reason="gone", attempts=9, at=START))
    assert story.packed is None


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_ids_survive_their_packing(name: str) -> None:
    """To the character: a bot compares strings."""
    assert unpack_send_id(pack_send_id(send_id(name))) == send_id(name)
    assert len(pack_send_id(send_id(name))) == 16
    for text in (wamid(name), "wamid.", "wamid.x", "wamid.AAA=AAA", "", "\0odd", "gBEGkYiEB1VXAglK1ZEqA1YKPrU"):
        assert unpack_wamid(pack_wamid(text)) == text
