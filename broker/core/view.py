"""What rules may ask of a message, seen through a tolerant view of its body, which is only opened when a rule asks."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from msgspec import Struct

TEXT_CHARS_MAX = 4_096
"""Meta's limit of a text; a regex is not run over more."""


class _Text(Struct):
    body: str = ""


class _Media(Struct):
    caption: str = ""


class _Button(Struct):
    payload: str = ""
    text: str = ""


class _Reply(Struct):
    id: str = ""
    title: str = ""


class _Interactive(Struct):
    button_reply: _Reply | None = None
    list_reply: _Reply | None = None


class _Message(Struct):
    text: _Text | None = None
    image: _Media | None = None
    video: _Media | None = None
    document: _Media | None = None
    button: _Button | None = None
    interactive: _Interactive | None = None


class _Value(Struct):
    messages: list[_Message] = []


class _Change(Struct):
    value: _Value


class _Entry(Struct):
    changes: list[_Change] = []


class _Body(Struct):
    entry: list[_Entry] = []


class View(Struct, frozen=True, gc=False):
    """What rules may ask of a message: its words (text, caption, or the title of what was tapped) and the payload of
    what was tapped. Both empty when the body is not as expected."""

    text: str = ""
    payload: str = ""


NOTHING = View()

_decode = msgspec.json.Decoder(_Body).decode


def view(body: bytes) -> View:
    """Open a message's body, as far as it is what Meta documents. Never raises."""
    try:
        return _view(_decode(body))
    except msgspec.DecodeError:
        pass
    try:  # a lone surrogate (Meta sends them) or one member of an unexpected type must not blind the rules to the rest
        return _view(msgspec.convert(_pruned(json.loads(body)), _Body))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return NOTHING


def _pruned(body: Any) -> Any:
    """Drop the members of a message that are not as documented, so that the others can still be looked at."""
    message = body["entry"][0]["changes"][0]["value"]["messages"][0]
    for name in list(message):
        try:
            msgspec.convert({name: message[name]}, _Message)
        except msgspec.ValidationError:
            del message[name]
    return body


def _view(body: _Body) -> View:
    if not (body.entry and body.entry[0].changes and body.entry[0].changes[0].value.messages):
        return NOTHING
    message = body.entry[0].changes[0].value.messages[0]
    if message.text is not None:
        return View(message.text.body[:TEXT_CHARS_MAX])
    if message.interactive is not None:
        reply = message.interactive.button_reply or message.interactive.list_reply
        return NOTHING if reply is None else View(reply.title[:TEXT_CHARS_MAX], reply.id)
    if message.button is not None:
        return View(message.button.text[:TEXT_CHARS_MAX], message.button.payload)
    media = message.image or message.video or message.document
    return NOTHING if media is None else View(media.caption[:TEXT_CHARS_MAX])
