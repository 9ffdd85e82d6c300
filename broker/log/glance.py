"""Looks into the embedded log's file while another process has it: for `depesche tail` and `depesche deadletters`.

Reads only, takes no lock that the writer would wait for, and sees committed steps alone, since SQLite shows no others.
Records come in the order they were committed in, over all partitions asked for.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

from broker.errors import LogUnavailable, Misconfigured
from broker.log.contract import Entry
from broker.log.store import DATABASE

RECORDS_MAX = 512
"""Taken at a time, so that a look never holds an old snapshot of the database for long."""

TAIL_WAIT_S = 0.3
"""How often the end is looked at: a person watches."""


async def glance(
    folder: Path, log: str, *, partition: int | None = None, offset: int = 0, tail: bool = False
) -> AsyncIterator[Entry]:
    """Read the records of a log from `offset` on in one partition or all, and with `tail` go on at the end.

    Raises `Misconfigured` when the file or the log does not exist, `LogUnavailable` when it cannot be read.
    """
    file = folder / DATABASE
    if not file.exists():
        raise Misconfigured(f"{file}: there is no log there yet; start `depesche run` once, or name another path")
    try:
        db = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
    except sqlite3.Error as error:
        raise LogUnavailable(f"{file}: cannot be opened ({error})") from None
    try:
        places = {
            int(place): int(number)
            for place, number in db.execute("SELECT id, partition FROM places WHERE log = ?", (log,))
            if partition is None or number == partition
        }
        if not places:
            known = sorted(row[0] for row in db.execute("SELECT DISTINCT log FROM places"))
            raise Misconfigured(f"no log {log!r} (partition {partition}) in {file}; there are {', '.join(known)}")
        query = (
            "SELECT id, place, offset, at, key, value FROM records WHERE id > ? AND offset >= ? AND value IS NOT NULL "
            "AND place IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?"
        )
        last = 0
        while True:
            rows = db.execute(query, (last, offset, json.dumps(list(places)), RECORDS_MAX)).fetchall()
            for row, place, at_offset, at, key, value in rows:
                last = row
                yield Entry(log, places[place], at_offset, key, value, at)
            if len(rows) < RECORDS_MAX:
                if not tail:
                    return
                await asyncio.sleep(TAIL_WAIT_S)
    except sqlite3.Error as error:
        raise LogUnavailable(f"{file}: cannot be read ({error})") from None
    finally:
        db.close()
