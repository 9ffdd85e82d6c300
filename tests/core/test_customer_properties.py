"""What holds for a customer's actor in every history, however records are doubled, late or out of order."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from broker.core import dedupe, marketing_rest, window
from broker.core.customer import Command, Deliver, Dispatch, Due, Event, Note, decide, next_due
from broker.core.customer_state import Customer, life_of, pack, unpack
from schemas.records import Item, Ready, SendOutcome, SendRequest, Settle
from tests.core.conversation import (
    CONTEXT,
    KEY,
    NUMBER,
    START,
    Story,
    delivered,
    message,
    outcome,
    readies,
    request,
    send_id,
    settles,
    status,
    wamid,
)

LIVES = ("", "taken", "accepted", "sent", "failed", "delivered", "read", "played")
STATUSES = ("sent", "delivered", "read", "played", "failed")
CLASSES = ("otp", "reply", "transactional", "campaign")
OUTCOMES = ("accepted", "refused", "expired", "in_doubt")
CODES = (131026, marketing_rest.CODE)

names = st.integers(0, 5)
whiles = st.sampled_from((0, 1, 900, 5_000, 11_000, 61_000, 700_000, 30_000_000, window.WINDOW_MS))


class Asked(NamedTuple):
    """A bot asks; it may speak of another send."""

    name: int
    send_class: Any
    template: bool
    of: int | None
    short: bool
    own: bool
    presumed: bool


class Wrote(NamedTuple):
    """The customer writes, perhaps with an odd clock or a tap on a send."""

    name: int
    late_ms: int
    of: int | None


class Status(NamedTuple):
    """Meta reports on a send that was handed over, with or without our line."""

    which: int
    what: Any
    line: bool
    code: int


class Reported(NamedTuple):
    """A sender reports on an attempt that was handed to it."""

    which: int
    what: Any
    code: int


class Looked(NamedTuple):
    """Time passes until something is due, and webhooks of others arrive meanwhile or not."""

    heard: bool


moves = st.one_of(
    st.builds(
        Asked, names, st.sampled_from(CLASSES), st.booleans(), st.none() | names, st.booleans(), st.booleans(),
        st.booleans(),
    ),
    st.builds(Wrote, names, st.sampled_from((0, 1_000, -400_000, 90_000_000)), st.none() | names),
    st.builds(Status, st.integers(0, 20), st.sampled_from(STATUSES), st.booleans(), st.sampled_from(CODES)),
    st.builds(Reported, st.integers(0, 20), st.sampled_from(OUTCOMES), st.sampled_from(CODES)),
    st.builds(Looked, st.booleans()),
)  # fmt: skip
histories = st.lists(st.tuples(moves, whiles), max_size=40)

writes = st.builds(Wrote, names, st.just(0), st.none())
presumed = st.one_of(
    st.builds(
        Asked, names, st.sampled_from(CLASSES), st.just(True), st.none(), st.booleans(), st.just(False), st.just(True)
    ),
    st.builds(Reported, st.integers(0, 20), st.sampled_from(("in_doubt", "accepted")), st.just(CODES[0])),
    st.builds(Looked, st.booleans()),
    writes,
)
templates = st.lists(st.tuples(presumed, whiles), max_size=20)
"""Of templates nobody named the class of, and of doubts about them."""

resting = st.one_of(
    st.builds(
        Asked,
        names,
        st.just("campaign"),
        st.just(True),
        st.none() | names,
        st.just(False),
        st.just(False),
        st.just(True),
    ),
    st.builds(Reported, st.integers(0, 20), st.sampled_from(("refused", "accepted")), st.just(marketing_rest.CODE)),
    writes,
)
sales = st.lists(
    st.tuples(resting, st.sampled_from((0, 60_000, 3_600_000, window.WINDOW_MS // 2, window.WINDOW_MS))), max_size=20
)
"""Of marketing alone, which Meta refuses as too much, or does not."""


class Played(NamedTuple):
    """One thing that happened: when, what, and what was decided."""

    at: int
    event: Event
    commands: list[Command]
    customer: Customer


def play(history: list[tuple[Any, int]]) -> list[Played]:
    """Turn moves into records that could really come: outcomes and statuses only of what was handed to a sender."""
    story, handed, played = Story(), list[Ready](), list[Played]()
    for move, passed in history:
        event = _event(move, story, handed, passed)
        if event is None:
            continue
        commands = list(story.take(event))
        handed += readies(commands)
        played.append(Played(story.now, event, commands, story.customer))
    return played


def _event(move: Any, story: Story, handed: list[Ready], passed: int) -> Event | None:
    if isinstance(move, Looked):
        due_at = next_due(story.customer, story.now)
        story.now = max(story.now + passed, due_at)
        if move.heard:
            story.heard[NUMBER] = story.now
        return Due(dict(story.heard))
    story.now += passed
    now = story.now
    if isinstance(move, Wrote):
        content: dict[str, Any] = {"type": "text", "text": {"body": "Hello"}}
        if move.of is not None:
            content["context"] = {"id": wamid(f"send {move.of}")}
        return message(f"in {move.name}", now - move.late_ms, received_at=now, **content)
    if isinstance(move, Asked):
        body = None if move.of is None else {"type": "text", "context": {"message_id": send_id(f"send {move.of}")}}
        asked = request(
            f"send {move.name}", now, send_class=move.send_class, template="t" if move.template else "", body=body,
            not_after=now + 20_000 if move.short else 0, own="mine" if move.own else None,
        )  # fmt: skip
        return replace(asked, class_presumed=move.presumed and move.template)
    if not handed:
        return None
    ready = handed[move.which % len(handed)]
    (name,) = (f"send {number}" for number in range(6) if send_id(f"send {number}") == ready.send_id)
    own_wamid = wamid(f"{name} {ready.attempt}") if ready.attempt > 1 else wamid(name)
    if isinstance(move, Status):
        return status(name, move.what, now, message_id=own_wamid, line=None if move.line else "", code=move.code)
    return outcome(
        name, move.what, now, attempt=ready.attempt, lane=ready.lane, code=move.code if move.what == "refused" else 0,
        message_id=own_wamid,
    )  # fmt: skip


def facts(commands: list[Command]) -> Counter[Any]:
    """What reaches others, by what makes it the same fact."""
    found: Counter[Any] = Counter()
    for command in commands:
        if isinstance(command, Deliver):
            found[command.sink, command.event.delivery_id, command.event.body] += 1
        elif isinstance(command, Dispatch) and isinstance(command.record, Ready):
            found[command.record] += 1
    return found


def all_of(played: list[Played]) -> list[Command]:
    return [command for one in played for command in one.commands]


def drained(played: list[Played]) -> list[Played]:
    """Let time pass until nothing waits any more. Nobody reports anything, nothing is heard."""
    if not played:
        return played
    story = Story()
    story.now, story.packed = played[-1].at, pack(played[-1].customer)
    for _ in range(1_000):
        due_at = next_due(story.customer, story.now)
        if not due_at:
            return played
        # Nothing is heard, so each look is like the last one: go to where something can happen.
        story.now = max(story.now, due_at, min((send.not_after for send in story.customer.sends), default=due_at))
        event = Due({})
        commands = list(story.take(event))
        played.append(Played(story.now, event, commands, story.customer))
    raise AssertionError("a customer that is never left in peace")


relaxed = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@relaxed
@given(histories)
def test_every_history_is_decided_and_its_state_survives_packing(history: list[tuple[Any, int]]) -> None:
    """A record that crashes is a dead letter and three log lines; a state that changes on its way is a lie."""
    for one in play(history):
        assert unpack(pack(one.customer)) == one.customer


@relaxed
@given(histories, st.data())
def test_records_that_come_again_change_nothing(history: list[tuple[Any, int]], data: st.DataObject) -> None:
    """Receivers, gateways and senders repeat themselves after a crash; Meta does so for a week."""
    once = play(history)
    story, again = Story(), list[Command]()
    for position, one in enumerate(once):
        story.now = one.at
        again += story.take(one.event)
        for back in data.draw(st.lists(st.integers(0, position), max_size=2)):
            repeated = once[position - back].event
            if not isinstance(repeated, Due):
                again += story.take(repeated)
    assert facts(again) == facts(all_of(once))
    if once:
        assert story.customer.sends == once[-1].customer.sends
        assert story.customer.windows == once[-1].customer.windows


@relaxed
@given(histories)
def test_a_sends_life_never_goes_back(history: list[tuple[Any, int]]) -> None:
    """Whatever order statuses and answers come in, for as long as facts are remembered at all."""
    before = [0] * 6
    for one in play(history):
        if one.at - START > dedupe.KEPT_MS:
            break
        for number in range(6):
            rank = LIVES.index(life_of(one.customer, send_id(f"send {number}")))
            assert rank >= before[number]
            before[number] = rank


@relaxed
@given(histories | templates)
def test_every_doubt_is_answered(history: list[tuple[Any, int]]) -> None:
    """Its sender holds the customer's lane until it hears there: it is settled, or the next attempt comes, at some
    time."""
    played = drained(play(history))
    for place, one in enumerate(played):
        if not (isinstance(one.event, SendOutcome) and one.event.outcome == "in_doubt"):
            continue
        doubt = one.event
        later = all_of(played[place:])
        settled = any((settle.send_id, settle.lane) == (doubt.send_id, doubt.lane) for settle in settles(later))
        repeated = any(
            (ready.send_id, ready.lane) == (doubt.send_id, doubt.lane) and ready.attempt > doubt.attempt
            for ready in readies(all_of(played))
        )
        assert settled or repeated
    if played:
        assert played[-1].customer.sends == []
        assert next_due(played[-1].customer, played[-1].at) == 0


@relaxed
@given(histories)
def test_every_request_comes_to_an_end_its_sender_is_told(history: list[tuple[Any, int]]) -> None:
    """Accepted by Meta, or told to have failed: nothing is dropped in silence."""
    played = drained(play(history))
    if not played:
        return
    told = Counter((one["id"], one["status"]) for one in delivered(all_of(played), "bot") if "status" in one)
    for one in played:
        if isinstance(one.event, SendRequest):
            life = life_of(one.customer, one.event.send_id)
            assert life != ""
            end = life_of(played[-1].customer, one.event.send_id)
            assert end != "taken"
            if end == "failed":
                assert told[one.event.send_id, "failed"] == 1
    assert all(count == 1 for count in told.values())


@relaxed
@given(histories)
def test_an_attempt_is_handed_over_once_in_the_order_of_its_lane(history: list[tuple[Any, int]]) -> None:
    """Order within a lane is a promise, and each `Ready` is a message on somebody's phone."""
    played = play(history)
    handed = readies(all_of(played))
    assert len({(ready.send_id, ready.attempt) for ready in handed}) == len(handed)
    asked: dict[str, int] = {}
    for place, one in enumerate(played):
        if isinstance(one.event, SendRequest):
            asked.setdefault(one.event.send_id, place)
    for lane in ("reply", "transactional", "campaign"):
        order = [asked[ready.send_id] for ready in handed if ready.lane == lane and ready.attempt == 1]
        assert order == sorted(order)


@relaxed
@given(histories)
def test_nothing_free_form_is_handed_over_outside_the_window(history: list[tuple[Any, int]]) -> None:
    """Held, repeated or at once: at no time later than the window, as Meta's own timestamps have it."""
    opened_at, seen = 0, set[str]()
    for one in play(history):
        event = one.event
        if isinstance(event, Item) and event.kind == "message" and event.dedupe not in seen:
            seen.add(event.dedupe)
            opened_at = max(opened_at, event.at if event.at <= one.at + window.SKEW_MS_MAX else one.at)
        for ready in readies(one.commands):
            assert one.at < ready.not_after
            if not ready.template:
                assert ready.not_after <= opened_at + window.WINDOW_MS - CONTEXT.window_margin_ms


@relaxed
@given(sales)
def test_no_marketing_is_handed_over_while_it_rests_but_inside_the_window(history: list[tuple[Any, int]]) -> None:
    """New, held or repeated: each would be a call that fails, and counts against the account. Nor may it wait until the
    window has closed."""
    for one in play(history):
        refused_at = one.customer.marketing_refused_at
        for ready in readies(one.commands):
            if not (refused_at and ready.template and ready.send_class == "campaign"):
                continue
            closes_at = window.closes_at(one.customer.windows.get(NUMBER, 0), CONTEXT.window_margin_ms)
            ends_at = refused_at + CONTEXT.marketing_rest_ms
            assert one.at >= ends_at or one.at < closes_at
            assert one.at >= ends_at or ready.not_after <= closes_at or closes_at >= ends_at


@relaxed
@given(histories)
def test_what_one_customer_can_make_us_keep_is_bounded(history: list[tuple[Any, int]]) -> None:
    """Its state is written with every change."""
    for one in play(history):
        assert len(one.customer.sends) <= CONTEXT.waiting_sends_max
        assert len(pack(one.customer)) < 8_000


def test_notes_are_of_the_known_kinds_alone() -> None:
    """A note nobody counts would crash the step that carries it."""
    from broker.core.customer import NOTES
    from workers.customer import _counter

    for what in NOTES:
        assert _counter(what, "test") is not None


def test_the_state_given_is_the_state_returned() -> None:
    """Whoever keeps the committed state keeps its bytes: decisions change what they are given."""
    customer, _ = decide(None, KEY, message("a", START), CONTEXT, START)
    again, commands = decide(customer, KEY, message("b", START), CONTEXT, START)
    assert again is customer
    assert not any(isinstance(command, Note) and command.what == "duplicate" for command in commands)
    assert not any(isinstance(command, Dispatch) and isinstance(command.record, Settle) for command in commands)
