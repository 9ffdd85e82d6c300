"""`depesche route explain` and `route test`: what an operator and a brand's CI see of the routes."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from click.testing import CliRunner, Result

from broker.cli import main

DEPLOY = Path(__file__).parent.parent / "deploy"
WEBHOOKS = Path(__file__).parent / "wire" / "webhooks"
TUESDAY_NOON = "2026-11-24T12:00:00+01:00"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The annotated example without one of its secrets, as a brand's CI has it."""
    monkeypatch.delenv("DEPESCHE_GRAPH_TOKEN", raising=False)
    shutil.copy(DEPLOY / "depesche.toml", tmp_path / "depesche.toml")
    return tmp_path / "depesche.toml"


def run(*words: str | Path, given: bytes | None = None) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words], input=given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def explained(config: Path, message: str | Path, *more: str, given: bytes | None = None) -> list[dict[str, Any]]:
    """What `explain --json` says, an object for each item."""
    told = run("route", "explain", message, "--config", config, "--json", "--reveal", *more, given=given)
    assert told.exit_code == 0, told.output
    return [json.loads(line) for line in told.stdout.splitlines()]


def written(folder: Path, *cases: dict[str, Any]) -> Path:
    """Write a file of cases."""
    file = folder / "cases.toml"
    file.write_text(tomlkit.dumps({"cases": list(cases)}))
    return file


def test_an_explanation_names_each_route_and_what_kept_it_from_taking(config: Path) -> None:
    """In the words of the configuration, with what was found instead, and no phone number in full."""
    told = run("route", "explain", WEBHOOKS / "in_text.json", "--config", config, "--at", TUESDAY_NOON)
    assert told.exit_code == 0
    lines = [line.strip() for line in told.stdout.splitlines()]
    assert lines[0] == "message of type text from ••••234 to 106540352242922, received 2026-11-24T11:00:00.000Z"
    assert lines[1] == "assumed: not the first message, held by bot, language not known"
    assert "1  after-hours: not taken" in lines
    assert "NO   closed: office (found open at Tue 2026-11-24 12:00 CET)" in lines
    assert "NO   keywords: order, delivery (found 'Does it come in another color?')" in lines
    assert "6  everything-else: taken" in lines
    assert lines[-1] == "=> sinks: assistant"
    assert set(re.findall(r"\d{7,}", told.stdout)) == {"106540352242922"}, "configured, and what one debugs by"


def test_an_explanation_says_what_follows_and_what_was_never_asked(config: Path) -> None:
    """Reply, tags and holder are decisions, too; rules behind the last were not asked."""
    night = "2026-11-24T23:00:00+01:00"
    message = json.dumps({"type": "text", "text": {"body": "Let me talk to a human"}}).encode()
    told = run("route", "explain", "-", "--config", config, "--at", night, given=message)
    assert told.exit_code == 0, told.output
    for line in (
        "1  after-hours: taken, continues",
        "2  person-please: taken",
        "3  german: not reached",
        "=> sinks: orders",
        "tags: after-hours",
        "reply of the broker's own: that of after-hours",
        "holder: orders",
    ):
        assert line in [shown.strip() for shown in told.stdout.splitlines()]
    (again,) = explained(config, "-", "--at", night, "--holder", "orders", given=message)
    assert again["sinks"] == ["assistant"], "it is with people already"


def test_a_sample_may_be_a_body_a_message_or_a_record(config: Path) -> None:
    """Whatever an operator has at hand: Meta's documentation, a log, one message."""
    body = json.loads((WEBHOOKS / "in_text.json").read_text())
    message = body["entry"][0]["changes"][0]["value"]["messages"][0]
    record = {"log": "conversations", "record": {"type": "item", "received_at": 1_795_518_000_000, "body": body}}
    seen = [
        explained(config, "-", "--at", TUESDAY_NOON, given=json.dumps(sample).encode())[0]
        for sample in (body, message, record)
    ]
    assert seen[0] == seen[1] == seen[2]
    assert seen[2]["received_at"] == "2026-11-24T11:00:00.000Z", "a record brings its own"


def test_a_body_of_many_is_explained_item_by_item(config: Path) -> None:
    """As the receiver takes it apart."""
    found = explained(config, WEBHOOKS / "batch_multi_entry_multi_change.json")
    assert len(found) > 1
    assert len({each["number"] for each in found} | {each["what"] for each in found}) > 2


def test_an_update_of_an_account_asks_no_route(config: Path) -> None:
    """It goes to sinks that ask for such, which is a sink's setting."""
    update = WEBHOOKS / "account_review_update.json"
    told = run("route", "explain", update, "--config", config)
    assert told.exit_code == 0
    assert "no route is asked: it has no metadata" in told.stdout
    assert "=> sinks: none" in told.stdout
    tree = tomllib.loads(config.read_text())
    tree["sinks"][1]["account_updates"] = True
    config.write_text(tomlkit.dumps(tree))
    (found,) = explained(config, update)
    assert (found["sinks"], found["routes"]) == (["orders"], [])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"{", "is not JSON"),
        (b"[]", "is no webhook body (`entry`), no message (`type`) and no record (`record`)"),
        (b'{"record":{"type":"send"}}', "is no item of a webhook"),
        (b'{"entry":5}', "would be a dead letter"),
    ],
)
def test_what_is_no_sample_is_wrong_usage(config: Path, given: bytes, said: str) -> None:
    """With what it should have been."""
    told = run("route", "explain", "-", "--config", config, given=given)
    assert (told.exit_code, said in told.stderr) == (2, True), told.stderr
    assert told.stderr.startswith("depesche: -: ")


def test_a_sample_for_a_number_nobody_configured_is_wrong_usage(config: Path) -> None:
    """It would only meet rules that name no number, which is a surprise."""
    told = run("route", "explain", "-", "--number", "5", "--config", config, given=b'{"type":"text"}')
    assert told.exit_code == 2
    assert "number '5': is not configured; there are 106540352242922, 106540352242955" in told.stderr
    told = run("route", "explain", config.parent / "none.json", "--config", config)
    assert (told.exit_code, "none.json: cannot be read (No such file" in told.stderr) == (2, True)


def test_a_customers_text_does_not_steer_the_terminal(config: Path) -> None:
    """It is shown in somebody's shell."""
    message = json.dumps({"type": "text", "text": {"body": "\x1b[2J\u202eevil"}}).encode()
    told = run("route", "explain", "-", "--config", config, given=message)
    assert told.exit_code == 0
    assert "\x1b" not in told.stdout
    assert "\u202e" not in told.stdout
    assert "x1b[2J" in told.stdout


def test_the_cases_of_the_example_are_right(config: Path) -> None:
    """They are what a brand copies, and they hold the example to what it says."""
    told = run("route", "test", DEPLOY / "route-cases.toml", "--config", config, "--all")
    assert told.exit_code == 0, told.output
    cases = tomllib.loads((DEPLOY / "route-cases.toml").read_text())["cases"]
    assert told.stdout.splitlines() == [*(f"right  {case['name']}" for case in cases), f"{len(cases)} cases, 0 wrong"]


def test_a_case_that_is_wrong_shows_what_was_expected_what_came_and_why(config: Path) -> None:
    """Exit code 4, so that a brand's CI stops; and enough to mend the route without trying again."""
    right = {"name": "right", "text": "hello", "expect": {"sinks": ["assistant"]}}
    wrong = {
        "name": "a refund",
        "text": "I want a refund",
        "at": "2026-11-24T12:00:00+01:00",
        "expect": {"sinks": ["orders"], "tags": ["vip"], "reply": "after-hours", "routes": ["everything-else"]},
    }
    told = run("route", "test", written(config.parent, right, wrong), "--config", config)
    assert told.exit_code == 4
    lines = [line.strip() for line in told.stdout.splitlines()]
    assert lines == [
        "WRONG  a refund",
        "sinks     expected  orders",
        "got       assistant",
        "tags      expected  vip",
        "got       none",
        "reply     expected  after-hours",
        "got       none",
        "taken by everything-else",
        "not by person-please: regex wants '(speak|talk) (to|with) (a |an )?(person|agent|human)', found "
        "'I want a refund'",
        "not by orders-by-word: keywords wants order, delivery, found 'I want a refund'",
        "not by orders-by-button: payloads wants order:*, found nothing was tapped",
        "2 cases, 1 wrong",
    ]


def test_a_case_may_be_a_sample_beside_it_and_say_what_is_known(config: Path) -> None:
    """A webhook that surprised somebody once stays as a case."""
    shutil.copy(WEBHOOKS / "in_image.json", config.parent / "image.json")
    cases = written(
        config.parent,
        {"name": "a", "file": "image.json", "expect": {"sinks": ["assistant"], "tags": []}},
        {"name": "b", "text": "talk to a human", "holder": "orders", "expect": {"routes": ["everything-else"]}},
        {"name": "c", "payload": "order:1", "number": "106540352242955", "expect": {"holder": "", "sinks": ["orders"]}},
    )
    told = run("route", "test", cases, "--config", config)
    assert (told.exit_code, told.stdout) == (0, "3 cases, 0 wrong\n")


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ({"name": "x", "expect": {"sinks": []}}, "x: name exactly one of file, message, and text or payload"),
        ({"name": "x", "text": "a", "file": "b", "expect": {"sinks": []}}, "x: name exactly one of file, message"),
        ({"name": "x", "text": "a", "expect": {}}, "x: expects nothing"),
        ({"name": "x", "text": "a"}, "cases[0].expect (of 'x'): is missing; must be a table"),
        (
            {"name": "x", "text": "a", "expect": {"sink": ["a"]}},
            "cases.toml: cases[0].expect.sink: no such setting; did you mean 'sinks'?",
        ),
        ({"name": "x", "expct": {}}, "cases.toml: cases[0].expct (of 'x'): no such setting; did you mean 'expect'?"),
        ({"name": "x", "at": "noon", "expect": {}}, "cases[0].at = 'noon': must be a date and time with its zone"),
        ({"name": "x", "text": "a", "at": "2026-11-24T12:00:00", "expect": {"tags": []}}, "needs a zone"),
        ({"name": "x", "file": "none.json", "expect": {"tags": []}}, "none.json: cannot be read"),
        ({"name": "x", "text": "a", "number": "5", "expect": {"tags": []}}, "number '5': is not configured"),
    ],
)
def test_a_case_that_cannot_be_meant_is_wrong_usage(config: Path, case: dict[str, Any], said: str) -> None:
    """A case that tests nothing must not be counted as right."""
    told = run("route", "test", written(config.parent, case), "--config", config)
    assert told.exit_code == 2, told.output
    assert said in told.stderr
    assert "Traceback" not in told.output


def test_a_case_is_about_one_item(config: Path) -> None:
    """Of two, which one was meant?"""
    shutil.copy(WEBHOOKS / "batch_multi_entry_multi_change.json", config.parent / "many.json")
    cases = written(config.parent, {"name": "x", "file": "many.json", "expect": {"tags": []}})
    told = run("route", "test", cases, "--config", config)
    assert told.exit_code == 2
    assert re.search(r"x: many\.json has \d+ items; a case is about one", told.stderr)


def test_an_explanation_says_how_events_are_joined_by_the_route_or_by_the_sink(config: Path) -> None:
    """Whoever asks why a bot waits finds the figure that holds, whichever place it stands at."""
    order = json.dumps({"type": "text", "text": {"body": "Where is my order?"}}).encode()
    told = run("route", "explain", "-", "--config", config, "--at", TUESDAY_NOON, given=order)
    assert [line.strip() for line in told.stdout.splitlines()][-1] == (
        "debounce at orders: joined after a silence of 2000 ms, at most 10, the first waits at most 8000 ms"
    )
    tree = tomlkit.parse(config.read_text())
    tree["sinks"][1]["debounce_ms"] = 700
    tree["routes"][4]["then"]["debounce_ms"] = 0
    config.write_text(tomlkit.dumps(tree))
    word = json.dumps({"type": "text", "text": {"body": "Can I talk to a person"}}).encode()
    (by_sink,) = explained(config, "-", "--at", TUESDAY_NOON, given=word)
    assert by_sink["debounce"] == {
        "orders": {"debounce_ms": 700, "debounce_events_max": 20, "debounce_wait_ms_max": 10_000}
    }
    tap = {"type": "button", "button": {"text": "Status", "payload": "order:1"}}
    (not_at_all,) = explained(config, "-", "--at", TUESDAY_NOON, given=json.dumps(tap).encode())
    assert not_at_all["debounce"] == {"orders": None}
    shown = run("route", "explain", "-", "--config", config, given=json.dumps(tap).encode()).stdout
    assert "debounce at orders: none, each goes at once" in shown
