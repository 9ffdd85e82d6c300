"""The sandbox over HTTP: Graph's paths, the control API, the journal, and its memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.sandbox.served import NUMBER, SECOND, TOKEN, Served

ADA = "15550001234"
LIMIT = aiohttp.ClientTimeout(total=10)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A sandbox with a bot behind it."""
    async with Served(tmp_path / "sandbox") as one:
        yield one


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client."""
    async with aiohttp.ClientSession(timeout=LIMIT) as session:
        yield session


async def eventually(what: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110  # the product has no event for a test to wait on
            await asyncio.sleep(0.02)


async def say(http: aiohttp.ClientSession, served: Served, text: str, person: str = ADA) -> str:
    """Write as a customer."""
    body = {"number": NUMBER, "person": person, "type": "text", "content": {"body": text}}
    async with http.post(f"{served.url}/sandbox/messages", json=body) as answer:
        assert answer.status == 200
        wamid: str = (await answer.json())["wamid"]
        return wamid


async def get(http: aiohttp.ClientSession, url: str) -> Any:
    """Return what a URL answers, as JSON."""
    async with http.get(url) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


def bubbles(state: Any, person: str = ADA) -> list[Any]:
    """Return the bubbles of a chat."""
    return [bubble for chat in state["chats"] if chat["person"] == person for bubble in chat["bubbles"]]


async def test_a_customers_message_is_answered_and_everything_is_there(
    served: Served, http: aiohttp.ClientSession
) -> None:
    """The whole way round, and what is behind the bubble: the call, its answer, three signed webhooks."""
    await say(http, served, "hello")

    def answered() -> bool:
        return any(bubble.by == "business" and bubble.status == "delivered" for bubble in all_bubbles(served))

    await eventually(answered)
    state = await get(http, f"{served.url}/sandbox/state")
    question, answer = bubbles(state)
    assert (question["body"]["body"], question["status"]) == ("hello", "read")
    assert answer["body"]["body"] == "echo: hello"
    async with http.post(f"{served.url}/sandbox/read", json={"number": NUMBER, "person": ADA}) as read:
        assert await read.json() == {"read": 1}
    await eventually(lambda: all_bubbles(served)[-1].status == "read")
    await eventually(lambda: served.sandbox.platform.postbox.waiting == 0)
    behind = await get(http, f"{served.url}/sandbox/messages/{answer['id']}")
    [call] = behind["calls"]
    assert call["request"]["text"]["body"] == "echo: hello"
    assert call["response"]["messages"][0]["id"] == answer["id"]
    assert [webhook["status"] for webhook in behind["webhooks"]] == ["sent", "delivered", "read"]
    assert all(webhook["posts"][0]["signature"].startswith("sha256=") for webhook in behind["webhooks"])
    assert served.bot.bad_signatures == 0


def all_bubbles(served: Served) -> list[Any]:
    """Return every bubble of the sandbox."""
    return [bubble for chat in served.sandbox.history.chats() for bubble in chat["bubbles"]]


async def test_a_lost_answer_is_a_cut_connection(served: Served, http: aiohttp.ClientSession) -> None:
    """Over a real socket: the client sees the connection end, not an error page."""
    await say(http, served, "hello")
    async with http.put(f"{served.url}/sandbox/faults/lost_answer", json={"rate": 1}) as answer:
        assert (await answer.json())["on"]["lost_answer"]["rate"] == 1
    body = {"messaging_product": "whatsapp", "to": ADA, "text": {"body": "x"}, "biz_opaque_callback_data": "mine"}
    with pytest.raises(aiohttp.ClientConnectionError):
        await http.post(
            f"{served.url}/v26.0/{NUMBER}/messages", json=body, headers={"Authorization": f"Bearer {TOKEN}"}
        )
    async with http.delete(f"{served.url}/sandbox/faults") as answer:
        assert (await answer.json())["on"] == {}
    async with http.get(f"{served.url}/sandbox/journal?since=0") as answer:
        entries = [json.loads(line) for line in (await answer.text()).splitlines()]
    calls = [entry for entry in entries if entry["entry"] == "call" and entry.get("send") == "mine"]
    assert [(call["accepted"], call["answered"], call["fault"]) for call in calls] == [(True, False, "lost_answer")]


async def test_the_journal_is_read_in_pieces(served: Served, http: aiohttp.ClientSession) -> None:
    """A harness follows it by number."""
    await say(http, served, "hello")
    await eventually(lambda: len(all_bubbles(served)) == 2)
    seen: list[int] = []
    while True:
        async with http.get(f"{served.url}/sandbox/journal?since={seen[-1] if seen else 0}&limit=3") as answer:
            lines = [json.loads(line)["seq"] for line in (await answer.text()).splitlines()]
        if not lines:
            break
        assert len(lines) <= 3
        seen += lines
    assert seen == sorted(set(seen))
    assert len(seen) > 8


async def test_a_restart_shows_everything_that_was_there(served: Served, http: aiohttp.ClientSession) -> None:
    """`make run` started again: the same bubbles, the same ticks, and the conversation goes on."""
    await say(http, served, "hello")
    await eventually(lambda: len(all_bubbles(served)) == 2 and served.sandbox.platform.postbox.waiting == 0)
    await eventually(lambda: all_bubbles(served)[-1].status == "delivered")
    before = (await get(http, f"{served.url}/sandbox/state"))["chats"]
    await served.restart()
    state = await get(http, f"{served.url}/sandbox/state")
    assert [{**chat, "typing_until": 0} for chat in state["chats"]] == [{**chat, "typing_until": 0} for chat in before]
    assert len(state["people"]) == 4
    await say(http, served, "still there?")
    await eventually(lambda: len(all_bubbles(served)) == 4)
    assert len({bubble.id for bubble in all_bubbles(served)}) == 4


async def test_events_tell_a_page_what_happens(served: Served, http: aiohttp.ClientSession) -> None:
    """Bubbles appear without asking."""
    seen: list[str] = []
    async with http.get(f"{served.url}/sandbox/events", timeout=aiohttp.ClientTimeout(total=None)) as events:
        await say(http, served, "hello")
        async with asyncio.timeout(10):
            async for raw in events.content:
                line = raw.decode().strip()
                if line.startswith("event: "):
                    seen.append(line.removeprefix("event: "))
                if line.startswith("data: ") and '"echo: hello"' in line and '"delivered"' in line:
                    break
    assert seen[0] == "hello"
    assert {"bubble", "typing", "traffic"} <= set(seen)


async def test_a_picture_goes_from_the_customer_to_whoever_has_the_token(
    served: Served, http: aiohttp.ClientSession
) -> None:
    """Upload, message, media URL, bytes: the way a bot gets a customer's picture."""
    picture = b"\x89PNG\r\n\x1a\n" + bytes(100)
    async with http.post(
        f"{served.url}/sandbox/media?number={NUMBER}&filename=a.png",
        data=picture,
        headers={"Content-Type": "image/png"},
    ) as answer:
        medium = await answer.json()
    body = {"number": NUMBER, "person": ADA, "type": "image", "content": medium}
    async with http.post(f"{served.url}/sandbox/messages", json=body) as answer:
        assert answer.status == 200
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    async with http.get(f"{served.url}/v26.0/{medium['id']}", headers=bearer) as answer:
        url = (await answer.json())["url"]
    async with http.get(url) as answer:
        assert answer.status == 401
    async with http.get(url, headers=bearer) as answer:
        assert await answer.read() == picture
        assert answer.content_type == "image/png"


async def test_a_bot_uploads_media_the_way_graph_takes_it(served: Served, http: aiohttp.ClientSession) -> None:
    """multipart/form-data with file, type and messaging_product."""
    form = aiohttp.FormData()
    form.add_field("messaging_product", "whatsapp")
    form.add_field("type", "image/jpeg")
    form.add_field("file", b"\xff\xd8\xff" + bytes(50), filename="a.jpg", content_type="image/jpeg")
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    async with http.post(f"{served.url}/v26.0/{NUMBER}/media", data=form, headers=bearer) as answer:
        media_id = (await answer.json())["id"]
    async with http.get(f"{served.url}/v26.0/{media_id}", headers=bearer) as answer:
        assert (await answer.json())["mime_type"] == "image/jpeg"
    async with http.delete(f"{served.url}/v26.0/{media_id}", headers=bearer) as answer:
        assert await answer.json() == {"success": True}
    async with http.get(f"{served.url}/v26.0/{media_id}", headers=bearer) as answer:
        assert answer.status == 400


async def test_the_number_node_is_there(served: Served, http: aiohttp.ClientSession) -> None:
    """What a sender asks for at its start."""
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    async with http.get(f"{served.url}/v26.0/{SECOND}?fields=throughput", headers=bearer) as answer:
        node = await answer.json()
    assert (node["id"], node["throughput"]["level"], node["verified_name"]) == (SECOND, "STANDARD", "Parcel Service")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "messages", {"number": "0", "person": ADA, "type": "text", "content": {"body": "x"}}, 404),
        ("POST", "messages", {"number": NUMBER, "person": "0", "type": "text", "content": {"body": "x"}}, 404),
        ("POST", "messages", {"number": NUMBER, "person": ADA, "type": "hologram", "content": {}}, 400),
        ("POST", "messages", {"number": NUMBER, "person": ADA, "type": "text", "content": {"body": ""}}, 400),
        ("POST", "messages", {"number": NUMBER, "person": ADA, "type": "text", "content": "x"}, 400),
        ("PUT", "faults/earthquake", {"rate": 1}, 400),
        ("PUT", "faults/slow", {"rate": 2}, 400),
        ("PUT", "faults/slow", {"speed": 2}, 400),
        ("POST", "freeze", {"seconds": 1e9}, 400),
        ("PUT", "tokens/0/revoked", {}, 404),
        ("PATCH", f"people/{ADA}", {"reads": "sometimes"}, 400),
        ("PATCH", f"people/{ADA}", {"wa_id": "1"}, 400),
        ("PATCH", "people/0", {"online": True}, 404),
        ("POST", "people", {"name": "Nobody"}, 400),
    ],
)
async def test_what_makes_no_sense_is_refused_with_a_reason(
    served: Served, http: aiohttp.ClientSession, method: str, path: str, body: Any, status: int
) -> None:
    """Never a 500, never silence."""
    async with http.request(method, f"{served.url}/sandbox/{path}", json=body) as answer:
        assert answer.status == status
        assert (await answer.json())["error"]


async def test_other_sites_pages_are_refused(served: Served, http: aiohttp.ClientSession) -> None:
    """A page somewhere on the internet must not write to a developer's sandbox, by form, script or rebound name."""
    url = f"{served.url}/sandbox/messages"
    body = {"number": NUMBER, "person": ADA, "type": "text", "content": {"body": "x"}}
    async with http.post(url, json=body, headers={"Origin": "https://example.com"}) as answer:
        assert answer.status == 403
    async with http.post(url, json=body, headers={"Host": "rebound.example.com"}) as answer:
        assert answer.status == 403
    async with http.post(url, data=json.dumps(body), headers={"Content-Type": "text/plain"}) as answer:
        assert answer.status == 415


async def test_a_webhook_that_is_refused_comes_again(served: Served, http: aiohttp.ClientSession) -> None:
    """The bot is down for two attempts; the customer still gets one answer."""
    served.bot.answers = [503, 503]
    await say(http, served, "hello")
    await eventually(lambda: len(all_bubbles(served)) == 2)
    assert list(served.bot.seen.values()) == [1]


async def test_the_chats_can_be_emptied(served: Served, http: aiohttp.ClientSession) -> None:
    """Begin anew, with the same customers."""
    await say(http, served, "hello")
    await eventually(lambda: len(all_bubbles(served)) == 2 and served.sandbox.platform.postbox.waiting == 0)
    async with http.delete(f"{served.url}/sandbox/history") as answer:
        assert answer.status == 200
    assert all_bubbles(served) == []
    await served.restart()
    assert len((await get(http, f"{served.url}/sandbox/state"))["people"]) == 4


async def test_the_referee_can_be_asked(served: Served, http: aiohttp.ClientSession) -> None:
    """By a harness in another process."""
    await say(http, served, "hello")
    await eventually(lambda: len(all_bubbles(served)) == 2)
    report = await get(http, f"{served.url}/sandbox/referee")
    assert report["counts"] == {}
    assert report["numbers"][NUMBER]["accepted"] == 1
    assert report["numbers"][NUMBER]["inbound"] == 1


async def test_loads_run_beside_each_other_by_their_names(served: Served, http: aiohttp.ClientSession) -> None:
    """Two bots are tried at once, each by customers of its own; the same name twice is a mistake."""
    loads: dict[str, dict[str, Any]] = {
        name: {"name": name, "conversations": 2, "turns": 1, "conversations_per_s": 50} for name in ("a", "b")
    }
    loads["a"]["numbers"] = [NUMBER]
    loads["b"] |= {"first_phone": 15_550_200_000, "numbers": [SECOND]}
    for load in loads.values():
        async with http.post(f"{served.url}/sandbox/load", json=load) as answer:
            assert answer.status == 200
    async with http.post(f"{served.url}/sandbox/load", json=loads["a"]) as answer:
        assert answer.status == 409
    async with http.get(f"{served.url}/sandbox/load?name=c") as answer:
        assert answer.status == 404
    for name in loads:
        async with asyncio.timeout(10):
            while True:
                report = await get(http, f"{served.url}/sandbox/load?name={name}")
                if report["over"]:
                    break
                await asyncio.sleep(0.05)
        assert (report["begun"], report["answered"], report["whole"], report["broken"]) == (2, 2, 2, [])
    view = await get(http, f"{served.url}/sandbox/referee")
    assert [view["numbers"][number]["dialogues"] for number in (NUMBER, SECOND)] == [2, 2]
