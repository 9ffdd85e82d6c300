"""An actor: the one owner of one state, a bounded mailbox, one event at a time.

What a subclass adds is `receive`. Three kinds of event come to it, never two at once:

    mail      put into the mailbox by others, in order. It stays in hand until the actor says `finish`, and no other
              mail is taken before
    answer    what came of work the actor has begun itself (`begin`): slow I/O runs beside it
    Woke      the time of its wake-up (`wake_at`) has come

Answers and wake-ups come before mail. When `receive` or begun work crashes, the state is made anew (`restart`) after a
rest and the mail in hand comes again, until `crashed` says it was set aside. An actor that has nothing in hand, nothing
begun, no wake-up and no mail for `idle_s` ends; whoever wants it again makes a new one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Coroutine
from itertools import islice
from typing import Any, ClassVar, Generic, TypeVar

from broker import metrics
from broker.clock import Clock
from broker.errors import OutOfTurn
from broker.log.lease import Backoff
from workers.supervisor import where

Mail = TypeVar("Mail")
Answer = TypeVar("Answer")

LET_GO_S_MAX = 1.0
"""How long begun work that was cancelled is waited for: closing a connection takes less."""

_log = logging.getLogger(__name__)


class Woke:
    """The wake-up an actor asked for."""


WOKE = Woke()


class _Crashed:
    """Begun work crashed: the actor does, too."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Actor(ABC, Generic[Mail, Answer]):
    """The loop, the mailbox and the restarts of one actor. `kind` is its label in metrics; few values."""

    kind: ClassVar[str]

    def __init__(self, clock: Clock, rng: random.Random, *, mailbox_max: int, idle_s: float | None = None) -> None:
        """`mailbox_max`: records waiting; beyond it `put` waits. `idle_s`: None never ends for idleness, 0 at once."""
        self.clock = clock
        self.in_hand: Mail | None = None
        self.has_ended = False
        self._idle_s = idle_s
        self._mail: deque[tuple[Mail, float]] = deque()
        self._also: deque[tuple[Mail, float]] = deque()
        self._room = asyncio.Semaphore(mailbox_max)
        self._urgent: deque[Answer | Woke | _Crashed] = deque()
        self._begun: dict[asyncio.Task[Answer], None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._comes_again = False
        self._waiting: asyncio.Future[None] | None = None
        self._rest = Backoff(rng)
        self._waiting_records = metrics.actor_mailbox_records.labels(self.kind)
        self._mailbox_wait = metrics.actor_mailbox_wait.labels(self.kind)

    @abstractmethod
    async def receive(self, event: Mail | Answer | Woke) -> None:
        """Deal with one event. Call `finish` when the mail in hand is done with."""

    @abstractmethod
    async def crashed(self, mail: Mail, error: Exception) -> bool:
        """Count a crash with this mail in hand; return True when it is set aside, False to be given it again.

        What it raises ends the actor: that is for whoever runs it.
        """

    def restart(self) -> None:
        """Make the state anew after a crash. Begun work and the wake-up are gone already."""

    def ended(self) -> None:
        """Called once, in the same turn of the loop in which the actor stops taking mail."""

    @property
    def has_mail(self) -> bool:
        """Whether mail waits behind what is in hand."""
        return bool(self._mail)

    def behind(self, most: int) -> list[Mail]:
        """Return the mail that waits behind what is in hand, the first `most` of it, and leave it there."""
        return [mail for mail, _ in islice(self._mail, most)]

    def take_also(self, count: int) -> None:
        """Take the next mail in hand, too: `finish` is for all of it, and after a crash it waits again."""
        for _ in range(count):
            mail, put_at = self._mail.popleft()
            self._mailbox_wait.observe(max(0.0, self.clock.monotonic() - put_at))
            self._also.append((mail, put_at))

    def put_back(self) -> None:
        """Let what was taken beside the mail in hand wait again, in its order."""
        while self._also:
            self._mail.appendleft(self._also.pop())

    async def put(self, mail: Mail) -> None:
        """Put mail behind what is there; wait while the mailbox is full. Raises `OutOfTurn` when the actor ended."""
        await self._room.acquire()
        if self.has_ended:
            self._room.release()
            raise OutOfTurn(f"mail for a {self.kind} actor that has ended")
        self._mail.append((mail, self.clock.monotonic()))
        self._waiting_records.inc()
        self._wake()

    def finish(self) -> None:
        """Be done with the mail in hand: the next may come."""
        self.in_hand = None
        while self._also:
            self._also.pop()
            self._room.release()
            self._waiting_records.dec()
        self._rest.succeeded()

    def begin(self, work: Coroutine[Any, Any, Answer]) -> None:
        """Run work beside the actor; what it returns comes as an answer, what it raises is a crash."""
        task = asyncio.get_running_loop().create_task(work)
        self._begun[task] = None
        task.add_done_callback(self._work_ended)

    def wake_at(self, at: float) -> None:
        """Ask for a `Woke` at this time (monotonic seconds), instead of any asked for before.

        One whose time has come and that was not received yet is replaced, too: an actor never wakes twice for one wait.
        """
        self._cancel_timer()
        if WOKE in self._urgent:
            self._urgent.remove(WOKE)
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at - self.clock.monotonic()), self._time_is_up)

    async def run(self) -> None:
        """Live until idle or cancelled."""
        live = metrics.actors_live.labels(self.kind)
        live.inc()
        try:
            while not await self._live():
                self.restart()
                await asyncio.sleep(self._rest.next_s())
        finally:
            live.dec()
            self._end()
            await self._let_go()

    async def _live(self) -> bool:
        """Deal with events; return True when idle for long enough, False after a crash that was dealt with."""
        try:
            while (event := await self._next()) is not None:
                await self.receive(event)
        except Exception as error:
            await self._let_go()
            self.put_back()
            if self.in_hand is None:
                metrics.actor_restarts.labels(self.kind).inc()
                _log.error("%s crashed with nothing in hand: %s", self.kind, where(error))
            elif await self.crashed(self.in_hand, error):
                self.in_hand = None
            else:
                self._comes_again = True
            return False
        return True

    async def _next(self) -> Mail | Answer | Woke | None:
        """Return the next event; None when idle for `idle_s`, having ended."""
        while True:
            if self._urgent:
                event = self._urgent.popleft()
                if isinstance(event, _Crashed):
                    raise event.error
                return event
            if self._comes_again:
                self._comes_again = False
                return self.in_hand
            if self.in_hand is None and self._mail:
                self.in_hand, put_at = self._mail.popleft()
                self._room.release()
                self._waiting_records.dec()
                self._mailbox_wait.observe(max(0.0, self.clock.monotonic() - put_at))
                return self.in_hand
            at_rest = not self._begun and self._timer is None
            if at_rest and self.in_hand is not None:
                raise OutOfTurn(f"a {self.kind} actor has mail in hand and waits for nothing")
            if not await self._woken_within(self._idle_s if at_rest else None):
                self._end()
                return None

    async def _woken_within(self, timeout_s: float | None) -> bool:
        if timeout_s == 0:
            return False
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self._waiting
        except TimeoutError:
            return bool(self._mail)
        finally:
            self._waiting = None
        return True

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _work_ended(self, task: asyncio.Task[Answer]) -> None:
        error = None if task.cancelled() else task.exception()
        if task not in self._begun:
            return
        del self._begun[task]
        if task.cancelled():
            self._urgent.append(_Crashed(OutOfTurn(f"work of a {self.kind} actor was cancelled by somebody else")))
        else:
            self._urgent.append(_Crashed(error) if error is not None else task.result())
        self._wake()

    def _time_is_up(self) -> None:
        self._timer = None
        self._urgent.append(WOKE)
        self._wake()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _let_go(self) -> None:
        """Drop begun work, answers and the wake-up."""
        begun, self._begun = list(self._begun), {}
        self._cancel_timer()
        self._urgent.clear()
        for task in begun:
            task.cancel()
        if begun:
            await asyncio.wait(begun, timeout=LET_GO_S_MAX)

    def _end(self) -> None:
        if not self.has_ended:
            self.has_ended = True
            self._waiting_records.dec(len(self._mail) + len(self._also))
            self.ended()
            self._room.release()  # whoever waits in `put` learns that it ended, and passes it on
