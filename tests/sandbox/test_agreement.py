"""The gateway's check and the referee's were written apart, from Meta's documents: here each finds the other's faults.

What the gateway takes and Meta would refuse comes back as a failed status, later and paid for; what it refuses and
Meta would take is a bot that no longer works.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.message import Outgoing as Taken
from broker.core.message import check
from broker.core.message.limits import Limit
from broker.core.message.request import COMMON, TYPES
from broker.core.message.shapes import Choice, Flag, Identifier, ListOf, Number, Object, Shape, Text, Url, Variants
from broker.sandbox.payload import Outgoing, read
from schemas.graph import Error
from tests.core.message.samples import BASE, GOOD
from tests.core.message.test_limits import PLACES, Path, put, written

MARKETING = ("product_policy", "message_activity_sharing")
"""Taken by the gateway anywhere, by Meta at the marketing endpoint alone."""


def gateway(message: Any) -> Taken | Error:
    return check(json.dumps(message).encode(), unknown_types=False)


def code(answer: Any) -> int:
    return 0 if isinstance(answer, Taken | Outgoing) else int(answer.code)


def alike(message: Any) -> Any:
    """The message without what the two are meant to see differently, where the gateway leaves the verdict to Meta.

    The referee wants one part of a contact's name beside the whole, and one of a file's id and link, as documented.
    """
    if isinstance(message, list):
        return [alike(value) for value in message]
    if not isinstance(message, dict):
        return message
    whole = {key: alike(value) for key, value in message.items()}
    if whole.get("id") and whole.get("link"):
        del whole["id"]
    if "formatted_name" in whole and not whole.get("first_name"):
        whole["first_name"] = "A"
    return whole


@pytest.mark.parametrize("name", GOOD)
def test_both_take_every_documented_message(name: str) -> None:
    """The samples hold each documented member at least once."""
    message = alike({**BASE, **GOOD[name]})
    assert (code(gateway(message)), code(read(message))) == (0, 0), read(message)


STRANGE: tuple[Any, ...] = (None, "", "x", "x" * 70_000, 7, -1, 1.5, True, [], {}, [[]], ["x"], "\0", 10**30)


@pytest.mark.parametrize(
    ("path", "shape", "whole"),
    [pytest.param(*place, id=written(place[0])) for place in PLACES if place[0][0] not in MARKETING],
)
def test_both_say_the_same_of_one_strange_value_anywhere(path: Path, shape: Shape, whole: Any) -> None:
    """The same verdict, and the same code."""
    for value in STRANGE:
        message = alike(put(whole, path, value))
        assert code(gateway(message)) == code(read(message)), (value, gateway(message), read(message))


@pytest.mark.parametrize(
    ("path", "shape", "whole"),
    [pytest.param(*place, id=written(place[0])) for place in PLACES if isinstance(place[1], Text)],
)
def test_both_hold_the_same_limit(path: Path, shape: Text, whole: Any) -> None:
    """To the character."""
    for size in {shape.limit.least - 1, shape.limit.least, shape.limit.most, shape.limit.most + 1}:
        message = alike(put(whole, path, "ü" * size))
        assert code(gateway(message)) == code(read(message)), (size, gateway(message), read(message))


def valid(shape: Shape) -> st.SearchStrategy[Any]:
    """Values of a shape, with a liking for its edges; the rules between members are left to the check."""
    match shape:
        case Text(Limit(most, _, least), empty):
            sizes = st.sampled_from(sorted({0 if empty else least, least, min(most, 3), min(most, 70)}))
            return st.builds(
                lambda text, size: text.ljust(size, "x")[: max(size, 1)], st.text(min_size=1, max_size=4), sizes
            )
        case Url():
            return st.sampled_from(["https://example.com/a?b=ü", "HTTP://x"])
        case Identifier():
            return st.integers(1, 10**16) | st.text(min_size=1, max_size=20)
        case Flag():
            return st.booleans()
        case Number(least, most, whole):
            whole_numbers = st.integers(int(least), int(most))
            numbers = whole_numbers if whole else whole_numbers | st.floats(least, most)
            return numbers | numbers.map(str)
        case Choice(words):
            return st.sampled_from([*words, *(word.upper() for word in words)])
        case ListOf(element, limit):
            return st.lists(valid(element), min_size=limit.least, max_size=min(limit.most, limit.least + 2))
        case Object(members, needed):
            optional = {name: valid(member) for name, member in members.items() if name not in needed}
            return st.fixed_dictionaries({name: valid(members[name]) for name in needed}, optional=optional)
        case Variants(tag, of):
            return st.one_of(
                [valid(variant).map(lambda value, kind=kind: {**value, tag: kind}) for kind, variant in of.items()]  # type: ignore[misc]
            )
    return st.just({})


MESSAGES = {
    name: st.builds(
        lambda common, content, name=name: {**BASE, **common, "type": name, name: content},
        valid(Object({k: v for k, v in COMMON.members.items() if k not in MARKETING})),
        valid(shape),
    )
    for name, shape in TYPES.items()
}


@pytest.mark.parametrize("name", MESSAGES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_the_gateway_takes_the_referee_takes(name: str, data: st.DataObject) -> None:
    """Any message of the documented form: never taken by one and refused by the other, nor with another code."""
    message = alike(data.draw(MESSAGES[name]))
    assert code(gateway(message)) == code(read(message)), (gateway(message), read(message))
