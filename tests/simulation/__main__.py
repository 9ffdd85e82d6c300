"""`python -m tests.simulation --seeds N [--first S]`: many seeds; `--seed S --trace`: one, with its story."""

from __future__ import annotations

import argparse
import sys

from tests.simulation.batch import batch, check, run


def main() -> int:
    """Run what was asked for; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--trace", action="store_true", help="with --seed: print the newest lines of its trace")
    asked = parser.parse_args()
    if asked.seed is not None:
        ran = run(asked.seed)
        print(f"seed {ran.seed}: {ran.virtual_s:.0f} virtual s in {ran.cpu_s:.1f} s, digest {ran.digest}")
        print("\n".join(ran.wrong) or "kept every promise")
        if asked.trace:
            print(ran.story)
        return int(bool(ran.wrong))
    runs = []
    for ran in batch(range(asked.first, asked.first + asked.seeds), asked.jobs):
        runs.append(ran)
        if ran.wrong:
            print(f"seed {ran.seed} FAILED: " + "\n    ".join(ran.wrong[:6]), flush=True)
        elif len(runs) % 10 == 0:
            print(f"{len(runs)} of {asked.seeds} seeds, the last {ran.seed}", flush=True)
    failed = [ran.seed for ran in runs if ran.wrong]
    never = check(runs).never_struck()
    virtual_s, cpu_s = sum(ran.virtual_s for ran in runs), sum(ran.cpu_s for ran in runs)
    print(f"{len(runs)} seeds, {virtual_s:.0f} virtual s, {cpu_s:.0f} CPU s")
    print(f"failed: {failed or 'none'}; planned and never struck: {never or 'none'}")
    return int(bool(failed or never))


if __name__ == "__main__":
    sys.exit(main())
