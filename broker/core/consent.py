"""Whether a customer takes marketing: what they said, when and where, and the words they say it with.

A customer says stop or resume through WhatsApp's own switch (`user_preferences`), with a word (STOP), or Meta says so
for them (error 131050). Each change is kept with its time and proof: who is asked why a message went, or did not, must
be able to answer. Marketing is what a send's category is, not its words: everything else still goes.
Source: Meta Cloud API, `user_preferences` webhooks, and "Error codes" (131050).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Literal

from msgspec import Struct

CHANGES_MAX = 8
"""Changes that are kept of one customer; beyond them the oldest goes that no number's answer rests on."""

CHANGES_QUIET_MAX = 2
"""Of a customer who was silent for long: they stand in the state for ever, and a state is to stay small. A stop that is
in force stays in any case."""

WORD_CHARS_MAX = 64
"""A longer message is no word: somebody who writes a sentence is answered, not opted out."""

CHARS_REMEMBERED_MAX = 4_096
"""What is left of a character is asked for each one of each message that is not ASCII: people write in few."""

CATEGORY = "marketing_messages"
"""Of a user preference. Another category than this says nothing about marketing."""

_ASCII = re.compile("[a-z0-9]+")

Scope = Literal["portfolio", "number"]
"""How far a stop reaches: to all numbers of the portfolio, or to the one it was said to."""

SCOPES: tuple[Scope, ...] = ("portfolio", "number")


class Change(Struct, array_like=True, gc=False, frozen=True):
    """One change: its instant (Unix ms, Meta's), the number it was said to, how it was said, and its proof: the id of
    the message or fact. `source`: "preference", "word:<the word>", "error:131050", "merged" (two
    keys of one person disagreed)."""

    at: int
    stopped: bool
    number: str
    source: str
    proof: str


def stopped(changes: Iterable[Change], number: str, scope: Scope) -> bool:
    """Whether marketing from this number is refused. What was said last counts."""
    said = False
    for change in changes:
        if scope == "portfolio" or change.number == number:
            said = change.stopped
    return said


def changed(changes: list[Change], change: Change, most: int = CHANGES_MAX) -> list[Change]:
    """Return the changes with one more, in the order of their instants; at one instant stop beats resume."""
    if change in changes:
        return changes
    return shortened(sorted([*changes, change], key=lambda one: (one.at, one.stopped)), most)


def shortened(changes: list[Change], most: int) -> list[Change]:
    """Return at most so many: the oldest go first, but the last stop or resume of a number goes last of all."""
    left = list(changes)
    while len(left) > most:
        newest = {change.number: place for place, change in enumerate(left)}
        spare = [place for place, change in enumerate(left) if newest[change.number] != place]
        resumed = [place for place, change in enumerate(left) if not change.stopped]
        del left[(spare or resumed or [0])[0]]
    return left


def quieted(changes: list[Change]) -> list[Change]:
    """Return what must be remembered of a customer who was silent for long."""
    last = {change.number: change.stopped for change in changes}
    return shortened(changes, max(CHANGES_QUIET_MAX, sum(last.values())))


def words(lists: Mapping[str, Iterable[str]]) -> frozenset[str]:
    """Compile words that are configured by language. Raises `ValueError` for one that has no letter or digit, or that
    is longer than a word may be."""
    compiled = set()
    for language, texts in lists.items():
        for text in texts:
            word = plain(text)
            if not word or len(text) > WORD_CHARS_MAX:
                raise ValueError(f"{text!r} ({language}) is no word: 1 to {WORD_CHARS_MAX} characters, not only signs")
            compiled.add(word)
    return frozenset(compiled)


def plain(text: str) -> str:
    """Return a text without case, accents, punctuation and signs, its words one blank apart.

    "Stop!", "  STOP ", "ＳＴＯＰ" and "«stop»" are one word; so are "arrêter" and "arreter", since people leave accents
    out. A text that is too long to be a word is "".
    """
    if len(text) > WORD_CHARS_MAX:
        return ""
    if text.isascii():
        return " ".join(_ASCII.findall(text.casefold()))
    return " ".join("".join(map(_plain, unicodedata.normalize("NFKD", text.casefold()))).casefold().split())


@lru_cache(maxsize=CHARS_REMEMBERED_MAX)
def _plain(char: str) -> str:
    """Return what is left of a character: itself, a blank, or nothing."""
    category = unicodedata.category(char)
    if category in ("Mn", "Cf"):  # accents; joiners and marks of direction
        return ""
    return " " if category[0] in "PSZC" else char
