"""The delivery stage: events leave the logs of sinks, in order for each customer, and are done when a sink took them.

    DeliveryStage    joins the group; one Gate for each sink
    SinkPartition    one leased partition of a sink's log: reads no further than it can hold, commits what is done
    Lane             one customer's events there, one at a time: attempt, pause, attempt, until taken or given up

At least once, with a stable id. Before a record counts as done its sink took it, or it stands in `deadletters` and the
conversation was told. What is done above the lowest open record travels in the commit's text (`core/watermark.py`),
so that a restart delivers again only what was under way. An open breaker leaves everything where it is, on the log, and
so does an operator who has paused the sink (`workers/control.py`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import msgspec
from msgspec import Struct

from broker import failpoints, metrics
from broker.clock import Clock
from broker.core.breaker import BreakerLimits
from broker.core.debounce import ALONG, JOINED_BYTES_MAX, Debounce, behind, gather
from broker.core.retry import Schedule, Trouble, Verdict, retry_after_s, verdict
from broker.core.watermark import Watermark
from broker.errors import LeaseRevoked, LogUnavailable
from broker.log.catalogue import CONVERSATIONS, DELIVERY_GROUP, deliveries
from broker.log.contract import Draft, Entry, Follow, LeaseState, LogEngine, Membership
from broker.log.lease import Backoff, Signal
from schemas.records import DeliveryEvent, DeliveryFailed, SinkControl, decode_delivery, encode
from workers.actor import Actor, Woke
from workers.control import Controls
from workers.gate import Gate, Line
from workers.poster import Posted, Poster, PostFailed, Publisher, Reason
from workers.sink_news import SinkNews
from workers.sinks import Request, Target
from workers.supervisor import MALFORMED, POISON, Crashes, count_dead_letter, dead_letter, describe, where

KIND = "bot"
"""Label of metrics: what is delivered to here. Agents are delivered to elsewhere."""

_wait = metrics.delivery_wait.labels(KIND)
_duration = metrics.delivery_duration.labels(KIND)
_attempts = {
    result: metrics.deliveries.labels(KIND, result) for result in ("ok", "refused", "failed", "timeout", "forbidden")
}

GAVE_UP = "gave_up"
"""Reason of a dead letter: it failed by its own fault for `give_up_after_s`."""

FETCH_RECORDS_MAX = 200
"""Taken at a time: few enough that a batch of large bodies exceeds the bound of bytes by little."""

LISTED_ATTEMPTS_MAX = 1
"""Failures of a list by what may be its own fault, before its events go one by one; a refusal parts it at once."""

IDLE_S = 1.0
"""How long a fetch waits when nothing is under way."""

BRISK_S = 0.1
"""How soon a revoked lease is noticed while something is under way: it has 5 s to be drained."""

INSTEAD_OF = "X-Depesche-Instead-Of"
"""Tells a stand-in whose event it gets."""

LET_GO_S_MAX = 2.0
MEASURE_EVERY_S = 5.0

_log = logging.getLogger(__name__)


class DeliveryLimits(Struct, frozen=True):
    """Bounds and times of the stage that are no operator's business."""

    pending_records_max: int = 2_000
    """Read and not done, for one partition; beyond it nothing more is read. Behind a stuck head the others go on
    until then, and the map of 1,600 open records still fits into a commit."""
    pending_bytes_max: int = 8 * 1024 * 1024
    commit_every_s: float = 1.0
    append_timeout_s: float = 10.0
    schedule: Schedule = Schedule()
    breaker: BreakerLimits = BreakerLimits()


Batch = list[tuple[Entry, DeliveryEvent]]
"""One customer's events that go out together, in order; one alone, unless they are debounced."""


class Attempted(NamedTuple):
    """What came of an attempt. `stand_in`: the gate of the sink that stood in for the event's own, if one did."""

    found: Verdict
    detail: str
    asked_s: float | None = None
    stand_in: Gate | None = None


class Unlisted(NamedTuple):
    """The list in hand met a stand-in that takes none, by a configuration newer than the list: nothing was posted."""


class SetAside(NamedTuple):
    """The event in hand stands in the dead letters."""


class DeliveryStage:
    """Everything that delivers in this process. `targets`: the sinks; their logs must exist. `publisher`: for those of
    kind `kafka`; without it none of them may be among the targets."""

    def __init__(
        self,
        engine: LogEngine,
        targets: Sequence[Target],
        poster: Poster,
        clock: Clock,
        rng: random.Random,
        limits: DeliveryLimits | None = None,
        publisher: Publisher | None = None,
    ) -> None:
        self.engine = engine
        self.poster = poster
        self.publisher = publisher
        self.clock = clock
        self.rng = rng
        self.limits = limits if limits is not None else DeliveryLimits()
        self.crashes = Crashes(Lane.kind)
        self._targets = {deliveries(target.name): target for target in targets}
        self._gates: dict[str, Gate] = {}
        self._news = {
            target.name: SinkNews(target.name, clock, partial(self.waiting_for, deliveries(target.name)))
            for target in targets
        }
        self._backlogs: dict[str, int] = {}
        self._paused = dict.fromkeys((target.name for target in targets), False)
        self._controls = Controls(engine, rng, self._heard, self._caught_up)
        self._has_caught_up = False
        self._running: dict[SinkPartition, None] = {}
        self._membership: Membership | None = None
        self._measuring: asyncio.Task[None] | None = None

    @property
    def failure(self) -> Exception | None:
        """What keeps a partition from being read for good; for the readiness probe."""
        return None if self._membership is None else self._membership.failure

    def held(self) -> frozenset[tuple[str, int]]:
        """The (log, partition) pairs this process delivers."""
        return frozenset() if self._membership is None else self._membership.held()

    def use_targets(self, targets: Sequence[Target]) -> None:
        """Deliver to the same sinks in another way: from its next attempt on, each event goes where they say."""
        self._targets = {deliveries(target.name): target for target in targets}
        self._set_failover()
        for partition in self._running:
            partition.use(self._targets[partition.log])

    def news_of(self, sink: str) -> SinkNews:
        """Return where to note what an operator is to read about a sink."""
        return self._news[sink]

    def waiting_for(self, log: str) -> int:
        """Return how many events wait on a sink's log, in the partitions held here: as last measured, or more."""
        in_hand = sum(partition.in_hand for partition in self._running if partition.log == log)
        return max(in_hand, self._backlogs.get(log, 0))

    def stand_in_of(self, target: Target) -> tuple[Target, Gate] | None:
        """Return who stands in for a sink that is down, if anybody does."""
        log = deliveries(target.settings.failover_to)
        return (self._targets[log], self._gates[log]) if log in self._targets else None

    def _set_failover(self) -> None:
        for log, target in self._targets.items():
            has_one = self.stand_in_of(target) is not None
            self._gates[log].failover_after_s = target.settings.failover_after_s if has_one else None

    async def start(self) -> None:
        """Join the group. Raises what `LogEngine.follow` raises."""
        for log, target in self._targets.items():
            self._gates[log] = Gate(target.name, self.clock, self.rng, self.limits.breaker)
        self._set_failover()
        self._controls.start()
        self._membership = await self.engine.follow(DELIVERY_GROUP, list(self._targets), self._run)
        self._measuring = asyncio.create_task(self._measure())

    async def stop(self, timeout_s: float = 10.0) -> None:
        """Begin nothing new, wait for what is under way (at most 5 s), commit, leave."""
        membership, self._membership = self._membership, None
        if membership is not None:
            await membership.leave(timeout_s)
        await self._controls.stop()
        measuring, self._measuring = self._measuring, None
        if measuring is not None:
            measuring.cancel()
            await asyncio.wait([measuring], timeout=LET_GO_S_MAX)
        for news in self._news.values():
            news.close()

    async def _run(self, follow: Follow) -> None:
        partition = SinkPartition(self, follow, self._targets[follow.log], self._gates[follow.log])
        self._running[partition] = None
        try:
            await partition.run()
        finally:
            del self._running[partition]

    def _heard(self, control: SinkControl) -> None:
        """An operator has spoken. A sink that is not configured here is somebody else's."""
        if control.sink in self._paused:
            self._paused[control.sink] = control.paused
            if self._has_caught_up:
                self._heed(control.sink)

    def _caught_up(self) -> None:
        self._has_caught_up = True
        for sink in self._paused:
            self._heed(sink)

    def _heed(self, sink: str) -> None:
        self._gates[deliveries(sink)].pause(self._paused[sink])
        metrics.delivery_paused.labels(sink).set(self._paused[sink])

    async def _measure(self) -> None:
        """Show each sink's backlog, and how old it is, as far as this process has its partitions; tell its news."""
        while True:
            for news in self._news.values():
                news.look()
            for log, target in self._targets.items():
                ours = [partition for partition in self._running if partition.log == log]
                try:
                    ends = await self.engine.ends(log) if ours else []
                except LogUnavailable:
                    continue
                waiting = sum(max(0, ends[partition.number][1] - partition.mark.offset) for partition in ours)
                oldest_at = min((at for partition in ours if (at := partition.oldest_at()) is not None), default=0)
                self._backlogs[log] = waiting
                metrics.delivery_pending_records.labels(target.name).set(waiting)
                metrics.delivery_oldest_pending_timestamp.labels(target.name).set(oldest_at / 1_000)
                metrics.log_lag_records.labels(log).set(waiting)
                metrics.log_oldest_pending_timestamp.labels(log).set(oldest_at / 1_000)
            await asyncio.sleep(MEASURE_EVERY_S)


class SinkPartition:
    """One leased partition of a sink's log: what is read and not done, the customers' lanes, and the watermark."""

    def __init__(self, stage: DeliveryStage, follow: Follow, target: Target, gate: Gate) -> None:
        self.stage = stage
        self.log = follow.log
        self.number = follow.partition
        self.target = target
        self.gate = gate
        self.mark = Watermark()
        self._follow = follow
        self._line = Line(target.settings.in_flight_max, self._is_held, self._look_again, self._recall)
        self._stand_ins: dict[Gate, Line] = {}
        self._lanes: dict[bytes, Lane] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._open: dict[int, Entry] = {}
        self._open_bytes = 0
        self._freed = Signal()
        self._failure: BaseException | None = None
        self._under_way: dict[asyncio.Timeout, None] = {}
        self._working: AbstractContextManager[None] | None = None
        self._has_news = False
        self._commit_due_at = 0.0
        self._was_held = True

    async def run(self) -> None:
        """Deliver until the lease is lost or this is cancelled. Raises what ends it."""
        offset, text = await self._follow.restore()
        self.mark = Watermark.from_text(0 if offset is None else offset, text)
        self.gate.join(self._line)
        try:
            while True:
                await self._turn()
        finally:
            await self._let_go()

    def use(self, target: Target) -> None:
        """Deliver to the sink in another way from now on."""
        self.target = target
        self._line.concurrency.bound(target.settings.in_flight_max)

    @property
    def in_hand(self) -> int:
        """How many records were read and are not done."""
        return len(self._open)

    def oldest_at(self) -> int | None:
        """When the oldest record that is not done was appended (Unix ms); None when all that was read is done."""
        return next((entry.appended_at for entry in self._open.values()), None)

    def debounce_of(self, event: DeliveryEvent) -> Debounce | None:
        """How an event is joined with others of its customer; None: not at all, as long as a stand-in takes no list."""
        debounce = self.target.debounce_of(event)
        if debounce is not None:
            stand_in = self.stage.stand_in_of(self.target)
            if stand_in is not None and not stand_in[0].takes_lists:
                return None
        return debounce

    async def attempt(self, batch: Batch, trouble: Trouble) -> Attempted | Unlisted:
        """Wait for the turn, then post once. An attempt that a moving lease cuts off does not count."""
        entry, event = batch[0]
        while True:
            gate, line, target = self.gate, self._line, self.target
            call = await gate.enter(line, entry.key, entry.appended_at, entry.offset, event.kind)
            if call is None:
                stand_in = self.stage.stand_in_of(target)
                if stand_in is None:
                    continue  # no longer: the configuration has changed
                target, gate = stand_in
                if len(batch) > 1 and not target.takes_lists:
                    return Unlisted()
                line = self._line_at(gate, target)
                call = await gate.enter(line, entry.key, entry.appended_at, entry.offset, event.kind)
                if call is None:
                    continue  # the sink is back, or asks for a probe
            found: Verdict | None = None
            timed_out = False
            try:
                if self._is_held():
                    attempted, timed_out = await self._post(batch, trouble, target)
                    if attempted is not None and gate is not self.gate:
                        attempted = attempted._replace(stand_in=gate)
                    if attempted is not None:
                        found = attempted.found
                        news = self.stage.news_of(target.name)
                        if found is not Verdict.TAKEN:
                            news.failed(event.kind, attempted.detail)
                        else:
                            news.took()
                            for taken, _ in batch:
                                self.complete(taken)  # with no await since the answer: a drain must find it done
                        return attempted
            finally:
                first = trouble.attempts == 0
                gate.leave(line, entry.key, call, found, first=first, timed_out=timed_out, kind=event.kind)

    async def set_aside(
        self, entry: Entry, event: DeliveryEvent | None, reason: str, detail: str, attempts: int
    ) -> None:
        """Make the dead letter durable, tell the conversation, and be done. Waits for as long as the log is away."""
        now = self.stage.clock.now()
        drafts = [dead_letter(entry, "delivery", reason, detail, attempts, now)]
        if event is not None:
            failed = DeliveryFailed(event.delivery_id, self.target.name, reason, attempts, now)
            drafts.append((CONVERSATIONS, Draft(entry.key, encode(failed))))
        rest = Backoff(self.stage.rng, first_s=0.5)
        for log, draft in drafts:
            while True:
                try:
                    await self.stage.engine.append(log, [draft], self.stage.limits.append_timeout_s)
                    break
                except LogUnavailable as error:
                    _log.warning("%s-%d: a dead letter waits for its log: %s", self.log, self.number, error)
                    await asyncio.sleep(rest.next_s())
        count_dead_letter(self.log, reason)
        self.stage.news_of(self.target.name).set_aside(reason)
        self.complete(entry)

    def complete(self, entry: Entry) -> None:
        """Note that a record is done."""
        if self._open.pop(entry.offset, None) is None:
            return
        self.stage.crashes.settled(entry)
        self.fails_no_more(entry.key)
        self.mark.complete(entry.offset)
        self._open_bytes -= len(entry.value)
        self._has_news = True
        self._freed.set()

    def lane_ended(self, key: bytes) -> None:
        """Forget a lane that has nothing to do, or was cancelled."""
        self._lanes.pop(key, None)
        self.fails_no_more(key)

    def fails_no_more(self, key: bytes) -> None:
        """Note at every gate that a customer's event is done, one way or another."""
        self.gate.fails_no_more(key)
        for gate in self._stand_ins:
            gate.fails_no_more(self.key_at(gate, key))

    def key_at(self, gate: Gate, key: bytes) -> bytes:
        """Return a customer's name at a gate: at a stand-in's the same customer may have events of its own."""
        return key if gate is self.gate else b"%b\x00%b" % (self.log.encode(), key)

    async def _turn(self) -> None:
        """Read, hand out, commit when it is time. Every wait is short enough to notice that the lease moves."""
        limits = self.stage.limits
        timeout_s = IDLE_S if self._working is None else BRISK_S
        room = limits.pending_records_max - len(self._open)
        if self._open_bytes >= limits.pending_bytes_max:
            room = 0
        if room > 0 or self._follow.state is LeaseState.LOST:
            for entry in await self._follow.fetch(max(1, min(room, FETCH_RECORDS_MAX)), timeout_s):
                await self._take(entry)
        else:
            await self._freed.wait(timeout_s)
        if self._failure is not None:
            raise self._failure
        self._heed_lease()
        if self._has_news and (
            self._follow.state is LeaseState.DRAINING or self.stage.clock.monotonic() >= self._commit_due_at
        ):
            await self._commit()
        if self._working is not None and not self._under_way and not self._has_news:
            self._working.__exit__(None, None, None)
            self._working = None

    async def _take(self, entry: Entry) -> None:
        if not self.mark.take(entry.offset):
            return
        self._open[entry.offset] = entry
        self._open_bytes += len(entry.value)
        lane = self._lanes.get(entry.key)
        if lane is None:
            lane = self._lanes[entry.key] = Lane(self, entry.key)
            task = asyncio.create_task(lane.run())
            self._tasks[task] = None
            task.add_done_callback(self._lane_done)
        await lane.put(entry)  # never waits: a mailbox holds as much as the partition
        lane.came(entry)

    async def _commit(self) -> None:
        self._commit_due_at = self.stage.clock.monotonic() + self.stage.limits.commit_every_s
        self._has_news = False
        try:
            await self._follow.commit(self.mark.offset, self.mark.to_text())
            failpoints.reached("delivery.committed")
        except (LeaseRevoked, LogUnavailable) as error:
            self._has_news = True
            _log.info("%s-%d: not committed now, later: %s", self.log, self.number, error)

    def _line_at(self, gate: Gate, target: Target) -> Line:
        """Return this partition's place at the gate of a stand-in."""
        line = self._stand_ins.get(gate)
        if line is None:
            line = Line(
                target.settings.in_flight_max,
                lambda: self._is_held() and not self.gate.is_paused,
                self._look_again,
                lambda: False,
                diverts=False,
            )
            self._stand_ins[gate] = line
            gate.join(line)
        return line

    def _recall(self) -> bool:
        """Have one event that waits at a stand-in's gate ask its own sink again: it will be the probe."""
        return any(line.send_away(1) for line in self._stand_ins.values())

    async def _post(self, batch: Batch, trouble: Trouble, target: Target) -> tuple[Attempted | None, bool]:
        """Post once; return what came of it (None: cut off, because the lease is away) and whether it timed out."""
        clock = self.stage.clock
        entry = batch[0][0]
        request = target.render_all([event for _, event in batch], clock.now())
        if target is not self.target:
            request.headers[INSTEAD_OF] = self.target.name
        if trouble.attempts == 0:
            _wait.observe(max(0, clock.now() - entry.appended_at) / 1_000)
        if self._working is None:
            self._working = self._follow.working()
            self._working.__enter__()
        begun_at = clock.monotonic()
        cut = asyncio.timeout(None)
        self._under_way[cut] = None
        result, timed_out = "failed", False
        failpoints.reached("delivery.posting")
        try:
            async with cut:
                attempted = await self._send(target, entry.key, request)
            failpoints.reached("delivery.posted")
            result = _RESULTS.get(attempted.found, "failed")
        except TimeoutError:
            if cut.expired():
                return None, False
            result, timed_out = "timeout", True
            attempted = Attempted(Verdict.UNSURE, "timeout")
        except PostFailed as error:
            timed_out = error.reason == "timeout"
            result = _RESULTS_WITHOUT_ANSWER[error.reason]
            attempted = Attempted(_VERDICTS_WITHOUT_ANSWER[error.reason], str(error))
        except Exception as error:  # a crash of the HTTP client says nothing about the event: never set it aside for it
            _log.error("sink %s: the client crashed: %s", target.name, where(error))
            attempted = Attempted(Verdict.SINK, f"the client crashed: {where(error)}")
        finally:
            del self._under_way[cut]
            _duration.observe(clock.monotonic() - begun_at)
        _attempts[result].inc()
        return attempted, timed_out

    async def _send(self, target: Target, key: bytes, request: Request) -> Attempted:
        """Bring an event out, once. Raises `PostFailed`."""
        stage = self.stage
        settings = target.settings
        if settings.kind == "kafka":
            assert stage.publisher is not None, "a kafka sink needs a publisher"
            await stage.publisher.publish(settings, target.connect, key, request.headers, request.body)
            return Attempted(Verdict.TAKEN, "")
        posted = await stage.poster.post(settings.url, request.headers, request.body, settings.timeout_s)
        return _judged(posted, stage.clock.now())

    def _is_held(self) -> bool:
        return self._follow.state is LeaseState.HELD

    def _heed_lease(self) -> None:
        """Cut off attempts when the lease is away: a successor begins them anew. Let lines go when it is back."""
        is_held = self._is_held()
        if is_held and not self._was_held:
            for gate in (self.gate, *self._stand_ins):
                gate.admit()
        self._was_held = is_held
        if self._follow.state is LeaseState.AWAY:
            now = asyncio.get_running_loop().time()
            for cut in self._under_way:
                if not cut.expired():
                    cut.reschedule(now)

    def _look_again(self) -> None:
        """The sink is back, or its stand-in takes over: whoever pauses, or waits at a stand-in's gate, asks again."""
        for lane in list(self._lanes.values()):
            lane.hasten()
        for line in self._stand_ins.values():
            line.send_away()

    def _lane_done(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
            self._freed.set()

    async def _let_go(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=LET_GO_S_MAX)
        finally:
            self.gate.part(self._line)
            for gate, line in self._stand_ins.items():
                gate.part(line)
            if self._working is not None:
                self._working.__exit__(None, None, None)
                self._working = None


class Lane(Actor[Entry, Attempted | Unlisted | SetAside]):
    """One customer's events at one sink. Holds the next back until the one in hand was taken or set aside."""

    kind = "delivery"

    def __init__(self, partition: SinkPartition, key: bytes) -> None:
        stage = partition.stage
        super().__init__(stage.clock, stage.rng, mailbox_max=stage.limits.pending_records_max, idle_s=0)
        self._partition = partition
        self._key = key
        self._batch: Batch = []
        self._trouble = Trouble()
        self._pauses = False
        self._gathers: Debounce | None = None
        self._alone = 0

    async def receive(self, event: Entry | Attempted | Unlisted | SetAside | Woke) -> None:
        """Attempt what came, joined with what follows where that is wanted; after a failure pause, or give up."""
        match event:
            case Entry():
                self.restart()
                try:
                    self._batch = [(event, decode_delivery(event.value))]
                except msgspec.MsgspecError as error:
                    self.begin(self._set_aside(event, MALFORMED, str(error)))
                else:
                    self._gather()
            case Woke():
                if self._gathers is not None:
                    self._gather()
                else:
                    self._pauses = False
                    self.begin(self._attempt())
            case Attempted(found=Verdict.TAKEN) | SetAside():
                self._alone = max(0, self._alone - 1)
                self.finish()
            case Attempted():
                self._after(event)
            case Unlisted():
                self._part()
                self.begin(self._attempt())

    def came(self, entry: Entry) -> None:
        """More mail is here: wait no longer when that is enough, or it is not to be joined with the rest."""
        debounce = self._gathers
        if debounce is None:
            return
        is_full = len(self.behind(debounce.events_max)) + 1 >= debounce.events_max
        if is_full or self._behind(_read(entry)) not in (debounce, ALONG):
            self.wake_at(self.clock.monotonic())

    def _behind(self, event: DeliveryEvent | None) -> Debounce | None:
        return None if event is None else behind(event, self._partition.target.settings)

    def _gather(self) -> None:
        """Join what waits behind the event in hand when it is time; until then wait for more."""
        first, event = self._batch[0]
        debounce = self._partition.debounce_of(event)
        self._gathers = None
        if debounce is None or self._alone:
            self.begin(self._attempt())
            return
        waiting = [(entry, _read(entry)) for entry in self.behind(debounce.events_max - 1)]
        together, due_at = gather(
            debounce, first.appended_at, ((entry.appended_at, self._behind(more)) for entry, more in waiting)
        )
        now = self.clock.now()
        if due_at > now:
            self._gathers = debounce
            wait_ms = min(due_at - now, debounce.wait_ms_max)  # whatever the clock of whoever appended says
            self.wake_at(self.clock.monotonic() + wait_ms / 1_000)
            return
        size = 0
        for entry, more in waiting[: together - 1]:
            size += len(entry.value)
            if size > JOINED_BYTES_MAX or more is None:
                break
            self._batch.append((entry, more))
        self.take_also(len(self._batch) - 1)
        self.begin(self._attempt())

    def _part(self) -> None:
        """Let each event go by itself: one of a list that fails may be the one that makes it fail."""
        self._alone = len(self._batch)
        del self._batch[1:]
        self.put_back()

    async def crashed(self, mail: Entry, error: Exception) -> bool:
        """Count it; the third time, set the event aside."""
        self._alone = max(self._alone, len(self._batch))
        crashes = self._partition.stage.crashes
        attempts = crashes.crashed(mail, error)
        if attempts < crashes.attempts_max:
            return False
        event = self._batch[0][1] if self._batch else None
        await self._partition.set_aside(mail, event, POISON, describe(error), attempts)
        self._alone = max(0, self._alone - 1)
        return True

    def restart(self) -> None:
        """Nothing is known about the event in hand."""
        self._batch, self._trouble, self._pauses, self._gathers = [], Trouble(), False, None

    def hasten(self) -> None:
        """The sink is back: end the pause, unless the event was refused for itself."""
        if self._pauses:
            self.wake_at(self.clock.monotonic())

    def ended(self) -> None:
        """Leave the partition."""
        self._partition.lane_ended(self._key)

    def _after(self, attempted: Attempted) -> None:
        assert self.in_hand is not None
        partition, stage, now = self._partition, self._partition.stage, self.clock.monotonic()
        gate = partition.gate if attempted.stand_in is None else attempted.stand_in
        key = partition.key_at(gate, self._key)
        gate.fails(key, attempted.found, holds_up=self.has_mail)
        self._trouble = self._trouble.after(
            attempted.found, now, sink_took_at=gate.took_at, is_suspect=gate.is_suspect(key)
        )
        is_given_up = self._trouble.is_given_up(self._partition.target.settings.give_up_after_s)
        is_listed_badly = attempted.found is Verdict.EVENT or self._trouble.attempts > LISTED_ATTEMPTS_MAX
        if len(self._batch) > 1 and (is_given_up or (attempted.found is not Verdict.SINK and is_listed_badly)):
            self._part()
            self._trouble = Trouble()
            is_given_up = False
        if is_given_up:
            gate.gave_up()
            self.begin(self._set_aside(self.in_hand, GAVE_UP, attempted.detail))
            return
        self._pauses = attempted.found is not Verdict.EVENT
        failures = max(1, self._trouble.attempts)
        pause_s = stage.limits.schedule.pause_s(failures, stage.rng.random(), attempted.asked_s)
        if self._pauses and attempted.stand_in is None and gate.is_diverting:
            pause_s = 0.0  # it was the probe: the stand-in has it next
        self.wake_at(now + pause_s)

    async def _attempt(self) -> Attempted | Unlisted:
        return await self._partition.attempt(self._batch, self._trouble)

    async def _set_aside(self, entry: Entry, reason: str, detail: str) -> SetAside:
        event = self._batch[0][1] if self._batch else None
        await self._partition.set_aside(entry, event, reason, detail, self._trouble.attempts)
        return SetAside()


def _read(entry: Entry) -> DeliveryEvent | None:
    """Return the event of an entry behind the one in hand; None: it is malformed, and set aside when its turn comes."""
    try:
        return decode_delivery(entry.value)
    except msgspec.MsgspecError:
        return None


_RESULTS = {Verdict.TAKEN: "ok", Verdict.EVENT: "refused"}
_RESULTS_WITHOUT_ANSWER: dict[Reason, str] = {
    "timeout": "timeout",
    "connection": "failed",
    "forbidden": "forbidden",
    "refused": "refused",
}
_VERDICTS_WITHOUT_ANSWER: dict[Reason, Verdict] = {
    "timeout": Verdict.UNSURE,
    "connection": Verdict.SINK,
    "forbidden": Verdict.SINK,
    "refused": Verdict.EVENT,
}


def _judged(posted: Posted, now: int) -> Attempted:
    return Attempted(verdict(posted.status), f"status {posted.status}", retry_after_s(posted.retry_after, now))
