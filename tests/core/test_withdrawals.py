"""Marketing that already waits at its sender when its customer says stop: withdrawn by the one, ended by the other."""

from __future__ import annotations

from random import Random

import msgspec
from msgspec.structs import replace

from broker.core import withdrawals
from broker.core.customer import Command, Dispatch
from broker.core.customer_context import context_of
from broker.core.sender import Send
from broker.core.slot import PART_MAX, Report, Slot
from broker.core.withdrawals import KEPT_MS, Withdrawals
from schemas.ledger import Doubt, LedgerRecord, Part, Snapshot, Written, decode_ledger, encode_ledger
from schemas.records import Ready, SendOutcome, Settle, Withdraw, decode_sends, encode
from schemas.settings import Number, SecretSource
from tests.core.conversation import (
    NUMBER,
    PHONE,
    SETTINGS,
    WABA,
    Story,
    codes,
    delivered,
    outcome,
    readies,
    request,
    send_id,
    settles,
)
from tests.core.test_consent import preference
from tests.core.test_sender import ACCEPTED, WALL, at, call, error, ready, restored, through
from tests.core.test_sender import NUMBER as SENDER
from tests.core.town import Ids, Town, webhook

OTHER = "106540352242999"
SECOND = Number(phone_number_id=OTHER, waba_id=WABA, token=SecretSource(env="TOKEN"), slot=5)
TWO = replace(SETTINGS, numbers=[*SETTINGS.numbers, SECOND])
"""A second number of the brand's, at another slot."""


def withdrawn(commands: list[Command]) -> list[tuple[int, Withdraw]]:
    """What senders are told not to begin, with the slot they are told it at."""
    return [
        (command.slot, command.record)
        for command in commands
        if isinstance(command, Dispatch) and isinstance(command.record, Withdraw)
    ]


def names(commands: list[Command]) -> list[str]:
    """Their ids."""
    return [record.send_id for _, record in withdrawn(commands)]


def promoted(story: Story, *sends: str) -> None:
    """A campaign asks for some sends, which wait at their sender from now on."""
    for name in sends:
        story.take(request(name, story.now, send_class="campaign", template="summer"))
        assert [one.send_id for one in readies(story.commands)] == [send_id(name)]


# What the customer stage withdraws


def test_a_stop_withdraws_the_marketing_that_waits_and_nothing_else() -> None:
    """A campaign may wait for hours; a reply, and what they bought, still comes."""
    story = Story()
    story.writes()
    promoted(story, "offer", "news")
    [asked] = [one for one in readies(story.told) if one.send_id == send_id("offer")]
    story.take(replace(request("gift", story.now, template="gift"), marketing=True))
    story.take(request("answer", story.now))
    story.take(request("parcel", story.now, send_class="transactional", template="parcel"))
    story.writes("word", type="text", text={"body": "Stop!"})
    assert names(story.commands) == [send_id(name) for name in ("offer", "news", "gift")]
    slot, first = withdrawn(story.commands)[0]
    assert (slot, first) == (3, Withdraw(asked.send_id, 1, NUMBER, asked.customer, asked.not_after, "reply"))
    assert codes(story.commands) == [], "nobody is told before it is certain that they did not go"


def test_what_is_settled_in_doubt_or_withdrawn_already_is_not_withdrawn() -> None:
    """A doubt ends by a status or is given up; what was accepted is at Meta."""
    story = Story()
    story.writes()
    promoted(story, "gone", "doubtful", "waits")
    story.take(outcome("gone", "accepted", story.now, lane="campaign"))
    story.take(outcome("doubtful", "in_doubt", story.now, lane="campaign"))
    assert names(story.take(preference("stop", story.now + 1_000), after_ms=1_000)) == [send_id("waits")]
    assert names(story.take(preference("resume", story.now + 1_000), after_ms=1_000)) == []
    assert names(story.take(preference("stop", story.now + 1_000), after_ms=1_000)) == []


def test_a_withdrawal_that_is_reported_is_a_failed_status_and_no_new_stop() -> None:
    """The bot hears 131050, as from Meta. If they said start meanwhile, that counts: our own words prove nothing."""
    story = Story()
    promoted(story, "offer")
    story.take(preference("stop", story.now + 1_000), after_ms=1_000)
    story.take(preference("resume", story.now + 1_000), after_ms=1_000)
    said = replace(outcome("offer", "refused", story.now, lane="campaign", code=131050), called_at=0)
    story.take(said, after_ms=1_000)
    [failed] = [one for one in delivered(story.commands) if one.get("status") == "failed"]
    assert (failed["id"], failed["errors"][0]["code"]) == (send_id("offer"), 131050)
    assert story.customer.sends == []
    assert [one.stopped for one in story.customer.consent] == [True, False]
    story.take(said)
    assert codes(story.commands) == [], "told once"
    promoted(story, "another")


def test_meta_refusing_one_send_withdraws_the_others_only() -> None:
    """131050 is news of a stop; the send it was said of is over."""
    story = Story()
    promoted(story, "first", "second", "third")
    story.take(outcome("first", "refused", story.now, lane="campaign", code=131050))
    assert names(story.commands) == [send_id("second"), send_id("third")]


def test_a_second_attempt_that_is_withdrawn_may_have_arrived_with_the_first() -> None:
    """Its bot is told that nobody knows, not that it was not sent."""
    story = Story()
    story.writes()
    marketing = request("offer", story.now, template="summer", send_class="transactional")
    story.take(replace(marketing, marketing=True))
    story.take(outcome("offer", "in_doubt", story.now, lane="transactional"))
    story.heard[NUMBER] = story.now + 3_600_000
    story.due(after_ms=3_600_000)
    assert [one.attempt for one in readies(story.commands)] == [2]
    story.take(preference("stop", story.now + 1_000), after_ms=1_000)
    assert [(record.send_id, record.attempt) for _, record in withdrawn(story.commands)] == [(send_id("offer"), 2)]
    said = replace(outcome("offer", "refused", story.now, attempt=2, lane="transactional", code=131050), called_at=0)
    story.take(said)
    assert codes(story.commands) == [131000]
    assert settles(story.commands) == []


def test_a_stop_said_to_one_number_withdraws_what_waits_at_others_only_if_it_reaches_them() -> None:
    """By default it reaches all numbers of the portfolio; a brand may keep its businesses apart."""
    for scope, expected in (("portfolio", [(3, "here"), (5, "there")]), ("number", [(3, "here")])):
        story = Story(replace(context_of(TWO), consent_scope=scope))
        for name, number in (("here", NUMBER), ("there", OTHER)):
            story.take(request(name, story.now, send_class="campaign", template="summer", number=number))
        story.take(preference("stop", story.now + 1_000), after_ms=1_000)
        told = [(slot, record.send_id) for slot, record in withdrawn(story.commands)]
        assert told == [(slot, send_id(name)) for slot, name in expected]


def test_a_stop_under_one_key_withdraws_what_waits_under_the_other_when_they_become_one() -> None:
    """They are one person: the phone said stop, and the campaign goes to the BSUID."""
    for first, second in (("US.13", PHONE), (PHONE, "US.13")):
        town = Town(1, Random(1))
        town.append(f"main:{first}", replace(town.request("offer", f"main:{first}"), marketing=True))
        del town.logs[0][0]  # the same, without being marketing
        says = {"id": "wamid.1", "type": "text", "text": {"body": "stop"}}
        town.receive(webhook(says, Ids(bsuid=second) if second == "US.13" else Ids(second), town.now))
        town.drain()
        assert (len(town.handed), town.withdrawn) == (1, [])
        says = {"id": "wamid.2", "type": "text", "text": {"body": "hello"}}
        town.receive(webhook(says, Ids(PHONE, "US.13"), town.now))
        town.drain()
        [withdrawn] = town.withdrawn
        assert (withdrawn.send_id, withdrawn.customer) == (send_id("offer"), f"main:{first}")


def test_a_state_of_before_reads_and_its_sends_are_withdrawn() -> None:
    """A send that an older version admitted waits like any other."""
    story = Story()
    promoted(story, "offer")
    assert story.packed is not None
    tree = msgspec.msgpack.decode(story.packed)
    assert tree[5][0].pop() == 0
    story.packed = msgspec.msgpack.encode(tree)
    assert names(story.take(preference("stop", story.now))) == [send_id("offer")]


# What the slot makes of it


def offer(name: str = "c1", customer: str = "main:1", attempt: int = 1) -> Ready:
    """A campaign's send that waits."""
    return ready(name, customer, "campaign", attempt, not_after=WALL + 3_600_000)


def withdraw(name: str = "c1", customer: str = "main:1", attempt: int = 1) -> Withdraw:
    """Its withdrawal."""
    return Withdraw(name, attempt, SENDER, customer, WALL + 3_600_000)


def step(slot: Slot, now_s: float) -> tuple[list[LedgerRecord], list[Send], list[Report]]:
    """Write one step; return what the ledger has of it, whose calls begin, and what it reports."""
    plan = slot.plan(at(now_s), may_intend=True, is_snapshot_due=False)
    assert plan is not None
    return plan.records, plan.sends, slot.written(plan, at(now_s))


def told(reports: list[Report]) -> list[tuple[str, str, int, int]]:
    """What reports say: send, outcome, code, and when it was called."""
    said = [report.outcome for report in reports if isinstance(report.outcome, SendOutcome)]
    return [(one.send_id, one.outcome, one.code, one.called_at) for one in said]


def test_a_queued_send_ends_at_once_without_an_intent_and_the_next_goes() -> None:
    """At once, whatever stops the number: its bot need not wait for it to run again."""
    slot, _ = restored()
    slot.take("campaign", 0, offer(), at(2))
    slot.take("campaign", 1, offer("other", "main:2"), at(2))
    slot.take("reply", 0, withdraw(), at(2))
    [written], sends, reports = step(slot, 2)
    assert isinstance(written, Written)
    assert [one.send_id for one in written.intents] == ["other"]
    assert [one.send_id for one in written.withdrawn] == ["c1"]
    assert [send.ready.send_id for send in sends] == ["other"]
    assert told(reports) == [("c1", "refused", 131050, 0)]
    assert slot.pending("campaign") == 2
    slot.landed(reports[0], at(2))
    assert slot.pending("campaign") == 1
    slot.take("reply", 1, ready("r1"), at(3))
    assert [send.ready.send_id for send in step(slot, 9)[1]] == ["r1"]


def test_a_send_that_is_read_after_its_withdrawal_ends_then() -> None:
    """Two lanes have no order among each other; and what memory has no room for is read hours later."""
    slot, _ = restored()
    slot.take("reply", 0, withdraw(), at(2))
    through(slot, at(2))
    slot.take("campaign", 0, offer(), at(3))
    _, sends, reports = step(slot, 3)
    assert (sends, told(reports)) == ([], [("c1", "refused", 131050, 0)])
    slot.landed(reports[0], at(3))
    slot.take("campaign", 1, offer("c1", attempt=2), at(4))
    assert [send.ready.attempt for send in step(slot, 4)[1]] == [2], "another attempt was asked for after a start"


def test_what_is_under_way_goes_on_unless_it_comes_back() -> None:
    """A call that Meta throttled was not made for anybody: what comes back to the queue does not begin again."""
    for code, expected in ((0, [("c1", "accepted", 0)]), (130429, [("c1", "refused", 131050)])):
        slot, _ = restored()
        slot.take("campaign", 0, offer(), at(2))
        _, [send], _ = step(slot, 2)
        call(slot.numbers[SENDER], send, at(2))
        slot.take("reply", 0, withdraw(), at(2.1))
        report = slot.answered(send, error(code) if code else ACCEPTED, b"", at(2.2), 0.5)
        if report is not None:
            slot.landed(report, at(2.2))
        _, sends, reports = step(slot, 30)
        assert sends == []
        said = told([*([report] if report is not None else []), *reports])
        assert [one[:3] for one in said] == expected


def test_an_intended_send_gets_no_permit_any_more() -> None:
    """The permit is the last thing before the bytes leave: until then nothing has begun."""
    slot, _ = restored()
    slot.take("campaign", 0, offer(), at(2))
    _, [send], _ = step(slot, 2)
    slot.take("reply", 0, withdraw(), at(2.1))
    permit = slot.numbers[SENDER].permit(send, at(2.1), at(2).monotonic, is_held=True)
    assert permit.name == "VOID"
    slot.void(send, at(2.1))
    records, sends, reports = step(slot, 2.2)
    assert (sends, told(reports)) == ([], [("c1", "refused", 131050, 0)])
    assert slot.numbers[SENDER].ahead == 0
    assert isinstance(records[0], Written)
    assert records[0].intents == [], "nothing is left that a new owner would have to doubt"


def test_a_step_that_was_refused_takes_nothing_withdrawn_along() -> None:
    """Its sends go back to their queues, and there this one ends."""
    slot, _ = restored()
    slot.take("campaign", 0, offer(), at(2))
    plan = slot.plan(at(2), may_intend=True, is_snapshot_due=False)
    assert plan is not None
    slot.take("reply", 0, withdraw(), at(2))
    slot.undone(plan, at(2))
    _, sends, reports = step(slot, 2.5)
    assert (sends, told(reports)) == ([], [("c1", "refused", 131050, 0)])


def test_a_send_in_doubt_or_done_is_not_touched() -> None:
    """Its withdrawal came too late: it is forgotten at once, and the doubt ends as doubts do."""
    slot, _ = restored()
    slot.take("campaign", 0, offer(), at(2))
    slot.take("campaign", 1, offer("c2", "main:2"), at(2))
    _, sends, _ = step(slot, 2)
    for send, verdict in zip(sends, (error(131000), ACCEPTED), strict=True):
        call(slot.numbers[SENDER], send, at(2))
        report = slot.answered(send, verdict, b"", at(2.1), 0.5)
        assert report is not None
        slot.landed(report, at(2.1))
    through(slot, at(2.2))
    slot.take("reply", 0, withdraw(), at(3))
    slot.take("reply", 1, withdraw("c2", "main:2"), at(3))
    [written], sends, reports = step(slot, 3)
    assert isinstance(written, Written)
    assert (written.withdrawn, sends, reports) == ([], [], [])
    slot.take("campaign", 2, Settle("c1", SENDER, "main:1", "campaign"), at(4))
    slot.take("campaign", 3, offer("c3"), at(4))
    assert [send.ready.send_id for send in step(slot, 10)[1]] == ["c3"]


def test_an_intent_whose_owner_died_is_in_doubt_though_withdrawn() -> None:
    """Nobody knows whether it went out."""
    slot, _ = restored()
    slot.take("campaign", 0, offer(), at(2))
    written = through(slot, at(2))
    after, reports = restored(*written, offsets={"campaign": 0, "reply": 0}, now=at(5))
    assert [one[:2] for one in told(reports)] == [("c1", "in_doubt")]
    after.take("reply", 0, withdraw(), at(5))
    after.take("campaign", 0, offer(), at(5))
    assert step(after, 7)[1:] == ([], [])


def test_a_new_owner_knows_what_is_withdrawn_from_journal_and_from_snapshot() -> None:
    """The lane's position is past the withdrawal: it is not read again, and the send is."""
    slot, _ = restored()
    slot.take("reply", 0, withdraw(), at(2))
    journal = through(slot, at(2))
    snapshot = through(slot, at(3), is_snapshot_due=True)
    assert isinstance(snapshot[0], Snapshot)
    for ledger in (journal, snapshot, [*snapshot, Written([], [], [])]):
        after, _ = restored(*ledger, offsets={"reply": 1, "campaign": 0}, now=at(9))
        after.take("campaign", 0, offer(), at(9))
        records, sends, reports = step(after, 11)
        assert (sends, told(reports)) == ([], [("c1", "refused", 131050, 0)])
        again, _ = restored(*ledger, *records, offsets={"reply": 1, "campaign": 0}, now=at(12))
        again.take("campaign", 0, offer(), at(12))
        _, sends, reports = step(again, 14)
        assert (sends, told(reports)) == ([], [("c1", "refused", 131050, 0)]), "its owner died before it could report"
        again.landed(reports[0], at(14))
        done = through(again, at(15))
        last, _ = restored(*ledger, *done, offsets={"reply": 1, "campaign": 1}, now=at(16))
        last.take("campaign", 1, offer(), at(16))
        assert step(last, 18)[1:] == ([], []), "a record that stands twice is ended once"
        assert len(through(last, at(19), is_snapshot_due=True)) == 1, "and nothing is remembered of it"


def test_what_is_over_or_too_late_is_forgotten() -> None:
    """The memory holds what may still be read, not a history."""
    slot, _ = restored()
    for n in range(3):
        slot.take("reply", n, withdraw(f"c{n}", f"main:{n}"), at(2))
    slot.take("campaign", 0, offer("c0", "main:0"), at(2))
    _, _, reports = step(slot, 2)
    slot.landed(reports[0], at(2))
    [head, part] = through(slot, at(3), is_snapshot_due=True)
    assert isinstance(head, Snapshot)
    assert isinstance(part, Part)
    assert [one.send_id for one in part.withdrawn] == ["c1", "c2"]
    late_s = (3_600_000 + KEPT_MS) / 1_000 + 1
    assert len(through(slot, at(late_s), is_snapshot_due=True)) == 1


def test_a_lane_full_of_withdrawals_makes_no_record_that_is_too_large() -> None:
    """An owner that begins after hours reads them all at once, before its first step."""
    slot, _ = restored()
    names = [f"c{n}" for n in range(2 * PART_MAX + 1)]
    for offset, name in enumerate(names):
        slot.take("reply", offset, withdraw(name), at(2))
    journal, snapshot = through(slot, at(2)), through(slot, at(3), is_snapshot_due=True)
    for ledger in (journal, snapshot):
        assert max(len(encode_ledger(record)) for record in ledger) < 500_000
        after, _ = restored(*ledger, offsets={"reply": len(names), "campaign": 0}, now=at(9))
        for offset, name in enumerate(names[:: PART_MAX // 2]):
            after.take("campaign", offset, offer(name, f"main:{name}"), at(9))
        assert len(step(after, 11)[2]) == 5


def test_the_memory_is_bounded() -> None:
    """The oldest goes first; what a step has not written yet is still written."""
    known = Withdrawals()
    for n in range(withdrawals.WITHDRAWN_MAX + 10):
        known.add(withdraw(f"c{n}"))
    assert len(known) == withdrawals.WITHDRAWN_MAX
    assert not known.covers(offer("c9"))
    assert known.covers(offer("c10"))
    assert len(known.news()) == withdrawals.WITHDRAWN_MAX + 10


def test_a_withdrawal_follows_its_number_to_another_slot() -> None:
    """As its send does, in whatever order; of a number that was removed there is nothing left to withdraw."""
    slot, _ = restored()
    moved = replace(withdraw(), phone_number_id="elsewhere")
    slot.take("reply", 0, moved, at(2))
    slot.take("reply", 1, replace(withdraw(), phone_number_id="gone"), at(2))
    plan = slot.plan(at(2), may_intend=True, is_snapshot_due=False)
    assert plan is not None
    assert [(one.lane, one.slot, one.record) for one in plan.forwards] == [("reply", 5, moved)]
    assert plan.offsets["reply"] == 2


def test_records_of_before_decode_and_new_ones_do() -> None:
    """A ledger written by an older version is read; and a withdrawal stands on the lane of replies."""
    old = [["step", [], [], [], {}, []], ["snapshot", WALL, [], b"", {}, {}, []], ["part", [], []]]
    for tree in old:
        record = decode_ledger(encode_ledger(tree))
        assert getattr(record, "withdrawn", []) == []
    doubt = Doubt(SENDER, "main:1", "reply", "r1", 1)
    assert decode_ledger(encode_ledger(Part([], [doubt]))) == Part([], [doubt], [])
    assert decode_sends(encode(withdraw())) == withdraw()
