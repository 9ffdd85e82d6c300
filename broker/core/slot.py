"""What the sender of one slot remembers of a crash: which sends it intended, learned of, doubts and is done with.

A slot is a partition of the `sends`, `ledger` and `traffic` logs; its numbers share it. Records come in by `take`,
`plan` says what the next step writes, `written` or `undone` what became of it, and `begin` reads a ledger back. Every
outcome leaves as a `Report`: it is appended to `conversations` first, and `landed` notes it for the next step then. So
a crash at any point leaves an intent without an answer, which the next owner reports as in doubt, or nothing at all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Literal, NamedTuple

from broker.core.account import STANDARD_MPS, STOP_MS, NumberPlace, Shut, taught
from broker.core.backlog import Backlog
from broker.core.gates import Gates
from broker.core.outcome import PAIR_LIMIT, Verdict
from broker.core.pacing import NO_DEBT, PairDebt, carried, pair_spent, pair_struck
from broker.core.refusals import Refusal
from broker.core.sender import Instant, NumberSender, Send
from broker.core.watermark import Watermark
from broker.core.withdrawals import Withdrawals
from schemas.ledger import (
    Answer,
    Behind,
    Debt,
    Doubt,
    Intent,
    Learned,
    LedgerRecord,
    Memo,
    Part,
    Snapshot,
    Withdrawn,
    Written,
    decode_memo,
    encode_memo,
)
from schemas.records import InboundDigest, Lane, NumberFault, Ready, SendOutcome, SendsRecord, Settle, Withdraw

MEMO_BYTES_MAX = 60_000
"""What the runs of three lanes may take beside the position, of the engine's 64 kB. More goes into the ledger: a run
left out would be a send that goes out twice."""

BEHIND_BYTES = 64
"""What a stretch takes beside its runs."""

RUNS_BYTES_MAX = 1_000_000
"""Of one lane in the ledger: some 300,000 open sends, thirty times what a lane may hold."""

RECENT_MAX = 16_384
"""Attempts remembered after they are done, for a record that is appended twice: 16 s of a number at 1,000 mps."""

PART_MAX = 5_000
"""Debts, doubts or withdrawn sends in one record of a snapshot: some 500 kB."""

PENDING_MAX = 10_000
"""Sends of one lane in memory, by default."""

BODY_BYTES_MAX = 8_192
"""What a report repeats of Graph's answer."""


WITHDRAWN = Refusal(
    131050,
    "User stopped marketing messages",
    "The customer said, while this message waited, that they want no marketing messages of this business.",
)


class Report(NamedTuple):
    """What came of a send. `outcome` (None: nobody waits for it) goes to `conversations` under the customer's key;
    then it is `landed`. `intent` is the ledger's, None when the send was never intended."""

    customer: str
    outcome: SendOutcome | None
    learned: Learned
    lane: Lane
    offset: int
    send: Send | None
    intent: Intent | None
    called_at: int = 0
    is_again: bool = False
    """A doubt of an earlier owner, said once more: the ledger has it already."""


class Forward(NamedTuple):
    """What concerns a number that lives at another slot: the step appends it there and is done with it here."""

    lane: Lane
    slot: int
    record: Ready | Withdraw


class Left(NamedTuple):
    """Sends of a number that wait in a lane's log and may be read again now, from `start` on, before `end`."""

    lane: Lane
    phone_number_id: str
    start: int
    end: int


class Late(NamedTuple):
    """A send that is over without a call: too late ("expired"), of a kind Meta would refuse, or withdrawn. The last
    needs no intent that keeps it from going out once that was said: the ledger has it as withdrawn."""

    send: Send
    outcome: Literal["expired", "refused"]
    refusal: Refusal | None = None
    is_withdrawn: bool = False


class Plan(NamedTuple):
    """A step: ledger records, where to go on in each lane, the memo; and what it holds, to be noted once it stands."""

    records: list[LedgerRecord]
    offsets: dict[Lane, int]
    memo: bytes
    forwards: list[Forward]
    sends: list[Send]
    late: list[Late]
    intents: list[Intent]
    answers: int
    lifted: int
    withdrawn: int
    moves: int


class Recent:
    """The attempts that were done last, by 8 bytes each."""

    def __init__(self, packed: bytes = b"") -> None:
        self._marks: OrderedDict[bytes, None] = OrderedDict.fromkeys(
            packed[at : at + 8] for at in range(0, len(packed) - 7, 8)
        )

    def __contains__(self, attempt: tuple[str, int]) -> bool:
        return self._mark(attempt) in self._marks

    def add(self, send_id: str, attempt: int) -> None:
        """Remember one more, forget the oldest beyond the bound."""
        self._marks[self._mark((send_id, attempt))] = None
        if len(self._marks) > RECENT_MAX:
            self._marks.popitem(last=False)

    def packed(self) -> bytes:
        """Return all, oldest first."""
        return b"".join(self._marks)

    @staticmethod
    def _mark(attempt: tuple[str, int]) -> bytes:
        return blake2b(f"{attempt[0]}/{attempt[1]}".encode(), digest_size=8).digest()


class Slot:
    """One slot's numbers and its memory. Synchronous; whoever drives it does the I/O."""

    def __init__(
        self,
        slot: int,
        numbers: Mapping[str, NumberPlace],
        in_flight_max: int,
        gates: Gates,
        now: Instant,
        pending_max: int = PENDING_MAX,
    ) -> None:
        """Begin empty; `begin` follows. `numbers` are all that are configured, also those of other slots.
        `pending_max`: sends of one lane in memory, shared evenly by the numbers that live here."""
        self.slot = slot
        self.numbers: dict[str, NumberSender] = {
            place.phone_number_id: NumberSender(
                place.phone_number_id, place.waba_id, place.throughput_mps, in_flight_max, gates, now
            )
            for place in numbers.values()
            if place.slot == slot
        }
        self._places = numbers
        self._gates = gates
        self._pending_max = pending_max
        self._share = max(1, pending_max // max(1, len(self.numbers)))
        self._backlogs: dict[tuple[Lane, str], Backlog] = {}
        self._marks: dict[Lane, Watermark] = {}
        self._recent = Recent()
        self._known: dict[str, Send] = {}
        self._open: dict[tuple[str, int], Intent] = {}
        self._doubts: dict[str, Doubt] = {}
        self._answers: list[Answer] = []
        self._lifted: list[Doubt] = []
        self._forwards: list[Forward] = []
        self._late: list[Late] = []
        self._withdrawals = Withdrawals()
        self._tiers: dict[str, int] = {}
        self._moves = 0
        self._moves_written = 0

    # Restoring

    def begin(
        self, records: Iterable[LedgerRecord], offsets: Mapping[Lane, int], memo: bytes, now: Instant
    ) -> list[Report]:
        """Read the ledger back. Return what has to be reported: each intent without an answer is in doubt, and doubts
        of before are said again, since whoever decides them may have done so while nobody listened here."""
        folded = _fold(records, now.wall)
        self._recent = folded.recent
        self._withdrawals = Withdrawals(folded.withdrawn)
        done = decode_memo(memo) if memo else Memo({})
        for lane, offset in offsets.items():
            runs = done.done if done.fits else folded.done
            self._marks[lane] = Watermark.from_bytes(offset, runs.get(lane, b""))
        for behind in done.behind if done.fits else folded.behind:
            self._backlogs[behind.lane, behind.phone_number_id] = Backlog(behind.offset, behind.end, behind.runs)
        lost = {intent.send_id for intent in folded.open.values()}
        reports = []
        self._doubts = folded.doubts
        for doubt in folded.doubts.values():
            self._hold(doubt)
            if doubt.send_id not in lost:
                reports.append(self._report_again(doubt, now))
        for intent in folded.open.values():
            if intent.is_mark:  # marking twice does no harm, and its record is read again
                self._answers.append(Answer(intent.send_id, intent.attempt, "back", 0))
                continue
            self._open[intent.send_id, intent.attempt] = intent
            self._hold(Doubt(intent.phone_number_id, intent.customer, intent.lane, intent.send_id, intent.attempt))
            reports.append(self._report_lost(intent, now))
        for phone_number_id, throughput_mps in folded.tiers.items():
            self.learn_tier(phone_number_id, throughput_mps)
        for (phone_number_id, customer), debt in folded.debts.items():
            number = self.numbers.get(phone_number_id)
            if number is not None:
                number.owe(customer, carried(debt, now.ms - now.wall, now.ms))
        return reports

    def _hold(self, doubt: Doubt) -> None:
        number = self.numbers.get(doubt.phone_number_id)
        if number is not None:
            number.hold(doubt)

    # What comes in

    def take(self, lane: Lane, offset: int, record: SendsRecord, now: Instant) -> Report | None:
        """Take one record of a lane's log. Return a report when it cannot be sent at all.

        A number's first attempts beyond its share are left in the log. What ends doubts, second attempts and settles,
        is taken always: else a lane full of sends that wait for a doubt to end would never read that it has ended.
        """
        if not self._mark(lane).take(offset):
            return None
        if isinstance(record, NumberFault):
            self._fault(record, now)
            self._complete(lane, offset, "")
            return None
        if isinstance(record, Settle):
            self._settle(lane, offset, record, now)
            return None
        if isinstance(record, Withdraw):
            self._withdraw(lane, record)
            self._complete(lane, offset, "")
            return None
        number = self.numbers.get(record.phone_number_id)
        if number is None:
            return self._stray(lane, offset, record, now)
        if self._is_known(record):
            self._complete(lane, offset, record.phone_number_id)
            return None
        if record.attempt == 1 and self._is_left(lane, offset, number):
            return None
        self._put(lane, offset, record, number)
        return None

    def skip(self, lane: Lane, offset: int) -> None:
        """Count a record as done that was set aside as a dead letter."""
        if self._mark(lane).take(offset):
            self._complete(lane, offset, "")

    def left(self) -> list[Left]:
        """Return what was left in the log and may be read again: where at least half of a number's share is free."""
        return [
            Left(lane, name, backlog.cursor, backlog.end)
            for (lane, name), backlog in self._backlogs.items()
            if backlog.is_behind
            and self._mark(lane).read_to >= backlog.begin  # else an earlier one of the lane's own would come later
            and (name not in self.numbers or self._has_room(lane, self.numbers[name], self._share // 2 + 1))
        ]

    def is_full(self, left: Left) -> bool:
        """Whether memory holds no more of this number's sends, or nothing of them is left in the log."""
        backlog, number = self._backlogs.get((left.lane, left.phone_number_id)), self.numbers.get(left.phone_number_id)
        if backlog is None or not backlog.is_behind:
            return True
        return number is not None and not self._has_room(left.lane, number, self._share)

    def retake(self, left: Left, offset: int, record: SendsRecord, now: Instant) -> Report | None:
        """Take one record of a stretch that was left; those of others pass. As `take`."""
        name = left.phone_number_id
        backlog = self._backlogs.get((left.lane, name))
        if backlog is None or not backlog.cursor <= offset < backlog.end:
            return None
        if not isinstance(record, Ready) or record.phone_number_id != name or record.attempt > 1:
            backlog.pass_by(offset + 1)
            return None
        if not backlog.take(offset):
            return None
        number = self.numbers.get(name)
        if number is None:
            return self._stray(left.lane, offset, record, now)
        if self._is_known(record):
            self._complete(left.lane, offset, name)
            return None
        self._put(left.lane, offset, record, number)
        return None

    def skip_left(self, left: Left, offset: int) -> None:
        """Count a record of a stretch as done that was set aside."""
        backlog = self._backlogs.get((left.lane, left.phone_number_id))
        if backlog is not None and backlog.take(offset):
            self._complete(left.lane, offset, left.phone_number_id)

    def retaken(self, left: Left) -> None:
        """Note that a stretch was read to its end, which may have held nothing of ours any more."""
        backlog = self._backlogs.get((left.lane, left.phone_number_id))
        if backlog is not None:
            backlog.pass_by(left.end)
            self._drop_if_over(left.lane, left.phone_number_id)

    def count_inbound(self, digest: InboundDigest, now: Instant) -> None:
        """Charge what a receiver saw arrive for one of our numbers."""
        number = self.numbers.get(digest.phone_number_id)
        if number is not None:
            number.window.charge_inbound(digest.count, now.monotonic)

    def learn_tier(self, phone_number_id: str, throughput_mps: int) -> bool:
        """Take a tier Meta told of; the next snapshot keeps it. Return whether it is another one. A number whose tier
        is configured otherwise than by default keeps what its operator said."""
        number, place = self.numbers.get(phone_number_id), self._places.get(phone_number_id)
        if number is None or place is None or place.throughput_mps != STANDARD_MPS:
            return False
        self._tiers[phone_number_id] = throughput_mps
        if number.window.throughput_mps == throughput_mps:
            return False
        number.window.set_throughput(throughput_mps)
        return True

    def set_tier(self, phone_number_id: str, throughput_mps: int) -> None:
        """Take a tier that was configured anew; what Meta told of before is forgotten."""
        self._tiers.pop(phone_number_id, None)
        self.numbers[phone_number_id].window.set_throughput(throughput_mps)

    @property
    def behind(self) -> int:
        """How many records stand in stretches that wait for room, those of others between them included."""
        return sum(backlog.end - backlog.cursor for backlog in self._backlogs.values() if backlog.is_behind)

    def can_read(self, lane: Lane) -> bool:
        """Whether a lane may be read on. Only second attempts, which are never left, can exceed what `_has_room` lets
        in: less than three times the bound."""
        return self.pending(lane) < 4 * self._pending_max

    def pending(self, lane: Lane) -> int:
        """Return how many sends of a lane are held in memory."""
        return sum(number.pending[lane] for number in self.numbers.values())

    @property
    def doubts(self) -> int:
        """How many sends the ledger has in doubt, or intended without an answer yet."""
        return len(self._doubts)

    # What comes of sends

    def expire(self, now: Instant) -> None:
        """Take what is too late out of its queue. The next step writes it down like an intent, and `written` returns
        its report: once somebody was told so, no other clock may find that there is time left."""
        for number in self.numbers.values():
            self._late += [Late(send, "expired") for send in number.expire(now.wall)]

    def expire_intended(self, send: Send, now: Instant) -> Report:
        """Return the report of a send that was too late for a permit."""
        self._number(send).expire_intended(send)
        return self._report(send, "expired", "done", now, self._intent(send))

    def void(self, send: Send, now: Instant) -> None:
        """Take back an intent whose call was never made."""
        number = self._number(send)
        if send.is_settled:
            number.expire_intended(send)
            self.landed(
                Report(send.ready.customer, None, "done", send.lane, send.offset, send, self._intent(send)), now
            )
            return
        number.void(send, now)
        self._back(send, is_struck=False)

    def unsent(self, send: Send, now: Instant, chance: float, *, is_unreached: bool) -> None:
        """Take back a send of which no byte left."""
        self._number(send).unsent(send, now, chance, is_unreached=is_unreached)
        self._back(send, is_struck=False)

    def answered(self, send: Send, verdict: Verdict, body: bytes, now: Instant, chance: float) -> Report | None:
        """Learn what came of a call. Return what is to be reported; None when the send goes back to its queue."""
        learned = self._number(send).answered(send, verdict, now, chance)
        if learned == "back":
            self._back(send, is_struck=verdict.outcome == "throttled" and verdict.code == PAIR_LIMIT)
            return None
        said: Literal["accepted", "refused", "in_doubt"] = "refused"
        if verdict.outcome in ("accepted", "in_doubt"):
            said = "accepted" if verdict.outcome == "accepted" else "in_doubt"
        return self._report(send, said, learned, now, self._intent(send), verdict, body)

    def landed(self, report: Report, now: Instant) -> None:
        """Note, for the next step, that a report is durable. Its customer's next send may go."""
        learned = report.learned
        if report.is_again:
            return
        ended = report.intent if report.send is None else report.send.ready
        was_withdrawn = ended is not None and self._withdrawals.end(ended.send_id, ended.attempt)
        if report.send is not None:
            number = self._number(report.send)
            if learned == "doubt" and not number.is_doubtful(report.send):
                learned = "done"  # settled before we knew that our report had arrived
            number.land(report.send, now)
            if self._known.get(report.send.ready.send_id) is report.send:
                del self._known[report.send.ready.send_id]
            ready = report.send.ready
            self._recent.add(ready.send_id, ready.attempt)
            if report.intent is None and ready.attempt > 1:
                self._lift(ready.send_id)
            if report.intent is None and was_withdrawn:
                self._answers.append(Answer(ready.send_id, ready.attempt, "done", 0))
        if report.intent is not None:
            intent = report.intent
            self._recent.add(intent.send_id, intent.attempt)
            self._answers.append(Answer(intent.send_id, intent.attempt, learned, report.called_at))
        self._complete(report.lane, report.offset, _number_of(report))

    # Steps

    @property
    def has_news(self) -> bool:
        """Whether a step would write something, apart from new intents."""
        has_moved = self._moves != self._moves_written  # as with every withdrawal
        return bool(self._answers or self._lifted or self._forwards or self._late or has_moved)

    def plan(self, now: Instant, *, may_intend: bool, is_snapshot_due: bool) -> Plan | None:
        """Return the next step, None when there is nothing to write. `written` or `undone` must follow."""
        sends = [send for number in self.numbers.values() for send in number.intend(now)] if may_intend else []
        for number in self.numbers.values():
            self._late += [Late(send, "refused", refusal) for send, refusal in number.refused()]
        if not sends and not self.has_news and not is_snapshot_due:
            return None
        intents = [
            Intent(
                send.ready.send_id,
                send.ready.attempt,
                send.ready.phone_number_id,
                send.ready.customer,
                send.lane,
                send.offset,
                now.wall,
                send.is_mark,
            )
            for send in (*sends, *(late.send for late in self._late if not late.is_withdrawn))
        ]
        answers, lifted, withdrawn = list(self._answers), list(self._lifted), self._withdrawals.news()
        runs = {lane: mark.to_bytes(RUNS_BYTES_MAX) for lane, mark in self._marks.items()}
        behind = [backlog.written(lane, name, RUNS_BYTES_MAX) for (lane, name), backlog in self._backlogs.items()]
        sizes = [*map(len, runs.values()), *(BEHIND_BYTES + len(each.runs) for each in behind)]
        fits = sum(sizes) <= MEMO_BYTES_MAX
        written = Written(answers, lifted, intents, {} if fits else runs, [] if fits else behind, withdrawn[:PART_MAX])
        records: list[LedgerRecord] = [written, *_parts_of(withdrawn[PART_MAX:])]
        if is_snapshot_due:
            records = self._snapshot(written, now)
        return Plan(
            records,
            {lane: mark.offset for lane, mark in self._marks.items()},
            encode_memo(Memo(runs if fits else {}, fits, behind if fits else [])),
            list(self._forwards),
            sends,
            list(self._late),
            intents,
            len(answers),
            len(lifted),
            len(withdrawn),
            self._moves,
        )

    def written(self, plan: Plan, now: Instant) -> list[Report]:
        """Note that a step stands: its calls may begin. Return the reports of what is over without one."""
        _apply(self._open, self._doubts, plan.intents, self._answers[: plan.answers], self._lifted[: plan.lifted])
        del self._answers[: plan.answers]
        del self._lifted[: plan.lifted]
        del self._forwards[: len(plan.forwards)]
        del self._late[: len(plan.late)]
        self._withdrawals.written(plan.withdrawn)
        self._moves_written = plan.moves
        return [self._report_late(late, now) for late in plan.late]

    def undone(self, plan: Plan, now: Instant) -> None:
        """Take back a step of which nothing was written."""
        for send in plan.sends:
            self._number(send).void(send, now)
            self._end_if_withdrawn(send)

    # Inside

    def _number(self, send: Send) -> NumberSender:
        return self.numbers[send.ready.phone_number_id]

    def _mark(self, lane: Lane) -> Watermark:
        mark = self._marks.get(lane)
        if mark is None:
            mark = self._marks[lane] = Watermark(0)
        return mark

    def _complete(self, lane: Lane, offset: int, phone_number_id: str) -> None:
        """Note that a record is done: for the lane, and for its number's stretch if it has one."""
        self._mark(lane).complete(offset)
        backlog = self._backlogs.get((lane, phone_number_id))
        if backlog is not None:
            backlog.complete(offset)
            self._drop_if_over(lane, phone_number_id)
        self._moves += 1

    def _drop_if_over(self, lane: Lane, phone_number_id: str) -> None:
        if self._backlogs[lane, phone_number_id].is_over:
            del self._backlogs[lane, phone_number_id]
            self._moves += 1

    def _is_left(self, lane: Lane, offset: int, number: NumberSender) -> bool:
        """Whether a first attempt is left in the log: memory has its share of the number, or others before it are left.
        From then on, until all is done, the lane is done with each at once and the stretch keeps it; both stand in the
        next step. What a restored lane reads again before a stretch was the lane's own and is in time."""
        name = number.phone_number_id
        backlog = self._backlogs.get((lane, name))
        is_full = not self._has_room(lane, number, self._share)
        if backlog is None:
            if not is_full:
                return False
            self._backlogs[lane, name] = Backlog(offset, offset + 1)
        elif offset < backlog.end:
            return False
        else:
            is_full = is_full or backlog.is_behind
            backlog.leave(offset)
            if not is_full:
                backlog.take(offset)
        self._mark(lane).complete(offset)
        self._moves += 1
        return is_full

    def _has_room(self, lane: Lane, number: NumberSender, most: int) -> bool:
        """Whether memory takes another first attempt of a number that may have fewer than `most`. What queues behind a
        doubt does not count while the whole lane is below twice its bound: a doubt about one customer ends when the
        number's other sends prove that webhooks arrive, so it must never keep these out."""
        pending = number.pending[lane]
        if pending < most:
            return True
        return pending - number.held_back[lane] < most and self.pending(lane) < 2 * self._pending_max

    def _put(self, lane: Lane, offset: int, ready: Ready, number: NumberSender) -> None:
        send = Send(ready, lane, offset)
        self._known[ready.send_id] = send
        number.put(send)
        if self._withdrawals.covers(ready):
            self._end_withdrawn(send)

    def _is_known(self, ready: Ready) -> bool:
        """Whether this attempt, or a later one, was taken before: queued, under way, in doubt or done."""
        queued = self._known.get(ready.send_id)
        if queued is not None and queued.ready.attempt >= ready.attempt:
            return True
        doubt = self._doubts.get(ready.send_id)
        if doubt is not None and doubt.attempt >= ready.attempt:
            return True
        return (ready.send_id, ready.attempt) in self._open or (ready.send_id, ready.attempt) in self._recent

    def _settle(self, lane: Lane, offset: int, settle: Settle, now: Instant) -> None:
        self._lift(settle.send_id)
        number = self.numbers.get(settle.phone_number_id)
        if number is not None:
            dropped = number.settle(settle.customer, lane, settle.send_id)
            if dropped is not None:
                self.landed(Report(settle.customer, None, "done", lane, dropped.offset, dropped, None), now)
        self._complete(lane, offset, settle.phone_number_id)

    def _withdraw(self, lane: Lane, withdraw: Withdraw) -> None:
        """Let a send not begin any more, wherever it is: queued, on its way back to its queue, or not read so far."""
        if withdraw.phone_number_id not in self.numbers:
            place = self._places.get(withdraw.phone_number_id)
            if place is not None:
                self._forwards.append(Forward(lane, place.slot, withdraw))
            return
        attempt = (withdraw.send_id, withdraw.attempt)
        doubt, send = self._doubts.get(withdraw.send_id), self._known.get(withdraw.send_id)
        is_lost = attempt in self._open and send is None
        if is_lost or attempt in self._recent or (doubt is not None and doubt.attempt >= withdraw.attempt):
            return  # done or in doubt, here or with an owner before
        self._withdrawals.add(withdraw)
        if send is not None and self._withdrawals.covers(send.ready):
            self._end_withdrawn(send)

    def _end_withdrawn(self, send: Send) -> None:
        if self._number(send).withdraw(send):
            self._late.append(Late(send, "refused", WITHDRAWN, is_withdrawn=True))

    def _end_if_withdrawn(self, send: Send) -> None:
        """End a send that came back to its queue and was withdrawn meanwhile."""
        if send.is_withdrawn:
            self._end_withdrawn(send)

    def _lift(self, send_id: str) -> None:
        doubt = self._doubts.get(send_id)
        if doubt is not None and doubt not in self._lifted:
            self._lifted.append(doubt)

    def _fault(self, fault: NumberFault, now: Instant) -> None:
        """Learn from a message that failed after it was accepted, while that is news."""
        number, place = self.numbers.get(fault.phone_number_id), self._places.get(fault.phone_number_id)
        if number is None or place is None:
            return
        for effect in taught(place, fault.code, fault.at, now.wall):
            if isinstance(effect, Shut):
                wait_ms = min(effect.until - now.wall, STOP_MS)
                self._gates.shut(effect.door, now.monotonic + wait_ms / 1_000, effect.why)
            else:
                number.window.throttled(now.monotonic)

    def _stray(self, lane: Lane, offset: int, ready: Ready, now: Instant) -> Report | None:
        """Deal with a send for a number that does not live here."""
        place = self._places.get(ready.phone_number_id)
        if place is not None:
            self._forwards.append(Forward(lane, place.slot, ready))
            self._complete(lane, offset, ready.phone_number_id)
            return None
        outcome = SendOutcome(
            send_id=ready.send_id,
            attempt=ready.attempt,
            outcome="refused",
            phone_number_id=ready.phone_number_id,
            lane=lane,
            at=now.wall,
            code=100,
            title="The number is not configured",
            details="No token and no throughput are known for this number; it was removed from the configuration.",
        )
        if ready.kind == "mark":
            self._complete(lane, offset, ready.phone_number_id)
            return None
        return Report(ready.customer, outcome, "done", lane, offset, None, None)

    def _intent(self, send: Send) -> Intent | None:
        return self._open.get((send.ready.send_id, send.ready.attempt))

    def _back(self, send: Send, *, is_struck: bool) -> None:
        self._answers.append(Answer(send.ready.send_id, send.ready.attempt, "back", send.called_at, is_struck))
        send.called_at = 0
        self._end_if_withdrawn(send)

    def _report(
        self,
        send: Send,
        outcome: Literal["accepted", "refused", "expired", "in_doubt"],
        learned: Learned,
        now: Instant,
        intent: Intent | None,
        verdict: Verdict | None = None,
        body: bytes = b"",
    ) -> Report:
        said = None
        if not send.is_mark:
            known = verdict if verdict is not None else Verdict("refused")
            said = SendOutcome(
                send_id=send.ready.send_id,
                attempt=send.ready.attempt,
                outcome=outcome,
                phone_number_id=send.ready.phone_number_id,
                lane=send.lane,
                at=now.wall,
                called_at=send.called_at,
                wamid=known.wamid,
                wa_id=known.wa_id,
                user_id=known.user_id,
                code=known.code,
                title=known.title,
                details=known.details,
                body=body[:BODY_BYTES_MAX],
            )
        return Report(send.ready.customer, said, learned, send.lane, send.offset, send, intent, send.called_at)

    def _report_late(self, late: Late, now: Instant) -> Report:
        refusal = late.refusal
        verdict = (
            None
            if refusal is None
            else Verdict("refused", code=refusal.code, title=refusal.title, details=refusal.details)
        )
        return self._report(late.send, late.outcome, "done", now, self._intent(late.send), verdict)

    def _report_lost(self, intent: Intent, now: Instant) -> Report:
        """Report an intent nobody answered: its call may have been made."""
        outcome = SendOutcome(
            send_id=intent.send_id,
            attempt=intent.attempt,
            outcome="in_doubt",
            phone_number_id=intent.phone_number_id,
            lane=intent.lane,
            at=now.wall,
            called_at=intent.at,
            details="its sender died between the intent and the answer",
        )
        called_at = max(now.wall, intent.at)
        return Report(intent.customer, outcome, "doubt", intent.lane, intent.offset, None, intent, called_at)

    def _report_again(self, doubt: Doubt, now: Instant) -> Report:
        outcome = SendOutcome(
            send_id=doubt.send_id,
            attempt=doubt.attempt,
            outcome="in_doubt",
            phone_number_id=doubt.phone_number_id,
            lane=doubt.lane,
            at=now.wall,
            details="still in doubt; a new owner of the number asks",
        )
        return Report(doubt.customer, outcome, "doubt", doubt.lane, -1, None, None, is_again=True)

    def _snapshot(self, written: Written, now: Instant) -> list[LedgerRecord]:
        """Return everything as of after this step: the records that take the place of all before."""
        opened, doubts = dict(self._open), dict(self._doubts)
        _apply(opened, doubts, written.intents, written.answers, written.lifted)
        debts = [
            Debt(number.phone_number_id, customer, *_as_tuple(carried_to_wall(debt, now)))
            for number in self.numbers.values()
            for customer, debt in number.debts(now)
        ]
        head = Snapshot(
            now.wall, list(opened.values()), self._recent.packed(), written.done, dict(self._tiers), written.behind
        )
        held = list(doubts.values())
        return [
            head,
            *(Part(debts[at : at + PART_MAX], []) for at in range(0, len(debts), PART_MAX)),
            *(Part([], held[at : at + PART_MAX]) for at in range(0, len(held), PART_MAX)),
            *_parts_of(self._withdrawals.kept(now.wall)),
        ]


def _number_of(report: Report) -> str:
    if report.send is not None:
        return report.send.ready.phone_number_id
    if report.intent is not None:
        return report.intent.phone_number_id
    return "" if report.outcome is None else report.outcome.phone_number_id


def _parts_of(withdrawn: Sequence[Withdrawn]) -> Iterator[Part]:
    return (Part([], [], list(withdrawn[at : at + PART_MAX])) for at in range(0, len(withdrawn), PART_MAX))


def carried_to_wall(debt: PairDebt, now: Instant) -> PairDebt:
    """Return a debt in Unix ms, as the ledger keeps it. Unlike `carried` it changes no instant against another, and
    what `carried` took off is on it again: a clock that is behind must not shorten it for the owners after."""
    by = now.wall - now.ms + debt.ahead_ms
    return PairDebt(debt.since + by, debt.count, debt.free_at + by, debt.strikes, debt.struck_at + by)


def _as_tuple(debt: PairDebt) -> tuple[int, int, int, int, int]:
    return debt.since, debt.count, debt.free_at, debt.strikes, debt.struck_at


def _apply(
    opened: dict[tuple[str, int], Intent],
    doubts: dict[str, Doubt],
    intents: Sequence[Intent],
    answers: Sequence[Answer],
    lifted: Sequence[Doubt],
) -> None:
    """Fold one step: first what was learned, then what was lifted, then what is intended anew.

    A doubt stays until the attempt that repeats it is done, not until it is intended: that attempt stands further back
    in the log than the customer's other sends, which a new owner reads first.
    """
    for answer in answers:
        intent = opened.pop((answer.send_id, answer.attempt), None)
        if intent is None:
            continue
        if answer.learned == "doubt":
            doubts[intent.send_id] = Doubt(
                intent.phone_number_id, intent.customer, intent.lane, intent.send_id, intent.attempt
            )
        elif answer.learned == "done":
            doubts.pop(intent.send_id, None)
    for doubt in lifted:
        if doubts.get(doubt.send_id) == doubt:
            del doubts[doubt.send_id]
    for intent in intents:
        opened[intent.send_id, intent.attempt] = intent


class _Folded(NamedTuple):
    open: dict[tuple[str, int], Intent]
    doubts: dict[str, Doubt]
    debts: dict[tuple[str, str], PairDebt]
    recent: Recent
    done: dict[Lane, bytes]
    tiers: dict[str, int]
    behind: list[Behind]
    withdrawn: dict[str, Withdrawn]


def _fold(records: Iterable[LedgerRecord], now: int) -> _Folded:
    """Read a ledger from its last snapshot on. `now`: Unix ms. A call that nobody answered was made at some time before
    it: by the clock of whoever intended it, which may have been put right since, it might seem long repaid."""
    opened: dict[tuple[str, int], Intent] = {}
    doubts: dict[str, Doubt] = {}
    debts: dict[tuple[str, str], PairDebt] = {}
    recent = Recent()
    done: dict[Lane, bytes] = {}
    tiers: dict[str, int] = {}
    behind: list[Behind] = []
    withdrawn: dict[str, Withdrawn] = {}
    for record in records:
        match record:
            case Snapshot():
                opened = {(intent.send_id, intent.attempt): intent for intent in record.intents}
                doubts, debts, recent, done = {}, {}, Recent(record.recent), record.done
                tiers, behind, withdrawn = record.tiers, record.behind, {}
            case Part():
                doubts |= {doubt.send_id: doubt for doubt in record.doubts}
                withdrawn |= {each.send_id: each for each in record.withdrawn}
                for debt in record.debts:
                    owed = PairDebt(debt.since, debt.count, debt.free_at, debt.strikes, debt.struck_at)
                    debts[debt.phone_number_id, debt.customer] = owed
            case Written():
                done, behind = record.done, record.behind
                withdrawn |= {each.send_id: each for each in record.withdrawn}
                for answer in record.answers:
                    if answer.learned != "back":
                        recent.add(answer.send_id, answer.attempt)
                        if answer.send_id in withdrawn and answer.attempt >= withdrawn[answer.send_id].attempt:
                            del withdrawn[answer.send_id]
                    intent = opened.get((answer.send_id, answer.attempt))
                    if intent is not None and answer.called_at and not intent.is_mark:
                        who = (intent.phone_number_id, intent.customer)
                        debt_now = pair_spent(debts.get(who, NO_DEBT), answer.called_at)
                        debts[who] = pair_struck(debt_now, answer.called_at) if answer.is_struck else debt_now
                _apply(opened, doubts, record.intents, record.answers, record.lifted)
    for intent in opened.values():
        if not intent.is_mark:
            who = (intent.phone_number_id, intent.customer)
            debts[who] = pair_spent(debts.get(who, NO_DEBT), max(now, intent.at))
    return _Folded(opened, doubts, debts, recent, done, tiers, behind, withdrawn)
