"""One number's sender, decided as a table; and a slot's memory, driven at random through crashes."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.account import NumberPlace
from broker.core.gates import Gates
from broker.core.outcome import Verdict, classify
from broker.core.sender import AHEAD_MIN, INTENT_S_MAX, Instant, NumberSender, Permit, Send, template_door
from broker.core.slot import MEMO_BYTES_MAX, Left, Plan, Recent, Report, Slot
from schemas.ledger import (
    Answer,
    Debt,
    Doubt,
    Intent,
    LedgerRecord,
    Part,
    Snapshot,
    Written,
    decode_ledger,
    encode_ledger,
)
from schemas.records import LANES, InboundDigest, Lane, Ready, SendsRecord, Settle, Withdraw

NUMBER = "106540352242922"
WALL = 1_700_000_000_000
PLACES = {NUMBER: NumberPlace(NUMBER, "waba", 80, 0), "elsewhere": NumberPlace("elsewhere", "waba", 80, 5)}


def at(seconds: float, wall_step_ms: int = 0) -> Instant:
    """Return an instant so many seconds after the beginning."""
    return Instant(1_000.0 + seconds, WALL + int(seconds * 1_000) + wall_step_ms)


def ready(send_id: str, customer: str = "main:1", lane: Lane = "reply", attempt: int = 1, **more: object) -> Ready:
    """Return a send that is admitted."""
    fields: dict[str, object] = {
        "phone_number_id": NUMBER,
        "send_class": "reply",
        "kind": "message",
        "body": b"{}",
        "admitted_at": WALL,
        "not_after": 0,
    }
    return Ready(send_id=send_id, attempt=attempt, customer=customer, lane=lane, **{**fields, **more})  # type: ignore[arg-type]


def number(throughput_mps: int = 80, in_flight_max: int = 500) -> NumberSender:
    """Return a number's sender whose window has opened by `at(2)`."""
    return NumberSender(NUMBER, "waba", throughput_mps, in_flight_max, Gates(), at(0))


def put(sender: NumberSender, *sends: Ready) -> list[Send]:
    """Put sends into the queues, offsets in order."""
    taken = [Send(send, send.lane, offset) for offset, send in enumerate(sends)]
    for send in taken:
        sender.put(send)
    return taken


def names(sends: list[Send]) -> list[str]:
    """Return the ids of sends."""
    return [send.ready.send_id for send in sends]


def call(sender: NumberSender, send: Send, now: Instant) -> None:
    """Get the permit of an intended send, which the window must have room for."""
    assert sender.permit(send, now, now.monotonic - 1, is_held=True) is Permit.GRANTED


def error(code: int, subcode: int = 0) -> Verdict:
    """Return the verdict on a Graph error."""
    return classify(400, b'{"error": {"message": "m", "code": %d, "error_subcode": %d}}' % (code, subcode))


ACCEPTED = classify(200, b'{"messages": [{"id": "wamid.H1"}]}')


# One number


def test_a_customer_has_one_send_under_way_over_all_lanes_and_lanes_keep_their_order() -> None:
    """Promise 2: nothing overtakes what is not answered yet."""
    sender = number()
    put(sender, ready("r1"), ready("r2"), ready("c1", lane="campaign"), ready("other", "main:2"))
    first, other = sender.intend(at(2))
    assert names([first, other]) == ["r1", "other"]
    assert sender.intend(at(2)) == []
    call(sender, first, at(2))
    assert sender.answered(first, ACCEPTED, at(2.3), 0.5) == "done"
    assert sender.intend(at(2.3)) == [], "a report that is not durable yet still holds the customer"
    sender.land(first, at(2.3))
    assert names(sender.intend(at(2.3))) == ["r2"]


def test_intents_are_half_a_second_of_the_tier_and_a_campaign_may_fill_half_of_that() -> None:
    """What is intended when we die is in doubt; and a reply must find room at once."""
    sender = number(80)
    put(sender, *(ready(f"c{n}", f"main:c{n}", "campaign") for n in range(200)))
    assert len(sender.intend(at(2))) == 20
    put(sender, *(ready(f"r{n}", f"main:r{n}") for n in range(200)))
    assert len(sender.intend(at(2))) == 20
    assert sender.intend(at(2)) == []
    assert sender.ahead == 40


def test_a_slow_number_still_has_something_ahead() -> None:
    """Half a second of one message a second would be none."""
    sender = number(1)
    put(sender, *(ready(f"r{n}", f"main:{n}") for n in range(9)))
    assert len(sender.intend(at(2))) == AHEAD_MIN


def test_calls_under_way_are_bounded() -> None:
    """I5: a Graph that hangs must not have unlimited sends in doubt."""
    sender = number(80, in_flight_max=25)
    put(sender, *(ready(f"r{n}", f"main:{n}") for n in range(100)))
    seconds = 2.0
    called = 0
    while seconds < 10:
        for send in sender.intend(at(seconds)):
            while sender.permit(send, at(seconds), 0, is_held=True) is not Permit.GRANTED:
                seconds += 0.005
            called += 1
        seconds += 0.05
    assert called == 25
    assert sender.calls == 25


def test_nothing_is_intended_while_the_window_stays_closed_for_long() -> None:
    """An intent that would be void before its permit only costs a step."""
    sender = number()
    put(sender, ready("r1"))
    assert sender.intend(at(0)) == []
    assert names(sender.intend(at(0.6))) == ["r1"]


@pytest.mark.parametrize(
    ("now", "is_held", "permit"),
    [
        (at(3), True, Permit.GRANTED),
        (at(3), False, Permit.VOID),
        (at(2 + INTENT_S_MAX + 0.01), True, Permit.VOID),
        (at(3, wall_step_ms=3_600_000), True, Permit.EXPIRED),
        (at(3, wall_step_ms=-3_600_000), True, Permit.GRANTED),
    ],
)
def test_the_last_gate(now: Instant, is_held: bool, permit: Permit) -> None:
    """A lease that is not held, an intent a frozen process thawed with, a window that has closed: no byte leaves."""
    sender = number()
    put(sender, ready("r1", not_after=WALL + 600_000))
    [send] = sender.intend(at(2))
    assert sender.permit(send, now, 0, is_held=is_held) is permit


def test_a_permit_is_given_once() -> None:
    """Whoever asks twice would send twice."""
    sender = number()
    put(sender, ready("r1"))
    [send] = sender.intend(at(2))
    call(sender, send, at(2))
    assert sender.permit(send, at(3), 0, is_held=True) is Permit.VOID


def test_a_void_intent_goes_back_to_its_queues_head() -> None:
    """No call was made: it is still the first."""
    sender = number()
    put(sender, ready("r1"), ready("r2"))
    [send] = sender.intend(at(2))
    sender.void(send, at(2))
    assert names(sender.intend(at(2))) == ["r1"]


def test_a_pair_is_held_until_its_burst_is_repaid_and_others_go_on() -> None:
    """Forty-five in six seconds at most, then silence for that customer alone."""
    sender = number(1_000)
    put(sender, *(ready(f"r{n}") for n in range(60)))
    seconds, called = 2.0, 0
    while seconds < 7.9:
        for send in sender.intend(at(seconds)):
            call(sender, send, at(seconds))
            sender.answered(send, ACCEPTED, at(seconds + 0.05), 0)
            sender.land(send, at(seconds + 0.05))
            called += 1
        seconds += 0.1
    assert called == 45
    put(sender, ready("other", "main:2"))
    assert names(sender.intend(at(9))) == ["other"]
    assert sender.intend(at(2 + 270.4)) == []
    assert sender.wakes_at(at(200)) <= 1_000 + 200 + 60
    assert len(sender.intend(at(2 + 270.6))) == 1


def test_marks_and_groups_have_no_pair() -> None:
    """They go to nobody whom the pair limit protects."""
    sender = number()
    put(sender, *(ready(f"m{n}", f"main:#mark:w{n % 2}", kind="mark") for n in range(4)))
    for seconds in (2.0, 10.0):
        for send in sender.intend(at(seconds)):
            call(sender, send, at(seconds + 0.1 * send.offset))
            assert sender.answered(send, error(131000), at(seconds + 1), 0) == "done"
            sender.land(send, at(seconds + 1))
    assert sender.pending["reply"] == 0


@pytest.mark.parametrize(
    ("code", "rests_until", "others_until"),
    [
        (130429, 2.5, 0),
        (131056, 6 + 2.0, 0),
        (131053, 5 + 2.1, 0),
        (131057, 15 + 2.1, 15 + 2.1),
        (4, 60 + 2.1, 60 + 2.1),
        (80007, 60 + 2.1, 60 + 2.1),
        (190, 60 + 2.1, 60 + 2.1),
        (131031, 60 + 2.1, 60 + 2.1),
    ],
)
def test_a_throttle_is_no_attempt_and_rests_what_it_names(code: int, rests_until: float, others_until: float) -> None:
    """The send stays at its queue's head; only pair, number, account or app wait."""
    sender = number()
    put(sender, ready("r1"), ready("r2"))
    [send] = sender.intend(at(2))
    call(sender, send, at(2))
    assert sender.answered(send, error(code), at(2.1), 0.0) == "back"
    put(sender, ready("other", "main:2"))
    seen: dict[str, float] = {}
    seconds = 2.1
    while len(seen) < 2:
        for chosen in sender.intend(at(seconds)):
            seen.setdefault(chosen.ready.send_id, seconds)
            if sender.permit(chosen, at(seconds + 0.5), 0, is_held=True) is Permit.GRANTED:
                sender.answered(chosen, ACCEPTED, at(seconds + 0.6), 0)
                sender.land(chosen, at(seconds + 0.6))
            else:
                sender.void(chosen, at(seconds + 0.5))
        seconds += 0.05
        assert seconds < 100
    assert list(seen) != ["r2"]
    assert seen["r1"] == pytest.approx(max(rests_until, 2.1), abs=1.1)
    assert seen["other"] == pytest.approx(max(others_until, 2.1), abs=1.1)


def test_spam_stops_the_lane_it_was_said_of_and_the_less_urgent_ones() -> None:
    """131048: a campaign that annoys people must not hold an order's confirmation; and who asked gets an answer."""
    sender = number()
    put(sender, ready("c1", "main:1", "campaign"), ready("c2", "main:2", "campaign"))
    sends = sender.intend(at(2))
    for send in sends:
        call(sender, send, at(2 + send.offset / 10))
    assert [sender.answered(send, error(131048), at(2.5), 0) for send in sends] == ["back", "back"]
    put(sender, ready("r1", "main:3"), ready("t1", "main:4", "transactional"), ready("c3", "main:5", "campaign"))
    [reply, confirmation] = sender.intend(at(10))
    assert names([reply, confirmation]) == ["r1", "t1"]
    call(sender, confirmation, at(10))
    assert sender.answered(confirmation, error(131048), at(10.5), 0) == "back"
    sender.void(reply, at(11))
    put(sender, ready("t2", "main:6", "transactional"))
    assert [what for what, _ in sender.stops()] == ["transactional", "campaign"]
    assert names(sender.intend(at(20))) == ["r1"]
    assert len(sender.intend(at(2.5 + 1_801))) == 1, "one probe of the campaign"
    assert len(sender.intend(at(10.5 + 1_801))) == 1, "one of the confirmations"


def test_a_payment_problem_stops_all_that_the_business_begins() -> None:
    """131042 is said of the account: a confirmation would hear the same."""
    sender = number()
    put(sender, ready("c1", "main:1", "campaign"), ready("t1", "main:2", "transactional"), ready("r1", "main:3"))
    sends = {send.ready.send_id: send for send in sender.intend(at(2))}
    call(sender, sends["c1"], at(2))
    assert sender.answered(sends["c1"], error(131042), at(2.5), 0) == "back"
    assert sender.permit(sends["t1"], at(2.6), 0, is_held=True) is Permit.VOID
    assert sender.permit(sends["r1"], at(2.6), 0, is_held=True) is Permit.GRANTED


def test_a_stopped_number_is_probed_by_one_send_a_minute_and_opens_when_it_passes() -> None:
    """A dead token costs one call a minute, and four hundred answers that say the same stop it once."""
    sender = number(1_000)
    put(sender, *(ready(f"r{n}", f"main:{n}") for n in range(50)))
    sends = sender.intend(at(2))
    for index, send in enumerate(sends):
        call(sender, send, at(2 + index / 100))
    for send in sends:
        assert sender.answered(send, error(190), at(3), 0) == "back"
    assert sender.intend(at(62)) == []
    [probe] = sender.intend(at(63.1))
    assert sender.intend(at(63.2)) == []
    call(sender, probe, at(63.2))
    assert sender.answered(probe, error(190), at(63.5), 0) == "back"
    assert sender.intend(at(122)) == []
    [probe] = sender.intend(at(124))
    call(sender, probe, at(124))
    assert sender.answered(probe, error(131047), at(124.2), 0) == "done", "the message was judged: the token is good"
    sender.land(probe, at(124.2))
    assert len(sender.intend(at(124.3))) == 49


def test_an_intent_of_before_a_stop_gets_no_permit() -> None:
    """What was intended when 190 came must not run into the same wall."""
    sender = number()
    put(sender, ready("r1", "main:1"), ready("r2", "main:2"))
    first, second = sender.intend(at(2))
    call(sender, first, at(2))
    sender.answered(first, error(190), at(2.1), 0)
    assert sender.permit(second, at(2.2), 0, is_held=True) is Permit.VOID


def test_a_paused_template_holds_its_own_sends_only() -> None:
    """132015: the other template of the same campaign goes on."""
    sender = number()
    put(sender, ready("a1", "main:1", "campaign", template="a"), ready("a2", "main:2", "campaign", template="a"))
    first, second = sender.intend(at(2))
    call(sender, first, at(2))
    sender.answered(first, error(132015), at(2.1), 0)
    assert sender.permit(second, at(2.2), 0, is_held=True) is Permit.VOID
    sender.void(second, at(2.2))
    put(sender, ready("b1", "main:3", "campaign", template="b"))
    assert names(sender.intend(at(3))) == ["b1"]
    assert len(sender.intend(at(2.1 + 601))) == 1


def test_media_that_cannot_be_fetched_is_tried_three_times() -> None:
    """131053 is often a slow host of the sender's; it is final in the end."""
    sender = number()
    put(sender, ready("r1"))
    learned, seconds = list[str](), 2.0
    while not learned or learned[-1] == "back":
        for send in sender.intend(at(seconds)):
            call(sender, send, at(seconds))
            learned.append(sender.answered(send, error(131053), at(seconds + 0.5), 0))
        seconds += 0.5
    assert learned == ["back", "back", "done"]


def test_doubt_holds_its_lane_until_it_is_settled() -> None:
    """The customer's next send in that lane waits; another lane does not."""
    sender = number()
    put(sender, ready("r1"), ready("r2"), ready("c1", lane="campaign"))
    [send] = sender.intend(at(2))
    call(sender, send, at(2))
    assert sender.answered(send, error(131000), at(2.5), 0) == "doubt"
    sender.land(send, at(2.5))
    assert names(sender.intend(at(3))) == ["c1"]
    sender.land(sender._conversations["main:1"].flying or send, at(9))
    assert sender.intend(at(9)) == []
    sender.settle("main:1", "reply", "r1")
    assert names(sender.intend(at(9))) == ["r2"]


def test_a_second_attempt_goes_first_and_ends_the_doubt() -> None:
    """Promise 2 even when doubt was decided by sending again."""
    sender = number()
    put(sender, ready("r1"), ready("r2"))
    [send] = sender.intend(at(2))
    call(sender, send, at(2))
    sender.answered(send, error(1), at(2.5), 0)
    sender.land(send, at(2.5))
    put(sender, ready("r1", attempt=2))
    [again] = sender.intend(at(9))
    assert (again.ready.send_id, again.ready.attempt) == ("r1", 2)


def test_a_settled_send_does_not_go_out_again_though_it_waits_already() -> None:
    """The status came while its second attempt stood in the queue, or was intended."""
    sender = number()
    put(sender, ready("r1", attempt=2), ready("r2"))
    dropped = sender.settle("main:1", "reply", "r1")
    assert dropped is not None
    assert names(sender.intend(at(2))) == ["r2"]
    other = number()
    put(other, ready("r1", attempt=2))
    [send] = other.intend(at(2))
    assert other.settle("main:1", "reply", "r1") is None
    assert other.permit(send, at(2), 0, is_held=True) is Permit.VOID


def test_what_is_too_late_is_returned_while_it_waits() -> None:
    """A stopped number must not keep a reply past its window in silence."""
    sender = number()
    put(sender, ready("r1", not_after=WALL + 5_000), ready("r2", not_after=WALL + 500_000))
    assert sender.expire(WALL + 5_000) == []
    [late] = sender.expire(WALL + 5_001)
    assert late.ready.send_id == "r1"
    sender.land(late, at(5.1))
    assert names(sender.intend(at(6))) == ["r2"]


def test_graph_that_cannot_be_reached_is_tried_by_one_send_with_growing_rests() -> None:
    """Refused connections are no attempts; hundreds of them a second would be a flood of steps."""
    sender = number()
    put(sender, *(ready(f"r{n}", f"main:{n}") for n in range(50)))
    tried, seconds = [], 2.0
    while seconds < 40:
        for send in sender.intend(at(seconds)):
            tried.append(seconds)
            sender.unsent(send, at(seconds), 0.0, is_unreached=True)
        seconds += 0.1
    assert tried.count(2.0) == 40
    assert len(tried) <= 40 + 8
    [probe] = sender.intend(at(60))
    call(sender, probe, at(60))
    sender.answered(probe, error(131000), at(60.1), 0)
    assert len(sender.intend(at(60.2))) == 40, "an answer, whatever it says, means that Graph is reached"


def test_customers_without_anything_to_remember_are_forgotten() -> None:
    """I5: a million recipients must not stay in memory, nor what was sent long before its window closes."""
    sender = number(1_000)
    seconds = 2.0
    for batch in range(40):
        put(sender, *(ready(f"{batch}/{n}", f"main:{batch}/{n}", not_after=WALL + 86_400_000) for n in range(100)))
        while sender.pending["reply"]:
            for send in sender.intend(at(seconds)):
                if sender.permit(send, at(seconds), 0, is_held=True) is Permit.GRANTED:
                    sender.answered(send, ACCEPTED, at(seconds), 0)
                    sender.land(send, at(seconds))
                else:
                    sender.void(send, at(seconds))
            seconds += 0.001
    assert len(sender._deadlines) <= 2_000
    sender.intend(at(seconds + 10))
    assert len(sender) == 0
    assert len(sender._wakes) == 0


def test_a_campaign_does_not_delay_a_reply_by_more_than_one_turn() -> None:
    """Promise 5, measured over the whole of planning and permits: see also the stage's own test."""
    sender = number(80)
    put(sender, *(ready(f"c{n}", f"main:c{n}", "campaign") for n in range(2_000)))
    waiting: deque[Send] = deque(sender.intend(at(2)))
    seconds, delays = 2.0, []
    for turn in range(400):
        put(sender, ready(f"r{turn}", f"main:r{turn}")) if turn % 7 == 0 else None
        fresh = sender.intend(at(seconds))
        replies = [send for send in fresh if send.lane == "reply"]
        waiting.extend(send for send in fresh if send.lane != "reply")
        for send in (*replies, *([waiting.popleft()] if waiting else [])):
            asked = seconds
            while sender.permit(send, at(seconds), 1_000 + asked, is_held=True) is Permit.WAIT:
                seconds = max(seconds + 0.001, sender.window.open_at(1_000 + seconds) - 1_000)
            if send.lane == "reply":
                delays.append(seconds - asked)
            sender.answered(send, ACCEPTED, at(seconds), 0)
            sender.land(send, at(seconds))
    assert len(delays) == 58
    assert max(delays) <= 1.5 * 1.04 / 80


# A slot's memory


class World:
    """A log, a ledger, a Graph and the customer stage's part, all of which outlive the sender. Drives one slot."""

    def __init__(self, seed: int, pending_max: int) -> None:
        self.rng = random.Random(seed)
        self.pending_max = pending_max
        self.retaken = 0
        self.seconds = 0.0
        self.wall_step_ms = 0
        self.logs: dict[Lane, list[SendsRecord]] = {lane: [] for lane in LANES}
        self.ledger: list[bytes] = []
        self.offsets: dict[Lane, int] = {}
        self.memo = b""
        self.outcomes: dict[str, str] = {}
        self.taken: list[tuple[str, int]] = []
        self.maybe: list[tuple[str, int]] = []
        self.doubted: dict[str, Ready] = {}
        self.readies: dict[str, Ready] = {}
        self.unwanted: dict[tuple[str, int], None] = {}
        """Attempts whose withdrawal this owner of the slot, or a step of one before, has read."""
        self.unwanted_for_good: dict[tuple[str, int], None] = {}
        self.withdrawn: set[tuple[str, int]] = set()
        """Attempts that were reported as withdrawn."""
        self.start()

    @property
    def now(self) -> Instant:
        """The present."""
        return at(self.seconds, self.wall_step_ms)

    def start(self) -> None:
        """A process begins: restore, report what was lost."""
        self.slot = Slot(0, PLACES, 50, Gates(), self.now, self.pending_max)
        records: list[LedgerRecord] = [decode_ledger(value) for value in self.ledger]
        self.reports: list[Report] = self.slot.begin(records, self.offsets, self.memo, self.now)
        self.read = {lane: self.offsets.get(lane, 0) for lane in LANES}
        self.unwanted = dict(self.unwanted_for_good)
        self.intended: list[Send] = []
        self.called: list[Send] = []

    def crash(self) -> None:
        """The process dies: what was called may have been taken by Meta or not."""
        for send in self.called:
            if self.rng.random() < 0.5:
                self.taken.append((send.ready.send_id, send.ready.attempt))
        self.wall_step_ms += self.rng.choice([0, 0, 0, -60_000, 45_000])
        self.seconds += self.rng.uniform(0, 3)
        self.start()

    def send(self, name: str, not_after: int) -> None:
        """The customer stage admits a send; sometimes its record stands there twice."""
        lane = self.rng.choice(LANES)
        customer = f"main:{self.rng.randint(1, 4)}"
        record = ready(name, customer, lane, not_after=not_after)
        self.readies[name] = record
        self.logs[lane] += [record] * self.rng.choice([1, 1, 1, 2])

    def withdraw(self) -> None:
        """A customer says stop: the customer stage withdraws a send it has not heard of, whatever became of it. Its
        record may not stand in its log when the withdrawal is read: another partition's step is slower."""
        waiting = [record for name, record in self.readies.items() if name not in self.outcomes]
        if waiting and self.rng.random() < 0.3:
            record = self.rng.choice(waiting)
            not_after = record.not_after or WALL + 10**9
            self.logs["reply"].append(Withdraw(record.send_id, record.attempt, NUMBER, record.customer, not_after))

    def fetch(self) -> None:
        """Read some of the logs."""
        for lane in LANES:
            for _ in range(self.rng.randint(0, 3) if self.slot.can_read(lane) else 0):
                if self.read[lane] < len(self.logs[lane]):
                    offset = self.read[lane]
                    self.read[lane] += 1
                    record = self.logs[lane][offset]
                    report = self.slot.take(lane, offset, record, self.now)
                    if isinstance(record, Withdraw):
                        self.unwanted[record.send_id, record.attempt] = None
                    if report is not None:
                        self.reports.append(report)
        for left in self.slot.left():
            self.reread(left)
        self.slot.expire(self.now)

    def reread(self, left: Left) -> None:
        """Read again some of what was left in a log."""
        for offset in range(left.start, left.end):
            if self.slot.is_full(left) or self.rng.random() < 0.1:
                return
            report = self.slot.retake(left, offset, self.logs[left.lane][offset], self.now)
            self.retaken += 1
            if report is not None:
                self.reports.append(report)
        self.slot.retaken(left)

    def step(self, *, is_snapshot: bool = False) -> None:
        """Plan a step; it is written, or refused with nothing written, or written and the process dies."""
        plan = self.slot.plan(self.now, may_intend=True, is_snapshot_due=is_snapshot)
        if plan is None:
            return
        if self.rng.random() < 0.1:
            self.slot.undone(plan, self.now)
            return
        self.write(plan)
        if self.rng.random() < 0.05:
            self.crash()
            return
        self.reports += self.slot.written(plan, self.now)
        self.intended += plan.sends

    def write(self, plan: Plan) -> None:
        """Make a step durable, as the engine does: a snapshot takes the place of what stood before."""
        if isinstance(plan.records[0], Snapshot):
            self.ledger.clear()
        self.ledger += [encode_ledger(record) for record in plan.records]
        self.offsets, self.memo = dict(plan.offsets), plan.memo
        self.unwanted_for_good = dict(self.unwanted)
        assert len(plan.memo) <= MEMO_BYTES_MAX + 100

    def permits(self) -> None:
        """Some intents ask for their permit."""
        for send in list(self.intended):
            if self.rng.random() < 0.6:
                match self.slot.numbers[NUMBER].permit(send, self.now, 0, is_held=self.rng.random() < 0.95):
                    case Permit.GRANTED:
                        customers = [other.ready.customer for other in self.called]
                        assert send.ready.customer not in customers, "one in flight per customer"
                        attempt = (send.ready.send_id, send.ready.attempt)
                        assert attempt not in self.unwanted, "what was withdrawn begins no more"
                        self.called.append(send)
                    case Permit.WAIT:
                        continue
                    case Permit.VOID:
                        self.slot.void(send, self.now)
                    case Permit.EXPIRED:
                        self.reports.append(self.slot.expire_intended(send, self.now))
                self.intended.remove(send)

    def answers(self) -> None:
        """Some calls are answered, as Graph pleases."""
        for send in list(self.called):
            if self.rng.random() < 0.5:
                self.called.remove(send)
                attempt = (send.ready.send_id, send.ready.attempt)
                code = self.rng.choice([0, 0, 0, 0, 131047, 130429, 131056, 131000, -1, -2])
                if code == -2:
                    self.slot.unsent(send, self.now, self.rng.random(), is_unreached=False)
                    continue
                if code in (0, 131000, -1) and (code == 0 or self.rng.random() < 0.5):
                    self.taken.append(attempt)
                verdict = ACCEPTED if code == 0 else error(code) if code > 0 else classify(502, b"<html>")
                report = self.slot.answered(send, verdict, b"", self.now, self.rng.random())
                if report is not None:
                    self.reports.append(report)

    def report(self) -> None:
        """Some reports become durable; the process may die before it notes that."""
        while self.reports and self.rng.random() < 0.7:
            report = self.reports.pop(0)
            if report.outcome is not None:
                said = report.outcome
                if said.outcome == "in_doubt":
                    if said.send_id in self.outcomes:
                        self.settle(said.send_id)
                    elif said.attempt == self.readies[said.send_id].attempt:
                        self.doubted[said.send_id] = self.readies[said.send_id]
                else:
                    if said.code == 131050:
                        self.withdrawn.add((said.send_id, said.attempt))
                    self.outcomes[said.send_id] = said.outcome
                    self.doubted.pop(said.send_id, None)
            if self.rng.random() < 0.03:
                self.crash()
                return
            self.slot.landed(report, self.now)

    def settle(self, send_id: str) -> None:
        """The customer stage ends a doubt."""
        record = self.readies[send_id]
        self.logs[record.lane].append(Settle(send_id, NUMBER, record.customer, record.lane))

    def decide_doubts(self) -> None:
        """The customer stage settles doubts by a status, by giving up, or by another attempt."""
        for send_id, record in list(self.doubted.items()):
            if self.rng.random() < 0.3:
                del self.doubted[send_id]
                if any(taken == send_id for taken, _ in self.taken):
                    self.outcomes[send_id] = "accepted"
                    self.settle(send_id)
                elif self.rng.random() < 0.5:
                    self.outcomes[send_id] = "given up"
                    self.settle(send_id)
                else:
                    fields = {name: getattr(record, name) for name in record.__struct_fields__}
                    again = Ready(**{**fields, "attempt": record.attempt + 1})
                    self.readies[send_id] = again
                    self.logs[record.lane].append(again)

    def turn(self) -> None:
        """One round of everything."""
        self.withdraw()
        self.fetch()
        self.step(is_snapshot=self.rng.random() < 0.1)
        self.permits()
        self.answers()
        self.report()
        self.decide_doubts()
        self.seconds += self.rng.choice([0.001, 0.02, 0.2, 1.1, 7.0])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 5, 1_000]))
def test_through_any_crash_each_attempt_goes_out_once_and_in_order_and_none_is_forgotten(
    seed: int, pending_max: int
) -> None:
    """I2, I3 and I8: crashes between intent, call, answer, report and step, refused steps, clocks that step; and a
    memory that holds all, or next to nothing."""
    world = World(seed, pending_max)
    for turn in range(120):
        if turn < 60 and turn % 2 == 0:
            world.send(f"s{turn:03}", world.now.wall + 20_000 if world.rng.random() < 0.1 else 0)
        if world.rng.random() < 0.06:
            world.crash()
        world.turn()
    world.rng = Calm(seed)
    for _ in range(3_000):
        world.turn()
        if len(world.outcomes) == len(world.readies) and not world.reports and not world.doubted:
            break
    assert set(world.outcomes) == set(world.readies), "none is forgotten"
    twice = {attempt: count for attempt, count in Counter(world.taken).items() if count > 1}
    assert not twice, "each attempt goes out at most once"
    assert not world.withdrawn & set(world.taken), "what was said to be withdrawn did not go out"
    first_taken: dict[str, int] = {}
    for place, (send_id, _) in enumerate(world.taken):
        first_taken.setdefault(send_id, place)
    for lane in LANES:
        for customer in {record.customer for record in world.readies.values()}:
            order = [  # without those that may expire: late by one clock, in time by the next, has no order
                record.send_id
                for record in world.logs[lane]
                if isinstance(record, Ready) and record.customer == customer and not record.not_after
            ]
            places = [first_taken[name] for name in dict.fromkeys(order) if name in first_taken]
            assert places == sorted(places), "order per customer and lane"


class Calm(random.Random):
    """After the storm: nothing fails any more, everything happens."""

    def random(self) -> float:
        """Happen, without fault: small enough for what should, large enough for what should not."""
        return 0.2

    def choice(self, seq):  # type: ignore[no-untyped-def]
        """Take the first: Graph accepts, time goes on."""
        return 7.0 if 7.0 in seq else seq[0]


def restored(
    *records: LedgerRecord, offsets: dict[Lane, int] | None = None, now: Instant | None = None
) -> tuple[Slot, list[Report]]:
    """Return a slot with its ledger read back, and what it has to report."""
    slot = Slot(0, PLACES, 500, Gates(), now or at(0))
    return slot, slot.begin(
        [decode_ledger(encode_ledger(record)) for record in records], offsets or {}, b"", now or at(0)
    )


def intent(send_id: str) -> Intent:
    """Return an intent of the first customer's."""
    return Intent(send_id, 1, NUMBER, "main:1", "reply", 0, WALL)


def through(slot: Slot, now: Instant, *, is_snapshot_due: bool = False) -> list[LedgerRecord]:
    """Plan and write one step; return its ledger records."""
    plan = slot.plan(now, may_intend=True, is_snapshot_due=is_snapshot_due)
    assert plan is not None
    slot.written(plan, now)
    return plan.records


def test_an_intent_without_an_answer_is_in_doubt_and_is_not_sent_when_it_is_read_again() -> None:
    """The heart of promise 3."""
    slot, _ = restored()
    slot.take("reply", 0, ready("r1"), at(2))
    slot.take("reply", 1, ready("r2"), at(2))
    written = through(slot, at(2))
    after, reports = restored(*written, offsets={"reply": 0}, now=at(5))
    assert [(report.outcome.send_id, report.outcome.outcome) for report in reports if report.outcome] == [
        ("r1", "in_doubt")
    ]
    after.take("reply", 0, ready("r1"), at(7))
    after.take("reply", 1, ready("r2"), at(7))
    assert after.plan(at(8), may_intend=True, is_snapshot_due=False) is None or not after.pending("campaign")
    assert after.numbers[NUMBER].intend(at(8)) == []
    after.landed(reports[0], at(8))
    after.take("reply", 2, Settle("r1", NUMBER, "main:1", "reply"), at(8))
    assert names(after.numbers[NUMBER].intend(at(20))) == ["r2"]


def test_a_mark_under_way_when_its_owner_died_is_made_again() -> None:
    """Promise 1: a bot was told that it was taken; twice does no harm, and nobody asks whether it was made."""
    slot, _ = restored()
    mark = ready("m1", "main:#mark:wamid.X", kind="mark")
    slot.take("reply", 0, mark, at(2))
    ledger = through(slot, at(2))
    after, reports = restored(*ledger, offsets={"reply": 0}, now=at(5))
    assert reports == []
    after.take("reply", 0, mark, at(7))
    plan = after.plan(at(8), may_intend=True, is_snapshot_due=False)
    assert plan is not None
    assert names(plan.sends) == ["m1"]
    after.written(plan, at(8))
    ledger += plan.records
    again, _ = restored(*ledger, offsets={"reply": 0}, now=at(9))
    again.take("reply", 0, mark, at(10))
    assert names(again.numbers[NUMBER].intend(at(12))) == ["m1"], "and again, as often as owners die"


def test_a_doubt_survives_and_is_said_again() -> None:
    """Whoever decides it may have done so while nobody listened here; else the lane would wait for ever."""
    slot, _ = restored()
    slot.take("reply", 0, ready("r1"), at(2))
    ledger = through(slot, at(2))
    lost, reports = restored(*ledger, offsets={"reply": 0}, now=at(5))
    lost.landed(reports[0], at(5))
    ledger += through(lost, at(6))
    for snapshot in (False, True):
        again, said = restored(*ledger, offsets={"reply": 1}, now=at(9))
        assert [(report.outcome.send_id, report.is_again) for report in said if report.outcome] == [("r1", True)]
        again.landed(said[0], at(9))
        again.take("reply", 1, ready("r2"), at(9))
        assert again.numbers[NUMBER].intend(at(30)) == []
        if not snapshot:
            ledger = through(again, at(31), is_snapshot_due=True)


def test_a_pairs_debt_survives_a_takeover_by_journal_and_by_snapshot() -> None:
    """I4: another process must not start a new burst to the same customer."""
    slot, _ = restored()
    ledger: list[LedgerRecord] = []
    for n in range(10):
        slot.take("reply", n, ready(f"r{n}"), at(2))
    seconds = 2.0
    for _ in range(10):
        plan = slot.plan(at(seconds), may_intend=True, is_snapshot_due=False)
        assert plan is not None
        slot.written(plan, at(seconds))
        ledger += plan.records
        for send in plan.sends:
            call(slot.numbers[NUMBER], send, at(seconds + 0.1))
            report = slot.answered(send, ACCEPTED, b"", at(seconds + 0.2), 0)
            assert report is not None
            slot.landed(report, at(seconds + 0.2))
        seconds += 0.25
    ledger += through(slot, at(seconds))
    for records in (ledger, through(slot, at(seconds + 0.1), is_snapshot_due=True)):
        other, reports = restored(*records, offsets={"reply": 10}, now=at(10))
        assert reports == []
        other.take("reply", 10, ready("next"), at(10))
        assert other.numbers[NUMBER].intend(at(2.1 + 60.2)) == []
        assert names(other.numbers[NUMBER].intend(at(2.1 + 60.8))) == ["next"]


@pytest.mark.parametrize("behind_s", [0, 7, 36, 3_600])
@pytest.mark.parametrize("owners", [1, 2])
@pytest.mark.parametrize("taken_at_s", [10, 30, 60])
def test_owners_whose_clocks_are_behind_leave_a_debt_as_long_as_it_is(
    behind_s: int, owners: int, taken_at_s: int
) -> None:
    """I4: they hold it no longer than its burst could make it, but must not write it down as short as that."""
    owed = Debt(NUMBER, "main:1", WALL, 12, WALL + 72_000, 0, 0)
    records: list[LedgerRecord] = [Snapshot(WALL, [], b""), Part([owed], [])]
    for n in range(owners):
        now = at(taken_at_s + n, wall_step_ms=-1_000 * behind_s)
        between, _ = restored(*records, now=now)
        [(_, held)] = between.numbers[NUMBER].debts(now)
        assert 72_000 <= held.free_at - at(0).ms <= now.ms - at(0).ms + 72_000 + 6_001 * n
        records = through(between, now, is_snapshot_due=True)
    back, _ = restored(*records, now=at(65))
    back.take("reply", 0, ready("next"), at(65))
    assert back.numbers[NUMBER].intend(at(72.4)) == []
    assert names(back.numbers[NUMBER].intend(at(72.6))) == ["next"]


def test_sends_made_before_the_ledgers_debt_is_repaid_add_to_it() -> None:
    """I4: an owner whose clock is behind may send when the debt is repaid by the clock that wrote it, not by its own.
    Its sends owe their 6 s all the same, though `since` is earlier than the burst was: a takeover had put it back."""
    owed = Debt(NUMBER, "main:1", WALL - 10_000, 8, WALL + 40_000, 0, 0)
    slot, reports = restored(
        Snapshot(WALL, [], b""),
        Part([owed], []),
        Written([], [], [intent("r1")]),
        Written([Answer("r1", 1, "done", WALL + 39_000)], [], [intent("r2")]),
        Written([Answer("r2", 1, "done", WALL + 39_100)], [], []),
        now=at(45),
    )
    assert reports == []
    [(_, held)] = slot.numbers[NUMBER].debts(at(45))
    assert at(39 + 12).ms <= held.free_at <= at(40 + 12).ms


@pytest.mark.parametrize("behind_s", [0, 26, 3_600])
def test_a_call_that_may_have_been_made_closes_its_pair_whatever_clock_intended_it(behind_s: int) -> None:
    """I4: it was made before we took over, and maybe a moment before. The clock that wrote the intent may have been put
    right since; by the instant it wrote, the debt would be repaid already."""
    lost = Intent("r1", 1, NUMBER, "main:1", "reply", 0, WALL - 1_000 * behind_s)
    ledger: list[LedgerRecord] = [Written([], [], [lost])]
    for now in (at(5), at(8)):
        slot, reports = restored(*ledger, now=now)
        [(_, held)] = slot.numbers[NUMBER].debts(now)
        assert held.free_at >= at(5).ms + 6_000
        for report in reports:
            slot.landed(report, now)
        ledger += through(slot, now) if slot.has_news else []
        if now == at(5):
            assert [report.learned for report in reports] == ["doubt"]


def test_the_same_record_twice_is_sent_once() -> None:
    """A customer stage's record may stand in the log twice; also after the first one is done, and after a restart."""
    slot, _ = restored()
    slot.take("reply", 0, ready("r1"), at(2))
    slot.take("reply", 1, ready("r1"), at(2))
    ledger = through(slot, at(2))
    [send] = [slot._known["r1"]]
    slot.take("reply", 2, ready("r1"), at(2))
    call(slot.numbers[NUMBER], send, at(2))
    report = slot.answered(send, ACCEPTED, b"", at(2.2), 0)
    assert report is not None
    slot.landed(report, at(2.2))
    slot.take("reply", 3, ready("r1"), at(2.3))
    plan = slot.plan(at(10), may_intend=True, is_snapshot_due=False)
    assert plan is not None
    assert plan.sends == []
    assert plan.offsets == {"reply": 4}
    after, _ = restored(*ledger, *plan.records, offsets={"reply": 4}, now=at(20))
    after.take("reply", 4, ready("r1"), at(20))
    assert after.numbers[NUMBER].intend(at(22)) == []


def test_what_is_too_late_is_written_down_before_anybody_is_told() -> None:
    """A clock that runs behind must not find time left for a send whose sender was told that it expired."""
    slot, _ = restored()
    slot.take("reply", 0, ready("r1", not_after=WALL + 1_000), at(0.1))
    slot.expire(at(2))
    plan = slot.plan(at(2), may_intend=False, is_snapshot_due=False)
    assert plan is not None
    slot.undone(plan, at(2))
    plan = slot.plan(at(2), may_intend=False, is_snapshot_due=False)
    assert plan is not None
    [report] = slot.written(plan, at(2))
    assert report.outcome is not None
    assert (report.outcome.send_id, report.outcome.outcome) == ("r1", "expired")
    behind = at(5, wall_step_ms=-60_000)
    other, said = restored(*plan.records, offsets={"reply": 0}, now=behind)
    assert [again.outcome.outcome for again in said if again.outcome] == ["in_doubt"]
    other.take("reply", 0, ready("r1", not_after=WALL + 1_000), behind)
    assert other.numbers[NUMBER].intend(at(20, wall_step_ms=-60_000)) == []


def test_strays_are_refused_or_brought_to_their_slot() -> None:
    """I8: a number that was removed, or lives at another slot now, loses nothing in silence."""
    slot, _ = restored()
    refused = slot.take("reply", 0, ready("r1", phone_number_id="gone"), at(2))
    assert refused is not None
    assert refused.outcome is not None
    assert (refused.outcome.outcome, refused.outcome.code) == ("refused", 100)
    slot.landed(refused, at(2))
    assert slot.take("reply", 1, ready("r2", phone_number_id="elsewhere"), at(2)) is None
    plan = slot.plan(at(2), may_intend=True, is_snapshot_due=False)
    assert plan is not None
    assert [(forward.slot, forward.record) for forward in plan.forwards] == [
        (5, ready("r2", phone_number_id="elsewhere"))
    ]
    assert plan.offsets == {"reply": 2}
    slot.written(plan, at(2))
    assert slot.plan(at(2), may_intend=True, is_snapshot_due=False) is None


def test_runs_too_many_for_the_memo_go_into_the_ledger() -> None:
    """A done send left out of the memory would go out again: nothing is left out."""
    count = 80_000
    slot = Slot(0, PLACES, 500, Gates(), at(0), count)
    slot.begin([], {}, b"", at(0))
    for offset in range(count):
        if offset % 2:
            slot.skip("campaign", offset)
        else:
            slot.take("campaign", offset, ready(f"c{offset}", f"main:{offset}", "campaign"), at(0))
    plan = slot.plan(at(2), may_intend=True, is_snapshot_due=False)
    assert plan is not None
    assert len(plan.memo) < MEMO_BYTES_MAX
    [written] = plan.records
    assert isinstance(written, Written)
    assert written.done
    after = Slot(0, PLACES, 500, Gates(), at(3))
    after.begin(plan.records, plan.offsets, plan.memo, at(3))
    assert after._marks["campaign"].is_done(count - 1)
    assert not after._marks["campaign"].is_done(count - 2)


def test_a_lane_full_of_sends_that_wait_for_a_doubt_still_reads_that_it_is_over() -> None:
    """Else they would wait until they are too old, for a record that stands behind them."""
    slot = Slot(0, PLACES, 500, Gates(), at(0), 10)
    doubt = Doubt(NUMBER, "main:1", "reply", "s0", 1)
    slot.begin([Snapshot(WALL, [], b""), Part([], [doubt])], {}, b"", at(0))
    for offset in range(50):
        slot.take("reply", offset, ready(f"r{offset}"), at(1))
    assert slot.pending("reply") == 20, "behind a doubt twice as many, and no more"
    assert slot.can_read("reply")
    assert slot.plan(at(2), may_intend=False, is_snapshot_due=False), "what was left stands in the next step"
    assert slot.left() == [], "there is no room"
    assert slot.numbers[NUMBER].intend(at(2)) == []
    slot.take("reply", 50, Settle("s0", NUMBER, "main:1", "reply"), at(3))
    assert names(slot.numbers[NUMBER].intend(at(3))) == ["r0"]


@pytest.mark.parametrize("waiting", [5, 6, 9, 10, 19])
def test_a_doubt_about_one_customer_does_not_keep_the_numbers_others_out(waiting: int) -> None:
    """The doubt ends when the number's other sends prove that webhooks arrive. Kept out of memory by the sends that
    queue behind it, these would wait for it as it waits for them, until all are too old."""
    slot = Slot(0, PLACES, 500, Gates(), at(0), 10)
    doubt = Doubt(NUMBER, "main:1", "reply", "s0", 1)
    slot.begin([Snapshot(WALL, [], b""), Part([], [doubt])], {}, b"", at(0))
    for offset in range(waiting):
        slot.take("reply", offset, ready(f"r{offset}"), at(1))
    burst = range(waiting, waiting + 30)
    records = {offset: ready(f"o{offset}", f"main:o{offset}") for offset in burst}
    for offset, record in records.items():
        slot.take("reply", offset, record, at(1))
    sent: list[str] = []
    for turn in range(60):
        now = at(2 + turn)
        plan = slot.plan(now, may_intend=True, is_snapshot_due=False)
        if plan is not None:
            slot.written(plan, now)
            for send in plan.sends:
                sent.append(send.ready.send_id)
                call(slot.numbers[NUMBER], send, now)
                report = slot.answered(send, Verdict("accepted", wamid="w"), b"", now, 0.5)
                assert report is not None
                slot.landed(report, now)
        for left in slot.left():
            for offset in range(left.start, left.end):
                if slot.is_full(left):
                    break
                slot.retake(left, offset, records[offset], now)
    assert sent == [f"o{offset}" for offset in burst]
    slot.take("reply", waiting + 30, Settle("s0", NUMBER, "main:1", "reply"), at(70))
    assert names(slot.numbers[NUMBER].intend(at(70))) == ["r0"]
    assert not any(slot.numbers[NUMBER].held_back.values())


def test_a_stopped_numbers_backlog_leaves_the_others_of_its_slot_their_room() -> None:
    """One dead token must not keep another number's customers waiting; and what waits costs next to no memory."""
    places = {name: NumberPlace(name, f"waba {name}", 80, 0) for name in ("dead", "alive")}
    slot = Slot(0, places, 500, Gates(), at(0), 20)
    slot.begin([], {}, b"", at(0))
    for offset in range(0, 40_000, 2):
        name = f"d{offset}"
        slot.take("campaign", offset, ready(name, f"main:{name}", "campaign", phone_number_id="dead"), at(2))
        slot.skip("campaign", offset + 1)
    slot.take("campaign", 40_000, ready("a", "main:a", "campaign", phone_number_id="alive"), at(2))
    assert (slot.numbers["dead"].pending["campaign"], slot.numbers["alive"].pending["campaign"]) == (10, 1)
    plan = slot.plan(at(2), may_intend=False, is_snapshot_due=False)
    assert plan is not None
    assert len(plan.memo) < 400
    assert plan.offsets["campaign"] == 0, "the first ten are the lane's own"


def test_inbound_is_charged_to_its_number() -> None:
    """L3: Meta counts what a number receives."""
    slot, _ = restored()
    slot.count_inbound(InboundDigest(NUMBER, 80, WALL), at(5))
    slot.count_inbound(InboundDigest("unknown", 80, WALL), at(5))
    assert slot.numbers[NUMBER].window.open_at(at(5).monotonic) > at(6).monotonic


def test_recent_attempts_are_bounded_and_survive_packing() -> None:
    """I5: it is written with every snapshot."""
    recent = Recent()
    for n in range(20_000):
        recent.add(f"s{n}", 1)
    packed = Recent(recent.packed())
    assert len(recent.packed()) == 8 * 16_384
    assert ("s19999", 1) in packed
    assert ("s19999", 2) not in packed
    assert ("s0", 1) not in packed


def test_a_tier_meta_told_of_survives_in_the_snapshot_and_gives_way_to_a_configured_one() -> None:
    """It is told once; the log of accounts forgets it after a week."""
    slot, _ = restored()
    assert slot.learn_tier(NUMBER, 1_000)
    assert not slot.learn_tier(NUMBER, 1_000), "no news"
    assert not slot.learn_tier("elsewhere", 1_000), "it lives at another slot"
    ledger = through(slot, at(2), is_snapshot_due=True)
    after, _ = restored(*ledger, now=at(5))
    assert after.numbers[NUMBER].window.throughput_mps == 1_000
    after.set_tier(NUMBER, 20)
    assert after.numbers[NUMBER].window.throughput_mps == 20
    [snapshot] = through(after, at(7), is_snapshot_due=True)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.tiers == {}
    coexistence = {NUMBER: NumberPlace(NUMBER, "waba", 20, 0)}
    slow = Slot(0, coexistence, 500, Gates(), at(0))
    slow.begin([decode_ledger(encode_ledger(record)) for record in ledger], {}, b"", at(0))
    assert slow.numbers[NUMBER].window.throughput_mps == 20


def gone_within(sender: NumberSender, began: float, ends: float) -> Counter[str]:
    """Return how many sends of each template go out from one second to another."""
    gone: Counter[str] = Counter()
    waiting: deque[Send] = deque()
    seconds = began
    while seconds < ends:
        waiting.extend(sender.intend(at(seconds)))
        if waiting and sender.permit(waiting[0], at(seconds), seconds, is_held=True) is Permit.GRANTED:
            send = waiting.popleft()
            gone[send.ready.template] += 1
            sender.answered(send, ACCEPTED, at(seconds), 0)
            sender.land(send, at(seconds))
        seconds += 0.005
    for send in waiting:
        sender.void(send, at(ends))
    return gone


def test_a_slowed_template_gets_a_tenth_of_the_tier_at_most_and_others_the_rest() -> None:
    """People's reaction to a bad template must come before the campaign is over."""
    gates = Gates()
    sender = NumberSender(NUMBER, "waba", 80, 500, gates, at(0))
    body = b'{"template": {"language": {"code": "en"}}}'
    put(sender, *(ready(f"b{n}", f"main:{n}", "campaign", template="bad", body=body) for n in range(900)))
    put(sender, *(ready(f"g{n}", f"main:g{n}", "campaign", template="good", body=body) for n in range(300)))
    gates.slowed[template_door("waba", "bad/en")] = None
    together = gone_within(sender, 2.0, 5.0)
    assert together["bad"] <= 8 * 3.5
    assert together["good"] >= 60 * 3
    gone_within(sender, 5.0, 10.0)
    alone = gone_within(sender, 10.0, 20.0)
    assert 60 <= alone["bad"] <= 8 * 10.5
    gates.slowed.clear()
    assert gone_within(sender, 20.0, 23.0)["bad"] >= 60 * 2
