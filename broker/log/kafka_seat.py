"""One partition granted to this process: what was fetched for it, where reading stands, and the fetch of its stage.

A seat is **attached** while the group's consumer may deliver to it: from the assignment (and the restore) until the
revocation. What was handed out is the stage's own and not handed out again; what was only fetched is forgotten when
the seat is detached, and fetched again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from broker.clock import Clock
from broker.errors import OutOfTurn
from broker.log.contract import Entry, LeaseState, LogSpec
from broker.log.kafka_connection import Reaper
from broker.log.kafka_reading import Reading
from broker.log.kafka_topics import Topics
from broker.log.lease import Buffer, Signal, Tenure, wait_any
from schemas.settings import KafkaSettings


class Cluster(NamedTuple):
    """What everything of an engine shares."""

    settings: KafkaSettings
    specs: Mapping[str, LogSpec]
    connect: Mapping[str, Any]
    topics: Topics
    reading: Reading
    reaper: Reaper
    clock: Clock
    rng: random.Random


class Fetching(Protocol):
    """The group's consumer, as far as a seat needs it."""

    def attach(self, seat: Seat) -> None:
        """Begin, or go on, to deliver from where the seat stands."""
        ...

    def regulate(self, seat: Seat, log: str, paused: bool) -> None:
        """Hold or let go the delivery of one log."""
        ...

    def leased(self) -> int:
        """How many partitions this member holds."""
        ...


class Seat:
    """The reading half of a lease or a follower's right."""

    def __init__(self, cluster: Cluster, group: Fetching, name: str, logs: Sequence[str], partition: int) -> None:
        self.tenure = Tenure(name, cluster.clock, Signal())
        self.restored = False
        self.attached = False
        self.logs = tuple(logs)
        self.next: dict[str, int] = {}
        """For each log the offset to be handed out next; complete once it was opened."""
        self._partition = partition
        self._cluster = cluster
        self._group = group
        self._buffer = Buffer(logs)
        self._paused: dict[str, bool] = dict.fromkeys(logs, False)
        self._arrived = Signal()
        self._rests_until = 0.0

    @property
    def partition(self) -> int:
        """The partition."""
        return self._partition

    @property
    def state(self) -> LeaseState:
        """What we may do now."""
        return self.tenure.state

    @property
    def proven_at(self) -> float:
        """When the newest thing was begun that only an owner succeeds in."""
        return self.tenure.proven_at

    def watermarks(self) -> dict[str, int]:
        """Offsets that lag tools may be told, for a seat that keeps its position elsewhere."""
        return {}

    def working(self) -> AbstractContextManager[None]:
        """Keep a revocation waiting while something runs that is better finished."""
        return self.tenure.working()

    def is_paused(self, log: str) -> bool:
        """Whether delivery of this log rests because enough of it waits here."""
        return self._paused[log]

    def begin(self) -> None:
        """The stage has what was committed: deliver."""
        self.tenure.raise_if_lost()
        self.restored = True
        if self.tenure.stands(LeaseState.HELD):
            self._group.attach(self)

    def detach(self) -> None:
        """Take nothing more, forget what was not handed out."""
        self.attached = False
        self._buffer.clear()
        for log in self.logs:
            self._paused[log] = self._buffer.is_paused(log)

    def put(self, log: str, entries: Sequence[Entry]) -> None:
        """Take what was fetched. Offsets before the place where reading stands were fetched before a seek."""
        expected = self.next[log]
        fresh = entries if entries[0].offset >= expected else [entry for entry in entries if entry.offset >= expected]
        self._buffer.put(log, fresh)
        self._regulate(log)
        self._arrived.set()

    async def _next(self, records_max: int, timeout_s: float, logs: Collection[str] | None) -> list[Entry]:
        if not self.restored:
            raise OutOfTurn(f"{self.tenure.name}: records were asked for before the restore")
        clock = self._cluster.clock
        ends_at = clock.monotonic() + timeout_s
        await asyncio.sleep(0)  # a stage that only fetches must not keep the pump from running
        while True:
            self.tenure.raise_if_lost()
            now = clock.monotonic()
            left_s = ends_at - now
            if self.tenure.stands(LeaseState.HELD) and self._buffer.holds(logs):
                rest_s = self._rests_until - now
                if rest_s <= 0:
                    return self._hand_out(records_max, logs)
                left_s = min(left_s, rest_s)
            if left_s <= 0:
                return []
            await wait_any((self.tenure.changed, self._arrived), left_s)

    def _hand_out(self, records_max: int, logs: Collection[str] | None) -> list[Entry]:
        taken = self._buffer.take(records_max, logs)
        for entry in taken:
            self.next[entry.log] = entry.offset + 1
        for log in self.logs:
            self._regulate(log)
        return taken

    def _regulate(self, log: str) -> None:
        paused = self._buffer.is_paused(log)
        if paused != self._paused[log]:
            self._paused[log] = paused
            if self.attached:
                self._group.regulate(self, log, paused)
