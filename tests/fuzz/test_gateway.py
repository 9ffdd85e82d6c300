"""Two fuzzers, a few seconds each, on a gateway with the real embedded log: no 500, and no answer that says nothing."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.actors.test_passthrough import gateway_to, sandbox
from tests.fuzz.guided import PLANTED, Choices, body_of
from tests.fuzz.program import guided, schemathesis

SCHEMATHESIS_S = 10
"""Its other phases are for `make fuzz`: they think for ten seconds before their first request."""
GUIDED_S = 5
PLANTED_S = 60
"""At most; it ends when it has found it."""


async def test_schemathesis_finds_nothing_the_document_does_not_say(tmp_path: Path) -> None:
    """No 500, no undocumented status, no body that is not as documented. Behind it is the sandbox."""
    async with sandbox() as meta, gateway_to(meta.platform.base_url, tmp_path / "log") as bot:
        code, text = await schemathesis(bot.url, tmp_path, SCHEMATHESIS_S, "--phases", "fuzzing", "--max-examples", "6")
    assert code == 0, text[-6_000:]
    cases = re.search(r"(\d+) generated", text)
    assert cases, text[-3_000:]
    assert int(cases[1]) > 0


async def test_schemathesis_finds_nothing_about_control_that_the_document_does_not_say(tmp_path: Path) -> None:
    """What an operator's script is built from is true: no 500, no status and no body it does not know."""
    async with sandbox() as meta, gateway_to(meta.platform.base_url, tmp_path / "log") as bot:
        options = ("--phases", "coverage,fuzzing", "--max-examples", "20")
        code, text = await schemathesis(bot.url, tmp_path, SCHEMATHESIS_S, *options, operator=True)
    assert code == 0, text[-6_000:]
    cases = re.search(r"(\d+) generated", text)
    assert cases, text[-3_000:]
    assert int(cases[1]) > 20


async def test_a_fuzzer_that_sees_which_lines_it_reaches_finds_no_crash(tmp_path: Path) -> None:
    """Atheris found in seconds what random bodies do not: a value that only one branch looks at."""
    code, text = await guided(tmp_path, GUIDED_S)
    assert code == 0, text[-6_000:]
    runs = re.search(r"stat::number_of_executed_units: +(\d+)", text)
    assert runs, text[-3_000:]
    assert int(runs[1]) > 100


async def test_it_finds_a_planted_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One value in one member of one type: a fuzzer that cannot find that proves nothing by its silence."""
    monkeypatch.setenv(PLANTED, "1")
    code, text = await guided(tmp_path, PLANTED_S)
    assert code not in (0, -1), text[-3_000:]
    assert "the planted bug" in text


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_the_changed_samples_of_the_fuzzer_are_json_or_bytes(data: bytes) -> None:
    """A target that always sends the same would find nothing, for ever."""
    body = body_of(Choices(data))
    if data[:1] and data[0] % 2:
        assert isinstance(json.loads(body.decode("utf-8", "surrogatepass")), dict)


def test_the_fuzzer_reaches_far() -> None:
    """Different bytes, different bodies."""
    rng = random.Random(1)
    bodies = {body_of(Choices(b"\1" + rng.randbytes(24))) for _ in range(300)}
    assert len(bodies) > 200
