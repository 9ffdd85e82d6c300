"""The watermark against a naive set of done offsets."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.watermark import BYTES_MAX, TEXT_CHARS_MAX, Watermark


class NaiveWatermark:
    """The same by counting up in a set."""

    def __init__(self, offset: int) -> None:
        self.first = self.offset = offset
        self.done: set[int] = set()
        self.read_to = offset

    def complete(self, offset: int) -> None:
        self.done.add(offset)
        while self.offset in self.done:
            self.offset += 1

    def take(self, offset: int) -> bool:
        for absent in range(self.read_to, offset):
            self.complete(absent)
        self.read_to = max(self.read_to, offset + 1)
        return not self.is_done(offset)

    def is_done(self, offset: int) -> bool:
        return offset < self.offset or offset in self.done


moves = st.lists(st.tuples(st.sampled_from(["take", "complete"]), st.integers(0, 60)), max_size=120)


@given(start=st.integers(0, 20), moves=moves)
@settings(deadline=None)
def test_it_agrees_with_a_naive_set_after_every_move(start: int, moves: list[tuple[str, int]]) -> None:
    """The watermark decides what a restart skips: one offset too many is a lost record."""
    mark, naive = Watermark(start), NaiveWatermark(start)
    for verb, offset in moves:
        if verb == "take":
            assert mark.take(offset) == naive.take(offset)
        else:
            mark.complete(offset)
            naive.complete(offset)
        assert mark.offset == naive.offset
        assert [mark.is_done(at) for at in range(70)] == [naive.is_done(at) for at in range(70)]
        previous_end = mark.offset
        for first, past in mark.runs:
            assert previous_end < first < past
            previous_end = past


@given(
    offset=st.integers(0, 2**40),
    steps=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 20_000)), max_size=300),
)
@settings(deadline=None)
def test_what_is_written_is_read_back(offset: int, steps: list[tuple[int, int]]) -> None:
    """Text and bytes say the same, and both come back whole when they fit."""
    runs, at = [], offset
    for open_count, done_count in steps:
        runs.append((at + open_count, at + open_count + done_count))
        at += open_count + done_count
    mark = Watermark(offset, runs)
    text, data = mark.to_text(), mark.to_bytes()
    assert len(text) <= TEXT_CHARS_MAX
    assert text.isascii()
    assert list(Watermark.from_text(offset, text).runs) == runs
    assert list(Watermark.from_bytes(offset, data).runs) == runs


@given(chars_max=st.integers(0, 200), gaps=st.lists(st.integers(1, 40_000), min_size=1, max_size=100))
@settings(deadline=None)
def test_a_map_that_is_too_long_is_shortened_from_above(chars_max: int, gaps: list[int]) -> None:
    """Over the limit a commit still goes through; what it forgets is done twice, never skipped."""
    runs, at = [], 7
    for gap in gaps:
        runs.append((at + gap, at + gap + 1))
        at += gap + 1
    mark = Watermark(7, runs)
    text = mark.to_text(chars_max)
    assert len(text) <= chars_max
    kept = list(Watermark.from_text(7, text).runs)
    assert kept == runs[: len(kept)]
    if chars_max >= 5 * len(gaps) + 10:
        assert kept == runs, "there was room for all"


@given(text=st.text(max_size=200), data=st.binary(max_size=200), offset=st.integers(0, 2**40))
def test_garbage_is_no_map(text: str, data: bytes, offset: int) -> None:
    """Commit metadata can be written by anybody's tool; it must neither crash a stage nor make it skip a record."""
    for mark in (Watermark.from_text(offset, text), Watermark.from_bytes(offset, data)):
        assert mark.offset == offset
        assert list(mark.runs) == []


@given(flip=st.integers(0, 10**6), gaps=st.lists(st.integers(1, 300), min_size=1, max_size=50))
def test_one_flipped_bit_makes_it_no_map(flip: int, gaps: list[int]) -> None:
    """A damaged map is refused whole: a shifted run would be a skipped record."""
    mark, at = Watermark(100), 100
    for gap in gaps:
        at += gap + 1
        mark.complete(at)
    data = bytearray(mark.to_bytes())
    data[flip // 8 % len(data)] ^= 1 << flip % 8
    assert list(Watermark.from_bytes(100, bytes(data)).runs) == []


def test_a_map_beside_another_offset_is_refused() -> None:
    """An operator who resets the offset by hand means it: nothing above is done then."""
    mark = Watermark(100)
    mark.complete(105)
    assert list(Watermark.from_text(90, mark.to_text()).runs) == []
    assert list(Watermark.from_text(100, mark.to_text()).runs) == [(105, 106)]


def test_offsets_without_a_record_do_not_hold_the_watermark() -> None:
    """Every Kafka transaction leaves a marker that takes an offset and is never handed out."""
    mark = Watermark()
    for offset in (3, 4, 6):
        assert mark.take(offset)
        mark.complete(offset)
    assert mark.offset == 7
    assert mark.to_text() == ""


def test_one_stuck_record_costs_one_run_however_far_the_rest_goes() -> None:
    """A head that fails for ten minutes at 1,000 records/s: 600,000 done offsets are one run and a few characters."""
    mark = Watermark()
    for offset in range(600_000):
        mark.take(offset)
        if offset:
            mark.complete(offset)
    assert mark.offset == 0
    assert list(mark.runs) == [(1, 600_000)]
    assert len(mark.to_text()) < 16
    mark.complete(0)
    assert mark.offset == 600_000


def test_every_other_record_open_fits_for_1600_of_them() -> None:
    """What mechanisms B.1 promises of the metadata: about 1,600 parked records before the map is shortened."""
    mark = Watermark()
    for offset in range(1, 3_200, 2):
        mark.complete(offset)
    assert len(list(Watermark.from_text(0, mark.to_text()).runs)) == 1_600
    for offset in range(3_201, 200_000, 2):
        mark.complete(offset)
    assert len(mark.to_text()) <= TEXT_CHARS_MAX
    assert len(mark.to_bytes()) <= BYTES_MAX
    assert len(list(Watermark.from_bytes(0, mark.to_bytes()).runs)) > 32_000
