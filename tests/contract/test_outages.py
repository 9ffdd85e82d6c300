"""The engine's disk or cluster goes, and comes back: what is said meanwhile, and that nobody need restart anything."""

from __future__ import annotations

import asyncio
import time

import pytest

from broker.errors import LogUnavailable
from broker.log.contract import Draft
from tests.contract.harness import Harness
from tests.contract.programs import COPY, LOGS, Copying, everything, numbered, until


async def test_appends_are_refused_in_time_and_taken_again_when_it_is_back(harness: Harness) -> None:
    """503 within seconds each; normal service without a hand on it."""
    engine = await harness.open(LOGS)
    await engine.append("in", [Draft(b"k", b"before", 0)], 10)
    await harness.take_away()
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(LogUnavailable):
            await engine.append("in", [Draft(b"k", b"during" * 1_000, 0)], 2.0)
        assert time.monotonic() - began < 3.0
    await harness.bring_back()
    began = time.monotonic()
    while True:
        try:
            await engine.append("in", [Draft(b"k", b"after", 0)], 5.0)
            break
        except LogUnavailable:
            assert time.monotonic() - began < harness.patience_s * 6
            await asyncio.sleep(0.1)
    values = [entry.value for entry in await everything(engine, "in", 0)]
    assert (values[0], values[-1]) == (b"before", b"after")


async def test_a_stage_goes_on_by_itself_after_an_outage(harness: Harness) -> None:
    """No step is lost or doubled, however it ended in the outage."""
    engine = await harness.open(LOGS)
    copying = Copying(records_max=5)
    await engine.own(COPY, copying)
    await engine.append("in", numbered(200), 10)
    await until(lambda: copying.copied > 20)
    await harness.take_away()
    await asyncio.sleep(1.0)
    await harness.bring_back()
    appended = 200
    ends_at = time.monotonic() + harness.patience_s * 12

    async def out() -> list[int]:
        return sorted(int(entry.value.split(b" #")[0]) for entry in await everything(engine, "out"))

    while len(await out()) < appended:
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.2)
    assert await out() == list(range(200))


async def test_closing_while_it_is_away_is_bounded(harness: Harness) -> None:
    """SIGTERM in an outage: the process must be gone within its grace."""
    engine = await harness.open(LOGS)
    copying = Copying()
    await engine.own(COPY, copying)
    await until(lambda: len(copying.leases) == 4)
    await harness.take_away()
    appends = [asyncio.create_task(engine.append("in", numbered(3), 60.0)) for _ in range(5)]
    await asyncio.sleep(0.2)
    began = time.monotonic()
    await engine.close(6.0)
    assert time.monotonic() - began < 7.0
    await harness.bring_back()
    outcomes = await asyncio.wait_for(asyncio.gather(*appends, return_exceptions=True), 5.0)
    assert all(isinstance(outcome, LogUnavailable) for outcome in outcomes)


async def test_what_was_durable_before_an_outage_is_there_after_it(harness: Harness) -> None:
    """A failed write must not touch what others were told is safe."""
    engine = await harness.open(LOGS)
    await engine.append("in", numbered(300), 10)
    await harness.take_away()
    outcomes = await asyncio.gather(
        *(engine.append("in", numbered(5, first=1_000), 1.0) for _ in range(20)), return_exceptions=True
    )
    assert any(isinstance(outcome, LogUnavailable) for outcome in outcomes)
    await harness.bring_back()
    await engine.close()
    engine = await harness.open(LOGS)
    assert {int(entry.value) for entry in await everything(engine, "in")} >= set(range(300))
