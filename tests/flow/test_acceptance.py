"""The promises, held by real processes on a real log while some of them are killed.

Five hundred customers have six turns each with a bot behind a `meta` sink. Webhooks come doubled, out of order between
customers and in batches of up to fifty. In the middle a worker and the receiver are killed as a crash would. Meta's
stand-in keeps the journal, and its referee says what a real Meta would have seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.flow.bot import QuotingBot
from tests.flow.deployment import SINK_SECRET, Deployment, Number, Seat
from tests.kafka.cluster import free_ports
from tests.kafka.fixtures import KafkaForTests

NUMBERS = (Number("106540352242922", 0), Number("106540352242955", 2), Number("106540352242977", 3))

CONVERSATIONS = 500
TURNS = 6
BEGUN_PER_S = 20.0
ANSWER_S_MAX = 150.0
"""A send whose owner died between its intent and its call is repeated after a minute of doubt."""

SETTLE_S_MAX = 60.0
LOAD_S_MAX = 420.0


class Meta:
    """The sandbox of a deployment, over HTTP."""

    def __init__(self, deployment: Deployment, session: aiohttp.ClientSession) -> None:
        self._root = f"http://127.0.0.1:{deployment.sandbox_port}/sandbox"
        self._session = session

    async def get(self, path: str) -> Any:
        """Return what stands at a path."""
        async with self._session.get(f"{self._root}/{path}") as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def switch(self, fault: str, **how: Any) -> None:
        """Switch a fault on."""
        async with self._session.put(f"{self._root}/faults/{fault}", json=how) as answer:
            assert answer.status == 200, await answer.text()

    async def clear(self) -> None:
        """Switch all faults off."""
        async with self._session.delete(f"{self._root}/faults") as answer:
            assert answer.status == 200, await answer.text()

    async def begin(self, **load: Any) -> None:
        """Begin a load."""
        async with self._session.post(f"{self._root}/load", json=load) as answer:
            assert answer.status == 200, await answer.text()

    async def until(self, share: float) -> dict[str, Any]:
        """Wait until a share of the load's answers is there, or all of it is over."""
        deadline = time.monotonic() + LOAD_S_MAX
        while time.monotonic() < deadline:
            report: dict[str, Any] = await self.get("load")
            assert not report["crashed"], report["crashed"]
            if report["over"] or (share < 1 and report["answered"] >= share * CONVERSATIONS * TURNS):
                return report
            await asyncio.sleep(0.25)
        raise AssertionError(f"the load is not over after {LOAD_S_MAX:.0f} s: {await self.get('load')}")

    async def settled(self) -> dict[str, Any]:
        """Wait until every webhook was taken; return the referee's view."""
        deadline = time.monotonic() + SETTLE_S_MAX
        while time.monotonic() < deadline:
            view: dict[str, Any] = await self.get("referee")
            if view["unacknowledged"] == 0:
                return view
            await asyncio.sleep(0.25)
        raise AssertionError(f"webhooks are still open after {SETTLE_S_MAX:.0f} s: {view['unacknowledged']}")


@asynccontextmanager
async def deployed(folder: Path, log: dict[str, object]) -> AsyncIterator[tuple[Deployment, QuotingBot, Meta]]:
    """A deployment with nothing running yet but the test's bot."""
    (bot_port,) = free_ports(1)
    seat = Seat("bot", bot_port)
    deployment = Deployment(folder, log, NUMBERS, [seat])
    bot = QuotingBot(bot_port, f"http://127.0.0.1:{deployment.gateway_port}", seat.key, SINK_SECRET)
    await bot.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            yield deployment, bot, Meta(deployment, session)
    finally:
        deployment.close()
        await bot.stop()


async def make_trouble(meta: Meta) -> None:
    """Duplicates, reordering between customers and batches: what Meta does on a bad day."""
    await meta.switch("reorder_customers", rate=0.2, ms=500)
    await meta.begin(
        conversations=CONVERSATIONS,
        turns=TURNS,
        conversations_per_s=BEGUN_PER_S,
        think_s=0.5,
        answer_within_s=ANSWER_S_MAX,
        duplicates=0.05,
        batch_items=50,
    )


async def judge(meta: Meta, bot: QuotingBot) -> None:
    """Every message answered, each answer accepted once, order kept, no window above the tier, nothing silent."""
    report = await meta.until(1)
    view = await meta.settled()
    assert view["counts"] == {}, view["verdicts"][:10]
    assert (report["begun"], report["unanswered"]) == (CONVERSATIONS, 0)
    assert report["written"] == report["answered"] == CONVERSATIONS * TURNS
    assert sum(number["accepted"] for number in view["numbers"].values()) == CONVERSATIONS * TURNS
    faults = (await meta.get("state"))["faults"]["struck"]
    assert faults["duplicate"] >= 5
    assert faults["reorder_customers"] >= 20
    assert faults["batch"] >= 20
    assert bot.forged == 0
    assert bot.refusals == []
    for texts in bot.received.values():
        assert texts == sorted(texts, key=lambda text: int(text.split()[1])), "a customer's texts came out of order"
        assert len(texts) == TURNS


@pytest.mark.kafka
@pytest.mark.timeout(600)
async def test_on_kafka_nothing_is_lost_doubled_or_out_of_order_while_processes_die(
    kafka: KafkaForTests, kafka_prefix: str, tmp_path: Path
) -> None:
    """The whole promise in one test: what a brand buys."""
    log: dict[str, object] = {
        "engine": "kafka",
        "partitions": 8,
        "slots": 4,
        "kafka": {
            "bootstrap_servers": kafka.bootstrap,
            "prefix": kafka_prefix,
            "replication_factor": 1,
            "min_insync_replicas": 1,
        },
    }
    async with deployed(tmp_path, log) as (deployment, bot, meta):
        await deployment.start("receiver", "receiver")
        await asyncio.gather(
            deployment.start("gateway", "gateway"),
            deployment.start("worker-1", "worker"),
            deployment.start("worker-2", "worker"),
            deployment.start("sandbox", "sandbox"),
        )
        await make_trouble(meta)
        await meta.until(0.3)
        deployment.processes["worker-1"].kill()
        await meta.until(0.45)
        deployment.processes["receiver"].kill()
        await asyncio.sleep(1)
        await deployment.start("receiver", "receiver")
        await deployment.start("worker-3", "worker")
        await judge(meta, bot)
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
    async with deployed(tmp_path, log) as (deployment, bot, meta):
        await deployment.start("sandbox", "sandbox")
        everything = await deployment.start("all", "run")
        await make_trouble(meta)
        await meta.until(0.3)
        everything.kill()
        await asyncio.sleep(1)
        everything = await deployment.start("all", "run")
        await judge(meta, bot)
        assert everything.terminate() < 10
        assert everything.popen.returncode == 0, everything.said()
