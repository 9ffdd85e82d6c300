"""Old sends by their two ids: found both ways, exactly, within a bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.core.idmap import RING_BYTES_MAX, added, entries, joined, send_id_of, wamid_of

ids = st.binary(min_size=16, max_size=16)
pairs = st.lists(
    st.tuples(ids, st.binary(min_size=1, max_size=255)), max_size=60, unique_by=(lambda p: p[0], lambda p: p[1])
)


def ring_of(pairs: list[tuple[bytes, bytes]]) -> bytes:
    ring = b""
    for send_id, wamid in pairs:
        ring = added(ring, send_id, wamid)
    return ring


@given(pairs)
def test_each_id_finds_the_other_until_the_bound_then_the_oldest_go(pairs: list[tuple[bytes, bytes]]) -> None:
    """In and out are each other's inverse, also where one entry's bytes look like another's id."""
    ring = ring_of(pairs)
    assert len(ring) <= RING_BYTES_MAX
    kept = list(entries(ring))
    assert kept == pairs[len(pairs) - len(kept) :]
    gone = pairs[: len(pairs) - len(kept)]
    assert all(wamid_of(ring, send_id) == wamid and send_id_of(ring, wamid) == send_id for send_id, wamid in kept)
    assert all(wamid_of(ring, send_id) == b"" and send_id_of(ring, wamid) == b"" for send_id, wamid in gone)
    if gone:
        assert len(ring) + 17 + len(gone[-1][1]) > RING_BYTES_MAX


def test_sixty_sends_of_an_ordinary_customer_are_kept() -> None:
    """A day's dialogue: wamids have some 45 bytes."""
    pairs = [(number.to_bytes(16), b"\0" + number.to_bytes(44)) for number in range(200)]
    assert len(list(entries(ring_of(pairs)))) >= 60


def test_an_id_that_does_not_fit_is_left_out() -> None:
    """Meta's never are so long; one that were must not cost the others."""
    ring = added(b"", bytes(16), b"w")
    assert added(ring, b"x" * 16, b"w" * 256) == ring
    assert added(ring, b"short", b"w") == ring
    assert added(ring, b"x" * 16, b"") == ring


@given(pairs, pairs)
def test_two_rings_of_one_person_become_one(one: list[tuple[bytes, bytes]], other: list[tuple[bytes, bytes]]) -> None:
    """A customer who was known by phone and by BSUID apart; what both have is there once."""
    first, second = ring_of(one[:20]), ring_of([*other[:10], *one[:5]])
    both = list(entries(joined(first, second)))
    assert len({send_id for send_id, _ in both}) == len(both)
    if sum(17 + len(wamid) for _, wamid in [*one[:20], *other[:10]]) <= RING_BYTES_MAX:
        assert {send_id for send_id, _ in both} == {send_id for send_id, _ in [*one[:20], *other[:10]]}
