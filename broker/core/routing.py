"""Which sinks get what a customer wrote, and what else follows: the ordered rules of the configuration, compiled once.

The first rule that matches wins; one that says `continue` lets the next ones have it too. Then each of their sinks gets
it once, their tags add up, and of reply, holder and language, and of each sink's debounce, the first that is named is
in force. A status or a standby copy is taken by rules that name its kind: nobody answers those by mistake.

A rule is its conditions; `route` asks them, and `explain` tells what they found. An item is judged as of the instant we
received it, so that a step that is decided again decides the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from broker.core.autoreply import AutoReply, compile_reply
from broker.core.hours import Hours
from broker.core.identity import normalise_wa_id
from broker.core.patterns import compile_pattern, found
from broker.core.view import NOTHING, View, view
from schemas.records import Item, RouteDebounce
from schemas.settings import Route, Then, When

NAMED_ONLY = frozenset(("status", "standby"))
"""Kinds that a rule must name: statuses of somebody else's sends, and messages another app is to answer."""

BOT = "bot"
"""Who holds a conversation that was never handed over."""

UNKNOWN_LANGUAGE = "und"
"""BCP 47's word for a language nobody said."""

ROUTES_MAX = 1_000
"""Each may be asked about each message; a thousand conditions take a millisecond or two."""
VALUES_MAX = 10_000
"""Of one list of a rule: customers, mostly."""
KEYWORDS_MAX = 1_000
KEYWORD_CHARS_MAX = 100

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z0-9]{2,8}){0,3}")


class Case:
    """What rules are asked about: an item, and what is known of its customer when it comes. `first`: it is the
    customer's first message to this number that we know of. `language`: "" when nobody said one."""

    __slots__ = ("_seen", "first", "holder", "item", "language")

    def __init__(self, item: Item, *, first: bool, holder: str = BOT, language: str = "") -> None:
        self.item = item
        self.first = first
        self.holder = holder
        self.language = language
        self._seen: View | None = None

    @property
    def seen(self) -> View:
        """The words and payload of the message; the body is opened when a rule first asks."""
        if self._seen is None:
            self._seen = view(self.item.body) if self.item.kind in ("message", "standby") else NOTHING
        return self._seen


class Condition(NamedTuple):
    """One thing a rule asks. `name` is the setting's, `wanted` what it says, `found` tells what there is instead."""

    name: str
    wanted: str
    holds: Callable[[Case], bool]
    found: Callable[[Case], str]


class Rule(Struct, frozen=True):
    """One rule, compiled: it takes what all its conditions hold for. `holder` and `language` are "" when not named."""

    name: str
    conditions: tuple[Condition, ...]
    holds: tuple[Callable[[Case], bool], ...]
    """Of each condition."""
    go_on: bool
    sinks: tuple[str, ...]
    tags: tuple[str, ...]
    holder: str
    language: str
    reply: AutoReply | None
    debounces: tuple[tuple[str, RouteDebounce], ...]
    """What it says of joining events, for each of its sinks; empty when it says nothing."""

    def takes(self, case: Case) -> bool:
        """Whether every condition holds."""
        for holds in self.holds:  # noqa: SIM110 - for every message and rule: `all` of a generator costs twice the loop
            if not holds(case):
                return False
        return True


class Routed(Struct, frozen=True, gc=False):
    """What follows: the rules that took an item, each of their sinks and tags once, in order, and the rest of it."""

    rules: tuple[str, ...] = ()
    sinks: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    holder: str = ""
    language: str = ""
    reply: AutoReply | None = None
    debounces: tuple[tuple[str, RouteDebounce], ...] = ()

    def debounce_of(self, sink: str) -> RouteDebounce | None:
        """Return what was said of joining these events at a sink; None: nothing."""
        for name, said in self.debounces:
            if name == sink:
                return said
        return None


NOWHERE = Routed()


ACCOUNT_UPDATES = "account_updates"
"""In the place of a rule's name: a sink's setting, which asks for what no rule is asked about."""


def has_no_metadata(item: Item) -> bool:
    """Whether an update is about an account, or otherwise lacks the `metadata` that bots' libraries expect."""
    return item.kind in ("account", "unknown") and (not item.phone_number_id or item.field == "messaging_handovers")


def routed(rules: Sequence[Rule], account_sinks: tuple[str, ...], case: Case) -> Routed:
    """Say what follows from any item. `account_sinks`: those that ask for updates without `metadata`."""
    if has_no_metadata(case.item):
        return Routed((ACCOUNT_UPDATES,), account_sinks) if account_sinks else NOWHERE
    return route(rules, case)


def route(rules: Sequence[Rule], case: Case) -> Routed:
    """Say what follows from an item."""
    routed = NOWHERE
    for rule in rules:
        if rule.takes(case):
            routed = _with(routed, rule)
            if not rule.go_on:
                break
    return routed


def _with(routed: Routed, rule: Rule) -> Routed:
    if routed is NOWHERE:
        return Routed(
            (rule.name,), rule.sinks, rule.tags, rule.holder, rule.language, rule.reply, debounces=rule.debounces
        )
    return Routed(
        (*routed.rules, rule.name),
        tuple(dict.fromkeys((*routed.sinks, *rule.sinks))),
        tuple(dict.fromkeys((*routed.tags, *rule.tags))),
        routed.holder or rule.holder,
        routed.language or rule.language,
        routed.reply or rule.reply,
        debounces=tuple(dict((*rule.debounces, *routed.debounces)).items()),
    )


# ---- explanation


class Asked(NamedTuple):
    """A condition and what it found."""

    name: str
    wanted: str
    found: str
    holds: bool


class Judged(NamedTuple):
    """A rule and what became of it: it took the item, did not, or was not asked because one before it did."""

    rule: Rule
    verdict: Literal["taken", "not taken", "not reached"]
    asked: tuple[Asked, ...]


def explain(rules: Sequence[Rule], case: Case) -> list[Judged]:
    """Say of every rule what `route` makes of it, and why. None is asked about an update without `metadata`."""
    judged: list[Judged] = []
    if has_no_metadata(case.item):
        return judged
    over = False
    for rule in rules:
        asked = tuple(Asked(each.name, each.wanted, each.found(case), each.holds(case)) for each in rule.conditions)
        if over:
            judged.append(Judged(rule, "not reached", asked))
            continue
        taken = rule.takes(case)
        judged.append(Judged(rule, "taken" if taken else "not taken", asked))
        over = taken and not rule.go_on
    return judged


# ---- compilation


def compile_routes(routes: Sequence[Route], hours: Mapping[str, Hours]) -> tuple[Rule, ...]:
    """Compile the configured routes in their order. Raises `ValueError` that names the route and what is wrong."""
    names: set[str] = set()
    rules = []
    if len(routes) > ROUTES_MAX:
        raise ValueError(f"routes: there are {len(routes)}, at most {ROUTES_MAX}")
    for i, each in enumerate(routes):
        if each.name in names:
            raise ValueError(f"routes[{i}].name = {each.name!r}: is used twice")
        names.add(each.name)
        try:
            rules.append(compile_route(each, hours))
        except ValueError as error:
            raise ValueError(f"routes[{i}].{error}") from None
    return tuple(rules)


def compile_route(route: Route, hours: Mapping[str, Hours]) -> Rule:
    """Compile one route. Raises `ValueError` that begins with the setting that is wrong, e.g. `when.regex = …`."""
    then = route.then
    _check_then(then)
    conditions = tuple(_conditions(route.when, hours))
    sinks = tuple(dict.fromkeys(then.sinks))
    debounce = _debounce(then)
    return Rule(
        name=route.name,
        conditions=conditions,
        holds=tuple(condition.holds for condition in conditions),
        go_on=route.go_on,
        sinks=sinks,
        tags=tuple(dict.fromkeys(then.tags)),
        holder=then.holder,
        language=_language(then.language),
        reply=None if then.reply is None else compile_reply(route.name, then.reply),
        debounces=() if debounce is None else tuple((sink, debounce) for sink in sinks),
    )


def _check_then(then: Then) -> None:
    if not (then.sinks or then.tags or then.holder or then.language or then.reply):
        raise ValueError("then = {}: does nothing; name at least one sink, or a reply, tags, a holder or a language")
    for i, tag in enumerate(then.tags):
        if not NAME.fullmatch(tag):
            raise ValueError(f"then.tags[{i}] = {tag!r}: must match {NAME.pattern}")
    if then.holder and not NAME.fullmatch(then.holder):
        raise ValueError(f"then.holder = {then.holder!r}: must match {NAME.pattern}")
    if then.language and not LANGUAGE.fullmatch(_language(then.language)):
        raise ValueError(f"then.language = {then.language!r}: must be a language like 'de' or 'pt_BR'")


def _debounce(then: Then) -> RouteDebounce | None:
    events_max, wait_ms_max = then.debounce_events_max, then.debounce_wait_ms_max
    if not then.debounce_ms:
        for name, value in (("debounce_events_max", events_max), ("debounce_wait_ms_max", wait_ms_max)):
            if value is not None:
                raise ValueError(f"then.{name} = {value}: bounds what is joined; say then.debounce_ms, too, or neither")
    if then.debounce_ms is None:
        return None
    if not then.sinks:
        raise ValueError(f"then.debounce_ms = {then.debounce_ms}: is for the sinks of this rule; name at least one")
    return RouteDebounce(then.debounce_ms, events_max or 0, wait_ms_max or 0)


def _conditions(when: When, hours: Mapping[str, Hours]) -> list[Condition]:
    for name in ("numbers", "types", "payloads", "referrals", "customers", "languages", "holders"):
        values = getattr(when, name)
        if len(values) > VALUES_MAX:
            raise ValueError(f"when.{name}: has {len(values)} entries, at most {VALUES_MAX}")
        if not all(values):
            raise ValueError(f"when.{name}: an empty entry would match what has none")
    conditions = [_kinds(when.types)]
    if when.numbers:
        conditions.append(_numbers(when.numbers))
    if when.customers:
        conditions.append(_customers(when.customers))
    if when.first_message is not None:
        conditions.append(_first_message(when.first_message))
    if when.holders:
        conditions.append(_holders(when.holders))
    if when.languages:
        conditions.append(_languages(when.languages))
    if when.open:
        conditions.append(_hours("open", when.open, hours, wanted=True))
    if when.closed:
        conditions.append(_hours("closed", when.closed, hours, wanted=False))
    if when.payloads:
        conditions.append(_payloads(when.payloads))
    if when.referrals:
        conditions.append(_referrals(when.referrals))
    if when.keywords:
        conditions.append(_keywords(when.keywords))
    if when.regex:
        conditions.append(_regex(when.regex))
    return conditions


def _kinds(types: Sequence[str]) -> Condition:
    """`types` names a message's type or an item's kind."""
    wanted = frozenset(types)

    def is_unnamed(case: Case) -> bool:
        return case.item.kind not in NAMED_ONLY

    def is_named(case: Case) -> bool:
        item = case.item
        return item.kind in wanted or (item.kind == "message" and item.message_type in wanted)

    def told(case: Case) -> str:
        item = case.item
        return f"{item.kind} of type {item.message_type}" if item.message_type else item.kind

    if not types:
        return Condition("types", "anything but status and standby", is_unnamed, told)
    return Condition("types", _list(types), is_named, told)


def _numbers(numbers: Sequence[str]) -> Condition:
    wanted = frozenset(numbers)
    return Condition(
        "numbers",
        _list(numbers),
        lambda case: case.item.phone_number_id in wanted,
        lambda case: case.item.phone_number_id or "no number",
    )


def _customers(customers: Sequence[str]) -> Condition:
    exact, prefixes = _starred([normalise_wa_id(each) or each for each in customers])

    def holds(case: Case) -> bool:
        item = case.item
        ids = (normalise_wa_id(item.wa_id), item.bsuid, item.parent_bsuid)
        return any(each and (each in exact or each.startswith(prefixes)) for each in ids)

    return Condition("customers", _list(customers), holds, lambda case: case.item.wa_id or case.item.bsuid or "nobody")


def _first_message(wanted: bool) -> Condition:
    return Condition(
        "first_message",
        "true" if wanted else "false",
        lambda case: case.item.kind == "message" and case.first == wanted,
        lambda case: "no message" if case.item.kind != "message" else "true" if case.first else "false",
    )


def _holders(holders: Sequence[str]) -> Condition:
    wanted = frozenset(holders)
    return Condition("holders", _list(holders), lambda case: case.holder in wanted, lambda case: case.holder)


def _languages(languages: Sequence[str]) -> Condition:
    """ "de" holds for every kind of German, "de-at" for Austria's."""
    wanted = tuple(_language(each) for each in languages)
    for each in wanted:
        if not LANGUAGE.fullmatch(each):
            raise ValueError(f"when.languages: {each!r} is no language; name it like 'de' or 'pt_BR', or 'und'")

    def holds(case: Case) -> bool:
        language = case.language or UNKNOWN_LANGUAGE
        return any(language == each or language.startswith(f"{each}-") for each in wanted)

    return Condition("languages", _list(languages), holds, lambda case: case.language or UNKNOWN_LANGUAGE)


def _hours(name: str, calendar: str, hours: Mapping[str, Hours], *, wanted: bool) -> Condition:
    named = hours.get(calendar)
    if named is None:
        raise ValueError(f"when.{name} = {calendar!r}: no such hours; there are {', '.join(sorted(hours)) or 'none'}")

    def told(case: Case) -> str:
        at = case.item.received_at
        state = "open" if named.is_open(at) else "closed"
        return f"{state} at {named.local(at):%a %Y-%m-%d %H:%M %Z}"

    return Condition(name, calendar, lambda case: named.is_open(case.item.received_at) == wanted, told)


def _payloads(payloads: Sequence[str]) -> Condition:
    exact, prefixes = _starred(payloads)

    def holds(case: Case) -> bool:
        payload = case.seen.payload
        return bool(payload) and (payload in exact or payload.startswith(prefixes))

    return Condition("payloads", _list(payloads), holds, lambda case: case.seen.payload or "nothing was tapped")


def _referrals(referrals: Sequence[str]) -> Condition:
    exact, prefixes = _starred(referrals)

    def holds(case: Case) -> bool:
        seen = case.seen
        return seen.is_referred and (seen.referral in exact or seen.referral.startswith(prefixes))

    def told(case: Case) -> str:
        return (case.seen.referral or "an ad without id") if case.seen.is_referred else "not from an ad"

    return Condition("referrals", _list(referrals), holds, told)


def _keywords(keywords: Sequence[str]) -> Condition:
    words = [keyword.strip().casefold() for keyword in keywords]
    if not all(words):
        raise ValueError("when.keywords: an empty keyword would match everything")
    if len(words) > KEYWORDS_MAX or any(len(word) > KEYWORD_CHARS_MAX for word in words):
        raise ValueError(f"when.keywords: at most {KEYWORDS_MAX} of {KEYWORD_CHARS_MAX} characters each")
    alternatives = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)")  # literals alone: nothing to backtrack into
    return Condition(
        "keywords", _list(keywords), lambda case: pattern.search(case.seen.text.casefold()) is not None, _words
    )


def _regex(regex: str) -> Condition:
    try:
        pattern = compile_pattern(regex)
    except ValueError as error:
        raise ValueError(f"when.regex = {regex!r}: {error}") from None
    return Condition("regex", repr(regex), lambda case: found(pattern, case.seen.text), _words)


def _words(case: Case) -> str:
    text = case.seen.text
    return repr(text if len(text) <= 60 else f"{text[:59]}…") if text else "no text"


def _starred(values: Sequence[str]) -> tuple[frozenset[str], tuple[str, ...]]:
    """Part the exact values from those that end in a star, which stand for any rest."""
    exact = frozenset(value for value in values if not value.endswith("*"))
    return exact, tuple(value[:-1] for value in values if value.endswith("*"))


def _language(text: str) -> str:
    """Meta writes `pt_BR`, BCP 47 `pt-BR`: compared in one form."""
    return text.replace("_", "-").lower()


def _list(values: Sequence[str]) -> str:
    shown = ", ".join(values[:5])
    return shown if len(values) <= 5 else f"{shown} and {len(values) - 5} more"
