"""What the outside saw of a run, in the order it happened: the only thing the checker may look at.

The wire to Meta, Meta's own journal, the bots' doors, and the logs as a reader of committed records sees them. No line
here asks a stage what it believes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from broker.log.catalogue import LEDGER, TRAFFIC
from broker.log.contract import Entry as Record
from broker.log.contract import Stage
from broker.sandbox.journal import Called, Entry, Journal, Posted, Ticked, Webhook, Wrote
from schemas.ledger import Intent, LedgerRecord, Part, Snapshot, Withdrawn, Written, decode_ledger
from schemas.records import decode_digest
from tests.simulation.cluster import SimulatedCluster, Transaction
from tests.simulation.loop import EPOCH_MS, Process, Sim


class Issued(NamedTuple):
    """A send whose bytes left one of our processes. `offset_ms` is what that machine's wall clock was off by.
    `intents`: how many intents of this send were committed by then; `attempt`: the newest one's."""

    at: float
    number: str
    customer: str
    send_id: str
    process: str
    offset_ms: int
    intents: int
    attempt: int


class Digest(NamedTuple):
    """Inbound messages a process has heard of: their digest was on the log at `at` and reached it at `fetched_at`."""

    at: float
    fetched_at: float
    process: str
    number: str
    messages: int


class Receipt(NamedTuple):
    """A POST a bot answered. `event` names it by its bytes; `status` is the answer."""

    at: float
    sink: str
    event: str
    status: int


class Asked(NamedTuple):
    """A send the gateway took: a bot holds its id and waits to hear what came of it."""

    at: float
    sink: str
    send_id: str
    own: str


class Heard(NamedTuple):
    """A status a bot was told."""

    at: float
    sink: str
    send_id: str
    status: str
    code: int
    own: str | None


class Held(NamedTuple):
    """A process read a slot's ledger back (`is_new`), or wrote it: what its wall clock was off by then."""

    at: float
    slot: int
    process: str
    offset_ms: int
    is_new: bool


class Evidence:
    """Collects. Everything is a list in the order of time."""

    def __init__(self, sim: Sim, cluster: SimulatedCluster, journal: Journal) -> None:
        self.sim = sim
        self.issued: list[Issued] = []
        self.digests: list[Digest] = []
        self._digests_seen: set[tuple[str, int, int]] = set()
        self.receipts: list[Receipt] = []
        self.asked: list[Asked] = []
        self.heard: list[Heard] = []
        self.calls: list[Called] = []
        self.ticks: list[Ticked] = []
        self.wrote: list[Wrote] = []
        self.webhooks: dict[int, Webhook] = {}
        self.meta_stopped_at: int | None = None
        """When the platform was told to stop, by its clock: a webhook from then on stays in its journal."""
        self.acknowledged: dict[int, float] = {}
        """Items of POSTs that were answered with 200, by their number, and when."""
        self.held: list[Held] = []
        """Ledgers that were read back; between two of these each change of the owner's clock that a step shows."""
        self.steps = 0
        self._clocks: dict[int, Held] = {}
        self._intents: dict[str, dict[tuple[int, int], None]] = {}
        self.withdrawn: dict[tuple[str, int], float] = {}
        """By send and attempt: when a step was committed by which its number's sender knows that it is withdrawn."""
        journal.listen(self._see)
        cluster.on_commit = self._committed
        cluster.on_fetch = self._fetched
        cluster.on_hold = self._hold
        self._by_kind: dict[type[Entry], Callable[[Entry], None]] = {
            Called: self.calls.append,  # type: ignore[dict-item]  # each list takes its own kind
            Ticked: self.ticks.append,  # type: ignore[dict-item]
            Wrote: self.wrote.append,  # type: ignore[dict-item]
        }

    def issue(self, process: Process, number: str, customer: str, send_id: str) -> None:
        """Note that a call's bytes leave now."""
        intents = list(self._intents.get(send_id, ()))
        offset_ms = process.clock.now() - self.sim.true_ms
        self.issued.append(
            Issued(
                self.sim.now,
                number,
                customer,
                send_id,
                f"{process.name}#{process.incarnation}",
                offset_ms,
                len(intents),
                intents[-1][0] if intents else 0,
            )
        )

    def _see(self, entry: Entry) -> None:
        keep = self._by_kind.get(type(entry))
        if keep is not None:
            keep(entry)
        elif isinstance(entry, Webhook):
            self.webhooks[entry.seq] = entry
        elif isinstance(entry, Posted) and entry.answer == 200:
            for seq in entry.items:
                self.acknowledged.setdefault(seq, self.sim.now)

    def _committed(self, transaction: Transaction) -> None:
        self.steps += 1
        if transaction.stage.state != LEDGER:
            return
        for _, value in transaction.step.changes:
            for intent in intents_of(value or b""):
                self._intents.setdefault(intent.send_id, {})[intent.attempt, intent.at] = None
            for one in withdrawn_of(value or b""):
                self.withdrawn.setdefault((one.send_id, one.attempt), self.sim.now)

    def _hold(self, process: Process, stage: Stage, partition: int, is_new: bool) -> None:
        if stage.state != LEDGER:
            return
        offset_ms = process.clock.now() - self.sim.true_ms
        held = Held(self.sim.now, partition, f"{process.name}#{process.incarnation}", offset_ms, is_new)
        last = self._clocks.get(partition)
        if is_new or last is None or last[2:4] != held[2:4]:
            self._clocks[partition] = held
            self.held.append(held)

    def _fetched(self, process: Process, records: list[Record]) -> None:
        who = f"{process.name}#{process.incarnation}"
        for record in records:
            seen = (who, record.partition, record.offset)
            if record.log == TRAFFIC and seen not in self._digests_seen:
                self._digests_seen.add(seen)
                digest = decode_digest(record.value)
                at = (record.appended_at - EPOCH_MS) / 1_000
                self.digests.append(Digest(at, self.sim.now, who, digest.phone_number_id, digest.count))


def intents_of(value: bytes) -> list[Intent]:
    """Return the intents a record of the ledger names; a snapshot repeats those that are still open."""
    record = _opened(value)
    return record.intents if isinstance(record, Written | Snapshot) else []


def withdrawn_of(value: bytes) -> list[Withdrawn]:
    """Return the withdrawn sends a record of the ledger names; a snapshot repeats them in parts."""
    record = _opened(value)
    return record.withdrawn if isinstance(record, Written | Part) else []


def _opened(value: bytes) -> LedgerRecord | None:
    try:
        record: LedgerRecord = decode_ledger(value)
    except msgspec.MsgspecError:  # the position stands there too
        return None
    return record
