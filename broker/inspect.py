"""Readable views of what stands on a log, for `depesche tail` and `depesche deadletters`.

A record is shown as what it is, with its place, its time and its body decoded where that can be done. A record of a
version we do not know is shown as bytes, not as an error.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import msgspec

from broker.core.customer_state import Customer, Known, unpack, unpack_send_id, unpack_wamid
from broker.log.catalogue import STATE
from broker.log.contract import Entry
from broker.log.position import POSITION
from broker.masking import Masking
from schemas import records

TEXT_CHARS_MAX = 160
"""A line for a person; `--json` shows everything."""

SEND_ID_BYTES = 16

NESTING_MAX = 100
"""Deeper than anything Meta sends, and far from the interpreter's own bound."""

_LINE_ENDS = str.maketrans("", "", "\n\r\t")


def as_tree(entry: Entry) -> dict[str, Any]:
    """Return a record as a tree JSON can say, with nothing left out."""
    return {
        "log": entry.log,
        "partition": entry.partition,
        "offset": entry.offset,
        "appended_at": instant(entry.appended_at),
        "key": readable(entry.key),
        "record": _record(entry),
    }


def record_tree(value: bytes) -> dict[str, Any]:
    """Return a record's value as a tree: JSON inside it decoded, other bytes as text or base 64.

    A stage's own memory, and records of a version we do not know, are shown by their structure where they have one.
    """
    try:
        record = records.decode_any(value)
    except msgspec.MsgspecError:
        return _structure(value)
    if isinstance(record, records.DeadLetter):
        tree = _tree(record)
        tree["value"] = record_tree(record.value)
        return tree
    return _tree(record)


def _record(entry: Entry) -> dict[str, Any]:
    if entry.log == STATE and entry.key != POSITION and entry.value:
        try:
            return customer_tree(unpack(entry.value))
        except msgspec.MsgspecError:
            pass
    return record_tree(entry.value)


def customer_tree(customer: Customer) -> dict[str, Any]:
    """Return what is remembered of a customer, by name, without what is empty: when each window was opened, what was
    said about marketing with its time and proof, where somebody went. Rings are shown by their size."""
    tree: dict[str, Any] = {"type": "customer"}
    fresh = Customer()
    for name in customer.__struct_fields__:
        value = getattr(customer, name)
        if value != getattr(fresh, name):
            tree[name] = f"{len(value)} bytes" if isinstance(value, bytes) else _named(value)
    for change in tree.get("consent", ()):
        change["at"] = instant(change["at"])
    return tree


def _named(value: Any) -> Any:
    """Return structs by the names of their members, and bytes so that JSON can say them."""
    if isinstance(value, Known) and len(value.send_id) == SEND_ID_BYTES:
        named = {name: getattr(value, name) for name in value.__struct_fields__}
        return named | {"send_id": unpack_send_id(value.send_id), "wamid": unpack_wamid(value.wamid)}
    if isinstance(value, msgspec.Struct):
        return {name: _named(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list | tuple):
        return [_named(one) for one in value]
    if isinstance(value, dict):
        return {readable(name) if isinstance(name, bytes) else str(name): _named(one) for name, one in value.items()}
    return readable(value) if isinstance(value, bytes) else value


def as_line(entry: Entry, masking: Masking | None) -> str:
    """Return a record in one line for a person, masked (None: not masked)."""
    key, tree = readable(entry.key), _record(entry)
    if masking is not None:
        key, tree = masking.text(key, "key"), masking.tree(tree)
    what = str(tree.pop("type", "?"))
    parts = [f"{name}={_short(value)}" for name, value in tree.items()]
    return _one_line(f"{entry.partition}/{entry.offset} {instant(entry.appended_at)} {key} {what} {' '.join(parts)}")


def instant(at: int) -> str:
    """Return Unix ms as ISO 8601 in UTC."""
    return datetime.fromtimestamp(at / 1_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def readable(raw: bytes) -> str:
    """Return bytes as text where they are text of one or more lines, else as base 64 with a mark."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(raw).decode()
    if text.translate(_LINE_ENDS).isprintable():
        return text
    return "base64:" + base64.b64encode(raw).decode()


def _tree(record: msgspec.Struct) -> dict[str, Any]:
    config = record.__struct_config__
    tree: dict[str, Any] = {"type": config.tag}
    for name in record.__struct_fields__:
        value = getattr(record, name)
        tree[name] = _body(value) if isinstance(value, bytes) else value
    return tree


def _structure(value: bytes) -> dict[str, Any]:
    try:
        tree = _plain(msgspec.msgpack.decode(value))
    except (msgspec.MsgspecError, RecursionError, ValueError):
        tree = None
    if not isinstance(tree, dict | list):  # a lone byte is a number in msgpack: that says nothing
        return {"unreadable": readable(value)}
    return {"type": "structure", "value": tree}


def _body(raw: bytes) -> Any:
    if raw[:1] in (b"{", b"["):
        try:
            return _plain(msgspec.json.decode(raw))
        except (msgspec.DecodeError, RecursionError):
            return readable(raw)
    return readable(raw)


def _plain(tree: Any, left: int = NESTING_MAX) -> Any:
    """Return a tree of what JSON can say. Raises RecursionError when it is nested too deeply."""
    if left == 0:
        raise RecursionError
    match tree:
        case bytes():
            return readable(tree)
        case dict():
            plain = {}
            for name, value in tree.items():
                plain[name if isinstance(name, str) else str(_plain(name, left - 1))] = _plain(value, left - 1)
            return plain
        case list() | tuple():
            return [_plain(value, left - 1) for value in tree]
        case None | bool() | int() | float() | str():
            return tree
    return str(tree)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= TEXT_CHARS_MAX else text[: TEXT_CHARS_MAX - 1] + "…"


def _one_line(text: str) -> str:
    """Escape what would break a line or steer a terminal: these bytes came from outside."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def dead_letter_line(entry: Entry, masking: Masking | None) -> str:
    """Return a dead letter in one line: its place, when, who set it aside and why, where it stood."""
    try:
        letter = records.decode_dead_letter(entry.value)
    except msgspec.MsgspecError:
        return as_line(entry, masking)
    stood = f"{letter.log}/{letter.partition}/{letter.offset}" if letter.log else "never on a log"
    detail = letter.detail if masking is None else masking.text(letter.detail)  # a number that is cut looks like none
    return (
        f"{entry.partition}/{entry.offset} {instant(letter.at)} {letter.stage} {letter.reason} after {letter.attempts} "
        f"({stood}) {_one_line(_short(detail))}"
    )
