"""Bots for the tests of the delivery stage: a real HTTP server that writes down what it is sent and answers as told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from aiohttp import web


class Seen(NamedTuple):
    """One request: whose event it was, which, what it said, and how it was answered (0: not answered)."""

    customer: str
    number: int
    body: bytes
    headers: dict[str, str]
    status: int


Answer = Callable[[str, int, int], Awaitable[int]]
"""From customer, number of the event and how often it came before, to a status."""


async def take(customer: str, number: int, earlier: int) -> int:
    """Take everything."""
    return 200


class Bot:
    """A bot on a port of its own. It can go away (its port refuses connections) and come back on the same one."""

    def __init__(self, answer: Answer = take) -> None:
        self.answer = answer
        self.seen: list[Seen] = []
        self.lists: list[list[int]] = []
        """The numbers of the events of each request."""
        self.under_way: dict[str, int] = {}
        self.most_under_way = 0
        self.overlaps = 0
        self.port = 0
        self._came: dict[tuple[str, int], int] = {}
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/hook", self._hook)
        self._runner = web.AppRunner(app, shutdown_timeout=0.05)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _hook(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        said = json.loads(body)
        said = said.get("data", said)
        events = [one["data"] for one in said] if isinstance(said, list) else [said]
        customer = events[0]["c"]
        self.lists.append([event["n"] for event in events])
        self.under_way[customer] = self.under_way.get(customer, 0) + 1
        self.overlaps += self.under_way[customer] > 1
        self.most_under_way = max(self.most_under_way, sum(self.under_way.values()))
        status = 0
        try:
            for event in events:
                earlier = self._came.get((customer, event["n"]), 0)
                self._came[customer, event["n"]] = earlier + 1
                status = max(status, await self.answer(customer, event["n"], earlier))
        finally:
            self.under_way[customer] -= 1
            headers = dict(request.headers)
            self.seen += [Seen(customer, event["n"], body, headers, status) for event in events]
        return web.Response(status=status)

    def taken(self, customer: str | None = None) -> list[tuple[str, int]]:
        """What was answered with 200, in order, repetitions included."""
        return [(s.customer, s.number) for s in self.seen if s.status == 200 and customer in (None, s.customer)]

    def numbers(self, customer: str) -> list[int]:
        """The numbers of one customer's events that were taken, in order."""
        return [number for _, number in self.taken(customer)]


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - a condition on objects, not an event
            await asyncio.sleep(0.005)
