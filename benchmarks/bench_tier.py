"""P5: how much of Meta's tier a backlog uses, and how often Meta would have refused: promise 4.

The sandbox's platform counts every message in and out within any second, as strictly as can be, in a process of its
own, 350 ms away and with 10 ms of jitter on the way there.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from statistics import mean

from benchmarks.child import Child, Cores, Facts
from benchmarks.rows import Goal, Progress, Row, medians, row

LANE = "campaign"
"""Where backlogs stand; it may fill only half of what is intended ahead: the harder case."""

THROUGHPUT = "130429"
SECONDS = {20: 120.0, 80: 60.0, 1_000: 20.0}
"""Measured of each tier: with 30 % inbound 1,500 sends or more in a run, of which one refused is 0.07 %."""

USED_MIN = 0.93
"""Of a tier that nothing comes in at."""

USED_MIN_BESIDE_INBOUND = {20: 0.60, 80: 0.80, 1_000: 0.92}
"""With 30 % of the tier coming in, inbound counted: room must be kept for what is not known yet."""

REFUSED_SHARE_MAX = 0.000_5

IN_FLIGHT_MAX = 500
LATENCY_MS = 350
SKIP_S = 3.0
"""After the first send: the window was full, calls were few, the inbound rate was not known yet."""
MARGIN_S = 1.0
FULL_WINDOW_S = 1.5
"""A sender begins with a full window: its first send is 1.04 s away."""

SEEN = (
    "accepted",
    "inbound",
    "cpu_busy",
    "sender_lag_p99_ms",
    "sender_lag_max_ms",
    "platform_lag_p99_ms",
    "platform_lag_max_ms",
)


def measure(
    progress: Progress,
    *,
    tiers: Mapping[int, float] = SECONDS,
    inbound_shares: Sequence[float] = (0.0, 0.3),
    runs: int = 3,
    skip_s: float = SKIP_S,
    margin_s: float = MARGIN_S,
) -> list[Row]:
    """Return the used share of each tier and its refusals, without inbound and with. `tiers`: seconds of each."""
    made = []
    for tier, seconds in tiers.items():
        for share in inbound_shares:
            found = [once(tier, share, seconds, skip_s, margin_s) for _ in range(runs)]
            name = f"P5.{tier}{f'.inbound_{share:.0%}' if share else ''}"
            how: Facts = {
                "runs": runs,
                "seconds": seconds,
                "latency_ms": f"{LATENCY_MS} (log-normal), uplink 10 to 20",
                "in_flight_max": IN_FLIGHT_MAX,
                "log": f"embedded, fsynced; {LANE} lane",
                "inbound": f"Poisson, {tier * share:.0f}/s through the receiver of the same process"
                if share
                else "none",
            }
            used = [run["used"] for run in found]
            least = USED_MIN_BESIDE_INBOUND.get(tier) if share else USED_MIN
            goal = None if least is None else Goal("value", "at least", least)
            made.append(row(f"{name}.used", "of the tier", used, goal=goal, settings=how, seen=medians(found, *SEEN)))
            made.append(refusals(name, found, share, how))
            progress(f"{name}: {made[-2].value:.3f} used, {made[-1].value:.5f} refused, {made[-2].seen}")
    return made


def refusals(name: str, found: Sequence[Facts], share: float, how: Facts) -> Row:
    """All refusals of all runs: one that a median does not show was a message that came late."""
    refused = [float(run["refused"]) for run in found]
    if not share:
        none = Goal("value", "at most", 0)
        return row(f"{name}.refused", f"answers {THROUGHPUT}", refused, of=sum, goal=none, settings=how)
    shares = [count / (count + run["accepted_in_all"]) for count, run in zip(refused, found, strict=True)]
    goal = Goal("value", "at most", REFUSED_SHARE_MAX)
    seen = {"refused": sum(refused), "accepted": sum(run["accepted_in_all"] for run in found)}
    return row(f"{name}.refused_share", "of all calls", shares, of=mean, goal=goal, settings=how, seen=seen)


def once(tier: int, share: float, seconds: float, skip_s: float, margin_s: float) -> Facts:
    """One run. Raises `RuntimeError` when the backlog did not last, or something was refused for another reason."""
    cores = Cores.of_this_machine()
    span_s = skip_s + seconds + margin_s + FULL_WINDOW_S
    backlog = int(tier * (span_s + 3))
    with tempfile.TemporaryDirectory(prefix="depesche-bench-") as folder:
        spec = {
            "engine": "embedded",
            "folder": folder,
            "numbers": 1,
            "lane": LANE,
            "count": backlog,
            "throughput_mps": tier,
            "in_flight_max": IN_FLIGHT_MAX,
        }
        platform = {"throughput_mps": tier, "latency_ms": LATENCY_MS, "customers": backlog}
        with (
            Child("graph_callers", cores.measured, kind="stage", **spec) as caller,
            Child("graph_servers", cores.rest, kind="platform", webhook_port=caller.facts["port"], **platform) as graph,
        ):
            if share:
                graph.ask(inbound_mps=tier * share)
            began = time.monotonic()
            spent = caller.ask(run="some", graph_port=graph.facts["port"], seconds=span_s)
            seen = graph.ask(skip_s=skip_s, seconds=seconds)
            lasted_s = time.monotonic() - began
    if seen["over_s"] < seconds:
        raise RuntimeError(f"tier {tier}: sends ended {seconds - seen['over_s']:.1f} s early, after {lasted_s:.0f} s")
    if others := {code: n for code, n in seen["refusals_in_all"].items() if code != THROUGHPUT}:
        raise RuntimeError(f"tier {tier}: refused for other reasons: {others}")
    return {
        "used": (seen["accepted"] + seen["inbound"]) / (tier * seconds),
        "refused": seen["refusals_in_all"].get(THROUGHPUT, 0),
        "accepted": seen["accepted"],
        "accepted_in_all": seen["accepted_in_all"],
        "inbound": seen["inbound"],
        "cpu_busy": spent["cpu_s"] / spent["wall_s"],
        "sender_lag_p99_ms": spent["lag_p99_ms"],
        "sender_lag_max_ms": spent["lag_max_ms"],
        "platform_lag_p99_ms": seen["lag_p99_ms"],
        "platform_lag_max_ms": seen["lag_max_ms"],
    }
