"""What the delivery stage asks of whoever brings events out: `workers.connector` for HTTP, `workers.topics` for Kafka;
in the simulation its network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

from schemas.settings import SinkSettings

Reason = Literal["timeout", "connection", "forbidden", "refused"]


class Posted(NamedTuple):
    """An answer: its status, and its `Retry-After` header as it came ("" when absent)."""

    status: int
    retry_after: str = ""


class PostFailed(Exception):
    """There was no answer. "timeout": connected, and not in time; "connection": none could be made, or it broke;
    "forbidden": the address is one we do not connect to; "refused": it was not sent, or not taken, for what it is."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason


class Poster(Protocol):
    """Makes one POST. Decides nothing, repeats nothing."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Posted:
        """Return the answer. Raises `PostFailed`, at the latest after `timeout_s`."""
        ...


class Publisher(Protocol):
    """Appends one message to a topic of somebody's. Decides nothing, repeats nothing."""

    async def publish(
        self, sink: SinkSettings, connect: Mapping[str, Any], key: bytes, headers: Mapping[str, str], value: bytes
    ) -> None:
        """Return when it is durable there (acks=all). `connect`: see `broker.log.kafka_connection.connection`. Raises
        `PostFailed`, at the latest after the sink's `timeout_s`."""
        ...
