"""Meta's limits on sending, each one exact: the tier of a sliding second, the pair limit, the window, the portfolio.

Instants are monotonic seconds, except for the window and the portfolio, which outlive a process: Unix ms.
Source: Meta Cloud API, "Throughput", "Pair rate limits", "Messaging limits".
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Literal

PAIR_PERIOD_S = 6.0
PAIR_BURST_MAX = 45
WINDOW_MS = 24 * 3_600_000
ROLLING_DAY_MS = 24 * 3_600_000

PairReading = Literal["debt", "soft"]
"""The two readings of the pair limit: "debt" lets no second burst begin before the first is repaid, "soft" is a bucket
of 45 that refills by one every 6 s."""


def microseconds(at: float) -> int:
    """Return an instant as whole microseconds: a limit that is exact must not depend on how a float rounds."""
    return round(at * 1_000_000)


class SlidingSecond:
    """What one number sent and received within the last second. Inbound counts and cannot be refused.

    The window is half open: what happened exactly a second ago is over.
    """

    __slots__ = ("_instants", "tier")

    def __init__(self, tier: int) -> None:
        self.tier = tier
        self._instants: deque[int] = deque()

    def charge(self, at: float) -> None:
        """Count one message, whether or not there is room."""
        self._instants.append(microseconds(at))

    def used(self, at: float) -> int:
        """Return how many messages the second that ends now holds."""
        instants = self._instants
        ended = microseconds(at) - 1_000_000
        while instants and instants[0] <= ended:
            instants.popleft()
        return len(instants)

    def has_room(self, at: float) -> bool:
        """Return whether one more message may go."""
        return self.used(at) < self.tier


class PairDebt:
    """What one number may send to one customer: 1 in 6 s, or up to 45 within 6 s and then 6 s of silence for each."""

    __slots__ = ("_level", "_level_at", "burst_started_at", "free_at", "sent")

    def __init__(self) -> None:
        self.burst_started_at = 0.0
        self.sent = 0
        self.free_at = 0.0
        self._level = 0.0
        self._level_at = 0.0

    def allows(self, at: float, reading: PairReading = "debt") -> bool:
        """Return whether a message may go now."""
        if reading == "soft":
            return microseconds(self._drained(at) - (PAIR_BURST_MAX - 1)) <= 0
        if self._is_free(at):
            return True
        return microseconds(at - self.burst_started_at - PAIR_PERIOD_S) <= 0 and self.sent < PAIR_BURST_MAX

    def charge(self, at: float) -> None:
        """Count a message that was accepted."""
        self._level = self._drained(at) + 1
        self._level_at = at
        if self._is_free(at):
            self.burst_started_at, self.sent = at, 0
        self.sent += 1
        self.free_at = self.burst_started_at + PAIR_PERIOD_S * self.sent

    def _is_free(self, at: float) -> bool:
        return self.sent == 0 or microseconds(at - self.free_at) >= 0

    def _drained(self, at: float) -> float:
        return max(0.0, self._level - (at - self._level_at) / PAIR_PERIOD_S)


class PairLimits:
    """The pairs that owe something. A pair that owes nothing is forgotten, so that the map holds the recent ones."""

    __slots__ = ("_pairs", "_swept_at", "reading")

    def __init__(self, reading: PairReading = "debt") -> None:
        self.reading = reading
        self._pairs: dict[tuple[str, str], PairDebt] = {}
        self._swept_at = float("-inf")

    def allows(self, number: str, person: str, at: float) -> bool:
        """Return whether this number may send to this customer now."""
        pair = self._pairs.get((number, person))
        return pair is None or pair.allows(at, self.reading)

    def charge(self, number: str, person: str, at: float) -> None:
        """Count a message that was accepted."""
        self._pairs.setdefault((number, person), PairDebt()).charge(at)
        if at - self._swept_at > 300:  # every pair's debt is over after 45 × 6 s = 270 s of silence
            self._pairs = {key: pair for key, pair in self._pairs.items() if pair.free_at > at}
            self._swept_at = at


class Windows:
    """When each customer last wrote to each number: the customer service window of 24 h."""

    __slots__ = ("_wrote_at",)

    def __init__(self) -> None:
        self._wrote_at: dict[tuple[str, str], int] = {}

    def wrote(self, number: str, person: str, at_ms: int) -> None:
        """The customer wrote: the window begins anew."""
        self._wrote_at[number, person] = max(at_ms, self._wrote_at.get((number, person), 0))

    def closes_at(self, number: str, person: str) -> int:
        """Return the instant from which free-form messages are refused; 0 when the customer never wrote."""
        wrote_at = self._wrote_at.get((number, person))
        return 0 if wrote_at is None else wrote_at + WINDOW_MS

    def is_open(self, number: str, person: str, now_ms: int) -> bool:
        """Return whether a free-form message may go."""
        return now_ms < self.closes_at(number, person)


class PortfolioLimit:
    """How many different people a portfolio may write to outside their windows in a rolling 24 h. 0 is no limit."""

    __slots__ = ("_charged", "people_max")

    def __init__(self, people_max: int = 0) -> None:
        self.people_max = people_max
        self._charged: OrderedDict[str, int] = OrderedDict()

    def allows(self, person: str, now_ms: int) -> bool:
        """Return whether this person may be written to."""
        while self._charged:
            oldest, at = next(iter(self._charged.items()))
            if at > now_ms - ROLLING_DAY_MS:
                break
            del self._charged[oldest]
        return not self.people_max or person in self._charged or len(self._charged) < self.people_max

    def charge(self, person: str, now_ms: int) -> None:
        """Count a person once in 24 h."""
        self._charged.setdefault(person, now_ms)

    def release(self, person: str) -> None:
        """The message failed before it was delivered: the person was not reached."""
        self._charged.pop(person, None)
