"""Whether a body is a message Meta would take: the shape of each type, and the sizes of its contents.

Strict: an unknown key beside known ones is refused as Meta refuses it. Written from Meta's documents alone, without a
look at the gateway's own check, so that each can find the other wrong.
Source: Meta Cloud API, "Messages"; meta-cloud-api.md 3.1 to 3.3.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from broker.sandbox.shapes import GraphError, Json

COMMON_KEYS = {
    "messaging_product",
    "recipient_type",
    "to",
    "recipient",
    "type",
    "context",
    "biz_opaque_callback_data",
    "recipient_identity_key_hash",
    "category",
    "ttl",
}
MARKETING_KEYS = {"product_policy", "message_activity_sharing"}
BSUID = re.compile(r"[A-Z]{2}\.(ENT\.)?[A-Za-z0-9]{1,128}")
TEXT_MAX = 4_096
CAPTION_MAX = 1_024
INTERACTIVE_BODY_MAX = 1_024
LIST_BODY_MAX = 4_096
HEADER_TEXT_MAX = FOOTER_TEXT_MAX = 60
OPAQUE_MAX = 512
CONTACTS_MAX = 257


class Refused(Exception):
    """The body is not a message. Holds the error to answer with; never leaves this module."""

    def __init__(self, error: GraphError) -> None:
        super().__init__(error.details)
        self.error = error


class Outgoing(Struct, frozen=True):
    """A call's body as understood. `kind` "mark" marks `message_id` as read, and shows typing if asked."""

    kind: str
    type: str
    to: str = ""
    recipient: str = ""
    content: Json | None = None
    opaque: str | None = None
    context_id: str = ""
    message_id: str = ""
    typing: bool = False
    group: bool = False


def read(body: Any, *, marketing: bool = False) -> Outgoing | GraphError:
    """Return what a JSON body asks for, or the error Meta would answer."""
    try:
        return _read(body, marketing)
    except Refused as refused:
        return refused.error


def _read(body: Any, marketing: bool) -> Outgoing:
    if not isinstance(body, dict):
        raise _invalid("The request body must be a JSON object.")
    if body.get("messaging_product") != "whatsapp":
        raise (
            _missing("messaging_product")
            if "messaging_product" not in body
            else _invalid("Param messaging_product must be one of {WHATSAPP}")
        )
    if "status" in body:
        return _mark(body)
    kind = body.get("type", "text")
    if not isinstance(kind, str):
        raise _invalid("Param type must be a string")
    check = CONTENTS.get(kind)
    if check is None:
        raise Refused(GraphError(131051, f"Message type {kind[:40]!r} is currently not supported."))
    _only(body, COMMON_KEYS | {kind} | (MARKETING_KEYS if marketing else set()), "")
    group = _choice(body, "recipient_type", ("individual", "group"), "individual") == "group"
    to, recipient = _text(body, "to"), _text(body, "recipient")
    if not to and not recipient:
        raise _missing("to")
    if not to and not BSUID.fullmatch(recipient):
        raise Refused(GraphError(131009, "Param recipient must be a business-scoped user ID"))
    opaque = body.get("biz_opaque_callback_data")
    if opaque is not None and (not isinstance(opaque, str) or len(opaque) > OPAQUE_MAX):
        raise _invalid(f"Param biz_opaque_callback_data must be at most {OPAQUE_MAX} characters long.")
    context_id = ""
    if "context" in body:
        context = _object(body, "context")
        _only(context, {"message_id"}, "context")
        context_id = _required(context, "message_id", "context")
        if kind == "reaction":
            raise _invalid('Unexpected key "context" on a message of type reaction.')
    if kind not in body:
        raise _missing(kind)
    content = body[kind]
    check(content)
    return Outgoing(
        kind="message",
        type=kind,
        to=to,
        recipient=recipient,
        content={"contacts": content} if kind == "contacts" else content,
        opaque=opaque,
        context_id=context_id,
        group=group,
    )


def _mark(body: Json) -> Outgoing:
    _only(body, {"messaging_product", "status", "message_id", "typing_indicator"}, "")
    if body["status"] != "read":
        raise _invalid("Param status must be one of {READ}")
    message_id = _required(body, "message_id", "")
    typing = "typing_indicator" in body
    if typing:
        indicator = _object(body, "typing_indicator")
        _only(indicator, {"type"}, "typing_indicator")
        if indicator.get("type") != "text":
            raise _invalid("Param typing_indicator['type'] must be one of {TEXT}")
    return Outgoing(kind="mark", type="typing" if typing else "read", message_id=message_id, typing=typing)


def _text_message(content: Any) -> None:
    content = _is_object(content, "text")
    _only(content, {"body", "preview_url"}, "text")
    _required(content, "body", "text", TEXT_MAX)
    if "preview_url" in content and not isinstance(content["preview_url"], bool):
        raise _invalid("Param text['preview_url'] must be a boolean")


def _media(kind: str, extra: set[str]) -> Callable[[Any], None]:
    def check(content: Any) -> None:
        content = _is_object(content, kind)
        _only(content, {"id", "link"} | extra, kind)
        if bool(content.get("id")) == bool(content.get("link")):
            raise Refused(GraphError(131008 if not content.get("id") else 100, f"{kind}: one of id and link is needed"))
        if "link" in content and not re.fullmatch(r"https?://\S+", _text(content, "link")):
            raise _invalid(f"Param {kind}['link'] is not a valid URI.")
        if len(_text(content, "caption")) > CAPTION_MAX:
            raise _too_long(f"{kind}['caption']", CAPTION_MAX)

    return check


def _location(content: Any) -> None:
    content = _is_object(content, "location")
    _only(content, {"latitude", "longitude", "name", "address"}, "location")
    for name, bound in (("latitude", 90.0), ("longitude", 180.0)):
        if name not in content:
            raise _missing(f"location['{name}']")
        try:
            degrees = float(content[name])
        except (TypeError, ValueError):
            raise _invalid(f"Param location['{name}'] must be a number") from None
        if not -bound <= degrees <= bound:
            raise _invalid(f"Param location['{name}'] is out of range")


def _contacts(content: Any) -> None:
    if not isinstance(content, list) or not 1 <= len(content) <= CONTACTS_MAX:
        raise _invalid(f"Param contacts must be a list of 1 to {CONTACTS_MAX}")
    for contact in content:
        contact = _is_object(contact, "contacts[]")
        _only(contact, {"name", "phones", "emails", "addresses", "urls", "org", "birthday"}, "contacts[]")
        name = _object(contact, "name")
        _required(name, "formatted_name", "contacts[]['name']")
        if not any(name.get(part) for part in ("first_name", "last_name", "middle_name", "suffix", "prefix")):
            raise _invalid("contacts[]['name'] needs one more part beside formatted_name")


def _reaction(content: Any) -> None:
    content = _is_object(content, "reaction")
    _only(content, {"message_id", "emoji"}, "reaction")
    _required(content, "message_id", "reaction")
    if not isinstance(content.get("emoji"), str):
        raise _missing("reaction['emoji']")


def _pin(content: Any) -> None:
    content = _is_object(content, "pin")
    _only(content, {"type", "message_id", "expiration_days"}, "pin")
    _required(content, "message_id", "pin")


def _template(content: Any) -> None:
    content = _is_object(content, "template")
    _only(content, {"name", "language", "components", "namespace"}, "template")
    _required(content, "name", "template")
    language = _object(content, "language")
    _only(language, {"code", "policy"}, "template['language']")
    _required(language, "code", "template['language']")
    components = content.get("components", [])
    if not isinstance(components, list):
        raise _invalid("Param template['components'] must be a list")
    for component in components:
        component = _is_object(component, "template['components'][]")
        kind = _text(component, "type").lower()
        if kind not in ("header", "body", "button", "carousel", "limited_time_offer"):
            raise _invalid("Param template['components'][]['type'] must be one of {HEADER, BODY, BUTTON, CAROUSEL}")
        if kind == "button":
            _required(component, "sub_type", "template['components'][]")
            if not str(component.get("index", "")).isdigit():
                raise _invalid("Param template['components'][]['index'] must be a number")
        parameters = component.get("parameters", [])
        if not isinstance(parameters, list) or not all(isinstance(p, dict) and p.get("type") for p in parameters):
            raise _invalid("Param template['components'][]['parameters'] must be a list of typed parameters")
        for parameter in parameters:
            if parameter["type"] == "text" and not parameter.get("text"):
                raise _missing("template['components'][]['parameters'][]['text']")


def _interactive(content: Any) -> None:
    content = _is_object(content, "interactive")
    _only(content, {"type", "header", "body", "footer", "action"}, "interactive")
    kind = _required(content, "type", "interactive")
    check = INTERACTIVES.get(kind)
    if check is None:
        raise _invalid(f"Param interactive['type'] must be one of {{{', '.join(INTERACTIVES).upper()}}}")
    if kind != "product" or "body" in content:
        body = _object(content, "body")
        _only(body, {"text"}, "interactive['body']")
        _required(body, "text", "interactive['body']", LIST_BODY_MAX if kind == "list" else INTERACTIVE_BODY_MAX)
    if "footer" in content:
        footer = _object(content, "footer")
        _required(footer, "text", "interactive['footer']", FOOTER_TEXT_MAX)
    if "header" in content:
        header = _object(content, "header")
        header_kind = _choice(header, "type", ("text", "image", "video", "document"), "")
        if header_kind == "text":
            _required(header, "text", "interactive['header']", HEADER_TEXT_MAX)
        else:
            _media(header_kind, {"filename"})(header.get(header_kind))
    check(_object(content, "action"))


def _buttons(action: Json) -> None:
    _only(action, {"buttons"}, "interactive['action']")
    buttons = action.get("buttons")
    if not isinstance(buttons, list) or not 1 <= len(buttons) <= 3:
        raise _invalid("Invalid buttons count. Min allowed buttons: 1, Max allowed buttons: 3")
    replies = []
    for button in buttons:
        button = _is_object(button, "buttons[]")
        _only(button, {"type", "reply"}, "buttons[]")
        if button.get("type") != "reply":
            raise _invalid("Param buttons[]['type'] must be one of {REPLY}")
        reply = _object(button, "reply")
        _only(reply, {"id", "title"}, "buttons[]['reply']")
        replies.append((_required(reply, "id", "reply", 256), _required(reply, "title", "reply", 20)))
    if len({reply[0] for reply in replies}) < len(replies) or len({reply[1] for reply in replies}) < len(replies):
        raise _invalid("Duplicated button id or title")


def _list(action: Json) -> None:
    _only(action, {"button", "sections"}, "interactive['action']")
    _required(action, "button", "action", 20)
    sections = action.get("sections")
    if not isinstance(sections, list) or not 1 <= len(sections) <= 10:
        raise _invalid("Param action['sections'] must be a list of 1 to 10")
    ids: list[str] = []
    for section in sections:
        section = _is_object(section, "sections[]")
        _only(section, {"title", "rows"}, "sections[]")
        if len(sections) > 1:
            _required(section, "title", "sections[]", 24)
        elif len(_text(section, "title")) > 24:
            raise _too_long("sections[]['title']", 24)
        rows = section.get("rows")
        if not isinstance(rows, list) or not rows:
            raise _missing("sections[]['rows']")
        for row in rows:
            row = _is_object(row, "rows[]")
            _only(row, {"id", "title", "description"}, "rows[]")
            ids.append(_required(row, "id", "rows[]", 200))
            _required(row, "title", "rows[]", 24)
            if len(_text(row, "description")) > 72:
                raise _too_long("rows[]['description']", 72)
    if len(ids) > 10:
        raise _invalid("Total row count exceed max allowed count: 10")
    if len(set(ids)) < len(ids):
        raise _invalid("Duplicated row id")


def _named_action(name: str, label_max: int = 0) -> Callable[[Json], None]:
    def check(action: Json) -> None:
        if action.get("name") != name:
            raise _invalid(f"Param action['name'] must be {name}")
        if label_max:
            parameters = _object(action, "parameters")
            label = "flow_cta" if name == "flow" else "display_text"
            _required(parameters, label, "action['parameters']", label_max)
            if name == "cta_url" and not re.fullmatch(r"https?://\S+", _text(parameters, "url")):
                raise _invalid("Param action['parameters']['url'] is not a valid URI.")

    return check


def _product(action: Json) -> None:
    _required(action, "catalog_id", "action")
    _required(action, "product_retailer_id", "action")


def _product_list(action: Json) -> None:
    _required(action, "catalog_id", "action")
    sections = action.get("sections")
    if not isinstance(sections, list) or not 1 <= len(sections) <= 10:
        raise _invalid("Param action['sections'] must be a list of 1 to 10")
    products = sum(len(_is_object(section, "sections[]").get("product_items", [])) for section in sections)
    if not 1 <= products <= 30:
        raise _invalid("Total product count must be 1 to 30")


def _carousel(action: Json) -> None:
    cards = action.get("cards")
    if not isinstance(cards, list) or not 2 <= len(cards) <= 10:
        raise _invalid("Param action['cards'] must be a list of 2 to 10")
    for card in cards:
        card = _is_object(card, "cards[]")
        if "body" in card:
            _required(_object(card, "body"), "text", "cards[]['body']", 160)


CONTENTS: dict[str, Callable[[Any], None]] = {
    "text": _text_message,
    "image": _media("image", {"caption"}),
    "video": _media("video", {"caption"}),
    "audio": _media("audio", {"voice"}),
    "document": _media("document", {"caption", "filename"}),
    "sticker": _media("sticker", set()),
    "location": _location,
    "contacts": _contacts,
    "reaction": _reaction,
    "pin": _pin,
    "template": _template,
    "interactive": _interactive,
}

INTERACTIVES: dict[str, Callable[[Json], None]] = {
    "button": _buttons,
    "list": _list,
    "cta_url": _named_action("cta_url", 20),
    "flow": _named_action("flow", 30),
    "product": _product,
    "product_list": _product_list,
    "catalog_message": _named_action("catalog_message"),
    "location_request_message": _named_action("send_location"),
    "address_message": _named_action("address_message"),
    "call_permission_request": _named_action("call_permission_request"),
    "voice_call": _named_action("voice_call"),
    "request_contact_info": _named_action("request_contact_info"),
    "carousel": _carousel,
}


def _only(content: Json, known: set[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise _invalid(f'Unexpected key "{str(key)[:60]}"' + (f' on param "{where}".' if where else "."))


def _object(content: Json, name: str) -> Json:
    if name not in content:
        raise _missing(name)
    return _is_object(content[name], name)


def _is_object(content: Any, name: str) -> Json:
    if not isinstance(content, dict):
        raise _invalid(f"Param {name} must be a JSON object.")
    return content


def _text(content: Json, name: str) -> str:
    value = content.get(name, "")
    if not isinstance(value, str):
        raise _invalid(f"Param {name} must be a string")
    return value


def _required(content: Json, name: str, where: str, chars_max: int = 0) -> str:
    shown = f"{where}['{name}']" if where else name
    value = content.get(name)
    if value is None or value == "":
        raise _missing(shown)
    if not isinstance(value, str):
        raise _invalid(f"Param {shown} must be a string")
    if chars_max and len(value) > chars_max:
        raise _too_long(shown, chars_max)
    return value


def _choice(content: Json, name: str, choices: tuple[str, ...], default: str) -> str:
    value = content.get(name, default)
    if value not in choices:
        raise _invalid(f"Param {name} must be one of {{{', '.join(choices).upper()}}}")
    return str(value)


def _invalid(details: str) -> Refused:
    return Refused(GraphError(100, details))


def _missing(name: str) -> Refused:
    return Refused(GraphError(131008, f"The parameter {name} is required."))


def _too_long(name: str, chars_max: int) -> Refused:
    return Refused(GraphError(100, f"Param {name} must be at most {chars_max} characters long."))
