"""Fixtures every test can ask for. They live in modules named after what they own; this file only imports them."""

from tests.kafka.fixtures import breakable_kafka, kafka, kafka_prefix, own_kafka, session_kafka

__all__ = ["breakable_kafka", "kafka", "kafka_prefix", "own_kafka", "session_kafka"]
