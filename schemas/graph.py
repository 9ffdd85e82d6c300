"""Between us and Graph, and between bots and us in Graph's place: answers and errors of the send endpoint.

Source: Meta Cloud API, "Messages". Read tolerantly (unknown members are ignored, documented ones may be missing),
written as Meta writes them. The requests themselves are checked by `broker.core.message` and travel as bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType


class ErrorData(Struct, omit_defaults=True):
    """`error.error_data`: what in particular is wrong, for people."""

    messaging_product: str | UnsetType = UNSET
    details: str = ""


class Error(Struct, omit_defaults=True):
    """`error`. Branch on `code`, then on `error_data.details`; never on the message, the subcode or the HTTP status.
    Always written with message, type and code: clients read these without asking."""

    message: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    code: int | UnsetType = UNSET
    error_data: ErrorData | UnsetType = UNSET
    error_subcode: int | UnsetType = UNSET
    is_transient: bool | UnsetType = UNSET
    error_user_title: str | UnsetType = UNSET
    error_user_msg: str | UnsetType = UNSET
    fbtrace_id: str | UnsetType = UNSET


class ContactRef(Struct, omit_defaults=True):
    """`contacts[]`: the address as it was given, and what Meta calls the user. `wa_id` where a phone was given,
    `user_id` where a BSUID was."""

    input: str = ""
    wa_id: str | UnsetType = UNSET
    user_id: str | UnsetType = UNSET


class MessageRef(Struct, omit_defaults=True):
    """`messages[]`: the id by which statuses will speak of the message."""

    id: str = ""
    message_status: str | UnsetType = UNSET
    group_id: str | UnsetType = UNSET


class Answer(Struct, omit_defaults=True):
    """A body Graph answers with: an error; or ids of what was taken; or that it was done; some calls give both."""

    error: Error | UnsetType = UNSET
    messaging_product: str | UnsetType = UNSET
    contacts: list[ContactRef] | UnsetType = UNSET
    messages: list[MessageRef] | UnsetType = UNSET
    success: bool | UnsetType = UNSET
    id: Any = UNSET


decode_answer = msgspec.json.Decoder(Answer).decode
"""Raises `msgspec.DecodeError` on what is no Graph answer: a proxy's page, a body that was cut."""
