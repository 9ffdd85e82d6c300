"""The simulated log beyond the contract: what it does when processes die, freeze and are cut off, at every point.

Everything found with it later rests on this: that it breaks only what a real log may break, and does break that.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

from broker.errors import LeaseLost, LeaseRevoked, LogUnavailable
from broker.log.contract import Draft, Entry, Follow, Lease, LeaseState, LogSpec, Stage, Step
from broker.log.position import POSITION
from tests.simulation.cluster import HEARTBEAT_S, SESSION_TIMEOUT_S, TRANSACTION_TIMEOUT_S, SimulatedCluster
from tests.simulation.faults import Latency, Tally
from tests.simulation.log import SimLease, SimulatedLog
from tests.simulation.loop import Process, Sim

PARTITIONS = 4
SPECS = (LogSpec("in", PARTITIONS), LogSpec("out", PARTITIONS), LogSpec("state", PARTITIONS, kept="last"))
COPY = Stage("copy", ("in",), "state")

Run = Callable[[Lease], Awaitable[None]]


async def copying(lease: Lease) -> None:
    """Copy each record to `out` with the count of its key so far, which is the state."""
    restored = await lease.restore()
    counts = {key: int(value) for key, value in restored.records}
    position = restored.position.get("in", 0)
    while True:
        entries = await lease.fetch(50, 5.0)
        if not entries:
            continue
        after = dict(counts)
        step = Step({"in": entries[-1].offset + 1})
        for entry in entries:
            assert entry.offset >= position, "handed out twice"
            after[entry.key] = after.get(entry.key, 0) + 1
            step.derived.append(("out", Draft(entry.key, b"%s #%d" % (entry.value, after[entry.key]), lease.partition)))
        step.changes.extend((key, b"%d" % after[key]) for key in dict.fromkeys(entry.key for entry in entries))
        await lease.commit(step)
        counts, position = after, step.position["in"]


def worker(cluster: SimulatedCluster, run: Callable[[SimulatedLog], Run] = lambda _: copying) -> Callable[..., Any]:
    """A process that owns its share of the stage."""

    async def main(process: Process) -> None:
        engine = await opened(cluster, process)
        await engine.own(COPY, run(engine))
        await process.stopping.wait()
        await engine.close()

    return main


async def opened(cluster: SimulatedCluster, process: Process) -> SimulatedLog:
    """Open an engine, however long the log is away."""
    engine = SimulatedLog(cluster, process, SPECS)
    while True:
        try:
            await engine.start()
        except LogUnavailable:
            continue
        return engine


def kept(cluster: SimulatedCluster, log: str, partition: int) -> list[Entry]:
    """Return what readers can see, without positions."""
    entries, _ = cluster.logs[log].partitions[partition].read(0, 1_000_000)
    return [entry for entry in entries if entry.key != POSITION]


def mismatches(cluster: SimulatedCluster) -> list[str]:
    """Compare what came out with what went in: every record once, in order, with the state that was before it."""
    wrong = []
    for partition in range(PARTITIONS):
        counts: dict[bytes, int] = {}
        expected = []
        for entry in kept(cluster, "in", partition):
            counts[entry.key] = counts.get(entry.key, 0) + 1
            expected.append((entry.key, b"%s #%d" % (entry.value, counts[entry.key])))
        found = [(entry.key, entry.value) for entry in kept(cluster, "out", partition)]
        if found != expected:
            wrong.append(f"partition {partition}: {len(found)} records out, {len(expected)} expected")
        state = {
            key: int(value)
            for key, value in cluster.logs["state"].partitions[partition].last.items()
            if key != POSITION
        }
        if state != counts:
            wrong.append(f"partition {partition}: state {state}, expected {counts}")
    return wrong


Seen = dict[tuple[int, int], bytes]
"""What followers were handed: partition and offset, value."""


def auditor(cluster: SimulatedCluster, seen: Seen) -> Callable[..., Any]:
    """A process that follows `out` and notes what it is handed."""

    async def main(process: Process) -> None:
        engine = await opened(cluster, process)

        async def run(follow: Follow) -> None:
            await follow.restore()
            while True:
                entries = await follow.fetch(50, 5.0)
                for entry in entries:
                    seen[entry.partition, entry.offset] = entry.value
                if entries:
                    try:
                        await follow.commit(entries[-1].offset + 1, "audited")
                    except (LeaseRevoked, LogUnavailable):
                        continue  # a later one says it too

        await engine.follow("audit", ["out"], run)
        await process.stopping.wait()
        await engine.close()

    return main


def unaudited(cluster: SimulatedCluster, seen: Seen) -> list[str]:
    """Followers see every committed record at least once, and nothing that was taken back."""
    committed = {
        (partition, entry.offset): entry.value
        for partition in range(PARTITIONS)
        for entry in kept(cluster, "out", partition)
    }
    missed = [place for place in committed if place not in seen]
    false = [place for place, value in seen.items() if committed.get(place) != value]
    return [f"not seen by a follower: {missed}"] * bool(missed) + [f"seen and not committed: {false}"] * bool(false)


APPENDS = ("append.slow", "append.refused", "append.landed_unheard", "append.partial", "append.twice")
STEPS = ("step.slow", "step.lost", "step.unheard", "fetch.slow")
SCHEDULED = ("process.kill", "process.freeze", "log.cut", "log.down", "log.rebalance")


def storm(seed: int, tally: Tally | None = None, run: Callable[[SimulatedLog], Run] = lambda _: copying) -> list[str]:
    """Run three workers, two followers and two producers through two minutes of faults; return what is wrong."""
    with Sim(seed) as sim:
        cluster = SimulatedCluster(sim)
        for kind in APPENDS + STEPS:
            sim.faults.plan(kind, 0.01, until_s=120.0)
        for kind in SCHEDULED:
            sim.faults.plan(kind)
        accepted: dict[bytes, None] = {}

        async def producer(process: Process) -> None:
            engine = await opened(cluster, process)
            number = 0
            while not process.stopping.is_set() and sim.now < 120.0:
                number += 1
                name = b"%s-%d-%d" % (process.name.encode(), process.incarnation, number)
                drafts = [
                    Draft(b"key-%d" % process.random.randrange(12), name) for _ in range(process.random.randint(1, 3))
                ]
                try:
                    await engine.append("in", drafts, 5.0)
                except LogUnavailable:
                    continue
                accepted[name] = None
                await asyncio.sleep(process.random.random() / 5)
            await engine.close()

        names = ["worker-0", "worker-1", "worker-2"]
        for name in names:
            sim.process(name, worker(cluster, run))
        seen: Seen = {}
        for name in ("auditor-0", "auditor-1"):
            sim.process(name, auditor(cluster, seen))
            names.append(name)
        for name in ("producer-0", "producer-1"):
            sim.process(name, producer)
        chaos = sim.random("chaos")
        at = 3.0
        while at < 115.0:
            victim = chaos.choice(names)
            match chaos.randrange(5):
                case 0:
                    sim.at(at, sim.restart, victim, chaos.uniform(0.0, 8.0))
                case 1:
                    sim.at(at, sim.freeze, victim, chaos.uniform(0.5, 14.0))
                case 2:
                    sim.at(at, cluster.cut, victim, chaos.uniform(0.5, 12.0))
                case 3:
                    sim.at(at, cluster.down, chaos.uniform(0.5, 9.0))
                case _:
                    sim.at(at, cluster.rebalance, chaos.choice(("copy", "audit")))
            at += chaos.uniform(1.0, 6.0)
        sim.run(200.0)
        for name in list(sim.processes):
            sim.stop(name)
        sim.run(60.0)
        landed = {entry.value for partition in range(PARTITIONS) for entry in kept(cluster, "in", partition)}
        wrong = mismatches(cluster) + unaudited(cluster, seen)
        wrong += [f"{name!r} was accepted and is nowhere" for name in accepted if name not in landed]
        if len(accepted) < 500:
            wrong.append(f"only {len(accepted)} records were accepted: the storm was no test")
        if tally is not None:
            tally.add(sim.faults.planned, sim.faults.struck)
        return wrong


def test_steps_are_exact_through_every_fault() -> None:
    """No record lost, doubled or out of order; state and position of one piece; every planned fault struck."""
    tally = Tally()
    for seed in range(12):
        assert storm(seed, tally) == [], f"seed {seed}"
    tally.check()


def test_a_stage_that_writes_beside_its_step_is_caught() -> None:
    """The storm must be able to fail: derived records appended before the commit are doubled by a crash between."""

    def careless(engine: SimulatedLog) -> Run:
        async def run(lease: Lease) -> None:
            restored = await lease.restore()
            counts = {key: int(value) for key, value in restored.records}
            while True:
                for entry in await lease.fetch(50, 5.0):
                    counts[entry.key] = counts.get(entry.key, 0) + 1
                    value = b"%s #%d" % (entry.value, counts[entry.key])
                    await engine.append("out", [Draft(entry.key, value, lease.partition)], 5.0)
                    changes: list[tuple[bytes, bytes | None]] = [(entry.key, b"%d" % counts[entry.key])]
                    await lease.commit(Step({"in": entry.offset + 1}, [], changes))

        return run

    assert any(storm(seed, run=careless) for seed in range(3))


# ── one owner, every point ───────────────────────────────────────────────────────────────────────────────────────────


def handover(strike: Callable[[Sim, str], None] | None, at: float) -> tuple[list[str], float]:
    """Strike the owner at an instant; return what is wrong, and when the last record came out."""
    done_at = 0.0
    with Sim(11) as sim:
        cluster = SimulatedCluster(sim)
        sim.process("first", worker(cluster))
        sim.run(2.0)
        sim.process("second", worker(cluster))
        sim.run(2.0)  # both have their share
        for number in range(3):
            cluster.land("in", [Draft(b"key-%d" % key, b"%d" % number) for key in range(8)])
        if strike is not None:
            sim.at(4.0 + at, strike, sim, "first")
        while mismatches(cluster) and sim.now < 60.0:
            sim.run(0.05)
        done_at = sim.now
        wrong = mismatches(cluster)
        sim.run(30.0)
        wrong += mismatches(cluster)
        for name in ("first", "second"):
            sim.stop(name)
        sim.run(60.0)
    return wrong, done_at


def instants() -> list[float]:
    """Return every instant of the first 60 ms at which something happens, and the middles between."""
    with Sim(11) as sim:
        cluster = SimulatedCluster(sim)
        sim.process("first", worker(cluster))
        sim.run(2.0)
        sim.process("second", worker(cluster))
        sim.run(2.0)
        for number in range(3):
            cluster.land("in", [Draft(b"key-%d" % key, b"%d" % number) for key in range(8)])
        found = [0.0]
        while found[-1] < 0.06:
            due = [timer[0] for timer in sim.loop._timers if timer[2]._callback is not None]
            nearest = min(due)
            if nearest - 4.0 > 0.06:
                break
            sim.run(nearest - sim.now)
            found.append(sim.now - 4.0)
        middles = [(one + other) / 2 for one, other in pairwise(found)]
    return sorted({*found, *middles})


def test_an_owner_killed_at_any_instant_of_its_steps_loses_and_doubles_nothing() -> None:
    """Before the request, between written and committed, after the commit, before the answer: all the same outside."""
    points = instants()
    assert len(points) > 20
    slowest = 0.0
    for at in points:
        wrong, done_at = handover(lambda sim, name: sim.kill(name), at)
        assert wrong == [], f"killed at {at}"
        slowest = max(slowest, done_at - 4.0 - at)
    assert SESSION_TIMEOUT_S - HEARTBEAT_S < slowest < SESSION_TIMEOUT_S + 2.0


def test_an_owner_frozen_at_any_instant_of_its_steps_is_shut_out() -> None:
    """SIGSTOP for twice the session: on waking it believes it owns, and its step is refused."""
    for at in instants():
        wrong, _ = handover(lambda sim, name: sim.freeze(name, 2 * SESSION_TIMEOUT_S), at)
        assert wrong == [], f"frozen at {at}"


# ── zombies ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Held:
    """A worker whose leases the test works with."""

    def __init__(self, sim: Sim, cluster: SimulatedCluster, name: str = "owner") -> None:
        self.leases: dict[int, SimLease] = {}
        self.engine: SimulatedLog | None = None
        self.process = sim.process(name, worker(cluster, self._run))
        self._sim = sim

    def _run(self, engine: SimulatedLog) -> Run:
        self.engine = engine

        async def run(lease: Lease) -> None:
            assert isinstance(lease, SimLease)
            await lease.restore()
            self.leases[lease.partition] = lease
            await asyncio.Event().wait()

        return run

    def do(self, act: Callable[[], Awaitable[Any]]) -> list[Any]:
        """Let the process do something; the list holds its result or its error when it is done."""
        done: list[Any] = []

        async def acting() -> None:
            try:
                done.append(await act())
            except Exception as exc:
                done.append(exc)

        self._kept = self.process.spawn(acting())
        return done


def test_a_thawed_owner_believes_until_it_is_told_and_can_write_nothing_but_plain_appends() -> None:
    """The zombie: HELD by its own account, refused by the log; only the age of its proof tells it."""
    with Sim(3) as sim:
        cluster = SimulatedCluster(sim)
        owner = Held(sim, cluster)
        sim.run(2.0)
        lease = owner.leases[1]
        sim.freeze("owner")
        sim.run(0.1)
        sim.process("successor", worker(cluster))
        sim.run(20.0)
        cluster.land("in", [Draft(b"k", b"1", 1)])
        sim.run(1.0)
        assert [entry.value for entry in kept(cluster, "out", 1)] == [b"1 #1"]
        # It was in the middle of something when it froze: that goes on first.
        step = Step({"in": 1}, [("out", Draft(b"k", b"zombie", 1))])
        refused = owner.do(lambda: lease.commit(step))
        engine = owner.engine
        assert engine is not None
        landed = owner.do(lambda: engine.append("in", [Draft(b"k", b"zombie", 1)], 5.0))
        sim.thaw("owner")
        assert lease.state is LeaseState.HELD
        assert owner.process.clock.monotonic() - lease.proven_at > 20.0
        sim.run(5.0)
        assert isinstance(refused[0], LeaseLost)
        assert landed == [None]
        with pytest.raises(LeaseLost):
            lease.tenure.raise_if_lost()
        assert [entry.value for entry in kept(cluster, "out", 1)] == [b"1 #1", b"zombie #2"]
        for name in ("owner", "successor"):
            sim.stop(name)
        sim.run(60.0)


def test_a_rebalance_nobody_used_keeps_memory() -> None:
    """AWAY and back: the same coroutine, the same lease, and no fencing."""
    with Sim(3) as sim:
        cluster = SimulatedCluster(sim)
        owner = Held(sim, cluster)
        sim.run(2.0)
        before = dict(owner.leases)
        epochs = dict(cluster.epochs)
        seen: dict[LeaseState, None] = {}
        cluster.rebalance("copy")
        for _ in range(4_000):
            sim.run(0.0005)
            seen[before[0].state] = None
        assert list(seen) == [LeaseState.HELD, LeaseState.AWAY]
        assert before[0].state is LeaseState.HELD
        assert (owner.leases, cluster.epochs) == (before, epochs)
        sim.stop("owner")
        sim.run(10.0)


@pytest.mark.parametrize(("kind", "visible"), [("step.lost", False), ("step.unheard", True)])
def test_a_step_in_doubt_is_whole_or_not_there_and_loses_the_lease(kind: str, visible: bool) -> None:
    """What the owner cannot know, it must not guess: it restores."""
    with Sim(3) as sim:
        cluster = SimulatedCluster(sim)
        owner = Held(sim, cluster)
        sim.run(2.0)
        sim.faults.plan(kind, 1.0)
        lease = owner.leases[0]
        done = owner.do(lambda: lease.commit(Step({"in": 5}, [("out", Draft(b"k", b"x", 0))], [(b"k", b"1")], b"memo")))
        sim.run(30.0)
        assert isinstance(done[0], LeaseLost)
        assert [entry.value for entry in kept(cluster, "out", 0)] == ([b"x"] if visible else [])
        assert owner.leases[0] is not lease
        assert owner.leases[0].state is LeaseState.HELD
        position = cluster.positions.get(("copy", 0))
        assert (position.offsets if position else {}) == ({"in": 5} if visible else {})
        sim.stop("owner")
        sim.run(60.0)


def test_what_comes_after_an_open_step_is_seen_when_it_is_settled() -> None:
    """As `read_committed` on Kafka: a dead owner's step holds readers up until it times out or somebody fences."""
    with Sim(3) as sim:
        cluster = SimulatedCluster(sim)
        owner = Held(sim, cluster)
        sim.run(2.0)
        sim.faults.plan("step.slow", 1.0, seconds=Latency(60.0, 60.0, 0.0))
        lease = owner.leases[0]
        owner.do(lambda: lease.commit(Step({"in": 5}, [("out", Draft(b"k", b"open", 0))])))
        sim.run(0.1)
        sim.kill("owner")
        cluster.land("out", [Draft(b"k", b"plain", 0)])
        assert kept(cluster, "out", 0) == []
        sim.run(TRANSACTION_TIMEOUT_S)
        assert [entry.value for entry in kept(cluster, "out", 0)] == [b"plain"]
        assert cluster.logs["out"].partitions[0].open == {}


# ── appends ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "landed", "heard"),
    [
        ("append.slow", [b"a", b"b"], True),
        ("append.refused", [], False),
        ("append.landed_unheard", [b"a", b"b"], False),
        ("append.partial", [b"a"], False),
        ("append.twice", [b"a", b"b", b"a", b"b"], True),
    ],
)
def test_each_fault_of_an_append_is_what_it_says(kind: str, landed: list[bytes], heard: bool) -> None:
    """LogUnavailable means not known: both cases must occur."""
    for seed in range(4):
        with Sim(seed) as sim:
            cluster = SimulatedCluster(sim)
            owner = Held(sim, cluster)
            sim.run(2.0)
            sim.faults.plan(kind, 1.0)
            engine = owner.engine
            assert engine is not None
            drafts = [Draft(b"k", b"a", 0), Draft(b"k", b"b", 1)]
            done = owner.do(lambda engine=engine, drafts=drafts: engine.append("in", drafts, 9.0))  # type: ignore[misc]
            sim.run(30.0)
            assert (done == [None]) is heard
            assert heard or isinstance(done[0], LogUnavailable)
            found = sorted(entry.value for partition in range(2) for entry in kept(cluster, "in", partition))
            assert found == sorted(landed)
            sim.stop("owner")
            sim.run(30.0)


def test_an_append_to_a_log_that_is_away_is_unavailable_in_time_and_may_land_later() -> None:
    """The caller answers 503; its repetition is why facts carry ids."""
    with Sim(3) as sim:
        cluster = SimulatedCluster(sim)
        owner = Held(sim, cluster)
        sim.run(2.0)
        cluster.down(20.0)
        engine = owner.engine
        assert engine is not None
        done = owner.do(lambda: engine.append("in", [Draft(b"k", b"late", 0)], 5.0))
        sim.run(5.1)
        assert isinstance(done[0], LogUnavailable)
        assert kept(cluster, "in", 0) == []
        sim.run(20.0)
        assert [entry.value for entry in kept(cluster, "in", 0)] == [b"late"]
        sim.stop("owner")
        sim.run(30.0)


def test_what_waited_in_a_dead_process_is_gone_and_what_had_left_arrives() -> None:
    """Nothing is durable before it is said to be, and nothing can be called back."""
    with Sim(3) as sim:
        cluster = SimulatedCluster(sim)
        owner = Held(sim, cluster)
        sim.run(2.0)
        engine = owner.engine
        assert engine is not None

        async def both() -> None:
            first = engine.append("in", [Draft(b"k", b"left", 0)], 5.0)
            second = engine.append("in", [Draft(b"k", b"waited", 0)], 5.0)
            await asyncio.gather(first, second)

        done = owner.do(both)
        sim.run(0.0001)
        sim.kill("owner")
        sim.run(30.0)
        assert done == []
        assert [entry.value for entry in kept(cluster, "in", 0)] == [b"left"]


def test_a_process_cut_off_for_longer_than_its_session_loses_its_partitions() -> None:
    """Running, but unheard: the others go on without it, and it comes back as a newcomer."""
    with Sim(3) as sim:
        cluster = SimulatedCluster(sim)
        owner = Held(sim, cluster)
        sim.run(2.0)
        sim.process("successor", worker(cluster))
        sim.run(2.0)
        before = dict(owner.leases)
        cluster.cut("owner", 10.0)
        sim.run(8.0)
        cluster.land("in", [Draft(b"k", b"%d" % partition, partition) for partition in range(PARTITIONS)])
        sim.run(1.0)
        assert mismatches(cluster) == []
        sim.run(10.0)
        assert all(lease.state is LeaseState.LOST for lease in before.values())
        assert sum(lease.state is LeaseState.HELD for lease in owner.leases.values()) == PARTITIONS / 2
        for name in ("owner", "successor"):
            sim.stop(name)
        sim.run(60.0)


def digest(seed: int) -> str:
    """Run two workers through some faults; return the run's digest."""
    with Sim(seed) as sim:
        cluster = SimulatedCluster(sim)
        for kind in APPENDS + STEPS:
            sim.faults.plan(kind, 0.02)
        for name in ("one", "other"):
            sim.process(name, worker(cluster))
        for at in range(40):
            sim.at(1.0 + at / 2, cluster.land, "in", [Draft(b"%d" % at, b"x")])
        sim.at(4.0, sim.restart, "one", 1.0)
        sim.at(9.0, sim.freeze, "other", 8.0)
        sim.run(60.0)
        for name in ("one", "other"):
            sim.stop(name)
        sim.run(60.0)
        return sim.digest()


def test_one_seed_is_one_storm() -> None:
    """The log draws its chances from the seed alone."""
    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


def test_one_seed_is_one_storm_in_every_interpreter() -> None:
    """Whatever the interpreter's hashes of strings are."""
    program = "from tests.simulation.test_simulated_log import digest; print(digest(1))"
    for hash_seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert ran.stdout.strip() == digest(1)
