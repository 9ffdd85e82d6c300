"""The receiver on a real port and the real embedded log: what it takes, what it refuses, what it never loses."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from broker import listener, metrics
from broker.clock import SystemClock
from broker.listener import Listener
from broker.log.embedded import EmbeddedLog
from broker.receiver import Receiver, receiver_app
from broker.secrets import Secret
from schemas.records import decode_dead_letter, decode_digest, decode_item, encode
from schemas.settings import ReceiverSettings, Settings
from tests.actors.ports import (
    NUMBER,
    SECRETS,
    TOKENS,
    embedded,
    entries,
    gated,
    head,
    settings,
    signed,
    status_of,
    talk,
)

SAMPLES = Path(__file__).parents[1] / "wire" / "webhooks"
BODY = (SAMPLES / "raw_compact_escaped.json").read_bytes()
PATH = "/webhooks/meta/shop"


class Port:
    """A receiver and its port."""

    def __init__(self, receiver: Receiver, port: Listener, engine: EmbeddedLog, client: aiohttp.ClientSession) -> None:
        self.receiver = receiver
        self.listener = port
        self.engine = engine
        self.client = client
        self.url = f"http://127.0.0.1:{port.port}"

    async def post(
        self, body: bytes, headers: dict[str, str] | None = None, path: str = PATH
    ) -> tuple[int, bytes, dict[str, str]]:
        async with self.client.post(
            self.url + path, data=body, headers=signed(body) if headers is None else headers
        ) as answer:
            return answer.status, await answer.read(), dict(answer.headers)

    async def items(self) -> list[tuple[bytes, Any]]:
        return [(entry.key, decode_item(entry.value)) for entry in await entries(self.engine, "conversations")]

    async def letters(self) -> list[Any]:
        return [decode_dead_letter(entry.value) for entry in await entries(self.engine, "deadletters")]

    async def nothing_was_taken(self) -> bool:
        return not (await self.items() or await self.letters() or await entries(self.engine, "accounts"))


@asynccontextmanager
async def serving(engine: EmbeddedLog, of: Settings) -> AsyncIterator[Port]:
    clock = SystemClock()
    receiver = Receiver(of, SECRETS, TOKENS, engine, clock)
    port = receiver_app(receiver, of, clock)
    await receiver.start()
    await port.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as client:
            yield Port(receiver, port, engine, client)
    finally:
        await port.stop(1.0)
        await receiver.stop(1.0)


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    async with embedded(tmp_path, settings()) as engine, serving(engine, settings()) as port:
        yield port


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def batch(messages: list[Any], number: str = NUMBER) -> bytes:
    value = {"messaging_product": "whatsapp", "metadata": {"phone_number_id": number}, "messages": messages}
    change = {"value": value, "field": "messages"}
    return compact({"object": "whatsapp_business_account", "entry": [{"id": "1", "changes": [change]}]})


def text(number: int) -> dict[str, Any]:
    return {"from": f"4915550{number:06}", "id": f"wamid.{number}", "timestamp": "1789300807", "type": "text"}


def count(metric: Any, *labels: str) -> float:
    return float(metric.labels(*labels)._value.get())


async def test_a_signed_webhook_is_on_the_log_when_it_is_answered(port: Port) -> None:
    """200 says: nobody has to remember this but us."""
    before = count(metrics.webhook_requests, "accepted")
    assert (await port.post(BODY))[:2] == (200, b"")
    ((key, item),) = await port.items()
    assert key == b"brand:4915550001234"
    assert (item.app, item.phone_number_id, item.body) == ("shop", NUMBER, BODY)
    assert count(metrics.webhook_requests, "accepted") == before + 1


async def test_the_answer_waits_until_the_record_is_durable(tmp_path: Path) -> None:
    """An answer that leaves earlier is a promise a crash can break."""
    async with gated(tmp_path, settings()) as engine, serving(engine, settings()) as port:
        engine.open.clear()
        answer = asyncio.create_task(port.post(BODY))
        await asyncio.wait_for(engine.asked.wait(), 5)
        await asyncio.sleep(0.1)
        assert not answer.done()
        engine.open.set()
        assert (await answer)[0] == 200
        assert len(await port.items()) == 1


@pytest.mark.parametrize("name", [path.name for path in sorted(SAMPLES.glob("*.json"))])
async def test_every_sample_is_taken(port: Port, name: str) -> None:
    """Whatever Meta is documented to send is answered 200 and is on a log, none of it among the dead letters."""
    body = (SAMPLES / name).read_bytes()
    assert (await port.post(body))[0] == 200
    assert await port.items() or await entries(port.engine, "accounts")
    assert not await port.letters()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Hub-Signature-256": "sha256=" + "0" * 64},
        {"X-Hub-Signature-256": "nonsense"},
        signed(BODY, "nobody's secret"),
        signed(BODY, "other"),
        signed(BODY + b" "),
        {"X-Hub-Signature": "sha1=" + "0" * 40},
    ],
)
async def test_without_the_apps_own_signature_nothing_is_taken(port: Port, headers: dict[str, str]) -> None:
    """Everybody can reach this port. The answer tells them nothing."""
    assert (await port.post(BODY, headers))[:2] == (401, b"")
    assert await port.nothing_was_taken()


async def test_two_signatures_are_none(port: Port) -> None:
    """Which of them would a proxy before us have looked at?"""
    pair = [("X-Hub-Signature-256", signed(BODY)["X-Hub-Signature-256"])] * 2
    answer = await talk(port.listener.port, head("POST", PATH, [*pair, ("Content-Length", len(BODY))]) + BODY)
    assert status_of(answer) == 401
    assert await port.nothing_was_taken()


async def test_either_secret_is_good_while_one_is_being_rotated(port: Port) -> None:
    """No webhook is refused during a rotation, and it can be seen when it is over."""
    before = [count(metrics.webhook_secret_matches, slot) for slot in ("current", "previous")]
    assert (await port.post(BODY, signed(BODY, "current")))[0] == 200
    assert (await port.post(BODY, signed(BODY, "previous")))[0] == 200
    after = [count(metrics.webhook_secret_matches, slot) for slot in ("current", "previous")]
    assert after == [before[0] + 1, before[1] + 1]
    port.receiver.use_secrets({"shop": [Secret("newest"), Secret("current")]}, TOKENS)
    assert (await port.post(BODY, signed(BODY, "newest")))[0] == 200
    assert (await port.post(BODY, signed(BODY, "previous")))[0] == 401
    assert (await port.post(BODY, signed(BODY, "other"), "/webhooks/meta/bank"))[0] == 404


async def test_each_app_has_its_own_path_and_secret(port: Port) -> None:
    """One app's secret opens no other app's door."""
    assert (await port.post(BODY, signed(BODY, "other"), "/webhooks/meta/bank"))[0] == 200
    assert (await port.post(BODY, signed(BODY, "other")))[0] == 401
    ((_, item),) = await port.items()
    assert item.app == "bank"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/webhooks/meta/nobody", 404),
        ("POST", "/webhooks/meta/", 404),
        ("POST", "/webhooks/meta/shop/", 404),
        ("POST", "/", 404),
        ("GET", "/favicon.ico", 404),
        ("PUT", PATH, 405),
        ("DELETE", PATH, 405),
    ],
)
async def test_other_paths_and_methods_are_refused(port: Port, method: str, path: str, status: int) -> None:
    """There is nothing else on the public port."""
    async with port.client.request(method, port.url + path, data=BODY, headers=signed(BODY)) as answer:
        assert answer.status == status
    assert await port.nothing_was_taken()


@pytest.mark.parametrize(
    "body", [b"not json", b"", BODY[:-1], b"[]", b"{}", b'{"entry":[]}', b"\xff\xfe", b"[" * 50_000]
)
async def test_what_is_no_webhook_is_a_dead_letter_and_200(port: Port, body: bytes) -> None:
    """Signed, so it is Meta's: a 4xx would bring it back for seven days, and there is nothing to gain from that."""
    assert (await port.post(body))[0] == 200
    (letter,) = await port.letters()
    assert (letter.value, letter.stage, letter.log) == (body, "receiver", "")
    assert not await port.items()


async def test_half_of_a_batch_that_is_malformed_harms_not_the_other_half(port: Port) -> None:
    """Neighbours live; what is no item can be looked at and replayed."""
    messages = [text(number) if number % 2 else {"id": None, "n": number} for number in range(100)]
    assert (await port.post(batch(messages)))[0] == 200
    assert sorted(item.wamid for _, item in await port.items()) == sorted(f"wamid.{n}" for n in range(1, 100, 2))
    letters = await port.letters()
    assert len(letters) == 50
    assert {letter.reason for letter in letters} == {"malformed_item"}


async def test_a_thousand_items_in_one_post_are_a_thousand_records(port: Port) -> None:
    """Meta's maximum. The first item is not the only one."""
    before = count(metrics.webhook_items, "message")
    assert (await port.post(batch([text(number) for number in range(1_000)])))[0] == 200
    assert {item.wamid for _, item in await port.items()} == {f"wamid.{number}" for number in range(1_000)}
    assert count(metrics.webhook_items, "message") == before + 1_000


async def test_an_unknown_field_and_an_unknown_number_are_taken_all_the_same(port: Port) -> None:
    """Meta adds both without asking."""
    assert (await port.post((SAMPLES / "unknown_field.json").read_bytes()))[0] == 200
    (entry,) = await entries(port.engine, "accounts")
    assert (entry.key, decode_item(entry.value).kind) == (b"102290129340398", "unknown")
    ((key, item),) = await port.items()
    assert (key, encode(item)) == (b"main:#account:102290129340398", entry.value)
    assert (await port.post(batch([text(1)], number="999")))[0] == 200
    _, (key, item) = sorted(await port.items(), key=lambda each: each[0])
    assert (key, item.phone_number_id) == (b"main:4915550000001", "999")


@pytest.mark.parametrize("chunked", [False, True])
async def test_five_megabytes_are_refused_before_they_are_kept(port: Port, chunked: bool) -> None:
    """With a length at once, without one as soon as the bound is passed; a signature does not help."""
    body = b"x" * (5 * 1024 * 1024)
    if chunked:

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 65_536):
                yield body[start : start + 65_536]

        data: Any = pieces()
    else:
        data = body
    try:
        async with port.client.post(port.url + PATH, data=data, headers=signed(body)) as answer:
            assert answer.status == 413
    except aiohttp.ClientError:
        pytest.fail("the sender did not get to see the answer")
    assert await port.nothing_was_taken()


async def test_three_megabytes_are_taken(port: Port) -> None:
    """Meta's own bound: a chunk of history comes near it."""
    body = batch([{**text(number), "text": {"body": "x" * 3_000}} for number in range(950)])
    assert 2_900_000 < len(body) < 4 * 1024 * 1024
    assert (await port.post(body))[0] == 200
    assert len(await port.items()) == 950


async def test_an_item_that_no_record_can_hold_is_kept_in_pieces(port: Port) -> None:
    """Escaped, an item may outgrow a record; it must not come back for seven days, and it must not be lost."""
    body = batch([{**text(1), "text": {"body": "ü"}}]).replace(b"\\u00fc", "ü".encode() * 1_000_000)
    assert (await port.post(body))[0] == 200
    letters = await port.letters()
    assert [letter.reason for letter in letters] == ["too_large"] * len(letters)
    whole = json.loads(b"".join(letter.value for letter in letters))
    assert whole["entry"][0]["changes"][0]["value"]["messages"][0]["text"]["body"] == "ü" * 1_000_000


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity"])
async def test_an_encoded_body_is_refused_unread(port: Port, encoding: str) -> None:
    """A bomb is small until somebody opens it."""
    body = gzip.compress(BODY)
    assert (await port.post(body, {**signed(body), "Content-Encoding": encoding}))[0] == 415
    assert await port.nothing_was_taken()


async def test_a_log_that_is_down_is_said_and_the_webhook_stays_with_meta(tmp_path: Path) -> None:
    """503 is our valve: Meta comes again, and then it is taken."""
    async with embedded(tmp_path, settings()) as engine:
        await engine.close()
        async with serving(engine, settings()) as port:
            before = count(metrics.webhook_requests, "log_unavailable")
            status, _, headers = await port.post(BODY)
            assert (status, headers["Retry-After"]) == (503, "5")
            assert count(metrics.webhook_requests, "log_unavailable") == before + 1
    async with embedded(tmp_path, settings()) as engine, serving(engine, settings()) as port:
        assert await port.nothing_was_taken()
        assert (await port.post(BODY))[0] == 200
        assert len(await port.items()) == 1


async def test_more_than_the_bytes_in_flight_is_refused_and_taken_again_later(tmp_path: Path) -> None:
    """Memory is bounded while the log is slow; the valve closes by itself."""
    small = settings(receiver=ReceiverSettings(port=0, bytes_in_flight_max=2_000))
    async with gated(tmp_path, small) as engine, serving(engine, small) as port:
        engine.open.clear()
        first = [asyncio.create_task(port.post(BODY)) for _ in range(3)]
        await asyncio.sleep(0.2)
        status, _, headers = await port.post(BODY)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert count(metrics.backpressure_active, "receiver") == 1
        engine.open.set()
        assert [answer[0] for answer in await asyncio.gather(*first)] == [200, 200, 200]
        assert (await port.post(BODY))[0] == 200
        assert count(metrics.backpressure_active, "receiver") == 0
        assert metrics.webhook_inflight_bytes._value.get() == 0


async def test_bodies_that_never_end_do_not_keep_honest_ones_out(tmp_path: Path) -> None:
    """What is only being read may fill half of the room: the other half is for those who finish."""
    small = settings(receiver=ReceiverSettings(port=0, bytes_in_flight_max=400_000))
    async with embedded(tmp_path, small) as engine, serving(engine, small) as port:
        start = head("POST", PATH, {**signed(BODY), "Content-Length": 1_000_000}) + b"x" * 250_000
        hangers = [asyncio.create_task(talk(port.listener.port, start, finish=False, timeout_s=3)) for _ in range(8)]
        await asyncio.sleep(0.5)
        assert (await port.post(BODY))[0] == 200
        answers = await asyncio.gather(*hangers)
        assert 503 in [status_of(answer) for answer in answers]
    assert metrics.webhook_inflight_bytes._value.get() == 0


async def test_a_body_that_breaks_off_is_not_taken(port: Port) -> None:
    """Half a body may be valid JSON; it is signed by nobody."""
    answer = await talk(port.listener.port, head("POST", PATH, {**signed(BODY), "Content-Length": 5_000}) + BODY)
    assert status_of(answer) in (0, 400)
    assert await port.nothing_was_taken()


async def test_a_body_that_drips_is_cut(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 of them would otherwise be 5,000 connections for ever."""
    monkeypatch.setattr(listener, "BODY_S_MAX", 0.2)
    answer = await talk(port.listener.port, head("POST", PATH, {**signed(BODY), "Content-Length": 9}), finish=False)
    assert status_of(answer) == 408
    assert b"Connection: close" in answer


async def test_headers_that_drip_are_cut_and_a_quiet_connection_is_not(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiohttp alone would wait for the end of the headers for ever. Between requests a connection may rest."""
    monkeypatch.setattr(listener, "HEADER_S_MAX", 0.4)
    loop = asyncio.get_running_loop()
    for first in (b"", head("GET", PATH, {})):
        drips = [b"POST /webhooks/", b"meta/shop HTT"] + [b"x"] * 100
        began = loop.time()
        answer = await talk(port.listener.port, *([first] if first else []), *drips, finish=False, timeout_s=5)
        assert loop.time() - began < 4
        assert status_of(answer) in (0, 403)
    reader, writer = await asyncio.open_connection("127.0.0.1", port.listener.port)
    for _ in range(2):
        writer.write(head("GET", PATH, {}))
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 403")
        await asyncio.sleep(0.8)
    writer.close()


LENGTH = f"Content-Length: {len(BODY)}".encode()
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (LENGTH + b"\r\nTransfer-Encoding: chunked", CHUNKED),
        (b"Transfer-Encoding: chunked\r\n" + LENGTH, CHUNKED),
        (LENGTH + b"\r\n" + LENGTH[:-1], BODY),
        (b"Content-Length: -5", BODY),
        (b"Content-Length: +621", BODY),
        (b"Content-Length: 0x26d", BODY),
        (b"Transfer-Encoding: chunked, identity", CHUNKED),
        (b"Transfer-Encoding: chunked", b"zz\r\n" + BODY),
        (b"Transfer-Encoding : chunked", CHUNKED),
        (b"Bad Header Name: 1\r\n" + LENGTH, BODY),
    ],
)
async def test_framing_that_two_servers_could_read_differently_is_refused(
    port: Port, framing: bytes, body: bytes
) -> None:
    """Behind a proxy, what one takes for a body the other takes for a request."""
    start = head("POST", PATH, signed(BODY))[:-2] + framing + b"\r\n\r\n"
    answer = await talk(port.listener.port, start + body)
    assert status_of(answer) in (0, 400)
    assert await port.nothing_was_taken()


async def test_a_chunked_body_is_as_good_as_any(port: Port) -> None:
    """Proxies chunk."""
    start = head("POST", PATH, {**signed(BODY), "Transfer-Encoding": "chunked", "Connection": "close"})
    assert status_of(await talk(port.listener.port, start, CHUNKED[:100], CHUNKED[100:], finish=False)) == 200
    assert len(await port.items()) == 1


async def test_pipelined_requests_are_answered_one_after_another(port: Port) -> None:
    """Ten in one packet: each its answer, none lost."""
    request = head("POST", PATH, {**signed(BODY), "Content-Length": len(BODY)}) + BODY
    last = head("POST", PATH, {**signed(BODY), "Content-Length": len(BODY), "Connection": "close"}) + BODY
    answer = await talk(port.listener.port, request * 9 + last, finish=False)
    assert answer.count(b"HTTP/1.1 200 OK") == 10
    assert len(await port.items()) == 10


async def test_what_comes_before_an_answer_is_answered_after_it(tmp_path: Path) -> None:
    """A connection's answers carry no name: the first is the first request's, whatever became of the second. Nor is a
    connection quiet whose answer waits for the log."""
    request = head("POST", PATH, {**signed(BODY), "Content-Length": len(BODY)}) + BODY
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listener, "IDLE_S_MAX", 0.2)
        async with gated(tmp_path, settings()) as engine, serving(engine, settings()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port.listener.port)
            for warm in range(2):
                writer.write(request)
                assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 200 OK"), warm
            engine.open.clear()
            engine.asked.clear()
            writer.write(request)
            await asyncio.wait_for(engine.asked.wait(), 5)
            for part in (head("GET", PATH, {}) + request[:50], request[50:]):
                writer.write(part)
                await asyncio.sleep(0.3)
            engine.open.set()
            for answer in (b"HTTP/1.1 200 OK", b"HTTP/1.1 403", b"HTTP/1.1 200 OK"):
                assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(answer)
            assert len(await port.items()) == 4
            writer.close()


async def test_who_waits_to_be_asked_for_the_body_is_asked(port: Port) -> None:
    """`Expect: 100-continue`: otherwise such a client waits for a second, or for ever."""
    headers = {**signed(BODY), "Content-Length": len(BODY), "Expect": "100-continue", "Connection": "close"}
    reader, writer = await asyncio.open_connection("127.0.0.1", port.listener.port)
    writer.write(head("POST", PATH, headers))
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(BODY)
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200 OK")
    writer.close()


async def test_a_stop_lets_what_is_under_way_finish_and_takes_nothing_new(tmp_path: Path) -> None:
    """A deployment is no reason for Meta to come twice."""
    async with gated(tmp_path, settings()) as engine, serving(engine, settings()) as port:
        engine.open.clear()
        under_way = asyncio.create_task(port.post(BODY))
        await asyncio.wait_for(engine.asked.wait(), 5)
        stopping = asyncio.create_task(port.listener.stop(5.0))
        await asyncio.sleep(0.2)
        with pytest.raises(aiohttp.ClientConnectorError):
            async with aiohttp.ClientSession() as other:
                await other.get(port.url + PATH)
        assert not stopping.done()
        engine.open.set()
        status, _, headers = await under_way
        assert (status, headers.get("Connection")) == (200, "close")
        await asyncio.wait_for(stopping, 5)


async def test_a_stop_does_not_wait_for_a_log_that_hangs(tmp_path: Path) -> None:
    """The grace period is bounded; who was not answered keeps the webhook."""
    async with gated(tmp_path, settings()) as engine, serving(engine, settings()) as port:
        engine.open.clear()
        under_way = asyncio.create_task(port.post(BODY))
        await asyncio.wait_for(engine.asked.wait(), 5)
        await asyncio.wait_for(port.listener.stop(0.2), 5)
        with pytest.raises(aiohttp.ClientError):
            await under_way


@pytest.mark.parametrize(
    ("query", "status", "body"),
    [
        ("hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=let+me+in+%26+stay", 200, b"1158201444"),
        ("hub.verify_token=let%20me%20in%20%26%20stay&hub.challenge=7&hub.mode=subscribe", 200, b"7"),
        ("hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=wrong", 403, b""),
        ("hub.mode=unsubscribe&hub.challenge=1&hub.verify_token=let+me+in+%26+stay", 403, b""),
        ("hub.mode=subscribe&hub.verify_token=let+me+in+%26+stay", 403, b""),
        ("hub_mode=subscribe&hub_challenge=1&hub_verify_token=let+me+in+%26+stay", 403, b""),
        ("hub.mode=subscribe&hub.challenge=" + "1" * 300 + "&hub.verify_token=let+me+in+%26+stay", 403, b""),
        ("&".join(["a=1"] * 50), 400, b""),
        ("", 403, b""),
    ],
)
async def test_the_handshake_gives_the_challenge_back_to_who_knows_the_token(
    port: Port, query: str, status: int, body: bytes
) -> None:
    """Meta asks once when the URL is saved, unsigned, with dots in the names."""
    answer = await talk(port.listener.port, head("GET", f"{PATH}?{query}", {"Connection": "close"}), finish=False)
    assert status_of(answer) == status
    assert answer.partition(b"\r\n\r\n")[2] == body
    if body:
        assert b"Content-Type: text/plain" in answer


async def test_senders_hear_what_came_in_for_their_numbers(port: Port) -> None:
    """Inbound counts against a number's tier: within 100 ms its sender must know."""
    fresh = [{**text(number), "timestamp": str(SystemClock().now() // 1_000)} for number in range(5)]
    assert (await port.post(batch([*fresh, text(99)])))[0] == 200
    assert (await port.post(batch(fresh, number="999")))[0] == 200
    for _ in range(100):
        if found := await entries(port.engine, "traffic"):
            break
        await asyncio.sleep(0.05)
    digests = [(entry.partition, decode_digest(entry.value)) for entry in found]
    assert [(place, digest.phone_number_id, digest.count) for place, digest in digests] == [(2, NUMBER, 5)]


async def test_appends_that_keep_failing_take_the_receiver_out_of_service(tmp_path: Path) -> None:
    """Another pod may still reach the log; one failure alone is no reason."""

    class Hands:
        at = 0.0

        def now(self) -> int:
            return 1_789_300_807_000

        def monotonic(self) -> float:
            return self.at

    clock = Hands()
    async with embedded(tmp_path, settings()) as engine:
        receiver = Receiver(settings(), SECRETS, TOKENS, engine, clock)
        await engine.close()
        assert (await receiver.accept("shop", signed(BODY), BODY)).status == 503
        assert receiver.why_not_ready() is None
        clock.at = 16.0
        assert receiver.why_not_ready() == "appends have been failing for 16 s"
    async with embedded(tmp_path, settings()) as engine:
        receiver._engine = engine
        assert (await receiver.accept("shop", signed(BODY), BODY)).status == 200
        assert receiver.why_not_ready() is None
        await receiver.stop(1.0)
        assert receiver.why_not_ready() == "draining"
