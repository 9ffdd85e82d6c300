"""A process for each part of a measurement: pinned to its cores, asked and answered in lines of JSON.

The parent holds a `Child`; the child's module ends in `be(play)`. A child ends when its standard input does, so none
outlives a killed run.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import uvloop

START_S_MAX = 60.0
"""Until a part says it is ready. A Kafka that has just started takes some seconds for its topics."""

ANSWER_S_MAX = 180.0
"""The longest question is a whole measurement."""

STOP_S_MAX = 20.0

Facts = dict[str, Any]


class Cores(NamedTuple):
    """Which cores what is measured runs on, and which all else; the same where there is only one."""

    measured: tuple[int, ...]
    rest: tuple[int, ...]

    @classmethod
    def of_this_machine(cls) -> Cores:
        """The first core is for what is measured, the others are for load, stand-ins and Kafka."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(tuple(cores[:1]), tuple(cores[1:] or cores))


def pin(pid: int, cores: tuple[int, ...]) -> None:
    """Keep a process with all its threads on some cores."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            os.sched_setaffinity(int(task.name), cores)
        except ProcessLookupError:  # the thread is over
            continue


def cpu_s(pid: int) -> float:
    """CPU seconds a process used so far, user and system, all threads. In ticks of 10 ms, as the kernel counts."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Memory of a process that is in use now, as the kernel counts it."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Child:
    """One part in a process of its own. A context; ready once entered."""

    def __init__(self, module: str, cores: tuple[int, ...], **settings: Any) -> None:
        self._module = module
        self._spec = json.dumps({**settings, "cores": list(cores)})
        self.facts: Facts = {}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{self._module}", self._spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=Path(__file__).parent.parent,
        )
        try:
            self.facts = self._hear(START_S_MAX)
        except BaseException:
            self._process.kill()
            self._process.wait(STOP_S_MAX)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_S_MAX)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def ask(self, **question: Any) -> Facts:
        """Ask, and wait for the answer. Raises `RuntimeError` when the child fails or stays silent."""
        self.tell(**question)
        return self._hear(ANSWER_S_MAX)

    def tell(self, **question: Any) -> None:
        """Ask; the answer is fetched by `answer`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")

    def answer(self) -> Facts:
        """Wait for the answer to what was told."""
        return self._hear(ANSWER_S_MAX)

    def _hear(self, timeout_s: float) -> Facts:
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], timeout_s)[0]:
            raise RuntimeError(f"benchmarks.{self._module} said nothing for {timeout_s:.0f} s")
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"benchmarks.{self._module} ended with {self._process.wait(STOP_S_MAX)}")
        facts: Facts = json.loads(line)
        return facts


class Lag:
    """How late this process's event loop is: on a shared machine, whether a figure is ours or the neighbours'."""

    def __init__(self) -> None:
        self._late_ms: list[float] = []
        self._ticking = asyncio.create_task(self._tick(), name="lag")

    def report(self) -> Facts:
        """The lateness of a 5 ms timer so far, in ms."""
        late = sorted(self._late_ms) or [0.0]
        return {"lag_p99_ms": late[len(late) * 99 // 100], "lag_max_ms": late[-1]}

    def stop(self) -> None:
        """Tick no more."""
        self._ticking.cancel()

    async def _tick(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + 0.005
            await asyncio.sleep(0.005)
            self._late_ms.append((clock() - due) * 1e3)


class Part(NamedTuple):
    """What a child is once it runs: what the parent should know, and how it answers questions."""

    facts: Facts
    answer: Callable[[Facts], Awaitable[Facts]]


Play = Callable[[Facts], AsyncIterator[Part]]


def be(play: Play) -> None:
    """Be a child: play the part (an async generator that yields once) until the parent closes our input."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    spec = json.loads(sys.argv[1])
    os.sched_setaffinity(0, spec.pop("cores"))
    uvloop.run(_serve(asynccontextmanager(play)(spec)))


async def _serve(part: AbstractAsyncContextManager[Part]) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with part as (facts, answer):
        _say({"pid": os.getpid(), **facts})
        while line := await reader.readline():
            _say(await answer(json.loads(line)))


def _say(facts: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()
