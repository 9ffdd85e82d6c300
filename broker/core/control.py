"""What an operator may ask for over HTTP: paths, methods and parameters as tables, and how a request is read by them.

All of it stands under a prefix that can be nothing of Graph's, whose versions are `v` and a number and whose ids are
digits. What is not in a table is refused, with what would be right: a parameter that was mistyped and passed over would
answer another question than was asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote

from msgspec import Struct

ROOT: Final = "/control"
PREFIX: Final = "/control/v1"

Value = str | int | bool


class Slot(Struct, frozen=True):
    """A part of a path that says which one is meant."""

    name: str
    what: str
    pattern: str


class Parameter(Struct, frozen=True):
    """A parameter of a query: text of at most `most` characters, a whole number from 1 to `most`, true or false, an
    instant (Unix ms once it is read), or the id of a dead letter."""

    name: str
    what: str
    kind: Literal["text", "count", "flag", "instant", "letter"]
    most: int = 0


class Operation(Struct, frozen=True):
    """One thing an operator may do. `name`: in the document and the log; `path`: behind the prefix, a `Slot` where the
    caller says which; `is_change`: whether it is worth a line in the log."""

    name: str
    method: str
    path: tuple[str | Slot, ...]
    summary: str
    parameters: tuple[Parameter, ...] = ()
    is_change: bool = False


class Asked(NamedTuple):
    """A request that names an operation: the slots of its path and the parameters of its query, by name."""

    operation: Operation
    slots: Mapping[str, str]
    query: Mapping[str, Value]


class Wrong(NamedTuple):
    """Why a request is refused. `code` is for programs, `message` for people, `where` the part of the request that is
    wrong; `allow`: by which methods the path can be called."""

    status: int
    code: str
    message: str
    where: str
    allow: tuple[str, ...] = ()


SINK: Final = Slot("name", "The name of a configured sink.", r"[a-z0-9][a-z0-9_-]{0,31}")

NOTE_CHARS_MAX: Final = 200

SINKS: Final = Operation("sinks", "GET", ("sinks",), "List sinks: whether each is paused, how many events wait for it.")
PAUSE: Final = Operation(
    "pause", "PUT", ("sinks", SINK, "pause"), "Hold a sink's events back on their log until it is resumed.", (), True
)
RESUME: Final = Operation(
    "resume", "PUT", ("sinks", SINK, "resume"), "Let a sink's events go again, oldest first.", (), True
)

LETTER_ID: Final = r"[0-9]{1,3}-[0-9]{1,15}"
LETTER: Final = Slot("id", "A dead letter, as the list names it.", LETTER_ID)

LETTERS_MAX: Final = 200

LETTERS: Final = Operation(
    "deadletters",
    "GET",
    ("deadletters",),
    "List dead letters, newest first, without what they hold.",
    (
        Parameter("log", "Those that stood on this log, e.g. `deliveries.assistant`.", "text", 60),
        Parameter("reason", "Those set aside for this reason, e.g. `gave_up`.", "text", 60),
        Parameter("limit", "At most so many; 50 unless said.", "count", LETTERS_MAX),
        Parameter("before", "Those alone that are older than this one: the `before` of the page before.", "letter"),
    ),
)
SHOW: Final = Operation(
    "deadletter", "GET", ("deadletters", LETTER), "Show a dead letter with what it holds, customers masked."
)
REPLAY: Final = Operation(
    "replay",
    "POST",
    ("deadletters", LETTER, "replay"),
    "Put the record a dead letter holds back onto its log, and mark the letter.",
    (
        Parameter("again", "Also when it was put back before.", "flag"),
        Parameter("dry_run", "Say whether it could be, and do nothing.", "flag"),
    ),
    True,
)
EXPLAIN: Final = Operation(
    "explain",
    "POST",
    ("route", "explain"),
    "Say which routes take a message, why the others do not, and what follows. Nothing is delivered.",
    (
        Parameter("number", "For a message alone: the phone_number_id it is written to.", "text", 32),
        Parameter("at", "When it comes in; now unless said.", "instant"),
        Parameter("first", "It is the customer's first message to that number.", "flag"),
        Parameter("holder", "Who holds the conversation; `bot` unless said.", "text", 32),
        Parameter("language", "The customer's language, where one is known.", "text", 32),
    ),
)

OPERATIONS: Final = (SINKS, PAUSE, RESUME, LETTERS, SHOW, REPLAY, EXPLAIN)

INSTANTS: Final = range(946_684_800_000, 4_102_444_800_000)
"""From 2000 to 2100, in Unix ms."""

_PARAMETERS_MAX: Final = 32


def is_control(path: str) -> bool:
    """Whether a path, without its query, is ours and not Graph's."""
    return path == ROOT or path.startswith(ROOT + "/")


def read(method: str, raw: str) -> Asked | Wrong:
    """Return what a request's target, as it came, asks for."""
    path, _, query = raw.partition("?")
    segments = path.removeprefix(PREFIX + "/").split("/") if path.startswith(PREFIX + "/") else []
    found = [
        (each, slots) for each in OPERATIONS if (slots := _slots(each, [unquote(one) for one in segments])) is not None
    ]
    if not found:
        there = ", ".join(dict.fromkeys(written(each) for each in OPERATIONS))
        return Wrong(404, "not_found", f"there is no such path; there are {there}", "path")
    for operation, slots in found:
        if operation.method == method:
            read_query = _query(query, operation)
            return read_query if isinstance(read_query, Wrong) else Asked(operation, slots, read_query)
    allow = tuple(each.method for each, _ in found)
    return Wrong(405, "method_not_allowed", f"this path takes {' or '.join(allow)}, not {method[:20]}", "method", allow)


def written(operation: Operation) -> str:
    """Return an operation's path as a document writes it."""
    return "/".join((PREFIX, *(f"{{{each.name}}}" if isinstance(each, Slot) else each for each in operation.path)))


def _slots(operation: Operation, segments: list[str]) -> dict[str, str] | None:
    """Return what stands in the slots of a path, None when it is another path."""
    if len(segments) != len(operation.path):
        return None
    found: dict[str, str] = {}
    for wanted, segment in zip(operation.path, segments, strict=True):
        if isinstance(wanted, Slot):
            found[wanted.name] = segment
        elif wanted != segment:
            return None
    return found


def _query(query: str, operation: Operation) -> dict[str, Value] | Wrong:
    """Return the parameters of a query, checked."""
    known = {each.name: each for each in operation.parameters}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_PARAMETERS_MAX)
    except ValueError:
        return Wrong(400, "invalid", f"there are more than {_PARAMETERS_MAX} parameters", "query")
    values: dict[str, Value] = {}
    for name, text in pairs:
        parameter = known.get(name)
        if parameter is None:
            there = ", ".join(known) or "none"
            return Wrong(400, "invalid", f"there is no parameter {_shown(name)}; there are {there}", "query")
        where = f"query.{name}"
        if name in values:
            return Wrong(400, "invalid", "stands there twice", where)
        value = _value(parameter, text)
        if value is None:
            return Wrong(400, "invalid", f"{_shown(text)}: must be {right(parameter)}", where)
        values[name] = value
    return values


def _value(parameter: Parameter, text: str) -> Value | None:
    """Return a parameter's value, None when it is not as it must be."""
    match parameter.kind:
        case "text":
            return text if 0 < len(text) <= parameter.most and text.isprintable() else None
        case "count":
            fits = re.fullmatch(r"[0-9]{1,9}", text) is not None and 1 <= int(text) <= parameter.most
            return int(text) if fits else None
        case "flag":
            return {"true": True, "false": False}.get(text)
        case "instant":
            return _instant(text)
        case "letter":
            return text if re.fullmatch(LETTER_ID, text) else None


def _instant(text: str) -> int | None:
    """Return an instant as Unix ms, None when it is none, has no zone, or is of a time nobody means."""
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is None:
            return None
        ms = round(at.timestamp() * 1_000)
    except (ValueError, OverflowError):
        return None
    return ms if ms in INSTANTS else None


def right(parameter: Parameter) -> str:
    """Say what a parameter's value must be."""
    match parameter.kind:
        case "text":
            return f"1 to {parameter.most} printable characters"
        case "count":
            return f"a whole number from 1 to {parameter.most}"
        case "flag":
            return "true or false"
        case "instant":
            return "an instant with its zone, like 2026-03-01T12:00:00Z"
        case "letter":
            return "the id of a dead letter, like 0-17"


def _shown(text: str) -> str:
    """Return what came from outside, short, in one line."""
    return repr(text if len(text) <= 60 else text[:59] + "…")
