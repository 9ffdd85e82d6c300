"""What is done to the receiver: killed at each step between reading a webhook and its 200."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import aiohttp

from benchmarks.load import webhook
from broker import failpoints
from broker.clock import SystemClock
from broker.config import load_settings
from broker.log.catalogue import CONVERSATIONS, catalogue
from broker.log.contract import LogEngine
from broker.log.embedded import EmbeddedLog
from broker.log.kafka import KafkaLog
from schemas.records import Item, decode_conversation
from tests.faults.row import Figures, Rig, Row
from tests.flow.deployment import APP_SECRET, Deployment, Number, Seat
from tests.kafka.cluster import free_ports

NUMBER = Number("106540352242922", 0)
SENDERS = 8
PASSES_MAX = 60
"""A process dies within its first so many passes of a place: some times it has just started, some times it is warm."""

DIES_S_MAX = 30.0
"""From the first webhook to the death. The steps of a receiver are passed hundreds of times a second."""

REFUSED_S_MAX = 5.5
"""Five seconds are the receiver's limit for an append; the rest is a busy machine's."""

BACK_S_MAX = 30.0

STEPS = [point for point in failpoints.POINTS if point.startswith("receiver.")]
WRITES = [point for point in failpoints.POINTS if point.startswith("embedded.")]


@dataclass
class Meta:
    """Sends signed webhooks, each one once, and remembers which were answered 200."""

    port: int
    numbers: Iterator[int] = field(default_factory=count)
    accepted: list[int] = field(default_factory=list)
    others: Counter[int] = field(default_factory=Counter)

    async def send_until_refused(self) -> None:
        """Send from several connections until each of them fails: the receiver is gone."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DIES_S_MAX)) as session:
            try:
                async with asyncio.timeout(DIES_S_MAX):
                    await asyncio.gather(*(self._send(session) for _ in range(SENDERS)))
            except TimeoutError:
                raise AssertionError(f"a receiver lived on for {DIES_S_MAX:.0f} s") from None

    async def _send(self, session: aiohttp.ClientSession) -> None:
        try:
            while True:
                await self.send(session)
        except (aiohttp.ClientError, ConnectionError):
            return

    async def send(self, session: aiohttp.ClientSession) -> tuple[int, float]:
        """Send one; return its status and the seconds it took. Raises `aiohttp.ClientError`, `ConnectionError`."""
        number, began = next(self.numbers), time.monotonic()
        body = webhook(number, int(time.time()))
        headers = {
            "X-Hub-Signature-256": "sha256=" + hmac.new(APP_SECRET.encode(), body, hashlib.sha256).hexdigest(),
            "Content-Type": "application/json",
        }
        url = f"http://127.0.0.1:{self.port}/webhooks/meta/main"
        async with session.post(url, data=body, headers=headers) as answer:
            if answer.status == 200:
                self.accepted.append(number)
            else:
                self.others[answer.status] += 1
        return answer.status, time.monotonic() - began


async def killed_at_each_step(rig: Rig, log: dict[str, object], role: str, points: list[str], kills: int) -> Figures:
    """Start, send, die at a place; again and again. Then every webhook that was answered 200 is on the log."""
    seat = Seat("nobody", free_ports(1)[0])  # its events wait: nobody listens there
    deployment = Deployment(rig.folder, log, [NUMBER], [seat])
    meta = Meta(deployment.receiver_port)
    died: Counter[str] = Counter()
    try:
        for number in range(kills):
            point = points[number % len(points)]
            failpoint = f"{point}:{rig.chance.randint(1, PASSES_MAX)}"
            # A log is written to while everything starts, too: some die before they are ready.
            process, was_ready = await deployment.start_to_die(f"receiver-{number}", role, failpoint)
            if was_ready:
                await meta.send_until_refused()
            await process.dies(DIES_S_MAX)
            died[point] += 1
        found = await recorded(deployment.config, rig)
    finally:
        deployment.close()
    nothing_missing(meta, found)
    assert set(died) == set(points)
    assert not meta.others, f"answers of a healthy log that were no 200: {dict(meta.others)}"
    return {"kills": sum(died.values()), "accepted": len(meta.accepted), "missing": 0, "on_the_log": len(found)}


def nothing_missing(meta: Meta, found: set[str]) -> None:
    """What was answered 200 is on the log."""
    assert meta.accepted, "no webhook was answered 200: nothing was tried"
    missing = [number for number in meta.accepted if wamid(number) not in found]
    assert not missing, f"{len(missing)} webhooks were answered 200 and are not on the log: {missing[:10]}"


def wamid(number: int) -> str:
    """The id in the n-th webhook of the load."""
    body = webhook(number, 0).decode()
    return body.partition('"id":"wamid.')[2].partition('"')[0]


async def recorded(config: Path, rig: Rig) -> set[str]:
    """The ids of all messages on `conversations`, read by an engine of our own after the last process died."""
    settings = load_settings(config)
    specs = catalogue(settings)
    engine: LogEngine
    if settings.log.engine == "kafka":
        engine = KafkaLog(settings.log.kafka, specs, clock=SystemClock(), rng=random.Random(1))
    else:
        engine = EmbeddedLog(rig.folder / settings.log.embedded.path, specs, clock=SystemClock(), rng=random.Random(1))
    await engine.start()
    try:
        found: set[str] = set()
        for partition in range(engine.logs[CONVERSATIONS].partitions):
            async for entry in engine.read(CONVERSATIONS, partition):
                record = decode_conversation(entry.value)
                if isinstance(record, Item) and record.kind == "message":
                    found.add(record.body.decode().partition('"id":"wamid.')[2].partition('"')[0])
        return found
    finally:
        await engine.close(5.0)


async def on_embedded(rig: Rig) -> Figures:
    """The single process: its log's writer dies, too, before and after a commit."""
    log: dict[str, object] = {"partitions": 4, "slots": 4, "embedded": {"path": "log"}}
    return await killed_at_each_step(rig, log, "run", [*STEPS, *WRITES], rig.scale(28, 500))


async def on_kafka(rig: Rig) -> Figures:
    """The role by itself, on a real broker."""
    return await killed_at_each_step(rig, rig.kafka_log(), "receiver", STEPS, rig.scale(25, 500))


async def log_away(rig: Rig) -> Figures:
    """The broker freezes for a while: each webhook meanwhile is answered 503 in time, and nobody restarts anything."""
    away_s = rig.scale(15.0, 600.0)
    deployment = Deployment(rig.folder, rig.kafka_log(), [NUMBER], [Seat("nobody", free_ports(1)[0])])
    meta = Meta(deployment.receiver_port)
    slowest_s = 0.0
    try:
        receiver = await deployment.start("receiver", "receiver")
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DIES_S_MAX)) as session:
            for _ in range(50):
                assert (await meta.send(session))[0] == 200
            rig.kafka.pause()
            began = time.monotonic()
            try:
                while time.monotonic() < began + away_s:
                    answers = await asyncio.gather(*(meta.send(session) for _ in range(SENDERS)))
                    assert {status for status, _ in answers} == {503}, f"with the log away: {answers}"
                    slowest_s = max(slowest_s, *(took_s for _, took_s in answers))
            finally:
                rig.kafka.resume()
            began = time.monotonic()
            while (await meta.send(session))[0] != 200:
                assert time.monotonic() < began + BACK_S_MAX, f"no 200 within {BACK_S_MAX:.0f} s of the log's return"
            back_s = time.monotonic() - began
        assert receiver.popen.poll() is None, receiver.said()
        assert receiver.terminate() < 10
        found = await recorded(deployment.config, rig)
    finally:
        deployment.close()
    nothing_missing(meta, found)
    assert slowest_s < REFUSED_S_MAX, f"a 503 took {slowest_s:.1f} s"
    return {
        "away_s": away_s,
        "refused": meta.others[503],
        "slowest_503_s": round(slowest_s, 2),
        "back_s": round(back_s, 2),
        "missing": 0,
    }


ROWS = [
    Row(
        name="receiver-killed-embedded",
        fault="kill -9 of the single process at each step of read, verify, append, 200, and in mid-commit",
        invariants="I1 I8",
        passes="0 accepted items missing",
        play=on_embedded,
        limit_s=150,
        limit_full_s=3_600,
    ),
    Row(
        name="receiver-killed-kafka",
        fault="kill -9 of the receiver at each step of read, verify, append, 200",
        invariants="I1 I8",
        passes="0 accepted items missing",
        play=on_kafka,
        limit_s=150,
        limit_full_s=3_600,
        on_kafka=True,
    ),
    Row(
        name="log-away",
        fault="the whole log is away (a frozen broker): 10 minutes",
        invariants="I1 I7",
        passes="503 within 5 s each, 200 again within 30 s of its return, no restart, 0 accepted items missing",
        play=log_away,
        limit_s=120,
        limit_full_s=900,
        on_kafka=True,
    ),
]
