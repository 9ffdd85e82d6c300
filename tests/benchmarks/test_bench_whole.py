"""The benchmark of the whole path, tiny: a deployment's own processes on a real Kafka, Meta and a bot outside."""

from __future__ import annotations

import pytest

from benchmarks import bench_whole
from tests.kafka.fixtures import KafkaForTests


@pytest.mark.kafka
@pytest.mark.timeout(120)
def test_the_whole_path_is_measured_step_by_step(kafka: KafkaForTests) -> None:
    """Every webhook reached the bot and every answer Graph, or `measure` raises."""
    said: list[str] = []
    made = bench_whole.measure(
        said.append, rates=(33.0,), seconds=3.0, warm_s=3.0, bubble_s=0.2, bootstrap=kafka.bootstrap
    )
    by_id = {row.id: row for row in made}
    step = by_id["P7.at_33.bot_p99_ms"]
    assert step.value > 0
    assert step.seen["webhook_per_s"] > 3, "statuses of the answers come beside the texts"
    assert step.seen["graph_p99_ms"] > 0
    assert step.seen["lost_webhooks"] == step.seen["lost_sends"] == 0
    assert by_id["P7.knee_per_s"].reached is False
    assert {f"P7.cpu_us.{name}" for name in bench_whole.ROLES} <= set(by_id)
    assert len(said) == 1
