"""Control over HTTP on a real port and the real embedded log: what an operator asks for happens, and to nobody else.

The delivery stage beside it is the real one, and so is the bot it delivers to.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from broker import metrics
from broker.clock import SystemClock
from broker.core.addresses import AddressGuard
from broker.gateway import control
from broker.log.catalogue import CONTROL, deliveries
from broker.log.contract import Draft
from broker.log.embedded import EmbeddedLog
from broker.secrets import Secret
from schemas.records import decode_control
from tests.actors.bots import Bot, until
from tests.actors.ports import KEY, NUMBER, OPERATOR_KEY, embedded, entries, gated, head, settings, status_of, talk
from tests.actors.test_delivery_stage import QUICK, value
from tests.actors.test_gateway import PATH, Port, count, serving
from workers.connector import Connector
from workers.delivery import DeliveryStage
from workers.sinks import Target

pytestmark = pytest.mark.timeout(60)

V1 = "/control/v1"
Answered = tuple[int, Any, dict[str, str]]


async def ask(
    port: Port, method: str, path: str, body: Any = None, *, key: str | None = OPERATOR_KEY, **headers: str
) -> Answered:
    """Ask under /control/v1; every error has the same shape and says what, why and where."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    sent = {name.replace("_", "-"): one for name, one in headers.items()}
    sent |= {"Authorization": f"Bearer {key}"} if key else {}
    async with port.client.request(method, port.url + V1 + path, data=data, headers=sent) as answer:
        assert answer.content_type == "application/json"
        said = json.loads(await answer.read())
        if answer.status != 200:
            assert said.keys() == {"error"}
            assert said["error"].keys() == {"code", "message", "where"}
            assert all(isinstance(one, str) for one in said["error"].values())
            assert said["error"]["message"]
        return answer.status, said, dict(answer.headers)


def wrong(answer: Answered) -> tuple[int, str, str]:
    """Status, code and place of an error."""
    return answer[0], answer[1]["error"]["code"], answer[1]["error"]["where"]


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    async with embedded(tmp_path, settings()) as engine, serving(engine, settings()) as port:
        yield port


@asynccontextmanager
async def delivering(engine: EmbeddedLog) -> AsyncIterator[Bot]:
    """A bot to which the delivery stage brings what stands on the log of the sink `bot`."""
    async with AsyncExitStack() as stack:
        bot = Bot()
        await bot.start()
        stack.push_async_callback(bot.stop)
        connector = Connector(AddressGuard(allow=["127.0.0.0/8"]))
        await connector.start()
        stack.push_async_callback(connector.stop)
        (sink,) = settings().sinks
        target = Target(replace(sink, url=bot.url), [Secret("app secret")])
        stage = DeliveryStage(engine, [target], connector, SystemClock(), random.Random(7), QUICK)
        await stage.start()
        stack.push_async_callback(stage.stop, 2.0)
        yield bot


async def deliver(engine: EmbeddedLog, *numbers: int) -> None:
    """Append events for the bot."""
    await engine.append(deliveries("bot"), [Draft(b"ada", value("ada", number)) for number in numbers], 5.0)


def is_paused() -> bool:
    return count(metrics.delivery_paused, "bot") == 1


async def eventually(port: Port, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Look at the sink until something holds of it; return it."""
    sink: dict[str, Any] = {}
    for _ in range(300):
        status, said, _ = await ask(port, "GET", "/sinks")
        assert status == 200
        (sink,) = said["sinks"]
        if holds(sink):
            return sink
        await asyncio.sleep(0.02)
    raise AssertionError(sink)


async def test_a_sink_that_is_paused_over_http_is_held_back_and_resumed(port: Port) -> None:
    """What a command does from a terminal: the stage follows the same word, and the backlog is told."""
    async with delivering(port.engine) as bot:
        await deliver(port.engine, 1)
        await until(lambda: len(bot.seen) == 1)
        sink = await eventually(port, lambda one: one["waiting"] == 0)
        assert sink == {
            "name": "bot", "kind": "meta", "state": "running", "paused_at": None, "note": "", "waiting": 0, "kept": 1,
            "to": "http://127.0.0.1:9/",
        }  # fmt: skip
        status, said, _ = await ask(port, "PUT", "/sinks/bot/pause", {"note": "the bot is mended"})
        assert status == 200
        assert (said["name"], said["state"], said["note"]) == ("bot", "paused", "the bot is mended")
        await until(is_paused)
        await deliver(port.engine, 2, 3)
        sink = await eventually(port, lambda one: one["waiting"] == 2)
        assert (sink["state"], sink["note"], sink["paused_at"]) == ("paused", "the bot is mended", said["paused_at"])
        assert len(bot.seen) == 1
        status, said, _ = await ask(port, "PUT", "/sinks/bot/resume")
        assert (status, said) == (200, {"name": "bot", "state": "running", "paused_at": None, "note": ""})
        await until(lambda: len(bot.seen) == 3)
        assert [one.number for one in bot.seen] == [1, 2, 3]
        assert (await eventually(port, lambda one: one["waiting"] == 0))["state"] == "running"


async def test_the_word_is_durable_when_it_is_answered_and_that_of_the_command(port: Port) -> None:
    """A worker that starts later, and `depesche sinks list`, find it on the log."""
    before = SystemClock().now()
    assert (await ask(port, "PUT", "/sinks/bot/pause"))[0] == 200
    (entry,) = await entries(port.engine, CONTROL)
    word = decode_control(entry.value)
    assert (entry.key, word.sink, word.paused, word.note) == (b"bot", "bot", True, "")
    assert before <= word.at <= SystemClock().now()


async def test_each_change_is_a_line_that_names_the_key_and_tells_no_secret(
    port: Port, caplog: pytest.LogCaptureFixture
) -> None:
    """Who did that? And a note may hold what a person should not have written."""
    caplog.set_level(logging.INFO, "depesche.control")
    await ask(port, "GET", "/sinks")
    assert caplog.messages == []
    await ask(port, "PUT", "/sinks/bot/pause", {"note": "for 4915550001234"})
    await ask(port, "PUT", "/sinks/bot/resume")
    assert caplog.messages == ["key operator: sink bot is paused", "key operator: sink bot is resumed"]
    assert OPERATOR_KEY not in caplog.text


async def test_a_key_opens_what_it_is_for_and_nothing_else(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    """A bot that could pause sinks could silence its neighbours; an operator's script has no customers."""
    for method, path in (("GET", "/sinks"), ("PUT", "/sinks/bot/pause"), ("GET", "/nothing")):
        answer = await ask(port, method, path, key=KEY)
        assert wrong(answer) == (403, "forbidden", "header.Authorization")
        assert "'bot' is a bot's" in answer[1]["error"]["message"]
        for key in (None, "wrong", "x" * 600):
            answer = await ask(port, method, path, key=key)
            assert wrong(answer) == (401, "unauthorized", "header.Authorization")
            assert answer[2]["WWW-Authenticate"] == "Bearer"
        assert wrong(await ask(port, method, path + f"?access_token={OPERATOR_KEY}", key=None))[0] == 401
    assert await entries(port.engine, CONTROL) == []
    for method, path in (("POST", PATH), ("GET", f"/{NUMBER}"), ("GET", "/1234567890"), ("POST", "/")):
        async with port.client.request(
            method, port.url + path, headers={"Authorization": f"Bearer {OPERATOR_KEY}"}
        ) as answered:
            error = (await answered.json())["error"]
            assert (answered.status, error["code"]) == (403, 10)
            assert "is for /control/v1 alone" in error["error_data"]["details"]
    assert await port.requests() == []


async def test_a_key_with_numbers_may_be_for_both(tmp_path: Path) -> None:
    """A brand with one team has one key."""
    of = settings()
    of = replace(of, keys=[replace(key, control=key.name == "bot") for key in of.keys])
    async with embedded(tmp_path, of) as engine, serving(engine, of) as port:
        assert (await ask(port, "GET", "/sinks", key=KEY))[0] == 200
        assert (await port.send())[0] == 200
        port.gateway.use_keys(settings().keys)
        assert (await ask(port, "GET", "/sinks", key=KEY))[0] == 403


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("PUT", "/sinks/nobody/pause", None, (404, "not_found", "path.name")),
        ("PUT", "/sinks/%00%ff/resume", None, (404, "not_found", "path.name")),
        ("PUT", "/sinks/bot/stop", None, (404, "not_found", "path")),
        ("GET", "", None, (404, "not_found", "path")),
        ("POST", "/sinks/bot/pause", None, (405, "method_not_allowed", "method")),
        ("GET", "/sinks?name=bot", None, (400, "invalid", "query")),
        ("PUT", "/sinks/bot/pause?force=true", None, (400, "invalid", "query")),
        ("PUT", "/sinks/bot/pause", b"{", (400, "invalid", "body")),
        ("PUT", "/sinks/bot/pause", b"\xff", (400, "invalid", "body")),
        ("PUT", "/sinks/bot/pause", b"[" * 100_000, (400, "invalid", "body")),
        ("PUT", "/sinks/bot/pause", [], (400, "invalid", "body")),
        ("PUT", "/sinks/bot/pause", {"note": 7}, (400, "invalid", "body")),
        ("PUT", "/sinks/bot/pause", {"notes": "x"}, (400, "invalid", "body")),
        ("PUT", "/sinks/bot/pause", {"note": "x" * 201}, (400, "invalid", "body.note")),
        ("PUT", "/sinks/bot/pause", {"note": "\x1b[2J"}, (400, "invalid", "body.note")),
        ("PUT", "/sinks/bot/pause", b"x" * 600_000, (413, "too_large", "body")),
    ],
)
async def test_what_cannot_be_right_is_refused_and_changes_nothing(
    port: Port, method: str, path: str, body: Any, expected: tuple[int, str, str]
) -> None:
    """With what, where, and what would be right."""
    answer = await ask(port, method, path, body)
    assert wrong(answer) == expected
    if expected[2] == "path.name":
        assert answer[1]["error"]["message"] == "there is no such sink; there are bot"
    assert await entries(port.engine, CONTROL) == []
    assert (await ask(port, "GET", "/sinks"))[0] == 200


async def test_a_body_that_is_compressed_or_breaks_off_is_refused(port: Port) -> None:
    """Nothing here decompresses, and half a word is none."""
    assert wrong(await ask(port, "PUT", "/sinks/bot/pause", b"{}", Content_Encoding="gzip"))[:2] == (415, "unsupported")
    headers = {"Authorization": f"Bearer {OPERATOR_KEY}", "Content-Length": 100}
    answer = await talk(port.listener.port, head("PUT", f"{V1}/sinks/bot/pause", headers), b'{"note": ')
    assert status_of(answer) in (0, 400)
    assert await entries(port.engine, CONTROL) == []


async def test_a_key_that_asks_too_often_waits(tmp_path: Path) -> None:
    """As a bot's does: a script in a loop must not take the gateway's time."""
    of = settings()
    of = replace(of, keys=[replace(key, requests_per_s_max=2.0) for key in of.keys])
    async with embedded(tmp_path, of) as engine, serving(engine, of) as port:
        answers = [await ask(port, "GET", "/sinks") for _ in range(4)]
        assert [answer[0] for answer in answers[:2]] == [200, 200]
        late = next(answer for answer in answers if answer[0] != 200)
        assert wrong(late) == (429, "limited", "header.Authorization")
        assert late[2]["Retry-After"] == "1"
        assert (await port.send())[0] == 200, "another key's allowance is its own"


async def test_while_the_log_is_away_the_answer_says_so_and_when_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator must know whether the word stands, and the bots' requests go on whatever control waits for."""
    monkeypatch.setattr(control, "WORK_S_MAX", 0.3)
    async with gated(tmp_path, settings()) as engine, serving(engine, settings()) as port:
        engine.open.clear()
        answer = await ask(port, "PUT", "/sinks/bot/pause")
        assert wrong(answer) == (503, "unavailable", "log")
        assert "it is not known whether this was done" in answer[1]["error"]["message"]
        assert int(answer[2]["Retry-After"]) > 0
        assert "key operator: pause: the log is away" in caplog.text
        engine.open.set()
        engine.answer_lost = True
        assert wrong(await ask(port, "PUT", "/sinks/bot/pause"))[0] == 503
        engine.answer_lost = False
        assert (await ask(port, "PUT", "/sinks/bot/resume"))[0] == 200
        await engine.close()
        answer = await ask(port, "GET", "/sinks")
        assert wrong(answer) == (503, "unavailable", "log")
        assert "not known" not in answer[1]["error"]["message"], "nothing was to be changed"


async def test_few_requests_run_at_once(tmp_path: Path) -> None:
    """Each may read a whole log; the gateway's first duty is to the bots."""
    async with gated(tmp_path, settings()) as engine, serving(engine, settings()) as port:
        engine.open.clear()
        calls = [asyncio.create_task(ask(port, "PUT", "/sinks/bot/pause")) for _ in range(control.AT_ONCE_MAX)]
        await asyncio.wait_for(engine.asked.wait(), 5)
        for _ in range(100):
            answer = await ask(port, "GET", "/sinks")
            if answer[0] != 200:
                break
        assert wrong(answer) == (503, "overloaded", "")
        assert answer[2]["Retry-After"] == "1"
        engine.open.set()
        assert [answer[0] for answer in await asyncio.gather(*calls)] == [200] * control.AT_ONCE_MAX


async def test_sinks_follow_a_configuration_that_changes(port: Port) -> None:
    """A reload that moves a sink's url is seen at once."""
    of = settings()
    assert port.gateway._operators is not None
    port.gateway._operators.use(replace(of, sinks=[replace(of.sinks[0], url="http://127.0.0.1:10/")]))
    assert (await ask(port, "GET", "/sinks"))[1]["sinks"][0]["to"] == "http://127.0.0.1:10/"
