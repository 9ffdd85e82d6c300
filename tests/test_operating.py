"""What an operator does to a running broker: dead letters put back, sinks paused; on both engines.

A command is run as typed; the process it works on is a real one, or a real Kafka.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import threading
import tomllib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
import tomlkit
from aiokafka.admin import AIOKafkaAdminClient

from broker import compose, trial
from broker.clock import SystemClock
from broker.config import load, parse
from broker.core.control import Asked, read
from broker.deadletters import REASONS
from broker.gateway.control import Control, ControlCall
from broker.log.catalogue import (
    CONVERSATIONS,
    CUSTOMER_STAGE,
    DEADLETTERS,
    DELIVERY_GROUP,
    catalogue,
    deliveries,
)
from broker.log.contract import Draft, Follow, Lease, Restored, Step
from broker.log.kafka import KafkaLog
from schemas.records import DeadLetter, DeliveryEvent, encode
from schemas.settings import BotKey
from tests.flow.trial import ADA, Trial, free_base_port
from tests.kafka.engine import kafka_log
from tests.kafka.fixtures import KafkaForTests
from tests.test_cli import here, on_kafka, said

README = Path(__file__).parents[1] / "README.md"
COMMANDS = re.compile(r"<!-- commands -->\n```sh\n(.*?)```\n", re.DOTALL)
KEY = f"main:{ADA}".encode()
ANSWER_S_MAX = 15.0


def letter(
    log: str, value: bytes, *, partition: int = 0, reason: str = "poison", detail: str = "boom", at: int = 0
) -> bytes:
    return encode(DeadLetter(log, partition, 7, KEY, value, "customer", reason, detail, 3, at or 1_700_000_000_000))


async def append(config: Path, log: str, drafts: Sequence[Draft]) -> None:
    """Append as a command does."""
    async with compose.visit(load(config)) as visit:
        await visit.append(log, drafts)


def make_log(config: Path) -> None:
    """Make the embedded log, as a first start of the broker does."""

    async def work() -> None:
        engine = compose.engine_of(load(config), SystemClock(), random.Random(1))
        await engine.start()
        await engine.close()

    asyncio.run(work())


def shown(log: str, config: Path) -> list[dict[str, Any]]:
    """Return the records of a log as `depesche tail` shows them."""
    told = here("tail", log, "--json", "--reveal", "--config", config)
    assert told.returncode == 0, told.stderr
    return [json.loads(line) for line in told.stdout.splitlines()]


def replayed(*arguments: str | Path) -> tuple[int, list[dict[str, object]], str]:
    told: subprocess.CompletedProcess[str] = here("deadletters", "replay", "--json", *arguments)
    return told.returncode, [json.loads(line) for line in told.stdout.splitlines()], told.stderr


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """A running trial, embedded log and all, after one conversation."""
    with Trial(tmp_path_factory.mktemp("running") / "data") as one:
        one.start_and_wait()
        one.write("hello")
        one.until(one.answers, ANSWER_S_MAX)
        yield one


def test_a_dead_letter_is_put_back_while_the_broker_runs(running: Trial) -> None:
    """Its record stands on its log once more, the letter says so, and a second replay leaves it alone."""
    config = running.config
    told = here("deadletters", "replay", "--config", config)
    assert (told.returncode, "which letters?" in said(told)) == (2, True)
    unreadable = letter(CONVERSATIONS, b"of a version to come", reason="malformed")
    asyncio.run(append(config, DEADLETTERS, [Draft(KEY, unreadable), Draft(KEY, letter("", b"{", reason="malformed"))]))
    before = len(
        [one for one in shown(CONVERSATIONS, config) if one["record"] == {"unreadable": "of a version to come"}]
    )
    assert before == 0
    code, said_, _ = replayed("--reason", "malformed", "--stage", "customer", "--dry-run", "--config", config)
    assert [(one["place"], one["replayed"], bool(one["refused"])) for one in said_] == [
        ("0/0", False, False),
        ("0/1", False, True),
    ]
    assert code == 4, "one of the two cannot be put back"
    code, said_, _ = replayed("0/0", "--config", config)
    assert (code, said_) == (
        0,
        [{"place": "0/0", "log": CONVERSATIONS, "reason": "malformed", "replayed": True, "refused": None}],
    )
    (back,) = [one for one in shown(CONVERSATIONS, config) if one["record"] == {"unreadable": "of a version to come"}]
    assert (back["key"], back["partition"]) == (KEY.decode(), 0)
    listed = here("deadletters", "list", "--config", config).stdout.splitlines()
    assert "[replayed " in listed[0]
    assert "[replayed " not in listed[1]
    told = here("deadletters", "replay", "0/0", "--config", config)
    assert (told.returncode, "no such letter that was not replayed already at 0/0" in said(told)) == (4, True)
    # The customer stage met it again, could not read it again, and set it aside again.
    running.until(lambda: len(shown(DEADLETTERS, config)) == 4, ANSWER_S_MAX)
    waiting = here("deadletters", "list", "--waiting", "--reason", "malformed", "--config", config).stdout.splitlines()
    assert [line.split()[0] for line in waiting][:1] == ["0/1"]
    assert len(waiting) == 2
    future = here("deadletters", "list", "--since", "2100-01-01T00:00:00Z", "--config", config)
    assert (future.returncode, future.stdout, future.stderr) == (0, "", "depesche: no such dead letter\n")


@pytest.mark.parametrize(
    "words",
    [
        "tail conversations",
        "deadletters list",
        "deadletters show 0/0",
        "deadletters replay 0/0",
        "sinks list",
        "sinks pause assistant",
        "sinks resume assistant",
        "sinks replay assistant --since 1h",
        "positions reset customer --partition 0",
    ],
)
def test_a_log_that_nobody_made_cannot_be_had_and_is_not_made(tmp_path: Path, words: str) -> None:
    """A command run in the wrong folder must not leave a log there, nor say that a sink is paused that runs on."""
    config = trial.prepare(tmp_path / "data", trial.Ports.from_base(free_base_port()))
    before = sorted(tmp_path.rglob("*"))
    told = here(*words.split(), "--config", config)
    assert (told.returncode, told.stdout, "there is no log there yet" in said(told)) == (3, "", True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mistyped_name_is_wrong_usage_and_a_removed_sinks_letters_are_listed(tmp_path: Path) -> None:
    """Nothing listed for a name that nobody has looks like good news."""
    config = trial.prepare(tmp_path / "data", trial.Ports.from_base(free_base_port()))
    make_log(config)
    empty = here("deadletters", "list", "--config", config)
    assert (empty.returncode, empty.stdout, empty.stderr) == (0, "", "depesche: no dead letters\n")
    asyncio.run(append(config, DEADLETTERS, [Draft(KEY, letter("deliveries.removed", b"x", reason="of-old"))]))
    for words in (("list",), ("replay",)):
        told = here("deadletters", *words, "--sink", "nosuch", "--config", config)
        assert (told.returncode, told.stdout) == (2, "")
        assert said(told) == "depesche: no sink 'nosuch', and no letter of one; there are assistant, orders\n"
        told = here("deadletters", *words, "--reason", "foo", "--stage", "bar", "--config", config)
        assert told.returncode == 2
        assert "no reason 'foo', and no letter of one; there are not_json, " in said(told)
        assert "no stage 'bar', and no letter of one; there are receiver, customer, sender, delivery" in told.stderr
        told = here("deadletters", *words, "--sink", "assistant", "--reason", "gave_up", "--config", config)
        assert (told.returncode, told.stdout, "no such " in said(told)) == (0, "", True)
    for option, name in (("--sink", "removed"), ("--reason", "of-old"), ("--stage", "customer")):
        told = here("deadletters", "list", option, name, "--config", config)
        assert (told.returncode, len(told.stdout.splitlines()), told.stderr) == (0, 1, "")


def test_every_reason_for_which_something_is_set_aside_is_known() -> None:
    """Else asking for it would be refused until there is one. Read from the code, so that none is forgotten."""
    root = Path(compose.__file__).parent.parent
    code = "".join(path.read_text() for folder in ("broker", "workers") for path in (root / folder).rglob("*.py"))
    constants = dict(re.findall(r'^([A-Z_]+) = "(\w+)"$', code, re.MULTILINE))
    plain = re.findall(r'\b(?:Bad|bad)\("(\w+)"', code)
    named = re.findall(r"set_aside\((?:[\w.\[\]]+, )+?([A-Z_]{5,}),", code) + re.findall(r"NAME, ([A-Z_]+),", code)
    assert {*plain, *(constants[name] for name in named)} == set(REASONS)


def test_a_letter_that_was_cut_is_put_back_whole_or_not_at_all(tmp_path: Path) -> None:
    """A record at the limit does not fit into a letter; half of it would be worse than none. No broker runs."""
    config = trial.prepare(tmp_path / "data", trial.Ports.from_base(free_base_port()))

    async def prepare() -> None:
        async with compose.visit(load(config)) as visit:
            await visit.append(CONVERSATIONS, [Draft(KEY, b"whole and long", 0)])
            cut = "boom [first 5 of 14 bytes kept]"
            there = DeadLetter(CONVERSATIONS, 0, 0, KEY, b"whole", "customer", "poison", cut, 3, 1)
            gone = DeadLetter(CONVERSATIONS, 0, 99, KEY, b"whole", "customer", "poison", cut, 3, 1)
            await visit.append(DEADLETTERS, [Draft(KEY, encode(there)), Draft(KEY, encode(gone))])

    make_log(config)
    asyncio.run(prepare())
    code, told, _ = replayed("--reason", "poison", "--config", config)
    assert code == 4
    assert [bool(one["refused"]) for one in told] == [False, True]
    assert [one["record"] for one in shown(CONVERSATIONS, config)] == [{"unreadable": "whole and long"}] * 2


@pytest.mark.kafka
async def test_dead_letters_on_kafka_are_put_back_too(kafka: KafkaForTests, kafka_prefix: str, tmp_path: Path) -> None:
    """The same command; a letter of a lane goes back to its number's slot, whatever its key hashes to."""
    made = trial.prepare(tmp_path / "data", trial.Ports.from_base(free_base_port()))
    config = on_kafka(made, kafka.bootstrap, kafka_prefix)
    settings = parse(tomllib.loads(config.read_text()))
    async with kafka_log(kafka.bootstrap, kafka_prefix, catalogue(settings)) as log:
        drafts = [Draft(KEY, letter("sends.reply", b"x%d" % n, partition=5)) for n in range(3)]
        await log.append(DEADLETTERS, drafts, 10.0)
    code, told, _ = await asyncio.to_thread(replayed, "--since", "3000d", "--limit", "2", "--config", config)
    assert (code, [one["place"] for one in told]) == (0, ["0/0", "0/1"])
    code, told, _ = await asyncio.to_thread(replayed, "--since", "3000d", "--config", config)
    assert (code, [one["place"] for one in told]) == (0, ["0/2"])
    records = await asyncio.to_thread(shown, "sends.reply", config)
    assert [(one["partition"], one["record"]) for one in records] == [(5, {"unreadable": f"x{n}"}) for n in range(3)]


def sinks_listed(config: Path) -> dict[str, dict[str, object]]:
    told = here("sinks", "list", "--json", "--config", config)
    assert told.returncode == 0, told.stderr
    return {one["name"]: one for one in map(json.loads, told.stdout.splitlines())}


def test_a_sink_is_paused_and_resumed_while_the_broker_runs(running: Trial) -> None:
    """From another terminal; the running process follows within a second or two, and the backlog is told."""
    config = running.config
    running.until(lambda: sinks_listed(config)["assistant"]["waiting"] == 0, ANSWER_S_MAX)
    before = len(running.answers())
    told = here("sinks", "pause", "assistant", "--note", "bot is mended", "--config", config)
    assert (told.returncode, told.stdout) == (0, "assistant is paused; its events wait on their log\n"), told.stderr
    running.until(lambda: paused(running) == 1, ANSWER_S_MAX)
    running.write("are you there?")
    running.until(lambda: sinks_listed(config)["assistant"]["waiting"] == 1, ANSWER_S_MAX)
    one = sinks_listed(config)["assistant"]
    assert (one["state"], one["note"]) == ("paused", "bot is mended")
    assert "assistant meta paused since 20" in here("sinks", "list", "--config", config).stdout
    assert sinks_listed(config)["orders"]["state"] == "running"
    assert len(running.answers()) == before
    told = here("sinks", "resume", "assistant", "--config", config)
    assert (told.returncode, told.stdout) == (0, "assistant runs\n")
    running.until(lambda: len(running.answers()) > before, ANSWER_S_MAX)
    told = here("sinks", "pause", "nobody", "--config", config)
    assert (told.returncode, "no sink 'nobody'; there are assistant, orders" in said(told)) == (2, True)


def paused(running: Trial) -> float:
    _, body = running.call(running.ports.admin, "GET", "/metrics")
    line = next(
        line for line in body.decode().splitlines() if line.startswith('depesche_delivery_paused{endpoint="assistant"}')
    )
    return float(line.split()[-1])


def test_events_are_delivered_once_more_since_a_moment(running: Trial) -> None:
    """A bot lost its database: what came in the last hours comes again, marked, and a second command adds nothing."""
    config, log = running.config, deliveries("assistant")
    originals = [one["record"]["delivery_id"] for one in shown(log, config)]
    told = here("sinks", "replay", "assistant", "--since", "1h", "--dry-run", "--json", "--config", config)
    found = json.loads(told.stdout)
    assert (told.returncode, found["appended"]) == (0, len(originals)), told.stderr
    assert len(shown(log, config)) == len(originals)
    told = here("sinks", "replay", "assistant", "--since", "1h", "--limit", "1", "--config", config)
    assert (told.returncode, "there are more" in said(told)) == (4, True)
    told = here("sinks", "replay", "assistant", "--since", "2100-01-01T00:00:00Z", "--json", "--config", config)
    assert (told.returncode, json.loads(told.stdout)["appended"]) == (0, 0)
    copies = [one["record"] for one in shown(log, config) if one["record"].get("replayed_at")]
    assert [one["delivery_id"] for one in copies] == originals[:1]
    running.until(lambda: sinks_listed(config)["assistant"]["waiting"] == 0, ANSWER_S_MAX)
    told = here("sinks", "replay", "assistant", "--since", "yesterday", "--config", config)
    assert (told.returncode, "must be like 2026-03-01T12:00:00Z" in told.stderr) == (2, True)


def operator_of(running: Trial) -> str:
    """Give the running broker an operator's key, by its configuration; return it."""
    key, digest = trial.new_key()
    with running.config.open("a") as stream:
        stream.write(f'\n[[keys]]\nname = "operator-{digest[:8]}"\nsha256 = "{digest}"\ncontrol = true\n')
    headers = {"Authorization": f"Bearer {key}"}
    running.until(
        lambda: running.call(running.ports.gateway, "GET", "/control/v1/sinks", headers=headers)[0] == 200, ANSWER_S_MAX
    )
    return key


def test_the_readmes_commands_for_control_do_what_they_say(running: Trial, tmp_path: Path) -> None:
    """As they stand there, in a shell, against a running broker that learned of the key while it ran."""
    (script,) = COMMANDS.findall(README.read_text())
    config = running.config
    event = encode(DeliveryEvent("missed", "message", "1", KEY.decode(), b"{}", 1, 1))
    asyncio.run(append(config, DEADLETTERS, [Draft(KEY, letter(deliveries("orders"), event, reason="gave_up"))]))
    place = shown(DEADLETTERS, config)[-1]["offset"]
    environment = {
        **os.environ,
        "OPERATOR_KEY": operator_of(running),
        "GATEWAY": f"http://127.0.0.1:{running.ports.gateway}",
        "LETTER": f"0-{place}",
    }
    told = subprocess.run(
        ["bash", "-euc", script],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    said_, rest = [], told.stdout
    while rest:
        tree, end = json.JSONDecoder().raw_decode(rest)
        said_.append(tree)
        rest = rest[end:]
    assert not any("error" in one for one in said_), said_
    listed, paused_, resumed, letters, letter_, replayed_, explained = said_
    assert {sink["name"] for sink in listed["sinks"]} == {"assistant", "orders"}
    assert [one["id"] for one in letters["deadletters"]] == [f"0-{place}"]
    assert (letter_["record"]["value"]["delivery_id"], replayed_["replayed"]) == ("missed", True)
    assert [one["record"]["delivery_id"] for one in shown(deliveries("orders"), config)][-1:] == ["missed"]
    assert explained["explained"][0]["sinks"] == ["assistant"]
    assert (paused_["state"], paused_["note"], resumed["state"]) == ("paused", "the bot is mended", "running")
    assert sinks_listed(running.config)["assistant"]["state"] == "running"


class Webhook(BaseHTTPRequestHandler):
    """A bot's webhook: repeats the challenge to whoever knows the token; as told, something else."""

    says: ClassVar[str] = ""

    def do_GET(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        knows = query["hub.mode"] == "subscribe" and query["hub.verify_token"] == "what the bot expects"
        self.send_response(200 if knows else 403)
        self.end_headers()
        self.wfile.write((self.says or query["hub.challenge"]).encode() if knows else b"")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_sink_proves_itself_as_meta_asks(tmp_path: Path) -> None:
    """Before a brand switches a bot over: the same GET, and a plain word about what was wrong. No log is needed."""
    config = trial.prepare(tmp_path / "data", trial.Ports.from_base(free_base_port()))
    told = here("sinks", "verify", "--config", config)
    assert (told.returncode, "no sink has a verify_token" in said(told)) == (2, True)
    with ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            tree = tomllib.loads(config.read_text())
            assistant = next(sink for sink in tree["sinks"] if sink["name"] == "assistant")
            assistant["url"] = f"http://127.0.0.1:{server.server_port}/hook"
            assistant["verify_token"] = {"file": "token"}
            token = config.with_name("token")
            other = config.with_name("verifying.toml")
            other.write_text(tomlkit.dumps(tree))
            token.write_text("what the bot expects")
            told = here("sinks", "verify", "--config", other)
            assert (told.returncode, told.stdout) == (0, "assistant: verified\n"), told.stderr
            token.write_text("another one")
            told = here("sinks", "verify", "assistant", "--config", other)
            assert (told.returncode, "expects another verify token" in told.stdout) == (4, True)
            token.write_text("what the bot expects")
            Webhook.says = "<html>welcome</html>"
            told = here("sinks", "verify", "assistant", "--json", "--config", other)
            assert (told.returncode, json.loads(told.stdout)["verified"]) == (4, False)
        finally:
            Webhook.says = ""
            server.shutdown()
            thread.join(5)
    told = here("sinks", "verify", "assistant", "--config", other)
    assert (told.returncode, "connection" in told.stdout) == (4, True)
    told = here("sinks", "verify", "orders", "--config", other)
    assert (told.returncode, "belongs to kind 'meta'" in said(told)) == (2, True)


@pytest.mark.kafka
async def test_sinks_on_kafka_are_looked_at_paused_and_replayed(
    kafka: KafkaForTests, kafka_prefix: str, tmp_path: Path
) -> None:
    """The group's own commits tell what waits; the halves of a search find where a replay begins."""
    made = trial.prepare(tmp_path / "data", trial.Ports.from_base(free_base_port()))
    config = on_kafka(made, kafka.bootstrap, kafka_prefix)
    settings = parse(tomllib.loads(config.read_text()))
    log_name = deliveries("assistant")
    async with kafka_log(kafka.bootstrap, kafka_prefix, catalogue(settings)) as log:
        events = [encode(DeliveryEvent(f"e{n}", "message", "1", "main:1", b"{}", 1, 1)) for n in range(5_000)]
        await log.append(log_name, [Draft(KEY, event, 0) for event in events[:4_990]], 20.0)
        since = max([entry.appended_at async for entry in log.read(log_name, 0, 4_989)]) + 1
        await asyncio.sleep(0.05)
        await log.append(log_name, [Draft(KEY, event, 0) for event in events[4_990:]], 20.0)
        done = asyncio.Event()

        async def follow(one: Follow) -> None:
            await one.restore()
            if one.partition == 0:
                await one.commit(4_000)
                done.set()
            await asyncio.sleep(60)

        membership = await log.follow(DELIVERY_GROUP, [log_name], follow)
        await asyncio.wait_for(done.wait(), 20)
        await membership.leave()
    listed = await asyncio.to_thread(sinks_listed, config)
    assert (listed["assistant"]["waiting"], listed["assistant"]["kept"]) == (1_000, 5_000)
    assert (listed["orders"]["waiting"], listed["orders"]["state"]) == (0, "running")
    assert (await asyncio.to_thread(here, "sinks", "pause", "assistant", "--config", config)).returncode == 0
    assert (await asyncio.to_thread(sinks_listed, config))["assistant"]["state"] == "paused"
    moment = datetime.fromtimestamp(since / 1_000, UTC).isoformat()
    told = await asyncio.to_thread(
        here, "sinks", "replay", "assistant", "--since", moment, "--json", "--config", config
    )
    assert json.loads(told.stdout)["appended"] == 10, told.stderr
    told = await asyncio.to_thread(here, "tail", log_name, "--offset", "5000", "--json", "--config", config)
    again = [json.loads(line)["record"] for line in told.stdout.splitlines()]
    assert [one["delivery_id"] for one in again] == [f"e{n}" for n in range(4_990, 5_000)]


@pytest.mark.kafka
async def test_control_over_http_works_on_kafka_too(kafka: KafkaForTests, kafka_prefix: str, tmp_path: Path) -> None:
    """The engine of a running gateway, looked at and written to by requests as its port hands them on."""
    made = trial.prepare(tmp_path / "data", trial.Ports.from_base(free_base_port()))
    settings = parse(tomllib.loads(on_kafka(made, kafka.bootstrap, kafka_prefix).read_text()))
    key = BotKey(name="operator", sha256="0" * 64, control=True)
    async with kafka_log(kafka.bootstrap, kafka_prefix, catalogue(settings)) as log:
        control = Control(settings, log, SystemClock())

        async def ask(method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
            asked = read(method, f"/control/v1{path}")
            assert isinstance(asked, Asked)
            answer = await asyncio.wait_for(control.take(ControlCall(key, asked), body), 30)
            return answer.status, json.loads(answer.body)

        event = encode(DeliveryEvent("e1", "message", "1", KEY.decode(), b"{}", 1, 1))
        drafts = [Draft(KEY, letter(deliveries("orders"), event, partition=n, reason="gave_up")) for n in range(3)]
        await log.append(DEADLETTERS, drafts, 10.0)
        assert (await ask("PUT", "/sinks/orders/pause", b'{"note": "why"}'))[0] == 200
        status, said_ = await ask("POST", "/deadletters/0-1/replay")
        assert (status, said_["log"]) == (200, "deliveries.orders")
        assert (await ask("POST", "/deadletters/0-1/replay"))[0] == 409
        status, page = await ask("GET", "/deadletters?limit=2")
        assert (status, page["before"]) == (200, "0-1")
        assert [(one["id"], one["replayed_at"] is None) for one in page["deadletters"]] == [
            ("0-2", True),
            ("0-1", False),
        ]
        assert [one["id"] for one in (await ask("GET", "/deadletters?before=0-1"))[1]["deadletters"]] == ["0-0"]
        listed = {one["name"]: one for one in (await ask("GET", "/sinks"))[1]["sinks"]}
        orders = listed["orders"]
        assert (orders["state"], orders["note"], orders["waiting"], orders["kept"]) == ("paused", "why", 1, 1)
        assert [entry.partition async for entry in log.read(deliveries("orders"), 1)] == [1]


async def one_step(log: KafkaLog) -> tuple[Restored, list[bytes]]:
    """Own partition 0 of the customer stage for one step that reads what there is; return what it found."""
    found: asyncio.Future[tuple[Restored, list[bytes]]] = asyncio.get_running_loop().create_future()

    async def run(lease: Lease) -> None:
        if lease.partition == 0:
            restored = await lease.restore()
            entries = await lease.fetch(100, 5.0)
            await lease.commit(Step({CONVERSATIONS: entries[-1].offset + 1}, changes=[(KEY, b"state")]))
            if not found.done():
                found.set_result((restored, [entry.value for entry in entries]))
        await asyncio.sleep(60)

    member = await log.own(CUSTOMER_STAGE, run)
    try:
        return await asyncio.wait_for(found, 30)
    finally:
        await member.leave()


@pytest.mark.kafka
async def test_a_position_in_a_log_that_was_made_again_is_reset_by_an_operator_alone(
    kafka: KafkaForTests, kafka_prefix: str, tmp_path: Path
) -> None:
    """Without --yes nothing changes; with it the stage goes on at the first record there is, with its state."""
    made = trial.prepare(tmp_path / "data", trial.Ports.from_base(free_base_port()))
    config = on_kafka(made, kafka.bootstrap, kafka_prefix)
    specs = catalogue(parse(tomllib.loads(config.read_text())))
    words = ("positions", "reset", "customer", "--partition", "0", "--config", config)
    async with kafka_log(kafka.bootstrap, kafka_prefix, specs) as log:
        await log.append(CONVERSATIONS, [Draft(KEY, b"before", 0) for _ in range(3)], 10.0)
        assert (await one_step(log))[1] == [b"before"] * 3
    told = await asyncio.to_thread(here, *words)
    assert (told.returncode, "its position is right; nothing was changed" in said(told)) == (4, True)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([kafka_prefix + CONVERSATIONS])
        for _ in range(200):
            if kafka_prefix + CONVERSATIONS not in await admin.list_topics():
                break
            await asyncio.sleep(0.05)
    finally:
        await admin.close()
    async with kafka_log(kafka.bootstrap, kafka_prefix, specs) as log:
        await log.append(CONVERSATIONS, [Draft(KEY, b"after", 0)], 10.0)
    told = await asyncio.to_thread(here, *words)
    assert (told.returncode, "it was deleted and made again" in told.stdout) == (4, True), told.stderr
    assert "with --yes it is reset" in told.stderr
    told = await asyncio.to_thread(here, *words, "--yes")
    assert (told.returncode, told.stdout.endswith("each of its logs\n")) == (0, True), told.stderr
    async with kafka_log(kafka.bootstrap, kafka_prefix, specs) as log:
        restored, values = await one_step(log)
    assert (restored.position, dict(restored.records), values) == ({}, {KEY: b"state"}, [b"after"])


def test_a_position_is_not_reset_under_a_running_broker(running: Trial) -> None:
    """The embedded log is its process's; and a partition there is not is wrong usage."""
    words = ("positions", "reset", "customer", "--config", running.config, "--partition")
    told = here(*words, "0", "--yes")
    assert (told.returncode, "has this log open" in said(told)) == (3, True)
    told = here(*words, "99")
    assert (told.returncode, "customer has partitions 0 to" in said(told)) == (2, True)
