"""Two bots to talk to: an assistant behind a `meta` sink, an order desk behind a `standard` one.

Each shows how a bot is built well. It checks the signature first; it answers an event only when what it says is
durable with the gateway, so that an event whose answer failed comes again; and it names each of its sends by the event
and its place, so that an event that comes twice is answered once.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from broker.clock import Clock
from broker.errors import Misconfigured
from broker.sandbox.shapes import sign
from broker.secrets import Secret
from schemas.settings import SampleBot

logger = logging.getLogger("depesche.bots")

Json = dict[str, Any]

BODY_BYTES_MAX = 4 * 1024 * 1024
TOLERANCE_S = 300
"""How old a Standard Webhooks timestamp may be, as its specification recommends."""
PACE_S = 0.7
"""Typing is shown for this long before an answer, as a person would."""
SEND_S_MAX = 10.0
"""Below the 15 s after which a sink's event is taken as failed."""
GRAPH_VERSION = "v26.0"

COLOURS = ("red", "orange", "yellow", "green", "blue", "violet")
SURPRISES = (
    "A day on Venus is longer than its year.",
    "Honey does not spoil: what was found in tombs could still be eaten.",
    "Octopuses have three hearts, and two of them rest while they swim.",
    "The word “dispatch” is older than the post office.",
)
ORDERS = {
    "1042": ("Rain barrel, 200 l", "out for delivery", "It should arrive today between 14:00 and 16:00."),
    "1043": ("Two rose bushes", "packed", "It leaves our nursery this evening."),
    "1044": ("Garden bench, oak", "delivered", "It was handed over yesterday at 11:20."),
}


class GatewayUnavailable(Exception):
    """The gateway did not take a send: the event is to come again."""


def assistant_answers(message: Json) -> list[Json]:
    """Return what the assistant says to a message, each the type part of a send. Nothing to a reaction."""
    kind = message.get("type", "")
    if kind == "reaction":
        return []
    if kind == "image":
        return [_reaction(message, "😍"), _text("What a lovely picture! I keep it for the album.")]
    if kind == "location":
        place = message["location"].get("name") or "there"
        return [_text(f"Thank you, I found *{place}* on the map.")]
    words = said(message)
    chosen = chosen_id(message)
    if chosen.startswith("colour:"):
        return [_text(f"*{chosen.removeprefix('colour:').capitalize()}* it is. A fine choice.")]
    if chosen == "menu" or "menu" in words:
        return [_colours()]
    if chosen == "hours" or "open" in words or "hours" in words:
        return [_text("We are open *Monday to Saturday, 9:00 to 19:00*.\nOn Sundays the garden rests.")]
    if chosen == "surprise" or "surprise" in words:
        at = int(hashlib.sha256(message["id"].encode()).hexdigest(), 16)
        return [_reaction(message, "✨"), _text(SURPRISES[at % len(SURPRISES)])]
    if words & {"hello", "hi", "hey", "hallo", "moin", "start"}:
        return [_greeting()]
    if "stop" in words:
        return [_text("Understood: no more news from us. Write *hello* whenever you need something.")]
    if words & {"thanks", "thank", "danke"}:
        return [_reaction(message, "🙏")]
    text = message.get("text", {}).get("body", "")
    if not text:
        return [_text("I cannot read this kind of message yet. Write *hello* to see what I can do.")]
    return [{**_text(f"You wrote: {text[:3_000]}"), "context": {"message_id": message["id"]}}]


def order_answers(message: Json) -> list[Json]:
    """Return what the order desk says to a message, each the type part of a send."""
    if message.get("type") == "reaction":
        return []
    chosen = chosen_id(message)
    if chosen.startswith("order:map:"):
        return [
            {
                "type": "location",
                "location": {
                    "latitude": 52.520008,
                    "longitude": 13.404954,
                    "name": f"Order {chosen.removeprefix('order:map:')}",
                    "address": "Our van, four stops away from you",
                },
            }
        ]
    if chosen.startswith("order:thanks"):
        return [_reaction(message, "🌿")]
    number = chosen.removeprefix("order:") or next((word for word in said(message) if word in ORDERS), "")
    if number in ORDERS:
        what, state, then = ORDERS[number]
        text = f"*Order {number}*: {what}\nState: *{state}*\n{then}"
        return [_buttons(text, (f"order:map:{number}", "Where is it?"), ("order:thanks", "Thank you"))]
    rows = [
        {"id": f"order:{number}", "title": f"Order {number}", "description": what}
        for number, (what, _, _) in ORDERS.items()
    ]
    return [
        {
            "type": "interactive",
            "interactive": {
                "type": "list",
                "body": {"text": "Which order do you mean? These are your last three."},
                "action": {"button": "My orders", "sections": [{"title": "Orders", "rows": rows}]},
            },
        }
    ]


def said(message: Json) -> set[str]:
    """Return the words of a message in lower case, without punctuation."""
    text = message.get("text", {}).get("body", "") or message.get("button", {}).get("text", "")
    return {word.strip(".,;:!?…*_\"'()").lower() for word in text[:4_096].split()}


def chosen_id(message: Json) -> str:
    """Return the id of the button or row that was tapped, "" when none was."""
    interactive = message.get("interactive", {})
    reply = interactive.get("button_reply") or interactive.get("list_reply") or {}
    return str(reply.get("id") or message.get("button", {}).get("payload", ""))


def _text(body: str) -> Json:
    return {"type": "text", "text": {"body": body}}


def _reaction(message: Json, emoji: str) -> Json:
    return {"type": "reaction", "reaction": {"message_id": message["id"], "emoji": emoji}}


def _buttons(text: str, *buttons: tuple[str, str]) -> Json:
    replies = [{"type": "reply", "reply": {"id": button_id, "title": title}} for button_id, title in buttons]
    return {
        "type": "interactive",
        "interactive": {"type": "button", "body": {"text": text}, "action": {"buttons": replies}},
    }


def _greeting() -> Json:
    return _buttons(
        "Hello! I am the sample assistant behind this number. What would you like?",
        ("menu", "Show the menu"),
        ("hours", "Opening hours"),
        ("surprise", "Surprise me"),
    )


def _colours() -> Json:
    sections = [
        {"title": title, "rows": [{"id": f"colour:{colour}", "title": colour.capitalize()} for colour in colours]}
        for title, colours in (("Warm", COLOURS[:3]), ("Cool", COLOURS[3:]))
    ]
    return {
        "type": "interactive",
        "interactive": {
            "type": "list",
            "header": {"type": "text", "text": "Flowers of the season"},
            "body": {"text": "Choose a colour, and I set a bunch aside for you."},
            "footer": {"text": "You can change your mind later."},
            "action": {"button": "Choose a colour", "sections": sections},
        },
    }


def is_signed_by_meta(headers: Any, body: bytes, secret: str) -> bool:
    """Check `X-Hub-Signature-256` over the raw bytes, in constant time."""
    return hmac.compare_digest(
        headers.get("X-Hub-Signature-256", "").encode("utf-8", "replace"), sign(body, secret).encode()
    )


def is_standard_webhook(headers: Any, body: bytes, key: bytes, now_s: float) -> bool:
    """Check a Standard Webhooks signature: any of those in the header, and a timestamp within five minutes."""
    event_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not timestamp.isascii() or not timestamp.isdigit() or abs(now_s - int(timestamp)) > TOLERANCE_S:
        return False
    signed = f"{event_id}.{timestamp}.".encode("utf-8", "replace") + body
    expected = b"v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
    given = headers.get("webhook-signature", "").split(" ")
    return any(hmac.compare_digest(one.encode("utf-8", "replace"), expected) for one in given)


class Bot:
    """One sample bot on its port: checks, thinks, answers through the gateway with its key."""

    def __init__(self, settings: SampleBot, secret: Secret, key: Secret, clock: Clock, pace_s: float = PACE_S) -> None:
        """Raises `Misconfigured` when a `standard` bot's secret is none."""
        self.settings = settings
        self.port = settings.port
        self._secret = secret.reveal()
        self._key = key
        self._clock = clock
        self._pace_s = pace_s
        self._signing_key = _whsec(self._secret) if settings.kind == "orders" else b""
        self._answers: Callable[[Json], list[Json]] = (
            assistant_answers if settings.kind == "assistant" else order_answers
        )
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen on loopback. Raises OSError when the port cannot be had."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SEND_S_MAX))
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        path = "/webhook" if self.settings.kind == "assistant" else "/events"
        app.add_routes([web.post(path, self._event)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening; an event under way is cut off and comes again."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _event(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self.settings.kind == "assistant":
            is_genuine = is_signed_by_meta(request.headers, body, self._secret)
        else:
            is_genuine = is_standard_webhook(request.headers, body, self._signing_key, self._clock.now() / 1_000)
        if not is_genuine:
            return web.Response(status=401, text="the signature does not match\n")
        try:
            event = msgspec.json.decode(body)
            found = list(messages_of(event if self.settings.kind == "assistant" else event["data"]))
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
            return web.Response(status=400, text="not an event\n")
        try:
            for number, message in found:
                await self._answer(number, message)
        except GatewayUnavailable as error:
            logger.warning("sample bot %s: %s", self.settings.kind, error)
            return web.Response(status=503, headers={"Retry-After": "2"})
        return web.Response()

    async def _answer(self, number: str, message: Json) -> None:
        answers = self._answers(message)
        mark: Json = {"status": "read", "message_id": message["id"]}
        if answers:
            mark["typing_indicator"] = {"type": "text"}
        await self._send(number, mark, f"{message['id']}/read")
        if answers:
            await asyncio.sleep(self._pace_s)
        to = {"to": message["from"]} if message.get("from") else {"recipient": message["from_user_id"]}
        for i, answer in enumerate(answers):
            await self._send(number, {**to, **answer}, f"{message['id']}/{i}")

    async def _send(self, number: str, content: Json, name: str) -> None:
        """Send through the gateway. Raises `GatewayUnavailable`; a refusal is said and left at that."""
        assert self._session is not None
        url = f"{self.settings.gateway_url.rstrip('/')}/{GRAPH_VERSION}/{number}/messages"
        headers = {
            "Authorization": f"Bearer {self._key.reveal()}",
            "Content-Type": "application/json",
            "Idempotency-Key": hashlib.sha256(f"{self.settings.kind}/{name}".encode()).hexdigest(),
        }
        body = msgspec.json.encode({"messaging_product": "whatsapp", **content})
        try:
            async with self._session.post(url, data=body, headers=headers) as answer:
                said_back = await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise GatewayUnavailable(f"the gateway did not answer ({type(error).__name__})") from None
        if answer.status >= 500 or answer.status == 429:
            raise GatewayUnavailable(f"the gateway answered {answer.status}")
        if answer.status >= 400:
            logger.error("sample bot %s: refused with %d: %s", self.settings.kind, answer.status, said_back[:500])


class SampleBots:
    """The sample bots of a configuration, started and stopped together."""

    def __init__(
        self,
        bots: Sequence[SampleBot],
        secrets: Sequence[Secret],
        keys: Sequence[Secret],
        clock: Clock,
        pace_s: float = PACE_S,
    ) -> None:
        self.bots = [
            Bot(settings, secret, key, clock, pace_s) for settings, secret, key in zip(bots, secrets, keys, strict=True)
        ]

    async def start(self) -> None:
        """Start them all, or none. Raises OSError when a port cannot be had."""
        try:
            for bot in self.bots:
                await bot.start()
        except OSError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop them all."""
        for bot in self.bots:
            await bot.stop()


def messages_of(body: Json) -> list[tuple[str, Json]]:
    """Return the messages of a webhook in Meta's shape, each with the number it came to."""
    return [
        (change["value"]["metadata"]["phone_number_id"], message)
        for entry in body["entry"]
        for change in entry["changes"]
        if change["field"] == "messages"
        for message in change["value"].get("messages", [])
        if message.get("type") != "system" and (message.get("from") or message.get("from_user_id"))
    ]


def _whsec(secret: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise Misconfigured("sandbox.bots: the secret of an `orders` bot is whsec_ and base64") from None
