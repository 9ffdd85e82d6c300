"""What a value must be, as data: the few shapes every message type is written in.

A shape checks a value and can be read by others (the OpenAPI document is drawn from it). None of them holds itself, so
a check is as deep as our own tables are, however deep a stranger's JSON is. A member that is null counts as missing;
members that no shape knows pass. Names of types and choices are compared without case, as Graph does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Protocol

from msgspec import Struct, field

from broker.core.message.limits import ELEMENTS, ID, URL, Limit

Json = dict[str, Any]


class Fault(Enum):
    """What can be wrong with a value. Which code of Meta's it becomes depends on where it stands, too."""

    UNFIT = "another kind of JSON value, or none of the choices"
    MISSING = "not there, or an empty string where a string is needed"
    BEYOND = "longer, larger or more than a limit allows"
    VALUE = "well-formed, but not a value of its kind"
    HYDRATED = "a template's text would become too long with it"


class Wrong(Exception):
    """Ends a check: what is wrong, and where. Never leaves this package."""

    def __init__(self, fault: Fault, what: str, *path: str | int) -> None:
        super().__init__(what)
        self.fault = fault
        self.what = what
        self.path: list[str | int] = list(path)

    def where(self) -> str:
        """Return the path as people write it: `interactive.action.buttons[1].reply.title`."""
        text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)
        return text.removeprefix(".") or "The body"


class Run(Struct):
    """One check under way. `unknown_types`: whether kinds that no table knows pass; `unknown`: whether one did."""

    unknown_types: bool
    unknown: bool = False


class Shape(Protocol):
    """What every shape can do."""

    def check(self, value: Any, run: Run) -> None:
        """Raise `Wrong` unless the value, which is never null, fits."""


Rule = Callable[[Json], None]
"""What no single member can say: raises `Wrong` with a path that begins at the object."""


class Anything(Struct, frozen=True):
    """Whatever it is, Meta will judge it."""

    def check(self, value: Any, run: Run) -> None:
        """Nothing to say."""


class Text(Struct, frozen=True):
    """A string. Where `empty` is false, an empty one counts as missing."""

    limit: Limit
    empty: bool = False

    def check(self, value: Any, run: Run) -> None:
        """Count its Unicode code points: never more than any other way to count characters would."""
        if not isinstance(value, str):
            raise Wrong(Fault.UNFIT, "must be a string")
        if not value and not self.empty:
            raise Wrong(Fault.MISSING, "is missing")
        if len(value) < self.limit.least and value:
            raise Wrong(Fault.BEYOND, f"must be at least {self.limit.least} characters long; it has {len(value)}")
        if len(value) > self.limit.most:
            raise Wrong(Fault.BEYOND, f"must be at most {self.limit.most} characters long; it has {len(value)}")


class Url(Struct, frozen=True):
    """An http or https URL. Where `empty` is false, an empty one counts as missing."""

    empty: bool = False

    def check(self, value: Any, run: Run) -> None:
        """Look at its scheme: what else a URL may hold is for those who fetch it."""
        Text(URL, self.empty).check(value, run)
        if value and not value.lower().startswith(("http://", "https://")):
            raise Wrong(Fault.UNFIT, "must be an http or https URL")


class Identifier(Struct, frozen=True):
    """An id of Meta's or of a catalogue. Some clients write it as a number. Where `empty` is false, an empty one counts
    as missing."""

    empty: bool = False

    def check(self, value: Any, run: Run) -> None:
        """A number, or a string."""
        if type(value) is not int:
            Text(ID, self.empty).check(value, run)


class Flag(Struct, frozen=True):
    """True or false."""

    def check(self, value: Any, run: Run) -> None:
        """No word and no number stands for it."""
        if not isinstance(value, bool):
            raise Wrong(Fault.UNFIT, "must be true or false")


class Number(Struct, frozen=True):
    """A number, which may be written as a string. Bounds are inclusive."""

    least: float
    most: float
    whole: bool = False

    def check(self, value: Any, run: Run) -> None:
        """Read it, then hold it against the bounds."""
        number = _number(value)
        if number is not None and self.whole and not number.is_integer():
            number = None
        what = f"must be a {'whole ' if self.whole else ''}number from {self.least:,.0f} to {self.most:,.0f}"
        if number is None:
            raise Wrong(Fault.UNFIT, what)
        if not self.least <= number <= self.most:
            raise Wrong(Fault.BEYOND, what)


def _number(value: Any) -> float | None:
    """Read a number as JSON or a string writes it. Python's own underscores are no digits."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or (isinstance(value, str) and "_" in value):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


class Choice(Struct, frozen=True):
    """One of a few words, in lower case here."""

    words: tuple[str, ...]

    def check(self, value: Any, run: Run) -> None:
        """Compare without case."""
        if not isinstance(value, str) or value.lower() not in self.words:
            raise Wrong(Fault.UNFIT, "must be " + " or ".join(f'"{word}"' for word in self.words))


class ListOf(Struct, frozen=True):
    """A list of one shape."""

    element: Shape
    limit: Limit = ELEMENTS

    def check(self, value: Any, run: Run) -> None:
        """Count, then look at each."""
        if not isinstance(value, list):
            raise Wrong(Fault.UNFIT, "must be a list")
        least, most = self.limit.least, self.limit.most
        if not least <= len(value) <= most:
            raise Wrong(Fault.BEYOND, f"must hold {least} to {most} elements; it holds {len(value)}")
        for index, element in enumerate(value):
            try:
                if element is None:
                    raise Wrong(Fault.UNFIT, "must not be null")
                self.element.check(element, run)
            except Wrong as wrong:
                wrong.path.insert(0, index)
                raise


class Object(Struct, frozen=True):
    """An object: its members, those of them that are needed, those of which one is, and what must hold between them."""

    members: Mapping[str, Shape]
    needed: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    def check(self, value: Any, run: Run) -> None:
        """Members in the order of the table, then the rules, which may rely on the members."""
        if not isinstance(value, dict):
            raise Wrong(Fault.UNFIT, "must be an object")
        for name, member in self.members.items():
            found = value.get(name)
            if found is not None:
                try:
                    member.check(found, run)
                except Wrong as wrong:
                    wrong.path.insert(0, name)
                    raise
            elif name in self.needed:
                raise Wrong(Fault.MISSING, "is missing", name)
        if self.one_of and not any(value.get(name) for name in self.one_of):
            raise Wrong(Fault.MISSING, f"is missing: one of {', '.join(self.one_of)} is needed", self.one_of[0])
        for rule in self.rules:
            rule(value)


class Variants(Struct, frozen=True):
    """An object whose member `tag` says which of several shapes it has."""

    tag: str
    of: Mapping[str, Shape] = field(default_factory=dict)

    def check(self, value: Any, run: Run) -> None:
        """Find its shape. One that is not in the table passes where unknown types do."""
        if not isinstance(value, dict):
            raise Wrong(Fault.UNFIT, "must be an object")
        kind = value.get(self.tag)
        if kind is None or kind == "":
            raise Wrong(Fault.MISSING, "is missing", self.tag)
        if not isinstance(kind, str):
            raise Wrong(Fault.UNFIT, "must be a string", self.tag)
        shape = self.of.get(kind.lower())
        if shape is not None:
            shape.check(value, run)
        elif run.unknown_types:
            run.unknown = True
        else:
            raise Wrong(Fault.UNFIT, f"must be one of {', '.join(self.of)}", self.tag)
