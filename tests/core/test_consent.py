"""Who said stop gets no marketing, whatever way it was said, and can prove it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core import consent
from broker.core.consent import CHANGES_MAX, Change, changed, plain, stopped
from broker.core.customer_state import QUIET_AFTER_MS, Customer, is_forgotten, quieted
from broker.core.identity import group_key
from broker.core.opaque import wrap
from schemas.ids import Sink
from schemas.records import Item
from schemas.settings import START_WORDS, STOP_WORDS
from tests.core.conversation import (
    NUMBER,
    PHONE,
    SETTINGS,
    WABA,
    Story,
    codes,
    delivered,
    items,
    notes,
    outcome,
    post,
    readies,
    request,
    send_id,
    status,
)


def preference(value: str, at: int, category: str = "marketing_messages") -> Item:
    """The customer turns marketing off or on in the app."""
    contact = {"profile": {"name": "Ada"}, "wa_id": PHONE, "user_id": "US.13"}
    said = {"wa_id": PHONE, "user_id": "US.13", "category": category, "value": value, "timestamp": at // 1_000}
    inner = {
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": "15550001000", "phone_number_id": NUMBER},
        "contacts": [contact],
        "user_preferences": [said],
    }
    change = {"value": inner, "field": "user_preferences"}
    body = {"object": "whatsapp_business_account", "entry": [{"id": WABA, "changes": [change]}]}
    ((_, item),) = items(json.dumps(body).encode(), at)
    return item


def test_marketing_goes_nowhere_after_an_opt_out() -> None:
    """131050, as Meta would say it, and before it costs a call. All else still goes: they asked for no marketing."""
    story = Story()
    story.writes()
    story.take(preference("stop", story.now), after_ms=1_000)
    assert notes(story.commands)[0] == ("consent", "stop")
    story.take(request("offer", story.now, send_class="campaign", template="summer"))
    assert codes(story.commands) == [131050]
    assert readies(story.commands) == []
    assert ("admitted", "consent") in notes(story.commands)
    assert [ready.send_id for ready in readies(story.take(request("re", story.now)))] == [send_id("re")]
    utility = story.take(request("parcel", story.now, send_class="transactional", template="parcel"))
    assert len(readies(utility)) == 1


def test_a_marketing_send_is_one_whatever_its_class() -> None:
    """A bot that sends by `/marketing_messages` has no campaign class."""
    story = Story()
    story.take(preference("stop", story.now))
    asked = request("offer", story.now, template="summer")
    story.take(type(asked)(**{name: getattr(asked, name) for name in asked.__struct_fields__} | {"marketing": True}))
    assert codes(story.commands) == [131050]


def test_opting_in_again_restores() -> None:
    """By the switch, after the switch; and a repetition of the old webhook changes nothing any more."""
    story = Story()
    stop = preference("stop", story.now)
    story.take(stop)
    story.take(preference("resume", story.now + 5_000), after_ms=5_000)
    story.take(stop, after_ms=5_000)
    story.take(request("offer", story.now, send_class="campaign", template="summer"))
    assert len(readies(story.commands)) == 1
    assert [(one.stopped, one.source) for one in story.customer.consent] == [
        (True, "preference"),
        (False, "preference"),
    ]


def test_a_late_stop_does_not_undo_a_later_resume() -> None:
    """Meta promises no order: what was said last counts, not what came last."""
    story = Story()
    at = story.now
    story.take(preference("resume", at + 60_000), after_ms=61_000)
    story.take(preference("stop", at))
    story.take(request("offer", story.now, send_class="campaign", template="summer"))
    assert len(readies(story.commands)) == 1


def test_a_preference_we_do_not_know_changes_nothing_and_is_passed_on() -> None:
    """Meta may add categories and values; a stop of something else is no stop of marketing."""
    story = Story()
    for item in (preference("stop", story.now, "news"), preference("pause", story.now)):
        story.take(item)
        assert story.customer.consent == []
        assert len([one for one in story.commands if type(one).__name__ == "Deliver"]) == 1


@pytest.mark.parametrize(
    "text", ["STOP", "stop", " Stop! ", "«stop»", "ＳＴＯＰ", "Keine Werbung", "arreter", "توقف", "STOP.\n"]
)
def test_a_word_for_stop_is_one_in_any_case_and_language(text: str) -> None:
    """Somebody who is annoyed does not look up how the word is spelled. The bot gets the message all the same."""
    story = Story()
    story.writes("word", type="text", text={"body": text})
    assert [change.stopped for change in story.customer.consent] == [True]
    assert len(delivered(story.commands, "bot")) == 1


@pytest.mark.parametrize(
    "text", ["please stop sending me the wrong parcel", "non-stop", "bus stop?", "stopstop", "", "!"]
)
def test_a_sentence_with_the_word_in_it_is_no_opt_out(text: str) -> None:
    """It is for the bot or an agent to read."""
    story = Story()
    story.writes("word", type="text", text={"body": text})
    assert story.customer.consent == []


def test_a_tap_on_stop_counts_and_start_restores() -> None:
    """Meta's own templates have a quick reply for it. The word and the message stand there as proof."""
    story = Story()
    story.writes("tap", type="button", button={"text": "Stop promotions", "payload": "x"})
    (stop,) = story.customer.consent
    assert (stop.source, stop.number, stop.at) == ("word:stop promotions", NUMBER, story.now)
    assert stop.proof.startswith("wamid.")
    story.now += 60_000
    story.writes("again", type="text", text={"body": "start"})
    story.take(request("offer", story.now, send_class="campaign", template="summer"))
    assert len(readies(story.commands)) == 1


def test_what_meta_says_for_the_customer_counts() -> None:
    """Its refusal and its failed status are proof that they said stop to somebody."""
    for told in ("answer", "status"):
        story = Story()
        story.take(request("offer", story.now, send_class="campaign", template="summer"))
        if told == "answer":
            story.take(outcome("offer", "refused", story.now, lane="campaign", code=131050), after_ms=1_000)
        else:
            story.take(outcome("offer", "accepted", story.now, lane="campaign"), after_ms=1_000)
            said = status("offer", "failed", story.now)
            story.take(type(said)(**{name: getattr(said, name) for name in said.__struct_fields__}
                                  | {"body": said.body.replace(b"131026", b"131050")}), after_ms=1_000)  # fmt: skip
        assert [change.source for change in story.customer.consent] == ["error:131050"]
        story.take(request("another", story.now, send_class="campaign", template="summer"))
        assert codes(story.commands) == [131050]


def test_a_participant_who_takes_no_marketing_does_not_silence_a_group() -> None:
    """Meta fails what is theirs of a message to the group; the others got it, and go on getting it."""
    key = group_key("main", "Y2Fw")
    line = wrap(send_id("offer"), Sink("bot"), key, None)
    failed = {
        "id": "wamid.G1", "status": "failed", "timestamp": "1790000000", "recipient_id": "Y2Fw",
        "recipient_type": "group", "recipient_participant_id": PHONE, "biz_opaque_callback_data": line,
        "errors": [{"code": 131050, "title": "User stopped marketing messages"}],
    }  # fmt: skip
    story = Story(key=key)
    story.take(request("offer", story.now, send_class="campaign", template="summer"))
    story.take(
        outcome("offer", "accepted", story.now, lane="campaign", message_id="wamid.G1", wa_id=""), after_ms=1_000
    )
    ((keyed, item),) = items(post({"statuses": [failed]}, story.now), story.now)
    assert keyed == key
    story.take(item)
    assert [each["status"] for each in delivered(story.commands)] == ["failed"]
    story.take(request("another", story.now, send_class="campaign", template="summer"))
    assert [ready.send_id for ready in readies(story.commands)] == [send_id("another")]


def test_a_send_that_was_held_when_they_said_stop_does_not_go() -> None:
    """It waits for the message it speaks of; what counts is when it would leave."""
    story = Story()
    story.writes()
    story.take(request("first", story.now, send_class="campaign", template="summer"))
    second = {"type": "template", "template": {}, "context": {"message_id": send_id("first")}}
    story.take(request("second", story.now, send_class="campaign", template="summer", body=second))
    assert notes(story.commands) == [("admitted", "held")]
    story.take(preference("stop", story.now + 1_000), after_ms=1_000)
    story.take(outcome("first", "accepted", story.now, lane="campaign"))
    assert readies(story.commands) == []
    assert codes(story.commands) == [131050]


def test_a_stop_said_to_one_number_reaches_the_others_only_if_configured() -> None:
    """A brand with several businesses under one portfolio may keep them apart."""
    changes = changed([], Change(1, True, "a", "preference", ""))
    assert stopped(changes, "a", "number")
    assert not stopped(changes, "b", "number")
    assert stopped(changes, "b", "portfolio")


numbers = st.sampled_from(("a", "b", "c"))
told = st.lists(st.tuples(st.integers(1, 50), st.booleans(), numbers), max_size=40)


@given(told)
def test_what_is_kept_answers_as_all_of_it_would(history: list[tuple[int, bool, str]]) -> None:
    """The list is bounded and comes in any order; its answer is that of the whole history."""
    kept: list[Change] = []
    whole: list[Change] = []
    for at, says_stop, number in history:
        change = Change(at, says_stop, number, "preference", "")
        kept = changed(kept, change)
        whole.append(change)
        assert len(kept) <= CHANGES_MAX
    whole.sort(key=lambda one: (one.at, one.stopped))
    assert stopped(kept, "a", "portfolio") == stopped(whole, "a", "portfolio")
    for number in ("a", "b", "c"):
        assert stopped(kept, number, "number") == stopped(whole, number, "number")
    quiet = consent.quieted(kept)
    for number in ("a", "b", "c"):
        assert stopped(quiet, number, "number") == stopped(whole, number, "number")


def test_a_customer_who_said_stop_is_never_forgotten() -> None:
    """However long they are silent: they said it once and for all."""
    story = Story()
    for turn in range(6):
        story.take(preference("stop" if turn % 2 == 0 else "resume", story.now + 1_000), after_ms=1_000)
    story.take(preference("stop", story.now + 1_000), after_ms=1_000)
    customer = story.customer
    later = story.now + 10 * QUIET_AFTER_MS
    assert not is_forgotten(customer, later)
    assert quieted(customer, later)
    assert stopped(customer.consent, NUMBER, "portfolio")
    assert is_forgotten(Customer(), later)


def test_the_words_we_come_with_are_words_and_none_means_both() -> None:
    """A word that stops and starts would do whichever is looked up first."""
    assert not consent.words(STOP_WORDS) & consent.words(START_WORDS)
    assert SETTINGS.customer.consent.stop_words == STOP_WORDS
    assert plain("x" * 65) == ""
    for wrong in ("", "!?", "x" * 65):
        lists: dict[str, Any] = {"en": [wrong]}
        with pytest.raises(ValueError, match="is no word"):
            consent.words(lists)
