"""Answers in Graph's shape, so that a client written for Graph understands every one of them."""

from __future__ import annotations

import base64
import random

import msgspec

from broker.listener import Answer
from schemas import graph
from schemas.graph import ContactRef, Error, ErrorData, MessageRef

_JSON = {"Content-Type": "application/json; charset=UTF-8"}

_encode = msgspec.json.Encoder().encode


def taken(contact: ContactRef, message: MessageRef) -> Answer:
    """Answer that a message is durable and will be sent."""
    body = graph.Answer(messaging_product="whatsapp", contacts=[contact], messages=[message])
    return Answer(200, _JSON, _encode(body), "accepted")


MARKED = Answer(200, _JSON, _encode(graph.Answer(success=True)), "marked")


def described(document: bytes) -> Answer:
    """Answer the OpenAPI document: the same until the next version of this program."""
    return Answer(200, {"Content-Type": "application/json", "Cache-Control": "max-age=300"}, document, "described")


def refused(
    status: int, error: Error, result: str, rng: random.Random, *, retry_after_s: int = 0, close: bool = False
) -> Answer:
    """Answer an error. `result` is its name in our metrics."""
    trace = base64.b32encode(rng.randbytes(10)).decode()
    error = msgspec.structs.replace(error, fbtrace_id=f"D{trace}")
    headers = {**_JSON, "Retry-After": str(retry_after_s)} if retry_after_s else _JSON
    return Answer(status, headers, _encode(graph.Answer(error=error)), result, close)


UNKNOWN_PATH = Error("Unknown path components", "OAuthException", 2500)
READ_ONLY = Error("Unsupported request: this path takes GET", "GraphMethodException", 100)
UNSUPPORTED_METHOD = Error("Unsupported request: this path takes POST", "GraphMethodException", 100)
INVALID_KEY = Error("Invalid OAuth access token - Cannot parse access token", "OAuthException", 190)
UNAVAILABLE = "(#131016) Service unavailable"


def not_found(phone_number_id: str) -> Error:
    """The number does not exist or the key may not send from it: Graph does not tell which either."""
    return Error(
        f"Unsupported post request. Object with ID '{phone_number_id}' does not exist, cannot be loaded due to missing "
        "permissions, or does not support this operation.",
        "GraphMethodException",
        100,
        error_subcode=33,
    )


def unavailable(details: str) -> Error:
    """Nothing is wrong with the request: repeat it."""
    return Error(UNAVAILABLE, "OAuthException", 131016, ErrorData("whatsapp", details), is_transient=True)
