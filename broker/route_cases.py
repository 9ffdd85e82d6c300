"""What routes make of a message, for people: samples in whatever form one has them, and cases with what is expected.

A sample goes through the receiver's own split and the customer stage's own rules, so that what is said here is what
will happen. It may be a whole webhook body, one of its `messages`, or a record as `depesche tail --json` prints it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import UNSET, Struct, UnsetType

from broker.core.control import INSTANTS
from broker.core.hours import compile_hours
from broker.core.routing import BOT, Case, Judged, Routed, Rule, compile_routes, explain
from broker.core.routing import routed as routed_by
from broker.core.webhook import split
from broker.errors import Misconfigured
from broker.misfits import converted
from schemas.records import Item
from schemas.settings import Settings

SAMPLE_BYTES_MAX = 4 * 1024 * 1024
CASES_BYTES_MAX = 4 * 1024 * 1024
APP = "sample"

NOON = datetime.fromisoformat("2026-01-05T12:00:00+00:00")
"""A Monday noon: when a case comes in unless it says so. A test must not depend on when it is run."""

SOMEBODY = "15550001234"


class Expected(Struct, frozen=True, forbid_unknown_fields=True):
    """What a case wants: whatever it names must be so, whatever it does not name may be anything."""

    sinks: list[str] | UnsetType = UNSET
    tags: list[str] | UnsetType = UNSET
    routes: list[str] | UnsetType = UNSET
    reply: str | UnsetType = UNSET
    """The route whose reply the broker sends; "" for none."""
    holder: str | UnsetType = UNSET
    """Who is named as the holder from then on; "" when nobody is."""
    language: str | UnsetType = UNSET


class RouteCase(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One case of a file: a message in one of four forms, what is known of the customer, and what is expected."""

    name: str
    file: str = ""
    """A sample, relative to the file of cases."""
    message: dict[str, Any] = {}
    """A message as it stands in Meta's `messages`."""
    text: str = ""
    payload: str = ""
    """Of a button that is tapped; `text` is its title then."""
    number: str = ""
    """The `phone_number_id` written to; the first configured one unless named."""
    customer: str = SOMEBODY
    at: datetime = NOON
    first: bool = False
    holder: str = BOT
    language: str = ""
    expect: Expected


class Cases(Struct, frozen=True, forbid_unknown_fields=True):
    """A file of cases."""

    cases: list[RouteCase]


class Wrong(NamedTuple):
    """One thing that is not as expected."""

    what: str
    expected: str
    got: str


class Tried(NamedTuple):
    """A case and what came of it: what is wrong, and for each rule that should have taken it, why it did not."""

    case: RouteCase
    wrong: tuple[Wrong, ...]
    reasons: tuple[str, ...]


def rules_of(settings: Settings) -> tuple[Rule, ...]:
    """Compile the routes of checked settings."""
    return compile_routes(settings.routes, {each.name: compile_hours(each) for each in settings.hours})


def read_samples(raw: bytes, settings: Settings, at: int, number: str = "", customer: str = SOMEBODY) -> list[Item]:
    """Return the items of a sample, received at an instant (Unix ms; a record's own where it has one).

    `number` and `customer` are for a message alone, which names neither receiver nor, maybe, sender. Raises
    `Misconfigured` when it is nothing of the three.
    """
    try:
        tree = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Misconfigured(f"is not JSON: {error}") from None
    if isinstance(tree, dict) and isinstance(record := tree.get("record"), dict):
        if record.get("type") != "item" or not isinstance(record.get("body"), dict):
            raise Misconfigured("is no item of a webhook; `depesche tail conversations --json --reveal` prints those")
        at = record.get("received_at", at)
        if type(at) is not int or at not in INSTANTS:
            raise Misconfigured("record.received_at: must be Unix ms, from 2000 to 2100")
        raw = json.dumps(record["body"], separators=(",", ":")).encode()
    elif isinstance(tree, dict) and "entry" not in tree and isinstance(tree.get("type"), str):
        raw = _webhook(tree, settings, at, number, customer)
    elif not (isinstance(tree, dict) and "entry" in tree):
        raise Misconfigured("is no webhook body (`entry`), no message (`type`) and no record (`record`)")
    portfolios = {each.phone_number_id: each.portfolio for each in settings.numbers}
    parts = split(raw, APP, at, portfolios)
    if parts.malformed:
        raise Misconfigured(f"would be a dead letter: {parts.malformed[0].detail or parts.malformed[0].reason}")
    return [keyed.item for keyed in (*parts.conversations, *parts.accounts)]


def _webhook(message: dict[str, Any], settings: Settings, at: int, number: str, customer: str) -> bytes:
    """Put what is around a message around it."""
    wanted = number or (settings.numbers[0].phone_number_id if settings.numbers else "0")
    found = next((each for each in settings.numbers if each.phone_number_id == wanted), None)
    if found is None and settings.numbers:
        known = ", ".join(each.phone_number_id for each in settings.numbers)
        raise Misconfigured(f"number {wanted!r}: is not configured; there are {known}")
    whole = {"from": customer, "id": "wamid.SAMPLE", "timestamp": str(at // 1_000), **message}
    value = {
        "messaging_product": "whatsapp",
        "metadata": {
            "display_phone_number": "" if found is None else found.display_phone_number,
            "phone_number_id": wanted,
        },
        "contacts": [{"profile": {"name": "Sample"}, "wa_id": whole["from"]}],
        "messages": [whole],
    }
    entry = {"id": "0" if found is None else found.waba_id, "changes": [{"field": "messages", "value": value}]}
    return json.dumps({"object": "whatsapp_business_account", "entry": [entry]}, separators=(",", ":")).encode()


def read_file(path: Path, bytes_max: int = SAMPLE_BYTES_MAX) -> bytes:
    """Return a file's bytes. Raises `Misconfigured`."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(bytes_max + 1)
    except OSError as error:
        raise Misconfigured(f"{path}: cannot be read ({error.strerror})") from None
    if len(raw) > bytes_max:
        raise Misconfigured(f"{path}: is larger than {bytes_max} bytes")
    return raw


def read_cases(path: Path) -> list[RouteCase]:
    """Return the cases of a TOML file. Raises `Misconfigured` that names the case and what is wrong."""
    try:
        tree = tomllib.loads(read_file(path, CASES_BYTES_MAX).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{path}: is not TOML: {error}") from None
    try:
        cases = converted(tree, Cases).cases
    except ValueError as error:
        raise Misconfigured("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None
    if not cases:
        raise Misconfigured(f"{path}: has no cases")
    for case in cases:
        forms = [bool(case.file), bool(case.message), bool(case.payload or case.text)]
        if forms.count(True) != 1:
            raise Misconfigured(f"{path}: {case.name}: name exactly one of file, message, and text or payload")
        if case.at.tzinfo is None:
            raise Misconfigured(f"{path}: {case.name}: at = {case.at}: needs a zone, e.g. {NOON.isoformat()}")
        if case.expect == Expected():
            raise Misconfigured(
                f"{path}: {case.name}: expects nothing; name sinks, tags, routes, reply, holder or language"
            )
    return cases


def try_cases(rules: Sequence[Rule], settings: Settings, cases: Sequence[RouteCase], base: Path) -> Iterator[Tried]:
    """Try every case. `base`: the folder samples are named from. Raises `Misconfigured` for one that cannot be read."""
    for case in cases:
        try:
            items = _items(case, settings, base)
        except Misconfigured as error:
            raise Misconfigured(f"{case.name}: {error}") from None
        if len(items) != 1:
            raise Misconfigured(f"{case.name}: {case.file} has {len(items)} items; a case is about one")
        yield _tried(case, rules, settings, asked(items[0], case.first, case.holder, case.language))


def _items(case: RouteCase, settings: Settings, base: Path) -> list[Item]:
    if case.file:
        raw = read_file(base / case.file)
    elif case.message:
        raw = json.dumps(case.message).encode()
    elif case.payload:
        title = case.text or case.payload
        reply = {"type": "button_reply", "button_reply": {"id": case.payload, "title": title}}
        raw = json.dumps({"type": "interactive", "interactive": reply}).encode()
    else:
        raw = json.dumps({"type": "text", "text": {"body": case.text}}).encode()
    at = int(case.at.timestamp() * 1_000)
    return read_samples(raw, settings, at, case.number, case.customer)


def asked(item: Item, first: bool, holder: str, language: str) -> Case:
    """Return an item with what is assumed of its customer, as rules see it."""
    return Case(item, first=first, holder=holder, language=language.replace("_", "-").lower())


def follows(rules: Sequence[Rule], settings: Settings, about: Case) -> Routed:
    """Return what follows from an item, as the customer stage would have it."""
    return routed_by(rules, tuple(sink.name for sink in settings.sinks if sink.account_updates), about)


def _tried(case: RouteCase, rules: Sequence[Rule], settings: Settings, about: Case) -> Tried:
    routed, expect = follows(rules, settings, about), case.expect
    pairs: list[tuple[str, Any, Any]] = [
        ("sinks", expect.sinks, list(routed.sinks)),
        ("tags", expect.tags, list(routed.tags)),
        ("routes", expect.routes, list(routed.rules)),
        ("reply", expect.reply, "" if routed.reply is None else routed.reply.rule),
        ("holder", expect.holder, routed.holder),
        ("language", expect.language, routed.language),
    ]
    wrong = tuple(Wrong(what, said(want), said(got)) for what, want, got in pairs if want not in (UNSET, got))
    return Tried(case, wrong, tuple(_reasons(expect, routed, explain(rules, about))) if wrong else ())


def _reasons(expect: Expected, routed: Routed, judged: Sequence[Judged]) -> Iterator[str]:
    """Say which rule did take it, and why those that would have brought what is missing did not."""
    yield f"taken by {said(list(routed.rules))}"
    sinks = [] if expect.sinks is UNSET else [sink for sink in expect.sinks if sink not in routed.sinks]
    tags = [] if expect.tags is UNSET else [tag for tag in expect.tags if tag not in routed.tags]
    routes = [] if expect.routes is UNSET else [name for name in expect.routes if name not in routed.rules]
    for rule, verdict, conditions in judged:
        has_missing = rule.name in routes or any(s in rule.sinks for s in sinks) or any(t in rule.tags for t in tags)
        if verdict == "taken" or not has_missing:
            continue
        refused = [f"{each.name} wants {each.wanted}, found {each.found}" for each in conditions if not each.holds]
        yield f"not by {rule.name}: {'; '.join(refused) or 'a rule before it took it, and does not continue'}"


def said(value: list[str] | str) -> str:
    """Return a value as people write it."""
    return (", ".join(value) if isinstance(value, list) else value) or "none"
