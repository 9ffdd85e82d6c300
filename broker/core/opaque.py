"""Our id of a send, and the string by which Meta hands it back to us on every status.

Meta returns `biz_opaque_callback_data` on each status of a message. We put our own line there, so that a status names
its send, its sink and its customer without a look-up, and settles a send whose answer was lost. The caller's own value
travels behind ours while both fit.
"""

from __future__ import annotations

import hashlib

from msgspec import Struct

from schemas.ids import SEND_ID_CHARS, CustomerKey, SendId, Sink

OPAQUE_CHARS_MAX = 512
"""Source: Meta Cloud API, "Messages". Whether Meta counts characters or bytes is not said: ours is held to both."""

_TAG = "dp1"
"""All that the caller gave is in the line."""
_TAG_CUT = "dp1-"
"""The caller gave a value that did not fit; the customer's state keeps it."""

_PREFIX = "wamid.D"
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = tuple(a + b for a in _CROCKFORD for b in _CROCKFORD)
"""Ten bits at a time: 13 look-ups instead of 26."""
_DIGITS = frozenset(_CROCKFORD)


class Opaque(Struct, frozen=True):
    """What a line of ours says. `own` is the caller's value, None when it gave none or (`own_kept` False) when it did
    not fit and has to be taken from the customer's state."""

    send_id: SendId
    sink: Sink
    customer: CustomerKey
    own: str | None
    own_kept: bool


def new_send_id(now_ms: int, random_bytes: bytes) -> SendId:
    """Return an id from 48 bits of Unix ms, so that ids sort by age, and 10 random bytes."""
    if len(random_bytes) != 10:
        raise ValueError(f"a send id takes 10 random bytes, not {len(random_bytes)}")
    return _send_id((now_ms & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(random_bytes, "big"))


def derived_send_id(key_name: str, idempotency_key: str) -> SendId:
    """Return the id of whatever this key sends under this `Idempotency-Key`: a repetition yields the same one."""
    named = f"{key_name}\0{idempotency_key}".encode("utf-8", "surrogatepass")
    return _send_id(int.from_bytes(hashlib.blake2b(named, digest_size=16).digest(), "big"))


def is_send_id(text: str) -> bool:
    """Say whether a message id is ours. Meta's own begin "wamid.H" and are longer."""
    return len(text) == SEND_ID_CHARS and text.startswith(_PREFIX) and _DIGITS.issuperset(text[len(_PREFIX) :])


def _send_id(number: int) -> SendId:
    return SendId(_PREFIX + "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)]))


def wrap(send_id: SendId, sink: Sink, key: CustomerKey, own: str | None) -> str:
    """Return the line for `biz_opaque_callback_data`; without the caller's value when both do not fit.

    Raises `ValueError` when our own part alone does not fit: names in the settings and ids are bounded far below.
    """
    line = f"|{send_id}|{_escape(sink)}|{_escape(key)}"
    if own is not None:
        whole = f"{_TAG}{line}|{own}"
        if _size(whole) <= OPAQUE_CHARS_MAX:
            return whole
    short = (_TAG if own is None else _TAG_CUT) + line
    if _size(short) > OPAQUE_CHARS_MAX:
        raise ValueError(f"sink and customer key leave no room: {_size(short)} bytes, {OPAQUE_CHARS_MAX} fit")
    return short


def unwrap(text: str) -> Opaque | None:
    """Read a line of ours; None when it is somebody else's, whatever it looks like."""
    if not text.startswith(_TAG):
        return None
    parts = text.split("|", 4)
    if len(parts) < 4 or not is_send_id(parts[1]) or not parts[3]:
        return None
    send_id, sink, customer = SendId(parts[1]), Sink(_unescape(parts[2])), CustomerKey(_unescape(parts[3]))
    if parts[0] == _TAG:
        return Opaque(send_id, sink, customer, parts[4] if len(parts) == 5 else None, own_kept=True)
    if parts[0] == _TAG_CUT and len(parts) == 4:
        return Opaque(send_id, sink, customer, None, own_kept=False)
    return None


def _size(line: str) -> int:
    """Bytes, which are never fewer than characters by any way of counting them."""
    return len(line) if line.isascii() else len(line.encode("utf-8", "surrogatepass"))


def _escape(name: str) -> str:
    """A BSUID is opaque to us, so it may hold our separator."""
    return name.replace("%", "%25").replace("|", "%7C") if "|" in name or "%" in name else name


def _unescape(name: str) -> str:
    return name.replace("%7C", "|").replace("%25", "%") if "%" in name else name
