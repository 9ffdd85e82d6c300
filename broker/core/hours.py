"""Business hours: whether a brand is open at an instant, by its own clock, week and holidays.

A span belongs to the day it begins on, also when it ends after midnight. A holiday closes the whole day; an exception
replaces the week's hours of its day. Daylight saving is the time zone's: hours are what a clock on the wall shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from msgspec import Struct

from schemas.settings import Hours as HoursSettings

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MIN = 24 * 60
LATEST_MS = 253_402_214_400_000
"""The last day of the year 9999 begins: later instants cannot be said in any calendar."""

LINES_MAX = 400
"""Of each list: a holiday for every day of a year, and some."""

Span = tuple[int, int]
"""Minutes from midnight; the end is not included, and beyond 1,440 on the next day."""

_LINE = re.compile(r"(?P<days>\S+)\s+(?P<spans>\d\d:\d\d-\d\d:\d\d(?:\s*,\s*\d\d:\d\d-\d\d:\d\d)*)")
_SPAN = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)")


class Hours(Struct, frozen=True):
    """When a brand is open. `week`: spans from Monday on. `dated`: days with hours of their own, none on a holiday.
    `yearly`: (month, day) of the holidays of every year."""

    name: str
    zone: ZoneInfo
    week: tuple[tuple[Span, ...], ...]
    dated: Mapping[date, tuple[Span, ...]]
    yearly: frozenset[tuple[int, int]]

    def local(self, at: int) -> datetime:
        """Return what the brand's clock shows at an instant (Unix ms)."""
        return datetime.fromtimestamp(min(max(at, 86_400_000), LATEST_MS) / 1_000, self.zone)

    def is_open(self, at: int) -> bool:
        """Whether the brand is open at an instant (Unix ms)."""
        local = self.local(at)
        today, minute = local.date(), local.hour * 60 + local.minute
        if any(begins <= minute < ends for begins, ends in self._spans(today)):
            return True
        yesterday = today - timedelta(days=1)
        return any(minute + DAY_MIN < ends for _, ends in self._spans(yesterday))

    def _spans(self, day: date) -> tuple[Span, ...]:
        spans = self.dated.get(day)
        if spans is not None:
            return spans
        return () if (day.month, day.day) in self.yearly else self.week[day.weekday()]


def compile_hours(settings: HoursSettings) -> Hours:
    """Compile configured hours. Raises `ValueError` that begins with the setting that is wrong."""
    try:
        zone = ZoneInfo(settings.time_zone)
    except (ValueError, OSError, LookupError):  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(
            f"time_zone = {settings.time_zone!r}: is no time zone; name one like 'Europe/Berlin'"
        ) from None
    for name, lines in (("open", settings.open), ("holidays", settings.holidays), ("exceptions", settings.exceptions)):
        if len(lines) > LINES_MAX:
            raise ValueError(f"{name}: has {len(lines)} entries, at most {LINES_MAX}")
    week: list[list[Span]] = [[] for _ in DAYS]
    for i, line in enumerate(settings.open):
        days, spans = _line(f"open[{i}]", line)
        for weekday in _days(f"open[{i}]", line, days):
            week[weekday] += spans
    dated: dict[date, tuple[Span, ...]] = {}
    yearly: set[tuple[int, int]] = set()
    for i, text in enumerate(settings.holidays):
        every_year = re.fullmatch(r"\d\d-\d\d", text) is not None
        day = _date(f"holidays[{i}]", text, f"2024-{text}" if every_year else text)  # 2024 has a 29 February
        if every_year:
            yearly.add((day.month, day.day))
        else:
            dated[day] = ()
    for i, line in enumerate(settings.exceptions):
        text, spans = _line(f"exceptions[{i}]", line)
        dated[_date(f"exceptions[{i}]", line, text)] = spans
    return Hours(settings.name, zone, tuple(tuple(sorted(spans)) for spans in week), dated, frozenset(yearly))


def _line(where: str, line: str) -> tuple[str, tuple[Span, ...]]:
    found = _LINE.fullmatch(line.strip())
    spans = _SPAN.findall(found["spans"]) if found else []
    read: list[Span] = []
    for begin_h, begin_min, end_h, end_min in spans:
        begins, ends = int(begin_h) * 60 + int(begin_min), int(end_h) * 60 + int(end_min)
        if begins >= DAY_MIN or ends > DAY_MIN or int(begin_min) > 59 or int(end_min) > 59 or begins == ends:
            read = []
            break
        read.append((begins, ends if ends > begins else ends + DAY_MIN))
    if found is None or not read:
        raise ValueError(
            f"{where} = {line!r}: must be like 'mon-fri 09:00-18:00' or '2026-12-24 09:00-12:00,13:00-15:00'"
        )
    return found["days"], tuple(read)


def _days(where: str, line: str, text: str) -> list[int]:
    """Return the days of the week that "mon-fri", "mon,wed" or "fri-mon" names."""
    named: list[int] = []
    for part in text.lower().split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"{where} = {line!r}: {part!r} is no day; days are {', '.join(DAYS)}")
        begins = DAYS.index(first)
        count = (DAYS.index(last) - begins) % 7 + 1 if dash else 1
        named += [(begins + step) % 7 for step in range(count)]
    return list(dict.fromkeys(named))


def _date(where: str, shown: str, text: str) -> date:
    try:
        day = date.fromisoformat(text) if len(text) == 10 else None
    except ValueError:
        day = None
    if day is None or not 1971 <= day.year <= 9998:
        raise ValueError(f"{where} = {shown!r}: must begin with a day like 2026-12-25 (or 12-25 for every year's)")
    return day
