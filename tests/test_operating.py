"""What an operator does to a running broker: dead letters put back, sinks paused; on both engines.

A command is run as typed; the process it works on is a real one, or a real Kafka.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from broker import compose, trial
from broker.config import load, parse
from broker.log.catalogue import CONVERSATIONS, DEADLETTERS, catalogue, deliveries
from broker.log.contract import Draft
from schemas.records import DeadLetter, encode
from tests.flow.trial import ADA, Trial, free_base_port
from tests.kafka.engine import kafka_log
from tests.kafka.fixtures import KafkaForTests
from tests.test_cli import here, on_kafka, said

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


def shown(log: str, config: Path) -> list[dict[str, object]]:
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
    event = next(one for one in shown(deliveries("assistant"), config))
    assert isinstance(event["record"], dict)
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
    assert (future.returncode, future.stdout) == (0, "")


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
