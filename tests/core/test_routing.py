"""Which sinks get what a customer wrote."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from broker.core.hours import compile_hours
from broker.core.patterns import MEMORY_BYTES_MAX, compile_pattern, found
from broker.core.routing import NOWHERE, Case, compile_routes, explain, route, routed
from broker.core.view import View, view
from broker.core.webhook import split
from schemas.records import Item, RouteDebounce
from schemas.settings import Hours, Reply, Route, Then, When

OFFICE = Hours(name="office", time_zone="Europe/Berlin", open=["mon-fri 09:00-18:00"])
NOON = 1_795_518_000_000
"""Noon of a Tuesday in Berlin."""

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
        ],
        {"office": compile_hours(OFFICE)},
    )


def taken(compiled: Any, item: Item, first: bool = False, **known: str) -> tuple[str, ...]:
    return route(compiled, Case(item, first=first, **known)).sinks


def text(body: str, received_at: int = 1) -> Item:
    """A message with this text."""
    item = sample("in_text")
    whole = json.loads(item.body)
    whole["entry"][0]["changes"][0]["value"]["messages"][0]["text"]["body"] = body
    return Item(
        kind="message", field="messages", app="brand", waba_id="1", phone_number_id=item.phone_number_id, dedupe="d",
        at=1, received_at=received_at, body=json.dumps(whole).encode(), message_type="text",
        wa_id=item.wa_id, bsuid=item.bsuid,
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
        ],
        {},
    )
    taken_by = route(compiled, Case(sample("in_text"), first=False))
    assert taken_by.sinks == ("a", "b", "c")
    assert taken_by.rules == ("archive", "bot")


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
    assert route(rules({}, {"types": [item.message_type or "text"]}), Case(item, first=False)) == NOWHERE
    assert taken(rules({}, {"types": [kind]}), item) == ("1",)


@pytest.mark.parametrize("name", ["smb_message_echoes_text", "call_connect_user_initiated", "user_preferences_stop"])
def test_other_kinds_go_where_no_type_or_their_kind_is_named(name: str) -> None:
    """What nobody asked for by name still reaches the bot that takes everything."""
    item = sample(name)
    assert taken(rules({"types": ["image"]}, {"types": [item.kind]}, {}), item) == ("1",)
    assert taken(rules({"types": [item.message_type or "text"]}, {}), item) == ("1",)
    assert taken(rules({"keywords": ["hello"]}), item) == ()


def test_a_regex_cannot_stop_a_partition() -> None:
    """Whatever an operator writes and a customer sends: a backtracking engine needs longer than the world is old."""
    text = "a" * 4_095 + "!"
    began = time.process_time()
    for pattern in (r"(a*)*b$", r"(a|aa)+$", r"(.*)(.*)(.*)(.*)(.*)[^a!]$", r"(?:a?){500}a{500}b"):
        assert not found(compile_pattern(pattern), text)
    assert time.process_time() - began < 2.0
    with pytest.raises(ValueError, match=r"too large|repetition size"):
        compile_pattern(r"((\pL{30}){30})|" * 40)
    with pytest.raises(ValueError, match="repeats too much: 15305 instructions, at most 10000"):
        compile_pattern(r"(?:.?){900}.{900}b")
    assert MEMORY_BYTES_MAX * 1_000 <= 2**30, "a thousand rules fit into a process"


def test_a_regex_knows_letters_of_any_script_and_survives_half_a_character() -> None:
    """Customers write in their own language, and phones send what no encoder takes."""
    assert found(compile_pattern("ärger"), "So ein ÄRGER")
    assert found(compile_pattern(r"\p{Cyrillic}"), "Привет")
    assert not found(compile_pattern(r"\p{Cyrillic}"), "Hello")
    assert found(compile_pattern("order"), "\ud83d my order")


def test_an_ad_is_known_by_its_id() -> None:
    """Who came from the summer campaign goes to its bot; and a Status ad may have no id at all."""
    item = sample("in_text_referral_ctwa")
    assert taken(rules({"referrals": ["9"]}, {"referrals": ["1202263*"]}), item) == ("1",)
    assert taken(rules({"referrals": ["120226305854810001"]}), item) == ("0",)
    assert taken(rules({"referrals": ["*"]}, {}), sample("in_text")) == ("1",)
    whole = json.loads(item.body)
    del whole["entry"][0]["changes"][0]["value"]["messages"][0]["referral"]["source_id"]
    without = replace(item, body=json.dumps(whole).encode())
    assert taken(rules({"referrals": ["1*"]}, {"referrals": ["*"]}), without) == ("1",)


def test_customers_are_known_by_any_of_their_ids() -> None:
    """A list of test phones, a country, a BSUID: written as people write them."""
    item = sample("in_text")
    assert taken(rules({"customers": ["+1 555 000-1234"]}), item) == ("0",)
    assert taken(rules({"customers": ["49*"]}, {"customers": ["1555*"]}), item) == ("1",)
    assert taken(rules({"customers": [item.bsuid]}), item) == ("0",)
    assert taken(rules({"customers": ["1555"]}), item) == ()
    brazil = replace(item, wa_id="551187654321", bsuid="")
    assert taken(rules({"customers": ["5511987654321"]}), brazil) == ("0",), "with and without the ninth digit"


def test_a_holder_keeps_its_conversations() -> None:
    """Who was handed to people stays with them, whatever words they use next."""
    compiled = rules({"holders": ["desk"]}, {"holders": ["bot"], "keywords": ["hello"]}, {})
    item = text("hello")
    assert taken(compiled, item, holder="desk") == ("0",)
    assert taken(compiled, item) == ("1",)
    assert taken(compiled, item, holder="other") == ("2",)


@pytest.mark.parametrize(
    ("language", "taker"), [("de", "0"), ("de-at", "0"), ("pt-br", "1"), ("pt", "3"), ("", "2"), ("den", "3")]
)
def test_a_language_holds_for_its_kinds_and_und_for_none(language: str, taker: str) -> None:
    """Meta writes `pt_BR`, others `pt-BR`; "nobody said" is a case of its own."""
    compiled = rules({"languages": ["de"]}, {"languages": ["pt_BR"]}, {"languages": ["und"]}, {})
    assert taken(compiled, text("x"), language=language) == (taker,)


def test_hours_are_judged_by_the_instant_we_received_the_message() -> None:
    """A step decided again an hour later must decide the same."""
    compiled = rules({"open": "office"}, {"closed": "office"})
    assert taken(compiled, text("x", received_at=NOON)) == ("0",)
    assert taken(compiled, text("x", received_at=NOON + 8 * 3_600_000)) == ("1",)


def test_of_several_rules_tags_add_up_and_the_first_word_counts() -> None:
    """A rule that goes on adds; it does not overrule what stands above it."""
    compiled = compile_routes(
        [
            Route(name="a", then=Then(tags=["x", "y"], holder="desk"), go_on=True),
            Route(
                name="b", then=Then(tags=["y", "z"], holder="bot", language="pt_BR", reply=Reply(text="1")), go_on=True
            ),
            Route(name="c", then=Then(sinks=["s"], language="de", reply=Reply(text="2"))),
        ],
        {},
    )
    taken_by = route(compiled, Case(sample("in_text"), first=False))
    assert (taken_by.rules, taken_by.sinks, taken_by.tags) == (("a", "b", "c"), ("s",), ("x", "y", "z"))
    assert (taken_by.holder, taken_by.language) == ("desk", "pt-br")
    assert taken_by.reply is not None
    assert taken_by.reply.rule == "b"


def test_an_explanation_says_of_every_condition_what_it_found() -> None:
    """Why it went there, why not elsewhere, and what was never asked."""
    compiled = rules(
        {"keywords": ["refund"], "open": "office"},
        {"numbers": [sample("in_text").phone_number_id]},
        {"types": ["image"]},
    )
    first, second, third = explain(compiled, Case(text("Where is it?", received_at=NOON), first=True))
    assert (first.verdict, second.verdict, third.verdict) == ("not taken", "taken", "not reached")
    asked = {each.name: each for each in first.asked}
    assert (asked["keywords"].holds, asked["keywords"].wanted) == (False, "refund")
    assert asked["keywords"].found == "'Where is it?'"
    assert (asked["open"].holds, asked["open"].found) == (True, "open at Tue 2026-11-24 12:00 CET")
    assert all(each.holds for each in second.asked)
    assert [each.found for each in third.asked] == ["message of type text"]


@pytest.mark.parametrize("path", sorted(WEBHOOKS.glob("*.json")), ids=lambda path: path.stem)
def test_any_webhook_can_be_looked_at(path: Path) -> None:
    """A view never raises, whatever Meta sends."""
    compiled = rules(
        {"keywords": ["hello"]}, {"payloads": ["*"]}, {"referrals": ["*"]}, {"customers": ["49*"]}, {"regex": "."}, {}
    )
    for keyed in split(path.read_bytes(), "brand", 0, {}).conversations:
        case = Case(keyed.item, first=True)
        taken_by = routed(compiled, (), case).rules
        assert tuple(judged.rule.name for judged in explain(compiled, case) if judged.verdict == "taken") == taken_by
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
        ({"regex": "("}, ["a"], "when.regex"),
        ({"regex": "a" * 1_001}, ["a"], "longer than 1000 characters"),
        ({"keywords": [" "]}, ["a"], "when.keywords"),
        ({"keywords": ["a" * 101]}, ["a"], "when.keywords"),
        ({"payloads": [""]}, ["a"], "when.payloads"),
        ({"customers": ["49"] * 10_001}, ["a"], "when.customers: has 10001 entries"),
        ({"closed": "night"}, ["a"], "when.closed = 'night': no such hours"),
        ({}, [], "name at least one sink"),
    ],
)
def test_a_route_that_cannot_be_right_is_refused_by_name(when: dict[str, Any], sinks: list[str], why: str) -> None:
    """An operator learns it at the start, not from a customer."""
    with pytest.raises(ValueError, match=rf"routes\[0\].*{why}"):
        compile_routes([Route(name="greeting", when=When(**when), then=Then(sinks=sinks))], {})


def test_a_name_is_used_once() -> None:
    """A metric's label must mean one rule."""
    with pytest.raises(ValueError, match="twice"):
        compile_routes([Route(name="a", then=Then(sinks=["x"])), Route(name="a", then=Then(sinks=["y"]))], {})


def test_of_each_sinks_debounce_the_first_that_is_named_holds() -> None:
    """A rule that says nothing leaves it to the next one that takes the message, and that one to the sink."""
    compiled = compile_routes(
        [
            Route(name="tag", then=Then(sinks=["a", "b"], tags=["t"]), go_on=True),
            Route(name="slow", then=Then(sinks=["a"], debounce_ms=2_000, debounce_events_max=5), go_on=True),
            Route(name="quick", then=Then(sinks=["a", "c"], debounce_ms=0)),
        ],
        {},
    )
    taken_by = route(compiled, Case(sample("in_text"), first=False))
    assert taken_by.sinks == ("a", "b", "c")
    assert [taken_by.debounce_of(sink) for sink in "abc"] == [RouteDebounce(2_000, 5), None, RouteDebounce(0)]
    assert NOWHERE.debounce_of("a") is None
