"""Where attempts at one sink wait for their turn: the oldest event first, no more at once than the sink bears.

One gate for a sink in a process. Each leased partition of its log has a line at it, with a limit of its own; the
breaker is the sink's. While it is open nobody passes; the probe that tries the sink again is the oldest head, and one
whose probe has failed, or whose kind the sink has just failed at, stands behind those that have not been tried: an
indigestible event must not be the only witness. A sink that has been down for long enough, and has a stand-in, sends
all but its probes there: `enter` then says so. The rules are `broker.core`'s; here is the waiting.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from heapq import heappop, heappush
from typing import NamedTuple

from broker import metrics
from broker.clock import Clock
from broker.core.breaker import Breaker, BreakerLimits, Phase
from broker.core.concurrency import Concurrency
from broker.core.retry import Verdict

_log = logging.getLogger(__name__)


class Waiting(NamedTuple):
    """An attempt that waits. Compared by age; no two of a line share an offset and a number."""

    is_poor_witness: bool
    probes_failed: int
    appended_at: int
    offset: int
    number: int
    turn: asyncio.Future[int | None]


class Failing(NamedTuple):
    """A customer whose event fails, not by its own fault as far as is known."""

    found: Verdict
    holds_up: bool


class Line:
    """One partition's place at a gate, its own sink's or that of a stand-in.

    `may_go` says whether its lease is held; `hasten` is called when those who pause had better look again: the breaker
    has closed, or a stand-in takes over; `recall` is called when the sink wants a probe and nobody waits, and returns
    whether somebody comes. `diverts`: whether its events may be sent to a stand-in.
    """

    def __init__(
        self,
        in_flight_max: int,
        may_go: Callable[[], bool],
        hasten: Callable[[], None],
        recall: Callable[[], bool],
        *,
        diverts: bool = True,
    ) -> None:
        self.in_flight = 0
        self.may_go = may_go
        self.hasten = hasten
        self.recall = recall
        self.diverts = diverts
        self.concurrency = Concurrency(in_flight_max)
        self.waiting: list[Waiting] = []

    def send_away(self, most: int | None = None) -> bool:
        """Tell those who wait, or the first few, to ask elsewhere; return whether anybody did wait."""
        sent = 0
        while self.waiting and (most is None or sent < most):
            turn = heappop(self.waiting).turn
            if not turn.done():
                turn.set_result(None)
                sent += 1
        return sent > 0

    def first(self) -> Waiting | None:
        """Return who would be next, None when nobody may go. Those who went away are dropped."""
        while self.waiting and self.waiting[0].turn.done():
            heappop(self.waiting)
        return self.waiting[0] if self.waiting and self.has_room() else None

    def has_room(self) -> bool:
        """Whether one more may go, as far as this line decides."""
        return self.in_flight < self.concurrency.limit and self.may_go()


class Gate:
    """A sink's breaker and the lines before it. `enter` before an attempt, `leave` after it, always."""

    def __init__(self, sink: str, clock: Clock, rng: random.Random, limits: BreakerLimits | None = None) -> None:
        self.took_at: float | None = None
        """When the sink last took an event, in monotonic seconds."""
        self._sink = sink
        self._clock = clock
        self._rng = rng
        self._breaker = Breaker(limits)
        self._lines: dict[Line, None] = {}
        self._probed: dict[bytes, int] = {}
        self._failing: dict[bytes, Failing] = {}
        self._has_tested = False
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = False
        self.is_paused = True
        self.failover_after_s: float | None = None
        """How long the breaker is open before events are sent to a stand-in; None: there is none."""
        self._down_since: float | None = None
        self._is_diverting = False
        self._shown_diverting = metrics.delivery_failed_over.labels(sink)
        self._shown_diverting.set(0)
        self._shown = metrics.delivery_breaker_open.labels(sink)
        self._shown.set(0)

    def join(self, line: Line) -> None:
        """Let a partition's attempts wait here."""
        self._lines[line] = None

    def part(self, line: Line) -> None:
        """Take a line away; whoever still waits in it was cancelled."""
        self._lines.pop(line, None)
        if not self._lines and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def is_diverting(self) -> bool:
        """Whether a stand-in gets this sink's events."""
        return self._is_diverting

    async def enter(self, line: Line, key: bytes, appended_at: int, offset: int, kind: str = "") -> int | None:
        """Wait for the turn of a customer's event; return the number to `leave` with. The breaker may make it long.

        None: not here. The sink's stand-in is to have it; or, at a stand-in's gate, ask the sink itself again.
        """
        now = self._clock.monotonic()
        if not self.is_paused and line.has_room() and self._breaker.may_try(kind) and not self._breaker.may_call(now):
            line.in_flight += 1
            return self._breaker.begin(now)
        turn: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._number += 1
        poor = self._breaker.has_failed_at(kind)
        waiting = Waiting(poor, self._probed.get(key, 0), appended_at, offset, self._number, turn)
        heappush(line.waiting, waiting)
        self.admit()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and (call := turn.result()) is not None:
                self.leave(line, key, call, None)
            raise

    def leave(
        self,
        line: Line,
        key: bytes,
        call: int,
        found: Verdict | None,
        *,
        first: bool = False,
        timed_out: bool = False,
        kind: str = "",
    ) -> None:
        """End an attempt. `found` None: it was not made, or not awaited. `first`: it is the event's first failure."""
        now = self._clock.monotonic()
        if found is None:
            self._breaker.given_back(call, now)
        else:
            if found is Verdict.TAKEN:
                self.took_at = now
                self._has_tested = False
                line.concurrency.taken(line.in_flight)
            elif found is not Verdict.EVENT:
                if self._breaker.is_probe(call):
                    self._probed[key] = self._probed.get(key, 0) + 1
                if first and not (found is Verdict.UNSURE and self._breaker.is_its_kind(kind)):
                    line.concurrency.failed(now)
            chance = self._rng.random()
            if self._breaker.ended(call, found, now, first=first, timed_out=timed_out, chance=chance, kind=kind):
                self._recovered()
        line.in_flight -= 1
        self.admit()

    def fails(self, key: bytes, found: Verdict, *, holds_up: bool) -> None:
        """Note that a customer's event is failing, by whose fault, and whether another one waits behind it."""
        if found is Verdict.EVENT:
            self._failing.pop(key, None)
        else:
            self._failing[key] = Failing(found, holds_up)

    def fails_no_more(self, key: bytes) -> None:
        """Note that a customer's event is done, one way or another."""
        self._failing.pop(key, None)

    def gave_up(self) -> None:
        """Note that a suspect was given up: no further one is, until the sink takes something."""
        self._has_tested = True

    def is_suspect(self, key: bytes) -> bool:
        """Whether a failing customer's event is the one put to the test (`broker.core.retry`): the one that has failed
        longest, of those that hold up another if there are any. None, when any is known to fail by the sink's fault."""
        if self._has_tested or any(failing.found is not Verdict.UNSURE for failing in self._failing.values()):
            return False
        holding_up = (other for other, failing in self._failing.items() if failing.holds_up)
        return next(holding_up, next(iter(self._failing), None)) == key

    def pause(self, is_paused: bool) -> None:
        """Hold everybody back, or let them pass again. A gate begins paused: nobody has said yet that it is not."""
        if is_paused != self.is_paused:
            self.is_paused = is_paused
            _log.info("sink %s: %s", self._sink, "paused" if is_paused else "runs")
            self.admit()
            if not is_paused:
                for line in self._lines:
                    line.hasten()

    def admit(self) -> None:
        """Let pass whoever may: called whenever a limit, a lease, the breaker or a pause may have changed."""
        now = self._clock.monotonic()
        while not self.is_paused and self._breaker.may_call(now):
            heads = [(head, line) for line in self._lines if (head := line.first()) is not None]
            if not heads:
                break
            head, line = min(heads, key=lambda pair: pair[0][:5])
            heappop(line.waiting)
            line.in_flight += 1
            head.turn.set_result(self._breaker.begin(now))
        self._show(now)
        self._divert(now)
        if self._breaker.phase is Phase.OPEN and self._timer is None and self._lines:
            waits = [self._breaker.until - now]
            if self._down_since is not None and self.failover_after_s is not None and not self._is_diverting:
                waits.append(self._down_since + self.failover_after_s - now)
            if waits := [wait_s for wait_s in waits if wait_s > 0]:
                self._timer = asyncio.get_running_loop().call_later(min(waits), self._time_is_up)

    def _divert(self, now: float) -> None:
        """Send those who wait to the stand-in, when the sink has been down for so long."""
        after_s = self.failover_after_s
        is_long = after_s is not None and self._down_since is not None and now - self._down_since >= after_s
        if is_long != self._is_diverting:
            self._is_diverting = is_long
            self._shown_diverting.set(is_long)
            _log.warning("sink %s: %s", self._sink, "its stand-in takes over" if is_long else "its stand-in is done")
            if is_long:
                for line in self._lines:
                    line.hasten()
        if self._is_diverting and not self.is_paused:
            for line in self._lines:
                if line.diverts and line.may_go():
                    line.send_away()

    def _time_is_up(self) -> None:
        """The breaker has cooled down, or the stand-in's time has come."""
        self._timer = None
        self.admit()
        if self._is_diverting and not self.is_paused and self._breaker.may_call(self._clock.monotonic()):
            any(line.recall() for line in self._lines if line.diverts)

    def _recovered(self) -> None:
        self._probed.clear()
        for line in self._lines:
            line.concurrency.recovered()
            line.hasten()

    def _show(self, now: float) -> None:
        is_open = self._breaker.phase is not Phase.CLOSED
        if is_open != self._is_open:
            self._is_open = is_open
            self._down_since = now if is_open else None
            self._shown.set(is_open)
            _log.warning("sink %s: breaker %s", self._sink, "open: nothing is attempted" if is_open else "closed again")
