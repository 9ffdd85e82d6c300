"""What sends are aimed at: a bare server that accepts everything at once, and the sandbox's platform."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections import Counter
from collections.abc import AsyncIterator

from aiohttp import web

from benchmarks.child import Facts, Lag, Part, be
from benchmarks.load import CUSTOMERS, NUMBER, PATH, SECRET
from broker.clock import SystemClock
from broker.sandbox.app import HttpPoster
from broker.sandbox.faults import Faults, Latency
from broker.sandbox.journal import Called, Entry
from broker.sandbox.people import Person
from broker.sandbox.platform import BusinessNumber, Platform, Timings

TOKEN = "EAAbenchmark"
FIRST_PHONE = 4_915_550_000_000
FIRST_WRITER = 4_915_770_000_000
"""Who writes to the number is never one of those it sends to: a window that opens changes nothing."""

NEVER_MS = (3_600_000, 3_600_000)
"""Statuses of the sends are left out: they are the receiver's load, not the sender's, and stand on other cores."""

UPLINK_MS = (10.0, 20.0)
"""On their way to the platform two sends may come 10 ms closer together, as on a real network; what the platform's own
loop is late comes on top, and is told beside the figure."""


async def play_bare(_: Facts) -> AsyncIterator[Part]:
    """Graph as fast as can be: every call is accepted at once. Answers how fast calls came between 10 % and 90 %."""
    instants: list[float] = []

    async def take(request: web.BaseRequest) -> web.Response:
        await request.read()
        instants.append(time.perf_counter())
        body = (
            '{"messaging_product":"whatsapp","contacts":[{"input":"4915550001234","wa_id":"4915550001234"}],'
            f'"messages":[{{"id":"wamid.HBgN{len(instants):040}"}}]}}'
        )
        return web.Response(body=body.encode(), content_type="application/json")

    async def arrivals(_: Facts) -> Facts:
        taken = instants.copy()
        instants.clear()
        first, last = taken[len(taken) // 10], taken[len(taken) * 9 // 10]
        return {"count": len(taken), "rate": (len(taken) * 9 // 10 - len(taken) // 10) / max(1e-9, last - first)}

    async with _serving(web.Server(take, access_log=None)) as port:
        yield Part({"port": port}, arrivals)


class Watch:
    """What the platform saw: instants of what it accepted and of what was written to it, refusals by code."""

    def __init__(self) -> None:
        self.accepted: list[float] = []
        self.inbound: list[float] = []
        self.refused: list[tuple[float, int]] = []

    def see(self, entry: Entry) -> None:
        """Listen to the journal."""
        if isinstance(entry, Called):
            if entry.accepted:
                self.accepted.append(entry.mono)
            else:
                self.refused.append((entry.mono, entry.code))

    def report(self, skip_s: float, seconds: float) -> Facts:
        """What happened in `seconds` that begin `skip_s` after the first accepted send."""
        if not self.accepted:
            raise RuntimeError(f"the platform accepted nothing; refusals: {Counter(code for _, code in self.refused)}")
        begin = self.accepted[0] + skip_s
        end = begin + seconds

        def within(at: float) -> bool:
            return begin <= at < end

        return {
            "accepted": sum(map(within, self.accepted)),
            "inbound": sum(map(within, self.inbound)),
            "refusals": dict(Counter(str(code) for at, code in self.refused if within(at))),
            "refusals_in_all": dict(Counter(str(code) for _, code in self.refused)),
            "accepted_in_all": len(self.accepted),
            "over_s": self.accepted[-1] - begin,
        }


async def play_platform(spec: Facts) -> AsyncIterator[Part]:
    """The sandbox's platform: strict sliding second, inbound included; pair limit; windows open for all.

    Questions: {"inbound_mps", "webhook_port"} lets customers write from now on, as a Poisson stream; {"skip_s",
    "seconds"} is answered with what was seen.
    """
    clock, watch, poster = SystemClock(), Watch(), HttpPoster(64)
    platform = Platform(
        [BusinessNumber(NUMBER, "102290129340398", "15550001000", TOKEN, spec["throughput_mps"])],
        Faults(random.Random(1), Latency(*UPLINK_MS, median_ms=spec["latency_ms"])),
        clock,
        random.Random(2),
        poster,
        webhook_url=f"http://127.0.0.1:{spec['webhook_port']}{PATH}",
        app_secret=SECRET,
        timings=Timings(sent_ms=NEVER_MS),
    )
    platform.journal.listen(watch.see)
    for phone in range(FIRST_PHONE, FIRST_PHONE + spec["customers"]):
        platform.windows.wrote(NUMBER, str(phone), clock.now())
    platform.start()
    gc.freeze()
    gc.disable()  # a stand-in that pauses for its garbage would be measured in place of the sender
    lag = Lag()
    writing: list[asyncio.Task[None]] = []

    async def write(mps: float) -> None:
        chance = random.Random(3)
        due = clock.monotonic()
        for n in range(CUSTOMERS * 100):
            due += chance.expovariate(mps)
            if (wait_s := due - clock.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            person = platform.people.add(Person(wa_id=str(FIRST_WRITER + n % CUSTOMERS), name="Writer"), named=False)
            watch.inbound.append(clock.monotonic())
            platform.write(NUMBER, person.id, "text", {"body": "and where is my order?"})

    async def answer(question: Facts) -> Facts:
        if "inbound_mps" in question:
            writing.append(asyncio.create_task(write(question["inbound_mps"])))
            return {}
        return {**watch.report(question["skip_s"], question["seconds"]), **lag.report()}

    async def take(request: web.BaseRequest) -> web.Response:
        body = await request.read()
        said = await platform.graph(request.method, request.path_qs, request.headers, body)
        return web.Response(status=said.status, headers=said.headers, body=said.body)

    try:
        async with _serving(web.Server(take, access_log=None)) as port:
            yield Part({"port": port}, answer)
    finally:
        for task in writing:
            task.cancel()
        lag.stop()
        await platform.stop()
        await poster.close()


class _serving:  # noqa: N801  # a context, read as a word
    def __init__(self, server: web.Server) -> None:
        self._runner = web.ServerRunner(server, shutdown_timeout=1.0)

    async def __aenter__(self) -> int:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=4_096).start()
        port: int = self._runner.addresses[0][1]
        return port

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


async def play(spec: Facts) -> AsyncIterator[Part]:
    """Whichever the spec names."""
    async for part in play_bare(spec) if spec["kind"] == "bare" else play_platform(spec):
        yield part


if __name__ == "__main__":
    be(play)
