"""What goes wrong in a run, and when: all of it decided by the seed. Each run suffers from some kinds only, some badly.

Moments are struck one after the other: the weather arms one, and whoever comes to it next dies there or freezes for
longer or shorter than its session lasts.
"""

from __future__ import annotations

from random import Random

from broker.sandbox.faults import FAULTS as PLATFORM_FAULTS
from broker.sandbox.faults import Fault, FaultName
from tests.simulation.edges import RECEIVERS
from tests.simulation.faults import Latency, add_kind
from tests.simulation.loop import Process, State
from tests.simulation.world import BOTS, TROUBLED, WORKERS, World, number_at

STORM_FROM_S, STORM_S = 15.0, 300.0
LONG_S = Latency(0.5, 4.0, tail_chance=0.0)

FAR_MS, NEAR_MS, FAR_SHARE = 3_600_000, 300_000, 0.3
"""How far clocks are set in a run. After an hour a deadline may be an hour late, and that hour is run, too: so an hour
in some runs, five minutes in the others."""

CHANCES: dict[str, float] = {
    "append.slow": 0.004, "append.refused": 0.004, "append.landed_unheard": 0.004, "append.partial": 0.004,
    "append.twice": 0.006, "step.slow": 0.003, "step.lost": 0.002, "step.unheard": 0.002, "fetch.slow": 0.001,
    "net.request_lost": 0.004, "net.request_reset": 0.004, "net.answer_lost": 0.004, "net.answer_reset": 0.004,
    "net.slow": 0.003, "graph.unreached": 0.01, "graph.stale": 0.01, "graph.slow_connect": 0.01,
    "bot.refuses": 0.03, "bot.forgets": 0.03, "bot.hangs": 0.01,
}  # fmt: skip
"""Kinds that strike by chance, each in half of the runs."""

PLATFORM: dict[FaultName, Fault] = {
    "lost_request": Fault(rate=0.01), "lost_answer": Fault(rate=0.02), "error_before": Fault(rate=0.01),
    "error_after": Fault(rate=0.01), "silence": Fault(rate=0.005), "slow": Fault(rate=0.01),
    "answer_130429": Fault(rate=0.01), "answer_131056": Fault(rate=0.005), "answer_131016": Fault(rate=0.01),
    "answer_131000": Fault(rate=0.005), "answer_1": Fault(rate=0.005), "answer_2": Fault(rate=0.005),
    "answer_131057": Fault(rate=0.002), "duplicate": Fault(rate=0.1), "reorder_customers": Fault(rate=0.1),
    "reorder_statuses": Fault(rate=0.2), "reorder_messages": Fault(rate=0.1), "delay": Fault(rate=0.005, ms=20_000),
    "batch": Fault(rate=0.5, items=20),
}  # fmt: skip

MOMENTS: dict[str, str] = {
    "before_intent": "step.begin/sender", "intent_written": "step.written/sender",
    "intent_landed": "step.landed/sender", "after_intent": "step.end/sender", "before_permit": "call.begin",
    "after_call": "call.sent",
    "at_answer": "call.answered", "before_step": "step.begin/customer", "step_written": "step.written/customer",
    "step_landed": "step.landed/customer", "after_step": "step.end/customer",
    "before_append": "append.begin/conversations", "append_landed": "append.landed/conversations",
    "after_append": "append.end/conversations", "before_post": "post.begin", "after_post": "post.answered",
}  # fmt: skip

EVENTS = ("kill", "freeze", "stop", "log.down", "log.cut", "log.rebalance", "clock.step", "platform.freeze", "moment")

for _name, _text in PLATFORM_FAULTS.items():
    add_kind(f"platform.{_name}", _text)
for _moment in MOMENTS:
    add_kind(f"at.{_moment}", f"a process is killed or frozen at {_moment.replace('_', ' ')}")
add_kind("platform.freeze", "Meta's platform is silent for a while")
add_kind("clock.skew", "the processes' wall clocks differ by up to 30 s")


def skews_of(world_seed: int) -> dict[str, int]:
    """Return how far each machine's wall clock is off, in ms; in two runs of five."""
    chance = Random(f"{world_seed}/skew")
    if chance.random() >= 0.4:
        return {}
    return {name: chance.randint(-30_000, 30_000) for name in TROUBLED}


class Weather:
    """One run's faults. `plan` before the run begins, `clear` when the storm is over."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sim = world.sim
        self._random = world.sim.random("weather")
        self._armed = ""
        self._stepped_ms: dict[str, int] = {}
        self.stepped_s = 0.0
        """How far a clock was off at most because it was set."""
        self._step_ms = FAR_MS if Random(f"{world.sim.seed}/steps").random() < FAR_SHARE else NEAR_MS
        world.reached = self._reached  # type: ignore[method-assign]  # the world asks whoever watches

    def plan(self) -> None:
        """Decide what this run suffers from."""
        random, faults, until = self._random, self._sim.faults, STORM_FROM_S + STORM_S
        for kind, chance in CHANCES.items():
            if random.random() < 0.5:
                faults.plan(
                    kind,
                    chance * random.choice([0.5, 1.0, 2.0]),
                    from_s=STORM_FROM_S,
                    until_s=until,
                    seconds=LONG_S,
                )
        suffered = [(name, fault) for name, fault in PLATFORM.items() if random.random() < 0.4]
        for name, _ in suffered:
            faults.plan(f"platform.{name}")
        self._sim.at(STORM_FROM_S, self._trouble_platform, suffered)
        events = [event for event in EVENTS if random.random() < 0.6 or event == "moment"]
        at = STORM_FROM_S
        while (at := at + random.uniform(4.0, 14.0)) < until - 10.0:
            self._sim.at(at, self._strike, random.choice(events))

    def clear(self) -> None:
        """End every fault: processes run, clocks are right, nobody is cut off."""
        world, sim = self._world, self._sim
        self._armed = ""
        world.platform_faults.clear()
        for name in TROUBLED:
            process = sim.processes[name]
            if process.state is State.FROZEN:
                sim.thaw(name)
            process.clock.offset_ms = sim.true_ms - int(sim.now * 1_000)
            sim.start(name)
        struck = world.platform_faults.struck
        for name in PLATFORM_FAULTS:
            if struck[name]:
                sim.faults.struck[f"platform.{name}"] = struck[name]

    def _trouble_platform(self, suffered: list[tuple[FaultName, Fault]]) -> None:
        for name, fault in suffered:
            self._world.platform_faults.set(name, fault)

    def _strike(self, event: str) -> None:
        random, sim, world = self._random, self._sim, self._world
        who = random.choice((*WORKERS, *WORKERS, *TROUBLED))
        match event:
            case "kill":
                sim.restart(who, random.uniform(0.5, 15.0))
            case "freeze":
                sim.freeze(who, random.choice([0.5, 2.5, 8.0, 14.0]))
            case "stop":
                sim.stop(who)
                sim.at(sim.now + random.uniform(1.0, 30.0), sim.start, who)
            case "log.down":
                world.cluster.down(random.uniform(0.5, 8.0))
            case "log.cut":
                world.cluster.cut(random.choice((*WORKERS, *RECEIVERS)), random.uniform(1.0, 12.0))
            case "log.rebalance":
                for group in ("customer", "sender", "delivery"):
                    world.cluster.rebalance(group)
            case "clock.step":
                step_ms = random.choice([-self._step_ms, self._step_ms, -5_000, 40_000])
                sim.step_clock(who, step_ms)
                self._stepped_ms[who] = self._stepped_ms.get(who, 0) + step_ms
                self.stepped_s = max(self.stepped_s, abs(self._stepped_ms[who]) / 1_000)
            case "platform.freeze":
                sim.faults.strike("platform.freeze")
                world.platform.freeze(random.uniform(3.0, 15.0))
            case _:
                self._armed = random.choice(list(MOMENTS))
                sim.faults.plan(f"at.{self._armed}")

    def _reached(self, process: Process, moment: str) -> None:
        if not self._armed or MOMENTS[self._armed] != moment or process.state is not State.RUNNING:
            return
        if process.name in BOTS:
            return
        self._sim.faults.strike(f"at.{self._armed}")
        self._sim.note("moment", process.name, self._armed)
        self._armed = ""
        if self._random.random() < 0.65:
            self._sim.restart(process.name, self._random.uniform(0.5, 12.0))
        else:
            self._sim.freeze(process.name, self._random.choice([1.0, 3.0, 8.0, 14.0]))


__all__ = ["STORM_FROM_S", "STORM_S", "Weather", "number_at", "skews_of"]
