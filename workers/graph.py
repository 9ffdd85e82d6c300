"""The Graph client: brings back what Graph answered, or says whether a byte went out. It decides nothing.

What matters is the moment before the bytes leave. A connection comes first; then the permit is asked; then headers and
body are written at once, in the same turn of the event loop, with nothing awaited in between. aiohttp's trace signals
would be a place to ask too, but below Python 3.12 the body is written by a task that begins one turn later, and a
stalled loop could bank permits in between; and the signal of a new connection is raised inside the connection's
timeout. So the permit is asked where the body is written: aiohttp keeps the headers until then and writes both as one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from msgspec import Struct

from broker import failpoints
from schemas.records import Edge

CONNECT_S_MAX = 5.0
"""Address, connection and TLS together. Nothing was sent yet, so giving up early costs nothing."""

ANSWER_BYTES_MAX = 256 * 1024
"""An answer to a send has some hundred bytes. Of a larger one only so much is read; it is not Graph's."""

CONNECTIONS_MAX = 4_096
"""Open connections of a process, idle ones included: eight numbers at their full 500, below usual file limits."""

KEEPALIVE_S = 25.0
"""An idle connection is dropped before usual balancers do it, so that a send rarely finds a closed one."""


class GraphCall(Struct, frozen=True):
    """One POST to `/<version>/<phone_number_id>/<edge>`. `token` is read when the call begins, for it may rotate."""

    phone_number_id: str
    body: bytes
    token: str
    edge: Edge = "messages"


class GraphAnswer(Struct, frozen=True):
    """What came back, whole: status, body (at most `ANSWER_BYTES_MAX`), and the `Retry-After` header or ""."""

    status: int
    body: bytes
    retry_after: str = ""


class NotSent(Exception):
    """No byte of the request left: certain. `is_unreached`: there was no connection to be had at all; otherwise one
    was found closed and another may do."""

    def __init__(self, text: str, *, is_unreached: bool) -> None:
        super().__init__(text)
        self.is_unreached = is_unreached


class Unanswered(Exception):
    """Bytes left and no whole answer came back: cut, reset, silent, unreadable. Nobody knows whether Meta took it."""


class PermitRefused(Exception):
    """Raised by a permit, passed on by `call`: no byte left."""


class Graph(Protocol):
    """What a sender needs of Graph; the simulation has its own."""

    async def call(self, call: GraphCall, permit: Callable[[], Awaitable[None]]) -> GraphAnswer:
        """Get a connection, await the permit, send. Between the permit's return and the bytes nothing is awaited.

        Raises what the permit raised, `NotSent`, `Unanswered`. Cancelled, it lets go of the connection.
        """
        ...


class _Body(aiohttp.BytesPayload):
    """A body that asks for its permit when its connection is ready to take it."""

    def __init__(self, body: bytes, permit: Callable[[], Awaitable[None]], sent: Callable[[], None]) -> None:
        super().__init__(body, content_type="application/json")
        self._permit = permit
        self._sent = sent
        self.is_sent = False
        self.refused: BaseException | None = None

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Ask, then write headers and body as one."""
        try:
            await self._permit()
        except BaseException as refused:
            self.refused = refused
            raise
        transport = getattr(writer, "transport", None)
        if transport is None or transport.is_closing():
            raise aiohttp.ClientConnectionResetError("the connection was closed before anything was written")
        failpoints.reached("graph.permitted")
        self.is_sent = True
        self._sent()
        await writer.write(self._value)
        failpoints.reached_soon("graph.written")

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """As `write`: the length is the body's own."""
        await self.write(writer)


class GraphClient:
    """Graph over HTTPS, with one pool of connections for all numbers. A POST is never repeated by the client itself:
    aiohttp does so for idempotent methods only, and a test keeps it to that."""

    def __init__(
        self, url: str, version: str, call_timeout_s: float, *, connections_max: int = CONNECTIONS_MAX
    ) -> None:
        """`call_timeout_s` counts from the permit on; then an answer that is missing leaves doubt."""
        self._root = f"{url.rstrip('/')}/{version}"
        self._call_timeout_s = call_timeout_s
        self._connections_max = connections_max
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the pool."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._connections_max, keepalive_timeout=KEEPALIVE_S, enable_cleanup_closed=True
            ),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S_MAX, sock_connect=CONNECT_S_MAX),
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "depesche"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Close every connection. Calls still under way end as unanswered."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(self, call: GraphCall, permit: Callable[[], Awaitable[None]]) -> GraphAnswer:
        """Send one message; see `Graph`."""
        session = self._session
        if session is None:
            raise NotSent("the client is closed", is_unreached=True)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as deadline:
                body = _Body(call.body, permit, lambda: deadline.reschedule(loop.time() + self._call_timeout_s))
                try:
                    return await self._post(session, call, body)
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    raise self._translated(error, body) from error
        except TimeoutError:
            raise Unanswered(f"no answer within {self._call_timeout_s} s") from None

    async def _post(self, session: aiohttp.ClientSession, call: GraphCall, body: _Body) -> GraphAnswer:
        async with session.post(
            f"{self._root}/{call.phone_number_id}/{call.edge}",
            data=body,
            headers={"Authorization": f"Bearer {call.token}"},
            allow_redirects=False,
        ) as response:
            received = bytearray()
            async for chunk in response.content.iter_any():
                received += chunk
                if len(received) > ANSWER_BYTES_MAX:
                    del received[ANSWER_BYTES_MAX:]
                    response.close()
                    break
            failpoints.reached("graph.answered")
            return GraphAnswer(response.status, bytes(received), response.headers.get("Retry-After", ""))

    def _translated(self, error: Exception, body: _Body) -> Exception:
        """Say what a failure means: whose the exception is does not matter, whether a byte left does."""
        if body.is_sent:
            return Unanswered(f"{type(error).__name__}: {error}"[:200])
        if isinstance(body.refused, Exception):
            return body.refused
        is_unreached = isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError, aiohttp.InvalidURL))
        return NotSent(f"{type(error).__name__}: {error}"[:200], is_unreached=is_unreached)
