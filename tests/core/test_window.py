"""The customer service window."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.core.window import SKEW_MS_MAX, WINDOW_MS, closes_at, is_open, opened

NOW = 1_790_000_000_000
MARGIN = 60_000


def test_a_window_is_open_for_a_day_less_the_margin() -> None:
    """Meta refuses a millisecond too late, and our clock is not Meta's."""
    opened_at = opened(0, NOW, NOW)
    assert is_open(opened_at, NOW, MARGIN)
    assert is_open(opened_at, NOW + WINDOW_MS - MARGIN - 1, MARGIN)
    assert not is_open(opened_at, NOW + WINDOW_MS - MARGIN, MARGIN)
    assert closes_at(opened_at, MARGIN) == NOW + WINDOW_MS - MARGIN


def test_a_window_that_was_never_opened_is_closed() -> None:
    """Zero is no instant of 1970."""
    assert not is_open(0, 1, 0)
    assert closes_at(0, MARGIN) == 0


def test_a_message_from_the_future_opens_the_window_now() -> None:
    """A wrong clock must not keep a window open that Meta has long closed."""
    assert opened(0, NOW + SKEW_MS_MAX + 1, NOW) == NOW
    assert opened(0, NOW + SKEW_MS_MAX, NOW) == NOW + SKEW_MS_MAX
    assert opened(0, 0, NOW) == NOW


@given(st.lists(st.tuples(st.integers(-10, 2 * NOW), st.integers(0, 3_600_000)), max_size=30))
def test_a_window_never_goes_back_and_never_far_ahead(messages: list[tuple[int, int]]) -> None:
    """Webhooks come in any order, with any timestamp."""
    opened_at, now = 0, NOW
    for wrote_at, passed in messages:
        now += passed
        before, opened_at = opened_at, opened(opened_at, wrote_at, now)
        assert opened_at >= before
        assert opened_at <= now + SKEW_MS_MAX
        if before == 0:
            assert closes_at(opened_at, 0) > 0
