"""A key's allowance: what it lets through, and when it lets through again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.allowance import Allowance


def test_a_second_s_worth_goes_at_once_and_then_one_at_a_time() -> None:
    """A bot that answers a burst of customers is no runaway; one that never stops is."""
    allowance = Allowance(4)
    assert [allowance.take(100.0) for _ in range(4)] == [0.0] * 4
    assert allowance.take(100.0) == pytest.approx(0.25)
    assert allowance.take(100.2) == pytest.approx(0.05)
    assert allowance.take(100.25) == 0.0
    assert allowance.take(100.25) > 0
    assert [allowance.take(200.0) for _ in range(4)] == [0.0] * 4


def test_less_than_one_a_second_is_an_allowance_too() -> None:
    """One a minute means one, and then none for a minute."""
    allowance = Allowance(1 / 60)
    assert allowance.take(0.0) == 0.0
    assert allowance.take(0.0) == pytest.approx(60)
    assert allowance.take(59.9) == pytest.approx(0.1)
    assert allowance.take(60.0) == 0.0


def test_no_allowance_at_all_is_a_mistake() -> None:
    """The settings say 0 for no limit; whoever builds a bucket for it has misread them."""
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="above zero"):
            Allowance(wrong)


@given(st.floats(0.1, 1_000), st.lists(st.floats(0, 2), max_size=200))
def test_no_span_holds_more_than_its_share_and_a_second_s_worth(per_s: float, gaps: list[float]) -> None:
    """Whatever the pattern, and a refusal tells the truth about when to come back."""
    allowance, now, taken = Allowance(per_s), 0.0, []
    for gap in gaps:
        now += gap
        wait_s = allowance.take(now)
        if not wait_s:
            taken.append(now)
        else:
            assert allowance.take(now + wait_s) == 0.0
            now += wait_s
            taken.append(now)
    for i, first in enumerate(taken):
        for j in range(i, len(taken)):
            assert j - i + 1 <= (taken[j] - first) * per_s + max(per_s, 1) + 1e-6
