"""The topics behind the logs: made as a `LogSpec` says, and compared with what stands on the cluster.

`apply` creates what is missing and never changes what is there: a topic that differs is an operator's decision, and a
`Difference` says both values. What would lose or misplace records is fatal and nothing starts; the rest is a warning.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import IncompatibleBrokerVersion, for_code
from msgspec import Struct

from broker.errors import LogUnavailable, Misconfigured
from broker.log.contract import LogSpec
from broker.log.kafka_connection import CLIENT_ERRORS, REQUEST_TIMEOUT_MS, topic_name
from broker.log.kafka_metadata import Topic, describe
from schemas.settings import KafkaSettings

TOPIC_BYTES_MAX = 5 * 1024 * 1024
"""A batch the broker accepts. Above our client's batches, which are above one record (contract.RECORD_BYTES_MAX):
a batch that the broker refuses wedges its partition for the producer."""

COMPACTED_SEGMENT_BYTES = 32 * 1024 * 1024
"""The active segment is never compacted, and a restore reads all of it: small is fast to restore."""

COMPACTED_SEGMENT_MS = 3_600_000
SEGMENT_BYTES = 256 * 1024 * 1024
SEGMENT_MS_MAX = 24 * 3_600_000
SEGMENTS_A_RETENTION = 4
"""A segment is dropped whole, when its newest record is too old: so a quarter of the retention at most is kept more."""

TOPIC_ALREADY_EXISTS = 36
CREATE_TIMEOUT_MS = 15_000
SHOWN_LOOK_S = 0.05
SHOWN_LOOKS_MAX = 400
FATAL = ("partitions", "cleanup.policy", "max.message.bytes")


class Difference(Struct, frozen=True):
    """Where a topic is not what its log needs. `fatal`: nothing may start on it."""

    topic: str
    what: str
    wanted: str
    found: str
    fatal: bool

    def __str__(self) -> str:
        return f"topic {self.topic!r}: {self.what} is {self.found}, and should be {self.wanted}"


def topic_settings(spec: LogSpec, min_insync_replicas: int) -> dict[str, str]:
    """Return the topic's settings. Times of records are the broker's: retention then does not depend on whose clock
    wrote them."""
    made = {
        "max.message.bytes": str(TOPIC_BYTES_MAX),
        "min.insync.replicas": str(min_insync_replicas),
        "message.timestamp.type": "LogAppendTime",
        "unclean.leader.election.enable": "false",
    }
    if spec.kept == "last":
        return made | {
            "cleanup.policy": "compact",
            "segment.bytes": str(COMPACTED_SEGMENT_BYTES),
            "segment.ms": str(COMPACTED_SEGMENT_MS),
            "min.cleanable.dirty.ratio": "0.1",
        }
    return made | {
        "cleanup.policy": "delete",
        "retention.ms": str(spec.retention_ms),
        "segment.bytes": str(SEGMENT_BYTES),
        "segment.ms": str(max(60_000, min(SEGMENT_MS_MAX, spec.retention_ms // SEGMENTS_A_RETENTION))),
    }


class Topics:
    """The topics of a set of logs on one cluster."""

    def __init__(self, settings: KafkaSettings, specs: Sequence[LogSpec], connect: Mapping[str, Any]) -> None:
        """`connect`: see `kafka_connection.connection`."""
        self._settings = settings
        self._specs = {topic_name(settings.prefix, spec.name): spec for spec in specs}
        self._connect = connect

    async def incarnations(self) -> dict[str, str]:
        """Return the id of each log's topic, by log. Raises `LogUnavailable`, `Misconfigured` when one is missing."""
        async with self._admin() as admin:
            found = await describe(admin._client, list(self._specs))
            self._raise_if_missing(found)
            return {spec.name: found[name].incarnation for name, spec in self._specs.items()}

    async def apply(self) -> list[str]:
        """Create the topics that are missing; return their names. Raises `LogUnavailable`, `Misconfigured`."""
        async with self._admin() as admin:
            found = await describe(admin._client, list(self._specs))
            missing = [name for name in self._specs if name not in found]
            if missing:
                await self._create(admin, missing)
            return missing

    async def differences(self) -> list[Difference]:
        """Compare every topic with its log. Raises `LogUnavailable`, `Misconfigured` when one is missing."""
        async with self._admin() as admin:
            found = await describe(admin._client, list(self._specs))
            self._raise_if_missing(found)
            present = await self._read_settings(admin)
        differing = []
        for name, spec in self._specs.items():
            topic, has = found[name], present.get(name, {})
            wanted = {
                "partitions": str(spec.partitions),
                "replication factor": str(self._settings.replication_factor),
                **topic_settings(spec, self._settings.min_insync_replicas),
            }
            has |= {"partitions": str(topic.partitions), "replication factor": str(topic.replicas)}
            for what, value in wanted.items():
                is_there = has.get(what, "not said by the broker")
                if is_there != value and not (what == "max.message.bytes" and int(is_there) >= int(value)):
                    differing.append(Difference(name, what, value, is_there, what in FATAL))
        return differing

    async def committed(self, group: str, log: str) -> list[tuple[int | None, str]]:
        """Return what a consumer group committed for each partition of a log, with its text. Raises
        `LogUnavailable`."""
        topic = topic_name(self._settings.prefix, log)
        places = [TopicPartition(topic, partition) for partition in range(self._specs[topic].partitions)]
        async with self._admin() as admin:
            found = await admin.list_consumer_group_offsets(group, partitions=places)
        return [
            (found[place].offset, found[place].metadata or "")
            if place in found and found[place].offset >= 0
            else (None, "")
            for place in places
        ]

    async def _create(self, admin: AIOKafkaAdminClient, names: Sequence[str]) -> None:
        made = [
            NewTopic(
                name,
                self._specs[name].partitions,
                self._settings.replication_factor,
                topic_configs=topic_settings(self._specs[name], self._settings.min_insync_replicas),
            )
            for name in names
        ]
        answer = await admin.create_topics(made, timeout_ms=CREATE_TIMEOUT_MS)
        refused = [
            f"{name} ({for_code(code).__name__}: {message})"
            for name, code, message in answer.topic_errors
            if code not in (0, TOPIC_ALREADY_EXISTS)  # another process of ours may be starting too
        ]
        if refused:
            raise Misconfigured(
                f"Kafka refused to create topics: {', '.join(refused)}. Let `depesche topics apply` create them with "
                "rights to do so, or set log.kafka.replication_factor to what the cluster can hold"
            )
        # Created at the controller; the brokers hear of it a moment later, one that was just away after some seconds.
        for _ in range(SHOWN_LOOKS_MAX):
            if len(await describe(admin._client, names)) == len(names):
                return
            await asyncio.sleep(SHOWN_LOOK_S)
        raise LogUnavailable(
            f"Kafka created {', '.join(names)} but does not show them after {SHOWN_LOOKS_MAX * SHOWN_LOOK_S:.0f} s"
        )

    async def _read_settings(self, admin: AIOKafkaAdminClient) -> dict[str, dict[str, str]]:
        asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in self._specs]
        present: dict[str, dict[str, str]] = {}
        for answer in await admin.describe_configs(asked):
            for code, message, _, name, entries in answer.resources:
                if code:
                    raise LogUnavailable(f"Kafka does not tell the settings of {name}: {message}")
                present[name] = {entry[0]: entry[1] for entry in entries}
        return present

    def _raise_if_missing(self, found: Mapping[str, Topic]) -> None:
        missing = [name for name in self._specs if name not in found]
        if missing:
            raise Misconfigured(f"topics are missing: {', '.join(missing)}; `depesche topics apply` creates them")

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(**self._connect, request_timeout_ms=CREATE_TIMEOUT_MS + REQUEST_TIMEOUT_MS)
        try:
            await admin.start()
            yield admin
        except IncompatibleBrokerVersion as error:
            raise Misconfigured(f"the Kafka cluster is too old, 2.8 is the least: {error}") from error
        except CLIENT_ERRORS as error:
            servers = self._settings.bootstrap_servers
            raise LogUnavailable(
                f"log.kafka.bootstrap_servers = {servers!r}: Kafka does not answer there: {error!r}"
            ) from error
        finally:
            await admin.close()
