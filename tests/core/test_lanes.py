"""Lanes: replies first, nobody starves, nothing is wasted. Shares and delays are measured, not believed."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from broker.core.lanes import FLOORS_PERCENT, LanePlanner, Ring
from schemas.records import LANES, Lane

ALL: tuple[Lane, ...] = LANES


def turns(planner: LanePlanner, waiting: tuple[Lane, ...], count: int) -> list[Lane]:
    """Return the next turns while the same lanes always wait."""
    picked = []
    for _ in range(count):
        lane = planner.pick(waiting)
        assert lane is not None
        picked.append(lane)
    return picked


def test_replies_that_never_end_leave_the_others_their_floors() -> None:
    """Promise 5: replies never starve a campaign."""
    shares = Counter(turns(LanePlanner(), ALL, 10_000))
    assert 0.02 * 10_000 - 1 <= shares["campaign"] <= 0.021 * 10_000
    assert 0.15 * 10_000 - 1 <= shares["transactional"] <= 0.151 * 10_000
    assert shares["reply"] >= 0.82 * 10_000


def test_a_waiting_reply_is_passed_by_one_turn_at_most() -> None:
    """Promise 5: a campaign never delays a reply by more than one send interval. Neither do both others together."""
    picked = turns(LanePlanner(), ALL, 5_000)
    assert all("reply" in (one, two) for one, two in itertools.pairwise(picked))


@given(st.lists(st.sampled_from(["reply", "transactional", "campaign"]), max_size=60), st.integers(0, 200))
def test_a_reply_that_arrives_waits_for_one_turn_at_most(history: list[Lane], campaign_turns: int) -> None:
    """Whatever went before, also a long campaign that had everything."""
    planner = LanePlanner()
    for lane in history:
        planner.pick((lane,))
    turns(planner, ("transactional", "campaign"), campaign_turns)
    assert "reply" in turns(planner, ALL, 2)


def test_what_replies_leave_goes_three_to_one() -> None:
    """An order confirmation is worth more than a campaign's message, and both go on."""
    shares = Counter(turns(LanePlanner(), ("transactional", "campaign"), 400))
    assert shares == {"transactional": 300, "campaign": 100}


@given(st.lists(st.sets(st.sampled_from(ALL)), max_size=300))
def test_no_turn_is_lost_and_none_goes_to_who_does_not_wait(rounds: list[set[Lane]]) -> None:
    """Work-conserving: the tier is paid for."""
    planner = LanePlanner()
    for waiting in rounds:
        lane = planner.pick(waiting)
        assert (lane is None) == (not waiting)
        assert lane is None or lane in waiting


@given(st.lists(st.booleans(), min_size=100, max_size=600))
def test_a_campaign_that_waits_has_its_share_of_any_hundred_turns(replies: list[bool]) -> None:
    """However replies come and go, two of a hundred turns are the campaign's."""
    planner = LanePlanner()
    waiting_reply: tuple[Lane, ...] = ("reply", "campaign")
    picked = [planner.pick(waiting_reply if reply else ("campaign",)) for reply in replies]
    for start in range(len(picked) - 102):
        assert picked[start : start + 102].count("campaign") >= FLOORS_PERCENT["campaign"]


def test_who_did_not_wait_has_nothing_saved() -> None:
    """A campaign that begins after hours of silence must not have a burst in front of replies."""
    planner = LanePlanner()
    turns(planner, ("reply",), 10_000)
    assert turns(planner, ALL, 5).count("campaign") == 0
    assert Counter(turns(planner, ALL, 100))["campaign"] <= 3


def test_customers_take_turns() -> None:
    """One customer with a hundred sends does not make the next one wait for all of them."""
    ring = Ring()
    for customer in ("a", "b", "c", "a"):
        ring.add(customer)
    assert len(ring) == 3
    assert "b" in ring
    served = []
    for _ in range(6):
        customer = ring.pop()
        served.append(customer)
        ring.add(customer)
    assert served == ["a", "b", "c", "a", "b", "c"]
    ring.discard("b")
    ring.discard("nobody")
    assert [ring.pop(), ring.pop()] == ["a", "c"]
