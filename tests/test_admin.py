"""Probes: what they say, when they say it, and that a readiness that goes to and fro is held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from broker import metrics
from broker.admin import CHANGE_S_MIN, Admin
from broker.clock import SystemClock
from broker.vitals import LIVE_S_MAX, Vitals, memory_limit_bytes, resident_bytes
from schemas.settings import AdminSettings


class HandClock(SystemClock):
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.at = 1_000.0

    def monotonic(self) -> float:
        """Return where the hand stands."""
        return self.at


class Rig:
    """An admin port on a free port, with one check that a test can make fail."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.vitals = Vitals(self.clock)
        self.why: str | None = None
        self.admin = Admin(AdminSettings(port=0), self.vitals, self.clock, {"worker": lambda: self.why})

    async def get(self, path: str) -> tuple[int, str]:
        """Return status and body."""
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.get(f"http://127.0.0.1:{self.admin.port}{path}") as answer,
        ):
            return answer.status, await answer.text()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """A rig that listens."""
    one = Rig()
    await one.admin.start()
    yield one
    await one.admin.stop()


async def test_startup_is_told_once_it_is_over(rig: Rig) -> None:
    """Kubernetes asks for nothing else until then."""
    assert await rig.get("/startupz") == (503, "starting\n")
    rig.admin.started = True
    assert await rig.get("/startupz") == (200, "ok\n")


async def test_readiness_names_its_reasons_and_is_held_for_ten_seconds(rig: Rig) -> None:
    """A probe that flaps takes a pod out of the load balancer and puts it back with every blink."""
    assert await rig.get("/readyz") == (200, "ok\n")
    rig.why = "no partition granted yet"
    assert await rig.get("/readyz") == (200, "ok\n"), "too soon after the last change"
    rig.clock.at += CHANGE_S_MIN
    assert await rig.get("/readyz") == (503, "worker: no partition granted yet\n")
    rig.why = "broken"
    assert await rig.get("/readyz") == (503, "worker: broken\n"), "the reason itself is never old"
    rig.why = None
    assert (await rig.get("/readyz"))[0] == 503
    rig.clock.at += CHANGE_S_MIN
    assert await rig.get("/readyz") == (200, "ok\n")


async def test_draining_is_told_at_once(rig: Rig) -> None:
    """No new request must come to a process that leaves."""
    assert (await rig.get("/readyz"))[0] == 200
    rig.admin.draining = True
    assert await rig.get("/readyz") == (503, "draining\n")
    assert (await rig.get("/livez"))[0] == 200, "it is not to be killed for that"


async def test_a_loop_that_does_not_tick_is_not_live(rig: Rig) -> None:
    """The one state a restart mends."""
    assert await rig.get("/livez") == (200, "ok\n")
    rig.clock.at += LIVE_S_MAX + 0.1
    assert await rig.get("/livez") == (503, "event loop has not ticked for 10.1 s\n")


async def test_the_ticker_ticks_and_ends() -> None:
    """Its lateness is the first thing to look at when everything is slow."""
    vitals = Vitals(SystemClock())
    before = _ticks()
    vitals.start()
    try:
        for _ in range(250):
            if _ticks() >= before + 2:
                break
            await asyncio.sleep(0.02)
        assert _ticks() >= before + 2, "not in five seconds"
        assert vitals.stuck() is None
    finally:
        await vitals.stop()
    after = _ticks()
    await asyncio.sleep(0.25)
    assert _ticks() == after


def test_memory_is_read_from_the_system() -> None:
    """A process with Python in it has megabytes, and fits into its limit."""
    resident, limit = resident_bytes(), memory_limit_bytes()
    assert 5_000_000 < resident < 50_000_000_000
    assert limit is None or limit > resident


async def test_a_crowded_process_gets_no_more_work(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the kernel ends it: what it holds is durable, what it would take elsewhere is better off."""
    monkeypatch.setattr(rig.vitals, "_limit", max(1, resident_bytes()))
    status, why = await rig.get("/readyz")
    assert (status, why.startswith("memory at ")) == (503, True), why


async def test_metrics_come_in_the_text_format(rig: Rig) -> None:
    """With every series at zero from the start, so that the first rate is right."""
    metrics.prepare()
    status, text = await rig.get("/metrics")
    assert status == 200
    assert "# TYPE depesche_webhook_requests_total counter" in text
    assert "# HELP depesche_event_loop_lag_seconds" in text


def _ticks() -> float:
    for family in metrics.event_loop_lag.collect():
        for sample in family.samples:
            if sample.name.endswith("_count"):
                return sample.value
    raise AssertionError("no such metric")
