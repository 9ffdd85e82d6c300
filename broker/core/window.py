"""The customer service window: 24 h from when the customer last wrote to a number, free-form messages may go.

A window is one instant: when it was last opened, in Unix ms by Meta's clock, 0 when it never was. Each pair of number
and customer has its own. Source: Meta Cloud API, "Send messages", customer service windows.
"""

from __future__ import annotations

WINDOW_MS = 24 * 3_600_000

SKEW_MS_MAX = 5 * 60_000
"""How far Meta's clock may be ahead of ours. An instant further ahead is not believed: it would keep a window open that
Meta has long closed."""


def opened(opened_at: int, wrote_at: int, now: int) -> int:
    """Return when the window was last opened, after a message of this instant: never earlier than before.

    A message without an instant, or with one that cannot be, opens it now.
    """
    if not 0 < wrote_at <= now + SKEW_MS_MAX:
        wrote_at = now
    return max(opened_at, wrote_at)


def closes_at(opened_at: int, margin_ms: int) -> int:
    """Return the instant by which a free-form send must begin; 0 when the window was never open.

    `margin_ms`: clocks differ, and a send takes its time between us and Meta.
    """
    return opened_at + WINDOW_MS - margin_ms if opened_at else 0


def is_open(opened_at: int, now: int, margin_ms: int) -> bool:
    """Whether a free-form send may still begin."""
    return now < closes_at(opened_at, margin_ms)
