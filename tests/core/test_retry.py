"""What an answer says, when an event is tried again, and when it is given up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.retry import OWN_STEP_S_MAX, RETRY_AFTER_S_MAX, Schedule, Trouble, Verdict, retry_after_s, verdict

NOW_MS = 1_700_000_000_000  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.mark.parametrize(
    ("statuses", "found"),
    [
        ((200, 201, 202, 204, 299), Verdict.TAKEN),
        ((400, 409, 413, 415, 418, 422, 431, 451), Verdict.EVENT),
        ((401, 403, 404, 405, 407, 408, 425, 429), Verdict.SINK),
        ((301, 302, 307, 308, 304, 100), Verdict.SINK),
        ((502, 503, 504, 521, 524), Verdict.SINK),
        ((500, 501, 505, 599), Verdict.UNSURE),
        ((410,), Verdict.GONE),
    ],
)
def test_a_status_says_whose_trouble_it_is(statuses: tuple[int, ...], found: Verdict) -> None:
    """A body the sink refuses must not close it for others; a wrong URL must not eat everybody's events."""
    assert [verdict(status) for status in statuses] == [found] * len(statuses)


def test_pauses_grow_to_a_minute_and_stay_there() -> None:
    """Quick at first, because most troubles are short; then once a minute."""
    schedule = Schedule()
    assert [schedule.pause_s(n, 0.5) for n in range(1, 9)] == [1, 2, 5, 10, 30, 60, 60, 60]


@given(failures=st.integers(1, 1_000), chance=st.floats(0, 1, exclude_max=True), asked=st.floats(0, 1e9))
def test_a_retry_after_lengthens_a_pause_within_bounds(failures: int, chance: float, asked: float) -> None:
    """A header from outside must neither make us hammer a sink nor park a customer for a day."""
    schedule = Schedule()
    pause = schedule.pause_s(failures, chance)
    wanted = schedule.pause_s(failures, chance, asked)
    base = schedule.pauses_s[min(failures, 6) - 1]
    assert base * 0.8 <= pause <= base * 1.2
    assert pause <= wanted <= max(pause, RETRY_AFTER_S_MAX)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("9" * 400, 999_999_999.0),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2023 22:13:50", 30.0),
        ("Tue, 14 Nov 2023 20:00:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("Tue, 99 Nov 2023 22:13:50 GMT", None),
    ],
)
def test_both_forms_of_retry_after_are_read(header: str, seconds: float | None) -> None:
    """RFC 9110 allows seconds and a date; anything else is as if it were absent."""
    assert retry_after_s(header, NOW_MS) == seconds


@given(header=st.text(max_size=60))
def test_no_retry_after_crashes_us(header: str) -> None:
    """The header is the sink's to choose."""
    seconds = retry_after_s(header, NOW_MS)
    assert seconds is None or seconds >= 0


def fails_once_a_minute(found: Verdict, *, sink_takes_others: bool, is_suspect: bool, minutes: int = 11) -> Trouble:
    trouble = Trouble()
    for minute in range(minutes + 1):
        now = minute * 60.0
        took_at = now - 1 if sink_takes_others else None
        trouble = trouble.after(found, now, sink_took_at=took_at, is_suspect=is_suspect)
    return trouble


@pytest.mark.parametrize("found", [Verdict.EVENT, Verdict.UNSURE, Verdict.SINK])
def test_an_event_that_fails_while_others_are_taken_is_given_up(found: Verdict) -> None:
    """Ten minutes of evidence that it is this event: its customer's next one is tried."""
    trouble = fails_once_a_minute(found, sink_takes_others=True, is_suspect=False)
    assert trouble.is_given_up(600)
    early = fails_once_a_minute(found, sink_takes_others=True, is_suspect=False, minutes=9)
    assert not early.is_given_up(600)


@pytest.mark.parametrize("found", [Verdict.UNSURE, Verdict.SINK, Verdict.GONE])
def test_nothing_is_given_up_while_the_sink_takes_nothing(found: Verdict) -> None:
    """A dead bot's events wait in its log for as long as the log is kept, even when only two customers write."""
    assert not fails_once_a_minute(found, sink_takes_others=False, is_suspect=False, minutes=7 * 24 * 60).is_given_up(1)


def test_a_suspect_is_given_up_for_a_program_error_and_not_for_a_dead_way() -> None:
    """With nobody else's events to tell, one is put to the test; a refused connection leaves nothing to be tested."""
    assert fails_once_a_minute(Verdict.UNSURE, sink_takes_others=False, is_suspect=True).is_given_up(600)
    assert not fails_once_a_minute(Verdict.SINK, sink_takes_others=False, is_suspect=True).is_given_up(600)


def test_an_outage_is_not_held_against_an_event_that_fails_once_more_after_it() -> None:
    """Nine minutes down, up again, one more failure while warming up: that is no ten minutes of its own."""
    trouble = fails_once_a_minute(Verdict.SINK, sink_takes_others=False, is_suspect=False, minutes=30)
    trouble = trouble.after(Verdict.SINK, 31 * 60, sink_took_at=31 * 60 - 5, is_suspect=False)
    assert trouble.own_s == 60
    assert not trouble.is_given_up(600)


def test_one_long_pause_counts_for_no_more_than_two_minutes() -> None:
    """A frozen process, or an open breaker, must not age an event by an hour at once."""
    trouble = Trouble().after(Verdict.EVENT, 0, sink_took_at=None, is_suspect=False)
    assert trouble.after(Verdict.EVENT, 3_600, sink_took_at=None, is_suspect=False).own_s == OWN_STEP_S_MAX


def test_an_event_is_tried_at_least_once_whatever_the_patience() -> None:
    """Patience zero means one attempt, not none."""
    assert not Trouble().is_given_up(0)
    assert Trouble().after(Verdict.SINK, 5, sink_took_at=None, is_suspect=False).is_given_up(0)
