"""Real processes of a deployment, for tests that kill them: each started with `depesche <role>`, ended by process id.

A deployment is a folder with one configuration, its secrets, and one log file for each process. Every wait is bounded;
what a process said is shown when it does not become ready.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import tomlkit

from broker import failpoints
from tests.kafka.cluster import free_ports

READY_S_MAX = 60.0
"""A process on a machine that builds and tests at the same time."""
STOP_S_MAX = 20.0

DOUBT_S = 30.0
"""When a reply whose fate is unknown is sent again: half of the default, so that a test waits half as long, and twice
what Meta's statuses may take while a receiver is started anew (repeated after 1, 3, 7 and 15 s)."""

APP_SECRET = "5eba57ade1c0ffee"
GRAPH_TOKEN = "EAAtest"
SINK_SECRET = "b07b07b07"
WABA_ID = "102290129340398"


def on_kafka(bootstrap: str, prefix: str, **log: object) -> dict[str, object]:
    """The `[log]` table of a deployment on one broker; `log`: its other settings."""
    kafka = {
        "bootstrap_servers": bootstrap,
        "prefix": prefix,
        "replication_factor": 1,
        "min_insync_replicas": 1,
    }
    return {"engine": "kafka", "kafka": kafka, **log}


@dataclass
class Process:
    """One running role."""

    name: str
    popen: subprocess.Popen[bytes]
    admin_port: int
    output: Path

    @property
    def pid(self) -> int:
        """The process id."""
        return self.popen.pid

    def kill(self) -> None:
        """End it as a crash would: no signal handler, no flush."""
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait(timeout=STOP_S_MAX)

    async def dies(self, timeout_s: float) -> None:
        """Wait until it was killed; fail with what it said when it ended otherwise, or not in time."""
        try:
            code = await asyncio.to_thread(self.popen.wait, timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not die within {timeout_s:.0f} s; it said:\n{self.said()}") from None
        assert code == -signal.SIGKILL, f"{self.name} ended with {code}; it said:\n{self.said()}"

    def freeze(self) -> None:
        """Stop it from running, without its knowing."""
        self.popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.popen.send_signal(signal.SIGCONT)

    def terminate(self) -> float:
        """Ask it to stop; return the seconds it took. Fails when it does not stop in time."""
        began = time.monotonic()
        self.popen.send_signal(signal.SIGTERM)
        self.popen.wait(timeout=STOP_S_MAX)
        return time.monotonic() - began

    def said(self) -> str:
        """Return the last of what it wrote."""
        return self.output.read_text(errors="replace")[-6_000:]


@dataclass
class Number:
    """A business number of the deployment."""

    phone_number_id: str
    slot: int
    throughput_mps: int = 80


@dataclass
class Seat:
    """A bot's place: a sink of kind `meta` at a port of loopback, its key, and the numbers it speaks for (all: ())."""

    name: str
    port: int
    numbers: Sequence[str] = ()

    @property
    def key(self) -> str:
        """The key of ours it sends with."""
        return f"dk_test-{self.name}"


@dataclass
class Deployment:
    """A configuration and the processes started with it. `log` is the `[log]` table, `seats` are the bots' places."""

    folder: Path
    log: dict[str, object]
    numbers: Sequence[Number]
    seats: Sequence[Seat]
    sender: dict[str, object] = field(default_factory=dict)
    sandbox: dict[str, object] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    receiver_port: int = 0
    gateway_port: int = 0
    sandbox_port: int = 0

    def __post_init__(self) -> None:
        self.receiver_port, self.gateway_port, self.sandbox_port = free_ports(3)
        self.folder.mkdir(parents=True, exist_ok=True)
        tree = self._tree()
        self.config.write_text(tomlkit.dumps(tree))
        del tree["sandbox"]
        self.config_of_run.write_text(tomlkit.dumps(tree))

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.folder / "depesche.toml"

    @property
    def config_of_run(self) -> Path:
        """The same without the sandbox: `run` would play Meta itself, and its journal would die with it."""
        return self.folder / "run.toml"

    async def start(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Process:
        """Start `depesche <arguments>` and wait until it is ready. `environment`: what is added to ours."""
        (admin_port,) = free_ports(1)
        config = self.config_of_run if arguments[0] == "run" else self.config
        output = self.folder / f"{name}.log"
        popen = self._spawn([*arguments, "--config", str(config), "--admin-port", str(admin_port)], output, environment)
        process = Process(name, popen, admin_port, output)
        self.processes[name] = process
        await self.ready(process)
        return process

    async def start_to_die(self, name: str, role: str, failpoint: str) -> tuple[Process, bool]:
        """Start a role that dies at a failpoint; return it, and whether it was ready before it died."""
        try:
            return await self.start(name, role, environment={failpoints.VARIABLE: failpoint}), True
        except AssertionError:
            process = self.processes[name]
            if process.popen.poll() != -signal.SIGKILL:
                raise
            return process, False

    def _spawn(
        self, arguments: Sequence[str], output: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with output.open("ab") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", "broker.cli", *arguments],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **ENVIRONMENT, **(environment or {})},
                start_new_session=True,
            )

    async def ready(self, process: Process) -> None:
        """Wait until a process says that it is ready; fail with what it said when it does not."""
        why = ""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            deadline = time.monotonic() + READY_S_MAX
            while time.monotonic() < deadline:
                if process.popen.poll() is not None:
                    break
                try:
                    async with session.get(f"http://127.0.0.1:{process.admin_port}/readyz") as answer:
                        why = await answer.text()
                        if answer.status == 200:
                            return
                except (aiohttp.ClientError, TimeoutError) as error:
                    why = str(error)
                await asyncio.sleep(0.05)
        raise AssertionError(f"{process.name} is not ready ({why.strip()}); it said:\n{process.said()}")

    async def metrics(self, process: Process) -> dict[str, float]:
        """Return a process's samples by name and labels, as they stand in its exposition."""
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.get(f"http://127.0.0.1:{process.admin_port}/metrics") as answer,
        ):
            text = await answer.text()
        lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def close(self) -> None:
        """End whatever still runs, by process id."""
        for process in self.processes.values():
            if process.popen.poll() is None:
                process.thaw()
                process.kill()

    def _tree(self) -> dict[str, object]:
        numbers = [
            {
                "phone_number_id": number.phone_number_id,
                "waba_id": WABA_ID,
                "display_phone_number": f"1555{number.phone_number_id[-7:]}",
                "throughput_mps": number.throughput_mps,
                "token": {"env": "DEPESCHE_TEST_GRAPH_TOKEN"},
            }
            for number in self.numbers
        ]
        return {
            "apps": [
                {
                    "name": "main",
                    "secrets": [{"env": "DEPESCHE_TEST_APP_SECRET"}],
                    "verify_token": {"env": "DEPESCHE_TEST_APP_SECRET"},
                }
            ],
            "numbers": [{**tree, "slot": n.slot} for tree, n in zip(numbers, self.numbers, strict=True)],
            "sinks": [
                {
                    "name": seat.name,
                    "kind": "meta",
                    "url": f"http://127.0.0.1:{seat.port}/webhook",
                    "secret": {"env": "DEPESCHE_TEST_SINK_SECRET"},
                }
                for seat in self.seats
            ],
            "keys": [
                {
                    "name": seat.name,
                    "sha256": hashlib.sha256(seat.key.encode()).hexdigest(),
                    "numbers": list(seat.numbers) or ["*"],
                    "sink": seat.name,
                }
                for seat in self.seats
            ],
            "routes": [
                {"name": seat.name, "when": {"numbers": list(seat.numbers)}, "then": {"sinks": [seat.name]}}
                for seat in self.seats
            ],
            "log": self.log,
            "receiver": {"port": self.receiver_port},
            "gateway": {"port": self.gateway_port},
            "sender": {"graph_url": f"http://127.0.0.1:{self.sandbox_port}", **self.sender},
            "connector": {"allow": ["127.0.0.0/8"]},
            "customer": {"doubt": {"reply_s": DOUBT_S}},
            "sandbox": {
                "port": self.sandbox_port,
                "webhook_url": f"http://127.0.0.1:{self.receiver_port}/webhooks/meta/main",
                "app_secret": {"env": "DEPESCHE_TEST_APP_SECRET"},
                "numbers": numbers,
                **self.sandbox,
            },
        }


ENVIRONMENT = {
    "DEPESCHE_TEST_APP_SECRET": APP_SECRET,
    "DEPESCHE_TEST_GRAPH_TOKEN": GRAPH_TOKEN,
    "DEPESCHE_TEST_SINK_SECRET": SINK_SECRET,
}
