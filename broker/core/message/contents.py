"""The message types that hold one thing: text, a file, a place, contacts, a reaction, a pin.

Source: Meta Cloud API, "Messages".
"""

from __future__ import annotations

from broker.core.message.limits import CAPTION, CONTACTS, EMOJI, ID, KIND, TEXT_BODY, WORDS
from broker.core.message.shapes import (
    Anything,
    Flag,
    Identifier,
    ListOf,
    Number,
    Object,
    Shape,
    Text,
    Url,
)

NAME = Text(WORDS, empty=True)


def file(**more: Shape) -> Object:
    """Return the shape of a file, which is named by its id at Meta or by a link that Meta will fetch."""
    return Object({"id": Identifier(empty=True), "link": Url(empty=True), **more}, one_of=("id", "link"))


CAPTIONED = {"caption": Text(CAPTION, empty=True)}
IMAGE = file(**CAPTIONED)
VIDEO = file(**CAPTIONED)
DOCUMENT = file(**CAPTIONED, filename=NAME)

FILES = {"image": IMAGE, "video": VIDEO, "document": DOCUMENT}
"""What a header or a template may show."""

LOCATION = Object(
    {"latitude": Number(-90, 90), "longitude": Number(-180, 180), "name": NAME, "address": NAME},
    needed=("latitude", "longitude"),
)

_ENTRIES = ListOf(Object({}))
CONTACT = Object(
    {
        "name": Object(
            {"formatted_name": Text(WORDS)}
            | dict.fromkeys(("first_name", "last_name", "middle_name", "prefix", "suffix"), NAME),
            needed=("formatted_name",),
        ),
        "phones": _ENTRIES,
        "emails": _ENTRIES,
        "addresses": _ENTRIES,
        "urls": _ENTRIES,
        "org": Object({}),
        "birthday": NAME,
    },
    needed=("name",),
)


CONTENTS: dict[str, Shape] = {
    "text": Object({"body": Text(TEXT_BODY), "preview_url": Flag()}, needed=("body",)),
    "image": IMAGE,
    "video": VIDEO,
    "audio": file(voice=Flag()),
    "document": DOCUMENT,
    "sticker": file(),
    "location": LOCATION,
    "contacts": ListOf(CONTACT, CONTACTS),
    "reaction": Object(  # an empty emoji takes the reaction back
        {"message_id": Text(ID), "emoji": Text(EMOJI, empty=True)}, needed=("message_id", "emoji")
    ),
    "pin": Object(
        {"type": Text(KIND), "message_id": Text(ID), "expiration_days": Anything()}, needed=("type", "message_id")
    ),
}
"""By the name of the type, which is also the member that holds the content."""
