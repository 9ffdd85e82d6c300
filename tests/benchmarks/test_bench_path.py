"""The benchmark of the way from webhook to bot, tiny: the real roles on a real Kafka and on the embedded log."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import bench_path
from benchmarks.bench_path import latencies
from tests.kafka.fixtures import KafkaForTests

LIMIT_S = 90
"""Mostly processes that start. Alone on a machine it takes 10 s."""


@pytest.mark.kafka
@pytest.mark.timeout(LIMIT_S)
def test_the_way_to_the_bot_is_measured_beside_a_hand_written_one(kafka: KafkaForTests) -> None:
    """Every webhook reached the bot by its own way, or `measure` raises."""
    said: list[str] = []
    made = bench_path.measure(said.append, runs=1, seconds=0.5, warm_s=0.5, rate=40, bootstrap=kafka.bootstrap)
    by_id = {row.id: row for row in made}
    for name in ("kafka", "embedded", "loop"):
        assert 0 < by_id[f"P6.{name}.p50_ms"].value <= by_id[f"P6.{name}.p99_ms"].value
    for goal in ("P6.kafka.p50_ms", "P6.embedded.p99_ms", "P6.kafka.p99_bound_ms", "P12.cpu_us"):
        assert by_id[goal].reached is not None
    assert set(by_id["P12.cpu_us"].seen) == {"cpu_us_of_receiver", "cpu_us_of_worker"}
    assert len(said) == len(bench_path.WAYS)


def test_a_time_counts_from_when_the_webhook_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from when a load that was held up sent it; and what comes twice counts once, by its first arrival."""

    class Bot:
        def ask(self, **_: Any) -> Any:
            at = (10.001, 10.102, 10.203, 10.304)
            return {"arrivals": [(100 + n, at[n]) for n in range(4)] + [(100, 10.9)]}

    sent = {"sent": 4, "began": 10.0, "from_s": 10.05, "until_s": 10.35, "p50_ms": 1.0, "p99_ms": 2.0}
    bot: Any = Bot()
    found = latencies("kafka", sent, 100, 10.0, bot)
    assert (round(found["p50_ms"]), round(found["max_ms"]), found["delivered_again"]) == (3, 4, 1)
    monkeypatch.setattr(bench_path, "ARRIVE_S_MAX", 0.05)
    with pytest.raises(RuntimeError, match="1 of 5 webhooks did not reach the bot"):
        latencies("kafka", {**sent, "sent": 5}, 100, 10.0, bot)
