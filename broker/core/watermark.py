"""How far a partition is done when its records finish out of order: the watermark, and a map of what is done above.

Work on a partition finishes in any order, but a log remembers one offset for a reader. What is done above the
watermark is kept as runs, so that memory grows with what is *not* done, however far the rest has gone on, and travels
beside the offset: as text in Kafka's commit metadata, as bytes in a stage's memo. When the runs do not fit, the
highest are left out: after a crash those records are done again, which "at least once" allows; reading never stops.

Written form: a version byte, CRC-32 of the watermark and the runs, then for each run two varints: how many offsets
stand open before it, how many are done in it. The check includes the watermark, because a tool that moves a group's
offset may leave the text in place, and a map read at another offset would skip records nobody has done.
"""

from __future__ import annotations

from base64 import b85decode, b85encode
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from zlib import crc32

TEXT_CHARS_MAX = 4_096
"""Kafka counts characters (`offset.metadata.max.bytes`): 3,276 bytes in base 85, about 1,600 open records."""

BYTES_MAX = 65_536
"""A stage's whole memo (`broker.log.position.MEMO_BYTES_MAX`); a stage with several logs gives each a share."""

_VERSION = 1
_HEADER_BYTES = 5
_VARINT_BITS_MAX = 63


class Watermark:
    """The lowest offset not done, and the runs of done offsets above it.

    `take` every record when it is read, `complete` it when it is done. A log has offsets without a record (transaction
    markers, what retention removed): `take` counts those it passes as done, else the watermark would wait for ever.
    """

    __slots__ = ("_ends", "_offset", "_read_to", "_starts")

    def __init__(self, offset: int = 0, runs: Iterable[tuple[int, int]] = ()) -> None:
        """Begin at an offset, with done runs (first, one past the last) above it, in order and apart."""
        self._offset = offset
        self._read_to = offset
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in runs:
            self._add(start, end)

    @property
    def offset(self) -> int:
        """The lowest offset not done: what is committed, and where a restart begins."""
        return self._offset

    @property
    def read_to(self) -> int:
        """One past the last record that was taken."""
        return self._read_to

    @property
    def runs(self) -> Iterator[tuple[int, int]]:
        """The done runs above the watermark as (first, one past the last), in order."""
        return zip(self._starts, self._ends, strict=True)

    def is_done(self, offset: int) -> bool:
        """Whether a record is done already."""
        if offset < self._offset:
            return True
        index = bisect_right(self._starts, offset) - 1
        return index >= 0 and offset < self._ends[index]

    def take(self, offset: int) -> bool:
        """Note that a record was read; return whether it is still to be done. Records are taken in order."""
        if offset > self._read_to:
            self._add(self._read_to, offset)
        self._read_to = max(self._read_to, offset + 1)
        return not self.is_done(offset)

    def complete(self, offset: int) -> None:
        """Note that a record is done. Once or more often, it is the same."""
        self._add(offset, offset + 1)

    def to_text(self, chars_max: int = TEXT_CHARS_MAX) -> str:
        """Return the runs as ASCII text of at most `chars_max` characters; "" when there are none."""
        return b85encode(self.to_bytes(chars_max // 5 * 4 + max(0, chars_max % 5 - 1))).decode("ascii")

    def to_bytes(self, bytes_max: int = BYTES_MAX) -> bytes:
        """Return the runs in at most `bytes_max` bytes; b"" when there are none. Too many: the lowest that fit."""
        body = bytearray()
        at = self._offset
        for start, end in self.runs:
            before = len(body)
            _put_varint(body, start - at)
            _put_varint(body, end - start)
            if _HEADER_BYTES + len(body) > bytes_max:
                del body[before:]
                break
            at = end
        if not body:
            return b""
        return bytes((_VERSION,)) + _check(self._offset, body) + body

    @classmethod
    def from_text(cls, offset: int, text: str) -> Watermark:
        """Return what `to_text` wrote beside this offset. Text that is not ours, or of another offset: no runs."""
        try:
            data = b85decode(text)
        except ValueError:
            data = b""
        return cls.from_bytes(offset, data)

    @classmethod
    def from_bytes(cls, offset: int, data: bytes) -> Watermark:
        """Return what `to_bytes` wrote beside this offset. Bytes that are not ours, or of another offset: no runs."""
        body = data[_HEADER_BYTES:]
        if not body or data[0] != _VERSION or data[1:_HEADER_BYTES] != _check(offset, body):
            return cls(offset)
        try:
            return cls(offset, list(_runs(offset, body)))
        except ValueError:
            return cls(offset)

    def _add(self, start: int, end: int) -> None:
        """Merge a done run; move the watermark when the run reaches down to it."""
        start = max(start, self._offset)
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        past = bisect_right(self._starts, end)
        if first < past:
            start = min(start, self._starts[first])
            end = max(end, self._ends[past - 1])
        self._starts[first:past] = [start]
        self._ends[first:past] = [end]
        if start == self._offset:
            self._offset = end
            del self._starts[0], self._ends[0]


def _check(offset: int, body: bytes | bytearray) -> bytes:
    return crc32(body, crc32(offset.to_bytes(8, "big"))).to_bytes(4, "big")


def _put_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _varints(body: bytes) -> Iterator[int]:
    """Yield the numbers; raise ValueError when the bytes end inside one or one is longer than an offset can be."""
    value = shift = 0
    for byte in body:
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            yield value
            value = shift = 0
        else:
            shift += 7
            if shift >= _VARINT_BITS_MAX:
                raise ValueError("a varint too long for an offset")
    if shift:
        raise ValueError("the bytes end inside a varint")


def _runs(offset: int, body: bytes) -> Iterator[tuple[int, int]]:
    at = offset
    numbers = _varints(body)
    for open_count in numbers:
        done_count = next(numbers, 0)
        if open_count == 0 or done_count == 0:
            raise ValueError("an empty run")
        start = at + open_count
        at = start + done_count
        yield start, at
