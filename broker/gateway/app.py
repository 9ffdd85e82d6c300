"""The gateway: which path, whose key, how much at once. `Gateway.handle` needs no socket; `gateway_app` is the port."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aiohttp import web

from broker import metrics
from broker.clock import Clock
from broker.core.message import INVALID, error_of
from broker.gateway import answers, openapi
from broker.gateway.keys import Keys, allows
from broker.gateway.messages import Messages
from broker.listener import Answer, Listener, Refused, read_body
from broker.log.contract import LogEngine
from schemas.settings import BotKey, Settings

logger = logging.getLogger("depesche.gateway")

BYTES_IN_FLIGHT_MAX = 32 * 1024 * 1024
"""Bodies read and not yet answered; beyond it 503. At 1 kB each it is far more than a log takes in its 20 s."""

RESULTS = (
    "accepted",
    "marked",
    "described",
    "refused",
    "unauthorized",
    "not_found",
    "too_large",
    "log_unavailable",
    "overloaded",
)

_PATH = re.compile(r"/(?:v[0-9]{1,3}(?:\.[0-9]{1,3})?/)?([0-9]{1,32})/messages/?")


class Call(NamedTuple):
    """A request whose path and key are in order; its body is still to come."""

    key: BotKey
    phone_number_id: str


class Gateway:
    """Takes what bots ask for. Owns the bytes in flight."""

    def __init__(self, settings: Settings, engine: LogEngine, clock: Clock, rng: random.Random) -> None:
        """Prepare. `rng` makes ids: in production one that nobody can predict."""
        self._settings = settings.gateway
        self._portfolios = {number.phone_number_id: number.portfolio for number in settings.numbers}
        self._keys = Keys(settings.keys)
        self._clock = clock
        self._rng = rng
        self._messages = Messages(settings.gateway, self._portfolios, engine, clock, rng)
        self._in_flight_bytes = 0
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False
        self._requests = {result: metrics.gateway_requests.labels(result) for result in RESULTS}
        self._durations = {result: metrics.gateway_request_duration.labels(result) for result in RESULTS}
        self._backpressure = metrics.backpressure_active.labels("gateway")

    def use_keys(self, keys: Sequence[BotKey]) -> None:
        """Replace all keys at once; requests under way keep theirs."""
        self._keys = Keys(keys)

    async def start(self) -> None:
        """Nothing runs by itself here: a gateway works when it is asked."""

    async def stop(self, timeout_s: float = 10.0) -> None:
        """Finish the requests under way, within the timeout. Never raises."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning(
                "%d requests were not durable after %.0f s; they were not answered", self._under_way, timeout_s
            )

    def why_not_ready(self) -> str | None:
        """Return why this gateway should get no requests, None when it should."""
        return "draining" if self.draining else None

    def reserve(self, size: int) -> bool:
        """Take room for bytes read and not yet answered (or give it back); False when there is none."""
        if size > 0 and self._in_flight_bytes + size > BYTES_IN_FLIGHT_MAX:
            return False
        self._in_flight_bytes += size
        return True

    async def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer one request. `headers` are named as documented, or in a mapping that ignores case. Never raises."""
        began = self._clock.monotonic()
        call = self.admit(method, path, headers)
        if isinstance(call, Answer):
            self.count(call, began)
            return call
        return await self.take(call, headers, body, began)

    def admit(self, method: str, path: str, headers: Mapping[str, str]) -> Call | Answer:
        """Say whose request it is before its body is read, or refuse it."""
        if path.partition("?")[0] == openapi.PATH:
            return self._describe(method)
        match = _PATH.fullmatch(path.partition("?")[0])
        if match is None:
            return answers.refused(404, answers.UNKNOWN_PATH, "not_found", self._rng, close=True)
        if method != "POST":
            answer = answers.refused(405, answers.UNSUPPORTED_METHOD, "not_found", self._rng, close=True)
            return answer._replace(headers={**answer.headers, "Allow": "POST"})
        key = self._keys.find(headers.get("Authorization"))
        if key is None:
            answer = answers.refused(401, answers.INVALID_KEY, "unauthorized", self._rng, close=True)
            return answer._replace(headers={**answer.headers, "WWW-Authenticate": "Bearer"})
        number = match[1]
        if number not in self._portfolios or not allows(key, number):
            return answers.refused(400, answers.not_found(number), "not_found", self._rng)
        if "Content-Encoding" in headers:
            error = error_of(INVALID, "The body must be sent without a content encoding.")
            return answers.refused(415, error, "refused", self._rng, close=True)
        return Call(key, number)

    def _describe(self, method: str) -> Answer:
        """Answer with the OpenAPI document, which nobody needs a key for."""
        if method == "GET":
            return answers.described(openapi.encoded())
        answer = answers.refused(405, answers.READ_ONLY, "not_found", self._rng, close=True)
        return answer._replace(headers={**answer.headers, "Allow": "GET"})

    async def take(self, call: Call, headers: Mapping[str, str], body: bytes, began: float) -> Answer:
        """Answer an admitted request. Never raises."""
        if len(body) > self._settings.body_bytes_max:
            answer = self.unread(413)
        elif not self.reserve(len(body)):
            answer = self.unread(503)
        else:
            self._backpressure.set(0)
            self._under_way += 1
            self._idle.clear()
            try:
                answer = await self._messages.take(call.key, call.phone_number_id, headers, body)
            finally:
                self.reserve(-len(body))
                self._under_way -= 1
                if not self._under_way:
                    self._idle.set()
        self.count(answer, began)
        return answer

    def unread(self, status: int) -> Answer:
        """Answer a request whose body was not read to its end."""
        if status == 503:
            self._backpressure.set(1)
            error = answers.unavailable("Too much is under way at this moment. Nothing was taken.")
            return answers.refused(503, error, "overloaded", self._rng, retry_after_s=1, close=True)
        if status == 413:
            error = error_of(INVALID, f"The body holds more than {self._settings.body_bytes_max} bytes.")
            return answers.refused(413, error, "too_large", self._rng, close=True)
        why = "The body took too long." if status == 408 else "The body broke off."
        return answers.refused(status, error_of(INVALID, why), "refused", self._rng, close=True)

    def count(self, answer: Answer, began: float) -> None:
        """Count a request when its answer is decided; `began` is monotonic."""
        self._requests[answer.result].inc()
        self._durations[answer.result].observe(self._clock.monotonic() - began)


def gateway_app(gateway: Gateway, settings: Settings, clock: Clock) -> Listener:
    """Return the port of a gateway."""
    bytes_max = settings.gateway.body_bytes_max

    async def handle(request: web.BaseRequest) -> Answer:
        began = clock.monotonic()
        call = gateway.admit(request.method, request.raw_path, request.headers)
        if isinstance(call, Answer):
            gateway.count(call, began)
            return call
        try:
            body = await read_body(request, bytes_max, gateway.reserve)
        except Refused as refusal:
            answer = gateway.unread(refusal.status)
            gateway.count(answer, began)
            return answer
        return await gateway.take(call, request.headers, body, began)

    return Listener("gateway", handle, settings.gateway.host, settings.gateway.port)
