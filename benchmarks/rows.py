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

import msgspec
from msgspec import Struct, field

from benchmarks.child import Facts

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent


class Row(Struct, kw_only=True):
    """One figure: the median of its runs, beside its rival's where it has one.

    `ratio` is the median of the ratios run by run: value and rival of one run were measured within seconds of each
    other. `settings` is what was measured how; `seen` what else was seen, medians again.
    """

    id: str
    value: float
    unit: str
    runs: list[float]
    against: str = ""
    against_value: float | None = None
    ratio: float | None = None
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
    settings: Facts | None = None,
    seen: Facts | None = None,
) -> Row:
    """Make a row of its runs; `rival`: its name and its runs, one beside each of ours."""
    made = Row(id=id_, value=median(runs), unit=unit, runs=list(runs), settings=settings or {}, seen=seen or {})
    if rival is not None:
        made.against, theirs = rival
        made.against_value = median(theirs)
        made.ratio = median(ours / other for ours, other in zip(runs, theirs, strict=True))
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


def write(rows: Sequence[Row], folder: Path, remarks: Sequence[str]) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps([msgspec.to_builtins(each) for each in rows], indent=1, ensure_ascii=False)
    (folder / "latest.json").write_text(text + "\n")
    (folder / "latest.md").write_text(readable(rows, remarks))


def readable(rows: Sequence[Row], remarks: Sequence[str]) -> str:
    """The rows as a page."""
    lines = [
        "# Figures",
        "",
        "Written by `make bench` from `latest.json`; what each ought to be and why: `../sketch.md`.",
        "",
        f"- Commit: {rows[0].commit}" if rows else "",
        f"- Machine: {rows[0].machine}" if rows else "",
        *(f"- {remark}" for remark in remarks),
        "",
        "| figure | value | unit | runs | beside | its value | ratio | seen |",
        "| --- | ---: | --- | --- | --- | ---: | ---: | --- |",
    ]
    for each in rows:
        runs = " · ".join(_short(run) for run in each.runs)
        rival = "" if each.against_value is None else _short(each.against_value)
        ratio = "" if each.ratio is None else f"{each.ratio:.2f}"
        seen = ", ".join(f"{name} {_short(value)}" for name, value in each.seen.items())
        lines.append(
            f"| {each.id} | {_short(each.value)} | {each.unit} | {runs} | {each.against} | {rival} | {ratio} | {seen} |"
        )
    shown: dict[str, str] = {}
    for each in rows:
        shown.setdefault(each.id.partition(".")[0], ", ".join(f"{n} {v}" for n, v in each.settings.items()))
    lines += ["", "Settings:", "", *(f"- {name}: {text}" for name, text in shown.items()), ""]
    return "\n".join(lines)


def _short(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


Progress = Callable[[str], None]
