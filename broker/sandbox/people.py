"""Who is on WhatsApp: the people the platform knows, by phone, by business-scoped id, by username.

A person may hide the phone once they took a username; a business number that was in touch with that phone within 30
days still sees it. Source: Meta Cloud API, "Business-scoped user IDs".
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from msgspec import Struct, field

from broker.sandbox.shapes import Json

DISCLOSED_MS = 30 * 24 * 3_600_000
PEOPLE_MAX = 2_000_000
"""A load of a million customers fits; beyond it the oldest that nobody named are forgotten."""

Reads = Literal["auto", "open", "never"]
"""Read receipts: "auto" some time after delivery, "open" when the chat is opened on the phone page, "never"."""


class Person(Struct):
    """One person on WhatsApp. At least one of `wa_id` and `bsuid`; the business-scoped id is the portfolio's.

    `digits` are what stands in message ids: the phone, or Meta's internal number where none is known.
    """

    wa_id: str = ""
    bsuid: str = ""
    name: str = ""
    username: str = ""
    hides_phone: bool = False
    reads: Reads = "auto"
    online: bool = True
    on_whatsapp: bool = True
    """False: messages are accepted and then fail with 131026."""
    opted_out: bool = False
    """Of marketing, by the platform's own switch."""
    disclosed: dict[str, int] = field(default_factory=dict)
    """For each number, until when it sees the phone although the person hides it (Unix ms)."""
    handle: str = ""
    """The platform's own name of a person who got another phone or BSUID since: the id they had at first."""

    @property
    def id(self) -> str:
        """The platform's own handle of the person."""
        return self.handle or self.wa_id or self.bsuid

    @property
    def digits(self) -> str:
        """What stands for the person in message ids."""
        return self.wa_id or str(int(hashlib.sha256(self.bsuid.encode()).hexdigest()[:12], 16)).zfill(15)[:15]

    def shows_phone(self, number: str, now_ms: int) -> bool:
        """Return whether webhooks of this number carry the phone."""
        return bool(self.wa_id) and (not self.hides_phone or self.disclosed.get(number, 0) > now_ms)

    def disclose(self, number: str, now_ms: int) -> None:
        """This number wrote to the phone, so it sees it for 30 days."""
        if self.hides_phone:
            self.disclosed[number] = now_ms + DISCLOSED_MS

    def contact(self, number: str, now_ms: int, *, username: bool = True) -> Json:
        """Return the person's entry of `contacts`. A `sent` status never carries the username."""
        profile: Json = {"name": self.name or "Customer"}
        if self.username and username:
            profile["username"] = "@" + self.username
        contact: Json = {"profile": profile}
        if self.shows_phone(number, now_ms):
            contact["wa_id"] = self.wa_id
        if self.bsuid:
            contact["user_id"] = self.bsuid
        return contact


COUNTRIES = (("49", "DE"), ("44", "GB"), ("55", "BR"), ("52", "MX"), ("54", "AR"), ("91", "IN"), ("33", "FR"))
"""Calling codes the sandbox knows; "1" and all others count as US, as in Meta's examples."""


def bsuid_of(wa_id: str, portfolio: str = "main") -> str:
    """Return the business-scoped id the sandbox gives a phone: the same one every time, another for each portfolio."""
    country = next((country for code, country in COUNTRIES if wa_id.startswith(code)), "US")
    return f"{country}.{int(hashlib.sha256(f'{portfolio}/{wa_id}'.encode()).hexdigest()[:15], 16):020d}"


def as_wa_id(dialled: str) -> str:
    """Return the WhatsApp id of a number as somebody dialled it, or "" where it is none.

    Brazil's extra ninth digit, Mexico's 1 and Argentina's 9 are where the two differ; Meta answers with its own form.
    """
    digits = re.sub(r"[\s\-().+]", "", dialled)
    if not digits.isascii() or not digits.isdigit() or not 7 <= len(digits) <= 15:
        return ""
    if digits.startswith("55") and len(digits) == 13 and digits[4] == "9":
        return digits[:4] + digits[5:]
    if digits.startswith("52") and len(digits) == 12:
        return "521" + digits[2:]
    if digits.startswith("54") and len(digits) == 12:
        return "549" + digits[2:]
    return digits


class People:
    """The directory. Whoever is written to by phone is on WhatsApp unless the directory says otherwise."""

    def __init__(self) -> None:
        self._by_id: dict[str, Person] = {}
        self._by_bsuid: dict[str, Person] = {}
        self.named: dict[str, Person] = {}
        """Those somebody introduced, in order: the customers of the phone page and of scripts."""

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, person: Person, *, named: bool = True) -> Person:
        """Introduce a person; the same id again replaces what is known. Who is not named may be forgotten."""
        if not person.id:
            raise ValueError("a person needs a wa_id or a bsuid")
        if len(self._by_id) >= PEOPLE_MAX and person.id not in self._by_id:
            self._forget_one()
        self._by_id[person.id] = person
        if person.wa_id:
            self._by_id[person.wa_id] = person
        if person.bsuid:
            self._by_bsuid[person.bsuid] = person
        if named:
            self.named[person.id] = person
        return person

    def get(self, person_id: str) -> Person | None:
        """Return a person by the platform's handle."""
        return self._by_id.get(person_id)

    def by_bsuid(self, bsuid: str) -> Person | None:
        """Return whoever has this business-scoped id."""
        return self._by_bsuid.get(bsuid)

    def by_phone(self, dialled: str) -> Person | None:
        """Return whoever has this number; somebody the directory does not know yet is made up on the spot."""
        wa_id = as_wa_id(dialled)
        if not wa_id:
            return None
        person = self._by_id.get(wa_id)
        if person is None:
            if len(self._by_id) >= PEOPLE_MAX:
                self._forget_one()
            person = Person(wa_id=wa_id, bsuid=bsuid_of(wa_id), name=f"Customer {wa_id[-4:]}")
            self._by_id[wa_id] = person
            self._by_bsuid[person.bsuid] = person
        return person

    def _forget_one(self) -> None:
        for person_id, person in self._by_id.items():
            if person_id not in self.named:
                del self._by_id[person_id]
                self._by_bsuid.pop(person.bsuid, None)
                return
        raise ValueError(f"more than {PEOPLE_MAX} people were introduced")
