"""Messages that speak of other messages: a reply's context, a reaction. A bot knows its sends by our ids, Meta by its.

On the way out our ids become wamids and our opaque line is put in; on the way in wamids of our sends become our ids.
Members that are not touched keep their place and their bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Raw

from broker.core.opaque import is_send_id
from broker.core.status import OPAQUE

_PLACES_OUT = (("context", "message_id"), ("reaction", "message_id"))
_PLACES_IN = (("context", "id"), ("reaction", "message_id"))

_object = msgspec.json.Decoder(dict[str, Raw]).decode
_objects = msgspec.json.Decoder(list[dict[str, Raw]]).decode
_string = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode


def own_ids(body: bytes) -> list[str]:
    """Return the ids of ours that a send speaks of. Raises `ValueError` when the body is no JSON object."""
    try:
        payload = _object(body)
    except msgspec.DecodeError as error:
        raise ValueError(f"the body is not a JSON object: {error}") from None
    found = []
    for member, name in _PLACES_OUT:
        if member in payload:
            value = _text(_inner(payload[member]).get(name))
            if is_send_id(value):
                found.append(value)
    return found


def for_graph(body: bytes, line: str, wamids: Mapping[str, str]) -> bytes:
    """Return a send as it goes to Graph: with our line as its opaque data, and wamids where it says our ids."""
    payload: dict[str, Any] = dict(_object(body))
    if wamids:
        for member, name in _PLACES_OUT:
            if member in payload:
                inner = _inner(payload[member])
                wamid = wamids.get(_text(inner.get(name)))
                if wamid is not None:
                    inner[name] = wamid
                    payload[member] = inner
    payload[OPAQUE] = line
    return _encode(payload)


def for_bot(body: bytes, our_id: Callable[[str], str]) -> bytes:
    """Return an inbound message with our ids where it speaks of our sends; what cannot be read stays as it is.

    `our_id` returns "" for a stranger's wamid, and for "".
    """
    try:
        outer: dict[str, Any] = dict(_object(body))
        (entry,) = _objects(outer["entry"])
        (change,) = _objects(entry["changes"])
        value = _object(change["value"])
        (message,) = _objects(value["messages"])
    except (msgspec.DecodeError, KeyError, ValueError):
        return body
    changed: dict[str, Any] = {}
    for member, name in _PLACES_IN:
        if member in message:
            inner = _inner(message[member])
            ours = our_id(_text(inner.get(name)))
            if ours:
                inner[name] = ours
                changed[member] = inner
    if not changed:
        return body
    outer["entry"] = [{**entry, "changes": [{**change, "value": {**value, "messages": [{**message, **changed}]}}]}]
    renamed = _encode(outer)
    return renamed if renamed.isascii() else json.dumps(json.loads(renamed), separators=(",", ":")).encode()


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
