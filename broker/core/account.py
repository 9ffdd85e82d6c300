"""What account-level webhooks mean for sending: who stops, who goes on, who may send faster, what people must hear.

Every sender process reads all of them, from the oldest that is kept on; what they have left behind is here and in the
gates. Nothing is counted on: a stop that Meta announced ends, at the latest after an hour, with one send that tries
whether it still holds, and what an account is told of late, or never, its next answer says too. So a record that is
read again, days later by a new process, does no harm: its time is over, and one call finds out.

A tier alone is kept elsewhere as well, in its slot's ledger: it is told once and for ever, and the log of accounts
forgets after a week.

Source: Meta Cloud API, webhook fields of accounts, numbers and templates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Raw, Struct

from broker.core.gates import Door
from broker.core.outcome import THROUGHPUT, Scope, rule_of
from broker.core.refusals import Refusal
from broker.core.sender import lane_door, template_door
from schemas.records import LANES, Item, Lane

STANDARD_MPS = 80
HIGH_MPS = 1_000
"""Tiers by default and after `THROUGHPUT_UPGRADE`. A number configured with another tier than the default keeps it: its
operator knows more, e.g. that it is also used in the Business app (20)."""

STOP_MS = 3_600_000
"""How long an announced stop lasts at most before one send tries; then the answer's own rule says for how long."""

DISABLED_MS = 600_000
PAUSE_MS: Final = {"FIRST_PAUSE": 3 * 3_600_000, "SECOND_PAUSE": 6 * 3_600_000}
"""A paused template is released by Meta after three hours, the second time after six."""

FRESH_MS = 60_000
"""An error a webhook tells of a number slows it down only while it is news."""

UNLIMITED = -1

Severity = Literal["information", "warning", "critical"]


class Shut(NamedTuple):
    """Close a gate until an instant (Unix ms; one that is over: the next send tries it)."""

    door: Door
    until: int
    why: str
    refuses: Refusal | None = None


class Open(NamedTuple):
    """Open a gate."""

    door: Door


class Retry(NamedTuple):
    """Let one send try a closed gate now."""

    door: Door


class Tier(NamedTuple):
    """A number has another throughput tier."""

    phone_number_id: str
    throughput_mps: int


class Throttled(NamedTuple):
    """A number was told that its throughput is reached."""

    phone_number_id: str


class Slow(NamedTuple):
    """A template's quality is bad (or no longer): send it slowly, so that what people say of it comes in time."""

    door: Door
    is_slow: bool


class Cap(NamedTuple):
    """How many people an account's portfolio may write to first in 24 h; `UNLIMITED` for any."""

    waba_id: str
    people_max: int


class Tell(NamedTuple):
    """Something people must hear."""

    severity: Severity
    text: str


Effect = Shut | Open | Retry | Tier | Throttled | Slow | Cap | Tell


class NumberPlace(Struct, frozen=True):
    """What sending needs to know of a configured number."""

    phone_number_id: str
    waba_id: str
    throughput_mps: int
    slot: int
    display_phone_number: str = ""


class _Change(Struct):
    value: Raw = Raw(b"{}")


class _Entry(Struct):
    changes: list[_Change] = []


class _Body(Struct):
    entry: list[_Entry] = []


_decode = msgspec.json.Decoder(_Body).decode
_value = msgspec.json.Decoder(dict[str, Any]).decode

Value = Mapping[str, Any]

RESTRICTED_LANES: dict[str, tuple[Lane, ...]] = {
    "RESTRICTED_BIZ_INITIATED_MESSAGING": ("transactional", "campaign"),
    "RESTRICTED_UTILITY_TEMPLATES": ("transactional",),
    "RESTRICTED_CUSTOMER_INITIATED_MESSAGING": ("reply",),
}
"""What each restriction closes. The others concern calls, new numbers and a beta: they are told and close nothing."""

TIERS: dict[str, int] = {
    "TIER_50": 50,
    "TIER_250": 250,
    "TIER_1K": 1_000,
    "TIER_2K": 2_000,
    "TIER_10K": 10_000,
    "TIER_100K": 100_000,
    "TIER_UNLIMITED": UNLIMITED,
}


class Accounts:
    """What the updates so far have said and no gate remembers: the caps, to know a rise from a fall."""

    def __init__(self) -> None:
        """Begin with nothing heard."""
        self._caps: dict[str, int] = {}

    def decide(self, item: Item, numbers: Mapping[str, NumberPlace], now_ms: int) -> list[Effect]:
        """Return what follows from one update, in order. `numbers` are all that are configured; an update of an account
        with none of them means nothing here. Total: an update in no shape we know means nothing."""
        rule = _RULES.get(item.field)
        ours = [place for place in numbers.values() if place.waba_id == item.waba_id]
        if rule is None or not ours:
            return []
        at = item.at or item.received_at
        effects: list[Effect] = []
        for value in _values(item.body):
            effects += rule(_Update(value, item, ours, at, now_ms))
        return [found for effect in effects for found in self._weigh(effect, ours)]

    def _weigh(self, effect: Effect, ours: list[NumberPlace]) -> list[Effect]:
        """A cap that rose is worth a try of what 131048 had stopped: that is what Meta answers at the cap."""
        if type(effect) is not Cap:
            return [effect]
        before = self._caps.get(effect.waba_id)
        self._caps[effect.waba_id] = effect.people_max
        if before is None or not _is_more(effect.people_max, before):
            return [effect]
        return [effect, *(Retry(door) for place in ours for door in _initiated(place))]


class _Update(NamedTuple):
    """One value of one update, and what is known beside."""

    value: Value
    item: Item
    ours: list[NumberPlace]
    at: int
    now_ms: int

    def text(self, *names: str) -> str:
        """Return a string of the value, down a path; "" when it is not there."""
        found: Any = self.value
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found if isinstance(found, str) else ""

    def places(self, digits: str) -> list[NumberPlace]:
        """Return the numbers an update means: by the digits it shows, without any all of the account. When digits are
        shown that are configured for none: the only number of the account, or nobody."""
        shown = "".join(filter(str.isdigit, digits))
        if not shown:
            return self.ours
        found = [place for place in self.ours if _digits(place) == shown]
        if found or len(self.ours) > 1 or _digits(self.ours[0]):
            return found
        return self.ours


def _account(update: _Update) -> Iterable[Effect]:
    waba, event = Door(Scope.WABA, update.item.waba_id), update.text("event")
    match event:
        case "DISABLED_UPDATE":
            match state := update.text("ban_info", "waba_ban_state"):
                case "DISABLE":
                    yield Shut(waba, update.at + DISABLED_MS, "Meta disabled the account")
                    yield Tell("critical", "Meta disabled the account")
                case "REINSTATE":
                    yield Open(waba)
                    yield Tell("information", "Meta reinstated the account")
                case _:
                    date = update.text("ban_info", "waba_ban_date")
                    yield Tell("critical", f"the account is about to be disabled: {state} {date}".rstrip())
        case "ACCOUNT_RESTRICTION":
            yield from _restriction(update)
        case "ACCOUNT_DELETED" | "ACCOUNT_OFFBOARDED" | "PARTNER_REMOVED" | "PARTNER_APP_UNINSTALLED":
            # It may be another partner's share that ended: one send finds out whether it was ours.
            yield Shut(waba, update.at, f"the account may have been taken from us: {event}")
            yield Tell("critical", f"{event} {update.text('disconnection_info', 'reason')}".rstrip())
        case "ACCOUNT_RECONNECTED" | "PARTNER_ADDED" | "PARTNER_APP_INSTALLED":
            yield Open(waba)
            yield Tell("information", event)
        case "ACCOUNT_VIOLATION":
            yield Tell("warning", f"{event} {update.text('violation_info', 'violation_type')}".rstrip())
        case _:
            yield Tell("information", f"account_update {event}")


def _restriction(update: _Update) -> Iterable[Effect]:
    restrictions = update.value.get("restriction_info")
    for restriction in restrictions if isinstance(restrictions, list) else ():
        if not isinstance(restriction, Mapping):
            continue
        kind = str(restriction.get("restriction_type", ""))
        ends_at = _instant(restriction.get("expiration")) or update.at + STOP_MS
        yield Tell("critical", f"restricted: {kind}")
        for place in update.places(update.text("phone_number")):
            for lane in RESTRICTED_LANES.get(kind, ()):
                yield Shut(lane_door(place.phone_number_id, lane), ends_at, f"Meta restricted the account: {kind}")


def _alert(update: _Update) -> Iterable[Effect]:
    kind = update.text("alert_info", "alert_type") or "an alert without a type"
    severity: Severity = "information"
    match update.text("alert_info", "alert_severity"):
        case "CRITICAL":
            severity = "critical"
        case "WARNING":
            severity = "warning"
    yield Tell(severity, f"{kind}: {update.text('alert_info', 'alert_description')}")


def _review(update: _Update) -> Iterable[Effect]:
    decision = update.text("decision")
    yield Tell("critical" if decision == "REJECTED" else "information", f"the account's review: {decision}")


def _capability(update: _Update) -> Iterable[Effect]:
    cap = _people(update.value.get("max_daily_conversations_per_business"))
    if cap is not None:
        yield Cap(update.item.waba_id, cap)


def _quality(update: _Update) -> Iterable[Effect]:
    event, places = update.text("event"), update.places(update.text("display_phone_number"))
    if update.text("display_phone_number") == "" or not places:
        yield Tell("warning", f"{event} of a number that is not configured: see display_phone_number")
        return
    if event == "THROUGHPUT_UPGRADE":
        for place in places:
            if place.throughput_mps == STANDARD_MPS:
                yield Tier(place.phone_number_id, HIGH_MPS)
            elif place.throughput_mps < HIGH_MPS:
                yield Tell("warning", f"{event}, and throughput_mps is configured as {place.throughput_mps}")
    elif event in ("FLAGGED", "DOWNGRADE"):
        yield Tell("warning", f"the number's quality: {event}")
    elif event == "UPGRADE":
        for place in places:
            yield from (Retry(door) for door in _initiated(place))
    cap = _people(update.value.get("max_daily_conversations_per_business") or update.value.get("current_limit"))
    if cap is not None:
        yield Cap(update.item.waba_id, cap)


def _template(update: _Update) -> Iterable[Effect]:
    name, event = update.text("message_template_name"), update.text("event")
    door = template_door(update.item.waba_id, f"{name}/{update.text('message_template_language')}")
    if not name:
        return
    reason = " ".join(filter(None, (update.text("reason"), update.text("other_info", "title"))))
    match event:
        case "PAUSED":
            pause_ms = PAUSE_MS.get(update.text("other_info", "title"), STOP_MS)
            yield Shut(door, update.at + pause_ms, f"Meta paused the template: {reason}")
        case "DISABLED":
            refusal = Refusal(132016, "Template is disabled", "Meta disabled the template for low quality.")
            yield Shut(door, update.at + STOP_MS, f"Meta disabled the template: {reason}", refusal)
        case "DELETED":
            refusal = Refusal(132001, "Template does not exist", "The template was deleted.")
            yield Shut(door, update.at + STOP_MS, "the template was deleted", refusal)
        case "APPROVED" | "REINSTATED":
            yield Open(door)
        case "FLAGGED" | "REJECTED" | "LOCKED" | "PENDING_DELETION":
            yield Tell("warning", f"template {name}: {event} {reason}".rstrip())


def _template_quality(update: _Update) -> Iterable[Effect]:
    name = update.text("message_template_name")
    if name:
        door = template_door(update.item.waba_id, f"{name}/{update.text('message_template_language')}")
        yield Slow(door, update.text("new_quality_score") == "RED")


def _errors(update: _Update) -> Iterable[Effect]:
    """Errors of a number as a whole, without a message: what an answer with that code would have taught."""
    place = next((place for place in update.ours if place.phone_number_id == update.item.phone_number_id), None)
    errors = update.value.get("errors")
    if place is None or not isinstance(errors, list):
        return
    for error in errors:
        code = error.get("code") if isinstance(error, Mapping) else None
        if isinstance(code, int):
            yield from taught(place, code, update.item.received_at, update.now_ms)


def taught(place: NumberPlace, code: int, at: int, now_ms: int) -> Iterable[Shut | Throttled]:
    """Return what a code means for a number when no answer of ours had it: a status that failed, an error by webhook.

    It says nothing of lane or template: what an answer would close for its lane closes for campaigns.
    """
    rule = rule_of(code)
    if code == THROUGHPUT:
        if now_ms - at < FRESH_MS:
            yield Throttled(place.phone_number_id)
        return
    if rule is None or rule.outcome != "stopped":
        return
    doors: tuple[Door, ...] = ()
    match rule.scope:
        case Scope.WABA:
            doors = (Door(Scope.WABA, place.waba_id),)
        case Scope.NUMBER:
            doors = (Door(Scope.NUMBER, place.phone_number_id),)
        case Scope.LANE:
            doors = (lane_door(place.phone_number_id, "campaign"),)
        case Scope.INITIATED:
            doors = _initiated(place)
    until = at + round(rule.wait_s * 1_000)
    if until > now_ms:
        for door in doors:
            yield Shut(door, until, f"{code} ({rule.kind}), by webhook: {rule.says}")


_RULES: dict[str, Callable[[_Update], Iterable[Effect]]] = {
    "account_update": _account,
    "account_alerts": _alert,
    "account_review_update": _review,
    "business_capability_update": _capability,
    "phone_number_quality_update": _quality,
    "message_template_status_update": _template,
    "message_template_quality_update": _template_quality,
    "messages": _errors,
}
"""The fields that say something about sending."""


def _values(body: bytes) -> list[Value]:
    try:
        decoded = _decode(body)
        return [_value(change.value) for entry in decoded.entry for change in entry.changes]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


def _initiated(place: NumberPlace) -> tuple[Door, ...]:
    return tuple(lane_door(place.phone_number_id, lane) for lane in LANES[1:])


def _digits(place: NumberPlace) -> str:
    return "".join(filter(str.isdigit, place.display_phone_number))


def _instant(said: object) -> int:
    """Return an instant given in Unix seconds, as Unix ms; 0 for what is none."""
    if isinstance(said, str) and said.isascii() and said.isdigit():
        said = int(said)
    return said * 1_000 if isinstance(said, int) and not isinstance(said, bool) and 0 < said < 1 << 40 else 0


def _people(said: object) -> int | None:
    """Return a cap as it comes: a number, a number in a string, or the name of a tier. None when there is none."""
    if isinstance(said, bool):
        return None
    if isinstance(said, int):
        return said if said >= 0 else UNLIMITED
    if isinstance(said, str):
        return int(said) if said.isascii() and said.isdigit() and len(said) < 12 else TIERS.get(said)
    return None


def _is_more(cap: int, before: int) -> bool:
    return before != UNLIMITED and (cap == UNLIMITED or cap > before)
