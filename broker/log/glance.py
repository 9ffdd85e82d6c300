"""Looks into the embedded log's file while another process has it: for `depesche tail` and `depesche deadletters`.

Reads only, takes no lock that the writer would wait for, and sees committed steps alone, since SQLite shows no others.
Records come in the order they were committed in, over all partitions asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

from broker.errors import LogUnavailable, Misconfigured
from broker.log.contract import Entry
from broker.log.store import DATABASE

RECORDS_MAX = 512
"""Taken at a time, so that a look never holds an old snapshot of the database for long."""

TAIL_WAIT_S = 0.3
"""How often the end is looked at: a person watches."""


def progress(folder: Path, group: str, log: str) -> list[tuple[int, int, int | None, str]]:
    """Return for each partition of a log: first kept offset, next one, what a group committed (None: never), its text.

    Blocks for as long as SQLite needs. Raises as `glance` does.
    """
    with _reading(folder) as (file, db):
        rows = db.execute(
            "SELECT places.id, next, offset, coalesce(metadata, '') FROM places LEFT JOIN followers "
            "ON followers.place = places.id AND followers.name = ? WHERE log = ? ORDER BY partition",
            (group, log),
        ).fetchall()
        # One look at all records, which are found by their row, not by their place. `next` is written when the log is
        # opened and what it counts is removed: the records tell the rest.
        edges = {
            place: (first, last + 1)
            for place, first, last in db.execute(
                "SELECT place, min(offset), max(offset) FROM records "
                "WHERE place IN (SELECT value FROM json_each(?)) GROUP BY place",
                (json.dumps([row[0] for row in rows]),),
            )
        }
        if not rows:
            raise Misconfigured(_no_such_place(db, file, log, None))
    found = []
    for place, following, offset, text in rows:
        first, end = edges.get(place, (following, following))
        found.append((first, max(end, following), offset, text))
    return found


def commits(folder: Path, group: str, log: str) -> list[tuple[int | None, str]]:
    """Return for each partition of a log what a group committed (None: never) and its text: without a look at the
    records, for whoever knows where they begin and end. Blocks and raises as `progress` does."""
    with _reading(folder) as (file, db):
        rows: list[tuple[int | None, str]] = db.execute(
            "SELECT offset, coalesce(metadata, '') FROM places LEFT JOIN followers "
            "ON followers.place = places.id AND followers.name = ? WHERE log = ? ORDER BY partition",
            (group, log),
        ).fetchall()
        if not rows:
            raise Misconfigured(_no_such_place(db, file, log, None))
    return rows


def must_exist(folder: Path) -> None:
    """Raise `LogUnavailable` when no log was ever made in this folder: a command makes none, a role does."""
    file = folder / DATABASE
    if not file.exists():
        raise LogUnavailable(f"{file}: there is no log there yet; start `depesche run` once, or name another path")


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[tuple[Path, sqlite3.Connection]]:
    """Open a folder's log to read, and close it. Raises `LogUnavailable`, also for what SQLite says meanwhile."""
    file = folder / DATABASE
    must_exist(folder)
    try:
        db = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
    except sqlite3.Error as error:
        raise LogUnavailable(f"{file}: cannot be opened ({error})") from None
    try:
        yield file, db
    except sqlite3.Error as error:
        raise LogUnavailable(f"{file}: cannot be read ({error})") from None
    finally:
        db.close()


async def glance(
    folder: Path, log: str, *, partition: int | None = None, offset: int = 0, tail: bool = False
) -> AsyncGenerator[Entry, None]:
    """Read the records of a log from `offset` on in one partition or all, and with `tail` go on at the end.

    Raises `Misconfigured` when there is no such log, `LogUnavailable` when the file is not there or cannot be read.
    """
    with _reading(folder) as (file, db):
        places = {
            int(place): int(number)
            for place, number in db.execute("SELECT id, partition FROM places WHERE log = ?", (log,))
            if partition is None or number == partition
        }
        if not places:
            raise Misconfigured(_no_such_place(db, file, log, partition))
        query = (
            "SELECT id, place, offset, at, key, value FROM records WHERE id > ? AND id <= ? AND offset >= ? "
            "AND value IS NOT NULL AND place IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?"
        )
        last = 0
        while True:
            # The end is taken first: what lies before it and is not ours is never looked at again.
            (end,) = db.execute("SELECT coalesce(max(id), 0) FROM records").fetchone()
            rows = db.execute(query, (last, end, offset, json.dumps(list(places)), RECORDS_MAX)).fetchall()
            for _, place, at_offset, at, key, value in rows:
                yield Entry(log, places[place], at_offset, key, value, at)
            if len(rows) == RECORDS_MAX:
                last = rows[-1][0]
                continue
            last = max(last, end)
            if not tail:
                return
            await asyncio.sleep(TAIL_WAIT_S)


def _no_such_place(db: sqlite3.Connection, file: Path, log: str, partition: int | None) -> str:
    """Say what there is instead of a log or partition that does not exist."""
    (count,) = db.execute("SELECT count(*) FROM places WHERE log = ?", (log,)).fetchone()
    if count:
        return f"partition {partition}: {log} has partitions 0 to {count - 1}"
    known = sorted(row[0] for row in db.execute("SELECT DISTINCT log FROM places"))
    return f"no log {log!r} in {file}; there are {', '.join(known) or 'none'}"
