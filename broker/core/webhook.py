"""The body of a webhook taken apart: each item of each change with its key, and nothing of the body lost.

A POST holds up to 1,000 updates of different users, numbers and accounts. Each becomes an `Item` whose body is a whole
POST body in Meta's shape that holds this update alone: members in their order, values as the bytes they came in (7.90
stays 7.90), only the contacts of its own user, ASCII only as Meta writes it. A POST with one update stays as it is.

Speed: the body is never built up as objects. Each level is read as names and raw slices, and of an item only the
members that `schemas.webhook` names. Source of all rules about fields: Meta Cloud API, "Webhooks".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
from msgspec import UNSET, Raw

from broker.core.envelope import (
    Bytes,
    Members,
    around,
    ascii_body,
    frame_of,
    hide_lone_surrogates,
    join,
    nest,
    object_bytes,
    show_lone_surrogates,
)
from broker.core.identity import account_key, normalise_wa_id, number_key, record_key
from broker.core.items import (
    NEEDED,
    READERS,
    Found,
    Place,
    Read,
    complete,
    digest,
    instant,
    member_text,
    read_message,
    read_status,
    text,
)
from broker.core.opaque import unwrap
from schemas.records import Item
from schemas.webhook import Account, Contact, Handover, Metadata, Usual

PORTFOLIO_OF_UNKNOWN = "main"
"""An item of a number that no setting names is keyed in this portfolio and goes on like any other."""

SHARED_BYTES_MAX = 4_096
"""A member beside the items, unknown to us and larger than this, is an item of its own: were it to go along with each
of 1,000 items, one POST of 3 MB could become gigabytes."""

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
"""Fields that concern an account or a number as a whole."""


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


_members = msgspec.json.Decoder(Members).decode
_objects = msgspec.json.Decoder(list[Members]).decode
_slices = msgspec.json.Decoder(list[Raw]).decode
_anything = msgspec.json.Decoder().decode
_contact = msgspec.json.Decoder(Contact).decode
_metadata = msgspec.json.Decoder(Metadata).decode
_account = msgspec.json.Decoder(Account).decode
_handover = msgspec.json.Decoder(Handover).decode
_read_usual = msgspec.json.Decoder(Usual).decode


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
"""Fields whose lists mean what `READERS` says. Under any other, an item is passed on and nothing is concluded."""


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
                self.whole(join(self.around_entry(), object_bytes(entry)), entry.get("value"))
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
            self._around_entry = around(self.top, "entry", b"[", b"]")
        return self._around_entry

    def around_change(self) -> Bytes:
        """The bytes around one change of this entry."""
        if self._around_change is None:
            self._around_change = nest(self.around_entry(), around(self.entry, "changes", b"[", b"]"))
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
        body = self.body if self.alone else join(self.around_change(), object_bytes(change))
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
            read = READERS.get(name)
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
        place = Place(self.field, text(metadata.phone_number_id), text(metadata.display_phone_number))
        single = len(lists) == 1 and len(lists[0][2]) == 1 and len(contacts) < 2
        outer: Bytes | None = None
        if not (single and self.alone):  # an only item goes on in the body it came in, with all that stands beside it
            outer = nest(self.around_change(), around(change, "value"))
            if standby:
                outer = nest(outer, around(value, "standby"))
            if len(outer[0]) + len(outer[1]) > ENVELOPE_BYTES_MAX and not single:
                return False
        unmatched = dict.fromkeys(range(len(contacts)))
        by_id = None if single else _contacts_by_id(contacts)
        where = f"{self.path}.value{'.standby' if standby else ''}"
        for name, read, slices in lists:
            frame = None if outer is None else frame_of(outer, inner, name, left_out)
            for index, raw in enumerate(slices):
                try:
                    found = read(raw, place)
                except msgspec.ValidationError:
                    found = None
                if found is None:
                    needed = NEEDED.get(name, "an id")
                    body = self.body if frame is None else frame.around(raw, b"")
                    self.split.malformed.append(
                        Bad("malformed_item", f"{where}.{name}[{index}] is no object with {needed}", body)
                    )
                    continue
                if standby and not (found.kind == "status" and found.opaque and unwrap(found.opaque)):
                    # (a status of a send of ours is that, wherever it comes: it may settle a doubt)
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
        place: Place,
        contacts: list[Raw],
        unmatched: dict[int, None],
        left_out: dict[str, None],
    ) -> None:
        """Pass on what went along with no item: contacts of nobody, and members that are not ours to take apart."""
        if unmatched:
            apart = {name: None for name, member in inner.items() if _is_apart(name, member)}
            frame = frame_of(outer, inner, "contacts", apart)
            for position in unmatched:
                found = Found("unknown", message_type="contacts")
                _complete(found, contacts[position])
                self.add(found, place.phone_number_id, frame.around(contacts[position], b""))
        if left_out:
            taken = {name for name in left_out if name in READERS and memoryview(inner[name])[0] == _BRACKET}
            if "contacts" not in left_out:
                taken.add("contacts")
            rest = {name: member for name, member in inner.items() if name not in taken}
            self.add(Found("unknown"), place.phone_number_id, join(outer, object_bytes(rest)))

    def whole(self, body: bytes, raw: Raw | None) -> None:
        """Pass on a change, or an entry without any, as one item."""
        value = _object(raw) if raw is not None else None
        metadata = _metadata_of(value.get("metadata") if value else None)
        phone_number_id = text(metadata.phone_number_id)
        found = Found("unknown")
        waba_id = self.waba_id
        if self.field in ACCOUNT_FIELDS:
            found.kind, found.account = "account", True
            if value and "waba_info" in value and raw is not None:
                waba_id = member_text(_account(raw).waba_info, "waba_id") or waba_id
        elif value and self.field == "messaging_handovers" and raw is not None:
            handover = _handover(raw)
            phone_number_id = phone_number_id or member_text(handover.recipient, "phone_number_id")
            found.wa_id = member_text(handover.sender, "phone_number") or member_text(handover.sender, "wa_id")
            found.bsuid = member_text(handover.sender, "user_id")
            found.at = instant(handover.timestamp)
        if "time" in self.entry:
            found.at = found.at or instant(_anything(self.entry["time"]))
        if found.at:  # without an instant, two like facts are two facts
            found.dedupe = f"acct:{digest(body)}"
        self.add(found, phone_number_id, body, waba_id)

    def bad(self, reason: str, detail: str, outer: Bytes, element: Raw) -> None:
        """Set aside what stands where an object should."""
        self.split.malformed.append(Bad(reason, detail, join(outer, element)))

    def add(self, found: Found, phone_number_id: str, body: bytes, waba_id: str = "") -> None:
        """Key an item and take it in."""
        waba_id = waba_id or self.waba_id
        keyed = _keyed(found, body, self.field, self.app, waba_id, phone_number_id, self.received_at, self.portfolios)
        if found.account or (not phone_number_id and keyed.key.endswith(b":#")):
            self.split.accounts.append(Keyed(_key_bytes(waba_id), keyed.item))
        else:
            self.split.conversations.append(keyed)


def for_sinks(accounts: Iterable[Keyed], portfolios: Mapping[str, str]) -> list[Keyed]:
    """Return what concerns accounts under the keys it has on `conversations`, where it is taken once and goes to sinks:
    its number's, where it has one, else the account's own."""
    keyed = []
    for _, item in accounts:
        number = item.phone_number_id
        if number:
            key = number_key(portfolios.get(number, PORTFOLIO_OF_UNKNOWN), number)
        else:
            key = account_key(PORTFOLIO_OF_UNKNOWN, item.waba_id)
        keyed.append(Keyed(_key_bytes(key), item))
    return keyed


def _is_apart(name: str, member: Raw) -> bool:
    """Whether a member does not go along with each item: items, lists, and what is too large to be repeated."""
    view = memoryview(member)
    return name in READERS or (name != "contacts" and (view[0] == _BRACKET or view.nbytes > SHARED_BYTES_MAX))


def _key_bytes(key: str) -> bytes:
    return key.encode("utf-8", "replace")


def _scalar(value: Raw | None) -> str:
    return "" if value is None else text(_anything(value))


def _metadata_of(value: Raw | None) -> Metadata:
    if value is not None:
        try:
            return _metadata(value)
        except msgspec.ValidationError:
            pass
    return Metadata()


def _contacts_by_id(contacts: list[Raw]) -> dict[str, list[int]]:
    """Positions of the contacts by each of their ids; a phone also by its normal form."""
    by_id: dict[str, list[int]] = {}
    for position, raw in enumerate(contacts):
        try:
            contact = _contact(raw)
        except msgspec.ValidationError:
            continue
        wa_id = text(contact.wa_id)
        ids = (wa_id, normalise_wa_id(wa_id), text(contact.user_id), text(contact.parent_user_id))
        for name in dict.fromkeys(ids):
            if name:
                by_id.setdefault(name, []).append(position)
    return by_id


def _own_contacts(by_id: dict[str, list[int]], found: Found) -> list[int]:
    """Positions of an item's own contacts, in their order."""
    positions: dict[int, None] = {}
    for name in (found.wa_id, normalise_wa_id(found.wa_id), found.bsuid, found.parent_bsuid):
        if name:
            positions.update(dict.fromkeys(by_id.get(name, ())))
    return sorted(positions)


def _complete(found: Found, raw: Raw) -> None:
    try:
        complete(found, _contact(raw))
    except msgspec.ValidationError:
        return


def split(body: bytes, app: str, received_at: int, portfolios: Mapping[str, str]) -> Split:
    """Take a webhook's body apart. `portfolios`: a number's portfolio, by `phone_number_id`. Never raises.

    What is no JSON, or JSON of another shape, is one malformed piece that holds the whole body; an item that lacks
    what makes it one is a malformed piece beside its neighbours. 11 µs for a message in a POST of its own, 8 µs for
    each of 1,000 in one, each with its contact (2 busy cores, CPython 3.11).
    """
    try:
        plain = ascii_body(body)
    except UnicodeDecodeError as error:
        return Split([], [], [Bad("not_json", f"not UTF-8 at byte {error.start}", body)])
    usual = _usual(plain, app, received_at, portfolios)
    if usual is not None:
        return Split([usual], [], [])
    hidden = False
    try:
        try:
            top = _members(plain)
        except msgspec.ValidationError:
            return Split([], [], [Bad("another_shape", "not an object", body)])
        except msgspec.DecodeError:
            masked = hide_lone_surrogates(plain)
            if masked is None:
                raise
            plain, hidden = masked, True
            top = _members(plain)
        walk = _Walk(plain, app, received_at, portfolios)
        walk.walk(top)
    except msgspec.DecodeError:
        return Split([], [], [Bad("not_json", "it does not parse", body)])
    except RecursionError:
        return Split([], [], [Bad("not_json", "nested too deep", body)])
    return _shown(walk.split) if hidden else walk.split


def _usual(body: bytes, app: str, received_at: int, portfolios: Mapping[str, str]) -> Keyed | None:
    """Return the item of a body with one message or one status, read in one go; None for any other body.

    Nine of ten bodies are such, and go on as they are. It concludes what `_Walk` would, in half the time.
    """
    try:
        usual = _read_usual(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not usual.entry or not usual.entry[0].changes:
        return None
    entry = usual.entry[0]
    change = entry.changes[0]
    value = change.value
    if change.field != "messages" or len(value.messages) + len(value.statuses) != 1:
        return None
    if not (
        UNSET
        is value.message_echoes
        is value.calls
        is value.user_preferences
        is value.groups
        is value.history
        is value.state_sync
        is value.errors
        is value.user_actions
    ):
        return None
    place = Place("messages", text(value.metadata.phone_number_id), "")
    if not place.phone_number_id:
        return None  # it may concern the account
    found = read_message(value.messages[0], place) if value.messages else read_status(value.statuses[0], place)
    if found is None:
        return None
    if value.contacts and not (found.wa_id and found.bsuid):
        complete(found, value.contacts[0])
    waba_id = text(entry.id)
    return _keyed(found, body, "messages", app, waba_id, place.phone_number_id, received_at, portfolios)


def _keyed(
    found: Found,
    body: bytes,
    field: str,
    app: str,
    waba_id: str,
    phone_number_id: str,
    received_at: int,
    portfolios: Mapping[str, str],
) -> Keyed:
    """Key an item."""
    send_id = ""
    ours = unwrap(found.opaque) if found.opaque and found.kind == "status" else None
    if ours is not None:
        key: str = ours.customer
        send_id = ours.send_id
    else:
        key = record_key(
            portfolios.get(phone_number_id, PORTFOLIO_OF_UNKNOWN),
            phone_number_id,
            wa_id=found.wa_id,
            bsuid=found.bsuid,
            group_id=found.group_id,
        )
    item = Item(
        found.kind,
        field,
        app,
        waba_id,
        phone_number_id,
        found.dedupe,
        found.at,
        received_at,
        body,
        found.wa_id,
        found.bsuid,
        found.parent_bsuid,
        found.message_type,
        found.status,
        found.wamid,
        send_id,
        found.previous_wa_id,
        found.previous_bsuid,
    )
    return Keyed(_key_bytes(key), item)


def _shown(hidden: Split) -> Split:
    def show(keyed: Keyed) -> Keyed:
        return Keyed(keyed.key, msgspec.structs.replace(keyed.item, body=show_lone_surrogates(keyed.item.body)))

    return Split(
        [show(keyed) for keyed in hidden.conversations],
        [show(keyed) for keyed in hidden.accounts],
        [bad._replace(body=show_lone_surrogates(bad.body)) for bad in hidden.malformed],
    )
