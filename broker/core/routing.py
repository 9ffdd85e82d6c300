"""Which sinks get what a customer wrote: the ordered rules of the configuration, compiled once.

The first rule that matches wins; one that says `go_on` lets the next ones have it too. What a rule asks of the text is
answered from a tolerant view of the body, which is only opened when a rule asks. A status or a standby copy is taken
by rules that name its kind: nobody answers those by mistake.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from broker.core.view import NOTHING, View, view
from schemas.records import Item
from schemas.settings import Route

NAMED_ONLY = frozenset(("status", "standby"))
"""Kinds that a rule must name: statuses of somebody else's sends, and messages another app is to answer."""


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
