"""What a bot asks to be sent, checked before it is taken: a refusal now is worth more than a failed status later.

The checks are Meta's documented ones (meta-cloud-api.md 3.1 to 3.3): what must be there, what a member may be, how
long. Whatever we do not know passes: unknown members always, unknown types unless the operator says otherwise. Nothing
is changed: the body goes on as the bytes it came in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, NoReturn

import msgspec
from msgspec import Struct

from broker.core.identity import normalise_wa_id
from broker.core.opaque import is_send_id
from schemas.graph import Error, ErrorData

INVALID, MISSING, VALUE, UNSUPPORTED = 100, 131008, 131009, 131051
TITLES: Final = {
    INVALID: "Invalid parameter",
    MISSING: "Required parameter is missing",
    VALUE: "Parameter value is not valid",
    UNSUPPORTED: "Unsupported message type",
}

OPAQUE_CHARS_MAX = 512
BSUID_CHARS_MAX = 300
"""`CC.` and up to 128 characters; earlier drafts of Meta's said 256."""
TYPE_CHARS_MAX = 64
ID_CHARS_MAX = 1_024
"""Of a message id or a group id: several times what Meta has ever used."""
URL_CHARS_MAX = 2_048
CAPTION_MAX = 1_024
TEXT_MAX = 4_096
FOOTER_MAX = HEADER_TEXT_MAX = 60
CONTACTS_MAX = 257
ANY_TEXT_MAX = 4_096
"""Where Meta documents no limit: no name of anything is longer than the longest text."""


class Outgoing(Struct, frozen=True):
    """A request to send, understood.

    `kind` "mark": a read mark or typing indicator for the message `about`. `to` and `recipient` are the addresses as
    given, `wa_id` the phone in normal form; a group has `group_id` and neither. `known`: whether we know its type.
    """

    kind: Literal["message", "mark"]
    message_type: str
    to: str = ""
    recipient: str = ""
    wa_id: str = ""
    group_id: str = ""
    template: str = ""
    opaque: str | None = None
    about: str = ""
    known: bool = True


class _Wrong(Exception):
    """Ends a check. Never leaves this module."""

    def __init__(self, code: int, details: str) -> None:
        super().__init__(details)
        self.code = code


_decode = msgspec.json.Decoder().decode


def error_of(code: int, details: str) -> Error:
    """Return Meta's error for a code of this module."""
    return Error(f"(#{code}) {TITLES[code]}", "OAuthException", code, ErrorData("whatsapp", details))


def check(body: bytes, *, unknown_types: bool) -> Outgoing | Error:
    """Return what a body asks for, or the error Meta would answer; its details name the path of what is wrong.

    `unknown_types`: whether a type we do not know passes.
    """
    try:
        payload = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return error_of(INVALID, "The body is not JSON.")
    if not isinstance(payload, dict):
        return error_of(INVALID, "The body is not a JSON object.")
    try:
        return _outgoing(payload, unknown_types)
    except _Wrong as wrong:
        return error_of(wrong.code, str(wrong))


# ---- what a member may be. Each takes the object, the member's name and the object's path ("text.", "" at the top)


Object = dict[str, Any]


def _missing(path: str) -> NoReturn:
    raise _Wrong(MISSING, f"{path} is missing.")


def _invalid(path: str, what: str) -> NoReturn:
    raise _Wrong(VALUE, f"{path} {what}.")


def _text(of: Object, name: str, path: str, most: int, *, least: int = 1) -> str:
    """A string that must be there."""
    value = of.get(name)
    if value is None:
        _missing(path + name)
    if not isinstance(value, str):
        _invalid(path + name, "must be a string")
    if len(value) < least:
        _missing(path + name)
    if len(value) > most:
        _invalid(path + name, f"must be at most {most} characters long; it has {len(value)}")
    return value


def _maybe_text(of: Object, name: str, path: str, most: int) -> str | None:
    """A string that may be missing, or empty."""
    return None if of.get(name) is None else _text(of, name, path, most, least=0)


def _object(of: Object, name: str, path: str) -> Object:
    value = of.get(name)
    if value is None:
        _missing(path + name)
    if not isinstance(value, dict):
        _invalid(path + name, "must be an object")
    return value


def _list(of: Object, name: str, path: str, least: int, most: int) -> list[Any]:
    value = of.get(name)
    if value is None:
        _missing(path + name)
    if not isinstance(value, list):
        _invalid(path + name, "must be a list")
    if not least <= len(value) <= most:
        _invalid(path + name, f"must hold {least} to {most} elements; it holds {len(value)}")
    return value


def _element(value: Any, path: str) -> Object:
    if not isinstance(value, dict):
        _invalid(path, "must be an object")
    return value


def _url(of: Object, name: str, path: str) -> None:
    value = _text(of, name, path, URL_CHARS_MAX)
    if not value.lower().startswith(("http://", "https://")):
        _invalid(path + name, "must be an http or https URL")


def _identifier(of: Object, name: str, path: str) -> None:
    """An id of Meta's, which some clients write as a number."""
    if not isinstance(of.get(name), int) or isinstance(of[name], bool):
        _text(of, name, path, ID_CHARS_MAX)


# ---- the request


def _outgoing(payload: Object, unknown_types: bool) -> Outgoing:
    product = payload.get("messaging_product")
    if product is None:
        _missing("messaging_product")
    if product != "whatsapp":
        _invalid("messaging_product", 'must be "whatsapp"')
    if "status" in payload:
        return _mark(payload)
    address = _address(payload)
    opaque = _maybe_text(payload, "biz_opaque_callback_data", "", OPAQUE_CHARS_MAX)
    if payload.get("context") is not None:
        _text(_object(payload, "context", ""), "message_id", "context.", ID_CHARS_MAX)
    message_type = payload.get("type")
    if message_type is None:
        if "text" not in payload:
            _missing("type")
        message_type = "text"  # Meta's default
    if not isinstance(message_type, str) or not 0 < len(message_type) <= TYPE_CHARS_MAX:
        _invalid("type", "must be the name of a message type")
    check_type = _TYPES.get(message_type)
    template = ""
    if check_type is not None:
        check_type(payload, unknown_types)
        if message_type == "template":
            template = payload["template"]["name"]
    elif not unknown_types:
        raise _Wrong(UNSUPPORTED, f"type must be one of {', '.join(_TYPES)}.")
    return Outgoing("message", message_type, *address, template=template, opaque=opaque, known=check_type is not None)


def _address(payload: Object) -> tuple[str, str, str, str]:
    """Return `to`, `recipient`, the phone in normal form, the group's id. With both given the phone wins, as at
    Meta."""
    to, recipient = payload.get("to"), payload.get("recipient")
    if isinstance(to, int) and not isinstance(to, bool):
        to = str(to)
    recipient_type = payload.get("recipient_type", "individual")
    if recipient_type not in ("individual", "group"):
        _invalid("recipient_type", 'must be "individual" or "group"')
    if to is None and recipient is None:
        _missing("to")
    if recipient is None:
        recipient = ""
    elif not isinstance(recipient, str) or not _is_bsuid(recipient):
        _invalid("recipient", "must be a business-scoped user id")
    if to is None:
        return "", recipient, "", ""
    if not isinstance(to, str):
        _invalid("to", "must be a string")
    if recipient_type == "group":
        group = _text(payload, "to", "", ID_CHARS_MAX)
        return group, recipient, "", group
    phone = normalise_wa_id(to)
    if not phone:
        _invalid("to", "must be a phone number with its country code")
    return to, recipient, phone, ""


def _is_bsuid(text: str) -> bool:
    """A BSUID is opaque to us; it must be tellable from a phone and fit into a key."""
    return (
        0 < len(text) <= BSUID_CHARS_MAX
        and text.isascii()
        and text.isprintable()
        and " " not in text
        and text[0] != "#"
        and not normalise_wa_id(text)
    )


def _mark(payload: Object) -> Outgoing:
    """A read mark, with a typing indicator or without. It speaks of an inbound message, so never of a send of ours."""
    if payload["status"] != "read":
        _invalid("status", 'must be "read"')
    about = _text(payload, "message_id", "", ID_CHARS_MAX)
    if is_send_id(about):
        _invalid("message_id", "must be the id of a message you received")
    if payload.get("typing_indicator") is not None:
        indicator = _object(payload, "typing_indicator", "")
        if indicator.get("type") is None:
            _missing("typing_indicator.type")
        if indicator["type"] != "text":
            _invalid("typing_indicator.type", 'must be "text"')
    return Outgoing("mark", "typing" if payload.get("typing_indicator") else "read", about=about)


# ---- one check for each type


def _check_text(payload: Object, unknown: bool) -> None:
    text = _object(payload, "text", "")
    _text(text, "body", "text.", TEXT_MAX)
    if not isinstance(text.get("preview_url", False), bool):
        _invalid("text.preview_url", "must be true or false")


def _media(of: Object, name: str, path: str) -> None:
    """A file by its id at Meta, or by a link that Meta will fetch."""
    media = _object(of, name, path)
    path = f"{path}{name}."
    if media.get("link") is not None:
        _url(media, "link", path)
    else:
        _identifier(media, "id", path)
    _maybe_text(media, "caption", path, CAPTION_MAX)
    _maybe_text(media, "filename", path, ANY_TEXT_MAX)


def _check_image(payload: Object, unknown: bool) -> None:
    _media(payload, "image", "")


def _check_video(payload: Object, unknown: bool) -> None:
    _media(payload, "video", "")


def _check_audio(payload: Object, unknown: bool) -> None:
    _media(payload, "audio", "")


def _check_document(payload: Object, unknown: bool) -> None:
    _media(payload, "document", "")


def _check_sticker(payload: Object, unknown: bool) -> None:
    _media(payload, "sticker", "")


def _check_location(payload: Object, unknown: bool) -> None:
    location = _object(payload, "location", "")
    for name, most in (("latitude", 90.0), ("longitude", 180.0)):
        value = location.get(name)
        if value is None:
            _missing(f"location.{name}")
        try:
            degrees = float(value) if not isinstance(value, bool) else None
        except (TypeError, ValueError, OverflowError):
            degrees = None
        if degrees is None or not -most <= degrees <= most:
            _invalid(f"location.{name}", f"must be a number from {-most:.0f} to {most:.0f}")
    _maybe_text(location, "name", "location.", ANY_TEXT_MAX)
    _maybe_text(location, "address", "location.", ANY_TEXT_MAX)


def _check_contacts(payload: Object, unknown: bool) -> None:
    for index, value in enumerate(_list(payload, "contacts", "", 1, CONTACTS_MAX)):
        path = f"contacts[{index}]"
        name = _object(_element(value, path), "name", f"{path}.")
        _text(name, "formatted_name", f"{path}.name.", ANY_TEXT_MAX)
        for member in ("phones", "emails", "addresses", "urls"):
            if value.get(member) is not None:
                for place, entry in enumerate(_list(value, member, f"{path}.", 0, 100)):
                    _element(entry, f"{path}.{member}[{place}]")


def _check_reaction(payload: Object, unknown: bool) -> None:
    reaction = _object(payload, "reaction", "")
    _text(reaction, "message_id", "reaction.", ID_CHARS_MAX)
    if reaction.get("emoji") is None:
        _missing("reaction.emoji")
    _maybe_text(reaction, "emoji", "reaction.", 64)  # "" takes the reaction back; a family is 11 characters


def _check_pin(payload: Object, unknown: bool) -> None:
    pin = _object(payload, "pin", "")
    _text(pin, "type", "pin.", 32)
    _text(pin, "message_id", "pin.", ID_CHARS_MAX)


def _check_template(payload: Object, unknown: bool) -> None:
    template = _object(payload, "template", "")
    _text(template, "name", "template.", 512)
    _text(_object(template, "language", "template."), "code", "template.language.", 32)
    if template.get("components") is None:
        return
    for index, value in enumerate(_list(template, "components", "template.", 0, 32)):
        path = f"template.components[{index}]"
        component = _element(value, path)
        kind = _text(component, "type", f"{path}.", 64).lower()
        if kind == "button":
            _text(component, "sub_type", f"{path}.", 64)
            if component.get("index") is None:
                _missing(f"{path}.index")
        if component.get("parameters") is not None:
            for place, parameter in enumerate(_list(component, "parameters", f"{path}.", 0, 256)):
                at = f"{path}.parameters[{place}]"
                named = _text(_element(parameter, at), "type", f"{at}.", 64).lower()
                if named == "text":
                    _text(parameter, "text", f"{at}.", 32_768, least=0)
                elif named in ("image", "video", "document"):
                    _media(parameter, named, f"{at}.")


# ---- interactive


def _check_interactive(payload: Object, unknown: bool) -> None:
    path = "interactive."
    interactive = _object(payload, "interactive", "")
    kind = _text(interactive, "type", path, 64)
    check_kind = _INTERACTIVE.get(kind)
    if check_kind is None:
        if not unknown:
            _invalid("interactive.type", f"must be one of {', '.join(_INTERACTIVE)}")
        return
    _body(interactive, path, TEXT_MAX if kind == "list" else 1_024, needed=kind not in ("product", "voice_call"))
    if interactive.get("footer") is not None:
        _text(_object(interactive, "footer", path), "text", f"{path}footer.", FOOTER_MAX)
    if interactive.get("header") is not None:
        _header(interactive, path, kind)
    elif kind == "product_list":
        _missing(f"{path}header")
    check_kind(_object(interactive, "action", path), "interactive.action.")


def _body(of: Object, path: str, most: int, *, needed: bool) -> None:
    if of.get("body") is None and not needed:
        return
    _text(_object(of, "body", path), "text", f"{path}body.", most)


def _header(of: Object, path: str, kind: str) -> None:
    header = _object(of, "header", path)
    path = f"{path}header."
    named = _text(header, "type", path, 32)
    if kind in ("list", "product_list") and named != "text":
        _invalid(f"{path}type", f'must be "text" for a {kind}')
    if named == "text":
        _text(header, "text", path, HEADER_TEXT_MAX)
    elif named in ("image", "video", "document"):
        _media(header, named, path)


def _check_buttons(action: Object, path: str) -> None:
    ids: dict[str, None] = {}
    for index, value in enumerate(_list(action, "buttons", path, 1, 3)):
        at = f"{path}buttons[{index}]"
        button = _element(value, at)
        if _text(button, "type", f"{at}.", 32) != "reply":
            _invalid(f"{at}.type", 'must be "reply"')
        reply = _object(button, "reply", f"{at}.")
        _unique(_text(reply, "id", f"{at}.reply.", 256), ids, f"{at}.reply.id")
        _text(reply, "title", f"{at}.reply.", 20)


def _unique(value: str, seen: dict[str, None], path: str) -> None:
    if value in seen:
        _invalid(path, "is there twice")
    seen[value] = None


def _check_list(action: Object, path: str) -> None:
    _text(action, "button", path, 20)
    sections = _list(action, "sections", path, 1, 10)
    rows = 0
    ids: dict[str, None] = {}
    for index, value in enumerate(sections):
        at = f"{path}sections[{index}]"
        section = _element(value, at)
        _section_title(section, at, len(sections))
        for place, entry in enumerate(_list(section, "rows", f"{at}.", 1, 10)):
            where = f"{at}.rows[{place}]"
            row = _element(entry, where)
            _unique(_text(row, "id", f"{where}.", 200), ids, f"{where}.id")
            _text(row, "title", f"{where}.", 24)
            _maybe_text(row, "description", f"{where}.", 72)
            rows += 1
    if rows > 10:
        _invalid(f"{path}sections", f"must hold at most 10 rows in total; they hold {rows}")


def _section_title(section: Object, path: str, sections: int) -> None:
    """A title is needed as soon as there is something to tell apart."""
    if sections > 1:
        _text(section, "title", f"{path}.", 24)
    else:
        _maybe_text(section, "title", f"{path}.", 24)


def _parameters(action: Object, path: str, name: str) -> tuple[Object, str]:
    _named(action, path, name)
    return _object(action, "parameters", path), f"{path}parameters."


def _named(action: Object, path: str, name: str) -> None:
    if _text(action, "name", path, 64) != name:
        _invalid(f"{path}name", f'must be "{name}"')


def _check_cta_url(action: Object, path: str) -> None:
    parameters, path = _parameters(action, path, "cta_url")
    _text(parameters, "display_text", path, 20)
    _url(parameters, "url", path)


def _check_flow(action: Object, path: str) -> None:
    parameters, path = _parameters(action, path, "flow")
    if not isinstance(parameters.get("flow_message_version"), int):
        _text(parameters, "flow_message_version", path, 16)
    if parameters.get("flow_id") is None and parameters.get("flow_name") is None:
        _missing(f"{path}flow_id")
    _text(parameters, "flow_cta", path, 30)
    if parameters.get("flow_action", "navigate") not in ("navigate", "data_exchange"):
        _invalid(f"{path}flow_action", 'must be "navigate" or "data_exchange"')
    if parameters.get("mode", "published") not in ("published", "draft"):
        _invalid(f"{path}mode", 'must be "published" or "draft"')


def _check_product(action: Object, path: str) -> None:
    _identifier(action, "catalog_id", path)
    _identifier(action, "product_retailer_id", path)


def _check_product_list(action: Object, path: str) -> None:
    _identifier(action, "catalog_id", path)
    sections = _list(action, "sections", path, 1, 10)
    products = 0
    for index, value in enumerate(sections):
        at = f"{path}sections[{index}]"
        section = _element(value, at)
        _section_title(section, at, len(sections))
        for place, entry in enumerate(_list(section, "product_items", f"{at}.", 1, 30)):
            where = f"{at}.product_items[{place}]"
            _identifier(_element(entry, where), "product_retailer_id", f"{where}.")
            products += 1
    if products > 30:
        _invalid(f"{path}sections", f"must hold at most 30 products in total; they hold {products}")


def _check_catalog(action: Object, path: str) -> None:
    _named(action, path, "catalog_message")


def _check_location_request(action: Object, path: str) -> None:
    _named(action, path, "send_location")


def _check_address(action: Object, path: str) -> None:
    parameters, path = _parameters(action, path, "address_message")
    _text(parameters, "country", path, 2, least=2)


def _check_call_permission(action: Object, path: str) -> None:
    _named(action, path, "call_permission_request")


def _check_voice_call(action: Object, path: str) -> None:
    _named(action, path, "voice_call")
    if action.get("parameters") is not None:
        _maybe_text(_object(action, "parameters", path), "display_text", f"{path}parameters.", 20)


def _check_contact_info(action: Object, path: str) -> None:
    _named(action, path, "request_contact_info")


def _check_carousel(action: Object, path: str) -> None:
    for index, value in enumerate(_list(action, "cards", path, 2, 10)):
        at = f"{path}cards[{index}]."
        card = _element(value, at[:-1])
        if card.get("header") is not None:
            _header(card, at, "carousel")
        if card.get("body") is not None:
            text = _text(_object(card, "body", at), "text", f"{at}body.", 160)
            if text.count("\n") > 2:
                _invalid(f"{at}body.text", "must hold at most 2 line breaks")
        inner = _object(card, "action", at)
        at += "action."
        if inner.get("buttons") is not None:
            for place, entry in enumerate(_list(inner, "buttons", at, 1, 3)):
                where = f"{at}buttons[{place}]"
                reply = _object(_element(entry, where), "quick_reply", f"{where}.")
                _text(reply, "id", f"{where}.quick_reply.", 20)
                _text(reply, "title", f"{where}.quick_reply.", 20)
        elif card.get("type") == "cta_url":
            _check_cta_url(inner, at)


_INTERACTIVE: dict[str, Callable[[Object, str], None]] = {
    "button": _check_buttons,
    "list": _check_list,
    "cta_url": _check_cta_url,
    "flow": _check_flow,
    "product": _check_product,
    "product_list": _check_product_list,
    "catalog_message": _check_catalog,
    "location_request_message": _check_location_request,
    "address_message": _check_address,
    "call_permission_request": _check_call_permission,
    "voice_call": _check_voice_call,
    "request_contact_info": _check_contact_info,
    "carousel": _check_carousel,
}

_TYPES: dict[str, Callable[[Object, bool], None]] = {
    "text": _check_text,
    "image": _check_image,
    "video": _check_video,
    "audio": _check_audio,
    "document": _check_document,
    "sticker": _check_sticker,
    "location": _check_location,
    "contacts": _check_contacts,
    "reaction": _check_reaction,
    "pin": _check_pin,
    "template": _check_template,
    "interactive": _check_interactive,
}
