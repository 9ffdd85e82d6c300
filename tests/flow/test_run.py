"""`depesche run` as a newcomer meets it: quick to answer, quick to stop, and everything is there the next time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.flow.trial import ADA, ASSISTANT, Trial, depesche

FIRST_ANSWER_S_MAX = 5.0
STOP_S_MAX = 5.0
ANSWER_S_MAX = 15.0
AT_ONCE_S_MAX = 1.0


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    """A trial in an empty folder, not started."""
    with Trial(tmp_path / "data") as one:
        yield one


def records(trial: Trial, log: str) -> list[object]:
    """Return the records of a log, whole."""
    told = depesche("tail", log, "--json", "--reveal", "--config", trial.config)
    assert told.returncode == 0, told.stderr
    return [json.loads(line) for line in told.stdout.splitlines()]


def read_answers(trial: Trial, count: int) -> list[str]:
    """Open the chat until so many answers were read; return their ids."""

    def look() -> list[str]:
        trial.sandbox("POST", "read", {"number": ASSISTANT, "person": ADA})
        answers = trial.answers()
        return [a["id"] for a in answers] if [a.get("status") for a in answers] == ["read"] * count else []

    return trial.until(look, ANSWER_S_MAX)


def test_the_first_answer_comes_within_five_seconds_and_a_restart_keeps_everything(trial: Trial) -> None:
    """A newcomer judges within seconds, and trusts what survives Ctrl-C."""
    trial.start()
    trial.until(lambda: trial.write("hello"), FIRST_ANSWER_S_MAX)
    first = trial.until(trial.answers, FIRST_ANSWER_S_MAX)
    seconds = time.monotonic() - trial.began_at
    assert "sample assistant" in first[0]["body"]["body"]["text"]
    assert seconds < FIRST_ANSWER_S_MAX
    read_answers(trial, 1)
    before = trial.chat()

    trial.interrupt()
    code, stopped_s = trial.ended()
    assert (code, stopped_s < STOP_S_MAX) == (0, True), (stopped_s, trial.said())
    assert "Traceback" not in trial.said()
    assert "exception" not in trial.said().lower()
    log_before = records(trial, "conversations")
    assert len(log_before) >= 3, "the message, the bot's answer and what came of it"

    trial.start_and_wait()
    assert trial.chat()["window_closes_at"] == before["window_closes_at"] > 0
    assert trial.chat()["bubbles"] == before["bubbles"]
    trial.write("what are your hours?")
    ids = read_answers(trial, 2)
    assert ids[0] == first[0]["id"], "what was answered before the stop is not answered again"
    log_after = records(trial, "conversations")
    assert [entry for entry in log_after if entry in log_before] == log_before
    assert len(log_after) > len(log_before)


def test_a_call_under_way_does_not_hold_up_the_end(trial: Trial) -> None:
    """Meta may be silent for half a minute; whoever presses Ctrl-C does not wait for that."""
    trial.start_and_wait()
    _begin_a_silent_call(trial)
    trial.interrupt()
    code, stopped_s = trial.ended()
    assert (code, stopped_s < STOP_S_MAX) == (0, True), (stopped_s, trial.said())


def test_a_second_interrupt_ends_the_process_at_once(trial: Trial) -> None:
    """The last word is the operator's."""
    trial.start_and_wait()
    _begin_a_silent_call(trial)
    trial.interrupt()
    trial.until(lambda: "INFO depesche: stopping" in trial.said(), STOP_S_MAX)
    trial.interrupt()
    code, stopped_s = trial.ended()
    assert (code, stopped_s < AT_ONCE_S_MAX) == (130, True), (stopped_s, trial.said())


def _begin_a_silent_call(trial: Trial) -> None:
    trial.sandbox("PUT", "faults/silence", {"rate": 1.0})
    trial.write("hello")
    trial.until(lambda: trial.sandbox("GET", "faults")["struck"]["silence"] > 0, ANSWER_S_MAX)


def test_a_customer_s_picture_is_fetched_from_us_with_the_bot_s_own_key(trial: Trial) -> None:
    """From the customer's phone to the bot's disk: the bot never learns where Meta is, nor Meta the bot's key."""
    trial.start_and_wait()
    picture = bytes(range(256)) * 400
    place = f"/sandbox/media?number={ASSISTANT}&filename=a.png"
    status, kept = trial.call(trial.ports.sandbox, "POST", place, picture, {"Content-Type": "image/png"})
    assert status == 200
    message = {"number": ASSISTANT, "person": ADA, "type": "image", "content": json.loads(kept)}
    trial.sandbox("POST", "messages", message)
    event = trial.until(lambda: _told(trial, "image"), ANSWER_S_MAX)
    url = urlsplit(event["image"]["url"])
    assert url.port == trial.ports.gateway
    key = {"Authorization": "Bearer " + (trial.folder / "secrets" / "assistant-key").read_text().strip()}
    assert trial.call(trial.ports.gateway, "GET", url.path, headers=key) == (200, picture)
    assert trial.call(trial.ports.gateway, "GET", url.path)[0] == 401
    status, node = trial.call(trial.ports.gateway, "GET", f"/v26.0/{event['image']['id']}", headers=key)
    fresh = urlsplit(json.loads(node)["url"])
    assert trial.call(trial.ports.gateway, "GET", fresh.path, headers=key) == (200, picture)


def _told(trial: Trial, kind: str) -> Any:
    """Return the message of a kind that the assistant was told of, None when there is none yet."""
    for record in records(trial, "deliveries.assistant"):
        for change in _changes(record):
            for message in change["value"].get("messages", []):
                if message["type"] == kind:
                    return message
    return None


def _changes(record: Any) -> Iterator[Any]:
    body = record["record"]["body"]
    for entry in (json.loads(body) if isinstance(body, str) else body)["entry"]:
        yield from entry["changes"]


def test_the_admin_port_serves_probes_and_metrics_that_promtool_accepts(trial: Trial) -> None:
    """What Kubernetes and Prometheus see; a bad exposition is dropped whole by the scraper."""
    trial.start_and_wait()
    trial.write("hello")
    trial.until(trial.answers, ANSWER_S_MAX)
    for path in ("/livez", "/readyz", "/startupz"):
        assert trial.call(trial.ports.admin, "GET", path) == (200, b"ok\n"), path
    status, exposition = trial.call(trial.ports.admin, "GET", "/metrics")
    assert status == 200
    text = exposition.decode()
    assert 'depesche_webhook_requests_total{result="accepted"}' in text
    assert ADA not in text, "a customer's number is no label"
    promtool = shutil.which("promtool")
    if promtool is None:
        reason = "no promtool on PATH (Debian: prometheus)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=exposition, capture_output=True, timeout=30, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
