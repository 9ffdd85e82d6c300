"""The simulation is held to what it promises, or nothing found with it means anything: virtual time, processes that
die without another line, freezes, and the same run for the same seed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.simulation import loop as loop_module
from tests.simulation.faults import Faults, Latency, Tally
from tests.simulation.loop import (
    EPOCH_MS,
    OutOfTime,
    Process,
    Sim,
    SimulationFailed,
    Spinning,
    Stalled,
    VirtualLoop,
)
from tests.simulation.net import WAN, Net

# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_time_jumps_to_the_next_timer() -> None:
    """A day of waiting costs nothing, and asyncio's own timeouts and sleeps keep exact virtual time."""
    seen: list[float] = []

    async def program(process: Process) -> None:
        clock = process.clock
        await asyncio.sleep(86_400.0)
        seen.append(clock.monotonic())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await asyncio.Event().wait()
        seen.append(clock.monotonic())
        await asyncio.wait_for(asyncio.sleep(1.0), 5.0)
        seen.append(clock.monotonic())

    with Sim(1, cpu_seconds_max=5.0) as sim:
        sim.process("one", program)
        sim.run(90_000.0)
    assert seen == [86_400.0, 86_402.5, 86_403.5]


def test_timers_of_one_instant_run_in_the_order_they_were_set() -> None:
    """Ties are broken by order, never by an address in memory."""
    ran: list[int] = []
    loop = VirtualLoop()
    for number in range(50):
        loop.call_at(1.0 if number % 2 else 1.0 + 0.0, ran.append, number)
    loop.run_for(2.0)
    loop.close()
    assert ran == list(range(50))


def test_cancelled_timers_do_not_pile_up() -> None:
    """Every append sets a timeout and cancels it: a heap of dead timers would make each step dearer than the last."""
    loop = VirtualLoop()

    async def program() -> None:
        for _ in range(20_000):
            async with asyncio.timeout(3_600.0):
                await asyncio.sleep(0.001)

    loop.run_until_complete(program())
    assert len(loop._timers) < 3_000
    assert 0 <= loop.timers_cancelled <= len(loop._timers)
    loop.close()


def test_a_loop_that_spins_is_found() -> None:
    """Callbacks that never let time go on would hang the run without a word."""

    async def program(_: Process) -> None:
        while True:  # noqa: ASYNC110  # the very fault
            await asyncio.sleep(0)

    sim = Sim(1)
    sim.process("spinner", program)
    with pytest.raises(Spinning, match="spinner"):
        sim.run(1.0)
    sim.loop.close()


def test_waiting_for_what_cannot_come_is_found() -> None:
    """A deadlock ends a run at once, not after its time limit."""
    loop = VirtualLoop()

    async def program() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stalled):
        loop.run_until_complete(program())
    loop.close()


def test_a_run_may_not_take_longer_than_it_may() -> None:
    """Both limits: CPU seconds for the machine, virtual seconds for what is waited for."""

    async def program(_: Process) -> None:
        while True:  # noqa: ASYNC110  # nothing to wait for
            await asyncio.sleep(0.001)

    sim = Sim(1, cpu_seconds_max=0.05)
    sim.process("ticker", program)
    with pytest.raises(OutOfTime, match="CPU seconds"):
        sim.run(1e9)
    with pytest.raises(OutOfTime, match="virtual seconds"):
        Sim(1).run_until(lambda: False, 3.0)
    sim.loop.close()


def test_threads_are_refused() -> None:
    """A thread would bring real time in."""
    loop = VirtualLoop()

    async def program() -> None:
        await asyncio.to_thread(print)

    with pytest.raises(RuntimeError, match="thread"):
        loop.run_until_complete(program())
    loop.close()


# ── determinism ──────────────────────────────────────────────────────────────────────────────────────────────────────


def storm(seed: int) -> str:
    """A few processes that call each other under faults; returns the run's digest."""
    with Sim(seed) as sim:
        net = Net(sim)
        for kind in ("net.request_lost", "net.request_reset", "net.answer_lost", "net.answer_reset", "net.slow"):
            sim.faults.plan(kind, 0.05)

        async def server(process: Process) -> None:
            async def handle(request: int) -> int:
                await asyncio.sleep(process.random.random() / 10)
                sim.note("handled", request)
                return request + 1

            net.serve(process, process.name, handle)
            await process.stopping.wait()

        async def client(process: Process) -> None:
            async def ask(number: int) -> None:
                while not process.stopping.is_set():
                    try:
                        answer = await net.call(process, f"server-{number % 2}", number, 1.0)
                        sim.note("answer", number, answer)
                    except (OSError, TimeoutError) as exc:
                        sim.note("failed", number, type(exc).__name__)
                    await asyncio.sleep(process.random.random())

            async with asyncio.TaskGroup() as group:
                for number in range(5):
                    group.create_task(ask(number))

        for name in ("server-0", "server-1"):
            sim.process(name, server)
        for name in ("client-0", "client-1"):
            sim.process(name, client)
        chaos = sim.random("chaos")
        for at in range(5, 60, 5):
            sim.at(at, chaos.choice((sim.restart, sim.freeze)), f"server-{at % 2}", chaos.uniform(0.1, 4.0))
        sim.run(60.0)
        for name in ("client-0", "client-1", "server-0", "server-1"):  # callers first: a service ends idle
            sim.stop(name)
            sim.run(10.0)
        return sim.digest()


def test_one_seed_is_one_run() -> None:
    """A seed printed by a failed build must show the same failure again; another seed must be another run."""
    assert storm(7) == storm(7)
    assert storm(7) != storm(8)


def test_one_seed_is_one_run_in_every_interpreter() -> None:
    """Hashes of strings differ between interpreters: nothing may depend on the order of a set."""
    program = "from tests.simulation.test_foundation import storm; print(storm(7))"
    digests = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert digests[0] == digests[1] != ""


def test_a_task_group_cancels_in_the_order_it_created() -> None:
    """`TaskGroup` keeps its tasks in a set: ours hash by number."""
    ended: list[int] = []

    async def child(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    async def fails() -> None:
        await asyncio.sleep(1.0)
        raise ValueError("enough")

    async def program() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(child(number))
            group.create_task(fails())

    loop = VirtualLoop()
    with pytest.raises(ExceptionGroup):
        loop.run_until_complete(program())
    loop.close()
    assert ended == sorted(ended) == list(range(40))


def test_a_stream_of_chance_is_its_own() -> None:
    """One more draw for one purpose leaves every other purpose's draws as they were."""
    one, other = Sim(3), Sim(3)
    one.random("a").random()
    assert [one.random("b").random() for _ in range(3)] == [other.random("b").random() for _ in range(3)]
    assert one.random("b").random() != one.random("c").random()
    one.loop.close()
    other.loop.close()


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Effects:
    """An adapter: counts what a program does to the world, and refuses the dead."""

    def __init__(self, sim: Sim, kill_at: int) -> None:
        self.done: list[str] = []
        self.cleaned: list[str] = []
        self._sim = sim
        self._kill_at = kill_at

    async def act(self, process: Process, name: str) -> None:
        if not process.alive:
            await process.never()
        self.record(process, name)
        await asyncio.sleep(0.01)

    def record(self, process: Process, name: str) -> None:
        if process.alive:
            self.done.append(name)
            if len(self.done) == self._kill_at:
                self._sim.kill(process.name)


def stubborn(effects: Effects) -> Callable[[Process], Any]:
    """A program with every construct in which code could slip past a kill."""

    async def child(process: Process, number: int) -> None:
        try:
            await effects.act(process, f"child {number}")
            await asyncio.sleep(number / 100)
            await effects.act(process, f"child {number} again")
        except BaseException:
            effects.cleaned.append(f"except {number}")
            await effects.act(process, f"except {number}")
            raise
        finally:
            effects.cleaned.append(f"finally {number}")
            await effects.act(process, f"finally {number}")

    async def numbers(process: Process) -> AsyncIterator[int]:
        try:
            for number in range(3):
                await effects.act(process, f"yield {number}")
                yield number
        finally:
            effects.cleaned.append("generator")
            await effects.act(process, "generator closed")

    async def program(process: Process) -> None:
        process.loop.call_later(0.025, effects.record, process, "timer")
        async with asyncio.TaskGroup() as group, asyncio.timeout(60.0):
            for number in range(2):
                group.create_task(child(process, number))
            async for number in numbers(process):
                await effects.act(process, f"read {number}")
            late = group.create_task(child(process, 9))
            await asyncio.shield(late)
        await effects.act(process, "end")

    return program


def test_a_kill_at_every_await_leaves_no_later_effect() -> None:
    """SIGKILL runs no `finally`, no `except`, no timer: what came before it is all there ever is."""

    def run(kill_at: int) -> Effects:
        with Sim(1) as sim:
            effects = Effects(sim, kill_at)
            sim.process("victim", stubborn(effects))
            sim.run(60.0)
            before = list(effects.done), list(effects.cleaned)
            sim.loop.close()
            assert effects.done == before[0]
        effects.cleaned = before[1]
        return effects

    whole = run(0)
    assert whole.done[-1] == "end"
    for kill_at in range(1, len(whole.done) + 1):
        killed = run(kill_at)
        assert killed.done == whole.done[:kill_at]
        assert killed.cleaned == whole.cleaned[: len(killed.cleaned)]


def test_a_kill_while_it_waits_drops_its_callbacks_timers_and_tasks() -> None:
    """Whatever was on its way to a process meets nobody."""
    ran: list[str] = []

    async def program(process: Process) -> None:
        process.loop.call_at(5.0, ran.append, "timer")
        try:
            await asyncio.Event().wait()
        finally:
            ran.append("finally")

    with Sim(1) as sim:
        process = sim.process("victim", program)
        sim.run(1.0)
        sim.kill("victim")
        process.soon(ran.append, "soon")
        orphan = process.spawn(asyncio.sleep(1.0))
        sim.run(10.0)
        assert not orphan.done()
        assert ran == []


def test_coroutines_that_hold_on_to_life_are_dismantled_without_a_word() -> None:
    """A dead coroutine that awaits in its `finally`, or swallows GeneratorExit, must not warn when the run is over."""

    async def clings(_: Process) -> None:
        while True:
            try:
                await asyncio.sleep(1.0)
            except BaseException:  # the worst there is
                continue

    async def awaits(_: Process) -> None:
        try:
            await asyncio.sleep(1e6)
        finally:
            await asyncio.sleep(1.0)
            asyncio.get_event_loop().create_task(asyncio.sleep(1.0))

    with Sim(1) as sim:
        for name, main in (("clings", clings), ("awaits", awaits)):
            sim.process(name, main)
        sim.run(3.5)
        for name in ("clings", "awaits"):
            sim.kill(name)
        sim.run(5.0)


def test_a_restart_is_a_new_incarnation_on_the_same_machine() -> None:
    """Memory is gone, the machine's clock is what it was."""
    seen: list[tuple[int, int]] = []

    async def program(process: Process) -> None:
        seen.append((process.incarnation, process.clock.now() - EPOCH_MS))
        await process.stopping.wait()

    with Sim(1) as sim:
        first = sim.process("one", program, skew_ms=250)
        sim.run(1.0)
        sim.step_clock("one", -3_600_000)
        sim.restart("one", after_s=2.0)
        sim.run(5.0)
        assert not first.alive
        assert sim.processes["one"].alive
        sim.stop("one")
        sim.run(1.0)
    assert seen == [(1, 250), (2, 250 - 3_600_000 + 3_000)]


def test_clocks_are_skewed_drift_and_step_and_the_monotonic_one_does_not() -> None:
    """Timers must follow the clock that never goes back."""

    async def program(process: Process) -> None:
        await process.stopping.wait()

    with Sim(1) as sim:
        process = sim.process("one", program, skew_ms=-30_000, drift_ppm=100.0)
        sim.run(1_000.0)
        assert process.clock.now() == EPOCH_MS - 30_000 + 1_000_100
        sim.step_clock("one", 3_600_000)
        assert process.clock.now() == EPOCH_MS - 30_000 + 1_000_100 + 3_600_000
        assert process.clock.monotonic() == 1_000.0
        assert sim.faults.struck == {"clock.step": 1}


def test_a_frozen_process_does_nothing_and_its_time_goes_on() -> None:
    """SIGSTOP: on waking, more time has passed than the process can explain."""
    ticks: list[float] = []

    async def program(process: Process) -> None:
        while not process.stopping.is_set():
            await asyncio.sleep(1.0)
            ticks.append(process.clock.monotonic())

    with Sim(1) as sim:
        sim.process("one", program)
        sim.run(2.5)
        sim.freeze("one", 10.0)
        sim.run(12.0)
        sim.stop("one")
        sim.run(2.0)
    assert ticks == [1.0, 2.0, 12.5, 13.5, 14.5, 15.5]


def test_a_thawed_process_meets_arrivals_before_timers() -> None:
    """A loop over a selector takes what the kernel holds first, then what fell due, whatever came first meanwhile."""
    order: list[str] = []

    async def program(process: Process) -> None:
        process.loop.call_at(2.0, order.append, "timer")
        await process.stopping.wait()

    with Sim(1) as sim:
        process = sim.process("one", program)
        sim.run(1.0)
        sim.freeze("one", 5.0)
        process.arrive_at(3.0, order.append, "arrived")
        sim.run(1.0)
        assert order == []
        sim.run(9.0)
        assert order == ["arrived", "timer"]


def test_a_frozen_process_can_be_killed() -> None:
    """What waited for the thaw is gone, and a thaw that comes later wakes nobody."""
    ran: list[str] = []

    async def program(process: Process) -> None:
        process.loop.call_at(2.0, ran.append, "timer")
        await process.stopping.wait()

    with Sim(1) as sim:
        sim.process("one", program)
        sim.run(1.0)
        sim.freeze("one", 5.0)
        sim.run(2.0)
        sim.kill("one")
        sim.run(20.0)
    assert ran == []


def run_and_stop(main: Callable[[Process], Any], *, seed: int = 1, seconds: float = 2.0) -> None:
    """Run one process for a while, ask it to end, and check the run."""
    with Sim(seed) as sim:
        sim.process("one", main)
        sim.run(seconds)
        sim.stop("one")
        sim.run(60.0)


def test_what_a_process_leaves_running_is_a_failure() -> None:
    """A graceful stop that leaves a task behind would leak it in production."""
    kept: list[asyncio.Task[None]] = []

    async def program(process: Process) -> None:
        kept.append(asyncio.create_task(asyncio.sleep(1e6), name="forgotten"))
        await process.stopping.wait()

    with pytest.raises(SimulationFailed, match=r"left over.*forgotten"):
        run_and_stop(program)


def test_who_does_not_end_in_time_is_a_failure() -> None:
    """Kubernetes would kill it: shutdown is bounded."""

    async def program(_: Process) -> None:
        await asyncio.Event().wait()

    with pytest.raises(SimulationFailed, match=r"did not end within 45\.0 s"):
        run_and_stop(program)


def test_exceptions_nobody_retrieves_are_failures() -> None:
    """asyncio only logs them: in a simulation they count."""

    async def breaks() -> None:
        raise ValueError("unheard")

    async def program(process: Process) -> None:
        task = asyncio.create_task(breaks())
        await asyncio.sleep(1.0)
        del task
        await process.stopping.wait()

    with pytest.raises(SimulationFailed, match="never retrieved"):
        run_and_stop(program)


def test_a_main_or_a_callback_that_raises_is_a_failure() -> None:
    """With the exception and the seed in the text."""

    async def program(process: Process) -> None:
        process.soon(lambda: 1 // 0)
        await asyncio.sleep(1.0)
        raise ValueError("main broke")

    with pytest.raises(SimulationFailed) as failed:
        run_and_stop(program, seed=17)
    text = str(failed.value)
    assert "seed 17" in text
    assert "main broke" in text
    assert "a callback raised" in text


def test_a_task_nobody_refers_to_is_a_failure() -> None:
    """The garbage collector ends it somewhere in the middle: a bug that only a long run meets."""

    async def waits() -> None:
        await asyncio.get_running_loop().create_future()

    async def program(process: Process) -> None:
        asyncio.create_task(waits())  # noqa: RUF006  # the very fault
        await asyncio.sleep(1.0)
        for _ in range(2 * loop_module.COLLECT_EVERY):
            await asyncio.sleep(0.001)

    with pytest.raises(SimulationFailed, match="destroyed but it is pending"):
        run_and_stop(program, seconds=2_000.0)


def test_an_async_generator_that_is_let_go_is_closed_in_its_own_process() -> None:
    """As under asyncio: its `finally` runs, in a task, and is not forgotten."""
    closed: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0.5)
            closed.append("closed")

    async def program(_: Process) -> None:
        async for _number in numbers():
            break
        await asyncio.sleep(2.0)

    with Sim(1) as sim:
        sim.process("one", program)
        sim.run(3.0)
    assert closed == ["closed"]


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_planned_fault_that_never_struck_fails_the_batch() -> None:
    """A batch that met no lost answer proves nothing about lost answers."""
    sim = Sim(1)
    faults: Faults = sim.faults
    faults.plan("net.slow", 1.0)
    faults.plan("net.answer_lost", 1.0, from_s=10.0)
    assert faults.delay("net.slow") > 0
    assert not faults.strikes("net.answer_lost")
    tally = Tally()
    tally.add(faults.planned, faults.struck)
    with pytest.raises(AssertionError, match=r"never struck: net\.answer_lost"):
        tally.check()
    sim.run(10.0)
    assert faults.strikes("net.answer_lost")
    tally.add(faults.planned, faults.struck)
    tally.check()
    with pytest.raises(ValueError, match="no such kind"):
        faults.plan("net.answer_lots", 1.0)
    sim.loop.close()


def test_a_fault_strikes_about_as_often_as_planned() -> None:
    """And another kind planned beside it does not change which occasions it takes."""

    def occasions(*others: str) -> list[int]:
        sim = Sim(5)
        for kind in (*others, "net.slow"):
            sim.faults.plan(kind, 0.1)
        struck = []
        for number in range(2_000):
            for kind in others:
                sim.faults.strikes(kind)
            if sim.faults.strikes("net.slow"):
                struck.append(number)
        sim.loop.close()
        return struck

    alone = occasions()
    assert 150 < len(alone) < 250
    assert occasions("append.slow") == alone


def test_a_latency_stays_within_its_bounds() -> None:
    """Mostly near the low end, at most the tail's factor beyond."""
    latency = Latency(0.01, 0.1, tail_chance=0.02, tail_factor=5.0)
    random = Sim(1).random("latency")
    drawn = sorted(latency.draw(random) for _ in range(5_000))
    assert drawn[0] >= 0.01
    assert drawn[-1] <= 0.5
    assert drawn[2_500] < 0.05


# ── the network ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Exchange:
    """A caller and a service; what each saw."""

    def __init__(self, sim: Sim, works_s: float = 0.0, timeout_s: float = 2.0) -> None:
        self.sim = sim
        self.net = Net(sim)
        self.handled: list[tuple[float, int]] = []
        self.heard: list[tuple[float, object]] = []
        self._works_s = works_s
        self._timeout_s = timeout_s
        sim.process("service", self._service)
        sim.process("caller", self._caller)

    async def _service(self, process: Process) -> None:
        async def handle(request: int) -> int:
            await asyncio.sleep(self._works_s)
            self.handled.append((self.sim.now, request))
            return request * 2

        self.net.serve(process, "doubling", handle, WAN)
        await process.stopping.wait()

    async def _caller(self, process: Process) -> None:
        await asyncio.sleep(0.1)
        try:
            answer: object = await self.net.call(process, "doubling", 21, self._timeout_s)
        except (OSError, TimeoutError) as exc:
            answer = type(exc)
        self.heard.append((self.sim.now, answer))

    @property
    def answer(self) -> object:
        """What the caller heard, once."""
        assert len(self.heard) == 1
        return self.heard[0][1]


def test_a_call_takes_its_time_and_is_answered() -> None:
    """Both ways cost latency."""
    with Sim(1) as sim:
        exchange = Exchange(sim)
        sim.run(5.0)
    assert exchange.answer == 42
    assert exchange.heard[0][0] >= 0.1 + 2 * WAN.low_s


@pytest.mark.parametrize(
    ("kind", "handled", "heard"),
    [
        ("net.request_lost", 0, TimeoutError),
        ("net.request_reset", 0, ConnectionResetError),
        ("net.answer_lost", 1, TimeoutError),
        ("net.answer_reset", 1, ConnectionResetError),
        ("net.slow", 1, 42),
    ],
)
def test_each_fault_of_the_wire_is_what_it_says(kind: str, handled: int, heard: object) -> None:
    """Whether the request was handled is the difference a sender stakes its promise on."""
    with Sim(1) as sim:
        exchange = Exchange(sim, timeout_s=20.0)
        sim.faults.plan(kind, 1.0)
        sim.run(60.0)
        assert sim.faults.struck[kind] >= 1
    assert len(exchange.handled) == handled
    assert exchange.answer == heard


def test_nobody_listening_is_a_refused_connection() -> None:
    """The one failure that is certain: nothing was handled."""
    with Sim(1) as sim:
        exchange = Exchange(sim)
        sim.at(0.05, sim.kill, "service")
        sim.run(5.0)
    assert exchange.answer is ConnectionRefusedError


def test_a_service_that_dies_resets_its_connections() -> None:
    """Not known whether it was handled: here it was not, and it never will be."""
    with Sim(1) as sim:
        exchange = Exchange(sim, works_s=1.0)
        sim.at(0.7, sim.kill, "service")
        sim.run(5.0)
    assert exchange.answer is ConnectionResetError
    assert exchange.handled == []


def test_a_frozen_service_is_silent_and_handles_it_when_thawed() -> None:
    """Its kernel accepted the request: it is done long after the caller gave up."""
    with Sim(1) as sim:
        exchange = Exchange(sim)
        sim.at(0.05, sim.freeze, "service", 30.0)
        sim.run(60.0)
    assert exchange.answer is TimeoutError
    assert [request for _, request in exchange.handled] == [21]
    assert exchange.handled[0][0] >= 30.05


def test_a_caller_that_dies_has_sent_what_it_sent() -> None:
    """Bytes that left do not come back: the platform takes the message although nobody waits for the answer."""
    with Sim(1) as sim:
        exchange = Exchange(sim)
        sim.at(0.11, sim.kill, "caller")
        sim.run(5.0)
    assert [request for _, request in exchange.handled] == [21]
    assert exchange.heard == []


def test_a_cut_loses_what_is_sent_meanwhile_and_heals() -> None:
    """Silence, not an error; afterwards the same call goes through."""
    with Sim(1) as sim:
        exchange = Exchange(sim)
        exchange.net.cut("caller", "service", 1.0)
        sim.run(5.0)
        assert exchange.answer is TimeoutError
        sim.restart("caller")
        sim.run(5.0)
    assert exchange.heard[-1][1] == 42
