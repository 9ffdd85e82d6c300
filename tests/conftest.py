"""Fixtures every test can ask for, and the suite's order. They live in modules named after what they own."""

from tests.kafka.fixtures import breakable_kafka, kafka, kafka_prefix, own_kafka, session_kafka
from tests.schedule import pytest_collection_modifyitems
from tests.signals import pytest_configure

__all__ = [
    "breakable_kafka",
    "kafka",
    "kafka_prefix",
    "own_kafka",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "session_kafka",
]
