"""A sandbox on a real port, with a small bot behind its webhooks that answers through Graph's path."""

from __future__ import annotations

import asyncio
import hmac
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web

from broker.clock import SystemClock
from broker.sandbox.app import Sandbox
from broker.sandbox.platform import Timings
from broker.sandbox.postbox import Postage
from broker.sandbox.shapes import sign
from broker.secrets import Secret
from schemas.settings import SandboxNumber, SandboxSettings, SecretSource

NUMBER = "106540352242922"
SECOND = "106540352242955"
TOKEN = "EAAserved"
SECRET = "served-secret"


class Bot:
    """Checks the signature, then answers each new message: "menu" with a list, "buttons" with buttons, else an echo."""

    def __init__(self) -> None:
        self.graph_url = ""
        self.seen: dict[str, int] = {}
        self.bad_signatures = 0
        self.answers: list[int] = []
        """Statuses to answer the next webhooks with; 200 when there are none."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20))
        app = web.Application()
        app.add_routes([web.post("/webhook", self._webhook)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _webhook(self, request: web.Request) -> web.Response:
        body = await request.read()
        if not hmac.compare_digest(request.headers["X-Hub-Signature-256"], sign(body, SECRET)):
            self.bad_signatures += 1
            return web.Response(status=401)
        if self.answers:
            return web.Response(status=self.answers.pop(0))
        for entry in json.loads(body)["entry"]:
            for change in entry["changes"]:
                for message in change["value"].get("messages", []):
                    self.seen[message["id"]] = self.seen.get(message["id"], 0) + 1
                    if self.seen[message["id"]] == 1:
                        number = change["value"]["metadata"]["phone_number_id"]
                        task = asyncio.create_task(self._answer(number, message))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
        return web.Response()

    async def _answer(self, number: str, message: dict[str, Any]) -> None:
        to = {"to": message["from"]} if "from" in message else {"recipient": message["from_user_id"]}
        text = message.get("text", {}).get("body", "").lower()
        reply = message.get("interactive", {})
        reply = reply.get("list_reply") or reply.get("button_reply") or {}
        mark = {"status": "read", "message_id": message["id"], "typing_indicator": {"type": "text"}}
        await self._post(number, {"messaging_product": "whatsapp", **mark})
        if message["type"] == "reaction":
            return
        if reply:
            await self._send(number, to, "text", {"body": f"You chose *{reply['title']}*."})
        elif text == "menu":
            rows = [{"id": f"r{i}", "title": f"Row {i}", "description": "With a description"} for i in range(3)]
            action = {"button": "See the menu", "sections": [{"title": "Menu", "rows": rows}]}
            await self._send(
                number, to, "interactive", {"type": "list", "body": {"text": "What may it be?"}, "action": action}
            )
        elif text == "buttons":
            buttons = [{"type": "reply", "reply": {"id": f"b{i}", "title": f"Button {i}"}} for i in range(2)]
            content = {"type": "button", "body": {"text": "Choose one"}, "action": {"buttons": buttons}}
            await self._send(number, to, "interactive", content)
        else:
            await self._send(number, to, "text", {"body": f"echo: {text or message['type']}"})

    async def _send(self, number: str, to: dict[str, str], kind: str, content: Any) -> None:
        await self._post(number, {"messaging_product": "whatsapp", **to, "type": kind, kind: content})

    async def _post(self, number: str, body: dict[str, Any]) -> None:
        assert self._session is not None
        url = f"{self.graph_url}/v26.0/{number}/messages"
        try:
            async with self._session.post(url, json=body, headers={"Authorization": f"Bearer {TOKEN}"}) as answer:
                await answer.read()
        except aiohttp.ClientError:
            return  # a fault cut the connection: what the test is about


class Served:
    """The sandbox and the bot: `async with Served(folder) as served`."""

    def __init__(self, folder: Path | None = None, *, latency_ms: int = 20) -> None:
        self.bot = Bot()
        self._folder = folder
        self._latency_ms = latency_ms
        self.sandbox: Sandbox

    @property
    def url(self) -> str:
        """Where the sandbox listens."""
        return f"http://127.0.0.1:{self.sandbox.port}"

    async def __aenter__(self) -> Self:
        await self.bot.start()
        self.sandbox = self.make()
        await self.sandbox.start()
        self.bot.graph_url = self.url
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.sandbox.stop()
        await self.bot.stop()

    async def restart(self) -> None:
        """Stop the sandbox and start another one on the same port and folder."""
        port = self.sandbox.port
        await self.sandbox.stop()
        self.sandbox = self.make(port)
        await self.sandbox.start()

    def make(self, port: int = 0) -> Sandbox:
        """Return a sandbox with two numbers."""
        settings = SandboxSettings(
            port=port,
            webhook_url=f"http://127.0.0.1:{self.bot.port}/webhook",
            latency_ms=self._latency_ms,
            numbers=[
                SandboxNumber(
                    phone_number_id=NUMBER,
                    waba_id="102290129340398",
                    display_phone_number="15550001000",
                    token=SecretSource(env="UNUSED"),
                    name="Garden & Home",
                ),
                SandboxNumber(
                    phone_number_id=SECOND,
                    waba_id="102290129340398",
                    display_phone_number="15550002000",
                    token=SecretSource(env="UNUSED"),
                    name="Parcel Service",
                ),
            ],
        )
        token = Secret(TOKEN)
        return Sandbox(
            settings,
            {NUMBER: token, SECOND: token},
            Secret(SECRET),
            self._folder,
            SystemClock(),
            timings=Timings(sent_ms=(20, 60), delivered_ms=(40, 120), read_ms=(60, 200)),
            postage=Postage(retry_first_ms=200, retry_max_ms=1_000),
        )
