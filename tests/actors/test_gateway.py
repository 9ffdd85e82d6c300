"""The gateway on a real port and the real embedded log: what a bot built for Graph gets to see, and what is kept."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import itertools
import json
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from broker import metrics
from broker.clock import SystemClock
from broker.core.opaque import is_send_id
from broker.gateway import Gateway, gateway_app
from broker.gateway.control import Control
from broker.gateway.repetitions import ENTRIES_MAX, EQUAL_MAX, UNKNOWN_S, Attempt, Repetitions
from broker.listener import Listener
from broker.log.embedded import EmbeddedLog
from schemas.ids import SendId
from schemas.records import SendRequest, decode_conversation
from schemas.settings import GatewaySettings, Settings
from tests.actors.ports import (
    KEY,
    NARROW_KEY,
    NUMBER,
    OTHER_NUMBER,
    embedded,
    entries,
    gated,
    head,
    settings,
    status_of,
    talk,
)

TEXT: dict[str, Any] = {
    "messaging_product": "whatsapp",
    "to": "+49 1555 000-1234",
    "type": "text",
    "text": {"body": "Grüße"},
}
PATH = f"/v23.0/{NUMBER}/messages"


class Port:
    """A gateway and its port."""

    def __init__(self, gateway: Gateway, port: Listener, engine: EmbeddedLog, client: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.listener = port
        self.engine = engine
        self.client = client
        self.url = f"http://127.0.0.1:{port.port}"

    async def send(
        self, body: Any = TEXT, *, key: str | None = KEY, path: str = PATH, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.post(self.url + path, data=data, headers=sent) as answer:
            return answer.status, json.loads(await answer.read()), dict(answer.headers)

    async def requests(self) -> list[tuple[bytes, SendRequest]]:
        found = []
        for entry in await entries(self.engine, "conversations"):
            record = decode_conversation(entry.value)
            assert isinstance(record, SendRequest)
            found.append((entry.key, record))
        return found

    async def request(self) -> tuple[str, SendRequest]:
        ((key, request),) = await self.requests()
        return key.decode(), request


@asynccontextmanager
async def serving(engine: EmbeddedLog, of: Settings, seed: int = 1) -> AsyncIterator[Port]:
    clock = SystemClock()
    gateway = Gateway(of, engine, clock, random.Random(seed), operators=Control(of, engine, clock))
    port = gateway_app(gateway, of, clock)
    await gateway.start()
    await port.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as client:
            yield Port(gateway, port, engine, client)
    finally:
        await port.stop(1.0)
        await gateway.stop(1.0)


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    async with embedded(tmp_path, settings()) as engine, serving(engine, settings()) as port:
        yield port


def error(answer: tuple[int, Any, dict[str, str]]) -> tuple[int, int, str]:
    """Status, code and details of an error in Graph's shape; everything a client may look at is there."""
    status, body, headers = answer
    assert headers["Content-Type"].startswith("application/json")
    said = body["error"]
    assert said["message"]
    assert said["type"] in ("OAuthException", "GraphMethodException")
    assert len(said["fbtrace_id"]) > 10
    return status, said["code"], said.get("error_data", {}).get("details", "")


def count(metric: Any, *labels: str) -> float:
    return float((metric.labels(*labels) if labels else metric)._value.get())


async def test_a_send_is_on_the_log_when_it_is_answered_and_answered_as_graph_would(port: Port) -> None:
    """A bot reads `messages[0].id` and goes on; what it asked for is kept to the byte."""
    body = json.dumps({**TEXT, "biz_opaque_callback_data": "job:7", "tomorrow": 7.90}, ensure_ascii=False).encode()
    status, answer, _ = await port.send(body)
    assert status == 200
    send_id = answer["messages"][0]["id"]
    assert is_send_id(send_id)
    assert answer == {
        "messaging_product": "whatsapp",
        "contacts": [{"input": "+49 1555 000-1234", "wa_id": "4915550001234"}],
        "messages": [{"id": send_id}],
    }
    key, request = await port.request()
    assert key == "brand:4915550001234"
    assert request.body == body
    assert (request.send_id, request.phone_number_id, request.kind) == (send_id, NUMBER, "message")
    assert (request.message_type, request.send_class, request.key_name, request.sink) == (
        "text",
        "transactional",
        "bot",
        "bot",
    )
    assert (request.wa_id, request.bsuid, request.opaque) == ("4915550001234", "", "job:7")
    assert (request.not_after, request.epoch, len(request.fingerprint)) == (0, None, 16)
    assert abs(request.requested_at - SystemClock().now()) < 10_000


async def test_the_answer_waits_until_the_request_is_durable(tmp_path: Path) -> None:
    """An id given out too early is a message nobody will ever send."""
    async with gated(tmp_path, settings()) as engine, serving(engine, settings()) as port:
        engine.open.clear()
        answer = asyncio.create_task(port.send())
        await asyncio.wait_for(engine.asked.wait(), 5)
        await asyncio.sleep(0.1)
        assert not answer.done()
        engine.open.set()
        assert (await answer)[0] == 200


@pytest.mark.parametrize(
    "path",
    [PATH, PATH + "/", f"/{NUMBER}/messages", f"/v26.0/{NUMBER}/messages/?x=1", f"/v100/{NUMBER}/messages"],
)
async def test_every_spelling_of_the_path_is_taken(port: Port, path: str) -> None:
    """Clients are built for many versions; ours does not depend on them."""
    assert (await port.send(path=path))[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v23.0/me/messages",
        f"//{NUMBER}/messages",
        f"/v23.0/{NUMBER}/messages/x/y/z",
        "/favicon",
    ],
)
async def test_another_path_is_said_in_graphs_shape(port: Port, path: str) -> None:
    """A client that cannot read the answer cannot say what is wrong."""
    assert error(await port.send(path=path))[:2] == (404, 2500)


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
async def test_another_method_is_said_in_graphs_shape(port: Port, method: str) -> None:
    """With what would be right."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with port.client.request(method, port.url + PATH, headers=headers) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        assert (await answer.json())["error"]["code"] == 100


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY, "Bearer " + "x" * 600]
)
async def test_an_unknown_key_is_an_invalid_token(port: Port, authorization: str | None) -> None:
    """401 and 190: what clients of Graph act on."""
    before = count(metrics.gateway_requests, "unauthorized")
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = await port.send(key=None, **headers)
    assert error(answer)[:2] == (401, 190)
    assert count(metrics.gateway_requests, "unauthorized") == before + 1
    assert not await port.requests()


async def test_keys_are_replaced_while_it_runs(port: Port) -> None:
    """A leaked key is gone a second after it left the configuration, and its successor is there."""
    before = settings().keys
    assert (await port.send())[0] == 200
    digest = hashlib.sha256(b"the next key").hexdigest()
    port.gateway.use_keys([replace(before[0], sha256=digest)])
    assert (await port.send())[0] == 401
    assert (await port.send(key="the next key"))[0] == 200


async def test_a_body_of_an_unknown_key_is_not_read(port: Port) -> None:
    """Strangers get no memory of ours."""
    start = head("POST", PATH, {"Authorization": "Bearer wrong", "Content-Length": 200_000})
    assert status_of(await talk(port.listener.port, start, finish=False, timeout_s=5)) == 401


async def test_a_key_sends_from_its_own_numbers_only_and_learns_of_no_others(port: Port) -> None:
    """A number of somebody else and one that does not exist look the same, as at Meta."""
    assert (await port.send(key=NARROW_KEY, path=f"/v23.0/{OTHER_NUMBER}/messages"))[0] == 200
    for key, number in ((NARROW_KEY, NUMBER), (NARROW_KEY, "999"), (KEY, "999")):
        answer = await port.send(key=key, path=f"/v23.0/{number}/messages")
        assert error(answer)[:2] == (400, 100)
        assert answer[1]["error"]["error_subcode"] == 33
    assert len(await port.requests()) == 1


@pytest.mark.parametrize(
    ("address", "contact", "key"),
    [
        ({"to": 4915550001234}, {"input": "4915550001234", "wa_id": "4915550001234"}, "brand:4915550001234"),
        ({"to": None, "recipient": "DE.17"}, {"input": "DE.17", "user_id": "DE.17"}, "brand:DE.17"),
        (
            {"recipient": "DE.17"},
            {"input": "+49 1555 000-1234", "wa_id": "4915550001234", "user_id": "DE.17"},
            "brand:4915550001234",
        ),
        ({"to": "Y2Fw", "recipient_type": "group"}, {"input": "Y2Fw", "wa_id": "Y2Fw"}, "brand:#group:Y2Fw"),
    ],
)
async def test_every_way_to_address_somebody_is_answered_and_keyed(
    port: Port, address: dict[str, Any], contact: dict[str, str], key: str
) -> None:
    """The key decides whom a send waits behind: a phone given in any form is one customer."""
    status, answer, _ = await port.send({**TEXT, **address})
    assert (status, answer["contacts"]) == (200, [contact])
    assert (await port.request())[0] == key


async def test_a_template_is_answered_with_its_status_and_its_name_is_noted(port: Port) -> None:
    """Clients read `message_status`; the customer stage has to know that a window is not needed."""
    template = {"name": "order_update", "language": {"code": "de"}}
    _, answer, _ = await port.send({**TEXT, "type": "template", "template": template})
    assert answer["messages"][0]["message_status"] == "accepted"
    assert (await port.request())[1].template == "order_update"


async def test_a_read_mark_is_done_and_concerns_no_customer(port: Port) -> None:
    """`success`, as at Meta; nobody's window or order has to do with it."""
    mark = {"messaging_product": "whatsapp", "status": "read", "message_id": "wamid.HBg="}
    status, answer, _ = await port.send({**mark, "typing_indicator": {"type": "text"}})
    assert (status, answer) == (200, {"success": True})
    key, request = await port.request()
    assert key == "brand:#mark:wamid.HBg="
    assert (request.kind, request.message_type, request.send_class) == ("mark", "typing", "reply")


@pytest.mark.parametrize(
    ("change", "code", "path"),
    [
        ({"to": None}, 100, "to"),
        ({"to": "somebody"}, 131009, "to"),
        ({"text": {"body": "x" * 4_097}}, 100, "text.body"),
        ({"type": "image", "image": {"link": "x"}}, 100, "image.link"),
        ({"biz_opaque_callback_data": "x" * 513}, 100, "biz_opaque_callback_data"),
        ({"type": "interactive", "interactive": {"type": "button"}}, 131008, "interactive.body"),
    ],
)
async def test_a_payload_that_meta_would_refuse_is_refused_here(
    port: Port, change: dict[str, Any], code: int, path: str
) -> None:
    """At once, with Meta's code, by its path, and nothing is kept."""
    status, said, details = error(await port.send({**TEXT, **change}))
    assert (status, said, details.split()[0]) == (400, code, path)
    assert not await port.requests()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"to=1&type=text", b"\xff", json.dumps(TEXT).encode()[:-1]])
async def test_a_body_that_is_no_json_object_is_refused(port: Port, body: bytes) -> None:
    """Code 100."""
    assert error(await port.send(body))[:2] == (400, 100)
    assert not await port.requests()


async def test_unknown_types_pass_and_are_counted_or_are_refused(tmp_path: Path) -> None:
    """As the operator says."""
    hologram = {**TEXT, "type": "hologram"}
    async with embedded(tmp_path, settings()) as engine:
        async with serving(engine, settings()) as port:
            before = count(metrics.gateway_unknown_types)
            assert (await port.send(hologram))[0] == 200
            assert count(metrics.gateway_unknown_types) == before + 1
        strict = settings(gateway=GatewaySettings(port=0, unknown_types=False))
        async with serving(engine, strict) as port:
            assert error(await port.send(hologram))[:2] == (400, 100)


async def test_what_is_too_large_or_encoded_is_refused_unread(port: Port) -> None:
    """512 kB hold every message there is."""
    large = json.dumps({**TEXT, "x": "x" * 600_000}).encode()
    assert error(await port.send(large))[:2] == (413, 100)
    fits = json.dumps({**TEXT, "x": "x" * 500_000}).encode()
    assert (await port.send(fits))[0] == 200
    assert error(await port.send(gzip.compress(fits), Content_Encoding="gzip"))[:2] == (415, 100)
    assert len(await port.requests()) == 1


async def test_contents_in_a_string_of_json_go_on_as_values(port: Port) -> None:
    """Whatever reads the request after us finds the ids in it where they always are."""
    reaction = {"message_id": "wamid.DX", "emoji": "x"}
    message = {**TEXT, "type": "reaction", "reaction": json.dumps(reaction)}
    assert (await port.send(message))[0] == 200
    _, request = await port.request()
    assert json.loads(request.body) == {**message, "reaction": reaction}


async def test_the_largest_documented_messages_are_taken_however_they_are_escaped(port: Port) -> None:
    """A client that escapes every character writes twelve bytes for an emoji."""
    words = {"type": "body", "parameters": [{"type": "text", "text": "\U0001f600" * 32_768}]}
    template = {"name": "t", "language": {"code": "de"}, "components": [words]}
    contacts = [{"name": {"formatted_name": "\U0001f600" * 100, "first_name": "A"}, "note": "x" * 600}] * 257
    for message in ({"type": "template", "template": template}, {"type": "contacts", "contacts": contacts}):
        body = json.dumps({**TEXT, **message}).encode()
        assert len(body) > 390_000
        assert (await port.send(body))[0] == 200


async def test_what_is_no_http_is_refused_in_graphs_shape_and_leaves_no_traceback(
    port: Port, caplog: pytest.LogCaptureFixture
) -> None:
    """Strangers knock at every port; a traceback for each would fill the log."""
    before = count(metrics.gateway_requests, "refused")
    broken = head("POST", PATH, {"Authorization": f"Bearer {KEY}", "X-Name": "a\0b", "Content-Length": 0})
    for garbage in (broken, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64, b"GET / SMTP/9.9\r\n\r\n"):
        answer = await talk(port.listener.port, garbage)
        start, _, text = answer.partition(b"\r\n\r\n")
        assert start.split()[1] == b"400"
        body = json.loads(text)
        assert error((400, body, {"Content-Type": "application/json"}))[1] == 100
    assert count(metrics.gateway_requests, "refused") == before + 3
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_body_that_breaks_off_is_not_taken(port: Port) -> None:
    """Half a message is no message."""
    body = json.dumps(TEXT).encode()
    start = head("POST", PATH, {"Authorization": f"Bearer {KEY}", "Content-Length": len(body) + 10})
    assert status_of(await talk(port.listener.port, start + body)) in (0, 400)
    assert not await port.requests()


async def test_the_optional_headers_are_kept(port: Port) -> None:
    """The class of one send, until when it is of use, and whose turn it was."""
    later = SystemClock().now() + 60_000
    sent = {"X_Depesche_Class": "otp", "X_Depesche_Not_After": str(later), "X_Depesche_Epoch": "3"}
    assert (await port.send(**sent))[0] == 200
    _, request = await port.request()
    assert (request.send_class, request.not_after, request.epoch) == ("otp", later, 3)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X_Depesche_Class", "urgent"),
        ("X_Depesche_Class", ""),
        ("X_Depesche_Not_After", "soon"),
        ("X_Depesche_Not_After", "0"),
        ("X_Depesche_Not_After", "1700000000000"),
        ("X_Depesche_Not_After", "9999999999999"),
        ("X_Depesche_Epoch", "-1"),
        ("X_Depesche_Epoch", ""),
        ("Idempotency_Key", ""),
        ("Idempotency_Key", "x" * 256),
    ],
)
async def test_a_header_that_cannot_be_meant_is_refused(port: Port, header: str, value: str) -> None:
    """Silently ignored, it would be found out weeks later."""
    status, code, details = error(await port.send(**{header: value}))
    assert (status, code, details.split()[0]) == (400, 100, header.replace("_", "-"))
    assert not await port.requests()


async def test_a_repetition_under_the_same_idempotency_key_is_the_same_send(tmp_path: Path) -> None:
    """Also at another gateway that remembers nothing: the id is derived, and the customer stage takes it once."""
    async with embedded(tmp_path, settings()) as engine:
        async with serving(engine, settings()) as port:
            first = await port.send(Idempotency_Key="order-1")
            second = await port.send(Idempotency_Key="order-1")
            assert second[1] == first[1]
            assert len(await port.requests()) == 1
            other = await port.send(key=NARROW_KEY, path=f"/{OTHER_NUMBER}/messages", Idempotency_Key="order-1")
            assert other[1]["messages"] != first[1]["messages"]
        async with serving(engine, settings(), seed=2) as port:
            assert (await port.send(Idempotency_Key="order-1"))[1] == first[1]
            assert (await port.send(Idempotency_Key="order-2"))[1] != first[1]


async def test_an_idempotency_key_does_not_stand_for_two_requests(port: Port) -> None:
    """A bot that reuses one has a bug; taking either silently would hide it."""
    assert (await port.send(Idempotency_Key="order-1"))[0] == 200
    status, code, details = error(await port.send({**TEXT, "text": {"body": "else"}}, Idempotency_Key="order-1"))
    assert (status, code) == (422, 131009)
    assert "Idempotency-Key" in details
    assert len(await port.requests()) == 1


async def test_a_log_that_is_down_is_said_in_graphs_shape_and_nothing_is_promised(tmp_path: Path) -> None:
    """131016 with `is_transient`: clients of Graph try again."""
    async with embedded(tmp_path, settings()) as engine:
        await engine.close()
        async with serving(engine, settings()) as port:
            answer = await port.send()
            assert error(answer)[:2] == (503, 131016)
            assert (answer[1]["error"]["is_transient"], answer[2]["Retry-After"]) == (True, "5")
    async with embedded(tmp_path, settings()) as engine, serving(engine, settings()) as port:
        assert not await port.requests()
        assert (await port.send())[0] == 200


async def test_the_same_bytes_after_an_unknown_answer_are_a_repetition_once(tmp_path: Path) -> None:
    """The first may be on the log. Its repetition has the same id, so it is sent once; a third is a message anew."""
    async with gated(tmp_path, settings()) as engine, serving(engine, settings()) as port:
        engine.answer_lost = True
        assert error(await port.send())[:2] == (503, 131016)
        engine.answer_lost = False
        other = (await port.send({**TEXT, "text": {"body": "else"}}))[1]["messages"][0]["id"]
        repeated = (await port.send())[1]["messages"][0]["id"]
        anew = (await port.send())[1]["messages"][0]["id"]
        ids = [request.send_id for _, request in await port.requests()]
        assert sorted(ids) == sorted([repeated, repeated, other, anew])
        assert len({repeated, other, anew}) == 3


class Client:
    """Begins requests of the bytes b"x" and hears of their ids."""

    def __init__(self) -> None:
        self.repetitions = Repetitions()
        self.ids = (SendId(f"id{number}") for number in itertools.count())
        self.is_gone = False

    def begin(self, now_s: float = 0.0, fingerprint: bytes = b"x") -> Attempt:
        return self.repetitions.begin(fingerprint, now_s, lambda: self.is_gone, lambda: next(self.ids))

    def end(self, attempt: Attempt, now_s: float = 0.0, *, answered: bool) -> None:
        self.repetitions.end(attempt, now_s, answered=answered)


def test_as_many_equal_requests_are_repetitions_as_were_not_answered() -> None:
    """A bot that says "ok" twice on purpose and hears of neither repeats both: two messages, not one, not three."""
    client = Client()
    first, second = client.begin(), client.begin()
    client.end(first, answered=False)
    client.end(second, answered=False)
    again = [client.begin(1.0) for _ in range(3)]
    assert [attempt.send_id for attempt in again] == ["id0", "id1", "id2"]
    for attempt in again:
        client.end(attempt, answered=True)
    assert client.begin(2.0).send_id == "id3"


def test_a_repetition_that_is_not_answered_either_can_be_repeated() -> None:
    """A log that is down for a minute sees the same request many times; it is one message."""
    client = Client()
    for _ in range(5):
        attempt = client.begin()
        assert attempt.send_id == "id0"
        client.end(attempt, answered=False)


def test_a_request_whose_sender_has_gone_is_repeated_while_it_is_under_way() -> None:
    """The client's timeout is shorter than ours: its second try arrives before the first one is on the log."""
    client = Client()
    first = client.begin()
    assert client.begin().send_id == "id1"
    client.is_gone = True
    second = client.begin()
    third = client.begin()
    assert (second.send_id, third.send_id) == ("id0", "id1")
    for attempt in (first, second, third):
        client.end(attempt, answered=False)
    assert client.begin().send_id == "id0"


def test_what_is_remembered_of_repetitions_is_bounded_in_number_and_time() -> None:
    """A bot that sends ever new keys must not fill our memory."""
    client = Client()
    for number in range(ENTRIES_MAX + 1):
        client.end(client.begin(0.0, str(number).encode()), 0.0, answered=False)
        client.repetitions.name(SendId(f"named{number}"), b"x", durable=True)
    for _ in range(EQUAL_MAX + 1):
        attempts = [client.begin(0.0, b"same") for _ in range(2)]
        for attempt in attempts:
            client.end(attempt, 0.0, answered=False)
    fresh = ENTRIES_MAX + 3
    assert client.begin(1.0, b"0").send_id == f"id{fresh}"
    assert client.begin(1.0, b"2").send_id == "id2"
    assert client.begin(UNKNOWN_S, b"3").send_id == f"id{fresh + 1}"
    assert not client.repetitions.is_durable(SendId("named0"))
    assert client.repetitions.is_durable(SendId("named1"))


async def test_equal_sends_without_a_key_are_two_messages(port: Port) -> None:
    """As at Meta: "ok" twice is "ok" twice."""
    first, second = (await port.send())[1], (await port.send())[1]
    assert first["messages"] != second["messages"]
    assert len(await port.requests()) == 2


async def test_too_much_at_once_is_refused_and_taken_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded while the log is slow."""
    monkeypatch.setattr("broker.gateway.app.BYTES_IN_FLIGHT_MAX", 300)
    async with gated(tmp_path, settings()) as engine, serving(engine, settings()) as port:
        engine.open.clear()
        under_way = [asyncio.create_task(port.send()) for _ in range(2)]
        await asyncio.sleep(0.2)
        answer = await port.send()
        assert error(answer)[:2] == (503, 131016)
        assert answer[2]["Retry-After"] == "1"
        engine.open.set()
        assert [status for status, _, _ in await asyncio.gather(*under_way)] == [200, 200]
        assert (await port.send())[0] == 200
    assert len({request.send_id for _, request in await _read(tmp_path)}) == 3


async def _read(folder: Path) -> list[tuple[bytes, SendRequest]]:
    async with embedded(folder, settings()) as engine, serving(engine, settings()) as port:
        return await port.requests()


async def test_a_stop_lets_what_is_under_way_finish(tmp_path: Path) -> None:
    """An answer that a deployment swallows is a message in doubt."""
    async with gated(tmp_path, settings()) as engine, serving(engine, settings()) as port:
        engine.open.clear()
        under_way = asyncio.create_task(port.send())
        await asyncio.wait_for(engine.asked.wait(), 5)
        stopping = asyncio.create_task(port.gateway.stop(5.0))
        await asyncio.sleep(0.1)
        assert not stopping.done()
        assert port.gateway.why_not_ready() == "draining"
        engine.open.set()
        assert (await under_way)[0] == 200
        await asyncio.wait_for(stopping, 5)


async def test_it_works_without_a_socket(tmp_path: Path) -> None:
    """As the simulation uses it: the same answers from plain values."""
    async with embedded(tmp_path, settings()) as engine:
        gateway = Gateway(settings(), engine, SystemClock(), random.Random(1))
        body = json.dumps(TEXT).encode()
        answer = await gateway.handle("POST", PATH, {"Authorization": f"Bearer {KEY}"}, body)
        assert answer.status == 200
        assert (await gateway.handle("POST", PATH, {}, body)).status == 401
        assert (await gateway.handle("GET", PATH, {"Authorization": f"Bearer {KEY}"}, b"")).status == 405
        profile = f"/v23.0/{NUMBER}/whatsapp_business_profile"
        assert (await gateway.handle("GET", profile, {"Authorization": f"Bearer {KEY}"}, b"")).status == 503
        too_large = b"x" * 600_000
        assert (await gateway.handle("POST", PATH, {"Authorization": f"Bearer {KEY}"}, too_large)).status == 413
