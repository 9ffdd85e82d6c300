"""P10: how cost grows. CPU for each record or send at more of everything, beside the same at one.

Linear growth is a constant cost for each: a ratio of 1. Partitions and numbers share the same work among more of them;
customers are known and quiet, and as many as ever write; of several sinks each has its number, its route and its log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from benchmarks.bench_customer import one_run as customer_run
from benchmarks.bench_sender import one_run as sender_run
from benchmarks.child import Child, Cores, Facts
from benchmarks.kafka import HOW, kafka_on
from benchmarks.rows import Goal, Progress, Row, medians, row

DEARER_MAX = 1.15
SIZES = {"partitions": (1, 2, 4, 8), "numbers": (1, 2, 4, 8), "customers_x": (1, 10, 100), "sinks": (1, 10, 100)}


def measure(
    progress: Progress,
    *,
    runs: int = 3,
    customers: int = 5_000,
    turns: int = 2,
    partitions: int = 8,
    count: int = 10_000,
    sizes_of: Mapping[str, Sequence[int]] = SIZES,
    bootstrap: str = "",
) -> list[Row]:
    """Return CPU for each unit of work at each size of what is named, beside the least of its sizes."""
    cores = Cores.of_this_machine()
    found: dict[str, dict[int, list[Facts]]] = {}
    with kafka_on(cores.rest, bootstrap) as at, Child("graph_servers", cores.rest, kind="bare") as graph:

        def note(what: str, size: int, seen: Facts) -> None:
            found.setdefault(what, {}).setdefault(size, []).append(seen)
            progress(f"growth {what} {size}: {seen['cpu_us']:.1f} µs each, {seen['rate']:,.0f}/s")

        worked = partial(customer_run, cores, at, customers=customers, turns=turns)
        sent = partial(sender_run, cores, graph, at, "embedded", count=count, in_flight=500)
        ways: dict[str, Callable[[int], Facts]] = {
            "partitions": lambda n: worked(partitions=n)[0],
            "numbers": lambda n: sent(numbers=n),
            "customers_x": lambda n: worked(partitions=partitions, known=customers * n)[0],
            "sinks": lambda n: worked(partitions=partitions, sinks=n)[0],
        }
        for _ in range(runs):
            for what, sizes in sizes_of.items():
                for n in sizes:
                    note(what, n, ways[what](n))
    how: Facts = {
        "runs": runs,
        "records": "conversations as P3",
        "customers": customers,
        "turns": turns,
        "partitions": partitions,
        "sends": count,
        "kafka": HOW,
        "measured_cores": list(cores.measured),
    }
    made = []
    for what, by_size in found.items():
        least = min(by_size)
        base = [run["cpu_us"] for run in by_size[least]]
        for size, seen in by_size.items():
            if size != least:
                made.append(
                    row(
                        f"P10.{what}{'' if what.endswith('_x') else '_'}{size}",
                        f"µs CPU for each {'send' if what == 'numbers' else 'record'}",
                        [run["cpu_us"] for run in seen],
                        rival=(f"{what} {least}", base),
                        goal=Goal("ratio", "at most", DEARER_MAX),
                        settings=how,
                        seen=medians(seen, "rate", "busy"),
                    )
                )
    return made
