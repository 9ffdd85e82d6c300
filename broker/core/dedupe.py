"""Which facts a customer's actor has taken: a ring of short hashes with their age and a few marks, packed into bytes.

An entry has 13 bytes: 8 of the fact's hash, 4 of the Unix second it was taken, 1 of marks. 128 facts of one customer
collide once in 10^15 customers. The oldest entry goes when the ring is full or the entry is older than Meta repeats
webhooks. Rings are values: every change returns a new one.
"""

from __future__ import annotations

import hashlib

ENTRY_BYTES = 13
ENTRIES_MAX = 128
"""Facts of one customer. Repetitions come within minutes of the first, mostly; a customer with more than this in
flight is no person."""

KEPT_MS = 8 * 24 * 3_600_000
"""Meta repeats a webhook for up to 7 days, plus margin."""

_BYTES_MAX = ENTRIES_MAX * ENTRY_BYTES


def fingerprint(fact: str) -> bytes:
    """Return the hash of a fact's name."""
    return hashlib.blake2b(fact.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def find(ring: bytes, hashed: bytes) -> int:
    """Return where the entry of a fact begins, -1 when it is not there."""
    at = ring.find(hashed)
    while at > 0 and at % ENTRY_BYTES:
        at = ring.find(hashed, at + 1)
    return at


def marks(ring: bytes, at: int) -> int:
    """Return the marks of the entry that begins there."""
    return ring[at + 12]


def marked(ring: bytes, at: int, mark: int) -> bytes:
    """Return the ring with marks added to the entry that begins there. Its age stays."""
    return b"%b%c%b" % (ring[: at + 12], ring[at + 12] | mark, ring[at + ENTRY_BYTES :])


def added(ring: bytes, hashed: bytes, now: int, mark: int = 0) -> bytes:
    """Return the ring with a fact it does not hold, without what is too old or too many."""
    start = max(0, len(ring) + ENTRY_BYTES - _BYTES_MAX)
    oldest = (now - KEPT_MS) // 1_000
    while start < len(ring) and int.from_bytes(ring[start + 8 : start + 12], "big") < oldest:
        start += ENTRY_BYTES
    second = min(max(now // 1_000, 0), 0xFFFF_FFFF)
    return b"%b%b%b%c" % (ring[start:], hashed, second.to_bytes(4, "big"), mark)


def merged(one: bytes, other: bytes) -> bytes:
    """Return the ring of a person who was known under two keys: each fact once, with both marks, oldest first."""
    entries: dict[bytes, tuple[bytes, int]] = {}
    for ring in (one, other):
        for at in range(0, len(ring), ENTRY_BYTES):
            hashed, second, mark = ring[at : at + 8], ring[at + 8 : at + 12], ring[at + 12]
            before = entries.get(hashed)
            entries[hashed] = (second, mark) if before is None else (max(second, before[0]), mark | before[1])
    ordered = sorted(entries.items(), key=lambda entry: entry[1][0])[-ENTRIES_MAX:]
    return b"".join(b"%b%b%c" % (hashed, second, mark) for hashed, (second, mark) in ordered)
