"""A whole request: who is written to, what kind it is, and which of Meta's errors a wrong one becomes.

Two readers stand behind Meta's endpoint, and each has its codes. Graph reads the parameters: whatever is another kind
of JSON value, or no known word, is its 100 wherever it stands, and so is what is missing or too long among the
parameters themselves. WhatsApp reads the contents of interactive messages and of templates: what is missing there is
131008, what is too long or too much is 131009. Source: Meta, "Error codes", and answers of Meta's that were made
public ("(#100) Param text['body'] must be at most 4096 characters long.", "(#131009) Parameter value is not valid:
Invalid buttons count. Min allowed buttons: 1, Max allowed buttons: 3", "(#100) Param type must be one of ...").
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from msgspec import Raw, Struct

from broker.core.envelope import object_bytes
from broker.core.identity import normalise_wa_id
from broker.core.message.contents import CONTENTS
from broker.core.message.interactive import INTERACTIVE
from broker.core.message.limits import BSUID, DIRECT_SEND_BODY, ID, KIND, OPAQUE, WORDS
from broker.core.message.shapes import Choice, Fault, Flag, Json, Object, Run, Shape, Text, Wrong
from broker.core.message.template import TEMPLATE
from broker.core.opaque import is_send_id
from schemas.graph import Error, ErrorData

INVALID, MISSING, VALUE, HYDRATED = 100, 131008, 131009, 132005
TITLES: Final = {
    INVALID: "Invalid parameter",
    MISSING: "Required parameter is missing",
    VALUE: "Parameter value is not valid",
    HYDRATED: "Template hydrated text too long",
}

TYPES: Final[dict[str, Shape]] = {**CONTENTS, "template": TEMPLATE, "interactive": INTERACTIVE}
"""The shape of each message type, by its name, which is also the member that holds it."""

COMMON: Final = Object(
    {
        "messaging_product": Choice(("whatsapp",)),
        "recipient_type": Choice(("individual", "group")),
        "biz_opaque_callback_data": Text(OPAQUE, empty=True),
        "context": Object({"message_id": Text(ID)}, needed=("message_id",)),
        "recipient_identity_key_hash": Text(WORDS, empty=True),
        "category": Text(KIND, empty=True),
        "product_policy": Choice(("strict", "cloud_api_fallback")),
        "message_activity_sharing": Flag(),
    },
    needed=("messaging_product",),
)
"""What every message may hold beside its content and its addressee. Source: Meta Cloud API, "Messages"."""

MARK: Final = Object(
    {
        "messaging_product": Choice(("whatsapp",)),
        "status": Choice(("read",)),
        "message_id": Text(ID),
        "typing_indicator": Object({"type": Choice(("text",))}, needed=("type",)),
    },
    needed=("messaging_product", "status", "message_id"),
)
"""A read mark, with a typing indicator or without."""


UNFOLDED: Final = ("context", "typing_indicator", *TYPES)
"""Members that hold an object or a list."""


class Outgoing(Struct, frozen=True):
    """A request to send, understood.

    `kind` "mark": a read mark or typing indicator for the message `about`. `to` and `recipient` are the addresses as
    given, `wa_id` the phone in normal form; a group has `group_id` and neither. `known`: whether we know its type,
    and every kind inside it. `body`: the request with its contents as values, where a client wrote some as a string of
    JSON; empty where it wrote none.
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
    body: bytes = b""


_decode = msgspec.json.Decoder().decode


def error_of(code: int, details: str) -> Error:
    """Return Meta's error for a code of this module."""
    return Error(f"(#{code}) {TITLES[code]}", "OAuthException", code, ErrorData("whatsapp", details))


def check(body: bytes, *, unknown_types: bool, marketing: bool = False) -> Outgoing | Error:
    """Return what a body asks for, or the error Meta would answer; its details name the path of what is wrong.

    `unknown_types`: whether a type, or a kind inside a known one, that we do not know passes. `marketing`: the body
    came to the endpoint that takes templates alone.
    """
    try:
        payload = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return error_of(INVALID, "The body is not JSON.")
    if not isinstance(payload, dict):
        return error_of(INVALID, "The body is not a JSON object.")
    unfolded = {name: inner for name in UNFOLDED if (inner := _unfolded(payload.get(name))) is not None}
    raw = {name: Raw(payload[name].encode()) for name in unfolded}
    payload |= unfolded
    try:
        outgoing = _outgoing(payload, Run(unknown_types), marketing)
    except Wrong as wrong:
        return error_of(code_of(wrong), f"{wrong.where()} {wrong.what}.")
    if unfolded:
        members = msgspec.json.decode(body, type=dict[str, Raw])
        return msgspec.structs.replace(outgoing, body=object_bytes(members | raw))
    return outgoing


def _unfolded(value: Any) -> Json | list[Any] | None:
    """Return what a string of JSON holds; None for everything else. Graph takes either, and whatsapp-api-js sends
    contacts so."""
    if not isinstance(value, str) or value[:1] not in ("{", "["):
        return None
    try:
        inner = _decode(value.encode())
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return inner if isinstance(inner, dict | list) else None


def code_of(wrong: Wrong) -> int:
    """Return Meta's code for what is wrong."""
    match wrong.fault:
        case Fault.UNFIT:
            return INVALID
        case Fault.VALUE:
            return VALUE
        case Fault.HYDRATED:
            return HYDRATED
        case Fault.MISSING:
            return MISSING if _is_content(wrong.path) else INVALID
        case Fault.BEYOND:
            return VALUE if _is_content(wrong.path) else INVALID


def _is_content(path: list[str | int]) -> bool:
    """Whether WhatsApp reads it, not Graph."""
    return len(path) > 1 and (path[0] == "interactive" or path[:2] == ["template", "components"])


def _outgoing(payload: Json, run: Run, marketing: bool) -> Outgoing:
    if payload.get("status") is not None and not marketing:
        return _mark(payload, run)
    COMMON.check(payload, run)
    address = _address(payload)
    name = _type(payload)
    if marketing and name != "template":
        raise Wrong(Fault.UNFIT, 'must be "template" at this endpoint', "type")
    if name == "reaction" and payload.get("context") is not None:
        raise Wrong(Fault.UNFIT, "must not be there: a reaction is no reply", "context")
    shape = TYPES.get(name)
    if shape is not None:
        Object({name: shape}, (name,)).check(payload, run)
        _direct_send(payload, name)
    elif run.unknown_types:
        run.unknown = True
    else:
        raise Wrong(Fault.UNFIT, f"must be one of {', '.join(TYPES)}", "type")
    return Outgoing(
        "message",
        name,
        *address,
        template=payload["template"]["name"] if name == "template" else "",
        opaque=payload.get("biz_opaque_callback_data"),
        known=not run.unknown,
    )


def _type(payload: Json) -> str:
    """Return the type's name; a body that has a text and no type is a text, as at Meta."""
    name = payload.get("type")
    if name is None:
        if payload.get("text") is None:
            raise Wrong(Fault.MISSING, "is missing", "type")
        return "text"
    if not isinstance(name, str) or not 0 < len(name) <= KIND.most:
        raise Wrong(Fault.UNFIT, "must be the name of a message type", "type")
    return name.lower()


def _direct_send(payload: Json, name: str) -> None:
    """A free-form message with a category is treated as a template, and bounded like one."""
    if not payload.get("category") or name not in ("text", "interactive"):
        return
    path = ("text", "body") if name == "text" else ("interactive", "body", "text")
    text = payload[name].get("body")
    if isinstance(text, dict):
        text = text.get("text")
    if isinstance(text, str) and len(text) > DIRECT_SEND_BODY.most:
        what = f"must be at most {DIRECT_SEND_BODY.most} characters long beside a category; it has {len(text)}"
        raise Wrong(Fault.BEYOND, what, *path)


def _address(payload: Json) -> tuple[str, str, str, str]:
    """Return `to`, `recipient`, the phone in normal form, the group's id. With both given the phone wins, as at
    Meta."""
    to, recipient = payload.get("to"), payload.get("recipient")
    if isinstance(to, int) and not isinstance(to, bool):
        to = str(to)
    if to is None and recipient is None:
        raise Wrong(Fault.MISSING, "is missing", "to")
    if recipient is None:
        recipient = ""
    elif not isinstance(recipient, str):
        raise Wrong(Fault.UNFIT, "must be a string", "recipient")
    elif not _is_bsuid(recipient):
        raise Wrong(Fault.VALUE, "must be a business-scoped user id", "recipient")
    if to is None:
        return "", recipient, "", ""
    if not isinstance(to, str):
        raise Wrong(Fault.UNFIT, "must be a string", "to")
    if str(payload.get("recipient_type")).lower() == "group":
        if not 0 < len(to) <= ID.most:
            raise Wrong(Fault.VALUE, "must be the id of a group", "to")
        return to, recipient, "", to
    phone = normalise_wa_id(to)
    if not phone:
        raise Wrong(Fault.VALUE, "must be a phone number with its country code", "to")
    return to, recipient, phone, ""


def _is_bsuid(text: str) -> bool:
    """A BSUID is opaque to us; it must be tellable from a phone and fit into a key."""
    return (
        0 < len(text) <= BSUID.most
        and text.isascii()
        and text.isprintable()
        and " " not in text
        and text[0] != "#"
        and not normalise_wa_id(text)
    )


def _mark(payload: Json, run: Run) -> Outgoing:
    """A mark speaks of an inbound message, so never of a send of ours."""
    MARK.check(payload, run)
    about = payload["message_id"]
    if is_send_id(about):
        raise Wrong(Fault.VALUE, "must be the id of a message you received", "message_id")
    return Outgoing("mark", "typing" if payload.get("typing_indicator") is not None else "read", about=about)
