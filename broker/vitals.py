"""How the process itself feels: is its event loop on time, is its memory within its limit."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from broker import metrics
from broker.clock import Clock

TICK_S = 0.1
LIVE_S_MAX = 10.0
"""A loop that has not ticked for so long is stuck: restart it."""
MEMORY_READY_MAX = 0.85
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
"""4 KiB on most machines, 16 or 64 on some with ARM."""
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_UNLIMITED = 1 << 60


def memory_limit_bytes() -> int | None:
    """Return what the container may use, None when nothing limits it."""
    for path in _LIMITS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _UNLIMITED:
            return int(text)
    return None


def resident_bytes() -> int:
    """Return the memory this process has resident now, 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


class Vitals:
    """A ticker on the loop. Owns `event_loop_lag_seconds`; answers whether the loop lives and memory suffices."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ticked_at = clock.monotonic()
        self._limit = memory_limit_bytes()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to tick."""
        self._ticked_at = self._clock.monotonic()
        self._task = asyncio.create_task(self._tick(), name="vitals")

    async def stop(self) -> None:
        """End the ticker."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1.0)

    def stuck(self) -> str | None:
        """Say why the process should be restarted, None when it lives."""
        late = self._clock.monotonic() - self._ticked_at
        return f"event loop has not ticked for {late:.1f} s" if late > LIVE_S_MAX else None

    def crowded(self) -> str | None:
        """Say why the process should get no more work, None when its memory suffices."""
        if self._limit is None:
            return None
        share = resident_bytes() / self._limit
        return f"memory at {share:.0%} of its limit" if share > MEMORY_READY_MAX else None

    async def _tick(self) -> None:
        while True:
            due = self._clock.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            self._ticked_at = self._clock.monotonic()
            metrics.event_loop_lag.observe(max(0.0, self._ticked_at - due))
