"""What each message type must hold, as Meta documents it.

Strict: an unknown key beside known ones is refused as Meta refuses it. Written from Meta's documents alone, without a
look at the gateway's own check, so that each can find the other wrong.
Source: Meta Cloud API, "Messages", "Interactive messages", "Template messages".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker.sandbox.parameters import (
    ID_MAX,
    Beyond,
    Missing,
    Refused,
    by_whatsapp,
    choice,
    elements,
    flag,
    identifier,
    is_object,
    link,
    member,
    missing,
    needed_id,
    number,
    only,
    required,
    text,
)
from broker.sandbox.shapes import Json

TEXT_MAX = 4_096
CAPTION_MAX = 1_024
INTERACTIVE_BODY_MAX = 1_024
LIST_BODY_MAX = 4_096
HEADER_TEXT_MAX = FOOTER_TEXT_MAX = 60
CONTACTS_MAX = 257
TEMPLATE_TEXT_MAX = 32_768
TEMPLATE_TEXT_BESIDE_OTHERS_MAX = 1_024
EMOJI_MAX = 64
ENTRIES_MAX = 256


def _text_message(content: Any) -> None:
    content = is_object(content, "text")
    only(content, {"body", "preview_url"}, "text")
    required(content, "body", "text", TEXT_MAX)
    flag(content, "preview_url")


def _media(kind: str, extra: tuple[str, ...] = ()) -> Callable[[Any], None]:
    def check(content: Any) -> None:
        content = is_object(content, kind)
        only(content, {"id", "link", *extra}, kind)
        named, linked = identifier(content, "id"), link(content, "link")
        if not named and not linked:
            raise missing(f"{kind}['id']")
        if named and linked:
            raise Refused(f"Param {kind}: id and link exclude each other.")
        text(content, "caption", CAPTION_MAX)
        text(content, "filename")
        flag(content, "voice")

    return check


FILES = {
    "image": _media("image", ("caption",)),
    "video": _media("video", ("caption",)),
    "document": _media("document", ("caption", "filename")),
}


def _location(content: Any) -> None:
    content = is_object(content, "location")
    only(content, {"latitude", "longitude", "name", "address"}, "location")
    number(content, "latitude", -90, 90)
    number(content, "longitude", -180, 180)
    text(content, "name")
    text(content, "address")


def _contacts(content: Any) -> None:
    for contact in elements({"contacts": content}, "contacts", 1, CONTACTS_MAX):
        contact = is_object(contact, "contacts[]")
        only(contact, {"name", "phones", "emails", "addresses", "urls", "org", "birthday"}, "contacts[]")
        name = member(contact, "name")
        required(name, "formatted_name", "contacts[]['name']")
        parts = ("first_name", "last_name", "middle_name", "suffix", "prefix")
        only(name, {"formatted_name", *parts}, "contacts[]['name']")
        given = [text(name, part) for part in parts]
        if not any(given):
            raise Missing("contacts[]['name'] needs one more part beside formatted_name")
        for entries in ("phones", "emails", "addresses", "urls"):
            if contact.get(entries) is not None:
                for entry in elements(contact, entries, 0, ENTRIES_MAX):
                    is_object(entry, f"contacts[]['{entries}'][]")
        if contact.get("org") is not None:
            member(contact, "org")
        text(contact, "birthday")


def _reaction(content: Any) -> None:
    content = is_object(content, "reaction")
    only(content, {"message_id", "emoji"}, "reaction")
    required(content, "message_id", "reaction", ID_MAX)
    if content.get("emoji") is None:
        raise missing("reaction['emoji']")
    text(content, "emoji", EMOJI_MAX)


def _pin(content: Any) -> None:
    content = is_object(content, "pin")
    only(content, {"type", "message_id", "expiration_days"}, "pin")
    required(content, "type", "pin", 64)
    required(content, "message_id", "pin", ID_MAX)


# ---- templates


def _template(content: Any) -> None:
    content = is_object(content, "template")
    only(content, {"name", "language", "components", "namespace"}, "template")
    required(content, "name", "template", 512)
    language = member(content, "language")
    only(language, {"code", "policy"}, "template['language']")
    required(language, "code", "template['language']", 32)
    text(language, "policy")
    if content.get("components") is not None:
        if not isinstance(content["components"], list):
            raise Refused("Param template['components'] must be an array.")
        by_whatsapp(_components)(content)


def _components(content: Json) -> None:
    components = elements(content, "components", 0, 32)
    for component in components:
        component = is_object(component, "template['components'][]")
        kind = required(component, "type", "template['components'][]", 64).lower()
        check = COMPONENTS.get(kind)
        if check is None:
            raise Refused(f"Param template['components'][]['type'] must be one of {{{', '.join(COMPONENTS).upper()}}}")
        check(component)
    kinds = [component["type"].lower() for component in components]
    most = TEMPLATE_TEXT_BESIDE_OTHERS_MAX if {"header", "button"} & set(kinds) else TEMPLATE_TEXT_MAX
    for kind, component in zip(kinds, components, strict=True):
        filled = sum(len(parameter.get("text") or "") for parameter in component.get("parameters") or [])
        if (kind == "body" and filled > most) or (kind == "header" and filled > HEADER_TEXT_MAX):
            raise Refused("The translated text is too long.", 132005)


def _plain_component(component: Json, extra: tuple[str, ...] = ()) -> None:
    only(component, {"type", "parameters", *extra}, "template['components'][]")
    if component.get("parameters") is None:
        return
    for parameter in elements(component, "parameters", 0, 256):
        parameter = is_object(parameter, "template['components'][]['parameters'][]")
        kind = required(parameter, "type", "parameters[]", 64).lower()
        if kind not in PARAMETERS:
            raise Refused(f"Param parameters[]['type'] must be one of {{{', '.join(PARAMETERS).upper()}}}")
        only(parameter, {"type", kind, "parameter_name"}, "parameters[]")
        text(parameter, "parameter_name")
        if parameter.get(kind) is None:
            raise missing(f"parameters[]['{kind}']")
        PARAMETERS[kind](parameter[kind])


def _button_component(component: Json) -> None:
    _plain_component(component, ("sub_type", "index"))
    required(component, "sub_type", "template['components'][]", 64)
    _index(component, "index")


def _index(content: Json, name: str) -> None:
    if not number(content, name, 0, 9).is_integer():
        raise Refused(f"Param {name} must be an integer.")


def _carousel_component(component: Json) -> None:
    only(component, {"type", "cards"}, "template['components'][]")
    for card in elements(component, "cards", 1, 10):
        card = is_object(card, "cards[]")
        only(card, {"card_index", "components"}, "cards[]")
        if card.get("card_index") is not None:
            _index(card, "card_index")
        for inner in elements(card, "components", 0, 32) if card.get("components") is not None else []:
            inner = is_object(inner, "cards[]['components'][]")
            kind = required(inner, "type", "components[]", 64).lower()
            if kind not in ("header", "body", "button"):
                raise Refused("Param components[]['type'] must be one of {HEADER, BODY, BUTTON}")
            (_button_component if kind == "button" else _plain_component)(inner)


def _filled_text(value: Any) -> None:
    text({"text": value}, "text", TEMPLATE_TEXT_MAX)


def _words(value: Any) -> None:
    text({"parameter": value}, "parameter")


def _names(*names: str) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        value = is_object(value, "parameter")
        for name in names:
            text(value, name)

    return check


def _product_parameter(value: Any) -> None:
    value = is_object(value, "product")
    identifier(value, "product_retailer_id")
    identifier(value, "catalog_id")


def _anything(value: Any) -> None:
    """Clients write it in two ways, and no page says which is right."""


PARAMETERS: dict[str, Callable[[Any], None]] = {
    "text": _filled_text,
    "currency": _names("fallback_value", "code"),
    "date_time": _names("fallback_value"),
    **FILES,
    "gif": _media("gif", ("caption",)),
    "location": _location,
    "payload": _filled_text,
    "coupon_code": _words,
    "action": _names(),
    "limited_time_offer": _names(),
    "tap_target_configuration": _anything,
    "product": _product_parameter,
}

COMPONENTS: dict[str, Callable[[Json], None]] = {
    "header": _plain_component,
    "body": _plain_component,
    "button": _button_component,
    "carousel": _carousel_component,
    "limited_time_offer": _plain_component,
    "order_status": _plain_component,
    "tap_target_configuration": _plain_component,
}


# ---- interactive messages


def _interactive(content: Any) -> None:
    if not isinstance(content, dict):
        raise Refused("Param interactive must be a JSON object.")
    only(content, {"type", "header", "body", "footer", "action"}, "interactive")
    kind = required(content, "type", "interactive").lower()
    check = INTERACTIVES.get(kind)
    if check is None:
        raise Refused(f"Param interactive['type'] must be one of {{{', '.join(INTERACTIVES).upper()}}}")
    _around(content, kind)
    check(member(content, "action"))


def _around(content: Json, kind: str) -> None:
    """What stands around the action: the header, the body, the footer."""
    if content.get("header") is not None:
        header = member(content, "header")
        header_kind = choice(header, "type", ("text",) if kind in ("list", "product_list") else ("text", *FILES))
        _header(header, header_kind)
    elif kind == "product_list":
        raise missing("interactive['header']")
    if content.get("body") is not None or kind not in ("product", "voice_call"):
        body = member(content, "body")
        only(body, {"text"}, "interactive['body']")
        required(body, "text", "interactive['body']", LIST_BODY_MAX if kind == "list" else INTERACTIVE_BODY_MAX)
    if content.get("footer") is not None:
        footer = member(content, "footer")
        only(footer, {"text"}, "interactive['footer']")
        required(footer, "text", "interactive['footer']", FOOTER_TEXT_MAX)


def _header(header: Json, kind: str) -> None:
    only(header, {"type", "text", *FILES, "sub_text"}, "interactive['header']")
    if kind == "text":
        required(header, "text", "interactive['header']", HEADER_TEXT_MAX)
    else:
        FILES[kind](member(header, kind))


def _unique(ids: list[str], what: str) -> None:
    if len(set(ids)) < len(ids):
        raise Refused(f"Duplicated {what} id", 131009)


def _buttons(action: Json) -> None:
    only(action, {"buttons"}, "interactive['action']")
    ids = []
    for button in elements(action, "buttons", 1, 3):
        button = is_object(button, "buttons[]")
        only(button, {"type", "reply"}, "buttons[]")
        choice(button, "type", ("reply",))
        reply = member(button, "reply")
        only(reply, {"id", "title"}, "buttons[]['reply']")
        ids.append(required(reply, "id", "reply", 256))
        required(reply, "title", "reply", 20)
    _unique(ids, "button")


def _list(action: Json) -> None:
    only(action, {"button", "sections"}, "interactive['action']")
    required(action, "button", "action", 20)
    ids = []
    sections = _sections(action)
    for section in sections:
        only(section, {"title", "rows"}, "sections[]")
        for row in elements(section, "rows", 1, 10):
            row = is_object(row, "rows[]")
            only(row, {"id", "title", "description"}, "rows[]")
            ids.append(required(row, "id", "rows[]", 200))
            required(row, "title", "rows[]", 24)
            text(row, "description", 72)
    if len(ids) > 10:
        raise Beyond("Total row count exceeds the maximum of 10")
    _titled(sections)
    _unique(ids, "row")


def _sections(action: Json) -> list[Json]:
    sections = [is_object(section, "sections[]") for section in elements(action, "sections", 1, 10)]
    for section in sections:
        text(section, "title", 24)
    return sections


def _titled(sections: list[Json]) -> None:
    if len(sections) > 1:
        for section in sections:
            required(section, "title", "sections[]")


def _named(name: str, check: Callable[[Json], None] | None = None) -> Callable[[Json], None]:
    """Return the check of an action with a name, and of its parameters."""

    def checked(action: Json) -> None:
        only(action, {"name", "parameters"}, "interactive['action']")
        choice(action, "name", (name,))
        if check is not None:
            check(member(action, "parameters"))
        elif action.get("parameters") is not None:
            text(member(action, "parameters"), "display_text", 20)

    return checked


def _cta_url(parameters: Json) -> None:
    required(parameters, "display_text", "action['parameters']", 20)
    if not link(parameters, "url"):
        raise missing("action['parameters']['url']")


def _flow(parameters: Json) -> None:
    needed_id(parameters, "flow_message_version")
    identifier(parameters, "flow_id")
    text(parameters, "flow_name")
    if not parameters.get("flow_id") and not parameters.get("flow_name"):
        raise missing("action['parameters']['flow_id']")
    text(parameters, "flow_token")
    required(parameters, "flow_cta", "action['parameters']", 30)
    choice(parameters, "flow_action", ("navigate", "data_exchange"), "navigate")
    choice(parameters, "mode", ("published", "draft"), "published")


def _address(parameters: Json) -> None:
    if len(required(parameters, "country", "action['parameters']", 2)) < 2:
        raise Beyond("Param country must be a country's two letters.")


def _product(action: Json) -> None:
    needed_id(action, "catalog_id")
    needed_id(action, "product_retailer_id")


def _product_list(action: Json) -> None:
    needed_id(action, "catalog_id")
    sections = _sections(action)
    count = 0
    for section in sections:
        for product in elements(section, "product_items", 1, 30):
            needed_id(is_object(product, "product_items[]"), "product_retailer_id")
            count += 1
    if count > 30:
        raise Beyond("Total product count exceeds the maximum of 30")
    _titled(sections)


def _carousel(action: Json) -> None:
    for card in elements(action, "cards", 2, 10):
        card = is_object(card, "cards[]")
        only(card, {"card_index", "type", "header", "body", "action"}, "cards[]")
        kind = text(card, "type").lower()
        if card.get("header") is not None:
            header = member(card, "header")
            _header(header, choice(header, "type", ("text", *FILES)))
        if card.get("body") is not None:
            shown = required(member(card, "body"), "text", "cards[]['body']", 160)
            if shown.count("\n") > 2:
                raise Beyond("cards[]['body']['text'] must have at most 2 line breaks")
        _card_action(member(card, "action"), kind)


def _card_action(action: Json, kind: str) -> None:
    only(action, {"name", "parameters", "buttons", "catalog_id", "product_retailer_id"}, "cards[]['action']")
    if action.get("buttons") is not None:
        for button in elements(action, "buttons", 1, 3):
            button = is_object(button, "buttons[]")
            choice(button, "type", ("quick_reply",), "quick_reply")
            reply = member(button, "quick_reply")
            required(reply, "id", "quick_reply", 20)
            required(reply, "title", "quick_reply", 20)
    identifier(action, "catalog_id")
    identifier(action, "product_retailer_id")
    text(action, "name")
    if action.get("parameters") is not None:
        parameters = member(action, "parameters")
        if parameters.get("display_text") is not None:
            required(parameters, "display_text", "action['parameters']", 20)
        if parameters.get("url") is not None and not link(parameters, "url"):
            raise missing("action['parameters']['url']")
    if kind == "cta_url" and action.get("buttons") is None:
        required(action, "name", "cards[]['action']")
        _cta_url(member(action, "parameters"))


CONTENTS: dict[str, Callable[[Any], None]] = {
    "text": _text_message,
    "image": FILES["image"],
    "video": FILES["video"],
    "audio": _media("audio", ("voice",)),
    "document": FILES["document"],
    "sticker": _media("sticker"),
    "location": _location,
    "contacts": _contacts,
    "reaction": _reaction,
    "pin": _pin,
    "template": _template,
    "interactive": by_whatsapp(_interactive),
}

INTERACTIVES: dict[str, Callable[[Json], None]] = {
    "button": _buttons,
    "list": _list,
    "cta_url": _named("cta_url", _cta_url),
    "flow": _named("flow", _flow),
    "product": _product,
    "product_list": _product_list,
    "catalog_message": _named("catalog_message"),
    "location_request_message": _named("send_location"),
    "address_message": _named("address_message", _address),
    "call_permission_request": _named("call_permission_request"),
    "voice_call": _named("voice_call"),
    "request_contact_info": _named("request_contact_info"),
    "carousel": _carousel,
}
