"""What every command shares: the exit codes, options, and how an error becomes a line and a code.

Exit codes: 0 done; 1 a crash of ours; 2 wrong usage or configuration; 3 the log or a port cannot be had; 4 a check
found something that is not as it should be; 130 interrupted, or stopped at once by a second signal.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import uvloop

from broker.config import Config, load, load_settings
from broker.errors import DepescheError, LogUnavailable, Misconfigured
from broker.masking import Masking
from schemas.settings import Settings

EXIT_CRASH, EXIT_CONFIG, EXIT_UNAVAILABLE, EXIT_CHECK = 1, 2, 3, 4

EXIT_CODES = """\
\b
Exit codes: 0 done · 1 a crash of ours · 2 wrong usage or configuration
3 the log or a port cannot be had · 4 a check found something wrong
130 interrupted, or stopped at once by a second signal
"""

T = TypeVar("T")

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The configuration, a TOML file.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
reveal_option = click.option("--reveal", is_flag=True, help="Do not mask customers' phone numbers.")

_AGO = re.compile(r"(\d{1,6})(s|m|h|d)")
_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Instant(click.ParamType):  # type: ignore[type-arg]
    """A moment: ISO 8601 with its zone, or how long ago (`90s`, `15m`, `2h`, `3d`). As Unix ms."""

    name = "when"

    @staticmethod
    def now() -> int:
        """Return this moment."""
        return round(datetime.now(UTC).timestamp() * 1_000)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return Unix ms."""
        if isinstance(value, int):
            return value
        if ago := _AGO.fullmatch(value):
            return self.now() - int(ago[1]) * _UNIT_MS[ago[2]]
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            at = None
        if at is None or at.tzinfo is None:
            self.fail(f"{value!r}: must be like 2026-03-01T12:00:00Z, or how long ago: 90s, 15m, 2h, 3d", param, ctx)
        return round(at.timestamp() * 1_000)


def fail(code: int, message: str) -> NoReturn:
    """Say what is wrong on standard error and leave."""
    for line in message.splitlines() or [""]:
        click.echo(f"depesche: {line}", err=True)
    sys.exit(code)


def loaded(path: Path) -> Config:
    """Load a configuration or leave with its errors."""
    try:
        return load(path)
    except Misconfigured as error:
        fail(EXIT_CONFIG, str(error))


def masking_of(settings: Settings, *, reveal: bool) -> Masking | None:
    """Return what hides customers' numbers, None with `--reveal`."""
    return None if reveal else Masking.of(settings)


def loaded_settings(path: Path) -> Settings:
    """Load a configuration without its secrets or leave with its errors."""
    try:
        return load_settings(path)
    except Misconfigured as error:
        fail(EXIT_CONFIG, str(error))


def run_loop(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on uvloop; errors of ours become a line and an exit code."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work())
    except Misconfigured as error:
        fail(EXIT_CONFIG, str(error))
    except LogUnavailable as error:
        fail(EXIT_UNAVAILABLE, str(error))
    except BrokenPipeError:
        # Whoever read our output has seen enough (`depesche tail … | head`). Nothing is left to flush at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        fail(EXIT_UNAVAILABLE, error.strerror or str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except DepescheError as error:
        fail(EXIT_CRASH, f"{type(error).__name__}: {error}")
