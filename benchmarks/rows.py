"""Figures and how they are written down: `latest.json` for machines, `latest.md` for people, from the same rows."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct, field

from benchmarks.child import Facts

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent


class Goal(NamedTuple):
    """What a figure has to reach: its value, or its ratio to a rival; at least so much, or at most."""

    of: Literal["value", "ratio"]
    kind: Literal["at least", "at most"]
    bound: float

    def __str__(self) -> str:
        return f"{self.of} {self.kind} {self.bound:g}"

    def reached(self, value: float, ratio: float | None) -> bool:
        """Whether it is. A ratio nobody measured reaches nothing."""
        found = value if self.of == "value" else ratio
        if found is None:
            return False
        return found >= self.bound if self.kind == "at least" else found <= self.bound


class Row(Struct, kw_only=True):
    """One figure: the median of its runs, beside its rival's where it has one.

    `part` is the benchmark it is of, as `--only` takes it. `ratio` is the median of the ratios run by run: value and
    rival of one run were measured within seconds of each other; ours by theirs, or theirs by ours where the figure is a
    cost and the goal a share of the rival's speed (`ratio_is` says which). `reached` is None where there is no goal.
    `settings` is what was measured how; `seen` what else was seen, medians again; `note` why a goal is out of reach.
    """

    id: str
    value: float
    unit: str
    runs: list[float]
    part: str = ""
    against: str = ""
    against_value: float | None = None
    ratio: float | None = None
    ratio_is: str = ""
    goal: str = ""
    reached: bool | None = None
    note: str = ""
    settings: Facts = field(default_factory=dict)
    seen: Facts = field(default_factory=dict)
    commit: str = ""
    machine: str = ""


def row(
    id_: str,
    unit: str,
    runs: Sequence[float],
    *,
    rival: tuple[str, Sequence[float]] | None = None,
    ratio_is: Literal["ours / theirs", "theirs / ours"] = "ours / theirs",
    goal: Goal | None = None,
    note: str = "",
    of: Callable[[Sequence[float]], float] = median,
    settings: Facts | None = None,
    seen: Facts | None = None,
) -> Row:
    """Make a row of its runs; `rival`: its name and its runs, one beside each of ours.

    `of` makes one value of the runs: their sum or the worst where none may be overlooked."""
    made = Row(id=id_, value=of(runs), unit=unit, runs=list(runs), settings=settings or {}, seen=seen or {})
    made.note = note
    if rival is not None:
        made.against, theirs = rival
        made.against_value = median(theirs)
        made.ratio_is = ratio_is
        by_run = (ours / other for ours, other in zip(runs, theirs, strict=True))
        made.ratio = median(by_run if ratio_is == "ours / theirs" else (1 / each for each in by_run))
    if goal is not None:
        made.goal, made.reached = str(goal), goal.reached(made.value, made.ratio)
    return made


def medians(runs: Sequence[Facts], *names: str) -> Facts:
    """The median of each named fact."""
    return {name: median(run[name] for run in runs) for name in names}


def commit() -> str:
    """The commit that was measured, marked when files of the product differ from it."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", "broker", "schemas", "workers", "benchmarks/*.py")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{name} with changes" if changed else name


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def machine() -> str:
    """Processor, cores, kernel, Python: what a figure depends on."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    parts = [
        model,
        f"{os.cpu_count()} cores",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
        f"aiohttp {version('aiohttp')}",
        f"uvloop {version('uvloop')}",
    ]
    return ", ".join(parts)


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps([msgspec.to_builtins(each) for each in rows], indent=1, ensure_ascii=False)
    (folder / "latest.json").write_text(text + "\n")
    (folder / "latest.md").write_text(readable(rows))


def readable(rows: Sequence[Row]) -> str:
    """The rows as a page."""
    lines = [
        "# Figures",
        "",
        "Written by `make bench` out of `latest.json`. What each ought to be and why, and what to think of these:",
        "[sketch.md](../sketch.md). A value is the median of its runs; a ratio that of the runs' own ratios, ours by",
        "theirs, or theirs by ours where it is marked ⁻¹: a share of the rival's speed.",
        "",
        _score(rows),
    ]
    for name in dict.fromkeys(row.part for row in rows):
        of = [row for row in rows if row.part == name]
        common = {key: value for key, value in of[0].settings.items() if all(r.settings.get(key) == value for r in of)}
        lines += ["", f"## {name}", "", f"Commit {of[0].commit}, {of[0].machine}.", ""]
        lines += [f"- {key}: {value}" for key, value in common.items()]
        lines += ["", "| figure | value | unit | beside | ratio | goal | reached | runs |"]
        lines += ["| --- | ---: | --- | ---: | ---: | --- | --- | --- |"]
        lines += [_line(row) for row in of]
        lines += ["", *(f"- {row.id}: {row.note}" for row in of if row.note)] if any(row.note for row in of) else []
        lines += ["", "Seen beside it (medians):", ""]
        lines += [
            f"- {row.id}: " + ", ".join(f"{key} {_short(value)}" for key, value in row.seen.items())
            for row in of
            if row.seen
        ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    runs = " · ".join(_short(run) for run in row.runs)
    rival = "" if row.against_value is None else f"{_short(row.against_value)} ({row.against})"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}{'⁻¹' if row.ratio_is == 'theirs / ours' else ''}"
    reached = {None: "", True: "yes", False: "**no**"}[row.reached]
    return f"| {row.id} | {_short(row.value)} | {row.unit} | {rival} | {ratio} | {row.goal} | {reached} | {runs} |"


def _score(rows: Sequence[Row]) -> str:
    missed = [row.id for row in rows if row.reached is False]
    goals = sum(row.reached is not None for row in rows)
    return f"{goals - len(missed)} of {goals} goals reached." + (f" Missed: {', '.join(missed)}." if missed else "")


def _short(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3 if abs(value) < 1 else 2
    return f"{value:,.{digits}f}"


Progress = Callable[[str], None]
