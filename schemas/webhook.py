"""What Meta says to us, as far as we must understand it: whose item it is, what it is about, when it happened.

Every member may be missing, and a number may stand where a string is documented, and the reverse (Meta Cloud API
2.1): so a member of one value is `Any`, and `broker.core.webhook` takes from it what it is. What is not named here is
not read at all; it travels as the bytes it came in.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field


class Metadata(Struct):
    """`value.metadata`: the business number an item came by."""

    phone_number_id: Any = None
    display_phone_number: Any = None


class Contact(Struct):
    """`value.contacts[]`: who the users of the items are."""

    wa_id: Any = None
    user_id: Any = None
    parent_user_id: Any = None


class Message(Struct):
    """`messages[]`: what a user wrote, and system messages about a user. `system`: the old and new ids of one.
    `contacts`: cards; a user who hides the phone may share it in one."""

    id: Any = None
    type: Any = None
    timestamp: Any = None
    from_: Any = field(name="from", default=None)
    from_user_id: Any = None
    from_parent_user_id: Any = None
    group_id: Any = None
    system: Any = None
    contacts: Any = None


class Echo(Struct):
    """`message_echoes[]`: what a person of the business wrote in the WhatsApp Business app. The user is in `to`."""

    id: Any = None
    type: Any = None
    timestamp: Any = None
    to: Any = None
    to_user_id: Any = None
    to_parent_user_id: Any = None
    group_id: Any = None


class Status(Struct):
    """`statuses[]`: how far a message of ours came; under field `calls`, how far a call of ours came.

    The parent BSUID and a group's participant are each spelled in more than one way.
    """

    id: Any = None
    type: Any = None
    status: Any = None
    timestamp: Any = None
    recipient_id: Any = None
    recipient_type: Any = None
    recipient_user_id: Any = None
    recipient_parent_user_id: Any = None
    parent_recipient_user_id: Any = None
    parent_user_id: Any = None
    recipient_participant_id: Any = None
    participant_recipient_id: Any = None
    recipient_participant_user_id: Any = None
    recipient_participant_parent_user_id: Any = None
    biz_opaque_callback_data: Any = None


class Call(Struct):
    """`calls[]`. A call that the business began has the business in `from` and the user in `to`."""

    id: Any = None
    event: Any = None
    status: Any = None
    direction: Any = None
    timestamp: Any = None
    from_: Any = field(name="from", default=None)
    from_user_id: Any = None
    from_parent_user_id: Any = None
    to: Any = None
    to_user_id: Any = None
    to_parent_user_id: Any = None


class Preference(Struct):
    """`user_preferences[]`: a user opted out of marketing, or in again."""

    wa_id: Any = None
    user_id: Any = None
    parent_user_id: Any = None
    category: Any = None
    value: Any = None
    timestamp: Any = None


class Group(Struct):
    """`groups[]`: a change of a group, or the late answer to a request about one."""

    group_id: Any = None
    type: Any = None
    timestamp: Any = None


class StateSync(Struct):
    """`state_sync[]`: a contact was added or removed in the WhatsApp Business app."""

    contact: Any = None
    metadata: Any = None


class Other(Struct):
    """An item we only pass on: an error of the number, a click, a chunk of history."""

    timestamp: Any = None


class Handover(Struct):
    """`value` of field `messaging_handovers`: which app has a user's thread now."""

    sender: Any = None
    recipient: Any = None
    timestamp: Any = None


class Account(Struct):
    """`value` of a field about an account. `waba_info` names the account where `entry.id` is a portfolio."""

    waba_info: Any = None


T = TypeVar("T")
One = Annotated[list[T], Meta(max_length=1)]
"""A longer list is refused as soon as it is read."""


class UsualValue(Struct):
    """`value` of field `messages` with one message or one status, and the other lists that one can hold, unread."""

    metadata: Metadata = field(default_factory=Metadata)
    contacts: One[Contact] = field(default_factory=list)
    messages: One[Message] = field(default_factory=list)
    statuses: One[Status] = field(default_factory=list)
    message_echoes: Raw | UnsetType = UNSET
    calls: Raw | UnsetType = UNSET
    user_preferences: Raw | UnsetType = UNSET
    groups: Raw | UnsetType = UNSET
    history: Raw | UnsetType = UNSET
    state_sync: Raw | UnsetType = UNSET
    errors: Raw | UnsetType = UNSET
    user_actions: Raw | UnsetType = UNSET


class UsualChange(Struct):
    """One of `entry[].changes`."""

    field: str
    value: UsualValue


class UsualEntry(Struct):
    """One of `entry`."""

    changes: One[UsualChange]
    id: Any = None


class Usual(Struct):
    """A whole body that holds one update: what most of them are. Any other does not fit into it."""

    entry: One[UsualEntry]
