"""What the suite must be able to do to an engine: open it, let another in, take it away, kill its process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from broker.log.contract import LogEngine, LogSpec, Stage, Step

Reached = Callable[[], None]
"""Called at the armed point of a step; it does not return."""


class Harness(Protocol):
    """One set of logs, and the engines opened on them. A test gets a fresh one."""

    name: str
    spans_processes: bool
    """Whether several processes may have the logs open at once. If not, a second one must be refused."""
    patience_s: float
    """How long a change of hands may take on this engine."""
    steps_many: int
    """How many steps make work for housekeeping; few on an engine whose housekeeping cannot be hurried."""

    async def open(self, specs: Sequence[LogSpec], *, bytes_in_flight_max: int | None = None) -> LogEngine:
        """Make an engine and start it. An engine for one process is opened again only after `close` or `kill`."""
        ...

    async def another(self, engine: LogEngine) -> LogEngine:
        """Return an engine for another member of the same groups: itself, if members of one process share it."""
        ...

    async def crash(self, engine: LogEngine) -> None:
        """Stop it as a death would: nothing is drained, left or settled, but its resources are free."""
        ...

    async def usurp(self, engine: LogEngine, stage: Stage, partition: int, step: Step | None = None) -> None:
        """Another owner takes a partition while the present one does not know, and commits a step if one is given."""
        ...

    async def rebalance(self, engine: LogEngine, name: str) -> None:
        """Have a group's partitions revoked and granted anew, to the same member if it is alone."""
        ...

    async def recreate(self, log: str) -> None:
        """Delete a log and what it holds while no engine is open; the next `open` makes it again."""
        ...

    async def take_away(self) -> None:
        """Make the engine's disk or cluster fail."""
        ...

    async def bring_back(self) -> None:
        """Make it work again."""
        ...

    def advance(self, by_ms: int) -> None:
        """Let the wall clock of engines opened here jump."""
        ...

    async def tidy(self, engine: LogEngine) -> bool:
        """Have retention and compaction done now; False when this engine cannot be hurried."""
        ...

    def child_arguments(self) -> list[str]:
        """Return what a child process needs to open the same logs: the engine's name first, see `child.py`."""
        ...

    async def close(self) -> None:
        """Close everything that was opened."""
        ...


class ChildEngine(Protocol):
    """The part of a harness that works in a child process."""

    points: tuple[str, ...]
    """Where in a step a child can be stopped, in order; "before" and "after" are the ends."""

    async def open(self, arguments: Sequence[str], specs: Sequence[LogSpec]) -> LogEngine:
        """Make an engine and start it."""
        ...

    def arm(self, point: str, reached: Reached) -> None:
        """Have `reached` called when the next step of this process comes to the point. "before" and "after" are the
        caller's own."""
        ...
