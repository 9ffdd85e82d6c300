"""The sender stage under load while something goes wrong: rebalances, freezes, stalls, inbound, a Graph that is away.

Graph runs on a loop of its own thread where its clock is the judge, so that a stall of ours is none of its.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.clock import SystemClock
from broker.log.catalogue import CONVERSATIONS, SENDER_STAGE, TRAFFIC, catalogue, sends
from broker.log.contract import Draft
from broker.log.embedded import EmbeddedLog
from broker.secrets import Secret
from schemas.records import InboundDigest, Lane, Ready, SendOutcome, decode_conversation, encode
from schemas.settings import LogSettings, Number, SecretSource, SenderSettings, Settings
from tests.actors.graph_server import Behaviour, GraphServer, accept, answering, eventually, graph_error
from workers.graph import GraphClient
from workers.sender import SenderStage

NUMBER = "106540352242922"
SLOT = 1

pytestmark = pytest.mark.timeout(60)


class FreezableClock(SystemClock):
    """The machine's clocks; time can pass that nobody in this process has noticed."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> int:
        """Return Unix ms."""
        return super().now() + int(self.ahead_s * 1_000)

    def monotonic(self) -> float:
        """Return monotonic seconds."""
        return super().monotonic() + self.ahead_s


class Rig:
    """A folder with a log, a Graph, and the stage of one process after the other."""

    def __init__(self, folder: Path, graph: GraphServer, throughput_mps: int = 1_000) -> None:
        self.folder = folder
        self.graph = graph
        self.clock = FreezableClock()
        self.settings = Settings(
            numbers=[
                Number(
                    phone_number_id=NUMBER,
                    waba_id="waba",
                    token=SecretSource(env="X"),
                    slot=SLOT,
                    throughput_mps=throughput_mps,
                )
            ],
            log=LogSettings(partitions=2, slots=2),
            sender=SenderSettings(graph_url=graph.url, pending_max=2_000),
        )

    async def start(self) -> None:
        """Begin a process."""
        self.log = EmbeddedLog(
            self.folder, catalogue(self.settings), clock=self.clock, rng=random.Random(3), lock_s_max=2.0
        )
        await self.log.start()
        self.client = GraphClient(self.graph.url, "v26.0", 20.0)
        await self.client.start()
        tokens = {NUMBER: Secret("good")}
        self.stage = SenderStage(self.log, self.settings, tokens, self.client, self.clock, random.Random(5))
        await self.stage.start()
        await eventually(self.stage.held)

    async def crash(self) -> None:
        """End the process without time for anything."""
        await self.log.close(0.0)
        for call in list(self.stage.calls):
            call.cancel()
        await self.client.close()
        await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """End it in order."""
        await self.stage.stop(5.0)
        await self.client.close()
        await self.log.close(2.0)

    async def put(self, *records: Ready) -> None:
        """Append to the lanes, as the customer stage does."""
        for lane in dict.fromkeys(record.lane for record in records):
            drafts = [Draft(said.customer.encode(), encode(said), SLOT) for said in records if said.lane == lane]
            await self.log.append(sends(lane), drafts, 5.0)

    async def reported(self, count: int, timeout_s: float = 15.0) -> list[tuple[str, int, str]]:
        """Wait for so many outcomes; return (send id, attempt, outcome) of all."""
        ends_at = time.monotonic() + timeout_s
        while True:
            found = list[tuple[str, int, str]]()
            for partition in range(2):
                async for entry in self.log.read(CONVERSATIONS, partition):
                    said = decode_conversation(entry.value)
                    assert isinstance(said, SendOutcome)
                    found.append((said.send_id, said.attempt, said.outcome))
            if len(found) >= count:
                return found
            assert time.monotonic() < ends_at, f"{len(found)} of {count} outcomes"
            await asyncio.sleep(0.05)


def ready(send_id: str, customer: str, lane: Lane = "reply") -> Ready:
    """Return a send that is admitted."""
    at = int(time.time() * 1_000)
    return Ready(send_id, 1, NUMBER, customer, lane, "reply", "message", send_id.encode(), at, 0)


def arrived(server: GraphServer) -> list[str]:
    """Return which sends arrived, in order."""
    return [body.decode() for body in server.bodies]


READ_LATE = 1.1
"""A server that shares its cores may read what came in 1.1 s within one; a stall that banks brings hundreds. That the
tier is kept to the message is shown on a virtual clock (tests/core/test_pacing.py, tests/simulation)."""


def busiest_second(server: GraphServer) -> int:
    """Return the most requests that were read in any second, by the server's own clock."""
    instants = sorted(seen.at for seen in server.seen)
    first, busiest = 0, 0
    for last, at in enumerate(instants):
        while instants[first] <= at - 1.0:
            first += 1
        busiest = max(busiest, last - first + 1)
    return busiest


class ThreadedGraph:
    """Graph in a thread of its own."""

    def __init__(self, behave: Behaviour = accept, delay_s: float = 0.0) -> None:
        self.server = GraphServer(behave, delay_s)
        self._started, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    async def _serve(self) -> None:
        async with self.server:
            self._started.set()
            await asyncio.to_thread(self._stop.wait, 60)

    def __enter__(self) -> GraphServer:
        self._thread.start()
        assert self._started.wait(5)
        return self.server

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)


@pytest.fixture
async def server() -> AsyncIterator[GraphServer]:
    """Graph on raw sockets, on our own loop."""
    async with GraphServer() as server:
        yield server


@pytest.fixture
async def rig(server: GraphServer, tmp_path: Path) -> AsyncIterator[Rig]:
    """A running stage."""
    rig = Rig(tmp_path / "log", server)
    await rig.start()
    yield rig
    await rig.stop()


async def test_rebalances_in_full_flight_lose_and_double_nothing(rig: Rig, server: GraphServer) -> None:
    """I2, I3: a slot that goes and comes back keeps its memory; running calls are waited for, intents taken back."""
    server.delay_s = 0.1
    await rig.put(*(ready(f"s{n:03}", f"main:{n % 40}") for n in range(400)))
    for _ in range(6):
        await asyncio.sleep(0.4)
        await rig.log.rebalance(SENDER_STAGE.name)
    said = await rig.reported(400, 40)
    assert Counter(outcome for _, _, outcome in said) == {"accepted": 400}
    assert max(Counter(arrived(server)).values()) == 1
    for customer in range(40):
        order = [name for name in arrived(server) if int(name[1:]) % 40 == customer]
        assert order == sorted(order)


async def test_crashes_in_full_flight_double_nothing(server: GraphServer, tmp_path: Path) -> None:
    """I2 at six random points of the way: each send arrives once, and each that was reached by a crash is said to be
    in doubt or was accepted before."""
    server.delay_s = 0.15
    rig = Rig(tmp_path / "log", server)
    await rig.start()
    await rig.put(*(ready(f"s{n:03}", f"main:{n}") for n in range(300)))
    rng = random.Random(11)
    for _ in range(6):
        await asyncio.sleep(1.05 + rng.uniform(0.0, 0.12))
        await rig.crash()
        await rig.start()
    await eventually(lambda: not any(rig.stage.calls), 10)
    await asyncio.sleep(2.5)
    said = await rig.reported(300, 20)
    assert {name for name, _, _ in said} == {f"s{n:03}" for n in range(300)}, "none is forgotten"
    assert max(Counter(arrived(server)).values()) == 1
    accepted = {name for name, _, outcome in said if outcome == "accepted"}
    assert accepted <= set(arrived(server))
    await rig.stop()


async def test_a_frozen_process_that_thaws_after_its_lease_was_taken_begins_no_call(
    rig: Rig, server: GraphServer
) -> None:
    """It believes it owns the number: the age of its intents says otherwise. Its next step is refused."""
    await rig.put(*(ready(f"s{n}", f"main:{n}") for n in range(20)))
    await eventually(lambda: server.connections >= 20)
    assert server.seen == []
    await rig.log.seize(SENDER_STAGE, SLOT)
    rig.clock.ahead_s += 10.0
    said = await rig.reported(20)
    assert server.seen == []
    assert Counter(outcome for _, _, outcome in said) == {"in_doubt": 20}


async def test_a_fenced_owners_running_call_still_reports(rig: Rig, server: GraphServer) -> None:
    """Its answer spares its successor's doubt."""
    server.delay_s = 1.0
    await rig.put(ready("a", "main:1"))
    await eventually(lambda: server.seen)
    await rig.log.seize(SENDER_STAGE, SLOT)
    await rig.put(ready("b", "main:2"))
    said = await rig.reported(3)
    assert sorted(said) == [("a", 1, "accepted"), ("a", 1, "in_doubt"), ("b", 1, "accepted")]
    assert sorted(arrived(server)) == ["a", "b"]


async def test_what_is_done_stays_done_after_a_crash(rig: Rig, server: GraphServer) -> None:
    """Also what was done above the watermark, while an older send is still open."""
    server.queue = [answering(400, graph_error(131056))]
    await rig.put(ready("a", "main:1"), ready("b", "main:2"), ready("c", "main:3"))
    await rig.reported(2)
    await asyncio.sleep(0.2)
    await rig.crash()
    await rig.start()
    said = await rig.reported(3)
    assert {outcome for _, _, outcome in said} == {"accepted"}
    await asyncio.sleep(0.5)
    assert sorted(Counter(arrived(server)).values()) == [1, 1, 2], "one was throttled and went again"


async def test_graph_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """Refused connections are certain: not an attempt, not a doubt."""
    async with GraphServer() as first:
        rig = Rig(tmp_path / "log", first)
    await rig.start()
    await rig.put(ready("a", "main:1"), ready("b", "main:2"))
    await asyncio.sleep(2.5)
    async with GraphServer(port=first.port) as again:
        assert sorted(await rig.reported(2)) == [("a", 1, "accepted"), ("b", 1, "accepted")]
        assert len(again.seen) == 2
        await rig.stop()


async def test_inbound_takes_its_share(server: GraphServer, tmp_path: Path) -> None:
    """Meta counts what a number receives: while that uses up the tier, nothing goes out."""
    rig = Rig(tmp_path / "log", server, throughput_mps=80)
    await rig.start()
    for turn in range(12):
        digest = encode(InboundDigest(NUMBER, 80, int(time.time() * 1_000)))
        await rig.log.append(TRAFFIC, [Draft(NUMBER.encode(), digest, SLOT)], 5.0)
        if turn == 0:
            await rig.put(ready("a", "main:1"))
        await asyncio.sleep(0.2)
    assert server.seen == []
    assert await rig.reported(1) == [("a", 1, "accepted")]
    await rig.stop()


async def test_a_stalled_loop_with_hundreds_in_flight_never_exceeds_the_tier(tmp_path: Path) -> None:
    """The permit comes last. Taken earlier, a stall banks hundreds: 452 in a second at tier 80, simulated."""
    with ThreadedGraph(delay_s=6.0) as server:
        rig = Rig(tmp_path / "log", server, throughput_mps=80)
        await rig.start()
        await rig.put(*(ready(f"s{n}", f"main:{n}", "campaign") for n in range(900)))
        await eventually(lambda: len(server.seen) >= 390, 15)
        for stall_s in (3.0, 0.3, 1.1):
            time.sleep(stall_s)  # noqa: ASYNC251
            await asyncio.sleep(0.7)
        await eventually(lambda: len(server.seen) >= 520, 15)
        assert busiest_second(server) <= 80 * READ_LATE
        await rig.crash()


async def test_the_tier_is_used_and_a_reply_passes_a_campaign(tmp_path: Path) -> None:
    """Promises 4 and 5 end to end: the tier is used, and replies go in front of a thousand others, who would take 12 s.

    The bounds leave room for a machine that does other things, too; 93 % and 100 ms are the benchmark's to show.
    """
    with ThreadedGraph(delay_s=0.1) as server:
        rig = Rig(tmp_path / "log", server, throughput_mps=80)
        await rig.start()
        await rig.put(*(ready(f"c{n}", f"main:c{n}", "campaign") for n in range(1_000)))
        await eventually(lambda: len(server.seen) >= 40, 15)
        asked: dict[str, float] = {}
        began, seen = time.monotonic(), len(server.seen)
        for n in range(12):
            asked[f"r{n}"] = time.monotonic()
            await rig.put(ready(f"r{n}", f"main:r{n}"))
            await asyncio.sleep(0.4)
        rate = (len(server.seen) - seen) / (time.monotonic() - began)
        assert 0.75 * 80 <= rate <= 80 * READ_LATE
        assert busiest_second(server) <= 80 * READ_LATE
        at = {request.body.decode(): request.at for request in server.seen}
        delays = sorted(at[name] - since for name, since in asked.items())
        assert delays[len(delays) // 2] < 0.5, delays
        assert delays[-1] < 3, delays
        await rig.crash()
