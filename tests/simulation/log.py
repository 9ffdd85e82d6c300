"""`SimulatedLog`: a log engine in memory, one client of a `SimulatedCluster` for each process.

It owes what `broker/log/contract.py` says, and takes every liberty the contract leaves: appends fail after they
landed, steps end in doubt, partitions go away and come back, a thawed process believes what it believed. What was sent
before a process died still arrives; what waited in it is gone. An engine of a dead process answers nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

from broker.errors import (
    LeaseLost,
    LeaseRevoked,
    LogUnavailable,
    Misconfigured,
    OutOfTurn,
    RecordTooLarge,
    WrongIncarnation,
)
from broker.log.contract import (
    METADATA_CHARS_MAX,
    Draft,
    Entry,
    Follow,
    Lease,
    LeaseState,
    LogSpec,
    Membership,
    Restored,
    Stage,
    Step,
)
from broker.log.lease import Backoff, Buffer, Signal, Tenure
from broker.log.partitioning import partition_for
from broker.log.position import check_drafts, check_stage, check_step
from tests.simulation.cluster import Partition, Seat, SimulatedCluster, Transaction
from tests.simulation.loop import Process

START_S_MAX = 10.0
ASK_S_MAX = 10.0
COMMIT_S_MAX = 8.0
"""As the Kafka engine's."""

IN_FLIGHT_BYTES_MAX = 32 * 1024 * 1024
"""What one process may have on its way to the cluster; more waits."""

APPENDS_A_REQUEST_MAX = 1_000
FETCH_RECORDS_MAX = 1_000

EVICT_S = 5.0
"""How long a coroutine may go on after its lease was lost before it is cancelled."""

IDLE_S = 3_600.0
"""A wait that a signal ends; the bound only keeps it from being endless."""


class _Append(NamedTuple):
    log: str
    drafts: list[Draft]
    size: int
    answer: asyncio.Future[None]


class _Feed:
    """Reads one partition on, record by record, into somebody's buffer."""

    def __init__(
        self,
        engine: SimulatedLog,
        partition: Partition,
        start: int | None,
        deliver: Callable[[list[Entry]], None],
        is_paused: Callable[[], bool],
    ) -> None:
        self.process = engine.process
        self._cluster = engine.cluster
        self._log = partition.log
        self._index = partition.index
        self._at = partition.first_offset if start is None else start
        self._deliver = deliver
        self._is_paused = is_paused
        self._asking = False
        self._closed = False
        self.poke()
        partition.readers[id(self)] = self

    @property
    def _partition(self) -> Partition:
        return self._cluster.logs[self._log].partitions[self._index]

    def poke(self) -> None:
        """Fetch, when there is something to fetch and room for it."""
        if self._asking or self._closed or self._partition.visible_end <= self._at or self._is_paused():
            return
        self._asking = True
        cluster = self._cluster
        delay = cluster.wire_s() + cluster.faults.delay("fetch.slow")
        self.process.arrive_at(cluster.loop.now + delay, self._arrived)

    def _arrived(self) -> None:
        cluster = self._cluster
        if not cluster.reaches(self.process):
            cluster.when_reached(self.process, self._again)
            return
        self._asking = False
        if not self._closed:
            entries, self._at = self._partition.read(self._at, FETCH_RECORDS_MAX)
            if entries:
                cluster.on_fetch(self.process, entries)
                self._deliver(entries)
            self.poke()

    def _again(self) -> None:
        self._asking = False
        self.poke()

    def close(self) -> None:
        """Read no further."""
        self._closed = True
        self._partition.readers.pop(id(self), None)


class _Tenancy:
    """What a lease and a follow have in common: a tenure, a buffer that feeds fill, an end."""

    def __init__(self, holding: _Holding, logs: Sequence[str], begun_at: float) -> None:
        engine = holding.membership.engine
        self.engine = engine
        self.holding = holding
        self.tenure = Tenure(f"{holding.membership.name}/{holding.key[1]}", engine.process.clock)
        self.tenure.proven_at = begun_at
        self.buffer = Buffer(logs)
        self.feeds: list[_Feed] = []
        self.restored = False
        self._logs = logs
        if not holding.granted:
            self.tenure.revoke()

    @property
    def state(self) -> LeaseState:
        """What we may do now."""
        return self.tenure.state

    @property
    def proven_at(self) -> float:
        """When the newest thing was begun that only an owner succeeds in."""
        return self.tenure.proven_at

    def working(self) -> AbstractContextManager[None]:
        """Keep a revocation waiting."""
        return self.tenure.working()

    def feed(self, positions: Mapping[str, int]) -> None:
        """Begin to fetch from these offsets (a log that is missing: from its first record)."""
        self.restored = True
        index = self.holding.key[1]
        for log in self._logs:
            partition = self.engine.cluster.logs[log].partitions[index]
            self.feeds.append(
                _Feed(
                    self.engine,
                    partition,
                    positions.get(log),
                    lambda entries, log=log: self._take_in(log, entries),  # type: ignore[misc]
                    lambda log=log: self.buffer.is_paused(log),  # type: ignore[misc]
                )
            )

    def _take_in(self, log: str, entries: list[Entry]) -> None:
        self.buffer.put(log, entries)
        self.tenure.changed.set()

    async def take(self, records_max: int, timeout_s: float, logs: Collection[str] | None) -> list[Entry]:
        """Hand out what was fetched, or wait for it."""
        if not self.engine.process.alive:
            await self.engine.process.never()
        if not self.restored:
            raise OutOfTurn(f"{self.tenure.name}: fetch before restore")
        loop = self.engine.cluster.loop
        ends_at = loop.now + timeout_s
        while True:
            self.tenure.raise_if_lost()
            if self.tenure.state is LeaseState.HELD:
                taken = self.buffer.take(records_max, logs)
                if taken:
                    for feed in self.feeds:
                        feed.poke()
                    return taken
            left_s = ends_at - loop.now
            if left_s <= 0:
                return []
            await self.tenure.changed.wait(left_s)

    def lose(self, because: str) -> None:
        """End it; a coroutine that does not notice is cancelled."""
        if self.tenure.state is not LeaseState.LOST:
            self.tenure.lose(because)
            for feed in self.feeds:
                feed.close()
            self.buffer.clear()
            self.holding.evict_later(self)


class SimLease(_Tenancy):
    """A partition of a stage."""

    def __init__(self, holding: _Holding, stage: Stage, epoch: int, begun_at: float) -> None:
        super().__init__(holding, stage.inputs, begun_at)
        self.stage = stage
        self.epoch = epoch
        self._committing = False

    @property
    def partition(self) -> int:
        """The partition."""
        return self.holding.key[1]

    async def restore(self) -> Restored:
        """Read back what was committed."""
        cluster = self.engine.cluster
        self.tenure.raise_if_lost()
        try:
            restored: Restored = await cluster.ask(
                self.engine.process,
                lambda: cluster.restore(self.stage, self.partition, self.epoch),
                ASK_S_MAX,
                f"restore {self.tenure.name}",
            )
        except LeaseLost as exc:
            self.lose(str(exc))
            raise
        cluster.on_hold(self.engine.process, self.stage, self.partition, True)
        self.feed(restored.position)
        return restored

    async def fetch(self, records_max: int, timeout_s: float, logs: Collection[str] | None = None) -> list[Entry]:
        """Return the next records."""
        return await self.take(records_max, timeout_s, logs)

    async def commit(self, step: Step) -> None:
        """Commit a step: written, then ended, each with a request of its own."""
        if not self.engine.process.alive:
            await self.engine.process.never()
        self.tenure.raise_unless_committing()
        check_step(self.stage, step, self.engine.logs)
        if self._committing:
            raise OutOfTurn(f"{self.tenure.name}: a second commit while one is under way")
        cluster = self.engine.cluster
        begun_at = cluster.loop.now
        answer: asyncio.Future[None] = cluster.loop.create_future()
        cluster.on_hold(self.engine.process, self.stage, self.partition, False)
        await self.engine.at_moment("step.begin", self.stage.name)
        self._committing = True
        with self.tenure.working():
            cluster.world_at(begun_at + cluster.wire_s(), self._write, step, answer)
            try:
                async with asyncio.timeout(COMMIT_S_MAX):
                    await answer
            except LeaseLost as exc:
                self.lose(str(exc))
                raise
            except TimeoutError:
                self.lose(f"a step was not answered within {COMMIT_S_MAX} s: in doubt")
                self.tenure.raise_if_lost()
            except BaseException:
                self.lose("a commit was abandoned by its caller: in doubt")
                raise
            finally:
                self._committing = False
        self.tenure.prove(begun_at)
        self.holding.backoff.succeeded()
        await self.engine.at_moment("step.end", self.stage.name)

    def _write(self, step: Step, answer: asyncio.Future[None]) -> None:
        self.engine.cluster.when_reached(self.engine.process, lambda: self._written(step, answer))

    def _written(self, step: Step, answer: asyncio.Future[None]) -> None:
        cluster, process = self.engine.cluster, self.engine.process
        try:
            transaction = cluster.write(self.stage, self.partition, self.epoch, step)
        except LeaseLost as exc:
            process.arrive_at(cluster.loop.now + cluster.wire_s(), _answer, answer, exc)
            return
        self.engine.on_moment("step.written", self.stage.name)
        slow = cluster.faults.delay("step.slow")
        process.arrive_at(cluster.loop.now + cluster.flush_s() + slow, self._end, transaction, answer)

    def _end(self, transaction: Transaction, answer: asyncio.Future[None]) -> None:
        cluster, process = self.engine.cluster, self.engine.process
        if answer.done():
            return  # its caller gave up: the step is left to the transaction timeout, or to whoever fences
        if cluster.faults.strikes("step.lost"):
            self._doubt(answer)
            return
        cluster.world_at(cluster.loop.now + cluster.wire_s(), self._arrive, process, transaction, answer)

    def _arrive(self, process: Process, transaction: Transaction, answer: asyncio.Future[None]) -> None:
        self.engine.cluster.when_reached(process, lambda: self._ended(transaction, answer))

    def _ended(self, transaction: Transaction, answer: asyncio.Future[None]) -> None:
        cluster, process = self.engine.cluster, self.engine.process
        error: LeaseLost | None = None
        try:
            cluster.commit(transaction)
        except LeaseLost as exc:
            error = exc
        else:
            self.engine.on_moment("step.landed", self.stage.name)
            if cluster.faults.strikes("step.unheard"):
                self._doubt(answer)
                return
        process.arrive_at(cluster.loop.now + cluster.wire_s(), _answer, answer, error)

    def _doubt(self, answer: asyncio.Future[None]) -> None:
        """Let the caller hear of a broken connection at once, or of nothing until its deadline."""
        cluster = self.engine.cluster
        if cluster.random.random() < 0.5:
            error = LeaseLost(f"{self.tenure.name}: the connection broke while a step was committed: in doubt")
            self.engine.process.arrive_at(cluster.loop.now + cluster.wire_s(), _answer, answer, error)


class SimFollow(_Tenancy):
    """A partition that a group reads."""

    def __init__(self, holding: _Holding, begun_at: float) -> None:
        super().__init__(holding, (holding.key[0],), begun_at)

    @property
    def log(self) -> str:
        """The log's name."""
        return self.holding.key[0]

    @property
    def partition(self) -> int:
        """The partition."""
        return self.holding.key[1]

    async def restore(self) -> tuple[int | None, str]:
        """Return the committed offset and its text."""
        cluster, membership = self.engine.cluster, self.holding.membership
        self.tenure.raise_if_lost()
        committed: tuple[int, str] | None = await cluster.ask(
            self.engine.process,
            lambda: cluster.groups[membership.name].committed.get(self.holding.key),
            ASK_S_MAX,
            f"restore {self.tenure.name}",
        )
        self.feed({} if committed is None else {self.log: committed[0]})
        return (None, "") if committed is None else committed

    async def fetch(self, records_max: int, timeout_s: float) -> list[Entry]:
        """Return the next records."""
        return await self.take(records_max, timeout_s, None)

    async def commit(self, offset: int, metadata: str = "") -> None:
        """Commit how far it is."""
        if not self.engine.process.alive:
            await self.engine.process.never()
        self.tenure.raise_unless_committing()
        if len(metadata) > METADATA_CHARS_MAX:
            raise RecordTooLarge(
                f"{self.tenure.name}: {len(metadata)} characters beside an offset, {METADATA_CHARS_MAX} fit"
            )
        cluster, membership, seat = self.engine.cluster, self.holding.membership, self.holding.membership.seat
        round_ = membership.round
        if seat is None:
            raise LeaseRevoked(f"{self.tenure.name}: not a member at this moment")
        begun_at = cluster.loop.now
        with self.tenure.working():
            try:
                await cluster.ask(
                    self.engine.process,
                    lambda: cluster.commit_offset(membership.name, seat, self.holding.key, round_, offset, metadata),
                    COMMIT_S_MAX,
                    f"commit {self.tenure.name}",
                )
            except LeaseLost as exc:
                self.lose(str(exc))
                raise
        self.tenure.prove(begun_at)
        self.holding.backoff.succeeded()


class _Holding:
    """One partition as long as it is granted to us: starts the stage's coroutine, again and again."""

    def __init__(self, membership: _Membership, key: tuple[str, int]) -> None:
        self.membership = membership
        self.key = key
        self.granted = True
        self.changed = Signal()
        self.tenancy: SimLease | SimFollow | None = None
        self.running: asyncio.Task[None] | None = None
        self.backoff = Backoff(membership.engine.process.random)
        self._evictions: list[asyncio.TimerHandle] = []
        self.task = membership.process.spawn(self._live(), f"hold {membership.name} {key}")

    def grant(self) -> None:
        """It came back before anybody else had it."""
        self.granted = True
        if self.tenancy is not None and self.tenancy.state in (LeaseState.AWAY, LeaseState.DRAINING):
            self.tenancy.tenure.grant()
        self.changed.set()

    def revoke(self) -> None:
        """It is not ours at this moment."""
        self.granted = False
        if self.tenancy is not None:
            self.tenancy.tenure.revoke()

    async def drain(self) -> None:
        """Let it go as the contract's picture says."""
        if self.tenancy is not None:
            await self.tenancy.tenure.drain()
        self.granted = False

    def lose(self, because: str) -> None:
        """It is another's: end the coroutine."""
        self.granted = False
        if self.tenancy is not None:
            self.tenancy.lose(because)
        self.task.cancel()

    def evict_later(self, tenancy: _Tenancy) -> None:
        """Cancel the coroutine if it goes on although its lease is lost."""
        if self.running is None:
            return
        loop = asyncio.get_running_loop()
        self._evictions = [timer for timer in self._evictions if not timer.cancelled() and timer.when() > loop.time()]
        self._evictions.append(loop.call_later(EVICT_S, self._evict, tenancy, self.running))

    def _evict(self, tenancy: _Tenancy, running: asyncio.Task[None] | None) -> None:
        if self.tenancy is tenancy and running is not None and not running.done():
            running.cancel()

    async def _live(self) -> None:
        me = asyncio.current_task()
        assert me is not None
        try:
            while True:
                while not self.granted:
                    await self.changed.wait(IDLE_S)
                try:
                    await self._hold(me)
                except Exception as exc:
                    if me.cancelling():
                        return
                    self.membership.failed(self.key, exc)
                await asyncio.sleep(self.backoff.next_s())
        finally:
            for timer in self._evictions:
                timer.cancel()

    async def _hold(self, me: asyncio.Task[None]) -> None:
        tenancy = await self.membership.open(self)
        self.tenancy = tenancy
        run: Callable[[Any], Awaitable[None]] = self.membership.run
        running = self.running = asyncio.ensure_future(_as_coroutine(run(tenancy)))
        try:
            await running
        except asyncio.CancelledError:
            if me.cancelling():
                raise
            raise LeaseLost(f"{tenancy.tenure.name}: its coroutine was cancelled") from None
        finally:
            self.running = None
            tenancy.lose("its coroutine ended")
            self.tenancy = None
        if me.cancelling():
            raise asyncio.CancelledError
        raise OutOfTurn(f"{tenancy.tenure.name}: run returned, though nobody cancelled it")


async def _as_coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable


def _answer(answer: asyncio.Future[None], error: Exception | None) -> None:
    if not answer.done():
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)


class _Membership:
    """A process's share in one stage or group."""

    def __init__(
        self,
        engine: SimulatedLog,
        name: str,
        sizes: dict[str, int],
        run: Callable[[Any], Awaitable[None]],
        stage: Stage | None,
    ) -> None:
        self.engine = engine
        self.name = name
        self.run = run
        self.stage = stage
        self.seat: Seat | None = None
        self.round = 0
        self.holdings: dict[tuple[str, int], _Holding] = {}
        self.failures: dict[tuple[str, int], Exception] = {}
        self.crashes = 0
        self._sizes = sizes
        self._inbox: deque[tuple[Any, ...]] = deque()
        self._mail = Signal()
        self._left = False
        self._control = engine.process.spawn(self._steer(), f"member {name}")

    @property
    def process(self) -> Process:
        """Whose it is."""
        return self.engine.process

    @property
    def failure(self) -> Exception | None:
        """What keeps a partition from being run for good."""
        return next(iter(self.failures.values()), None)

    def held(self) -> frozenset[tuple[str, int]]:
        """The partitions that are HELD and restored."""
        return frozenset(
            key
            for key, holding in self.holdings.items()
            if holding.tenancy is not None and holding.tenancy.restored and holding.tenancy.state is LeaseState.HELD
        )

    def post(self, message: tuple[Any, ...]) -> None:
        """Hear the coordinator."""
        self._inbox.append(message)
        self._mail.set()

    def failed(self, key: tuple[str, int], error: Exception) -> None:
        """A partition's coroutine ended with this; it starts again after a rest."""
        self.crashes += 1
        self.engine.cluster.sim.note("run ended", self.name, key, type(error).__name__, error)
        if isinstance(error, WrongIncarnation):
            self.failures[key] = error
        self.engine.on_crash(self.name, key, error)

    async def open(self, holding: _Holding) -> SimLease | SimFollow:
        """Make a lease, fencing whoever had it before, or a follow."""
        cluster = self.engine.cluster
        begun_at = cluster.loop.now
        stage = self.stage
        if stage is None:
            return SimFollow(holding, begun_at)
        epoch: int = await cluster.ask(
            self.process,
            lambda: cluster.fence(stage, holding.key[1]),
            ASK_S_MAX,
            f"fence {self.name}/{holding.key[1]}",
        )
        return SimLease(holding, stage, epoch, begun_at)

    async def _join(self) -> None:
        cluster = self.engine.cluster
        while True:
            try:
                self.seat = await cluster.ask(
                    self.process, lambda: cluster.join(self.name, self._sizes, self), ASK_S_MAX, f"join {self.name}"
                )
            except LogUnavailable:
                continue
            return

    async def _steer(self) -> None:
        cluster = self.engine.cluster
        await self._join()
        while True:
            while not self._inbox:
                await self._mail.wait(IDLE_S)
            match self._inbox.popleft():
                case ("revoke", int(round_)):
                    async with asyncio.TaskGroup() as group:
                        for holding in self.holdings.values():
                            group.create_task(holding.drain())
                    seat = self.seat
                    if seat is not None:
                        cluster.world_at(cluster.loop.now + cluster.wire_s(), self._rejoined, seat, round_)
                case ("assigned", int(round_), keys):
                    self.round = round_
                    await self._take(keys)
                case ("expired",):
                    self._inbox.clear()
                    for holding in self.holdings.values():
                        holding.revoke()
                    self.seat = None
                    await self._join()

    def _rejoined(self, seat: Seat, round_: int) -> None:
        cluster = self.engine.cluster
        cluster.when_reached(self.process, lambda: cluster.joined(self.name, seat, round_))

    async def _take(self, keys: Sequence[tuple[str, int]]) -> None:
        granted = dict.fromkeys(keys)
        gone = [holding for key, holding in self.holdings.items() if key not in granted]
        for holding in gone:
            del self.holdings[holding.key]
            self.failures.pop(holding.key, None)
            holding.lose("it was granted to another")
        for key in keys:
            holding_ = self.holdings.get(key)
            if holding_ is None:
                self.holdings[key] = _Holding(self, key)
            else:
                holding_.grant()
        await _ended([holding.task for holding in gone], EVICT_S)

    async def leave(self, timeout_s: float = 10.0) -> None:
        """Drain, give the partitions to others, stop."""
        if not self.process.alive:
            await self.process.never()
        if self._left:
            return
        self._left = True
        cluster = self.engine.cluster
        ends_at = cluster.loop.now + timeout_s
        self._control.cancel()
        await _ended([self._control], ends_at - cluster.loop.now)
        holdings = list(self.holdings.values())
        drains = [asyncio.ensure_future(holding.drain()) for holding in holdings]
        await _ended(drains, ends_at - cluster.loop.now)
        for holding in holdings:
            holding.lose("we left")
        await _ended([holding.task for holding in holdings], ends_at - cluster.loop.now)
        self.holdings.clear()
        try:
            left_s = max(0.0, ends_at - cluster.loop.now)
            await cluster.ask(self.process, lambda: cluster.leave(self.name, self), left_s, f"leave {self.name}")
        except LogUnavailable:  # nobody heard it: then its heartbeats are missed
            cluster.world_at(cluster.loop.now + cluster.session_timeout_s, cluster.leave, self.name, self)


async def _ended(tasks: Sequence[asyncio.Future[Any]], timeout_s: float) -> None:
    """Wait for cancelled tasks to end, at most so long; what is left then is cancelled again and let go."""
    if tasks:
        _, pending = await asyncio.wait(tasks, timeout=max(0.0, timeout_s))
        for task in tasks:
            if task in pending:
                task.cancel()
            elif not task.cancelled():
                task.exception()


class SimulatedLog:
    """A process's client of the cluster (`broker.log.contract.LogEngine`)."""

    def __init__(
        self,
        cluster: SimulatedCluster,
        process: Process,
        specs: Sequence[LogSpec],
        *,
        bytes_in_flight_max: int = IN_FLIGHT_BYTES_MAX,
    ) -> None:
        self.cluster = cluster
        self.process = process
        self._specs = {spec.name: spec for spec in specs}
        self._started = False
        self._closed = False
        self._memberships: list[_Membership] = []
        self._outbox: deque[_Append] = deque()
        self._sending: list[_Append] = []
        self._bytes = 0
        self._bytes_max = bytes_in_flight_max
        self._gate = asyncio.Lock()
        self._room = Signal()

    def on_crash(self, name: str, key: tuple[str, int], error: Exception) -> None:
        """Called when a partition's coroutine ended with an error; an assembly may put its own here."""

    def on_moment(self, moment: str, where: str) -> None:
        """Called at the moments where dying is most instructive; an assembly may put its own here, and kill.

        "step.begin", "step.written", "step.landed", "step.end" with a stage's name; "append.begin", "append.landed",
        "append.end" with a log's.
        """

    async def at_moment(self, moment: str, where: str) -> None:
        """Reach a moment in the process's own code: when it is the last one, nothing after it runs."""
        self.on_moment(moment, where)
        if not self.process.alive:
            await self.process.never()

    @property
    def logs(self) -> Mapping[str, LogSpec]:
        """Every log by name."""
        return self._specs

    async def start(self) -> None:
        """Create or check the logs."""
        specs = list(self._specs.values())
        await self.cluster.ask(self.process, lambda: self.cluster.create(specs), START_S_MAX, "start")
        self.cluster.attach(self.process)
        self._started = True

    async def close(self, timeout_s: float = 10.0) -> None:
        """Leave every membership, settle or give up open appends."""
        if not self.process.alive:
            await self.process.never()
        if self._closed:
            return
        self._closed = True
        ends_at = self.cluster.loop.now + timeout_s
        leaving = [asyncio.ensure_future(membership.leave(timeout_s)) for membership in self._memberships]
        await _ended(leaving, timeout_s)
        while self._bytes and self.cluster.loop.now < ends_at:
            await self._room.wait(ends_at - self.cluster.loop.now)
        for waiting in (*self._sending, *self._outbox):
            _answer(waiting.answer, LogUnavailable(f"{waiting.log!r}: the engine was closed before an answer came"))
        self._outbox.clear()

    def partition_of(self, log: str, key: bytes) -> int:
        """Return the partition of a key."""
        return partition_for(key, self._specs[log].partitions)

    def _check_open(self, subject: str) -> None:
        if self._closed or not self._started:
            raise LogUnavailable(f"{subject}: the engine is {'closed' if self._closed else 'not started'}")

    # ── appends ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def append(self, log: str, drafts: Sequence[Draft], timeout_s: float) -> None:
        """Append records; durable when it returns."""
        if not self.process.alive:
            await self.process.never()
        self._check_open(f"append to {log!r}")
        spec = self._specs.get(log)
        if spec is None:
            raise Misconfigured(f"{log!r} is no log of this engine")
        drafts = list(drafts)
        check_drafts(log, drafts, spec.partitions)
        if not drafts:
            return
        size = sum(len(draft.key) + len(draft.value or b"") + 64 for draft in drafts)
        answer: asyncio.Future[None] = self.cluster.loop.create_future()
        await self.at_moment("append.begin", log)
        try:
            async with asyncio.timeout(timeout_s):
                if self._gate.locked() or (self._bytes and self._bytes + size > self._bytes_max):
                    async with self._gate:
                        while self._bytes and self._bytes + size > self._bytes_max:
                            await self._room.wait(timeout_s)
                        self._check_open(f"append to {log!r}")
                        self._enqueue(_Append(log, drafts, size, answer))
                else:
                    self._enqueue(_Append(log, drafts, size, answer))
                await answer
        except TimeoutError:
            raise LogUnavailable(f"append to {log!r}: not known to be durable within {timeout_s} s") from None
        await self.at_moment("append.end", log)

    def _enqueue(self, item: _Append) -> None:
        self._bytes += item.size
        self._outbox.append(item)
        if not self._sending:
            self._send()

    def _send(self) -> None:
        """Send what waits, one request at a time: so order holds, and what comes meanwhile travels together."""
        take = min(len(self._outbox), APPENDS_A_REQUEST_MAX)
        batch = self._sending = [self._outbox.popleft() for _ in range(take)]
        cluster = self.cluster
        delay = cluster.flush_s() + cluster.faults.delay("append.slow")
        cluster.world_at(cluster.loop.now + delay, cluster.when_reached, self.process, lambda: self._land(batch))

    def _land(self, batch: list[_Append]) -> None:
        cluster = self.cluster
        strikes = cluster.faults.strikes
        answers: list[Exception | bool | None] = []
        for item in batch:
            verdict: Exception | bool | None = None
            if strikes("append.refused"):
                verdict = LogUnavailable(f"append to {item.log!r}: refused")
            elif strikes("append.partial"):
                first = cluster.partition_of(item.log, item.drafts[0])
                cluster.land(item.log, [one for one in item.drafts if cluster.partition_of(item.log, one) is first])
                verdict = LogUnavailable(f"append to {item.log!r}: not known of every partition")
            else:
                cluster.land(item.log, item.drafts)
                self.on_moment("append.landed", item.log)
                if strikes("append.twice"):
                    cluster.land(item.log, item.drafts)
                if strikes("append.landed_unheard"):
                    unheard = LogUnavailable(f"append to {item.log!r}: the connection broke before the answer")
                    verdict = unheard if cluster.random.random() < 0.5 else False
            answers.append(verdict)
        self.process.arrive_at(cluster.loop.now + cluster.wire_s(), self._answered, batch, answers)

    def _answered(self, batch: list[_Append], answers: list[Exception | bool | None]) -> None:
        for item, verdict in zip(batch, answers, strict=True):
            self._bytes -= item.size
            if not isinstance(verdict, bool):  # False: nobody ever hears
                _answer(item.answer, verdict)
        self._sending = []
        if self._outbox:
            self._send()
        self._room.set()

    # ── stages and groups ────────────────────────────────────────────────────────────────────────────────────────────

    async def own(self, stage: Stage, run: Callable[[Lease], Awaitable[None]]) -> Membership:
        """Join the stage."""
        self._check_open(f"own {stage.name!r}")
        partitions = check_stage(stage, self._specs)
        return self._join(_Membership(self, stage.name, {stage.name: partitions}, run, stage))

    async def follow(self, group: str, logs: Sequence[str], run: Callable[[Follow], Awaitable[None]]) -> Membership:
        """Join the group."""
        self._check_open(f"follow as {group!r}")
        for log in logs:
            if log not in self._specs:
                raise Misconfigured(f"group {group!r} follows {log!r}, which is no log of this engine")
        sizes = {log: self._specs[log].partitions for log in logs}
        return self._join(_Membership(self, group, sizes, run, None))

    def _join(self, membership: _Membership) -> _Membership:
        self._memberships = [one for one in self._memberships if not one._left]
        self._memberships.append(membership)
        return membership

    # ── reading without a lease ──────────────────────────────────────────────────────────────────────────────────────

    async def read(
        self, log: str, partition: int, start: int | None = None, *, tail: bool = False
    ) -> AsyncIterator[Entry]:
        """Read committed records to the present end, or on for ever."""
        self._check_open(f"read {log!r}")
        if log not in self._specs:
            raise Misconfigured(f"{log!r} is no log of this engine")
        part = self.cluster.logs[log].partitions[partition]
        end: int = await self.cluster.ask(self.process, lambda: part.visible_end, ASK_S_MAX, f"read {log!r}")
        at = part.first_offset if start is None else start
        while at < end:
            entries, at = await self.cluster.ask(
                self.process, partial(part.read, at, FETCH_RECORDS_MAX), ASK_S_MAX, f"read {log!r}"
            )
            for entry in entries:
                if entry.offset < end:
                    yield entry
                else:
                    at = end
        if not tail:
            return
        buffer: deque[Entry] = deque()
        more = Signal()

        def deliver(entries: list[Entry]) -> None:
            buffer.extend(entries)
            more.set()

        feed = _Feed(self, part, at, deliver, lambda: len(buffer) > FETCH_RECORDS_MAX)
        try:
            while True:
                while buffer:
                    yield buffer.popleft()
                feed.poke()
                await more.wait(IDLE_S)
        finally:
            feed.close()

    async def ends(self, log: str) -> list[tuple[int, int]]:
        """Return the first kept offset and the next committed one of each partition."""
        self._check_open(f"ends of {log!r}")
        if log not in self._specs:
            raise Misconfigured(f"{log!r} is no log of this engine")
        partitions = self.cluster.logs[log].partitions
        found: list[tuple[int, int]] = await self.cluster.ask(
            self.process,
            lambda: [(one.first_offset, one.visible_end) for one in partitions],
            ASK_S_MAX,
            f"ends {log!r}",
        )
        return found
