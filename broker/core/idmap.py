"""Which wamid a send of ours has, and the reverse: for the sends of one customer that are settled for some time.

The newest stand in the customer's state with all that a late status may need (`customer_state.Known`). What falls out
there comes here, two ids each, packed into bytes: a customer taps a button of yesterday's menu, or replies to what was
said twenty messages ago, and the bot must recognise its own message. Rings are values: every change returns a new one.

    entry: 16 bytes of our id, 1 byte that says how long the wamid is, the wamid as `customer_state` packs it
"""

from __future__ import annotations

from collections.abc import Iterator

RING_BYTES_MAX = 4_096
"""Some 65 sends. It is written with every change of its customer's state, so it stays below what a dialogue costs
anyway; and it is given up as soon as the customer has been silent for some days."""

_ID_BYTES = 16
_WAMID_BYTES_MAX = 255


def added(ring: bytes, send_id: bytes, wamid: bytes) -> bytes:
    """Return the ring with one more, without the oldest where it would become too long.

    A wamid that does not fit (Meta's have some 45 bytes) is left out: its send is not recognised any more.
    """
    if not wamid or len(wamid) > _WAMID_BYTES_MAX or len(send_id) != _ID_BYTES:
        return ring
    ring = b"%b%b%c%b" % (ring, send_id, len(wamid), wamid)
    start = 0
    while len(ring) - start > RING_BYTES_MAX:
        start += _ID_BYTES + 1 + ring[start + _ID_BYTES]
    return ring[start:]


def wamid_of(ring: bytes, send_id: bytes) -> bytes:
    """Return a send's wamid, b"" when it is not there."""
    if send_id not in ring:
        return b""
    return next((wamid for each, wamid in entries(ring) if each == send_id), b"")


def send_id_of(ring: bytes, wamid: bytes) -> bytes:
    """Return the id of ours for a wamid, b"" when it is not there."""
    if not wamid or wamid not in ring:
        return b""
    return next((each for each, other in entries(ring) if other == wamid), b"")


def joined(older: bytes, newer: bytes) -> bytes:
    """Return one ring for what two keys knew of one person."""
    there = {send_id for send_id, _ in entries(older)}
    for send_id, wamid in entries(newer):
        if send_id not in there:
            older = added(older, send_id, wamid)
    return older


def entries(ring: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each (our id, wamid), oldest first."""
    at = 0
    while at < len(ring):
        begin = at + _ID_BYTES + 1
        end = begin + ring[begin - 1]
        yield ring[at : at + _ID_BYTES], ring[begin:end]
        at = end
