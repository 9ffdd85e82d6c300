"""The Kafka engine: `KafkaLog` puts its parts together behind the contract.

    kafka_topics    the topics behind the logs            kafka_connection   how clients connect and are let go
    kafka_appends   durable appends from outside          kafka_reading      committed records by offset
    kafka_group     a member of a consumer group          kafka_seat         one partition granted to this process
    kafka_lease     steps: transactions, and restores     kafka_follow       reading on with committed offsets

Source of its rules: operations.md 6 and step-on-kafka.md, measured with aiokafka 0.14 against Apache Kafka 4.1.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Sequence

from broker.clock import Clock
from broker.errors import LogUnavailable, Misconfigured
from broker.log.contract import Draft, Entry, LogSpec, Membership
from broker.log.kafka_appends import Appends
from broker.log.kafka_connection import Deadline, Reaper, connection, quieten
from broker.log.kafka_reading import Reading
from broker.log.kafka_topics import Topics
from broker.log.partitioning import partition_for
from broker.secrets import Secret
from schemas.settings import KafkaSettings

log = logging.getLogger(__name__)

START_S_MAX = 30.0
"""How long a start waits for the cluster. Then it fails, and whoever restarts us decides."""

BYTES_IN_FLIGHT_MAX = 64 * 1024 * 1024


class KafkaLog:
    """Logs on an Apache Kafka cluster. See `LogEngine` for what each method owes."""

    def __init__(
        self,
        settings: KafkaSettings,
        specs: Sequence[LogSpec],
        *,
        clock: Clock,
        rng: random.Random,
        password: Secret | None = None,
        bytes_in_flight_max: int = BYTES_IN_FLIGHT_MAX,
        create_topics: bool = True,
    ) -> None:
        """`password`: what `settings.sasl_password` names. `create_topics`: False when only `depesche topics apply`
        has the right to make them. Raises `Misconfigured`."""
        self._settings = settings
        self._specs = {spec.name: spec for spec in specs}
        self._clock = clock
        self._rng = rng
        self._connect = connection(settings, password)
        self._bytes_in_flight_max = bytes_in_flight_max
        self._create_topics = create_topics
        self._topics = Topics(settings, specs, self._connect)
        self._incarnations: dict[str, str] = {}
        self._parts: tuple[Appends, Reading, Reaper] | None = None
        self._members: list[Membership] = []
        self._closed = False

    @property
    def logs(self) -> dict[str, LogSpec]:
        """Every log by name, without the prefix."""
        return dict(self._specs)

    @property
    def incarnations(self) -> dict[str, str]:
        """The topic id of each log, as it was at the start."""
        return dict(self._incarnations)

    async def start(self) -> None:
        """Create or check the topics and open. Raises `LogUnavailable`, `Misconfigured`."""
        quieten()
        if self._create_topics:
            made = await self._topics.apply()
            if made:
                log.info("created the topics %s", ", ".join(made))
        differences = await self._topics.differences()
        fatal = [str(difference) for difference in differences if difference.fatal]
        if fatal:
            raise Misconfigured("; ".join(fatal))
        for difference in differences:
            log.warning("%s", difference)
        self._incarnations = await self._topics.incarnations()
        reaper = Reaper()
        prefix = self._settings.prefix
        appends = Appends(prefix, self._specs, self._connect, self._bytes_in_flight_max, self._clock, self._rng, reaper)
        reading = Reading(prefix, self._specs, self._connect, self._clock, reaper)
        self._parts = appends, reading, reaper
        await appends.start(START_S_MAX)

    async def close(self, timeout_s: float = 10.0) -> None:
        """Leave, settle or give up, release. Never longer than about the timeout and a second, never raises."""
        self._closed = True
        if self._parts is None:
            return
        appends, reading, reaper = self._parts
        deadline = Deadline(self._clock, timeout_s)
        try:
            await appends.close(deadline.left_s() * 0.5)
            await reading.close()
        finally:
            await reaper.close(max(1.0, deadline.left_s()))

    def partition_of(self, log: str, key: bytes) -> int:
        """Return the partition of a key."""
        return partition_for(key, self._specs[log].partitions)

    async def append(self, log: str, drafts: Sequence[Draft], timeout_s: float) -> None:
        """Append durably."""
        await self._open[0].append(log, drafts, timeout_s)

    def read(self, log: str, partition: int, start: int | None = None, *, tail: bool = False) -> AsyncIterator[Entry]:
        """Read committed records."""
        return self._open[1].read(log, partition, start, tail=tail)

    async def ends(self, log: str) -> list[tuple[int, int]]:
        """First kept offset and committed end of each partition."""
        return await self._open[1].ends(log)

    @property
    def _open(self) -> tuple[Appends, Reading, Reaper]:
        if self._parts is None or self._closed:
            raise LogUnavailable("the log is not open")
        return self._parts
