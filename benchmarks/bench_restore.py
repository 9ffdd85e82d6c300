"""P8: how long a new owner of partitions takes until it knows their customers, beside reading the same records.

The states of a million quiet customers stand on `state`. The stage joins, fences, reads, opens each of them and keeps
it; the rival fetches the records and looks at none.
"""

from __future__ import annotations

from benchmarks.child import Child, Cores, Facts
from benchmarks.kafka import HOW, kafka_on, prefix
from benchmarks.rows import Goal, Progress, Row, medians, row

SHARE = 0.60
RATE_MIN = 150_000.0


def measure(
    progress: Progress, *, runs: int = 3, customers: int = 1_000_000, partitions: int = 8, bootstrap: str = ""
) -> list[Row]:
    """Return customers restored a second. `bootstrap`: a Kafka that is there already; else one is started."""
    cores = Cores.of_this_machine()
    found: dict[str, list[Facts]] = {"restore": [], "read": []}
    with kafka_on(cores.rest, bootstrap) as at:
        spec = {"bootstrap": at, "prefix": prefix(), "partitions": partitions, "numbers": 1, "sinks": 1}
        with Child("customer_stages", cores.rest, kind="feed", **spec) as feed:
            written = feed.ask(known=customers)
        for number in range(runs):
            for kind, seen in found.items():
                with Child("customer_stages", cores.measured, kind=kind, **spec) as reader:
                    seen.append(reader.ask(known=customers))
                if seen[-1]["customers"] != customers:
                    raise RuntimeError(f"{kind}: {customers} customers were written, {seen[-1]['customers']} came back")
                progress(f"{kind:7} run {number + 1}: {seen[-1]['rate']:,.0f}/s, {seen[-1]['cpu_us']:.1f} µs each")
    how: Facts = {
        "runs": runs,
        "customers": customers,
        "state_bytes": round(written["bytes"] / customers),
        "partitions": partitions,
        "reader_cores": list(cores.measured),
        "kafka_cores": list(cores.rest),
        "kafka": HOW,
        "from": "asked to join (the rival: to start) until the last customer is in memory (the last record fetched)",
    }
    rates = [run["rate"] for run in found["restore"]]
    rival = ("aiokafka, undecoded", [run["rate"] for run in found["read"]])
    seen_beside = medians(found["restore"], "cpu_us", "rss") | {
        "read_cpu_us": medians(found["read"], "cpu_us")["cpu_us"]
    }
    return [
        row(
            "P8.restore",
            "customers/s",
            rates,
            rival=rival,
            goal=Goal("ratio", "at least", SHARE),
            settings=how,
            seen=seen_beside,
        ),
        row("P8.restore_rate", "customers/s", rates, goal=Goal("value", "at least", RATE_MIN), settings=how),
    ]
