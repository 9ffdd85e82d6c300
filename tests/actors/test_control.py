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
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from msgspec.structs import replace

from broker import deadletters as dead
from broker import metrics
from broker.clock import SystemClock
from broker.core.addresses import AddressGuard
from broker.core.control import Asked, read
from broker.gateway import control
from broker.log.catalogue import CONTROL, DEADLETTERS, deliveries
from broker.log.contract import Draft
from broker.log.embedded import EmbeddedLog
from broker.secrets import Secret
from schemas.records import DeadLetter, DeliveryEvent, Replayed, decode_control, encode
from schemas.settings import Route, Then, When
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


# ---- dead letters


def letter(
    log: str, held: bytes, *, reason: str = "gave_up", detail: str = "status 500", at: int = 1_700_000_000_000
) -> Draft:
    """A dead letter as the delivery stage sets one aside."""
    return Draft(b"brand:4915550001234", encode(DeadLetter(log, 0, 7, b"ada", held, "delivery", reason, detail, 3, at)))


async def set_aside(port: Port, *letters: Draft) -> None:
    await port.engine.append(DEADLETTERS, letters, 5.0)


async def listed(port: Port, query: str = "") -> tuple[list[str], Any]:
    """The ids of a page, and where to go on."""
    status, said, _ = await ask(port, "GET", f"/deadletters{query}")
    assert status == 200, said
    return [one["id"] for one in said["deadletters"]], said["before"]


async def test_a_dead_letter_that_is_put_back_over_http_reaches_the_sink(
    port: Port, caplog: pytest.LogCaptureFixture
) -> None:
    """The bot was mended: what it missed comes, once, and the letter says so."""
    caplog.set_level(logging.INFO, "depesche.control")
    async with delivering(port.engine) as bot:
        await set_aside(port, letter(deliveries("bot"), value("ada", 7)))
        assert await listed(port) == (["0-0"], None)
        status, said, _ = await ask(port, "POST", "/deadletters/0-0/replay?dry_run=true")
        expected = {"id": "0-0", "log": "deliveries.bot", "reason": "gave_up", "replayed": False}
        assert (status, said) == (200, expected)
        assert await entries(port.engine, deliveries("bot")) == []
        assert caplog.messages == []
        status, said, _ = await ask(port, "POST", "/deadletters/0-0/replay")
        assert (status, said) == (200, {**expected, "replayed": True})
        await until(lambda: [one.number for one in bot.seen] == [7])
        assert caplog.messages == ["key operator: dead letter 0/0 is put back on deliveries.bot"]
        answer = await ask(port, "POST", "/deadletters/0-0/replay")
        assert wrong(answer) == (409, "conflict", "path.id")
        assert "again=true does it once more" in answer[1]["error"]["message"]
        assert len(await entries(port.engine, deliveries("bot"))) == 1
        _, said, _ = await ask(port, "GET", "/deadletters/0-0")
        assert said["replayed_at"] is not None
        assert (await ask(port, "POST", "/deadletters/0-0/replay?again=true"))[0] == 200
        await until(lambda: len(bot.seen) == 2)


async def test_two_who_put_the_same_letter_back_at_once_put_it_back_once(port: Port) -> None:
    """Two people on call press the same button."""
    await set_aside(port, letter(deliveries("bot"), value("ada", 7)))
    answers = await asyncio.gather(*(ask(port, "POST", "/deadletters/0-0/replay") for _ in range(3)))
    assert sorted(answer[0] for answer in answers) == [200, 409, 409]
    assert len(await entries(port.engine, deliveries("bot"))) == 1


async def test_letters_come_newest_first_and_page_by_page(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, each once, whether the page ends in the midst of a stretch, at its end, or for the look's bound."""
    await set_aside(port, *(letter(deliveries("bot"), b"x", reason=f"r{n % 2}") for n in range(9)))
    assert (await ask(port, "POST", "/deadletters/0-7/replay"))[0] == 200
    assert await listed(port) == ([f"0-{n}" for n in reversed(range(9))], None)
    for stretch, bound in ((500, 50_000), (2, 50_000), (3, 3), (1, 1)):
        monkeypatch.setattr(dead, "STRETCH_RECORDS", stretch)
        monkeypatch.setattr(dead, "LOOKED_AT_MAX", bound)
        for query, wanted in (("limit=2", range(9)), ("limit=2&reason=r1", range(1, 9, 2)), ("limit=9", range(9))):
            found: list[str] = []
            before = None
            for _ in range(20):
                ids, before = await listed(port, f"?{query}" + (f"&before={before}" if before else ""))
                found += ids
                if before is None:
                    break
            assert found == [f"0-{n}" for n in reversed(wanted)], (stretch, bound, query)
        _, said, _ = await ask(port, "GET", "/deadletters?limit=1&before=0-8")
        assert said["deadletters"][0]["replayed_at"] is not None, "its mark stands behind all pages"
    monkeypatch.undo()
    assert await listed(port, "?log=deliveries.bot&limit=1") == (["0-8"], "0-8")
    assert await listed(port, "?before=0-0") == ([], None)


async def test_customers_are_masked_in_letters_as_the_command_masks_them(port: Port) -> None:
    """Key, detail and content: whoever looks why a bot failed need not see whose message it was."""
    body = json.dumps({"from": "4915550001234", "text": "call 0155 500 01234"}).encode()
    event = encode(DeliveryEvent("e1", "message", NUMBER, "brand:4915550001234", body, 1, 1))
    await set_aside(port, letter(deliveries("bot"), event, detail="refused for +49 1555 000-1234"))
    for path in ("/deadletters", "/deadletters/0-0"):
        status, said, _ = await ask(port, "GET", path)
        assert status == 200
        assert "0001234" not in json.dumps(said)
        assert "000-1234" not in json.dumps(said)
    assert said["record"]["value"]["body"]["from"] == "••••234"
    assert said["record"]["value"]["phone_number_id"] == NUMBER
    assert (said["detail"], said["bytes"], said["sink"]) == ("refused for +••••234", len(event), "bot")


async def test_a_letter_is_told_whatever_it_holds(port: Port) -> None:
    """What a later version wrote, what never stood on a log, what is too large to show: each has its line."""
    large = letter(deliveries("bot"), b'{"from":"' + b"4" * 600_000)
    strange = Draft(b"k", b"\xc1 of a version to come")
    await set_aside(port, strange, letter("", b"{", reason="malformed"), large)
    ids, _ = await listed(port)
    assert ids == ["0-2", "0-1", "0-0"]
    _, said, _ = await ask(port, "GET", "/deadletters/0-2")
    assert (said["record"], said["bytes"]) == (None, 600_009)
    _, said, _ = await ask(port, "GET", "/deadletters/0-0")
    assert (said["stage"], said["detail"]) == ("", "of another version")
    for id_, why in (("0-0", "newer than this one"), ("0-1", "never stood on a log")):
        answer = await ask(port, "POST", f"/deadletters/{id_}/replay")
        assert wrong(answer) == (409, "conflict", "path.id")
        assert why in answer[1]["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/deadletters?limit=0", (400, "invalid", "query.limit")),
        ("GET", "/deadletters?limit=201", (400, "invalid", "query.limit")),
        ("GET", "/deadletters?before=7", (400, "invalid", "query.before")),
        ("GET", "/deadletters?before=0/7", (400, "invalid", "query.before")),
        ("GET", "/deadletters?reason=gave_upp", (400, "invalid", "query.reason")),
        ("GET", "/deadletters?log=deliveries.nobody", (400, "invalid", "query.log")),
        ("GET", "/deadletters?sink=bot", (400, "invalid", "query")),
        ("GET", "/deadletters/0-99", (404, "not_found", "path.id")),
        ("GET", "/deadletters/9-0", (404, "not_found", "path.id")),
        ("GET", "/deadletters/0-999999999999999", (404, "not_found", "path.id")),
        ("GET", "/deadletters/" + "9" * 400 + "-1", (404, "not_found", "path.id")),
        ("GET", "/deadletters/%D9%A3-1", (404, "not_found", "path.id")),
        ("POST", "/deadletters/0-99/replay", (404, "not_found", "path.id")),
        ("POST", "/deadletters/0-1/replay", (404, "not_found", "path.id")),
        ("POST", "/deadletters/0-0/replay?again=1", (400, "invalid", "query.again")),
        ("DELETE", "/deadletters/0-0", (405, "method_not_allowed", "method")),
    ],
)
async def test_what_cannot_be_right_about_letters_is_refused(
    port: Port, method: str, path: str, expected: tuple[int, str, str]
) -> None:
    """A name that is nobody's above all: an empty list would look like good news. `0-1` is a mark, and no letter."""
    await set_aside(port, letter(deliveries("bot"), b"x"))
    await port.engine.append(DEADLETTERS, [Draft(b"k", encode(Replayed(0, 5, 1)))], 5.0)
    assert wrong(await ask(port, method, path)) == expected
    assert await entries(port.engine, deliveries("bot")) == []


async def test_a_reason_of_a_known_name_without_letters_is_an_empty_list(port: Port) -> None:
    """And so is a log of ours."""
    assert await listed(port, "?reason=poison") == ([], None)
    assert await listed(port, "?log=conversations") == ([], None)


# ---- routes

ROUTED = replace(
    settings(),
    routes=[
        Route(name="german", when=When(keywords=["hallo"]), then=Then(sinks=["bot"], tags=["de"])),
        Route(name="first", when=When(first_message=True, holders=["bot"]), then=Then(sinks=["bot"])),
    ],
)
HELLO = {"type": "text", "from": "4915550001234", "text": {"body": "Hallo, ich bin 0155 500 01234"}}


@pytest.fixture
async def routing(tmp_path: Path) -> AsyncIterator[Port]:
    """A gateway of a brand with routes."""
    async with embedded(tmp_path, ROUTED) as engine, serving(engine, ROUTED) as port:
        yield port


async def test_where_a_message_would_go_is_explained_and_nothing_goes(routing: Port) -> None:
    """What `depesche route explain` says of the same bytes, the customer masked."""
    status, said, _ = await ask(routing, "POST", "/route/explain?at=2026-03-01T12:00:00Z", HELLO)
    assert status == 200
    (one,) = said["explained"]
    assert (one["what"], one["number"], one["received_at"]) == (
        "message of type text",
        NUMBER,
        "2026-03-01T12:00:00.000Z",
    )
    assert (one["sinks"], one["tags"]) == (["bot"], ["de"])
    assert [(route["name"], route["verdict"]) for route in one["routes"]] == [
        ("german", "taken"),
        ("first", "not reached"),
    ]
    assert "01234" not in json.dumps(said)
    other = {**HELLO, "text": {"body": "hello"}}
    for query, sinks in (("", []), ("?first=true", ["bot"]), ("?first=true&holder=orders", [])):
        _, said, _ = await ask(routing, "POST", f"/route/explain{query}", other)
        assert said["explained"][0]["sinks"] == sinks
    for log in ("conversations", deliveries("bot")):
        assert await entries(routing.engine, log) == []


async def test_what_is_explained_follows_a_configuration_that_changes(routing: Port) -> None:
    """And one that cannot be compiled changes nothing."""
    operators = routing.gateway._operators
    assert operators is not None
    operators.use(settings())
    _, said, _ = await ask(routing, "POST", "/route/explain", HELLO)
    assert said["explained"][0]["routes"] == []
    with pytest.raises(ValueError, match="regex"):
        operators.use(replace(ROUTED, routes=[replace(ROUTED.routes[0], when=When(regex="("))]))
    assert (await ask(routing, "POST", "/route/explain", HELLO))[0] == 200


@pytest.mark.parametrize("sample", sorted((Path(__file__).parents[1] / "wire" / "webhooks").glob("*.json")), ids=str)
async def test_every_webhook_meta_documents_is_explained(routing: Port, sample: Path) -> None:
    """Or refused with a reason, where it would become a dead letter."""
    status, said, _ = await ask(routing, "POST", "/route/explain", await asyncio.to_thread(sample.read_bytes))
    assert status == 200, said
    assert said["explained"]


@pytest.mark.parametrize(
    ("query", "body", "where"),
    [
        ("", b"", "body"),
        ("", b"nonsense", "body"),
        ("", b"\xff\xfe", "body"),
        ("", b"[" * 100_000, "body"),
        ("", b'{"type":' * 60_000, "body"),
        ("", [], "body"),
        ("", {}, "body"),
        ("", {"type": 7}, "body"),
        ("", {"entry": 7}, "body"),
        ("", {"record": {"type": "send"}}, "body"),
        ("", {"record": {"type": "item", "body": {"entry": []}, "received_at": 10**30}}, "body"),
        ("", {"record": {"type": "item", "body": {"entry": []}, "received_at": True}}, "body"),
        ("", {"entry": [{"id": "1", "changes": [{"field": "messages", "value": {"messages": [HELLO] * 21}}]}]}, "body"),
        ("?number=1", HELLO, "query"),
        ("?at=2026-03-01", HELLO, "query.at"),
        ("?at=1700000000", HELLO, "query.at"),
        ("?at=9999-12-31T23:59:59-23:59", HELLO, "query.at"),
        ("?first=1", HELLO, "query.first"),
        ("?language=" + "x" * 40, HELLO, "query.language"),
    ],
)
async def test_what_cannot_be_explained_is_refused(routing: Port, query: str, body: Any, where: str) -> None:
    """With what would be right, and never for long."""
    answer = await ask(routing, "POST", f"/route/explain{query}", body)
    assert wrong(answer) == (400, "invalid", where)
    assert len(answer[1]["error"]["message"]) < 700


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = ("from", "id", "timestamp", "type", "text", "context", "interactive", "referral", "from_user_id", "button")


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6), JSON)
@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_whatever_a_message_holds_it_is_explained_or_refused(members: dict[str, Any], text: Any) -> None:
    """Never a crash: what an operator pastes in is what came from outside."""
    engine = EmbeddedLog(Path("/nonexistent"), [], clock=SystemClock(), rng=random.Random(1))
    operators = control.Control(ROUTED, engine, SystemClock())
    (key,) = [key for key in ROUTED.keys if key.control]
    for body in ({"type": "text", "text": text, **members}, {"entry": [{"changes": [{"value": members}]}]}, text):
        found = read("POST", f"{V1}/route/explain")
        assert isinstance(found, Asked)
        call = control.ControlCall(key, found)
        answer = asyncio.run(operators.take(call, json.dumps(body).encode()))
        assert answer.status in (200, 400)
        json.loads(answer.body)
