"""Answers in Graph's shape, so that a client written for Graph understands every one of them."""

from __future__ import annotations

import base64
import random
from collections.abc import Sequence

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
ONLY_MARKETING = Error(
    "(#134100) Only marketing messages supported",
    "OAuthException",
    134100,
    ErrorData("whatsapp", "Only marketing templates go by this endpoint."),
)
INVALID_KEY = Error("Invalid OAuth access token - Cannot parse access token", "OAuthException", 190)
UNAVAILABLE = "(#131016) Service unavailable"


def unsupported_method(methods: Sequence[str]) -> Error:
    """The path is there, for other methods."""
    return Error(f"Unsupported request: this path takes {' or '.join(methods)}", "GraphMethodException", 100)


def forbidden(what: str, reason: str) -> Error:
    """It is not passed on to Graph; `reason` is for a person."""
    return Error(
        "(#10) Application does not have permission for this action",
        "OAuthException",
        10,
        ErrorData("whatsapp", f"{what} is refused: {reason}."),
    )


def limited(edge: str, per_s: float) -> Error:
    """The key asks more often than it may: the throughput's code where something is sent, else the app's."""
    code, title = (130429, "Rate limit hit") if edge == "messages" else (4, "Application request limit reached")
    details = f"This key may make {per_s:g} requests a second (keys[].requests_per_s_max). Nothing was taken."
    return Error(f"(#{code}) {title}", "OAuthException", code, ErrorData("whatsapp", details), is_transient=True)


def not_found(node: str, method: str = "post") -> Error:
    """The object does not exist or the key may not touch it: Graph does not tell which either."""
    return Error(
        f"Unsupported {method.lower()} request. Object with ID '{node}' does not exist, cannot be loaded due to "
        "missing permissions, or does not support this operation.",
        "GraphMethodException",
        100,
        error_subcode=33,
    )


def unavailable(details: str) -> Error:
    """Nothing is wrong with the request: repeat it."""
    return Error(UNAVAILABLE, "OAuthException", 131016, ErrorData("whatsapp", details), is_transient=True)


def transient(details: str) -> Error:
    """Something failed on the way to Meta or back: Graph's own word for it, which clients repeat with care."""
    return Error(
        "An unexpected error has occurred. Please retry your request later.",
        "OAuthException",
        2,
        ErrorData("whatsapp", details),
        is_transient=True,
    )
