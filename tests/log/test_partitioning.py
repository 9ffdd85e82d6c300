"""The partitioner agrees with Kafka's."""

from __future__ import annotations

import random

import pytest
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.partitioner import murmur2 as reference

from broker.log.partitioning import murmur2, partition_for


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_gives_kafkas_own_test_vectors(key: bytes, expected: int) -> None:
    """Source: Apache Kafka, `UtilsTest.testMurmur2`; the numbers there are signed."""
    assert murmur2(key) == expected & 0xFFFFFFFF


def test_a_key_goes_where_kafkas_clients_would_put_it() -> None:
    """A brand's own producer may write to our topics."""
    rng = random.Random(20)
    kafkas = DefaultPartitioner()
    for length in range(64):
        key = rng.randbytes(length)
        assert murmur2(key) == reference(key) & 0xFFFFFFFF
        for partitions in (1, 6, 24, 500):
            assert partition_for(key, partitions) == kafkas(key, list(range(partitions)), list(range(partitions)))


def test_customer_numbers_spread_evenly() -> None:
    """No partition gets half as much again as its share."""
    counts = [0] * 24
    for number in range(24_000):
        counts[partition_for(b"4915112%06d" % number, 24)] += 1
    assert 850 < min(counts) <= max(counts) < 1_150
