"""P11: a worker that is killed, and workers that are started anew one after the other, under load on Kafka.

What the dead one had touched flows again when the last webhook that waited for it has reached the bot, and the last
answer Graph. Sends that were intended or under way in that moment are in doubt and are no part of it: they wait for a
status, or for what their class says (30 s here); how many came then is told beside it.
"""

from __future__ import annotations

import time

from benchmarks.bench_whole import DRAIN_S
from benchmarks.child import Facts
from benchmarks.deployed import Deployed, deployed
from benchmarks.outside import BUBBLE_S
from benchmarks.rows import Goal, Progress, Row, row
from schemas.settings import KafkaSettings

SESSION_S = KafkaSettings().session_timeout_ms / 1_000
TAKEOVER_S_MAX = SESSION_S + 2.0
ROLLING_P99_MS_MAX = 2_000.0
PARTITIONS = 8
RATE = 300.0


def measure(
    progress: Progress,
    *,
    rate: float = RATE,
    warm_s: float = 10.0,
    after_s: float = 40.0,
    rolled: int = 3,
    bubble_s: float = BUBBLE_S,
    bootstrap: str = "",
) -> list[Row]:
    """Return how long a takeover takes and what a rolling restart does to latency. `rolled`: how many of the three
    workers are started anew. Raises `RuntimeError` when a webhook or a send is lost."""
    with deployed(bootstrap, PARTITIONS, bubble_s) as rig:
        rig.start(receiver="receiver")  # makes the topics
        rig.start(gateway="gateway", **{f"worker-{n}": "worker" for n in range(3)})
        rig.connect()
        rolling = roll(rig, rate, warm_s, rolled)
        progress(f"recovery: rolling restart, p99 {rolling['bot_p99_ms']:.0f} ms, {rolling['restarts_s']:.0f} s")
        killed = kill(rig, rate, warm_s, after_s)
        progress(
            f"recovery: flows again after {killed['flows_again_s']:.1f} s, sends {killed['sends_flow_again_s']:.1f} s"
        )
    if refused := rolling["refused"] + killed["refused"]:
        raise RuntimeError(f"{refused} webhooks or requests were not answered 200 by a receiver or gateway that lived")
    how: Facts = {"webhooks_per_s": rate, "workers": 3, "session_s": SESSION_S, "partitions": PARTITIONS}
    lost = rolling["lost_webhooks"] + rolling["lost_sends"]
    return [
        row(
            "P11.takeover_s",
            "s from kill -9 until all of it flows",
            [max(killed["flows_again_s"], killed["sends_flow_again_s"])],
            goal=Goal("value", "at most", TAKEOVER_S_MAX),
            settings=how,
            seen=killed,
        ),
        row(
            "P11.rolling.bot_p99_ms",
            "ms from due to the bot's 200",
            [rolling["bot_p99_ms"]],
            goal=Goal("value", "at most", ROLLING_P99_MS_MAX),
            settings=how,
            seen=rolling,
        ),
        row("P11.rolling.lost", "webhooks and sends", [lost], goal=Goal("value", "at most", 0), settings=how),
    ]


def roll(rig: Deployed, rate: float, warm_s: float, rolled: int) -> Facts:
    """SIGTERM and a new start, one worker after the other."""
    rig.outside.ask(rate=rate)
    time.sleep(warm_s)
    since = time.perf_counter()
    for n in range(rolled):
        rig.deployment.processes[f"worker-{n}"].terminate()
        rig.start(**{f"worker-{n}": "worker"})
    restarts_s = time.perf_counter() - since
    time.sleep(1.0)
    return {**rig.report(since, time.perf_counter(), DRAIN_S), "restarts_s": restarts_s}


def kill(rig: Deployed, rate: float, warm_s: float, after_s: float) -> Facts:
    """Kill -9 one of the workers. Raises `RuntimeError` when a webhook is lost."""
    rig.outside.ask(rate=rate)
    time.sleep(warm_s)
    at = time.perf_counter()
    rig.deployment.processes["worker-1"].kill()
    time.sleep(after_s)
    seen = rig.report(at, time.perf_counter(), min(DRAIN_S, 2 * after_s), killed_at=at)
    if seen["lost_webhooks"]:
        raise RuntimeError(f"{seen['lost_webhooks']} webhooks did not reach the bot after a worker was killed")
    return seen
