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

from broker.core.endpoints import MARKETING, MESSAGES, SERVED, Endpoint
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
from broker.gateway import openapi_control
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
"""Source: Meta Cloud API, "Groups"."""


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
        "description": "Why the message is sent: it decides its lane, and what happens when its fate is in doubt. "
        "Without it a marketing template is a campaign; any other is a reply while the customer's 24-hour window with "
        "the number is open, else transactional (a one-time code keeps its own time limits in both).",
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

_OBJECTS: Final = {
    "number": ("phone_number_id", "One of the key's numbers."),
    "waba": ("waba_id", "A WhatsApp Business Account with one of the key's numbers."),
    "medium": ("id", "A medium of one of the key's numbers; for a GET also the number itself."),
}

_BLOCKED: Final[Json] = {
    "type": "object",
    "properties": {
        "messaging_product": {"const": "whatsapp"},
        "block_users": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"user": {"type": "string"}, "user_id": {"type": "string"}},
                "anyOf": [{"required": ["user"]}, {"required": ["user_id"]}],
            },
        },
    },
    "required": ["messaging_product", "block_users"],
}
_OBJECT: Final[Json] = {"application/json": {"schema": {"type": "object"}}}
_UPLOAD: Final[Json] = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {
                "file": {"type": "string", "format": "binary"},
                "type": {"type": "string", "examples": ["image/png"]},
                "messaging_product": {"const": "whatsapp"},
            },
            "required": ["file", "type", "messaging_product"],
        }
    }
}
_PASSED: Final[dict[tuple[str, str], tuple[str, Json | None]]] = {
    ("media_upload", "POST"): ("Upload a medium.", _UPLOAD),
    ("media_get", "GET"): ("Describe a medium, with a url of ours, or a number.", None),
    ("media_delete", "DELETE"): ("Delete a medium.", None),
    ("number", "GET"): ("Describe a number.", None),
    ("block_users", "GET"): ("List who is blocked.", None),
    ("block_users", "POST"): ("Block customers.", {"application/json": {"schema": _BLOCKED}}),
    ("block_users", "DELETE"): ("Unblock customers.", {"application/json": {"schema": _BLOCKED}}),
    ("calls", "POST"): ("Begin, answer or end a call.", _OBJECT),
    ("calls", "GET"): ("Ask whether a customer may be called.", None),
    ("business_profile", "GET"): ("Show the number's profile.", None),
    ("business_profile", "POST"): ("Change the number's profile.", _OBJECT),
    ("templates", "GET"): ("List templates.", None),
}
"""What is said of a call that goes on to Graph: a summary, and the content of its body."""


def _id(name: str, description: str) -> Json:
    schema = {"type": "string", "pattern": "^[0-9]{1,32}$"}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


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
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Depesche gateway",
            "version": _version(),
            "description": "What a bot sends by: the part of Meta's Graph API that Depesche takes in its place. And "
            "what operators control Depesche by, under `/control/v1`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [
            {
                "url": "/{version}",
                "variables": {"version": {"default": "v26.0", "description": "Any of Graph's."}},
            },
            {"url": "/", "description": "The same without a version."},
        ],
        "security": [{"key": []}],
        "paths": {
            **_paths(),
            PATH: _ITSELF,
            "/media/{phone_number_id}/{signed}": _DOWNLOADS,
            **openapi_control.paths(),
        },
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A key of `depesche key new`."},
                "control": openapi_control.KEY,
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
                **openapi_control.SCHEMAS,
            },
        },
    }


_ITSELF: Final[Json] = {
    "servers": [{"url": "/"}],
    "get": {
        "operationId": "openapi",
        "summary": "This document.",
        "security": [],
        "responses": {"200": _answer("This document.", {"type": "object"})},
    },
}
_DOWNLOADS: Final[Json] = {
    "servers": [{"url": "/"}],
    "parameters": [
        _id("phone_number_id", "The number the medium belongs to."),
        {"name": "signed", "in": "path", "required": True, "schema": {"type": "string"}},
    ],
    "get": {
        "operationId": "download",
        "summary": "The bytes of a medium, by the url that a webhook or its description gave.",
        "responses": {
            "200": {"description": "The medium.", "content": {"*/*": {"schema": {}}}},
            "206": {"description": "A part of it.", "content": {"*/*": {"schema": {}}}},
            "default": _answer("An error in Graph's shape.", _ref("Error")),
        },
    },
}


def _paths() -> Json:
    """Return the paths of everything that is served, from the table that decides what is."""
    paths: Json = {}
    for endpoint in SERVED:
        parameter, description = _OBJECTS[endpoint.scope if endpoint.edge else "medium"]
        path = f"/{{{parameter}}}" + (f"/{endpoint.edge}" if endpoint.edge else "")
        item = paths.setdefault(path, {"parameters": [_id(parameter, description)]})
        item.setdefault(endpoint.method.lower(), _operation(endpoint))
    return paths


def _operation(endpoint: Endpoint) -> Json:
    """Return one operation: a send, which is ours, or a call that goes on to Graph."""
    if endpoint is MESSAGES:
        either = {"anyOf": [_ref("Message"), _ref("GroupMessage"), _ref("Mark")]}
        return _send("messages", "Send a message, or mark one as read.", either, ["Taken", "Done"])
    if endpoint is MARKETING:
        return _send("marketing_messages", "Send a marketing template.", _ref("TemplateMessage"), ["Taken"])
    summary, content = _PASSED.get((endpoint.name, endpoint.method), (endpoint.name, None))
    parts = (endpoint.method.lower(), *(endpoint.edge or "node").split("_"))
    operation: Json = {
        "operationId": parts[0] + "".join(part.title() for part in parts[1:]),
        "summary": summary,
        "description": "Passed on to Graph with the number's own token, and answered as Graph answers.",
        "responses": {
            "200": _answer("Graph's answer.", {"type": ["object", "array"]}),
            "default": _answer("Graph's error, or one of ours in its shape.", _ref("Error")),
        },
    }
    return operation | ({"requestBody": {"content": content}} if content else {})


@cache
def encoded() -> bytes:
    """Return the document's bytes. It never changes while a process runs."""
    return msgspec.json.encode(document())


def _version() -> str:
    try:
        return version("depesche")
    except PackageNotFoundError:  # run from a tree that is not installed
        return "0"
