"""The embedded log's door: a second process of the same user appends through the first, or by itself when alone."""

from __future__ import annotations

import asyncio
import random
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.clock import SystemClock
from broker.errors import LogUnavailable, Misconfigured, RecordTooLarge
from broker.log.contract import RECORD_BYTES_MAX, Draft, LogSpec
from broker.log.door import Door, Visitor, door_of
from broker.log.embedded import EmbeddedLog
from broker.visit import EmbeddedVisit

SPECS = [LogSpec("one", 2), LogSpec("two", 1)]


def engine(folder: Path, lock_s_max: float = 0.0) -> EmbeddedLog:
    return EmbeddedLog(folder, SPECS, clock=SystemClock(), rng=random.Random(3), lock_s_max=lock_s_max)


@asynccontextmanager
async def owner(folder: Path) -> AsyncIterator[EmbeddedLog]:
    log = engine(folder)
    await log.start()
    door = Door(folder, log)
    await door.start()
    try:
        yield log
    finally:
        await door.stop()
        await log.close()


async def values(log: EmbeddedLog, name: str, partition: int) -> list[bytes]:
    return [entry.value async for entry in log.read(name, partition)]


async def test_a_visitor_appends_while_the_owner_has_the_log(tmp_path: Path) -> None:
    """One writer of the file, as ever: the owner's followers see the record like any other."""
    async with owner(tmp_path) as log, EmbeddedVisit(tmp_path, engine(tmp_path)) as visit:
        await visit.append("one", [Draft(b"k", b"first", 1), Draft(b"k", None, 1), Draft(b"k", b"last", 1)])
        await visit.append("two", [Draft(b"k", b"other")])
        assert [value for value in await values(log, "one", 1) if value] == [b"first", b"last"]
        assert await values(log, "two", 0) == [b"other"]
        assert [entry.value async for entry in visit.read("two", 0)] == [b"other"]


async def test_a_visit_opens_a_log_that_nobody_has(tmp_path: Path) -> None:
    """A letter can be put back while the broker is stopped; the log is free again afterwards."""
    async with owner(tmp_path):
        pass
    async with EmbeddedVisit(tmp_path, engine(tmp_path)) as visit:
        await visit.append("two", [Draft(b"k", b"alone")])
    async with owner(tmp_path) as log:
        assert await values(log, "two", 0) == [b"alone"]


async def test_only_its_own_user_may_use_the_door(tmp_path: Path) -> None:
    """Who can append can send messages to customers."""
    async with owner(tmp_path):
        mode = door_of(tmp_path).stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
    assert not door_of(tmp_path).exists()


async def test_a_door_left_by_a_killed_process_is_replaced(tmp_path: Path) -> None:
    """The file of a socket stays when its process is killed."""
    door_of(tmp_path).touch()
    async with owner(tmp_path), Visitor(tmp_path) as visitor:
        await visitor.append("two", [Draft(b"k", b"in")])


async def test_errors_come_through_the_door_as_what_they_are(tmp_path: Path) -> None:
    """A command's exit code depends on whose trouble it is."""
    async with owner(tmp_path), Visitor(tmp_path) as visitor:
        with pytest.raises(Misconfigured, match="no log 'three'"):
            await visitor.append("three", [Draft(b"k", b"v")])
        with pytest.raises(RecordTooLarge):
            await visitor.append("one", [Draft(b"k", bytes(RECORD_BYTES_MAX))])
        await visitor.append("one", [Draft(b"k", b"still in")])
    with pytest.raises(LogUnavailable, match="does not answer"):
        async with Visitor(tmp_path):
            pass


async def test_a_long_path_has_its_door_elsewhere(tmp_path: Path) -> None:
    """An address of a Unix socket holds about a hundred bytes; a folder's name need not know that."""
    folder = tmp_path / ("long" * 30)
    assert len(str(door_of(folder))) <= 100
    async with owner(folder) as log, Visitor(folder) as visitor:
        await visitor.append("two", [Draft(b"k", b"in")])
        assert await values(log, "two", 0) == [b"in"]


async def test_nonsense_at_the_door_is_sent_away_and_the_next_is_served(tmp_path: Path) -> None:
    """Somebody's script connects and talks HTTP."""
    async with owner(tmp_path) as log:
        for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1"):
            reader, writer = await asyncio.open_unix_connection(str(door_of(tmp_path)))
            writer.write(nonsense)
            assert await asyncio.wait_for(reader.read(), 5.0) == b""
            writer.close()
        async with Visitor(tmp_path) as visitor:
            await visitor.append("two", [Draft(b"k", b"in")])
        assert await values(log, "two", 0) == [b"in"]
