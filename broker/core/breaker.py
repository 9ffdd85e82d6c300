"""A circuit breaker for one sink: when it fails as a whole nothing is attempted, and its events wait in their log.

Driven by the calls themselves, without a sampler: it opens with the call that proves the trouble. What it counts is
distinct events: an event that fails again says nothing new about the sink, and a single indigestible one, retried for
ten minutes, must not close the sink for everybody. For the same reason a program error counts only when the sink has
not taken anything lately, and never when it is about a kind of event the sink has never taken while it takes others:
there are bots that answer 500 to whatever has no `metadata`. Instants are monotonic seconds.

    CLOSED ──half of ≥ 10 calls failed in 60 s, or 5 timeouts in a row, or "gone"──▶ OPEN
    OPEN ──cool-down over: one call, the probe──▶ HALF_OPEN ──taken──▶ CLOSED
                                                  HALF_OPEN ──failed──▶ OPEN, twice as long

Where the program was reached and failed, an event of a kind that has not failed since may be tried while the breaker is
OPEN, once for each kind: the night's account updates must not hold up the first customer of the morning.
"""

from __future__ import annotations

from enum import Enum
from math import exp

from msgspec import Struct

from broker.core.retry import Verdict

KINDS_MAX = 64
"""Kinds remembered. We know of a dozen; beyond the bound a new one is treated as any other event."""


class Phase(Enum):
    """Where a breaker stands; see the module's picture."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class BreakerLimits(Struct, frozen=True):
    """When a breaker opens, and for how long."""

    average_s: float = 60.0
    """Calls count less as they age, by this time constant."""
    calls_min: float = 10.0
    failed_share: float = 0.5
    timeouts_max: int = 5
    taken_lately_s: float = 10.0
    """A program error (HTTP 500) counts against the sink only when nothing was taken for so long."""
    cool_down_s: float = 5.0
    cool_down_s_max: float = 300.0
    jitter: float = 0.2
    """Added share of the cool-down at most, so that many brokers do not probe a sink at once."""
    forgiven_after_s: float = 60.0
    """Closed for so long, the next opening starts at the shortest cool-down again."""


class Breaker:
    """One sink's breaker. Ask `may_call`, `begin` a call, and tell what came of it with the number `begin` gave."""

    def __init__(self, limits: BreakerLimits | None = None) -> None:
        self._limits = limits if limits is not None else BreakerLimits()
        self.phase = Phase.CLOSED
        self.trips = 0
        self.until = 0.0
        """While OPEN: when the probe may go."""
        self._era = 0
        self._calls = 0.0
        self._failures = 0.0
        self._counted_at = 0.0
        self._timeouts = 0
        self._took_at: float | None = None
        self._closed_at: float | None = None
        self._kinds: dict[str, bool] = {}
        """Of each kind that was ever taken: whether it was when it was tried last."""
        self._failed_kinds: dict[str, None] = {}
        """Kinds the program failed at since it last took something, or could last not be reached."""
        self._was_reached = False
        self._resumes: float | None = None
        """While a kind is tried before the cool-down is over: when that ends."""

    def may_call(self, now: float) -> bool:
        """Whether a call may begin now. With the breaker open and cooled down it is the probe."""
        return self.phase is Phase.CLOSED or (self.phase is Phase.OPEN and now >= self.until)

    def may_try(self, kind: str) -> bool:
        """Whether an event of this kind may go although the breaker is open and has not cooled down."""
        return self.phase is Phase.OPEN and self._was_reached and kind not in self._failed_kinds

    def has_failed_at(self, kind: str) -> bool:
        """Whether the program failed at this kind since it last took something: a poor witness of its health."""
        return kind in self._failed_kinds

    def begin(self, now: float) -> int:
        """Begin a call; return the number to report it with. Call only after `may_call` or `may_try`."""
        if self.phase is Phase.OPEN:
            self.phase = Phase.HALF_OPEN
            self._resumes = self.until if now < self.until else None
        return self._era

    def is_probe(self, call: int) -> bool:
        """Whether this call is the one that decides if the breaker closes."""
        return self.phase is Phase.HALF_OPEN and call == self._era

    def ended(
        self,
        call: int,
        found: Verdict,
        now: float,
        *,
        first: bool,
        timed_out: bool,
        chance: float,
        kind: str = "",
    ) -> bool:
        """Note what came of a call; return True when that closed the breaker again.

        `first`: it is this event's first failure; `chance`: from 0 up to 1, the jitter's draw; `kind`: of the event.
        Calls begun before the breaker last opened or closed say nothing about the present and are ignored.
        """
        if call != self._era:
            return False
        if found in (Verdict.TAKEN, Verdict.EVENT):
            if found is Verdict.TAKEN and (kind in self._kinds or len(self._kinds) < KINDS_MAX):
                self._kinds[kind] = True
                self._failed_kinds.clear()
            return self._worked(now, taken=found is Verdict.TAKEN)
        is_own_kind = found is Verdict.UNSURE and self.is_its_kind(kind)
        self._failed_at(kind, found)
        if self.phase is Phase.HALF_OPEN and self._resumes is not None:
            self.phase, self.until, self._resumes = Phase.OPEN, self._resumes, None
        elif found is Verdict.GONE or self.phase is Phase.HALF_OPEN:
            self._open(now, chance, longest=found is Verdict.GONE)
        elif first and not is_own_kind and not (found is Verdict.UNSURE and self._took_lately(now)):
            self._timeouts = self._timeouts + 1 if timed_out else 0
            self._count(now, failed=1.0)
            limits = self._limits
            enough = self._calls >= limits.calls_min and self._failures >= limits.failed_share * self._calls
            if enough or self._timeouts >= limits.timeouts_max:
                self._open(now, chance)
        return False

    def given_back(self, call: int, now: float) -> None:
        """Note that a call was not made after all, or not awaited. A probe given back leaves the next one its place."""
        if call == self._era and self.phase is Phase.HALF_OPEN:
            self.phase = Phase.OPEN
            self.until, self._resumes = (now if self._resumes is None else self._resumes), None

    def is_its_kind(self, kind: str) -> bool:
        """Whether a program error at this kind is known to be about the kind: never taken, while others are."""
        return kind not in self._kinds and any(self._kinds.values())

    def _failed_at(self, kind: str, found: Verdict) -> None:
        if kind in self._kinds:
            self._kinds[kind] = False
        self._was_reached = found is Verdict.UNSURE
        if not self._was_reached:
            self._failed_kinds.clear()
        elif len(self._failed_kinds) < KINDS_MAX:
            self._failed_kinds[kind] = None

    def _worked(self, now: float, *, taken: bool) -> bool:
        self._timeouts = 0
        if taken:
            self._took_at = now
        if self.phase is Phase.HALF_OPEN:
            self.phase, self._resumes = Phase.CLOSED, None
            self._era += 1
            self._closed_at = now
            self._calls = self._failures = 0.0
            self._counted_at = now
            return True
        self._count(now, failed=0.0)
        return False

    def _open(self, now: float, chance: float, *, longest: bool = False) -> None:
        limits = self._limits
        if self._closed_at is not None and now - self._closed_at >= limits.forgiven_after_s:
            self.trips = 0
        self._closed_at = None
        doubled_s = limits.cool_down_s_max if longest else limits.cool_down_s * 2.0 ** min(self.trips, 30)
        cool_down_s = min(limits.cool_down_s_max, doubled_s)
        self.until = now + cool_down_s * (1 + limits.jitter * chance)
        self.trips += 1
        self.phase = Phase.OPEN
        self._era += 1
        self._timeouts = 0

    def _took_lately(self, now: float) -> bool:
        return self._took_at is not None and now - self._took_at < self._limits.taken_lately_s

    def _count(self, now: float, failed: float) -> None:
        left = exp(-max(0.0, now - self._counted_at) / self._limits.average_s)
        self._calls = self._calls * left + 1.0
        self._failures = self._failures * left + failed
        self._counted_at = now
