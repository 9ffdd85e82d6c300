"""A bot that plays its part of a tour, by Graph calls to a platform on virtual time. A test chooses its faults."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

from broker.sandbox.tour import ROWS
from tests.sandbox.rig import NUMBER, TOKEN, Rig, body_of

Json = dict[str, Any]
Twist = Callable[[str, Json], list[Json]]
"""Takes the place of an answer ("0" … "11", "7" is the reaction) and the answer; returns what is sent instead."""


class Guide:
    """Takes webhooks, answers each message once."""

    def __init__(self, rig: Rig, twist: Twist = lambda place, answer: [answer]) -> None:
        self._rig = rig
        self._twist = twist
        self._seen: set[str] = set()
        self._sent: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        """Take a webhook."""
        for entry in json.loads(body)["entry"]:
            for change in entry["changes"]:
                for message in change["value"].get("messages", []):
                    if message["id"] not in self._seen:
                        self._seen.add(message["id"])
                        task = asyncio.create_task(self._answer(message))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
        return 200

    async def _answer(self, message: Json) -> None:
        async with self._turn:
            place, answer = await self._part(message)
            for one in self._twist(place, answer):
                to = {"to": message["from"]} if "from" in message else {"recipient": message["from_user_id"]}
                told = await self._call({"messaging_product": "whatsapp", **to, **one})
                self._sent[told["messages"][0]["id"]] = place

    async def _part(self, message: Json) -> tuple[str, Json]:
        kind, quoting = message["type"], {"context": {"message_id": message["id"]}}
        if kind == "text":
            said = message["text"]["body"]
            word, place = said.split()[0], said[said.index("[") :]
            number = place.rpartition(":")[2][:-1]
            name = place[1:].rpartition(":")[0]
            if word == "Hello":
                mark = {"status": "read", "message_id": message["id"], "typing_indicator": {"type": "text"}}
                await self._call({"messaging_product": "whatsapp", **mark})
                return number, {**quoting, **menu(name, place)}
            if word == "Where":
                return number, located(place)
            if word == "Order":
                return number, template(name, place)
            return number, {**quoting, **text(f"{said} it is")}
        if kind == "interactive":
            reply = message["interactive"].get("button_reply") or message["interactive"]["list_reply"]
            chosen, _, name = reply["id"].partition(":")
            if chosen == "list":
                return "1", rows(name, f"[{name}:1]")
            name = name.rpartition(":")[0]
            return "2", image({"link": "https://example.com/rose.jpg", "caption": f"{reply['title']} [{name}:2]"})
        if kind == "image":
            data = self._rig.platform.medium(message["image"]["id"])
            assert data is not None
            media_id = self._rig.platform.upload(NUMBER, data.mime_type, data.data)
            return "3", {**quoting, **image({"id": media_id, "caption": message["image"]["caption"]})}
        if kind == "location":
            place = message["location"]
            told = f"{place['latitude']},{place['longitude']} {place['name']}"
            return "5", {**quoting, **text(told)}
        if kind == "button":
            return "7", {"type": "reaction", "reaction": {"message_id": message["id"], "emoji": "🌿"}}
        reaction = message["reaction"]
        name = self._name
        return "8", text(f"{reaction['emoji']} to {self._sent[reaction['message_id']]} [{name}:8]")

    async def _call(self, body: Json) -> Json:
        found = re.search(r"\[([\w-]+):\d+\]", json.dumps(body))
        if found:
            self._name = found[1]
        answer = await self._rig.call(body, token=TOKEN)
        assert answer.status == 200, answer.body
        return body_of(answer)


def text(body: str) -> Json:
    """A text."""
    return {"type": "text", "text": {"body": body}}


def image(content: Json) -> Json:
    """An image."""
    return {"type": "image", "image": content}


def menu(name: str, place: str) -> Json:
    """Two reply buttons."""
    buttons = [(f"list:{name}", "Show me"), (f"no:{name}", "No")]
    replies = [{"type": "reply", "reply": {"id": one, "title": title}} for one, title in buttons]
    return interactive("button", f"What would you like? {place}", {"buttons": replies})


def rows(name: str, place: str) -> Json:
    """A list of three rows."""
    found = [{"id": f"row:{name}:{i}", "title": title} for i, title in enumerate(ROWS, start=1)]
    return interactive("list", f"Choose {place}", {"button": "Flowers", "sections": [{"title": "All", "rows": found}]})


def located(place: str) -> Json:
    """A request for the customer's location."""
    return interactive("location_request_message", f"Where are you? {place}", {"name": "send_location"})


def template(name: str, place: str) -> Json:
    """The order's template."""
    words = [{"type": "text", "text": word} for word in ("Ada", "1042", place)]
    payload = {"type": "payload", "payload": f"track:{name}"}
    components = [
        {"type": "body", "parameters": words},
        {"type": "button", "sub_type": "QUICK_REPLY", "index": "0", "parameters": [payload]},
    ]
    content = {"name": "order_update", "language": {"code": "en_US"}, "components": components}
    return {"type": "template", "template": content}


def interactive(kind: str, body: str, action: Json) -> Json:
    """An interactive message."""
    return {"type": "interactive", "interactive": {"type": kind, "body": {"text": body}, "action": action}}
