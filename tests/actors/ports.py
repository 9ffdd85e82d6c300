"""A receiver and a gateway on real sockets over the real embedded log, and clients that misbehave."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from broker.clock import SystemClock
from broker.core.signature import sign
from broker.errors import LogUnavailable
from broker.log.catalogue import catalogue
from broker.log.contract import Draft, Entry
from broker.log.embedded import EmbeddedLog
from broker.secrets import Secret
from schemas.settings import (
    App,
    BotKey,
    GatewaySettings,
    LogSettings,
    Number,
    ReceiverSettings,
    SecretSource,
    Settings,
    SinkSettings,
)

NUMBER, OTHER_NUMBER = "106540352242922", "106540352242955"
KEY, NARROW_KEY, OPERATOR_KEY = "dk_bot_key", "dk_narrow_key", "dk_operator_key"
SECRETS = {"shop": (Secret("current"), Secret("previous")), "bank": (Secret("other"),)}
TOKENS = {"shop": Secret("let me in & stay"), "bank": Secret("bank token")}
NOWHERE = SecretSource(env="UNUSED")


def settings(*, receiver: ReceiverSettings | None = None, gateway: GatewaySettings | None = None) -> Settings:
    """A brand with two numbers, two apps, one bot and two keys of bots, and an operator with one."""

    def number(id_: str, slot: int, portfolio: str) -> Number:
        return Number(phone_number_id=id_, waba_id="102290129340398", token=NOWHERE, slot=slot, portfolio=portfolio)

    def key(name: str, secret: str, numbers: list[str]) -> BotKey:
        digest = hashlib.sha256(secret.encode()).hexdigest()
        return BotKey(name=name, sha256=digest, numbers=numbers, sink="bot", send_class="transactional")

    operator = BotKey(name="operator", sha256=hashlib.sha256(OPERATOR_KEY.encode()).hexdigest(), control=True)
    return Settings(
        apps=[App(name=name, secrets=[NOWHERE], verify_token=NOWHERE) for name in SECRETS],
        numbers=[number(NUMBER, 2, "brand"), number(OTHER_NUMBER, 3, "brand")],
        sinks=[SinkSettings(name="bot", kind="meta", url="http://127.0.0.1:9/", secret=NOWHERE)],
        keys=[key("bot", KEY, ["*"]), key("narrow", NARROW_KEY, [OTHER_NUMBER]), operator],
        log=LogSettings(partitions=4, slots=4),
        receiver=receiver or ReceiverSettings(port=0),
        gateway=gateway or GatewaySettings(port=0),
    )


@asynccontextmanager
async def embedded(folder: Path, of: Settings) -> AsyncIterator[EmbeddedLog]:
    """The embedded log, open."""
    engine = EmbeddedLog(folder, catalogue(of), clock=SystemClock(), rng=random.Random(1))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


class Gate(EmbeddedLog):
    """The embedded log with a gate before it: appends wait while it is shut, and may be answered with a failure."""

    def __init__(self, folder: Path, of: Settings) -> None:
        super().__init__(folder, catalogue(of), clock=SystemClock(), rng=random.Random(1))
        self.open = asyncio.Event()
        self.open.set()
        self.asked = asyncio.Event()
        self.answer_lost = False

    async def append(self, log: str, drafts: Sequence[Draft], timeout_s: float) -> None:
        """Append when the gate opens; when the answer gets lost, the record is there all the same."""
        self.asked.set()
        await self.open.wait()
        await super().append(log, drafts, timeout_s)
        if self.answer_lost:
            raise LogUnavailable("the answer got lost")


@asynccontextmanager
async def gated(folder: Path, of: Settings) -> AsyncIterator[Gate]:
    """A gated log, open."""
    engine = Gate(folder, of)
    await engine.start()
    try:
        yield engine
    finally:
        engine.open.set()
        await engine.close()


async def entries(engine: EmbeddedLog, log: str) -> list[Entry]:
    """Every record of a log."""
    found = []
    for partition in range(engine.logs[log].partitions):
        found += [entry async for entry in engine.read(log, partition)]
    return found


def signed(body: bytes, secret: str = "current") -> dict[str, str]:
    """Headers as Meta sends them."""
    return {"Content-Type": "application/json", "X-Hub-Signature-256": sign(body, secret.encode())}


def head(method: str, path: str, headers: Mapping[str, Any] | Collection[tuple[str, Any]]) -> bytes:
    """A request's head, spelled as it is given."""
    pairs: Iterator[tuple[str, Any]] = iter(headers.items() if isinstance(headers, Mapping) else headers)
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in pairs)]
    return "\r\n".join([*lines, "", ""]).encode()


async def talk(port: int, *pieces: bytes, finish: bool = True, timeout_s: float = 10.0) -> bytes:
    """Write pieces, one after another, and return all that comes until the other side closes (or the time is over).

    `finish`: half-close after the last piece.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)
        if finish:
            writer.write_eof()
        async with asyncio.timeout(timeout_s):
            while chunk := await reader.read(65_536):
                received += chunk
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return received


def status_of(answer: bytes) -> int:
    """The status of the first answer, 0 when there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
