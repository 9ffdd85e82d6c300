"""A trial as a newcomer has it: one real `depesche run --data <folder>` process, seen through its ports.

Everything is bounded; what the process said is shown when it does not do as it should.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from broker.trial import Ports

T = TypeVar("T")

ASSISTANT = "106540352242922"
ORDERS = "106540352242955"
ADA, CLEO = "15550001234", "US.19000000000000000003"

START_S_MAX = 30.0
STOP_S_MAX = 20.0
CALL_S_MAX = 5.0
LOOK_S = 0.02


def free_base_port() -> int:
    """Return a port that was free a moment ago, as were the five above it. Below those that systems give away."""
    for _ in range(200):
        base = random.randrange(20_000, 32_000, 10)
        sockets: list[socket.socket] = []
        try:
            for port in Ports.from_base(base):
                one = socket.socket()
                sockets.append(one)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind(("127.0.0.1", port))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
        return base
    raise AssertionError("no six free ports in a row after 200 tries")


def depesche(*arguments: str | Path, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Fails when it takes longer."""
    return subprocess.run(
        [sys.executable, "-m", "broker.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


class Trial:
    """A folder, six ports and, between `start` and its end, a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base_port = free_base_port()
        self.ports = Ports.from_base(self.base_port)
        self.output = folder.with_name(folder.name + ".out")
        self.process: subprocess.Popen[bytes] | None = None
        self.began_at = 0.0

    @property
    def config(self) -> Path:
        """The configuration that the first start made."""
        return self.folder / "depesche.toml"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=STOP_S_MAX)

    def start(self) -> None:
        """Start the process; `began_at` is that moment. Does not wait."""
        self.began_at = time.monotonic()
        with self.output.open("ab") as stream:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "broker.cli",
                    "run",
                    "--data",
                    str(self.folder),
                    f"--base-port={self.base_port}",
                ],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )

    def start_and_wait(self) -> None:
        """Start the process and wait until it is ready."""
        self.start()
        self.until(lambda: self.call(self.ports.admin, "GET", "/readyz")[0] == 200, START_S_MAX)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)

    def ended(self) -> tuple[int, float]:
        """Wait for the end; return the exit code and the seconds since this was asked."""
        assert self.process is not None
        began = time.monotonic()
        code = self.process.wait(timeout=STOP_S_MAX)
        return code, time.monotonic() - began

    def said(self) -> str:
        """Return what the process wrote."""
        return self.output.read_text(errors="replace")

    def until(self, look: Callable[[], T | None], timeout_s: float) -> T:
        """Look until there is something true to see; a port that is not open yet is nothing."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process is None or self.process.poll() is None, f"it ended; it said:\n{self.said()[-6_000:]}"
            try:
                if found := look():
                    return found
            except (OSError, HTTPException):
                pass
            time.sleep(LOOK_S)
        raise AssertionError(f"not seen within {timeout_s} s; the process said:\n{self.said()[-6_000:]}")

    def call(
        self, port: int, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Make one call; return status and body."""
        connection = HTTPConnection("127.0.0.1", port, timeout=CALL_S_MAX)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def sandbox(self, method: str, path: str, given: dict[str, Any] | None = None) -> Any:
        """Call the sandbox's own interface; return the JSON it answers with."""
        body = None if given is None else json.dumps(given).encode()
        headers = {"Content-Type": "application/json"}
        status, answer = self.call(self.ports.sandbox, method, f"/sandbox/{path}", body, headers)
        assert status == 200, answer
        return json.loads(answer)

    def write(self, text: str, person: str = ADA, number: str = ASSISTANT) -> str:
        """Write to a number as a customer; return the message's id."""
        given = {"number": number, "person": person, "type": "text", "content": {"body": text}}
        return str(self.sandbox("POST", "messages", given)["wamid"])

    def chat(self, person: str = ADA, number: str = ASSISTANT) -> dict[str, Any]:
        """Return a chat as the phone shows it, {} when there is none."""
        chats = self.sandbox("GET", "state")["chats"]
        return next((chat for chat in chats if (chat["person"], chat["number"]) == (person, number)), {})

    def answers(self, person: str = ADA, number: str = ASSISTANT) -> list[dict[str, Any]]:
        """Return what the business said in a chat, oldest first."""
        return [bubble for bubble in self.chat(person, number).get("bubbles", []) if bubble["by"] == "business"]
