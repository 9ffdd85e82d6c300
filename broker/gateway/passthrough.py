"""Graph, called in a bot's place with the number's real token: one pool, bounded in connections, bytes and time.

A request to Graph is made anew: nothing a bot sent goes along but method, path, checked query and checked body. An
answer is made anew, too: a few headers, and a body in which the token does not stand. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterable, Callable, Mapping
from typing import Final

import aiohttp
from msgspec import Struct
from yarl import URL

from broker import metrics
from broker.clock import Clock
from broker.core.endpoints import Endpoint, Target, for_bot
from broker.core.media_url import public_url_of
from broker.gateway import answers
from broker.listener import Answer
from broker.secrets import Secret
from schemas.settings import Settings

logger = logging.getLogger("depesche.gateway")

CONNECT_S_MAX = 5.0
SILENCE_S_MAX = 30.0
"""Nothing comes from Graph for so long: it is given up."""
KEEPALIVE_S = 25.0
ANSWER_BYTES_MAX = 4 * 1024 * 1024
"""A page of 250 templates has some hundred kilobytes."""
CHUNK_BYTES = 64 * 1024
KEY_SHARE = 2
"""One key may have half of all calls under way."""
PLACE_S_MAX = 3.0
"""A call waits so long for a place: bots come in bursts, and their clients give up after 5 s."""
WAITING_MAX = 1_000
"""Calls that wait; each holds a connection and a body read or not yet read."""

HEADERS_PASSED: Final = (
    "Content-Type",
    "Retry-After",
    "X-App-Usage",
    "X-Business-Use-Case-Usage",
    "facebook-api-version",
    "x-fb-request-id",
    "x-fb-trace-id",
    "x-fb-rev",
)
"""What clients of Graph look at and support asks for."""

TOKEN_CODES: Final = frozenset((102, 104, 190, 463, 467))
"""Meta refuses the token, which is ours: the bot's key is in order, and it must not be told otherwise."""


class Unreached(Exception):
    """No byte reached Graph."""


class Broken(Exception):
    """The call left and no whole answer came: whether Meta did what was asked is not known."""


class Exchange(Struct, frozen=True):
    """What Graph answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Content = bytes | AsyncIterable[bytes]


class Passthrough:
    """Calls Graph with the tokens of numbers. Owns the connections, and how many calls each key has under way."""

    def __init__(self, settings: Settings, tokens: Mapping[str, Secret], clock: Clock, rng: random.Random) -> None:
        """Prepare. `tokens`: by `phone_number_id`."""
        self.settings = settings
        self.public_url = public_url_of(settings.gateway)
        self._tokens = tokens
        self._clock = clock
        self._rng = rng
        self._session: aiohttp.ClientSession | None = None
        self._under_way: dict[str, int] = {}
        self._count = 0
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    def use_tokens(self, tokens: Mapping[str, Secret]) -> None:
        """Call with other tokens of the same numbers from now on. Urls of media signed before end with the old ones."""
        self._tokens = tokens

    async def start(self) -> None:
        """Open the pool."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self.settings.gateway.graph_in_flight_max + 8,  # and the reading of template lists
                keepalive_timeout=KEEPALIVE_S,
            ),
            headers={"Accept-Encoding": "identity", "User-Agent": "Depesche"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def stop(self) -> None:
        """Close every connection; what is still under way ends as broken."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The pool. Raises `Unreached` before `start` and after `stop`."""
        if self._session is None:
            raise Unreached("the gateway's way to Graph is closed")
        return self._session

    def token(self, phone_number_id: str) -> str:
        """Return a number's token."""
        return self._tokens[phone_number_id].reveal()

    async def enter(self, key_name: str) -> bool:
        """Take a place for one call of a key's, waiting a little; False when there is none. `leave` gives it back."""
        if self._has_room(key_name):  # whoever waits, waits for want of it
            self._take(key_name)
            return True
        if len(self._waiting) >= WAITING_MAX:
            return False
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key_name, granted))
        try:
            async with asyncio.timeout(PLACE_S_MAX):
                await asyncio.shield(granted)
        except TimeoutError:
            if not granted.done():
                self._waiting.remove((key_name, granted))
                return False
        except asyncio.CancelledError:
            if granted.done():
                self.leave(key_name)
            else:
                self._waiting.remove((key_name, granted))
            raise
        return True

    def leave(self, key_name: str) -> None:
        """Give a place back; the first who waits and may have it gets it."""
        self._count -= 1
        self._under_way[key_name] -= 1
        if not self._under_way[key_name]:
            del self._under_way[key_name]
        for waiter in self._waiting:
            if self._has_room(waiter[0]):
                self._waiting.remove(waiter)
                self._take(waiter[0])
                waiter[1].set_result(None)
                return

    def _has_room(self, key_name: str) -> bool:
        most = self.settings.gateway.graph_in_flight_max
        return self._count < most and self._under_way.get(key_name, 0) < max(1, most // KEY_SHARE)

    def _take(self, key_name: str) -> None:
        self._under_way[key_name] = self._under_way.get(key_name, 0) + 1
        self._count += 1

    async def pass_on(
        self, endpoint: Endpoint, target: Target, phone_number_id: str, query: str, body: bytes, content_type: str
    ) -> Answer:
        """Return Graph's answer to a bot's call, as the bot may see it. Never raises."""
        try:
            exchange = await self.exchange(
                endpoint.name,
                endpoint.method,
                phone_number_id,
                "/".join(filter(None, (target.node, target.edge))),
                version=target.version,
                query=query,
                content=body,
                content_type=content_type,
            )
        except (Unreached, Broken) as failed:
            return self.failed(endpoint.name, failed)
        return self.answer(endpoint.name, exchange, phone_number_id)

    async def exchange(
        self,
        call: str,
        method: str,
        phone_number_id: str,
        path: str,
        *,
        version: str = "",
        query: str = "",
        content: Content = b"",
        content_type: str = "",
        timeout_s: float | None = None,
        done: Callable[[], bool] = lambda: True,
    ) -> Exchange:
        """Make one call and return its whole answer. Raises `Unreached` and `Broken`.

        `call`: its name in our metrics. `path`: without version and slash, of characters that need no escape.
        `done`: whether `content` was read to its end; when Graph answers sooner, its connection is closed.
        """
        gateway, sender = self.settings.gateway, self.settings.sender
        root = f"{sender.graph_url.rstrip('/')}/{version or sender.graph_version}"
        url = URL(f"{root}/{path}" + (f"?{query}" if query else ""), encoded=True)
        headers = {"Authorization": f"Bearer {self.token(phone_number_id)}", "Accept": "application/json"}
        if content_type:
            headers["Content-Type"] = content_type
        began = self._clock.monotonic()
        try:
            async with self.session.request(
                method,
                url,
                data=content or None,
                headers=headers,
                skip_auto_headers=("Content-Type",),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=timeout_s or gateway.graph_timeout_s, sock_connect=CONNECT_S_MAX, sock_read=SILENCE_S_MAX
                ),
            ) as response:
                received = bytearray()
                async for chunk in response.content.iter_any():
                    received += chunk
                    if len(received) > ANSWER_BYTES_MAX:
                        response.close()
                        raise Broken(f"the answer has more than {ANSWER_BYTES_MAX} bytes")
                if not done():
                    response.close()
                return Exchange(response.status, response.headers.copy(), bytes(received))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise Unreached(type(error).__name__) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Broken(type(error).__name__) from None
        finally:
            kind = "media" if call.startswith("media") else "other"
            metrics.graph_request_duration.labels(kind).observe(self._clock.monotonic() - began)

    def answer(self, call: str, exchange: Exchange, phone_number_id: str) -> Answer:
        """Return what a bot is told of an exchange."""
        found = for_bot(exchange.body, self.public_url, self.token(phone_number_id))
        if found is None or exchange.status >= 600 or not (200 <= exchange.status < 300 or exchange.status >= 400):
            return self.unreadable(call)
        if exchange.status == 401 or found.code in TOKEN_CODES:
            return self.token_refused(call)
        metrics.gateway_graph_calls.labels(call, "done" if exchange.status < 400 else "refused").inc()
        headers = {name: exchange.headers[name] for name in HEADERS_PASSED if name in exchange.headers}
        return Answer(exchange.status, headers, found.body, "passed")

    def failed(self, call: str, failed: Exception) -> Answer:
        """Return what a bot is told when no answer came."""
        if isinstance(failed, Unreached):
            metrics.gateway_graph_calls.labels(call, "unreached").inc()
            error = answers.unavailable("Meta cannot be reached from here at this moment. Nothing was asked of it.")
            return answers.refused(503, error, "graph_unavailable", self._rng, retry_after_s=5)
        metrics.gateway_graph_calls.labels(call, "unknown").inc()
        error = answers.transient("Meta did not answer in time. Whether it did what was asked is not known.")
        return answers.refused(504, error, "graph_unavailable", self._rng)

    def unreadable(self, call: str) -> Answer:
        """Return what a bot is told when an answer was not Graph's: a proxy's page, a redirect."""
        metrics.gateway_graph_calls.labels(call, "unreadable").inc()
        error = answers.transient(
            "What came in Meta's place cannot be read. Whether it did what was asked is not known."
        )
        return answers.refused(502, error, "graph_unavailable", self._rng)

    def token_refused(self, call: str) -> Answer:
        """Return what a bot is told when Meta refuses our token."""
        metrics.gateway_graph_calls.labels(call, "token_refused").inc()
        logger.warning("Meta refuses the token of a number (%s): see numbers[].token", call)
        error = answers.unavailable(
            "Meta refuses this number's access token. Your key is in order; an operator must act."
        )
        return answers.refused(503, error, "graph_unavailable", self._rng, retry_after_s=60)
