"""How fast one business number may send: its exact sliding window, and what it owes each customer.

Two rules of Meta's stand here. The **throughput tier** counts every message of a number, in and out, in any second;
`Window` never grants a permit that would exceed it. The **pair limit** lets one number send to one customer once in
6 s, with a burst that is borrowed and must be repaid; `PairDebt` says what is owed.

A window lives on the monotonic clock (float seconds): it begins full with every owner, so nothing of it needs to
survive. A debt must survive, since it lasts up to four and a half minutes: it is kept in milliseconds of whichever
clock its keeper uses, and `carried` brings it from one clock to another.
"""

from __future__ import annotations

from collections import deque
from math import exp, inf, sqrt

from msgspec import Struct

WINDOW_S = 1.040
"""A second, and 40 ms because two sends may come closer together on their way to Meta than they left us."""

INBOUND_UNSEEN_S = 0.25
"""How old the newest inbound message may be before we know of it: 100 ms of a receiver's digest, 150 ms on the log."""

INBOUND_SIGMAS = 3.7
INBOUND_SKEW = (INBOUND_SIGMAS**2 - 1) / 6
"""What is kept free for inbound not seen yet: so many standard deviations, as for a Poisson stream, and what such a
stream's skewness adds to them, in messages at any rate (the first term of Cornish and Fisher): most of the reserve at
20, little at 1,000. Its expectation is in the window already: a report stays for a whole window after it came, so as
much of the past is counted too long as of the present is missing. Played over an hour with 30 % inbound: 0.01 / 0.01 /
0.00 % refused at 20 / 80 / 1,000, and 0.67 / 0.84 / 0.94 of the tier used. With four standard deviations and no skew it
was 0.2 / 0.03 / 0.00 % and 0.74 / 0.85 / 0.94."""

INBOUND_MEAN_S = 5.0
"""Time constant of the inbound rate's moving mean: steady at 1/s, quick enough for a campaign's echo."""

CATCH_UP_S = 0.25
"""How much lateness of a timer is made good by sending closer together. A stall is what has to be made good: Python's
collector holds a sender with 28,000 waiting sends up for 130 ms every second. Measured at 1,000 mps: 0.91 of the tier
with 0.05 s, 0.94 with 0.25 s, nothing refused in either. More would let one stall fill the window at once and leave
the rest of the second to nobody."""

CUT = 0.7
CUT_EVERY_S = 1.0
REGAIN = 0.01
REGAIN_EVERY_S = 2.0
RATE_MIN = 0.05
"""After 130429: the rate times 0.7 at most once a second, 1 % of nominal back every 2 s, never below 5 % of nominal."""

FREEZE_FIRST_S = 15.0
FREEZE_MAX_S = 60.0
"""After 131057 (throughput upgrade, up to a minute): 15 s, then twice as long. Meta Cloud API, 4.1 and 6.3."""

PAIR_INTERVAL_MS = 6_000
PAIR_BURST_MS = 6_000
PAIR_BURST_MAX = 45
"""One message in 6 s; at most 45 in one burst of 6 s, which then owes 270 s. Meta Cloud API, "Pair rate limits"."""

PAIR_WAY_MS = 500
"""How much the ways of two calls to Meta may differ. Meta counts from arrivals, we from departures: a burst is ended
that much earlier and a debt held that much longer. Without it 94 of 3,000 sends of chatty customers were refused."""

PAIR_STRIKES_MAX = 4
PAIR_STRIKE_FORGIVEN_MS = 60_000
"""131056 says wait 4^X s, X counting the failures: up to 256 s. One failure is forgotten for each quiet minute."""

PAIR_DEBT_MAX_MS = max(PAIR_INTERVAL_MS * PAIR_BURST_MAX, 1_000 * 4**PAIR_STRIKES_MAX)
"""No debt is longer than a full burst's, 270 s; a strike adds at most 256 s from the moment it came."""


class Window:
    """What one number may still send in this second. Monotonic seconds; begins full, as after any takeover.

    A permit is granted only when it, the permits and the inbound of the last `WINDOW_S` and the reserve for inbound
    not yet known fit the tier. Permits are also spaced evenly, so that whoever may be served next never waits longer
    than one interval for those before: a full second's worth at once would leave the rest of the second to nobody.
    """

    def __init__(self, throughput_mps: int, now: float) -> None:
        """Begin for a tier. No permit for one whole window: a predecessor may have used all of it a moment ago."""
        self.throughput_mps = max(1, throughput_mps)
        self._permits: deque[float] = deque()
        self._leaving = 0
        self._inbound: deque[tuple[float, int]] = deque()
        self._inbound_count = 0
        self._inbound_rate = 0.0
        self._inbound_rate_at = now
        self._began_at = now
        self._closed_until = now + WINDOW_S
        self._due_at = self._closed_until
        self._factor = 1.0
        self._cut_at = -inf
        self._freezes = 0
        self._frozen_until = -inf

    def limit(self, now: float) -> int:
        """Return how many messages a window may hold at present: the tier, less what 130429 has taught."""
        return max(1, int(self.throughput_mps * self._factor_at(now) + 1e-9))

    def interval_s(self, now: float) -> float:
        """Return the time between two permits: what inbound leaves of the window, spread evenly over it."""
        self._forget(now)
        return WINDOW_S / max(1, self.limit(now) - self._inbound_count - self._reserve(now))

    def used(self, now: float) -> int:
        """Return how many messages, out and in, the window holds."""
        self._forget(now)
        return len(self._permits) + self._inbound_count

    def open_at(self, now: float) -> float:
        """Return the earliest instant at which `take` can succeed as far as is known now; at most `now` when it can."""
        self._forget(now)
        earliest = max(self._due_at, self._closed_until, self._frozen_until)
        missing = len(self._permits) + self._inbound_count + self._reserve(now) + 1 - self.limit(now)
        if missing > 0:
            earliest = max(earliest, self._room_at(missing, now))
        return earliest

    def take(self, now: float, asked_at: float) -> bool:
        """Grant one permit, or not. Whoever is granted one sends at once, with nothing awaited in between.

        `asked_at` is since when somebody was waiting for it: a permit that was due while somebody waited and came
        late by a timer's fault does not push back the next ones.
        """
        if self.open_at(now) > now:
            return False
        self._permits.append(now)
        self._leaving += 1
        self._due_at = max(self._due_at, min(asked_at, now), now - CATCH_UP_S) + self.interval_s(now)
        return True

    def left(self, now: float) -> None:
        """Note that whatever was granted since the last call has left by now.

        A loop that stalls between a permit and the socket holds the bytes back; they count from when they left.
        """
        for index in range(1, self._leaving + 1):
            if index > len(self._permits):
                break
            self._permits[-index] = now
        self._leaving = 0

    def charge_inbound(self, count: int, now: float) -> None:
        """Count inbound messages a receiver reports. They were received already, so they may exceed the limit."""
        if count <= 0:
            return
        self._forget(now)
        self._inbound.append((now, count))
        self._inbound_count += count
        self._inbound_rate = self._mean_rate(now) + count / INBOUND_MEAN_S
        self._inbound_rate_at = now

    def throttled(self, now: float) -> None:
        """Slow down: Meta answered 130429, so it counts something we do not see."""
        if now - self._cut_at < CUT_EVERY_S:
            return
        self._factor = max(RATE_MIN, self._factor_at(now) * CUT)
        self._cut_at = now

    def freeze(self, now: float) -> float:
        """Stop for a while: Meta answered 131057. Return until when. Answers of calls already under way do not
        lengthen it."""
        if now < self._frozen_until:
            return self._frozen_until
        self._frozen_until = now + min(FREEZE_MAX_S, FREEZE_FIRST_S * 2.0 ** min(self._freezes, 8))
        self._freezes += 1
        return self._frozen_until

    def thawed(self) -> None:
        """Note that a send was accepted: the next freeze begins small again."""
        self._freezes = 0

    def set_throughput(self, throughput_mps: int) -> None:
        """Take another tier, from the next permit on."""
        self.throughput_mps = max(1, throughput_mps)

    def _factor_at(self, now: float) -> float:
        if self._factor >= 1.0:
            return 1.0
        regained = REGAIN * int(max(0.0, now - self._cut_at) / REGAIN_EVERY_S)
        return min(1.0, self._factor + regained)

    def _mean_rate(self, now: float) -> float:
        return self._inbound_rate * exp(-max(0.0, now - self._inbound_rate_at) / INBOUND_MEAN_S)

    def _expected_rate(self, now: float) -> float:
        """Return the inbound rate: the moving mean over the time there was to see any, or a new owner would believe
        for seconds that little comes in."""
        return self._mean_rate(now) / (1.0 - exp(-max(0.1, now - self._began_at) / INBOUND_MEAN_S))

    def _reserve(self, now: float) -> int:
        """Return what is kept free for inbound not seen yet; at most half of what is left, or replies would starve."""
        unseen = self._expected_rate(now) * INBOUND_UNSEEN_S
        if unseen < 0.01:
            return 0
        left = max(0, self.limit(now) - self._inbound_count)
        return min(int(INBOUND_SIGMAS * sqrt(unseen) + INBOUND_SKEW), left // 2)

    def _forget(self, now: float) -> None:
        over_at = now - WINDOW_S
        while self._permits and self._permits[0] <= over_at:
            self._permits.popleft()
        while self._inbound and self._inbound[0][0] <= over_at:
            self._inbound_count -= self._inbound.popleft()[1]

    def _room_at(self, missing: int, now: float) -> float:
        """Return when so many messages will have left the window, if nothing is added."""
        if not self._inbound and missing <= len(self._permits):
            return self._permits[missing - 1] + WINDOW_S
        permits, inbound = iter(self._permits), iter(self._inbound)
        permit, charge = next(permits, None), next(inbound, None)
        while missing > 0:
            if permit is not None and (charge is None or permit <= charge[0]):
                at, missing, permit = permit, missing - 1, next(permits, None)
            elif charge is not None:
                at, missing, charge = charge[0], missing - charge[1], next(inbound, None)
            else:
                return now + self.interval_s(now)  # the reserve alone fills it: it shrinks by itself
        return at + WINDOW_S


class PairDebt(Struct, frozen=True, array_like=True):
    """What one number owes one customer: one message owes 6 s of silence, a burst of 20 owes two minutes.

    `since` is when the burst began, `count` what it holds, `free_at` when it is repaid. `strikes` counts answers
    131056, `struck_at` is the last. All instants are ms of one clock of the keeper's; see `carried`. `ahead_ms` is what
    `carried` took off since the burst seemed to lie in the future: whoever writes the debt down adds it again.
    Source: Meta Cloud API, "Pair rate limits", read literally: after a burst nothing until all of it is repaid.
    """

    since: int = 0
    count: int = 0
    free_at: int = 0
    strikes: int = 0
    struck_at: int = 0
    ahead_ms: int = 0


NO_DEBT = PairDebt()


def pair_open_at(debt: PairDebt, now: int) -> int:
    """Return when this customer may be sent to next; at most `now` when at once."""
    if now >= debt.free_at:
        return now
    is_in_burst = debt.strikes == 0 and 0 <= now - debt.since <= PAIR_BURST_MS and debt.count < PAIR_BURST_MAX
    return now if is_in_burst else debt.free_at


def pair_surely_open_at(debt: PairDebt, now: int) -> int:
    """Return when this customer may be sent to next whichever way the calls take; at most `now` when at once."""
    late, early = now + PAIR_WAY_MS, max(now - PAIR_WAY_MS, debt.since)
    if pair_open_at(debt, late) <= late and pair_open_at(debt, early) <= early:
        return now
    return debt.free_at + PAIR_WAY_MS


def pair_spent(debt: PairDebt, now: int) -> PairDebt:
    """Return the debt after a send at `now`. It is charged whether the limit allowed it or not: it was sent.

    One that was made before the debt was repaid adds its own 6 s to it: `since` may be earlier than the burst was, see
    `carried`, and a ledger is read with the clock of whoever wrote the debt, not of whoever made the send.
    """
    debt = _forgiven(debt, now)
    way_ms = PAIR_WAY_MS if debt.count else 0  # repaid by our clock only: Meta may have seen it come before that
    if now >= debt.free_at + way_ms:
        return PairDebt(now, 1, now + PAIR_INTERVAL_MS, debt.strikes, debt.struck_at)
    count = debt.count + 1
    more_ms = PAIR_INTERVAL_MS if count <= PAIR_BURST_MAX else 0
    return PairDebt(debt.since, count, debt.free_at + more_ms, debt.strikes, debt.struck_at, debt.ahead_ms)


def pair_struck(debt: PairDebt, now: int) -> PairDebt:
    """Return the debt after an answer 131056: silence for 4^X s, X growing with each failure."""
    debt = _forgiven(debt, now)
    wait_ms = 1_000 * 4 ** min(debt.strikes, PAIR_STRIKES_MAX)
    strikes = min(debt.strikes + 1, PAIR_STRIKES_MAX + 1)
    return PairDebt(debt.since, debt.count, max(debt.free_at, now + wait_ms), strikes, now, debt.ahead_ms)


def is_settled(debt: PairDebt, now: int) -> bool:
    """Whether nothing is owed and nothing remembered, so that it need not be kept."""
    return now >= debt.free_at and _forgiven(debt, now).strikes == 0


def carried(debt: PairDebt, by: int, now: int) -> PairDebt:
    """Return the debt on another clock: `by` is that clock less this one, `now` is that clock's present.

    Wall clocks step and differ between machines. So a debt is never longer than its own burst or strike could make
    it, nothing lies in the future, and a burst is over: whether its 6 s still run cannot be known. A clock that is
    ahead forgives a part of the debt; then Meta's 131056 says so. One that is behind shortens a debt that is still too
    long for it, and `ahead_ms` keeps by how much: written down as cut it would be too short for the clock it came from.
    """
    struck_at = min(debt.struck_at + by, now)
    owed_ms = min(max(debt.free_at - debt.since, 0), PAIR_DEBT_MAX_MS)
    ahead_ms = max(debt.free_at + by - (now + owed_ms), 0)
    since = min(debt.since + by - ahead_ms, now - PAIR_BURST_MS - 1)
    return PairDebt(since, debt.count, debt.free_at + by - ahead_ms, debt.strikes, struck_at, ahead_ms)


def _forgiven(debt: PairDebt, now: int) -> PairDebt:
    """Return the debt without the strikes that quiet minutes have wiped out."""
    if debt.strikes == 0:
        return debt
    quiet = max(0, now - debt.struck_at) // PAIR_STRIKE_FORGIVEN_MS
    if quiet == 0:
        return debt
    strikes = max(0, debt.strikes - quiet)
    struck_at = debt.struck_at + quiet * PAIR_STRIKE_FORGIVEN_MS
    return PairDebt(debt.since, debt.count, debt.free_at, strikes, struck_at, debt.ahead_ms)
