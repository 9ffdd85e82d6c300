"""The OpenAPI document of the gateway: what it takes and answers, drawn from the same tables the gateway checks with.

Served at `/openapi.json` to whoever asks: it holds nothing of this installation. Its schemas are the documented part of
what is taken. Left to words are the rules between members (a list's rows over all its sections), and what passes
beyond the documents: unknown members and kinds, null where nothing might stand, names of types in another case.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, get_args

import msgspec

from broker.core.message.limits import ID, URL
from broker.core.message.request import COMMON, MARK, TYPES
from broker.core.message.shapes import (
    Choice,
    Flag,
    Identifier,
    ListOf,
    Number,
    Object,
    Shape,
    Text,
    Url,
    Variants,
)
from broker.gateway.messages import CLASS, EPOCH, IDEMPOTENCY_CHARS_MAX, IDEMPOTENCY_KEY, NOT_AFTER
from schemas.records import SendClass

PATH: Final = "/openapi.json"

Json = dict[str, Any]

UNKNOWN: Final = (
    "Unknown members pass. Unknown kinds pass, too, unless the operator set `gateway.unknown_types` to false."
)


def schema(shape: Shape) -> Json:
    """Return a shape as JSON Schema."""
    match shape:
        case Text(limit, empty):
            return {"type": "string", "minLength": 0 if empty else limit.least, "maxLength": limit.most}
        case Url(empty):
            pattern = "^([hH][tT][tT][pP][sS]?://|$)" if empty else "^[hH][tT][tT][pP][sS]?://"
            return {"type": "string", "pattern": pattern, "maxLength": URL.most}
        case Identifier(empty):
            text = {"type": "string", "minLength": 0 if empty else 1, "maxLength": ID.most}
            return {"anyOf": [text, {"type": "integer"}]}
        case Flag():
            return {"type": "boolean"}
        case Number(least, most, is_whole):
            number = {"type": "integer" if is_whole else "number", "minimum": least, "maximum": most}
            digits = "[0-9]" if is_whole else r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
            return {"anyOf": [number, {"type": "string", "pattern": f"^{digits}$"}]}
        case Choice(words):
            return {"type": "string", "enum": list(words)}
        case ListOf(element, limit):
            return {
                "type": "array",
                "minItems": limit.least,
                "maxItems": limit.most,
                "items": schema(element),
            }
        case Object(members, needed, one_of):
            whole: Json = {"type": "object", "properties": {name: schema(member) for name, member in members.items()}}
            if needed:
                whole["required"] = list(needed)
            if one_of:
                whole["anyOf"] = [{"required": [name]} for name in one_of]
            return whole
        case Variants(tag, of):
            return {
                "type": "object",
                "required": [tag],
                "properties": {tag: {"type": "string", "minLength": 1, "examples": list(of)}},
                "oneOf": [_variant(tag, kind, variant) for kind, variant in of.items()],
                "description": UNKNOWN,
            }
    return {}


def _variant(tag: str, kind: str, shape: Shape) -> Json:
    """Return the schema of one of several kinds, told by its tag."""
    whole = schema(shape)
    properties = {tag: {"const": kind}, **whole.get("properties", {})}
    properties[tag] = {"const": kind}
    required = [tag, *(name for name in whole.get("required", ()) if name != tag)]
    return {**whole, "title": kind, "properties": properties, "required": required}


_PHONE: Final[Json] = {
    "anyOf": [
        {"type": "string", "pattern": "^\\+?[1-9]([ ()-]?[0-9]){6,14}$"},
        {"type": "integer", "minimum": 1_000_000, "maximum": 999_999_999_999_999},
    ],
    "description": "A phone number with its country code, as people write it.",
    "examples": ["+49 1555 0001234"],
}
_USER: Final[Json] = {
    "type": "string",
    "pattern": "^[A-Z]{2}\\.(ENT\\.)?[A-Za-z0-9]{1,128}$",
    "description": "A business-scoped user id. With `to` beside it, `to` wins.",
    "examples": ["DE.13491208655302741918"],
}
_GROUP_TYPES: Final = ("text", "image", "video", "audio", "document", "sticker", "template", "pin")
"""Source: meta-cloud-api.md 2.8."""


def _message(name: str) -> Json:
    """Return the schema of a message of one type to a person."""
    common = schema(COMMON)
    return {
        "type": "object",
        "properties": {
            **common["properties"],
            "recipient_type": {"type": "string", "enum": ["individual"]},
            "to": _PHONE,
            "recipient": _USER,
            "type": {"type": "string", "enum": [name]},
            name: _ref(f"{name.title()}Content"),
        },
        "required": [*common["required"], "type", name],
        "anyOf": [{"required": ["to"]}, {"required": ["recipient"]}],
    }


def _group_message(name: str) -> Json:
    """Return the schema of a message of one type to a group."""
    one = _message(name)
    to = {"type": "string", "minLength": 1, "maxLength": ID.most, "description": "The id of a group."}
    own = {"recipient_type": {"type": "string", "enum": ["group"]}, "to": to}
    members = {member: value for member, value in one["properties"].items() if member != "recipient"}
    return {
        "type": "object",
        "title": name,
        "properties": {**members, **own},
        "required": [*one["required"], "recipient_type", "to"],
    }


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_SUCCESS: Final[Json] = {
    "type": "object",
    "properties": {"success": {"const": True}},
    "required": ["success"],
    "description": "A read mark was taken.",
}
_TAKEN: Final[Json] = {
    "type": "object",
    "description": "The message is durable and will be sent.",
    "properties": {
        "messaging_product": {"const": "whatsapp"},
        "contacts": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "input": {"type": "string", "description": "The addressee as given."},
                    "wa_id": {"type": "string"},
                    "user_id": {"type": "string"},
                },
                "required": ["input"],
            },
        },
        "messages": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "id": {
                        "type": "string",
                        "description": "The id statuses will carry; accepted wherever one of Meta's would be.",
                    },
                    "message_status": {"type": "string"},
                    "group_id": {"type": "string"},
                },
                "required": ["id"],
            },
        },
    },
    "required": ["messaging_product", "contacts", "messages"],
}
_ERROR: Final[Json] = {
    "type": "object",
    "description": "An error in Graph's shape: branch on `code`.",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": "integer"},
                "error_subcode": {"type": "integer"},
                "is_transient": {"type": "boolean"},
                "error_data": {
                    "type": "object",
                    "properties": {
                        "messaging_product": {"const": "whatsapp"},
                        "details": {"type": "string", "description": "The path of what is wrong, and why."},
                    },
                    "required": ["details"],
                },
                "fbtrace_id": {"type": "string"},
            },
            "required": ["message", "type", "code", "fbtrace_id"],
        }
    },
    "required": ["error"],
}

_ERRORS: Final = {
    "400": "Meta would refuse it, or there is no such number for this key.",
    "401": "There is no such key.",
    "404": "There is no such path.",
    "408": "The body took too long.",
    "413": "The body is larger than `gateway.body_bytes_max`.",
    "415": "The body has a content encoding.",
    "422": f"The same {IDEMPOTENCY_KEY} was used for another request.",
    "429": "The key asks more often than it may (`keys[].requests_per_s_max`). `Retry-After` says when to come back.",
    "503": "It could not be made durable, or it is not known whether it was. `Retry-After` says when to repeat it.",
}

_HEADERS: Final[tuple[Json, ...]] = (
    {
        "name": IDEMPOTENCY_KEY,
        "in": "header",
        "description": "Requests of a key with the same value are one send.",
        "schema": {"type": "string", "pattern": f"^[!-~]{{1,{IDEMPOTENCY_CHARS_MAX}}}$"},
    },
    {
        "name": CLASS,
        "in": "header",
        "description": "Why the message is sent: it decides its lane, and what happens when its fate is in doubt.",
        "schema": {"type": "string", "enum": list(get_args(SendClass))},
    },
    {
        "name": NOT_AFTER,
        "in": "header",
        "description": "When it is of no use any more: Unix ms, up to 30 days ahead.",
        "schema": {"type": "integer", "minimum": 0},
    },
    {
        "name": EPOCH,
        "in": "header",
        "description": "The epoch of the conversation as you were told it: of a stale one the send is refused.",
        "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999_999_999},
    },
)

_NUMBER: Final[Json] = {
    "name": "phone_number_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9]{1,32}$"},
}
_VERSION: Final[Json] = {
    "name": "version",
    "in": "path",
    "required": True,
    "description": "Any version of Graph's: the answers are the same.",
    "schema": {"type": "string", "pattern": "^v[0-9]{1,3}(\\.[0-9]{1,3})?$"},
    "example": "v26.0",
}


def _answer(description: str, ref: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": ref}}}


def _send(operation: str, summary: str, request: Json, taken: list[str]) -> Json:
    """Return the operation of an endpoint that takes messages."""
    return {
        "operationId": operation,
        "summary": summary,
        "parameters": list(_HEADERS),
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {
            "200": _answer("Taken.", {"anyOf": [_ref(name) for name in taken]}),
            **{status: _answer(text, _ref("Error")) for status, text in _ERRORS.items()},
        },
    }


def document() -> Json:
    """Return the document as plain values."""
    either = {"anyOf": [_ref("Message"), _ref("GroupMessage"), _ref("Mark")]}
    send = _send("send", "Send a message, or mark one as read.", either, ["Taken", "Done"])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Depesche gateway",
            "version": _version(),
            "description": "What a bot sends by: the part of Meta's Graph API that Depesche takes in its place.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": {
            "/{version}/{phone_number_id}/messages": {"parameters": [_VERSION, _NUMBER], "post": send},
            "/{phone_number_id}/messages": {
                "parameters": [_NUMBER],
                "post": {**send, "operationId": "sendWithoutVersion"},
            },
            PATH: {
                "get": {
                    "operationId": "openapi",
                    "summary": "This document.",
                    "security": [],
                    "responses": {"200": _answer("This document.", {"type": "object"})},
                }
            },
        },
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A key of `depesche key new`."}
            },
            "schemas": {
                "Message": {
                    "anyOf": [_ref(f"{name.title()}Message") for name in TYPES],
                    "description": UNKNOWN,
                },
                "GroupMessage": {"anyOf": [_group_message(name) for name in _GROUP_TYPES]},
                "Mark": schema(MARK),
                **{f"{name.title()}Message": _message(name) for name in TYPES},
                **{f"{name.title()}Content": schema(shape) for name, shape in TYPES.items()},
                "Taken": _TAKEN,
                "Done": _SUCCESS,
                "Error": _ERROR,
            },
        },
    }


@cache
def encoded() -> bytes:
    """Return the document's bytes. It never changes while a process runs."""
    return msgspec.json.encode(document())


def _version() -> str:
    try:
        return version("depesche")
    except PackageNotFoundError:  # run from a tree that is not installed
        return "0"
