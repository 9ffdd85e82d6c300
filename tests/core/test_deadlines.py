"""When to look at whom again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.core.deadlines import SLACK, Deadlines


def test_only_the_last_deadline_of_a_key_counts() -> None:
    """A doubt that is settled must not wake anybody."""
    deadlines = Deadlines[str]()
    deadlines.set("a", 10)
    deadlines.set("a", 30)
    deadlines.set("b", 20)
    deadlines.set("c", 5)
    deadlines.set("c", 0)
    assert deadlines.next_at() == 20
    assert deadlines.take_due(30, 10) == ["b", "a"]
    assert deadlines.next_at() == 0


def test_no_more_are_taken_than_asked_for() -> None:
    """After a long standstill everything is due at once; a step has room for a thousand."""
    deadlines = Deadlines[str]()
    for index in range(10):
        deadlines.set(str(index), index + 1)
    assert deadlines.take_due(100, 3) == ["0", "1", "2"]
    assert deadlines.take_due(100, 100) == [str(index) for index in range(3, 10)]


def test_moved_deadlines_do_not_pile_up() -> None:
    """Every send sets a deadline a day ahead and is settled within seconds."""
    deadlines = Deadlines[str]()
    for at in range(1, 20_000):
        deadlines.set("a", at)
    assert len(deadlines._heap) <= SLACK + 3
    assert deadlines.take_due(10**9, 10) == ["a"]


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 50))), st.integers(0, 60))
def test_it_is_a_dictionary_read_in_order(changes: list[tuple[str, int]], now: int) -> None:
    """Against the obvious model."""
    deadlines, model = Deadlines[str](), dict[str, int]()
    for key, at in changes:
        deadlines.set(key, at)
        model[key] = at
    due = sorted((at, key) for key, at in model.items() if 0 < at <= now)
    assert deadlines.take_due(now, 100) == [key for _, key in due]
    later = [at for at in model.values() if at > now]
    assert deadlines.next_at() == (min(later) if later else 0)
