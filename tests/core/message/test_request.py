"""What bots ask to be sent: every documented kind passes, every documented bound is kept to the character."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.message import INVALID, MISSING, TITLES, VALUE, Outgoing, check
from broker.core.opaque import derived_send_id
from schemas.graph import Error
from tests.core.message.samples import BASE, BUTTONS, GOOD, cards, interactive, rows


def ask(message: dict[str, Any], *, unknown_types: bool = True) -> Outgoing | Error:
    return check(json.dumps(message).encode(), unknown_types=unknown_types)


def taken(message: dict[str, Any], **base: Any) -> Outgoing:
    answer = ask({**BASE, **base, **message})
    assert isinstance(answer, Outgoing), answer
    return answer


def refusal(message: dict[str, Any], *, unknown_types: bool = True) -> tuple[int, str]:
    answer = ask(message, unknown_types=unknown_types)
    assert isinstance(answer, Error), answer
    assert isinstance(answer.code, int)
    assert isinstance(answer.message, str)
    assert answer.message.startswith(f"(#{answer.code}) ")
    details = answer.error_data.details  # type: ignore[union-attr]
    assert details.endswith(".")
    return answer.code, details


@pytest.mark.parametrize("name", GOOD)
def test_every_documented_message_passes(name: str) -> None:
    """A bot built for the Cloud API needs no change."""
    outgoing = taken(GOOD[name])
    assert (outgoing.kind, outgoing.known, outgoing.wa_id) == ("message", True, "4915550001234")
    assert outgoing.message_type == GOOD[name].get("type", "text")


@pytest.mark.parametrize("name", GOOD)
def test_members_that_meta_may_add_tomorrow_pass(name: str) -> None:
    """We are no gatekeeper of features we have not heard of."""

    def grown(value: Any) -> Any:
        if isinstance(value, dict):
            return {"tomorrow": {"x": [1]}, **{key: grown(member) for key, member in value.items()}}
        return [grown(member) for member in value] if isinstance(value, list) else value

    taken(grown(GOOD[name]))


def changed(name: str, path: str, value: Any) -> dict[str, Any]:
    """A good message with one member changed (or taken away, by `...`); `path` as in the refusal's details."""
    message = copy.deepcopy({**BASE, **GOOD[name]})
    steps: list[Any] = []
    for part in path.replace("[", ".[").split("."):
        steps.append(int(part[1:-1]) if part.startswith("[") else part)
    place: Any = message
    for step in steps[:-1]:
        place = place[step]
    if value is ...:
        del place[steps[-1]]
    else:
        place[steps[-1]] = value
    return message


@pytest.mark.parametrize(
    ("name", "path", "fits", "does_not"),
    [
        ("text", "text.body", "x" * 4_096, "x" * 4_097),
        ("image", "image.caption", "x" * 1_024, "x" * 1_025),
        ("button", "interactive.body.text", "x" * 1_024, "x" * 1_025),
        ("list", "interactive.body.text", "x" * 4_096, "x" * 4_097),
        ("list of sections", "interactive.header.text", "x" * 60, "x" * 61),
        ("button", "interactive.footer.text", "x" * 60, "x" * 61),
        ("button", "interactive.action.buttons", BUTTONS, [*BUTTONS, {"type": "reply", "reply": {"id": "z"}}]),
        ("button", "interactive.action.buttons[1].reply.title", "x" * 20, "x" * 21),
        ("button", "interactive.action.buttons[2].reply.id", "x" * 256, "x" * 257),
        ("button", "interactive.action.buttons[1].reply.id", "other", "b0"),
        ("list", "interactive.action.button", "x" * 20, "x" * 21),
        ("list", "interactive.action.sections[0].rows", rows(10), rows(11)),
        ("list", "interactive.action.sections[0].rows[9].title", "x" * 24, "x" * 25),
        ("list", "interactive.action.sections[0].rows[9].id", "x" * 200, "x" * 201),
        ("list", "interactive.action.sections[0].rows[9].description", "x" * 72, "x" * 73),
        ("list of sections", "interactive.action.sections[1].title", "x" * 24, "x" * 25),
        ("cta_url", "interactive.action.parameters.display_text", "x" * 20, "x" * 21),
        ("flow", "interactive.action.parameters.flow_cta", "x" * 30, "x" * 31),
        ("carousel", "interactive.action.cards", cards(2), cards(1)),
        ("carousel", "interactive.action.cards", cards(10), cards(11)),
        ("carousel", "interactive.action.cards[3].body.text", "x" * 160, "x" * 161),
        ("carousel", "interactive.action.cards[3].body.text", "a\nb\nc", "a\nb\nc\nd"),
        ("contacts", "contacts", [{"name": {"formatted_name": "A"}}] * 257, [{"name": {"formatted_name": "A"}}] * 258),
        ("location", "location.latitude", -90, 90.01),
        ("location", "location.longitude", "-180", "-180.01"),
        ("text", "biz_opaque_callback_data", "x" * 512, "x" * 513),
        ("template", "template.name", "x" * 512, "x" * 513),
        ("address_message", "interactive.action.parameters.country", "SG", "SGP"),
    ],
)
def test_a_bound_is_kept_to_the_character(name: str, path: str, fits: Any, does_not: Any) -> None:
    """The last that fits passes; the first that does not is refused by its path, before anybody pays for it. Inside
    interactive messages WhatsApp says so, elsewhere Graph."""
    assert isinstance(ask(changed(name, path, fits)), Outgoing)
    code, details = refusal(changed(name, path, does_not))
    assert code == (VALUE if path.startswith("interactive.") else INVALID)
    assert details.startswith(f"{path} ")


@pytest.mark.parametrize(
    ("name", "path", "fits", "does_not"),
    [
        ("cta_url", "interactive.action.parameters.url", "HTTP://x", "javascript:alert(1)"),
        ("flow", "interactive.action.parameters.mode", "draft", "drafty"),
        ("location", "location.longitude", "180", "east"),
        ("image", "image.link", "https://example.com/b", "ftp://example.com/b"),
        ("text", "recipient_type", "individual", "everybody"),
        ("text", "type", "text", 7),
        ("text", "type", "TEXT", ["text"]),
        ("text", "messaging_product", "WHATSAPP", "sms"),
        ("text", "text", {"body": "x"}, "x"),
        ("text", "text.body", "9999", 9999),
        ("text", "text.preview_url", False, "yes"),
        ("audio", "audio.voice", False, 1),
        ("audio", "audio.id", "17", 1.7),
        ("location", "location.latitude", "5.2e1", "5_2"),
        ("location", "location.latitude", 52, True),
        ("reaction", "reaction.emoji", "", 128077),
        ("template", "template.components", [], {}),
        ("template", "template.components[3].index", 9, "first"),
        ("template", "template.components[3].index", "1", 1.5),
        ("template", "template.components[1].parameters[0].text", "", 9999),
        ("button", "interactive.body", {"text": "x"}, "x"),
        ("button", "interactive.action.buttons", BUTTONS[:1], BUTTONS[0]),
        ("button", "interactive.action.buttons[0]", BUTTONS[0], None),
        ("button", "interactive.action.buttons[0].type", "REPLY", "url"),
        ("list of sections", "interactive.header.type", "text", "image"),
    ],
)
def test_another_kind_of_value_is_an_invalid_parameter(name: str, path: str, fits: Any, does_not: Any) -> None:
    """Graph reads the form of everything, and its code is 100. What can be meant is taken as it is meant."""
    assert isinstance(ask(changed(name, path, fits)), Outgoing)
    code, details = refusal(changed(name, path, does_not))
    assert (code, details.partition(" must ")[0]) == (INVALID, path)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("text", "messaging_product"),
        ("text", "to"),
        ("text", "text"),
        ("text", "text.body"),
        ("image", "type"),
        ("video", "video"),
        ("document", "document.id"),
        ("location", "location.longitude"),
        ("contacts", "contacts[0].name.formatted_name"),
        ("reaction", "reaction.emoji"),
        ("reaction", "reaction.message_id"),
        ("template", "template.name"),
        ("template", "template.language.code"),
        ("template", "template.components[2].sub_type"),
        ("template", "template.components[2].index"),
        ("template", "template.components[0].parameters[0].image.id"),
        ("template", "template.components[1].parameters[0].text"),
        ("button", "interactive.type"),
        ("button", "interactive.body"),
        ("button", "interactive.action"),
        ("button", "interactive.action.buttons[0].reply.title"),
        ("list", "interactive.action.button"),
        ("list of sections", "interactive.action.sections[0].title"),
        ("cta_url", "interactive.action.name"),
        ("flow", "interactive.action.parameters.flow_id"),
        ("product", "interactive.action.catalog_id"),
        ("product_list", "interactive.header"),
        ("product_list", "interactive.action.sections[0].product_items[0].product_retailer_id"),
        ("carousel", "interactive.action.cards[1].action"),
    ],
)
def test_what_must_be_there_is_named_when_it_is_missing(name: str, path: str) -> None:
    """An "Invalid parameter" alone costs a developer an afternoon."""
    code, details = refusal(changed(name, path, ...))
    content = path.startswith(("interactive.", "template.components"))
    assert (code, details.split()[0]) == (MISSING if content else INVALID, path)


def test_thirty_products_are_counted_over_all_sections() -> None:
    """As rows are."""
    sections = [{"title": str(n), "product_items": [{"product_retailer_id": "s"}] * 16} for n in range(2)]
    code, details = refusal(changed("product_list", "interactive.action.sections", sections))
    assert (code, details[:47]) == (VALUE, "interactive.action.sections must hold at most 3")
    both = [{"title": "1", "rows": rows(6)}, {"title": "2", "rows": rows(6, 6)}]
    assert refusal(changed("list", "interactive.action.sections", both))[0] == VALUE


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"text"', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object_is_an_invalid_parameter(body: bytes) -> None:
    """Meta's code 100."""
    answer = check(body, unknown_types=True)
    assert isinstance(answer, Error)
    assert answer.code == INVALID


def test_an_unknown_type_passes_or_is_refused_as_the_operator_says() -> None:
    """Passed, Meta decides; refused, the developer hears at once."""
    hologram = {**BASE, "type": "hologram", "hologram": {"id": "1"}}
    passed = ask(hologram)
    assert isinstance(passed, Outgoing)
    assert not passed.known
    code, details = refusal(hologram, unknown_types=False)
    assert (code, details[:17]) == (INVALID, "type must be one ")
    variant = {**BASE, **interactive("hologram", {})}
    passed = ask(variant)
    assert isinstance(passed, Outgoing)
    assert (passed.known, passed.message_type) == (False, "interactive")
    code, details = refusal(variant, unknown_types=False)
    assert (code, details[:28]) == (INVALID, "interactive.type must be one")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ({"to": "+49 (1555) 000-1234"}, ("+49 (1555) 000-1234", "", "4915550001234", "")),
        ({"to": 4915550001234}, ("4915550001234", "", "4915550001234", "")),
        ({"recipient": "DE.17"}, ("", "DE.17", "", "")),
        ({"recipient": "DE.ENT.17", "to": None}, ("", "DE.ENT.17", "", "")),
        ({"to": "4915550001234", "recipient": "DE.17"}, ("4915550001234", "DE.17", "4915550001234", "")),
        ({"to": "Y2FwaV9n", "recipient_type": "group"}, ("Y2FwaV9n", "", "", "Y2FwaV9n")),
    ],
)
def test_every_way_to_address_somebody_is_understood(
    address: dict[str, Any], expected: tuple[str, str, str, str]
) -> None:
    """Phone, BSUID, both, a group; blanks and dashes as people write them."""
    answer = ask({"messaging_product": "whatsapp", "type": "text", "text": {"body": "x"}, **address})
    assert isinstance(answer, Outgoing)
    assert (answer.to, answer.recipient, answer.wa_id, answer.group_id) == expected


@pytest.mark.parametrize("recipient", ["", "4915550001234", "#1", "DE 17", "DÉ.1", "x" * 301, 7, ["DE.1"], "DE.1\n"])
def test_a_recipient_that_could_be_mistaken_is_refused(recipient: Any) -> None:
    """A BSUID becomes a customer key: it must not look like a phone, or like what concerns nobody."""
    code, details = refusal({"messaging_product": "whatsapp", "recipient": recipient, **GOOD["text"]})
    assert (code, details.split()[0]) == (VALUE if isinstance(recipient, str) else INVALID, "recipient")


@pytest.mark.parametrize("recipient", [True, 1.5, {}, [], "12 34 abc", "", "#1", "1" * 40])
def test_a_to_that_is_no_phone_is_refused(recipient: Any) -> None:
    """Meta would take it and fail later."""
    code, details = refusal({**BASE, "to": recipient, **GOOD["text"]})
    assert (code, details.split()[0]) == (VALUE if isinstance(recipient, str) else INVALID, "to")


def test_the_callers_own_data_holds_512_characters() -> None:
    """It comes back on every status; a longer one is refused as Meta refuses it."""
    assert taken(GOOD["text"], biz_opaque_callback_data="é" * 512).opaque == "é" * 512
    assert taken(GOOD["text"]).opaque is None
    assert taken(GOOD["text"], biz_opaque_callback_data="").opaque == ""
    wrongs: list[Any] = ["é" * 513, 7, {}]
    for wrong in wrongs:
        code, details = refusal({**BASE, **GOOD["text"], "biz_opaque_callback_data": wrong})
        assert (code, details.split()[0]) == (INVALID, "biz_opaque_callback_data")


def test_a_read_mark_names_a_message_and_nobody() -> None:
    """With a typing indicator or without."""
    mark = {"messaging_product": "whatsapp", "status": "read", "message_id": "wamid.H"}
    assert ask(mark) == Outgoing("mark", "read", about="wamid.H")
    assert ask({**mark, "typing_indicator": {"type": "text"}}) == Outgoing("mark", "typing", about="wamid.H")
    assert refusal({**mark, "status": "seen"})[0] == INVALID
    assert refusal({**mark, "typing_indicator": {"type": "dance"}})[0] == INVALID
    assert refusal({**mark, "typing_indicator": {}})[0] == INVALID
    assert refusal({"messaging_product": "whatsapp", "status": "read"}) == (INVALID, "message_id is missing.")
    assert refusal({**mark, "message_id": derived_send_id("a", "b")})[0] == VALUE


def test_a_reply_names_what_it_replies_to() -> None:
    """By our id or Meta's."""
    taken(GOOD["text"], context={"message_id": derived_send_id("a", "b")})
    assert refusal({**BASE, **GOOD["text"], "context": {}}) == (INVALID, "context.message_id is missing.")
    assert refusal({**BASE, **GOOD["text"], "context": "wamid.H"})[0] == INVALID
    assert refusal({**BASE, **GOOD["reaction"], "context": {"message_id": "wamid.H"}})[0] == INVALID


@pytest.mark.parametrize("name", ["contacts", "template", "reaction", "text"])
def test_contents_written_as_a_string_of_json_are_what_the_string_holds(name: str) -> None:
    """whatsapp-api-js writes contacts so, and Graph takes it; whoever reads the request after us need not know."""
    message = {**BASE, **GOOD[name], "tomorrow": "[1, 2]"}
    kind = message["type"]
    outgoing = ask({**message, kind: json.dumps(message[kind])})
    assert isinstance(outgoing, Outgoing)
    assert json.loads(outgoing.body) == message
    assert msgspec.structs.replace(outgoing, body=b"") == ask(message)
    code, details = refusal({**message, kind: json.dumps({"body": 7, "name": 7, "message_id": 7})})
    assert (code, details.split(".")[0].split()[0]) == (INVALID, kind)
    exact = ask({**message, kind: json.dumps(message[kind])[:-1] + ', "x": 1.50e2}'}) if kind != "contacts" else None
    assert exact is None or (isinstance(exact, Outgoing) and b"1.50e2" in exact.body)
    for broken in ("{", "[" * 100_000, "{}x", "[\ud800]", "x", "7"):
        assert refusal({**message, kind: broken})[0] == INVALID


def test_a_quote_may_be_a_string_of_json_too() -> None:
    """Our ids in it are translated later, so it has to be found."""
    outgoing = taken(GOOD["text"], context=json.dumps({"message_id": "wamid.H"}))
    assert json.loads(outgoing.body)["context"] == {"message_id": "wamid.H"}


def test_what_is_filled_into_a_template_cannot_be_longer_than_the_whole() -> None:
    """Meta would find out when it fills it in; its code is another one."""

    def filled(components: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            **BASE,
            "type": "template",
            "template": {"name": "t", "language": {"code": "de"}, "components": components},
        }

    def body(*lengths: int) -> dict[str, Any]:
        return {"type": "BODY", "parameters": [{"type": "text", "text": "x" * length} for length in lengths]}

    button = {"type": "button", "sub_type": "url", "index": 0, "parameters": [{"type": "text", "text": "x"}]}
    assert isinstance(ask(filled([body(32_000, 768)])), Outgoing)
    assert isinstance(ask(filled([body(1_000, 24), button])), Outgoing)
    place = "template.components[0].parameters"
    for components in ([body(32_000, 769)], [body(1_000, 25), button]):
        code, details = refusal(filled(components))
        assert (code, details.split()[0]) == (132005, place)
    header = {"type": "header", "parameters": [{"type": "text", "text": "x" * 61}]}
    assert refusal(filled([header]))[0] == 132005


def test_a_free_form_message_with_a_category_is_bounded_like_a_template() -> None:
    """Direct Send: it is charged as one."""
    text = {"type": "text", "text": {"body": "x" * 1_025}}
    taken(text)
    assert refusal({**BASE, **text, "category": "utility"})[0] == INVALID
    taken({"type": "text", "text": {"body": "x" * 1_024}}, category="utility")
    bodies: list[Any] = ["x", {}, {"text": 7}, {"text": None}, []]
    for strange in bodies:
        hologram = {"type": "interactive", "interactive": {"type": "hologram", "body": strange}}
        taken(hologram, category="utility")


def test_the_marketing_endpoint_takes_templates_alone() -> None:
    """Meta refuses everything else there, with an error that names the type."""
    template = json.dumps({**BASE, **GOOD["template"], "product_policy": "STRICT", "message_activity_sharing": True})
    assert isinstance(check(template.encode(), unknown_types=True, marketing=True), Outgoing)
    mark = {"messaging_product": "whatsapp", "status": "read", "message_id": "wamid.H"}
    for wrong in ({**BASE, **GOOD["text"]}, {**BASE, **GOOD["template"], "product_policy": "none"}, mark):
        answer = check(json.dumps(wrong).encode(), unknown_types=True, marketing=True)
        assert isinstance(answer, Error)
        assert answer.code == INVALID


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("template", "template.components[0].type", "hologram"),
        ("template", "template.components[1].parameters[0].type", "hologram"),
        ("button", "interactive.header.type", "hologram"),
        ("carousel", "interactive.action.cards[0].header.type", "hologram"),
    ],
)
def test_an_unknown_kind_inside_a_known_type_is_an_unknown_type(name: str, path: str, value: Any) -> None:
    """It passes, and is counted, or is refused, as the operator says of types."""
    answer = ask(changed(name, path, value))
    assert isinstance(answer, Outgoing)
    assert not answer.known
    code, details = refusal(changed(name, path, value), unknown_types=False)
    assert (code, details.split()[0]) == (INVALID, path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def broken(draw: st.DrawFn) -> dict[str, Any]:
    """A good message with anything at all in one place of it."""
    message = copy.deepcopy({**BASE, **GOOD[draw(st.sampled_from(sorted(GOOD)))]})
    place: Any = message
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or draw(st.booleans()):
            place[key] = draw(json_values)
            return message
        place = place[key]


@given(broken(), st.booleans())
def test_no_message_crashes_the_check(message: dict[str, Any], unknown_types: bool) -> None:
    """Whatever a bot sends: an answer, with a path when it is no."""
    try:
        body = json.dumps(message).encode()
    except UnicodeEncodeError:
        return
    answer = check(body, unknown_types=unknown_types)
    if isinstance(answer, Error):
        assert answer.code in TITLES
