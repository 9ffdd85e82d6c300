"""What becomes of a record that crashes whoever handles it: two more tries, then it is set aside and the rest goes on.

A crash here is an exception nobody translated: our own fault, or bytes that no rule foresaw. It must neither stop a
partition for ever nor vanish. `Crashes` counts and decides; it handles nothing itself. A stage uses it so:

    try:
        handle(entry)
    except Exception as error:
        attempts = crashes.crashed(entry, error)
        if attempts < crashes.attempts_max:
            ...                                 # leave the record where it is and come back to it, after a rest
        else:
            derived.append(dead_letter(entry, "customer", POISON, describe(error), attempts, clock.now()))
            ...                                 # and treat the record as done
    crashes.settled(entry)                      # once it is durable that the record is done, whichever way

What is cancelled, and errors of the log (`LeaseLost`, `LogUnavailable`), are no crashes: let them pass first.
"""

from __future__ import annotations

import logging
import traceback
from pathlib import PurePath

from broker import metrics
from broker.log.catalogue import DEADLETTERS
from broker.log.contract import RECORD_BYTES_MAX, Draft, Entry
from schemas.records import DeadLetter, encode

ATTEMPTS_MAX = 3
"""A crash by chance (memory, a bug that needs a certain order) rarely comes thrice; a poisonous record always does."""

PLACES_MAX = 10_000
"""Places remembered. A bug that crashes on every record must not fill the memory; the oldest are forgotten first and
are then tried up to three times more."""

DETAIL_CHARS_MAX = 1_000
VALUE_BYTES_MAX = RECORD_BYTES_MAX - 64 * 1024
"""What a dead letter repeats of the record: a record at the limit would not fit with its place and reason around it."""

MALFORMED = "malformed"
POISON = "poison"
TOO_LARGE = "too_large"
"""Reasons, which are label values of `dead_letters_total`: bytes we cannot read; three crashes; what came of it exceeds
the log's limit. A stage may add its own; free text goes into the detail."""

_log = logging.getLogger(__name__)

_Place = tuple[str, int, int]


class Crashes:
    """How often the handling of each record crashed: by log, partition and offset. Not shared between event loops.

    It is kept for as long as the process lives, so a lease that is lost and granted again goes on counting. After a
    restart of the process counting begins anew: a record is tried at most `attempts_max` times by each process.
    """

    def __init__(self, actor: str, attempts_max: int = ATTEMPTS_MAX, places_max: int = PLACES_MAX) -> None:
        """`actor` names whose crashes these are, in `actor_restarts_total` and in log lines."""
        self.attempts_max = attempts_max
        self._actor = actor
        self._places_max = places_max
        self._counts: dict[_Place, int] = {}
        self._restarts = metrics.actor_restarts.labels(actor)

    def __len__(self) -> int:
        return len(self._counts)

    def crashed(self, entry: Entry, error: BaseException) -> int:
        """Count a crash and return how many this record caused so far; with `attempts_max` it is to be set aside.

        It says so in the log, with the record's place and the crash's, never with its contents.
        """
        place = (entry.log, entry.partition, entry.offset)
        attempts = self._counts.pop(place, 0) + 1
        while len(self._counts) >= self._places_max:
            del self._counts[next(iter(self._counts))]
        self._counts[place] = attempts
        self._restarts.inc()
        _log.error(
            "%s crashed on %s/%d@%d, attempt %d of %d: %s",
            self._actor, entry.log, entry.partition, entry.offset, attempts, self.attempts_max, where(error),
        )  # fmt: skip
        return attempts

    def attempts(self, entry: Entry) -> int:
        """Return how often this record crashed so far."""
        return self._counts.get((entry.log, entry.partition, entry.offset), 0)

    def settled(self, entry: Entry) -> None:
        """Forget a record: it is done, or set aside, for good."""
        if self._counts:
            self._counts.pop((entry.log, entry.partition, entry.offset), None)


def dead_letter(
    entry: Entry, stage: str, reason: str, detail: str, attempts: int, at: int, bytes_max: int = VALUE_BYTES_MAX
) -> tuple[str, Draft]:
    """Return what sets a record aside: (log, draft), to be derived in the same step or appended before going on.

    Keyed as the record was. A value that would not fit into `bytes_max` is cut, and the detail then says its whole
    size: the place tells where the rest still stands. Call `count_dead_letter` once it is durable.
    """
    value = entry.value
    detail = detail[:DETAIL_CHARS_MAX]
    if len(entry.key) + len(value) > bytes_max:
        kept = max(0, bytes_max - 2 * len(entry.key))
        detail = f"{detail} [first {kept} of {len(value)} bytes kept]"
        value = value[:kept]
    letter = DeadLetter(
        log=entry.log,
        partition=entry.partition,
        offset=entry.offset,
        key=entry.key,
        value=value,
        stage=stage,
        reason=reason,
        detail=detail,
        attempts=attempts,
        at=at,
    )
    return DEADLETTERS, Draft(entry.key, encode(letter))


def count_dead_letter(log: str, reason: str) -> None:
    """Count a dead letter that is durable."""
    metrics.dead_letters.labels(log, reason).inc()


def describe(error: BaseException) -> str:
    """Return a crash in one line for a dead letter: type, text, place. May hold personal data; not for log lines."""
    return f"{type(error).__name__}: {error} ({where(error)})"[:DETAIL_CHARS_MAX]


def where(error: BaseException) -> str:
    """Return a crash's type and the innermost place in our own code, without its text."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    if not ours:
        return type(error).__name__
    path = PurePath(ours[-1].filename)
    return f"{type(error).__name__} at {path.parent.name}/{path.name}:{ours[-1].lineno}"
