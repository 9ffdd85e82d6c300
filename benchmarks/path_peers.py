"""The processes of the hand-written path from webhook to bot: its receiver, and its worker (forward and deliver)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
from aiohttp import web
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from benchmarks.child import Facts, Part, be
from benchmarks.load import APP, SECRET
from benchmarks.peers import consume_produce

IN_PARTITIONS, OUT_PARTITIONS = 24, 6
"""As many as ours has of `conversations` and of a sink's log."""


async def play_receiver(spec: Facts) -> AsyncIterator[Part]:
    """Makes the topics, then takes webhooks."""
    admin = AIOKafkaAdminClient(bootstrap_servers=spec["bootstrap"])
    await admin.start()
    counts = {"in": IN_PARTITIONS, "out": OUT_PARTITIONS}
    await admin.create_topics([NewTopic(spec["prefix"] + name, count, 1) for name, count in counts.items()])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=spec["bootstrap"], acks="all", enable_idempotence=True)
    await producer.start()
    runner = web.AppRunner(consume_produce.receive(APP, SECRET, producer, f"{spec['prefix']}in"), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1_024).start()
        yield Part({"port": runner.addresses[0][1]}, nothing)
    finally:
        await runner.cleanup()
        await producer.stop()


async def play_worker(spec: Facts) -> AsyncIterator[Part]:
    """Forwards and delivers."""
    bootstrap, prefix = spec["bootstrap"], spec["prefix"]

    def consumer_of(name: str) -> AIOKafkaConsumer:
        settings: dict[str, Any] = {"enable_auto_commit": False, "auto_offset_reset": "earliest"}
        return AIOKafkaConsumer(
            prefix + name,
            bootstrap_servers=bootstrap,
            group_id=prefix + name,
            isolation_level="read_committed",
            **settings,
        )

    async with AsyncExitStack() as stack:
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=f"{prefix}forward")
        incoming, outgoing = consumer_of("in"), consumer_of("out")
        for client in (producer, incoming, outgoing):
            await client.start()
            stack.push_async_callback(client.stop)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        working = [
            asyncio.create_task(consume_produce.forward(incoming, producer, f"{prefix}in", f"{prefix}out")),
            asyncio.create_task(consume_produce.deliver(outgoing, session, spec["url"])),
        ]

        async def is_well(_: Facts) -> Facts:
            return {"failed": [repr(task.exception()) for task in working if task.done()]}

        yield Part({}, is_well)
        for task in working:
            task.cancel()
        await asyncio.wait(working, timeout=5.0)


async def nothing(_: Facts) -> Facts:
    """Answer a question that says nothing."""
    return {}


PLAYS = {"receiver": play_receiver, "worker": play_worker}


async def play(spec: Facts) -> AsyncIterator[Part]:
    """Whichever the spec names."""
    async for part in PLAYS[spec["part"]](spec):
        yield part


if __name__ == "__main__":
    be(play)
