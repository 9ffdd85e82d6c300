"""P7: the whole path on this machine in rising load, Kafka and all that is outside included; where its knee is.

Receiver, gateway and the three stages are processes of their own, so that each one's CPU is known.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.child import Facts
from benchmarks.deployed import THROUGHPUT_MPS, Deployed, deployed
from benchmarks.outside import BUBBLE_S
from benchmarks.rows import Goal, Progress, Row, row

RATES = (100.0, 200.0, 400.0, 800.0, 1_200.0, 1_650.0, 2_200.0)
"""Webhooks a second. Meta sizes receivers of a 1,000 mps number for 3,300: three statuses for each message out, and
30 % of those in. Two steps beyond the knee are measured, no more."""

PARTITIONS = 8
FULL_PER_S = 3_300.0
FULL_SENDS_PER_S = 1_000.0
P50_MS_MAX = 250.0
P99_MS_MAX = 1_000.0
"""Meta asks for both of a webhook's own answer; here they are asked of the bot's."""

BEHIND_S_MAX = 1.0
"""A backlog of more than a second's webhooks when a step ends: it does not keep up, whatever the latency was so far."""

DRAIN_S = 90.0
ROLES = {
    "receiver": "receiver",
    "gateway": "gateway",
    "customer": "worker --stages customer",
    "delivery": "worker --stages delivery",
    "sender": "worker --stages sender",
}


def measure(
    progress: Progress,
    *,
    rates: Sequence[float] = RATES,
    seconds: float = 60.0,
    warm_s: float = 10.0,
    partitions: int = PARTITIONS,
    bubble_s: float = BUBBLE_S,
    bootstrap: str = "",
) -> list[Row]:
    """Return latencies at each step, the knee, and what a webhook and a send cost there. One run: a step is a minute,
    and load that rises is itself a repetition."""
    with deployed(bootstrap, partitions, bubble_s) as rig:
        rig.start(receiver=ROLES["receiver"])  # makes the topics
        rig.start(**{name: line for name, line in ROLES.items() if name != "receiver"})
        rig.connect()
        rig.step(rates[0], warm_s, 0.5, DRAIN_S)  # a cold JVM and cold code are not asked
        steps = list(climb(progress, rig, rates, seconds, warm_s))
    how: Facts = {
        "seconds": seconds,
        "partitions": partitions,
        "processes": "receiver, gateway, a worker for each stage, Kafka, and one for Meta, Graph (350 ms) and bot",
        "graph": "a bare stand-in: the sandbox and its referee would use these cores, too",
        "proportion": "of 11 webhooks 1 text and 10 statuses of 3 1/3 answers",
        "number": f"one of {THROUGHPUT_MPS} mps",
        "kafka": "one broker, one copy, acks=all, the first compiler of its JVM only",
    }
    made = [
        row(
            f"P7.at_{rate:.0f}.bot_p99_ms",
            "ms from due to the bot's 200",
            [seen["bot_p99_ms"]],
            settings=how,
            seen=seen,
        )
        for rate, seen in steps
    ]
    knee = [seen for _, seen in steps if seen["keeps_up"]]
    best = max((seen["webhook_per_s"] for seen in knee), default=0.0)
    goal = Goal("value", "at least", FULL_PER_S / 2)
    made.append(row("P7.knee_per_s", "webhooks/s", [best], goal=goal, settings=how))
    at = knee[-1] if knee else steps[0][1]
    made += [
        row(f"P7.cpu_us.{name}", "µs CPU for each webhook", [at[f"cpu_us.{name}"]], settings=how)
        for name in (*ROLES, "kafka", "outside")
        if f"cpu_us.{name}" in at
    ]
    made.append(row("P7.cores_for_3300", "cores, without Kafka", [cores_needed(at)], settings=how, seen=at))
    return made


def climb(
    progress: Progress, rig: Deployed, rates: Sequence[float], seconds: float, warm_s: float
) -> list[tuple[float, Facts]]:
    """Rise step by step, two beyond the knee. Raises `RuntimeError` when something is lost."""
    steps: list[tuple[float, Facts]] = []
    for rate in rates:
        seen, cpu = rig.step(rate, seconds, warm_s, DRAIN_S)
        behind = seen["backlog_webhooks"] / rate
        webhooks, sends = max(1e-9, seen["webhook_per_s"] * seconds), max(1e-9, seen["sends_per_s"] * seconds)
        seen["keeps_up"] = (
            seen["bot_p50_ms"] <= P50_MS_MAX
            and seen["bot_p99_ms"] < P99_MS_MAX
            and behind <= BEHIND_S_MAX
            and seen["webhook_per_s"] >= 0.9 * rate
            and not seen["refused"]
        )
        seen |= {f"cpu_us.{name}": spent * 1e6 / webhooks for name, spent in cpu.items()}
        seen |= {f"cpu_us_per_send.{name}": cpu[name] * 1e6 / sends for name in ("gateway", "sender")}
        steps.append((rate, seen))
        progress(
            f"whole {rate:.0f}/s: {seen['webhook_per_s']:.0f} webhooks/s, {seen['sends_per_s']:.0f} sends/s, "
            f"200 p99 {seen['webhook_p99_ms']:.0f} ms, bot p50 {seen['bot_p50_ms']:.0f} p99 {seen['bot_p99_ms']:.0f}, "
            f"answer p99 {seen['graph_p99_ms']:.0f}, backlog {seen['backlog_webhooks']} + {seen['backlog_sends']}; "
            + ", ".join(f"{name} {spent / seconds:.2f}" for name, spent in cpu.items())
        )
        over = [kept["keeps_up"] for _, kept in steps[-2:]]
        if seen["refused"] and rate == rates[0]:
            raise RuntimeError(f"{rate:.0f}/s: {seen['refused']} webhooks or requests were not answered 200")
        if seen["lost_webhooks"] or seen["lost_sends"]:
            if seen["keeps_up"]:
                raise RuntimeError(f"{rate:.0f}/s: lost {seen['lost_webhooks']} webhooks, {seen['lost_sends']} sends")
            break  # so far behind that a minute and a half did not catch up: the next step would begin with its rest
        if over == [False, False]:
            break
    return steps


def cores_needed(at: Facts) -> float:
    """What a number of 1,000 mps needs at the cost of a step: receiver, customer and delivery stages for each webhook,
    gateway and sender for each send."""
    of_webhooks = sum(at[f"cpu_us.{name}"] for name in ("receiver", "customer", "delivery"))
    of_sends = sum(at[f"cpu_us_per_send.{name}"] for name in ("gateway", "sender"))
    return float(of_webhooks * FULL_PER_S + of_sends * FULL_SENDS_PER_S) / 1e6
