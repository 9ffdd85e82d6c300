"""A public port: connections with deadlines, bodies with a bound, an end that lets what is under way finish.

Shared by the receiver and the gateway, who see a request's method, path, headers and body and return an `Answer`.
Bodies are taken as the bytes they are: nothing here decompresses, decodes or guesses.

A port may take requests **directly**: one that came whole while its connection was idle goes to a plain function, and
its answer is written when that says so. aiohttp's parser has read it as strictly as any, but there is no task, no
request and no response object for it, which cost more than all a receiver does. Whatever is not that simple (a body
still on its way, pipelining, a refusal that closes) goes through aiohttp as ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple

from aiohttp import http_parser, web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage
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
Begin = Callable[[Mapping[str, str], bytes, Callable[[Answer], None]], None]
"""Takes headers and body of a request, and something to be told its answer, once: at once or later. Never raises."""
Direct = Callable[[RawRequestMessage], Begin | None]
"""Says who takes a request directly; None when it is to go through the `Handler`."""
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


class _Intake:
    """A connection's parser, as aiohttp sees it: requests that are taken directly it does not get to see."""

    __slots__ = ("_connection", "_parser")

    def __init__(self, connection: _Connection, parser: Any) -> None:
        self._connection = connection
        self._parser = parser

    def feed_data(self, data: bytes) -> tuple[Any, bool, bytes]:
        """Parse. Raises `HttpProcessingError`."""
        found = self._parser.feed_data(data)
        if len(found[0]) == 1 and self._connection.takes(*found[0][0]):
            return (), found[1], found[2]
        return found  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)


class _Connection(RequestHandler):
    """A connection of ours: one whose headers do not come in time is closed. aiohttp itself would wait for ever.

    While a request that was taken directly has no answer, nothing more is read, so that answers keep their order.
    """

    __slots__ = ("_came_early", "_headers_due", "_is_answering", "_listener", "_took")

    def __init__(self, manager: web.Server, listener: Listener, **options: Any) -> None:
        super().__init__(manager, **options)
        self._listener = listener
        self._headers_due: asyncio.TimerHandle | None = None
        self._is_answering = False
        self._took = False
        self._came_early = b""
        if listener.direct is not None:
            self._parser = _Intake(self, self._parser)  # type: ignore[assignment]

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
        return _response(self._listener.malformed(), close=True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._headers_due = self._loop.call_later(HEADER_S_MAX, self._too_late)

    def data_received(self, data: bytes) -> None:
        if self._is_answering and data:
            self._came_early += data
            self._pause_transport_reading()
            return
        self._took = False
        super().data_received(data)
        if self._took:
            return
        if self._messages:
            self._headers_are_here()
        elif self._headers_due is None and self._waiter is not None:
            self._headers_due = self._loop.call_later(HEADER_S_MAX, self._too_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._headers_are_here()
        super().connection_lost(exc)

    def takes(self, message: RawRequestMessage, payload: Any) -> bool:
        """Whether a request that was just read is taken directly; then its answer is under way, or written already."""
        listener, waiter = self._listener, self._waiter
        if (
            waiter is None  # a request before it is being handled, or the connection has just been made
            or waiter.done()
            or self._messages
            or not payload.is_eof()
            or payload.exception() is not None
            or not 0 < payload.total_bytes <= FREE_BYTES
            or message.should_close
            or message.upgrade
            or message.version != HttpVersion11
            or listener.draining
            or listener.direct is None
        ):
            return False
        begin = listener.direct(message)
        if begin is None:
            return False
        self._headers_are_here()
        self._took = self._is_answering = True
        self._parser.message_consumed()  # type: ignore[union-attr]
        listener.begins()
        chunks = payload._buffer  # to read it by the front door would have everything resumed that was never paused
        begin(message.headers, chunks[0] if len(chunks) == 1 else b"".join(chunks), self._answer)
        return True

    def _answer(self, answer: Answer) -> None:
        """Write the answer of what was taken directly, and go on with what came meanwhile."""
        listener = self._listener
        listener.ends()
        self._is_answering = False
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        close = answer.close or listener.draining
        transport.write(_written(answer, close=close))
        if close:
            self.force_close()
            return
        self._next_keepalive_close_time = self._loop.time() + IDLE_S_MAX
        if self._came_early:
            self._loop.call_soon(self._go_on)  # not from within: the parser may be the one who called us

    def _go_on(self) -> None:
        if self.transport is not None and not self._is_answering:
            data, self._came_early = self._came_early, b""
            self._resume_transport_reading()
            self.data_received(data)

    def _process_keepalive(self) -> None:
        if self._is_answering:
            self._next_keepalive_close_time = self._loop.time() + IDLE_S_MAX
        super()._process_keepalive()

    def _headers_are_here(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _too_late(self) -> None:
        self._headers_due = None
        if not self._messages:
            self.force_close()


class _Server(web.Server):
    def __init__(self, handler: Any, listener: Listener, **options: Any) -> None:
        super().__init__(handler, **options)
        self._listener = listener

    def __call__(self) -> RequestHandler:
        return _Connection(self, self._listener, loop=self._loop, **self._kwargs)


def _response(answer: Answer, *, close: bool) -> web.Response:
    response = web.Response(status=answer.status, headers=answer.headers, body=answer.body or None)
    if answer.close or close:
        response.force_close()
    return response


def _written(answer: Answer, *, close: bool) -> bytes:
    """An answer as the bytes of HTTP/1.1."""
    date = rfc822_formatted_time()
    if answer.status == 200 and not answer.body and not answer.headers and not close:
        return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nDate: %b\r\n\r\n" % date.encode()
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    lines += [f"Content-Length: {len(answer.body)}", f"Date: {date}"]
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + answer.body


class Listener:
    """One port. `name` is for log lines; with port 0 the system chooses, and `port` tells after `start`. `malformed`
    answers, and counts, what cannot be read as a request at all. `direct`: see the module."""

    def __init__(
        self,
        name: str,
        handler: Handler,
        host: str,
        port: int,
        malformed: Malformed = lambda: Answer(400, result="bad_request"),
        direct: Direct | None = None,
    ) -> None:
        self._name = name
        self._handler = handler
        self.malformed = malformed
        self.direct = direct
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
        self._runner = web.ServerRunner(_Server(self._handle, self, **options), shutdown_timeout=1.0)
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

    def begins(self) -> None:
        """Note a request that is to be answered before we end."""
        self._under_way += 1
        self._idle.clear()

    def ends(self) -> None:
        """Note that it was."""
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.begins()
        try:
            answer = await self._handler(request)
        finally:
            self.ends()
        if isinstance(answer, web.StreamResponse):
            return answer
        return _response(answer, close=self.draining)
