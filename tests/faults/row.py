"""What a row of the fault matrix is, and what it is given to play with."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.flow.deployment import on_kafka
from tests.kafka.cluster import LocalKafka

T = TypeVar("T")

Figures = Mapping[str, float | int | str]
"""What a row saw, by name with its unit last."""


@dataclass
class Rig:
    """A row's folder, its chance, its scale; for rows on Kafka a cluster and a prefix of their own."""

    folder: Path
    is_full: bool
    chance: random.Random
    cluster: LocalKafka | None = None
    prefix: str = ""

    @property
    def kafka(self) -> LocalKafka:
        """The cluster of a row that is on Kafka."""
        assert self.cluster is not None, "the row does not say that it is on Kafka"
        return self.cluster

    def kafka_log(self) -> dict[str, object]:
        """The `[log]` table of a deployment on it."""
        return on_kafka(self.kafka.bootstrap, self.prefix, partitions=8, slots=4)

    def scale(self, short: T, full: T) -> T:
        """Choose a number for this scale."""
        return full if self.is_full else short


@dataclass(frozen=True)
class Row:
    """One fault. `play` raises `AssertionError` when a promise broke; the limits are those of one play, in seconds."""

    name: str
    fault: str
    invariants: str
    passes: str
    play: Callable[[Rig], Awaitable[Figures]]
    limit_s: float
    limit_full_s: float
    on_kafka: bool = False
