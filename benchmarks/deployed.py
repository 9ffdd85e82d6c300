"""A deployment's real processes on Kafka beside the one that plays all that is outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.child import Child, Cores, Facts, cpu_s
from benchmarks.kafka import prefix
from benchmarks.load import NUMBER
from benchmarks.outside import BUBBLE_S
from tests.flow.deployment import APP_SECRET, Deployment, Number, Seat, on_kafka
from tests.kafka.cluster import LocalKafka, free_ports

THROUGHPUT_MPS = 1_000
"""Meta's highest tier. It ends at 2,500 webhooks a second, texts and their answers counted together."""


class Deployed:
    """What runs, and who its processes are."""

    def __init__(self, deployment: Deployment, outside: Child, kafka_pid: int) -> None:
        self.deployment = deployment
        self.outside = outside
        self._kafka_pid = kafka_pid

    def start(self, **roles: str) -> None:
        """Start processes: each one's name, and its `depesche` arguments. Ready when this returns."""

        async def all_of_them() -> None:
            await asyncio.gather(*(self.deployment.start(name, *line.split()) for name, line in roles.items()))

        asyncio.run(all_of_them())

    def connect(self) -> None:
        """Have the load and the bot connect."""
        self.outside.ask(open=[self.deployment.receiver_port, self.deployment.gateway_port])

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds each process used so far."""
        pids = {name: process.pid for name, process in self.deployment.processes.items()}
        if self._kafka_pid:
            pids["kafka"] = self._kafka_pid
        return {name: cpu_s(pid) for name, pid in {**pids, "outside": self.outside.pid}.items()}

    def step(self, rate: float, seconds: float, warm_s: float, drain_s: float) -> tuple[Facts, Mapping[str, float]]:
        """Load at a rate for so long. Return what came of it, and CPU seconds of each process meanwhile."""
        self.outside.ask(rate=rate)
        time.sleep(warm_s)
        since, before = time.perf_counter(), self.cpu_s()
        time.sleep(seconds)
        until, after = time.perf_counter(), self.cpu_s()
        return self.report(since, until, drain_s), {name: after[name] - before[name] for name in before}

    def report(self, since: float, until: float, drain_s: float, killed_at: float = 0.0) -> Facts:
        """End the load, and say what came of what was due from `since` to `until`."""
        return self.outside.ask(since=since, until=until, drain_s=drain_s, killed_at=killed_at)


@contextmanager
def deployed(bootstrap: str, partitions: int, bubble_s: float = BUBBLE_S) -> Iterator[Deployed]:
    """Everything but Depesche's processes. `bootstrap`: a Kafka that is there already; else one is started.
    `bubble_s`: between the messages of an answer."""
    with ExitStack() as stack:
        pid = 0
        if not bootstrap:
            kafka = LocalKafka()
            stack.callback(kafka.stop)
            bootstrap, process = kafka.bootstrap, kafka.brokers[0].process
            assert process is not None
            pid = process.pid
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="depesche-bench-")))
        seat = Seat("bot", free_ports(1)[0])
        log = on_kafka(bootstrap, prefix(), partitions=partitions, slots=2)
        deployment = Deployment(folder, log, [Number(NUMBER, 0, THROUGHPUT_MPS)], [seat])
        stack.callback(deployment.close)
        cores = Cores.of_this_machine()
        outside = stack.enter_context(
            Child(
                "outside",
                tuple(sorted({*cores.measured, *cores.rest})),
                app_secret=APP_SECRET,
                key=seat.key,
                graph_port=deployment.sandbox_port,
                bot_port=seat.port,
                bubble_s=bubble_s,
            )
        )
        yield Deployed(deployment, outside, pid)
