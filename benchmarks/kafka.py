"""A Kafka beside what is measured: one broker, one copy, on the cores of all the rest."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.child import pin
from tests.kafka.cluster import LocalKafka
from tests.kafka.fixtures import warm_up_within

HOW = "one broker, acks=all, one copy, flush left to the broker as Kafka does"

WARM_S_MAX = 60.0


@contextmanager
def kafka_on(cores: tuple[int, ...], bootstrap: str = "") -> Iterator[str]:
    """Start one and stop it again; `bootstrap`: one that is there already, which is left as it is."""
    if bootstrap:
        yield bootstrap
        return
    kafka = LocalKafka()
    try:
        for broker in kafka.brokers:
            assert broker.process is not None
            pin(broker.process.pid, cores)
        warm_up_within(kafka.bootstrap, WARM_S_MAX)
        yield kafka.bootstrap
    finally:
        kafka.stop()


def prefix() -> str:
    """A corner of a Kafka for one run."""
    return f"bench-{uuid.uuid4().hex[:8]}."
