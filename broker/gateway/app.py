"""The gateway: which path, whose key, how much at once. `Gateway.handle` needs no socket; `gateway_app` is the port."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

from aiohttp import web

from broker import metrics
from broker.clock import Clock
from broker.core.allowance import Allowance
from broker.core.control import Wrong, is_control
from broker.core.endpoints import (
    DOWNLOAD,
    MARKETING,
    MEDIUM,
    MEDIUM_DELETE,
    MESSAGES,
    NODE,
    NOT_LISTED,
    REASONS,
    UPLOAD,
    Endpoint,
    Endpoints,
    Refusal,
    Scope,
    Target,
    clean_body,
    clean_query,
    credential,
    forbidden,
    listed,
    read_path,
)
from broker.core.message import INVALID, error_of
from broker.core.template_class import TemplateClasses
from broker.gateway import answers, control, openapi
from broker.gateway.control import Control, ControlCall
from broker.gateway.keys import Keys, allows, bearer
from broker.gateway.media import Media
from broker.gateway.messages import Messages
from broker.gateway.passthrough import Passthrough
from broker.gateway.templates import TemplateList
from broker.listener import Answer, Listener, Refused, is_gone, read_body
from broker.log.contract import LogEngine
from schemas.graph import Error
from schemas.settings import BotKey, Settings

logger = logging.getLogger("depesche.gateway")

BYTES_IN_FLIGHT_MAX = 32 * 1024 * 1024
"""Bodies read and not yet answered; beyond it 503. At 1 kB each it is far more than a log takes in its time."""

RESULTS = (
    "accepted",
    "marked",
    "described",
    "passed",
    "controlled",
    "refused",
    "unauthorized",
    "forbidden",
    "limited",
    "not_found",
    "too_large",
    "log_unavailable",
    "graph_unavailable",
    "overloaded",
)

SENT = (MESSAGES, MARKETING)
"""What becomes a request on our log; everything else goes on to Graph."""

STREAMED = (UPLOAD, DOWNLOAD)
"""What is never held whole: it needs the connection itself."""


CONTROL_ALONE = "it has no numbers, and is for /control/v1 alone; give its [[keys]] numbers and a sink to call Graph"


class Call(NamedTuple):
    """A request whose path and key are in order; its body is still to come. `phone_number_id`: with whose token, ""
    where that is to be found out; `secret`: the key's own text, which must not go further."""

    key: BotKey
    endpoint: Endpoint
    target: Target
    phone_number_id: str
    secret: str


class Gateway:
    """Takes what bots ask for. Owns the bytes in flight and each key's allowance."""

    def __init__(
        self,
        settings: Settings,
        engine: LogEngine,
        clock: Clock,
        rng: random.Random,
        graph: Passthrough | None = None,
        operators: Control | None = None,
    ) -> None:
        """Prepare. `rng` makes ids: in production one that nobody can predict. `graph`: what is no message goes on
        there, `operators`: what they ask for goes there; without it, it is refused."""
        self._settings = settings.gateway
        self._wabas = {number.phone_number_id: number.waba_id for number in settings.numbers}
        self._waba_ids = frozenset(self._wabas.values())
        self._allowances: dict[str, Allowance] = {}
        self.use_keys(settings.keys)
        self._endpoints = Endpoints(listed(settings.gateway.passthrough))
        self._clock = clock
        self._rng = rng
        classes = TemplateClasses(self._wabas, settings.gateway.template_classes)
        portfolios = {number.phone_number_id: number.portfolio for number in settings.numbers}
        self._graph = graph
        self._operators = operators
        self._media = Media(graph, rng) if graph is not None else None
        self._templates = TemplateList(graph, classes, self._wabas, clock) if graph is not None else None
        self._messages = Messages(settings.gateway, portfolios, classes, engine, clock, rng, self._want_template)
        self._in_flight_bytes = 0
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False
        for reason in REASONS.values():
            metrics.gateway_forbidden.labels(reason)
        self._requests = {result: metrics.gateway_requests.labels(result) for result in RESULTS}
        self._durations = {result: metrics.gateway_request_duration.labels(result) for result in RESULTS}
        self._backpressure = metrics.backpressure_active.labels("gateway")

    def use_keys(self, keys: Sequence[BotKey]) -> None:
        """Replace all keys at once; requests under way keep theirs. An allowance that stays is not filled anew."""
        rates = {key.name: key.requests_per_s_max for key in keys if key.requests_per_s_max}
        kept = {name: one for name, one in self._allowances.items() if one.per_s == rates.get(name)}
        self._allowances = {name: kept.get(name) or Allowance(per_s) for name, per_s in rates.items()}
        self._keys = Keys(keys)

    async def start(self) -> None:
        """Begin to read the lists of templates. Nothing waits for them: until they are there, classes are presumed."""
        if self._templates is not None:
            self._templates.start()

    async def stop(self, timeout_s: float = 10.0) -> None:
        """Finish the requests under way, within the timeout. Never raises."""
        self.draining = True
        if self._templates is not None:
            await self._templates.stop()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d requests were not finished after %.0f s", self._under_way, timeout_s)

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

    # ---- who may ask for what

    def admit(self, method: str, path: str, headers: Mapping[str, str]) -> Call | ControlCall | Answer:
        """Say whose request it is before its body is read, or refuse it."""
        plain = path.partition("?")[0]
        if plain == openapi.PATH:
            return answers.described(openapi.encoded()) if method == "GET" else self._wrong_method(("GET",))
        if is_control(plain):
            return control.admit(method, path, headers, self._keys, self._wait_s)
        target = read_path(path)
        if target is None:
            return self._refuse(404, answers.UNKNOWN_PATH, "not_found", close=True)
        secret = bearer(headers.get("Authorization")) or credential(target.query)
        key = self._keys.find(secret)
        if key is None:
            answer = self._refuse(401, answers.INVALID_KEY, "unauthorized", close=True)
            return answer._replace(headers={**answer.headers, "WWW-Authenticate": "Bearer"})
        if not key.numbers:
            return self._refuse(403, answers.forbidden("This key", CONTROL_ALONE), "forbidden", close=True)
        if (refusal := forbidden(method, target)) is not None:
            return self._forbid(refusal)
        found = self._find(method, target, key)
        if isinstance(found, Answer):
            return found
        endpoint, number = found
        if "Content-Encoding" in headers:
            error = error_of(INVALID, "The body must be sent without a content encoding.")
            return self._refuse(415, error, "refused", close=True)
        if wait_s := self._wait_s(key):
            error = answers.limited("messages" if endpoint in SENT else "", key.requests_per_s_max)
            return answers.refused(429, error, "limited", self._rng, retry_after_s=wait_s, close=True)
        return Call(key, endpoint, target, number, secret)

    def _wait_s(self, key: BotKey) -> int:
        """Take one request of a key's allowance; return the seconds until it may be made, 0: now."""
        allowance = self._allowances.get(key.name)
        return 0 if allowance is None else math.ceil(allowance.take(self._clock.monotonic()))

    def _find(self, method: str, target: Target, key: BotKey) -> tuple[Endpoint, str] | Answer:
        """Return what is called and with which number's token: the key's own, whatever it asks for."""
        node, edge = target.node, target.edge
        scope: Scope
        if not (node.isascii() and node.isdigit()):
            return self._refuse(404, answers.UNKNOWN_PATH, "not_found", close=True)
        if target.ours:
            if not (node in self._wabas and allows(key, node)):
                return self._refuse(404, answers.not_found(node, method), "not_found", close=True)
            return (DOWNLOAD, node) if method == "GET" else self._wrong_method(("GET",))
        if node in self._wabas:
            scope, number = "number", node if allows(key, node) else ""
        elif node in self._waba_ids:
            scope, number = "waba", next((n for n, waba in self._wabas.items() if waba == node and allows(key, n)), "")
        else:
            if not edge and method in ("GET", "DELETE"):
                return (MEDIUM if method == "GET" else MEDIUM_DELETE), ""
            return self._refuse(400, answers.not_found(node, method), "not_found", close=True)
        if not number:
            return self._refuse(400, answers.not_found(node, method), "not_found", close=True)
        endpoint = self._endpoints.find(method, scope, edge)
        if endpoint is not None:
            return endpoint, number
        methods = self._endpoints.methods(scope, edge)
        if methods and edge:
            return self._wrong_method(methods)
        if not edge and method != "GET":
            return self._forbid(Refusal(f"{method} of the object itself", NODE))
        return self._forbid(Refusal(f"{method} of {edge or 'the object itself'}", NOT_LISTED))

    def _wrong_method(self, methods: tuple[str, ...]) -> Answer:
        answer = self._refuse(405, answers.unsupported_method(methods), "not_found", close=True)
        return answer._replace(headers={**answer.headers, "Allow": ", ".join(methods)})

    def _forbid(self, refusal: Refusal) -> Answer:
        metrics.gateway_forbidden.labels(REASONS[refusal.reason]).inc()
        return self._refuse(403, answers.forbidden(*refusal), "forbidden", close=True)

    def _refuse(self, status: int, error: Error, result: str, *, close: bool = False) -> Answer:
        return answers.refused(status, error, result, self._rng, close=close)

    # ---- requests that are read whole

    async def take(
        self,
        call: Call | ControlCall,
        headers: Mapping[str, str],
        body: bytes,
        began: float,
        gone: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Answer an admitted request. `gone`: whether nobody hears the answer any more. Never raises."""
        if len(body) > self._settings.body_bytes_max:
            answer = self.unread(413, call)
        elif not self.reserve(len(body)):
            answer = self.unread(503, call)
        else:
            self._backpressure.set(0)
            try:
                with self.working():
                    if isinstance(call, ControlCall):
                        answer = await self._control(call, body)
                    elif call.endpoint in SENT:
                        answer = await self._messages.take(
                            call.key,
                            call.phone_number_id,
                            headers,
                            body,
                            edge="marketing_messages" if call.endpoint is MARKETING else "messages",
                            gone=gone,
                        )
                    else:
                        answer = await self._pass_on(call, headers, body)
            finally:
                self.reserve(-len(body))
        self.count(answer, began)
        return answer

    async def _control(self, call: ControlCall, body: bytes) -> Answer:
        if self._operators is None:
            return control.refused(Wrong(404, "not_found", "this gateway takes nothing of operators", "path"))
        return await self._operators.take(call, body)

    def _want_template(self, phone_number_id: str) -> None:
        if self._templates is not None:
            self._templates.wanted(phone_number_id)

    async def _pass_on(self, call: Call, headers: Mapping[str, str], body: bytes) -> Answer:
        """Check what goes along, and ask Graph."""
        graph, media = self._graph, self._media
        if graph is None or media is None or call.endpoint in STREAMED:
            return self._refuse(503, answers.unavailable("This gateway has no way to Graph."), "graph_unavailable")
        try:
            query = clean_query(call.target.query)
            cleaned = clean_body(body, headers.get("Content-Type", ""))
        except ValueError as wrong:
            text = str(wrong)
            return self._refuse(400, error_of(INVALID, f"{text[:1].upper()}{text[1:]}."), "refused")
        if isinstance(query, Refusal):
            return self._forbid(query)
        if isinstance(cleaned, Refusal):
            return self._forbid(cleaned)
        if call.secret in query or call.secret.encode() in cleaned[0]:
            return self._refuse(400, error_of(INVALID, "The key itself stands in what would go to Meta."), "refused")
        async with self.place(call) as room:
            if not room:
                return self.unread(503)
            if call.endpoint is MEDIUM:
                return await media.get(call.target, self._numbers(call.key), query)
            if call.endpoint is MEDIUM_DELETE:
                return await media.delete(call.target, self._numbers(call.key), query)
            content, content_type = cleaned if call.endpoint.method != "GET" else (b"", "")
            return await graph.pass_on(call.endpoint, call.target, call.phone_number_id, query, content, content_type)

    def _numbers(self, key: BotKey) -> list[str]:
        return [number for number in self._wabas if allows(key, number)]

    # ---- requests and answers that are streams

    async def stream(self, call: Call, request: web.BaseRequest, began: float) -> Answer | web.StreamResponse:
        """Answer an upload or a download. Never raises."""
        response: web.StreamResponse | None = None
        media = self._media
        with self.working():
            async with self.place(call) as room:
                if not room or media is None:
                    answer = self.unread(503)
                elif call.endpoint is UPLOAD:
                    answer = await media.upload(call.phone_number_id, request, call.target.version, call.secret)
                else:
                    response, answer = await media.download(call.target, call.phone_number_id, request)
        self.count(answer, began)
        return answer if response is None else response

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count a request as under way."""
        self._under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    @asynccontextmanager
    async def place(self, call: Call) -> AsyncIterator[bool]:
        """Take a place among the calls to Graph, if there is one."""
        graph = self._graph
        if graph is None or not await graph.enter(call.key.name):
            yield False
            return
        try:
            yield True
        finally:
            graph.leave(call.key.name)

    def unread(self, status: int, call: Call | ControlCall | None = None) -> Answer:
        """Answer a request whose body was not read to its end."""
        if status == 503:
            self._backpressure.set(1)
        if isinstance(call, ControlCall):
            return control.unread(status, self._settings.body_bytes_max)
        if status == 503:
            error = answers.unavailable("Too much is under way at this moment. Nothing was taken.")
            return answers.refused(503, error, "overloaded", self._rng, retry_after_s=1, close=True)
        if status == 413:
            error = error_of(INVALID, f"The body holds more than {self._settings.body_bytes_max} bytes.")
            return answers.refused(413, error, "too_large", self._rng, close=True)
        why = "The body took too long." if status == 408 else "The body broke off."
        return answers.refused(status, error_of(INVALID, why), "refused", self._rng, close=True)

    def malformed(self) -> Answer:
        """Answer what cannot be read as a request."""
        return self._refuse(400, error_of(INVALID, "What came is no HTTP request."), "refused", close=True)

    def count(self, answer: Answer, began: float) -> None:
        """Count a request when its answer is decided; `began` is monotonic."""
        self._requests[answer.result].inc()
        self._durations[answer.result].observe(self._clock.monotonic() - began)


def gateway_app(gateway: Gateway, settings: Settings, clock: Clock) -> Listener:
    """Return the port of a gateway."""
    bytes_max = settings.gateway.body_bytes_max

    async def handle(request: web.BaseRequest) -> Answer | web.StreamResponse:
        began = clock.monotonic()
        call = gateway.admit(request.method, request.raw_path, request.headers)
        if isinstance(call, Answer):
            gateway.count(call, began)
            return call
        if isinstance(call, Call) and call.endpoint in STREAMED:
            return await gateway.stream(call, request, began)
        try:
            body = await read_body(request, bytes_max, gateway.reserve)
        except Refused as refusal:
            answer = gateway.unread(refusal.status, call)
            gateway.count(answer, began)
            return answer
        return await gateway.take(call, request.headers, body, began, lambda: is_gone(request))

    def malformed() -> Answer:
        answer = gateway.malformed()
        gateway.count(answer, clock.monotonic())
        return answer

    return Listener("gateway", handle, settings.gateway.host, settings.gateway.port, malformed)
