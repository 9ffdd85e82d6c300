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
    """Run one after the other, a third of the time each: as a bot, as an operator, by bytes; print what they said."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        part = max(seconds // 3, 20)
        async with sandbox() as meta, gateway_to(meta.platform.base_url, folder / "log") as bot:
            first = await schemathesis(bot.url, folder, part, "--phases", "coverage,fuzzing")
            print(first.text)
            second = await schemathesis(bot.url, folder, part, "--phases", "coverage,fuzzing", operator=True)
        print(second.text)
        third = await guided(folder, part)
        print(third.text[-4_000:])
        return 1 if first.code or second.code or third.code else 0


def main() -> int:
    """Read the arguments and fuzz."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    return asyncio.run(run(parser.parse_args().seconds))


if __name__ == "__main__":
    sys.exit(main())
