"""What webhooks are aimed at: the receiver on either log; a bare handler that reads, answers and forgets; FastAPI.

Each answers `{"count": …}`: how many webhooks are on its log, or were taken where there is none.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import uvicorn
from aiohttp import web

from benchmarks.child import Facts, Part, be
from benchmarks.load import APP, NUMBER, SECRET
from benchmarks.peers import fastapi_receiver
from broker import garbage, metrics
from broker.clock import SystemClock
from broker.log.catalogue import CONVERSATIONS, catalogue
from broker.log.contract import LogEngine
from broker.log.embedded import EmbeddedLog
from broker.log.kafka import KafkaLog
from broker.receiver import Receiver, receiver_app
from broker.secrets import Secret
from schemas.settings import App, KafkaSettings, Number, ReceiverSettings, SecretSource, Settings

READY_S_MAX = 20.0

NOWHERE = SecretSource(env="UNUSED")
"""Secrets are handed over, not read."""


def settings(throughput_mps: int = 1_000) -> Settings:
    """A brand with one number, and every other setting at its default."""
    number = Number(
        phone_number_id=NUMBER, waba_id="102290129340398", token=NOWHERE, slot=0, throughput_mps=throughput_mps
    )
    return Settings(
        apps=[App(name=APP, secrets=[NOWHERE], verify_token=NOWHERE)],
        numbers=[number],
        receiver=ReceiverSettings(port=0),
    )


def kafka_settings(spec: Facts) -> KafkaSettings:
    """The cluster a spec names, every timing at its default."""
    return KafkaSettings(
        bootstrap_servers=spec["bootstrap"], prefix=spec["prefix"], replication_factor=1, min_insync_replicas=1
    )


def engine_for(spec: Facts, of: Settings) -> LogEngine:
    """The engine a spec names, not yet started: `folder` for the embedded one, `bootstrap` and `prefix` for Kafka."""
    clock, rng = SystemClock(), random.Random(1)
    if spec["engine"] == "embedded":
        return EmbeddedLog(Path(spec["folder"]), catalogue(of), clock=clock, rng=rng)
    return KafkaLog(kafka_settings(spec), catalogue(of), clock=clock, rng=rng)


async def records_on(engine: LogEngine, log: str) -> int:
    """How many records a log's ends say it has."""
    return sum(end - first for first, end in await engine.ends(log))


async def play_receiver(spec: Facts) -> AsyncIterator[Part]:
    """Depesche's receiver on its port. Answers how many webhooks' items are on the log, and its counters."""
    of, clock = settings(), SystemClock()
    metrics.prepare()
    async with AsyncExitStack() as stack:
        engine = engine_for(spec, of)
        stack.push_async_callback(engine.close)
        await engine.start()
        receiver = Receiver(of, {APP: (Secret(SECRET),)}, {APP: Secret("token")}, engine, clock)
        await receiver.start()
        stack.push_async_callback(receiver.stop, 5.0)
        port = receiver_app(receiver, of, clock)
        await port.start()
        stack.push_async_callback(port.stop, 2.0)

        garbage.settle()  # as `depesche` does when everything has started

        async def durable(_: Facts) -> Facts:
            return {"count": await records_on(engine, CONVERSATIONS)}

        yield Part({"port": port.port}, durable)


async def play_bare(_: Facts) -> AsyncIterator[Part]:
    """The least a webhook server in aiohttp can do: read the body, answer 200. No router, no signature, no log."""
    taken = 0

    async def take(request: web.BaseRequest) -> web.Response:
        nonlocal taken
        await request.read()
        taken += 1
        return web.Response()

    async def count(_: Facts) -> Facts:
        return {"count": taken}

    runner = web.ServerRunner(web.Server(take, access_log=None), shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1_024).start()
        yield Part({"port": runner.addresses[0][1]}, count)
    finally:
        await runner.cleanup()


async def play_fastapi(spec: Facts) -> AsyncIterator[Part]:
    """The peer, on Kafka: the same topic with as many partitions, in a cluster prefix of its own."""
    engine = engine_for({**spec, "engine": "kafka"}, settings())
    await engine.start()
    topic = f"{spec['prefix']}{CONVERSATIONS}"
    api = fastapi_receiver.receiver(APP, SECRET, spec["bootstrap"], topic)
    server = uvicorn.Server(
        uvicorn.Config(api, "127.0.0.1", 0, http="httptools", log_level="warning", access_log=False)
    )
    serving = asyncio.create_task(server.serve(), name="uvicorn")
    try:
        async with asyncio.timeout(READY_S_MAX):
            while not server.started and not serving.done():  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.01)

        async def durable(_: Facts) -> Facts:
            return {"count": await records_on(engine, CONVERSATIONS)}

        yield Part({"port": server.servers[0].sockets[0].getsockname()[1]}, durable)
    finally:
        server.should_exit = True
        await asyncio.wait([serving], timeout=READY_S_MAX)
        await engine.close()


PLAYS = {"embedded": play_receiver, "kafka": play_receiver, "bare": play_bare, "fastapi": play_fastapi}


async def play(spec: Facts) -> AsyncIterator[Part]:
    """Whichever the spec names."""
    async for part in PLAYS[spec["engine"]](spec):
        yield part


if __name__ == "__main__":
    be(play)
