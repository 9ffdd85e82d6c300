"""The customer stage on a real log: what a step commits, and what a crash, a poison or a rebalance leaves behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from broker import metrics
from broker.core.botview import BODY_BYTES_MAX
from broker.core.customer import HOLD_MS_MAX
from broker.core.customer_context import context_of
from broker.core.customer_state import QUIET_AFTER_MS, unpack
from broker.errors import RecordTooLarge
from broker.log.catalogue import CONVERSATIONS, CUSTOMER_STAGE, DEADLETTERS, STATE, catalogue, deliveries
from broker.log.contract import (
    Draft,
    Entry,
    Lease,
    LeaseState,
    LogEngine,
    Membership,
    Restored,
    Stage,
    Step,
)
from broker.log.embedded import EmbeddedLog
from broker.log.position import POSITION
from schemas.records import (
    ConversationRecord,
    DeadLetter,
    Item,
    Ready,
    SendRequest,
    decode_dead_letter,
    decode_delivery,
    decode_sends,
    encode,
)
from schemas.settings import CustomerSettings, DoubtSettings, LogSettings, Route, Settings, Then, When
from tests.contract.embedded_harness import JumpingClock
from tests.core.conversation import KEY, NUMBER, SETTINGS, message, outcome, request, send_id, status, wamid
from workers.customer import CustomerStage, StageLimits

QUICK = Settings(
    numbers=SETTINGS.numbers,
    sinks=SETTINGS.sinks,
    routes=SETTINGS.routes,
    log=LogSettings(partitions=2, slots=4),
    customer=CustomerSettings(doubt=DoubtSettings(otp_s=0.3)),
)
WAIT_S = 10.0


class Rig:
    """A log in a folder, with stages on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = JumpingClock()
        self.engine = self._engine()
        self.stages: list[CustomerStage] = []

    def _engine(self) -> EmbeddedLog:
        return EmbeddedLog(self.folder, catalogue(QUICK), clock=self.clock, rng=random.Random(1), upkeep_s=3_600.0)

    async def stage(
        self, wrapped: Callable[[LogEngine], LogEngine] = lambda engine: engine, **limits: Any
    ) -> CustomerStage:
        """Start one more member."""
        stage = CustomerStage(
            wrapped(self.engine), context_of(QUICK), self.clock, random.Random(2), StageLimits(idle_s=0.2, **limits)
        )
        await stage.start()
        self.stages.append(stage)
        return stage

    async def say(self, *records: ConversationRecord, key: str = KEY) -> None:
        """Append to conversations."""
        drafts = [Draft(key.encode(), encode(record)) for record in records]
        await self.engine.append(CONVERSATIONS, drafts, 5.0)

    async def restart(self) -> None:
        """Die without notice and come back."""
        await self.engine.close(0.0)
        self.stages.clear()
        self.engine = self._engine()
        await self.engine.start()

    async def everything(self, log: str) -> list[Entry]:
        """All records of a log."""
        found = []
        for partition in range(self.engine.logs[log].partitions):
            found += [entry async for entry in self.engine.read(log, partition)]
        return found

    async def until(self, log: str, count: int, settle_s: float = 0.3) -> list[Entry]:
        """Wait until a log has so many records, and a little longer for one too many."""

        async def there() -> bool:
            return len(await self.everything(log)) >= count

        await eventually(there)
        await asyncio.sleep(settle_s)
        return await self.everything(log)

    async def held(self, stage: CustomerStage, count: int) -> None:
        """Wait until a member has so many partitions."""

        async def holds() -> bool:
            return len(stage.held()) == count

        await eventually(holds)

    async def states(self) -> dict[bytes, bytes]:
        """The last state of each customer."""
        last: dict[bytes, bytes] = {}
        for partition in range(QUICK.log.partitions):
            async for entry in self.engine.read(STATE, partition):
                if entry.key != POSITION:
                    last[entry.key] = entry.value
        return last

    async def close(self) -> None:
        for stage in self.stages:
            await stage.stop()
        await self.engine.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path / "log")
    await rig.engine.start()
    try:
        yield rig
    finally:
        await rig.close()


class OddLease:
    """A real lease whose commit goes through a fault first."""

    def __init__(self, lease: Lease, fault: Callable[[Step], None]) -> None:
        self._lease = lease
        self._fault = fault

    @property
    def partition(self) -> int:
        return self._lease.partition

    @property
    def state(self) -> LeaseState:
        return self._lease.state

    @property
    def proven_at(self) -> float:
        return self._lease.proven_at

    def working(self) -> AbstractContextManager[None]:
        return self._lease.working()

    async def restore(self) -> Restored:
        return await self._lease.restore()

    async def fetch(self, records_max: int, timeout_s: float, logs: Collection[str] | None = None) -> list[Entry]:
        return await self._lease.fetch(records_max, timeout_s, logs)

    async def commit(self, step: Step) -> None:
        self._fault(step)
        await self._lease.commit(step)


class OddEngine:
    """A real engine whose leases commit through a fault."""

    def __init__(self, engine: LogEngine, fault: Callable[[Step], None]) -> None:
        self._engine = engine
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def own(self, stage: Stage, run: Callable[[Lease], Awaitable[None]]) -> Membership:
        return await self._engine.own(stage, lambda lease: run(OddLease(lease, self._fault)))


def odd(fault: Callable[[Step], None]) -> Callable[[LogEngine], LogEngine]:
    """Put a fault into an engine."""
    return lambda engine: cast(LogEngine, OddEngine(engine, fault))


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it does."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.02)


def readies(entries: Iterable[Entry]) -> list[Ready]:
    return [record for record in (decode_sends(entry.value) for entry in entries) if isinstance(record, Ready)]


def letters(entries: Iterable[Entry]) -> list[DeadLetter]:
    return [decode_dead_letter(entry.value) for entry in entries]


def value_of(counter: Any) -> float:
    return float(counter._value.get())


async def test_a_message_and_its_answer_pass_through(rig: Rig) -> None:
    """The whole of it: bot told, send handed over at the number's slot, statuses back under our id."""
    now = rig.clock.now()
    await rig.stage()
    admitted = value_of(metrics.sends_admitted.labels("admitted"))
    await rig.say(
        message("hello", now), request("one", now), outcome("one", "accepted", now), status("one", "sent", now)
    )
    told = await rig.until(deliveries("bot"), 2)
    assert [decode_delivery(entry.value).kind for entry in told] == ["message", "status"]
    assert {entry.key for entry in told} == {KEY.encode()}
    lane = await rig.everything("sends.reply")
    assert [(entry.partition, entry.key) for entry in lane] == [(3, KEY.encode())]
    assert readies(lane)[0].send_id == send_id("one")
    assert value_of(metrics.sends_admitted.labels("admitted")) == admitted + 1
    customer = unpack((await rig.states())[KEY.encode()])
    assert customer.sends == []
    assert len(customer.known) == 1


async def test_a_crash_between_fetch_and_commit_changes_nothing(rig: Rig) -> None:
    """The next owner is handed the same records and decides from the same state: each is told once."""
    now = rig.clock.now()
    crashes: list[int] = []

    def fault(step: Step) -> None:
        if len(crashes) < 3 and step.derived:
            crashes.append(len(step.derived))
            raise RuntimeError("died here")

    await rig.stage(odd(fault))
    await rig.say(message("hello", now), request("one", now))
    told = await rig.until(deliveries("bot"), 1)
    assert len(crashes) == 3
    assert len(told) == 1
    assert len(readies(await rig.everything("sends.reply"))) == 1


async def test_what_was_committed_is_what_is_restored(rig: Rig) -> None:
    """Windows, ids, dedupe and doubt survive the process; the position goes with them."""
    now = rig.clock.now()
    await rig.stage()
    await rig.say(message("hello", now), request("one", now), outcome("one", "accepted", now), request("two", now))
    await rig.until("sends.reply", 2)
    before = await rig.states()
    await rig.restart()
    await rig.stage()
    await rig.say(message("hello", now), request("two", now), outcome("two", "accepted", now))
    reply = request("three", now, body={"context": {"message_id": send_id("one")}})
    await rig.say(reply)
    assert len(await rig.until("sends.reply", 3)) == 3
    assert len(await rig.everything(deliveries("bot"))) == 1
    after = await rig.states()
    assert unpack(after[KEY.encode()]).windows == unpack(before[KEY.encode()]).windows
    assert len(unpack(after[KEY.encode()]).known) == 2


async def test_a_doubt_that_was_restored_is_decided_at_its_deadline(rig: Rig) -> None:
    """Deadlines stand in the state: nobody has to remember them for us."""
    now = rig.clock.now()
    await rig.stage()
    await rig.say(message("hello", now), request("code", now, send_class="otp"), outcome("code", "in_doubt", now))
    await rig.until("sends.reply", 1)
    await rig.restart()
    await rig.stage()
    await asyncio.sleep(0.5)
    assert len(await rig.everything("sends.reply")) == 1
    await rig.say(message("later", now + 10_000))
    rig.clock.ahead_ms += 6_000
    again = readies(await rig.until("sends.reply", 2))
    assert [ready.attempt for ready in again] == [1, 2]


async def test_a_record_that_crashes_is_set_aside_and_its_neighbours_live(rig: Rig) -> None:
    """Also those of the same customer, before and after it."""
    now = rig.clock.now()
    asked = request("odd", now)
    poison = SendRequest(**{name: getattr(asked, name) for name in asked.__struct_fields__} | {"send_id": "wamid.H"})
    restarts = value_of(metrics.actor_restarts.labels("customer"))
    await rig.say(message("a", now), poison, message("b", now), request("one", now))
    await rig.stage()
    assert len(await rig.until(deliveries("bot"), 2)) == 2
    (letter,) = letters(await rig.everything(DEADLETTERS))
    assert (letter.reason, letter.attempts, letter.log, letter.key) == ("poison", 3, CONVERSATIONS, KEY.encode())
    assert letter.value == encode(poison)
    assert "ValueError" in letter.detail
    assert len(await rig.everything("sends.reply")) == 1
    assert value_of(metrics.actor_restarts.labels("customer")) == restarts + 3
    assert len(rig.stages[0].crashes) == 0


@pytest.mark.parametrize(("key", "value"), [(KEY.encode(), b"\xc1"), (b"\xff\xfe", encode(message("x", 1_000)))])
async def test_what_cannot_be_read_is_set_aside_at_once(rig: Rig, key: bytes, value: bytes) -> None:
    """A newer version's record, or somebody else's: it can be replayed when we can read it."""
    await rig.stage()
    await rig.engine.append(CONVERSATIONS, [Draft(key, value)], 5.0)
    await rig.say(message("a", rig.clock.now()))
    await rig.until(deliveries("bot"), 1)
    (letter,) = letters(await rig.everything(DEADLETTERS))
    assert (letter.reason, letter.key, letter.value) == ("malformed", key, value)


@pytest.mark.parametrize("learned", [True, False], ids=["the answer comes", "it never does"])
async def test_what_waits_for_a_wamid_outlives_a_crash(rig: Rig, learned: bool) -> None:
    """A customer's tap that was quicker than the answer: it stands in the state, and its time ends without a record."""
    now = rig.clock.now()
    tap = message("tap", now, type="button", button={"payload": "P", "text": "T"}, context={"id": wamid("one")})
    await rig.say(message("a", now), request("one", now), tap, message("b", now))
    await rig.stage()
    await rig.until(deliveries("bot"), 1)
    await rig.restart()
    await rig.stage()
    assert len(await rig.until(deliveries("bot"), 1)) == 1
    if learned:
        await rig.say(outcome("one", "accepted", now))
    else:
        rig.clock.ahead_ms += HOLD_MS_MAX
    told = [decode_delivery(entry.value).body for entry in await rig.until(deliveries("bot"), 3)]
    assert [name.encode() in body for name, body in zip(map(wamid, ("a", "tap", "b")), told, strict=True)] == [True] * 3
    assert (send_id("one").encode() in told[1]) == learned


async def test_a_body_larger_than_metas_is_set_aside(rig: Rig) -> None:
    """Bots built for the Cloud API take 3 MiB, and no more; one that is just as large they get."""

    def sized(size: int) -> Item:
        return Item(
            kind="unknown", field="", app="", waba_id="", phone_number_id=NUMBER, dedupe="", at=0, received_at=1,
            body=b"x" * size,
        )  # fmt: skip

    large = sized(BODY_BYTES_MAX + 1)
    await rig.say(large)
    await rig.say(sized(BODY_BYTES_MAX))
    await rig.stage()
    (delivered,) = await rig.until(deliveries("bot"), 1)
    assert len(decode_delivery(delivered.value).body) == BODY_BYTES_MAX
    (letter,) = letters(await rig.everything(DEADLETTERS))
    assert letter.reason == "too_large"
    assert encode(large).startswith(letter.value)


async def test_an_engine_with_a_smaller_limit_costs_the_one_record_alone(rig: Rig) -> None:
    """A topic's limit may be set below ours; the rest of the batch is not at fault."""
    now = rig.clock.now()

    def fault(step: Step) -> None:
        if any(log.startswith("deliveries") and len(draft.value or b"") > 10_000 for log, draft in step.derived):
            raise RecordTooLarge("not more than 10 kB")

    texts = [message(str(index), now) for index in range(9)]
    texts[4] = message("4", now, type="text", text={"body": "x" * 20_000})
    await rig.say(*texts)
    await rig.stage(odd(fault))
    assert len(await rig.until(deliveries("bot"), 8)) == 8
    (letter,) = letters(await rig.everything(DEADLETTERS))
    assert letter.reason == "too_large"
    assert letter.value == encode(texts[4])


async def test_an_event_for_a_sink_that_is_gone_is_set_aside(rig: Rig) -> None:
    """The send was made while the sink existed; its status must not vanish, nor stop the partition."""
    now = rig.clock.now()
    await rig.stage()
    asked = request("one", now)
    gone = SendRequest(**{name: getattr(asked, name) for name in asked.__struct_fields__} | {"sink": "gone"})
    await rig.say(gone, message("a", now))
    await rig.until(deliveries("bot"), 1)
    (letter,) = letters(await rig.everything(DEADLETTERS))
    assert (letter.reason, letter.log) == ("unknown_sink", "deliveries.gone")
    assert b"131047" in decode_delivery(letter.value).body


async def test_two_members_share_and_take_over_without_loss_or_repetition(rig: Rig) -> None:
    """A partition moves while messages flow, back and forth: each message is told once, in order for each customer."""
    first = await rig.stage(records_max=7)
    await rig.held(first, 2)
    people = [f"main:1555000{number:04d}" for number in range(12)]
    told = 0

    async def talk(rounds: int) -> None:
        nonlocal told
        for _ in range(rounds):
            for person in people:
                await rig.say(message(f"{person} {told}", rig.clock.now()), key=person)
            told += 1
            await asyncio.sleep(0.01)

    talking = asyncio.create_task(talk(60))
    second = await rig.stage(records_max=7)
    await rig.held(first, 1)
    await rig.held(second, 1)
    for _ in range(5):
        await rig.engine.rebalance(CUSTOMER_STAGE.name)
        await asyncio.sleep(0.05)
    await first.stop()
    await rig.held(second, 2)
    async with asyncio.timeout(WAIT_S):
        await talking
    entries = await rig.until(deliveries("bot"), 60 * len(people))
    by_person: dict[bytes, list[bytes]] = {}
    for entry in entries:
        by_person.setdefault(entry.key, []).append(decode_delivery(entry.value).body)
    assert len(entries) == 60 * len(people)
    for person in people:
        wanted = [message(f"{person} {number}", 0).wamid.encode() for number in range(60)]
        assert all(wamid in body for wamid, body in zip(wanted, by_person[person.encode()], strict=True))


async def test_a_fenced_owner_leaves_no_half_step(rig: Rig) -> None:
    """A successor took over while it decided: its step is refused, and decided again from what stands."""
    stage = await rig.stage()
    await rig.held(stage, 2)
    for partition in range(2):
        await rig.engine.seize(CUSTOMER_STAGE, partition)
    now = rig.clock.now()
    await rig.say(message("a", now), request("one", now))
    assert len(await rig.until(deliveries("bot"), 1)) == 1
    assert len(await rig.everything("sends.reply")) == 1


async def test_silence_makes_states_small_and_at_last_ends_them(rig: Rig) -> None:
    """Millions of customers come once."""
    now = rig.clock.now()
    await rig.stage(sweep_s=0.05)
    await rig.say(message("a", now))
    await rig.until(deliveries("bot"), 1)
    assert unpack((await rig.states())[KEY.encode()]).taken != b""
    rig.clock.ahead_ms += QUIET_AFTER_MS + 2 * 3_600_000

    async def is_small() -> bool:
        return unpack((await rig.states())[KEY.encode()]).taken == b""

    await eventually(is_small)
    rig.clock.ahead_ms += 30 * 24 * 3_600_000

    async def is_gone() -> bool:
        return not (await rig.states()).get(KEY.encode())

    await eventually(is_gone)


async def test_metrics_of_what_is_held_go_back_when_it_is_let_go(rig: Rig) -> None:
    """A gauge that only grows is no gauge."""
    live, unknown = value_of(metrics.actors_live.labels("customer")), value_of(metrics.sends_unknown)
    now = rig.clock.now()
    stage = await rig.stage()
    await rig.say(message("a", now), request("one", now), outcome("one", "in_doubt", now))
    await rig.until("sends.reply", 1)
    assert value_of(metrics.actors_live.labels("customer")) == live + 2, "and their BSUID's address"
    assert value_of(metrics.sends_unknown) == unknown + 1
    await stage.stop()
    assert value_of(metrics.actors_live.labels("customer")) == live
    assert value_of(metrics.sends_unknown) == unknown


async def test_routes_that_changed_are_decided_by_from_the_next_batch_on(rig: Rig) -> None:
    """Without a restart, and with all that is remembered: what came twice is still taken once."""
    stage = await rig.stage()
    first = message("first", rig.clock.now())
    await rig.say(first)
    await rig.until(deliveries("bot"), 1, settle_s=0.0)
    everything = Route(name="everything", then=Then(sinks=["audit"]))
    stage.adopt(context_of(replace(QUICK, routes=[everything])))
    await rig.say(first, message("second", rig.clock.now()))
    (entry,) = await rig.until(deliveries("audit"), 1)
    assert b"wamid" in decode_delivery(entry.value).body
    assert len(await rig.everything(deliveries("bot"))) == 1


async def test_the_worst_pattern_holds_up_its_partition_and_nothing_else(rig: Rig) -> None:
    """A process has leases to renew and other stages to run, whatever an operator asks of whatever a customer wrote."""
    stage = await rig.stage()
    await rig.say(message("hello", rig.clock.now()))  # who is met for the first time is decided about in one go
    await rig.until(deliveries("bot"), 1, settle_s=0.0)
    slow = Route(name="slow", when=When(regex="(?:a?){1000}a{1000}b"), then=Then(sinks=["audit"]))
    stage.adopt(context_of(replace(QUICK, routes=[slow, *QUICK.routes])))
    text: dict[str, Any] = {"type": "text", "text": {"body": "a" * 4_095}}
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            began = asyncio.get_running_loop().time()
            await asyncio.sleep(0.005)
            gaps.append(asyncio.get_running_loop().time() - began)

    ticking = asyncio.create_task(tick())
    await rig.say(*(message(f"m{number}", rig.clock.now(), **text) for number in range(15)))
    await rig.until(deliveries("bot"), 16, settle_s=0.0)
    ticking.cancel()
    slow_gaps = [gap for gap in gaps if gap > 0.02]
    assert len(slow_gaps) >= 4, "a timer and its task take three turns of the loop, and a turn is one message"
    assert max(slow_gaps) < sum(slow_gaps) / 2
