"""An update as a bot gets to see it: our sends under our ids, Meta's media under our urls, all else to the byte.

A bot knows its sends by the ids we gave it, and Meta by its wamids: whatever an update says of a send of ours is said
in our id, in whatever list, type or depth Meta put it. A medium's url opens with Meta's token alone, so it becomes a
url of the gateway's. Both are done once, before the update stands on a sink's log, and never again: what a sink is sent
a second time is what it was sent the first time, whatever has been configured, learned or forgotten meanwhile.

Nothing is taken apart and joined again. The body's bytes are searched for strings that are values of certain members,
and these alone are replaced, so spelling, order and blanks of the rest need no care.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from broker.core.media_url import to_ours
from broker.core.opaque import is_send_id

BODY_BYTES_MAX = 3 * 1024 * 1024
"""Meta's own bound of a body, and what bots built for it take."""

Translate = Callable[[str], str]
"""Returns what is to stand in a string's place, "" to leave it."""
Link = Callable[[str, str], str]
"""Returns our url for a medium's url and id, "" to leave Meta's."""

_STRING = rb'"((?:[^"\\]|\\.)*)"'
_ID = re.compile(rb'(?<=[{,\s])("(?:[a-z_]*_)?id"\s*:\s*)' + _STRING)
"""A member whose name says that it is an id. Inside a string its quotes would be escaped; a name that ends in another
after an escaped quote does not begin behind a brace, a comma or a blank."""
_URL = re.compile(rb'(?<=[{,\s])("url"\s*:\s*)' + _STRING)

_SPEAKS = (b'"context"', b'message_id"', b"echoes")
"""One of these stands in every update that speaks of a message other than itself, or repeats one of ours."""


def with_our_ids(body: bytes, our_id: Translate) -> bytes:
    """Return an update with our ids where it says a wamid of a send of ours. `our_id`: "" for a stranger's.

    Only members named `id` or `…_id` are looked at: a text that quotes a wamid is the customer's own.
    """
    if not any(word in body for word in _SPEAKS):
        return body
    return _replaced(_ID, body, our_id)


def speaks_of(body: bytes) -> list[str]:
    """Return the wamids of Meta's that an update says, its own among them. One that does not look like Meta's now does
    not appear."""
    if not any(word in body for word in _SPEAKS):
        return []
    return [wamid for wamid in map(_text, _ID.findall(body)) if wamid.startswith("wamid.") and not is_send_id(wamid)]


def linked(phone_number_id: str, public_url: str, secret: bytes) -> Link:
    """Return what makes urls of a number's media (`broker.core.media_url`)."""

    def link(url: str, media_id: str) -> str:
        try:
            return to_ours(url, media_id, phone_number_id, public_url, secret)
        except ValueError:
            return ""

    return link


def with_our_urls(body: bytes, link: Link) -> bytes:
    """Return an update with our urls for its media: objects with an id, a type and a url, whatever they are called.

    Locations, contacts, referrals have urls, too: those open without a token and stay.
    """
    if b'"url"' not in body or b'"mime_type"' not in body:
        return body
    urls: dict[str, str] = {}

    def note(members: list[tuple[str, Any]]) -> None:
        medium = dict(members)
        url, media_id = medium.get("url"), medium.get("id", "")
        if type(url) is str and url and "mime_type" in medium:
            if type(media_id) is int:
                media_id = str(media_id)
            ours = link(url, media_id if type(media_id) is str else "")
            if ours:
                urls[url] = ours

    try:
        json.loads(body, object_pairs_hook=note, parse_float=_unread, parse_int=_integer)
    except (ValueError, RecursionError):
        return body
    return _replaced(_URL, body, lambda url: urls.get(url, "")) if urls else body


def _replaced(pattern: re.Pattern[bytes], body: bytes, translate: Translate) -> bytes:
    def replace(match: re.Match[bytes]) -> bytes:
        text = _text(match.groups())
        new = translate(text) if text else ""
        return match[1] + json.dumps(new).encode() if new else match[0]

    return pattern.sub(replace, body)


def _text(found: Sequence[bytes]) -> str:
    """Return the string of a member that was found, "" when it is none."""
    raw = found[1]
    try:
        return str(json.loads(b'"%b"' % raw)) if b"\\" in raw else raw.decode()
    except ValueError:
        return ""


def _unread(_: str) -> None:
    """A number is none of a medium's business, and may have more digits than Python reads."""


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) < 32 else None
