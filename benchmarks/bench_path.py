"""From webhook to bot at a steady rate: how long it takes (P6), and what it costs (P12).

The roles run as `depesche` runs them: `receiver` and `worker --stages customer,delivery` on Kafka, `run` on the
embedded log, in turns with the hand-written path on one core; load, Kafka and the bot have the rest. A webhook's time
counts from when it was due to when its POST has begun to arrive at the bot. Each must be there, or there is no figure.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.child import Child, Cores, Facts, pin
from benchmarks.kafka import HOW, kafka_on, prefix
from benchmarks.load import NUMBER, PATH, SECRET
from benchmarks.rows import Goal, Progress, Row, medians, row
from tests.flow.deployment import APP_SECRET, Deployment, Number, Seat
from tests.flow.deployment import on_kafka as kafka_table

WAYS = ("kafka", "embedded", "loop", "bare")

CONNECTIONS = 64
CUSTOMERS = 2_000
"""Who write in turn: at 1,000/s each every two seconds, so that all are known when the clock begins to run. Who is new
costs a question to their other key besides, which the hand-written path does not ask."""
ARRIVE_S_MAX = 30.0
LOOK_S = 0.1

PARTS = {"kafka": ("receiver", "worker"), "embedded": ("all",), "loop": ("receiver", "worker"), "bare": ("handler",)}
"""What the processes of a way are."""

SEEN = ("answered_p50_ms", "answered_p99_ms", "max_ms", "delivered_again", "rate", "server_busy")

P99_GOAL = Goal("value", "at most", 150.0)
GOALS = {"p50_ms": Goal("ratio", "at most", 1.5), "p99_ms": Goal("ratio", "at most", 2.0)}
CPU_GOAL = Goal("ratio", "at most", 6.0)


class Way(NamedTuple):
    """Something that takes webhooks: where, how they are signed, which processes it is."""

    port: int
    path: str
    secret: str
    servers: list[int]
    delivers: bool


def measure(
    progress: Progress,
    *,
    runs: int = 3,
    seconds: float = 10.0,
    warm_s: float = 8.0,
    rate: float = 1_000.0,
    ways: Sequence[str] = WAYS,
    bootstrap: str = "",
) -> list[Row]:
    """Return latencies and CPU of each way. `bootstrap`: a Kafka that is there already."""
    cores = Cores.of_this_machine()
    found: dict[str, list[Facts]] = {way: [] for way in ways}
    first = 0
    with kafka_on(cores.rest, bootstrap) as kafka, Child("load", cores.rest) as load, Child("bots", cores.rest) as bot:
        for number in range(runs):
            for name in ways:
                with MAKERS[name](cores, kafka, bot.facts["port"]) as way:
                    seen = load.ask(
                        port=way.port,
                        path=way.path,
                        secret=way.secret,
                        servers=way.servers,
                        connections=CONNECTIONS,
                        customers=CUSTOMERS,
                        seconds=seconds,
                        warm_s=warm_s,
                        rate=rate,
                        first=first,
                    )
                    if seen["ok"] != seen["sent"]:
                        raise RuntimeError(f"{name}: {seen['ok']} of {seen['sent']} webhooks were answered 200")
                    if way.delivers:
                        seen |= latencies(name, seen, first, rate, bot)
                first += seen["sent"]
                found[name].append(seen)
                progress(
                    f"path {name:8} run {number + 1}: p50 {seen['p50_ms']:.1f} ms, p99 {seen['p99_ms']:.1f} ms, "
                    f"{seen['cpu_us']:.0f} µs each"
                )
    how: Facts = {
        "runs": runs,
        "seconds": seconds,
        "rate": f"{rate:.0f}/s, open loop, {CONNECTIONS} connections",
        "customers": f"{CUSTOMERS:,}, all known after {warm_s:.0f} s",
        "measured_cores": list(cores.measured),
        "rest_cores": list(cores.rest),
        "kafka": HOW,
        "loop": "aiohttp handler, aiokafka transaction for each getmany, read_committed consumer that posts",
    }
    return rows_of(found, how)


def latencies(name: str, sent: Facts, first: int, rate: float, bot: Child) -> Facts:
    """Return how long webhooks took to the bot, once all are there. Raises `RuntimeError` when one is missing."""
    arrived: dict[int, float] = {}
    again = 0
    patience = time.monotonic() + ARRIVE_S_MAX
    while len(arrived) < sent["sent"]:
        if time.monotonic() > patience:
            missing = sent["sent"] - len(arrived)
            raise RuntimeError(f"{name}: {missing} of {sent['sent']} webhooks did not reach the bot")
        for n, at in bot.ask()["arrivals"]:
            if not first <= n < first + sent["sent"]:
                raise RuntimeError(f"{name}: the bot got webhook {n}, which was not of this run")
            again += n in arrived
            arrived.setdefault(n, at)
        time.sleep(LOOK_S)
    due = ((n, sent["began"] + (n - first) / rate) for n in arrived)
    took = sorted(arrived[n] - at for n, at in due if sent["from_s"] <= at < sent["until_s"])
    return {
        "answered_p50_ms": sent["p50_ms"],
        "answered_p99_ms": sent["p99_ms"],
        "p50_ms": took[len(took) // 2] * 1e3,
        "p99_ms": took[len(took) * 99 // 100] * 1e3,
        "max_ms": took[-1] * 1e3,
        "delivered_again": again,
    }


@contextmanager
def deployed(cores: Cores, log: dict[str, object], bot_port: int, roles: dict[str, Sequence[str]]) -> Iterator[Way]:
    """Depesche's own processes with one number and one sink."""
    with tempfile.TemporaryDirectory(prefix="depesche-bench-") as folder:
        deployment = Deployment(Path(folder), log, [Number(NUMBER, 0, 1_000)], [Seat("bot", bot_port)])
        try:
            for name, arguments in roles.items():
                pin(asyncio.run(deployment.start(name, *arguments)).pid, cores.measured)
            servers = [process.pid for process in deployment.processes.values()]
            yield Way(deployment.receiver_port, "/webhooks/meta/main", APP_SECRET, servers, delivers=True)
        finally:
            deployment.close()


def on_kafka(cores: Cores, bootstrap: str, bot_port: int) -> AbstractContextManager[Way]:
    """A receiver and a worker."""
    roles: dict[str, Sequence[str]] = {"receiver": ("receiver",), "worker": ("worker", "--stages", "customer,delivery")}
    return deployed(cores, kafka_table(bootstrap, prefix()), bot_port, roles)


@contextmanager
def on_embedded(cores: Cores, _: str, bot_port: int) -> Iterator[Way]:
    """Everything in one process."""
    with tempfile.TemporaryDirectory(prefix="depesche-bench-") as folder:
        log: dict[str, object] = {"engine": "embedded", "embedded": {"path": folder}}
        with deployed(cores, log, bot_port, {"run": ("run",)}) as way:
            yield way


@contextmanager
def by_loop(cores: Cores, bootstrap: str, bot_port: int) -> Iterator[Way]:
    """The hand-written path."""
    spec = {"bootstrap": bootstrap, "prefix": prefix(), "url": f"http://127.0.0.1:{bot_port}/"}
    with ExitStack() as stack:
        receiver, worker = (
            stack.enter_context(Child("path_peers", cores.measured, part=part, **spec))
            for part in ("receiver", "worker")
        )
        yield Way(receiver.facts["port"], PATH, SECRET, [receiver.pid, worker.pid], delivers=True)
        if failed := worker.ask()["failed"]:
            raise RuntimeError(f"the hand-written path failed: {failed}")


@contextmanager
def bare(cores: Cores, _: str, __: int) -> Iterator[Way]:
    """A handler that reads, answers and forgets."""
    with Child("webhook_servers", cores.measured, engine="bare") as server:
        yield Way(server.facts["port"], PATH, SECRET, [server.pid], delivers=False)


MAKERS = {"kafka": on_kafka, "embedded": on_embedded, "loop": by_loop, "bare": bare}


def rows_of(found: dict[str, list[Facts]], how: Facts) -> list[Row]:
    """P6 of both logs beside the loop, and P12 beside the bare handler."""
    made = []
    for name, runs in found.items():
        if name != "bare":
            seen = medians(runs, *SEEN)
            rivals = found.get("loop") if name != "loop" else None
            for figure, goal in GOALS.items():
                rival = (f"P6.loop.{figure}", [run[figure] for run in rivals]) if rivals else None
                made.append(
                    row(
                        f"P6.{name}.{figure}",
                        "ms to the bot",
                        [run[figure] for run in runs],
                        rival=rival,
                        goal=goal if rivals else None,
                        settings=how,
                        seen=seen,
                    )
                )
        if name in ("kafka", "embedded"):
            values = [run["p99_ms"] for run in runs]
            made.append(row(f"P6.{name}.p99_bound_ms", "ms to the bot", values, goal=P99_GOAL, settings=how))
    for name, runs in found.items():
        each = {f"cpu_us_of_{part}": [run["cpu_us_of_each"][at] for run in runs] for at, part in enumerate(PARTS[name])}
        id_ = "P12.cpu_us" if name == "kafka" else f"P12.{name}.cpu_us"
        rivals = found.get("bare") if name != "bare" else None
        made.append(
            row(
                id_,
                "µs CPU each",
                [run["cpu_us"] for run in runs],
                rival=("P12.bare.cpu_us", [run["cpu_us"] for run in rivals]) if rivals else None,
                goal=CPU_GOAL if rivals and name == "kafka" else None,
                settings=how,
                seen={part: median(costs) for part, costs in each.items()},
            )
        )
    return made
