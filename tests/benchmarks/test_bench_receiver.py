"""The benchmark of what a webhook costs, tiny: every engine, the bare handler and the peer are really run."""

from __future__ import annotations

import shutil

import pytest

from benchmarks import bench_receiver
from benchmarks.load import SECRET, webhook
from broker.core.signature import Signer, sign
from broker.core.webhook import split
from tests.kafka.fixtures import KafkaForTests

LIMIT_S = 60
"""Mostly processes that start. Alone on a machine it takes 6 s."""


@pytest.mark.kafka
@pytest.mark.timeout(LIMIT_S)
def test_the_receiver_is_measured_beside_a_bare_handler_and_the_peer(kafka: KafkaForTests) -> None:
    """Signed webhooks, all answered 200, all on the log: or `measure` raises."""
    assert shutil.which("wrk"), "wrk is missing: `.ci/prepare test` installs it"
    said: list[str] = []
    made = bench_receiver.measure(
        said.append,
        runs=1,
        seconds=0.3,
        connections=(4,),
        steady_mps=50,
        warm_count=20,
        bootstrap=kafka.bootstrap,
    )
    by_id = {row.id: row for row in made}
    assert list(by_id) == [
        *(f"{name}.{what}" for name in bench_receiver.IDS.values() for what in ("c4", "at_50_mps.p99_ms")),
        "P2.c4",
    ]
    assert all(row.value > 0 for row in made)
    for durable in ("P1.c4", "P1e.c4"):
        ratio = by_id[durable].ratio
        assert ratio is not None
        assert ratio < 1, "a handler that keeps nothing cannot cost more than one that does"
    assert 35 < by_id["P1.at_50_mps.p99_ms"].seen["rate"] < 65
    assert len(said) == 8


def test_a_webhook_that_is_not_answered_or_not_there_spoils_the_figure() -> None:
    """Speed without durability is worth nothing."""
    bench_receiver.check("kafka", {"sent": 3, "ok": 3}, sent=9, durable=9)
    with pytest.raises(RuntimeError, match="1 of 3 webhooks were not answered 200"):
        bench_receiver.check("kafka", {"sent": 3, "ok": 2}, sent=9, durable=9)
    with pytest.raises(RuntimeError, match="9 webhooks were answered 200, 8 are there"):
        bench_receiver.check("kafka", {"sent": 3, "ok": 3}, sent=9, durable=8)


def test_the_load_writes_webhooks_as_meta_does() -> None:
    """Each is another message with a signature of its own; a load that repeats itself would measure the dedupe."""
    one, other = webhook(1, 1_789_300_000), webhook(2, 1_789_300_000)
    assert len(one) == len(other)
    assert 490 < len(one) < 515
    parts = [split(body, "bench", 0, {}) for body in (one, other)]
    assert [len(part.conversations) for part in parts] == [1, 1]
    assert not parts[0].malformed
    assert parts[0].conversations[0].item.wamid != parts[1].conversations[0].item.wamid
    assert Signer(SECRET.encode()).sign(one) == sign(one, SECRET.encode())
