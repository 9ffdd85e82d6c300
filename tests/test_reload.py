"""A configuration that changes while a process runs: taken whole by every part, or by none."""

from __future__ import annotations

import asyncio
import os
import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from broker import compose, metrics, reload, trial
from broker.clock import SystemClock
from broker.config import Config, load, parse
from broker.errors import Misconfigured
from broker.reload import Reloader, Take, digest, needs_restart
from tests.actors.bots import until
from workers.customer import CustomerStage

Tree = dict[str, Any]
QUICK_S = 0.02


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A trial's configuration, with all its secrets."""
    return trial.prepare(tmp_path / "data", trial.Ports())


class Part:
    """A part of a process: what it has taken, and whether it can."""

    def __init__(self) -> None:
        self.taken: list[Config] = []
        self.prepared = 0
        self.refuses = ""

    def prepare(self, config: Config) -> Take:
        self.prepared += 1
        if self.refuses:
            raise Misconfigured(self.refuses)
        return lambda: self.taken.append(config)


def edit(file: Path, change: Callable[[Tree], object]) -> None:
    """Change a configuration as deployments do: another file in its place."""
    tree = tomllib.loads(file.read_text())
    change(tree)
    beside = file.with_suffix(".new")
    beside.write_text(tomlkit.dumps(tree))
    beside.replace(file)


def kept(file: Path) -> tuple[str, Path]:
    """Return what a file says, and a copy of it."""
    text, copy = file.read_text(), file.with_suffix(".copy")
    copy.write_text(text)
    return text, copy


def add_route(tree: Tree) -> None:
    tree["routes"].insert(0, {"name": "news", "when": {"keywords": ["news"]}, "then": {"sinks": ["orders"]}})


def made(file: Path, *parts: Part) -> Reloader:
    reloader = Reloader(load(file), lambda: load(file), SystemClock())
    for part in parts:
        reloader.add(part.prepare)
    return reloader


def write_on(file: Path, text: str, number: int) -> None:
    """Write a file in place, a little longer than it was."""
    file.write_text(f'{text}\n[[keys]]\nname = "k{number}"\nsha256 = "{number:064x}"\nnumbers = ["*"]\n')


def value(name: str, **labels: str) -> float:
    found = metrics.REGISTRY.get_sample_value(f"depesche_{name}", labels)
    return 0.0 if found is None else found


async def test_what_changed_is_taken_by_every_part_at_once(file: Path) -> None:
    """Routes of one generation with keys of another would be a configuration nobody wrote."""
    one, other = Part(), Part()
    reloader = made(file, one, other)
    before = digest(reloader.config.settings)
    assert await reloader.reload()
    assert (one.taken, reloader.generation) == ([], 1), "the same again is no news"
    edit(file, add_route)
    assert await reloader.reload()
    assert [config.settings.routes[0].name for config in one.taken] == ["news"]
    assert one.taken == other.taken
    assert reloader.generation == value("config_generation") == 2
    assert value("config_reload_ok") == 1
    after = digest(reloader.config.settings)
    assert after != before
    assert (value("config_info", digest=before), value("config_info", digest=after)) == (0, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: tree["routes"][0]["then"].update(sinks=["nowhere"]), "routes[0].then.sinks[0] = 'nowhere'"),
        (lambda tree: tree["log"].update(slots=16), "log.slots = 16, was 8: takes a restart"),
        (lambda tree: tree["log"].update(engine="kafka"), "log.engine = 'kafka', was 'embedded': takes a restart"),
        (lambda tree: tree["gateway"].update(port=1), "gateway.port = 1, was 8081: takes a restart"),
        (lambda tree: tree["numbers"][0].update(slot=7), "slot = 7, was"),
        (lambda tree: tree["sinks"][0].update(partitions=9), "sinks assistant: partitions = 9, was"),
    ],
)
async def test_what_is_wrong_or_takes_a_restart_changes_nothing(
    file: Path, change: Callable[[Tree], object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also what is right beside it: a half of a configuration was never tested by anybody."""
    part = Part()
    reloader = made(file, part)
    refused = value("config_reloads_total", result="refused")

    def both(tree: Tree) -> None:
        add_route(tree)
        if "then" in said:
            tree["routes"].pop(0)
        change(tree)

    edit(file, both)
    before = reloader.config
    assert not await reloader.reload()
    assert not await reloader.reload()
    assert part.taken == []
    assert reloader.config is before
    assert (value("config_reload_ok"), reloader.generation) == (0, 1)
    assert value("config_reloads_total", result="refused") == refused + 1, "once for each text"
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [said in line for line in lines] == [True], lines


async def test_a_part_that_cannot_prepare_keeps_all_from_taking(file: Path) -> None:
    """Whatever the checks let through: nobody has taken anything before everybody could."""
    one, other = Part(), Part()
    other.refuses = "sinks.orders.secret: no"
    reloader = made(file, one, other)
    edit(file, add_route)
    assert not await reloader.reload()
    assert (one.prepared, one.taken) == (1, [])
    other.refuses = ""
    assert await reloader.reload()
    assert len(one.taken) == len(other.taken) == 1
    assert value("config_reload_ok") == 1


async def test_a_crash_while_reading_is_refused_too(file: Path) -> None:
    """Our own fault must not end the watch, nor leave a half of it in force."""
    calls = 0

    def read() -> Config:
        nonlocal calls
        calls += 1
        raise RuntimeError("a bug")

    part = Part()
    reloader = Reloader(load(file), read, SystemClock())
    reloader.add(part.prepare)
    assert not await reloader.reload()
    assert (calls, part.taken, value("config_reload_ok")) == (1, [], 0)


async def test_a_crash_while_taking_is_said_and_takes_the_process_out_of_service(file: Path) -> None:
    """It cannot happen; if it does, half of a configuration is in force, and nobody may believe otherwise."""

    def crash(config: Config) -> Take:
        def take() -> None:
            raise RuntimeError("a bug")

        return take

    reloader = made(file)
    reloader.add(crash)
    edit(file, add_route)
    assert not await reloader.reload()
    assert reloader.failure == "a configuration is in force in some parts only: restart this process"
    assert value("config_reload_ok") == 0
    assert not await reloader.reload()


async def test_files_are_noticed_by_themselves_and_secrets_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody sends a signal into a pod whose Secret was rotated."""
    monkeypatch.setattr(reload, "LOOK_S", QUICK_S)
    part = Part()
    reloader = made(file, part)
    await reloader.start()
    try:
        edit(file, add_route)
        await until(lambda: len(part.taken) == 1)
        secret = file.parent / "secrets" / "app-secret"
        link, real = secret, secret.with_name("app-secret.2")
        real.write_text("another secret")
        link.unlink()
        link.symlink_to(real)  # as Kubernetes does
        await until(lambda: len(part.taken) == 2)
        assert part.taken[1].app_secrets()["trial"][0].reveal() == "another secret"
        assert part.taken[1].settings == part.taken[0].settings
    finally:
        await reloader.stop()


async def test_a_file_that_is_being_written_is_left_alone_until_it_rests(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a file may well be valid TOML: one whose last routes are missing."""
    monkeypatch.setattr(reload, "LOOK_S", QUICK_S)
    part = Part()
    reloader = made(file, part)
    await reloader.start()
    try:
        await asyncio.sleep(5 * QUICK_S)
        text, original = kept(file)
        for number in range(25):
            write_on(file, text, number)
            await asyncio.sleep(QUICK_S / 2)
        assert part.prepared == 0
        assert value("config_reload_ok") == 1
        original.replace(file)
        edit(file, add_route)
        await until(lambda: len(part.taken) == 1)
    finally:
        await reloader.stop()


async def test_a_signal_does_not_wait_for_the_next_look(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator who sends SIGHUP looks at the log at once."""
    monkeypatch.setattr(reload, "LOOK_S", 60.0)
    part = Part()
    reloader = made(file, part)
    await reloader.start()
    try:
        edit(file, add_route)
        reloader.hurry()
        await until(lambda: len(part.taken) == 1)
    finally:
        await reloader.stop()


async def test_what_was_wrong_is_read_again_though_no_known_file_changes(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mending may be in a secret that only the new configuration names."""
    monkeypatch.setattr(reload, "LOOK_S", QUICK_S)
    monkeypatch.setattr(reload, "AGAIN_S", 5 * QUICK_S)
    part = Part()
    reloader = made(file, part)
    await reloader.start()
    try:
        edit(file, lambda tree: tree["sinks"][1].update(previous_secret={"file": "secrets/later"}))
        await until(lambda: value("config_reload_ok") == 0)
        (file.parent / "secrets" / "later").write_text("whsec_YQ==")
        await until(lambda: len(part.taken) == 1)
        assert value("config_reload_ok") == 1
    finally:
        await reloader.stop()


def test_what_is_taken_while_running_is_what_a_start_would_take(file: Path) -> None:
    """A customer stage that forgot a secret with each reload would show bots Meta's own urls from then on."""
    config = load(file)
    engine = compose.engine_of(config, SystemClock(), random.Random(1))
    stage = CustomerStage(engine, compose.context_from(config), SystemClock(), random.Random(1))
    started = stage.context
    edit(file, add_route)
    after = load(file)
    compose._take_context(stage, after)()
    assert stage.context.numbers == started.numbers
    assert all(number.media_secret for number in stage.context.numbers.values())
    assert [rule.name for rule in stage.context.rules] == ["news", *(rule.name for rule in started.rules)]


def test_what_takes_a_restart_is_named_setting_by_setting(file: Path) -> None:
    """All of it, so that an operator knows what to take out to have the rest now."""
    tree = tomllib.loads(file.read_text())
    before = parse(tree)
    tree["log"]["partitions"] = 12
    tree["sender"]["graph_version"] = "v27.0"
    tree["sinks"].append({"name": "extra", "kind": "meta", "url": "https://x.example/", "secret": {"env": "X"}})
    removed = tree["numbers"].pop()["phone_number_id"]
    for table in (tree["keys"], [route["when"] for route in tree["routes"] if "when" in route]):
        for each in table:
            if "numbers" in each:
                each["numbers"] = [name for name in each["numbers"] if name != removed] or ["106540352242922"]
    lines = list(needs_restart(before, parse(tree)))
    starts = [line.partition(":")[0] if line.startswith(("num", "sink")) else line.split(",")[0] for line in lines]
    assert starts[0] == "log.partitions = 12"
    assert any(line.startswith("sender.graph_version = 'v27.0', was ") for line in lines)
    assert f"numbers: {removed} went" in "\n".join(lines)
    assert "sinks: extra came" in "\n".join(lines)
    assert len(lines) == 4, lines
    assert list(needs_restart(before, before)) == []


def test_what_may_change_while_running_does(file: Path) -> None:
    """Tokens, tiers, urls, secrets, keys, routes, hours, doubt: what operators change every week."""
    tree = tomllib.loads(file.read_text())
    before = parse(tree)
    add_route(tree)
    tree["numbers"][0] |= {"throughput_mps": 1_000, "token": {"env": "T"}, "display_phone_number": "1"}
    tree["sinks"][0] |= {"url": "https://elsewhere.example/", "timeout_s": 3.0, "in_flight_max": 5}
    tree["hours"] = [{"name": "office", "time_zone": "UTC", "open": ["mon 09:00-10:00"]}]
    tree["customer"] = {"doubt": {"reply_s": 5.0}}
    tree["keys"] = []
    tree["apps"][0]["secrets"].insert(0, {"env": "NEXT"})
    assert list(needs_restart(before, parse(tree))) == []


def test_stamps_tell_a_file_from_its_successor(tmp_path: Path) -> None:
    """Same size, same second: another file all the same."""
    file = tmp_path / "x"
    assert reload.stamps_of([file]) == (None,)
    file.write_text("aa")
    first = reload.stamps_of([file])
    beside = tmp_path / "y"
    beside.write_text("bb")
    at = file.stat().st_mtime_ns
    os.utime(beside, ns=(at, at))
    beside.replace(file)
    assert reload.stamps_of([file]) != first
