"""One run of the whole broker: every process, the platform, the people, and how it begins, is troubled and ends.

Meta's platform, the customers and the brand's own system are the outside: they do not die. Everything else does. What
goes wrong and when is `weather.py`'s; whether it went well is `checker.py`'s.
"""

from __future__ import annotations

import asyncio

from broker.core.customer_context import context_of
from broker.errors import LogUnavailable
from broker.gateway import Gateway
from broker.receiver import Receiver
from broker.sandbox.faults import Faults as PlatformFaults
from broker.sandbox.faults import Latency as PlatformLatency
from broker.sandbox.journal import Journal
from broker.sandbox.platform import Platform
from broker.sandbox.postbox import Postage
from broker.secrets import Secret
from tests.simulation.bots import GATEWAY, Bot
from tests.simulation.brand import (
    APP,
    APP_SECRET,
    LINES,
    SETTINGS,
    SINK_SECRETS,
    business_numbers,
    specs,
)
from tests.simulation.cluster import SimulatedCluster
from tests.simulation.crowd import Campaigns, Crowd
from tests.simulation.edges import (
    GRAPH,
    RECEIVERS,
    UPLINK,
    Balancer,
    Request,
    Response,
    SimGraph,
    SimPoster,
    graph_service,
)
from tests.simulation.evidence import Evidence
from tests.simulation.log import SimulatedLog
from tests.simulation.loop import Process, Sim
from tests.simulation.net import Net
from workers.customer import CustomerStage
from workers.delivery import DeliveryStage
from workers.sender import SenderStage
from workers.sinks import Target

WORKERS = ("worker-0", "worker-1", "worker-2")
BOTS = ("bot-steady", "bot-flaky")
TROUBLED = (*RECEIVERS, GATEWAY, *WORKERS, *BOTS)
"""Whoever may die."""

STOP_S = 45.0
QUIET_S = 12.0
STOPPING_S = QUIET_S + 2 * (STOP_S + 1.0)
"""How long `World.stop` takes."""


class MomentLog(SimulatedLog):
    """A process's log that tells the world when the process comes to a moment."""

    world: World

    def on_moment(self, moment: str, where: str) -> None:
        """Tell the world."""
        self.world.reached(self.process, f"{moment}/{where}")


class World:
    """A run's processes. `on_moment` is whoever wants to strike at one: (process, moment)."""

    def __init__(self, sim: Sim, *, skews_ms: dict[str, int] | None = None) -> None:
        self.sim = sim
        self.cluster = SimulatedCluster(sim)
        self.net = Net(sim)
        self.journal = Journal(kept_max=1_000)
        self.evidence = Evidence(sim, self.cluster, self.journal)
        self.platform_faults = PlatformFaults(sim.random("platform faults"), PlatformLatency(median_ms=80.0))
        self.context = context_of(SETTINGS)
        self.platform: Platform
        self.crowd: Crowd
        self.campaigns: Campaigns
        self.is_armed = False
        self._skews = skews_ms or {}

    def start(self) -> None:
        """Start everybody: Meta first."""
        self.sim.process("platform", self._platform)
        for name in RECEIVERS:
            self._process(name, self._receiver)
        self._process(GATEWAY, self._gateway)
        for name in WORKERS:
            self._process(name, self._worker)
        for name in BOTS:
            self._process(name, self._bot)
        self.sim.process("brand", self._brand)

    def _process(self, name: str, main: object) -> None:
        self.sim.process(name, main, skew_ms=self._skews.get(name, 0))  # type: ignore[arg-type]

    def reached(self, process: Process, moment: str) -> None:
        """A process came to a moment; the weather puts its own here."""

    def stop(self) -> None:
        """End the run: whoever writes first, then whoever is written to."""
        self.evidence.meta_stopped_at = self.sim.processes["platform"].clock.now()
        for name in ("brand", "platform"):
            self.sim.stop(name, STOP_S)
        self.sim.run(QUIET_S)
        for name in (*WORKERS, *RECEIVERS):
            self.sim.stop(name, STOP_S)
        self.sim.run(STOP_S + 1.0)
        for name in (GATEWAY, *BOTS):
            self.sim.stop(name, STOP_S)
        self.sim.run(STOP_S + 1.0)

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _platform(self, process: Process) -> None:
        self.platform = platform = Platform(
            business_numbers(),
            self.platform_faults,
            process.clock,
            process.random,
            Balancer(self.net, process, process.random),
            webhook_url="http://receivers",
            app_secret=APP_SECRET,
            journal=self.journal,
            postage=Postage(connections=8, retry_max_ms=8_000),
        )
        platform.start()
        self.net.serve(process, GRAPH, graph_service(platform), UPLINK)
        self.crowd = Crowd(process, platform, self.evidence)
        self.crowd.introduce()
        await asyncio.sleep(8.0)  # until the workers have their partitions
        await self.crowd.live()
        await self.net.drain(process, GRAPH, 10.0)
        await platform.stop()

    async def _brand(self, process: Process) -> None:
        self.campaigns = Campaigns(self.net, process, self.evidence)
        await self.campaigns.live()

    async def _log(self, process: Process) -> MomentLog | None:
        """Open the log, again and again while it cannot be reached; None when the process is to stop before."""
        log = MomentLog(self.cluster, process, specs())
        log.world = self
        while not process.stopping.is_set():
            try:
                await log.start()
            except LogUnavailable:
                await asyncio.sleep(1.0)
            else:
                return log
        return None

    async def _receiver(self, process: Process) -> None:
        log = await self._log(process)
        if log is None:
            return
        receiver = Receiver(SETTINGS, {APP: [Secret(APP_SECRET)]}, {APP: Secret("verify")}, log, process.clock)

        async def handle(request: Request) -> Response:
            answer = await receiver.accept(APP, request.headers, request.body)
            return Response(answer.status, answer.headers, answer.body)

        await receiver.start()
        self.net.serve(process, process.name, handle)
        await process.stopping.wait()
        await self.net.drain(process, process.name, 10.0)
        await receiver.stop()
        await log.close()

    async def _gateway(self, process: Process) -> None:
        log = await self._log(process)
        if log is None:
            return
        gateway = Gateway(SETTINGS, log, process.clock, process.random)

        async def handle(request: Request) -> Response:
            answer = await gateway.handle(*request)
            return Response(answer.status, answer.headers, answer.body)

        await gateway.start()
        self.net.serve(process, GATEWAY, handle)
        await process.stopping.wait()
        await self.net.drain(process, GATEWAY, 10.0)
        await gateway.stop()
        await log.close()

    async def _worker(self, process: Process) -> None:
        log = await self._log(process)
        if log is None:
            return

        def reached(moment: str) -> None:
            self.reached(process, moment)

        graph = SimGraph(self.net, process, self.evidence, reached)
        targets = [Target(sink, [SINK_SECRETS[sink.name]]) for sink in SETTINGS.sinks]
        tokens = {line.phone_number_id: Secret(line.token) for line in LINES}
        stages = (
            CustomerStage(log, self.context, process.clock, process.random),
            SenderStage(log, SETTINGS, tokens, graph, process.clock, process.random),
            DeliveryStage(log, targets, SimPoster(self.net, process, reached), process.clock, process.random),
        )
        for stage in stages:
            await stage.start()
        await process.stopping.wait()
        for stage in stages:
            await stage.stop()
        await log.close()

    async def _bot(self, process: Process) -> None:
        sink = process.name.removeprefix("bot-")
        address = f"http://{process.name}"
        bot = Bot(self.net, process, self.evidence, sink, moods=sink == "flaky")
        self.net.serve(process, address, bot.handle)
        await process.stopping.wait()
        await self.net.drain(process, address, 15.0)


def number_at(index: int) -> str:
    """Return one of the brand's numbers."""
    return LINES[index % len(LINES)].phone_number_id
