"""The embedded log's door: how another process of the same user appends to a log that a running one has open.

The embedded log is one process's, and stays so: who has it open also listens on a Unix socket beside it, which only
its own user may use, and appends what a command (`depesche deadletters replay`, `depesche sinks pause`) asks for.
Reading needs no door (`broker.log.glance`).

A frame is four bytes of length and MessagePack: `(log, [(key, value, partition)])` one way, `(error, text)` the other,
the error "" when all of it is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from broker.errors import LogUnavailable, Misconfigured, RecordTooLarge
from broker.log.contract import RECORD_BYTES_MAX, Draft, LogEngine

SOCKET = "door"
PATH_BYTES_MAX = 100
"""What fits into a socket's address (108 on Linux, 104 elsewhere). A longer one stands in the folder for temporary
files, under a name that follows from the log's."""

FRAME_BYTES_MAX = 2 * RECORD_BYTES_MAX
VISITORS_MAX = 8
VISIT_S_MAX = 60.0
"""A visitor that says nothing for so long has gone."""
APPEND_S_MAX = 10.0

_LENGTH = struct.Struct(">I")
_Asked = tuple[str, list[tuple[bytes, bytes | None, int | None]]]
_asked = msgspec.msgpack.Decoder(_Asked)
_answer = msgspec.msgpack.Decoder(tuple[str, str])
_encode = msgspec.msgpack.Encoder().encode

_ERRORS: dict[str, type[Exception]] = {
    "unavailable": LogUnavailable,
    "misconfigured": Misconfigured,
    "too_large": RecordTooLarge,
}

_log = logging.getLogger(__name__)


def door_of(folder: Path) -> Path:
    """Return where the door of the log in a folder is."""
    place = folder.resolve() / SOCKET
    if len(os.fsencode(place)) <= PATH_BYTES_MAX:
        return place
    digest = hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=12).hexdigest()
    return Path(tempfile.gettempdir()) / f"depesche-{os.getuid()}-{digest}"


class Door:
    """The side of the process that has the log open."""

    def __init__(self, folder: Path, engine: LogEngine) -> None:
        self._place = door_of(folder)
        self._engine = engine
        self._server: asyncio.Server | None = None
        self._visitors: dict[asyncio.Task[None], None] = {}

    async def start(self) -> None:
        """Open. A door that cannot be opened is said and left: what the process is for does not need it."""
        try:
            with contextlib.suppress(FileNotFoundError):
                self._place.unlink()  # left by a process that was killed: the log's lock is ours, so nobody is behind
            before = os.umask(0o177)
            try:
                self._server = await asyncio.start_unix_server(self._visited, str(self._place))
            finally:
                os.umask(before)
        except OSError as error:
            _log.warning("%s: no door for commands, they cannot append while this runs: %s", self._place, error)

    async def stop(self, timeout_s: float = 2.0) -> None:
        """Close; who is inside is sent away."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        visitors = list(self._visitors)
        for task in visitors:
            task.cancel()
        if visitors:
            await asyncio.wait(visitors, timeout=timeout_s)
        with contextlib.suppress(OSError):
            self._place.unlink()

    async def _visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._visitors[task] = None
        try:
            if len(self._visitors) <= VISITORS_MAX:
                await self._serve(reader, writer)
        except (OSError, EOFError, TimeoutError, msgspec.MsgspecError, asyncio.CancelledError):
            pass  # it went away, was sent away, or is none of ours: nothing of ours is lost with it
        finally:
            del self._visitors[task]
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(VISIT_S_MAX):
                frame = await _read(reader)
            log, drafts = _asked.decode(frame)
            answer = ("", "")
            try:
                if log not in self._engine.logs:
                    raise Misconfigured(f"the running process has no log {log!r}; its configuration is another one")
                await self._engine.append(log, [Draft(*draft) for draft in drafts], APPEND_S_MAX)
            except tuple(_ERRORS.values()) as error:
                answer = (next(name for name, kind in _ERRORS.items() if isinstance(error, kind)), str(error))
            await _write(writer, _encode(answer))


class Visitor:
    """The side of a command. Use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._place = door_of(folder)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Visitor:
        """Raises `LogUnavailable` when nobody opens."""
        try:
            if self._place.stat().st_uid not in (os.getuid(), 0):
                raise LogUnavailable(f"{self._place}: belongs to another user")
            async with asyncio.timeout(APPEND_S_MAX):
                self._streams = await asyncio.open_unix_connection(str(self._place))
        except (OSError, TimeoutError) as error:
            raise LogUnavailable(
                f"{self._place}: the process that has the log open does not answer ({error})"
            ) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._streams is not None:
            self._streams[1].close()

    async def append(self, log: str, drafts: Sequence[Draft]) -> None:
        """Append; durable when it returns. Raises as `LogEngine.append` does."""
        assert self._streams is not None, "used as a context manager"
        reader, writer = self._streams
        try:
            async with asyncio.timeout(APPEND_S_MAX + 5.0):
                await _write(writer, _encode((log, [tuple(draft) for draft in drafts])))
                error, text = _answer.decode(await _read(reader))
        except (OSError, EOFError, TimeoutError, msgspec.MsgspecError) as broken:
            raise LogUnavailable(f"{self._place}: no answer ({broken}); the records may have been written") from None
        if error:
            raise _ERRORS.get(error, LogUnavailable)(text)


async def _read(reader: asyncio.StreamReader) -> bytes:
    (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if size > FRAME_BYTES_MAX:
        raise EOFError(f"a frame of {size} bytes, at most {FRAME_BYTES_MAX}")
    return await reader.readexactly(size)


async def _write(writer: asyncio.StreamWriter, frame: bytes) -> None:
    writer.write(_LENGTH.pack(len(frame)) + frame)
    await writer.drain()
