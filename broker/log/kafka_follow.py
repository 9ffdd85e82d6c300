"""Reading on for a group, without state: committed offsets with a text beside them. At least once.

A commit belongs to the generation in which the partition was granted; between revocation and assignment there is none,
because Kafka checks the generation and not who owns the partition.
"""

from __future__ import annotations

from broker import metrics
from broker.errors import LeaseRevoked, OutOfTurn
from broker.log.contract import Entry
from broker.log.kafka_group import KafkaMember
from broker.log.kafka_seat import Cluster, Seat
from broker.log.position import check_metadata


class KafkaFollow(Seat):
    """The right to read one partition of one log for a group, on Kafka. See `Follow`."""

    def __init__(self, cluster: Cluster, group: KafkaMember, log: str, partition: int) -> None:
        """Made by `open_follow`."""
        super().__init__(cluster, group, f"{group.name} of {log}-{partition}", (log,), partition)
        self._member = group
        self._log = log
        self._committed: tuple[int | None, str] = (None, "")

    @property
    def log(self) -> str:
        """The log's name."""
        return self._log

    async def load(self) -> None:
        """Learn the committed offset. Raises `LogUnavailable`."""
        self._committed = await self._member.committed(self._log, self._partition)
        offset = self._committed[0]
        if offset is None:
            offset, _ = await self._cluster.reading.edges(self._log, self._partition)
        self.next[self._log] = offset

    async def restore(self) -> tuple[int | None, str]:
        """Return the committed offset and its text."""
        self.begin()
        return self._committed

    async def fetch(self, records_max: int, timeout_s: float) -> list[Entry]:
        """Return the next records."""
        return await self._next(records_max, timeout_s, None)

    async def commit(self, offset: int, metadata: str = "") -> None:
        """Commit the offset of the first record not done, with a text."""
        if not self.restored:
            raise OutOfTurn(f"{self.tenure.name}: an offset was committed before the restore")
        self.tenure.raise_unless_committing()
        check_metadata(self.tenure.name, metadata)
        begun_at = self._cluster.clock.monotonic()
        result = "failed"
        try:
            with self.tenure.working():
                await self._member.commit(self._log, self._partition, offset, metadata)
            result = "ok"
        except LeaseRevoked:
            result = "fenced"
            raise
        finally:
            metrics.log_commits.labels(self._log, result).inc()
        self.tenure.prove(begun_at)


async def open_follow(cluster: Cluster, group: KafkaMember, log: str, partition: int) -> KafkaFollow:
    """Learn how far the group is. Raises `LogUnavailable`."""
    follow = KafkaFollow(cluster, group, log, partition)
    await follow.load()
    return follow
