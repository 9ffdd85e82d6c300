"""Bodies taken apart: every value goes on, every item has its key, no item harms another.

The samples stand in `tests/wire/webhooks`; the properties hold for each of them and for what hypothesis makes of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.core.items import READERS
from broker.core.opaque import derived_send_id, wrap
from broker.core.status import StatusBody
from broker.core.webhook import ENVELOPE_BYTES_MAX, SHARED_BYTES_MAX, Split, _usual, _Walk, split
from schemas.ids import CustomerKey, Sink
from schemas.records import Item, decode_item, encode
from schemas.webhook import Call, Echo, Group, Message, Preference, Status

SAMPLES = sorted((Path(__file__).parents[1] / "wire" / "webhooks").glob("*.json"))
NUMBER = "106540352242922"
PORTFOLIOS = {NUMBER: "brand"}
NOW = 1_789_400_000_000

ODD_INSTANTS: tuple[Any, ...] = ("", "-5", "soon", "9" * 30, None, -1, 1e300, [], "١٢")

Path_ = tuple[str, ...]


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class Number(str):
    """A number by its spelling, so that 7.90 is not 7.9."""


def exact(body: bytes) -> Any:
    return json.loads(body, parse_float=Number, parse_int=Number)


def leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every scalar with the names that lead to it; positions in lists do not count, since lists are taken apart."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield from leaves(member, (*path, name))
        if not value:
            yield (path, "{}")
    elif isinstance(value, list):
        for member in value:
            yield from leaves(member, (*path, "[]"))
    else:
        yield path, (type(value).__name__, value)


def items(parts: Split) -> list[Item]:
    return [keyed.item for keyed in (*parts.conversations, *parts.accounts)]


def bodies(parts: Split) -> list[bytes]:
    return [item.body for item in items(parts)] + [bad.body for bad in parts.malformed]


def one(body: bytes | dict[str, Any]) -> tuple[str, Item]:
    parts = split(body if isinstance(body, bytes) else compact(body), "app", NOW, PORTFOLIOS)
    assert not parts.malformed
    (keyed,) = [*parts.conversations, *parts.accounts]
    return keyed.key.decode(), keyed.item


def post(value: dict[str, Any], field: str = "messages") -> dict[str, Any]:
    metadata = {"display_phone_number": "15550001000", "phone_number_id": NUMBER}
    value = {"messaging_product": "whatsapp", "metadata": metadata, **value}
    return {
        "object": "whatsapp_business_account",
        "entry": [{"id": "102290129340398", "changes": [{"value": value, "field": field}]}],
    }


def text(number: int, **more: Any) -> dict[str, Any]:
    return {"from": f"4915550{number:06}", "id": f"wamid.{number}", "timestamp": "1789300807", "type": "text", **more}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("spelling", ["as it stands", "compact"])
def test_every_value_of_every_sample_goes_on(sample: Path, spelling: str) -> None:
    """Nothing is dropped in silence: the union of what is forwarded holds every value under its path, to the digit."""
    body = sample.read_bytes()
    if spelling == "compact":
        body = compact(json.loads(body))
    parts = split(body, "app", NOW, PORTFOLIOS)
    assert not parts.malformed
    there = set[tuple[Path_, Any]]()
    for forwarded in bodies(parts):
        there.update(leaves(exact(forwarded)))
    missing = [leaf for leaf in leaves(exact(body)) if leaf not in there]
    assert not missing
    for item in items(parts):
        assert item.body.isascii()
        assert decode_item(encode(item)) == item


def _with_one_item(body: dict[str, Any]) -> bool:
    """Whether Meta could have sent a body in one update."""
    count = 0
    for entry in body["entry"]:
        for change in entry["changes"]:
            value = change["value"].get("standby", change["value"])
            lists = [value[name] for name in ("messages", "statuses", "calls", "message_echoes") if name in value]
            count += sum(len(list_) for list_ in lists) or 1
    return count == 1


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_what_is_forwarded_has_metas_shape_and_holds_one_update(sample: Path) -> None:
    """A bot that only looks at entry[0].changes[0] and the first item in it must miss nothing."""
    for item in items(split(sample.read_bytes(), "app", NOW, PORTFOLIOS)):
        body = json.loads(item.body)
        assert body["object"] == "whatsapp_business_account"
        (entry,) = body["entry"]
        (change,) = entry["changes"]
        assert set(change) == {"field", "value"}
        assert _with_one_item(body)


def test_the_samples_are_all_there() -> None:
    """79 cases are documented; a test over an empty folder would pass."""
    assert len(SAMPLES) == 79


def test_a_post_with_one_update_stays_as_it_is_to_the_byte() -> None:
    """So its signature, made by us with another secret, covers what Meta wrote."""
    body = (SAMPLES[0].parent / "raw_compact_escaped.json").read_bytes()
    assert one(body)[1].body == body


def test_members_keep_their_order_and_numbers_their_spelling() -> None:
    """Bodies are signed again and hashed by bots: the same webhook must give the same bytes."""
    first, second = '{"id":"a","type":"order","price":7.90}', '{"type":"order","price":1e2,"id":"b"}'
    body = (
        '{"entry":[{"changes":[{"field":"messages","value":{"zeta":1.0,"messages":[%s,%s],"metadata":'
        '{"phone_number_id":"1"},"contacts":[],"alpha":true}}],"id":"2","later":null}],"object":"o"}'
    )
    parts = split((body % (first, second)).encode(), "app", NOW, {})
    expected = body.replace(',"contacts":[]', "").replace("%s,%s", "%s")
    assert [item.body.decode() for item in items(parts)] == [expected % first, expected % second]


@pytest.mark.parametrize("contacts_first", [True, False])
def test_an_item_has_the_contacts_of_its_own_user_only(contacts_first: bool) -> None:
    """The next customer's name is none of this bot's business, and pywa reads contacts[0]."""
    contacts = [{"wa_id": "4915550000001", "profile": {"name": "A"}}, {"user_id": "DE.2", "profile": {"name": "B"}}]
    messages = [text(1), {**text(2), "from_user_id": "DE.2"}, text(3)]
    value = {"contacts": contacts, "messages": messages}
    if not contacts_first:
        value = dict(reversed(value.items()))
    values = [
        json.loads(item.body)["entry"][0]["changes"][0]["value"]
        for item in items(split(compact(post(value)), "app", NOW, PORTFOLIOS))
    ]
    assert [value.get("contacts") for value in values] == [[contacts[0]], [contacts[1]], None]
    assert [value["messages"] for value in values] == [[message] for message in messages]


def test_a_contact_of_nobody_goes_on_by_itself() -> None:
    """It may be the only place where a phone and a BSUID are seen together."""
    stranger = {"wa_id": "4915559999999", "user_id": "DE.9"}
    parts = split(compact(post({"contacts": [stranger], "messages": [text(1), text(2)]})), "app", NOW, PORTFOLIOS)
    lone = parts.conversations[-1]
    assert lone.key == b"brand:4915559999999"
    assert (lone.item.kind, lone.item.message_type, lone.item.bsuid) == ("unknown", "contacts", "DE.9")
    assert json.loads(lone.item.body)["entry"][0]["changes"][0]["value"]["contacts"] == [stranger]


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(
    ("said", "contact", "found"),
    [
        ({"from": "4915550000001"}, {"wa_id": "4915550000002", "user_id": "DE.2"}, ("4915550000001", "")),
        ({"from_user_id": "DE.1"}, {"wa_id": "4915550000002", "user_id": "DE.2"}, ("", "DE.1")),
        ({"from": "user-1"}, {"wa_id": "user-2", "user_id": "DE.2"}, ("user-1", "")),
        ({"from": "551187654321"}, {"wa_id": "5511987654321", "user_id": "BR.1"}, ("551187654321", "BR.1")),
        ({"from": 4915550000001}, {"wa_id": 4915550000001, "user_id": "DE.1"}, ("4915550000001", "DE.1")),
    ],
)
def test_a_contact_that_contradicts_its_item_is_somebody_else(
    said: dict[str, Any], contact: dict[str, Any], found: tuple[str, str], alone: bool
) -> None:
    """Samples of the field have one person in `from` and another in `wa_id`: one state for both would be a leak."""
    message = {"id": "wamid.1", "timestamp": "1750000000", "type": "text", "text": {"body": "x"}, **said}
    value: dict[str, Any] = {"contacts": [contact], "messages": [message]}
    if not alone:
        value["errors"] = [{"code": 1}]
    parts = split(compact(post(value)), "app", NOW, PORTFOLIOS)
    (item,) = [keyed.item for keyed in parts.conversations if keyed.item.kind == "message"]
    assert (item.wa_id, item.bsuid) == found


@pytest.mark.parametrize("direction", ["BUSINESS_INITIATED", "", None])
def test_a_call_the_business_began_belongs_to_whom_it_called(direction: str | None) -> None:
    """`from` is the business then, said by `direction` or by its own digits: keyed by it, all who are called would be
    one customer."""
    called = {"id": "wacid.1", "from": "15550001000", "to": "4915550000001", "to_user_id": "DE.1", "event": "connect"}
    if direction is not None:
        called["direction"] = direction
    metadata = {"phone_number_id": "1065", "display_phone_number": "+1 555-000-1000"}
    contact = {"wa_id": "4915550000001", "user_id": "DE.1"}
    value = {"metadata": metadata, "contacts": [contact], "calls": [called]}
    ((key, item),) = split(compact(post(value, field="calls")), "app", NOW, PORTFOLIOS).conversations
    assert (item.kind, item.wa_id, item.bsuid) == ("call", "4915550000001", "DE.1")
    assert key.endswith(b":4915550000001")


def test_ids_the_item_does_not_say_come_from_its_contact() -> None:
    """The first sight of phone and BSUID together is what joins a customer's two keys."""
    _, item = one(post({"contacts": [{"wa_id": "4915550000001", "user_id": "DE.1"}], "messages": [text(1)]}))
    assert (item.wa_id, item.bsuid) == ("4915550000001", "DE.1")


def test_what_is_not_ascii_is_escaped_as_meta_escapes_it() -> None:
    """Lower-case, surrogate pairs: the form that signatures are made over."""
    body = json.dumps(post({"messages": [text(1, ü="Grüße 😀")]}), ensure_ascii=False).encode()
    assert rb'"\u00fc": "Gr\u00fc\u00dfe \ud83d\ude00"' in one(body)[1].body


def test_half_a_surrogate_pair_does_not_cost_the_message() -> None:
    """Users can type it, Meta sends it, strict parsers refuse it: it goes on as the bytes it came in."""
    odd = text(1, text={"body": "X"})
    message = compact(post({"messages": [odd, text(2)]})).replace(b'"X"', rb'"\ud83d \\ud83d \ud83d\ude00 \uDe00"')
    parts = split(message, "app", NOW, PORTFOLIOS)
    assert not parts.malformed
    assert [item.wamid for item in items(parts)] == ["wamid.1", "wamid.2"]
    assert rb'"\ud83d \\ud83d \ud83d\ude00 \uDe00"' in items(parts)[0].body


def test_malformed_items_are_set_aside_and_their_neighbours_live() -> None:
    """One bad item must never fail a batch: Meta would send it again for seven days."""
    bad: list[Any] = [None, 7, "x", [], {}, {"type": "text"}, {"id": {}}]
    messages = [element for number in range(len(bad)) for element in (text(number), bad[number])]
    parts = split(compact(post({"messages": messages})), "app", NOW, PORTFOLIOS)
    assert [item.wamid for item in items(parts)] == [f"wamid.{number}" for number in range(len(bad))]
    assert [b.reason for b in parts.malformed] == ["malformed_item"] * len(bad)
    assert parts.malformed[1].detail == "entry[0].changes[0].value.messages[3] is no object with an id"
    assert [json.loads(b.body)["entry"][0]["changes"][0]["value"]["messages"][0] for b in parts.malformed] == bad


def test_what_stands_where_an_entry_or_a_change_should_is_set_aside_too() -> None:
    """At every level the neighbours live."""
    body = post({"messages": [text(1)]})
    body["entry"][0]["changes"] += [5, {"field": "messages", "value": 6}, {}]
    body["entry"] += ["x", {"id": "9", "field": "account_update", "value": {"event": "PARTNER_APP_INSTALLED"}}]
    parts = split(compact(body), "app", NOW, PORTFOLIOS)
    assert [b.detail for b in parts.malformed] == ["entry[0].changes[1]", "entry[1]"]
    assert [keyed.item.kind for keyed in parts.conversations] == ["message"]
    assert [keyed.item.kind for keyed in parts.accounts] == ["unknown", "unknown", "account"]
    assert json.loads(parts.accounts[2].item.body)["entry"][0]["value"] == {"event": "PARTNER_APP_INSTALLED"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b"hello", "not_json"),
        (b'{"entry":[{"id":"1"', "not_json"),
        (b'{"entry":"\xff"}', "not_json"),
        (b'{"entry":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not_json"),
        (b"[]", "another_shape"),
        (b"null", "another_shape"),
        (b"{}", "another_shape"),
        (b'{"entry":{}}', "another_shape"),
        (b'{"entry":[]}', "another_shape"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_what_is_no_webhook_is_kept_whole(body: bytes, reason: str) -> None:
    """It becomes a dead letter; a 4xx would bring it back for a week."""
    parts = split(body, "app", NOW, PORTFOLIOS)
    assert not items(parts)
    assert [(b.reason, b.body) for b in parts.malformed] == [(reason, body)]


def test_integers_where_strings_are_documented_are_taken() -> None:
    """Meta writes timestamps and ids in either way, and changes its mind."""
    message = {"from": 4915550000001, "id": 17, "timestamp": 1789300807, "type": "text"}
    body = post({"messages": [message]})
    body["entry"][0]["changes"][0]["value"]["metadata"]["phone_number_id"] = int(NUMBER)
    body["entry"][0]["id"] = 102290129340398
    key, item = one(body)
    assert key == "brand:4915550000001"
    assert (item.wamid, item.at, item.phone_number_id) == ("17", 1_789_300_807_000, NUMBER)
    assert item.waba_id == "102290129340398"


@pytest.mark.parametrize(
    ("timestamp", "at"),
    [
        ("1789300807", 1_789_300_807_000),
        (1789300807.5, 1_789_300_807_000),
        (1789300807123, 1_789_300_807_123),
        *((odd, 0) for odd in ODD_INSTANTS),
    ],
)
def test_an_instant_is_read_from_whatever_it_is_written_as(timestamp: Any, at: int) -> None:
    """A strange timestamp must not cost the message."""
    assert one(post({"messages": [{**text(1), "timestamp": timestamp}]}))[1].at == at


def test_a_status_of_ours_is_keyed_by_what_we_wrote_into_it() -> None:
    """No look-up, and a failed status, which may name nobody, finds its customer."""
    send_id = derived_send_id("shop", "1")
    opaque = wrap(send_id, Sink("bot"), CustomerKey("brand:DE.1"), None)
    key, item = one(post({"statuses": [{"id": "wamid.1", "status": "failed", "biz_opaque_callback_data": opaque}]}))
    assert (key, item.send_id, item.dedupe) == ("brand:DE.1", send_id, "st:wamid.1:failed")


def test_a_status_that_names_nobody_is_keyed_by_its_number() -> None:
    """Sends of other apps fail too; their statuses are not lost."""
    assert one(post({"statuses": [{"id": "wamid.1", "status": "failed"}]}))[0] == f"brand:#{NUMBER}"


def test_statuses_under_calls_are_not_statuses_of_messages() -> None:
    """A ringing phone must not be taken for a message's life."""
    _, item = one(post({"statuses": [{"id": "wacid.1", "status": "RINGING", "recipient_id": "1555"}]}, "calls"))
    assert (item.kind, item.dedupe) == ("call_status", "call:wacid.1:RINGING")


@pytest.mark.parametrize("told_by", ["direction", "number"])
def test_a_call_that_the_business_began_belongs_to_the_one_called(told_by: str) -> None:
    """Its `from` is the business."""
    call = {"id": "wacid.1", "event": "connect", "from": "15550001000", "to": "4915550000001", "to_user_id": "DE.1"}
    if told_by == "direction":
        call |= {"direction": "BUSINESS_INITIATED", "from": "15559990000"}
    key, item = one(post({"calls": [call]}, "calls"))
    assert (key, item.bsuid, item.dedupe) == ("brand:4915550000001", "DE.1", "call:wacid.1:connect")


def test_participants_of_a_group_are_told_apart() -> None:
    """One message, one status, many people: none of them is the other's duplicate."""
    sample = (SAMPLES[0].parent / "st_group_delivered_aggregated.json").read_bytes()
    first, second = split(sample, "app", NOW, PORTFOLIOS).conversations
    assert first.key == second.key
    assert first.key.startswith(b"brand:#group:")
    assert first.item.dedupe != second.item.dedupe
    assert (first.item.wa_id, second.item.wa_id) == ("15550001234", "4915550001234")


def test_a_standby_copy_does_not_shadow_the_real_one() -> None:
    """The same wamid may come again as ours to answer."""
    sample = (SAMPLES[0].parent / "standby_message.json").read_bytes()
    item = split(sample, "app", NOW, PORTFOLIOS).conversations[0].item
    assert item.kind == "standby"
    assert item.dedupe.startswith(f"standby:msg:{NUMBER}:")


def test_a_status_of_ours_is_ours_also_where_another_app_owns_the_thread() -> None:
    """It settles our doubt, and nobody but whoever sent may see our line in it."""
    send_id = derived_send_id("shop", "1")
    line = wrap(send_id, Sink("bot"), CustomerKey("brand:DE.1"), None)
    ours, theirs = (
        {"id": f"wamid.{n}", "status": "sent", "recipient_id": "4915550000001", "biz_opaque_callback_data": opaque}
        for n, opaque in enumerate((line, "theirs"))
    )
    found = split(compact(post({"standby": {"statuses": [ours, theirs]}}, "standby")), "app", NOW, PORTFOLIOS)
    assert [(k.key, k.item.kind, k.item.send_id, k.item.dedupe) for k in found.conversations] == [
        (b"brand:DE.1", "status", send_id, "st:wamid.0:sent"),
        (b"brand:4915550000001", "standby", "", "standby:st:wamid.1:sent"),
    ]
    assert StatusBody(found.conversations[0].item.body).opaque == line


def test_an_account_is_named_by_its_own_id_and_not_by_a_portfolios() -> None:
    """`entry.id` of partner events is the portfolio's."""
    sample = (SAMPLES[0].parent / "account_update_partner_removed.json").read_bytes()
    parts = split(sample, "app", NOW, PORTFOLIOS)
    assert [(keyed.key, keyed.item.waba_id) for keyed in parts.accounts] == [(b"102290129340398", "102290129340398")]


def test_errors_of_a_number_reach_the_senders_and_are_never_deduplicated() -> None:
    """Two throttles are two throttles."""
    parts = split(compact(post({"errors": [{"code": 130429}, {"code": 130429}]})), "app", NOW, PORTFOLIOS)
    assert [(k.item.kind, k.item.dedupe, k.item.phone_number_id) for k in parts.accounts] == [
        ("account", "", NUMBER)
    ] * 2


def test_an_unknown_field_is_stored_and_nothing_is_concluded_from_it() -> None:
    """Tomorrow's field may hold a list of today's name; it must not open a window or shadow a message."""
    _, item = one(post({"messages": [text(1)]}, "messages_preview"))
    assert (item.kind, item.dedupe, item.field, item.wa_id) == ("unknown", "", "messages_preview", "4915550000001")


def test_a_large_member_beside_the_items_goes_on_once() -> None:
    """Along with each of 1,000 items, one POST would become gigabytes."""
    big = "x" * (SHARED_BYTES_MAX + 1)
    value = {"messages": [text(number) for number in range(100)], "novelty": big, "list": [1], "small": {"a": 1}}
    parts = split(compact(post(value)), "app", NOW, PORTFOLIOS)
    assert len(parts.conversations) == 101
    assert sum(len(item.body) for item in items(parts)) < 100 * 500 + 2 * len(big)
    values = [json.loads(item.body)["entry"][0]["changes"][0]["value"] for item in items(parts)]
    assert all(value["small"] == {"a": 1} for value in values)
    assert (values[-1]["novelty"], values[-1]["list"], "messages" in values[-1]) == (big, [1], False)


def test_a_large_envelope_keeps_its_items_together() -> None:
    """The same bound, one level up."""
    body = post({"messages": [text(number) for number in range(100)]})
    body["entry"][0]["novelty"] = "x" * ENVELOPE_BYTES_MAX
    parts = split(compact(body), "app", NOW, PORTFOLIOS)
    assert [item.kind for item in items(parts)] == ["unknown"]
    assert json.loads(items(parts)[0].body) == body


def test_a_thousand_items_become_a_thousand_records_in_their_order() -> None:
    """Meta's own maximum for one POST."""
    messages = [text(number) for number in range(1_000)]
    contacts = [{"wa_id": message["from"], "user_id": f"DE.{n}"} for n, message in enumerate(messages)]
    parts = split(compact(post({"contacts": contacts, "messages": messages})), "app", NOW, PORTFOLIOS)
    assert [item.wamid for item in items(parts)] == [message["id"] for message in messages]
    assert [item.bsuid for item in items(parts)] == [f"DE.{n}" for n in range(1_000)]


names = st.sampled_from([*sorted(READERS), "contacts", "metadata", "standby", "system", "waba_info"]) | st.sampled_from(
    sorted(
        {name for kind in (Message, Echo, Status, Call, Preference, Group) for name in kind.__struct_encode_fields__}
    )
)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_the_short_way_concludes_what_the_long_way_does(sample: Path) -> None:
    """Bodies with one update are read in one go, nine of ten of them; nothing may depend on which way was taken."""
    body = sample.read_bytes()
    walk = _Walk(body, "app", NOW, PORTFOLIOS)
    walk.walk(msgspec.json.decode(body, type=dict[str, msgspec.Raw]))
    assert split(body, "app", NOW, PORTFOLIOS) == walk.split
    short = _usual(body, "app", NOW, PORTFOLIOS)
    assert (short is not None) == (sample.stem[:3] in ("in_", "st_", "raw") and not _has_many(body))


def _has_many(body: bytes) -> bool:
    value = json.loads(body)["entry"][0]["changes"][0]["value"]
    return len(value.get("messages", [])) + len(value.get("statuses", [])) > 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | names, inner, max_size=5),
    max_leaves=24,
)
values = st.dictionaries(names | st.text(max_size=5), json_values, max_size=6)
changes = st.fixed_dictionaries(
    {"value": values | json_values, "field": st.sampled_from(["messages", "calls", "standby", "security", "x", ""])}
)


@given(
    st.lists(
        st.fixed_dictionaries({"id": json_values, "changes": st.lists(changes | json_values, max_size=3)})
        | json_values,
        min_size=1,
        max_size=3,
    )
)
def test_no_body_crashes_the_split_or_loses_a_value(entries: list[Any]) -> None:
    """Whatever Meta invents, or somebody with the secret makes up."""
    body = {"object": "whatsapp_business_account", "entry": entries}
    try:
        raw = compact(body)
        parts = split(raw, "app", NOW, PORTFOLIOS)
    except UnicodeEncodeError:
        return
    there = Counter[tuple[Path_, str]]()
    for forwarded in bodies(parts):
        there.update({(path, repr(value)): 1 for path, value in leaves(exact(forwarded))})
    wanted = {(path, repr(value)) for path, value in leaves(exact(raw))}
    missing = {leaf for leaf in wanted if leaf not in there}
    assert not missing
    for item in items(parts):
        assert msgspec.json.decode(item.body) is not None
        assert decode_item(encode(item)) == item


usual_values = st.fixed_dictionaries(
    {"messages": st.lists(values, min_size=1, max_size=1)},
    optional={"contacts": st.lists(values, max_size=1), "metadata": values, "statuses": json_values, "x": json_values},
) | st.fixed_dictionaries({"statuses": st.lists(values, min_size=1, max_size=1)}, optional={"contacts": json_values})


@example({"messages": [{"id": 0}]})
@given(usual_values)
def test_whatever_stands_in_them_the_two_ways_agree(value: dict[str, Any]) -> None:
    """The same, for what no sample shows."""
    entry = {"id": "1", "changes": [{"value": value, "field": "messages"}]}
    raw = compact({"object": "whatsapp_business_account", "entry": [entry]})
    try:
        top = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return
    walk = _Walk(raw, "app", NOW, PORTFOLIOS)
    walk.walk(top)
    assert split(raw, "app", NOW, PORTFOLIOS) == walk.split
