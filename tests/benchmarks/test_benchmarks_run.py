"""Every benchmark, tiny: a figure nobody can measure again is worth nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from benchmarks import bench_receiver, bench_sender, bench_tier, rows
from benchmarks.load import SECRET, webhook
from benchmarks.rows import Goal, Row
from broker.core.signature import Signer, sign
from broker.core.webhook import split
from tests.kafka.fixtures import KafkaForTests

LIMIT_S = 60
"""Of a test: mostly processes that start. Alone on a machine each takes 2 to 6 s."""


def ids(made: list[Row]) -> list[str]:
    return [row.id for row in made]


def silent(_: str) -> None:
    """Progress nobody reads."""


@pytest.mark.timeout(LIMIT_S)
def test_the_receiver_is_measured_beside_a_bare_handler() -> None:
    """Signed webhooks, all answered 200, all on the log: or `measure` raises."""
    made = bench_receiver.measure(
        silent, runs=1, seconds=0.4, warm_s=0.1, connections=(4,), engines=("embedded", "bare"), steady_mps=100
    )
    assert ids(made) == [
        "receiver.embedded.c4.cpu_us",
        "receiver.embedded.at_100_mps.p99_ms",
        "receiver.bare.c4.cpu_us",
        "receiver.bare.at_100_mps.p99_ms",
    ]
    assert all(row.value > 0 for row in made)
    assert made[0].ratio is not None
    assert made[0].ratio > 1, "a handler that keeps nothing cannot cost more than one that does"
    assert 80 < made[1].seen["rate"] < 120


@pytest.mark.kafka
@pytest.mark.timeout(LIMIT_S)
def test_the_receiver_is_measured_on_kafka(kafka: KafkaForTests) -> None:
    """The same on a real broker."""
    (cost, latency) = bench_receiver.measure(
        silent,
        runs=1,
        seconds=0.4,
        warm_s=0.1,
        connections=(4,),
        engines=("kafka",),
        steady_mps=50,
        bootstrap=kafka.bootstrap,
    )
    assert cost.id == "receiver.kafka.c4.cpu_us"
    assert cost.value > 0
    assert latency.value > 0


@pytest.mark.timeout(LIMIT_S)
def test_the_sender_is_measured_beside_a_bare_loop() -> None:
    """As many calls as sends, and as many accepted outcomes on the log: or `measure` raises."""
    made = bench_sender.measure(silent, runs=1, count=200, in_flight=32)
    assert ids(made) == ["sender.stage.rate", "sender.loop.rate", "sender.stage.cpu_us", "sender.loop.cpu_us"]
    assert all(row.value > 0 for row in made)
    assert made[0].ratio is not None


@pytest.mark.timeout(LIMIT_S)
def test_the_tier_is_measured() -> None:
    """Two seconds at 20 mps, with customers writing; the platform refuses nothing but for the tier."""
    used, refused = bench_tier.measure(
        silent, tiers=(20,), seconds=2.0, inbound_shares=(0.2,), skip_s=1.0, margin_s=0.5
    )
    assert used.id == "tier.20.inbound_20%.used"
    assert 0.2 < used.value <= 1
    assert used.seen["inbound"] > 0
    assert refused.value >= 0


def test_the_load_writes_webhooks_as_meta_does() -> None:
    """Each is another message with a signature of its own; a load that repeats itself would measure the dedupe."""
    one, other = webhook(1, 1_789_300_000), webhook(2, 1_789_300_000)
    assert 500 < len(one) < 700
    parts = [split(body, "bench", 0, {}) for body in (one, other)]
    assert [len(part.conversations) for part in parts] == [1, 1]
    assert not parts[0].malformed
    assert parts[0].conversations[0].item.wamid != parts[1].conversations[0].item.wamid
    assert Signer(SECRET.encode()).sign(one) == sign(one, SECRET.encode())


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
