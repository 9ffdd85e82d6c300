"""A bot of pywa that plays its part of the sandbox's tour (`broker/sandbox/tour.py`), as its own process and server.

Nothing of ours is imported, and pywa is as published: what tells it from a bot that talks to Meta is its base URL and
its token. It writes down what it saw, a JSON object a line. Settings come from the environment, all named BOT_….
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
from pywa_async import WhatsApp, filters
from pywa_async.listeners import ListenerTimeout
from pywa_async.types import Button, CallbackButton, CallbackSelection, Message, MessageStatus, Section, SectionList
from pywa_async.types import SectionRow as Row
from pywa_async.types.templates import BodyText, QuickReplyButton, TemplateLanguage

GATEWAY = os.environ["BOT_GATEWAY"]
NUMBER = os.environ["BOT_NUMBER"]
SECONDS_MAX = 150.0
"""How long a customer may take to tap a button."""

session = httpx.AsyncClient(timeout=30.0)
wa = WhatsApp(
    phone_id=NUMBER,
    token=os.environ["BOT_TOKEN"],
    session=session,
    app_secret=os.environ["BOT_SECRET"],
    verify_token=os.environ["BOT_VERIFY_TOKEN"],
    webhook_endpoint="/webhook",
)
session.base_url = f"{GATEWAY}/v26.0"

notebook = Path(os.environ["BOT_NOTEBOOK"]).open("a", buffering=1)  # noqa: SIM115  # for as long as the bot runs
turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
"""One customer's messages are answered one after another."""

places: dict[str, str] = {}
"""Where in the tour each message of ours stands."""


def note(what: str, **more: Any) -> None:
    """Write something down."""
    notebook.write(json.dumps({"what": what, **more}) + "\n")


def sent(message: Any, place: str) -> None:
    """Write down what was sent, under the id that the answer gave."""
    places[message.id] = place
    note("sent", id=message.id, tracker=place)


def place_in(text: str | None) -> str:
    """Return the place a text says, without its brackets."""
    found = re.search(r"\[([\w-]+:\d+)\]", text or "")
    assert found is not None, text
    return found[1]


@wa.on_message(filters.startswith("Hello"))
async def hello(_: WhatsApp, message: Message) -> None:
    """Buttons, and a listener for the tap; then a list."""
    place = place_in(message.text)
    note("message", id=message.id, place=place)
    name = place.partition(":")[0]
    await message.indicate_typing()
    menu = await message.reply_text(
        f"What would you like? [{place}]",
        buttons=[Button("Show me", f"list:{name}"), Button("No", f"no:{name}")],
        quote=True,
        tracker=place,
    )
    sent(menu, place)
    try:
        tap = await menu.wait_for_click(timeout=SECONDS_MAX)
    except ListenerTimeout:
        note("trouble", why=f"nobody tapped {menu.id} at {place}")
        return
    note("message", id=tap.id, place=f"{name}:1")
    rows = [Row(title, f"row:{name}:{i}") for i, title in enumerate(("Roses", "Tulips", "Lilies"), start=1)]
    flowers = await tap.reply_text(
        f"Choose [{name}:1]", buttons=SectionList("Flowers", [Section("All", rows)]), tracker=f"{name}:1"
    )
    sent(flowers, f"{name}:1")


@wa.on_callback_selection(filters.startswith("row:"))
async def picked(_: WhatsApp, selection: CallbackSelection[str]) -> None:
    """An image by link."""
    name = selection.data.split(":")[1]
    note("message", id=selection.id, place=f"{name}:2")
    image = await selection.reply_image(
        "https://example.com/rose.jpg", caption=f"{selection.title} [{name}:2]", tracker=f"{name}:2"
    )
    sent(image, f"{name}:2")


@wa.on_message(filters.image)
async def shown(_: WhatsApp, message: Message) -> None:
    """The same picture, fetched and uploaded."""
    place = place_in(message.caption)
    note("message", id=message.id, place=place)
    await message.mark_as_read()
    assert message.image is not None
    picture = await message.image.get_bytes()
    media = await wa.upload_media(picture, mime_type=message.image.mime_type, filename="back.jpg")
    sent(await message.reply_image(media, caption=f"Back [{place}]", quote=True, tracker=place), place)


@wa.on_message(filters.startswith("Where"))
async def where(_: WhatsApp, message: Message) -> None:
    """A request for the location."""
    place = place_in(message.text)
    note("message", id=message.id, place=place)
    sent(await message.reply_location_request(f"Where are you? [{place}]", tracker=place), place)


@wa.on_message(filters.location)
async def located(_: WhatsApp, message: Message) -> None:
    """What was understood of it."""
    assert message.location is not None
    place = place_in(message.location.name)
    note("message", id=message.id, place=place)
    text = f"{message.location.latitude},{message.location.longitude} [{place}]"
    sent(await message.reply_text(text, quote=True, tracker=place), place)


@wa.on_message(filters.startswith("Order"))
async def order(_: WhatsApp, message: Message) -> None:
    """A template with a quick reply."""
    place = place_in(message.text)
    note("message", id=message.id, place=place)
    template = await message.reply_template(
        "order_update",
        TemplateLanguage.ENGLISH_US,
        [
            BodyText.params("Ada", "1042", f"[{place}]"),
            QuickReplyButton.params(callback_data=f"track:{place.partition(':')[0]}", index=0),
        ],
        tracker=place,
    )
    sent(template, place)


@wa.on_callback_button(filters.startswith("track:"))
async def tracked(_: WhatsApp, tap: CallbackButton[str]) -> None:
    """A reaction to the tap."""
    place = tap.data.partition(":")[2] + ":7"
    note("message", id=tap.id, place=place)
    sent(await tap.react("🌿", tracker=place), place)


@wa.on_message(filters.reaction)
async def reacted(_: WhatsApp, message: Message) -> None:
    """Which of our messages it was to."""
    assert message.reaction is not None
    name, _, meant = places[message.reaction.message_id].partition(":")
    place = f"{name}:8"
    note("message", id=message.id, place=place)
    sent(await message.reply_text(f"{message.reaction.emoji} to {meant} [{place}]", tracker=place), place)


@wa.on_message(filters.startswith("Once more"))
async def again(_: WhatsApp, message: Message) -> None:
    """Each quoted, in their order."""
    place = place_in(message.text)
    note("message", id=message.id, place=place)
    async with turns[message.from_user.preferred_id]:
        sent(await message.reply_text(f"Once more [{place}]", quote=True, tracker=place), place)


@wa.on_message_status
async def status(_: WhatsApp, update: MessageStatus) -> None:
    """Written down with its tracker."""
    note("status", id=update.id, status=update.status.value, tracker=update.tracker)


if __name__ == "__main__":
    wa.run(host="127.0.0.1", port=int(os.environ["BOT_PORT"]), log_level="warning")
