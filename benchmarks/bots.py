"""A bot that notes when it got what, and answers 200: where a webhook's way ends."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator

from aiohttp import web

from benchmarks.child import Facts, Part, be

_number = re.compile(rb'"id":"wamid\.HBgNFDNB(\d{12})"')
"""The n of `load.webhook`."""


async def play(_: Facts) -> AsyncIterator[Part]:
    """Answers `{"arrivals": [[n, s], …]}`, by the monotonic clock, of what came since it was asked before."""
    arrivals: list[tuple[int, float]] = []

    async def take(request: web.BaseRequest) -> web.Response:
        now = time.perf_counter()
        body = await request.read()
        arrivals.extend((int(n), now) for n in _number.findall(body))
        return web.Response()

    async def tell(_: Facts) -> Facts:
        told = arrivals.copy()
        arrivals.clear()
        return {"arrivals": told}

    runner = web.ServerRunner(web.Server(take, access_log=None), shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1_024).start()
        yield Part({"port": runner.addresses[0][1]}, tell)
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    be(play)
