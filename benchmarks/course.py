"""How a piece of work goes in the process that does it: rate and CPU of its middle.

What comes before the first tenth (joining a group, opening connections) and after the last (a batch's wait) is no part
of what each record costs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.child import Facts

LOOK_S = 0.01
FIRST, LAST = 0.1, 0.9


class Course:
    """How the work went: how much was done at which time, and what it had cost by then."""

    def __init__(self, done: Callable[[], float]) -> None:
        self._done = done
        self._points: list[tuple[float, float, float]] = []

    def look(self) -> float:
        """Note where the work stands, and return it."""
        done = self._done()
        self._points.append((done, time.perf_counter(), time.process_time()))
        return done

    def report(self) -> Facts:
        """Rate and CPU between a tenth and nine tenths of what was done."""
        whole = self._points[-1][0]
        first = next(point for point in self._points if point[0] >= FIRST * whole)
        last = next(point for point in self._points if point[0] >= LAST * whole)
        count = last[0] - first[0]
        wall_s, cpu_s = last[1] - first[1], last[2] - first[2]
        if count <= 0 or wall_s <= 0:  # so little that it was done in one go
            (_, begun, begun_cpu), (count, ended, ended_cpu) = self._points[0], self._points[-1]
            wall_s, cpu_s = ended - begun, ended_cpu - begun_cpu
        return {"rate": count / wall_s, "cpu_us": cpu_s * 1e6 / count, "busy": cpu_s / wall_s}


@contextmanager
def watched(course: Course) -> Iterator[None]:
    """Look now and then while something else works."""

    async def watch() -> None:
        while True:
            course.look()
            await asyncio.sleep(LOOK_S)

    task = asyncio.get_running_loop().create_task(watch(), name="course")
    try:
        yield
    finally:
        task.cancel()
        course.look()
