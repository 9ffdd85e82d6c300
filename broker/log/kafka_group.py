"""This process as a member of a consumer group: joins, has partitions granted and revoked, pumps records, leaves.

One member for each stage and process; membership is dynamic, because a static member's partitions stay ownerless after
a graceful stop, and two processes with one static id work on the same partitions. Range assignment co-assigns logs
with equal numbers of partitions. What runs on a partition is a `Runner`; this module moves it.

    joined ─▶ assigned: pause, seek, grant ─▶ pump ─▶ revoked: detach, drain ≤ 5 s ─▶ assigned …
       ▲                                        │
       └────── a new consumer ◀── watchdog: nothing answered for a while, or the client failed

Commits and heartbeats of our own carry the generation they belong to and never touch the client's membership: the
client, told that a generation is over, would drop its newer one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.client import ConnectionGroup
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    IllegalGenerationError,
    NoError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
    UnknownMemberIdError,
    for_code,
)
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.group import HeartbeatRequest
from aiokafka.structs import TopicPartition

from broker import metrics
from broker.errors import LeaseRevoked, LogUnavailable, WrongIncarnation
from broker.log.contract import LeaseState
from broker.log.coordinator import Item, Opener, Runner
from broker.log.kafka_connection import CLIENT_ERRORS, Deadline, discard_consumer, end_task, topic_name
from broker.log.kafka_reading import entry
from broker.log.kafka_seat import Cluster, Seat
from broker.log.lease import Backoff

log = logging.getLogger(__name__)

RECORDS_AT_ONCE_MAX = 1_000
PARTITION_FETCH_BYTES_MAX = 1024 * 1024
FETCH_BYTES_MAX = 16 * 1024 * 1024
"""Of one fetch over all partitions. One batch larger than either still comes, when it is the first."""

FETCH_WAIT_MS = 100
POLL_INTERVAL_MS = 120_000
"""The client leaves the group when nobody asked it for records for so long: our pump has died."""

JOIN_S_MAX = 60.0
"""Until the first assignment. Members that die faster than their sessions end keep a group joining: 43 s measured."""

ASK_S_MAX = 5.0
"""For one question to the group's coordinator."""

WATCH_S = 0.5

LAG_S = 5.0
"""How often a stage's positions are told to the group: only for lag tools (KEDA, exporters); nobody reads them back."""

SILENT_SESSIONS = 3
"""No fetch, step or commit answered for so many session timeouts: the client is replaced."""

CUT_S_MAX = 10.0
"""A log that ends before our position may be a new leader that still catches up; longer than this it was cut off."""

CUT_LOOK_S = 0.25
T = TypeVar("T")

LATE = (IllegalGenerationError, UnknownMemberIdError, RebalanceInProgressError)


class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Hands one consumer's rebalances to the member, as long as it is the member's consumer."""

    def __init__(self, member: KafkaMember, consumer: AIOKafkaConsumer) -> None:
        self._member = member
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """All are revoked, whatever the client names: the first call names none. Never raises."""
        if self._member.consumer is self._consumer:
            await self._member.revoked()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """No await in here: no heartbeat is sent while it runs."""
        if self._member.consumer is self._consumer:
            self._member.assigned(assigned)


class KafkaMember:
    """A stage's or group's share in this process. See `Membership`."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        logs: Sequence[str],
        item_of: Callable[[str, int], Item],
        opener: Callable[[KafkaMember, Item], Opener],
        left: Callable[[KafkaMember], None],
    ) -> None:
        """Join. `item_of` says to which item a log's partition belongs; `opener` makes what opens an item."""
        self.name = name
        self.consumer: AIOKafkaConsumer | None = None
        self._cluster = cluster
        self._group_id = cluster.settings.prefix + name
        self._logs = tuple(logs)
        self._log_of = {topic_name(cluster.settings.prefix, one): one for one in logs}
        self._item_of = item_of
        self._opener = opener
        self._left = left
        self._runners: dict[Item, Runner] = {}
        self._ending: dict[Item, asyncio.Task[None]] = {}
        self._beside: set[asyncio.Task[None]] = set()
        self._granted = asyncio.Event()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failure: Exception | None = None
        self._heard_at = cluster.clock.monotonic()
        self._polled: dict[TopicPartition, int | None] = {}
        self._stopping = False
        self._leaving: asyncio.Task[None] | None = None
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"group {self._group_id}")

    # What a stage sees

    @property
    def failure(self) -> Exception | None:
        """What keeps a partition from being run for good."""
        return self._failure

    def held(self) -> frozenset[Item]:
        """What is HELD and restored."""
        return frozenset(item for item, seat in self._seats() if seat.restored and seat.tenure.stands(LeaseState.HELD))

    def leased(self) -> int:
        """How many partitions this member holds."""
        return sum(seat.tenure.stands(LeaseState.HELD) for _, seat in self._seats())

    async def leave(self, timeout_s: float = 10.0) -> None:
        """Drain, give the partitions to others, stop. Never raises, never longer than the timeout."""
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._leave(timeout_s))
        await asyncio.wait({self._leaving}, timeout=timeout_s + 1.0)

    async def _leave(self, timeout_s: float) -> None:
        deadline = Deadline(self._cluster.clock, timeout_s)
        self._stopping = True
        self._revoke_at_once()
        runners = list(self._runners.values())
        await _within(deadline.left_s() * 0.5, [runner.drain() for runner in runners])
        ending = [runner.end("left the group") for runner in runners]
        await _within(deadline.left_s() * 0.4, ending)
        for runner in runners:
            runner.abandon()
        consumer, self.consumer = self.consumer, None
        await end_task(self._task, 0.5)
        if consumer is not None:
            await discard_consumer(consumer, max(0.0, deadline.left_s() - 1.0))
        for task in tuple(self._beside):
            await end_task(task, 0.1)
        self._left(self)

    def rejoin(self) -> None:
        """Have the group's partitions revoked and granted anew, as if somebody had come and gone."""
        if self.consumer is not None and self.consumer._coordinator is not None:
            self.consumer._coordinator.request_rejoin()

    # Rebalances

    async def revoked(self) -> None:
        """Nothing is ours until the next assignment: take no more records, finish what runs, at most 5 s."""
        self._granted.clear()
        self._revoke_at_once()
        await asyncio.gather(*(runner.drain() for runner in self._runners.values()), return_exceptions=True)

    def _revoke_at_once(self) -> None:
        if not self._over.done():
            self._over.set_result(None)
        for _, seat in self._seats():
            seat.detach()

    def assigned(self, places: Collection[TopicPartition]) -> None:
        """These are ours; what is not among them belongs to another."""
        consumer = self.consumer
        if consumer is None:
            return
        for place in places:  # before the fetcher asks for committed offsets, which are not where we go on
            consumer.pause(place)
            consumer.seek(place, 0)
        if self._stopping:
            return
        self._heard_at = self._cluster.clock.monotonic()
        self._over = asyncio.get_running_loop().create_future()
        self._granted.set()
        granted = self._complete(places)
        for item in list(self._runners):
            if item not in granted:
                self._end(item, "granted to another")
        for item in granted:
            runner = self._runners.get(item)
            if runner is None:
                self._runners[item] = Runner(
                    item, self._opener(self, item), self._cluster.clock, self._cluster.rng, self._fail
                )
                continue
            runner.grant()
            if isinstance(runner.held, Seat) and runner.held.restored:
                self.attach(runner.held)

    def _complete(self, places: Collection[TopicPartition]) -> list[Item]:
        """The items of which all logs were assigned. Others are a group whose members read different logs."""
        assigned: dict[Item, set[str]] = {}
        for place in sorted(places):
            name = self._log_of[place.topic]
            assigned.setdefault(self._item_of(name, place.partition), set()).add(name)
        complete = []
        for item, names in assigned.items():
            if names == {name for name in self._logs if self._item_of(name, item[1]) == item}:
                complete.append(item)
            else:
                log.error("%s: of %s-%d only %s were assigned: members of other versions?", self.name, *item, names)
        return complete

    def _end(self, item: Item, because: str) -> None:
        runner = self._runners.pop(item)
        task = self._spawn(runner.end(because))
        self._ending[item] = task
        task.add_done_callback(lambda _: self._ending.pop(item, None))

    def _fail(self, error: Exception) -> None:
        self._failure = error

    # What an opener needs

    async def while_granted(self, work: Awaitable[T]) -> T:
        """Do this as long as the assignment stands. Raises `LogUnavailable` when it is over: opening a partition
        that was given to another would fence the one who has it."""
        task = asyncio.ensure_future(work)
        both: set[asyncio.Future[Any]] = {task, self._over}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise LogUnavailable(f"{self.name}: the partition was revoked while it was opened")
            return task.result()
        finally:
            await end_task(task, 0.5)

    async def confirm(self, item: Item) -> None:
        """Return when the coordinator says that we are a member of the present generation, and the partition's
        former coroutine has ended. Raises `LogUnavailable`.

        A process that was frozen thaws believing: it would fence the owner that came after it.
        """
        await self._granted.wait()
        if item in self._ending:
            await asyncio.wait({self._ending[item]})
        coordinator = self._coordinator()
        answer = await self._ask(HeartbeatRequest(self._group_id, coordinator.generation, coordinator.member_id))
        error = for_code(answer.error_code)
        if error is not NoError:
            raise LogUnavailable(f"{self.name}: not a member at this moment: {error.__name__}")

    async def committed(self, name: str, partition: int) -> tuple[int | None, str]:
        """The group's committed offset and its text. Raises `LogUnavailable`."""
        topic = topic_name(self._cluster.settings.prefix, name)
        answer = await self._ask(OffsetFetchRequest(self._group_id, [(topic, [partition])]))
        ((_, ((_, offset, text, code),)),) = answer.topics
        error = for_code(code)
        if error is not NoError:
            raise LogUnavailable(f"{self.name}: the committed offset of {topic} is not told: {error.__name__}")
        return (None, "") if offset < 0 else (offset, text or "")

    async def commit(self, name: str, partition: int, offset: int, text: str) -> None:
        """Commit for the present generation. Raises `LeaseRevoked` when it is over, `LogUnavailable`."""
        topic = topic_name(self._cluster.settings.prefix, name)
        answer = await self._commit([(topic, [(partition, offset, text)])])
        ((_, ((_, code),)),) = answer.topics
        error = for_code(code)
        if error in LATE:
            raise LeaseRevoked(f"{self.name} of {name}-{partition}: {error.__name__}; nothing was committed")
        if error is not NoError:
            raise LogUnavailable(f"{self.name} of {name}-{partition}: not committed: {error.__name__}")
        self._heard_at = self._cluster.clock.monotonic()

    async def _commit(self, offsets: list[tuple[str, list[tuple[int, int, str]]]]) -> Any:
        coordinator = self._coordinator()
        return await self._ask(
            OffsetCommitRequest(self._group_id, coordinator.generation, coordinator.member_id, -1, offsets)
        )

    async def _tell_lag(self) -> None:
        offsets: dict[str, list[tuple[int, int, str]]] = {}
        for _, seat in self._seats():
            if seat.attached:
                for name, offset in seat.watermarks().items():
                    topic = topic_name(self._cluster.settings.prefix, name)
                    offsets.setdefault(topic, []).append((seat.partition, offset, ""))
        if offsets:
            try:
                await self._commit(list(offsets.items()))
            except LogUnavailable as error:
                log.debug("%s: lag was not told: %s", self._group_id, error)

    def _coordinator(self) -> Any:
        if self.consumer is None or self.consumer._coordinator is None:
            raise LogUnavailable(f"{self.name}: not a member at this moment")
        return self.consumer._coordinator

    async def _ask(self, request: Any) -> Any:
        coordinator = self._coordinator()
        try:
            async with asyncio.timeout(ASK_S_MAX):
                if coordinator.coordinator_id is None:
                    await coordinator.ensure_coordinator_known()
                return await coordinator._client.send(
                    coordinator.coordinator_id, request, group=ConnectionGroup.COORDINATION
                )
        except CLIENT_ERRORS as error:
            raise LogUnavailable(f"{self.name}: the group's coordinator does not answer: {error!r}") from error

    # Delivery

    def attach(self, seat: Seat) -> None:
        """Begin, or go on, to deliver from where the seat stands."""
        consumer = self.consumer
        if consumer is None or self._stopping or not self._granted.is_set():
            return
        places = {name: self._place(name, seat.partition) for name in seat.logs}
        assignment = consumer.assignment()
        if not all(place in assignment for place in places.values()):
            return  # between two assignments: the next one attaches it
        seat.detach()
        for name, place in places.items():
            consumer.seek(place, seat.next[name])
            consumer.resume(place)
        seat.attached = True

    def regulate(self, seat: Seat, log: str, paused: bool) -> None:
        """Hold or let go the delivery of one log."""
        place = self._place(log, seat.partition)
        if self.consumer is not None and place in self.consumer.assignment():
            if paused:
                self.consumer.pause(place)
            else:
                self.consumer.resume(place)

    def _place(self, name: str, partition: int) -> TopicPartition:
        return TopicPartition(topic_name(self._cluster.settings.prefix, name), partition)

    def _seats(self) -> list[tuple[Item, Seat]]:
        return [(item, runner.held) for item, runner in self._runners.items() if isinstance(runner.held, Seat)]

    def _seat_of(self, place: TopicPartition) -> Seat | None:
        runner = self._runners.get(self._item_of(self._log_of[place.topic], place.partition))
        held = None if runner is None else runner.held
        return held if isinstance(held, Seat) and held.attached else None

    async def _pump(self, consumer: AIOKafkaConsumer) -> None:
        """Move records from the client to the seats."""
        while True:
            try:
                fetched = await consumer.getmany(timeout_ms=200, max_records=RECORDS_AT_ONCE_MAX)
            except NoOffsetForPartitionError:
                await asyncio.sleep(0.05)  # before its first seek
                continue
            except OffsetOutOfRangeError as error:
                for place in error.args[0]:
                    self._out_of_range(place)
                continue
            for place, records in fetched.items():
                seat = self._seat_of(place)
                if seat is not None and records:
                    name = self._log_of[place.topic]
                    seat.put(name, [entry(name, record) for record in records])
            if fetched:
                self._heard_at = self._cluster.clock.monotonic()
                await asyncio.sleep(0)  # a full buffer of the client's must not keep the stages waiting

    def _out_of_range(self, place: TopicPartition) -> None:
        seat = self._seat_of(place)
        if seat is not None:
            seat.detach()
            for name in seat.logs:
                if self.consumer is not None:
                    self.consumer.pause(self._place(name, seat.partition))
            self._spawn(self._find_place(seat))

    async def _find_place(self, seat: Seat) -> None:
        """A seat stands outside of its log: go on at its first record if retention was faster, which is counted; wait
        for the end to come back if that lies before us, and give up if it does not."""
        deadline = Deadline(self._cluster.clock, CUT_S_MAX)
        while seat.tenure.stands(LeaseState.HELD) and not seat.attached:
            beyond = {}
            for name in seat.logs:
                try:
                    first, end = await self._cluster.reading.edges(name, seat.partition)
                except LogUnavailable as error:
                    log.warning("%s: %s", seat.tenure.name, error)
                    deadline = Deadline(self._cluster.clock, CUT_S_MAX)
                    beyond[name] = -1
                    continue
                if seat.next[name] < first:
                    lost = first - seat.next[name]
                    metrics.log_gap_records.labels(name).inc(lost)
                    log.error("%s: %d records of %s were dropped by retention before we read them",
                              seat.tenure.name, lost, name)  # fmt: skip
                    seat.next[name] = first
                elif seat.next[name] > end:
                    beyond[name] = end
            if not beyond:
                if seat.tenure.stands(LeaseState.HELD) and not seat.attached:
                    self.attach(seat)
                return
            if deadline.left_s() == 0:
                name, end = next(iter(beyond.items()))
                cut = WrongIncarnation(
                    f"{seat.tenure.name}: the position in {name!r} is offset {seat.next[name]}, but the log ends at "
                    f"{end}: it was cut off. Bring it back, or reset the position"
                )
                log.critical("%s", cut)
                self._fail(cut)
                return
            await asyncio.sleep(CUT_LOOK_S)

    # The consumer's life

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        return task

    def _is_stopping(self) -> bool:
        return self._stopping

    def _make(self) -> AIOKafkaConsumer:
        settings = self._cluster.settings
        return AIOKafkaConsumer(
            **self._cluster.connect,
            group_id=self._group_id,
            partition_assignment_strategy=(RangePartitionAssignor,),
            session_timeout_ms=settings.session_timeout_ms,
            heartbeat_interval_ms=settings.heartbeat_interval_ms,
            rebalance_timeout_ms=settings.rebalance_timeout_ms,
            max_poll_interval_ms=POLL_INTERVAL_MS,
            # A join is answered when the whole group has joined; a frozen member keeps it for its session.
            request_timeout_ms=settings.rebalance_timeout_ms + settings.session_timeout_ms,
            retry_backoff_ms=100,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=FETCH_BYTES_MAX,
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES_MAX,
        )

    async def _keep(self) -> None:
        """Be a member, with one consumer after the other."""
        backoff = Backoff(self._cluster.rng)
        while not self._is_stopping():
            consumer = self._make()
            self.consumer = consumer
            reason = "error"
            try:
                consumer.subscribe(list(self._log_of), listener=Listener(self, consumer))
                async with asyncio.timeout(JOIN_S_MAX):
                    await consumer.start()
                backoff.succeeded()
                reason = await self._watch(consumer)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # whatever the client can think of: it is replaced
                reason = type(error).__name__
                log.warning("%s: the group's consumer failed: %r", self._group_id, error)
            if self._is_stopping():
                return
            metrics.log_engine_restarts.labels("consumer", reason).inc()
            self.consumer = None
            await self.revoked()
            await discard_consumer(consumer, 2.0)
            await asyncio.sleep(backoff.next_s())

    async def _watch(self, consumer: AIOKafkaConsumer) -> str:
        """Pump until the client fails (raises) or is silent for too long (returns why it is replaced)."""
        settings = self._cluster.settings
        silent_s_max = max(
            SILENT_SESSIONS * settings.session_timeout_ms, settings.rebalance_timeout_ms + settings.session_timeout_ms
        ) / 1_000  # fmt: skip
        pump = asyncio.get_running_loop().create_task(self._pump(consumer))
        self._heard_at = self._cluster.clock.monotonic()
        lag = Deadline(self._cluster.clock, LAG_S)
        try:
            while True:
                done, _ = await asyncio.wait({pump}, timeout=WATCH_S)
                if done:
                    pump.result()
                if lag.left_s() == 0 and self._granted.is_set():
                    lag = Deadline(self._cluster.clock, LAG_S)
                    self._spawn(self._tell_lag())
                if self._cluster.clock.monotonic() - self._listen(consumer) > silent_s_max:
                    log.warning("%s: no fetch, step or commit was answered for %.0f s", self._group_id, silent_s_max)
                    return "silent"
        finally:
            await end_task(pump)

    def _listen(self, consumer: AIOKafkaConsumer) -> float:
        """When the cluster was last heard: a fetch answered, a step or commit accepted."""
        seats = [seat for _, seat in self._seats()]
        flowing = [
            self._place(name, seat.partition)
            for seat in seats
            if seat.attached
            for name in seat.logs
            if not seat.is_paused(name)
        ]
        assignment = consumer.assignment()
        polled = {place: consumer.last_poll_timestamp(place) for place in flowing if place in assignment}
        if polled != self._polled or (not flowing and self._granted.is_set()):
            self._polled = polled
            self._heard_at = self._cluster.clock.monotonic()
        return max([self._heard_at, *(seat.tenure.proven_at for seat in seats)])


async def _within(timeout_s: float, work: Sequence[Awaitable[None]]) -> None:
    """Do all of these at once, at most for a time; what is not done then goes on by itself."""
    tasks = [asyncio.ensure_future(one) for one in work]
    if tasks:
        await asyncio.wait(tasks, timeout=max(0.0, timeout_s))
    for task in tasks:
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
