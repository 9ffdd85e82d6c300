"""What waits in one lane's log for one number beyond what memory holds: where it begins, how far it is read again.

Memory holds so many sends of a number. What comes then is left in the log: its place counts as done for the lane, which
goes on to other numbers' sends and to what ends this one's doubts, and is remembered here as a stretch. Inside it every
first attempt of the number is the stretch's, so it is two offsets, however long it is. When there is room the log is
read again from where it was left, and what is taken then has a watermark of its own. A stretch that was read to its end
still grows until all of it is done, so that a new owner finds everything in order: first what the lane has, then it.

    [begin ── taken, some of it done ── cursor ── left in the log ── end)
"""

from __future__ import annotations

from broker.core.watermark import Watermark
from schemas.ledger import Behind
from schemas.records import Lane


class Backlog:
    """The stretch of one number in one lane."""

    __slots__ = ("_mark", "cursor", "end")

    def __init__(self, offset: int, end: int, runs: bytes = b"") -> None:
        """Begin at the first offset that is left (or was taken and is not done). `runs`: what is done after it."""
        self._mark = Watermark.from_bytes(offset, runs)
        self.cursor = offset
        self.end = end

    @property
    def begin(self) -> int:
        """The lowest offset that is not done."""
        return self._mark.offset

    @property
    def is_behind(self) -> bool:
        """Whether something is left in the log: what comes now must be left, too."""
        return self.cursor < self.end

    @property
    def is_over(self) -> bool:
        """Whether everything was taken and is done."""
        return not self.is_behind and self._mark.offset >= self.end

    def leave(self, offset: int) -> None:
        """Let it grow by one more, which is left in the log unless it is taken at once."""
        if not self.is_behind:
            self.cursor = offset
        self.end = offset + 1

    def take(self, offset: int) -> bool:
        """Take one of ours; return whether it is still to be done."""
        self.cursor = offset + 1
        return self._mark.take(offset)

    def pass_by(self, offset: int) -> None:
        """Pass what is not ours, up to an offset."""
        self.cursor = max(self.cursor, offset)

    def complete(self, offset: int) -> None:
        """Note that one is done."""
        if offset < self.end:
            self._mark.complete(offset)

    def written(self, lane: Lane, phone_number_id: str, bytes_max: int) -> Behind:
        """Return what a new owner needs to go on."""
        return Behind(lane, phone_number_id, self._mark.offset, self.end, self._mark.to_bytes(bytes_max))
