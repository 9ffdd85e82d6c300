"""Runs seeds: one after the other, or several processes side by side, and says what each came to."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

from tests.simulation.checker import Checker
from tests.simulation.faults import Tally
from tests.simulation.loop import OutOfTime, Sim, SimulationFailed
from tests.simulation.weather import STORM_FROM_S, STORM_S, Weather, skews_of
from tests.simulation.world import STOPPING_S, World, number_at

SETTLE_S = 900.0
"""From the last fault until nobody waits for anything, at most: the longest doubt, an open breaker, the skew of two
clocks. And who changed their phone twice within minutes is still owed replies under each address: the platform counts
them as one pair, the sender does not, so these queues strike each other and go at one message in 64 s."""

SETTLE_STEPPED_S = 1_100.0
"""After a clock was ahead, besides how far it was: a deadline that was set by it is late by that much."""

RUN_S_MIN = 600.0
"""What every seed runs, from its first process to its last: five minutes of storm, the rest of coming to rest."""

FINISH_S = 60.0

CPU_S_MAX = 90.0


class Ran(NamedTuple):
    """What came of one seed. `wrong` is empty when it kept every promise."""

    seed: int
    wrong: list[str]
    planned: list[str]
    struck: dict[str, int]
    virtual_s: float
    cpu_s: float
    digest: str
    story: str


def run(seed: int, *, stormy: bool = True) -> Ran:
    """Run one seed to its end."""
    began = time.process_time()
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # the stages say what they withstand; here that is everything
    wrong: list[str] = []
    sim = Sim(seed, cpu_seconds_max=CPU_S_MAX)
    try:
        world = World(sim, skews_ms=skews_of(seed) if stormy else {})
        weather = Weather(world)
        world.start()
        if stormy:
            weather.plan()
        sim.run(STORM_FROM_S + STORM_S)
        weather.clear()
        checker = Checker(world.evidence, world.cluster)
        wrong = _settle(world, weather, checker)
        sim.run(max(0.0, RUN_S_MIN - STOPPING_S - sim.now))
        _let_finish(sim, checker)
        world.stop()
        wrong += [one for one in checker.check() if one not in wrong]
    except (OutOfTime, SimulationFailed) as error:
        wrong.append(f"{type(error).__name__}: {error}")
    finally:
        story = sim.story()
        wrong += [f"{one.at:.3f} {one.process}: {one.text}" for one in sim.loop.failures]
        sim.loop.close()
        logging.disable(disabled)
    return Ran(
        seed, wrong, list(sim.faults.planned), dict(sim.faults.struck), sim.now, time.process_time() - began,
        sim.digest(), story,
    )  # fmt: skip


def _settle(world: World, weather: Weather, checker: Checker) -> list[str]:
    """Let everything come to its end while a few go on writing; return what did not."""
    sim = world.sim
    world.crowd.quiet = world.campaigns.quiet = True
    ends_at = sim.now + (SETTLE_STEPPED_S + weather.stepped_s if weather.stepped_s else SETTLE_S)
    began = sim.now
    turn = 0
    still_open: list[str] = []
    while sim.now < ends_at:
        for number in range(3):
            turn += 1
            sim.loop.call_soon(world.crowd.greet, number_at(number), turn, context=sim.processes["platform"].context)
        sim.run(8.0)
        # A doubt needs proof in the very partition of its customer: many write when late deadlines fall due, too.
        is_waiting = sim.now - began >= SETTLE_S and sim.now < ends_at - SETTLE_STEPPED_S
        pause = 110.0 if is_waiting else 30.0
        sim.run(pause)
        still_open = checker.open_matters()
        if not still_open:
            return []
    return [f"not settled in time: {one}" for one in still_open[:10]]


def _let_finish(sim: Sim, checker: Checker) -> None:
    """Let what is just under way end: a status that is being posted was made before the world is stopped."""
    ends_at = sim.now + FINISH_S
    while sim.now < ends_at and checker.open_matters():
        sim.run(1.0)


def batch(seeds: Iterable[int], jobs: int = 2) -> Iterator[Ran]:
    """Run seeds in processes of their own, and yield each as it ends."""
    if jobs < 2:
        yield from map(run, seeds)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run, seeds)


def check(runs: list[Ran]) -> Tally:
    """Return the tally of a batch."""
    tally = Tally()
    for ran in runs:
        tally.add(ran.planned, ran.struck)
    return tally
