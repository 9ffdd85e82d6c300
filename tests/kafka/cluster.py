"""Brokers as processes: start, freeze, thaw, kill, start again on the same data and ports, stop.

KRaft in combined mode (each node is broker and controller), loopback, free ports, data in a temporary folder. Nodes die
with the process that started them, also when that one is killed.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.kafka.jars import KafkaMissing, jars

READY_S_MAX = 50.0
"""Measured: 3 s idle, 13 s on a loaded machine; three nodes 41 s. With the fetch of the jars below a test's limit."""

PR_SET_PDEATHSIG = 1

SPAWNER = ThreadPoolExecutor(1, thread_name_prefix="kafka-for-tests")
"""One thread starts every node: the kernel means the thread, not the process, by the parent whose death it reports.
A node restarted from a thread of the moment died with it."""


PORTS = range(12_000, 32_000)
"""Below those Linux gives to outgoing connections (32768 and up): one of them would sit on the port of a broker that is
down for a moment. Each process begins elsewhere, so that suites beside each other seldom want the same."""

_ports = itertools.cycle(PORTS)
for _ in range(os.getpid() * 61 % len(PORTS)):
    next(_ports)


def free_ports(count: int) -> list[int]:
    """Return ports nobody listens on now. Somebody else may take one before we do: then the start fails loudly."""
    free: list[int] = []
    for port in itertools.islice(_ports, len(PORTS)):
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == count:
            return free
    raise OSError(f"no {count} free ports between {PORTS.start} and {PORTS.stop}")


def properties(node: int, nodes: int, port: int, controllers: list[int], data: Path) -> str:
    """The settings of one node. Everything that waits for comfort in production is made to wait less here."""
    voters = ",".join(f"{number + 1}@127.0.0.1:{controller}" for number, controller in enumerate(controllers))
    copies = min(3, nodes)
    in_sync = max(1, copies - 1)
    settings = {
        "process.roles": "broker,controller",
        "node.id": node,
        "controller.quorum.voters": voters,
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controllers[node - 1]}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": data,
        "auto.create.topics.enable": "false",
        "default.replication.factor": copies,
        "min.insync.replicas": in_sync,
        "offsets.topic.num.partitions": 4,
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.num.partitions": 4,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": in_sync,
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 500,
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 500,
        # A lost broker is noticed in 3 s instead of 9 (operations: topics and brokers).
        "broker.session.timeout.ms": 3_000,
        "broker.heartbeat.interval.ms": 500,
        "controlled.shutdown.enable": "true" if nodes > 1 else "false",
        # Compaction soon enough to be seen by a test; a buffer that fits the small heap.
        "log.cleaner.backoff.ms": 500,
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
        "log.retention.check.interval.ms": 2_000,
        "log.segment.delete.delay.ms": 1_000,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "num.recovery.threads.per.data.dir": 2,
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def die_with_parent() -> None:
    """Ask the kernel to kill this child when its parent goes: a killed test run leaves no broker behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _state(task: Path) -> str:
    """Return the letter for what a thread does, as the kernel tells it; "X" when it is gone."""
    try:
        return task.joinpath("stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


class Broker:
    """One node: its folder, its port, its process."""

    def __init__(self, folder: Path, port: int, libs: Path) -> None:
        self.folder = folder
        self.port = port
        self.libs = libs
        self.process: subprocess.Popen[bytes] | None = None

    def java(self, *arguments: str) -> list[str]:
        """A JVM that starts fast and stays small."""
        return [
            "java",
            "-Xmx512m",
            "-Xms128m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-cp",
            f"{self.libs}/*",
            *arguments,
        ]

    def format(self, cluster_id: str) -> None:
        """Prepare the data folder."""
        config = str(self.folder / "server.properties")
        command = self.java("kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", config)
        done = subprocess.run(command, capture_output=True, text=True, timeout=READY_S_MAX, check=False)
        if done.returncode != 0:
            raise KafkaMissing(f"formatting the broker's folder failed: {(done.stdout + done.stderr)[-800:]}")

    def start(self) -> None:
        """Start the process; it is not ready yet."""
        self.process = SPAWNER.submit(self.spawn).result(timeout=READY_S_MAX)

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the JVM, with its output in a file."""
        with (self.folder / "broker.log").open("ab") as output:
            return subprocess.Popen(
                self.java("kafka.Kafka", str(self.folder / "server.properties")),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def answers(self) -> bool:
        """Whether it is alive and its port takes connections. Raises `KafkaMissing` when it died."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise KafkaMissing(f"the broker ended with {self.process.returncode}: {self.last_words()}")
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def last_words(self) -> str:
        """The end of the broker's own log."""
        with contextlib.suppress(OSError):
            return (self.folder / "broker.log").read_text(errors="replace")[-1_500:]
        return "(no log)"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone, if it lives."""
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, number)

    def freeze(self) -> None:
        """Stop it; when this returns none of its threads runs any more. Raises `TimeoutError`."""
        self.signal(signal.SIGSTOP)
        assert self.process is not None, "there is nothing to freeze"
        deadline = time.monotonic() + READY_S_MAX
        while any(_state(task) not in "TZX" for task in Path(f"/proc/{self.process.pid}/task").glob("*")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"broker {self.port} does not freeze")
            time.sleep(0.001)

    def kill(self) -> None:
        """Kill it as a power cut would kill the process, and wait until it is gone."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait(timeout=30)
            self.process = None


class LocalKafka:
    """A cluster of our own: one node, or three. `bootstrap` is what a client is given."""

    def __init__(self, nodes: int = 1) -> None:
        libs = jars()
        self.folder = Path(tempfile.mkdtemp(prefix="depesche-kafka-"))
        ports = free_ports(2 * nodes)
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self.brokers: list[Broker] = []
        try:
            for number in range(nodes):
                folder = self.folder / f"node-{number + 1}"
                folder.mkdir()
                settings = properties(number + 1, nodes, ports[number], ports[nodes:], folder / "data")
                (folder / "server.properties").write_text(settings)
                self.brokers.append(Broker(folder, ports[number], libs))
            for broker in self.brokers:
                broker.format(cluster_id)
                broker.start()
            self.wait()
        except BaseException:
            self.stop()
            raise
        self.bootstrap = ",".join(f"127.0.0.1:{broker.port}" for broker in self.brokers)

    def wait(self, timeout_s: float = READY_S_MAX) -> None:
        """Return when every node answers. Raises `KafkaMissing`."""
        deadline = time.monotonic() + timeout_s
        while not all(broker.answers() for broker in self.brokers if broker.process is not None):
            if time.monotonic() > deadline:
                raise KafkaMissing(f"the broker did not answer in {timeout_s:.0f} s: {self.brokers[0].last_words()}")
            time.sleep(0.05)

    def pause(self, node: int = 0) -> None:
        """Freeze a node: connections stay, nothing answers."""
        self.brokers[node].freeze()

    def resume(self, node: int = 0) -> None:
        """Thaw it."""
        self.brokers[node].signal(signal.SIGCONT)

    def kill(self, node: int = 0) -> None:
        """Kill -9 a node; its data stays."""
        self.brokers[node].kill()

    def restart(self, node: int = 0) -> None:
        """Start a killed node again, on the same data and port. Returns when it takes connections."""
        assert self.brokers[node].process is None, "kill it first"
        self.brokers[node].start()
        self.wait()

    def heal(self) -> None:
        """Thaw what is frozen, start what is dead: whatever a test did, the next finds a whole cluster."""
        for number, broker in enumerate(self.brokers):
            broker.signal(signal.SIGCONT)
            if broker.process is not None and broker.process.poll() is not None:
                broker.process = None
            if broker.process is None:
                self.restart(number)

    def stop(self) -> None:
        """Kill every node and remove the data."""
        for broker in self.brokers:
            broker.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
