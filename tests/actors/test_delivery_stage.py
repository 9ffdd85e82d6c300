"""The delivery stage on the real embedded log, with real bots on loopback: order, isolation, patience, restarts."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from standardwebhooks import Webhook

from broker import metrics
from broker.clock import SystemClock
from broker.core.addresses import AddressGuard
from broker.core.breaker import BreakerLimits
from broker.core.retry import Schedule
from broker.core.watermark import Watermark
from broker.log.catalogue import CONTROL, CONVERSATIONS, DEADLETTERS, DELIVERY_GROUP, deliveries
from broker.log.contract import Draft, Follow, LogSpec
from broker.log.embedded import EmbeddedLog
from broker.secrets import Secret
from schemas.records import (
    DeadLetter,
    DeliveryEvent,
    DeliveryFailed,
    RouteDebounce,
    SinkControl,
    decode_conversation,
    decode_dead_letter,
    decode_delivery,
    encode,
)
from schemas.settings import SecretSource, SinkSettings
from tests.actors.bots import Bot, Seen, take, until
from workers.connector import Connector
from workers.delivery import DeliveryLimits, DeliveryStage
from workers.poster import Poster
from workers.sinks import Request, Target

PARTITIONS = 2
QUICK = DeliveryLimits(
    commit_every_s=0.05,
    schedule=Schedule(pauses_s=(0.02, 0.05, 0.1)),
    breaker=BreakerLimits(cool_down_s=0.1, cool_down_s_max=0.3, taken_lately_s=0.2),
)
"""The stage's own times, a hundred times shorter."""


def target(bot: Bot, name: str = "bot", kind: Literal["meta", "standard"] = "meta", **settings: float | str) -> Target:
    secret = "whsec_" + b64encode(bytes(32)).decode() if kind == "standard" else "app secret"
    return Target(
        SinkSettings(
            name=name,
            kind=kind,
            url=bot.url,
            secret=SecretSource(env="X"),
            partitions=PARTITIONS,
            **settings,  # type: ignore[arg-type]
        ),
        [Secret(secret)],
    )


def value(customer: str, number: int, kind: str = "message", debounce: RouteDebounce | None = None) -> bytes:
    body = json.dumps({"c": customer, "n": number, "text": "ä"}).encode()
    return encode(
        DeliveryEvent(
            delivery_id=f"evt_{customer}_{number}",
            kind=kind,
            phone_number_id="1",
            customer=customer,
            body=body,
            at=1_700_000_000_000 + number,
            accepted_at=1_700_000_000_000 + number,
            debounce=debounce,
        )
    )


class World:
    """A log in a folder, an HTTP client, and whatever stages a test starts."""

    def __init__(self, path: Path, sinks: Sequence[str] = ("bot",)) -> None:
        self.path = path
        self.sinks = sinks
        self.clock = SystemClock()
        self.log = self._new_log()
        self.connector = Connector(AddressGuard(allow=["127.0.0.0/8"]))
        self.stages: list[DeliveryStage] = []
        self.bots: list[Bot] = []

    def _new_log(self) -> EmbeddedLog:
        specs = [
            *(LogSpec(deliveries(name), PARTITIONS) for name in self.sinks),
            LogSpec(CONVERSATIONS, 4),
            LogSpec(DEADLETTERS, 1),
            LogSpec(CONTROL, 1, "last"),
        ]
        return EmbeddedLog(self.path, specs, clock=self.clock, rng=random.Random(5))

    async def bot(self, *args: object) -> Bot:
        bot = Bot(*args)  # type: ignore[arg-type]
        await bot.start()
        self.bots.append(bot)
        return bot

    async def deliver(
        self, *targets: Target, limits: DeliveryLimits = QUICK, poster: Poster | None = None
    ) -> DeliveryStage:
        poster = poster if poster is not None else self.connector
        stage = DeliveryStage(self.log, targets, poster, self.clock, random.Random(7), limits)
        await stage.start()
        self.stages.append(stage)
        return stage

    async def append(
        self,
        customer: str,
        *numbers: int,
        sink: str = "bot",
        kind: str = "message",
        debounce: RouteDebounce | None = None,
    ) -> None:
        drafts = [Draft(customer.encode(), value(customer, number, kind, debounce)) for number in numbers]
        await self.log.append(deliveries(sink), drafts, 10.0)

    async def dead_letters(self) -> list[DeadLetter]:
        return [decode_dead_letter(entry.value) async for entry in self.log.read(DEADLETTERS, 0)]

    async def told(self) -> list[DeliveryFailed]:
        records = []
        for partition in range(4):
            async for entry in self.log.read(CONVERSATIONS, partition):
                record = decode_conversation(entry.value)
                assert isinstance(record, DeliveryFailed)
                assert entry.key == record.delivery_id.split("_")[1].encode()
                records.append(record)
        return records

    async def crash_and_reopen(self) -> None:
        """Take the log away under the stages, as the death of the process would, and open it again."""
        await self.log.close()
        for stage in self.stages:
            await stage.stop()
        self.stages.clear()
        self.log = self._new_log()
        await self.log.start()

    async def close(self) -> None:
        for stage in self.stages:
            await stage.stop()
        await self.log.close()
        await self.connector.stop()
        for bot in self.bots:
            await bot.stop()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        world = World(tmp_path / "log", ("bot", "other"))
        await world.log.start()
        await world.connector.start()
        stack.push_async_callback(world.close)
        yield world


def committed(stage: DeliveryStage) -> Callable[[], bool]:
    """Whether nothing that was read is open and all of it is committed."""
    return lambda: all(
        partition.oldest_at() is None and not partition._has_news and partition._working is None
        for partition in stage._running
    )


async def test_order_per_customer_holds_under_every_kind_of_failure(world: World) -> None:
    """First deliveries follow the log; a retry is never overtaken inside its conversation."""
    rng = random.Random(11)

    async def moody(customer: str, number: int, earlier: int) -> int:
        await asyncio.sleep(rng.random() * 0.01)
        return 200 if rng.random() < 0.6 else rng.choice([500, 503, 422, 429])

    bot = await world.bot(moody)
    customers = [f"c{index}" for index in range(20)]
    await world.deliver(target(bot), limits=DeliveryLimits(schedule=Schedule(pauses_s=(0.01,)), breaker=QUICK.breaker))
    for number in range(8):
        for customer in customers:
            await world.append(customer, number)
    await until(lambda: len(bot.taken()) == 160, 60)
    assert {customer: bot.numbers(customer) for customer in customers} == {c: list(range(8)) for c in customers}
    assert bot.overlaps == 0, "one in flight for each customer"
    assert bot.most_under_way > 4, "many customers at once"


async def test_one_customers_failing_event_holds_up_nobody_else(world: World) -> None:
    """One customer's trouble never delays another's; what they are done with is committed past the failing head."""

    async def refuse_one(customer: str, number: int, earlier: int) -> int:
        return 422 if (customer, number) == ("bad", 0) else 200

    bot = await world.bot(refuse_one)
    stage = await world.deliver(target(bot))
    await world.append("bad", 0, 1)
    for number in range(30):
        for customer in ("a", "b", "c", "d"):
            await world.append(customer, number)
    await until(lambda: len(bot.taken()) == 120)
    assert bot.numbers("bad") == []
    await until(lambda: not any(partition._has_news for partition in stage._running))
    await stage.stop()
    stuck = world.log.partition_of(deliveries("bot"), b"bad")
    offset, text = await committed_position(world.log, deliveries("bot"), stuck)
    assert offset == 0
    ends = await world.log.ends(deliveries("bot"))
    assert list(Watermark.from_text(offset, text).runs) == [(2, ends[stuck][1])]


async def committed_position(log: EmbeddedLog, name: str, partition: int) -> tuple[int, str]:
    """Join the group for a moment and read what was committed."""
    found: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    async def look(follow: Follow) -> None:
        offset, text = await follow.restore()
        if follow.partition == partition and not found.done():
            found.set_result((offset or 0, text))
        await asyncio.sleep(60)

    membership = await log.follow(DELIVERY_GROUP, [name], look)
    try:
        return await asyncio.wait_for(found, 10)
    finally:
        await membership.leave()


async def test_a_dead_bot_leaves_the_other_sinks_alone_and_catches_up_in_order(world: World) -> None:
    """Its events wait in its own log, the breaker is open; when it is back everything comes, in order."""
    dead, well = await world.bot(), await world.bot()
    await dead.stop()
    stage = await world.deliver(target(dead), target(well, "other"))
    customers = [f"c{index}" for index in range(15)]
    for number in range(4):
        for customer in customers:
            await world.append(customer, number)
            await world.append(customer, number, sink="other")
    await until(lambda: len(well.taken()) == 60)
    await until(lambda: metrics.delivery_breaker_open.labels("bot")._value.get() == 1)
    assert metrics.delivery_breaker_open.labels("other")._value.get() == 0
    await dead.start()
    await until(lambda: len(dead.taken()) == 60)
    for customer in customers:
        assert dead.numbers(customer) == [0, 1, 2, 3]
        assert well.numbers(customer) == [0, 1, 2, 3]
    assert metrics.delivery_breaker_open.labels("bot")._value.get() == 0
    assert await world.dead_letters() == []
    await until(committed(stage))


async def test_a_sink_that_moved_gets_what_waits_at_its_new_place_with_its_new_secret(world: World) -> None:
    """An operator mends a dead url without a restart: what failed there goes to the new one, in order."""
    old, new = await world.bot(), await world.bot()
    await old.stop()
    stage = await world.deliver(target(old))
    customers = [f"c{index}" for index in range(15)]
    for customer in customers:
        await world.append(customer, 0, 1, 2)
    await until(lambda: metrics.delivery_breaker_open.labels("bot")._value.get() == 1)
    moved = target(new)
    stage.use_targets([Target(moved.settings, [Secret("another secret")])])
    await until(lambda: len(new.taken()) == 45)
    assert {customer: new.numbers(customer) for customer in customers} == {each: [0, 1, 2] for each in customers}
    for seen in new.seen:
        expected = hmac.new(b"another secret", seen.body, hashlib.sha256).hexdigest()
        assert seen.headers["X-Hub-Signature-256"] == f"sha256={expected}"
    await until(committed(stage))


async def test_nothing_but_a_probe_is_attempted_while_the_breaker_is_open(world: World) -> None:
    """A sink that struggles is left alone; the probe is the oldest head, and another one when that fails."""
    up = False

    async def overloaded(customer: str, number: int, earlier: int) -> int:
        return 200 if up else 503

    bot = await world.bot(overloaded)
    limits = DeliveryLimits(
        commit_every_s=0.05, schedule=QUICK.schedule, breaker=BreakerLimits(cool_down_s=0.3, cool_down_s_max=0.3)
    )
    await world.deliver(target(bot), limits=limits)
    for index in range(40):
        await world.append(f"c{index:02}", 0)
    await until(lambda: metrics.delivery_breaker_open.labels("bot")._value.get() == 1)
    await asyncio.sleep(0.05)  # what was under way ends
    before = len(bot.seen)
    await asyncio.sleep(1.0)
    probes = [(seen.customer, seen.number) for seen in bot.seen[before:]]
    assert 2 <= len(probes) <= 4, "one for each cool-down of 0.30 to 0.36 s"
    assert len(set(probes)) == len(probes), "never the same witness twice"
    up = True
    await until(lambda: len(bot.taken()) == 40)


async def test_a_failing_event_becomes_a_dead_letter_after_its_time_and_the_next_is_tried(world: World) -> None:
    """Ten minutes in production; the conversation is told, and nothing of it is lost."""

    async def refuse_first(customer: str, number: int, earlier: int) -> int:
        return 422 if number == 0 else 200

    bot = await world.bot(refuse_first)
    stage = await world.deliver(target(bot, give_up_after_s=0.4))
    begun = world.clock.monotonic()
    await world.append("a", 0, 1, 2)
    await until(lambda: bot.numbers("a") == [1, 2])
    assert world.clock.monotonic() - begun >= 0.4
    (letter,) = await world.dead_letters()
    assert letter.log == deliveries("bot")
    assert (letter.key, letter.value) == (b"a", value("a", 0))
    assert (letter.stage, letter.reason, letter.detail) == ("delivery", "gave_up", "status 422")
    assert letter.attempts == len([seen for seen in bot.seen if seen.number == 0])
    (told,) = await world.told()
    assert (told.delivery_id, told.sink, told.reason) == ("evt_a_0", "bot", "gave_up")
    await until(committed(stage))


async def test_a_dead_sinks_events_are_never_given_up(world: World) -> None:
    """Even those of two customers, too few for a breaker: that the sink is down is not their fault."""
    bot = await world.bot()
    await bot.stop()
    await world.deliver(target(bot, give_up_after_s=0.1))
    await world.append("a", 0)
    await world.append("b", 0)
    await asyncio.sleep(1.0)
    assert await world.dead_letters() == []
    await bot.start()
    await until(lambda: sorted(bot.taken()) == [("a", 0), ("b", 0)])
    assert await world.dead_letters() == []


async def test_a_bot_that_fails_at_everything_costs_one_event_at_most(world: World) -> None:
    """Its program answers 500 to all two customers: one event is spent on finding out, the rest waits for it."""
    up = False

    async def broken(customer: str, number: int, earlier: int) -> int:
        return 200 if up else 500

    bot = await world.bot(broken)
    await world.deliver(target(bot, give_up_after_s=0.2))
    await world.append("a", 0, 1, 2)
    await world.append("b", 0, 1, 2)
    await asyncio.sleep(1.5)
    assert len(await world.dead_letters()) == 1
    up = True
    await until(lambda: len(bot.taken()) == 5)
    (letter,) = await world.dead_letters()
    assert letter.value == value("a", 0), "the one that had failed longest"
    assert (bot.numbers("a"), bot.numbers("b")) == ([1, 2], [0, 1, 2])


async def test_two_indigestible_events_are_found_out_without_anybody_elses_help(world: World) -> None:
    """At night only two customers write, and each sent what crashes the bot: neither waits for the morning."""

    async def crashes(customer: str, number: int, earlier: int) -> int:
        return 500 if number == 0 else 200

    bot = await world.bot(crashes)
    await world.deliver(target(bot, give_up_after_s=0.3))
    await world.append("a", 0, 1)
    await world.append("b", 0, 1)
    await until(lambda: sorted(bot.taken()) == [("a", 1), ("b", 1)])
    assert [letter.value for letter in await world.dead_letters()] == [value("a", 0), value("b", 0)]


async def test_an_event_that_crashes_the_bot_does_not_keep_its_breaker_open(world: World) -> None:
    """The oldest head is the indigestible one: others must be probes, too, or nothing would ever move."""
    up = False

    async def crashes_on_one(customer: str, number: int, earlier: int) -> int:
        return 200 if up and customer != "poison" else 500

    bot = await world.bot(crashes_on_one)
    await world.deliver(target(bot, give_up_after_s=0.5))
    await world.append("poison", 0, 1)
    for index in range(30):
        await world.append(f"c{index}", 0)
    await until(lambda: metrics.delivery_breaker_open.labels("bot")._value.get() == 1)
    up = True
    await until(lambda: len(bot.taken()) == 30)
    for number in range(1, 40):  # evidence that the sink works, while the poison is tried on
        await world.append("c1", number)
        await asyncio.sleep(0.03)
    await until(lambda: len(bot.taken()) == 69)
    letters = await world.dead_letters()
    assert [letter.value for letter in letters][:1] == [value("poison", 0)]
    assert all(letter.key == b"poison" for letter in letters)


async def test_a_restart_delivers_again_only_what_was_not_done(world: World) -> None:
    """The map beside the commit: 59 events done above an open head are not sent twice."""
    hold = asyncio.Event()

    async def hang_on_first(customer: str, number: int, earlier: int) -> int:
        if (customer, number) == ("slow", 0):
            await hold.wait()
        return 200

    bot = await world.bot(hang_on_first)
    stage = await world.deliver(target(bot))
    await world.append("slow", 0, 1)
    for number in range(20):
        for customer in ("a", "b", "c"):
            await world.append(customer, number)
    await until(lambda: len(bot.taken()) == 60)
    await until(lambda: not any(partition._has_news for partition in stage._running))
    await world.crash_and_reopen()
    hold.set()
    await world.deliver(target(bot))
    await world.append("a", 20)
    await until(lambda: bot.numbers("slow")[-2:] == [0, 1] and bot.numbers("a")[-1] == 20)
    assert [bot.numbers(customer) for customer in ("b", "c")] == [list(range(20))] * 2
    assert bot.numbers("a") == list(range(21))


async def test_a_retry_is_the_same_bytes_under_the_same_signature(world: World) -> None:
    """A bot that compares or dedupes by body must see that it is the same."""

    async def third_time(customer: str, number: int, earlier: int) -> int:
        return 200 if earlier == 2 else 500

    bot = await world.bot(third_time)
    await world.deliver(target(bot))
    await world.append("a", 0)
    await until(lambda: bot.numbers("a") == [0])
    assert len(bot.seen) == 3
    assert len({seen.body for seen in bot.seen}) == 1
    assert b"\\u00e4" in bot.seen[0].body
    expected = "sha256=" + hmac.new(b"app secret", bot.seen[0].body, hashlib.sha256).hexdigest()
    assert {seen.headers["X-Hub-Signature-256"] for seen in bot.seen} == {expected}


async def test_a_standard_sink_verifies_every_attempt(world: World) -> None:
    """Same id and body, and a signature of the attempt's own time."""

    async def second_time(customer: str, number: int, earlier: int) -> int:
        return 200 if earlier else 503

    bot = await world.bot(second_time)
    await world.deliver(target(bot, kind="standard"))
    await world.append("a", 0)
    await until(lambda: bot.numbers("a") == [0])
    for seen in bot.seen:
        said = Webhook("whsec_" + b64encode(bytes(32)).decode()).verify(seen.body, seen.headers)
        assert said["data"]["c"] == "a"
        assert seen.headers["webhook-id"] == "evt_a_0"


async def test_what_cannot_be_read_is_a_dead_letter_and_its_neighbours_go_on(world: World) -> None:
    """Nothing is dropped in silence, and one bad record stops nobody."""
    bot = await world.bot()
    stage = await world.deliver(target(bot))
    await world.append("a", 0)
    await world.log.append(deliveries("bot"), [Draft(b"a", b"\xc1 no record")], 10.0)
    await world.append("a", 1)
    await until(lambda: bot.numbers("a") == [0, 1])
    (letter,) = await world.dead_letters()
    assert (letter.reason, letter.value) == ("malformed", b"\xc1 no record")
    assert await world.told() == [], "nobody knows which delivery it was"
    await until(committed(stage))


async def test_an_event_that_crashes_us_thrice_is_set_aside(world: World) -> None:
    """A bug of ours in rendering one event stops neither its customer nor the partition."""
    bot = await world.bot()
    tries = 0

    class Buggy(Target):
        def render(self, event: DeliveryEvent, now: int) -> Request:
            nonlocal tries
            if event.delivery_id == "evt_a_1":
                tries += 1
                raise ZeroDivisionError("in the renderer")
            return super().render(event, now)

    sound = target(bot)
    stage = await world.deliver(Buggy(sound.settings, [Secret("app secret")]))
    await world.append("a", 0, 1, 2)
    await world.append("b", 0)
    await until(lambda: bot.numbers("a") == [0, 2])
    assert bot.numbers("b") == [0]
    assert tries == 3
    (letter,) = await world.dead_letters()
    assert (letter.reason, letter.attempts) == ("poison", 3)
    assert "ZeroDivisionError" in letter.detail
    (told,) = await world.told()
    assert told.delivery_id == "evt_a_1"
    await until(committed(stage))


async def test_a_crash_of_the_http_client_sets_nothing_aside(world: World) -> None:
    """A bug there would hit every event: they wait, as they do for a dead sink."""
    bot = await world.bot()

    class Flaky:
        def __init__(self, inner: Poster) -> None:
            self.inner = inner
            self.crashes = 0

        async def post(self, url: str, headers: object, body: bytes, timeout_s: float) -> object:
            if self.crashes < 6:
                self.crashes += 1
                raise RuntimeError("in the client")
            return await self.inner.post(url, headers, body, timeout_s)  # type: ignore[arg-type]

    await world.deliver(target(bot), poster=Flaky(world.connector))  # type: ignore[arg-type]
    await world.append("a", 0)
    await until(lambda: bot.numbers("a") == [0])
    assert await world.dead_letters() == []


async def test_no_more_is_read_than_can_be_held_and_all_of_it_arrives(world: World) -> None:
    """Memory is bounded while a sink is down; the log is what holds the rest."""
    bot = await world.bot()
    await bot.stop()
    limits = DeliveryLimits(pending_records_max=25, commit_every_s=0.05, schedule=QUICK.schedule, breaker=QUICK.breaker)
    stage = await world.deliver(target(bot), limits=limits)
    for index in range(300):
        await world.append(f"c{index % 60}", index // 60)
    await asyncio.sleep(0.3)
    assert max(len(partition._open) for partition in stage._running) == 25
    await bot.start()
    await until(lambda: len(bot.taken()) == 300)
    assert all(bot.numbers(f"c{index}") == [0, 1, 2, 3, 4] for index in range(60))


async def test_bytes_are_bounded_like_records(world: World) -> None:
    """Two thousand events of 3 MB would be six gigabytes."""
    bot = await world.bot()
    await bot.stop()
    limits = DeliveryLimits(
        pending_bytes_max=2_000, commit_every_s=0.05, schedule=QUICK.schedule, breaker=QUICK.breaker
    )
    stage = await world.deliver(target(bot), limits=limits)
    await world.append("a", *range(5))
    await until(lambda: sum(len(partition._open) for partition in stage._running) == 5)
    for number in range(5, 300):
        await world.append("a", number)
    await asyncio.sleep(0.2)
    assert sum(len(partition._open) for partition in stage._running) < 250
    await bot.start()
    await until(lambda: len(bot.taken()) == 300)
    assert bot.numbers("a") == list(range(300))


async def test_stopping_finishes_what_is_under_way_and_begins_nothing_new(world: World) -> None:
    """A deployment costs no repetition: what was under way is done and committed before we leave."""

    async def takes_its_time(customer: str, number: int, earlier: int) -> int:
        await asyncio.sleep(0.3)
        return 200

    bot = await world.bot(takes_its_time)
    stage = await world.deliver(target(bot))
    for index in range(5):
        await world.append(f"c{index}", 0, 1)
    await until(lambda: sum(bot.under_way.values()) == 5)
    await stage.stop()
    assert sorted(bot.taken()) == [(f"c{index}", 0) for index in range(5)]
    await asyncio.sleep(0.1)
    assert len(bot.seen) == 5
    await world.deliver(target(bot))
    await until(lambda: len(bot.taken()) == 10)
    assert all(bot.numbers(f"c{index}") == [0, 1] for index in range(5)), "nothing came twice"


async def test_stopping_waits_five_seconds_for_a_silent_bot_and_no_longer(world: World) -> None:
    """A rebalance must not wait for a bot; its event is delivered again by whoever comes next."""

    async def hangs_once(customer: str, number: int, earlier: int) -> int:
        if earlier == 0:
            await asyncio.sleep(30)
        return 200

    bot = await world.bot(hangs_once)
    stage = await world.deliver(target(bot))
    await world.append("a", 0, 1)
    await until(lambda: sum(bot.under_way.values()) == 1)
    begun = world.clock.monotonic()
    await stage.stop()
    assert 4.0 < world.clock.monotonic() - begun < 9.0
    bot.answer = take
    await world.deliver(target(bot))
    await until(lambda: bot.numbers("a") == [0, 1])


async def test_a_lease_that_moves_keeps_order_and_repeats_nothing(world: World) -> None:
    """A second process joins in the middle, later the first leaves: still each event once, in order."""

    async def takes_a_moment(customer: str, number: int, earlier: int) -> int:
        await asyncio.sleep(0.005)
        return 200

    bot = await world.bot(takes_a_moment)
    customers = [f"c{index}" for index in range(30)]
    for number in range(20):
        for customer in customers:
            await world.append(customer, number)
    first = await world.deliver(target(bot, in_flight_max=2))
    await until(lambda: len(bot.taken()) > 50)
    second = await world.deliver(target(bot, in_flight_max=2))
    await until(lambda: len(second.held()) == 1)
    assert len(first.held()) == 1
    await until(lambda: len(bot.taken()) > 250)
    await first.stop()
    await until(lambda: len(second.held()) == PARTITIONS)
    await until(lambda: len(bot.taken()) >= 600, 60)
    await until(committed(second))
    assert {customer: bot.numbers(customer) for customer in customers} == {c: list(range(20)) for c in customers}


async def test_the_backlog_and_its_age_are_shown(world: World) -> None:
    """What an operator sees of a sink that is down."""
    bot = await world.bot()
    await bot.stop()
    appended_at = world.clock.now()
    await world.append("a", 0, 1, 2)
    stage = await world.deliver(target(bot))
    await until(lambda: len(stage._running) == PARTITIONS)
    await until(lambda: metrics.delivery_pending_records.labels("bot")._value.get() == 3)
    oldest = metrics.delivery_oldest_pending_timestamp.labels("bot")._value.get()
    assert abs(oldest - appended_at / 1_000) < 5


async def said(world: World, sink: str, *, paused: bool) -> None:
    await world.log.append(CONTROL, [Draft(sink.encode(), encode(SinkControl(sink, paused, 1)))], 10.0)


async def test_a_paused_sink_gets_nothing_until_it_is_resumed_and_then_all_in_order(world: World) -> None:
    """An operator holds one bot back while it is mended; the other goes on, and nothing is lost or given up."""
    bot, other = await world.bot(), await world.bot()
    stage = await world.deliver(target(bot, give_up_after_s=0.1), target(other, "other"))
    await world.append("a", 0)
    await until(lambda: bot.numbers("a") == [0])
    await said(world, "bot", paused=True)
    await until(lambda: metrics.delivery_paused.labels("bot")._value.get() == 1)
    await world.append("a", 1, 2)
    await world.append("b", 0)
    await world.append("a", 0, sink="other")
    await until(lambda: other.numbers("a") == [0])
    await asyncio.sleep(0.3)
    assert len(bot.seen) == 1
    await said(world, "bot", paused=False)
    await until(lambda: (bot.numbers("a"), bot.numbers("b")) == ([0, 1, 2], [0]))
    assert await world.dead_letters() == []
    await until(committed(stage))


async def test_a_pause_outlives_a_restart(world: World) -> None:
    """Nothing is delivered before the control log was read: a pause that a crash ends would be none."""
    await said(world, "bot", paused=False)
    await said(world, "nobody", paused=True)
    await said(world, "bot", paused=True)
    await world.append("a", 0)
    bot = await world.bot()
    await world.deliver(target(bot))
    await asyncio.sleep(0.3)
    await world.crash_and_reopen()
    await world.deliver(target(bot))
    await asyncio.sleep(0.3)
    assert bot.seen == []
    await said(world, "bot", paused=False)
    await until(lambda: bot.numbers("a") == [0])


async def test_a_control_record_of_a_version_to_come_is_passed_over(world: World) -> None:
    """An older worker beside newer ones: it knows less, and must not stand still for it."""
    await world.log.append(CONTROL, [Draft(b"bot", b"of a version to come")], 10.0)
    bot = await world.bot()
    await world.deliver(target(bot))
    await world.append("a", 0)
    await until(lambda: bot.numbers("a") == [0])


async def test_a_replayed_event_says_so_and_is_the_same_otherwise(world: World) -> None:
    """A bot that compares bodies finds its own; one that looks at headers knows why it comes again."""
    bot = await world.bot()
    await world.deliver(target(bot))
    await world.append("a", 0)
    again = msgspec.structs.replace(decode_delivery(value("a", 0)), replayed_at=1_700_000_000_000)
    await world.log.append(deliveries("bot"), [Draft(b"a", encode(again))], 10.0)
    await until(lambda: bot.numbers("a") == [0, 0])
    first, second = bot.seen
    assert first.body == second.body
    assert "X-Depesche-Replay" not in first.headers
    assert second.headers["X-Depesche-Replay"] == "2023-11-14T22:13:20.000Z"


async def no_metadata(customer: str, number: int, earlier: int) -> int:
    """whatsapp-api-js 6.3.0 answers 500 to an update without `metadata`, such as those of an account."""
    return 500 if customer.startswith("waba") else 200


async def test_a_bot_that_fails_at_one_kind_of_update_goes_on_with_all_others(world: World) -> None:
    """A night's account updates, long after the last message: no breaker opens, the next customer waits for nothing."""
    bot = await world.bot(no_metadata)
    await world.deliver(target(bot, give_up_after_s=30))
    await world.append("a", 0)
    await until(lambda: bot.numbers("a") == [0])
    await asyncio.sleep(0.3)  # longer than `taken_lately_s`
    for index in range(20):
        await world.append(f"waba{index}", 0, kind="account")
    await until(lambda: len({seen.customer for seen in bot.seen}) == 21)
    assert metrics.delivery_breaker_open.labels("bot")._value.get() == 0
    begun = world.clock.monotonic()
    for number in range(1, 11):
        await world.append("a", number)
    await until(lambda: bot.numbers("a") == list(range(11)))
    assert world.clock.monotonic() - begun < 2.0
    assert await world.dead_letters() == []


async def test_a_kind_of_update_the_bot_cannot_take_does_not_keep_its_breaker_open(world: World) -> None:
    """A fresh worker meets account updates first and opens; a customer who writes then is served all the same."""
    bot = await world.bot(no_metadata)
    limits = DeliveryLimits(
        commit_every_s=0.05,
        schedule=QUICK.schedule,
        breaker=BreakerLimits(cool_down_s=60, cool_down_s_max=300, taken_lately_s=0.2),
    )
    await world.deliver(target(bot, give_up_after_s=0.5), limits=limits)
    for index in range(30):
        await world.append(f"waba{index}", 0, 1, kind="account")
    await until(lambda: metrics.delivery_breaker_open.labels("bot")._value.get() == 1)
    await world.append("a", 0)
    await until(lambda: bot.numbers("a") == [0], 5)
    await until(lambda: metrics.delivery_breaker_open.labels("bot")._value.get() == 0)
    for number in range(1, 60):  # others are taken meanwhile: evidence that it is the updates' own trouble
        await world.append("a", number)
        await asyncio.sleep(0.02)
    await until(lambda: bot.numbers("a") == list(range(60)), 5)
    letters = await world.dead_letters()
    assert letters
    assert all(letter.key.startswith(b"waba") for letter in letters)


async def test_a_sink_that_is_down_hands_its_customers_over_and_takes_them_back_in_order(world: World) -> None:
    """While it is down its stand-in has all of a customer's events, one after the other; then it has them again."""
    bot, other = await world.bot(), await world.bot()
    order: list[tuple[str, str, int]] = []

    def noting(name: str) -> Callable[[str, int, int], Awaitable[int]]:
        async def take_and_note(customer: str, number: int, earlier: int) -> int:
            await asyncio.sleep(0.005)
            order.append((name, customer, number))
            return 200

        return take_and_note

    bot.answer, other.answer = noting("bot"), noting("other")
    stage = await world.deliver(target(bot, failover_to="other", failover_after_s=0.4), target(other, "other"))
    customers = [f"c{index}" for index in range(15)]
    await world.append("c0", 0)
    await until(lambda: bot.numbers("c0") == [0])
    await bot.stop()
    for number in range(1, 4):
        for customer in customers:
            await world.append(customer, number)
    await until(lambda: metrics.delivery_breaker_open.labels("bot")._value.get() == 1)
    await asyncio.sleep(0.1)
    assert other.seen == [], "not before its time"
    await until(lambda: all(other.numbers(customer) == [1, 2, 3] for customer in customers))
    assert metrics.delivery_failed_over.labels("bot")._value.get() == 1
    assert {seen.headers["X-Depesche-Instead-Of"] for seen in other.seen} == {"bot"}
    assert bot.numbers("c1") == []
    await bot.start()
    for number in range(4, 40):
        for customer in customers[:5]:
            await world.append(customer, number)
        await asyncio.sleep(0.02)
    await until(lambda: len({(customer, number) for _, customer, number in order}) == 1 + 45 + 180)
    assert metrics.delivery_failed_over.labels("bot")._value.get() == 0
    assert len(order) == 1 + 45 + 180, "nothing twice: no attempt was in doubt"
    for customer in customers:
        own = [number for _, whose, number in order if whose == customer]
        assert own == sorted(own)
    assert [name for name, _, _ in order][-100:] == ["bot"] * 100, "it has them all again"
    assert await world.dead_letters() == []
    await until(committed(stage))


async def test_a_stand_in_that_is_down_too_does_not_keep_the_sink_from_being_tried(world: World) -> None:
    """Everybody waits at the stand-in's gate, and one of them is called back to try the sink when it may be well."""
    bot, other = await world.bot(), await world.bot()
    await bot.stop()
    await other.stop()
    stage = await world.deliver(
        target(bot, failover_to="other", failover_after_s=0.2, give_up_after_s=0.2), target(other, "other")
    )
    for index in range(15):
        await world.append(f"c{index}", 0, 1)
        await world.append(f"c{index}", 0, sink="other")
    await until(lambda: metrics.delivery_failed_over.labels("bot")._value.get() == 1)
    await until(lambda: metrics.delivery_breaker_open.labels("other")._value.get() == 1)
    await asyncio.sleep(1.0)
    await bot.start()
    await until(lambda: len(bot.taken()) == 30)
    assert all(bot.numbers(f"c{index}") == [0, 1] for index in range(15))
    await other.start()
    await until(lambda: len(other.taken()) == 15)
    assert await world.dead_letters() == []
    await until(committed(stage))


async def test_a_paused_sink_hands_nothing_over(world: World) -> None:
    """An operator's pause is no outage: its events wait for it, also those that were on their way to the stand-in."""
    bot, other = await world.bot(), await world.bot()
    await bot.stop()
    await world.deliver(target(bot, failover_to="other", failover_after_s=0.2), target(other, "other"))
    for index in range(12):
        await world.append(f"c{index}", 0)
    await until(lambda: len(other.taken()) == 12)
    await said(world, "bot", paused=True)
    await until(lambda: metrics.delivery_paused.labels("bot")._value.get() == 1)
    await world.append("c0", 1)
    await asyncio.sleep(0.4)
    assert other.numbers("c0") == [0]
    await said(world, "bot", paused=False)
    await until(lambda: other.numbers("c0") == [0, 1])


async def test_a_burst_comes_as_one_list_after_a_silence_and_the_next_as_another(world: World) -> None:
    """Three lines typed in a second are one question. Others' bursts are theirs."""
    bot = await world.bot()
    stage = await world.deliver(target(bot, kind="standard", debounce_ms=500))
    for number in range(3):
        await world.append("a", number)
        await asyncio.sleep(0.05)
    await world.append("b", 0)
    assert bot.seen == []
    await until(lambda: bot.numbers("a") == [0, 1, 2])
    await world.append("a", 3)
    await until(lambda: bot.numbers("a") == [0, 1, 2, 3])
    assert sorted(bot.lists) == [[0], [0, 1, 2], [3]]
    request = bot.seen[0]
    said = Webhook("whsec_" + b64encode(bytes(32)).decode()).verify(request.body, request.headers)
    assert said["type"] == "whatsapp.batch"
    assert [one["id"] for one in said["data"]] == ["evt_a_0", "evt_a_1", "evt_a_2"]
    assert len({seen.headers["webhook-id"] for seen in bot.seen}) == 3
    await until(committed(stage))


async def test_a_list_has_a_bound_and_the_first_event_waits_no_longer_than_its_time(world: World) -> None:
    """Somebody who never stops typing is answered all the same."""
    bot = await world.bot()
    await world.deliver(
        target(bot, kind="standard", debounce_ms=60_000, debounce_events_max=4, debounce_wait_ms_max=600)
    )
    await world.append("a", *range(10))
    await until(lambda: bot.lists[:2] == [[0, 1, 2, 3], [4, 5, 6, 7]], 1.5)
    await until(lambda: bot.lists[2:] == [[8, 9]], 10)


async def test_joined_events_survive_a_crash_and_are_joined_again(world: World) -> None:
    """What waits for a silence stands on the log alone; a restart asks the log's own times, and does not wait anew."""
    bot = await world.bot()
    await world.deliver(target(bot, kind="standard", debounce_ms=400))
    await world.append("a", 0, 1)
    await asyncio.sleep(0.1)
    await world.crash_and_reopen()
    assert bot.seen == []
    await asyncio.sleep(0.3)
    await world.deliver(target(bot, kind="standard", debounce_ms=400))
    await until(lambda: bot.lists == [[0, 1]], 2)


async def test_a_list_that_fails_is_parted_so_that_one_event_does_not_spoil_the_others(world: World) -> None:
    """Each then has its own patience: the bad one is set aside, the good ones are taken, in order."""

    async def refuse_one(customer: str, number: int, earlier: int) -> int:
        return 422 if number == 1 else 200

    bot = await world.bot(refuse_one)
    stage = await world.deliver(target(bot, kind="standard", debounce_ms=100, give_up_after_s=0.3))
    await world.append("a", 0, 1, 2)
    await until(lambda: bot.numbers("a") == [0, 2])
    assert bot.lists[0] == [0, 1, 2]
    (letter,) = await world.dead_letters()
    assert letter.value == value("a", 1)
    await world.append("a", 3, 4)
    await until(lambda: bot.lists[-1] == [3, 4])
    await until(committed(stage))


async def test_a_list_is_the_same_bytes_while_the_sink_is_down(world: World) -> None:
    """More arrives meanwhile: it waits for the next list, so that a retry can be known for one."""
    up = False

    async def away(customer: str, number: int, earlier: int) -> int:
        return 200 if up else 503

    bot = await world.bot(away)
    await world.deliver(target(bot, kind="standard", debounce_ms=50))
    await world.append("a", 0, 1)
    await until(lambda: len(bot.lists) >= 2)
    await world.append("a", 2)
    await until(lambda: len(bot.lists) >= 4)
    up = True
    await until(lambda: bot.numbers("a") == [0, 1, 2])
    assert bot.lists[-1] == [2]
    assert all(numbers == [0, 1] for numbers in bot.lists[:-1])
    assert len({seen.body for seen in bot.seen if seen.number == 0}) == 1
    assert len({seen.headers["webhook-id"] for seen in bot.seen if seen.number == 0}) == 1


LONG = RouteDebounce(60_000, 20, 60_000)
"""A wait no test would sit out."""


async def test_what_a_route_joins_waits_and_what_another_does_not_goes_at_once_in_the_customers_order(
    world: World,
) -> None:
    """A tap on a button ends the burst before it: the words go first, at once, then the tap; new words wait anew."""
    bot = await world.bot()
    stage = await world.deliver(target(bot, kind="standard"))
    await world.append("a", 0, 1, debounce=LONG)
    await world.append("b", 0)
    await until(lambda: bot.numbers("b") == [0])
    assert bot.numbers("a") == [], "they are a route's that joins"
    await world.append("a", 2)
    await until(lambda: bot.numbers("a") == [0, 1, 2], 2)
    await world.append("a", 3, debounce=LONG)
    await world.append("a", 4, debounce=RouteDebounce(300))
    await world.append("a", 5, debounce=RouteDebounce(300))
    await until(lambda: bot.numbers("a") == [0, 1, 2, 3, 4, 5], 2)
    assert taken_requests(bot, "a") == [
        ("whatsapp.batch", [0, 1]),
        ("whatsapp.message", [2]),
        ("whatsapp.batch", [3]),
        ("whatsapp.batch", [4, 5]),
    ], "what a route joins is a list, also of one; the rest has the form it always had"
    assert bot.overlaps == 0
    await until(committed(stage))


def taken_requests(bot: Bot, customer: str) -> list[tuple[str, list[int]]]:
    """One customer's requests that were taken: the type each said it was, and the numbers of its events."""
    requests: dict[int, list[Seen]] = {}
    for seen in bot.seen:
        if seen.status == 200 and seen.customer == customer:
            requests.setdefault(id(seen.headers), []).append(seen)  # one dict for each request, and all are kept
    return [(json.loads(each[0].body)["type"], [seen.number for seen in each]) for each in requests.values()]


async def test_the_ticks_of_the_last_answer_do_not_cut_a_burst_in_two(world: World) -> None:
    """They come while the customer types. One by itself is told at once."""
    bot = await world.bot()
    await world.deliver(target(bot, kind="standard"))
    await world.append("a", 0, kind="status")
    await until(lambda: bot.numbers("a") == [0])
    words = RouteDebounce(1_000)
    await world.append("a", 1, debounce=words)
    await world.append("a", 2, kind="status")
    await world.append("a", 3, debounce=words)
    await until(lambda: bot.numbers("a") == [0, 1, 2, 3])
    assert taken_requests(bot, "a") == [("whatsapp.status", [0]), ("whatsapp.batch", [1, 2, 3])]


async def test_a_route_that_says_zero_is_stronger_than_its_sink(world: World) -> None:
    """The sink's own setting is for those of which no route said anything. It goes on to meet lists alone."""
    bot = await world.bot()
    await world.deliver(target(bot, kind="standard", debounce_ms=60_000, debounce_wait_ms_max=60_000))
    await world.append("a", 0, 1)
    await world.append("a", 2, 3, debounce=RouteDebounce(0))
    await until(lambda: bot.numbers("a") == [0, 1, 2, 3], 2)
    assert bot.lists == [[0, 1], [2], [3]]
    assert {json.loads(seen.body)["type"] for seen in bot.seen} == {"whatsapp.batch"}
    await world.append("a", 4)
    await asyncio.sleep(0.2)
    assert bot.numbers("a") == [0, 1, 2, 3], "it waits for company"


async def test_lists_have_their_routes_bounds_and_nothing_else_of_the_customer_is_joined_to_them(world: World) -> None:
    """A backlog of many kinds leaves in its order, one request after the other, each list of one measure."""
    bot = await world.bot()
    stage = await world.deliver(target(bot, kind="standard"))
    short, long = RouteDebounce(50, 3), RouteDebounce(150, 4, 700)
    rng = random.Random(3)
    said = [rng.choice((short, short, long, long, long, None, RouteDebounce(0))) for _ in range(120)]
    for number, debounce in enumerate(said):
        await world.append("a", number, debounce=debounce)
    await until(lambda: len(bot.taken("a")) == 120)
    assert bot.numbers("a") == list(range(120))
    assert bot.overlaps == 0
    for numbers in bot.lists:
        (debounce,) = {said[number] for number in numbers}
        assert len(numbers) <= (3 if debounce == short else 4 if debounce == long else 1)
    assert any(len(numbers) == 4 for numbers in bot.lists)
    assert any(len(numbers) == 3 and said[numbers[0]] == short for numbers in bot.lists)
    await until(committed(stage))


async def test_what_a_route_joins_is_gathered_again_after_a_crash_and_parted_by_what_goes_alone(world: World) -> None:
    """What each event's route said stands beside it on the log: the next owner needs no memory of the last."""
    bot = await world.bot()
    await world.deliver(target(bot, kind="standard"))
    await world.append("a", 0, 1, debounce=LONG)
    await asyncio.sleep(0.2)
    await world.crash_and_reopen()
    assert bot.seen == []
    await world.append("a", 2)
    await world.append("a", 3, 4, debounce=RouteDebounce(200))
    stage = await world.deliver(target(bot, kind="standard"))
    await until(lambda: bot.numbers("a") == [0, 1, 2, 3, 4])
    assert bot.lists == [[0, 1], [2], [3, 4]]
    await until(committed(stage))


async def test_a_malformed_record_ends_a_list_and_is_set_aside_behind_it(world: World) -> None:
    """Nobody knows how it was to be joined; its neighbours must not wait for it."""
    bot = await world.bot()
    stage = await world.deliver(target(bot, kind="standard"))
    await world.append("a", 0, 1, debounce=LONG)
    await world.log.append(deliveries("bot"), [Draft(b"a", b"no record")], 10.0)
    await world.append("a", 2)
    await until(lambda: bot.numbers("a") == [0, 1, 2])
    assert bot.lists == [[0, 1], [2]]
    (letter,) = await world.dead_letters()
    assert letter.reason == "malformed"
    await until(committed(stage))


async def test_a_stand_in_gets_what_a_route_joins_as_a_list_and_the_rest_alone(world: World) -> None:
    """While the sink is down its stand-in is told the same, in the same order, and nobody waits longer than asked."""
    bot, other = await world.bot(), await world.bot()
    await bot.stop()
    stage = await world.deliver(
        target(bot, kind="standard", failover_to="other", failover_after_s=0.1),
        target(other, "other", kind="standard"),
    )
    for index in range(12):
        await world.append(f"c{index}", 0)
    await until(lambda: len(other.taken()) == 12)
    await world.append("a", 0, 1, debounce=RouteDebounce(200))
    await world.append("a", 2)
    await world.append("a", 3, 4, debounce=RouteDebounce(200))
    await until(lambda: other.numbers("a") == [0, 1, 2, 3, 4])
    assert [numbers for _, numbers in taken_requests(other, "a")] == [[0, 1], [2], [3, 4]]
    assert {seen.headers["X-Depesche-Instead-Of"] for seen in other.seen} == {"bot"}
    await until(committed(stage))


async def test_no_list_ever_reaches_a_stand_in_that_takes_none(world: World) -> None:
    """Events outlive the rule that joined them: with a stand-in in Meta's format they go one by one, also those that
    were a list already when the configuration changed."""
    bot, other = await world.bot(), await world.bot()
    await bot.stop()
    lonely = target(bot, kind="standard")
    guarded = target(bot, kind="standard", failover_to="other", failover_after_s=0.1)
    stage = await world.deliver(lonely, target(other, "other"))
    await world.append("a", 0, 1, debounce=RouteDebounce(50))
    for index in range(12):
        await world.append(f"c{index}", 0)
    await until(lambda: metrics.delivery_breaker_open.labels("bot")._value.get() == 1)
    await asyncio.sleep(0.2)  # the list is made, and waits for the sink
    stage.use_targets([guarded, target(other, "other")])
    await world.append("a", 2, 3, debounce=LONG)
    await until(lambda: other.numbers("a") == [0, 1, 2, 3])
    assert all(len(numbers) == 1 for numbers in other.lists)
    for seen in other.seen:
        expected = hmac.new(b"app secret", seen.body, hashlib.sha256).hexdigest()
        assert seen.headers["X-Hub-Signature-256"] == f"sha256={expected}"
    await until(committed(stage))
