"""How fast one sender is when nothing holds it back, beside a loop that only posts.

The sender stage writes an intent before each call and an outcome after it, both durable on the embedded log; the loop
keeps nothing. Both post the same bodies to the same bare server with as many calls under way.
"""

from __future__ import annotations

import tempfile

from benchmarks.child import Child, Cores, Facts
from benchmarks.rows import Progress, Row, medians, row

LANE = "reply"
"""The lane that may fill all of what is intended ahead, and whose steps wait for nothing."""

UNLIMITED_MPS = 1_000_000
"""No tier of Meta's: the window is still asked for each permit, and always has room."""


def measure(progress: Progress, *, runs: int = 3, count: int = 5_000, in_flight: int = 500) -> list[Row]:
    """Return sends a second and CPU for each send."""
    cores = Cores.of_this_machine()
    found: dict[str, list[Facts]] = {"stage": [], "loop": []}
    with Child("graph_servers", cores.rest, kind="bare") as graph:
        for number in range(runs):
            for kind, seen in found.items():
                with tempfile.TemporaryDirectory(prefix="depesche-bench-") as folder:
                    spec = {
                        "folder": folder,
                        "lane": LANE,
                        "count": count,
                        "throughput_mps": UNLIMITED_MPS,
                        "in_flight_max": in_flight,
                    }
                    with Child("graph_callers", cores.measured, kind=kind, **spec) as caller:
                        spent = caller.ask(run="all", graph_port=graph.facts["port"])
                arrivals = graph.ask()
                if not count == spent["accepted"] == arrivals["count"]:
                    raise RuntimeError(
                        f"{kind}: {count} sends, {arrivals['count']} calls, {spent['accepted']} accepted"
                    )
                seen.append({**spent, "rate": arrivals["rate"], "cpu_us": spent["cpu_s"] * 1e6 / count})
                progress(
                    f"sender {kind:5} run {number + 1}: {seen[-1]['rate']:,.0f}/s, {seen[-1]['cpu_us']:.0f} µs each"
                )
    how: Facts = {
        "runs": runs,
        "sends": count,
        "in_flight_max": in_flight,
        "caller_cores": list(cores.measured),
        "graph_cores": list(cores.rest),
        "graph": "bare aiohttp server, 0 ms",
        "log": f"embedded, fsynced; {LANE} lane",
        "rate": "between the 10th and the 90th percentile of arrivals",
    }
    made = []
    for name, unit in (("rate", "sends/s"), ("cpu_us", "µs CPU each")):
        loop = [run[name] for run in found["loop"]]
        stage = [run[name] for run in found["stage"]]
        walls = medians(found["stage"], "wall_s")
        made.append(row(f"sender.stage.{name}", unit, stage, rival=("sender.loop", loop), settings=how, seen=walls))
        made.append(row(f"sender.loop.{name}", unit, loop, settings=how))
    return made
