"""What of a record is not shown to whoever does not ask for it: customers' phone numbers, in every form they come in.

Hidden are runs of seven or more digits, with blanks and dashes between them or without; Meta's message ids, whose
base 64 holds the customer's digits; bytes, which may hold anything. Shown are the ids of configured numbers and
accounts, instants, hexadecimal ids, our own message ids: what one looks for. In doubt it is hidden.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import Any

from broker.core.opaque import is_send_id
from broker.log.position import POSITION
from schemas.settings import Settings

SHOWN_DIGITS = 3
WAMID_CHARS_SHOWN = 8
WAMID_CHARS_MIN = 40
"""Of a wamid with so many characters behind its prefix the last ones hold no phone: that stands at its beginning (4
characters, then at most 20 digits in 27). Of a shorter one, or one that was cut, nothing is shown."""

CUSTOMER_NAMES = frozenset(
    (
        *("key", "customer", "order_key", "by", "source", "to", "from", "recipient", "recipient_id", "input"),
        *("wa_id", "wa_ids", "previous_wa_id", "old_wa_id", "new_wa_id", "user", "user_id", "participants"),
        *("phone", "phones", "phone_number"),
    )
)
"""Under these names an id of a configured number is not taken for one, unless `#` says so: a customer stands there."""

INSTANT_NAMES = frozenset(["timestamp", "creation_timestamp", "expiration_timestamp", "start_time", "end_time"])

_INSTANT_S = range(1_500_000_000, 2_000_000_000)
"""Unix s; as ms a thousand times that. No phone with its country's code is in either: with 1 it has 11 digits."""
_INSTANT_MS = range(_INSTANT_S.start * 1_000, _INSTANT_S.stop * 1_000)

_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_TOKEN = re.compile(
    r"""
      (?P<wamid> (?i:wamid) \. [A-Za-z0-9+/=_%\\-]+ | (?<![A-Za-z0-9]) HBg [A-Za-z0-9+/=_%\\-]{12,} )
    | (?P<bytes> base64: [A-Za-z0-9+/=]+ )
    | (?P<id> (?<![0-9A-Za-z]) (?:
          (?=[0-9]{0,63}[a-f]) (?: [0-9a-f]{64} | [0-9a-f]{32} )
        | (?=[0-9-]{0,35}[a-f]) [0-9a-f]{8} (?: -[0-9a-f]{4} ){3} -[0-9a-f]{12}
        ) (?![0-9A-Za-z]) )
    | (?P<instant> (?<![\d+-]) 20\d\d-[01]\d-[0-3]\d [T\ ] [0-2]\d:[0-5]\d (?: :[0-5]\d (?: \.\d{1,9} )? )?
        (?: Z | [+-]\d\d:?\d\d )? (?!\d) )
    | (?P<address> (?<![\d.]) (?: (?<=//) OCTETS | OCTETS (?=:\d) ) (?![\d.]) )
    | (?P<run> (?<![\d+]) \d{7,} (?!\d) )
    """.replace("OCTETS", rf"(?:{_OCTET}\.){{3}}{_OCTET}"),
    re.VERBOSE | re.ASCII,
)

_PHONE = re.compile("\\d(?:[ \t.()\u00a0\u2007\u200b-\u200f\u2010-\u2013\u202a-\u202f-]{0,4}\\d){6,}")
_POSITION = "base64:" + b64encode(POSITION).decode()
_OF_A_NUMBER = re.compile(r"#(?:account:)?$")


class Masking:
    """Hides customers' numbers; `ids` are those of the operator's own numbers and accounts. Immutable."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._ids = frozenset(ids)

    @classmethod
    def of(cls, settings: Settings) -> Masking:
        """Return that for a configuration."""
        ids = [id_ for each in settings.numbers for id_ in (each.phone_number_id, each.waba_id)]
        if settings.sandbox is not None:
            ids += [id_ for each in settings.sandbox.numbers for id_ in (each.phone_number_id, each.waba_id)]
        return cls(ids)

    def text(self, text: str, name: str = "") -> str:
        """Return a text that stands under a name, masked."""
        if name in INSTANT_NAMES and text.isascii() and text.isdigit() and _is_instant(int(text[:20])):
            return text
        parts, at = [], 0
        for found in _TOKEN.finditer(text):
            token = self._token(found, name)
            if token is not None:
                parts += [_PHONE.sub(_hidden, text[at : found.start()]), token]
                at = found.end()
        parts.append(_PHONE.sub(_hidden, text[at:]))
        return "".join(parts)

    def tree(self, tree: Any, name: str = "", *, from_outside: bool = False) -> Any:
        """Return a tree that stands under a name, masked: its texts, its names, and numbers that may be phones.

        Numbers of ours are instants and places and stay; in a body, which is `from_outside`, only instants do.
        """
        match tree:
            case str():
                return self.text(tree, name)
            case dict():
                hidden: dict[str, Any] = {}
                for each, value in tree.items():
                    shown = self.text(each)
                    while shown in hidden:  # two that look alike when masked stay two
                        shown += "′"
                    hidden[shown] = self.tree(value, each, from_outside=from_outside or each == "body")
                return hidden
            case list():
                return [self.tree(value, name, from_outside=from_outside) for value in tree]
            case bool() | None:
                return tree
            case int() | float():
                is_suspect = (from_outside or name in CUSTOMER_NAMES) and abs(tree) >= 1_000_000 and tree == tree // 1
                if is_suspect and not _is_instant(int(tree)):
                    return self.text(str(int(tree)), name)
        return tree

    def _token(self, found: re.Match[str], name: str) -> str | None:
        """Return what is shown instead of a token, or None: it is text like the rest."""
        token = found.group()
        match found.lastgroup:
            case "wamid":
                return _wamid(token)
            case "bytes":
                return token if token == _POSITION else f"base64:… ({_size(token.removeprefix('base64:'))} bytes)"
            case "run":
                is_ours = token in self._ids
                if is_ours and name in CUSTOMER_NAMES:
                    is_ours = _OF_A_NUMBER.search(found.string, 0, found.start()) is not None
                return token if is_ours else None
        return token


def _hidden(found: re.Match[str]) -> str:
    digits = [c for c in found.group() if c.isdigit()]
    return "•" * 4 + "".join(digits[-SHOWN_DIGITS:])


def _wamid(token: str) -> str:
    if is_send_id(token):
        return token
    prefix = "wamid." if token[:6].lower() == "wamid." else ""
    body = token[len(prefix) :]
    return f"{prefix}…{body[-WAMID_CHARS_SHOWN:] if len(body) >= WAMID_CHARS_MIN else ''}"


def _is_instant(value: int) -> bool:
    return value in _INSTANT_S or value in _INSTANT_MS


def _size(base64: str) -> str:
    try:
        return str(len(b64decode(base64)))
    except ValueError:
        return "some"
