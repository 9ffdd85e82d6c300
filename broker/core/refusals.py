"""What a send is refused with: the code, title and details that Meta would give.

Source: Meta Cloud API, "Error codes", September 2026.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from broker.core import marketing_rest


class Refusal(NamedTuple):
    """Why a send is not sent, or did not arrive, in Meta's words: the errors of a `failed` status."""

    code: int
    title: str
    details: str


WINDOW_CLOSED: Final = Refusal(
    131047, "Re-engagement message", "The customer did not write in the last 24 hours: only a template may be sent."
)
TOO_OLD: Final = Refusal(131026, "Message undeliverable", "The message was not sent in the time it was good for.")
BACKLOG: Final = Refusal(
    131056,
    "(Business Account, Consumer Account) pair rate limit hit",
    "Too many messages to this customer wait to be sent.",
)
NUMBER_UNKNOWN: Final = Refusal(
    100, "Invalid parameter", "The phone number id is not configured here, or is no longer (error subcode 33)."
)
OPTED_OUT: Final = Refusal(
    131050, "User stopped marketing messages", "The customer does not want marketing messages of this business."
)
EPOCH_STALE: Final = Refusal(
    131005, "Access denied", "The conversation has passed to another holder since this one was told its epoch."
)
REFERENCE_GONE: Final = Refusal(
    131009, "Parameter value is not valid", "The message it speaks of was not sent, or too long ago."
)
UNREADABLE: Final = Refusal(100, "Invalid parameter", "The body is not a JSON object.")
ADDRESS_TOO_LONG: Final = Refusal(100, "Invalid parameter", "The recipient's id is too long.")
OUTCOME_UNKNOWN: Final = Refusal(
    131000,
    "Something went wrong",
    "Whether this message was sent is not known: neither an answer nor a status arrived. It may have been delivered.",
)


def resting(until: int) -> Refusal:
    """Marketing rests until this instant (Unix ms)."""
    return Refusal(marketing_rest.CODE, marketing_rest.TITLE, marketing_rest.details(until))
