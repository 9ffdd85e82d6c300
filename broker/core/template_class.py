"""Why a template message exists, by the category Meta approved the template in and by the customer's window: it decides
lane and doubt.

Categories are learned from Meta's own list of an account's templates; classes in the settings win. Marketing is a
campaign whoever gets it. Any other template is part of the conversation while the customer's window is open, else the
business begins one. A template of unknown category goes as its key's messages usually do, but outside the window never
as a reply: nobody unheard of delays a conversation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from schemas.records import Lane, SendClass

CLASS_OF_CATEGORY: Final[dict[str, SendClass]] = {
    "MARKETING": "campaign",
    "UTILITY": "transactional",
    "AUTHENTICATION": "otp",
}

NAMES_MAX = 20_000
"""Of one account; Meta allows 6,000 templates. Source: Meta, "Templates"."""

_ORDER: Final = ("AUTHENTICATION", "UTILITY", "MARKETING")
"""Languages of one template may differ in category: the one of the most patient class counts."""


class Page(msgspec.Struct, frozen=True):
    """One page of a list of templates: category by name, and the cursor of the next page, "" when it is the last."""

    categories: dict[str, str]
    after: str


def read_page(body: bytes) -> Page | None:
    """Return what a page of `GET /{waba}/message_templates` says; None when it is no such page."""
    try:
        tree: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(tree, dict) or not isinstance(tree.get("data"), list):
        return None
    categories: dict[str, str] = {}
    for template in tree["data"]:
        if isinstance(template, dict):
            name, category = template.get("name"), template.get("category")
            if isinstance(name, str) and isinstance(category, str):
                note(categories, name, category.upper())
    paging = tree.get("paging")
    after = ""
    if isinstance(paging, dict) and "next" in paging and isinstance(paging.get("cursors"), dict):
        cursor = paging["cursors"].get("after")
        after = cursor if isinstance(cursor, str) else ""
    return Page(categories, after)


def note(categories: dict[str, str], name: str, category: str) -> None:
    """Note a template's category; of two, the more patient. Categories we do not know, and names beyond the bound, are
    left out."""
    if category not in CLASS_OF_CATEGORY or (name not in categories and len(categories) >= NAMES_MAX):
        return
    known = categories.get(name)
    if known is None or _ORDER.index(category) > _ORDER.index(known):
        categories[name] = category


def by_window(presumed: SendClass, *, is_open: bool) -> tuple[SendClass, Lane]:
    """Return class and lane of a send by a template whose class nobody named. `is_open`: the customer's window with
    that number.

    In an open window somebody waits for it, and what is said before and after it goes in the same lane: in another one
    the receipt would come before the answer it belongs to. Its class is then a reply's, because doubt holds a lane, and
    no conversation is to stand still for the ten minutes a transactional message may. A one-time code keeps its class:
    it is of no use after ten minutes in any lane.
    """
    if presumed == "campaign":
        return "campaign", "campaign"
    if is_open:
        return ("otp" if presumed == "otp" else "reply"), "reply"
    return ("transactional" if presumed == "reply" else presumed), "transactional"


class TemplateClasses:
    """What is known of templates' classes: by account, replaced as a whole when an account's list was read."""

    def __init__(self, waba_of: Mapping[str, str], named: Mapping[str, SendClass]) -> None:
        """`waba_of`: each number's account. `named`: what the settings say, by template name."""
        self._waba_of = dict(waba_of)
        self._named = dict(named)
        self._by_waba: dict[str, dict[str, str]] = {}

    def replace(self, waba: str, categories: dict[str, str]) -> None:
        """Take an account's whole list."""
        self._by_waba[waba] = categories

    def category(self, phone_number_id: str, template: str) -> str:
        """Return a template's category, or "" when Meta's list was not read or does not hold it."""
        return self._by_waba.get(self._waba_of.get(phone_number_id, ""), {}).get(template, "")

    def is_named(self, template: str) -> bool:
        """Whether the settings say a template's class."""
        return template in self._named

    def is_known(self, phone_number_id: str, template: str) -> bool:
        """Whether a template's class is more than a guess by its key."""
        return self.is_named(template) or bool(self.category(phone_number_id, template))

    def class_of(self, phone_number_id: str, template: str, usual: SendClass) -> SendClass:
        """Return the class of what is sent by a template. `usual`: of the key that sends it."""
        named = self._named.get(template)
        if named is not None:
            return named
        presumed: SendClass = "transactional" if usual == "reply" else usual
        return CLASS_OF_CATEGORY.get(self.category(phone_number_id, template), presumed)
