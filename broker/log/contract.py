"""What a log engine owes. One suite in `tests/contract` holds every engine to it.

A **log** is a named set of partitions; a partition is records in the order of their offsets. Whoever appends from
outside a step gets durability: `append` returns when the records would survive the death of this process and
machine. Whoever keeps state moves in **steps** under a **lease**: a step is committed whole or not at all, readers
see committed steps only, and whoever is granted the partition next fences the one before. A stage without state
**follows** logs: it reads committed records and commits, for each partition, how far it is and a short text.

An engine runs a coroutine of the stage for each partition it was granted (`Run`). That coroutine owns the
partition's memory. Its life:

    granted ─▶ run(lease): restore, then fetch · decide · commit, again and again
       HELD ──revoked──▶ DRAINING ──≤ 5 s, at once when nobody is `working`──▶ AWAY
       AWAY ──granted again──▶ HELD        the same coroutine goes on, with its memory: nobody fenced it, or if
                                           somebody did, its next commit raises `LeaseLost`
       AWAY ──granted to another──▶ LOST   the coroutine is cancelled
       any  ──fenced, or a commit in doubt──▶ LOST   commit and fetch raise `LeaseLost`; the engine starts a new
                                           coroutine with a new lease while the partition is still granted to us

When `run` ends with any exception, the engine counts it, backs off with jitter and starts again from what is
committed. `run` ends by itself only when it is cancelled.

Records handed out by `fetch` are the stage's own until the lease is lost: they are not handed out again when the
lease comes back. A stage changes its memory only after `commit` returned.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Literal, NamedTuple, Protocol

from msgspec import Struct, field

RECORD_BYTES_MAX = 4_000_000
"""Key and value of one record. Below the client's request limit (4.5 MB) and the topic's (5 MiB)."""

METADATA_CHARS_MAX = 4_096
"""What fits beside a committed offset. Kafka counts characters (`offset.metadata.max.bytes`)."""

DRAIN_S_MAX = 5.0
"""How long a revocation waits for what is `working`. Half of a rebalance's patience."""


class LogSpec(Struct, frozen=True):
    """A log as it is to be created.

    `kept`: "time" drops whole stretches older than `retention_ms`; "last" keeps the last value of every key
    (None deletes a key); "journal" is "time" read back from its last snapshot.
    """

    name: str
    partitions: int
    kept: Literal["time", "last", "journal"] = "time"
    retention_ms: int = 7 * 24 * 3_600_000


class Draft(NamedTuple):
    """A record to be appended. Its partition is the hash of its key unless one is named."""

    key: bytes
    value: bytes | None
    partition: int | None = None


class Entry(NamedTuple):
    """A record as it stands in a log. `appended_at` is Unix ms, by the clock of whoever appended or the broker's."""

    log: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    appended_at: int


class Stage(Struct, frozen=True):
    """A stage with state. All `inputs` and the `state` log have the same number of partitions and are leased together:
    who has partition 7 of one has partition 7 of all."""

    name: str
    inputs: tuple[str, ...]
    state: str


SNAPSHOT = b"\x00snapshot"
"""Key of the first change of a step that holds a journal's snapshot: a restore begins at the last such record."""


class Step(Struct):
    """What a stage commits whole or not at all. `derived`: (log, draft) in order; `changes`: key and value for the
    state log, in order; `position`: for each input, the offset of the first record a restored owner must be handed
    again; `memo`: up to 64 kB the stage wants back with the position."""

    position: Mapping[str, int]
    derived: list[tuple[str, Draft]] = field(default_factory=list)
    changes: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    memo: bytes = b""


class Restored(Struct, frozen=True):
    """What was committed. `records`: the last value of each key, without deleted ones; for a journal all records since
    its last snapshot (the snapshot first), in order. `position` misses an input that no step has moved yet (then
    reading begins at the log's first record)."""

    records: Sequence[tuple[bytes, bytes]]
    position: Mapping[str, int]
    memo: bytes


class LeaseState(Enum):
    """Where a lease stands; see the module's picture."""

    HELD = "held"
    DRAINING = "draining"
    AWAY = "away"
    LOST = "lost"


class Lease(Protocol):
    """The right to act for one partition of a stage."""

    @property
    def partition(self) -> int:
        """The partition, of all the stage's logs."""
        ...

    @property
    def state(self) -> LeaseState:
        """What we may do now. Begin nothing new unless it is HELD."""
        ...

    @property
    def proven_at(self) -> float:
        """Monotonic seconds at which the newest thing was begun that only an owner succeeds in (a committed step; on
        start, the fencing). Whoever acts on the world asks how long ago that is: a frozen process thaws believing."""
        ...

    def working(self) -> AbstractContextManager[None]:
        """Keep a revocation waiting, at most `DRAIN_S_MAX`, while something runs that is better finished."""
        ...

    async def restore(self) -> Restored:
        """Read back what was committed. Called once, first. Raises `LeaseLost`, `LogUnavailable`."""
        ...

    async def fetch(self, records_max: int, timeout_s: float, logs: Collection[str] | None = None) -> list[Entry]:
        """Return the next records, in order for each log, at once when there are any, [] after the timeout.

        `logs` limits it to some inputs, which is how a stage takes no more of a lane than it can hold. While the
        lease is not HELD it waits (within the timeout). Raises `LeaseLost`.
        """
        ...

    async def commit(self, step: Step) -> None:
        """Make a step durable, whole. One at a time.

        It is decided when this returns, and every restore sees it. Readers see it a moment later: on Kafka once its
        end is marked in each partition it touched, which the coordinator does after it has answered.

        Raises `LeaseRevoked` (AWAY; nothing written, keep the memory), `RecordTooLarge` (nothing written),
        `LeaseLost` (fenced, or the outcome is not known: drop everything).
        """
        ...


class Follow(Protocol):
    """The right to read one partition of one log for a group, without state of its own. At least once."""

    @property
    def log(self) -> str:
        """The log's name."""
        ...

    @property
    def partition(self) -> int:
        """The partition."""
        ...

    @property
    def state(self) -> LeaseState:
        """As for a lease."""
        ...

    def working(self) -> AbstractContextManager[None]:
        """As for a lease."""
        ...

    async def restore(self) -> tuple[int | None, str]:
        """Return the committed offset (None: never) and its text. Called once, first; fetching begins there."""
        ...

    async def fetch(self, records_max: int, timeout_s: float) -> list[Entry]:
        """As for a lease."""
        ...

    async def commit(self, offset: int, metadata: str = "") -> None:
        """Commit the offset of the first record not done, with a text of at most `METADATA_CHARS_MAX` characters.

        Raises `LeaseRevoked` (nothing written, go on when it comes back), `LeaseLost`, `LogUnavailable` (try again
        with a later one).
        """
        ...


class Membership(Protocol):
    """A stage's or group's share in a process."""

    @property
    def failure(self) -> Exception | None:
        """What keeps a partition from being run for good, e.g. `WrongIncarnation`; for the readiness probe."""
        ...

    def held(self) -> frozenset[tuple[str, int]]:
        """The (log, partition) pairs, or (stage, partition), that are HELD and restored."""
        ...

    async def leave(self, timeout_s: float = 10.0) -> None:
        """Drain, give the partitions to others, stop. Never raises, never longer than the timeout."""
        ...


class LogEngine(Protocol):
    """Logs, their durable appends, steps and readers. Made with its `LogSpec`s; `start` creates or checks them."""

    @property
    def logs(self) -> Mapping[str, LogSpec]:
        """Every log by name, without the engine's prefix."""
        ...

    async def start(self) -> None:
        """Open. Raises `LogUnavailable` (bounded wait), `Misconfigured` (a log has another number of partitions)."""
        ...

    async def close(self, timeout_s: float = 10.0) -> None:
        """Leave every membership, settle or give up open appends, release everything. Never hangs, never raises."""
        ...

    def partition_of(self, log: str, key: bytes) -> int:
        """Return the partition of a key: murmur2 as in Kafka's default partitioner, on every engine."""
        ...

    async def append(self, log: str, drafts: Sequence[Draft], timeout_s: float) -> None:
        """Append records; durable when it returns. Order within a partition is the order of calls and drafts.

        Records of one call may become visible one by one. A caller that goes away (is cancelled) never cancels the
        append. Raises `RecordTooLarge` (nothing appended), `LogUnavailable` (not known: some may land later). While
        more than the engine's bytes in flight are under way it waits, within the timeout.
        """
        ...

    async def own(self, stage: Stage, run: Callable[[Lease], Awaitable[None]]) -> Membership:
        """Join the stage: `run` is called for each partition granted to this process."""
        ...

    async def follow(self, group: str, logs: Sequence[str], run: Callable[[Follow], Awaitable[None]]) -> Membership:
        """Join the group: `run` is called for each partition of each log granted to this process."""
        ...

    def read(self, log: str, partition: int, start: int | None = None, *, tail: bool = False) -> AsyncIterator[Entry]:
        """Read committed records from an offset (None: the first kept one) to the present end, or on for ever when
        `tail`. Without a lease: for tools and for logs that everybody reads."""
        ...

    async def ends(self, log: str) -> list[tuple[int, int]]:
        """Return, for each partition, the first kept offset and the offset the next committed record will have at
        least."""
        ...
