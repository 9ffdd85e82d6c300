"""`python -m benchmarks`: every figure in one run, written to `results/latest.json` and `results/latest.md`.

`--only <part>` (again for more) leaves the others' rows in the files as they were.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from benchmarks import (
    bench_customer,
    bench_growth,
    bench_memory,
    bench_path,
    bench_receiver,
    bench_recovery,
    bench_restore,
    bench_sender,
    bench_tier,
    bench_whole,
)
from benchmarks.rows import RESULTS, Progress, Row, commit, machine, write

BENCHMARKS: dict[str, Callable[[Progress, int], list[Row]]] = {
    "receiver": lambda progress, runs: bench_receiver.measure(progress, runs=runs),
    "path": lambda progress, runs: bench_path.measure(progress, runs=runs),
    "customer": lambda progress, runs: bench_customer.measure(progress, runs=runs),
    "sender": lambda progress, runs: bench_sender.measure(progress, runs=runs),
    "restore": lambda progress, runs: bench_restore.measure(progress, runs=runs),
    "memory": lambda progress, runs: bench_memory.measure(progress, runs=runs),
    "growth": lambda progress, runs: bench_growth.measure(progress, runs=runs),
    "tier": lambda progress, runs: bench_tier.measure(progress, runs=runs),
    "whole": lambda progress, runs: bench_whole.measure(progress),
    "recovery": lambda progress, runs: bench_recovery.measure(progress),
}
"""By their part, in the order in which they run."""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS), help="measure this alone")
    parser.add_argument("--runs", type=int, default=3, help="runs of each figure (3)")
    parser.add_argument("--into", type=Path, default=RESULTS, help="where the results are written")
    given = parser.parse_args()
    names = given.only or list(BENCHMARKS)
    rows = kept(given.into / "latest.json", names)
    measured_as, measured_on, before = commit(), machine(), os.getloadavg()
    for name in names:
        for row in BENCHMARKS[name](lambda line: print(line, flush=True), max(1, given.runs)):
            row.part, row.commit, row.machine = name, measured_as, measured_on
            row.settings["load_average"] = [round(load, 1) for load in before]
            rows.append(row)
    order = list(BENCHMARKS)
    rows.sort(key=lambda row: order.index(row.part))
    write(rows, given.into)
    print(f"written: {given.into / 'latest.md'}")


def kept(path: Path, measured: Sequence[str]) -> list[Row]:
    """The rows of an earlier run that are not measured now."""
    if not path.exists():
        return []
    rows = msgspec.convert(json.loads(path.read_text()), list[Row])
    return [row for row in rows if row.part not in measured]


if __name__ == "__main__":
    main()
