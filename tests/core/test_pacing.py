"""Pacing holds a number to its tier in every second, and a pair to Meta's own examples."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.pacing import (
    FREEZE_FIRST_S,
    FREEZE_MAX_S,
    NO_DEBT,
    PAIR_BURST_MAX,
    PAIR_DEBT_MAX_MS,
    WINDOW_S,
    PairDebt,
    Window,
    carried,
    is_settled,
    pair_open_at,
    pair_spent,
    pair_struck,
    pair_surely_open_at,
)

TIERS = (20, 80, 1_000)


def busiest_second(instants: list[float]) -> int:
    """Return the most messages any window [t, t + 1 s) holds: the referee, written apart from what it judges."""
    busiest, first = 0, 0
    for last, at in enumerate(instants):
        while instants[first] <= at - 1.0:
            first += 1
        busiest = max(busiest, last - first + 1)
    return busiest


def drain(window: Window, now: float, until: float, rng: random.Random, lateness_s: float) -> list[float]:
    """Take permits under endless backlog, by a timer that is late by up to `lateness_s`. Return their instants."""
    instants = []
    asked_at = now
    while now < until:
        if window.take(now, asked_at):
            instants.append(now)
        else:
            opens_at = window.open_at(now)
            assert opens_at > now, "a window that refuses must say when to come back"
            now = opens_at + rng.uniform(0, lateness_s)
    return instants


@pytest.mark.parametrize("tier", TIERS)
def test_no_permit_is_granted_for_a_window_after_a_takeover(tier: int) -> None:
    """The predecessor may have used the whole tier a moment ago; two owners must not exceed it together."""
    window = Window(tier, now=100.0)
    assert window.open_at(100.0) == 100.0 + WINDOW_S
    assert not window.take(100.0 + WINDOW_S - 0.001, asked_at=100.0)
    assert window.take(100.0 + WINDOW_S, asked_at=100.0)


@pytest.mark.parametrize("tier", TIERS)
def test_a_backlog_uses_at_least_93_percent_of_the_tier_and_never_more_than_all(tier: int) -> None:
    """Promise 4, with timers late by up to 2 ms."""
    window = Window(tier, now=0.0)
    instants = drain(window, WINDOW_S, WINDOW_S + 30.0, random.Random(1), 0.002)
    assert busiest_second(instants) <= tier
    assert len(instants) / 30.0 >= 0.93 * tier


@pytest.mark.parametrize("tier", TIERS)
def test_under_backlog_permits_are_an_interval_apart(tier: int) -> None:
    """Else a campaign takes the second's worth at once and a reply waits for the rest of it: promise 5."""
    window = Window(tier, now=0.0)
    instants = drain(window, WINDOW_S, WINDOW_S + 10.0, random.Random(1), 0.0)
    gaps = [later - earlier for earlier, later in itertools.pairwise(instants)]
    assert max(gaps) <= 1.5 * WINDOW_S / tier
    assert min(gaps) >= 0.5 * WINDOW_S / tier


@given(
    st.sampled_from(TIERS),
    st.integers(0, 2**32),
    st.lists(
        st.sampled_from(["run", "stall", "takeover", "throttle", "idle", "freeze", "inbound"]), min_size=1, max_size=12
    ),
)
def test_no_second_exceeds_the_tier_whatever_happens(tier: int, seed: int, events: list[str]) -> None:
    """Promise 4 and I4: stalls, takeovers, throttles, idleness and inbound, in any order."""
    rng = random.Random(seed)
    now, window, instants, inbound = 0.0, Window(tier, 0.0), list[float](), list[float]()
    for event in events:
        match event:
            case "run":
                instants += drain(window, now, now + 1.5, rng, 0.01)
                now += 1.5
            case "stall":
                now += rng.uniform(0.1, 12.0)
            case "takeover":
                now += rng.uniform(0.0, 0.2)
                window = Window(tier, now)
                inbound.clear()
            case "throttle":
                window.throttled(now)
            case "idle":
                now += rng.uniform(0, 3)
            case "freeze":
                window.freeze(now)
            case "inbound":
                count = rng.randint(1, tier)
                window.charge_inbound(count, now)
                inbound += [now] * count
    assert instants == sorted(instants)
    assert busiest_second(instants) <= tier


def test_bytes_that_left_late_count_from_when_they_left() -> None:
    """A loop that stalls right after a permit: the socket got its bytes only then, and the window must know."""
    window = Window(2, now=0.0)
    assert window.take(10.0, asked_at=9.0)
    window.left(10.0)
    assert window.take(10.52, asked_at=9.0)
    window.left(22.0)
    assert window.used(22.5) == 1
    assert window.take(22.5, asked_at=9.0)
    assert not window.take(23.03, asked_at=9.0), "the one that left at 22.0 is still in its window"
    assert window.take(23.04, asked_at=9.0)


def test_inbound_that_is_known_is_charged() -> None:
    """Meta counts what a number receives: 80 in and nothing may go out in that second."""
    window = Window(80, now=0.0)
    now = 10.0
    window.charge_inbound(80, now)
    assert window.open_at(now) == pytest.approx(now + WINDOW_S)
    assert not window.take(now + 1.0, asked_at=now)


def play_inbound(tier: int, until: float, seed: int) -> tuple[int, int, int]:
    """Send under backlog with 30 % inbound. Return sends, refusals and inbound.

    Meta counts inbound at once, we 250 ms late."""
    rng = random.Random(seed)
    arrivals, at = [], 0.0
    while at < until + 1.0:
        at += rng.expovariate(0.3 * tier)
        arrivals.append(at)
    window = Window(tier, now=0.0)
    counted: list[float] = []  # what Meta counted: inbound, and our sends
    sent = refused = told = known = 0
    now = WINDOW_S
    while now < until:
        while told < len(arrivals) and arrivals[told] <= now:
            counted.append(arrivals[told])
            told += 1
        unseen_until = math.floor((now - 0.15) * 10) / 10  # digests of 100 ms that are 150 ms on their way
        newly = sum(1 for arrival in arrivals[known:told] if arrival <= unseen_until)
        window.charge_inbound(newly, now)
        known += newly
        if window.take(now, asked_at=0.0):
            counted = [instant for instant in counted if instant > now - 1.0]
            if len(counted) >= tier:
                refused += 1
            else:
                counted.append(now)
                sent += 1
        now = max(now + 0.000_5, min(window.open_at(now), now + 0.01))
    return sent, refused, told


@pytest.mark.parametrize(("tier", "used_min", "minutes"), [(20, 0.64, 15), (80, 0.82, 5), (1_000, 0.92, 1)])
def test_with_a_third_inbound_hardly_a_send_is_refused_and_the_tier_is_used(
    tier: int, used_min: float, minutes: int
) -> None:
    """Inbound cannot be held back, only foreseen."""
    played = [play_inbound(tier, 60.0, seed) for seed in range(minutes)]
    sent, refused, told = (sum(each) for each in zip(*played, strict=True))
    assert refused <= 0.000_5 * sent
    assert (sent + told) / minutes / (60.0 - WINDOW_S) >= used_min * tier


def test_a_new_owner_foresees_inbound_from_its_first_seconds_on() -> None:
    """A mean of 5 s that begins at nothing let 1 send of 115 be refused after each takeover at 20 mps."""
    played = [play_inbound(20, 8.0, seed) for seed in range(30)]
    assert sum(refused for _, refused, _ in played) <= 0.002 * sum(sent for sent, _, _ in played)


def test_a_flood_of_inbound_stops_replies_only_while_it_lasts() -> None:
    """What was received a window ago is forgotten, however much it was; the reserve leaves half of the rest."""
    window = Window(80, now=0.0)
    for tenth in range(100):
        window.charge_inbound(200, 10.0 + tenth / 10)
    assert not window.take(20.0, asked_at=10.0)
    assert window.take(21.2, asked_at=10.0)


def test_130429_slows_a_number_down_at_most_once_a_second_and_it_regains_its_rate() -> None:
    """Hundreds of calls are under way when the first 130429 comes; each must not count again."""
    window = Window(80, now=0.0)
    for _ in range(200):
        window.throttled(10.0)
    assert window.limit(10.0) == 56
    window.throttled(11.0)
    assert window.limit(11.0) == 39
    assert window.limit(13.0) == 40
    assert window.limit(11.0 + 2 * 52) == 80
    for second in range(20):
        window.throttled(200.0 + second)
    assert window.limit(219.0) == 4


def test_131057_freezes_longer_each_time_and_answers_of_running_calls_do_not_count() -> None:
    """An upgrade takes up to a minute; a number that is accepted from again begins anew."""
    window = Window(80, now=0.0)
    assert window.freeze(10.0) == 10.0 + FREEZE_FIRST_S
    assert window.freeze(10.3) == 10.0 + FREEZE_FIRST_S
    assert not window.take(20.0, asked_at=10.0)
    assert window.freeze(26.0) == 26.0 + 2 * FREEZE_FIRST_S
    assert window.freeze(60.0) == 60.0 + FREEZE_MAX_S
    assert window.freeze(130.0) == 130.0 + FREEZE_MAX_S
    window.thawed()
    assert window.freeze(200.0) == 200.0 + FREEZE_FIRST_S


def spend(debt: PairDebt, now: int) -> PairDebt | int:
    """Send now if the pair allows it, else return until when to hold."""
    opens_at = pair_open_at(debt, now)
    return pair_spent(debt, now) if opens_at <= now else opens_at


def burst(count: int, now: int) -> PairDebt:
    """Return the debt after so many sends at once."""
    debt = NO_DEBT
    for _ in range(count):
        after = spend(debt, now)
        assert isinstance(after, PairDebt)
        debt = after
    return debt


def test_one_message_is_free_after_six_seconds() -> None:
    """The sustained rate: ten a minute."""
    debt = burst(1, 1_000_000)
    assert is_settled(debt, 1_006_000)
    for minute in range(10):
        now = 1_006_000 + 6_000 * minute
        after = spend(debt, now)
        assert isinstance(after, PairDebt)
        debt = after


def test_a_burst_is_repaid_before_the_next_send() -> None:
    """Twenty quick sends cost two minutes of silence: Meta's own example."""
    debt = burst(20, 0)
    assert spend(debt, 6_001) == 120_000
    assert spend(debt, 119_999) == 120_000
    assert isinstance(spend(debt, 120_000), PairDebt)


def test_a_burst_ends_at_45() -> None:
    """The 46th waits until all 45 are repaid."""
    assert spend(burst(PAIR_BURST_MAX, 0), 5_000) == 270_000


@given(st.lists(st.integers(0, 30_000), max_size=200))
def test_a_pair_never_has_more_than_its_quota(gaps: list[int]) -> None:
    """I4: in any stretch that begins with a burst of n, n x 6 s pass before the next burst; never over 45 in 6 s."""
    debt, now, sent = NO_DEBT, 1_000_000, list[int]()
    for gap in gaps:
        now += gap
        after = spend(debt, now)
        if isinstance(after, PairDebt):
            sent.append(now)
            debt = after
        else:
            assert now < after <= now + PAIR_DEBT_MAX_MS
    for first, at in enumerate(sent):
        assert sum(1 for other in sent[first:] if other <= at + 6_000) <= PAIR_BURST_MAX + 1
    credit, last = 0.0, None  # Meta's quota as a bank that starts full: a message a 6 s, 45 borrowed
    for at in sent:
        credit = min(45.0, credit + (0 if last is None else (at - last) / 6_000)) if last is not None else 45.0
        credit -= 1
        last = at
        assert credit >= -1e-9


def test_131056_waits_longer_each_time_and_is_forgotten_by_quiet_minutes() -> None:
    """Meta: retry after 4^X s, X = 0, 1, 2 and growing with each failure."""
    debt, now, waits = NO_DEBT, 1_000_000, list[int]()
    for _ in range(6):
        debt = pair_struck(debt, now)
        waits.append(debt.free_at - now)
        now = debt.free_at
    assert waits[:4] == [1_000, 4_000, 16_000, 64_000]
    assert max(waits) <= 256_000
    assert not is_settled(debt, now)
    assert is_settled(debt, now + 5 * 60_000)


def test_a_struck_pair_has_no_burst() -> None:
    """Meta counts something we do not see; borrowing more would draw the next 131056."""
    debt = pair_spent(pair_struck(NO_DEBT, 1_000_000), 1_001_000)
    assert pair_open_at(debt, 1_001_001) == 1_007_000


@given(st.integers(0, 60), st.integers(0, 6), st.integers(-7_200_000, 7_200_000), st.integers(0, 400_000))
def test_a_debt_survives_a_clock_that_steps(count: int, strikes: int, by: int, later: int) -> None:
    """I4 under clocks that are an hour off: never longer than the debt's own maximum, never negative."""
    debt, now = NO_DEBT, 1_700_000_000_000
    for _ in range(count):
        debt = pair_spent(debt, now)
    for _ in range(strikes):
        debt = pair_struck(debt, now)
    there = now + by + later
    moved = carried(debt, 0, there)
    assert moved.count == debt.count
    left = pair_open_at(moved, there) - there
    assert 0 <= left <= PAIR_DEBT_MAX_MS
    assert moved.since <= there
    assert moved.struck_at <= there
    if by == 0:
        assert left == max(0, debt.free_at - there)


def test_a_debt_goes_to_another_clock_and_back() -> None:
    """In memory a debt is monotonic, in the ledger it is wall time."""
    debt = burst(3, 50_000)
    there = carried(debt, 1_700_000_000_000, 1_700_000_050_500)
    assert there.free_at == 1_700_000_068_000
    back = carried(there, -1_700_000_000_000 + 9_000, 60_000)
    assert back.free_at == 68_000 + 9_000


def test_a_burst_ends_early_and_a_debt_late_by_what_the_ways_may_differ() -> None:
    """Meta counts arrivals: a slow first call and a fast last one must not make a send that was allowed a refusal."""
    debt = burst(3, 1_000_000)
    assert pair_surely_open_at(debt, 1_000_000) == 1_000_000
    assert pair_surely_open_at(debt, 1_005_500) == 1_005_500
    assert pair_surely_open_at(debt, 1_005_501) == 1_018_500
    assert pair_surely_open_at(debt, 1_018_000) == 1_018_500
    assert pair_surely_open_at(debt, 1_018_500) == 1_018_500


def test_a_send_right_when_a_debt_is_repaid_begins_no_new_burst() -> None:
    """Meta may have seen it come before the debt was repaid, and would then refuse what follows as a second burst."""
    debt = pair_spent(pair_spent(NO_DEBT, 90_335), 96_335)
    assert pair_surely_open_at(debt, 96_833) > 102_335
