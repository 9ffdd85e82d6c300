"""What an item of a webhook says about itself: what it is, whose, when, and under which name it is deduplicated.

One reader for each list of items that Meta has. Source: Meta Cloud API, "Webhooks".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw, Struct

from broker.core.identity import normalise_wa_id, same_phone
from schemas.records import ItemKind
from schemas.webhook import (
    Call,
    Contact,
    Echo,
    Group,
    Message,
    Other,
    Preference,
    StateSync,
    Status,
)

MILLISECONDS_FROM: Final = 100_000_000_000
"""A timestamp from here on is in ms already: as seconds it would be the year 5138."""


class Found(Struct):
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
    previous_wa_id: str = ""
    previous_bsuid: str = ""


class Place(NamedTuple):
    """Where an item stands: what its reader may have to know of its surroundings."""

    field: str
    phone_number_id: str
    display_phone_number: str


def text(value: Any) -> str:
    """A string as it is, an integer as its digits, anything else as nothing."""
    if type(value) is str:
        return value
    return str(value) if type(value) is int else ""


def instant(value: Any) -> int:
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


def member_text(value: Any, name: str) -> str:
    """A member of what may be an object, as text."""
    return text(value.get(name)) if type(value) is dict else ""


def digest(slice_: bytes | Raw) -> str:
    """A name for what has no id: the same bytes are the same fact."""
    return hashlib.blake2b(slice_, digest_size=16).hexdigest()


Read = Callable[[Raw, Place], "Found | None"]
"""Reads one element of a list; None when it lacks what makes it an item. Raises `msgspec.ValidationError` when it is no
object."""

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


def read_message(message: Message, place: Place) -> Found | None:
    """What a user wrote, or a system message about one."""
    wamid = text(message.id)
    if not wamid:
        return None
    kind, prefix = _MESSAGE_KINDS.get(place.field, ("unknown", "msg"))
    found = Found(
        kind,
        f"{prefix}:{place.phone_number_id}:{wamid}",
        instant(message.timestamp),
        text(message.from_),
        text(message.from_user_id),
        text(message.from_parent_user_id),
        text(message.group_id),
        text(message.type),
        "",
        wamid,
    )
    if found.message_type == "system":
        _read_move(found, message.system)
    elif found.message_type == "contacts" and not found.wa_id:
        found.wa_id = _shared_phone(message.contacts)
    return found


MOVES: Final = frozenset(("user_changed_number", "user_changed_user_id", "customer_changed_number"))
"""Types of a system message by which a person gets another phone or BSUID; the last one is the name of old. Any other
(`customer_identity_changed`: a new device) changes nobody's id."""


def _read_move(found: Found, system: Any) -> None:
    """A system message belongs to the id its person has from now on: that one asks the old one for what it knows."""
    new_wa_id = member_text(system, "wa_id") or member_text(system, "new_wa_id")
    new_bsuid, old_bsuid = member_text(system, "user_id"), member_text(system, "previous_user_id")
    if member_text(system, "type") not in MOVES:
        found.wa_id = found.wa_id or ("" if found.bsuid else new_wa_id)
        found.bsuid = found.bsuid or ("" if found.wa_id else new_bsuid or old_bsuid)
        return
    if new_wa_id and not same_phone(new_wa_id, found.wa_id):
        found.previous_wa_id, found.wa_id = found.wa_id, new_wa_id
    if new_bsuid != old_bsuid:
        found.previous_bsuid = old_bsuid
    found.bsuid = new_bsuid
    found.parent_bsuid = member_text(system, "parent_user_id") or found.parent_bsuid
    if not (found.wa_id or found.bsuid):
        found.bsuid, found.previous_bsuid = old_bsuid, ""


def _shared_phone(contacts: Any) -> str:
    """The phone somebody without one shared when they were asked for it: theirs, as Meta says by `origin`; "" when the
    card does not name exactly one."""
    phones: dict[str, None] = {}
    for contact in contacts if type(contacts) is list else ():
        if member_text(contact, "origin") != "contact_request":
            continue
        listed = contact.get("phones")
        for phone in listed if type(listed) is list else ():
            wa_id = normalise_wa_id(member_text(phone, "wa_id"))
            if wa_id:
                phones[wa_id] = None
    return next(iter(phones)) if len(phones) == 1 else ""


def _read_echo(raw: Raw, place: Place) -> Found | None:
    echo = _as_echo(raw)
    wamid = text(echo.id)
    if not wamid:
        return None
    return Found(
        "echo",
        f"echo:{wamid}",
        instant(echo.timestamp),
        text(echo.to),
        text(echo.to_user_id),
        text(echo.to_parent_user_id),
        text(echo.group_id),
        text(echo.type),
        "",
        wamid,
    )


def read_status(status: Status, place: Place) -> Found | None:
    """How far a message came; under `calls`, how far a call came."""
    wamid, what = text(status.id), text(status.status)
    if not wamid or not what:
        return None
    if place.field == "calls" or status.type == "call":
        kind: ItemKind = "call_status"
        dedupe = f"call:{wamid}:{what}"
    else:
        kind = "status"
        dedupe = f"st:{wamid}:{what}"
    participant = text(status.recipient_participant_id) or text(status.participant_recipient_id)
    participant_bsuid = text(status.recipient_participant_user_id)
    if participant or participant_bsuid or status.recipient_type == "group":
        if participant or participant_bsuid:
            dedupe = f"{dedupe}:{participant or participant_bsuid}"
        wa_id, bsuid = participant, participant_bsuid
        parent, group_id = text(status.recipient_participant_parent_user_id), text(status.recipient_id)
    else:
        wa_id, bsuid, group_id = text(status.recipient_id), text(status.recipient_user_id), ""
        parent = (
            text(status.recipient_parent_user_id)
            or text(status.parent_recipient_user_id)
            or text(status.parent_user_id)
        )
    return Found(
        kind,
        dedupe,
        instant(status.timestamp),
        wa_id,
        bsuid,
        parent,
        group_id,
        "",
        what,
        wamid,
        text(status.biz_opaque_callback_data),
    )


def _read_call(raw: Raw, place: Place) -> Found | None:
    call = _as_call(raw)
    wacid, event = text(call.id), text(call.event)
    if not wacid:
        return None
    caller = text(call.from_)
    ours = normalise_wa_id(place.display_phone_number)
    if call.direction == "BUSINESS_INITIATED" or (ours and normalise_wa_id(caller) == ours):
        ids = text(call.to), text(call.to_user_id), text(call.to_parent_user_id)
    else:
        ids = caller, text(call.from_user_id), text(call.from_parent_user_id)
    return Found("call", f"call:{wacid}:{event}", instant(call.timestamp), *ids, "", event, text(call.status), wacid)


def _read_preference(raw: Raw, place: Place) -> Found | None:
    preference = _as_preference(raw)
    wa_id, bsuid = text(preference.wa_id), text(preference.user_id)
    category, value = text(preference.category), text(preference.value)
    at = instant(preference.timestamp)
    dedupe = f"pref:{wa_id or bsuid}:{category}:{value}:{at}" if at and (wa_id or bsuid) else ""
    return Found(
        "preference", dedupe, at, wa_id, bsuid, text(preference.parent_user_id), message_type=category, status=value
    )


def _read_group(raw: Raw, place: Place) -> Found | None:
    group = _as_group(raw)
    at = instant(group.timestamp)
    return Found(
        "group",
        f"group:{digest(raw)}" if at else "",
        at,
        group_id=text(group.group_id),
        message_type=text(group.type),
    )


def _read_history(raw: Raw, place: Place) -> Found | None:
    found = _as_other(raw)
    return Found("history", f"hist:{place.phone_number_id}:{digest(raw)}", instant(found.timestamp))


def _read_state_sync(raw: Raw, place: Place) -> Found | None:
    sync = _as_state_sync(raw)
    return Found(
        "history",  # like a chunk, a copy of what the app already knows; taking it twice changes nothing
        "",
        instant(sync.metadata.get("timestamp")) if type(sync.metadata) is dict else 0,
        member_text(sync.contact, "phone_number"),
        member_text(sync.contact, "user_id"),
        member_text(sync.contact, "parent_user_id"),
        message_type="state_sync",
    )


def _read_error(raw: Raw, place: Place) -> Found | None:
    """An error of a number or account as a whole. It has no id, so each is taken for new."""
    return Found("account", at=instant(_as_other(raw).timestamp), account=True)


def _read_user_action(raw: Raw, place: Place) -> Found | None:
    return Found("unknown", at=instant(_as_other(raw).timestamp), message_type="user_actions")


READERS: dict[str, Read] = {
    "messages": lambda raw, place: read_message(_as_message(raw), place),
    "statuses": lambda raw, place: read_status(_as_status(raw), place),
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

NEEDED = {"statuses": "an id and a status"}
"""What an item of a list cannot be without, where it is more than an id."""


def complete(found: Found, contact: Contact) -> None:
    """Take from an item's contact the ids that the item itself does not say, unless the two contradict each other.

    Where they do (samples and other people's fixtures: `from` of one person, `wa_id` of another), the item is right and
    its contact is somebody else: putting both together would make one person of two.
    """
    wa_id, bsuid = text(contact.wa_id), text(contact.user_id)
    if (found.bsuid and bsuid and found.bsuid != bsuid) or (
        found.wa_id and wa_id and not same_phone(found.wa_id, wa_id)
    ):
        return
    found.wa_id = found.wa_id or wa_id
    found.bsuid = found.bsuid or bsuid
    found.parent_bsuid = found.parent_bsuid or text(contact.parent_user_id)
