"""Which sinks get what a customer wrote: the ordered rules of the configuration, compiled once.

The first rule that matches wins; one that says `go_on` lets the next ones have it too. What a rule asks of the text is
answered from a tolerant view of the body, which is only opened when a rule asks. A status or a standby copy is taken
by rules that name its kind: nobody answers those by mistake.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from schemas.records import Item
from schemas.settings import Route

TEXT_CHARS_MAX = 4_096
"""Meta's limit of a text; a regex is not run over more."""

NAMED_ONLY = frozenset(("status", "standby"))
"""Kinds that a rule must name: statuses of somebody else's sends, and messages another app is to answer."""


class _Text(Struct):
    body: str = ""


class _Media(Struct):
    caption: str = ""


class _Button(Struct):
    payload: str = ""
    text: str = ""


class _Reply(Struct):
    id: str = ""
    title: str = ""


class _Interactive(Struct):
    button_reply: _Reply | None = None
    list_reply: _Reply | None = None


class _Message(Struct):
    text: _Text | None = None
    image: _Media | None = None
    video: _Media | None = None
    document: _Media | None = None
    button: _Button | None = None
    interactive: _Interactive | None = None


class _Value(Struct):
    messages: list[_Message] = []


class _Change(Struct):
    value: _Value


class _Entry(Struct):
    changes: list[_Change] = []


class _Body(Struct):
    entry: list[_Entry] = []


class View(Struct, frozen=True, gc=False):
    """What rules may ask of a message: its words (text, caption, or the title of what was tapped) and the payload of
    what was tapped. Both empty when the body is not as expected."""

    text: str = ""
    payload: str = ""


NOTHING = View()

_decode = msgspec.json.Decoder(_Body).decode


def view(body: bytes) -> View:
    """Open a message's body, as far as it is what Meta documents. Never raises."""
    try:
        return _view(_decode(body))
    except msgspec.DecodeError:
        pass
    try:  # a lone surrogate (Meta sends them) or one member of an unexpected type must not blind the rules to the rest
        return _view(msgspec.convert(_pruned(json.loads(body)), _Body))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return NOTHING


def _pruned(body: Any) -> Any:
    """Drop the members of a message that are not as documented, so that the others can still be looked at."""
    message = body["entry"][0]["changes"][0]["value"]["messages"][0]
    for name in list(message):
        try:
            msgspec.convert({name: message[name]}, _Message)
        except msgspec.ValidationError:
            del message[name]
    return body


def _view(body: _Body) -> View:
    if not (body.entry and body.entry[0].changes and body.entry[0].changes[0].value.messages):
        return NOTHING
    message = body.entry[0].changes[0].value.messages[0]
    if message.text is not None:
        return View(message.text.body[:TEXT_CHARS_MAX])
    if message.interactive is not None:
        reply = message.interactive.button_reply or message.interactive.list_reply
        return NOTHING if reply is None else View(reply.title[:TEXT_CHARS_MAX], reply.id)
    if message.button is not None:
        return View(message.button.text[:TEXT_CHARS_MAX], message.button.payload)
    media = message.image or message.video or message.document
    return NOTHING if media is None else View(media.caption[:TEXT_CHARS_MAX])


class Rule(Struct, frozen=True):
    """One rule, compiled. An empty condition holds always; `asks_view` says whether the body must be opened."""

    name: str
    sinks: tuple[str, ...]
    go_on: bool
    numbers: frozenset[str]
    types: frozenset[str]
    keywords: re.Pattern[str] | None
    regex: re.Pattern[str] | None
    payloads: frozenset[str]
    payload_prefixes: tuple[str, ...]
    first_message: bool | None
    asks_view: bool


class Routed(Struct, frozen=True, gc=False):
    """Where an item goes: the rules that took it, and each of their sinks once, in order."""

    rules: tuple[str, ...]
    sinks: tuple[str, ...]


NOWHERE = Routed((), ())


def compile_routes(routes: Sequence[Route]) -> tuple[Rule, ...]:
    """Compile the configured routes in their order. Raises `ValueError` that names the route: a pattern that is none, a
    keyword without a word in it, a rule without a sink, a name used twice."""
    rules: list[Rule] = []
    names: set[str] = set()
    for route in routes:
        if route.name in names:
            raise ValueError(f"route {route.name!r}: the name is used twice")
        names.add(route.name)
        rules.append(_compiled(route))
    return tuple(rules)


def _compiled(route: Route) -> Rule:
    when = route.when
    if not route.then.sinks:
        raise ValueError(f"route {route.name!r}: it names no sink")
    keywords = [keyword.strip().casefold() for keyword in when.keywords]
    if not all(keywords):
        raise ValueError(f"route {route.name!r}: an empty keyword would match everything")
    regex = None
    if when.regex:
        try:
            regex = re.compile(when.regex, re.IGNORECASE)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"route {route.name!r}: regex {when.regex!r} cannot be read: {error}") from None
    if not all(when.payloads):
        raise ValueError(f"route {route.name!r}: an empty payload would match what was not tapped")
    words = None
    if keywords:
        alternatives = "|".join(re.escape(keyword) for keyword in sorted(keywords, key=len, reverse=True))
        words = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)")
    return Rule(
        name=route.name,
        sinks=tuple(dict.fromkeys(route.then.sinks)),
        go_on=route.go_on,
        numbers=frozenset(when.numbers),
        types=frozenset(when.types),
        keywords=words,
        regex=regex,
        payloads=frozenset(payload for payload in when.payloads if not payload.endswith("*")),
        payload_prefixes=tuple(payload[:-1] for payload in when.payloads if payload.endswith("*")),
        first_message=when.first_message,
        asks_view=bool(keywords or regex or when.payloads),
    )


def route(rules: tuple[Rule, ...], item: Item, *, first: bool) -> Routed:
    """Say where an item goes. `first`: it is the first message of this customer to this number that we know of."""
    seen: View | None = None
    taken: Routed = NOWHERE
    for rule in rules:
        if not _allows(rule, item, first):
            continue
        if rule.asks_view:
            if seen is None:
                seen = view(item.body) if item.kind == "message" or item.kind == "standby" else NOTHING
            if not _speaks_of(rule, seen):
                continue
        if taken is NOWHERE:
            taken = Routed((rule.name,), rule.sinks)
        else:
            taken = Routed((*taken.rules, rule.name), tuple(dict.fromkeys((*taken.sinks, *rule.sinks))))
        if not rule.go_on:
            break
    return taken


def _allows(rule: Rule, item: Item, first: bool) -> bool:
    """Whether all holds that can be said without opening the body. `types` names a message's type or an item's kind."""
    kind = item.kind
    if rule.types:
        if kind not in rule.types and (kind != "message" or item.message_type not in rule.types):
            return False
    elif kind in NAMED_ONLY:
        return False
    if rule.numbers and item.phone_number_id not in rule.numbers:
        return False
    return rule.first_message is None or (kind == "message" and rule.first_message == first)


def _speaks_of(rule: Rule, seen: View) -> bool:
    """Whether all holds that is asked of the words and the payload."""
    if rule.keywords is not None and rule.keywords.search(seen.text.casefold()) is None:
        return False
    if rule.regex is not None and rule.regex.search(seen.text) is None:
        return False
    if rule.payloads or rule.payload_prefixes:
        return bool(seen.payload) and (seen.payload in rule.payloads or seen.payload.startswith(rule.payload_prefixes))
    return True
