"""Chance: how long things take in a simulation, and which faults strike whom, counted.

A run plans kinds of faults; each place where a fault can happen asks whether it strikes. A planned kind that never
struck in a whole batch of seeds proves nothing, so the batch's `Tally` names it and the batch fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import NamedTuple

KINDS: dict[str, str] = {
    "append.slow": "an append takes seconds to land; what the same process appends next waits behind it",
    "append.refused": "an append does not land, and its caller hears LogUnavailable",
    "append.landed_unheard": "an append lands, and its caller hears LogUnavailable",
    "append.partial": "an append lands in some of its partitions, and its caller hears LogUnavailable",
    "append.twice": "an append lands twice on end, as a repeated request does",
    "step.slow": "a step takes seconds; its records are written and not visible meanwhile",
    "step.lost": "a step's commit never arrives: in doubt, and not committed",
    "step.unheard": "a step's commit arrives and its answer does not: in doubt, and committed",
    "fetch.slow": "a fetch takes seconds",
    "log.down": "nobody reaches the log for a while",
    "log.cut": "one process does not reach the log for a while",
    "log.rebalance": "a group rebalances with nobody coming or going",
    "process.kill": "SIGKILL",
    "process.freeze": "SIGSTOP and, later, SIGCONT",
    "process.stop": "SIGTERM",
    "clock.step": "a wall clock is set forward or back",
    "net.request_lost": "a request never arrives and its caller hears nothing",
    "net.request_reset": "a connection is reset before the request arrives",
    "net.answer_lost": "a request is handled and its caller hears nothing",
    "net.answer_reset": "a request is handled and its caller hears a reset",
    "net.slow": "a request or an answer takes seconds",
    "net.cut": "two processes do not reach each other for a while",
}
"""Every kind of fault that can be planned, with its meaning. Whoever assembles a run may `add_kind`."""


def add_kind(kind: str, meaning: str) -> None:
    """Declare another kind of fault. A kind has one meaning."""
    if KINDS.setdefault(kind, meaning) != meaning:
        raise ValueError(f"fault kind {kind!r} is declared already: {KINDS[kind]}")


class Latency(NamedTuple):
    """How long something takes: mostly near `low_s`, seldom beyond `high_s`, in seconds."""

    low_s: float
    high_s: float
    tail_chance: float = 0.01
    tail_factor: float = 8.0

    def draw(self, random: Random) -> float:
        """Return a duration in seconds."""
        chance = random.random()
        took = self.low_s + (self.high_s - self.low_s) * chance * chance
        return took * self.tail_factor if chance < self.tail_chance else took


class Plan(NamedTuple):
    """When and how often a kind of fault strikes. `seconds` is how long it lasts, for those that last."""

    chance: float
    from_s: float
    until_s: float
    seconds: Latency


class Faults:
    """What strikes in one run. Each kind draws from a stream of its own: one more kind leaves the others alone."""

    def __init__(self, stream: Callable[[str], Random], now: Callable[[], float]) -> None:
        self._stream = stream
        self._now = now
        self._plans: dict[str, Plan] = {}
        self._random: dict[str, Random] = {}
        self.struck: dict[str, int] = {}

    @property
    def planned(self) -> list[str]:
        """The kinds that are to strike in this run."""
        return list(self._plans)

    def plan(
        self,
        kind: str,
        chance: float = 0.0,
        *,
        from_s: float = 0.0,
        until_s: float = float("inf"),
        seconds: Latency = Latency(0.5, 4.0, tail_chance=0.0),  # noqa: B008  # a tuple: frozen
    ) -> None:
        """Let a kind strike with this chance at each occasion, between two virtual seconds. Chance 0 is for
        kinds that a schedule strikes by itself (`strike`)."""
        if kind not in KINDS:
            raise ValueError(f"no such kind of fault: {kind!r}")
        self._plans[kind] = Plan(chance, from_s, until_s, seconds)
        self._random[kind] = self._stream(f"fault {kind}")

    def strikes(self, kind: str) -> bool:
        """Return whether the fault strikes at this occasion, and count it."""
        plan = self._plans.get(kind)
        if plan is None or not plan.from_s <= self._now() < plan.until_s:
            return False
        if self._random[kind].random() >= plan.chance:
            return False
        self.strike(kind)
        return True

    def strike(self, kind: str) -> None:
        """Count a fault that a schedule brought about."""
        if kind not in KINDS:
            raise ValueError(f"no such kind of fault: {kind!r}")
        self.struck[kind] = self.struck.get(kind, 0) + 1

    def seconds(self, kind: str) -> float:
        """Return how long the fault that just struck lasts."""
        return self._plans[kind].seconds.draw(self._random[kind])

    def delay(self, kind: str) -> float:
        """Return 0, or the seconds lost when the fault strikes."""
        return self.seconds(kind) if self.strikes(kind) else 0.0


class Tally:
    """What was planned and what struck, over a batch of runs."""

    def __init__(self) -> None:
        self.struck: dict[str, int] = {}

    def add(self, planned: Iterable[str], struck: dict[str, int]) -> None:
        """Take in one run."""
        for kind in planned:
            self.struck.setdefault(kind, 0)
        for kind, count in struck.items():
            self.struck[kind] = self.struck.get(kind, 0) + count

    def never_struck(self) -> list[str]:
        """Return the kinds that were planned and struck nobody."""
        return [kind for kind, count in self.struck.items() if count == 0]

    def check(self) -> None:
        """Raise `AssertionError` when a planned fault never struck: the batch proved less than it claims."""
        never = self.never_struck()
        assert not never, f"planned faults that never struck: {', '.join(never)} (struck: {self.struck})"
