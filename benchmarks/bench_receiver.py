"""What one webhook costs: CPU of the receiver's process until it is durable. P1 on Kafka, P1e embedded, P2 the peer.

The servers stand side by side on one core, load and Kafka on the others; in each round each is loaded in its turn: full
(wrk, closed loop) for what a webhook costs, at a stated rate (open loop) for what a sender feels. Every answer must be
200, and afterwards the log must hold exactly one record for each webhook.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.child import Child, Cores, Facts
from benchmarks.kafka import HOW, kafka_on, prefix
from benchmarks.load import SECRET, webhook
from benchmarks.rows import Goal, Progress, Row, medians, row
from benchmarks.wrk import Wrk

ENGINES = ("kafka", "embedded", "bare", "fastapi")
IDS = {"kafka": "P1", "embedded": "P1e", "bare": "P1.bare", "fastapi": "P2.peer"}
CONNECTIONS = (256, 64)

GOALS = {
    ("kafka", 256): Goal("ratio", "at least", 0.70),
    ("kafka", 64): Goal("ratio", "at least", 0.45),
    ("embedded", 256): Goal("ratio", "at least", 0.60),
}
"""Shares of the bare handler's speed."""
PEER_GOAL = Goal("ratio", "at least", 3.5)
"""How many webhooks of ours cost as much as one of the peer's."""

SEEN = ("rate", "p50_ms", "p99_ms", "server_busy", "load_busy")

WARM_COUNT = 1_000
"""Webhooks before a round's first: caches, and how many a second there will be."""


def measure(
    progress: Progress,
    *,
    runs: int = 3,
    seconds: float = 5.0,
    connections: Sequence[int] = CONNECTIONS,
    engines: Sequence[str] = ENGINES,
    steady_mps: float = 1_000.0,
    warm_count: int = WARM_COUNT,
    bootstrap: str = "",
) -> list[Row]:
    """Return CPU for each webhook under full load, and the latency of each engine at a stated rate.

    `bootstrap`: a Kafka that is there already; else one is started.
    """
    cores = Cores.of_this_machine()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="depesche-bench-")))
        if not {"kafka", "fastapi"}.isdisjoint(engines):
            bootstrap = stack.enter_context(kafka_on(cores.rest, bootstrap))
        servers = {
            engine: stack.enter_context(
                Child(
                    "webhook_servers",
                    cores.measured,
                    engine=engine,
                    folder=str(folder / engine),
                    bootstrap=bootstrap,
                    prefix=prefix(),
                )
            )
            for engine in engines
        }
        wrk = Wrk(cores.rest, folder, SECRET)
        steady = stack.enter_context(Child("load", cores.rest))
        taken = dict.fromkeys(engines, 0)
        found: dict[tuple[str, int, float], list[Facts]] = {}
        shapes = [(count, 0.0) for count in connections] + [(connections[-1], steady_mps)]
        for number in range(runs):
            for count, rate in shapes:
                for engine, server in servers.items():
                    port = server.facts["port"]
                    if rate:
                        how: Facts = {"connections": count, "seconds": seconds, "warm_s": seconds / 5, "rate": rate}
                        seen = steady.ask(port=port, servers=[server.pid], first=taken[engine], **how)
                    else:
                        warm = wrk.run(port, server.pid, count, taken[engine], max(count, warm_count))
                        taken[engine] += warm["sent"]
                        many = max(count, int(warm["rate"] * seconds))
                        seen = wrk.run(port, server.pid, count, taken[engine], many)
                    taken[engine] += seen["sent"]
                    check(engine, seen, taken[engine], server.ask()["count"])
                    found.setdefault((engine, count, rate), []).append(seen)
                    progress(
                        f"receiver {engine:8} c{count} {'full' if not rate else f'{rate:.0f}/s'} "
                        f"run {number + 1}: {seen['cpu_us']:.0f} µs, {seen['rate']:,.0f}/s, p99 {seen['p99_ms']:.1f} ms"
                    )
    settings = {
        "runs": runs,
        "seconds": seconds,
        "server_cores": list(cores.measured),
        "load_cores": list(cores.rest),
        "body_bytes": len(webhook(0, 1_789_300_000)),
        "kafka": HOW,
        "embedded": "SQLite, WAL, fsynced before the answer",
        "fastapi": "uvicorn with uvloop and httptools, aiokafka send_and_wait, acks=all",
    }
    made = [made for engine in engines for made in rows_of(engine, found, shapes, settings)]
    return made + beside_the_peer(found, shapes, settings)


def check(engine: str, seen: Facts, sent: int, durable: int) -> None:
    """Every webhook was answered 200, and is there. Raises `RuntimeError`: a figure without that is worth nothing."""
    if seen["ok"] != seen["sent"]:
        raise RuntimeError(f"{engine}: {seen['sent'] - seen['ok']} of {seen['sent']} webhooks were not answered 200")
    if durable != sent:
        raise RuntimeError(f"{engine}: {sent} webhooks were answered 200, {durable} are there")


Found = dict[tuple[str, int, float], list[Facts]]
"""Runs by engine, connections and rate; rate 0 is as fast as can be."""


def rows_of(engine: str, found: Found, shapes: Sequence[tuple[int, float]], how: Facts) -> list[Row]:
    """The rows of one engine, beside the bare handler."""
    made = []
    for count, rate in shapes:
        runs = found[engine, count, rate]
        beside = found.get(("bare", count, rate)) if engine != "bare" else None
        name = "p99_ms" if rate else "cpu_us"
        shape = f"at_{rate:.0f}_mps.p99_ms" if rate else f"c{count}"
        made.append(
            row(
                f"{IDS[engine]}.{shape}",
                "ms from when it was due" if rate else "µs CPU each",
                [run[name] for run in runs],
                rival=(f"P1.bare.{shape}", [run[name] for run in beside]) if beside else None,
                ratio_is="ours / theirs" if rate else "theirs / ours",
                goal=None if rate else GOALS.get((engine, count)),
                settings={**how, "connections": count, "loop": f"open, {rate:.0f}/s" if rate else "closed, wrk"},
                seen=medians(runs, *SEEN, "cpu_us"),
            )
        )
    return made


def beside_the_peer(found: Found, shapes: Sequence[tuple[int, float]], how: Facts) -> list[Row]:
    """P2: what P1 is beside the peer."""
    return [
        row(
            f"P2.c{count}",
            "µs CPU each",
            [run["cpu_us"] for run in found["kafka", count, 0.0]],
            rival=(f"P2.peer.c{count}", [run["cpu_us"] for run in found["fastapi", count, 0.0]]),
            ratio_is="theirs / ours",
            goal=PEER_GOAL,
            settings={**how, "connections": count, "loop": "closed, wrk"},
        )
        for count, rate in shapes
        if not rate and ("kafka", count, rate) in found and ("fastapi", count, rate) in found
    ]
