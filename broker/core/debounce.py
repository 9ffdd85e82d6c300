"""Debounce: when a customer's events are joined and delivered together. People write in bursts, and a bot answers best
what was said in the whole burst.

They are joined after a silence, and before that when there are enough of them or the first has waited long enough. How,
says the route that took an event, else its sink. Only neighbours that are to be joined alike are: another one ends the
gathering of those before it, which go first and at once, for a customer's order is kept. A status of which no route
says anything goes along with whatever is gathered: the ticks of a bot's last answer come just while its customer types.
Instants are Unix ms, those at which the events were appended to their log: a restart comes to the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from msgspec import Struct

from schemas.records import DeliveryEvent, RouteDebounce
from schemas.settings import SinkSettings

JOINED_BYTES_MAX = 1_000_000
"""Bodies that are joined, beyond the first: a list is one request, and should be no larger than Kafka's default."""

AT_ONCE = 0


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


ALONG: Final = Debounce(0, 0, 0)
"""How a status is joined of which nobody says how: it makes nobody wait, and is in nobody's way."""


class Gathered(NamedTuple):
    """How many events go together, the first included, and when."""

    events: int
    due_at: int


def debounce_of(said: RouteDebounce | None, sink: SinkSettings) -> Debounce | None:
    """Return how an event of which its route said this is joined with others at a sink; None: not at all."""
    silence_ms = sink.debounce_ms if said is None else said.silence_ms
    if not silence_ms or sink.kind == "meta":
        return None
    if said is None:
        return Debounce(silence_ms, sink.debounce_events_max, sink.debounce_wait_ms_max)
    return Debounce(
        silence_ms, said.events_max or sink.debounce_events_max, said.wait_ms_max or sink.debounce_wait_ms_max
    )


def behind(event: DeliveryEvent, sink: SinkSettings) -> Debounce | None:
    """Return how an event is joined with those before it at a sink."""
    if event.kind == "status" and event.debounce is None and not sink.debounce_ms:
        return ALONG
    return debounce_of(event.debounce, sink)


def gather(debounce: Debounce, first_at: int, more: Iterable[tuple[int, Debounce | None]]) -> Gathered:
    """Say which events go together, as far as they are known: the first, and of those behind it, each with its instant
    and how it is to be joined (`behind`), the next ones that are to be joined like it, or go along. One that is not
    makes them due."""
    appended_at = [first_at]
    events = 1
    for at, other in more:
        if events >= debounce.events_max:
            return Gathered(events, first_at)
        if other == ALONG:
            events += 1
        elif other == debounce:
            events += 1
            appended_at.append(at)
        else:
            return Gathered(events, AT_ONCE)
    return Gathered(events, first_at if events >= debounce.events_max else debounce.due_at(appended_at))
