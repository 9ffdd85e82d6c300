"""Every row of the fault matrix in its short form."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.faults.report import Played, read, readable, write
from tests.faults.row import Rig, Row
from tests.faults.rows import ROWS

SPARE_S = 60
"""Beyond a row's own limit: a broker that has to be started first."""

CASES = [
    pytest.param(
        row,
        id=row.name,
        marks=[pytest.mark.timeout(row.limit_s + SPARE_S), *([pytest.mark.kafka] if row.on_kafka else [])],
    )
    for row in ROWS
]


@pytest.mark.parametrize("row", CASES)
async def test_the_promises_hold(row: Row, tmp_path: Path, kafka_prefix: str, request: pytest.FixtureRequest) -> None:
    """What breaks here would break at a brand's on a bad day."""
    rig = Rig(tmp_path, is_full=False, chance=random.Random(1), prefix=kafka_prefix)
    if row.on_kafka:
        rig.cluster = request.getfixturevalue("breakable_kafka")
    figures = await asyncio.wait_for(row.play(rig), row.limit_s)
    assert figures


def test_what_became_of_the_rows_is_written_for_machines_and_for_people(tmp_path: Path) -> None:
    """A row that fails stays red in the table and says what broke."""
    red = Played(
        row="x",
        fault="kill",
        invariants="I1",
        passes="0 missing",
        result="failed",
        scale="full",
        seconds=3.2,
        commit="abc",
        machine="here",
        figures={"kills": 3},
        why="2 missing",
    )
    write([red], tmp_path)
    assert read(tmp_path) == [red]
    page = readable([red])
    assert "0 of 1 rows passed." in page
    assert "| x | kill | I1 | 0 missing | **failed** | kills 3 | 3 | full | abc |" in page
    assert "- x: 2 missing" in page
