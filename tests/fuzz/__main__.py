"""Both fuzzers for as long as you like: `python -m tests.fuzz --seconds 600`. Exits with 1 when something was found."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.actors.test_passthrough import gateway_to, sandbox
from tests.fuzz.program import guided, schemathesis


async def run(seconds: int) -> int:
    """Run one after the other, half of the time each; print what they said."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        half = max(seconds // 2, 20)
        async with sandbox() as meta, gateway_to(meta.platform.base_url, folder / "log") as bot:
            first = await schemathesis(bot.url, folder, half, "--phases", "coverage,fuzzing")
        print(first.text)
        second = await guided(folder, half)
        print(second.text[-4_000:])
        return 1 if first.code or second.code else 0


def main() -> int:
    """Read the arguments and fuzz."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    return asyncio.run(run(parser.parse_args().seconds))


if __name__ == "__main__":
    sys.exit(main())
