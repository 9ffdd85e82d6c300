"""The brand's bots: they answer each message through the gateway before they take it, and remember what they are told.

A bot dies and comes back without its memory, so it keeps none: what it asks for carries an idempotency key made of the
message's id, and an event it has not dealt with is not answered with 200. What the bots were told is the world's to
remember (`Evidence`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

from tests.simulation.brand import KEYS
from tests.simulation.edges import Request, Response
from tests.simulation.evidence import Asked, Evidence, Heard, Receipt
from tests.simulation.faults import add_kind
from tests.simulation.loop import Process
from tests.simulation.net import Net

GATEWAY = "gateway"
GATEWAY_TIMEOUT_S = 8.0
TOKENS = {key.name: key.token for key in KEYS}

add_kind("bot.refuses", "a bot answers 500, 503 or 429 and has done nothing")
add_kind("bot.forgets", "a bot deals with an event and answers 500 all the same")
add_kind("bot.hangs", "a bot takes longer than its sink allows")


class NotTaken(Exception):
    """The bot could not deal with an event now: it is to come again."""


class Bot:
    """One bot. `moods`: whether faults of kind `bot.*` strike it."""

    def __init__(self, net: Net, process: Process, evidence: Evidence, sink: str, *, moods: bool) -> None:
        self._net = net
        self._process = process
        self._evidence = evidence
        self._sink = sink
        self._moods = moods

    async def handle(self, request: Request) -> Response:
        """Take one event."""
        event = event_of(request.body)
        status = await self._dealt_with(event)
        if self._process.alive:
            self._evidence.receipts.append(Receipt(self._evidence.sim.now, self._sink, name_of(event), status))
        return Response(status, {"Retry-After": "2"} if status == 429 else {}, b"")

    async def _dealt_with(self, event: Any) -> int:
        faults = self._evidence.sim.faults
        if self._moods and faults.strikes("bot.refuses"):
            return self._process.random.choice([500, 503, 429])
        if self._moods and faults.strikes("bot.hangs"):
            await asyncio.sleep(12.0)
        try:
            for change in (change for entry in event["entry"] for change in entry["changes"]):
                value = change["value"]
                for message in value.get("messages", []):
                    if "#poison" in message.get("text", {}).get("body", ""):
                        return 422
                    await self._answer(value["metadata"]["phone_number_id"], message)
                for status in value.get("statuses", []):
                    self._hear(status)
        except NotTaken:
            return 503
        return 500 if self._moods and faults.strikes("bot.forgets") else 200

    def _hear(self, status: dict[str, Any]) -> None:
        errors = status.get("errors") or [{}]
        self._evidence.heard.append(
            Heard(
                self._evidence.sim.now,
                self._sink,
                status["id"],
                status["status"],
                errors[0].get("code", 0),
                status.get("biz_opaque_callback_data"),
            )
        )

    async def _answer(self, number: str, message: dict[str, Any]) -> None:
        """Reply as the text asks: `#2` two bubbles, `#quote` the second quotes the first, `#code` a one-time code."""
        text = message["text"]["body"]
        place = text.split("]")[0] + "]"
        to = {"to": message["from"]} if "from" in message else {"recipient": message["from_user_id"]}
        if "#mark" in text:
            mark = {"messaging_product": "whatsapp", "status": "read", "message_id": message["id"]}
            await ask(self._net, self._process, self._sink, number, mark, {})
        before = ""
        for bubble in range(3 if "#3" in text else 2 if "#2" in text else 1):
            own = f"own-{place}-{bubble}"
            body: dict[str, Any] = {"messaging_product": "whatsapp", **to, "type": "text"}
            body["text"] = {"body": f"re {place} {bubble}"}
            if bubble != 1:
                body["biz_opaque_callback_data"] = own
            if "#quote" in text:
                body["context"] = {"message_id": before or message["id"]}
            headers = {"Idempotency-Key": f"{message['id']}/{bubble}"}
            if "#code" in text:
                headers["X-Depesche-Class"] = "otp"
            answer = await ask(self._net, self._process, self._sink, number, body, headers)
            if "messages" in answer:
                before = answer["messages"][0]["id"]
                if self._process.alive:
                    self._evidence.asked.append(Asked(self._evidence.sim.now, self._sink, before, own))


async def ask(
    net: Net, process: Process, key: str, number: str, body: dict[str, Any], headers: dict[str, str]
) -> dict[str, Any]:
    """Ask the gateway; return its answer, also a refusal. Raises `NotTaken` when it is not known to be durable."""
    request = Request(
        "POST",
        f"/v26.0/{number}/messages",
        {"Authorization": f"Bearer {TOKENS[key]}", "Content-Type": "application/json", **headers},
        json.dumps(body).encode(),
    )
    try:
        answer: Response = await net.call(process, GATEWAY, request, GATEWAY_TIMEOUT_S)
    except (OSError, TimeoutError):
        raise NotTaken from None
    if answer.status >= 500:
        raise NotTaken
    said: dict[str, Any] = json.loads(answer.body)
    return said


def event_of(body: bytes) -> Any:
    """Return an event in Meta's shape, whichever format it came in."""
    said = json.loads(body)
    return said.get("data", said)


def name_of(event: Any) -> str:
    """Return what names an event: the digest of what it says."""
    return hashlib.blake2b(json.dumps(event, sort_keys=True).encode(), digest_size=12).hexdigest()
