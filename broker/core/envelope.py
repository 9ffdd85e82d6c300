"""The bytes around an item: how a body of one update is cut out of a body of many, without touching a value.

An object is read as its members' names and raw slices (`Members`). Joined again with one element where there was a
list, they are a body in Meta's shape: members in their order, values as the bytes they came in.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec
from msgspec import Raw

Members = dict[str, Raw]
Bytes = tuple[bytes, bytes]
"""What stands before and after something."""

_NOT_ASCII = re.compile("[^\x00-\x7f]")


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x1_0000:
        return f"\\u{code:04x}"
    code -= 0x1_0000
    return f"\\u{0xD800 | code >> 10:04x}\\u{0xDC00 | code & 0x3FF:04x}"


def ascii_body(body: bytes) -> bytes:
    """Escape what is not ASCII as Meta does. In JSON it can only stand inside strings. Raises `UnicodeDecodeError`."""
    return body if body.isascii() else _NOT_ASCII.sub(_escape, body.decode()).encode()


_names: dict[str, bytes] = {}
_NAMES_MAX = 512
"""Names of members are few; a sender of ever new ones must not fill our memory."""


def named(name: str) -> bytes:
    """A member's name as it stands in JSON, colon included."""
    known = _names.get(name)
    if known is None:
        known = ascii_body(msgspec.json.encode(name)) + b":"
        if len(_names) < _NAMES_MAX:
            _names[name] = known
    return known


def around(members: Members, hole: str, opening: bytes = b"", closing: bytes = b"") -> Bytes:
    """An object's bytes before and after the value of one member, with a list's brackets where it is a list's."""
    before: list[bytes | Raw] = [b"{"]
    after: list[bytes | Raw] = []
    for name, value in members.items():
        if name == hole:
            before += (named(name), opening)
            after.append(closing)
        elif after:
            after += (b",", named(name), value)
        else:
            before += (named(name), value, b",")
    after.append(b"}")
    return b"".join(before), b"".join(after)


class Frame(NamedTuple):
    """The bytes around an item: `head`, contacts, `middle`, item, `tail`; or, when contacts stand behind the items,
    `head`, item, `middle`, contacts, `tail`."""

    head: bytes
    middle: bytes
    tail: bytes
    contacts_first: bool

    def around(self, item: Raw, contacts: bytes) -> bytes:
        """The body of one item; `contacts`: its own, joined by commas, or nothing."""
        if self.contacts_first:
            if contacts:
                return b"".join((self.head, b'"contacts":[', contacts, b"],", self.middle, item, self.tail))
            return b"".join((self.head, self.middle, item, self.tail))
        if contacts:
            return b"".join((self.head, item, self.middle, b',"contacts":[', contacts, b"]", self.tail))
        return b"".join((self.head, item, self.middle, self.tail))


def frame_of(outer: Bytes, value: Members, hole: str, left_out: dict[str, None]) -> Frame:
    """The frame of the items of one list of a value. `left_out`: members that do not go along."""
    parts: list[list[bytes | Raw]] = [[outer[0], b"{"]]
    passed = contacts_first = False
    for name, member in value.items():
        if name == hole:
            parts[-1] += (named(name), b"[")
            passed, contacts_first = True, len(parts) == 2
            parts.append([b"]"])
        elif name in left_out:
            continue
        elif name == "contacts":
            parts.append([])
        else:
            parts[-1] += (b",", named(name), member) if passed else (named(name), member, b",")
    parts[-1] += (b"}", outer[1])
    pieces = [b"".join(part) for part in parts]
    if len(pieces) == 2:  # no contacts in this value
        return Frame(b"", pieces[0], pieces[1], contacts_first=True)
    return Frame(pieces[0], pieces[1], pieces[2], contacts_first)


_ESCAPES = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|u....|.)", re.DOTALL)


def hide_lone_surrogates(body: bytes) -> bytes | None:
    """Half a pair is an escape that JSON allows, that users can type, and that no strict parser reads.

    Each becomes a private-use character (U+E000 to U+E7FF) of the same length, which `show_lone_surrogates` takes
    back; None when the body has none, or has characters of that block of its own. Upper-case digits a to f would come
    back in lower case; Meta writes lower case.
    """
    if re.search(rb"\\u[eE][0-7]", body):
        return None
    hidden = False

    def hide(match: re.Match[bytes]) -> bytes:
        nonlocal hidden
        lone = match[1]
        if lone is None:
            return match[0]
        hidden = True
        return b"\\u%c%d%b" % (lone[1] + 1, int(lone[2:3], 16) - 8, lone[3:])

    body = _ESCAPES.sub(hide, body)
    return body if hidden else None


def show_lone_surrogates(body: bytes) -> bytes:
    """Take `hide_lone_surrogates` back."""
    return re.sub(rb"\\u([eE])([0-7])", lambda found: b"\\u%c%x" % (found[1][0] - 1, int(found[2]) + 8), body)


def object_bytes(members: Members) -> bytes:
    """An object's bytes."""
    return b"{" + b",".join([b"".join((named(name), value)) for name, value in members.items()]) + b"}"


def nest(outer: Bytes, inner: Bytes) -> Bytes:
    """What stands around something that stands in something."""
    return outer[0] + inner[0], inner[1] + outer[1]


def join(outer: Bytes, inner: bytes | Raw) -> bytes:
    """The bytes with something between them."""
    return b"".join((outer[0], inner, outer[1]))
