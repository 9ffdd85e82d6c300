"""Meta's limits at their edges."""

from __future__ import annotations

from broker.sandbox.limits import PairDebt, PairLimits, PortfolioLimit, SlidingSecond, Windows

DAY_MS = 24 * 3_600_000


def test_the_eightieth_message_of_a_second_goes_and_the_eighty_first_does_not() -> None:
    """The tier is exact: a referee that is off by one would call a correct sender wrong, or a wrong one correct."""
    second = SlidingSecond(80)
    for i in range(80):
        assert second.has_room(i / 80)
        second.charge(i / 80)
    assert not second.has_room(0.999)
    assert second.has_room(1.0)  # the first one is exactly a second old


def test_a_second_slides_over_the_edge_of_a_wall_clock_second() -> None:
    """A fixed window would let twice the tier pass around its edge."""
    second = SlidingSecond(80)
    for _ in range(80):
        second.charge(0.9)
    assert not second.has_room(1.1)
    assert second.has_room(1.9)


def test_inbound_is_charged_where_there_is_no_room() -> None:
    """Meta cannot refuse what customers write; the business's own sends wait for it."""
    second = SlidingSecond(20)
    for _ in range(50):
        second.charge(5.0)
    assert second.used(5.5) == 50
    assert not second.has_room(5.5)
    assert second.has_room(6.0)


def test_forty_five_go_to_one_customer_in_a_burst_and_the_next_waits_until_it_is_repaid() -> None:
    """45 in 6 s, then 45 × 6 s of silence from the first one: the reading of the documents that never draws 131056."""
    pair = PairDebt()
    for i in range(45):
        assert pair.allows(i * 0.1)
        pair.charge(i * 0.1)
    assert not pair.allows(4.5)
    assert not pair.allows(269.9)
    assert pair.allows(270.0)


def test_a_burst_of_twenty_costs_two_minutes_of_silence() -> None:
    """Meta's own example."""
    pair = PairDebt()
    for _ in range(20):
        pair.charge(0.0)
    assert not pair.allows(119.999)
    assert pair.allows(120.0)


def test_a_burst_ends_six_seconds_after_it_began() -> None:
    """After that the pair owes, even though fewer than 45 went."""
    pair = PairDebt()
    pair.charge(0.0)
    pair.charge(1.0)
    assert pair.allows(6.0)
    assert not pair.allows(6.001)
    assert pair.allows(12.0)


def test_one_message_in_six_seconds_goes_on_for_ever() -> None:
    """The sustained rate of the documents."""
    pair = PairDebt()
    for i in range(100):
        assert pair.allows(i * 6.0)
        pair.charge(i * 6.0)


def test_the_soft_reading_lets_one_more_go_after_six_seconds() -> None:
    """The other reading of the documents: a bucket of 45 that refills by one in 6 s."""
    pair = PairDebt()
    for _ in range(45):
        assert pair.allows(0.0, "soft")
        pair.charge(0.0)
    assert not pair.allows(5.9, "soft")
    assert pair.allows(6.0, "soft")


def test_one_pair_does_not_delay_another() -> None:
    """The pair limit is of one number and one customer."""
    pairs = PairLimits()
    for _ in range(45):
        pairs.charge("1", "ada", 0.0)
    assert not pairs.allows("1", "ada", 10.0)
    assert pairs.allows("1", "leo", 10.0)
    assert pairs.allows("2", "ada", 10.0)


def test_the_window_is_open_for_24_hours_to_the_millisecond() -> None:
    """Free-form messages end with it; both sides of the edge."""
    windows = Windows()
    assert not windows.is_open("1", "ada", 0)
    windows.wrote("1", "ada", 1_000)
    assert windows.is_open("1", "ada", 1_000 + DAY_MS - 1)
    assert not windows.is_open("1", "ada", 1_000 + DAY_MS)
    assert not windows.is_open("2", "ada", 2_000)


def test_a_portfolio_counts_each_person_once_in_24_hours() -> None:
    """Different people outside their windows, rolling: a second message to one of them costs nothing."""
    portfolio = PortfolioLimit(2)
    portfolio.charge("ada", 0)
    portfolio.charge("leo", 1_000)
    assert portfolio.allows("ada", 2_000)
    assert not portfolio.allows("cleo", 2_000)
    assert not portfolio.allows("cleo", DAY_MS - 1)
    assert portfolio.allows("cleo", DAY_MS)


def test_a_failed_message_gives_the_portfolio_its_place_back() -> None:
    """Only people who were reached count."""
    portfolio = PortfolioLimit(1)
    portfolio.charge("ada", 0)
    portfolio.release("ada")
    assert portfolio.allows("leo", 1)
