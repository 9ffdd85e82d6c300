"""The process that is killed: `python -m tests.contract.child MODE POINT NTH ENGINE ARGUMENTS…`.

MODE `append` appends numbers and prints each that returned; `steps` owns the stage, commits numbered steps and prints
each that returned; it stops at POINT of step NTH, prints that it is there, and waits for its end.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import NoReturn

from broker.errors import LeaseLost
from broker.log.contract import Draft, Lease, LogEngine, Step
from tests.contract.engines import BY_NAME
from tests.contract.harness import ChildEngine
from tests.contract.programs import COPY, LOGS

PARTITION = 0


def say(word: str) -> None:
    """Print a line at once: the parent reads it even if this is the last thing we do."""
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def stop_here() -> NoReturn:
    """Say that the point is reached and do nothing more, in whatever thread this is."""
    say("reached")
    while True:
        threading.Event().wait(60.0)


async def append(engine: LogEngine) -> None:
    """Append until killed, from several tasks at once."""

    async def one(number: int) -> None:
        await engine.append("in", [Draft(b"k%d" % number, b"%d" % number)], 30.0)
        say(f"{number}")

    number = 0
    while True:
        await asyncio.gather(*(one(number + more) for more in range(20)))
        number += 20


async def steps(engine: LogEngine, child: ChildEngine, point: str, nth: int) -> None:
    """Commit steps under the lease of one partition."""

    async def run(lease: Lease) -> None:
        restored = await lease.restore()
        if lease.partition != PARTITION:
            await asyncio.Event().wait()
        number = int(dict(restored.records).get(b"number", b"-1")) + 1
        try:
            while True:
                if number == nth:
                    child.arm(point, stop_here)
                    if point == "before":
                        stop_here()
                await lease.commit(step(number))
                if number == nth and point == "after":
                    stop_here()
                say(f"{number}")
                number += 1
        except LeaseLost:
            say("lost")
            raise

    await engine.own(COPY, run)
    await asyncio.Event().wait()


def step(number: int) -> Step:
    """Return the numbered step: a change, two derived records in two partitions, a position."""
    derived = [("out", Draft(b"k", b"%d" % number, 0)), ("out", Draft(b"k", b"%d" % number, 3))]
    return Step({"in": number}, derived, [(b"number", b"%d" % number)], b"%d" % number)


async def main(mode: str, point: str, nth: str, name: str, *arguments: str) -> None:
    """Open the engine and do what the mode says."""
    made = BY_NAME[name].child
    assert made is not None
    child = made()
    engine = await child.open(arguments, LOGS)
    say("open")
    if mode == "append":
        await append(engine)
    else:
        await steps(engine, child, point, int(nth))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
