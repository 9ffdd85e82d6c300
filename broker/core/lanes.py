"""Whose turn it is: among a number's lanes, and inside a lane among its customers.

Replies go first, so a campaign never delays one by more than the send that is going out just now. The others have a
floor: a share of all turns they get even while replies never end. What replies leave is divided between the others by
weight. No turn is lost while anybody waits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from schemas.records import Lane

FLOORS_PERCENT: dict[Lane, int] = {"campaign": 2, "transactional": 15}
"""Share of all turns while it waits and replies do too: an order confirmation may be slow, not absent; a campaign of a
million must end. Those with the smaller floor come first when both are due. Together well under 50, since every other
turn is a waiting reply's."""

QUANTA: dict[Lane, int] = {"transactional": 3, "campaign": 1}
"""Turns in a round of what replies leave: deficit round robin with sends of equal size."""


class LanePlanner:
    """Takes turns among reply, transactional and campaign. Remembers a credit per floor and the current round."""

    def __init__(self) -> None:
        self._credits: dict[Lane, int] = dict.fromkeys(FLOORS_PERCENT, 0)
        self._left: dict[Lane, int] = dict.fromkeys(QUANTA, 0)
        self._passed_reply = False

    def pick(self, waiting: Collection[Lane]) -> Lane | None:
        """Return the lane whose turn it is among those where somebody waits, and count the turn. None: nobody waits."""
        if not waiting:
            return None
        for lane, floor in FLOORS_PERCENT.items():
            # Who does not wait saves nothing, and nobody saves for two turns: credit buys no bursts.
            self._credits[lane] = min(199, self._credits[lane] + floor) if lane in waiting else 0
        turn = self._next(waiting)
        if turn in self._credits:
            self._credits[turn] = max(0, self._credits[turn] - 100)
        self._passed_reply = turn != "reply"
        return turn

    def _next(self, waiting: Collection[Lane]) -> Lane:
        if "reply" not in waiting:
            return self._round(waiting)
        if not self._passed_reply:
            for lane, credit in self._credits.items():
                if lane in waiting and credit >= 100:
                    return lane
        return "reply"

    def _round(self, waiting: Collection[Lane]) -> Lane:
        """Deficit round robin over the lanes below replies. A round ends when nobody who waits has turns left."""
        if not any(self._left[lane] for lane in QUANTA if lane in waiting):
            self._left = dict(QUANTA)
        for lane in QUANTA:
            if lane in waiting and self._left[lane]:
                self._left[lane] -= 1
                return lane
        raise AssertionError("a round without turns")


class Ring:
    """Customers of one lane who have something to send now: each gets one turn, then goes to the end."""

    def __init__(self) -> None:
        self._members: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, customer: str) -> bool:
        return customer in self._members

    def add(self, customer: str) -> None:
        """Put a customer at the end, unless it is there."""
        self._members.setdefault(customer)

    def discard(self, customer: str) -> None:
        """Take a customer out, if it is there."""
        self._members.pop(customer, None)

    def pop(self) -> str:
        """Take the next customer out. Raises `KeyError` when nobody is there."""
        return self._members.popitem(last=False)[0]
