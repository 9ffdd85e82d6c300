"""Instants and durations: who reads a clock asks here, so that a test or a simulation can be the clock."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks, as every machine has them. Timers (`asyncio.sleep`, `loop.call_at`) follow the monotonic one."""

    def now(self) -> int:
        """Return the wall clock in Unix ms. It may jump either way; only compare it with instants others wrote."""
        ...

    def monotonic(self) -> float:
        """Return seconds since some start. Never goes back, goes on while the process is frozen."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> int:
        """Return the wall clock in Unix ms."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Return the machine's monotonic seconds."""
        return time.monotonic()
