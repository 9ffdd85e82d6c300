"""Virtual time: one thread, many simulated processes, an event loop that never waits and never differs.

The loop takes what is ready in the order it became ready; when nothing is, time jumps to the next timer. So a seed
decides everything, and a run costs what its callbacks cost.

Every callback belongs to the **process** its context names, or to the **world** (no process): wires, clusters, the
schedule of faults. A process can be

- *frozen* (SIGSTOP): its callbacks wait; its clocks go on; thawed, it meets first what arrived and then what fell
  due, as a loop over a selector does;
- *killed* (SIGKILL): none of its lines runs again. Its suspended coroutines are neither resumed nor closed, for closing
  runs `finally` blocks: they are kept as they stand until the run is over. Code that kills its own process runs on to
  its next await, so whatever has an effect outside its process (`SimulatedLog`, `Net`) asks `process.alive` first;
- *stopped* (SIGTERM): `stopping` is set, `main` returns, and what it leaves running is a failure.

What is wrong is collected in `failures`: exceptions nobody retrieved, callbacks that raised, tasks destroyed or left
over. What makes going on pointless is raised: `Spinning`, `Stalled`, `OutOfTime`.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from enum import IntEnum
from heapq import heapify, heappop, heappush
from random import Random
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from tests.simulation.faults import Faults

_T = TypeVar("_T")

CALLBACKS_AN_INSTANT_MAX = 200_000
"""More callbacks than this without time moving is a loop that spins: the largest honest burst is a restore or a full
fetch, some thousands."""

CPU_CHECK_EVERY = 1_024
"""Instants between two looks at the real clock: a look costs as much as a callback."""

COLLECT_EVERY = 50_000
"""Callbacks between two collections of garbage, which are counted so that they fall at the same place in each run."""

COLLECT_ALL_EVERY = 1_000_000
"""Callbacks between two collections of everything, the old included: 0.1 s in a test process, once in some seconds."""

FAILURES_MAX = 100
"""Failures kept; the first ones tell."""

CLOSINGS_MAX = 64
"""Attempts to close a coroutine that awaits in its `finally`; each attempt passes one await."""

TRACE_LINES_MAX = 400
"""Newest lines of the trace that are kept as text for whoever reads a failure."""

STORY_LINES = 60
"""Lines of the trace in a failure's text."""

EPOCH_MS = 1_800_000_000_000
"""The wall clock at virtual second 0: a Friday in January 2027."""


class Spinning(Exception):
    """Callbacks run without end at one instant."""


class Stalled(Exception):
    """Something is awaited, and nothing is left that could bring it about."""


class OutOfTime(Exception):
    """A run took longer than it may, in CPU or in virtual seconds."""


class SimulationFailed(AssertionError):
    """What went wrong in a run, with its seed and the newest lines of its trace."""


class State(IntEnum):
    """What a process is. Only a running one (0) is given its callbacks."""

    RUNNING = 0
    FROZEN = 1
    DEAD = 2


class Failure(NamedTuple):
    """Something wrong that did not stop the run."""

    at: float
    process: str
    text: str
    exception: BaseException | None


class SimClock:
    """A process's clocks (`broker.clock.Clock`): the wall clock can be skewed, drift and be stepped; the monotonic one
    is the loop's, as on a real machine."""

    __slots__ = ("_loop", "offset_ms", "rate")

    def __init__(self, loop: VirtualLoop, skew_ms: int = 0, drift_ppm: float = 0.0) -> None:
        self._loop = loop
        self.offset_ms = EPOCH_MS + skew_ms
        self.rate = 1_000.0 * (1.0 + drift_ppm / 1e6)

    def now(self) -> int:
        """Return the wall clock in Unix ms."""
        return self.offset_ms + int(self._loop.now * self.rate)

    def monotonic(self) -> float:
        """Return virtual seconds."""
        return self._loop.now

    def step(self, ms: int) -> None:
        """Set the wall clock forward or back."""
        self.offset_ms += ms


class Process:
    """One incarnation of a simulated process. A restart makes a new one; the old one stays dead for good."""

    __slots__ = (
        "_arrived",
        "_due",
        "clock",
        "context",
        "incarnation",
        "loop",
        "main",
        "name",
        "random",
        "state",
        "stopping",
        "watchers",
    )

    def __init__(self, loop: VirtualLoop, name: str, incarnation: int, clock: SimClock, random: Random) -> None:
        self.loop = loop
        self.name = name
        self.incarnation = incarnation
        self.clock = clock
        self.random = random
        self.state = State.RUNNING
        self.stopping = asyncio.Event()
        self.main: asyncio.Task[None] | None = None
        self.context = Context()
        self.context.run(PROCESS.set, self)
        self.watchers: dict[int, Callable[[Process], None]] = {}
        """Called by the world soon after `state` has changed; keyed by whoever watches."""
        self._arrived: deque[_Handle] = deque()
        self._due: deque[_Handle] = deque()

    def __repr__(self) -> str:
        return f"<{self.name}#{self.incarnation} {self.state.name.lower()}>"

    @property
    def alive(self) -> bool:
        """Not killed and not ended. A frozen process is alive."""
        return self.state is not State.DEAD

    async def never(self) -> Any:
        """What an adapter of a dead process answers: nothing, ever."""
        await self.loop.create_future()

    def spawn(self, coroutine: Coroutine[Any, Any, _T], name: str = "spawned") -> asyncio.Task[_T]:
        """Begin a task that belongs to this process, whoever asks. The caller keeps the reference."""
        return self.loop.create_task(coroutine, name=name, context=self.context.copy())

    def soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Call in this process, whoever asks."""
        self.loop.call_soon(callback, *args, context=self.context)

    def arrive_at(self, when: float, callback: Callable[..., object], *args: Any) -> None:
        """Call in this process at a virtual second, as what a wire brings: thawed, it meets it before its timers."""
        handle = self.loop.call_at(when, callback, *args, context=self.context)
        handle.timed = False  # type: ignore[attr-defined]  # our own handle

    def watch(self, key: object, watcher: Callable[[Process], None]) -> None:
        """Tell the watcher each change of `state`."""
        self.watchers[id(key)] = watcher

    def _changed(self) -> None:
        for watcher in self.watchers.values():
            self.loop.call_soon(watcher, self, context=self.loop.world)


PROCESS: ContextVar[Process | None] = ContextVar("PROCESS", default=None)
"""The process a callback belongs to; None is the world."""


class _Handle(asyncio.TimerHandle):
    """A callback to come. Made without the base's `__init__`, which looks at debug mode for every one."""

    __slots__ = ("process", "sim_loop", "timed")

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context,
        sim_loop: VirtualLoop | None,
        when: float,
    ) -> None:
        self._callback: Any = callback
        self._args: Any = args
        self._context = context
        self._cancelled = False
        self._when = when
        self.process = context.get(PROCESS)
        self.sim_loop = sim_loop
        self.timed = sim_loop is not None

    def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self._callback = None
            self._args = ()
            if self.sim_loop is not None:
                self.sim_loop.timers_cancelled += 1

    def __repr__(self) -> str:
        return f"<callback {self._callback!r} of {self.process!r}>"


class SimTask(asyncio.Task[Any]):
    """A task that knows its process and hashes by its number, so that sets of tasks (`TaskGroup` cancels by one) have
    the same order in every run."""

    __slots__ = ("number", "process")

    def __init__(
        self, coro: Coroutine[Any, Any, Any], loop: VirtualLoop, number: int, name: str | None, context: Context
    ) -> None:
        self.number = number
        self.process = context.get(PROCESS)
        owner = self.process.name if self.process is not None else "world"
        super().__init__(coro, loop=loop, name=f"{owner}/{name or number}", context=context)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.BaseEventLoop):
    """An asyncio event loop on virtual time. `now` is `time()` without the call."""

    def __init__(self, *, cpu_seconds_max: float = 120.0) -> None:
        super().__init__()
        super().set_debug(False)
        self.now = 0.0
        self.callbacks = 0
        self.instants = 0
        self.failures: list[Failure] = []
        self.timers_cancelled = 0
        self.world = Context()
        self._digest = 0
        self._soon: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self._timers_made = 0
        self._tasks_made = 0
        self._halted = False
        self._sealed = False
        self._kept: list[asyncio.Task[Any]] = []  # of the dead: neither resumed nor closed while the run lasts
        self._generators: dict[int, AsyncGenerator[Any, Any]] = {}
        self._cpu_seconds_max = cpu_seconds_max
        self._cpu_seconds = 0.0

    # ── what asyncio asks ────────────────────────────────────────────────────────────────────────────────────────────

    def time(self) -> float:
        """Return virtual seconds."""
        return self.now

    def get_debug(self) -> bool:
        """Debug mode reads the real clock around every callback: never."""
        return False

    def call_soon(  # type: ignore[override]  # the overload by TypeVarTuple says no more than this
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Call in order, at this instant."""
        handle = _Handle(callback, args, copy_context() if context is None else context, None, 0.0)
        if not self._sealed:
            self._soon.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]  # there is one thread

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call after a delay in virtual seconds."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call at a virtual second; those of one instant in the order they were asked for, after all that is ready."""
        handle = _Handle(callback, args, copy_context() if context is None else context, self, when)
        if not self._sealed:
            self._timers_made = number = self._timers_made + 1
            heappush(self._timers, (when, number, handle))
        return handle

    def create_task(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        name: object = None,
        context: Context | None = None,
    ) -> asyncio.Task[_T]:
        """Make a task of the current process, or of the one the context names."""
        if self._sealed:
            coro.close()  # it will never run
        self._tasks_made = number = self._tasks_made + 1
        context = copy_context() if context is None else context
        task = SimTask(coro, self, number, None if name is None else str(name), context)  # type: ignore[arg-type]
        if self._sealed or (task.process is not None and task.process.state is State.DEAD):
            self._keep(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Threads are not simulated."""
        raise RuntimeError(f"a thread was asked for {func!r}: a stage must not use threads")

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Note what asyncio could not tell anybody else. The dead are past blame."""
        if self._sealed:
            return
        task = context.get("task") or context.get("future")
        process = task.process if isinstance(task, SimTask) else context.get("process", PROCESS.get())
        if process is not None and process.state is State.DEAD:
            return
        subject = f" ({task!r})" if task is not None else ""
        self.fail(process, f"{context.get('message')}{subject}", context.get("exception"))

    def fail(self, process: Process | None, text: str, exception: BaseException | None = None) -> None:
        """Note a failure; the run goes on."""
        if len(self.failures) < FAILURES_MAX and not self._sealed:
            self.failures.append(Failure(self.now, process.name if process is not None else "world", text, exception))

    def is_running(self) -> bool:
        """Whether a run is under way."""
        return asyncio._get_running_loop() is self

    def stop(self) -> None:
        """End `run_forever` after the callback that is running."""
        self._halted = True

    # ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def digest(self) -> int:
        """A number that two runs share only if they ran the same count of callbacks at the same instants."""
        return hash((self._digest, self.now, self.callbacks))

    def run_for(self, seconds: float) -> None:
        """Let virtual time pass."""
        self._run(self.now + seconds)

    def run_forever(self) -> None:
        """Run until `stop`."""
        self._run(None)

    def run_until_complete(self, future: Any) -> Any:
        """Run until it is done, and return what it brought. Raises `Stalled` when it never can be."""
        made = not asyncio.isfuture(future)
        task: asyncio.Future[Any] = asyncio.ensure_future(future, loop=self)

        def halt(_: asyncio.Future[Any]) -> None:
            self._halted = True

        task.add_done_callback(halt)
        try:
            self._run(None)
        except BaseException:
            if made and isinstance(task, SimTask):
                self._keep(task)
            raise
        finally:
            task.remove_done_callback(halt)
        return task.result()

    def _run(self, until: float | None) -> None:
        if self.is_closed():
            raise RuntimeError("the loop is closed")
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("a loop is running already")
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=None, finalizer=self._generator_dropped)
        collecting = gc.isenabled()
        gc.disable()
        started = time.thread_time()
        self._halted = False
        asyncio._set_running_loop(self)
        try:
            self._turn(until, started + self._cpu_seconds_max - self._cpu_seconds)
        finally:
            asyncio._set_running_loop(None)
            self._cpu_seconds += time.thread_time() - started
            if collecting:
                gc.enable()
            sys.set_asyncgen_hooks(*hooks)

    def _turn(self, until: float | None, cpu_end: float) -> None:
        """The heart: drain what is ready, jump to the next timer. Everything here is paid per callback."""
        soon = self._soon
        timers = self._timers
        take = soon.popleft
        collect_at = self.callbacks + COLLECT_EVERY - self.callbacks % COLLECT_EVERY
        while True:
            ran = 0
            while soon:
                handle = take()
                callback = handle._callback
                if callback is None:
                    continue
                process = handle.process
                if process is not None and process.state:
                    if process.state is State.FROZEN:
                        (process._due if handle.timed else process._arrived).append(handle)
                    continue
                ran += 1
                try:
                    handle._context.run(callback, *handle._args)
                except (KeyboardInterrupt, SystemExit):
                    raise
                except BaseException as exc:
                    self.call_exception_handler(
                        {"message": f"a callback raised: {handle!r}", "exception": exc, "process": process}
                    )
                if self._halted:
                    self.callbacks += ran
                    return
                if ran > CALLBACKS_AN_INSTANT_MAX:
                    self.callbacks += ran
                    raise Spinning(f"{ran} callbacks at {self.now:.6f}, the last one of {process!r}: {callback!r}")
            self.callbacks += ran
            if self.callbacks >= collect_at:
                gc.collect(2 if collect_at % COLLECT_ALL_EVERY == 0 else 1)
                collect_at += COLLECT_EVERY
            if self.timers_cancelled > 1_000 and self.timers_cancelled * 2 > len(timers):
                timers[:] = [timer for timer in timers if timer[2]._callback is not None]
                heapify(timers)
                self.timers_cancelled = 0
            while timers and timers[0][2]._callback is None:
                heappop(timers)
                self.timers_cancelled -= 1
            if not timers:
                if until is None:
                    raise Stalled(f"nothing can happen any more at {self.now:.6f}")
                self.now = max(self.now, until)
                return
            when = timers[0][0]
            if until is not None and when > until:
                self.now = max(self.now, until)
                return
            if when > self.now:
                self.now = when
            self.instants += 1
            self._digest = hash((self._digest, when, ran))
            if not self.instants % CPU_CHECK_EVERY and time.thread_time() > cpu_end:
                raise OutOfTime(f"more than {self._cpu_seconds_max} CPU seconds at virtual second {self.now:.3f}")
            when = self.now
            while timers and timers[0][0] <= when:
                handle = heappop(timers)[2]
                handle.sim_loop = None
                if handle._callback is None:
                    self.timers_cancelled -= 1
                else:
                    soon.append(handle)

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def freeze(self, process: Process) -> None:
        """Give it no callback until it is thawed."""
        if process.state is State.RUNNING:
            process.state = State.FROZEN
            process._changed()

    def thaw(self, process: Process) -> None:
        """Give it what it missed: first what arrived, then the timers that fell due."""
        if process.state is State.FROZEN:
            process.state = State.RUNNING
            self._soon.extend(process._arrived)
            self._soon.extend(process._due)
            process._arrived.clear()
            process._due.clear()
            process._changed()

    def kill(self, process: Process) -> None:
        """Let none of its lines run again."""
        if process.state is not State.DEAD:
            for task in self.tasks_of(process):
                self._keep(task)
            process.state = State.DEAD
            process._arrived.clear()
            process._due.clear()
            process._changed()

    def tasks_of(self, process: Process | None) -> list[SimTask]:
        """Return its unfinished tasks, oldest first."""
        tasks = [task for task in asyncio.all_tasks(self) if isinstance(task, SimTask) and task.process is process]
        return sorted(tasks, key=lambda task: task.number)

    def _keep(self, task: asyncio.Task[Any]) -> None:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # it will be destroyed pending: that is a kill
        self._kept.append(task)

    def _generator_dropped(self, generator: AsyncGenerator[Any, Any]) -> None:
        """An async generator was let go before its end: close it in a task, as asyncio does."""
        process = PROCESS.get()
        if self._sealed or self.is_closed() or (process is not None and process.state is State.DEAD):
            return
        task = self.create_task(_close(generator), name="aclose")
        self._generators[id(task)] = generator
        task.add_done_callback(lambda done: self._generators.pop(id(done), None) and None)

    def close(self) -> None:
        """End the run as a power cut does, then take apart what is left without letting it do anything."""
        if self.is_closed():
            return
        if asyncio._get_running_loop() is self:
            raise RuntimeError("cannot close a running loop")
        gc.collect()  # exceptions nobody retrieved are told when their tasks are destroyed
        self._sealed = True
        tasks = self._kept + sorted(asyncio.all_tasks(self), key=lambda task: getattr(task, "number", 0))
        self._soon.clear()
        self._timers.clear()
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=None, finalizer=self._generator_dropped)
        asyncio._set_running_loop(
            self
        )  # so that what a `finally` asks of asyncio is asked of a loop that takes nothing
        try:
            for task in tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                _dismantle(task)
            self._kept.clear()
            self._generators.clear()
            del tasks
            gc.collect()
        finally:
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)
        super().close()


async def _close(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()


_UNCLOSABLE: list[object] = []
"""Coroutines that swallow every GeneratorExit: kept for good, as destroying them would warn."""


def _dismantle(task: asyncio.Task[Any]) -> None:
    """Close a suspended coroutine and those it awaits, the innermost first. Their `finally` blocks run, on a loop that
    takes nothing and with adapters that refuse."""
    chain: list[Any] = []
    coroutine: Any = task.get_coro()
    while isinstance(coroutine, Coroutine):
        chain.append(coroutine)
        coroutine = getattr(coroutine, "cr_await", None)
    for coroutine in reversed(chain):
        if not _closed(coroutine):
            _UNCLOSABLE.extend(chain)
            return


def _closed(coroutine: Coroutine[Any, Any, Any]) -> bool:
    for _ in range(CLOSINGS_MAX):
        try:
            coroutine.close()
        except RuntimeError as exc:  # "coroutine ignored GeneratorExit": it awaits in its finally
            if "ignored GeneratorExit" in str(exc):
                continue
        except BaseException:  # what dead code raises concerns nobody
            pass
        return True
    return False


class Trace:
    """What happened, in a digest and in the newest lines. Two runs of one seed have the same digest."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=TRACE_LINES_MAX)
        self.count = 0
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, line: str) -> None:
        """Take down a line."""
        self.count += 1
        self.lines.append(line)
        self._hash.update(line.encode())
        self._hash.update(b"\n")

    def hexdigest(self) -> str:
        """Return the digest so far."""
        return self._hash.hexdigest()


Main = Callable[[Process], Coroutine[Any, Any, None]]
"""What a process runs. It returns after `process.stopping` is set, and leaves no task behind."""


class _Program(NamedTuple):
    main: Main
    skew_ms: int
    drift_ppm: float


class Sim:
    """One run: a seed, a loop, processes by name, a trace.

    with Sim(seed=7) as sim:
        sim.process("worker-1", worker)         # worker(process) is its main
        sim.at(30.0, sim.kill, "worker-1")
        sim.at(32.0, sim.start, "worker-1")
        sim.run(600.0)
        sim.stop("worker-1")
        sim.run(30.0)
    # leaving without an exception checks that nothing failed
    """

    def __init__(self, seed: int, *, cpu_seconds_max: float = 120.0, loop: VirtualLoop | None = None) -> None:
        self.seed = seed
        self.loop = loop if loop is not None else VirtualLoop(cpu_seconds_max=cpu_seconds_max)
        self.trace = Trace()
        self.faults = Faults(self.random, self.loop.time)
        self.processes: dict[str, Process] = {}
        self._programs: dict[str, _Program] = {}
        self._incarnations: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.loop.close()
        finally:
            if exc is not None:
                exc.add_note(self.story())
        if exc is None:
            self.check()

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return self.loop.now

    @property
    def true_ms(self) -> int:
        """The wall clock of whoever's clock is right, in Unix ms."""
        return EPOCH_MS + int(self.loop.now * 1_000.0)

    def random(self, purpose: str) -> Random:
        """Return a stream of its own for a purpose, so that one more draw here changes nothing elsewhere."""
        return Random(f"{self.seed}/{purpose}")

    def note(self, *words: object) -> None:
        """Add a line to the trace: instant, process, words."""
        process = PROCESS.get()
        owner = f"{process.name}#{process.incarnation}" if process is not None else "world"
        self.trace.add(f"{self.loop.now:.6f} {owner} {' '.join(map(str, words))}")

    def digest(self) -> str:
        """Return what two runs of one seed share: the trace's digest and the loop's."""
        return f"{self.trace.hexdigest()}-{self.loop.digest & 0xFFFF_FFFF_FFFF_FFFF:016x}"

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def process(self, name: str, main: Main, *, skew_ms: int = 0, drift_ppm: float = 0.0) -> Process:
        """Declare a process and start it."""
        if name in self._programs:
            raise ValueError(f"process {name!r} is declared already")
        self._programs[name] = _Program(main, skew_ms, drift_ppm)
        return self.start(name)

    def start(self, name: str) -> Process:
        """Start a declared process: a new incarnation, without memory. One that is alive is left alone."""
        before = self.processes.get(name)
        if before is not None and before.alive:
            return before
        program = self._programs[name]
        incarnation = self._incarnations[name] = self._incarnations.get(name, 0) + 1
        clock = SimClock(self.loop, program.skew_ms, program.drift_ppm)
        if before is not None:
            clock.offset_ms = before.clock.offset_ms  # the machine's clock outlives the process
        process = Process(self.loop, name, incarnation, clock, self.random(f"{name}#{incarnation}"))
        self.processes[name] = process
        self.note("start", f"{name}#{incarnation}")
        process.main = process.spawn(self._live(process, program.main), "main")
        return process

    async def _live(self, process: Process, main: Main) -> None:
        try:
            await main(process)
        except asyncio.CancelledError:
            self.loop.fail(process, "main was cancelled")
        except BaseException as exc:
            self.loop.fail(process, f"main raised {exc!r}", exc)
        self.loop.call_at(self.loop.now, self._ended, process, context=self.loop.world)

    def _ended(self, process: Process) -> None:
        """`main` returned, and all that was ready has run: whatever still lives was left over."""
        if not process.alive:
            return
        for task in self.loop.tasks_of(process):
            self.loop.fail(process, f"left over after main returned: {task!r}")
        self.note("ended", f"{process.name}#{process.incarnation}")
        self.loop.kill(process)

    def kill(self, name: str) -> None:
        """SIGKILL: nothing of it runs again."""
        process = self.processes[name]
        if process.alive:
            self.note("kill", f"{name}#{process.incarnation}")
            self.faults.strike("process.kill")
            self.loop.kill(process)

    def restart(self, name: str, after_s: float = 0.0) -> None:
        """Kill it, and start it again after a while."""
        self.kill(name)
        self.at(self.now + after_s, self.start, name)

    def freeze(self, name: str, seconds: float | None = None) -> None:
        """SIGSTOP, and SIGCONT after some seconds (None: when `thaw` is called)."""
        process = self.processes[name]
        if process.state is State.RUNNING:
            self.note("freeze", f"{name}#{process.incarnation}", seconds)
            self.faults.strike("process.freeze")
            self.loop.freeze(process)
            if seconds is not None:
                self.at(self.now + seconds, self._thaw, process)

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        self._thaw(self.processes[name])

    def _thaw(self, process: Process) -> None:
        if process.state is State.FROZEN:
            self.note("thaw", f"{process.name}#{process.incarnation}")
            self.loop.thaw(process)

    def stop(self, name: str, grace_s: float = 45.0) -> None:
        """SIGTERM: ask it to end; that it did not within the grace is a failure, and then it is killed."""
        process = self.processes[name]
        if process.alive:
            self.note("stop", f"{name}#{process.incarnation}")
            self.faults.strike("process.stop")
            process.soon(process.stopping.set)
            self.at(self.now + grace_s, self._overdue, process, grace_s)

    def _overdue(self, process: Process, grace_s: float) -> None:
        if process.alive:
            tasks = "; ".join(map(repr, self.loop.tasks_of(process)))
            self.loop.fail(process, f"did not end within {grace_s} s of being asked: {tasks}")
            self.loop.kill(process)

    def step_clock(self, name: str, ms: int) -> None:
        """Set a machine's wall clock forward or back."""
        self.note("clock", name, ms)
        self.faults.strike("clock.step")
        self.processes[name].clock.step(ms)

    # ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def at(self, second: float, action: Callable[..., object], *args: Any) -> None:
        """Let the world do something at a virtual second."""
        self.loop.call_at(second, action, *args, context=self.loop.world)

    def run(self, seconds: float) -> None:
        """Let virtual seconds pass."""
        self.loop.run_for(seconds)

    def run_until(self, done: Callable[[], bool], seconds_max: float, every_s: float = 0.5) -> None:
        """Run until a condition holds, asked every half second. Raises `OutOfTime` when it never does."""
        end = self.now + seconds_max
        while not done():
            if self.now >= end:
                raise OutOfTime(f"not so within {seconds_max} virtual seconds: {done!r}")
            self.loop.run_for(min(every_s, end - self.now))

    def check(self) -> None:
        """Raise `SimulationFailed` when something went wrong."""
        if self.loop.failures:
            failed = SimulationFailed(self.story())
            raise failed from next((failure.exception for failure in self.loop.failures if failure.exception), None)

    def story(self) -> str:
        """Return what a reader needs to begin with: seed, failures, the newest lines of the trace."""
        failures = [f"  {failure.at:.6f} {failure.process}: {failure.text}" for failure in self.loop.failures]
        head = f"seed {self.seed}, virtual second {self.now:.6f}, {self.loop.callbacks} callbacks"
        lines = [f"  {line}" for line in list(self.trace.lines)[-STORY_LINES:]]
        return "\n".join([head, "failures:", *failures, "trace:", *lines])
