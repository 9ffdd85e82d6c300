"""What became of the rows, written for machines (`faults.json`) and for people (`faults.md`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct, field

WHY_CHARS_MAX = 600


class Played(Struct, kw_only=True):
    """A row that was played: `scale` is full, or short as in the suite; `why` says what broke where it failed."""

    row: str
    fault: str
    invariants: str
    passes: str
    result: Literal["passed", "failed"]
    scale: Literal["full", "short"]
    seconds: float
    commit: str
    machine: str
    figures: dict[str, float | int | str] = field(default_factory=dict)
    why: str = ""


def read(folder: Path) -> list[Played]:
    """What an earlier run wrote; nothing where there was none."""
    path = folder / "faults.json"
    return msgspec.json.decode(path.read_bytes(), type=list[Played]) if path.exists() else []


def write(rows: Sequence[Played], folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = [msgspec.to_builtins(row) for row in rows]
    (folder / "faults.json").write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
    (folder / "faults.md").write_text(readable(rows))


def readable(rows: Sequence[Played]) -> str:
    """The rows as a page."""
    failed = sum(row.result == "failed" for row in rows)
    lines = [
        "# Faults",
        "",
        "Written by `make faults` out of `faults.json`: what was done to real processes, and what held.",
        "",
        f"{len(rows) - failed} of {len(rows)} rows passed.",
        "",
        "| row | fault | invariants | passes when | result | figures | s | scale | commit |",
        "| --- | --- | --- | --- | --- | --- | ---: | --- | --- |",
    ]
    for row in rows:
        figures = ", ".join(f"{name} {value}" for name, value in row.figures.items())
        result = row.result if row.result == "passed" else "**failed**"
        cells = [row.row, row.fault, row.invariants, row.passes, result, figures]
        lines.append(f"| {' | '.join(cells)} | {row.seconds:.0f} | {row.scale} | {row.commit} |")
    lines += [f"\n- {row.row}: {row.why}" for row in rows if row.why]
    return "\n".join(lines) + "\n"
