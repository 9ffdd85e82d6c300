"""The in-memory index against a plain list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.log.index import Index

Move = tuple[str, int]


@given(
    start=st.integers(0, 50),
    moves=st.lists(st.tuples(st.sampled_from(["add", "hole", "front", "drop"]), st.integers(0, 9)), max_size=40),
    records_max=st.integers(1, 12),
    bytes_max=st.integers(1, 40),
)
def test_the_index_is_a_list_of_offsets_and_rows(
    start: int, moves: list[Move], records_max: int, bytes_max: int
) -> None:
    """Whatever retention and compaction did, every offset finds its row."""
    index = Index(start)
    model: list[tuple[int, int, int]] = []
    following, row = start, 100
    for move, number in moves:
        if move in ("add", "hole"):
            offset = following + (number if move == "hole" else 0)
            row += 1 + number
            index.add(offset, row, number)
            model.append((offset, row, number))
            following = offset + 1
        elif move == "front":
            count = min(number, len(model))
            index.drop_front(count)
            del model[:count]
        else:
            gone = {offset for offset, _, _ in model[number::3]}
            index.drop(gone)
            model = [record for record in model if record[0] not in gone]
    assert len(index) == len(model)
    assert index.next == following
    assert index.first == (model[0][0] if model else following)
    for begin in range(start, following + 2):
        assert index.has(begin) == any(offset == begin for offset, _, _ in model)
        assert index.before(begin) == sum(offset < begin for offset, _, _ in model)
        expected: list[tuple[int, int]] = []
        total = 0
        for offset, row_id, size in model:
            if offset >= begin and len(expected) < records_max:
                total += size
                if expected and total > bytes_max:
                    break
                expected.append((offset, row_id))
        assert index.span(begin, records_max, bytes_max) == expected
