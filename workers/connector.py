"""HTTP requests to sinks, which an operator's customers may have configured: nothing they name or answer is trusted.

The guard stands where a socket is made for a final address: a resolver never sees an address written as such, and a
check before the request would see another answer of the DNS than the connection does. No redirects, no proxies of the
environment, no cookies, no decompression; an answer is its status and one header.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import aiohttp
from aiohttp.connector import AddrInfoType

from broker.core.addresses import AddressGuard
from broker.errors import Misconfigured
from schemas.settings import ConnectorSettings
from workers.poster import Posted, PostFailed

ANSWER_BYTES_MAX = 65_536
"""Read and dropped, so that the connection can be used again; a longer answer costs its sink a new connection."""

KEEP_ALIVE_S = 30.0
CONNECT_S_MAX = 5.0
"""Of the whole time: a host that does not even accept a connection is known for down sooner."""

DNS_CACHE_S = 10
"""Short, because a bot that moves must be found, and a guard that refuses must not depend on an old answer."""

USER_AGENT = "Depesche"
"""Standard Webhooks and Meta's format both leave it free; sinks may match on it, so it carries no version."""


class ForbiddenAddress(OSError):
    """A name or URL led to an address that is not permitted."""


def guard_of(settings: ConnectorSettings) -> AddressGuard:
    """Return the guard with an operator's lists. Raises `Misconfigured`."""
    try:
        return AddressGuard(settings.allow, settings.deny)
    except ValueError as error:
        raise Misconfigured(f"connector: {error}; `allow` and `deny` hold networks such as 10.1.0.0/16") from None


class Connector:
    """A `Poster` over aiohttp. Open it with `start`, or as a context manager, inside the event loop."""

    def __init__(self, guard: AddressGuard) -> None:
        self._guard = guard
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open. The number of connections is bounded by those who post (each sink's `in_flight_max`): a limit here
        would let one slow sink take the connections of all others."""
        connector = aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=KEEP_ALIVE_S,
            ttl_dns_cache=DNS_CACHE_S,
            socket_factory=self._socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            trust_env=False,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": USER_AGENT},
            skip_auto_headers=("Accept-Encoding",),
        )

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Close every connection."""
        session, self._session = self._session, None
        if session is not None:
            try:
                async with asyncio.timeout(timeout_s):
                    await session.close()
            except TimeoutError:
                pass

    async def __aenter__(self) -> Connector:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Posted:
        """Return the answer of one POST. Raises `PostFailed`."""
        assert self._session is not None, "start comes first"
        timeout = aiohttp.ClientTimeout(total=timeout_s, connect=None, sock_connect=min(CONNECT_S_MAX, timeout_s))
        with _translated(timeout_s):
            async with self._session.post(
                url, headers=headers, data=body, timeout=timeout, allow_redirects=False
            ) as response:
                posted = Posted(response.status, response.headers.get("Retry-After", "")[:100])
                await _drop_answer(response)
                return posted

    async def get(self, url: str, query: Mapping[str, str], timeout_s: float) -> tuple[int, bytes]:
        """Return status and body (its first `ANSWER_BYTES_MAX` bytes) of one GET. Raises `PostFailed`."""
        assert self._session is not None, "start comes first"
        timeout = aiohttp.ClientTimeout(total=timeout_s, connect=None, sock_connect=min(CONNECT_S_MAX, timeout_s))
        with _translated(timeout_s):
            async with self._session.get(url, params=query, timeout=timeout, allow_redirects=False) as response:
                body = b""
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > ANSWER_BYTES_MAX:
                        response.close()
                        break
                return response.status, body[:ANSWER_BYTES_MAX]

    def _socket(self, address: AddrInfoType) -> socket.socket:
        """Make a socket for an address that is permitted. Raises `ForbiddenAddress`."""
        family, kind, protocol, _, place = address
        if not self._guard.permits(str(place[0])):
            raise ForbiddenAddress("the address is not public and not in connector.allow, or it is in connector.deny")
        return socket.socket(family, kind, protocol)


@contextmanager
def _translated(timeout_s: float) -> Iterator[None]:
    """Turn the client's errors into `PostFailed`."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError:
        raise PostFailed("connection", "no connection in time") from None
    except TimeoutError:
        raise PostFailed("timeout", f"no answer within {timeout_s:g} s") from None
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, ForbiddenAddress):
            raise PostFailed("forbidden", str(error.os_error)) from None
        raise PostFailed("connection", type(error).__name__) from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise PostFailed("connection", type(error).__name__) from None


async def _drop_answer(response: aiohttp.ClientResponse) -> None:
    """Read what is left of an answer, or close its connection when that is too much, too slow or broken.

    The status is known by then, and it is the answer.
    """
    read = 0
    try:
        async for chunk in response.content.iter_any():
            read += len(chunk)
            if read > ANSWER_BYTES_MAX:
                break
        else:
            return
    except (TimeoutError, aiohttp.ClientError, OSError):
        pass
    response.close()
