"""Bots of other people as processes: one of pywa, one of Node's whatsapp-api-js. Libraries as published, locked.

Node's comes from npm once, is kept under `.cache`, and is used again as long as its lock file stays the same. Where
there is no Node the tests are skipped with the reason; with CI=true they fail.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import pytest

HERE = Path(__file__).parent
NODE_BOT = HERE / "node-bot"
CACHE = HERE.parents[1] / ".cache"

FETCH_S_MAX = 60.0
"""Measured: 1 s for one package without dependencies."""
READY_S_MAX = 30.0
STOP_S_MAX = 10.0
VERIFY_TOKEN = "verify-me"


class Stranger:
    """One bot as a process. `notebook` is what it saw, in order, as it wrote it down."""

    def __init__(self, name: str, command: Sequence[object], folder: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.output = folder / f"{name}.log"
        self._notebook = folder / f"{name}.jsonl"
        self._command = [str(part) for part in command]
        self._environment = {**environment, "BOT_NOTEBOOK": str(self._notebook), "BOT_VERIFY_TOKEN": VERIFY_TOKEN}
        self._popen: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it and wait until it answers Meta's handshake."""
        self._popen = self._spawn()
        url = f"http://127.0.0.1:{self._environment['BOT_PORT']}/webhook"
        asked = {"hub.mode": "subscribe", "hub.verify_token": VERIFY_TOKEN, "hub.challenge": "1158201444"}
        deadline = time.monotonic() + READY_S_MAX
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while time.monotonic() < deadline and self._popen.poll() is None:
                try:
                    async with session.get(url, params=asked) as answer:
                        if (answer.status, await answer.text()) == (200, asked["hub.challenge"]):
                            return
                except (aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(0.05)
        raise AssertionError(f"{self.name} is not ready; it said:\n{self.said()}")

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.output.open("ab") as stream:
            return subprocess.Popen(
                self._command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self._environment},
                start_new_session=True,
            )

    def stop(self) -> None:
        """End it, by process id."""
        if self._popen is None or self._popen.poll() is not None:
            return
        self._popen.send_signal(signal.SIGTERM)
        try:
            self._popen.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait(STOP_S_MAX)

    def said(self) -> str:
        """Return the last of what it printed."""
        return self.output.read_text(errors="replace")[-6_000:] if self.output.exists() else ""

    def notes(self, what: str) -> list[dict[str, Any]]:
        """Return what it wrote down of one kind, in order."""
        lines = self._notebook.read_text().splitlines() if self._notebook.exists() else []
        return [one for one in map(json.loads, lines) if one["what"] == what]


def pywa_bot(folder: Path, port: int, gateway: str, key: str, secret: str, number: str) -> Stranger:
    """The bot of pywa, not started."""
    return Stranger(
        "pywa", [sys.executable, HERE / "pywa_bot.py"], folder, _environment(port, gateway, key, secret, number)
    )


def node_bot(folder: Path, port: int, gateway: str, key: str, secret: str, number: str) -> Stranger:
    """The bot of whatsapp-api-js, not started; its package is fetched when it is not there."""
    command = ["node", node_modules() / "bot.js"]
    return Stranger("node", command, folder, _environment(port, gateway, key, secret, number))


def _environment(port: int, gateway: str, key: str, secret: str, number: str) -> dict[str, str]:
    return {
        "BOT_PORT": str(port),
        "BOT_GATEWAY": gateway,
        "BOT_TOKEN": key,
        "BOT_SECRET": secret,
        "BOT_NUMBER": number,
    }


def node_modules(timeout_s: float = FETCH_S_MAX) -> Path:
    """Return the folder with Node's bot and what it needs, installed from its lock. Skips or fails without Node."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            _give_up(f"no `{tool}` on the PATH")
    files = [NODE_BOT / name for name in ("package.json", "package-lock.json", "bot.js")]
    folder = CACHE / f"node-bot-{hashlib.sha256(b''.join(one.read_bytes() for one in files)).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        made = Path(scratch) / "node-bot"
        made.mkdir()
        for one in files:
            shutil.copy(one, made)
        command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        try:
            done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            _give_up(f"npm gave no packages within {timeout_s:.0f} s")
        if done.returncode != 0:
            _give_up(f"npm could not install the lock's packages: {(done.stdout + done.stderr)[-800:]}")
        try:
            made.replace(folder)  # whole or not at all; of two runs at once one wins and both have it
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"CI=true and no Node bot: {reason}", pytrace=False)
    pytest.skip(f"no Node bot: {reason}")
