"""What in a TOML tree does not fit the types it is to become: each place with its value and what would be right.

msgspec stops at the first misfit and speaks of its own terms. Here all of them are found in one walk, and what may
stand in a place is read from the types themselves, so that no list of names or values is kept twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from schemas.settings import SecretSource

T = TypeVar("T")

SHOWN_CHARS_MAX = 80
"""Of a value: enough to find it in the file."""

_WORDS: tuple[tuple[type[inspect.Type], str], ...] = (
    (inspect.StrType, "a string"),
    (inspect.BoolType, "true or false"),
    (inspect.IntType, "an integer"),
    (inspect.FloatType, "a number"),
    (inspect.DateTimeType, "a date and time with its zone, like 2026-01-05T12:00:00Z"),
    (inspect.ListType, "an array"),
    (inspect.DictType, "a table"),
    (inspect.StructType, "a table"),
)

"""What is asked for."""

_FOUND: tuple[tuple[type, str], ...] = (
    (bool, "a boolean"),  # before the integers, which it is one of
    (str, "a string"),
    (int, "an integer"),
    (float, "a float"),
    (list, "an array"),
    (dict, "a table"),
)
"""What is there instead, in TOML's words."""


def converted(tree: Mapping[str, Any], kind: type[T]) -> T:
    """Return a tree as what it is to become. Raises `ValueError` with a line for each place that does not fit."""
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        # Should msgspec refuse what the walk lets pass, its own words are better than none.
        raise ValueError("\n".join(misfits(tree, kind)) or str(error)) from None


def misfits(tree: Mapping[str, Any], kind: type) -> list[str]:
    """Return a line for each place of a tree that does not fit a type: path, value, what would be right."""
    return list(_walk("", tree, _type_of(kind)))


@cache
def _type_of(kind: type) -> inspect.Type:
    """Read a type: some milliseconds for all settings, and always the same."""
    return inspect.type_info(kind)


def _walk(where: str, value: Any, wanted: inspect.Type) -> Iterator[str]:
    wanted = _one(wanted)
    if isinstance(wanted, inspect.StructType) and isinstance(value, dict):
        yield from _table(where, value, wanted)
    elif isinstance(wanted, inspect.DictType) and isinstance(value, dict):
        for name, each in value.items():
            yield from _walk(_inside(where, name), each, wanted.value_type)
    elif isinstance(wanted, inspect.ListType) and isinstance(value, list):
        for i, each in enumerate(value):
            yield from _walk(f"{where}[{i}]", each, wanted.item_type)
    elif not _fits(value, wanted):
        yield f"{_shown(where, value, wanted)}: must be {_right(wanted)}{_instead(value, wanted)}"


def _table(where: str, table: dict[str, Any], wanted: inspect.StructType) -> Iterator[str]:
    """Yield what is wrong with a table. A setting that is missing because its name is misspelt is told once."""
    fields = {field.encode_name: field for field in wanted.fields}
    name = table.get("name")
    whose = f" (of {name!r})" if isinstance(name, str) else ""
    meant: set[str] = set()
    for key, value in table.items():
        if key in fields:
            yield from _walk(_inside(where, key), value, fields[key].type)
            continue
        near = get_close_matches(key, fields, n=1)
        meant.update(near)
        right = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(fields))}"
        yield f"{_inside(where, key)}{whose}: no such setting; {right}"
    for key, field in fields.items():
        if field.required and key not in table and key not in meant:
            yield f"{_inside(where, key)}{whose}: is missing; must be {_right(_one(field.type))}"


def _fits(value: Any, wanted: inspect.Type) -> bool:
    """Whether a value that has nothing inside is of a type."""
    match wanted:
        case inspect.LiteralType():
            return value in wanted.values and not isinstance(value, bool)
        case inspect.StrType():
            return isinstance(value, str)
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType():
            return isinstance(value, int) and not isinstance(value, bool)
        case inspect.FloatType():
            return isinstance(value, int | float) and not isinstance(value, bool)
        case inspect.DateTimeType():
            return isinstance(value, datetime) or _is_time(value)
        case inspect.ListType() | inspect.DictType() | inspect.StructType():
            return False  # one that fits has been walked into
    return True


def _is_time(value: Any) -> bool:
    """Whether a string is an instant written out."""
    try:
        msgspec.convert(value, datetime)
    except msgspec.ValidationError:
        return False
    return True


def _right(wanted: inspect.Type) -> str:
    if isinstance(wanted, inspect.LiteralType):
        return _either([repr(value) for value in wanted.values])
    if _is_secret(wanted):
        return 'a table like { file = "secrets/name" } or { env = "NAME" }, never the secret itself'
    if isinstance(wanted, inspect.ListType) and isinstance(_one(wanted.item_type), inspect.StructType):
        return "an array of tables"
    return next((words for kind, words in _WORDS if isinstance(wanted, kind)), "of another type")


def _instead(value: Any, wanted: inspect.Type) -> str:
    """Say of what type a value is, where that is what is wrong with it."""
    if _is_secret(wanted) or (isinstance(value, str) and isinstance(wanted, inspect.LiteralType)):
        return ""
    return next((f", not {words}" for kind, words in _FOUND if isinstance(value, kind)), "")


def _shown(where: str, value: Any, wanted: inspect.Type) -> str:
    """Name a place with its value. Where a secret's source belongs the value may be the secret: it is not shown."""
    inside = wanted
    while isinstance(inside, inspect.ListType | inspect.DictType):
        inside = _one(inside.item_type if isinstance(inside, inspect.ListType) else inside.value_type)
    if isinstance(value, dict | list) or _is_secret(inside):
        return where
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return f"{where} = {text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 1] + '…'}"


def _is_secret(wanted: inspect.Type) -> bool:
    return isinstance(wanted, inspect.StructType) and wanted.cls is SecretSource


def _one(wanted: inspect.Type) -> inspect.Type:
    """Return what may stand in a TOML file of a type that may also be absent."""
    if not isinstance(wanted, inspect.UnionType):
        return wanted
    said = [each for each in wanted.types if not isinstance(each, inspect.NoneType)]
    return said[0] if len(said) == 1 else inspect.AnyType()


def _inside(where: str, name: str) -> str:
    shown = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else repr(name)
    return f"{where}.{shown}" if where else shown


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
