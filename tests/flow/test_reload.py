"""A running process takes another configuration, or says why not, and answers all the while."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from broker.trial import prepare
from tests.flow.trial import Trial

SEEN_S_MAX = 15.0


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    """A trial in an empty folder, not started."""
    with Trial(tmp_path / "data") as one:
        yield one


def rewrite(trial: Trial, tree: dict[str, Any]) -> None:
    """Put another configuration in the place of the present one."""
    beside = trial.config.with_suffix(".new")
    beside.write_text(tomlkit.dumps(tree))
    beside.replace(trial.config)


def metric(trial: Trial, name: str) -> float:
    """Return a metric without labels."""
    text = trial.call(trial.ports.admin, "GET", "/metrics")[1].decode()
    found = re.search(rf"^depesche_{name} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def test_a_terminal_that_is_closed_ends_what_was_started_in_it(trial: Trial) -> None:
    """SIGHUP means two things; a trial whose window was closed must not live on with its ports."""
    prepare(trial.folder, trial.ports)
    words = [sys.executable, "-m", "broker.cli", "run", "--data", str(trial.folder)]
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, words)
    said = bytearray()
    try:
        os.set_blocking(terminal, False)
        deadline = time.monotonic() + SEEN_S_MAX
        while b"Depesche is running" not in said:
            assert time.monotonic() < deadline, said.decode(errors="replace")
            with contextlib.suppress(BlockingIOError):
                said += os.read(terminal, 65_536)
            time.sleep(0.02)
        os.kill(child, signal.SIGHUP)  # by somebody else: the terminal is there
        time.sleep(0.5)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        os.close(terminal)
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < deadline, "it lives on"
            time.sleep(0.02)
        child = 0
        assert os.WIFEXITED(ended[1])
        assert os.WEXITSTATUS(ended[1]) == 0
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_routes_are_taken_without_a_restart_and_a_wrong_file_changes_nothing(trial: Trial) -> None:
    """An operator edits a file: by itself or by a signal it is in force, whole, or refused with the setting's name."""
    trial.start_and_wait()
    tree = tomllib.loads(trial.config.read_text())
    assert (metric(trial, "config_generation"), metric(trial, "config_reload_ok")) == (1, 1)

    reply = {"name": "news", "when": {"keywords": ["news"]}, "then": {"reply": {"text": "Nothing new.", "every_s": 60}}}
    right = {**tree, "routes": [reply, *tree["routes"]]}
    rewrite(trial, right)
    trial.until(lambda: metric(trial, "config_generation") == 2, SEEN_S_MAX)
    trial.write("any news?")
    bubbles = trial.until(trial.answers, SEEN_S_MAX)
    assert bubbles[0]["body"] == {"body": "Nothing new."}

    rewrite(trial, {**right, "routes": tree["routes"], "log": {**tree["log"], "slots": 16}})
    assert trial.process is not None
    trial.process.send_signal(signal.SIGHUP)
    trial.until(lambda: metric(trial, "config_reload_ok") == 0, SEEN_S_MAX)
    assert "log.slots = 16, was 8: takes a restart; nothing of this configuration is in force" in trial.said()
    assert metric(trial, "config_generation") == 2
    trial.write("hello")
    answered = trial.until(lambda: bubbles if len(bubbles := trial.answers()) == 2 else None, SEEN_S_MAX)
    assert "sample assistant" in answered[1]["body"]["body"]["text"]

    rewrite(trial, right)
    trial.process.send_signal(signal.SIGHUP)
    trial.until(lambda: metric(trial, "config_reload_ok") == 1, SEEN_S_MAX)
    assert metric(trial, "config_generation") == 2, "it is what was in force all the while"
    trial.interrupt()
    assert trial.ended()[0] == 0
    assert "Traceback" not in trial.said()
