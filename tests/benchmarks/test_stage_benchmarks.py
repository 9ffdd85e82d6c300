"""The benchmarks of the stages, tiny: that they run, count what they claim to count, and name their figures."""

from __future__ import annotations

import pytest

from benchmarks import bench_customer, bench_growth, bench_memory, bench_restore, bench_sender
from benchmarks.conversations import TURN_RECORDS, brand, records, states
from broker.core.customer_state import QUIET_BYTES_MAX, unpack
from schemas.records import Item, decode_conversation
from tests.kafka.fixtures import KafkaForTests

LIMIT_S = 60
"""Of a test: mostly processes that start. Alone on a machine each takes 3 to 8 s."""

NOW = 1_790_000_000_000


def silent(_: str) -> None:
    """Progress nobody reads."""


@pytest.mark.kafka
@pytest.mark.timeout(LIMIT_S)
def test_the_customer_stage_is_measured_beside_a_loop_that_writes_as_much(kafka: KafkaForTests) -> None:
    """Every record committed, every send and event on its log: or `measure` raises."""
    made = bench_customer.measure(silent, runs=1, customers=60, turns=1, partitions=2, bootstrap=kafka.bootstrap)
    assert [row.id for row in made] == ["P3.rate", "P3.cpu_us"]
    assert all(row.value > 0 and row.ratio is not None and row.reached is not None for row in made)


@pytest.mark.kafka
@pytest.mark.timeout(LIMIT_S)
def test_the_sender_is_measured_beside_a_bare_loop(kafka: KafkaForTests) -> None:
    """As many calls as sends, and as many accepted outcomes on the log: or `measure` raises."""
    made = bench_sender.measure(silent, runs=1, count=200, in_flight=32, engines=("kafka",), bootstrap=kafka.bootstrap)
    assert [row.id for row in made] == ["P4.kafka.rate", "P4.kafka.cpu_us"]
    assert all(row.value > 0 and row.ratio is not None for row in made)


@pytest.mark.kafka
@pytest.mark.timeout(LIMIT_S)
def test_a_takeover_is_measured_beside_reading_alone(kafka: KafkaForTests) -> None:
    """Every customer that was written is restored, and every record read: or `measure` raises."""
    made = bench_restore.measure(silent, runs=1, customers=500, partitions=2, bootstrap=kafka.bootstrap)
    assert [row.id for row in made] == ["P8.restore", "P8.restore_rate"]
    assert made[0].ratio is not None


@pytest.mark.kafka
@pytest.mark.timeout(LIMIT_S)
def test_memory_is_measured(kafka: KafkaForTests) -> None:
    """So few customers weigh nothing beside a process: here it is only asked whether it can be measured."""
    made = bench_memory.measure(
        silent, runs=1, customers=200, partitions=2, bootstrap=kafka.bootstrap, roles=("receiver",), rest_s=0.1
    )
    assert [row.id for row in made] == ["P9.quiet_bytes", "P9.live_bytes", "P9.idle_receiver"]
    assert 20 < made[-1].value < 500


@pytest.mark.kafka
@pytest.mark.timeout(LIMIT_S)
def test_growth_is_measured_beside_one_of_each(kafka: KafkaForTests) -> None:
    """Two of each: numbers in slots of their own, sinks with a route and a log each."""
    made = bench_growth.measure(
        silent,
        runs=1,
        customers=40,
        turns=1,
        partitions=2,
        count=60,
        sizes_of={"numbers": (1, 2), "sinks": (1, 2)},
        bootstrap=kafka.bootstrap,
    )
    assert [row.id for row in made] == ["P10.numbers_2", "P10.sinks_2"]


def test_the_records_of_a_benchmark_are_a_brands_conversations() -> None:
    """Each turn whole and in its order; a feed that is half refused would measure refusals."""
    drafts = list(records(10, 2, brand(4, numbers=2), NOW))
    assert len(drafts) == 10 * 2 * TURN_RECORDS
    mine = [decode_conversation(draft.value or b"") for draft in drafts if draft.key == drafts[0].key]
    kinds = [record.status or record.kind if isinstance(record, Item) else type(record).__name__ for record in mine]
    assert kinds == ["message", "SendRequest", "SendOutcome", "sent", "delivered", "read"] * 2


def test_the_customers_of_a_benchmark_are_quiet_ones() -> None:
    """What is restored and kept is what the customer stage itself would have written."""
    kept = dict(states(100, brand(4), NOW))
    assert len(kept) == 100
    assert all(200 < len(packed) <= QUIET_BYTES_MAX for packed in kept.values())
    last = unpack(kept[f"main:{4_915_550_000_099}".encode()])
    assert last.is_linked
    assert last.bsuid.endswith("990000002")
    assert len(last.known) == 2
