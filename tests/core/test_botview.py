"""What a bot sees differs from what Meta wrote in the ids of our sends and the urls of media, and in nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.botview import linked, with_our_ids, with_our_urls
from broker.core.media_url import PREFIX, Medium, from_ours, media_secret
from broker.core.opaque import derived_send_id
from broker.core.reference import for_graph, own_ids
from broker.core.webhook import split

SAMPLES = sorted((Path(__file__).parents[1] / "wire" / "webhooks").glob("*.json"))
NUMBER = "106540352242922"
PUBLIC = "https://gateway.example.com"
SECRET = media_secret("EAAtoken")

OURS = {f"wamid.HBgL/{n}+8/==": derived_send_id("tests", str(n)) for n in range(4)}
"""Wamids of sends of ours, with the characters base 64 has, and our ids."""


def our_id(wamid: str) -> str:
    return OURS.get(wamid, "")


class Number(str):
    """A number by its spelling."""


def exact(body: bytes) -> Any:
    """A body's values with the spelling of numbers and the order and number of members."""
    return json.loads(body, parse_float=Number, parse_int=Number, object_pairs_hook=tuple)


def mapped(value: Any, change: Callable[[str, Any], Any]) -> Any:
    """The same with members changed: (name, value) of each."""
    match value:
        case dict():
            return {name: change(name, mapped(member, change)) for name, member in value.items()}
        case list():
            return [mapped(member, change) for member in value]
    return value


def is_id(name: str) -> bool:
    return name == "id" or (name.endswith("_id") and set(name) <= set("abcdefghijklmnopqrstuvwxyz_"))


names = st.sampled_from(
    [
        "id",
        "message_id",
        "original_message_id",
        "context",
        "reaction",
        "text",
        "ID",
        "idx",
        'a"id',
        '\\"id',
        "x-id",
        "{",
        ",",
    ]
) | st.text(max_size=4)
strings = (
    st.sampled_from([*OURS, *OURS.values(), "wamid.strange", "", '"id":"wamid.HBgL/0+8/=="', '{"id":', "\ud83d"])
    | st.sampled_from(list(OURS)).map(lambda wamid: f" {wamid}")
    | st.text(max_size=6)
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | strings,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5),
    max_leaves=20,
)


def spelled(value: Any, spelling: str) -> bytes:
    match spelling:
        case "compact":
            return json.dumps(value, separators=(",", ":")).encode()
        case "slashes":  # as PHP writes, and Meta with it
            return json.dumps(value, separators=(",", ":")).replace("/", "\\/").encode()
    return json.dumps(value, indent=2).encode()


@given(values, st.sampled_from(["compact", "slashes", "indented"]))
def test_ids_of_our_sends_become_ours_and_no_other_value_changes(value: Any, spelling: str) -> None:
    """Whatever Meta invents around them: a customer may even quote an id, and a name may look like one."""
    whole = {"context": value}
    wanted = mapped(
        whole, lambda name, member: OURS.get(member, member) if is_id(name) and type(member) is str else member
    )
    assert exact(with_our_ids(spelled(whole, spelling), our_id)) == exact(spelled(wanted, spelling))


@given(values, st.sampled_from(["compact", "indented"]))
def test_a_body_that_speaks_of_strangers_stays_to_the_byte(value: Any, spelling: str) -> None:
    """Nothing is written anew that needs no change."""
    body = spelled({"context": value}, spelling)
    assert with_our_ids(body, lambda wamid: "") == body
    assert with_our_urls(body, lambda url, media_id: "") == body


@given(st.sampled_from(list(OURS)), st.sampled_from(["context", "reaction", "pin"]), values)
def test_what_is_said_in_our_ids_goes_back_in_metas(wamid: str, member: str, beside: Any) -> None:
    """In and out are each other's inverse: a bot quotes what it was told, and Meta reads what it wrote."""
    said_so = {"context": {"id": wamid}, "reaction": {"message_id": wamid}, "pin": {"message_id": wamid}}
    inbound = {"messages": [{**said_so, "x": beside}]}
    said = json.loads(with_our_ids(spelled(inbound, "compact"), our_id))["messages"][0][member]
    ours = said["id" if member == "context" else "message_id"]
    assert ours == OURS[wamid]
    try:
        body = json.dumps({"to": "1", member: {"message_id": ours}, "x": beside}, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert own_ids(body) == [ours]
    sent = json.loads(for_graph(body, "line", {ours: wamid}))
    assert sent[member] == {"message_id": wamid}
    assert sent["x"] == json.loads(body)["x"]


def test_what_a_bot_gives_along_with_a_flow_is_its_own() -> None:
    """It comes back to the bot inside a string, where nobody could translate it again."""
    ours = OURS[next(iter(OURS))]
    body = {"type": "interactive", "interactive": {"action": {"parameters": {"message_id": ours}}}}
    assert own_ids(spelled(body, "compact")) == []
    assert (
        json.loads(for_graph(spelled(body, "compact"), "line", {ours: "wamid.HBgL"}))["interactive"]
        == body["interactive"]
    )


@pytest.mark.parametrize(
    "said",
    [
        {"messages": [{"id": "wamid.in", "type": "button", "context": {"from": "1555", "id": "WAMID"}}]},
        {"messages": [{"id": "wamid.in", "type": "reaction", "reaction": {"message_id": "WAMID", "emoji": "x"}}]},
        {"messages": [{"id": "wamid.in", "type": "edit", "edit": {"message": {"context": {"id": "WAMID"}}}}]},
        {"message_echoes": [{"id": "wamid.echo", "to": "1555", "context": {"id": "WAMID"}}]},
        {"message_echoes": [{"id": "WAMID", "to": "1555", "type": "text"}]},
        {"standby": {"messages": [{"id": "wamid.in", "context": {"id": "WAMID"}}]}},
        {"messages": [{"id": "wamid.in", "type": "pin", "pin": {"message_id": "WAMID"}}]},
    ],
    ids=lambda said: json.dumps(said)[:40],
)
def test_wherever_an_update_speaks_of_our_send_it_says_our_id(said: dict[str, Any]) -> None:
    """Button, list, reply, reaction, edit, echo, standby, and what comes next year."""
    for wamid, ours in OURS.items():
        body = json.dumps(said).replace("WAMID", wamid).encode()
        assert with_our_ids(body, our_id) == json.dumps(said).replace("WAMID", ours).encode()


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_of_every_sample_only_the_urls_of_media_change(sample: Path) -> None:
    """A location's url, a referral's, a contact's open without a token."""
    link = linked(NUMBER, PUBLIC, SECRET)
    parts = split(sample.read_bytes(), "app", 0, {})
    for keyed in (*parts.conversations, *parts.accounts):
        body = keyed.item.body
        seen = with_our_urls(body, link)
        told: list[Medium | None] = []

        def as_meta(name: str, member: Any, told: list[Medium | None] = told) -> Any:
            if name == "url" and type(member) is str and member.startswith(PUBLIC + PREFIX):
                number, _, last = member[len(PUBLIC + PREFIX) :].partition("/")
                told.append(from_ours(number, last, SECRET))
                assert told[-1] is not None
                return told[-1].url
            return member

        assert json.dumps(mapped(json.loads(seen), as_meta)) == json.dumps(json.loads(body))
        assert len(told) == body.count(b"lookaside.fbsbx.com")
        assert b"lookaside.fbsbx.com" not in seen
        assert (seen == body) == (not told)


def test_a_media_url_is_found_however_it_is_written_and_its_id_goes_along() -> None:
    """Slashes escaped, an integer for an id, a text beside it that no strict parser reads, a number of 5,000 digits."""
    media = (
        rb'{"n":%b,"image":{"caption":"\ud83d \"url\":\"https:\/\/x\"","mime_type":"image\/jpeg","id": 17 ,'
        rb'"url" : "https:\/\/lookaside.example\/?mid=1"},"location":{"url":"https:\/\/x"}}' % (b"9" * 5_000)
    )
    seen = with_our_urls(media, linked(NUMBER, PUBLIC, SECRET))
    url = json.loads(seen, parse_int=len)["image"]["url"]
    assert from_ours(NUMBER, url.rpartition("/")[2], SECRET) == Medium(NUMBER, "17", "https://lookaside.example/?mid=1")
    assert seen == media.replace(rb'"https:\/\/lookaside.example\/?mid=1"', json.dumps(url).encode())


def test_what_no_url_of_ours_can_hold_stays_metas() -> None:
    """Nothing is lost: an empty url is a url that says nothing."""
    body = json.dumps(
        {"image": {"mime_type": "image/jpeg", "id": "x" * 300, "url": "https://x/" + "y" * 3_000}}
    ).encode()
    assert with_our_urls(body, linked(NUMBER, PUBLIC, SECRET)) == body


def test_a_body_that_is_no_json_or_nested_too_deep_passes() -> None:
    """The receiver set such aside; a replayed one must not crash the customer either."""
    deep = b'{"mime_type":' + b"[" * 100_000 + b'{"url":"x"}' + b"]" * 100_000 + b"}"
    for body in (deep, b'{"url" "mime_type" "context"', b'\xff"url" "mime_type" "context"'):
        assert with_our_urls(body, linked(NUMBER, PUBLIC, SECRET)) == body
        assert with_our_ids(body, our_id) == body
