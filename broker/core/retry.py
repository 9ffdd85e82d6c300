"""What an answer of a sink says, when a failing event is tried again, and when it is given up.

Two troubles look alike from outside: a sink that is down, and an event the sink cannot digest. The first must wait, in
order, for as long as the log is kept; the second must not hold up its customer for longer than ten minutes. What
tells them apart is evidence: what the answer says, and whether the sink takes other customers' events meanwhile. Where
nobody else's events are there to tell, one is put to the test: of those that fail, the one that has failed longest is
the suspect, and is given up in its time. If its customer's next event is taken, the sink works; if not, it is down, and
no further event is spent on that question until it takes one.
"""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum

from msgspec import Struct

RETRY_AFTER_S_MAX = 300.0
"""A sink may ask for more patience than the schedule has, up to the breaker's longest cool-down: beyond it the header
is more likely wrong than meant, and the customer waits."""

OWN_STEP_S_MAX = 120.0
"""One pause counts against an event for at most twice the schedule's longest: what lies beyond was an open breaker, or
a process that was frozen."""


class Verdict(Enum):
    """Whose trouble an answer is."""

    TAKEN = "taken"
    EVENT = "event"
    """The sink works and refuses this event."""
    UNSURE = "unsure"
    """The sink's program was reached, and failed or stayed silent: at this event, or at any."""
    SINK = "sink"
    """The sink, or the way to it, is in trouble, whatever the event."""
    GONE = "gone"
    """The sink says that it will not be back."""


BY_STATUS: dict[int, Verdict] = {
    # These speak of the URL, the credentials or the moment, not of the body they were sent with.
    401: Verdict.SINK,
    402: Verdict.SINK,
    403: Verdict.SINK,
    404: Verdict.SINK,
    405: Verdict.SINK,
    407: Verdict.SINK,
    408: Verdict.SINK,
    410: Verdict.GONE,  # Standard Webhooks: "disable the endpoint"
    421: Verdict.SINK,
    425: Verdict.SINK,
    426: Verdict.SINK,
    429: Verdict.SINK,
    # 5xx of whatever stands before the program: it did not run.
    502: Verdict.SINK,
    503: Verdict.SINK,
    504: Verdict.SINK,
    **dict.fromkeys(range(520, 531), Verdict.SINK),  # Cloudflare's own, between it and the origin
}


def verdict(status: int) -> Verdict:
    """Return whose trouble an HTTP status is. Redirects are not followed, so they are the sink's: its URL is wrong."""
    if 200 <= status < 300:
        return Verdict.TAKEN
    named = BY_STATUS.get(status)
    if named is not None:
        return named
    if 400 <= status < 500:
        return Verdict.EVENT
    return Verdict.UNSURE if status >= 500 else Verdict.SINK


def retry_after_s(header: str, now: int) -> float | None:
    """Return the seconds a `Retry-After` asks for, in either of its forms; None when it is neither. `now`: Unix ms."""
    header = header.strip()
    if header.isdecimal() and header.isascii():
        return float(header[:9])
    try:
        at = parsedate_to_datetime(header)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, at.timestamp() - now / 1_000)


class Schedule(Struct, frozen=True):
    """How long to wait after the first, second, … failure of one event; the last pause repeats.

    The first tries come quickly (a keep-alive connection that was just closed, a bot being deployed), the later ones
    once a minute: a customer waits behind them. Jitter is a share of the pause, either way.
    """

    pauses_s: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
    jitter: float = 0.2

    def pause_s(self, failures: int, chance: float, asked_s: float | None = None) -> float:
        """Return the pause after the given number of failures (from 1). `chance`: from 0 up to 1, the jitter's draw.

        `asked_s` is what a `Retry-After` said: it lengthens the pause, up to `RETRY_AFTER_S_MAX`, never shortens it.
        """
        pause = self.pauses_s[min(failures, len(self.pauses_s)) - 1] * (1 + self.jitter * (2 * chance - 1))
        return pause if asked_s is None else max(pause, min(asked_s, RETRY_AFTER_S_MAX))


class Trouble(Struct, frozen=True):
    """What one event has been through. `own_s`: how long it failed by its own fault, as far as can be told.

    Instants are monotonic seconds.
    """

    attempts: int = 0
    own_s: float = 0.0
    failed_at: float | None = None

    def after(self, found: Verdict, now: float, *, sink_took_at: float | None, is_suspect: bool) -> Trouble:
        """Return it after one more failure.

        `sink_took_at`: when the sink last took an event of anybody (None: never); `is_suspect`: whether this event is
        the one put to the test at this moment.
        """
        own_s = self.own_s
        if self.failed_at is not None:
            sink_works = sink_took_at is not None and sink_took_at >= self.failed_at
            if _is_its_own(found, sink_works=sink_works, is_suspect=is_suspect):
                own_s += min(now - self.failed_at, OWN_STEP_S_MAX)
        return Trouble(self.attempts + 1, own_s, now)

    def is_given_up(self, give_up_after_s: float) -> bool:
        """Whether it has failed by its own fault for so long that the customer's next event is to be tried."""
        return self.failed_at is not None and self.own_s >= give_up_after_s


def _is_its_own(found: Verdict, *, sink_works: bool, is_suspect: bool) -> bool:
    """Whether the time since an event's last failure counts against the event.

    | answer | sink took others since | suspect | counts                                          |
    | EVENT  | any                    | any     | yes                                             |
    | any    | yes                    | any     | yes                                             |
    | UNSURE | no                     | yes     | yes: it is put to the test                      |
    | else   | no                     | any     | no: the sink may be down, and everything waits  |
    """
    return found is Verdict.EVENT or sink_works or (found is Verdict.UNSURE and is_suspect)
