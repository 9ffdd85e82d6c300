"""Meta's words: error answers, successful answers, webhook values and ids, exactly as they look on the wire.

Source: Meta Cloud API, "Error codes", "Send messages", "Webhooks reference". The error table is `errors.py`'s.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from random import Random
from typing import Any, NamedTuple

from broker.sandbox.errors import ERRORS

Json = dict[str, Any]
"""A JSON object. Meta's shapes are open, so they are kept as plain mappings."""

NOT_FOUND = 33
"""Subcode of code 100 when an object is gone or its right is missing."""

GONE = "GraphMethodException"
"""Type of that error."""

ERROR_HREF = "https://developers.facebook.com/documentation/business-messaging/whatsapp/support/error-codes"


class Answer(NamedTuple):
    """An HTTP answer of Graph."""

    status: int
    headers: dict[str, str]
    body: bytes


class GraphError(NamedTuple):
    """A refusal: its code, and details where they differ from the table's. `message` replaces the whole sentence."""

    code: int
    details: str = ""
    message: str = ""
    subcode: int = 0


def trace_id(rng: Random) -> str:
    """Return an `fbtrace_id`: "A" and 22 characters."""
    return "A" + base64.urlsafe_b64encode(rng.randbytes(17)).decode().rstrip("=")[:22]


def error_body(error: GraphError, trace: str) -> Json:
    """Return the body of an error answer."""
    kind = ERRORS[error.code]
    message = error.message or (f"(#{error.code}) {kind.title}" if kind.prefixed else kind.title)
    inner: Json = {"message": message, "type": GONE if error.subcode == NOT_FOUND else kind.type, "code": error.code}
    details = error.details or kind.details
    if details:
        inner["error_data"] = {"messaging_product": "whatsapp", "details": details}
    if kind.is_transient:
        inner["is_transient"] = True
    subcode = error.subcode or kind.subcode
    if subcode:
        inner["error_subcode"] = subcode
    inner["fbtrace_id"] = trace
    return {"error": inner}


def webhook_error(code: int, details: str = "") -> Json:
    """Return an entry of `errors` as webhooks carry it. `message` equals `title`."""
    kind = ERRORS[code]
    return {
        "code": code,
        "title": kind.title,
        "message": kind.title,
        "error_data": {"details": details or kind.details},
        "href": ERROR_HREF,
    }


def encode_answer(body: Json) -> bytes:
    """Return an answer's bytes: compact JSON, ASCII, slashes escaped."""
    return encode_webhook(body)


def encode_webhook(body: Json) -> bytes:
    r"""Return a webhook's bytes as Meta sends them: compact, non-ASCII as `\uXXXX` in lower case, `/` as `\/`."""
    return json.dumps(body, ensure_ascii=True, separators=(",", ":")).replace("/", "\\/").encode("ascii")


def sign(body: bytes, app_secret: str) -> str:
    """Return the value of `X-Hub-Signature-256` for a body's raw bytes."""
    return "sha256=" + hmac.new(app_secret.encode(), body, hashlib.sha256).hexdigest()


def wamid(digits: str, outgoing: bool, now_ms: int, rng: Random) -> str:
    """Return a message id in Meta's form: base64 of bytes that hold the user's digits and an id in hex.

    Outgoing ids carry 18 hex characters, inbound ones 20 that begin "3A". They begin with the instant, so that a
    sandbox started again with the same seed never repeats one.
    """
    address = digits.encode()
    if outgoing:
        tail = b"\x11\x18\x12" + f"{now_ms & 0xFFFFFFFFFFF:011X}{rng.getrandbits(28):07X}".encode()
    else:
        tail = b"\x12\x18\x14" + f"3A{now_ms & 0xFFFFFFFFFFF:011X}{rng.getrandbits(28):07X}".encode()
    raw = b"\x1c\x18" + bytes([len(address)]) + address + b"\x15\x02\x00" + tail + b"\x00"
    return "wamid." + base64.b64encode(raw).decode()
