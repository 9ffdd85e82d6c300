"""What only the embedded engine can be held to: its disk, its file, its one writer."""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from broker import metrics
from broker.clock import SystemClock
from broker.errors import LeaseLost, LogUnavailable, Misconfigured
from broker.log.contract import Draft, Entry, LogSpec, Stage, Step
from broker.log.embedded import EmbeddedLog
from broker.log.embedded_lease import EmbeddedFollow
from broker.log.store import Store

SPECS = (LogSpec("in", 2), LogSpec("state", 2, "last"), LogSpec("traffic", 1, "time", 1_000))
STAGE = Stage("s", ("in",), "state")


class JumpingClock(SystemClock):
    """The wall clock may be set ahead."""

    ahead_ms = 0

    def now(self) -> int:
        """Return Unix ms."""
        return super().now() + self.ahead_ms


def made(folder: Path, **settings: object) -> EmbeddedLog:
    """Return an engine that does its upkeep when asked."""
    options: dict[str, object] = {"clock": SystemClock(), "rng": random.Random(3), "lock_s_max": 0.2, "upkeep_s": 999.0}
    return EmbeddedLog(folder, SPECS, **{**options, **settings})  # type: ignore[arg-type]


@asynccontextmanager
async def opened(folder: Path, **settings: object) -> AsyncIterator[EmbeddedLog]:
    """An engine that is open for a while."""
    engine = made(folder, **settings)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close(5.0)


async def read(engine: EmbeddedLog, log: str, partition: int = 0) -> list[Entry]:
    """Read a partition to its end."""
    return [entry async for entry in engine.read(log, partition)]


async def test_a_second_engine_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    """Two writers would each believe in their own offsets."""
    async with opened(tmp_path):
        with pytest.raises(LogUnavailable, match=rf"{tmp_path}.*process \d+"):
            await made(tmp_path).start()
    async with opened(tmp_path) as engine:
        await engine.append("in", [Draft(b"k", b"v")], 5)


async def test_a_start_waits_for_the_one_before_to_leave(tmp_path: Path) -> None:
    """A restart overlaps with its predecessor's shutdown."""
    first = made(tmp_path)
    await first.start()
    second = made(tmp_path, lock_s_max=5.0)
    starting = asyncio.create_task(second.start())
    await asyncio.sleep(0.2)
    assert not starting.done()
    await first.close()
    await starting
    await second.close()


async def test_a_folder_that_cannot_be_is_said_at_the_start(tmp_path: Path) -> None:
    """Not at the first webhook."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LogUnavailable, match="file"):
        await made(tmp_path / "file" / "log").start()


async def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    """A rollback must not damage what it does not know."""
    async with opened(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "log.db")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(LogUnavailable, match="99"):
        await made(tmp_path).start()


async def test_commits_are_synchronous(tmp_path: Path) -> None:
    """kill -9 cannot show it, a power cut would: every COMMIT is fsynced, on the WAL."""
    async with opened(tmp_path):
        store = Store(tmp_path, SystemClock(), lambda *_: None, None)
        db = store.open()
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        store.end(1.0)


async def test_many_appends_share_a_commit(tmp_path: Path) -> None:
    """Group commit: a thousand callers do not cost a thousand fsyncs."""
    async with opened(tmp_path) as engine:
        before = _commits()
        await asyncio.gather(*(engine.append("in", [Draft(b"k", b"%d" % number)], 10) for number in range(1_000)))
        assert _commits() - before < 100


async def test_a_flipped_bit_is_reported_with_its_place_and_spares_its_neighbours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Disks lie. What is damaged is named, what is not is served."""
    async with opened(tmp_path) as engine:
        await engine.append("in", [Draft(b"k", b"value-%04d" % number, 1) for number in range(400)], 5)
    path = tmp_path / "log.db"
    content = bytearray(path.read_bytes())
    assert content.count(b"value-0123") == 1
    content[content.index(b"value-0123") + 7] ^= 0x04
    path.write_bytes(content)
    with caplog.at_level(logging.CRITICAL):
        async with opened(tmp_path) as engine:
            entries = await read(engine, "in", 1)
            assert [int(entry.value[6:]) for entry in entries] == [n for n in range(400) if n != 123]
            assert [entry.offset for entry in entries] == [n for n in range(400) if n != 123]
            lease = await engine.seize(STAGE, 1)
            fetched: list[Entry] = []
            while len(fetched) < 399:
                fetched += await lease.fetch(50, 5.0)
            assert fetched == entries
    assert "log 'in', partition 1, offset 123" in caplog.text


@pytest.mark.parametrize("damage", ["ALTER TABLE records RENAME TO rebords", "DROP TABLE places"])
async def test_a_table_that_is_not_there_is_never_made_anew(tmp_path: Path, damage: str) -> None:
    """A flipped bit in its name would otherwise give an empty log, and nobody would be told."""
    async with opened(tmp_path) as engine:
        await engine.append("in", [Draft(b"k", b"v")], 5)
    with closing(sqlite3.connect(tmp_path / "log.db")) as db:
        db.execute(damage)
        db.commit()
    with pytest.raises(LogUnavailable, match="damaged: its tables are not what was created"):
        async with opened(tmp_path):
            pass


@pytest.mark.parametrize("seed", range(40))
async def test_a_bit_flipped_anywhere_never_makes_a_wrong_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """Whatever the bit hits - a record, a page's own structure, the tables beside - we serve what was written or say
    that we cannot."""
    rng = random.Random(seed)
    async with opened(tmp_path) as engine:
        for log in ("in", "state"):
            await engine.append(log, [Draft(b"%d" % n, b"%s %d" % (log.encode(), n) * 9, n % 2) for n in range(80)], 5)
    path = tmp_path / "log.db"
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content) * 8)
    content[at // 8] ^= 1 << at % 8
    path.write_bytes(content)
    served = 0
    with caplog.at_level(logging.CRITICAL):
        try:
            async with opened(tmp_path) as engine:
                for log in ("in", "state"):
                    for partition in range(2):
                        for entry in await read(engine, log, partition):
                            number = entry.offset * 2 + partition
                            assert (entry.key, entry.value) == (b"%d" % number, b"%s %d" % (log.encode(), number) * 9)
                            served += 1
                await engine.check()
        except (LogUnavailable, Misconfigured):
            return
    assert served == 160 or "damaged" in caplog.text


async def test_a_torn_tail_loses_nothing_that_was_durable(tmp_path: Path) -> None:
    """The machine died while the last frames were written: rubbish behind them is not read."""
    async with opened(tmp_path / "first") as engine:
        await engine.append("in", [Draft(b"k", b"%d" % number, 0) for number in range(100)], 5)
        (tmp_path / "second").mkdir()
        for name in ("log.db", "log.db-wal"):  # as a power cut would leave them: nothing is checkpointed yet
            (tmp_path / "second" / name).write_bytes((tmp_path / "first" / name).read_bytes())
    with (tmp_path / "second" / "log.db-wal").open("ab") as wal:
        wal.write(random.Random(5).randbytes(10_000))
    async with opened(tmp_path / "second") as engine:
        assert [int(entry.value) for entry in await read(engine, "in")] == list(range(100))
        await engine.append("in", [Draft(b"k", b"100", 0)], 5)


async def test_a_full_disk_refuses_and_heals_when_retention_makes_room(tmp_path: Path) -> None:
    """503 while full, no restart afterwards."""
    clock = JumpingClock()
    async with opened(tmp_path, bytes_max=2_000_000, clock=clock) as engine:
        taken = await _filled(engine)
        assert 20 < taken < 100
        with pytest.raises(LogUnavailable, match="full"):
            await engine.append("traffic", [Draft(b"k", b"x" * 50_000)], 5)
        lease = await engine.seize(STAGE, 0)
        with pytest.raises(LeaseLost):
            await lease.commit(Step({"in": 1}, [("traffic", Draft(b"k", b"x" * 50_000))]))
        clock.ahead_ms = 10_000
        await engine.tidy()
        for _ in range(10):
            await engine.append("traffic", [Draft(b"k", b"y" * 50_000)], 5)
        assert {entry.value[:1] for entry in await read(engine, "traffic")} == {b"y"}


async def test_a_stalled_disk_bounds_what_is_in_flight(tmp_path: Path) -> None:
    """Beyond the bound an append waits, and what found no room in its time is not written later."""
    async with opened(tmp_path, bytes_in_flight_max=10_000) as engine:
        with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # a writer that we did not ask: ours waits for it, up to five seconds
            began = time.monotonic()
            stalled = [
                asyncio.create_task(engine.append("in", [Draft(b"k", b"%d" % number * 2_000, 0)], 0.5))
                for number in range(9)
            ]
            outcomes = await asyncio.gather(*stalled, return_exceptions=True)
            assert all(isinstance(outcome, LogUnavailable) for outcome in outcomes)
            assert time.monotonic() - began < 2.0
            assert sum("nothing was written" in str(outcome) for outcome in outcomes) == 5
            other.execute("ROLLBACK")
        await engine.append("in", [Draft(b"k", b"after", 0)], 5)
        values = [entry.value[:1] for entry in await read(engine, "in")]
        assert values == [b"0", b"1", b"2", b"3", b"a"]


async def test_two_fetches_at_once_hand_out_each_record_once(tmp_path: Path) -> None:
    """A stage may ask for its lanes from several tasks."""
    async with opened(tmp_path) as engine:
        await engine.append("in", [Draft(b"k", b"%d" % number, 0) for number in range(300)], 5)
    async with opened(tmp_path) as engine:  # read from the file, where a fetch has to wait
        lease = await engine.seize(STAGE, 0)
        taken: list[int] = []

        async def taking() -> None:
            while len(taken) < 300:
                taken.extend(int(entry.value) for entry in await lease.fetch(7, 0.2))

        await asyncio.wait_for(asyncio.gather(taking(), taking(), taking()), 10)
        assert sorted(taken) == list(range(300))


async def test_a_fenced_followers_commit_is_refused(tmp_path: Path) -> None:
    """Its offset would take the successor's work back."""
    async with opened(tmp_path) as engine:
        first = await EmbeddedFollow.open(engine.desk, "g", "in", 0)
        await first.commit(3, "first")
        second = await EmbeddedFollow.open(engine.desk, "g", "in", 0)
        assert await second.restore() == (3, "first")
        await second.commit(5, "second")
        with pytest.raises(LeaseLost):
            await first.commit(4, "late")
        assert await (await EmbeddedFollow.open(engine.desk, "g", "in", 0)).restore() == (5, "second")


async def test_a_step_given_up_by_its_caller_loses_the_lease(tmp_path: Path) -> None:
    """Nobody knows whether it was written: what is committed is read back."""
    async with opened(tmp_path) as engine:
        lease = await engine.seize(STAGE, 0)
        giving_up = asyncio.create_task(lease.commit(Step({"in": 1}, [], [(b"a", b"1")])))
        await asyncio.sleep(0)
        giving_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await giving_up
        with pytest.raises(LeaseLost):
            await lease.commit(Step({"in": 2}, [], [(b"a", b"2")]))
        restored = await (await engine.seize(STAGE, 0)).restore()
        assert restored.position in ({}, {"in": 1})


async def test_the_write_ahead_log_stays_small_under_load(tmp_path: Path) -> None:
    """Checkpoints keep up beside the writer, or the writer helps: the disk must not fill with what is already kept."""
    async with opened(tmp_path) as engine:
        ends_at = time.monotonic() + 4.0

        async def appending() -> None:
            while time.monotonic() < ends_at:
                await engine.append("in", [Draft(b"k", b"x" * 10_000, 0) for _ in range(20)], 10)

        await asyncio.gather(*(appending() for _ in range(4)))
        written = (tmp_path / "log.db").stat().st_size
        wal = (tmp_path / "log.db-wal").stat().st_size
        assert wal < 200_000_000  # WAL_BYTES_MAX and one batch for each appender
        assert written + wal > wal + 50_000_000


async def _filled(engine: EmbeddedLog) -> int:
    """Append until it is refused; return how often it was not."""
    for taken in range(100):
        try:
            await engine.append("traffic", [Draft(b"k", b"x" * 50_000)], 5)
        except LogUnavailable:
            return taken
    return 100


def _commits() -> float:
    return next(
        sample.value
        for metric in metrics.log_fsync_duration.collect()
        for sample in metric.samples
        if sample.name.endswith("_count")
    )
