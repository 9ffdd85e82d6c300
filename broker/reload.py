"""A configuration that changes while we run: noticed, checked whole, then taken by every part at once, or not at all.

The file and the secrets it names are looked at every second (a mounted ConfigMap or Secret changes by itself; nobody
sends a signal into a pod), and read at once on SIGHUP. What is being written is left alone until it has been the same
for two looks. A reading that is wrong in anything changes nothing: the error is said once, the metric says it until it
is mended, and it is read again every ten seconds, for the mending may be in a file we do not know of.

Every part first prepares, which may fail, and then takes, which may not: an assignment or two, all parts in one turn of
the loop. Each process reads its own copy: `config_info` shows by its digest which of them have the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from broker import metrics
from broker.clock import Clock
from broker.config import Config
from broker.errors import Misconfigured
from schemas.settings import Settings

logger = logging.getLogger("depesche.config")

LOOK_S = 1.0
AGAIN_S = 10.0
"""How soon a configuration that was wrong is read again although no file we look at has changed."""

STOP_S_MAX = 2.0

FIXED = ("log", "receiver", "gateway", "sender", "connector", "admin", "sandbox")
"""Tables that are built into what runs: ports, sizes, the engine."""
FIXED_OF_NUMBERS = ("waba_id", "portfolio", "slot")
"""These decide where records are kept and what their keys are."""
FIXED_OF_SINKS = ("kind", "partitions")

Take = Callable[[], None]
Prepare = Callable[[Config], Take]
"""Builds what a part needs of a configuration, and returns what puts it in force. Raises `Misconfigured` or
`ValueError`; what it returns must not raise."""

Stamps = tuple[tuple[int, int, int] | None, ...]


def digest(settings: Settings) -> str:
    """Return a short hash of all settings; secrets are not part of it."""
    return hashlib.blake2b(msgspec.json.encode(settings), digest_size=6).hexdigest()


def needs_restart(before: Settings, after: Settings) -> Iterator[str]:
    """Yield a line for each difference that a running process cannot take."""
    for name in FIXED:
        yield from _differences(name, getattr(before, name), getattr(after, name))
    for table, key, fixed in (("numbers", "phone_number_id", FIXED_OF_NUMBERS), ("sinks", "name", FIXED_OF_SINKS)):
        old = {getattr(each, key): each for each in getattr(before, table)}
        new = {getattr(each, key): each for each in getattr(after, table)}
        for name in [*old, *(name for name in new if name not in old)]:
            if name not in new or name not in old:
                yield f"{table}: {name} {'came' if name in new else 'went'}{RESTART}"
                continue
            for each in fixed:
                yield from _differences(f"{table} {name}: {each}", getattr(old[name], each), getattr(new[name], each))


RESTART = ": takes a restart; nothing of this configuration is in force"


def _differences(path: str, before: object, after: object) -> Iterator[str]:
    if before == after:
        return
    if isinstance(before, Struct) and type(before) is type(after):
        for each in structs.fields(before):
            yield from _differences(f"{path}.{each.name}", getattr(before, each.name), getattr(after, each.name))
    elif isinstance(before, str | int | float) and isinstance(after, str | int | float):
        yield f"{path} = {after!r}, was {before!r}{RESTART}"
    else:
        yield f"{path} changed{RESTART}"


def changed(before: Config, after: Config) -> list[str]:
    """Return the names of what differs, for the log line: tables, and secrets by their settings' paths."""
    names = [
        each.name
        for each in structs.fields(Settings)
        if getattr(before.settings, each.name) != getattr(after.settings, each.name)
    ]
    return names + [path for path in after.secret_paths() if not before.has(path, after.secret(path))]


class Reloader:
    """Watches a process's configuration. Owns which one is in force."""

    def __init__(self, config: Config, read: Callable[[], Config], clock: Clock) -> None:
        """`read` reads and checks the configuration anew, in a thread. Raises `Misconfigured`."""
        self.config = config
        self.generation = 1
        self.failure: str | None = None
        """Why this process should get no more work, should taking a configuration ever have crashed halfway."""
        self._read = read
        self._clock = clock
        self._parts: list[Prepare] = []
        self._hurried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._wrong = ""
        self._wrong_at = 0.0
        self._show()
        metrics.config_reload_ok.set(1)

    def add(self, prepare: Prepare) -> None:
        """Let a part take part from now on."""
        self._parts.append(prepare)

    def hurry(self) -> None:
        """Read the configuration now: what SIGHUP does."""
        self._hurried.set()

    async def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._watch(), name="configuration")

    async def stop(self) -> None:
        """End it, in bounded time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=STOP_S_MAX)

    async def _watch(self) -> None:
        taken: Stamps | None = None  # files may have changed between their first reading and now: one is due
        seen: Stamps = ()
        while True:
            is_hurried = await self._wait()
            stamps = await asyncio.to_thread(stamps_of, self.config.files())
            is_settled, seen = stamps == seen, stamps
            is_due_again = bool(self._wrong) and self._clock.monotonic() - self._wrong_at >= AGAIN_S
            if is_hurried or is_due_again or (is_settled and stamps != taken):
                taken = stamps
                await self.reload()

    async def _wait(self) -> bool:
        try:
            async with asyncio.timeout(LOOK_S):
                await self._hurried.wait()
        except TimeoutError:
            return False
        self._hurried.clear()
        return True

    async def reload(self) -> bool:
        """Read the configuration and put it in force, whole or not at all. False when it is wrong."""
        before = self.config
        if self.failure is not None:
            return False
        try:
            after = await asyncio.to_thread(self._read)
            if errors := list(needs_restart(before.settings, after.settings)):
                raise Misconfigured("\n".join(errors))
            names = changed(before, after)
            takes = [prepare(after) for prepare in self._parts] if names else []
        except (Misconfigured, ValueError) as error:
            self._refused(str(error))
            return False
        except Exception as error:
            logger.exception("reading the configuration crashed")
            self._refused(type(error).__name__)
            return False
        try:
            for take in takes:
                take()
        except Exception:
            self.failure = "a configuration is in force in some parts only: restart this process"
            logger.critical("%s", self.failure, exc_info=True)
            metrics.config_reload_ok.set(0)
            return False
        self.config = after
        if names:
            self.generation += 1
            self._show()
            metrics.config_reloads.labels("taken").inc()
            logger.info("configuration %s is in force: %s", digest(after.settings), ", ".join(names))
            if late := [name for name in names if name.partition(".")[0] in FIXED]:
                logger.warning("read again at the next start only: %s", ", ".join(late))
        elif self._wrong:
            logger.info("configuration is right again, as it was")
        self._wrong = ""
        metrics.config_reload_ok.set(1)
        return True

    def _refused(self, text: str) -> None:
        self._wrong_at = self._clock.monotonic()
        metrics.config_reload_ok.set(0)
        if text == self._wrong:
            return
        self._wrong = text
        metrics.config_reloads.labels("refused").inc()
        for line in text.splitlines():
            logger.error("configuration refused, the one before stays in force: %s", line)

    def _show(self) -> None:
        metrics.config_generation.set(self.generation)
        metrics.config_info.clear()
        metrics.config_info.labels(digest(self.config.settings)).set(1)


def stamps_of(files: list[Path]) -> Stamps:
    """Return what tells a file from its successor, None for each that is not there. Follows links: a mounted ConfigMap
    changes by one."""
    stamps: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(stamps)
