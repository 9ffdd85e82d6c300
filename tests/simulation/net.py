"""The simulated network between processes: requests and answers that take time, get lost, or meet a cut.

A call is what an HTTP request on a connection is: the caller hears an answer, a refused connection (nothing was
handled), a reset (not known whether it was handled), or nothing until it gives up. A dead process's kernel resets its
connections; a frozen one's accepts and stays silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from tests.simulation.faults import Latency
from tests.simulation.loop import Process, Sim, State

Q = TypeVar("Q")
A = TypeVar("A")

LAN = Latency(0.0002, 0.003)
"""Between processes of one cluster."""

WAN = Latency(0.03, 0.25, tail_chance=0.01, tail_factor=6.0)
"""To a platform on the internet and back: half of it each way."""


class Service(Generic[Q, A]):
    """What answers at an address: a handler that runs in a process."""

    __slots__ = ("address", "handler", "latency", "process")

    def __init__(self, address: str, process: Process, handler: Callable[[Q], Awaitable[A]], latency: Latency) -> None:
        self.address = address
        self.process = process
        self.handler = handler
        self.latency = latency


class _Call:
    """One request under way."""

    __slots__ = ("answer", "caller", "service")

    def __init__(self, caller: Process, answer: asyncio.Future[Any]) -> None:
        self.caller = caller
        self.answer = answer
        self.service: Service[Any, Any] | None = None


class Net:
    """The wires of a run. Faults are those of kind `net.*`."""

    def __init__(self, sim: Sim) -> None:
        self._sim = sim
        self._loop = sim.loop
        self._faults = sim.faults
        self._random = sim.random("net")
        self._services: dict[str, Service[Any, Any]] = {}
        self._cuts: dict[frozenset[str], int] = {}
        self._open: dict[_Call, None] = {}
        self._handling: dict[asyncio.Task[Any], Service[Any, Any]] = {}

    def serve(
        self, process: Process, address: str, handler: Callable[[Q], Awaitable[A]], latency: Latency = LAN
    ) -> None:
        """Answer at an address from now on, in this process, until it dies. `latency` is each way's."""
        before = self._services.get(address)
        if before is not None and before.process.alive:
            raise OSError(f"address {address!r} is in use by {before.process!r}")
        self._services[address] = Service(address, process, handler, latency)
        process.watch(self, self._process_changed)

    def withdraw(self, process: Process, address: str) -> None:
        """Stop listening; what is being handled goes on."""
        service = self._services.get(address)
        if service is not None and service.process is process:
            del self._services[address]

    async def drain(self, process: Process, address: str, grace_s: float) -> int:
        """Stop listening and wait for what is being handled; return how many were not done within the grace."""
        self.withdraw(process, address)
        tasks = [task for task, service in self._handling.items() if service.process is process]
        if not tasks:
            return 0
        _, pending = await asyncio.wait(tasks, timeout=grace_s)
        for task in tasks:
            if task in pending:
                task.cancel()
        return len(pending)

    def cut(self, one: str, other: str, seconds: float) -> None:
        """Let two processes (by name) not reach each other for a while: what is sent meanwhile is lost, in silence."""
        self._sim.note("net.cut", one, other, f"{seconds:.3f}")
        self._faults.strike("net.cut")
        pair = frozenset((one, other))
        self._cuts[pair] = self._cuts.get(pair, 0) + 1
        self._loop.call_later(seconds, self._mend, pair, context=self._loop.world)

    def _mend(self, pair: frozenset[str]) -> None:
        self._cuts[pair] -= 1
        if not self._cuts[pair]:
            del self._cuts[pair]

    async def wire_away(self, process: Process, seconds: float) -> None:
        """Wait in a process for what its wire does; the dead wait for ever."""
        if not process.alive:
            await process.never()
        if seconds > 0:
            await asyncio.sleep(seconds)

    def _is_cut(self, one: Process, other: Process) -> bool:
        return bool(self._cuts) and frozenset((one.name, other.name)) in self._cuts

    async def call(self, caller: Process, address: str, request: Any, timeout_s: float) -> Any:
        """Send a request and return its answer.

        Raises `ConnectionRefusedError` (certainly not handled), `ConnectionResetError` (not known), `TimeoutError` (not
        known), and what the handler raises as `ConnectionResetError`, as a crashed connection handler does.
        """
        if not caller.alive:
            await caller.never()
        loop, faults = self._loop, self._faults
        service = self._services.get(address)
        answer: asyncio.Future[Any] = loop.create_future()
        call = _Call(caller, answer)
        delay = (service.latency if service is not None else LAN).draw(self._random) + faults.delay("net.slow")
        loop.call_later(delay, self._arrive, call, address, request, context=loop.world)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        finally:
            self._open.pop(call, None)

    def _arrive(self, call: _Call, address: str, request: Any) -> None:
        service = self._services.get(address)
        if service is None or not service.process.alive:
            self._tell(call, ConnectionRefusedError(f"nobody listens at {address!r}"))
            return
        if self._is_cut(call.caller, service.process) or self._faults.strikes("net.request_lost"):
            return
        if self._faults.strikes("net.request_reset"):
            self._tell(call, ConnectionResetError(f"{address}: reset before the request arrived"))
            return
        call.service = service
        if not call.answer.done():
            self._open[call] = None
        service.process.arrive_at(self._loop.now, self._begin, call, request)

    def _begin(self, call: _Call, request: Any) -> None:
        assert call.service is not None
        task = call.service.process.spawn(self._handle(call, request), f"handle {call.service.address}")
        self._handling[task] = call.service

    async def _handle(self, call: _Call, request: Any) -> None:
        service, task = call.service, asyncio.current_task()
        assert service is not None
        assert task is not None
        try:
            result = await service.handler(request)
        except Exception as exc:
            self._loop.fail(service.process, f"the handler of {service.address} raised {exc!r}", exc)
            self._tell(call, ConnectionResetError(f"{service.address}: the handler broke"))
            return
        finally:
            self._handling.pop(task, None)
        loop, faults = self._loop, self._faults
        if not service.process.alive:
            return
        delay = service.latency.draw(self._random) + faults.delay("net.slow")
        loop.call_later(delay, self._answered, call, result, context=loop.world)

    def _answered(self, call: _Call, result: Any) -> None:
        service = call.service
        assert service is not None
        self._open.pop(call, None)
        if self._is_cut(call.caller, service.process) or self._faults.strikes("net.answer_lost"):
            return
        if self._faults.strikes("net.answer_reset"):
            self._tell(call, ConnectionResetError(f"{service.address}: reset before the answer arrived"))
            return
        call.caller.arrive_at(self._loop.now, _resolve, call.answer, result, None)

    def _tell(self, call: _Call, error: OSError) -> None:
        """Let the caller hear of a broken connection, after the wire's time."""
        self._open.pop(call, None)
        latency = call.service.latency if call.service is not None else LAN
        call.caller.arrive_at(self._loop.now + latency.draw(self._random), _resolve, call.answer, None, error)

    def _process_changed(self, process: Process) -> None:
        """A process died: its kernel resets what was open."""
        if process.state is not State.DEAD:
            return
        self._handling = {task: one for task, one in self._handling.items() if one.process is not process}
        for call in [call for call in self._open if call.service is not None and call.service.process is process]:
            if self._is_cut(call.caller, process):
                self._open.pop(call, None)
            else:
                self._tell(call, ConnectionResetError(f"{process.name} died while it handled the request"))


def _resolve(answer: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if not answer.done():
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)
