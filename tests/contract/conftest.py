"""Every test that asks for `harness` runs once on each engine of `engines.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.contract.engines import BY_NAME, ENGINES
from tests.contract.harness import Harness


@pytest.fixture(params=[pytest.param(engine.name, marks=engine.marks, id=engine.name) for engine in ENGINES])
def engine_name(request: pytest.FixtureRequest) -> str:
    """The engine's name, which is also the test's id."""
    return str(request.param)


@pytest.fixture
async def harness(engine_name: str, request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    """A fresh set of logs on one engine."""
    made = BY_NAME[engine_name].make(request)
    yield made
    await made.close()
