"""Calls of the two fuzzers as programs of their own, bounded in time."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import NamedTuple

from broker.clock import SystemClock
from tests.actors.ports import KEY, NUMBER, OPERATOR_KEY
from tests.actors.test_passthrough import WABA
from tests.core.message.samples import BASE, GOOD

GRACE_S = 60.0
"""Beyond its own time a fuzzer may start, finish a case and write its summary. On a busy machine that takes a while."""


class Ended(NamedTuple):
    """How a fuzzer ended: 0 when it found nothing; what it said."""

    code: int
    text: str


async def ended(command: list[str], folder: Path, seconds: float) -> Ended:
    """Run a program to its end and return what it said; one that does not end is killed, and has failed."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), seconds + GRACE_S)
    except TimeoutError:
        return Ended(-1, f"it did not end within {seconds + GRACE_S:.0f} s")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Ended(process.returncode or 0, out.decode(errors="replace"))


async def schemathesis(url: str, folder: Path, seconds: int, *options: str, operator: bool = False) -> Ended:
    """Let schemathesis read the document of the gateway at `url` and try what follows from it, as a bot or an operator.

    Not looked for: that a good value is refused and a bad one taken, for rules between members are no schema, and
    members nobody knows pass; and 405 for every other method, for of an object that is not there Graph says no more.
    """
    config = folder / "schemathesis.toml"
    hour = SystemClock().now() + 3_600_000
    config.write_text(
        f'headers = {{ Authorization = "Bearer {OPERATOR_KEY if operator else KEY}" }}\n'
        f'[parameters]\n"path.phone_number_id" = "{NUMBER}"\n"path.waba_id" = "{WABA}"\n"path.name" = "bot"\n'
        f'"header.X-Depesche-Not-After" = "{hour}"\n'
        "[checks]\nnegative_data_rejection.enabled = false\npositive_data_acceptance.enabled = false\n"
        "unsupported_method.enabled = false\n"
    )
    program = str(Path(sys.executable).with_name("st"))
    base = url if operator else f"{url}/v26.0"
    command = [program, "--config-file", str(config), "run", f"{url}/openapi.json", "--url", base, *options]
    if operator:
        command += ["--include-path-regex", "^/control/"]
    else:
        command += ["--exclude-path-regex", "^/(openapi.json|media/|control/)"]  # they have no version
    command += ["--max-time", str(seconds), "--generation-database", "none", "--no-color", "--request-timeout", "10"]
    return await ended(command, folder, seconds)


async def guided(folder: Path, seconds: int) -> Ended:
    """Run the coverage-guided fuzzer, beginning with the samples."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for index, message in enumerate(GOOD.values()):
        (corpus / f"whole-{index}").write_bytes(b"\0\0" + json.dumps({**BASE, **message}).encode())
        (corpus / f"changed-{index}").write_bytes(bytes([1, index]) * 24)
    command = [sys.executable, "-m", "tests.fuzz.guided", str(corpus), f"-artifact_prefix={folder}/"]
    command += [
        f"-max_total_time={seconds}",
        "-max_len=4096",
        "-timeout=10",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
    ]
    return await ended(command, Path.cwd(), seconds)
