"""P4: how fast one sender is when nothing holds it back, beside a loop that only posts.

The sender stage writes an intent before each call and an outcome after it, both durable, on the embedded log and on
Kafka; the loop keeps nothing. All post the same bodies to the same bare server with as many calls under way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.child import Child, Cores, Facts
from benchmarks.kafka import HOW, kafka_on, prefix
from benchmarks.rows import Goal, Progress, Row, medians, row

LANE = "reply"
"""The lane that may fill all of what is intended ahead, and whose steps wait for nothing."""

UNLIMITED_MPS = 1_000_000
"""No tier of Meta's: the window is still asked for each permit, and always has room."""

SHARE = 0.60
"""Of the loop's speed, with the embedded log. On Kafka there is no goal: what a step costs is spread over the calls
that one number makes meanwhile."""

ENGINES = ("embedded", "kafka")
IDS = {"embedded": "P4", "kafka": "P4.kafka"}


def measure(
    progress: Progress,
    *,
    runs: int = 3,
    count: int = 10_000,
    in_flight: int = 500,
    engines: Sequence[str] = ENGINES,
    bootstrap: str = "",
) -> list[Row]:
    """Return sends a second and CPU for each send. `bootstrap`: a Kafka that is there already; else one is started."""
    cores = Cores.of_this_machine()
    found: dict[str, list[Facts]] = {engine: [] for engine in (*engines, "loop")}
    with ExitStack() as stack:
        at = stack.enter_context(kafka_on(cores.rest, bootstrap)) if "kafka" in engines else ""
        graph = stack.enter_context(Child("graph_servers", cores.rest, kind="bare"))
        for number in range(runs):
            for engine, seen in found.items():
                seen.append(one_run(cores, graph, at, engine, count=count, in_flight=in_flight))
                progress(
                    f"sender {engine:8} run {number + 1}: {seen[-1]['rate']:,.0f}/s, {seen[-1]['cpu_us']:.0f} µs each"
                )
    how: Facts = {
        "runs": runs,
        "sends": count,
        "in_flight_max": in_flight,
        "caller_cores": list(cores.measured),
        "graph_cores": list(cores.rest),
        "graph": "bare aiohttp server, 0 ms",
        "lane": LANE,
        "embedded": "SQLite, WAL, fsynced",
        "kafka": HOW,
    }
    made = []
    for engine in engines:
        for name, unit in (("rate", "sends/s"), ("cpu_us", "µs CPU each")):
            made.append(
                row(
                    f"{IDS[engine]}.{name}",
                    unit,
                    [run[name] for run in found[engine]],
                    rival=("bare client loop", [run[name] for run in found["loop"]]),
                    ratio_is="ours / theirs" if name == "rate" else "theirs / ours",
                    goal=Goal("ratio", "at least", SHARE) if engine == "embedded" else None,
                    settings=how,
                    seen=medians(found[engine], "busy", "arrived_rate"),
                )
            )
    return made


def one_run(
    cores: Cores, graph: Child, bootstrap: str, engine: str, *, count: int, in_flight: int, numbers: int = 1
) -> Facts:
    """Send everything once. `engine`: a log's, or "loop". Raises `RuntimeError` unless each send was one call and was
    accepted."""
    with tempfile.TemporaryDirectory(prefix="depesche-bench-") as folder:
        spec = {
            "kind": "loop" if engine == "loop" else "stage",
            "engine": engine,
            "folder": folder,
            "bootstrap": bootstrap,
            "prefix": prefix(),
            "lane": LANE,
            "count": count,
            "numbers": numbers,
            "throughput_mps": UNLIMITED_MPS,
            "in_flight_max": in_flight,
        }
        with Child("graph_callers", cores.measured, **spec) as caller:
            seen = caller.ask(run="all", graph_port=graph.facts["port"])
    arrivals = graph.ask()
    if not count == seen["accepted"] == arrivals["count"]:
        raise RuntimeError(f"{engine}: {count} sends, {arrivals['count']} calls, {seen['accepted']} accepted")
    return {**seen, "arrived_rate": arrivals["rate"]}
