"""The sender stage: for each slot, the loop that writes intents down, calls Graph, and reports what came of it.

`broker.core.slot` decides; here is what it costs to do it. Five things run side by side for a slot, under one lease:

    intake    lanes and traffic into memory, no more than `pending_max` of a lane; what is beyond is left in the log
    reload    reads again what was left, when there is room
    steps     one at a time: intents of what goes next, answers of what went, doubts lifted, position
    calls     one task for each intended send: a connection, the permit, the bytes, the answer, the report
    watch     notices that the lease is not HELD any more: whatever was intended before is void then

The permit is asked by the Graph client as the last thing before the bytes leave; see `Calls.permit`. An outcome is
durable on `conversations` before the next step says so in the ledger. A call that outlives its lease still reports
what it learns, since facts may repeat and may come late; only the ledger is not ours to write then.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, aclosing
from math import inf

import msgspec

from broker import failpoints, metrics
from broker.clock import Clock
from broker.core.account import (
    STOP_MS,
    Accounts,
    Cap,
    Effect,
    NumberPlace,
    Open,
    Retry,
    Shut,
    Slow,
    Tell,
    Throttled,
    Tier,
)
from broker.core.gates import Gates
from broker.core.outcome import TEXT_CHARS_MAX, Scope, Verdict, classify
from broker.core.sender import Instant, NumberSender, Permit, Send
from broker.core.slot import Left, Plan, Report, Slot
from broker.errors import LeaseLost, LeaseRevoked, LogUnavailable
from broker.log.catalogue import ACCOUNTS, CONVERSATIONS, SENDER_STAGE, TRAFFIC, sends
from broker.log.contract import SNAPSHOT, Draft, Entry, Lease, LeaseState, LogEngine, Membership, Step
from broker.secrets import Secret
from schemas.ledger import decode_ledger, encode_ledger
from schemas.records import LANES, Lane, decode_digest, decode_item, decode_sends, encode
from schemas.settings import Number, Settings
from workers.graph import Graph, GraphCall, NotSent, PermitRefused, Unanswered
from workers.supervisor import MALFORMED, POISON, Crashes, count_dead_letter, dead_letter, where
from workers.turnstile import LOOK_S, Place, Turnstile

logger = logging.getLogger("depesche.sender")

NAME = "sender"

FETCH_RECORDS_MAX = 500
FETCH_S = 0.5
"""How long a fetch waits: how soon a lane that has room again is read."""

RELOAD_S = 0.1
"""How often it is looked at whether what was left in the log has room now. Half of a number's share is still there."""

PACE_S = 0.02
"""Between two steps that no reply waits for. Each costs a commit, whatever it holds."""

TICK_S = 1.0
"""How often what operators see is looked at, and whether a stopped number has another token."""

WATCH_S = 0.1
"""How often the lease is looked at. A partition cannot go to another owner and come back sooner: two rebalances and a
restore lie between."""

SNAPSHOT_S = 30.0
SNAPSHOT_QUIET_S = 600.0
SNAPSHOT_IDLE_S = 6 * 3_600.0
"""A restore reads the ledger from the last snapshot. A new one is due after half a minute when as many bytes were
written since as it has itself (130 kB of recent attempts), so that it at most doubles what is written; after ten
minutes when anything was written; after six hours in any case, or retention would take the last one of a slot at
rest."""

REPORTS_MAX = 1_000
"""Outcomes that wait to be durable. Beyond, `conversations` cannot be written: every further call would be one more
doubt if we died now, so none is begun."""

APPEND_S = 5.0
APPEND_AGAIN_S = (0.1, 0.5, 1.0, 2.0)
"""Reports are repeated until they are durable; the last rest goes on."""

CATCH_UP_S_MAX = 5.0
"""How long a start waits for what was said of accounts in the last week. Without it the first answers say the same."""

LISTEN_AGAIN_S = 1.0

LATE_REPORT_S_MAX = 60.0
"""How long a call that outlived its lease tries to report: its successor said "in doubt" long before."""

STEP_KEY = b"step"
LANE_OF_LOG: dict[str, Lane] = {sends(lane): lane for lane in LANES}


class Refused(PermitRefused):
    """A permit that was not granted, and why."""

    def __init__(self, permit: Permit) -> None:
        super().__init__(permit.value)
        self.permit = permit


class SenderStage:
    """Every slot this process owns. `tokens`: Graph's, by phone number id, looked up when a call begins."""

    def __init__(
        self,
        engine: LogEngine,
        settings: Settings,
        tokens: Mapping[str, Secret],
        graph: Graph,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.engine = engine
        self.settings = settings.sender
        self.tokens = tokens
        self.graph = graph
        self.clock = clock
        self.rng = rng
        self.places = _places(settings.numbers)
        self.gates = Gates()
        self.accounts = Accounts()
        self.tiers: dict[str, int] = {}
        """What Meta said of numbers' throughput, as far as the log of accounts goes back."""
        self._owners: dict[int, SlotOwner] = {}
        self._listening: list[asyncio.Task[None]] = []
        self.crashes = Crashes(NAME)
        self.calls: dict[asyncio.Task[None], None] = {}
        self._tokens_used: dict[str, Secret] = {}
        self._membership: Membership | None = None

    @property
    def failure(self) -> Exception | None:
        """What keeps a slot from being run for good; for the readiness probe."""
        return None if self._membership is None else self._membership.failure

    def held(self) -> frozenset[tuple[str, int]]:
        """The slots this process owns."""
        return frozenset() if self._membership is None else self._membership.held()

    def use(self, numbers: Sequence[Number], tokens: Mapping[str, Secret]) -> None:
        """Send for the same numbers with other tokens from the next call on, and within other tiers within a second."""
        self.tokens = tokens
        self.places.update(_places(numbers))

    async def start(self) -> None:
        """Hear what was said of accounts, join the stage. Raises what `LogEngine.own` raises."""
        caught_up = [asyncio.Event() for _ in range(self.engine.logs[ACCOUNTS].partitions)]
        self._listening = [
            asyncio.create_task(self._listen(partition, event), name=f"accounts {partition}")
            for partition, event in enumerate(caught_up)
        ]
        try:
            async with asyncio.timeout(CATCH_UP_S_MAX):
                for event in caught_up:
                    await event.wait()
        except TimeoutError:
            logger.warning("what was said of accounts could not be read in time; the first answers will tell")
        self._membership = await self.engine.own(SENDER_STAGE, self._run)

    async def stop(self, timeout_s: float = 10.0) -> None:
        """Begin no more calls, wait for those under way, give the slots to others. What is left then is in doubt."""
        began = self.clock.monotonic()
        listening, self._listening = self._listening, []
        for listener in listening:
            listener.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
        membership, self._membership = self._membership, None
        if membership is not None:
            await membership.leave(timeout_s)
        left_s = timeout_s - (self.clock.monotonic() - began)
        if self.calls and left_s > 0:
            await asyncio.wait(list(self.calls), timeout=left_s)
        for call in list(self.calls):
            call.cancel()
        if self.calls:
            await asyncio.wait(list(self.calls), timeout=1.0)

    def begin(self, call: asyncio.Task[None]) -> None:
        """Keep a call's task until it is over."""
        self.calls[call] = None
        call.add_done_callback(self._over)

    def now(self) -> Instant:
        """Return now, on both clocks."""
        return Instant(self.clock.monotonic(), self.clock.now())

    def token(self, phone_number_id: str) -> str:
        """Return a number's token as it is now. Raises `NotSent` when there is none: the number rests."""
        secret = self.tokens.get(phone_number_id)
        if secret is None:
            logger.error("number %s has no token: it cannot send", phone_number_id)
            raise NotSent("no token", is_unreached=True)
        self._tokens_used[phone_number_id] = secret
        return secret.reveal()

    def retry_with_new_token(self, number: NumberSender) -> bool:
        """Let a stopped number try at once when its token is another one than the one it was stopped with."""
        if not len(self.gates):
            return False
        phone_number_id = number.phone_number_id
        door = number.door
        gate = self.gates.at(door)
        used, present = self._tokens_used.get(phone_number_id), self.tokens.get(phone_number_id)
        if gate is None or not gate.is_stop or present is None or present == used:
            return False
        self._tokens_used[phone_number_id] = present
        self.gates.retry(door, self.clock.monotonic())
        return True

    def say_changes(self) -> None:
        """Tell operators which gates closed and opened. A gate may concern numbers of several slots."""
        changes = self.gates.changes()
        if changes:
            self._show_templates()
        for door, gate in changes:
            what = f"{door.scope.value} {door.name}".strip()
            if gate is None:
                logger.warning("sends of %s go on", what)
            else:
                rest_s = max(0.0, gate.until - self.clock.monotonic())
                verb = "stop" if gate.is_stop else "rest"
                logger.warning("sends of %s %s for %.0f s: %s", what, verb, rest_s, gate.why)

    def _show_templates(self) -> None:
        """Count each account's templates that do not go out; their names are in the log."""
        counts = dict.fromkeys({place.waba_id: None for place in self.places.values()}, 0)
        for door in self.gates.closed():
            if door.scope is Scope.TEMPLATE:
                waba_id = door.name.partition("/")[0]
                counts[waba_id] = counts.get(waba_id, 0) + 1
        for waba_id, count in counts.items():
            metrics.templates_stopped.labels(waba_id).set(count)

    async def _run(self, lease: Lease) -> None:
        ends = await self.engine.ends(TRAFFIC)
        owner = SlotOwner(self, lease, ends[lease.partition][1])
        self._owners[lease.partition] = owner
        try:
            await owner.run()
        finally:
            if self._owners.get(lease.partition) is owner:
                del self._owners[lease.partition]

    # What Meta says of accounts

    async def _listen(self, partition: int, caught_up: asyncio.Event) -> None:
        """Read all that is kept of account-level updates, then on for ever."""
        start: int | None = None
        while True:
            try:
                _, end = (await self.engine.ends(ACCOUNTS))[partition]
                async with aclosing(self.engine.read(ACCOUNTS, partition, start)) as entries:  # type: ignore[type-var]
                    async for entry in entries:
                        start = entry.offset + 1
                        self._hear(entry, is_news=caught_up.is_set())
                caught_up.set()
                tail = self.engine.read(ACCOUNTS, partition, end if start is None else max(start, end), tail=True)
                async with aclosing(tail) as entries:  # type: ignore[type-var]
                    async for entry in entries:
                        start = entry.offset + 1
                        self._hear(entry, is_news=True)
            except LogUnavailable as error:
                logger.warning("account-level updates cannot be read: %s", error)
            except Exception as error:
                # Sending goes on without: the next answers say what the updates would have.
                metrics.actor_restarts.labels(NAME).inc()
                logger.error("reading account-level updates crashed: %s", where(error))
            await asyncio.sleep(LISTEN_AGAIN_S * self.rng.uniform(0.5, 1.5))

    def _hear(self, entry: Entry, *, is_news: bool) -> None:
        """Act on one update. One that cannot be read was set aside by whoever wrote it, or is of a later version."""
        try:
            item = decode_item(entry.value)
        except msgspec.MsgspecError:
            return
        try:
            effects = self.accounts.decide(item, self.places, self.clock.now())
        except Exception as error:
            metrics.actor_restarts.labels(NAME).inc()
            logger.error("an account-level update could not be judged: %s", where(error))
            return
        version = self.gates.version
        for effect in effects:
            self.take_effect(effect, item.waba_id, is_news=is_news)
        if self.gates.version != version or any(type(effect) is Retry for effect in effects):
            for owner in self._owners.values():
                owner.look_again()

    def take_effect(self, effect: Effect, waba_id: str, *, is_news: bool) -> None:
        """Do what follows from what Meta said. `is_news`: otherwise people have heard of it before."""
        now = self.now()
        match effect:
            case Shut(door, until, why, refuses):
                wait_ms = min(until - now.wall, STOP_MS)
                self.gates.shut(door, now.monotonic + wait_ms / 1_000, why, refuses=refuses)
            case Open(door):
                self.gates.open(door)
            case Retry(door):
                self.gates.retry(door, now.monotonic)
            case Slow(door, is_slow):
                if is_slow:
                    self.gates.slowed[door] = None
                else:
                    self.gates.slowed.pop(door, None)
                if is_news:
                    logger.warning("template %s is sent %s", door.name, "slowly" if is_slow else "at full speed")
            case Tier(phone_number_id, throughput_mps):
                self.tiers[phone_number_id] = throughput_mps
                for owner in self._owners.values():
                    owner.learn_tier(phone_number_id, throughput_mps)
            case Throttled(phone_number_id):
                for owner in self._owners.values():
                    owner.throttled(phone_number_id)
            case Cap(_, people_max):
                metrics.messaging_limit.labels(waba_id).set(people_max)
            case Tell(severity, text):
                if is_news:
                    metrics.account_alerts.labels(severity).inc()
                    level = logging.INFO if severity == "information" else logging.WARNING
                    logger.log(level, "account %s: %s", waba_id, text)

    def _over(self, call: asyncio.Task[None]) -> None:
        self.calls.pop(call, None)
        if not call.cancelled() and (error := call.exception()) is not None:
            metrics.actor_restarts.labels(NAME).inc()
            logger.error("a call's task crashed: %s", where(error))


def _places(numbers: Sequence[Number]) -> dict[str, NumberPlace]:
    return {
        number.phone_number_id: NumberPlace(
            number.phone_number_id, number.waba_id, number.throughput_mps, number.slot, number.display_phone_number
        )
        for number in numbers
    }


class SlotOwner:
    """One slot under one lease."""

    def __init__(self, stage: SenderStage, lease: Lease, traffic_end: int) -> None:
        """`traffic_end`: end of the traffic log as we begin. What stands before it is covered by the window, which
        begins full; an hour of it, read at once after a rest, would close the window for what is long over."""
        self._stage = stage
        self._traffic_end = traffic_end
        self._lease = lease
        self._engine = stage.engine
        self._clock = stage.clock
        self._slot = Slot(
            lease.partition,
            stage.places,
            stage.settings.in_flight_max,
            stage.gates,
            stage.now(),
            stage.settings.pending_max,
        )
        self._turnstiles = {name: Turnstile() for name in self._slot.numbers}
        self._traffic_offset: int | None = None
        self._wake = asyncio.Event()
        self._epoch = 0
        self._news = ExitStack()
        self._has_news = False
        self._snapshot_at = 0.0
        self._snapshot_bytes = 0
        self._written_bytes = 0
        self._crash: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reports = 0
        self._stepped_at = 0.0
        self._ticked_at = -inf
        self._over = False
        self._doubts_shown = 0
        self._behind_shown = 0
        self._stops: dict[tuple[str, str], None] = {}
        self._tiers = {name: stage.places[name].throughput_mps for name in self._slot.numbers}
        self._gates_shown = -1
        self._used = {name: metrics.throughput_used.labels(name, "out") for name in self._slot.numbers}
        self._used_in = {name: metrics.throughput_used.labels(name, "in") for name in self._slot.numbers}

    async def run(self) -> None:
        """Own the slot until the lease is lost. Raises `LeaseLost`, `LogUnavailable`, or what crashed."""
        reports = await self._restore()
        works = [
            asyncio.create_task(work, name=f"sender {self._lease.partition} {name}")
            for name, work in (
                ("intake", self._intake()),
                ("reload", self._reload()),
                ("steps", self._steps()),
                ("watch", self._watch()),
            )
        ]
        for report in reports:
            self._tell(report)
        try:
            done, _ = await asyncio.wait([*works, self._crash], return_when=asyncio.FIRST_COMPLETED)
            for work in done:
                work.result()
        finally:
            self._over = True
            self._epoch += 1
            self._look()
            self._news.close()
            if self._crash.done():
                self._crash.exception()
            metrics.sends_unknown.dec(self._doubts_shown)
            metrics.sends_held.labels("memory").dec(self._behind_shown)
            for label in self._stops:
                metrics.number_stopped.labels(*label).set(0)
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)

    async def _restore(self) -> list[Report]:
        """Read the ledger back; what it leaves open is to be reported."""
        restored = await self._lease.restore()
        records = [decode_ledger(value) for _, value in restored.records if value]
        offsets = {lane: restored.position[log] for log, lane in LANE_OF_LOG.items() if log in restored.position}
        self._traffic_offset = restored.position.get(TRAFFIC)
        now = self._stage.now()
        self._written_bytes = sum(len(value) for _, value in restored.records)
        self._snapshot_at = now.monotonic + SNAPSHOT_S * self._stage.rng.uniform(0.5, 1.0)
        reports = self._slot.begin(records, offsets, restored.memo, now)
        for name, throughput_mps in self._stage.tiers.items():
            self._slot.learn_tier(name, throughput_mps)
        for name, number in self._slot.numbers.items():
            metrics.throughput_limit_mps.labels(name).set(number.window.throughput_mps)
        return reports

    # What Meta said of accounts

    def learn_tier(self, name: str, throughput_mps: int) -> None:
        """Take a tier Meta told of, if the number lives here and may have it."""
        if self._slot.learn_tier(name, throughput_mps):
            logger.warning("number %s sends up to %d messages a second now", name, throughput_mps)
            metrics.throughput_limit_mps.labels(name).set(throughput_mps)
            self._wake.set()

    def throttled(self, name: str) -> None:
        """Slow a number down as after an answer 130429."""
        number = self._slot.numbers.get(name)
        if number is not None:
            number.window.throttled(self._clock.monotonic())

    def look_again(self) -> None:
        """A gate may have been opened before its time."""
        for number in self._slot.numbers.values():
            number.look_again()
        self._wake.set()

    # Intake

    async def _intake(self) -> None:
        while True:
            entries = await self._lease.fetch(FETCH_RECORDS_MAX, FETCH_S, self._readable())
            for entry in entries:
                if entry.log == TRAFFIC:
                    self._count_inbound(entry)
                else:
                    await self._take(entry, LANE_OF_LOG[entry.log])
            if entries:
                self._note()

    def _readable(self) -> Collection[str]:
        """The logs there is room for."""
        return [TRAFFIC, *(log for log, lane in LANE_OF_LOG.items() if self._slot.can_read(lane))]

    async def _reload(self) -> None:
        """Read again what was left in the log, where there is room for it."""
        while True:
            for left in self._slot.left():
                try:
                    await self._reread(left)
                except LogUnavailable as error:
                    logger.warning("what waits in %s cannot be read: %s", sends(left.lane), error)
            await asyncio.sleep(RELOAD_S)

    async def _reread(self, left: Left) -> None:
        """Read a stretch that was left, from where it was left, until memory is full or it ends."""
        entries = self._engine.read(sends(left.lane), self._lease.partition, left.start)
        try:
            async with aclosing(entries) as reading:  # type: ignore[type-var]
                async for entry in reading:
                    if entry.offset >= left.end:
                        break
                    if self._slot.is_full(left):
                        return
                    await self._retake(entry, left)
            self._slot.retaken(left)
        finally:
            self._note()

    async def _retake(self, entry: Entry, left: Left) -> None:
        """Take one record of a stretch. One that cannot be read was set aside when the lane came to it."""
        crashes = self._stage.crashes
        attempts = crashes.attempts(entry)
        if attempts >= crashes.attempts_max:
            await self._set_aside(entry, left.lane, POISON, "taking it crashed the sender", attempts)
            self._slot.skip_left(left, entry.offset)
            return
        try:
            record = decode_sends(entry.value)
        except msgspec.MsgspecError:
            return
        try:
            report = self._slot.retake(left, entry.offset, record, self._stage.now())
        except Exception as error:
            crashes.crashed(entry, error)
            raise
        if report is not None:
            self._tell(report)

    def _count_inbound(self, entry: Entry) -> None:
        """Charge what a receiver saw arrive."""
        self._traffic_offset = entry.offset + 1
        if entry.offset < self._traffic_end:
            return
        try:
            digest = decode_digest(entry.value)
        except msgspec.MsgspecError:
            return  # of another version; what it would have told is harmless to miss
        self._slot.count_inbound(digest, self._stage.now())
        used = self._used_in.get(digest.phone_number_id)
        if used is not None:
            used.inc(digest.count)

    async def _take(self, entry: Entry, lane: Lane) -> None:
        """Take one record. What cannot be read is set aside; what crashed us three times is, too."""
        crashes = self._stage.crashes
        attempts = crashes.attempts(entry)
        if attempts >= crashes.attempts_max:
            await self._set_aside(entry, lane, POISON, "taking it crashed the sender", attempts)
            return
        try:
            record = decode_sends(entry.value)
        except msgspec.MsgspecError as error:
            await self._set_aside(entry, lane, MALFORMED, str(error), 1)
            return
        try:
            report = self._slot.take(lane, entry.offset, record, self._stage.now())
        except Exception as error:
            crashes.crashed(entry, error)
            raise
        if report is not None:
            self._tell(report)

    async def _set_aside(self, entry: Entry, lane: Lane, reason: str, detail: str, attempts: int) -> None:
        log, letter = dead_letter(entry, NAME, reason, detail, attempts, self._clock.now())
        await self._append(log, letter, until=None)
        count_dead_letter(entry.log, reason)
        self._slot.skip(lane, entry.offset)
        self._stage.crashes.settled(entry)

    # Steps

    async def _steps(self) -> None:
        """Write steps for as long as there is something to write."""
        while True:
            now = self._stage.now()
            self._slot.expire(now)
            may_intend = self._may_intend()
            is_snapshot_due = self._is_snapshot_due(now)
            can_intend = may_intend and any(number.can_intend(now) for number in self._slot.numbers.values())
            if not (can_intend or self._slot.has_news or is_snapshot_due):
                await self._rest(self._idle_s(now) if may_intend else WATCH_S)
                continue
            hurries = can_intend and any(number.is_reply_waiting(now) for number in self._slot.numbers.values())
            if not hurries and (early_s := self._stepped_at + PACE_S - now.monotonic) > 0:
                await self._pace(early_s)
                now = self._stage.now()
            plan = self._slot.plan(now, may_intend=self._may_intend(), is_snapshot_due=is_snapshot_due)
            if plan is None or not await self._commit(plan, is_snapshot_due):
                await self._rest(WATCH_S)

    def _may_intend(self) -> bool:
        return self._lease.state is LeaseState.HELD and self._reports < REPORTS_MAX

    def _is_snapshot_due(self, now: Instant) -> bool:
        late_s = now.monotonic - self._snapshot_at
        if late_s < 0 or self._lease.state is not LeaseState.HELD:
            return False
        if self._written_bytes > self._snapshot_bytes or late_s > SNAPSHOT_IDLE_S:
            return True
        return late_s > SNAPSHOT_QUIET_S and self._written_bytes > 0

    async def _pace(self, early_s: float) -> None:
        """Wait for company in the step, until its time or until a reply comes."""
        ends_at = self._clock.monotonic() + early_s
        while (left_s := ends_at - self._clock.monotonic()) > 0:
            await self._rest(left_s)
            now = self._stage.now()
            if self._may_intend() and any(number.is_reply_waiting(now) for number in self._slot.numbers.values()):
                return

    def _idle_s(self, now: Instant) -> float:
        """How long nothing but an event can make a step necessary."""
        moments = [number.wakes_at(now) for number in self._slot.numbers.values()]
        return max(0.001, min([*moments, now.monotonic + 5.0]) - now.monotonic)

    async def _rest(self, timeout_s: float) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _commit(self, plan: Plan, is_snapshot: bool) -> bool:
        """Commit a step and begin its calls. False when the lease is away: nothing was written."""
        position = {sends(lane): offset for lane, offset in plan.offsets.items()}
        if self._traffic_offset is not None:
            position[TRAFFIC] = self._traffic_offset
        keys = [SNAPSHOT if is_snapshot else STEP_KEY, *[STEP_KEY] * (len(plan.records) - 1)]
        step = Step(
            position=position,
            derived=[
                (sends(forward.lane), Draft(forward.record.customer.encode(), encode(forward.record), forward.slot))
                for forward in plan.forwards
            ],
            changes=[(key, encode_ledger(record)) for key, record in zip(keys, plan.records, strict=True)],
            memo=plan.memo,
        )
        written_bytes = sum(len(value) for _, value in step.changes if value)
        epoch = self._epoch
        try:
            with self._lease.working():
                failpoints.reached("sender.planned")
                await self._lease.commit(step)
                failpoints.reached("sender.stepped")
                now = self._stage.now()
                self._stepped_at = now.monotonic
                self._written_bytes += written_bytes
                if is_snapshot:
                    self._snapshot_at = now.monotonic + SNAPSHOT_S
                    self._snapshot_bytes, self._written_bytes = written_bytes, 0
                for report in self._slot.written(plan, now):
                    self._tell(report)
                for send in plan.sends:
                    self._begin(asyncio.create_task(self._call(send, epoch), name="graph call"))
        except LeaseRevoked:
            self._slot.undone(plan, self._stage.now())
            return False
        except BaseException:
            self._slot.undone(plan, self._stage.now())  # this memory is dropped, but not the gates it was to probe
            raise
        if self._has_news and not self._slot.has_news:
            self._news.close()
            self._has_news = False
        self._show()
        return True

    def _show(self) -> None:
        """Tell operators what changed."""
        metrics.sends_unknown.inc(self._slot.doubts - self._doubts_shown)
        self._doubts_shown = self._slot.doubts
        metrics.sends_held.labels("memory").inc(self._slot.behind - self._behind_shown)
        self._behind_shown = self._slot.behind
        self._stage.say_changes()
        if self._gates_shown == self._stage.gates.version:
            return
        self._gates_shown = self._stage.gates.version
        stops = {
            (name, what): None
            for name, number in self._slot.numbers.items()
            for what, gate in number.stops()
            if gate.is_stop
        }
        for label in (*self._stops, *stops):
            metrics.number_stopped.labels(*label).set(1 if label in stops else 0)
        self._stops = stops

    # Calls

    def _begin(self, call: asyncio.Task[None]) -> None:
        self._stage.begin(call)
        call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        """A call or report that crashed left its customer waiting: read everything back."""
        error = None if call.cancelled() else call.exception()
        if error is not None and not self._over and not self._crash.done():
            self._crash.set_exception(error)

    async def _call(self, send: Send, epoch: int) -> None:
        """Make one call and report what came of it."""
        with self._lease.working():
            verdict, body = await self._ask(send, epoch)
            if verdict is not None:
                self._count(verdict)
                now, chance = self._stage.now(), self._stage.rng.random()
                report = self._slot.answered(send, verdict, body, now, chance)
                if report is not None:
                    await self._report(report)
            self._note()

    async def _ask(self, send: Send, epoch: int) -> tuple[Verdict | None, bytes]:
        """Return what came of the call, None when none was made."""
        number = send.ready.phone_number_id
        granted_at = 0.0

        async def permit() -> None:
            nonlocal granted_at
            await self._permit(send, epoch)
            granted_at = self._clock.monotonic()

        try:
            call = GraphCall(number, send.ready.body, self._stage.token(number), send.ready.edge)
            answer = await self._stage.graph.call(call, permit)
        except Refused as refused:
            if refused.permit is Permit.EXPIRED:
                await self._report(self._slot.expire_intended(send, self._stage.now()))
            else:
                self._slot.void(send, self._stage.now())
            return None, b""
        except NotSent as error:
            chance = self._stage.rng.random()
            self._slot.unsent(send, self._stage.now(), chance, is_unreached=error.is_unreached)
            return None, b""
        except Unanswered as error:
            return Verdict("in_doubt", details=str(error)[:TEXT_CHARS_MAX], says="no answer"), b""
        except Exception as error:
            # A fault of the client's: what is certain decides, whether the permit was used.
            metrics.actor_restarts.labels(NAME).inc()
            logger.error("a call crashed: %s", where(error))
            if granted_at:
                return Verdict("in_doubt", details="the call crashed", says="no answer"), b""
            self._slot.unsent(send, self._stage.now(), self._stage.rng.random(), is_unreached=True)
            return None, b""
        metrics.graph_request_duration.labels("messages").observe(self._clock.monotonic() - granted_at)
        return classify(answer.status, answer.body, answer.retry_after, is_mark=send.is_mark), answer.body

    async def _permit(self, send: Send, epoch: int) -> None:
        """Wait for the window, in line. When this returns the bytes leave, with nothing awaited in between."""
        name = send.ready.phone_number_id
        number, turnstile = self._slot.numbers[name], self._turnstiles[name]
        asked_at = self._clock.monotonic()
        with turnstile.join(send.lane, asked_at) as place:
            while True:
                if self._epoch == epoch and turnstile.first() is not place:
                    await place.moved(None)
                    continue
                now = self._stage.now()
                held = self._epoch == epoch and self._lease.state is LeaseState.HELD
                permit = number.permit(send, now, asked_at, is_held=held)
                if permit is Permit.GRANTED:
                    break
                if permit is not Permit.WAIT:
                    raise Refused(permit)
                await self._until_open(place, number.window.open_at(now.monotonic) - now.monotonic)
        asyncio.get_running_loop().call_soon(self._left, name)
        self._used[name].inc()
        ready = send.ready
        if ready.requested_at:
            metrics.send_wait.labels(ready.send_class).observe(max(0, send.called_at - ready.requested_at) / 1_000)

    async def _until_open(self, place: Place, wait_s: float) -> None:
        await place.moved(min(max(wait_s, 0.0005), LOOK_S))

    def _left(self, name: str) -> None:
        """The bytes of what was granted in the last turn of the loop are with the kernel by now."""
        self._slot.numbers[name].window.left(self._clock.monotonic())
        self._wake.set()  # what has left made room for intents; with a slow Graph no answer would say so for seconds

    def _count(self, verdict: Verdict) -> None:
        outcome = verdict.outcome
        attempt = {"accepted": "accepted", "in_doubt": "unknown", "throttled": "throttled"}.get(outcome, "refused")
        metrics.send_attempts.labels(attempt).inc()
        if verdict.code:
            metrics.graph_errors.labels(str(verdict.code) if verdict.known else "other", verdict.kind).inc()

    # Reports

    def _tell(self, report: Report) -> None:
        """Report in a task of its own."""

        async def tell() -> None:
            with self._lease.working():
                await self._report(report)
            self._note()

        self._begin(asyncio.create_task(tell(), name="sender report"))

    async def _report(self, report: Report) -> None:
        """Make an outcome durable on `conversations`, then note it for the next step."""
        outcome = report.outcome
        if outcome is not None:
            draft = Draft(report.customer.encode(), encode(outcome))
            self._reports += 1
            try:
                durable = await self._append(CONVERSATIONS, draft, self._clock.monotonic() + LATE_REPORT_S_MAX)
            finally:
                self._reports -= 1
            if not durable:
                return
            failpoints.reached("sender.reported")
            if outcome.outcome != "in_doubt":
                send_class = outcome.lane if report.send is None else report.send.ready.send_class
                metrics.sends.labels(send_class, outcome.outcome).inc()
        if not self._over:
            self._slot.landed(report, self._stage.now())

    async def _append(self, log: str, draft: Draft, until: float | None) -> bool:
        """Append, again and again while the log is away; give up once the lease is over and `until` has passed."""
        attempt = 0
        while True:
            try:
                await self._engine.append(log, [draft], APPEND_S)
            except LogUnavailable as error:
                if self._over and until is not None and self._clock.monotonic() > until:
                    logger.error("an outcome could not be reported: %s", error)
                    return False
                rest_s = APPEND_AGAIN_S[min(attempt, len(APPEND_AGAIN_S) - 1)]
                attempt += 1
                await asyncio.sleep(rest_s * self._stage.rng.uniform(0.5, 1.0))
            else:
                return True

    def _note(self) -> None:
        """Something is to be written: keep a revocation waiting for the step, and wake it."""
        if self._slot.has_news and not self._has_news and not self._over:
            self._has_news = True
            self._news.enter_context(self._lease.working())
        self._wake.set()

    # Watch

    async def _watch(self) -> None:
        """Void what was intended under a lease that is not HELD any more, even if it comes back."""
        was = LeaseState.HELD
        while True:
            state = self._lease.state
            if state is LeaseState.LOST:
                raise LeaseLost(f"slot {self._lease.partition}")
            if state is not LeaseState.HELD or was is not LeaseState.HELD:
                self._epoch += 1
                self._look()
                self._wake.set()
            if state is LeaseState.AWAY and self._has_news:
                self._news.close()
                self._has_news = False
            was = state
            if (now := self._clock.monotonic()) - self._ticked_at >= TICK_S:
                self._ticked_at = now
                self._show()
                self._heed_tiers()
                for number in self._slot.numbers.values():
                    if self._stage.retry_with_new_token(number):
                        self._wake.set()
            await asyncio.sleep(WATCH_S)

    def _heed_tiers(self) -> None:
        """Take a tier that was configured anew. What Meta said meanwhile gives way: an operator has spoken since."""
        for name in self._slot.numbers:
            tier_mps = self._stage.places[name].throughput_mps
            if tier_mps != self._tiers[name]:
                self._tiers[name] = tier_mps
                self._slot.set_tier(name, tier_mps)
                metrics.throughput_limit_mps.labels(name).set(tier_mps)
                self._wake.set()

    def _look(self) -> None:
        for turnstile in self._turnstiles.values():
            turnstile.call_all()
