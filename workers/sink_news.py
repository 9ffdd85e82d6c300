"""What whoever runs the process reads in its log about a sink that fails: at once when it begins, then once a minute.

A bot that answers 500 to everything must not be silent, and one that has 100,000 events waiting must not fill a disk
with lines. So each sink has one `SinkNews`, which counts and speaks within limits. It says what kind of update failed
and how (a status, or the class of an error), never whose it was or what it held. Of the breaker and of stand-ins
`workers.gate` speaks itself: they change seldom.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from broker.clock import Clock

AGAIN_AFTER_S = 60.0
"""Between two lines that say the same of one sink."""

ANEW_AFTER_S = 10.0
"""From the last warning to one that says that it began to fail anew: soon enough for who mends a bot and looks."""

SETTLED_S = 5.0
"""It works again when it has taken something and failed at nothing for so long. What was under way when an outage began
may still succeed, and where one event of many is refused, works and fails would alternate."""

_log = logging.getLogger(__name__)


class SinkNews:
    """One sink's failures and dead letters in this process, since it last worked. Instants are monotonic seconds.

    `waiting` returns how many events wait for it here; asked only when there is something to say.
    """

    def __init__(self, sink: str, clock: Clock, waiting: Callable[[], int]) -> None:
        self._sink = sink
        self._clock = clock
        self._waiting = waiting
        self._failures = 0
        self._failures_told = 0
        self._failing_since = 0.0
        self._taking_since: float | None = None
        self._last = ""
        self._told_at: float | None = None
        self._dead = 0
        self._dead_reason = ""
        self._dead_told_at: float | None = None

    def failed(self, kind: str, came: str) -> None:
        """Note a failed attempt: at which kind of update, and what came (`status 500`, `timeout: …`)."""
        if not self._failures:
            self._failing_since = self._clock.monotonic()
        self._failures += 1
        self._taking_since = None
        self._last = f"{came} at an update of kind {kind}"
        self.look()

    def took(self) -> None:
        """Note that it took something."""
        if self._failures and self._taking_since is None:
            self._taking_since = self._clock.monotonic()

    def set_aside(self, reason: str) -> None:
        """Note that an event meant for it became a dead letter, durably."""
        self._dead += 1
        self._dead_reason = reason
        self.look()

    def look(self) -> None:
        """Say what is due. To be called every few seconds: what was held back is said then."""
        now = self._clock.monotonic()
        if self._failures > self._failures_told and self._is_due(self._told_at, self._failures_told > 0, now):
            self._tell_failures(now)
        if self._taking_since is not None and now - self._taking_since >= SETTLED_S:
            if self._failures_told:
                _log.info(
                    "sink %s: works again, after %d failed attempts in %.0f s",
                    self._sink, self._failures, self._taking_since - self._failing_since,
                )  # fmt: skip
            self._failures = self._failures_told = 0
            self._taking_since = None
        if self._dead and self._is_due(self._dead_told_at, True, now):
            self._tell_dead_letters(now)

    def close(self) -> None:
        """Say which dead letters were not told yet: the process ends."""
        if self._dead:
            self._tell_dead_letters(self._clock.monotonic())

    @staticmethod
    def _is_due(told_at: float | None, is_known: bool, now: float) -> bool:
        return told_at is None or now - told_at >= (AGAIN_AFTER_S if is_known else ANEW_AFTER_S)

    def _tell_failures(self, now: float) -> None:
        if self._failures_told or self._failures > 1:
            _log.warning(
                "sink %s: %s: %d failed attempts in %.0f s, the last: %s; events waiting: %d",
                self._sink, "goes on failing" if self._failures_told else "fails",
                self._failures, now - self._failing_since, self._last, self._waiting(),
            )  # fmt: skip
        else:
            _log.warning("sink %s: begins to fail: %s; events waiting: %d", self._sink, self._last, self._waiting())
        self._told_at = now
        self._failures_told = self._failures

    def _tell_dead_letters(self, now: float) -> None:
        _log.error(
            "sink %s: new dead letters: %d, the last: %s; see: depesche deadletters list --sink %s",
            self._sink, self._dead, self._dead_reason, self._sink,
        )  # fmt: skip
        self._dead = 0
        self._dead_told_at = now
