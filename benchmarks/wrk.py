"""Webhooks as fast as they are answered, from wrk: a closed loop that leaves the most of its core to Kafka.

Every webhook is signed and written to a file before the clock runs, and sent once: `webhooks.lua` reads them. What is
under way at the end is waited for, so that what was answered and what is durable can be counted against each other.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from pathlib import Path

from benchmarks.child import Facts, cpu_s
from benchmarks.load import HEAD, PATH, webhook
from broker.core.signature import Signer

SCRIPT = Path(__file__).with_name("webhooks.lua")
BEGIN_S_MAX = 20.0
DRAIN_S_MAX = 60.0
END_S_MAX = 10.0


class Wrk:
    """Runs of wrk from some cores. `folder` holds the requests of one run at a time."""

    def __init__(self, cores: tuple[int, ...], folder: Path, secret: str) -> None:
        self._cores = cores
        self._file = folder / "webhooks"
        self._signer = Signer(secret.encode())

    def run(self, port: int, server: int, connections: int, first: int, count: int) -> Facts:
        """Send webhooks `first` to `first + count - 1`. Raises `RuntimeError` when not all are answered in time.

        CPU is that of process `server` from the first request to the last answer.
        """
        length = self._write(first, count)
        process = subprocess.Popen(
            ["wrk", "-t1", f"-c{connections}", f"-d{DRAIN_S_MAX + BEGIN_S_MAX:.0f}s", f"-s{SCRIPT}",
             f"http://127.0.0.1:{port}/", "--", str(self._file), str(length), str(count)],
            stdout=subprocess.PIPE,
            bufsize=0,
            preexec_fn=lambda: os.sched_setaffinity(0, self._cores),
        )  # fmt: skip
        try:
            self._hear(process, "began", BEGIN_S_MAX)
            began, server_s, own_s = time.perf_counter(), cpu_s(server), cpu_s(process.pid)
            ok = int(self._hear(process, "drained", DRAIN_S_MAX)[0])
            wall_s = time.perf_counter() - began
            server_s, own_s = cpu_s(server) - server_s, cpu_s(process.pid) - own_s
            process.send_signal(signal.SIGINT)
            p50_us, p99_us = map(float, self._hear(process, "latency", END_S_MAX))
            process.wait(END_S_MAX)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(END_S_MAX)
        return {
            "sent": count,
            "ok": ok,
            "rate": count / wall_s,
            "cpu_us": server_s * 1e6 / count,
            "server_busy": server_s / wall_s,
            "load_busy": own_s / wall_s,
            "p50_ms": p50_us / 1e3,
            "p99_ms": p99_us / 1e3,
        }

    def _write(self, first: int, count: int) -> int:
        """Write the requests; return the length they all have."""
        at_s = int(time.time())
        lengths = set()
        with self._file.open("wb") as file:
            for n in range(first, first + count):
                body = webhook(n, at_s)
                request = HEAD.format(PATH, self._signer.sign(body), len(body)).encode() + body
                lengths.add(len(request))
                file.write(request)
        (length,) = lengths
        return length

    @staticmethod
    def _hear(process: subprocess.Popen[bytes], word: str, timeout_s: float) -> list[str]:
        """Return what follows a word at the beginning of one of wrk's lines."""
        assert process.stdout is not None
        until = time.monotonic() + timeout_s
        while True:
            left_s = until - time.monotonic()
            if left_s <= 0 or not select.select([process.stdout], [], [], left_s)[0]:
                raise RuntimeError(f"wrk did not say {word!r} within {timeout_s:.0f} s")
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"wrk ended with {process.wait(END_S_MAX)} before it said {word!r}")
            said, *rest = line.decode().split() or [""]
            if said == word:
                return rest
