"""The engines under the suite. To plug one in, write a harness and a child engine and add a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.contract.embedded_harness import EmbeddedChild, EmbeddedHarness
from tests.contract.harness import ChildEngine, Harness
from tests.contract.kafka_harness import KafkaChild, KafkaHarness


class Engine(NamedTuple):
    """How the suite gets at an engine. `make` may ask for fixtures (`request.getfixturevalue`), e.g. a cluster."""

    name: str
    make: Callable[[pytest.FixtureRequest], Harness]
    child: Callable[[], ChildEngine] | None
    """None: it has no process of its own to be killed."""
    marks: tuple[pytest.MarkDecorator, ...] = ()


ENGINES: tuple[Engine, ...] = (
    Engine("embedded", EmbeddedHarness.for_test, EmbeddedChild),
    Engine("kafka", KafkaHarness.for_test, KafkaChild, (pytest.mark.kafka,)),
)

BY_NAME = {engine.name: engine for engine in ENGINES}
