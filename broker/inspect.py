"""Readable views of what stands on a log, for `depesche tail` and `depesche deadletters`.

A record is shown as what it is, with its place, its time and its body decoded where that can be done. A record of a
version we do not know is shown as bytes, not as an error.
"""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from typing import Any

import msgspec

from broker.log.contract import Entry
from schemas import records

TEXT_CHARS_MAX = 160
"""A line for a person; `--json` shows everything."""

_DIGITS = re.compile(r"\d{7,}")


def as_tree(entry: Entry) -> dict[str, Any]:
    """Return a record as a tree JSON can say, with nothing left out."""
    return {
        "log": entry.log,
        "partition": entry.partition,
        "offset": entry.offset,
        "appended_at": instant(entry.appended_at),
        "key": readable(entry.key),
        "record": record_tree(entry.value),
    }


def record_tree(value: bytes) -> Any:
    """Return a record's value as a tree: JSON inside it decoded, other bytes as text or base 64."""
    try:
        record = records.decode_any(value)
    except msgspec.MsgspecError:
        return {"unreadable": readable(value)}
    if isinstance(record, records.DeadLetter):
        tree = _tree(record)
        tree["value"] = record_tree(record.value)
        return tree
    return _tree(record)


def as_line(entry: Entry, *, reveal: bool = False) -> str:
    """Return a record in one line for a person. Long digit runs are masked unless `reveal`: they are phone numbers."""
    tree = record_tree(entry.value)
    what = str(tree.pop("type", "?")) if isinstance(tree, dict) else "?"
    parts = [f"{name}={_short(value)}" for name, value in tree.items()] if isinstance(tree, dict) else [_short(tree)]
    text = (
        f"{entry.partition}/{entry.offset} {instant(entry.appended_at)} {readable(entry.key)} {what} {' '.join(parts)}"
    )
    return text if reveal else mask(text)


def mask(text: str) -> str:
    """Keep the last three of every run of seven or more digits."""
    return _DIGITS.sub(lambda found: "•" * 4 + found.group()[-3:], text)


def instant(at: int) -> str:
    """Return Unix ms as ISO 8601 in UTC."""
    return datetime.fromtimestamp(at / 1_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def readable(raw: bytes) -> str:
    """Return bytes as text where they are text, else as base 64 with a mark."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(raw).decode()
    return text if text.isprintable() else "base64:" + base64.b64encode(raw).decode()


def _tree(record: msgspec.Struct) -> dict[str, Any]:
    config = record.__struct_config__
    tree: dict[str, Any] = {"type": config.tag}
    for name in record.__struct_fields__:
        value = getattr(record, name)
        tree[name] = _body(value) if isinstance(value, bytes) else value
    return tree


def _body(raw: bytes) -> Any:
    if raw[:1] in (b"{", b"["):
        try:
            return msgspec.json.decode(raw)
        except msgspec.DecodeError:
            return readable(raw)
    return readable(raw)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= TEXT_CHARS_MAX else text[: TEXT_CHARS_MAX - 1] + "…"


def dead_letter_line(entry: Entry) -> str:
    """Return a dead letter in one line: its place, when, who set it aside and why, where it stood."""
    try:
        letter = records.decode_dead_letter(entry.value)
    except msgspec.MsgspecError:
        return as_line(entry, reveal=True)
    stood = f"{letter.log}/{letter.partition}/{letter.offset}" if letter.log else "never on a log"
    return (
        f"{entry.partition}/{entry.offset} {instant(letter.at)} {letter.stage} {letter.reason} after {letter.attempts} "
        f"({stood}) {_short(letter.detail)}"
    )
