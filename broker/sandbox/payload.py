"""Whether a body is a message Meta would take: who it is for, which type it is, what stands beside its content."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

from msgspec import Struct

from broker.sandbox.contents import CONTENTS
from broker.sandbox.parameters import (
    ID_MAX,
    Beyond,
    Refused,
    choice,
    flag,
    is_object,
    member,
    missing,
    only,
    required,
    text,
)
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
OPAQUE_MAX = 512
DIRECT_SEND_BODY_MAX = 1_024


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
    body = unfolded(is_object(body, "request body"))
    choice(body, "messaging_product", ("whatsapp",))
    if body.get("status") is not None:
        return _mark(body)
    kind = _type(body)
    check = CONTENTS.get(kind)
    if check is None:
        raise Refused(f'Param type must be one of {{{", ".join(CONTENTS).upper()}}} - got "{kind[:40]}".')
    if marketing and kind != "template":
        raise Refused("Message must be a template message.")
    only(body, COMMON_KEYS | {kind} | (MARKETING_KEYS if marketing else set()), "")
    group = choice(body, "recipient_type", ("individual", "group"), "individual") == "group"
    to, recipient = _addressee(body)
    text(body, "biz_opaque_callback_data", OPAQUE_MAX)
    text(body, "recipient_identity_key_hash")
    text(body, "category", 64)
    if marketing:
        choice(body, "product_policy", ("strict", "cloud_api_fallback"), "strict")
        flag(body, "message_activity_sharing")
    context_id = ""
    if body.get("context") is not None:
        context = member(body, "context")
        only(context, {"message_id"}, "context")
        context_id = required(context, "message_id", "context", ID_MAX)
        if kind == "reaction":
            raise Refused('Unexpected key "context" on a message of type reaction.')
    content = body.get(kind)
    if content is None:
        raise missing(kind)
    check(content)
    _direct_send(body, kind, content)
    return Outgoing(
        kind="message",
        type=kind,
        to=to,
        recipient=recipient,
        content={"contacts": content} if kind == "contacts" else content,
        opaque=body.get("biz_opaque_callback_data"),
        context_id=context_id,
        group=group,
    )


def unfolded(body: Json) -> Json:
    """Return a call's body with contents as values: Graph takes an object or an array also as a string of JSON."""
    found = dict(body)
    for name in ("context", "typing_indicator", *CONTENTS):
        value = body.get(name)
        if isinstance(value, str) and value[:1] in ("{", "["):
            with suppress(ValueError, RecursionError):
                found[name] = json.loads(value)
    return found


def _type(body: Json) -> str:
    kind = body.get("type")
    if kind is None:
        if body.get("text") is None:
            raise missing("type")
        return "text"
    if not isinstance(kind, str):
        raise Refused("Param type must be a string.")
    return kind.lower()


def _addressee(body: Json) -> tuple[str, str]:
    to = body.get("to")
    to = str(to) if isinstance(to, int) and not isinstance(to, bool) else text(body, "to")
    recipient = text(body, "recipient")
    if not to and not recipient:
        raise missing("to")
    if not to and not BSUID.fullmatch(recipient):
        raise Refused("Param recipient must be a business-scoped user ID", 131009)
    return to, recipient


def _direct_send(body: Json, kind: str, content: Any) -> None:
    """A category beside a free-form message makes it one that is sent, charged and bounded like a template."""
    if not body.get("category"):
        return
    if kind == "text" and len(content["body"]) > DIRECT_SEND_BODY_MAX:
        raise Beyond(f"Param text['body'] must be at most {DIRECT_SEND_BODY_MAX} characters long.")
    shown = (content.get("body") or {}).get("text", "") if kind == "interactive" else ""
    if len(shown) > DIRECT_SEND_BODY_MAX:
        raise Refused(f"Body text must be at most {DIRECT_SEND_BODY_MAX} characters long.", 131009)


def _mark(body: Json) -> Outgoing:
    only(body, {"messaging_product", "status", "message_id", "typing_indicator"}, "")
    choice(body, "status", ("read",))
    message_id = required(body, "message_id", "", ID_MAX)
    typing = body.get("typing_indicator") is not None
    if typing:
        indicator = member(body, "typing_indicator")
        only(indicator, {"type"}, "typing_indicator")
        choice(indicator, "type", ("text",))
    return Outgoing(kind="mark", type="typing" if typing else "read", message_id=message_id, typing=typing)
