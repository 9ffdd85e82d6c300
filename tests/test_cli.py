"""What an operator types: help, exit codes, and error texts that say what would be right. No traceback, ever."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import hmac
import json
import random
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import tomlkit
from click.testing import CliRunner

from broker import trial
from broker.cli import main
from broker.config import load, parse
from broker.log.catalogue import CONVERSATIONS, catalogue
from broker.log.contract import Draft
from broker.reload import digest
from tests.flow.trial import ADA, Trial, depesche, free_base_port
from tests.kafka.engine import kafka_log
from tests.kafka.fixtures import KafkaForTests

EXAMPLE = Path(__file__).parent.parent / "deploy" / "depesche.toml"
UNREACHABLE_S_MAX = 20.0
ANSWER_S_MAX = 15.0
BAD_BODY = f'{{"object": "whatsapp_business_account", from {ADA}\n'.encode()

Tree = dict[str, Any]


def said(told: subprocess.CompletedProcess[str]) -> str:
    """Return the error text, every line of which says who speaks."""
    lines = told.stderr.splitlines()
    assert lines, "an error without a text"
    assert all(line.startswith("depesche: ") for line in lines), told.stderr
    return told.stderr


def here(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which saves a second: for what ends before anything is served."""
    words = [str(argument) for argument in arguments]
    result = CliRunner().invoke(main, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)


def commands(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield every command's words."""
    yield path
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from commands(command, (*path, name))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A trial's configuration, its ports free a moment ago."""
    return trial.prepare(tmp_path / "data", trial.Ports.from_base(free_base_port()))


def changed(path: Path, **tables: Tree) -> Path:
    """Write a configuration beside another, with keys of some tables set anew; return it."""
    tree = copy.deepcopy(tomllib.loads(path.read_text()))
    for name, values in tables.items():
        tree[name] = {**tree.get(name, {}), **values}
    other = path.with_name("changed.toml")
    other.write_text(tomlkit.dumps(tree))
    return other


def on_kafka(path: Path, bootstrap: str, prefix: str, **log: Any) -> Path:
    """Write a configuration beside another whose logs are on Kafka; return it."""
    kafka = {"bootstrap_servers": bootstrap, "prefix": prefix, "replication_factor": 1, "min_insync_replicas": 1}
    return changed(path, log={"engine": "kafka", "partitions": 2, "slots": 8, "kafka": kafka, **log})


# Help


@pytest.mark.parametrize("words", list(commands(main)), ids=lambda words: " ".join(words) or "depesche")
def test_every_command_explains_itself(words: tuple[str, ...]) -> None:
    """A sentence for the command and one for each of its options."""
    shown = CliRunner().invoke(main, [*words, "--help"])
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith("Usage: ")
    command: click.Command = main
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    assert command.help
    assert [p.name for p in command.params if isinstance(p, click.Option) and not p.help] == []


def test_the_program_itself_tells_its_commands_and_exit_codes() -> None:
    """As installed, in a process of its own."""
    told = depesche("--help")
    assert told.returncode == 0
    for word in ("run", "receiver", "gateway", "worker", "sandbox", "config", "topics", "tail", "deadletters", "key"):
        assert f"\n  {word} " in told.stdout
    assert "Exit codes: 0 done" in told.stdout
    assert depesche("--version").stdout.startswith("depesche, version ")


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("tail",),
        ("tail", "conversations"),
        ("run", "--base-port", "65535"),
        ("run", "--config", "x.toml", "--base-port", "8080"),
        ("run", "--config", "x.toml", "--data", "y"),
        ("worker", "--stages", "customer"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(words: tuple[str, ...]) -> None:
    """With the usage, and what was wrong about it."""
    told = here(*words)
    assert told.returncode == 2
    assert told.stderr.startswith("Usage: ")
    assert "\nError: " in told.stderr


# Configuration


def test_the_example_is_right_once_its_secrets_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First everything that is missing in one go, then a summary: what step 1 of the README promises."""
    config = tmp_path / "depesche.toml"
    config.write_text(EXAMPLE.read_text())
    monkeypatch.delenv("DEPESCHE_GRAPH_TOKEN", raising=False)
    told = here("config", "check", "--config", config)
    assert told.returncode == 2
    missing = ("app-secret", "verify-token", "graph-token", "assistant-secret", "orders-secret")
    assert all(f"secrets/{name}: cannot be read" in said(told) for name in missing)
    assert "numbers[1].token.env: environment variable DEPESCHE_GRAPH_TOKEN: is empty or not set" in told.stderr

    (tmp_path / "secrets").mkdir()
    for name in missing:
        (tmp_path / "secrets" / name).write_text("not-a-standard-webhooks-secret\n")
    monkeypatch.setenv("DEPESCHE_GRAPH_TOKEN", "EAA")
    told = here("config", "check", "--config", config)
    assert told.returncode == 2
    assert "sinks[1].secret: a Standard Webhooks secret is 'whsec_'" in said(told)
    assert "not-a-standard" not in told.stderr, "a secret is not shown, not even a wrong one"

    (tmp_path / "secrets" / "orders-secret").write_text("whsec_bm90IHNvIHNlY3JldCBidXQgbG9uZyBlbm91Z2g=\n")
    told = here("config", "check", "--config", config)
    assert (told.returncode, told.stderr) == (0, "")
    summary = f"{config}: right. 1 apps, 2 numbers, 2 sinks, 1 keys, 6 routes, embedded log"
    assert told.stdout == f"{summary}, digest {digest(load(config).settings)}.\n"


@pytest.mark.parametrize(
    "words", [("config", "check"), ("run",), ("receiver",), ("tail", "state"), ("topics", "check")]
)
def test_a_wrong_configuration_is_exit_code_2_wherever_it_is_read(made: Path, words: tuple[str, ...]) -> None:
    """With setting, value and what would be right."""
    config = changed(made, receiver={"port": 99_999}, gateway={"port": "x"})
    told = here(*words, "--config", config)
    assert told.returncode == 2
    assert "gateway.port = 'x': must be an integer, not a string" in said(told)
    config = changed(made, receiver={"port": 99_999}, sender={"call_timeout_s": 0})
    told = here(*words, "--config", config)
    assert told.returncode == 2
    assert "receiver.port = 99999: must be from 0 to 65535" in said(told)
    assert "sender.call_timeout_s = 0" in told.stderr


def test_what_is_not_there_is_named(tmp_path: Path, made: Path) -> None:
    """Files, stages, a sandbox that is not configured, topics of a log that has none."""
    told = here("config", "check", "--config", tmp_path / "none.toml")
    assert (told.returncode, "none.toml: cannot be read (No such file or directory)" in said(told)) == (2, True)
    told = here("worker", "--stages", "customer,sendr", "--config", made)
    assert (told.returncode, "no such stage sendr; there are customer, sender, delivery" in said(told)) == (2, True)
    told = here("topics", "check", "--config", made)
    assert (told.returncode, "log.engine = 'embedded': has no topics" in said(told)) == (2, True)
    tree = tomllib.loads(made.read_text())
    del tree["sandbox"]
    made.write_text(tomlkit.dumps(tree))
    told = here("sandbox", "--config", made)
    assert (told.returncode, "has no [sandbox]" in said(told)) == (2, True)


def test_a_trial_moves_to_other_ports_unless_somebody_edited_it(tmp_path: Path) -> None:
    """A port that is taken must not cost what was tried; nor must what somebody wrote be overwritten."""
    config = trial.prepare(tmp_path / "data", trial.Ports())
    before = tomllib.loads(config.read_text())
    trial.prepare(tmp_path / "data", trial.Ports.from_base(20_000))
    after = tomllib.loads(config.read_text())
    assert after["receiver"]["port"] == 20_000
    assert after["sandbox"]["webhook_url"] == "http://127.0.0.1:20000/webhooks/meta/trial"
    assert after["admin"]["port"] == 20_005
    assert [key["sha256"] for key in after["keys"]] == [key["sha256"] for key in before["keys"]]
    text = config.read_text()
    assert trial.prepare(tmp_path / "data") == config
    assert config.read_text() == text, "without ports it stays where it is"
    config.write_text(text.replace("slots = 8", "slots = 16"))
    told = here("run", "--data", tmp_path / "data", "--base-port", "21000")
    assert told.returncode == 2
    assert "has been edited, so --base-port leaves it alone" in said(told)
    assert config.read_text() == text.replace("slots = 8", "slots = 16")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """Not a traceback about a directory."""
    (tmp_path / "file").write_text("")
    told = here("run", "--data", tmp_path / "file" / "data")
    assert told.returncode == 2
    assert "a trial cannot be kept there (Not a directory); name another --data" in said(told)


def test_a_key_is_made_with_its_digest() -> None:
    """The configuration gets the digest alone; two keys are never the same."""
    first, second = here("key", "new").stdout, here("key", "new").stdout
    key_line, digest_line = first.splitlines()
    key = key_line.split()[1]
    assert digest_line == f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"'
    assert key.startswith("dk_")
    assert len(key) >= 3 + 43, "32 random bytes in base 64"
    assert first != second


# Ports and logs that cannot be had


@pytest.mark.parametrize(
    ("table", "offset"), [("receiver", 0), ("gateway", 1), ("sandbox", 2), ("sandbox.bots'", 4), ("admin", 5)]
)
def test_a_port_that_is_taken_is_exit_code_3(made: Path, table: str, offset: int) -> None:
    """With the setting that names it: six ports, and only one is the culprit."""
    port = tomllib.loads(made.read_text())["receiver"]["port"] + offset
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        told = depesche("run", "--config", made)
    assert told.returncode == 3
    error = next(line for line in told.stderr.splitlines() if line.startswith("depesche: "))
    assert error.startswith(f"depesche: {table}")
    assert str(port) in error
    assert "Address already in use" in error
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize(
    "words", [("topics", "check"), ("topics", "apply"), ("tail", "conversations"), ("receiver",), ("worker",)]
)
def test_a_kafka_that_does_not_answer_is_exit_code_3_in_bounded_time(made: Path, words: tuple[str, ...]) -> None:
    """An operator waits seconds for an error, not for ever."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound, and nobody listens
        config = on_kafka(made, f"127.0.0.1:{bound.getsockname()[1]}", "none.")
        began = time.monotonic()
        told = depesche(*words, "--config", config, timeout_s=UNREACHABLE_S_MAX + 10)
    assert told.returncode == 3, told.stderr
    assert time.monotonic() - began < UNREACHABLE_S_MAX
    assert "Traceback" not in told.stderr
    assert any(
        line.startswith("depesche: log.kafka.bootstrap_servers = '127.0.0.1:") for line in told.stderr.splitlines()
    )


# The embedded log, as a real process wrote it


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """A running trial after one conversation and one body that is not JSON, correctly signed."""
    with Trial(tmp_path_factory.mktemp("written") / "data") as one:
        one.start_and_wait()
        one.write("hello")
        one.until(one.answers, ANSWER_S_MAX)
        secret = (one.folder / "secrets" / "app-secret").read_bytes().strip()
        signature = "sha256=" + hmac.new(secret, BAD_BODY, hashlib.sha256).hexdigest()
        headers = {"X-Hub-Signature-256": signature, "Content-Type": "application/json"}
        assert one.call(one.ports.receiver, "POST", "/webhooks/meta/trial", BAD_BODY, headers)[0] == 200
        yield one


def test_records_are_shown_in_lines_with_numbers_masked(written: Trial) -> None:
    """A terminal is shared, a ticket is copied: digits are shown to whoever asks for them."""
    told = depesche("tail", "conversations", "--config", written.config)
    assert (told.returncode, told.stderr) == (0, "")
    assert ADA not in told.stdout
    assert "HBgL" not in told.stdout, "base 64 of the same digits, in every message id of Meta's"
    assert "wamid=wamid.…" in told.stdout
    assert "phone_number_id=1" in told.stdout, "the operator's own is shown"
    assert "main:••••234" in told.stdout
    assert " item kind=message " in told.stdout
    revealed = depesche("tail", "conversations", "--config", written.config, "--reveal")
    assert f"main:{ADA}" in revealed.stdout
    assert len(revealed.stdout.splitlines()) >= len(told.stdout.splitlines()) >= 3


def test_records_are_shown_whole_as_json(written: Trial) -> None:
    """For jq: places and instants as they are, bodies as the JSON they hold, masked like all else."""
    told = here("tail", "conversations", "--json", "--reveal", "--config", written.config)
    entries = [json.loads(line) for line in told.stdout.splitlines()]
    item = next(entry for entry in entries if entry["record"]["type"] == "item")
    assert item["log"] == "conversations"
    assert item["key"] == f"main:{ADA}"
    assert item["record"]["body"]["entry"][0]["changes"][0]["value"]["messages"][0]["text"]["body"] == "hello"
    at = ("--partition", str(item["partition"]), "--offset", str(item["offset"]), "--limit", "1")
    masked = here("tail", "conversations", "--json", *at, "--config", written.config)
    assert json.loads(masked.stdout)["record"]["at"] == item["record"]["at"]
    assert json.loads(masked.stdout)["offset"] == item["offset"]
    (was,), (now,) = (
        json.loads(each)["record"]["body"]["entry"][0]["changes"][0]["value"]["messages"]
        for each in (json.dumps(item), masked.stdout)
    )
    assert (now["timestamp"], now["id"]) == (was["timestamp"], f"wamid.…{was['id'][-8:]}")
    assert ADA not in masked.stdout
    assert "HBgL" not in masked.stdout


@pytest.mark.parametrize("log", ["accounts", "state", "ledger", "traffic", "sends.reply", "deliveries.assistant"])
def test_every_log_can_be_shown(written: Trial, log: str) -> None:
    """A stage's own memory too: by its structure, not as base 64."""
    told = here("tail", log, "--json", "--reveal", "--config", written.config)
    assert (told.returncode, told.stderr) == (0, "")
    entries = [json.loads(line) for line in told.stdout.splitlines()]
    assert entries or log == "accounts"
    assert not [entry for entry in entries if "unreadable" in entry["record"]]


def test_a_log_or_partition_that_does_not_exist_is_named(written: Trial) -> None:
    """With those that do."""
    told = here("tail", "conversation", "--config", written.config)
    assert told.returncode == 2
    assert "no log 'conversation'" in said(told)
    assert "conversations, deadletters, deliveries.assistant" in told.stderr
    told = here("tail", "conversations", "--partition", "99", "--config", written.config)
    assert told.returncode == 2
    assert "partition 99: conversations has partitions 0 to 7" in said(told)


def test_following_a_log_shows_what_comes_until_it_is_interrupted(written: Trial) -> None:
    """The first thing typed in an incident. A pipe that closes ends it without a word."""
    words = [sys.executable, "-m", "broker.cli", "tail", "conversations", "--follow", "--config", str(written.config)]
    with subprocess.Popen([*words, "--reveal"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
        try:
            assert following.stdout is not None
            assert following.stderr is not None
            lines = [following.stdout.readline()]
            text = f"news {random.randrange(10**6)}"
            written.write(text)
            while text not in lines[-1] and len(lines) < 10_000:
                lines.append(following.stdout.readline())
            following.stdout.close()
            written.write("more")
            assert following.wait(timeout=20) == 0
            assert following.stderr.read() == ""
        finally:
            following.kill()


def test_following_ends_with_ctrl_c(written: Trial) -> None:
    """Without a traceback, and with the code every shell knows for it."""
    words = [sys.executable, "-m", "broker.cli", "tail", "conversations", "--follow", "--config", str(written.config)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
        try:
            assert following.stdout is not None
            assert following.stderr is not None
            assert following.stdout.readline()
            following.send_signal(signal.SIGINT)
            _, said = following.communicate(timeout=20)  # reads on: who writes into a full pipe hears nothing else
            assert (following.returncode, said) == (130, "")
        finally:
            following.kill()


def test_a_dead_letter_is_listed_and_shown_with_numbers_masked(written: Trial) -> None:
    """Set aside, never dropped: with its reason, its body, and nobody's number unless asked for."""
    listed = here("deadletters", "list", "--config", written.config)
    assert (listed.returncode, listed.stderr) == (0, "")
    (line,) = listed.stdout.splitlines()
    place = line.split()[0]
    assert place == "0/0"
    assert "never on a log" in line
    assert ADA not in line
    shown = here("deadletters", "show", place, "--config", written.config)
    assert shown.returncode == 0, shown.stderr
    letter = json.loads(shown.stdout)["record"]
    assert letter["stage"] == "receiver"
    assert letter["reason"]
    assert ADA not in shown.stdout
    assert "••••234" in shown.stdout
    revealed = here("deadletters", "show", place, "--reveal", "--config", written.config)
    assert ADA in revealed.stdout
    as_json = here("deadletters", "list", "--json", "--reveal", "--config", written.config)
    assert json.loads(as_json.stdout) == json.loads(revealed.stdout)


def test_a_dead_letter_that_is_not_there_is_exit_code_4(written: Trial) -> None:
    """And a place that is none is wrong usage."""
    told = here("deadletters", "show", "0/17", "--config", written.config)
    assert (told.returncode, "no dead letter at 0/17" in said(told)) == (4, True)
    told = here("deadletters", "show", "here", "--config", written.config)
    assert (told.returncode, "must be partition/offset" in said(told)) == (2, True)


def test_an_embedded_log_serves_one_process(written: Trial) -> None:
    """Two would write over each other; the second one says which file and why."""
    tree = changed(written.config, admin={"port": 0}, gateway={"port": 0})
    told = depesche("gateway", "--config", tree)
    assert told.returncode == 3, told.stderr
    assert "log" in next(line for line in told.stderr.splitlines() if line.startswith("depesche: "))
    assert "Traceback" not in told.stderr


# Kafka


@pytest.mark.kafka
def test_topics_are_made_and_compared(kafka: KafkaForTests, kafka_prefix: str, made: Path) -> None:
    """`check` before and after `apply`, and after a number that must never change was changed."""
    config = on_kafka(made, kafka.bootstrap, kafka_prefix)
    told = depesche("topics", "check", "--config", config)
    assert told.returncode == 4, told.stderr
    assert f"{kafka_prefix}conversations" in told.stdout
    told = depesche("topics", "apply", "--config", config, timeout_s=60)
    assert told.returncode == 0, told.stderr + told.stdout
    assert f"created {kafka_prefix}conversations\n" in told.stdout
    assert told.stdout.endswith("all topics are as they should be\n")
    told = depesche("topics", "check", "--config", config)
    assert (told.returncode, told.stdout) == (0, "all topics are as they should be\n")
    told = depesche("topics", "check", "--config", on_kafka(made, kafka.bootstrap, kafka_prefix, partitions=3))
    assert told.returncode == 4
    assert f"{kafka_prefix}conversations" in told.stdout


@pytest.mark.kafka
async def test_logs_on_kafka_are_shown_too(kafka: KafkaForTests, kafka_prefix: str, made: Path) -> None:
    """The same command, the same lines, whatever the engine."""
    config = on_kafka(made, kafka.bootstrap, kafka_prefix)
    settings = parse(tomllib.loads(config.read_text()))
    async with kafka_log(kafka.bootstrap, kafka_prefix, catalogue(settings)) as log:
        key = f"main:{ADA}".encode()
        await log.append(CONVERSATIONS, [Draft(key, b"of a version to come") for _ in range(3)], 10.0)
    told = await asyncio.to_thread(here, "tail", "conversations", "--json", "--config", config)
    assert told.returncode == 0, told.stderr
    entries = [json.loads(line) for line in told.stdout.splitlines()]
    assert [entry["offset"] for entry in entries] == [0, 1, 2]
    assert {entry["key"] for entry in entries} == {"main:••••234"}
    assert entries[0]["record"] == {"unreadable": "of a version to come"}
    told = await asyncio.to_thread(here, "tail", "conversations", "--limit", "1", "--config", config)
    assert len(told.stdout.splitlines()) == 1
    told = await asyncio.to_thread(here, "tail", "nothing", "--config", config)
    assert (told.returncode, "no log 'nothing'; there are accounts, control, conversations" in said(told)) == (2, True)
    told = await asyncio.to_thread(here, "deadletters", "show", "0/0", "--config", config)
    assert (told.returncode, "no dead letter at 0/0" in said(told)) == (4, True)
