"""Debounce: when a customer's events are joined and delivered together. People write in bursts, and a bot answers best
what was said in the whole burst.

They are joined after a silence, and before that when there are enough of them or the first has waited long enough.
Instants are Unix ms, those at which the events were appended to their log: a restart comes to the same answer.
"""

from __future__ import annotations

from msgspec import Struct

JOINED_BYTES_MAX = 1_000_000
"""Bodies that are joined, beyond the first: a list is one request, and should be no larger than Kafka's default."""


class Debounce(Struct, frozen=True):
    """`silence_ms`: how long a customer must have said nothing; `events_max` joined at most; `wait_ms_max`: the first
    waits no longer."""

    silence_ms: int
    events_max: int
    wait_ms_max: int

    def due_at(self, appended_at: list[int]) -> int:
        """Return when events that were appended at these instants, in order and at least one, are to be delivered."""
        first_at = appended_at[0]
        if len(appended_at) >= self.events_max:
            return first_at
        return min(first_at + self.wait_ms_max, max(appended_at) + self.silence_ms)
