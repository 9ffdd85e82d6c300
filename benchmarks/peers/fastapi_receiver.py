"""A webhook receiver as a user writes it: FastAPI, the signature over the raw body, JSON, `send_and_wait`, 200.

One record for each message and status, keyed by the customer, acks=all. No metrics, no limits, no dead letters: what
ours does beside that is not in its price.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaProducer
from fastapi import FastAPI, HTTPException, Request, Response


def receiver(app: str, secret: str, bootstrap: str, topic: str) -> FastAPI:
    """Return the application; its producer lives as long as it does."""
    key = secret.encode()

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True)
        await producer.start()
        api.state.producer = producer
        try:
            yield
        finally:
            await producer.stop()

    api = FastAPI(lifespan=lifespan, openapi_url=None)

    @api.post(f"/webhooks/meta/{app}")
    async def take(request: Request) -> Response:
        body = await request.body()
        signed = "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(signed, request.headers.get("x-hub-signature-256", "")):
            raise HTTPException(401)
        sends = []
        for entry in json.loads(body)["entry"]:
            for change in entry["changes"]:
                value = change["value"]
                for item in (*value.get("messages", ()), *value.get("statuses", ())):
                    customer = item.get("from") or item["recipient_id"]
                    sends.append(api.state.producer.send_and_wait(topic, body, key=customer.encode()))
        if len(sends) == 1:
            await sends[0]
        else:
            await asyncio.gather(*sends)
        return Response()

    return api
