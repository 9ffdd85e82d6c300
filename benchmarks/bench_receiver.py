"""What one webhook costs: CPU of the receiver's process until it is durable, beside a handler that keeps nothing.

Three servers stand side by side on one core, load and Kafka on the others; in each round each is loaded in its turn.
Every answer must be 200, and afterwards the log must hold exactly one record for each.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.child import Child, Cores, Facts, pin
from benchmarks.load import webhook
from benchmarks.rows import Progress, Row, medians, row
from tests.kafka.cluster import LocalKafka

ENGINES = ("embedded", "kafka", "bare")
CONNECTIONS = (64, 256)

SEEN = ("rate", "p50_ms", "p99_ms", "server_busy", "load_busy")


def measure(
    progress: Progress,
    *,
    runs: int = 3,
    seconds: float = 5.0,
    warm_s: float = 1.0,
    connections: Sequence[int] = CONNECTIONS,
    engines: Sequence[str] = ENGINES,
    steady_mps: float = 1_000.0,
    bootstrap: str = "",
) -> list[Row]:
    """Return CPU for each webhook under full load, and the latency of each engine at a stated rate.

    `bootstrap`: a Kafka that is there already; else one is started.
    """
    cores = Cores.of_this_machine()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="depesche-bench-"))
        if "kafka" in engines and not bootstrap:
            kafka = LocalKafka()
            stack.callback(kafka.stop)
            for broker in kafka.brokers:
                assert broker.process is not None
                pin(broker.process.pid, cores.rest)
            bootstrap = kafka.bootstrap
        where = {"folder": folder, "bootstrap": bootstrap, "prefix": f"bench-{uuid.uuid4().hex[:8]}."}
        servers = {
            engine: stack.enter_context(Child("webhook_servers", cores.measured, engine=engine, **where))
            for engine in engines
        }
        load = stack.enter_context(Child("load", cores.rest))
        taken = dict.fromkeys(engines, 0)
        found: dict[tuple[str, int, float], list[Facts]] = {}
        shapes = [(count, 0.0) for count in connections] + [(connections[0], steady_mps)]
        for number in range(runs):
            for count, rate in shapes:
                for engine, server in servers.items():
                    seen = load.ask(
                        port=server.facts["port"],
                        connections=count,
                        seconds=seconds,
                        warm_s=warm_s,
                        rate=rate,
                        server=server.pid,
                        first=taken[engine],
                    )
                    taken[engine] += seen["sent"]
                    check(engine, seen, taken[engine], server.ask()["count"])
                    found.setdefault((engine, count, rate), []).append(seen)
                    progress(
                        f"receiver {engine:8} c{count} {'full' if not rate else f'{rate:.0f}/s'} "
                        f"run {number + 1}: {seen['cpu_us']:.0f} µs, {seen['rate']:,.0f}/s, p99 {seen['p99_ms']:.1f} ms"
                    )
    how = {
        "runs": runs,
        "seconds": seconds,
        "warm_s": warm_s,
        "server_cores": list(cores.measured),
        "load_cores": list(cores.rest),
        "body_bytes": len(webhook(0, 1_789_300_000)),
        "kafka": "one broker, acks=all, one copy, flush left to the broker as Kafka does",
        "embedded": "SQLite, WAL, fsynced before the answer",
    }
    return [made for engine in engines for made in rows_of(engine, found, shapes, how)]


def check(engine: str, seen: Facts, sent: int, durable: int) -> None:
    """Every webhook was answered 200, and is there. Raises `RuntimeError`: a figure without that is worth nothing."""
    if seen["ok"] != seen["sent"]:
        raise RuntimeError(f"{engine}: {seen['sent'] - seen['ok']} of {seen['sent']} webhooks were not answered 200")
    if durable != sent:
        raise RuntimeError(f"{engine}: {sent} webhooks were answered 200, {durable} are there")


def rows_of(
    engine: str,
    found: dict[tuple[str, int, float], list[Facts]],
    shapes: Sequence[tuple[int, float]],
    how: Facts,
) -> list[Row]:
    """The rows of one engine."""
    made = []
    for count, rate in shapes:
        runs = found[engine, count, rate]
        beside = found.get(("bare", count, rate)) if engine != "bare" else None
        name = "p99_ms" if rate else "cpu_us"
        shape = f"at_{rate:.0f}_mps" if rate else f"c{count}"
        made.append(
            row(
                f"receiver.{engine}.{shape}.{name}",
                "ms from when it was due" if rate else "µs CPU each",
                [run[name] for run in runs],
                rival=(f"receiver.bare.{shape}", [run[name] for run in beside]) if beside else None,
                settings={**how, "connections": count, "loop": f"open, {rate:.0f}/s" if rate else "closed"},
                seen=medians(runs, *SEEN, "cpu_us"),
            )
        )
    return made
