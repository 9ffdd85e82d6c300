"""P9: memory. What a process of each role takes at rest, and what each customer adds to the customer stage's.

A customer's share is the slope between few and many of them, in processes of their own: what a process takes anyway and
what Kafka's client buffers is in both. Quiet: restored, silent for nine days, two answers remembered. Live: the same
customer has written, and the answer is under way.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from benchmarks.child import Child, Cores, Facts, rss_bytes
from benchmarks.kafka import kafka_on, prefix
from benchmarks.rows import Goal, Progress, Row, row
from tests.flow.deployment import Deployment, Number, Seat, on_kafka

QUIET_BYTES_MAX = 400.0
LIVE_BYTES_MAX = 2_048.0
FEW = 10
"""The smaller run has a tenth of the customers."""

REST_S = 2.0
"""After a process is ready: its first metadata and heartbeats."""

ROLES = ("receiver", "gateway", "worker")
MIB = 1024 * 1024


def measure(
    progress: Progress,
    *,
    runs: int = 3,
    customers: int = 200_000,
    partitions: int = 8,
    bootstrap: str = "",
    roles: tuple[str, ...] = ROLES,
    rest_s: float = REST_S,
) -> list[Row]:
    """Return bytes for each customer and MiB for each role."""
    cores = Cores.of_this_machine()
    quiet: list[float] = []
    live: list[float] = []
    with kafka_on(cores.rest, bootstrap) as at:
        for number in range(runs):
            few = grown(cores, at, customers // FEW, partitions)
            many = grown(cores, at, customers, partitions)
            more = customers - customers // FEW
            quiet.append((many["quiet"] - few["quiet"]) / more)
            live.append((many["live"] - few["live"]) / more)
            progress(
                f"memory run {number + 1}: {quiet[-1]:.0f} B for a quiet customer, {live[-1]:.0f} B for a live one"
            )
        idle = asyncio.run(at_rest(at, roles, rest_s))
    for role, size in idle.items():
        progress(f"memory of a {role} at rest: {size / MIB:.1f} MiB")
    how: Facts = {
        "runs": runs,
        "customers": customers,
        "beside": customers // FEW,
        "partitions": partitions,
        "state_bytes": many["state_bytes"],
        "memory": "resident, as the kernel counts it",
    }
    return [
        row("P9.quiet_bytes", "B each", quiet, goal=Goal("value", "at most", QUIET_BYTES_MAX), settings=how),
        row("P9.live_bytes", "B each", live, goal=Goal("value", "at most", LIVE_BYTES_MAX), settings=how),
        *(row(f"P9.idle_{role}", "MiB", [size / MIB], settings=how) for role, size in idle.items()),
    ]


def grown(cores: Cores, bootstrap: str, customers: int, partitions: int) -> Facts:
    """Memory of a customer stage that has restored so many customers, and once all of them have written."""
    spec = {"bootstrap": bootstrap, "prefix": prefix(), "partitions": partitions, "numbers": 1, "sinks": 1}
    with (
        Child("customer_stages", cores.rest, kind="feed", **spec) as feed,
        Child("customer_stages", cores.measured, kind="restore", **spec) as stage,
    ):
        written = feed.ask(known=customers)
        quiet = stage.ask(known=customers)
        records = feed.ask(customers=customers, turns=1, steps=2)["records"]
        live = stage.ask(records=records)
        if not quiet["customers"] == live["customers"] == customers:
            raise RuntimeError(f"{customers} customers were fed, {live['customers']} are known")
    return {"quiet": quiet["rss"], "live": live["rss"], "state_bytes": round(written["bytes"] / customers)}


async def at_rest(bootstrap: str, roles: tuple[str, ...], rest_s: float) -> dict[str, int]:
    """Memory of each role's process, ready and without work."""
    log = on_kafka(bootstrap, prefix())
    found = {}
    with tempfile.TemporaryDirectory(prefix="depesche-bench-") as folder:
        deployment = Deployment(Path(folder), log, [Number("106540352242922", 0)], [Seat("bot", 9)])
        try:
            for role in roles:
                process = await deployment.start(role, role)
                await asyncio.sleep(rest_s)
                found[role] = rss_bytes(process.pid)
                process.terminate()
        finally:
            deployment.close()
    return found
