"""Meta's words: error answers, successful answers, webhook values and ids, exactly as they look on the wire.

Source: Meta Cloud API, "Error codes", "Send messages", "Webhooks reference"; HTTP statuses as listed in December 2025.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from random import Random
from typing import Any, NamedTuple

Json = dict[str, Any]
"""A JSON object. Meta's shapes are open, so they are kept as plain mappings."""

ERROR_HREF = "https://developers.facebook.com/documentation/business-messaging/whatsapp/support/error-codes"


class ErrorKind(NamedTuple):
    """One row of Meta's error table. `is_transient` is said only where Meta says it."""

    status: int
    title: str
    details: str = ""
    subcode: int = 0
    is_transient: bool = False
    type: str = "OAuthException"
    prefixed: bool = True
    """Whether the message begins "(#code)": Graph's own generic errors lack it."""


ERRORS: dict[int, ErrorKind] = {
    0: ErrorKind(401, "AuthException", "We were unable to authenticate the app user."),
    1: ErrorKind(400, "An unknown error has occurred.", prefixed=False),
    2: ErrorKind(
        503,
        "An unexpected error has occurred. Please retry your request later.",
        is_transient=True,
        prefixed=False,
    ),
    4: ErrorKind(400, "Application request limit reached", is_transient=True),
    10: ErrorKind(403, "Application does not have permission for this action"),
    33: ErrorKind(400, "Unsupported post request.", subcode=33, type="GraphMethodException", prefixed=False),
    100: ErrorKind(400, "Invalid parameter"),
    104: ErrorKind(401, "An access token is required to request this resource.", prefixed=False),
    190: ErrorKind(401, "Invalid OAuth access token - Cannot parse access token", prefixed=False),
    2500: ErrorKind(400, "Unknown path components", prefixed=False),
    80007: ErrorKind(400, "Rate limit issues", "The WhatsApp Business Account has reached its rate limit."),
    130429: ErrorKind(400, "Rate limit hit", "Cloud API message throughput has been reached."),
    131000: ErrorKind(500, "Something went wrong", "Message failed to send due to an unknown error."),
    131008: ErrorKind(400, "Required parameter is missing"),
    131009: ErrorKind(400, "Parameter value is not valid", "Please check the parameters you have provided."),
    131016: ErrorKind(500, "Service unavailable", "A service is temporarily unavailable."),
    131021: ErrorKind(400, "Recipient cannot be sender", "Sender and recipient phone number is the same."),
    131026: ErrorKind(400, "Message undeliverable", "Message undeliverable."),
    131030: ErrorKind(
        400,
        "Recipient phone number not in allowed list",
        "Recipient phone number not in allowed list: Add recipient phone number to recipient list and try again.",
    ),
    131031: ErrorKind(403, "Account has been locked", "Business Account has been locked."),
    131041: ErrorKind(400, "Group not found", "The group is unknown or this number is not in it."),
    131047: ErrorKind(
        400,
        "Re-engagement message",
        "Message failed to send because more than 24 hours have passed since the customer last replied to this number.",
    ),
    131048: ErrorKind(
        400,
        "Spam rate limit hit",
        "Message failed to send because there are restrictions on how many messages can be sent from this phone "
        "number.",
    ),
    131050: ErrorKind(
        400,
        "User has stopped marketing messages",
        "Unable to deliver the message. This recipient has chosen to stop receiving marketing messages on WhatsApp "
        "from your business.",
    ),
    131051: ErrorKind(400, "Unsupported message type", "Message type is currently not supported."),
    131053: ErrorKind(400, "Media upload error", "The media could not be found or fetched."),
    131056: ErrorKind(
        400,
        "(Business Account, Consumer Account) pair rate limit hit",
        "Message failed to send because there were too many messages sent from this phone number to the same phone "
        "number in a short period of time.",
    ),
    131057: ErrorKind(500, "Account in maintenance mode", "Business Account is in maintenance mode"),
    131062: ErrorKind(
        400,
        "Business-scoped User ID (BSUID) recipients are not supported for this message.",
        "This message type requires the recipient's phone number.",
    ),
    132000: ErrorKind(400, "Number of parameters does not match the expected number of params"),
    132001: ErrorKind(404, "Template name does not exist in the translation"),
    132005: ErrorKind(400, "Template hydrated text too long", "The translated text is too long."),
    132015: ErrorKind(
        400,
        "Template is paused",
        "Template is paused due to low quality so it cannot be sent in a template message.",
    ),
    133010: ErrorKind(400, "Account not registered", "Phone number not registered on the WhatsApp Business Platform."),
    134100: ErrorKind(400, "Only marketing messages supported", "Only marketing templates go by this endpoint."),
}


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
    shown_code = 100 if error.code == 33 else error.code
    message = error.message or (f"(#{shown_code}) {kind.title}" if kind.prefixed else kind.title)
    inner: Json = {"message": message, "type": kind.type, "code": shown_code}
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
