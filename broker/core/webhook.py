"""The body of a webhook taken apart: each item of each change with its key, and nothing of the body lost.

A POST holds up to 1,000 updates of different users, numbers and accounts. Each becomes an `Item` whose body is a whole
POST body in Meta's shape that holds this update alone: members in their order, values as the bytes they came in (7.90
stays 7.90), only the contacts of its own user, ASCII only as Meta writes it. A POST with one update stays as it is.

Speed: the body is never built up as objects. Each level is read as names and raw slices, and of an item only the
members that `schemas.webhook` names. Source of all rules about fields: meta-cloud-api.md 2.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw, Struct

from broker.core.identity import normalise_wa_id, record_key
from broker.core.opaque import unwrap
from schemas.records import Item, ItemKind
from schemas.webhook import (
    Account,
    Call,
    Contact,
    Echo,
    Group,
    Handover,
    Message,
    Metadata,
    Other,
    Preference,
    StateSync,
    Status,
)

PORTFOLIO_OF_UNKNOWN = "main"
"""An item of a number that no setting names is keyed in this portfolio and goes on like any other."""

SHARED_BYTES_MAX = 4_096
"""A member beside the items, unknown to us and larger than this, is an item of its own: were it to go along with each
of 1,000 items, one POST of 3 MB could become gigabytes."""

MILLISECONDS_FROM: Final = 100_000_000_000
"""A timestamp from here on is in ms already: as seconds it would be the year 5138."""

ACCOUNT_FIELDS = frozenset(
    (
        "account_alerts",
        "account_review_update",
        "account_settings_update",
        "account_update",
        "business_capability_update",
        "business_username_update",
        "business_username_updates",
        "flows",
        "message_template_components_update",
        "message_template_quality_update",
        "message_template_status_update",
        "partner_solutions",
        "payment_configuration_update",
        "phone_number_name_update",
        "phone_number_quality_update",
        "security",
        "template_category_update",
        "template_correct_category_detection",
    )
)
"""Fields that concern an account or a number as a whole (meta-cloud-api.md 2.9)."""


ENVELOPE_BYTES_MAX = 16_384
"""What stands around the items and would go along with each; a larger one leaves its items together."""

_BRACKET = ord("[")


class Keyed(NamedTuple):
    """An item with the key of its record."""

    key: bytes
    item: Item


class Bad(NamedTuple):
    """What could not be made an item: a dead letter. `body` is all there is to look at or to replay; `detail` says
    where it stood and holds nothing personal."""

    reason: str
    detail: str
    body: bytes


class Split(NamedTuple):
    """What a body holds: items about conversations, items about accounts, and what is no item."""

    conversations: list[Keyed]
    accounts: list[Keyed]
    malformed: list[Bad]


class _Found(Struct):
    """What an item says about itself, before it has a body."""

    kind: ItemKind
    dedupe: str = ""
    at: int = 0
    wa_id: str = ""
    bsuid: str = ""
    parent_bsuid: str = ""
    group_id: str = ""
    message_type: str = ""
    status: str = ""
    wamid: str = ""
    opaque: str = ""
    account: bool = False


Members = dict[str, Raw]

_members = msgspec.json.Decoder(Members).decode
_objects = msgspec.json.Decoder(list[Members]).decode
_slices = msgspec.json.Decoder(list[Raw]).decode
_anything = msgspec.json.Decoder().decode
_contact = msgspec.json.Decoder(Contact).decode
_metadata = msgspec.json.Decoder(Metadata).decode
_account = msgspec.json.Decoder(Account).decode
_handover = msgspec.json.Decoder(Handover).decode


# ---- values of any kind, taken for what they are


def _text(value: Any) -> str:
    """A string as it is, an integer as its digits, anything else as nothing."""
    if type(value) is str:
        return value
    return str(value) if type(value) is int else ""


def _instant(value: Any) -> int:
    """Unix seconds, as a string or a number, in Unix ms; 0 when it is none."""
    if type(value) is str:
        if not (value.isascii() and value.isdigit()) or len(value) > 15:
            return 0
        value = int(value)
    elif type(value) is float:
        value = int(value) if 0 < value < 1e15 else 0
    elif type(value) is not int:
        return 0
    if not 0 < value < 10**15:
        return 0
    return int(value) if value >= MILLISECONDS_FROM else int(value) * 1_000


def _member(value: Any, name: str) -> str:
    return _text(value.get(name)) if type(value) is dict else ""


def _digest(slice_: bytes | Raw) -> str:
    return hashlib.blake2b(slice_, digest_size=16).hexdigest()


# ---- one reader for each list of items: what it is, whose, when, and under which name it is deduplicated (2.11)


class _Place(NamedTuple):
    """Where an item stands: what its reader may have to know of its surroundings."""

    field: str
    phone_number_id: str
    display_phone_number: str


Read = Callable[[Raw, _Place], "_Found | None"]

_as_message = msgspec.json.Decoder(Message).decode
_as_echo = msgspec.json.Decoder(Echo).decode
_as_status = msgspec.json.Decoder(Status).decode
_as_call = msgspec.json.Decoder(Call).decode
_as_preference = msgspec.json.Decoder(Preference).decode
_as_group = msgspec.json.Decoder(Group).decode
_as_state_sync = msgspec.json.Decoder(StateSync).decode
_as_other = msgspec.json.Decoder(Other).decode

_MESSAGE_KINDS: dict[str, tuple[ItemKind, str]] = {
    "messages": ("message", "msg"),
    "standby": ("message", "msg"),
    "": ("message", "msg"),
    "history": ("history", "hist"),
}
"""Under `history`, messages bring the media of a chunk that came before: they open no window."""


def _read_message(raw: Raw, place: _Place) -> _Found | None:
    message = _as_message(raw)
    wamid = _text(message.id)
    if not wamid:
        return None
    kind, prefix = _MESSAGE_KINDS.get(place.field, ("unknown", "msg"))
    found = _Found(
        kind,
        f"{prefix}:{place.phone_number_id}:{wamid}",
        _instant(message.timestamp),
        _text(message.from_),
        _text(message.from_user_id),
        _text(message.from_parent_user_id),
        _text(message.group_id),
        _text(message.type),
        "",
        wamid,
    )
    if found.message_type == "system" and not (found.wa_id or found.bsuid):
        # The one who knows the customer is the owner of the old id; the new one stands in the body.
        found.bsuid = _member(message.system, "previous_user_id") or _member(message.system, "user_id")
        found.parent_bsuid = _member(message.system, "previous_parent_user_id")
        if not found.bsuid:
            found.wa_id = _member(message.system, "wa_id")
    return found


def _read_echo(raw: Raw, place: _Place) -> _Found | None:
    echo = _as_echo(raw)
    wamid = _text(echo.id)
    if not wamid:
        return None
    return _Found(
        "echo",
        f"echo:{wamid}",
        _instant(echo.timestamp),
        _text(echo.to),
        _text(echo.to_user_id),
        _text(echo.to_parent_user_id),
        _text(echo.group_id),
        _text(echo.type),
        "",
        wamid,
    )


def _read_status(raw: Raw, place: _Place) -> _Found | None:
    status = _as_status(raw)
    wamid, what = _text(status.id), _text(status.status)
    if not wamid or not what:
        return None
    if place.field == "calls" or status.type == "call":
        kind: ItemKind = "call_status"
        dedupe = f"call:{wamid}:{what}"
    else:
        kind = "status"
        dedupe = f"st:{wamid}:{what}"
    participant = _text(status.recipient_participant_id) or _text(status.participant_recipient_id)
    participant_bsuid = _text(status.recipient_participant_user_id)
    if participant or participant_bsuid or status.recipient_type == "group":
        if participant or participant_bsuid:
            dedupe = f"{dedupe}:{participant or participant_bsuid}"
        wa_id, bsuid = participant, participant_bsuid
        parent, group_id = _text(status.recipient_participant_parent_user_id), _text(status.recipient_id)
    else:
        wa_id, bsuid, group_id = _text(status.recipient_id), _text(status.recipient_user_id), ""
        parent = (
            _text(status.recipient_parent_user_id)
            or _text(status.parent_recipient_user_id)
            or _text(status.parent_user_id)
        )
    return _Found(
        kind,
        dedupe,
        _instant(status.timestamp),
        wa_id,
        bsuid,
        parent,
        group_id,
        "",
        what,
        wamid,
        _text(status.biz_opaque_callback_data),
    )


def _read_call(raw: Raw, place: _Place) -> _Found | None:
    call = _as_call(raw)
    wacid, event = _text(call.id), _text(call.event)
    if not wacid:
        return None
    caller = _text(call.from_)
    ours = normalise_wa_id(place.display_phone_number)
    if call.direction == "BUSINESS_INITIATED" or (ours and normalise_wa_id(caller) == ours):
        ids = _text(call.to), _text(call.to_user_id), _text(call.to_parent_user_id)
    else:
        ids = caller, _text(call.from_user_id), _text(call.from_parent_user_id)
    return _Found("call", f"call:{wacid}:{event}", _instant(call.timestamp), *ids, "", event, _text(call.status), wacid)


def _read_preference(raw: Raw, place: _Place) -> _Found | None:
    preference = _as_preference(raw)
    wa_id, bsuid = _text(preference.wa_id), _text(preference.user_id)
    category, value = _text(preference.category), _text(preference.value)
    at = _instant(preference.timestamp)
    dedupe = f"pref:{wa_id or bsuid}:{category}:{value}:{at}" if at and (wa_id or bsuid) else ""
    return _Found(
        "preference", dedupe, at, wa_id, bsuid, _text(preference.parent_user_id), message_type=category, status=value
    )


def _read_group(raw: Raw, place: _Place) -> _Found | None:
    group = _as_group(raw)
    at = _instant(group.timestamp)
    return _Found(
        "group",
        f"group:{_digest(raw)}" if at else "",
        at,
        group_id=_text(group.group_id),
        message_type=_text(group.type),
    )


def _read_history(raw: Raw, place: _Place) -> _Found | None:
    found = _as_other(raw)
    return _Found("history", f"hist:{place.phone_number_id}:{_digest(raw)}", _instant(found.timestamp))


def _read_state_sync(raw: Raw, place: _Place) -> _Found | None:
    sync = _as_state_sync(raw)
    return _Found(
        "history",  # like a chunk, a copy of what the app already knows; taking it twice changes nothing
        "",
        _instant(sync.metadata.get("timestamp")) if type(sync.metadata) is dict else 0,
        _member(sync.contact, "phone_number"),
        _member(sync.contact, "user_id"),
        _member(sync.contact, "parent_user_id"),
        message_type="state_sync",
    )


def _read_error(raw: Raw, place: _Place) -> _Found | None:
    """An error of a number or account as a whole. It has no id, so each is taken for new."""
    return _Found("account", at=_instant(_as_other(raw).timestamp), account=True)


def _read_user_action(raw: Raw, place: _Place) -> _Found | None:
    return _Found("unknown", at=_instant(_as_other(raw).timestamp), message_type="user_actions")


_READERS: dict[str, Read] = {
    "messages": _read_message,
    "statuses": _read_status,
    "message_echoes": _read_echo,
    "calls": _read_call,
    "user_preferences": _read_preference,
    "groups": _read_group,
    "history": _read_history,
    "state_sync": _read_state_sync,
    "errors": _read_error,
    "user_actions": _read_user_action,
}
"""Lists that hold items. Any other list is not taken apart."""

_NEEDED = {"statuses": "an id and a status"}
"""What an item of a list cannot be without, where it is more than an id."""


# ---- bytes


_NOT_ASCII = re.compile("[^\x00-\x7f]")


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x1_0000:
        return f"\\u{code:04x}"
    code -= 0x1_0000
    return f"\\u{0xD800 | code >> 10:04x}\\u{0xDC00 | code & 0x3FF:04x}"


def _ascii(body: bytes) -> bytes:
    """Escape what is not ASCII as Meta does. In JSON it can only stand inside strings. Raises `UnicodeDecodeError`."""
    return body if body.isascii() else _NOT_ASCII.sub(_escape, body.decode()).encode()


_names: dict[str, bytes] = {}
_NAMES_MAX = 512
"""Names of members are few; a sender of ever new ones must not fill our memory."""


def _named(name: str) -> bytes:
    """A member's name as it stands in JSON, colon included."""
    known = _names.get(name)
    if known is None:
        known = _ascii(msgspec.json.encode(name)) + b":"
        if len(_names) < _NAMES_MAX:
            _names[name] = known
    return known


def _around(members: Members, hole: str, opening: bytes = b"", closing: bytes = b"") -> tuple[bytes, bytes]:
    """An object's bytes before and after the value of one member, with a list's brackets where it is a list's."""
    before: list[bytes | Raw] = [b"{"]
    after: list[bytes | Raw] = []
    for name, value in members.items():
        if name == hole:
            before += (_named(name), opening)
            after.append(closing)
        elif after:
            after += (b",", _named(name), value)
        else:
            before += (_named(name), value, b",")
    after.append(b"}")
    return b"".join(before), b"".join(after)


class _Frame(NamedTuple):
    """The bytes around an item: `head`, contacts, `middle`, item, `tail`; or, when contacts stand behind the items,
    `head`, item, `middle`, contacts, `tail`."""

    head: bytes
    middle: bytes
    tail: bytes
    contacts_first: bool

    def around(self, item: Raw, contacts: bytes) -> bytes:
        if self.contacts_first:
            if contacts:
                return b"".join((self.head, b'"contacts":[', contacts, b"],", self.middle, item, self.tail))
            return b"".join((self.head, self.middle, item, self.tail))
        if contacts:
            return b"".join((self.head, item, self.middle, b',"contacts":[', contacts, b"]", self.tail))
        return b"".join((self.head, item, self.middle, self.tail))


def _frame(outer: tuple[bytes, bytes], value: Members, hole: str, left_out: dict[str, None]) -> _Frame:
    """The frame of the items of one list of a value. `left_out`: members that do not go along."""
    parts: list[list[bytes | Raw]] = [[outer[0], b"{"]]
    passed = contacts_first = False
    for name, member in value.items():
        if name == hole:
            parts[-1] += (_named(name), b"[")
            passed, contacts_first = True, len(parts) == 2
            parts.append([b"]"])
        elif name in left_out:
            continue
        elif name == "contacts":
            parts.append([])
        else:
            parts[-1] += (b",", _named(name), member) if passed else (_named(name), member, b",")
    parts[-1] += (b"}", outer[1])
    pieces = [b"".join(part) for part in parts]
    if len(pieces) == 2:  # no contacts in this value
        return _Frame(b"", pieces[0], pieces[1], contacts_first=True)
    return _Frame(pieces[0], pieces[1], pieces[2], contacts_first)


_ESCAPES = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|u....|.)", re.DOTALL)


def _hide_lone_surrogates(body: bytes) -> bytes | None:
    """Half a pair is an escape that JSON allows, that users can type, and that no strict parser reads.

    Each becomes a private-use character (U+E000 to U+E7FF) of the same length, which `_show_lone_surrogates` takes
    back; None when the body has none, or has characters of that block of its own. Upper-case digits a to f would come
    back in lower case; Meta writes lower case.
    """
    if re.search(rb"\\u[eE][0-7]", body):
        return None
    hidden = False

    def hide(match: re.Match[bytes]) -> bytes:
        nonlocal hidden
        lone = match[1]
        if lone is None:
            return match[0]
        hidden = True
        return b"\\u%c%d%b" % (lone[1] + 1, int(lone[2:3], 16) - 8, lone[3:])

    body = _ESCAPES.sub(hide, body)
    return body if hidden else None


def _show_lone_surrogates(body: bytes) -> bytes:
    return re.sub(rb"\\u([eE])([0-7])", lambda found: b"\\u%c%x" % (found[1][0] - 1, int(found[2]) + 8), body)


# ---- the walk


_SPLIT_FIELDS = frozenset(
    (
        "",
        "messages",
        "calls",
        "history",
        "standby",
        "smb_message_echoes",
        "message_echoes",
        "user_preferences",
        "smb_app_state_sync",
        "group_lifecycle_update",
        "group_participants_update",
        "group_settings_update",
        "group_status_update",
    )
)
"""Fields whose lists mean what `_READERS` says. Under any other, an item is passed on and nothing is concluded."""

Bytes = tuple[bytes, bytes]
"""What stands before and after something."""


def _elements(value: Raw | None) -> list[Members | Raw]:
    """The objects of a list; what is no object as it is; nothing when it is no list."""
    if value is None:
        return []
    try:
        return list(_objects(value))
    except msgspec.ValidationError:
        if memoryview(value)[0] != _BRACKET:
            return []
    return [element if members is None else members for element in _slices(value) for members in (_object(element),)]


def _object(value: Raw) -> Members | None:
    try:
        return _members(value)
    except msgspec.ValidationError:
        return None


class _Walk:
    """One body on its way to being split, and where in it we are."""

    def __init__(self, body: bytes, app: str, received_at: int, portfolios: Mapping[str, str]) -> None:
        self.body = body
        self.app = app
        self.received_at = received_at
        self.portfolios = portfolios
        self.split = Split([], [], [])
        self.top: Members = {}
        self.entry: Members = {}
        self.waba_id = ""
        self.field = ""
        self.path = ""
        self.alone = False
        """Whether the body holds one change only."""
        self._around_entry: Bytes | None = None
        self._around_change: Bytes | None = None

    def walk(self, top: Members) -> None:
        """Take the body apart."""
        self.top = top
        entries = _elements(top.get("entry"))
        if not entries:
            self.split.malformed.append(Bad("another_shape", "no `entry` that holds anything", self.body))
        for index, entry in enumerate(entries):
            self.path = f"entry[{index}]"
            self._around_change = None
            if not isinstance(entry, dict):
                self.bad("not_an_object", self.path, self.around_entry(), entry)
                continue
            self.entry = entry
            self.waba_id = _scalar(entry.get("id"))
            changes = _elements(entry.get("changes"))
            if not changes:  # Meta's own examples have `field` beside `id` once: whatever it is, it is passed on
                self.field = _scalar(entry.get("field"))
                self.whole(_join(self.around_entry(), _object_bytes(entry)), entry.get("value"))
                continue
            self.alone = len(entries) == 1 and len(changes) == 1
            for number, change in enumerate(changes):
                self.path = f"entry[{index}].changes[{number}]"
                if isinstance(change, dict):
                    self.change(change)
                else:
                    self.bad("not_an_object", self.path, self.around_change(), change)

    def around_entry(self) -> Bytes:
        """The bytes around one entry."""
        if self._around_entry is None:
            self._around_entry = _around(self.top, "entry", b"[", b"]")
        return self._around_entry

    def around_change(self) -> Bytes:
        """The bytes around one change of this entry."""
        if self._around_change is None:
            self._around_change = _nest(self.around_entry(), _around(self.entry, "changes", b"[", b"]"))
        return self._around_change

    def change(self, change: Members) -> None:
        """Take one change apart, or pass it on whole when its field is not one whose lists we know."""
        self.field = field = _scalar(change.get("field"))
        raw = change.get("value")
        value = None if raw is None or field in ACCOUNT_FIELDS else _object(raw)
        if value is not None:
            inner, standby = value, field == "standby" and "standby" in value
            if standby:
                inner = _object(value["standby"]) or {}
            if self.lists(change, value, inner, standby):
                return
        body = self.body if self.alone else _join(self.around_change(), _object_bytes(change))
        self.whole(body, raw)

    def lists(self, change: Members, value: Members, inner: Members, standby: bool) -> bool:
        """Split the lists of a value; False when there is nothing to split. `inner` is `value.standby` or the value."""
        contacts: list[Raw] = []
        lists: list[tuple[str, Read, list[Raw]]] = []
        left_out: dict[str, None] = {}
        rest = False
        for name, member in inner.items():
            if name == "metadata" or name == "messaging_product":
                continue
            read = _READERS.get(name)
            if read is not None or name == "contacts":
                try:
                    slices = _slices(member)
                except msgspec.ValidationError:  # no list: nothing we know
                    left_out[name] = None
                    rest = True
                    continue
                if read is None:
                    contacts = slices
                else:
                    left_out[name] = None
                    if slices:
                        lists.append((name, read, slices))
            else:
                if _is_apart(name, member):
                    left_out[name] = None
                    rest = True
        if not lists:
            return False
        metadata = _metadata_of(value.get("metadata"))
        place = _Place(self.field, _text(metadata.phone_number_id), _text(metadata.display_phone_number))
        single = len(lists) == 1 and len(lists[0][2]) == 1 and len(contacts) < 2
        outer: Bytes | None = None
        if not (single and self.alone and not rest):
            outer = _nest(self.around_change(), _around(change, "value"))
            if standby:
                outer = _nest(outer, _around(value, "standby"))
            if len(outer[0]) + len(outer[1]) > ENVELOPE_BYTES_MAX and not single:
                return False
        unmatched = dict.fromkeys(range(len(contacts)))
        by_id = None if single else _contacts_by_id(contacts)
        where = f"{self.path}.value{'.standby' if standby else ''}"
        for name, read, slices in lists:
            frame = None if outer is None else _frame(outer, inner, name, left_out)
            for index, raw in enumerate(slices):
                try:
                    found = read(raw, place)
                except msgspec.ValidationError:
                    found = None
                if found is None:
                    needed = _NEEDED.get(name, "an id")
                    body = self.body if frame is None else frame.around(raw, b"")
                    self.split.malformed.append(
                        Bad("malformed_item", f"{where}.{name}[{index}] is no object with {needed}", body)
                    )
                    continue
                if standby:
                    found.kind, found.dedupe = "standby", found.dedupe and f"standby:{found.dedupe}"
                elif self.field not in _SPLIT_FIELDS:
                    found.kind, found.dedupe, found.account = "unknown", "", False
                own = list(unmatched) if by_id is None else _own_contacts(by_id, found)
                for position in own:
                    unmatched.pop(position, None)
                if len(own) == 1 and not (found.wa_id and found.bsuid):
                    _complete(found, contacts[own[0]])
                if frame is None:
                    body = self.body
                elif own:
                    body = frame.around(raw, b",".join([contacts[position] for position in own]))
                else:
                    body = frame.around(raw, b"")
                self.add(found, place.phone_number_id, body)
        if outer is not None:
            self.leftovers(outer, inner, place, contacts, unmatched, left_out if rest else {})
        return True

    def leftovers(
        self,
        outer: Bytes,
        inner: Members,
        place: _Place,
        contacts: list[Raw],
        unmatched: dict[int, None],
        left_out: dict[str, None],
    ) -> None:
        """Pass on what went along with no item: contacts of nobody, and members that are not ours to take apart."""
        if unmatched:
            apart = {name: None for name, member in inner.items() if _is_apart(name, member)}
            frame = _frame(outer, inner, "contacts", apart)
            for position in unmatched:
                found = _Found("unknown", message_type="contacts")
                _complete(found, contacts[position])
                self.add(found, place.phone_number_id, frame.around(contacts[position], b""))
        if left_out:
            taken = {name for name in left_out if name in _READERS and memoryview(inner[name])[0] == _BRACKET}
            if "contacts" not in left_out:
                taken.add("contacts")
            rest = {name: member for name, member in inner.items() if name not in taken}
            self.add(_Found("unknown"), place.phone_number_id, _join(outer, _object_bytes(rest)))

    def whole(self, body: bytes, raw: Raw | None) -> None:
        """Pass on a change, or an entry without any, as one item."""
        value = _object(raw) if raw is not None else None
        metadata = _metadata_of(value.get("metadata") if value else None)
        phone_number_id = _text(metadata.phone_number_id)
        found = _Found("unknown")
        waba_id = self.waba_id
        if self.field in ACCOUNT_FIELDS:
            found.kind, found.account = "account", True
            if value and "waba_info" in value and raw is not None:
                waba_id = _member(_account(raw).waba_info, "waba_id") or waba_id
        elif value and self.field == "messaging_handovers" and raw is not None:
            handover = _handover(raw)
            phone_number_id = phone_number_id or _member(handover.recipient, "phone_number_id")
            found.wa_id = _member(handover.sender, "phone_number") or _member(handover.sender, "wa_id")
            found.bsuid = _member(handover.sender, "user_id")
            found.at = _instant(handover.timestamp)
        if "time" in self.entry:
            found.at = found.at or _instant(_anything(self.entry["time"]))
        if found.at:  # without an instant, two like facts are two facts
            found.dedupe = f"acct:{_digest(body)}"
        self.add(found, phone_number_id, body, waba_id)

    def bad(self, reason: str, detail: str, outer: Bytes, element: Raw) -> None:
        """Set aside what stands where an object should."""
        self.split.malformed.append(Bad(reason, detail, _join(outer, element)))

    def add(self, found: _Found, phone_number_id: str, body: bytes, waba_id: str = "") -> None:
        """Key an item and take it in."""
        waba_id = waba_id or self.waba_id
        send_id = ""
        ours = unwrap(found.opaque) if found.opaque and found.kind == "status" else None
        if ours is not None:
            key: str = ours.customer
            send_id = ours.send_id
        else:
            key = record_key(
                self.portfolios.get(phone_number_id, PORTFOLIO_OF_UNKNOWN),
                phone_number_id,
                wa_id=found.wa_id,
                bsuid=found.bsuid,
                group_id=found.group_id,
            )
        item = Item(
            found.kind,
            self.field,
            self.app,
            waba_id,
            phone_number_id,
            found.dedupe,
            found.at,
            self.received_at,
            body,
            found.wa_id,
            found.bsuid,
            found.parent_bsuid,
            found.message_type,
            found.status,
            found.wamid,
            send_id,
        )
        if found.account or (not phone_number_id and key.endswith(":#")):
            self.split.accounts.append(Keyed(_key_bytes(waba_id), item))
        else:
            self.split.conversations.append(Keyed(_key_bytes(key), item))


def _is_apart(name: str, member: Raw) -> bool:
    """Whether a member does not go along with each item: items, lists, and what is too large to be repeated."""
    view = memoryview(member)
    return name in _READERS or (name != "contacts" and (view[0] == _BRACKET or view.nbytes > SHARED_BYTES_MAX))


def _key_bytes(key: str) -> bytes:
    return key.encode("utf-8", "replace")


def _scalar(value: Raw | None) -> str:
    return "" if value is None else _text(_anything(value))


def _metadata_of(value: Raw | None) -> Metadata:
    if value is not None:
        try:
            return _metadata(value)
        except msgspec.ValidationError:
            pass
    return Metadata()


def _object_bytes(members: Members) -> bytes:
    return b"{" + b",".join([b"".join((_named(name), value)) for name, value in members.items()]) + b"}"


def _nest(outer: Bytes, inner: Bytes) -> Bytes:
    return outer[0] + inner[0], inner[1] + outer[1]


def _join(outer: Bytes, inner: bytes | Raw) -> bytes:
    return b"".join((outer[0], inner, outer[1]))


def _contacts_by_id(contacts: list[Raw]) -> dict[str, list[int]]:
    """Positions of the contacts by each of their ids."""
    by_id: dict[str, list[int]] = {}
    for position, raw in enumerate(contacts):
        try:
            contact = _contact(raw)
        except msgspec.ValidationError:
            continue
        ids = (_text(contact.wa_id), _text(contact.user_id), _text(contact.parent_user_id))
        for name in dict.fromkeys(ids):
            if name:
                by_id.setdefault(name, []).append(position)
    return by_id


def _own_contacts(by_id: dict[str, list[int]], found: _Found) -> list[int]:
    """Positions of an item's own contacts, in their order."""
    positions: dict[int, None] = {}
    for name in (found.wa_id, found.bsuid, found.parent_bsuid):
        if name:
            positions.update(dict.fromkeys(by_id.get(name, ())))
    return sorted(positions)


def _complete(found: _Found, raw: Raw) -> None:
    """Take from an item's contact the ids that the item itself does not say."""
    try:
        contact = _contact(raw)
    except msgspec.ValidationError:
        return
    found.wa_id = found.wa_id or _text(contact.wa_id)
    found.bsuid = found.bsuid or _text(contact.user_id)
    found.parent_bsuid = found.parent_bsuid or _text(contact.parent_user_id)


def split(body: bytes, app: str, received_at: int, portfolios: Mapping[str, str]) -> Split:
    """Take a webhook's body apart. `portfolios`: a number's portfolio, by `phone_number_id`. Never raises.

    What is no JSON, or JSON of another shape, is one malformed piece that holds the whole body; an item that lacks
    what makes it one is a malformed piece beside its neighbours. 11 µs for a message in a POST of its own, 8 µs for
    each of 1,000 in one, each with its contact (2 busy cores, CPython 3.11).
    """
    try:
        text = _ascii(body)
    except UnicodeDecodeError as error:
        return Split([], [], [Bad("not_json", f"not UTF-8 at byte {error.start}", body)])
    hidden = False
    try:
        try:
            top = _members(text)
        except msgspec.ValidationError:
            return Split([], [], [Bad("another_shape", "not an object", body)])
        except msgspec.DecodeError:
            masked = _hide_lone_surrogates(text)
            if masked is None:
                raise
            text, hidden = masked, True
            top = _members(text)
        walk = _Walk(text, app, received_at, portfolios)
        walk.walk(top)
    except msgspec.DecodeError:
        return Split([], [], [Bad("not_json", "it does not parse", body)])
    except RecursionError:
        return Split([], [], [Bad("not_json", "nested too deep", body)])
    return _shown(walk.split) if hidden else walk.split


def _shown(hidden: Split) -> Split:
    def show(keyed: Keyed) -> Keyed:
        return Keyed(keyed.key, msgspec.structs.replace(keyed.item, body=_show_lone_surrogates(keyed.item.body)))

    return Split(
        [show(keyed) for keyed in hidden.conversations],
        [show(keyed) for keyed in hidden.accounts],
        [bad._replace(body=_show_lone_surrogates(bad.body)) for bad in hidden.malformed],
    )
