"""The simulated cluster: what of a log outlives every process. Logs, open steps, fencing, groups, reachability.

It behaves as Apache Kafka does where a stage can tell the difference: a step's records take offsets when they are
written and are seen when it is committed, so later plain appends wait behind an open step; a step leaves a gap of one
offset in each partition it touched; a dead owner's open step is settled by its successor's fencing or by the
transaction timeout, whatever comes first; a member that falls silent keeps its partitions until its session ends.

Everything here runs in the world, at the instant a request arrives. What goes to a process and what comes from one
takes time, and waits while the two do not reach each other.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from broker.errors import DepescheError, LeaseLost, LeaseRevoked, LogUnavailable, Misconfigured
from broker.log.contract import SNAPSHOT, Draft, Entry, LogSpec, Restored, Stage, Step
from broker.log.partitioning import partition_for
from broker.log.position import NOWHERE, POSITION, Position, advanced, check_incarnations, encode_position
from tests.simulation.faults import Latency
from tests.simulation.loop import EPOCH_MS, Process, Sim, State

SESSION_TIMEOUT_S = 6.0
HEARTBEAT_S = 0.5
REBALANCE_TIMEOUT_S = 15.0
TRANSACTION_TIMEOUT_S = 2.5
"""As the Kafka engine sets them."""

TRIM_EVERY = 2_048
"""Records between two looks at what a partition may forget."""


class Reader(Protocol):
    """Somebody who reads on at a partition's end."""

    @property
    def process(self) -> Process:
        """Whose it is."""
        ...

    def poke(self) -> None:
        """Say that more can be seen."""
        ...


class Transaction:
    """A step that was written: open, committed or aborted."""

    __slots__ = ("epoch", "key", "offsets", "open", "position", "stage", "step")

    def __init__(self, key: tuple[str, int], epoch: int, stage: Stage, step: Step, position: Position) -> None:
        self.key = key
        self.epoch = epoch
        self.stage = stage
        self.step = step
        self.open = True
        self.position = position
        self.offsets: dict[Partition, list[int]] = {}


class Partition:
    """One partition's records in order of offset, those of open steps included."""

    __slots__ = ("appended", "entries", "index", "last", "log", "next_offset", "offsets", "open", "readers", "spec")

    def __init__(self, log: str, index: int, spec: LogSpec) -> None:
        self.log = log
        self.index = index
        self.spec = spec
        self.entries: list[Entry] = []
        self.offsets: list[int] = []
        self.next_offset = 0
        self.appended = 0
        self.open: dict[Transaction, int] = {}
        self.last: dict[bytes, bytes] = {}
        self.readers: dict[int, Reader] = {}

    @property
    def first_offset(self) -> int:
        """The first kept record's offset; the end when nothing is kept."""
        return self.offsets[0] if self.offsets else self.next_offset

    @property
    def visible_end(self) -> int:
        """The offset before which everything is settled."""
        return min(self.open.values()) if self.open else self.next_offset

    def put(self, key: bytes, value: bytes | None, now_ms: int) -> int:
        """Take in a record and return its offset. A deleted key's record has an empty value."""
        offset = self.next_offset
        self.next_offset = offset + 1
        self.entries.append(Entry(self.log, self.index, offset, key, value or b"", now_ms))
        self.offsets.append(offset)
        self.appended += 1
        return offset

    def settle(self, key: bytes, value: bytes | None) -> None:
        """Note the last value of a key, once its record is committed."""
        if value is None:
            self.last.pop(key, None)
        else:
            self.last[key] = value

    def remove(self, offsets: Sequence[int]) -> None:
        """Take out an aborted step's records."""
        gone = dict.fromkeys(offsets)
        self.entries = [entry for entry in self.entries if entry.offset not in gone]
        self.offsets = [entry.offset for entry in self.entries]

    def read(self, start: int, records_max: int) -> tuple[list[Entry], int]:
        """Return committed records from an offset, and the offset to go on from."""
        end = self.visible_end
        first = bisect_left(self.offsets, start)
        stop = bisect_left(self.offsets, end, first)
        if stop - first > records_max:
            entries = self.entries[first : first + records_max]
            return entries, entries[-1].offset + 1
        return self.entries[first:stop], max(start, end)

    def trim(self, now_ms: int) -> None:
        """Forget what may be forgotten: old stretches, overwritten values, a journal before its last snapshot."""
        if self.spec.kept == "last":
            end = self.visible_end
            newest = {entry.key: entry.offset for entry in self.entries if entry.offset < end}
            self.entries = [
                entry
                for entry in self.entries
                if entry.offset >= end or (newest[entry.key] == entry.offset and entry.key in self.last)
            ]
            self.offsets = [entry.offset for entry in self.entries]
            return
        keep = bisect_left(self.entries, now_ms - self.spec.retention_ms, key=lambda entry: entry.appended_at)
        keep = min(keep, bisect_left(self.offsets, self.visible_end))
        if self.spec.kept == "journal":
            keep = min(keep, self.journal_begins())
        del self.entries[:keep]
        del self.offsets[:keep]

    def journal_begins(self) -> int:
        """Return the index of the last committed snapshot, or of the first record when there is none."""
        end = bisect_left(self.offsets, self.visible_end)
        return next((at for at in range(end - 1, -1, -1) if self.entries[at].key == SNAPSHOT), 0)


class Log(NamedTuple):
    """A log of one incarnation."""

    spec: LogSpec
    incarnation: str
    partitions: list[Partition]


class Member(Protocol):
    """A process's share in a group, as the coordinator talks to it."""

    @property
    def process(self) -> Process:
        """Whose it is."""
        ...

    def post(self, message: tuple[Any, ...]) -> None:
        """Hear ("revoke", round), ("assigned", round, keys) or ("expired",)."""
        ...


class Seat:
    """A member's place in a group, until it leaves or its session ends."""

    __slots__ = ("joined", "keys", "member", "number", "told_at")

    def __init__(self, number: int, member: Member) -> None:
        self.number = number
        self.member = member
        self.joined = True
        self.keys: list[tuple[str, int]] = []
        self.told_at = 0.0


class Group:
    """Members of one stage or group, and who has which partition."""

    __slots__ = ("committed", "name", "preparing", "round", "seats", "sizes")

    def __init__(self, name: str, sizes: dict[str, int]) -> None:
        self.name = name
        self.sizes = sizes
        self.seats: dict[int, Seat] = {}
        self.round = 0
        self.preparing = False
        self.committed: dict[tuple[str, int], tuple[int, str]] = {}


class Session:
    """What the coordinator knows of one process: whether it is heard."""

    __slots__ = ("expired", "timer", "untold")

    def __init__(self) -> None:
        self.timer: asyncio.TimerHandle | None = None
        self.expired = False
        self.untold: list[Callable[[], None]] = []


class SimulatedCluster:
    """Logs and coordination for every process of a run."""

    def __init__(
        self,
        sim: Sim,
        *,
        wire: Latency = Latency(0.0003, 0.004),  # noqa: B008  # a tuple: frozen
        flush: Latency = Latency(0.0005, 0.006),  # noqa: B008
        session_timeout_s: float = SESSION_TIMEOUT_S,
    ) -> None:
        self.sim = sim
        self.loop = sim.loop
        self.faults = sim.faults
        self.random = sim.random("cluster")
        self.logs: dict[str, Log] = {}
        self.groups: dict[str, Group] = {}
        self.epochs: dict[tuple[str, int], int] = {}
        self.positions: dict[tuple[str, int], Position] = {}
        self.transactions: dict[tuple[str, int], Transaction] = {}
        self._wire = wire
        self._flush = flush
        self.session_timeout_s = session_timeout_s
        self.ahead_ms = 0
        self._numbers = 0
        self._down = 0
        self._cut: dict[str, int] = {}
        self._parked: list[tuple[Process, Callable[[], None]]] = []
        self._sessions: dict[Process, Session] = {}
        self.on_commit: Callable[[Transaction], None] = lambda transaction: None
        """Told each step when it becomes visible."""
        self.on_fetch: Callable[[Process, list[Entry]], None] = lambda process, entries: None
        """Told what a process's fetch brought it."""
        self.on_hold: Callable[[Process, Stage, int, bool], None] = lambda process, stage, partition, is_new: None
        """Told who reads a partition's state back (`is_new`) or is about to write it."""

    # ── wires ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def wire_s(self) -> float:
        """Draw how long a request or an answer is under way."""
        return self._wire.draw(self.random)

    def flush_s(self) -> float:
        """Draw how long it takes until something is durable, the way there included."""
        return self._flush.draw(self.random)

    def world_at(self, when: float, action: Callable[..., object], *args: Any) -> None:
        """Do something in the world."""
        self.loop.call_at(when, action, *args, context=self.loop.world)

    def reaches(self, process: Process) -> bool:
        """Whether a process and the cluster reach each other now."""
        return not self._down and process.name not in self._cut

    def when_reached(self, process: Process, action: Callable[[], None]) -> None:
        """Do it now, or as soon as the two reach each other again."""
        if self.reaches(process):
            action()
        else:
            self._parked.append((process, action))

    async def ask(self, process: Process, serve: Callable[[], Any], timeout_s: float, subject: str) -> Any:
        """Let the cluster serve a request of a process. Raises what it raises, `LogUnavailable` when no answer came."""
        if not process.alive:
            await process.never()
        answer: asyncio.Future[Any] = self.loop.create_future()

        def served() -> None:
            if answer.done():
                return
            try:
                result, error = serve(), None
            except DepescheError as exc:
                result, error = None, exc
            process.arrive_at(self.loop.now + self.wire_s(), _settle, answer, result, error)

        self.world_at(self.loop.now + self.wire_s(), self.when_reached, process, served)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise LogUnavailable(f"{subject}: no answer within {timeout_s} s") from None

    def down(self, seconds: float | None = None) -> None:
        """Let nobody reach the cluster for a while (None: until `up`). Sessions rest meanwhile: their coordinator is
        down too."""
        self.sim.note("log.down", seconds)
        self.faults.strike("log.down")
        self._down += 1
        if seconds is not None:
            self.world_at(self.loop.now + seconds, self.up)

    def up(self) -> None:
        """End an outage."""
        self._down -= 1
        self._reconnect()

    def cut(self, name: str, seconds: float) -> None:
        """Let a process not reach the cluster for a while; beyond the session timeout it loses its partitions."""
        self.sim.note("log.cut", name, f"{seconds:.3f}")
        self.faults.strike("log.cut")
        self._cut[name] = self._cut.get(name, 0) + 1
        self.world_at(self.loop.now + seconds, self._mend, name)
        self._review_named(name)

    def _mend(self, name: str) -> None:
        self._cut[name] -= 1
        if not self._cut[name]:
            del self._cut[name]
        self._review_named(name)
        self._reconnect()

    def _reconnect(self) -> None:
        parked, self._parked = self._parked, []
        for process, action in parked:
            if process.alive:  # the dead repeat no request
                self.when_reached(process, action)

    # ── logs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def now_ms(self) -> int:
        """The cluster's wall clock."""
        return EPOCH_MS + self.ahead_ms + int(self.loop.now * 1_000)

    def create(self, specs: Sequence[LogSpec]) -> None:
        """Make the logs that are missing. Raises `Misconfigured` when one is there with other partitions."""
        for spec in specs:
            log = self.logs.get(spec.name)
            if log is None:
                self._make(spec)
            elif log.spec.partitions != spec.partitions:
                raise Misconfigured(
                    f"log {spec.name!r} has {log.spec.partitions} partitions, but {spec.partitions} are configured"
                )

    def recreate(self, name: str) -> None:
        """Delete a log and make it again: a new incarnation, empty."""
        before = self.logs[name]
        log = self._make(before.spec)
        for old, new in zip(before.partitions, log.partitions, strict=True):
            new.readers = old.readers

    def _make(self, spec: LogSpec) -> Log:
        self._numbers += 1
        partitions = [Partition(spec.name, index, spec) for index in range(spec.partitions)]
        log = self.logs[spec.name] = Log(spec, f"{spec.name}#{self._numbers}", partitions)
        return log

    def incarnations(self) -> dict[str, str]:
        """Return the incarnation of every log."""
        return {name: log.incarnation for name, log in self.logs.items()}

    def partition_of(self, name: str, draft: Draft) -> Partition:
        """Return where a record goes."""
        log = self.logs[name]
        index = draft.partition if draft.partition is not None else partition_for(draft.key, log.spec.partitions)
        return log.partitions[index]

    def land(self, name: str, drafts: Sequence[Draft]) -> None:
        """Take in plain appends, durable and in order."""
        touched: dict[Partition, None] = {}
        now_ms = self.now_ms
        for draft in drafts:
            partition = self.partition_of(name, draft)
            partition.put(draft.key, draft.value, now_ms)
            if partition.spec.kept == "last":
                partition.settle(draft.key, draft.value)
            touched[partition] = None
        for partition in touched:
            self._grown(partition)

    def _grown(self, partition: Partition) -> None:
        if partition.appended >= TRIM_EVERY:
            partition.appended = 0
            partition.trim(self.now_ms)
        for reader in list(partition.readers.values()):
            if reader.process.alive:
                reader.poke()
            else:
                del partition.readers[id(reader)]

    def tidy(self) -> None:
        """Do retention and compaction now, everywhere."""
        for log in self.logs.values():
            for partition in log.partitions:
                partition.trim(self.now_ms)

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def fence(self, stage: Stage, partition: int) -> int:
        """Begin a new epoch of an owner: the one before is refused from now on, and its open step is aborted.

        Raises `WrongIncarnation` when its position belongs to a log that is no more.
        """
        key = (stage.name, partition)
        where = f"{stage.name}/{partition}"
        check_incarnations(where, self.positions.get(key, NOWHERE), self.incarnations())
        self.epochs[key] = epoch = self.epochs.get(key, 0) + 1
        transaction = self.transactions.get(key)
        if transaction is not None:
            self.abort(transaction)
        self.sim.note("fence", where, epoch)
        return epoch

    def write(self, stage: Stage, partition: int, epoch: int, step: Step) -> Transaction:
        """Write a step's records, open. Raises `LeaseLost` to whoever was fenced."""
        key = (stage.name, partition)
        if self.epochs.get(key) != epoch:
            raise LeaseLost(f"{stage.name}/{partition}: fenced (epoch {epoch}, now {self.epochs.get(key)})")
        position = advanced(self.positions.get(key, NOWHERE), step, self.incarnations())
        transaction = self.transactions[key] = Transaction(key, epoch, stage, step, position)
        now_ms = self.now_ms
        state = self.logs[stage.state].partitions[partition]
        for name, draft in step.derived:
            self._write(transaction, self.partition_of(name, draft), draft.key, draft.value, now_ms)
        for changed, value in step.changes:
            self._write(transaction, state, changed, value, now_ms)
        self._write(transaction, state, POSITION, encode_position(transaction.position), now_ms)
        self.world_at(self.loop.now + TRANSACTION_TIMEOUT_S, self.abort, transaction)
        return transaction

    def _write(
        self, transaction: Transaction, partition: Partition, key: bytes, value: bytes | None, now_ms: int
    ) -> None:
        offset = partition.put(key, value, now_ms)
        offsets = transaction.offsets.get(partition)
        if offsets is None:
            transaction.offsets[partition] = [offset]
            partition.open[transaction] = offset
        else:
            offsets.append(offset)

    def commit(self, transaction: Transaction) -> None:
        """Make a written step visible, whole. Raises `LeaseLost` when it was aborted meanwhile."""
        if not transaction.open or self.epochs[transaction.key] != transaction.epoch:
            raise LeaseLost(
                f"{transaction.key[0]}/{transaction.key[1]}: the step was aborted (epoch {transaction.epoch})"
            )
        stage, step = transaction.stage, transaction.step
        self.positions[transaction.key] = transaction.position
        for name, draft in step.derived:
            if self.logs[name].spec.kept == "last":
                self.partition_of(name, draft).settle(draft.key, draft.value)
        state = self.logs[stage.state].partitions[transaction.key[1]]
        if state.spec.kept == "last":
            for changed, value in step.changes:
                state.settle(changed, value)
            state.settle(POSITION, encode_position(transaction.position))
        self.on_commit(transaction)
        self._close(transaction)

    def abort(self, transaction: Transaction) -> None:
        """Take a written step back, if it is still open."""
        if transaction.open:
            self.sim.note("abort", *transaction.key, transaction.epoch)
            for partition, offsets in transaction.offsets.items():
                partition.remove(offsets)
            self._close(transaction)

    def _close(self, transaction: Transaction) -> None:
        transaction.open = False
        if self.transactions.get(transaction.key) is transaction:
            del self.transactions[transaction.key]
        for partition in transaction.offsets:
            del partition.open[transaction]
            partition.next_offset += 1  # the marker that ends it takes an offset
        for partition in transaction.offsets:
            self._grown(partition)

    def restore(self, stage: Stage, partition: int, epoch: int) -> Restored:
        """Return what was committed. Raises `LeaseLost` to whoever was fenced."""
        key = (stage.name, partition)
        if self.epochs.get(key) != epoch:
            raise LeaseLost(f"{stage.name}/{partition}: fenced before it had restored")
        position = self.positions.get(key, NOWHERE)
        state = self.logs[stage.state].partitions[partition]
        if state.spec.kept == "last":
            records = [(key, value) for key, value in state.last.items() if key != POSITION]
        else:
            begin = state.journal_begins() if state.spec.kept == "journal" else 0
            end = bisect_left(state.offsets, state.visible_end)
            kept = state.entries[begin:end]
            records = [(entry.key, entry.value) for entry in kept if entry.key != POSITION]
        return Restored(records, position.offsets, position.memo)

    # ── groups ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def attach(self, process: Process) -> None:
        """Hear a process's heartbeats from now on."""
        if process not in self._sessions:
            self._sessions[process] = Session()
            process.watch(self, self._review)

    def join(self, name: str, sizes: dict[str, int], member: Member) -> Seat:
        """Take a member in; a rebalance follows."""
        group = self.groups.setdefault(name, Group(name, sizes))
        group.sizes.update(sizes)
        self._unseat(group, member)
        self._numbers += 1
        seat = group.seats[self._numbers] = Seat(self._numbers, member)
        self.sim.note("join", name, seat.number)
        self._prepare(group, joining=seat)
        return seat

    def leave(self, name: str, member: Member) -> None:
        """Let a member go; its partitions are the others' at once."""
        group = self.groups.get(name)
        if group is not None and self._unseat(group, member):
            self._prepare(group)

    def _unseat(self, group: Group, member: Member) -> bool:
        gone = [seat for seat in group.seats.values() if seat.member is member]
        for seat in gone:
            self.sim.note("leave", group.name, seat.number)
            del group.seats[seat.number]
        return bool(gone)

    def joined(self, name: str, seat: Seat, round_: int) -> None:
        """A member has let go of what it had, and waits for what it is to have."""
        group = self.groups[name]
        if group.seats.get(seat.number) is seat and group.preparing and round_ == group.round:
            seat.joined = True
            self._assign_if_all_joined(group)

    def rebalance(self, name: str) -> None:
        """Let a group rebalance with nobody coming or going: partitions go AWAY, and come back unfenced."""
        group = self.groups.get(name)
        if group is not None and group.seats and not group.preparing:
            self.faults.strike("log.rebalance")
            self._prepare(group)

    def commit_offset(self, name: str, seat: Seat, key: tuple[str, int], round_: int, offset: int, text: str) -> None:
        """Store a follower's offset. The generation is checked, not the owner, as Kafka does."""
        group = self.groups[name]
        if group.seats.get(seat.number) is not seat:
            raise LeaseLost(f"{name}: no longer a member")
        if round_ != group.round and not (group.preparing and round_ == group.round - 1):
            raise LeaseRevoked(f"{name}: a rebalance is under way")
        group.committed[key] = (offset, text)

    def _prepare(self, group: Group, *, joining: Seat | None = None) -> None:
        """Begin a rebalance: each member hears of it at its next heartbeat. Who comes meanwhile takes part in it."""
        if not group.preparing:
            group.preparing = True
            group.round += 1
            for seat in group.seats.values():
                seat.joined = seat is joining
                if not seat.joined:
                    self._tell(seat, self.random.random() * HEARTBEAT_S, ("revoke", group.round))
            self.world_at(self.loop.now + REBALANCE_TIMEOUT_S, self._drop_unjoined, group, group.round)
        self._assign_if_all_joined(group)

    def _tell(self, seat: Seat, delay_s: float, message: tuple[Any, ...]) -> None:
        """Send a member something, in order; it waits while the two do not reach each other.

        It comes with the answer to a heartbeat, so a frozen process hears of it only up to a heartbeat after it is
        thawed: until then it believes what it believed.
        """
        when = seat.told_at = max(seat.told_at, self.loop.now + delay_s + self.wire_s())
        process = seat.member.process

        def arrive() -> None:
            session = self._sessions.get(process)
            if process.state is State.FROZEN and session is not None:
                session.untold.append(arrive)
            else:
                process.arrive_at(self.loop.now, seat.member.post, message)

        self.world_at(when, self.when_reached, process, arrive)

    def _assign_if_all_joined(self, group: Group) -> None:
        if not group.preparing or not all(seat.joined for seat in group.seats.values()):
            return
        group.preparing = False
        seats = list(group.seats.values())
        for seat in seats:
            seat.keys = []
        for name, count in group.sizes.items():
            for index in range(count):
                if seats:
                    seats[index * len(seats) // count].keys.append((name, index))
        self.sim.note("assign", group.name, group.round, [(seat.number, seat.keys) for seat in seats])
        for seat in seats:
            self._tell(seat, 0.0, ("assigned", group.round, tuple(seat.keys)))

    def _drop_unjoined(self, group: Group, round_: int) -> None:
        if group.preparing and group.round == round_:
            for seat in list(group.seats.values()):
                if not seat.joined:
                    del group.seats[seat.number]
                    self._tell(seat, 0.0, ("expired",))
            self._assign_if_all_joined(group)

    # ── sessions ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _review_named(self, name: str) -> None:
        for process in list(self._sessions):
            if process.name == name:
                self._review(process)

    def _review(self, process: Process) -> None:
        """A process fell silent, or is heard again."""
        session = self._sessions.get(process)
        if session is None:
            return
        if process.state is State.RUNNING and process.name not in self._cut:
            if session.timer is not None:
                session.timer.cancel()
                session.timer = None
            session.expired = False
            untold, session.untold = session.untold, []
            heard_at = self.loop.now + self.random.random() * HEARTBEAT_S
            for arrive in untold:
                self.world_at(heard_at, self.when_reached, process, arrive)
        elif session.timer is None and not session.expired:
            silent_s = self.session_timeout_s - self.random.random() * min(HEARTBEAT_S, self.session_timeout_s)
            session.timer = self.loop.call_later(silent_s, self._expire, process, context=self.loop.world)

    def _expire(self, process: Process) -> None:
        session = self._sessions[process]
        session.timer = None
        session.expired = True
        if not process.alive:
            del self._sessions[process]
        for group in self.groups.values():
            gone = [seat for seat in group.seats.values() if seat.member.process is process]
            for seat in gone:
                del group.seats[seat.number]
                self.sim.note("expire", group.name, seat.number)
                self._tell(seat, self.random.random() * HEARTBEAT_S, ("expired",))
            if gone:
                self._prepare(group)


def _settle(answer: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    """Resolve a future of the process that waits for it, unless it went away."""
    if not answer.done():
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)
