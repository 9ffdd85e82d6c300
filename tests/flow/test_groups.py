"""A group's conversation through one real process on the embedded log: what is written in it, what is sent to it, what
becomes of that. Meta's side is played by hand: signed webhooks in its documented shapes, and a Graph that answers as
for a group.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.actors.graph_server import GraphServer, Seen, graph_error, reply
from tests.flow.deployment import APP_SECRET, SINK_SECRET, WABA_ID, Deployment, Number, Seat
from tests.kafka.cluster import free_ports

NUMBER = "106540352242922"
GROUP = "Y2FwaV9ncm91cDoxNTU1MDAwMTAwMDoxMjAzNjMwMDAwMDAwMDAwMDE"
WEBHOOKS = Path(__file__).parents[1] / "wire" / "webhooks"
TAKEN = (Path(__file__).parents[1] / "wire" / "responses" / "send_ok_group.json").read_bytes()
ADA, JOERG = ("15550001234", "US.13000000000000000001"), ("4915550001234", "DE.17000000000000000002")
PATIENCE_S = 20.0


@dataclass
class Group:
    """The deployment, its Graph, and what the bot was told, update by update."""

    deployment: Deployment
    seat: Seat
    graph: GraphServer
    session: aiohttp.ClientSession
    told: list[dict[str, Any]] = field(default_factory=list)
    forged: int = 0

    async def hear(self, request: web.Request) -> web.Response:
        """Take an update as a bot built for the Cloud API does."""
        body = await request.read()
        mac = hmac.new(SINK_SECRET.encode(), body, hashlib.sha256).hexdigest()
        self.forged += request.headers.get("X-Hub-Signature-256") != f"sha256={mac}"
        self.told.append(json.loads(body)["entry"][0]["changes"][0])
        return web.Response()

    def texts(self) -> list[tuple[str, str]]:
        """Who wrote what in the group, as the bot was told."""
        messages = [message for change in self.told for message in change["value"].get("messages", [])]
        assert all(message["group_id"] == GROUP for message in messages)
        return [(message["from"], message["text"]["body"]) for message in messages]

    def statuses(self, message_id: str) -> list[tuple[str, str]]:
        """The statuses of a message, as the bot was told: which, and of which participant."""
        return [
            (status["status"], status.get("recipient_participant_id") or status.get("participant_recipient_id") or "")
            for change in self.told
            for status in change["value"].get("statuses", [])
            if status["id"] == message_id
        ]

    def sent(self) -> list[dict[str, Any]]:
        """The messages Graph was asked to send."""
        return [json.loads(seen.body) for seen in self.graph.seen if seen.path.endswith("/messages") and seen.body]

    async def webhook(self, body: dict[str, Any]) -> None:
        """Have Meta tell us something."""
        raw = json.dumps(body).encode()
        mac = hmac.new(APP_SECRET.encode(), raw, hashlib.sha256).hexdigest()
        url = f"http://127.0.0.1:{self.deployment.receiver_port}/webhooks/meta/main"
        async with self.session.post(url, data=raw, headers={"X-Hub-Signature-256": f"sha256={mac}"}) as answer:
            assert answer.status == 200, await answer.text()

    async def written(self, who: tuple[str, str], index: int, text: str) -> None:
        """Have a participant write in the group."""
        body = json.loads((WEBHOOKS / "in_group_text.json").read_text())
        value = body["entry"][0]["changes"][0]["value"]
        value["contacts"][0] |= {"wa_id": who[0], "user_id": who[1]}
        value["messages"][0] |= {
            "from": who[0],
            "from_user_id": who[1],
            "id": f"wamid.IN{index}",
            "text": {"body": text},
        }
        await self.webhook(body)

    async def reported(self, *statuses: dict[str, Any]) -> None:
        """Have Meta report on sends, several statuses in one POST."""
        value = {
            "messaging_product": "whatsapp",
            "metadata": {"display_phone_number": "15550001000", "phone_number_id": NUMBER},
            "statuses": [
                {"timestamp": "1789301094", "recipient_id": GROUP, "recipient_type": "group", **status}
                for status in statuses
            ],
        }
        entry = {"id": WABA_ID, "changes": [{"value": value, "field": "messages"}]}
        await self.webhook({"object": "whatsapp_business_account", "entry": [entry]})

    async def send(self, text: str) -> str:
        """Send to the group as its bot; return the message's id."""
        url = f"http://127.0.0.1:{self.deployment.gateway_port}/v26.0/{NUMBER}/messages"
        content = {
            "messaging_product": "whatsapp",
            "recipient_type": "group",
            "to": GROUP,
            "type": "text",
            "text": {"body": text},
            "biz_opaque_callback_data": f"own of {text}",
        }
        headers = {"Authorization": f"Bearer {self.seat.key}"}
        async with self.session.post(url, json=content, headers=headers) as answer:
            said = await answer.json()
        assert answer.status == 200, said
        assert said["contacts"] == [{"input": GROUP, "wa_id": GROUP}]
        assert said["messages"][0]["group_id"] == GROUP
        return str(said["messages"][0]["id"])

    async def until(self, condition: Any) -> None:
        """Wait until something is so."""
        for _ in range(int(PATIENCE_S / 0.02)):
            if condition():
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"not within {PATIENCE_S:.0f} s; told: {self.told}; sent: {self.sent()}")


async def answer(server: GraphServer, seen: Seen, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Take what is sent to the group, each under an id of its own, but not what it is told to refuse."""
    if not seen.path.endswith("/messages") or not seen.body:
        writer.write(reply(200, b'{"data":[]}'))
    elif b"no longer there" in seen.body:
        writer.write(reply(400, graph_error(131041)))
    else:
        said = json.loads(TAKEN)
        said["messages"][0]["id"] = f"wamid.OUT-{json.loads(seen.body)['text']['body']}"
        writer.write(reply(200, json.dumps(said).encode()))
    await writer.drain()
    return True


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[Group]:
    """One process with everything, its bot and its Graph."""
    (port,) = free_ports(1)
    seat = Seat("bot", port, [NUMBER])
    log: dict[str, object] = {"engine": "embedded", "embedded": {"path": str(tmp_path / "log")}}
    deployment = Deployment(tmp_path / "depesche", log, [Number(NUMBER, 0)], [seat])
    app = web.Application()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    try:
        async with (
            GraphServer(answer, port=deployment.sandbox_port) as graph,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
        ):
            group = Group(deployment, seat, graph, session)
            app.router.add_post("/webhook", group.hear)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            await deployment.start("all", "run")
            yield group
    finally:
        deployment.close()
        await runner.cleanup()


async def test_a_group_is_one_conversation_in_both_directions(group: Group) -> None:
    """Several people and one brand: what they write reaches the bot once and in the group's order, whoever wrote it;
    what the bot sends goes to the group, and each participant's statuses come back under the bot's own id."""
    said = [(ADA, "What does everyone think?"), (JOERG, "Me first"), (ADA, "No, me"), (JOERG, "Both of us")]
    for index, (who, text) in enumerate(said):
        await group.written(who, index, text)
    await group.written(*said[0][:1], 0, said[0][1])  # Meta repeats itself
    await group.until(lambda: len(group.texts()) >= len(said))

    first, second = await group.send("one"), await group.send("two")
    await group.until(lambda: len(group.sent()) == 2)
    assert [(body["to"], body["recipient_type"], body["text"]["body"]) for body in group.sent()] == [
        (GROUP, "group", "one"),
        (GROUP, "group", "two"),
    ]
    lines = {body["text"]["body"]: body["biz_opaque_callback_data"] for body in group.sent()}
    sent = {"id": "wamid.OUT-one", "status": "sent", "biz_opaque_callback_data": lines["one"]}
    delivered = [
        {**sent, "status": "delivered", "recipient_participant_id": who[0], "recipient_participant_user_id": who[1]}
        for who in (ADA, JOERG)
    ]
    await group.reported(sent)
    await group.reported(*delivered)
    await group.reported(*delivered)
    await group.reported({**sent, "status": "read", "participant_recipient_id": JOERG[0]})
    await group.reported({"id": "wamid.OUT-two", "status": "sent", "biz_opaque_callback_data": lines["two"]})
    await group.written(ADA, 9, "Thank you")
    await group.until(lambda: group.texts()[-1] == (ADA[0], "Thank you"))

    assert group.texts() == [(who[0], text) for who, text in said] + [(ADA[0], "Thank you")]
    assert group.statuses(first) == [("sent", ""), ("delivered", ADA[0]), ("delivered", JOERG[0]), ("read", JOERG[0])]
    assert group.statuses(second) == [("sent", "")]
    owns = {
        status.get("biz_opaque_callback_data")
        for change in group.told
        for status in change["value"].get("statuses", [])
        if status["id"] == first
    }
    assert owns == {"own of one"}

    refused = await group.send("no longer there")
    await group.until(lambda: group.statuses(refused))
    (status,) = group.told[-1]["value"]["statuses"]
    assert (status["status"], status["errors"][0]["code"]) == ("failed", 131041)
    assert (status["recipient_id"], status["recipient_type"]) == (GROUP, "group"), "in Meta's shape for a group"
    assert group.forged == 0
