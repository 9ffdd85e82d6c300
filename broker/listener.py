"""A public port: connections with deadlines, bodies with a bound, an end that lets what is under way finish.

Shared by the receiver and the gateway, who see a request's method, path, headers and body and return an `Answer`.
Bodies are taken as the bytes they are: nothing here decompresses, decodes or guesses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from aiohttp import http_parser, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from broker.errors import Misconfigured

logger = logging.getLogger("depesche.listener")

HEADER_S_MAX = 10.0
"""From the first byte of a request (or the connection) to the end of its headers."""
BODY_S_MAX = 20.0
"""From the end of the headers to the end of the body."""
IDLE_S_MAX = 75.0
"""A connection without a request is kept longer than load balancers keep theirs (60 s), so that they are the ones
to close it: the other way round a request meets a closing connection."""
LINGER_S_MAX = 2.0
"""A refused body is read and dropped for so long, so that its sender gets to see the answer."""
STOP_S_MAX = 10.0
"""How long requests under way may take when we stop."""
FREE_BYTES = 64 * 1024
"""What a request may hold unasked: no more than the connection's own buffer."""

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Answer(NamedTuple):
    """An HTTP answer. `result` is its name in our metrics, `close` ends the connection after it."""

    status: int
    headers: Mapping[str, str] = NO_HEADERS
    body: bytes = b""
    result: str = ""
    close: bool = False


class Refused(Exception):
    """A body was not read to its end: `status` and `why` say what its sender did, or that we have no room (503)."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


Handler = Callable[[web.BaseRequest], Awaitable[Answer | web.StreamResponse]]
"""Answers a request; a stream it has begun itself is finished by the time it returns."""
Malformed = Callable[[], Answer]
Reserve = Callable[[int], bool]
"""Takes so many bytes more (or gives them back, when negative) and says whether there was room."""


async def go_on(request: web.BaseRequest) -> None:
    """Tell a client that asked first to send its body."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def is_gone(request: web.BaseRequest) -> bool:
    """Whether nobody is there any more to hear the answer."""
    return request.transport is None or request.transport.is_closing()


async def read_body(request: web.BaseRequest, bytes_max: int, reserve: Reserve) -> bytes:
    """Return a request's body, exactly. Raises `Refused`: 413 too large, 408 too slow, 400 broken off, 503 no room.

    What is held beyond the first 64 kB is reserved until this returns.
    """
    length = request.content_length
    if length is not None and length > bytes_max:
        raise Refused(413, f"a body holds up to {bytes_max} bytes")
    content = request.content
    if content.is_eof() and content.exception() is None:  # it came with its headers: the usual case
        body = content.read_nowait()
        if len(body) > bytes_max:
            raise Refused(413, f"a body holds up to {bytes_max} bytes")
        return body
    await go_on(request)
    chunks: list[bytes] = []
    size = reserved = 0
    try:
        async with asyncio.timeout(BODY_S_MAX):
            while chunk := await content.readany():
                chunks.append(chunk)
                size += len(chunk)
                if size > bytes_max:
                    raise Refused(413, f"a body holds up to {bytes_max} bytes")
                if size > FREE_BYTES + reserved:
                    if not reserve(size - FREE_BYTES - reserved):
                        raise Refused(503, "no room for it now")
                    reserved = size - FREE_BYTES
    except TimeoutError:
        raise Refused(408, f"the body took more than {BODY_S_MAX:.0f} s") from None
    except (web.RequestPayloadError, ConnectionError, asyncio.IncompleteReadError) as error:
        raise Refused(400, f"the body broke off ({type(error).__name__})") from None
    finally:
        if reserved:
            reserve(-reserved)
    return b"".join(chunks)


class _Connection(RequestHandler):
    """A connection of ours: one whose headers do not come in time is closed. aiohttp itself would wait for ever."""

    __slots__ = ("_headers_due", "_malformed")

    def __init__(self, manager: web.Server, malformed: Malformed, **options: Any) -> None:
        super().__init__(manager, **options)
        self._malformed = malformed

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP is its sender's fault and gets no traceback: strangers could fill the log with them."""
        if status >= 500 or not isinstance(exc, HttpProcessingError) or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        return _response(self._malformed(), close=True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._headers_due: asyncio.TimerHandle | None = self._loop.call_later(HEADER_S_MAX, self._too_late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages:
            if self._headers_due is not None:
                self._headers_due.cancel()
                self._headers_due = None
        elif self._headers_due is None and self._waiter is not None:
            self._headers_due = self._loop.call_later(HEADER_S_MAX, self._too_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None
        super().connection_lost(exc)

    def _too_late(self) -> None:
        self._headers_due = None
        if not self._messages:
            self.force_close()


class _Server(web.Server):
    def __init__(self, handler: Any, malformed: Malformed, **options: Any) -> None:
        super().__init__(handler, **options)
        self._malformed = malformed

    def __call__(self) -> RequestHandler:
        return _Connection(self, self._malformed, loop=self._loop, **self._kwargs)


def _response(answer: Answer, *, close: bool) -> web.Response:
    response = web.Response(status=answer.status, headers=answer.headers, body=answer.body or None)
    if answer.close or close:
        response.force_close()
    return response


class Listener:
    """One port. `name` is for log lines; with port 0 the system chooses, and `port` tells after `start`. `malformed`
    answers, and counts, what cannot be read as a request at all."""

    def __init__(
        self,
        name: str,
        handler: Handler,
        host: str,
        port: int,
        malformed: Malformed = lambda: Answer(400, result="bad_request"),
    ) -> None:
        self._name = name
        self._handler = handler
        self._malformed = malformed
        self._host = host
        self.port = port
        self.draining = False
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._runner: web.ServerRunner | None = None

    async def start(self) -> None:
        """Open the port. Raises `OSError` when it cannot be had, `Misconfigured` without aiohttp's C parser."""
        if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
            raise Misconfigured("aiohttp runs without its C parser: the public ports need it (speed, and strictness)")
        options: dict[str, Any] = {
            "access_log": None,  # paths and peers only; metrics say more and name nobody
            "auto_decompress": False,
            "keepalive_timeout": IDLE_S_MAX,
            "lingering_time": LINGER_S_MAX,
        }
        self._runner = web.ServerRunner(_Server(self._handle, self._malformed, **options), shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self.port, backlog=1_024).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self, timeout_s: float = STOP_S_MAX) -> None:
        """Take no more connections, answer what is under way with `Connection: close`, then close. Never raises."""
        self.draining = True
        if self._runner is None:
            return
        for site in list(self._runner.sites):
            await site.stop()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%s: %d requests were not finished after %.0f s", self._name, self._under_way, timeout_s)
        await self._runner.cleanup()
        self._runner = None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._under_way += 1
        self._idle.clear()
        try:
            answer = await self._handler(request)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        if isinstance(answer, web.StreamResponse):
            return answer
        return _response(answer, close=self.draining)
