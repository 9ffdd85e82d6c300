"""A bot as others build them, behind a sink of kind `meta`: checks the signature, answers each text once by quoting it.

It stands for a stranger's bot: nothing of ours is imported. It remembers what it was given, in order, and takes a
repetition (same bytes) for what it is.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from typing import Any

import aiohttp
from aiohttp import web

ANSWERS_AT_ONCE_MAX = 64


class QuotingBot:
    """Serves `/webhook` on a port of loopback. `gateway`: base URL, `key`: its bot key, `secret`: its app secret."""

    def __init__(self, port: int, gateway: str, key: str, secret: str) -> None:
        self.port = port
        self.gateway = gateway
        self.received: dict[str, list[str]] = {}
        """Texts by customer, in the order they first came."""
        self.statuses: dict[str, list[str]] = {}
        """Statuses by message id, in the order they first came."""
        self.answered: dict[str, str] = {}
        """The id each answered message's answer got, by the message's id."""
        self.repetitions = 0
        self.forged = 0
        self.refusals: list[str] = []
        self._key = key
        self._secret = secret.encode()
        self._seen: set[bytes] = set()
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self._room = asyncio.Semaphore(ANSWERS_AT_ONCE_MAX)

    async def start(self) -> None:
        """Open the port."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=25))
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_post("/webhook", self._webhook)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        """Close it."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _webhook(self, request: web.Request) -> web.Response:
        body = await request.read()
        given = request.headers.get("X-Hub-Signature-256", "")
        if not hmac.compare_digest(given, "sha256=" + hmac.new(self._secret, body, hashlib.sha256).hexdigest()):
            self.forged += 1
            return web.Response(status=401)
        mark = hashlib.sha256(body).digest()
        if mark in self._seen:
            self.repetitions += 1
        value = json.loads(body)["entry"][0]["changes"][0]["value"]
        number = value["metadata"]["phone_number_id"]
        for status in value.get("statuses", []):
            if mark not in self._seen:
                self.statuses.setdefault(status["id"], []).append(status["status"])
        for message in value.get("messages", []):
            if message["type"] == "text" and not await self._answer(number, message, is_new=mark not in self._seen):
                return web.Response(status=500)
        self._seen.add(mark)
        return web.Response()

    async def _answer(self, number: str, message: dict[str, Any], *, is_new: bool) -> bool:
        """Answer one text; False when the gateway did not take it, so that the event comes again."""
        customer = message.get("from") or message["from_user_id"]
        text = message["text"]["body"]
        texts = self.received.setdefault(customer, [])
        if is_new and text not in texts:
            texts.append(text)
        to = {"to": message["from"]} if "from" in message else {"recipient": message["from_user_id"]}
        content = {
            "messaging_product": "whatsapp",
            **to,
            "type": "text",
            "context": {"message_id": message["id"]},
            "text": {"body": f"You wrote: {text}"},
        }
        headers = {"Authorization": f"Bearer {self._key}", "Idempotency-Key": message["id"]}
        assert self._session is not None
        try:
            async with (
                self._room,
                self._session.post(f"{self.gateway}/v26.0/{number}/messages", json=content, headers=headers) as answer,
            ):
                told = await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False
        if answer.status != 200:
            self.refusals.append(f"{answer.status} {told}")
            return False
        self.answered[message["id"]] = told["messages"][0]["id"]
        return True
