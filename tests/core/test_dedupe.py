"""The ring of facts that were taken."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.core.dedupe import (
    ENTRIES_MAX,
    ENTRY_BYTES,
    KEPT_MS,
    added,
    find,
    fingerprint,
    marked,
    marks,
)

NOW = 1_790_000_000_000


def test_a_fact_is_found_until_it_is_too_old() -> None:
    """Meta repeats for a week; what is older is room for others."""
    ring = added(b"", fingerprint("a"), NOW)
    assert find(ring, fingerprint("a")) == 0
    assert find(ring, fingerprint("b")) == -1
    ring = added(ring, fingerprint("b"), NOW + KEPT_MS)
    assert find(ring, fingerprint("a")) == 0
    ring = added(ring, fingerprint("c"), NOW + KEPT_MS + 1_000)
    assert find(ring, fingerprint("a")) == -1
    assert find(ring, fingerprint("b")) >= 0


def test_marks_are_added_and_stay() -> None:
    """A status is forwarded once: its mark must not be lost with the next one's."""
    ring = added(added(b"", fingerprint("a"), NOW), fingerprint("b"), NOW)
    at = find(ring, fingerprint("a"))
    ring = marked(marked(ring, at, 2), at, 8)
    assert marks(ring, at) == 10
    assert marks(ring, find(ring, fingerprint("b"))) == 0
    assert len(ring) == 2 * ENTRY_BYTES


def test_a_hash_across_two_entries_is_no_entry() -> None:
    """Bytes are searched, so what begins inside an entry must not count."""
    first, second = bytes(range(8)), bytes(range(100, 108))
    ring = added(added(b"", first, NOW), second, NOW)
    inside = ring[4:12]
    assert inside in ring
    assert find(ring, inside) == -1
    ring = added(ring, inside, NOW)
    assert find(ring, inside) == 2 * ENTRY_BYTES


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, KEPT_MS)), max_size=300))
def test_a_ring_never_outgrows_its_limit_and_always_holds_the_newest(facts: list[tuple[int, int]]) -> None:
    """A customer who floods us costs 1.7 kB, not more."""
    ring, now = b"", NOW
    for fact, passed in facts:
        now += passed // 100
        hashed = fingerprint(str(fact))
        if find(ring, hashed) < 0:
            ring = added(ring, hashed, now)
        assert find(ring, hashed) >= 0
        assert len(ring) % ENTRY_BYTES == 0
        assert len(ring) <= ENTRIES_MAX * ENTRY_BYTES
