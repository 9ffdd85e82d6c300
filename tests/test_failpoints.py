"""Failpoints: a place for each step that a crash could tear, and nothing without the variable."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from broker import failpoints
from broker.errors import Misconfigured

ROOT = Path(__file__).parent.parent

PASS_THRICE = """
from broker import failpoints
failpoints.arm({text!r})
for number in range(3):
    print(number, flush=True)
    failpoints.reached("gateway.appended")
"""


def run(text: str) -> subprocess.Popen[bytes]:
    """A process that comes to one place three times, and counts."""
    return subprocess.Popen([sys.executable, "-c", PASS_THRICE.format(text=text)], stdout=subprocess.PIPE, cwd=ROOT)


@pytest.mark.parametrize(
    ("text", "passes", "code"), [("gateway.appended:2", 2, -9), ("receiver.read:1", 3, 0), ("", 3, 0)]
)
def test_a_process_dies_where_and_when_it_was_told(text: str, passes: int, code: int) -> None:
    """At the place, at that time of passing, and nowhere else."""
    process = run(text)
    said, _ = process.communicate(timeout=30)
    assert (len(said.split()), process.returncode) == (passes, code)


def test_a_frozen_process_goes_on_when_it_is_let() -> None:
    """It believes that no time has passed: what a stopped machine does to an owner."""
    process = run("gateway.appended:1:freeze")
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate(timeout=30)
        assert len(said.split()) == 3
    finally:
        process.kill()


@pytest.mark.parametrize("text", ["reciever.read:1", "receiver.read", "receiver.read:0", "receiver.read:1:sleep"])
def test_a_wrong_failpoint_is_refused_and_says_what_would_be_right(text: str) -> None:
    """A test that arms nothing would pass for ever."""
    with pytest.raises(Misconfigured, match=r"DEPESCHE_FAILPOINT: .*receiver\.read"):
        failpoints.arm(text)


def test_a_command_does_not_begin_with_a_wrong_failpoint() -> None:
    """It ends as with any wrong setting: exit code 2, and what would be right."""
    environment = {**os.environ, failpoints.VARIABLE: "receiver.read"}
    command = [sys.executable, "-m", "broker.cli", "config", "check", "--config", "nowhere.toml"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "receiver.read:<count from 1>" in done.stderr


def test_every_point_stands_at_one_place_in_the_code() -> None:
    """A point that is nowhere, or a place that is no point, would make a test say nothing."""
    found: Counter[str] = Counter()
    for top in ("broker", "workers"):
        for path in (ROOT / top).rglob("*.py"):
            found.update(re.findall(r'failpoints\.reached(?:_soon)?\("([^"]+)"\)', path.read_text()))
    assert found == Counter(dict.fromkeys(failpoints.POINTS, 1))
