"""What operators may ask for: paths, methods and parameters, read strictly."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core import control
from broker.core.control import (
    OPERATIONS,
    PAUSE,
    SINK,
    SINKS,
    Asked,
    Operation,
    Parameter,
    Slot,
    Wrong,
    is_control,
    read,
)
from broker.core.endpoints import read_path

LOOK = Operation(
    "look",
    "GET",
    ("look", SINK),
    "Look.",
    (
        Parameter("limit", "How many.", "count", 50),
        Parameter("word", "What.", "text", 5),
        Parameter("deep", "How.", "flag"),
        Parameter("at", "When.", "instant"),
        Parameter("last", "Which.", "letter"),
    ),
)


def asked(method: str, raw: str) -> Asked:
    found = read(method, raw)
    assert isinstance(found, Asked), found
    return found


def wrong(method: str, raw: str) -> Wrong:
    found = read(method, raw)
    assert isinstance(found, Wrong), found
    return found


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more operation, with a parameter of each kind."""
    monkeypatch.setattr(control, "OPERATIONS", (*OPERATIONS, LOOK))


def test_a_path_and_a_method_name_an_operation() -> None:
    """And nothing else does."""
    assert asked("GET", "/control/v1/sinks") == (SINKS, {}, {})
    assert asked("PUT", "/control/v1/sinks/my-bot/pause") == (PAUSE, {"name": "my-bot"}, {})
    assert asked("PUT", "/control/v1/sinks/my%2Dbot/pause").slots == {"name": "my-bot"}
    for path in ("", "/", "/v1", "/v2/sinks", "/v1/", "/v1/sinks/", "/v1//sinks", "/v1/sinks/a/b/pause", "/v1/Sinks"):
        refusal = wrong("GET", "/control" + path)
        assert (refusal.status, refusal.code, refusal.where) == (404, "not_found", "path")
        assert "/control/v1/sinks/{name}/pause" in refusal.message


def test_another_method_is_refused_with_those_that_would_be_right() -> None:
    """HEAD and OPTIONS too: nobody asks for control from a browser of others."""
    for method in ("POST", "HEAD", "OPTIONS", "DELETE", "get"):
        assert wrong(method, "/control/v1/sinks")[:2] == (405, "method_not_allowed")
    assert wrong("GET", "/control/v1/sinks/a/pause").allow == ("PUT",)


def test_what_is_for_operators_is_nothing_of_graphs() -> None:
    """The prefix names neither a version nor an id: a bot's call can never become an operator's, nor the reverse."""
    for path in ("/control", "/control/v1/sinks", "/control/x"):
        assert is_control(path)
        found = read_path(path)
        assert found is None or (found.version == "" and not found.node.isdigit())
    for path in ("/controls", "/v1/control", "/", "//control/v1/sinks", "/Control/v1", "/106540352242922/control"):
        assert not is_control(path)


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ("", {}),
        ("limit=1&word=a%20b&deep=true", {"limit": 1, "word": "a b", "deep": True}),
        ("limit=50&deep=false", {"limit": 50, "deep": False}),
        ("at=2026-03-01T12:00:00%2B01:00&last=0-17", {"at": 1_772_362_800_000, "last": "0-17"}),
        ("word=%C3%BC+%C3%BC", {"word": "ü ü"}),
    ],
)
def test_parameters_are_read(look: None, query: str, values: dict[str, object]) -> None:
    """By their types."""
    assert asked("GET", f"/control/v1/look/a?{query}").query == values


@pytest.mark.parametrize(
    ("query", "where", "said"),
    [
        ("limit=0", "query.limit", "'0': must be a whole number from 1 to 50"),
        ("limit=51", "query.limit", "from 1 to 50"),
        ("limit=-1", "query.limit", "from 1 to 50"),
        ("limit=" + "9" * 5_000, "query.limit", "…': must be a whole number"),
        ("limit=%D9%A3", "query.limit", "must be a whole number"),
        ("limit=", "query.limit", "must be a whole number"),
        ("word=", "query.word", "must be 1 to 5 printable characters"),
        ("word=abcdef", "query.word", "must be 1 to 5 printable characters"),
        ("word=%00", "query.word", "must be 1 to 5 printable characters"),
        ("deep=yes", "query.deep", "'yes': must be true or false"),
        ("deep=true&deep=true", "query.deep", "stands there twice"),
        ("at=2026-03-01", "query.at", "must be an instant with its zone, like 2026-03-01T12:00:00Z"),
        ("at=1700000000", "query.at", "must be an instant"),
        ("at=0001-01-01T00:00:00Z", "query.at", "must be an instant"),
        ("at=9999-12-31T23:59:59-23:59", "query.at", "must be an instant"),
        ("last=0/17", "query.last", "must be the id of a dead letter, like 0-17"),
        ("limti=1", "query", "there is no parameter 'limti'; there are limit, word, deep, at, last"),
        ("&".join(["deep=true"] * 40), "query", "more than 32 parameters"),
    ],
)
def test_a_parameter_that_is_not_right_is_refused_with_what_would_be(
    look: None, query: str, where: str, said: str
) -> None:
    """One that is passed over answers another question than was asked."""
    refusal = wrong("GET", f"/control/v1/look/a?{query}")
    assert (refusal.status, refusal.code, refusal.where) == (400, "invalid", where)
    assert said in refusal.message
    assert len(refusal.message) < 200
    assert refusal.message.isprintable()


@given(st.sampled_from(["GET", "PUT", "POST"]), st.text(max_size=60))
def test_whatever_is_asked_is_read_or_refused(method: str, rest: str) -> None:
    """Never a crash, and never more words than a line holds."""
    found = read(method, "/control/v1/" + rest)
    if isinstance(found, Wrong):
        assert found.status in (400, 404, 405)
        assert found.message.isprintable()
        assert len(found.message) < 1_000


def test_every_operation_has_a_name_a_path_and_words_of_its_own() -> None:
    """They become ids of a document and lines of a log."""
    assert len({each.name for each in OPERATIONS}) == len(OPERATIONS)
    assert len({(each.method, each.path) for each in OPERATIONS}) == len(OPERATIONS)
    for operation in OPERATIONS:
        assert operation.summary.endswith(".")
        assert operation.method != "GET" or not operation.is_change
        for slot in operation.path:
            if isinstance(slot, Slot):
                re.compile(slot.pattern)
