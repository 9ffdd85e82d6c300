"""HTTP/1.1 by hand, both ways: what plays Meta and a bot must cost next to nothing beside what it measures."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

Take = Callable[[str, bytes, "Taken"], None]
"""A request that came: its path, its body, and the connection that wants the answer."""

Done = Callable[[int], None]
"""What an answer's status is told to; 0 when the connection broke."""


def whole(received: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Return head, body and what follows, once all of a message with a `Content-Length` is there."""
    head, found, rest = received.partition(b"\r\n\r\n")
    if not found:
        return None
    _, named, length = head.lower().partition(b"content-length: ")
    size = int(length.partition(b"\r\n")[0]) if named else 0
    return None if len(rest) < size else (head, rest[:size], rest[size:])


class Taken(asyncio.Protocol):
    """A connection somebody else made: requests in, answers out."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without inheriting

    def data_received(self, data: bytes) -> None:
        """Hand on each whole request."""
        self._received += data
        while (found := whole(self._received)) is not None:
            head, body, self._received = found
            self._take(head.split(b" ", 2)[1].decode(), body, self)

    def answer(self, body: bytes = b"") -> None:
        """Answer 200. To a connection that broke meanwhile nothing is said."""
        if not self._transport.is_closing():
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )


class _Line(asyncio.Protocol):
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._received = b""
        self._done: Done | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def call(self, request: bytes, done: Done) -> None:
        self._done = done
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if (found := whole(self._received)) is not None:
            self._received = b""
            self._end(int(found[0][9:12]))
            self._pool.free(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.gone(self)
        self._end(0)

    def _end(self, status: int) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(status)


class Pool:
    """Kept connections to one port; a call waits in order while all are busy."""

    def __init__(self) -> None:
        self._idle: list[_Line] = []
        self._lines: list[_Line] = []
        self._waiting: deque[tuple[bytes, Done]] = deque()

    async def open(self, port: int, connections: int) -> None:
        """Connect."""
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            _, line = await loop.create_connection(lambda: _Line(self), "127.0.0.1", port)
            self._lines.append(line)
            self._idle.append(line)

    def call(self, request: bytes, done: Done) -> None:
        """Send a request now, or when a connection is free."""
        if self._idle:
            self._idle.pop().call(request, done)
        elif self._lines:
            self._waiting.append((request, done))
        else:
            done(0)

    def free(self, line: _Line) -> None:
        """Give a connection its next call."""
        if self._waiting:
            line.call(*self._waiting.popleft())
        else:
            self._idle.append(line)

    def gone(self, line: _Line) -> None:
        """Go on without a connection."""
        self._lines.remove(line)
        if line in self._idle:
            self._idle.remove(line)

    def close(self) -> None:
        """Close all."""
        for line in tuple(self._lines):
            line.transport.close()
