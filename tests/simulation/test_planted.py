"""The simulation finds what it is there to find: bugs are planted into the real stages, and a storm brings them out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from broker.core import moves
from broker.core.customer_state import Customer, pack, unpack
from broker.core.pacing import Window
from broker.core.retry import Trouble
from broker.core.sender import Phase, Send
from broker.core.slot import Plan, Slot
from broker.log.contract import Lease, Step
from tests.simulation.batch import run
from workers import customer as customer_stage
from workers.customer import Household
from workers.sender import Refused, SlotOwner

Plant = Callable[[pytest.MonkeyPatch], None]


class _Lease:
    """A lease whose `commit` is planted; everything else is the real one's."""

    def __init__(self, lease: Lease) -> None:
        self._real = lease

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _with_lease(patch: pytest.MonkeyPatch, owner: type[Household] | type[SlotOwner], lease: type[_Lease]) -> None:
    begin = owner.__init__

    def init(self: Any, stage: Any, real: Lease, *others: Any) -> None:
        begin(self, stage, lease(real), *others)

    patch.setattr(owner, "__init__", init)


def drop_changes(patch: pytest.MonkeyPatch) -> None:
    """A step of the customer stage leaves its state changes out."""
    patch.setattr(customer_stage, "Step", lambda position, derived, changes: Step(position, derived))


def position_ahead(patch: pytest.MonkeyPatch) -> None:
    """The customer stage commits its position first, and then what it did."""

    class Ahead(_Lease):
        async def commit(self, step: Step) -> None:
            if step.position:
                await self._real.commit(Step(step.position))
            await self._real.commit(Step({}, step.derived, step.changes))

    _with_lease(patch, Household, Ahead)


def call_before_intent(patch: pytest.MonkeyPatch) -> None:
    """The sender takes a step for durable that is still on its way."""

    class Eager(_Lease):
        under_way: asyncio.Task[None] | None = None

        async def commit(self, step: Step) -> None:
            if self.under_way is not None:
                await self.under_way
            self.under_way = asyncio.create_task(self._real.commit(step))
            self.under_way.add_done_callback(lambda task: task.cancelled() or task.exception())

    _with_lease(patch, SlotOwner, Eager)


def permit_before_intent(patch: pytest.MonkeyPatch) -> None:
    """The sender takes a permit when it intends, and the step may stall between it and the bytes."""
    commit, permit = SlotOwner._commit, SlotOwner._permit

    async def early(self: SlotOwner, plan: Plan, is_snapshot: bool) -> bool:
        for send in plan.sends:
            try:
                await permit(self, send, self._epoch)
            except Refused:
                continue
        return await commit(self, plan, is_snapshot)

    async def granted(self: SlotOwner, send: Send, epoch: int) -> None:
        if send.phase is not Phase.CALLED:
            await permit(self, send, epoch)

    patch.setattr(SlotOwner, "_commit", early)
    patch.setattr(SlotOwner, "_permit", granted)


def full_bucket(patch: pytest.MonkeyPatch) -> None:
    """A new owner of a number believes that nobody sent before it."""
    begin = Window.__init__

    def init(self: Window, throughput_mps: int, now: float) -> None:
        begin(self, throughput_mps, now)
        self._closed_until = self._due_at = now

    patch.setattr(Window, "__init__", init)


def inbound_ignored(patch: pytest.MonkeyPatch) -> None:
    """What arrives is not counted against the tier."""
    patch.setattr(Window, "charge_inbound", lambda self, count, now: None)


def dedupe_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A restored owner does not know what its predecessor has taken."""
    remember = Household._remember

    async def forget(self: Household) -> None:
        await remember(self)
        for key, packed in self._customers.items():
            known = unpack(packed)
            known.taken = b""
            self._customers[key] = pack(known)

    patch.setattr(Household, "_remember", forget)


def moved_without_memory(patch: pytest.MonkeyPatch) -> None:
    """Who moves to another key brings along what is known of them, but not what was taken."""

    def forgetful(packed: bytes) -> Customer:
        customer = unpack(packed)
        customer.taken = b""
        return customer

    patch.setattr(moves, "unpack", forgetful)


def nothing_is_sent_on(patch: pytest.MonkeyPatch) -> None:
    """What comes for somebody who has left is taken, and goes nowhere."""
    patch.setattr(moves.Residence, "_send_on", lambda self, arrival, left: True)


def given_up_too_soon(patch: pytest.MonkeyPatch) -> None:
    """An event is set aside as soon as it has failed twice, whoever's trouble it was."""
    patch.setattr(Trouble, "is_given_up", lambda self, give_up_after_s: self.attempts > 1)


def asked_again(patch: pytest.MonkeyPatch) -> None:
    """A system message that waited for its answer has a new instant, and asks anew, some hundred times. Found by seed
    28, where it went on for minutes."""
    park, instant, left = moves.Residence._park, moves.Residence._instant, iter(range(300))

    def forgetful(self: moves.Residence, arrival: moves.Arrival) -> None:
        arrival.move = 0
        park(self, arrival)

    patch.setattr(moves.Residence, "_park", forgetful)
    patch.setattr(
        moves.Residence, "_instant", lambda self, item: instant(self, item) if next(left, None) is None else self._now
    )


def stop_overheard(patch: pytest.MonkeyPatch) -> None:
    """A sender reads and remembers what is withdrawn, and sends it all the same."""
    patch.setattr(Slot, "_end_withdrawn", lambda self, send: None)


STORMS_MAX = 12
"""Storms change with every change of the code, so a bug is looked for in several; most are found in the first."""


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("plant", "promise"),
    [
        (drop_changes, "I8"),
        (position_ahead, "I1"),
        (call_before_intent, "I2"),
        (permit_before_intent, "I4"),
        (full_bucket, "I4"),
        (inbound_ignored, "I4"),
        (dedupe_forgotten, "I2"),
        (moved_without_memory, "I2"),
        (nothing_is_sent_on, "I1"),
        (given_up_too_soon, "I1"),
        (asked_again, "I8: main:"),
        (stop_overheard, ", withdrawn at"),
    ],
)
def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch, plant: Plant, promise: str) -> None:
    """A storm that no bug can fail would say nothing about a broker that stands it."""
    plant(monkeypatch)
    for seed in range(1, STORMS_MAX + 1):
        if any(promise in one for one in run(seed).wrong):
            print(f"found by seed {seed}")
            return
    pytest.fail(f"no breach of {promise} in {STORMS_MAX} storms")
