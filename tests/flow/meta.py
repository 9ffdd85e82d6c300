"""The sandbox of a deployment, over HTTP: what a test switches, asks and waits for."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp

SETTLE_S_MAX = 60.0
LOAD_S_MAX = 420.0


class Meta:
    """Meta's stand-in on a port of loopback. Every wait is bounded."""

    def __init__(self, port: int, session: aiohttp.ClientSession) -> None:
        self._root = f"http://127.0.0.1:{port}/sandbox"
        self._session = session

    async def get(self, path: str) -> Any:
        """Return what stands at a path."""
        async with self._session.get(f"{self._root}/{path}") as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def switch(self, fault: str, **how: Any) -> None:
        """Switch a fault on."""
        async with self._session.put(f"{self._root}/faults/{fault}", json=how) as answer:
            assert answer.status == 200, await answer.text()

    async def begin(self, **load: Any) -> None:
        """Begin a load (the fields of `broker.sandbox.load.Load`)."""
        async with self._session.post(f"{self._root}/load", json=load) as answer:
            assert answer.status == 200, await answer.text()

    async def over(self, name: str = "load") -> dict[str, Any]:
        """Wait until a load is over; return its report."""
        deadline = time.monotonic() + LOAD_S_MAX
        while time.monotonic() < deadline:
            report: dict[str, Any] = await self.get(f"load?name={name}")
            assert not report["crashed"], report["crashed"]
            if report["over"]:
                return report
            await asyncio.sleep(0.25)
        raise AssertionError(f"the load {name} is not over after {LOAD_S_MAX:.0f} s: {report}")

    async def settled(self) -> dict[str, Any]:
        """Wait until every webhook was taken; return the referee's view."""
        deadline = time.monotonic() + SETTLE_S_MAX
        while time.monotonic() < deadline:
            view: dict[str, Any] = await self.get("referee")
            if view["unacknowledged"] == 0:
                return view
            await asyncio.sleep(0.25)
        raise AssertionError(f"webhooks are still open after {SETTLE_S_MAX:.0f} s: {view['unacknowledged']}")
