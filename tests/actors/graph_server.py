"""Graph played by raw sockets: answers as told, well or badly, and keeps what it saw."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field


@dataclass
class Seen:
    """One request as it arrived. `at` is the monotonic instant at which its last byte was read."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float


Behaviour = Callable[["GraphServer", Seen, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]
"""Answers one request; returns whether the connection goes on."""


def reply(status: int, body: bytes, more: str = "") -> bytes:
    """Return the bytes of an HTTP answer."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def accepted(wamid: str) -> bytes:
    """Return the body of a success."""
    return json.dumps({"messaging_product": "whatsapp", "contacts": [], "messages": [{"id": wamid}]}).encode()


def graph_error(code: int) -> bytes:
    """Return the body of a Graph error."""
    return json.dumps({"error": {"message": "m", "type": "OAuthException", "code": code}}).encode()


async def accept(server: GraphServer, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Take the message."""
    if server.delay_s:
        await asyncio.sleep(server.delay_s)
    writer.write(reply(200, accepted(f"wamid.H{len(server.seen)}")))
    await writer.drain()
    return True


def answering(status: int, body: bytes, more: str = "") -> Behaviour:
    """Return a behaviour that answers so."""

    async def behave(_: GraphServer, __: Seen, ___: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(reply(status, body, more))
        await writer.drain()
        return True

    return behave


async def eventually(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait until a condition holds, looking every 5 ms."""
    for _ in range(int(timeout_s / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen in time")


@dataclass
class GraphServer:
    """A Graph on loopback. `behave` decides each answer; `queue` goes before it, one for each request."""

    behave: Behaviour = accept
    delay_s: float = 0.0
    seen: list[Seen] = field(default_factory=list)
    queue: list[Behaviour] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    async def __aenter__(self) -> GraphServer:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=1_024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def bodies(self) -> list[bytes]:
        """The bodies seen, in order."""
        return [seen.body for seen in self.seen]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                seen = await self._read(reader)
                self.seen.append(seen)
                behave = self.queue.pop(0) if self.queue else self.behave
                if not await behave(self, seen, reader, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> Seen:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Seen(request.split(" ")[1], headers, body, time.monotonic())
