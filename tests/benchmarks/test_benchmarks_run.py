"""Every benchmark, tiny: a figure nobody can measure again is worth nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from benchmarks import bench_tier, rows
from benchmarks.rows import Goal, Row

LIMIT_S = 60
"""Of a test: mostly processes that start. Alone on a machine each takes 2 to 6 s."""


def ids(made: list[Row]) -> list[str]:
    return [row.id for row in made]


def silent(_: str) -> None:
    """Progress nobody reads."""


@pytest.mark.timeout(LIMIT_S)
def test_the_tier_is_measured() -> None:
    """Two seconds at 20 mps, with customers writing; the platform refuses nothing but for the tier."""
    used, refused = bench_tier.measure(silent, tiers={20: 2.0}, inbound_shares=(0.2,), runs=1, skip_s=1.0, margin_s=0.5)
    assert (used.id, refused.id) == ("P5.20.inbound_20%.used", "P5.20.inbound_20%.refused_share")
    assert 0.2 < used.value <= 1
    assert used.seen["inbound"] > 0
    assert refused.value >= 0


def test_results_are_written_for_machines_and_for_people(tmp_path: Path) -> None:
    """Each row says what it was measured against, how often, where and at which commit."""
    made = rows.row("receiver.x.c1.cpu_us", "µs", [3.0, 1.0, 2.0], rival=("receiver.bare", [1.0, 1.0, 0.5]))
    made.commit, made.machine = rows.commit(), rows.machine()
    rows.write([made], tmp_path)
    (found,) = json.loads((tmp_path / "latest.json").read_text())
    assert (found["value"], found["against_value"], found["ratio"]) == (2.0, 1.0, 3.0)
    assert found["runs"] == [3.0, 1.0, 2.0]
    assert "Python" in found["machine"]
    assert "| receiver.x.c1.cpu_us | 2.00 | µs | 1.00 (receiver.bare) | 3.00 |" in (tmp_path / "latest.md").read_text()


@pytest.mark.parametrize(
    ("of", "kind", "bound", "reached"),
    [
        ("ratio", "at least", 0.5, True),
        ("ratio", "at least", 0.51, False),
        ("value", "at most", 2.0, True),
        ("value", "at most", 1.9, False),
    ],
)
def test_a_figure_says_whether_it_reaches_its_goal(
    of: Literal["value", "ratio"], kind: Literal["at least", "at most"], bound: float, reached: bool
) -> None:
    """A cost beside a rival's cost is a share of its speed: half, where ours is two and theirs one."""
    made = rows.row(
        "P0.x", "µs", [2.0], rival=("bare", [1.0]), ratio_is="theirs / ours", goal=Goal(of, kind, bound), note="why"
    )
    assert (made.ratio, made.reached, made.goal) == (0.5, reached, f"{of} {kind} {bound:g}")
    page = rows.readable([made])
    assert ("1 of 1 goals reached." in page) is reached
    assert ("Missed: P0.x." in page) is not reached
    assert "- P0.x: why" in page
