"""The Kafka engine: `KafkaLog` puts its parts together behind the contract.

    kafka_topics    the topics behind the logs            kafka_connection   how clients connect and are let go
    kafka_appends   durable appends from outside          kafka_reading      committed records by offset
    kafka_group     a member of a consumer group          kafka_seat         one partition granted to this process
    kafka_lease     steps: transactions, and restores     kafka_follow       reading on with committed offsets

Its rules were measured with aiokafka 0.14 against Apache Kafka 4.1.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial

from broker.clock import Clock
from broker.errors import LogUnavailable, Misconfigured
from broker.log.contract import Draft, Entry, Follow, Lease, LogSpec, Stage
from broker.log.coordinator import Held, Item, Opener
from broker.log.kafka_appends import Appends
from broker.log.kafka_connection import Deadline, Reaper, connection, quieten
from broker.log.kafka_follow import KafkaFollow, open_follow
from broker.log.kafka_group import KafkaMember
from broker.log.kafka_lease import KafkaLease, open_lease
from broker.log.kafka_reading import Reading
from broker.log.kafka_seat import Cluster, Seat
from broker.log.kafka_topics import Topics
from broker.log.partitioning import partition_for
from broker.log.position import check_stage
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
        self._parts: tuple[Appends, Cluster] | None = None
        self._members: list[KafkaMember] = []
        self._closed = False

    @property
    def logs(self) -> dict[str, LogSpec]:
        """Every log by name, without the prefix."""
        return dict(self._specs)

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
        reaper = Reaper()
        prefix, clock, rng = self._settings.prefix, self._clock, self._rng
        reading = Reading(prefix, self._specs, self._connect, clock, reaper)
        cluster = Cluster(self._settings, self._specs, self._connect, self._topics, reading, reaper, clock, rng)
        appends = Appends(cluster, self._bytes_in_flight_max)
        self._parts = appends, cluster
        await appends.start(START_S_MAX)

    async def close(self, timeout_s: float = 10.0) -> None:
        """Leave, settle or give up, release. Never longer than about the timeout and a second, never raises."""
        if self._parts is None or self._closed:
            return
        self._closed = True
        appends, cluster = self._parts
        deadline = Deadline(self._clock, timeout_s)
        try:
            leaving = [asyncio.ensure_future(member.leave(timeout_s * 0.7)) for member in tuple(self._members)]
            closing = asyncio.ensure_future(appends.close(timeout_s * 0.7))
            await asyncio.wait({*leaving, closing}, timeout=deadline.left_s() + 0.5)
            await cluster.reading.close()
        except Exception:
            log.exception("the Kafka engine did not close cleanly")
        finally:
            await cluster.reaper.close(max(1.0, deadline.left_s()))

    def partition_of(self, log: str, key: bytes) -> int:
        """Return the partition of a key."""
        return partition_for(key, self._specs[log].partitions)

    async def append(self, log: str, drafts: Sequence[Draft], timeout_s: float) -> None:
        """Append durably."""
        self._must_know(log)
        await self._open[0].append(log, drafts, timeout_s)

    def read(self, log: str, partition: int, start: int | None = None, *, tail: bool = False) -> AsyncIterator[Entry]:
        """Read committed records."""
        self._must_know(log)
        return self._open[1].reading.read(log, partition, start, tail=tail)

    async def ends(self, log: str) -> list[tuple[int, int]]:
        """First kept offset and committed end of each partition."""
        self._must_know(log)
        return await self._open[1].reading.ends(log)

    async def own(self, stage: Stage, run: Callable[[Lease], Awaitable[None]]) -> KafkaMember:
        """Join the stage."""
        check_stage(stage, self._specs)
        cluster = self._open[1]

        def opener(member: KafkaMember, item: Item) -> Opener:
            async def open_and_run() -> tuple[Held, Callable[[], Awaitable[None]]]:
                await member.confirm(item)
                lease = await member.while_granted(open_lease(cluster, member, stage, item[1]))
                return lease, partial(run, lease)

            return open_and_run

        return self._join(stage.name, stage.inputs, lambda _, partition: (stage.name, partition), opener)

    async def follow(self, group: str, logs: Sequence[str], run: Callable[[Follow], Awaitable[None]]) -> KafkaMember:
        """Join the group."""
        for name in logs:
            self._must_know(name)
        cluster = self._open[1]

        def opener(member: KafkaMember, item: Item) -> Opener:
            async def open_and_run() -> tuple[Held, Callable[[], Awaitable[None]]]:
                await member.confirm(item)
                follow: KafkaFollow = await member.while_granted(open_follow(cluster, member, *item))
                return follow, partial(run, follow)

            return open_and_run

        return self._join(group, logs, lambda name, partition: (name, partition), opener)

    async def seize(self, stage: Stage, partition: int) -> KafkaLease:
        """Take a partition outside of the group, fencing who has it: for tools that repair a state by hand.

        The member that believes it owns the partition finds out with its next step. Raises `WrongIncarnation`,
        `LogUnavailable`.
        """
        check_stage(stage, self._specs)
        return await open_lease(self._open[1], Outside(), stage, partition)

    async def committed(self, group: str, log: str) -> list[tuple[int | None, str]]:
        """Return what a group committed for each partition of a log, with its text: for tools. Raises
        `LogUnavailable`."""
        self._must_know(log)
        return await self._topics.committed(self._settings.prefix + group, log)

    async def rebalance(self, name: str) -> None:
        """Have the partitions of a stage's or group's members in this process revoked and granted anew."""
        for member in self._members:
            if member.name == name:
                member.rejoin()

    def _join(
        self,
        name: str,
        logs: Sequence[str],
        item_of: Callable[[str, int], Item],
        opener: Callable[[KafkaMember, Item], Opener],
    ) -> KafkaMember:
        member = KafkaMember(self._open[1], name, logs, item_of, opener, self._members.remove)
        self._members.append(member)
        return member

    def _must_know(self, name: str) -> None:
        if name not in self._specs:
            raise Misconfigured(f"there is no log {name!r}; configured are {', '.join(self._specs)}")

    @property
    def _open(self) -> tuple[Appends, Cluster]:
        if self._parts is None or self._closed:
            raise LogUnavailable("the log is not open")
        return self._parts


class Outside:
    """A lease that belongs to no member: it is not delivered to."""

    def attach(self, seat: Seat) -> None:
        """Deliver nothing."""

    def regulate(self, seat: Seat, log: str, paused: bool) -> None:
        """Nothing comes, so nothing is held."""

    def leased(self) -> int:
        """Alone."""
        return 1
