"""Signed webhooks over many kept connections at a steady rate, from a process that does nothing else.

An open loop: webhooks are due whether or not the last ones were answered, and latency counts from when each was due:
what a sender feels. (`wrk.py` is the closed loop.)

Every webhook is another message (`wamid`) of one of so many customers in turn, signed. Raw HTTP written and read by
hand: a client library would be busier than the server it measures.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from itertools import count
from typing import cast

from benchmarks.child import Facts, Part, be, cpu_s
from broker.core.signature import Signer

APP = "bench"
SECRET = "benchmark-secret"
NUMBER = "106540352242922"
PATH = f"/webhooks/meta/{APP}"
CUSTOMERS = 20_000
TICK_S = 0.001
FINISH_S_MAX = 20.0

HEAD = (
    "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: facebookexternalua\r\nAccept: */*\r\n"
    "Content-Type: application/json\r\nX-Hub-Signature-256: {}\r\nContent-Length: {}\r\n\r\n"
)


def webhook(n: int, at_s: int, customers: int = CUSTOMERS) -> bytes:
    """The n-th webhook's body: one text message in Meta's shape, 507 bytes for every n below 10^12."""
    phone = 4_915_550_000_000 + n % customers
    return (
        '{"object":"whatsapp_business_account","entry":[{"id":"102290129340398","changes":[{"value":{'
        '"messaging_product":"whatsapp","metadata":{"display_phone_number":"15550001000",'
        f'"phone_number_id":"{NUMBER}"}},"contacts":[{{"profile":{{"name":"J\\u00f6rg"}},"wa_id":"{phone}",'
        f'"user_id":"DE.1{phone}"}}],"messages":[{{"from":"{phone}","from_user_id":"DE.1{phone}",'
        f'"id":"wamid.HBgNFDNB{n:012}","timestamp":"{at_s}","type":"text",'
        '"text":{"body":"Hi \\u00fc"}}]},"field":"messages"}]}]}'
    ).encode()


class Load:
    """One run: its connections, what is due, what came back."""

    def __init__(self, first: int, path: str, secret: str, customers: int) -> None:
        self._path = path
        self._customers = customers
        self._signer = Signer(secret.encode())
        self._numbers = count(first)
        self._at_s = int(time.time())
        self.statuses: Counter[int] = Counter()
        self.latencies: list[float] = []
        self.sent = 0
        self.lost = 0
        self.is_measuring = False
        self.is_over = False
        self.idle: list[Connection] = []
        self.due: deque[float] = deque()

    def request(self) -> bytes:
        """The next webhook, whole."""
        body = webhook(next(self._numbers), self._at_s, self._customers)
        self.sent += 1
        return HEAD.format(self._path, self._signer.sign(body), len(body)).encode() + body

    def answered(self, connection: Connection, status: int, due: float) -> None:
        """Count an answer; give its connection something new to do."""
        now = time.perf_counter()
        self.statuses[status] += 1
        if self.is_measuring:
            self.latencies.append(now - due)
        if self.is_over:
            return
        if self.due:
            connection.send(self.due.popleft())
        else:
            self.idle.append(connection)

    @property
    def unanswered(self) -> int:
        """Sent, no answer yet."""
        return self.sent - sum(self.statuses.values()) - self.lost


class Connection(asyncio.Protocol):
    """One kept connection with one request under way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""
        self._due = 0.0
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without inheriting

    def send(self, due: float) -> None:
        """Send the next webhook; its latency counts from `due`."""
        self._due = due
        self._busy = True
        self._transport.write(self._load.request())

    def data_received(self, data: bytes) -> None:
        """Read an answer: its head, and as much body as that says."""
        self._received = received = self._received + data if self._received else data
        head, found, rest = received.partition(b"\r\n\r\n")
        if not found:
            return
        _, named, length = head.lower().partition(b"content-length: ")
        if named and len(rest) < int(length.partition(b"\r\n")[0]):
            return
        self._received = b""
        self._busy = False
        self._load.answered(self, int(head[9:12]), self._due)

    def connection_lost(self, error: Exception | None) -> None:
        """Count what will not be answered."""
        self._load.lost += self._busy
        self._busy = False

    def close(self) -> None:
        """Close."""
        self._transport.close()


async def run(
    port: int,
    connections: int,
    seconds: float,
    warm_s: float,
    rate: float,
    servers: list[int],
    first: int,
    path: str = PATH,
    secret: str = SECRET,
    customers: int = CUSTOMERS,
) -> Facts:
    """One run against a port; `servers` are the processes whose CPU is read when the measured time begins and ends.

    Webhook `first + n` is due at `began + n / rate`; those due between `from_s` and `until_s` are measured, all by this
    machine's monotonic clock (`time.perf_counter`), which its other processes have too.
    """
    load = Load(first, path, secret, customers)
    loop = asyncio.get_running_loop()
    opened = [await loop.create_connection(lambda: Connection(load), "127.0.0.1", port) for _ in range(connections)]
    load.idle = [connection for _, connection in opened]
    began = time.perf_counter()
    ticker = asyncio.create_task(_become_due(load, rate, began), name="load")
    await asyncio.sleep(warm_s)
    from_s, own_s, before = time.perf_counter(), time.process_time(), [cpu_s(server) for server in servers]
    load.is_measuring = True
    await asyncio.sleep(seconds)
    load.is_measuring = False
    until_s, own_s = time.perf_counter(), time.process_time() - own_s
    spent = [cpu_s(server) - at for server, at in zip(servers, before, strict=True)]
    wall_s = until_s - from_s
    load.is_over = True
    ticker.cancel()
    patience = time.perf_counter() + FINISH_S_MAX
    while load.unanswered and time.perf_counter() < patience:  # noqa: ASYNC110  # an event would cost each answer
        await asyncio.sleep(0.01)
    for _, connection in opened:
        connection.close()
    measured = sorted(load.latencies)
    count = max(1, len(measured))
    return {
        "sent": load.sent,
        "ok": load.statuses[200],
        "began": began,
        "from_s": from_s,
        "until_s": until_s,
        "rate": len(measured) / wall_s,
        "cpu_us": sum(spent) * 1e6 / count,
        "cpu_us_of_each": [one * 1e6 / count for one in spent],
        "server_busy": sum(spent) / wall_s,
        "load_busy": own_s / wall_s,
        "p50_ms": measured[len(measured) // 2] * 1e3 if measured else 0.0,
        "p99_ms": measured[len(measured) * 99 // 100] * 1e3 if measured else 0.0,
    }


async def _become_due(load: Load, rate: float, began: float) -> None:
    made = 0
    while True:
        elapsed = time.perf_counter() - began
        while made / rate <= elapsed:
            due = began + made / rate
            made += 1
            if load.idle:
                load.idle.pop().send(due)
            else:
                load.due.append(due)
        await asyncio.sleep(TICK_S)


async def play(_: Facts) -> AsyncIterator[Part]:
    """The load's process: one run for each question."""
    yield Part({}, lambda question: run(**question))


if __name__ == "__main__":
    be(play)
