"""Where a lease stands, and the small machinery every engine needs around it.

`Tenure` is the state machine of the contract's picture; `Signal` wakes those who wait for records or for a change of
a lease; `Backoff` says how long a crashed coroutine rests; `Buffer` holds what was fetched and not handed out. None
of them does I/O; all belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from broker.clock import Clock
from broker.errors import LeaseLost, LeaseRevoked, OutOfTurn
from broker.log.contract import DRAIN_S_MAX, Entry, LeaseState

BUFFER_PAUSE_RECORDS = 4_000
"""Above it a partition is not fetched: four full steps."""

BUFFER_PAUSE_BYTES = 16 * 1024 * 1024
"""The same for large records: four of the largest."""

BUFFER_RESUME_RECORDS = 2_000
"""Below it fetching goes on. Pausing drops what the client had prefetched, so not at every step."""

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 10.0
"""A coroutine that keeps crashing comes back every 5 to 10 s: soon enough for a log to be used half a minute after its
return."""


class Signal:
    """Wakes everybody who waits at this moment. Who comes later waits for the next time."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], None] = {}

    def set(self) -> None:
        """Wake those who wait."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, timeout_s: float) -> bool:
        """Wait for the next `set`; return False after the timeout. Checking first and waiting then misses nothing, as
        long as there is no await in between."""
        return await wait_any((self,), timeout_s)

    def also(self, future: asyncio.Future[None]) -> None:
        """Resolve this future too, at the next `set`."""
        self._waiting[future] = None

    def forget(self, future: asyncio.Future[None]) -> None:
        """Do not, after all."""
        self._waiting.pop(future, None)


async def wait_any(signals: Sequence[Signal], timeout_s: float) -> bool:
    """Wait for the next `set` of any of these; return False after the timeout."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    for signal in signals:
        signal.also(future)
    try:
        async with asyncio.timeout(max(0.0, timeout_s)):
            await future
    except TimeoutError:
        return False
    finally:
        for signal in signals:
            signal.forget(future)
    return True


class Tenure:
    """Where one lease stands: HELD, DRAINING, AWAY or LOST, what is `working` under it, and when it was last proven."""

    def __init__(self, name: str, clock: Clock, changed: Signal | None = None) -> None:
        """Begin HELD. `name` says stage and partition in errors; `changed` is set whenever the state changes."""
        self.name = name
        self.proven_at = clock.monotonic()
        self.changed = changed if changed is not None else Signal()
        self.lost_because = ""
        self._clock = clock
        self._state = LeaseState.HELD
        self._working = 0

    @property
    def state(self) -> LeaseState:
        """What we may do now."""
        return self._state

    def stands(self, *states: LeaseState) -> bool:
        """Whether it is in one of these states (asked anew each time: it changes while we wait)."""
        return self._state in states

    def prove(self, begun_at: float) -> None:
        """Note that what was begun then (monotonic seconds) succeeded, and only an owner succeeds in it."""
        self.proven_at = max(self.proven_at, begun_at)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Keep `drain` waiting, at most `DRAIN_S_MAX`, while the block runs."""
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1
            if self._working == 0:
                self.changed.set()

    async def drain(self, timeout_s: float = DRAIN_S_MAX) -> None:
        """Go HELD → DRAINING → AWAY: at once when nobody is working, else when they are done or the time is up.

        Cancelled, it still ends AWAY. A lease that is lost meanwhile stays lost.
        """
        if self.state is not LeaseState.HELD:
            return
        self._become(LeaseState.DRAINING)
        ends_at = self._clock.monotonic() + min(timeout_s, DRAIN_S_MAX)
        try:
            while self.stands(LeaseState.DRAINING) and self._working:
                left_s = ends_at - self._clock.monotonic()
                if left_s <= 0 or not await self.changed.wait(left_s):
                    break
        finally:
            if self.stands(LeaseState.DRAINING):
                self._become(LeaseState.AWAY)

    def revoke(self) -> None:
        """Go AWAY at once, whoever is working."""
        if self.state in (LeaseState.HELD, LeaseState.DRAINING):
            self._become(LeaseState.AWAY)

    def grant(self) -> None:
        """Come back: AWAY or DRAINING → HELD. A lost lease never comes back: a new one is made."""
        if self.state is LeaseState.LOST:
            raise OutOfTurn(f"{self.name}: a lost lease was granted again")
        self._become(LeaseState.HELD)

    def lose(self, because: str) -> None:
        """End it: the reason is what commit and fetch will say."""
        if self.state is not LeaseState.LOST:
            self.lost_because = because
            self._become(LeaseState.LOST)

    def raise_if_lost(self) -> None:
        """Raise `LeaseLost` when it is lost."""
        if self.state is LeaseState.LOST:
            raise LeaseLost(f"{self.name}: {self.lost_because}")

    def raise_unless_committing(self) -> None:
        """Raise `LeaseLost` when lost, `LeaseRevoked` when away. While draining the running step may be finished."""
        self.raise_if_lost()
        if self.state is LeaseState.AWAY:
            raise LeaseRevoked(f"{self.name}: the partition is not ours at this moment; nothing was written")

    def _become(self, state: LeaseState) -> None:
        self._state = state
        self.changed.set()


class Backoff:
    """How long to rest before the next start: twice as long after each failure, jittered, forgotten after success."""

    def __init__(self, rng: random.Random, first_s: float = BACKOFF_FIRST_S, max_s: float = BACKOFF_MAX_S) -> None:
        self._rng = rng
        self._first_s = first_s
        self._max_s = max_s
        self.failures = 0

    def next_s(self) -> float:
        """Count a failure and return the rest in seconds: between half of the step and the whole."""
        step_s = min(self._max_s, self._first_s * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return step_s * self._rng.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        """Begin anew."""
        self.failures = 0


class Buffer:
    """Records of one lease that were fetched and not handed out yet, for each of its logs in order of offset."""

    def __init__(self, logs: Sequence[str]) -> None:
        self._records: dict[str, deque[Entry]] = {log: deque() for log in logs}
        self._bytes: dict[str, int] = dict.fromkeys(logs, 0)
        self._paused: dict[str, bool] = dict.fromkeys(logs, False)
        self._turn = 0

    def __len__(self) -> int:
        return sum(len(records) for records in self._records.values())

    def put(self, log: str, entries: Sequence[Entry]) -> None:
        """Append what was fetched."""
        self._records[log].extend(entries)
        self._bytes[log] += sum(len(entry.key) + len(entry.value) for entry in entries)

    def clear(self) -> None:
        """Forget everything: it will be fetched again."""
        for log, records in self._records.items():
            records.clear()
            self._bytes[log] = 0

    def take(self, records_max: int, logs: Collection[str] | None = None) -> list[Entry]:
        """Hand out the next records of these logs (None: of all). The logs take turns in being first, each gets its
        share when there is more than can be taken."""
        names = [log for log in self._records if (logs is None or log in logs) and self._records[log]]
        taken: list[Entry] = []
        self._turn += 1
        for index in range(len(names)):
            log = names[(index + self._turn) % len(names)]
            records = self._records[log]
            share = -(-(records_max - len(taken)) // (len(names) - index))
            for _ in range(min(share, len(records))):
                entry = records.popleft()
                self._bytes[log] -= len(entry.key) + len(entry.value)
                taken.append(entry)
        return taken

    def holds(self, logs: Collection[str] | None) -> bool:
        """Whether there is a record of these logs (None: of any)."""
        return any(records and (logs is None or log in logs) for log, records in self._records.items())

    def is_paused(self, log: str) -> bool:
        """Whether this log is to rest: from `BUFFER_PAUSE_RECORDS` (or bytes) until it is down at half of that."""
        records, size = len(self._records[log]), self._bytes[log]
        if self._paused[log]:
            self._paused[log] = records > BUFFER_RESUME_RECORDS or size > BUFFER_PAUSE_BYTES // 2
        else:
            self._paused[log] = records > BUFFER_PAUSE_RECORDS or size > BUFFER_PAUSE_BYTES
        return self._paused[log]
