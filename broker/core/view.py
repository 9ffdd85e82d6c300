"""What rules may ask of a message, seen through a tolerant view of its body, which is only opened when a rule asks."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from msgspec import Struct

TEXT_CHARS_MAX = 4_096
"""Meta's limit of a text; a regex is not run over more."""


LANGUAGE_CHARS_MAX = 16
"""Meta's are `de` or `zh_HK`; what a customer's state keeps is bounded."""


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


class _Referral(Struct):
    source_id: str = ""


class _Message(Struct):
    referral: _Referral | None = None
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
    what was tapped, and the ad it came from. All empty when the body is not as expected."""

    text: str = ""
    payload: str = ""
    referral: str = ""
    is_referred: bool = False
    """It came from an ad or a post, which may have no id."""


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


class _Language(Struct):
    code: str = ""


class _Template(Struct):
    language: _Language | None = None


class _Sent(Struct):
    template: _Template | None = None


_decode_sent = msgspec.json.Decoder(_Sent).decode


def template_language(body: bytes) -> str:
    """Return the language of the template in a send, in lower case with dashes; "" where it is not said."""
    try:
        template = _decode_sent(body).template
    except msgspec.DecodeError:
        return ""
    code = "" if template is None or template.language is None else template.language.code
    return code.replace("_", "-").lower() if len(code) <= LANGUAGE_CHARS_MAX else ""


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
    text, payload = _words(message)
    referral = message.referral
    if referral is None:
        return View(text[:TEXT_CHARS_MAX], payload)
    return View(text[:TEXT_CHARS_MAX], payload, referral.source_id, is_referred=True)


def _words(message: _Message) -> tuple[str, str]:
    if message.text is not None:
        return message.text.body, ""
    if message.interactive is not None:
        reply = message.interactive.button_reply or message.interactive.list_reply
        return ("", "") if reply is None else (reply.title, reply.id)
    if message.button is not None:
        return message.button.text, message.button.payload
    media = message.image or message.video or message.document
    return ("" if media is None else media.caption), ""
