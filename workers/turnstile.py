"""Who may ask for a number's next permit: one at a time, replies before campaigns, nobody kept out for ever.

A permit is granted to whoever asks at the right instant, so somebody has to decide who asks. Waiting callers are
served by when they came plus the slack of their lane: a reply passes what came less than that before it, and a
campaign's call that has waited its slack passes every later reply.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.records import Lane

SLACK_S: dict[Lane, float] = {"reply": 0.0, "transactional": 0.4, "campaign": 0.6}
"""More than a lane may have intended ahead (half a second, by its share), so that a reply passes all of it; and with
that half second well below the age an intent may reach."""

LOOK_S = 0.25
"""How often the first in line looks up although nothing opens: leases end, sends become too old."""


class Place:
    """One caller's place in the line."""

    __slots__ = ("_moved", "due", "gone", "number")

    def __init__(self, due: float, number: int) -> None:
        self.due = due
        self.number = number
        self.gone = False
        self._moved: asyncio.Event | None = None

    def __lt__(self, other: Place) -> bool:
        return (self.due, self.number) < (other.due, other.number)

    async def moved(self, timeout_s: float | None) -> None:
        """Wait until somebody called, or the time is over."""
        moved = self._moved = asyncio.Event()
        if timeout_s is None:
            await moved.wait()
        else:
            try:
                async with asyncio.timeout(timeout_s):
                    await moved.wait()
            except TimeoutError:
                pass
        self._moved = None

    def call(self) -> None:
        """Make it look."""
        if self._moved is not None:
            self._moved.set()


class Turnstile:
    """The line before one number's window."""

    def __init__(self) -> None:
        self._line: list[Place] = []
        self._count = 0

    def __len__(self) -> int:
        return sum(1 for place in self._line if not place.gone)

    @contextmanager
    def join(self, lane: Lane, now: float) -> Iterator[Place]:
        """Stand in line for the block's duration. `now`: monotonic seconds."""
        self._count += 1
        place = Place(now + SLACK_S[lane], self._count)
        heapq.heappush(self._line, place)
        try:
            yield place
        finally:
            place.gone = True
            first = self.first()
            if first is not None:
                first.call()

    def first(self) -> Place | None:
        """Return whose turn it is."""
        while self._line and self._line[0].gone:
            heapq.heappop(self._line)
        return self._line[0] if self._line else None

    def call_all(self) -> None:
        """Make everybody look: something changed that concerns all."""
        for place in self._line:
            place.call()
