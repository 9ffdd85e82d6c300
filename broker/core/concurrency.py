"""How many requests a sink is given at once: carefully more while it takes them, half as many when it fails.

The rule of TCP: a slow start that doubles with every round, then one more per round, and half after trouble. Latency
is no signal here, although others use it: a bot that asks a language model answers in 0.1 s or 20 s by what was asked,
which says nothing of its load. Instants are monotonic seconds.
"""

from __future__ import annotations

START = 8
"""Where a fresh process begins: enough for a healthy bot to feel no delay, few enough for a small one."""

BACK_OFF_EVERY_S = 1.0
"""One trouble makes many calls fail at once; it halves the limit once."""


class Concurrency:
    """The present limit of one sink, from 1 to `limit_max`."""

    def __init__(self, limit_max: int) -> None:
        self._limit_max = float(limit_max)
        self._limit = min(float(START), self._limit_max)
        self._doubles_to = self._limit_max
        self._halved_at: float | None = None

    def bound(self, limit_max: int) -> None:
        """Never allow more than this from now on."""
        self._limit_max = float(limit_max)
        self._limit = min(self._limit, self._limit_max)
        self._doubles_to = min(self._doubles_to, self._limit_max)

    @property
    def limit(self) -> int:
        """How many requests may be under way."""
        return int(self._limit)

    def taken(self, in_flight: int) -> None:
        """One was taken while `in_flight` (itself included) were under way. A limit nobody reaches does not grow."""
        if 2 * in_flight >= self.limit:
            step = 1.0 if self._limit < self._doubles_to else 1.0 / self._limit
            self._limit = min(self._limit_max, self._limit + step)

    def failed(self, now: float) -> None:
        """One failed by the sink's fault."""
        if self._halved_at is None or now - self._halved_at >= BACK_OFF_EVERY_S:
            self._halved_at = now
            self._doubles_to = self._limit = max(1.0, self._limit / 2)

    def recovered(self) -> None:
        """The sink is back after its breaker was open: begin with one, so that the backlog does not fell it again."""
        self._limit = 1.0
        self._doubles_to = max(1.0, self._limit_max / 2)
