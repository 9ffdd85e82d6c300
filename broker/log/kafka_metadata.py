"""Kafka's Metadata request in version 12, for the one thing our client's version 5 cannot say: a topic's id.

A topic deleted and made again keeps its name and gets another id; an offset belongs to one id. Source: Apache Kafka,
"Protocol guide", Metadata, and KIP-516.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from io import BytesIO
from typing import Any, NamedTuple

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import BrokerNotAvailableError, for_code
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

ABSENT = 3
"""Error code of a topic that does not exist (UNKNOWN_TOPIC_OR_PARTITION)."""

NODE_LOOK_S = 0.1
NODE_LOOKS_MAX = 100
"""A broker that is back names itself again with its next heartbeat to the controller, every 2 s by default."""

NO_ID = bytes(16)


class _Uuid(AbstractType):  # type: ignore[misc]
    """Sixteen bytes."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class _Answer(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _Question(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Answer
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Metadata(Request[_Question]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[Any]) -> Any:
        return request_struct_class([(NO_ID, topic, {}) for topic in self._topics], False, False, {})


class Topic(NamedTuple):
    """A topic as it stands on the cluster. `incarnation` is its id, written as UUIDs are."""

    name: str
    incarnation: str
    partitions: int
    replicas: int


async def _a_node(client: AIOKafkaClient) -> Any:
    """Return some broker. Those that have just started, or were away for longer than their session with the
    controller, know of none for a moment, not even of themselves. Raises `BrokerNotAvailableError`."""
    for _ in range(NODE_LOOKS_MAX):
        if (node := client.get_random_node()) is not None:
            return node
        await asyncio.sleep(NODE_LOOK_S)
        await client.force_metadata_update()
    raise BrokerNotAvailableError("the cluster names no broker that is ready")


async def describe(client: AIOKafkaClient, names: Sequence[str]) -> dict[str, Topic]:
    """Return those of the topics that exist, creating none. Raises the client's errors, `IncompatibleBrokerVersion`
    for a broker older than 2.8 (which knows no topic ids)."""
    answer = await client.send(await _a_node(client), _Metadata(names))
    found: dict[str, Topic] = {}
    for error_code, name, topic_id, _, partitions, _, _ in answer.topics:
        if error_code == ABSENT:
            continue
        if error_code:
            raise for_code(error_code)(name)
        replicas = min((len(partition[4]) for partition in partitions), default=0)
        found[name] = Topic(name, str(uuid.UUID(bytes=topic_id)), len(partitions), replicas)
    return found
