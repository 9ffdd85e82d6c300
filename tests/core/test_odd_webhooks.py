"""Webhooks that contradict themselves, as Meta's own examples and other people's fixtures do.

A bot's author tests with them first. None may crash, be lost, or make one person of two.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.identity import normalise_wa_id
from broker.core.webhook import Keyed, split
from schemas.records import decode_item, encode

NUMBER = "106540352242922"
NOW = 1_789_400_000_000


def post(*values: dict[str, Any], **entry: Any) -> bytes:
    metadata = {"display_phone_number": "15550001000", "phone_number_id": NUMBER}
    changes = [
        {"value": {"messaging_product": "whatsapp", "metadata": metadata, **value}, "field": "messages"}
        for value in values
    ]
    whole = {"object": "whatsapp_business_account", "entry": [{"id": "102290129340398", "changes": changes, **entry}]}
    return json.dumps(whole, separators=(",", ":")).encode()


def taken(body: bytes) -> list[Keyed]:
    """All of a body, none of it malformed."""
    parts = split(body, "app", NOW, {NUMBER: "brand"})
    assert not parts.malformed
    for keyed in parts.conversations:
        assert decode_item(encode(keyed.item)) == keyed.item
    return parts.conversations


def value_of(keyed: Keyed) -> dict[str, Any]:
    value = json.loads(keyed.item.body)["entry"][0]["changes"][0]["value"]
    assert isinstance(value, dict)
    return value


def text(number: int, **more: Any) -> dict[str, Any]:
    return {"from": f"4915550{number:06}", "id": f"wamid.{number}", "timestamp": "1789300807", "type": "text", **more}


@pytest.mark.parametrize("batch", [False, True], ids=["alone", "in a batch"])
def test_a_contact_with_another_phone_gives_its_ids_to_nobody(batch: bool) -> None:
    """`from` is one person, `contacts` says another: the BSUID is the other's, and would carry the two into one."""
    contact = {"wa_id": "4915559999999", "user_id": "DE.9", "parent_user_id": "DE.ENT.9"}
    messages = [text(1), text(2)] if batch else [text(1)]
    found = taken(post({"contacts": [contact], "messages": messages}))
    assert [keyed.key for keyed in found[: len(messages)]] == [
        f"brand:{message['from']}".encode() for message in messages
    ]
    assert [(k.item.bsuid, k.item.parent_bsuid) for k in found[: len(messages)]] == [("", "")] * len(messages)
    assert sum(value_of(keyed).get("contacts") == [contact] for keyed in found) == 1


def test_a_contact_with_another_bsuid_gives_its_phone_to_nobody() -> None:
    """The reverse: a message that says a BSUID only."""
    message = {"from_user_id": "DE.1", "id": "wamid.1", "timestamp": "1", "type": "text"}
    (keyed,) = taken(post({"contacts": [{"wa_id": "4915559999999", "user_id": "DE.9"}], "messages": [message]}))
    assert (keyed.key, keyed.item.wa_id, keyed.item.bsuid) == (b"brand:DE.1", "", "DE.1")


@pytest.mark.parametrize(
    ("said", "contact"),
    [("5511987654321", "551187654321"), ("5215512345678", "525512345678"), ("541112345678", "5491112345678")],
    ids=["Brazil", "Mexico", "Argentina"],
)
def test_one_phone_in_two_spellings_is_one_person(said: str, contact: str) -> None:
    """Meta writes the phone with a digit here and without it there; the contact is still this item's."""
    own = {"wa_id": contact, "user_id": "BR.1", "profile": {"name": "A"}}
    found = taken(post({"contacts": [own, {"wa_id": "1"}], "messages": [text(1, **{"from": said}), text(2)]}))
    assert (found[0].item.wa_id, found[0].item.bsuid) == (said, "BR.1")
    assert value_of(found[0])["contacts"] == [own]
    (alone,) = taken(post({"contacts": [own], "messages": [text(1, **{"from": said})]}))
    assert (alone.key, alone.item.bsuid) == (found[0].key, "BR.1")


def test_integers_stand_where_strings_are_documented() -> None:
    """And are the same person, the same message, the same contact as their digits."""
    as_text = {
        "contacts": [{"wa_id": "4915550000001", "user_id": "DE.1"}, {"wa_id": "4915550000002"}],
        "messages": [text(1, id="17"), text(2, id="18", context={"from": "15550001000", "id": "16"})],
    }
    as_integers = json.loads(
        json.dumps(as_text).replace('"4915550000001"', "4915550000001").replace('"4915550000002"', "4915550000002")
        .replace('"17"', "17").replace('"18"', "18").replace('"16"', "16").replace('"1789300807"', "1789300807")
    )  # fmt: skip
    texts, integers = taken(post(as_text)), taken(post(as_integers))
    assert [(k.key, k.item.dedupe, k.item.at, k.item.bsuid) for k in integers] == [
        (k.key, k.item.dedupe, k.item.at, k.item.bsuid) for k in texts
    ]
    assert [value_of(keyed)["contacts"] for keyed in integers] == [[each] for each in as_integers["contacts"]]
    assert [value_of(keyed)["messages"] for keyed in integers] == [[each] for each in as_integers["messages"]]


def test_placeholders_of_documentation_go_on_as_they_stand() -> None:
    """Copied from Meta's pages, they are the first thing a bot's author posts."""
    body = (
        b'{"object":"whatsapp_business_account","entry":[{"id":"WHATSAPP_BUSINESS_ACCOUNT_ID","changes":[{"value":'
        b'{"messaging_product":"whatsapp","metadata":{"display_phone_number":"PHONE_NUMBER","phone_number_id":'
        b'"PHONE_NUMBER_ID"},"contacts":[{"profile":{"name":"NAME"},"wa_id":"PHONE_NUMBER"}],"messages":[{"from":'
        b'"PHONE_NUMBER","id":"wamid.ID","timestamp":"TIMESTAMP","text":{"body":"MESSAGE_BODY"},"type":"text"}]},'
        b'"field":"messages"}]}]}'
    )
    (keyed,) = taken(body)
    assert keyed.item.body == body
    assert (keyed.item.kind, keyed.item.phone_number_id, keyed.item.at) == ("message", "PHONE_NUMBER_ID", 0)


@pytest.mark.parametrize("name", ["contacts", "metadata"])
@pytest.mark.parametrize("odd", [None, {}, [], [None], 7, "x", [7, "x"], [{"wa_id": []}]], ids=repr)
def test_what_stands_around_a_message_never_costs_it(name: str, odd: Any) -> None:
    """Whatever the contacts or the metadata are, what the customer wrote arrives."""
    for messages in ([text(1)], [text(1), text(2)]):
        found = taken(post({name: odd, "messages": messages}))
        told = [message for keyed in found for message in value_of(keyed).get("messages", [])]
        assert told == messages


people = st.lists(
    st.fixed_dictionaries(
        {"from": st.sampled_from(["4915550000001", "4915550000002", 4915550000003, "5511987654321", "551187654321"])},
        optional={"from_user_id": st.sampled_from(["DE.1", "DE.2"])},
    )
    | st.fixed_dictionaries({"from_user_id": st.sampled_from(["DE.1", "DE.2", "DE.3"])}),
    min_size=1,
    max_size=6,
)
contacts = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "wa_id": st.sampled_from(["4915550000001", 4915550000002, "4915550000003", "551187654321", "x"]),
            "user_id": st.sampled_from(["DE.1", "DE.2", "DE.3"]),
        },
    ),
    max_size=6,
)


@given(people, contacts)
def test_whatever_contacts_say_a_message_goes_to_whom_it_names(people: list[dict[str, Any]], named: Any) -> None:
    """No contact moves a message to another person, and no message takes an id that contradicts its own."""
    messages = [{"id": f"wamid.{n}", "timestamp": "1", "type": "text", **who} for n, who in enumerate(people)]
    found = [k for k in taken(post({"contacts": named, "messages": messages})) if k.item.kind == "message"]
    assert [keyed.item.wamid for keyed in found] == [message["id"] for message in messages]
    for keyed, who in zip(found, people, strict=True):
        if "from" in who:
            assert keyed.key.decode() == f"brand:{normalise_wa_id(str(who['from']))}"
        if "from_user_id" in who:
            assert keyed.item.bsuid == who["from_user_id"]
        for contact in value_of(keyed).get("contacts", []):
            same_phone = normalise_wa_id(str(contact.get("wa_id", ""))) == normalise_wa_id(str(who.get("from", "-")))
            same_bsuid = contact.get("user_id") == who.get("from_user_id", "-")
            assert same_phone or same_bsuid or len(messages) == 1
            if len(messages) == 1 and not (same_phone or same_bsuid) and contact.get("wa_id") and "from" in who:
                assert keyed.item.bsuid == who.get("from_user_id", "")
