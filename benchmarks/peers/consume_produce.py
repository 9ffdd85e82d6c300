"""Webhook to bot as a hand-written transactional loop: a handler that produces; consume, send, commit; one that posts.

    receive  aiohttp: signature, `send_and_wait` to the first topic, 200
    forward  `getmany` from the first topic, a transaction for each batch: `send` to the second, offsets, commit
    deliver  `getmany` (read_committed) from the second, POST all of a batch at once, commit

Exactly once between the topics, at least once to the bot, as ours. No dedupe, no state of a customer, no order within a
batch, no retry: what ours does beside that is not in its price.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json

import aiohttp
from aiohttp import web
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

GETMANY_MS = 1_000
GETMANY_RECORDS = 1_000


def receive(app: str, secret: str, producer: AIOKafkaProducer, topic: str) -> web.Application:
    """Return the webhook's server."""
    key = secret.encode()

    async def take(request: web.Request) -> web.Response:
        body = await request.read()
        signed = "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(signed, request.headers.get("X-Hub-Signature-256", "")):
            raise web.HTTPUnauthorized
        message = json.loads(body)["entry"][0]["changes"][0]["value"]["messages"][0]
        await producer.send_and_wait(topic, body, message["from"].encode())
        return web.Response()

    server = web.Application()
    server.router.add_post(f"/webhooks/meta/{app}", take)
    return server


async def forward(consumer: AIOKafkaConsumer, producer: AIOKafkaProducer, group: str, topic: str) -> None:
    """Bring what comes in to another topic, exactly once, until cancelled."""
    while True:
        fetched = await consumer.getmany(timeout_ms=GETMANY_MS, max_records=GETMANY_RECORDS)
        if not fetched:
            continue
        async with producer.transaction():
            places: dict[TopicPartition, int] = {}
            for place, records in fetched.items():
                for record in records:
                    await producer.send(topic, record.value, record.key)
                places[place] = records[-1].offset + 1
            await producer.send_offsets_to_transaction(places, group)


async def deliver(consumer: AIOKafkaConsumer, session: aiohttp.ClientSession, url: str) -> None:
    """Post what is on the topic, until cancelled."""

    async def post(record: ConsumerRecord[bytes, bytes]) -> None:
        async with session.post(url, data=record.value, headers={"Content-Type": "application/json"}) as answer:
            answer.raise_for_status()

    while True:
        fetched = await consumer.getmany(timeout_ms=GETMANY_MS, max_records=GETMANY_RECORDS)
        if fetched:
            await asyncio.gather(*(post(record) for records in fetched.values() for record in records))
            await consumer.commit()
