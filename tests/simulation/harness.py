"""The simulated engine under the contract suite: a cluster on the test's own virtual loop, a process for an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from broker.log.contract import LogEngine, LogSpec, Stage, Step
from tests.simulation.cluster import SimulatedCluster
from tests.simulation.faults import Latency
from tests.simulation.log import IN_FLIGHT_BYTES_MAX, SimulatedLog
from tests.simulation.loop import Process, Sim, VirtualLoop


class SimulatedHarness:
    """Engines on one simulated cluster."""

    name = "simulated"
    spans_processes = True
    patience_s = 30.0
    steps_many = 1_100

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self._loop = loop
        self._sim = Sim(1, loop=loop)
        # Constant latencies: some tests of the suite take it that what is durable can be fetched at once.
        self._cluster = SimulatedCluster(self._sim, wire=Latency(0.001, 0.001, 0.0), flush=Latency(0.002, 0.002, 0.0))
        self._engines: list[SimulatedLog] = []

    async def open(self, specs: Sequence[LogSpec], *, bytes_in_flight_max: int | None = None) -> SimulatedLog:
        """Make an engine in a process of its own and start it."""

        async def idle(process: Process) -> None:
            await process.stopping.wait()

        process = self._sim.process(f"member-{len(self._engines)}", idle)
        limit = IN_FLIGHT_BYTES_MAX if bytes_in_flight_max is None else bytes_in_flight_max
        engine = SimulatedLog(self._cluster, process, specs, bytes_in_flight_max=limit)
        self._engines.append(engine)
        await engine.start()
        return engine

    async def another(self, engine: LogEngine) -> LogEngine:
        """Another process with the same logs."""
        return await self.open(list(engine.logs.values()))

    async def crash(self, engine: LogEngine) -> None:
        """Kill its process."""
        assert isinstance(engine, SimulatedLog)
        self._sim.kill(engine.process.name)

    async def usurp(self, engine: LogEngine, stage: Stage, partition: int, step: Step | None = None) -> None:
        """Fence it at the cluster, past the group."""
        epoch = self._cluster.fence(stage, partition)
        if step is not None:
            self._cluster.commit(self._cluster.write(stage, partition, epoch, step))

    async def rebalance(self, engine: LogEngine, name: str) -> None:
        """Let the group rebalance with nobody coming or going, and wait until it has."""
        self._cluster.rebalance(name)
        await asyncio.sleep(2.0)

    async def recreate(self, log: str) -> None:
        """Delete it and make it again."""
        self._cluster.recreate(log)

    async def take_away(self) -> None:
        """Let nobody reach the cluster."""
        self._cluster.down()

    async def bring_back(self) -> None:
        """Let everybody reach it."""
        self._cluster.up()

    def advance(self, by_ms: int) -> None:
        """Set every wall clock ahead."""
        self._cluster.ahead_ms += by_ms
        for engine in self._engines:
            engine.process.clock.step(by_ms)

    async def tidy(self, engine: LogEngine) -> bool:
        """Do retention and compaction now."""
        self._cluster.tidy()
        return True

    def child_arguments(self) -> list[str]:
        """There are no child processes; the name says whose harness it is."""
        return [self.name]

    async def close(self) -> None:
        """Close what is open, and let nothing wrong pass unseen."""
        for engine in self._engines:
            if engine.process.alive:
                await engine.close(5.0)
                self._sim.stop(engine.process.name)
        await asyncio.sleep(1.0)
        self._sim.check()
