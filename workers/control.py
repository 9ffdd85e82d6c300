"""What operators want of sinks, as the control log says it: read by every process that delivers, from its first record.

`control` is small and compacted, keyed by sink: the last word about each stays for as long as it holds. Nothing is
delivered before it was read once to its end, so that a sink that was paused stays so over every restart; a log that
cannot be read is tried again, and delivery, which needs the same log, waits with it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import msgspec

from broker.errors import DepescheError
from broker.log.catalogue import CONTROL
from broker.log.contract import Entry, LogEngine
from broker.log.lease import Backoff
from schemas.records import SinkControl, decode_control

LET_GO_S_MAX = 2.0

_log = logging.getLogger(__name__)


class Controls:
    """Follows the control log. `heard` is called with each record, `caught_up` once, when all there were are heard."""

    def __init__(
        self,
        engine: LogEngine,
        rng: random.Random,
        heard: Callable[[SinkControl], None],
        caught_up: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._rest = Backoff(rng)
        self._heard = heard
        self._caught_up = caught_up
        self._next = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to read."""
        self._task = asyncio.create_task(self._read())

    async def stop(self) -> None:
        """Stop reading."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=LET_GO_S_MAX)

    async def _read(self) -> None:
        has_caught_up = False
        while True:
            try:
                async for entry in self._engine.read(CONTROL, 0, self._next or None, tail=has_caught_up):
                    self._take(entry)
                    self._rest.succeeded()
                if not has_caught_up:
                    has_caught_up = True
                    self._caught_up()
                    continue
            except DepescheError as error:
                _log.warning("the control log cannot be read, it is tried again: %s", error)
            await asyncio.sleep(self._rest.next_s())

    def _take(self, entry: Entry) -> None:
        self._next = entry.offset + 1
        try:
            record = decode_control(entry.value)
        except msgspec.MsgspecError:
            # Deleted, or of a newer version: what it asks for is not known, so what was asked for before stands.
            if entry.value:
                _log.error("control record %d cannot be read and is passed over", entry.offset)
            return
        self._heard(record)
