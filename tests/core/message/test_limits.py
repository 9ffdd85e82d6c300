"""Every limit there is, found in the shapes themselves: none is forgotten, none is off by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from broker.core.message import INVALID, MISSING, VALUE, Outgoing, check
from broker.core.message import limits as table
from broker.core.message.limits import Limit
from broker.core.message.request import COMMON, MARK, TYPES
from broker.core.message.shapes import (
    Choice,
    Flag,
    Identifier,
    ListOf,
    Number,
    Object,
    Shape,
    Text,
    Url,
    Variants,
)
from schemas.graph import Error
from tests.core.message.samples import BASE

Path = tuple[str | int, ...]

BY_RULE = {
    "CARD_LINE_BREAKS": "line breaks are counted by a rule of a card's body",
    "DIRECT_SEND_BODY": "only beside a category",
    "TEMPLATE_TEXT_BESIDE_OTHERS": "over all parameters of a body",
    "BSUID": "an address has a form, too",
}
"""Limits that no single member has; tests of the request hold them to the character."""


def example(shape: Shape, extra: str = "") -> Any:
    """The smallest value of a shape that has every needed member, and in a list as few elements as it may have."""
    match shape:
        case Text(limit):
            return ("a" + extra)[: limit.most].ljust(limit.least, "a")
        case Url():
            return "https://example.com"
        case Identifier():
            return f"17{extra}"
        case Flag():
            return True
        case Number(least):
            return max(least, 0)
        case Choice(words):
            return words[0]
        case ListOf(element, limit):
            return [example(element, f"{extra}-{index}") for index in range(max(limit.least, 1))]
        case Object(members, needed, one_of):
            whole = {name: example(members[name], extra) for name in members if name in (*needed, "title")}
            return whole | {name: example(members[name], extra) for name in one_of[:1]}
        case Variants(tag, of):
            kind = next(iter(of))
            return {tag: kind, **example(of[kind], extra)}
    return {}


def places(shape: Shape, whole: Any, path: Path) -> Iterator[tuple[Path, Shape, Any]]:
    """Every place of a shape, with a whole value that has it: `whole` is one, whose value at `path` is of the shape."""
    yield path, shape, whole
    match shape:
        case ListOf(element):
            yield from places(element, whole, (*path, 0))
        case Object(members):
            for name, member in members.items():
                at = (*path, name)
                value = taken_from(whole, path).get(name)
                yield from places(member, put(whole, at, example(member) if value is None else value), at)
        case Variants(tag, of):
            for kind, variant in of.items():
                yield from places(variant, put(whole, path, {tag: kind, **example(variant)}), path)


def taken_from(whole: Any, path: Path) -> Any:
    for step in path:
        whole = whole[step]
    return whole


def put(whole: Any, path: Path, value: Any) -> Any:
    """A copy with one value replaced."""
    if not path:
        return value
    step, *rest = path
    if isinstance(whole, list):
        assert isinstance(step, int)
        return [put(old, tuple(rest), value) if place == step else old for place, old in enumerate(whole)]
    return {**whole, step: put(whole.get(step), tuple(rest), value)}


def written(path: Path) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def every_place() -> Iterator[tuple[Path, Shape, Any]]:
    text = {**BASE, "type": "text", "text": {"body": "x"}}
    for path, shape, whole in places(COMMON, text, ()):
        if path:
            yield path, shape, whole
    for path, shape, whole in places(MARK, example(MARK), ()):
        if path:
            yield path, shape, whole
    for name, shape in TYPES.items():
        whole = {**BASE, "type": name, name: example(shape)}
        yield from places(shape, whole, (name,))


def answer(message: Any) -> Outgoing | Error:
    return check(json.dumps(message).encode(), unknown_types=False)


PLACES = list(every_place())


def sized(shape: Text | ListOf, size: int) -> Any:
    if isinstance(shape, Text):
        return "é" * size
    return [example(shape.element, f"-{index}") for index in range(size)]


def test_there_is_something_at_every_place() -> None:
    """The walk below would prove nothing on half of the tables."""
    paths = {written(path) for path, _, _ in PLACES}
    assert len(paths) > 120
    assert {"text.body", "interactive.action.cards[0].body.text", "template.components[0].cards[0].card_index"} <= paths
    for _, _, whole in PLACES:
        assert isinstance(answer(whole), Outgoing), (whole, answer(whole))


@pytest.mark.parametrize(
    ("path", "shape", "whole"),
    [pytest.param(*place, id=written(place[0])) for place in PLACES if isinstance(place[1], Text | ListOf)],
)
def test_at_the_limit_it_passes_and_one_beyond_it_is_refused(path: Path, shape: Text | ListOf, whole: Any) -> None:
    """With the code of whoever reads it at Meta, and the path in the details."""
    limit = shape.limit
    content = len(path) > 1 and (path[0] == "interactive" or path[:2] == ("template", "components"))
    at_limit = answer(put(whole, path, sized(shape, limit.most)))
    if isinstance(at_limit, Error):  # a header's texts have 60 characters together: another test's
        assert whole["template"]["components"][0]["type"] == "header"
        assert at_limit.code == 132005
    refused = answer(put(whole, path, sized(shape, limit.most + 1)))
    assert isinstance(refused, Error)
    assert refused.code == (VALUE if content else INVALID)
    assert refused.error_data
    assert refused.error_data.details.startswith(f"{written(path)} must ")
    if limit.least > (0 if isinstance(shape, ListOf) else 1):
        refused = answer(put(whole, path, sized(shape, limit.least - 1)))
        assert isinstance(refused, Error)
        assert refused.code == (VALUE if content else INVALID)
    if isinstance(shape, Text) and not shape.empty:
        refused = answer(put(whole, path, ""))
        assert isinstance(refused, Error)
        assert (refused.code, refused.error_data.details) == (  # type: ignore[union-attr]
            MISSING if content else INVALID,
            f"{written(path)} is missing.",
        )


@pytest.mark.parametrize(
    ("path", "shape", "whole"), [pytest.param(*place, id=written(place[0])) for place in PLACES if place[0]]
)
def test_another_kind_of_value_is_refused_wherever_it_stands(path: Path, shape: Shape, whole: Any) -> None:
    """100, by its path: never taken, and never a crash."""
    values: list[Any] = [[[]], {"x": {}}, True, 1.5, "", "\0", -1, 10**400, [None]]
    for strange in values:
        refused = answer(put(whole, path, strange))
        if isinstance(refused, Error):
            assert refused.code in (INVALID, MISSING, VALUE)
            assert refused.error_data
            assert refused.error_data.details.startswith(written(path)), refused
        else:
            assert not isinstance(shape, Variants)


def test_every_limit_of_the_table_is_held_somewhere() -> None:
    """A limit that no shape holds is a promise that nobody keeps."""
    held = {id(shape.limit) for _, shape, _ in PLACES if isinstance(shape, Text | ListOf)}
    limits = {name: limit for name, limit in vars(table).items() if isinstance(limit, Limit)}
    loose = {name for name, limit in limits.items() if id(limit) not in held}
    assert loose == set(BY_RULE) | {"URL"}
    assert all(limit.least <= limit.most for limit in limits.values())
