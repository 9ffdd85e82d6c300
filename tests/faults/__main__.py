"""`python -m tests.faults`: play every row with its full numbers, write what became of them, end with 1 if one failed.

`--only <row>` (again for more) leaves the others in the files as they were; `--short` plays as the suite does.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

from benchmarks.rows import RESULTS, commit, machine
from tests.faults.report import WHY_CHARS_MAX, Played, read, write
from tests.faults.row import Rig, Row
from tests.faults.rows import ROWS
from tests.kafka.cluster import LocalKafka
from tests.kafka.fixtures import answering


def main() -> int:
    """Play, write, tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", action="append", choices=[row.name for row in ROWS], help="play this row alone")
    parser.add_argument("--short", action="store_true", help="as the suite plays it")
    parser.add_argument("--seed", type=int, default=1, help="of what is left to chance (1)")
    parser.add_argument("--into", type=Path, default=RESULTS, help="where the results are written")
    given = parser.parse_args()
    played = {row.row: row for row in read(given.into)}
    measured_as, measured_on = commit(), machine()
    failed = False
    with ExitStack() as stack:
        kafka: LocalKafka | None = None
        for row in ROWS:
            if given.only and row.name not in given.only:
                continue
            if row.on_kafka and kafka is None:
                kafka = LocalKafka()
                stack.callback(kafka.stop)
                answering(kafka.bootstrap)
            elif kafka is not None:
                kafka.heal()
            one = play(row, is_full=not given.short, seed=given.seed, kafka=kafka)
            one.commit, one.machine = measured_as, measured_on
            played[row.name] = one
            failed |= one.result == "failed"
            print(f"{row.name}: {one.result} in {one.seconds:.0f} s {one.figures} {one.why}", flush=True)
            write([played[row.name] for row in ROWS if row.name in played], given.into)
    return int(failed)


def play(row: Row, *, is_full: bool, seed: int, kafka: LocalKafka | None) -> Played:
    """Play one row within its limit."""
    result = Played(
        row=row.name,
        fault=row.fault,
        invariants=row.invariants,
        passes=row.passes,
        result="passed",
        scale="full" if is_full else "short",
        seconds=0.0,
        commit="",
        machine="",
    )
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="depesche-faults-") as folder:
        rig = Rig(Path(folder), is_full, random.Random(seed), kafka, f"faults-{uuid.uuid4().hex[:8]}.")
        limit_s = row.limit_full_s if is_full else row.limit_s
        try:
            result.figures = dict(asyncio.run(asyncio.wait_for(row.play(rig), limit_s)))
        except TimeoutError:
            result.result, result.why = "failed", f"not over within {limit_s:.0f} s"
        except AssertionError as broken:
            result.result, result.why = "failed", str(broken)[:WHY_CHARS_MAX]
    result.seconds = time.monotonic() - began
    return result


if __name__ == "__main__":
    raise SystemExit(main())
