"""Which sends are not to begin any more: what a slot remembers of withdrawals until the sends they speak of are over.

A withdrawal is read at once, on the lane of replies. Its send may wait in memory, be under way, stand in another lane's
log that was not read so far, or have been left there for want of room: so it is kept until the send's end is known, or
until it would be too late to send it. It stands in the ledger, since the position moves past its record.
"""

from __future__ import annotations

from collections.abc import Mapping

from schemas.ledger import Withdrawn
from schemas.records import Ready, Withdraw

KEPT_MS = 600_000
"""After a send's `not_after`, in which it goes out by no clock: owners' clocks are minutes apart at most."""

WITHDRAWN_MAX = 20_000
"""Of one slot: one in fifty of a campaign of a million that all wait. 45 bytes each in the ledger, so 0.9 MB of a
snapshot. Beyond, the oldest is forgotten, and goes out if its record was not read until then."""


class Withdrawals:
    """The withdrawn sends of a slot, oldest first, and which of them no step has written yet."""

    def __init__(self, withdrawn: Mapping[str, Withdrawn] | None = None) -> None:
        """Begin with what the ledger has, by send."""
        self._by_send = dict(withdrawn or {})
        self._news: list[Withdrawn] = []

    def __len__(self) -> int:
        return len(self._by_send)

    def add(self, withdraw: Withdraw) -> None:
        """Remember one, for the next step too."""
        before = self._by_send.pop(withdraw.send_id, None)
        attempt = withdraw.attempt if before is None else max(before.attempt, withdraw.attempt)
        withdrawn = Withdrawn(withdraw.send_id, attempt, withdraw.not_after + KEPT_MS)
        self._by_send[withdraw.send_id] = withdrawn
        self._news.append(withdrawn)
        while len(self._by_send) > WITHDRAWN_MAX:
            del self._by_send[next(iter(self._by_send))]

    def covers(self, ready: Ready) -> bool:
        """Whether this attempt must not begin."""
        withdrawn = self._by_send.get(ready.send_id)
        return withdrawn is not None and ready.attempt <= withdrawn.attempt

    def end(self, send_id: str, attempt: int) -> bool:
        """Forget a send whose attempt is over. Return whether that was withdrawn."""
        withdrawn = self._by_send.get(send_id)
        if withdrawn is None or attempt < withdrawn.attempt:
            return False
        del self._by_send[send_id]
        return True

    def news(self) -> list[Withdrawn]:
        """Return what the next step has to write."""
        return list(self._news)

    def written(self, count: int) -> None:
        """Note that the first so many of the news stand."""
        del self._news[:count]

    def kept(self, now: int) -> list[Withdrawn]:
        """Forget what could not go out any more at `now` (Unix ms), and return the rest, for a snapshot."""
        self._by_send = {name: one for name, one in self._by_send.items() if one.until >= now}
        return list(self._by_send.values())
