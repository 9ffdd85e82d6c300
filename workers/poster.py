"""What the delivery stage asks of whoever makes HTTP requests: `workers.connector`, or the simulation's network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol


class Posted(NamedTuple):
    """An answer: its status, and its `Retry-After` header as it came ("" when absent)."""

    status: int
    retry_after: str = ""


class PostFailed(Exception):
    """There was no answer. "timeout": connected, and not in time; "connection": none could be made, or it broke;
    "forbidden": the address is one we do not connect to."""

    def __init__(self, reason: Literal["timeout", "connection", "forbidden"], detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Literal["timeout", "connection", "forbidden"] = reason


class Poster(Protocol):
    """Makes one POST. Decides nothing, repeats nothing."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Posted:
        """Return the answer. Raises `PostFailed`, at the latest after `timeout_s`."""
        ...
