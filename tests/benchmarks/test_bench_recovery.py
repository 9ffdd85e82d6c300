"""The benchmark of recovery, tiny: workers of a deployment are started anew and killed on a real Kafka."""

from __future__ import annotations

import pytest

from benchmarks import bench_recovery
from tests.kafka.fixtures import KafkaForTests


@pytest.mark.kafka
@pytest.mark.timeout(180)
def test_a_takeover_and_a_rolling_restart_are_measured(kafka: KafkaForTests) -> None:
    """All of the killed one's webhooks reach the bot, or `measure` raises; what a restart loses is a figure."""
    takeover, latency, lost = bench_recovery.measure(
        lambda _: None, rate=50.0, warm_s=2.0, after_s=10.0, rolled=1, bubble_s=0.2, bootstrap=kafka.bootstrap
    )
    assert (takeover.id, latency.id, lost.id) == ("P11.takeover_s", "P11.rolling.bot_p99_ms", "P11.rolling.lost")
    assert takeover.value > 0, "a third of the partitions had no owner for some seconds"
    assert latency.value > 0
    assert lost.value == 0
