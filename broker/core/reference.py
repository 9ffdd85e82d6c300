"""Sends that speak of others: a reply's context, a reaction, a pin. A bot knows its sends by our ids, Meta by its own.

On the way out our ids become wamids and our opaque line is put in; members that are not touched keep their place and
their bytes. The way in is `broker.core.botview`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from broker.core.opaque import is_send_id
from broker.core.status import OPAQUE

_PLACES = (("context", "message_id"), ("reaction", "message_id"), ("pin", "message_id"))
"""Not any `message_id`: in what a bot gives along with a flow, it is the bot's own."""

_object = msgspec.json.Decoder(dict[str, Raw]).decode
_string = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode


def own_ids(body: bytes) -> list[str]:
    """Return the ids of ours that a send speaks of. Raises `ValueError` when the body is no JSON object."""
    try:
        payload = _object(body)
    except msgspec.DecodeError as error:
        raise ValueError(f"the body is not a JSON object: {error}") from None
    found = []
    for member, name in _PLACES:
        if member in payload:
            value = _text(_inner(payload[member]).get(name))
            if is_send_id(value):
                found.append(value)
    return found


def for_graph(body: bytes, line: str, wamids: Mapping[str, str]) -> bytes:
    """Return a send as it goes to Graph: with our line as its opaque data, and wamids where it says our ids."""
    payload: dict[str, Any] = dict(_object(body))
    if wamids:
        for member, name in _PLACES:
            if member in payload:
                inner = _inner(payload[member])
                wamid = wamids.get(_text(inner.get(name)))
                if wamid is not None:
                    inner[name] = wamid
                    payload[member] = inner
    payload[OPAQUE] = line
    return _encode(payload)


def _inner(raw: Raw) -> dict[str, Any]:
    """Return an object's members as raw slices; none when it is no object."""
    try:
        return dict(_object(raw))
    except msgspec.DecodeError:
        return {}


def _text(raw: Any) -> str:
    """Return a string; "" for anything else."""
    if raw is None or bytes(raw)[:1] != b'"':
        return ""
    try:
        return _string(raw)
    except msgspec.DecodeError:
        return ""
