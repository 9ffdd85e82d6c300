"""The part of the OpenAPI document that is for operators: paths and schemas of `/control/v1`.

Drawn from the tables that requests are read by (`broker.core.control`).
"""

from __future__ import annotations

from typing import Any, Final

from broker.core.control import (
    EXPLAIN,
    LETTER_ID,
    LETTERS,
    LETTERS_MAX,
    NOTE_CHARS_MAX,
    OPERATIONS,
    PAUSE,
    REPLAY,
    RESUME,
    SHOW,
    SINKS,
    Operation,
    Parameter,
    Slot,
    written,
)

Json = dict[str, Any]

KEY: Final[Json] = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key of `depesche key new` whose `[[keys]]` says `control = true`.",
}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Json, description: str = "") -> Json:
    """Return an object that has all of its members, and no others."""
    whole = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return whole | ({"description": description} if description else {})


_INSTANT_OR_NULL: Final[Json] = {"type": ["string", "null"], "format": "date-time"}
_COUNT: Final[Json] = {"type": "integer", "minimum": 0}
_TEXT: Final[Json] = {"type": "string"}

_WORD: Final[Json] = {
    "name": _TEXT,
    "state": {"enum": ["running", "paused"]},
    "paused_at": _INSTANT_OR_NULL,
    "note": {"type": "string", "description": "Why it is paused, as whoever paused it said."},
}
_SINK: Final[Json] = {
    **_WORD,
    "kind": {"enum": ["meta", "standard", "kafka"]},
    "waiting": {**_COUNT, "description": "Events on its log that no commit says are delivered, up to a second old."},
    "kept": {**_COUNT, "description": "Events its log holds."},
    "to": {"type": "string", "description": "Where its events go: a URL or a topic."},
}

_INSTANT: Final[Json] = {"type": "string", "format": "date-time"}
_ID: Final[Json] = {"type": "string", "pattern": f"^{LETTER_ID}$"}
_TEXTS: Final[Json] = {"type": "array", "items": _TEXT}

_HEADLINE: Final[Json] = {
    "id": _ID,
    "at": _INSTANT,
    "stage": {"type": "string", "description": "Who set it aside; empty when the letter is of another version."},
    "reason": _TEXT,
    "attempts": _COUNT,
    "log": {"type": "string", "description": "Where the record stood; empty when it never stood on a log."},
    "partition": {"type": "integer"},
    "offset": {"type": "integer"},
    "sink": {"type": "string", "description": "The sink it was meant for, empty when for none."},
    "key": {"type": "string", "description": "Whose it is, masked."},
    "detail": _TEXT,
    "bytes": {**_COUNT, "description": "What it holds."},
    "replayed_at": _INSTANT_OR_NULL,
}
_CONDITION: Final[Json] = _object({"name": _TEXT, "wanted": _TEXT, "found": _TEXT, "holds": {"type": "boolean"}})
_ROUTE: Final[Json] = _object(
    {
        "name": _TEXT,
        "verdict": {"enum": ["taken", "not taken", "not reached"]},
        "conditions": {"type": "array", "items": _CONDITION},
    }
)
_EXPLAINED: Final[Json] = {
    "what": _TEXT,
    "number": {"type": "string", "description": "The phone_number_id, empty when it has none."},
    "received_at": _INSTANT,
    "sinks": {**_TEXTS, "description": "Who would get it."},
    "tags": _TEXTS,
    "reply": {"type": ["string", "null"], "description": "The route whose reply the broker would send."},
    "holder": _TEXT,
    "language": _TEXT,
    "debounce": {"type": "object", "description": "For each sink that joins events, how; null: it does not."},
    "routes": {"type": "array", "items": _ROUTE},
}

SCHEMAS: Final[Json] = {
    "ControlError": _object(
        {
            "error": _object(
                {
                    "code": {"type": "string", "description": "For programs: branch on it."},
                    "message": {"type": "string", "description": "What is wrong, and what would be right."},
                    "where": {"type": "string", "description": "The part of the request that is wrong, or `log`."},
                }
            )
        }
    ),
    "Sinks": _object({"sinks": {"type": "array", "items": _object(_SINK)}}),
    "SinkWord": _object(_WORD, "What holds of the sink from now on: durable, and followed within about a second."),
    "DeadLetters": _object(
        {
            "deadletters": {"type": "array", "maxItems": LETTERS_MAX, "items": _object(_HEADLINE)},
            "before": {"type": ["string", "null"], "description": "Ask with it for older ones; null: there are none."},
        }
    ),
    "DeadLetter": _object(
        {
            **_HEADLINE,
            "record": {"type": ["object", "null"], "description": "What it holds, masked; null when it is too large."},
        }
    ),
    "Replay": _object({"id": _ID, "log": _TEXT, "reason": _TEXT, "replayed": {"type": "boolean"}}),
    "Explained": _object({"explained": {"type": "array", "items": _object(_EXPLAINED)}}),
}

_NOTE: Final[Json] = {
    "type": "object",
    "properties": {"note": {"type": "string", "maxLength": NOTE_CHARS_MAX, "description": "In one line."}},
    "additionalProperties": False,
}

_ANSWERS: Final[dict[str, tuple[str, str]]] = {
    SINKS.name: ("Sinks", "Every configured sink."),
    PAUSE.name: ("SinkWord", "It is paused."),
    RESUME.name: ("SinkWord", "It runs."),
    LETTERS.name: ("DeadLetters", "A page of them."),
    SHOW.name: ("DeadLetter", "The letter."),
    REPLAY.name: ("Replay", "It is back on its log; with `dry_run` it could be."),
    EXPLAIN.name: ("Explained", "Each update of the body, and what the routes make of it."),
}
"""Schema and description of what is answered when all is well."""

_MESSAGE: Final[Json] = {
    "type": "object",
    "description": "A webhook body as Meta sends it (`entry`), one of its `messages` (`type`), or a record as "
    "`depesche tail conversations --json --reveal` prints it (`record`).",
    "anyOf": [{"required": ["entry"]}, {"required": ["type"]}, {"required": ["record"]}],
}
_BODIES: Final[dict[str, Json]] = {
    PAUSE.name: {"required": False, "content": {"application/json": {"schema": _NOTE}}},
    EXPLAIN.name: {"required": True, "content": {"application/json": {"schema": _MESSAGE}}},
}

_CONFLICT: Final = {"409": "It was put back before, or cannot be; the message says which."}
_ERRORS: Final = {
    "400": "A parameter or the body is not as it must be.",
    "401": "There is no such key.",
    "403": "It is a bot's key.",
    "404": "There is no such thing.",
    "408": "The body took too long.",
    "413": "The body is larger than `gateway.body_bytes_max`.",
    "415": "The body has a content encoding.",
    "429": "The key asks more often than it may (`keys[].requests_per_s_max`). `Retry-After` says when to come back.",
    "503": "The log is away, or too much is under way. `Retry-After` says when to ask again.",
}


def paths() -> Json:
    """Return the paths of every operation."""
    whole: Json = {}
    for operation in OPERATIONS:
        item = whole.setdefault(written(operation), {"servers": [{"url": "/"}]})
        slots = [_slot(each) for each in operation.path if isinstance(each, Slot)]
        if slots:
            item["parameters"] = slots
        item[operation.method.lower()] = _operation(operation)
    return whole


def _operation(operation: Operation) -> Json:
    ref, description = _ANSWERS[operation.name]
    whole: Json = {
        "operationId": f"control_{operation.name}",
        "tags": ["control"],
        "summary": operation.summary,
        "security": [{"control": []}],
        "responses": {
            "200": _answer(description, _ref(ref)),
            **{status: _answer(text, _ref("ControlError")) for status, text in _errors(operation)},
        },
    }
    if operation.parameters:
        whole["parameters"] = [_parameter(each) for each in operation.parameters]
    if operation.name in _BODIES:
        whole["requestBody"] = _BODIES[operation.name]
    return whole


def _errors(operation: Operation) -> list[tuple[str, str]]:
    """Return the statuses an operation may be refused with, and why."""
    return sorted((_ERRORS | (_CONFLICT if operation is REPLAY else {})).items())


def _answer(description: str, ref: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": ref}}}


def _slot(slot: Slot) -> Json:
    schema = {"type": "string", "pattern": f"^{slot.pattern}$"}
    return {"name": slot.name, "in": "path", "required": True, "description": slot.what, "schema": schema}


def _parameter(parameter: Parameter) -> Json:
    schema: Json
    match parameter.kind:
        case "text":
            schema = {"type": "string", "minLength": 1, "maxLength": parameter.most}
        case "count":
            schema = {"type": "integer", "minimum": 1, "maximum": parameter.most}
        case "flag":
            schema = {"type": "boolean"}
        case "instant":
            schema = _INSTANT
        case "letter":
            schema = _ID
    return {"name": parameter.name, "in": "query", "description": parameter.what, "schema": schema}
