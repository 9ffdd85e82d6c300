"""How many requests a sink is given at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.core.concurrency import START, Concurrency


def full_round(concurrency: Concurrency) -> None:
    for _ in range(concurrency.limit):
        concurrency.taken(concurrency.limit)


def test_a_recovered_sink_is_met_by_one_and_then_twice_as_many_each_round_up_to_half() -> None:
    """The backlog of an outage must not fell the sink that just came back."""
    concurrency = Concurrency(64)
    concurrency.recovered()
    limits = []
    for _ in range(8):
        limits.append(concurrency.limit)
        full_round(concurrency)
    assert limits == [1, 2, 4, 8, 16, 32, 32, 33]


def test_trouble_halves_it_once_however_many_calls_it_fails() -> None:
    """Sixty failures of one moment are one trouble."""
    concurrency = Concurrency(64)
    for _ in range(20):
        full_round(concurrency)
    assert concurrency.limit == 64
    for _ in range(60):
        concurrency.failed(now=10.0)
    assert concurrency.limit == 32
    concurrency.failed(now=11.0)
    assert concurrency.limit == 16


def test_another_bound_holds_at_once_and_is_grown_into() -> None:
    """An operator who says fewer means now; one who says more means as the sink bears it."""
    concurrency = Concurrency(64)
    for _ in range(20):
        full_round(concurrency)
    concurrency.bound(5)
    assert concurrency.limit == 5
    full_round(concurrency)
    assert concurrency.limit == 5
    concurrency.bound(10)
    assert concurrency.limit == 5
    for _ in range(40):
        full_round(concurrency)
    assert concurrency.limit == 10


def test_a_limit_nobody_reaches_does_not_grow() -> None:
    """An hour of single requests proves nothing about sixty-four."""
    concurrency = Concurrency(64)
    for _ in range(1_000):
        concurrency.taken(in_flight=1)
    assert concurrency.limit == START


@given(limit_max=st.integers(1, 200), moves=st.lists(st.sampled_from(["taken", "failed", "recovered"]), max_size=300))
def test_it_never_leaves_its_bounds(limit_max: int, moves: list[str]) -> None:
    """Below one nothing would move any more; above the maximum the sink's setting is broken."""
    concurrency = Concurrency(limit_max)
    for second, move in enumerate(moves):
        if move == "taken":
            concurrency.taken(concurrency.limit)
        elif move == "failed":
            concurrency.failed(float(second))
        else:
            concurrency.recovered()
        assert 1 <= concurrency.limit <= limit_max
