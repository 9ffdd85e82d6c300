"""The sample bots: what they say is what Meta takes, and they are built as a bot should be."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from standardwebhooks import Webhook

from broker.clock import SystemClock
from broker.sandbox.bots import SampleBots, assistant_answers, order_answers
from broker.sandbox.payload import Outgoing, read
from broker.sandbox.shapes import sign
from broker.secrets import Secret
from schemas.settings import SampleBot, SecretSource
from tests.sandbox.served import NUMBER, SECRET, TOKEN, Served
from tests.sandbox.test_app import ADA, all_bubbles, eventually, say

WHSEC = "whsec_" + base64.b64encode(b"order-desk-secret-24-bytes").decode()


def message(kind: str, content: Any, **more: Any) -> dict[str, Any]:
    """Return a customer's message."""
    return {"from": ADA, "id": "wamid.HBgTEST", "timestamp": "1", "type": kind, kind: content, **more}


def text(body: str) -> dict[str, Any]:
    """Return a customer's text."""
    return message("text", {"body": body})


def tap(button_id: str) -> dict[str, Any]:
    """Return a customer's tap."""
    return message("interactive", {"type": "button_reply", "button_reply": {"id": button_id, "title": "T"}})


SAID = [
    text("Hello"),
    text("menu, please!"),
    text("When are you open?"),
    text("Surprise me"),
    text("STOP"),
    text("thanks"),
    text("x" * 4_096),
    text("1042"),
    tap("menu"),
    tap("colour:blue"),
    tap("order:1043"),
    tap("order:map:1043"),
    tap("order:thanks"),
    tap("order:0"),
    message("image", {"id": "1", "mime_type": "image/png"}),
    message("location", {"latitude": 1, "longitude": 2}),
    message("sticker", {"id": "1"}),
]


@pytest.mark.parametrize("bot", [assistant_answers, order_answers])
@pytest.mark.parametrize("heard", SAID, ids=lambda heard: str(heard.get("text") or heard["type"])[:40])
def test_whatever_a_customer_says_is_answered_with_what_meta_takes(bot: Any, heard: dict[str, Any]) -> None:
    """Somebody tries everything in the first minute; nothing may stay without an answer or be refused."""
    answers = bot(heard)
    assert answers
    for answer in answers:
        assert isinstance(read({"messaging_product": "whatsapp", "to": ADA, **answer}), Outgoing), answer


def test_a_reaction_is_not_answered() -> None:
    """Two bots that answer each other's reactions would never end."""
    heard = message("reaction", {"message_id": "wamid.H", "emoji": "👍"})
    assert assistant_answers(heard) == order_answers(heard) == []


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A sandbox."""
    async with Served(tmp_path) as one:
        yield one


@pytest.fixture
async def bots(served: Served) -> AsyncIterator[SampleBots]:
    """Both bots; their gateway is the sandbox itself, which speaks the same path. The assistant gets its webhooks."""
    settings = [
        SampleBot(kind=kind, port=0, secret=SecretSource(env="X"), key=SecretSource(env="X"), gateway_url=served.url)
        for kind in ("assistant", "orders")
    ]
    one = SampleBots(
        settings, [Secret(SECRET), Secret(WHSEC)], [Secret(TOKEN), Secret(TOKEN)], SystemClock(), pace_s=0.01
    )
    await one.start()
    served.sandbox.platform.postbox.url = f"http://127.0.0.1:{one.bots[0].port}/webhook"
    yield one
    await one.stop()


async def test_the_assistant_reads_types_and_greets(served: Served, bots: SampleBots) -> None:
    """Straight behind the sandbox, as it would stand straight behind Meta."""
    async with aiohttp.ClientSession() as http:
        await say(http, served, "Hello")
        await eventually(lambda: len(all_bubbles(served)) == 2)
    question, answer = all_bubbles(served)
    assert question.status == "read"
    assert answer.type == "interactive"
    assert len(answer.body["action"]["buttons"]) == 3


async def test_the_assistant_answers_a_hidden_phone_by_its_business_scoped_id(served: Served, bots: SampleBots) -> None:
    """A bot that needs `from` is mute to these customers."""
    async with aiohttp.ClientSession() as http:
        await say(http, served, "Surprise me", "US.19000000000000000003")
        await eventually(lambda: len(all_bubbles(served)) == 2 and bool(all_bubbles(served)[0].reactions))
    assert all_bubbles(served)[0].reactions == {"business": "✨"}


async def test_a_wrong_signature_is_refused(bots: SampleBots) -> None:
    """By either bot."""
    async with aiohttp.ClientSession() as http:
        for bot, path in zip(bots.bots, ("webhook", "events"), strict=True):
            headers = {"X-Hub-Signature-256": sign(b"{}", "another"), "webhook-signature": "v1,AAAA"}
            async with http.post(f"http://127.0.0.1:{bot.port}/{path}", data=b"{}", headers=headers) as answer:
                assert answer.status == 401


async def post_order(
    http: aiohttp.ClientSession, bots: SampleBots, age_s: int = 0, wamid: str = "wamid.HBgTEST"
) -> int:
    """Post a signed Standard Webhooks event to the order desk, made by the reference library; return the status."""
    value = {"metadata": {"phone_number_id": NUMBER}, "messages": [{**text("Where is my order?"), "id": wamid}]}
    event = {
        "type": "whatsapp.message",
        "timestamp": "2026-01-01T00:00:00Z",
        "data": {"entry": [{"changes": [{"field": "messages", "value": value}]}]},
    }
    body = json.dumps(event)
    at = datetime.now(UTC) - timedelta(seconds=age_s)
    headers = {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(WHSEC).sign("evt_1", at, body),
    }
    async with http.post(f"http://127.0.0.1:{bots.bots[1].port}/events", data=body, headers=headers) as answer:
        return answer.status


async def test_the_order_desk_takes_standard_webhooks(served: Served, bots: SampleBots) -> None:
    """Signed by the reference library; one that is too old is a replay."""
    wamid = served.sandbox.platform.write(NUMBER, ADA, "text", {"body": "thanks"})
    async with aiohttp.ClientSession() as http:
        assert await post_order(http, bots, wamid=wamid) == 200
        assert await post_order(http, bots, age_s=400) == 401
    await eventually(lambda: any(bubble.type == "interactive" for bubble in all_bubbles(served)))


async def test_an_event_whose_answer_cannot_be_sent_is_to_come_again(served: Served, bots: SampleBots) -> None:
    """503, not 200: the broker still has the event."""
    await served.sandbox.stop()
    async with asyncio.timeout(10), aiohttp.ClientSession() as http:
        assert await post_order(http, bots) == 503
    await served.restart()
