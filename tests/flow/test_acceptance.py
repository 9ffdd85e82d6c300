"""The promises, held by real processes on a real log while some of them are killed.

Five hundred customers talk to bots behind `meta` sinks. On the embedded log all of them have six turns with a bot that
quotes. On Kafka two hundred each tour a bot of pywa and one of Node's whatsapp-api-js meanwhile: buttons, lists,
templates, media both ways, places, reactions, marks and statuses (`broker/sandbox/tour.py`). Webhooks come doubled,
out of order between customers and in batches of up to fifty. In the middle a worker and the receiver are killed as a
crash would. Meta's stand-in keeps the journal, and its referee says what a real Meta would have seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from broker.sandbox.tour import STEPS
from tests.flow.bot import QuotingBot
from tests.flow.deployment import SINK_SECRET, Deployment, Number, Seat, on_kafka
from tests.flow.meta import LOAD_S_MAX, Meta
from tests.flow.strangers import Stranger, node_bot, pywa_bot
from tests.kafka.cluster import free_ports
from tests.kafka.fixtures import KafkaForTests

NUMBERS = (Number("106540352242922", 0), Number("106540352242955", 2), Number("106540352242977", 3))
TOURED = {"pywa": Number("106540352242988", 1), "node": Number("106540352242999", 0)}
KNOWN_BY = {"pywa": ["both", "bsuid"], "node": ["both", "phone", "bsuid"]}
"""pywa takes no message whose contact has no `user_id`, which Meta has been sending in all of them since 2026, and
answers by that id alone."""

CUSTOMERS = 500
TURNS = 6
TOURS = 200
"""Of each bot of other people, where there are any; the rest of the customers has turns."""

BEGUN_WITHIN_S = 25.0
"""So that whoever is in doubt when the worker dies has others after them: their statuses show that webhooks arrive."""

FEW_BEGUN_WITHIN_S = 80.0
"""Of the few that have turns on Kafka: a doubt wants a later status in its own partition, heard by its last owner, and
the second change of owners is over half a minute after the first begin. Of a number that falls silent a doubt waits."""

ANSWER_S_MAX = 150.0
"""A send whose owner died between its intent and its call is repeated after a minute of doubt."""

NOTED_S_MAX = 30.0
"""Until a bot has noted the last statuses."""


@dataclass
class Stage:
    """A deployment with nothing running yet but the bots."""

    deployment: Deployment
    bot: QuotingBot
    strangers: Sequence[Stranger]
    meta: Meta

    @property
    def conversations(self) -> int:
        """How many customers have turns with the bot that quotes."""
        return CUSTOMERS - TOURS * len(self.strangers)

    @property
    def begun_within_s(self) -> float:
        """In what time they begin."""
        return FEW_BEGUN_WITHIN_S if self.strangers else BEGUN_WITHIN_S

    @property
    def numbers(self) -> Sequence[Number]:
        """The numbers they write to."""
        return NUMBERS[:1] if self.strangers else NUMBERS

    async def until(self, share: float) -> None:
        """Wait until a share of all answers is there."""
        expected = {"load": self.conversations * TURNS} | {one.name: TOURS * STEPS for one in self.strangers}
        deadline = time.monotonic() + LOAD_S_MAX
        while time.monotonic() < deadline:
            reports = [await self.meta.get(f"load?name={name}") for name in expected]
            if sum(report["answered"] for report in reports) >= share * sum(expected.values()):
                return
            await asyncio.sleep(0.25)
        raise AssertionError(f"not {share:.0%} of the answers after {LOAD_S_MAX:.0f} s: {reports}")


@asynccontextmanager
async def deployed(folder: Path, log: dict[str, object], *, strangers: bool = False) -> AsyncIterator[Stage]:
    """Start the bots: ours, and those of other people where they are asked for."""
    ports = free_ports(3)
    seat = Seat("bot", ports[0], [number.phone_number_id for number in NUMBERS])
    seats = [seat]
    numbers = list(NUMBERS)
    if strangers:
        seats += [
            Seat(name, port, [TOURED[name].phone_number_id]) for name, port in zip(TOURED, ports[1:], strict=True)
        ]
        numbers += TOURED.values()
    deployment = Deployment(folder, log, numbers, seats)
    gateway = f"http://127.0.0.1:{deployment.gateway_port}"
    bot = QuotingBot(seat.port, gateway, seat.key, SINK_SECRET)
    others = [
        make(folder, other.port, gateway, other.key, SINK_SECRET, other.numbers[0])
        for make, other in zip((pywa_bot, node_bot), seats[1:], strict=strangers)
    ]
    try:
        await bot.start()
        await asyncio.gather(*(other.start() for other in others))
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            yield Stage(deployment, bot, others, Meta(deployment.sandbox_port, session))
    finally:
        deployment.close()
        for other in others:
            other.stop()
        await bot.stop()


async def make_trouble(stage: Stage) -> None:
    """Duplicates, reordering between customers and batches: what Meta does on a bad day."""
    await stage.meta.switch("reorder_customers", rate=0.2, ms=500)
    trouble = {"think_s": 0.5, "answer_within_s": ANSWER_S_MAX, "duplicates": 0.05, "batch_items": 50}
    await stage.meta.begin(
        conversations=stage.conversations,
        turns=TURNS,
        conversations_per_s=stage.conversations / stage.begun_within_s,
        numbers=[number.phone_number_id for number in stage.numbers],
        **trouble,
    )
    for i, stranger in enumerate(stage.strangers, start=1):
        await stage.meta.begin(
            name=stranger.name,
            script="tour",
            conversations=TOURS,
            conversations_per_s=TOURS / BEGUN_WITHIN_S,
            numbers=[TOURED[stranger.name].phone_number_id],
            people=KNOWN_BY[stranger.name],
            first_phone=15_550_100_000 + 100_000 * i,
            **trouble,
        )


async def judge(stage: Stage) -> None:
    """Every message answered, each answer accepted once, order kept, no window above the tier, nothing silent."""
    bot, meta = stage.bot, stage.meta
    report = await meta.over()
    tours = {stranger.name: await meta.over(stranger.name) for stranger in stage.strangers}
    view = await meta.settled()
    assert [tour["broken"] for tour in tours.values() if tour["broken"]] == [], [one.said() for one in stage.strangers]
    assert view["counts"] == {}, view["verdicts"][:10]
    assert (report["begun"], report["unanswered"]) == (stage.conversations, 0)
    assert report["written"] == report["answered"] == stage.conversations * TURNS
    accepted = [view["numbers"][number.phone_number_id]["accepted"] for number in stage.numbers]
    assert sum(accepted) == stage.conversations * TURNS
    faults = (await meta.get("state"))["faults"]["struck"]
    assert faults["duplicate"] >= 5
    assert faults["reorder_customers"] >= 20
    assert faults["batch"] >= 20
    assert bot.forged == 0
    assert bot.refusals == []
    for texts in bot.received.values():
        assert texts == sorted(texts, key=lambda text: int(text.split()[1])), "a customer's texts came out of order"
        assert len(texts) == TURNS
    for stranger in stage.strangers:
        number = view["numbers"][TOURED[stranger.name].phone_number_id]
        assert (number["dialogues"], number["accepted"]) == (TOURS, TOURS * STEPS)
        assert number["marks"] >= TOURS * 2, "each first message and picture is marked as read, in doubt twice"
        await judge_notes(stranger)


async def judge_notes(stranger: Stranger) -> None:
    """What a bot saw: each message once and in order, each of its sends under one id, statuses with their tracker."""
    deadline = time.monotonic() + NOTED_S_MAX
    expected = TOURS * (STEPS * 3 - 1)
    while len(stranger.notes("status")) < expected and time.monotonic() < deadline:  # noqa: ASYNC110  # a file
        await asyncio.sleep(0.5)
    assert stranger.notes("trouble") == []
    assert "Traceback" not in stranger.said()
    places: dict[str, list[int]] = {}
    for message in stranger.notes("message"):
        name, _, place = message["place"].rpartition(":")
        places.setdefault(name, []).append(int(place))
    assert len(places) == TOURS
    assert all(order == list(range(STEPS)) for order in places.values()), "each message once, in its order"
    trackers = {sent["id"]: sent["tracker"] for sent in stranger.notes("sent")}
    assert len(trackers) == len(set(trackers.values())) == TOURS * STEPS
    statuses: dict[str, list[str]] = {}
    for status in stranger.notes("status"):
        assert trackers[status["id"]] == status["tracker"]
        statuses.setdefault(status["tracker"], []).append(status["status"])
    for tracker, told in statuses.items():
        ticks = {"sent", "delivered"} if tracker.endswith(":7") else {"sent", "delivered", "read"}
        assert (len(told), set(told)) == (len(ticks), ticks), f"{tracker}: each status once; a reaction is never read"
    assert len(statuses) == TOURS * STEPS


@pytest.mark.kafka
@pytest.mark.timeout(600)
async def test_on_kafka_nothing_is_lost_doubled_or_out_of_order_while_processes_die(
    kafka: KafkaForTests, kafka_prefix: str, tmp_path: Path
) -> None:
    """The whole promise in one test: what a brand buys, whichever library its bot is built with."""
    log = on_kafka(kafka.bootstrap, kafka_prefix, partitions=8, slots=4)
    async with deployed(tmp_path, log, strangers=True) as stage:
        deployment = stage.deployment
        await deployment.start("receiver", "receiver")
        await asyncio.gather(
            deployment.start("gateway", "gateway"),
            deployment.start("worker-1", "worker"),
            deployment.start("worker-2", "worker"),
            deployment.start("sandbox", "sandbox"),
        )
        await make_trouble(stage)
        await stage.until(0.3)
        deployment.processes["worker-1"].kill()
        await stage.until(0.45)
        deployment.processes["receiver"].kill()
        await asyncio.sleep(1)
        await deployment.start("receiver", "receiver")
        await deployment.start("worker-3", "worker")
        await judge(stage)
        for name in ("worker-2", "worker-3", "receiver", "gateway"):
            process = deployment.processes[name]
            assert process.terminate() < 20
            assert process.popen.returncode == 0, process.said()


@pytest.mark.timeout(600)
async def test_on_the_embedded_log_the_same_holds_when_the_one_process_is_killed_and_started_again(
    tmp_path: Path,
) -> None:
    """A small brand's single process is no lesser promise."""
    log: dict[str, object] = {"partitions": 4, "slots": 4, "embedded": {"path": "log"}}
    async with deployed(tmp_path, log) as stage:
        await stage.deployment.start("sandbox", "sandbox")
        everything = await stage.deployment.start("all", "run")
        await make_trouble(stage)
        await stage.until(0.3)
        everything.kill()
        await asyncio.sleep(1)
        everything = await stage.deployment.start("all", "run")
        await judge(stage)
        assert everything.terminate() < 10
        assert everything.popen.returncode == 0, everything.said()
