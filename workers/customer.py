"""The customer stage: drives the customers of each leased partition through their decisions, a step at a time.

One `Household` owns one partition: the packed state of its customers, their deadlines, and what it has heard of Meta's
webhooks. It takes a batch of records, opens the customers they concern, lets each decide in order, and commits what
came of it whole: records for the lanes and the sinks, changed states, the position. Nothing it remembers changes
before the commit has returned, so a step that is refused leaves no trace.

States are kept as bytes throughout. Opening and packing one takes 2 µs together, about as much as finding out whether
an opened one in a cache may still be used; and the bytes are what a refused step goes back to.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache

import msgspec
from msgspec import Struct
from prometheus_client import Counter

from broker import failpoints, metrics
from broker.clock import Clock
from broker.core.botview import BODY_BYTES_MAX
from broker.core.customer import Command, Deliver, Dispatch, Due, Event, Note, decide, heard_of, next_due
from broker.core.customer_context import Context
from broker.core.customer_state import Customer, in_doubt, is_forgotten, pack, quieted, unpack
from broker.core.deadlines import Deadlines
from broker.core.moves import Append
from broker.errors import LeaseRevoked, RecordTooLarge
from broker.log.catalogue import CONVERSATIONS, CUSTOMER_STAGE, STATE, deliveries, sends
from broker.log.contract import RECORD_BYTES_MAX, Draft, Entry, Lease, LeaseState, LogEngine, Membership, Step
from schemas.ids import CustomerKey
from schemas.records import LANES, Item, decode_conversation, encode
from workers.supervisor import (
    MALFORMED,
    POISON,
    TOO_LARGE,
    Crashes,
    count_dead_letter,
    dead_letter,
    describe,
)

NAME = "customer"

UNKNOWN_SINK = "unknown_sink"
"""Reason of a dead letter: a route or a send names a sink that has no log (it left the configuration)."""

YIELD_RECORDS = 200
"""Records decided between two turns of the event loop: 3 ms, which another stage's permit can wait."""

YIELD_S = 0.01
"""Or sooner, when they take long: an operator's worst pattern over a customer's longest text takes 100 ms, and two
hundred of them would cost every lease of the process."""

RESTORE_YIELD_RECORDS = 2_000

REVOKED_WAIT_S = 0.05
"""How often a step is offered again while its lease is away: it comes back within a rebalance, or we are cancelled."""

CRASHED_WAIT_MS = 60_000
"""When a deadline whose decision crashed is looked at again: the fault is ours, and a lane may hang on it."""

CUT_BYTES = 500_000
"""What is kept of a record the engine refuses although it is within our limit: half of Kafka's own default."""


class StageLimits(Struct, frozen=True):
    """Bounds of one partition's work."""

    records_max: int = 1_000
    """Of one step. A step costs an fsync or a transaction; more records do not make it cheaper each."""
    idle_s: float = 5.0
    """How long nothing may happen before the loop turns by itself."""
    sweep_s: float = 6 * 3_600.0
    """How often each customer is looked at for having been silent."""
    sweep_records: int = 500
    """Customers looked at in one turn."""


class CustomerStage:
    """Everything of the customer stage in this process. `context`: routes, numbers and bounds, compiled."""

    def __init__(
        self,
        engine: LogEngine,
        context: Context,
        clock: Clock,
        rng: random.Random,
        limits: StageLimits | None = None,
    ) -> None:
        self.engine = engine
        self.context = context
        self.clock = clock
        self.rng = rng
        self.limits = limits if limits is not None else StageLimits()
        self.crashes = Crashes(NAME)
        self._membership: Membership | None = None

    @property
    def failure(self) -> Exception | None:
        """What keeps a partition from being run for good; for the readiness probe."""
        return None if self._membership is None else self._membership.failure

    def held(self) -> frozenset[tuple[str, int]]:
        """The (stage, partition) pairs this process decides for."""
        return frozenset() if self._membership is None else self._membership.held()

    def adopt(self, context: Context) -> None:
        """Decide by another configuration from the next batch on."""
        self.context = context

    async def start(self) -> None:
        """Join the stage. Raises what `LogEngine.own` raises."""
        self._membership = await self.engine.own(CUSTOMER_STAGE, self._run)

    async def stop(self, timeout_s: float = 10.0) -> None:
        """Finish the steps under way and leave."""
        membership, self._membership = self._membership, None
        if membership is not None:
            await membership.leave(timeout_s)

    async def _run(self, lease: Lease) -> None:
        household = Household(self, lease)
        try:
            await household.run()
        finally:
            household.close()


class _Work:
    """A customer that the present batch concerns: as committed, as it is now, and by what events it came there."""

    __slots__ = ("customer", "events", "key", "packed", "repacked")

    def __init__(self, key: CustomerKey, packed: bytes | None) -> None:
        self.key = key
        self.packed = packed
        self.customer: Customer | None = unpack(packed) if packed is not None else None
        self.events: list[tuple[Event, bool]] = []
        self.repacked: bytes | None = packed


class _Batch:
    """What a step will hold, and what is to be done once it is durable."""

    __slots__ = (
        "apart",
        "context",
        "dead",
        "derived",
        "due",
        "forgotten",
        "notes",
        "now",
        "postponed",
        "swept",
        "works",
    )

    def __init__(self, context: Context, now: int, *, apart: bool = False) -> None:
        self.context = context
        self.now = now
        self.apart = apart
        """Whether what waited for a record goes back to the log, to be decided by itself."""
        self.works: dict[bytes, _Work] = {}
        self.derived: list[tuple[str, Draft]] = []
        self.notes: dict[tuple[str, str], int] = {}
        self.dead: list[tuple[str, str]] = []
        """(log, reason) of each dead letter."""
        self.due: list[bytes] = []
        self.postponed: dict[bytes, int] = {}
        """Deadlines whose decision crashed, and when to try again."""
        self.swept: dict[bytes, bytes] = {}
        self.forgotten: list[bytes] = []


class _Derived:
    """What one record's decision wants, encoded, before it is known that all of it can be had."""

    __slots__ = ("dead", "drafts", "notes")

    def __init__(self) -> None:
        self.drafts: list[tuple[str, Draft]] = []
        self.dead: list[tuple[str, str]] = []
        self.notes: list[tuple[str, str]] = []

    def into(self, batch: _Batch) -> None:
        """Add it to a step."""
        batch.derived += self.drafts
        batch.dead += self.dead
        counts = batch.notes
        for note in self.notes:
            counts[note] = counts.get(note, 0) + 1


class Household:
    """The customers of one partition, for as long as its lease is not lost."""

    def __init__(self, stage: CustomerStage, lease: Lease) -> None:
        self._stage = stage
        self._lease = lease
        self._clock = stage.clock
        self._limits = stage.limits
        self._crashes = stage.crashes
        self._customers: dict[bytes, bytes] = {}
        self._deadlines: Deadlines[bytes] = Deadlines()
        self._doubts: dict[bytes, int] = {}
        self._heard: dict[str, int] = {}
        self._sinks = {name for name in stage.engine.logs if name.startswith("deliveries.")}
        self._sweeping: Iterator[bytes] = iter(())
        self._swept_at = self._clock.monotonic() - stage.rng.uniform(0.0, self._limits.sweep_s)
        self._live = metrics.actors_live.labels(NAME)
        self._unknown = metrics.sends_unknown

    async def run(self) -> None:
        """Restore, then fetch, decide and commit until the lease is lost. Raises `LeaseLost`, `LogUnavailable`."""
        await self._remember()
        while True:
            entries = await self._lease.fetch(self._limits.records_max, self._patience_s())
            if entries:
                failpoints.reached("customer.fetched")
            await self._step(entries)

    def close(self) -> None:
        """Take back what was counted as live."""
        self._live.dec(len(self._customers))
        self._unknown.dec(sum(self._doubts.values()))
        self._customers.clear()
        self._doubts.clear()

    async def _remember(self) -> None:
        """Read back what was committed. A state that cannot be read is ours alone to have written: it is a crash."""
        restored = await self._lease.restore()
        now = self._clock.now()
        for number, (key, packed) in enumerate(restored.records):
            if number % RESTORE_YIELD_RECORDS == RESTORE_YIELD_RECORDS - 1:
                await asyncio.sleep(0)
            self._keep(key, packed, unpack(packed), now)

    def _patience_s(self) -> float:
        """How long to wait for records: until the next deadline at most."""
        next_at = self._deadlines.next_at()
        if not next_at or self._lease.state is not LeaseState.HELD:
            return self._limits.idle_s
        return min(self._limits.idle_s, max(0.001, (next_at - self._clock.now()) / 1_000))

    # -- a step

    async def _step(self, entries: Sequence[Entry], *, apart: bool = False) -> None:
        """Decide about a batch and commit it. When the engine finds a record too large, halve until it is alone; then
        it may be one of those that waited for it, so these are decided apart."""
        with self._lease.working():
            batch = await self._decide(entries, apart=apart)
            try:
                await self._commit(batch, entries)
            except RecordTooLarge as error:
                if apart and not entries:
                    raise
                refused = error
                for key in batch.due:
                    self._deadlines.set(key, batch.now)
            else:
                return
        if len(entries) > 1:
            middle = len(entries) // 2
            await self._step(entries[:middle])
            await self._step(entries[middle:])
            return
        if not apart:
            await self._step(entries, apart=True)
            return
        batch = _Batch(self._stage.context, self._clock.now())
        self._set_aside(entries[0], TOO_LARGE, str(refused), 1, batch, CUT_BYTES)
        await self._commit(batch, entries)

    async def _decide(self, entries: Sequence[Entry], *, apart: bool) -> _Batch:
        """Let every customer concerned decide, in memory. With no entries left, deadlines and silence are looked at."""
        batch = _Batch(self._stage.context, self._clock.now(), apart=apart)
        monotonic = self._clock.monotonic
        yield_at = monotonic() + YIELD_S
        for number, entry in enumerate(entries):
            if number % YIELD_RECORDS == YIELD_RECORDS - 1 or monotonic() > yield_at:
                await asyncio.sleep(0)
                yield_at = monotonic() + YIELD_S
            self._handle(entry, batch)
        if self._lease.state is LeaseState.HELD:
            batch.due = self._deadlines.take_due(batch.now, self._limits.records_max)
            for key in batch.due:
                self._look(key, batch)
            self._sweep(batch)
        for work in batch.works.values():
            if work.customer is not None:
                work.repacked = pack(work.customer)
        return batch

    def _handle(self, entry: Entry, batch: _Batch) -> None:
        """Decide about one record; set it aside when it cannot be read, crashes three times, or comes out too large."""
        try:
            record = decode_conversation(entry.value)
            work = batch.works.get(entry.key)
            if work is None:
                key = CustomerKey(entry.key.decode())
                work = batch.works[entry.key] = _Work(key, self._customers.get(entry.key))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._set_aside(entry, MALFORMED, describe(error), 1, batch)
            return
        if type(record) is Item:
            heard = heard_of(record)
            if heard is not None and heard[1] > self._heard.get(heard[0], 0):
                self._heard[heard[0]] = heard[1]
        apart = batch.apart
        while True:
            try:
                customer, commands = decide(work.customer, work.key, record, batch.context, batch.now, apart=apart)
                derived = self._encoded(commands, entry.key, batch.now)
            except RecordTooLarge as error:
                self._rewind(work, batch)
                if not apart:
                    apart = True
                    continue
                self._set_aside(entry, TOO_LARGE, str(error), 1, batch)
                return
            except Exception as error:
                self._rewind(work, batch)
                attempts = self._crashes.crashed(entry, error)
                if attempts >= self._crashes.attempts_max:
                    self._set_aside(entry, POISON, describe(error), attempts, batch)
                    return
            else:
                work.customer = customer
                work.events.append((record, apart))
                derived.into(batch)
                return

    def _look(self, key: bytes, batch: _Batch) -> None:
        """Let a customer decide about a deadline. A crash puts it off: there is no record to set aside."""
        work = batch.works.get(key)
        if work is None:
            work = batch.works[key] = _Work(CustomerKey(key.decode()), self._customers.get(key))
        due = Due(self._heard)
        try:
            customer, commands = decide(work.customer, work.key, due, batch.context, batch.now, apart=batch.apart)
            derived = self._encoded(commands, key, batch.now)
        except Exception as error:
            self._rewind(work, batch)
            self._crashes.crashed(Entry(STATE, self._lease.partition, -1, key, b"", batch.now), error)
            batch.postponed[key] = batch.now + CRASHED_WAIT_MS
        else:
            work.customer = customer
            work.events.append((due, batch.apart))
            derived.into(batch)

    def _rewind(self, work: _Work, batch: _Batch) -> None:
        """Bring a customer back to where it was before a record crashed halfway: from what is committed, by the same
        events at the same instant. What they derived is in the batch already."""
        work.customer = unpack(work.packed) if work.packed is not None else None
        for event, apart in work.events:
            work.customer, _ = decide(work.customer, work.key, event, batch.context, batch.now, apart=apart)

    def _encoded(self, commands: Sequence[Command], key: bytes, now: int) -> _Derived:
        """Encode what a decision wants. Raises `RecordTooLarge`."""
        derived = _Derived()
        drafts = derived.drafts
        for command in commands:
            if type(command) is Note:
                derived.notes.append((command.what, command.label))
                continue
            if type(command) is Deliver:
                if len(command.event.body) > BODY_BYTES_MAX:
                    raise RecordTooLarge(f"a body of {len(command.event.body)} bytes; sinks take {BODY_BYTES_MAX}")
                log = deliveries_log(command.sink)
                draft = Draft(command.event.customer.encode(), encode(command.event))
                if log not in self._sinks:
                    derived.dead.append((log, UNKNOWN_SINK))
                    stray = Entry(log, -1, -1, key, draft.value or b"", now)
                    drafts.append(dead_letter(stray, NAME, UNKNOWN_SINK, "the sink is not configured", 1, now))
                    continue
            elif type(command) is Append:
                log, draft = CONVERSATIONS, Draft(command.key.encode(), encode(command.record))
            else:
                assert type(command) is Dispatch
                log, draft = _LANE_LOGS[command.record.lane], Draft(key, encode(command.record), command.slot)
            size = len(key) + len(draft.value or b"")
            if size > RECORD_BYTES_MAX:
                raise RecordTooLarge(f"what came of it for {log!r} has {size} bytes, at most {RECORD_BYTES_MAX} fit")
            drafts.append((log, draft))
        return derived

    def _set_aside(
        self, entry: Entry, reason: str, detail: str, attempts: int, batch: _Batch, bytes_max: int | None = None
    ) -> None:
        if bytes_max is None:
            letter = dead_letter(entry, NAME, reason, detail, attempts, batch.now)
        else:
            letter = dead_letter(entry, NAME, reason, detail, attempts, batch.now, bytes_max)
        batch.derived.append(letter)
        batch.dead.append((entry.log, reason))

    def _sweep(self, batch: _Batch) -> None:
        """Look at some customers for whether they have been silent: they are made smaller, or forgotten."""
        if self._clock.monotonic() - self._swept_at >= self._limits.sweep_s:
            self._swept_at = self._clock.monotonic()
            self._sweeping = iter(list(self._customers))
        for _ in range(self._limits.sweep_records):
            key = next(self._sweeping, None)
            if key is None:
                return
            packed = self._customers.get(key)
            if packed is None or key in batch.works:
                continue
            customer = unpack(packed)
            if is_forgotten(customer, batch.now):
                batch.forgotten.append(key)
            elif quieted(customer, batch.now):
                batch.swept[key] = pack(customer)

    # -- a commit, and what comes after it

    async def _commit(self, batch: _Batch, entries: Sequence[Entry]) -> None:
        """Make the batch durable and then remember it. Raises `RecordTooLarge` (nothing happened), `LeaseLost`."""
        changes: list[tuple[bytes, bytes | None]] = [
            (key, work.repacked) for key, work in batch.works.items() if work.repacked != work.packed
        ]
        changes += batch.swept.items()
        changes += ((key, None) for key in batch.forgotten)
        if entries or batch.derived or changes:
            position = {CONVERSATIONS: entries[-1].offset + 1} if entries else {}
            step = Step(position, batch.derived, changes)
            failpoints.reached("customer.decided")
            while True:
                try:
                    await self._lease.commit(step)
                    failpoints.reached("customer.committed")
                    break
                except LeaseRevoked:  # nothing was written; when the partition comes back unfenced, we go on
                    await asyncio.sleep(REVOKED_WAIT_S)
        self._settle(batch, entries)

    def _settle(self, batch: _Batch, entries: Sequence[Entry]) -> None:
        """Take over what is durable now, and count it."""
        for key, work in batch.works.items():
            if work.customer is not None and work.repacked is not None:
                self._keep(key, work.repacked, work.customer, batch.now)
        self._customers.update(batch.swept)
        for key, at in batch.postponed.items():
            self._deadlines.set(key, at)
        for key in batch.forgotten:
            del self._customers[key]
        self._live.dec(len(batch.forgotten))
        if len(self._crashes):
            for entry in entries:
                self._crashes.settled(entry)
        for (what, label), count in batch.notes.items():
            _counter(what, label).inc(count)
        for log, reason in batch.dead:
            count_dead_letter(log, reason)

    def _keep(self, key: bytes, packed: bytes, customer: Customer, now: int) -> None:
        """Remember a committed state, its deadline and its doubts."""
        if key not in self._customers:
            self._live.inc()
        self._customers[key] = packed
        if customer.sends or key in self._doubts:
            doubts = in_doubt(customer)
            before = self._doubts.pop(key, 0)
            if doubts:
                self._doubts[key] = doubts
            if doubts != before:
                self._unknown.inc(doubts - before)
        self._deadlines.set(key, next_due(customer, now))


_LANE_LOGS = {lane: sends(lane) for lane in LANES}

deliveries_log = lru_cache(maxsize=1_024)(deliveries)
"""A sink's log. There are few, and each event asks."""


@lru_cache(maxsize=4_096)
def _counter(what: str, label: str) -> Counter:
    """Return what counts a note. Labels are routes, kinds and results: few, or as many as are configured."""
    match what:
        case "admitted":
            return metrics.sends_admitted.labels(label)
        case "routed":
            return metrics.routed.labels(label)
        case "replied":
            return metrics.auto_replies.labels(label)
        case "duplicate":
            return metrics.duplicates.labels(CONVERSATIONS, label)
        case "status":
            return metrics.statuses.labels(label)
        case "failed":
            return metrics.sends_failed.labels(label)
        case "resolved":
            return metrics.unknown_resolved.labels(label)
        case "moved":
            return metrics.customer_moves.labels(label)
        case "consent":
            return metrics.consent_changes.labels(label)
        case "accepted_twice":
            return metrics.sends_duplicated
    raise ValueError(f"no metric counts {what!r}")
