"""How long marketing to a customer rests after Meta said that they get no more of it now (131049).

Meta limits how much marketing each person gets, of all businesses together, and asks for 24 h before the next try:
sooner it fails again, and an account that tries too often may itself be limited. The limit is the person's, so what one
number of a brand was told holds for all numbers of its portfolio. What is delivered inside an open customer service
window does not count. Times are Unix ms. Source: Meta Cloud API, per-user marketing limit, and "Error codes" (131049).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

CODE: Final = 131049
TITLE: Final = "This message was not delivered to maintain healthy ecosystem engagement."

HOURS_MAX: Final = 168
"""Of the setting. Meta asks for a day; who was told so in every week may want to wait for longer than that."""

MS_PER_H: Final = 3_600_000


def ends_at(said_at: int, rest_ms: int) -> int:
    """Return when the rest is over; 0 when there is none. `said_at`: when Meta last said so, 0 for never. `rest_ms` 0:
    it is not to be kept."""
    return said_at + rest_ms if said_at and rest_ms else 0


def details(at: int) -> str:
    """Say, for whoever sent, why it did not go and when it may (`at`, to the second, never too early)."""
    until = datetime.fromtimestamp(-(-at // 1_000), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return (
        "Meta lately refused marketing to this customer: they had enough of it. "
        f"Until {until} it goes only inside their customer service window."
    )
