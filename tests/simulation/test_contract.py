"""The contract suite on the simulated engine, in virtual time.

The suite's own fixtures run it on the machine's loop, for engines that wait for disks and sockets. Here each of its
tests is given a harness on a virtual loop, so its hours of patience cost nothing. What needs child processes is left to
the engines that have some: a simulated process is killed and frozen at every point in `test_simulated_log.py`.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests import contract
from tests.contract.harness import Harness
from tests.simulation.harness import SimulatedHarness
from tests.simulation.loop import VirtualLoop

VIRTUAL_S_MAX = 600.0
"""No test of the suite waits longer than ten minutes for anything."""


def suite() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield every test that needs nothing but a harness, by "module::name"."""
    for path in sorted(Path(contract.__path__[0]).glob("test_*.py")):
        if path.stem == "test_crashes":  # of child processes
            continue
        module = import_module(f"tests.contract.{path.stem}")
        for name, test in vars(module).items():
            if name.startswith("test_") and list(inspect.signature(test).parameters) == ["harness"]:
                yield f"{path.stem}::{name}", test


SUITE = dict(suite())


@pytest.mark.parametrize("name", list(SUITE))
def test_the_simulated_log_keeps_the_contract(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found in a simulation is only true of the real engines as far as the log beneath it is one."""
    test = SUITE[name]
    loop = VirtualLoop(cpu_seconds_max=60.0)
    asyncio.set_event_loop(loop)
    monkeypatch.setattr(time, "monotonic", loop.time)  # the suite measures how long things take
    try:
        harness = loop.run_until_complete(made())
        if inspect.iscoroutinefunction(test):
            loop.run_until_complete(asyncio.wait_for(test(harness), VIRTUAL_S_MAX))
        else:
            test(harness)  # it runs its examples on the current loop by itself
        loop.run_until_complete(ended(harness.close))
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def made() -> Harness:
    """Make a harness on the running loop."""
    return SimulatedHarness()


async def ended(close: Callable[[], Awaitable[None]]) -> None:
    """Close within a bound."""
    await asyncio.wait_for(close(), VIRTUAL_S_MAX)


def test_the_whole_suite_is_found() -> None:
    """A suite whose fixtures were renamed would otherwise pass here by being empty."""
    assert len(SUITE) >= 50
