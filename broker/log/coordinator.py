"""Who in this process has which partition, and what runs there: the group coordinator of the embedded log.

It behaves as Kafka's does with eager rebalancing, so that a stage meets the same moves on both: when a member comes or
goes, every partition is revoked and drained, then granted; one that stays where it was comes back with its memory.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from broker import metrics
from broker.clock import Clock
from broker.errors import LeaseLost, WrongIncarnation
from broker.log.contract import LeaseState
from broker.log.lease import Backoff, Signal, Tenure

logger = logging.getLogger("depesche.log")

END_S_MAX = 5.0
"""How long a coroutine that was told to end may take. One that ignores it is left behind, fenced, and said."""

Item = tuple[str, int]
"""A stage or log, and a partition."""


class Held(Protocol):
    """A lease or a follower's right, as far as this module needs it."""

    @property
    def tenure(self) -> Tenure:
        """Where it stands."""
        ...

    @property
    def restored(self) -> bool:
        """Whether its coroutine has read back what was committed."""
        ...


class Runner:
    """One partition granted to one member: opens a lease, runs the stage's coroutine, starts it again when it ends."""

    def __init__(
        self,
        item: Item,
        open_and_run: Opener,
        clock: Clock,
        rng: random.Random,
        failed: Callable[[Exception], None],
    ) -> None:
        self.item = item
        self.held: Held | None = None
        self._open = open_and_run
        self._clock = clock
        self._failed = failed
        self._backoff = Backoff(rng)
        self._granted = True
        self._regranted = Signal()
        self._counted = False
        self._task = asyncio.create_task(self._serve(), name=f"log-runner-{item[0]}-{item[1]}")

    async def drain(self) -> None:
        """The partition is revoked: let running work finish, at most `DRAIN_S_MAX`."""
        began = self._clock.monotonic()
        self._granted = False
        if self.held is not None:
            await self.held.tenure.drain()
            metrics.lease_changes.labels("revoked").inc()
            metrics.lease_drain_duration.observe(self._clock.monotonic() - began)
        self._count(held=False)

    def grant(self) -> None:
        """It stays with us: go on with the same memory."""
        self._granted = True
        if self.held is not None and not self.held.tenure.stands(LeaseState.LOST):
            self.held.tenure.grant()
            self._count(held=True)
            metrics.lease_changes.labels("kept").inc()
        self._regranted.set()

    async def end(self, because: str) -> None:
        """It is given to another, or given up: cancel the coroutine and wait for it, at most `END_S_MAX`."""
        self._granted = False
        if self.held is not None and not self.held.tenure.stands(LeaseState.LOST):
            self.held.tenure.lose(because)
            metrics.lease_changes.labels("lost").inc()
        self._count(held=False)
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=2 * END_S_MAX)

    def abandon(self) -> None:
        """Cancel without waiting."""
        if self.held is not None:
            self.held.tenure.lose("the log was closed")
        self._count(held=False)
        self._task.cancel()

    async def _serve(self) -> None:
        while True:
            while not self._may_run():
                await self._regranted.wait(60.0)
            try:
                held, run = await self._open()
            except WrongIncarnation as error:
                logger.critical("%s-%d is not run: %s", *self.item, error)
                self._failed(error)
                return
            except Exception as error:  # an engine that is away; or we are wrong, and say so each time
                logger.warning("%s-%d cannot be opened, will be tried again: %r", *self.item, error)
                await asyncio.sleep(self._backoff.next_s())
                continue
            if not self._may_run():
                held.tenure.lose("revoked before it was opened")
                continue
            self.held = held
            self._count(held=True)
            metrics.lease_changes.labels("granted").inc()
            opened_at = held.tenure.proven_at
            await self._watch(held, asyncio.create_task(_called(run), name=f"{self.item[0]}-{self.item[1]}"))
            self._count(held=False)
            if held.tenure.proven_at > opened_at:
                self._backoff.succeeded()
            await asyncio.sleep(self._backoff.next_s())

    def _may_run(self) -> bool:
        return self._granted

    async def _watch(self, held: Held, task: asyncio.Task[None]) -> None:
        """Wait until the coroutine has ended, or has been ended because its lease is lost."""
        lost = asyncio.create_task(_until_lost(held.tenure))
        try:
            await asyncio.wait({task, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=END_S_MAX)
        finally:
            lost.cancel()
            if not held.tenure.stands(LeaseState.LOST):
                held.tenure.lose("its coroutine ended")
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=END_S_MAX)
            if not done:
                logger.error("%s-%d: a coroutine does not end and is left behind, fenced", *self.item)
            self._tell(task, held)

    def _tell(self, task: asyncio.Task[None], held: Held) -> None:
        if not task.done() or task.cancelled():
            return
        error = task.exception()
        if self._granted:
            metrics.actor_restarts.labels(self.item[0]).inc()
        if isinstance(error, LeaseLost) and not self._granted:
            logger.info("%s-%d: let go", *self.item)
        elif isinstance(error, LeaseLost):
            logger.warning("%s-%d: %s", *self.item, error)
        elif error is None:
            logger.error("%s-%d: the coroutine ended by itself, which it must not", *self.item)
        else:
            logger.error("%s-%d: the coroutine crashed", *self.item, exc_info=error)

    def _count(self, *, held: bool) -> None:
        if held != self._counted:
            self._counted = held
            metrics.leases_held.labels(self.item[0]).inc(1 if held else -1)


Opener = Callable[[], Awaitable[tuple[Held, Callable[[], Awaitable[None]]]]]
"""Fences and opens a lease; returns it with the coroutine to be run under it. Raises `WrongIncarnation` for good."""


class Member:
    """A stage's or group's share in this process."""

    def __init__(self, group: Group, names: Sequence[str], opener: Callable[[Item], Opener]) -> None:
        self.names = tuple(names)
        self.opener = opener
        self.runners: dict[Item, Runner] = {}
        self._group = group
        self._failure: Exception | None = None

    @property
    def failure(self) -> Exception | None:
        """What keeps a partition from being run for good."""
        return self._failure

    def held(self) -> frozenset[Item]:
        """What is HELD and restored."""
        return frozenset(
            item
            for item, runner in self.runners.items()
            if runner.held is not None and runner.held.restored and runner.held.tenure.stands(LeaseState.HELD)
        )

    def fail(self, error: Exception) -> None:
        """Note what an operator must decide."""
        self._failure = error

    async def leave(self, timeout_s: float = 10.0) -> None:
        """Drain, give the partitions to others, stop. Never raises, never longer than the timeout."""
        await self._group.leave(self, timeout_s)


class Group:
    """The members of a stage or group, in order of joining, and the partitions they share."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self.members: list[Member] = []
        self._items: dict[str, int] = {}
        self._clock = clock
        self._rng = rng
        self._seated: list[Member] = []
        self._moving = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def join(self, member: Member, partitions: dict[str, int]) -> None:
        """Add a member, which knows these names with their numbers of partitions, and move partitions to it."""
        self._items.update(partitions)
        self.members.append(member)
        await self._move()

    async def leave(self, member: Member, timeout_s: float) -> None:
        """Take a member out. What does not end in time is cancelled and left behind."""
        if member not in self.members:
            return
        self.members.remove(member)
        await self._move(timeout_s)

    async def rebalance(self) -> None:
        """Revoke everything and grant it anew, as when somebody has come and gone."""
        await self._move()

    def abandon(self) -> None:
        """Cancel whatever still runs: the engine closes and its time is up."""
        for task in self._tasks:
            task.cancel()
        for member in self._seated:
            for runner in member.runners.values():
                runner.abandon()

    async def _move(self, timeout_s: float | None = None) -> None:
        task = asyncio.create_task(self._rebalance())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_retrieve)
        await asyncio.wait({task}, timeout=timeout_s)

    async def _rebalance(self) -> None:
        async with self._moving:
            everybody = [*self.members, *(member for member in self._seated if member not in self.members)]
            runners = [runner for member in everybody for runner in member.runners.values()]
            await asyncio.gather(*(runner.drain() for runner in runners))
            shares = assign(self._items, [(member, member.names) for member in self.members])
            ending = []
            for member in everybody:
                for item, runner in list(member.runners.items()):
                    if shares.get(item) is not member:
                        del member.runners[item]
                        ending.append(runner.end("the partition was given to another member"))
            await asyncio.gather(*ending)
            for item, member in shares.items():
                if item in member.runners:
                    member.runners[item].grant()
                else:
                    member.runners[item] = Runner(item, member.opener(item), self._clock, self._rng, member.fail)
            self._seated = list(self.members)


def assign(partitions: dict[str, int], members: Sequence[tuple[Member, Sequence[str]]]) -> dict[Item, Member]:
    """Give each name's partitions to the members that know it: contiguous blocks, in order of joining."""
    shares: dict[Item, Member] = {}
    for name, count in partitions.items():
        sharing = [member for member, names in members if name in names]
        for partition in range(count if sharing else 0):
            shares[name, partition] = sharing[partition * len(sharing) // count]
    return shares


async def _called(run: Callable[[], Awaitable[None]]) -> None:
    await run()


async def _until_lost(tenure: Tenure) -> None:
    while not tenure.stands(LeaseState.LOST):
        await tenure.changed.wait(60.0)


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("moving partitions failed", exc_info=task.exception())
