"""How Graph and WhatsApp read a parameter, and in which words and codes they refuse one.

Graph reads first: unexpected keys, another kind of JSON value, an unknown word are its 100 everywhere, and outside the
contents of interactive messages and templates so is what is missing or too long. What WhatsApp itself reads there, it
refuses with 131008 (missing) and 131009 (too long, too many, twice). Source: Meta's published answers and
Meta, "Error codes".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

from broker.sandbox.shapes import GraphError, Json

WORDS_MAX = 4_096
ID_MAX = 1_024


class Refused(Exception):
    """The body is not a message. Holds the error to answer with; never leaves the reading of payloads."""

    code = 100

    def __init__(self, details: str, code: int = 0) -> None:
        super().__init__(details)
        self.error = GraphError(code or self.code, details)


class Missing(Refused):
    """Something that is needed is not there, or is an empty string."""


class Beyond(Refused):
    """Something is longer, or there are more of it, than allowed."""


def by_whatsapp(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a check whose refusals have WhatsApp's codes, not Graph's."""

    def checked(content: Any) -> None:
        try:
            check(content)
        except Missing as missing:
            raise Refused(missing.error.details, 131008) from None
        except Beyond as beyond:
            raise Refused(beyond.error.details, 131009) from None

    return checked


def only(content: Json, known: Collection[str], where: str) -> None:
    """Refuse keys that Meta does not know."""
    for key in content:
        if key not in known:
            raise Refused(f'Unexpected key "{str(key)[:60]}"' + (f' on param "{where}".' if where else "."))


def is_object(content: Any, name: str) -> Json:
    """Return it as an object."""
    if not isinstance(content, dict):
        raise Refused(f"Param {name} must be a JSON object.")
    return content


def member(content: Json, name: str) -> Json:
    """Return a member that must be an object."""
    if content.get(name) is None:
        raise missing(name)
    return is_object(content[name], name)


def elements(content: Json, name: str, least: int, most: int) -> list[Any]:
    """Return a member that must be a list of so many elements."""
    value = content.get(name)
    if value is None:
        raise missing(name)
    if not isinstance(value, list):
        raise Refused(f"Param {name} must be an array.")
    if not least <= len(value) <= most:
        raise Beyond(f"Invalid {name} count. Min allowed: {least}, Max allowed: {most}")
    return value


def text(content: Json, name: str, chars_max: int = WORDS_MAX) -> str:
    """Return a string that may be missing or empty."""
    value = content.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refused(f"Param {name} must be a string.")
    if len(value) > chars_max:
        raise Beyond(f"Param {name} must be at most {chars_max} characters long.")
    return value


def required(content: Json, name: str, where: str, chars_max: int = WORDS_MAX) -> str:
    """Return a string that must be there and not be empty."""
    value = text(content, name, chars_max)
    if not value:
        raise missing(f"{where}['{name}']" if where else name)
    return value


def identifier(content: Json, name: str) -> str:
    """Return an id that may be missing; Graph takes it as a number, too."""
    value = content.get(name)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text(content, name, ID_MAX)


def needed_id(content: Json, name: str) -> str:
    """Return an id that must be there."""
    value = identifier(content, name)
    if not value:
        raise missing(name)
    return value


def link(content: Json, name: str) -> str:
    """Return a web address that may be missing or empty."""
    value = text(content, name, 2_048)
    if value and not re.match(r"https?://", value, re.IGNORECASE):
        raise Refused(f"Param {name} is not a valid URI.")
    return value


def flag(content: Json, name: str) -> bool:
    """Return a boolean that may be missing."""
    value = content.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refused(f"Param {name} must be a boolean.")
    return value or False


def number(content: Json, name: str, least: float, most: float) -> float:
    """Return a number that must be there, written as one or as a string."""
    value = content.get(name)
    if value is None:
        raise missing(name)
    written = str(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else ""
    if not re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", written, re.ASCII):
        raise Refused(f"Param {name} must be a number.")
    found = float(written)
    if not least <= found <= most:
        raise Beyond(f"Param {name} must be a number between {least:g} and {most:g}.")
    return found


def choice(content: Json, name: str, choices: tuple[str, ...], default: str = "") -> str:
    """Return one of a few words, compared without case; the default, or "" where it must be there."""
    value = content.get(name)
    if value is None:
        if default:
            return default
        raise missing(name)
    if not isinstance(value, str) or value.lower() not in choices:
        raise Refused(f"Param {name} must be one of {{{', '.join(choices).upper()}}}.")
    return value.lower()


def missing(name: str) -> Missing:
    """Return the refusal of what is not there."""
    return Missing(f"The parameter {name} is required.")
