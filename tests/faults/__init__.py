"""Real faults: each row of the matrix is something done to real processes, and what must hold all the same.

`make faults` plays every row with its full numbers and writes `benchmarks/results/faults.json` and `faults.md`; the
suite plays a short form of each.
"""
