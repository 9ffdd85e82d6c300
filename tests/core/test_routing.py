"""Which sinks get what a customer wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from broker.core.routing import NOWHERE, compile_routes, route
from broker.core.view import View, view
from broker.core.webhook import split
from schemas.records import Item
from schemas.settings import Route, Then, When

WEBHOOKS = Path(__file__).parent.parent / "wire" / "webhooks"


def sample(name: str) -> Item:
    """The one item of a sample."""
    found = split((WEBHOOKS / f"{name}.json").read_bytes(), "brand", 1_790_000_000_000, {})
    (keyed,) = found.conversations
    return keyed.item


def rules(*conditions: dict[str, Any], go_on: tuple[int, ...] = ()) -> Any:
    """Rules named and delivering to "0", "1" and so on."""
    return compile_routes(
        [
            Route(name=str(index), when=When(**each), then=Then(sinks=[str(index)]), go_on=index in go_on)
            for index, each in enumerate(conditions)
        ]
    )


def taken(compiled: Any, item: Item, first: bool = False) -> tuple[str, ...]:
    return route(compiled, item, first=first).sinks


def text(body: str) -> Item:
    """A message with this text."""
    item = sample("in_text")
    whole = json.loads(item.body)
    whole["entry"][0]["changes"][0]["value"]["messages"][0]["text"]["body"] = body
    return Item(
        kind="message", field="messages", app="brand", waba_id="1", phone_number_id=item.phone_number_id, dedupe="d",
        at=1, received_at=1, body=json.dumps(whole).encode(), message_type="text",
    )  # fmt: skip


def test_the_first_rule_that_matches_wins() -> None:
    """An operator reads the list from the top."""
    assert taken(rules({"types": ["image"]}, {}, {}), sample("in_text")) == ("1",)
    assert taken(rules({}, {}), sample("in_text")) == ("0",)


def test_a_rule_that_goes_on_shares_and_each_sink_gets_it_once() -> None:
    """An archive beside a bot; named twice it is still one archive."""
    compiled = compile_routes(
        [
            Route(name="archive", then=Then(sinks=["a", "b", "a"]), go_on=True),
            Route(name="bot", then=Then(sinks=["b", "c"])),
            Route(name="never", then=Then(sinks=["d"])),
        ]
    )
    routed = route(compiled, sample("in_text"), first=False)
    assert routed.sinks == ("a", "b", "c")
    assert routed.rules == ("archive", "bot")


def test_all_that_a_rule_names_must_hold() -> None:
    """AND between conditions, OR inside a list."""
    item = text("Cancel my order")
    here = item.phone_number_id
    assert taken(rules({"numbers": ["9", here], "types": ["text"], "keywords": ["refund", "cancel"]}), item) == ("0",)
    assert taken(rules({"numbers": ["9"], "keywords": ["cancel"]}), item) == ()
    assert taken(rules({"numbers": [here], "keywords": ["refund"]}), item) == ()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("stop", True), ("STOP!", True), ("please stop.", True), ("Stopp", False), ("nonstop", False),
        ("straße", False), ("opt  out", False), ("opt out now", True), ("ÄRGER", True), ("", False),
    ],
)  # fmt: skip
def test_a_keyword_is_a_whole_word_in_any_case(written: str, meant: bool) -> None:
    """ "nonstop" is no opt-out."""
    assert bool(taken(rules({"keywords": ["Stop", "opt out", "ärger"]}), text(written))) is meant


def test_a_regex_is_searched_without_case_and_not_beyond_metas_limit() -> None:
    """What a customer can write is bounded; what we look at is, too."""
    compiled = rules({"regex": r"order\s+#?\d+"})
    assert taken(compiled, text("where is ORDER #17")) == ("0",)
    assert taken(compiled, text("where is my order")) == ()
    assert taken(compiled, text("x" * 4_096 + " order 17")) == ()


def test_a_tap_is_known_by_its_payload() -> None:
    """Reply button, list row and template quick reply are three shapes of one thing."""
    assert view(sample("in_interactive_button_reply").body) == View("Cancel", "cancel-order")
    assert view(sample("in_button_template_quick_reply").body) == View("Stop promotions", "STOP_PROMO")
    assert view(sample("in_interactive_list_reply").body).payload != ""
    compiled = rules({"payloads": ["STOP_PROMO"]}, {"payloads": ["cancel-*"]}, {"payloads": ["*"]})
    assert taken(compiled, sample("in_button_template_quick_reply")) == ("0",)
    assert taken(compiled, sample("in_interactive_button_reply")) == ("1",)
    assert taken(compiled, sample("in_interactive_list_reply")) == ("2",)
    assert taken(compiled, sample("in_text")) == ()


def test_first_message_means_messages() -> None:
    """A welcome is for who writes, not for who has a preference."""
    compiled = rules({"first_message": True}, {"first_message": False}, {})
    assert taken(compiled, sample("in_text"), first=True) == ("0",)
    assert taken(compiled, sample("in_text"), first=False) == ("1",)
    assert taken(compiled, sample("user_preferences_stop")) == ("2",)


@pytest.mark.parametrize(("name", "kind"), [("st_sent", "status"), ("standby_message", "standby")])
def test_statuses_and_standby_copies_go_only_where_they_are_named(name: str, kind: str) -> None:
    """A bot that answers a standby message takes the conversation from whoever holds it."""
    item = sample(name)
    assert item.kind == kind
    assert route(rules({}, {"types": [item.message_type or "text"]}), item, first=False) == NOWHERE
    assert taken(rules({}, {"types": [kind]}), item) == ("1",)


@pytest.mark.parametrize("name", ["smb_message_echoes_text", "call_connect_user_initiated", "user_preferences_stop"])
def test_other_kinds_go_where_no_type_or_their_kind_is_named(name: str) -> None:
    """What nobody asked for by name still reaches the bot that takes everything."""
    item = sample(name)
    assert taken(rules({"types": ["image"]}, {"types": [item.kind]}, {}), item) == ("1",)
    assert taken(rules({"types": [item.message_type or "text"]}, {}), item) == ("1",)
    assert taken(rules({"keywords": ["hello"]}), item) == ()


@pytest.mark.parametrize("path", sorted(WEBHOOKS.glob("*.json")), ids=lambda path: path.stem)
def test_any_webhook_can_be_looked_at(path: Path) -> None:
    """A view never raises, whatever Meta sends."""
    compiled = rules({"keywords": ["hello"]}, {"payloads": ["*"]}, {"regex": "."}, {})
    for keyed in split(path.read_bytes(), "brand", 0, {}).conversations:
        route(compiled, keyed.item, first=True)
        view(keyed.item.body)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"entry":[{"changes":[{"value":3}]}]}', b"\xff", b'{"entry":1}'])
def test_what_is_not_as_expected_shows_nothing(body: bytes) -> None:
    """Rules without such conditions still decide about it."""
    assert view(body) == View()


def test_one_odd_member_does_not_hide_the_others() -> None:
    """Meta adds and changes members without notice, and sends lone surrogates."""
    body = text("stop").body
    odd = json.loads(body)
    message = odd["entry"][0]["changes"][0]["value"]["messages"][0]
    message["image"] = "no object"
    assert view(json.dumps(odd).encode()).text == "stop"
    assert view(body.replace(b'"stop"', b'"stop \\ud83d"')).text == "stop \ud83d"


@pytest.mark.parametrize(
    ("when", "sinks", "why"),
    [
        ({"regex": "("}, ["a"], "regex"),
        ({"keywords": [" "]}, ["a"], "keyword"),
        ({"payloads": [""]}, ["a"], "payload"),
        ({}, [], "sink"),
    ],
)
def test_a_route_that_cannot_be_right_is_refused_by_name(when: dict[str, Any], sinks: list[str], why: str) -> None:
    """An operator learns it at the start, not from a customer."""
    with pytest.raises(ValueError, match=rf"route 'greeting'.*{why}"):
        compile_routes([Route(name="greeting", when=When(**when), then=Then(sinks=sinks))])


def test_a_name_is_used_once() -> None:
    """A metric's label must mean one rule."""
    with pytest.raises(ValueError, match="twice"):
        compile_routes([Route(name="a", then=Then(sinks=["x"])), Route(name="a", then=Then(sinks=["y"]))])
