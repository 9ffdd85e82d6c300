"""Whether a brand is open at an instant."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from broker.core.hours import LINES_MAX, compile_hours
from schemas.settings import Hours


def ms(local: str, zone: str = "Europe/Berlin") -> int:
    """The instant at which a wall clock there shows this."""
    return int(datetime.fromisoformat(local).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1_000)


def hours(*lines: str, zone: str = "Europe/Berlin", **more: list[str]) -> Any:
    return compile_hours(Hours(name="office", time_zone=zone, open=list(lines), **more))


@pytest.mark.parametrize(
    ("local", "is_open"),
    [
        ("2026-11-23T08:59:59", False), ("2026-11-23T09:00", True), ("2026-11-23T12:59:59", True),
        ("2026-11-23T13:00", False), ("2026-11-23T14:00", True), ("2026-11-23T18:00", False),
        ("2026-11-28T10:00", True), ("2026-11-28T15:00", False), ("2026-11-29T10:00", False),
    ],
)  # fmt: skip
def test_a_span_begins_with_its_first_minute_and_ends_before_its_last(local: str, is_open: bool) -> None:
    """A week with a lunch break, half a Saturday and no Sunday."""
    assert hours("mon-fri 09:00-13:00,14:00-18:00", "sat 10:00-14:00").is_open(ms(local)) is is_open


@pytest.mark.parametrize(
    ("local", "is_open"),
    [
        ("2026-11-27T21:59", False), ("2026-11-27T22:00", True), ("2026-11-28T01:59", True),
        ("2026-11-28T02:00", False), ("2026-11-29T01:00", True), ("2026-11-30T01:00", False),
    ],
)  # fmt: skip
def test_a_span_over_midnight_belongs_to_the_day_it_begins(local: str, is_open: bool) -> None:
    """A bar that opens on Friday and Saturday evening is open on Sunday at one."""
    assert hours("fri-sat 22:00-02:00").is_open(ms(local)) is is_open


def test_a_night_before_a_holiday_is_kept_and_the_holidays_own_is_not() -> None:
    """New Year's Eve ends at two, whatever the first of January is."""
    bar = hours("mon-sun 20:00-02:00", holidays=["01-01"])
    assert bar.is_open(ms("2027-01-01T01:00"))
    assert not bar.is_open(ms("2027-01-01T21:00"))
    assert not bar.is_open(ms("2027-01-02T01:00"))
    assert bar.is_open(ms("2027-01-02T21:00"))


def test_holidays_close_and_exceptions_have_hours_of_their_own() -> None:
    """Every year's, one year's, and a day that would be a holiday but is half open."""
    shop = hours(
        "mon-sun 09:00-18:00", holidays=["12-24", "2026-04-03", "02-29"], exceptions=["2026-12-24 09:00-12:00"]
    )
    assert shop.is_open(ms("2026-12-24T11:00"))
    assert not shop.is_open(ms("2026-12-24T13:00"))
    assert not shop.is_open(ms("2027-12-24T11:00"))
    assert not shop.is_open(ms("2026-04-03T11:00"))
    assert shop.is_open(ms("2027-04-03T11:00"))
    assert not shop.is_open(ms("2028-02-29T11:00"))


def test_hours_are_the_wall_clocks_across_daylight_saving() -> None:
    """Open at nine in winter and in summer: an hour apart in UTC."""
    office = hours("mon-fri 09:00-18:00")
    for day, utc_hour in (("2026-03-27", 8), ("2026-03-30", 7), ("2026-10-23", 7), ("2026-10-26", 8)):
        opens_at = ms(f"{day}T{utc_hour:02}:00", "UTC")
        assert office.is_open(opens_at)
        assert not office.is_open(opens_at - 1_000)


def test_a_brand_far_away_is_open_by_its_own_day() -> None:
    """Monday morning in Auckland is Sunday evening in London."""
    office = hours("mon 09:00-17:00", zone="Pacific/Auckland")
    assert office.is_open(ms("2026-11-22T21:00", "Europe/London"))


@pytest.mark.parametrize("at", [-(10**15), 0, 1, 10**18])
def test_any_instant_has_an_answer(at: int) -> None:
    """An instant comes from a record, and a record from anywhere."""
    assert hours("mon-sun 00:00-24:00").is_open(at)


@pytest.mark.parametrize(
    "line",
    [
        "", "mon", "mon 9:00-17:00", "mon 09:00-09:00", "mon 09:00-24:01", "mon 24:00-25:00", "mon 09:61-10:00",
        "xyz 09:00-10:00",
    ],
)  # fmt: skip
def test_what_is_no_span_is_refused(line: str) -> None:
    """A typo must not close a brand for ever."""
    with pytest.raises(ValueError, match=r"^open\[0\] = "):
        hours(line)


def test_lists_have_a_bound() -> None:
    """A generated file may hold anything."""
    with pytest.raises(ValueError, match="holidays: has 401 entries, at most 400"):
        hours("mon 09:00-10:00", holidays=["12-25"] * (LINES_MAX + 1))
