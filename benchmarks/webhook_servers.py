"""What webhooks are aimed at: the receiver on either log, and a bare handler that reads, answers and forgets."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

from aiohttp import web

from benchmarks.child import Facts, Part, be
from benchmarks.load import APP, NUMBER, SECRET
from broker import garbage, metrics
from broker.clock import SystemClock
from broker.log.catalogue import CONVERSATIONS, catalogue
from broker.log.contract import LogEngine
from broker.log.embedded import EmbeddedLog
from broker.log.kafka import KafkaLog
from broker.receiver import Receiver, receiver_app
from broker.secrets import Secret
from schemas.settings import App, KafkaSettings, Number, ReceiverSettings, SecretSource, Settings

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


def engine_for(spec: Facts, of: Settings) -> LogEngine:
    """The engine a spec names, not yet started: `folder` for the embedded one, `bootstrap` and `prefix` for Kafka."""
    clock, rng = SystemClock(), random.Random(1)
    if spec["engine"] == "embedded":
        return EmbeddedLog(Path(spec["folder"]), catalogue(of), clock=clock, rng=rng)
    kafka = KafkaSettings(
        bootstrap_servers=spec["bootstrap"], prefix=spec["prefix"], replication_factor=1, min_insync_replicas=1
    )
    return KafkaLog(kafka, catalogue(of), clock=clock, rng=rng)


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


async def play(spec: Facts) -> AsyncIterator[Part]:
    """Whichever the spec names."""
    async for part in play_bare(spec) if spec["engine"] == "bare" else play_receiver(spec):
        yield part


if __name__ == "__main__":
    be(play)
