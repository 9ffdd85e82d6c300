"""P3: what the customer stage costs for each record, on Kafka, its steps committed, beside a loop written by hand.

Conversations of a brand (`conversations.py`) stand on the log when the stage joins. What it wrote is counted
afterwards; the loop then reads the same records and writes as many of like size, one transaction for each batch, and
neither decodes nor decides.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.child import Child, Cores, Facts
from benchmarks.conversations import TURN_DERIVED, TURN_RECORDS
from benchmarks.kafka import HOW, kafka_on, prefix
from benchmarks.rows import Goal, Progress, Row, medians, row

SHARE = 0.60
"""Of the loop's speed. It decodes nothing, keeps no customer, and is not fenced by partition."""


def measure(
    progress: Progress,
    *,
    runs: int = 3,
    customers: int = 8_000,
    turns: int = 2,
    partitions: int = 8,
    bootstrap: str = "",
) -> list[Row]:
    """Return records a second and CPU for each. `bootstrap`: a Kafka that is there already; else one is started."""
    cores = Cores.of_this_machine()
    ours: list[Facts] = []
    theirs: list[Facts] = []
    with kafka_on(cores.rest, bootstrap) as at:
        for number in range(runs):
            one, other = one_run(cores, at, customers=customers, turns=turns, partitions=partitions, rival=True)
            ours.append(one)
            theirs.append(other)
            progress(
                f"customer run {number + 1}: {one['rate']:,.0f}/s, {one['cpu_us']:.1f} µs each; "
                f"loop {other['rate']:,.0f}/s, {other['cpu_us']:.1f} µs"
            )
    how: Facts = {
        "runs": runs,
        "records": TURN_RECORDS * customers * turns,
        "customers": customers,
        "partitions": partitions,
        "mix": "of customers that are known: for each turn a text, a send, its outcome, three statuses",
        "stage_cores": list(cores.measured),
        "kafka_cores": list(cores.rest),
        "kafka": HOW,
        "loop": "aiokafka: getmany(1,000), send, one transaction for each batch; writes as many records, decodes none",
    }
    seen = medians(ours, "records_a_step", "busy", "states")
    made = []
    for name, unit in (("rate", "records/s"), ("cpu_us", "µs CPU each")):
        made.append(
            row(
                f"P3.{name}",
                unit,
                [run[name] for run in ours],
                rival=("transactional loop", [run[name] for run in theirs]),
                ratio_is="ours / theirs" if name == "rate" else "theirs / ours",
                goal=Goal("ratio", "at least", SHARE),
                settings=how,
                seen=seen | {f"loop_{name}": value for name, value in medians(theirs, "busy").items()},
            )
        )
    return made


def one_run(
    cores: Cores,
    bootstrap: str,
    *,
    customers: int,
    turns: int,
    partitions: int,
    numbers: int = 1,
    sinks: int = 1,
    known: int = 0,
    rival: bool = False,
) -> tuple[Facts, Facts]:
    """Fill a log, let the stage work it off, check what it wrote; then the loop, when it is asked for.

    `known`: how many customers the brand has; those that write are some of them. Raises `RuntimeError` when something
    is missing or there is too much of it.
    """
    known = max(known, customers)
    spec = {
        "bootstrap": bootstrap,
        "prefix": prefix(),
        "partitions": partitions,
        "numbers": numbers,
        "sinks": sinks,
    }
    turns_in_all = customers * turns
    with ExitStack() as stack:
        feed = stack.enter_context(Child("customer_stages", cores.rest, kind="feed", **spec))
        feed.ask(known=known)
        records = feed.ask(customers=customers, turns=turns, every=known // customers)["records"]
        with Child("customer_stages", cores.measured, kind="stage", **spec) as stage:
            seen = stage.ask(records=records)
        wrote = feed.ask(written=known)
        derived = wrote["sends"] + wrote["events"]
        if not seen["records"] == records == turns_in_all * TURN_RECORDS:
            raise RuntimeError(f"{records} records were written and {seen['records']} committed")
        if wrote["sends"] != turns_in_all or derived != turns_in_all * TURN_DERIVED:
            raise RuntimeError(f"{turns_in_all} turns: {wrote['sends']} sends and {wrote['events']} events came of it")
        if not rival:
            return {**seen, **wrote}, {}
        loop = stack.enter_context(Child("customer_stages", cores.measured, kind="loop", **spec))
        other = loop.ask(
            records=records,
            derived=derived,
            states=wrote["states"],
            state_bytes=wrote["states_bytes_each"],
        )
        if other["records"] != records or other["sent"] < (derived + wrote["states"]) * 0.99:
            raise RuntimeError(f"the loop wrote {other['sent']} records, we {derived + wrote['states']}")
        return {**seen, **wrote}, other
