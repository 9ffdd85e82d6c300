"""A campaign that waits at a stopped number while its customer says stop: real stages on the embedded log, with Meta's
stand-in as the referee of what was called."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from broker.core.customer_context import context_of
from broker.log.catalogue import CONVERSATIONS, SENDER_STAGE, catalogue, deliveries, sends
from broker.log.contract import Draft
from broker.log.embedded import EmbeddedLog
from broker.sandbox.faults import Faults, Latency
from broker.sandbox.journal import Called, Journal
from broker.sandbox.platform import BusinessNumber, Platform
from broker.sandbox.templates import Template, Templates
from broker.secrets import Secret
from schemas.records import ConversationRecord, Ready, SendRequest, Withdraw, decode_delivery, decode_sends, encode
from schemas.settings import LogSettings, SenderSettings
from tests.actors.sending import NoWebhooks, PlatformGraph
from tests.contract.embedded_harness import JumpingClock
from tests.core.conversation import KEY, NUMBER, PHONE, SETTINGS, WABA, message, request, send_id
from workers.customer import CustomerStage, StageLimits
from workers.sender import SenderStage

pytestmark = pytest.mark.timeout(60)

GOOD, EXPIRED = Secret("EAAgood"), Secret("EAAexpired")
BYSTANDER = "15550009999"
SALE = Template("sale", "en_US", "MARKETING", "Everything must go.")


class Brand:
    """One number, its log in a folder, a customer stage and a sender stage, and Meta's stand-in."""

    def __init__(self, folder: Path, pending_max: int) -> None:
        self.clock = JumpingClock()
        self.settings = replace(
            SETTINGS,
            log=LogSettings(partitions=1, slots=4),
            sender=SenderSettings(pending_max=pending_max),
        )
        self.engine = EmbeddedLog(folder, catalogue(self.settings), clock=self.clock, rng=random.Random(1))
        self.platform = Platform(
            [BusinessNumber(NUMBER, WABA, "15550001000", GOOD.reveal())],
            Faults(random.Random(2), Latency(median_ms=5)),
            self.clock,
            random.Random(3),
            NoWebhooks(),
            webhook_url="http://receiver",
            app_secret="secret",
            journal=Journal(),
            templates=Templates((SALE,)),
        )
        self.customers = CustomerStage(
            self.engine, context_of(self.settings), self.clock, random.Random(4), StageLimits(idle_s=0.1)
        )
        self.sender = self._sender(EXPIRED)

    def _sender(self, token: Secret) -> SenderStage:
        tokens = {NUMBER: token}
        graph = PlatformGraph(self.platform)
        return SenderStage(self.engine, self.settings, tokens, graph, self.clock, random.Random(5))

    async def start(self) -> None:
        """Begin, with a token that Meta takes no more."""
        await self.engine.start()
        self.platform.start()
        await self.customers.start()
        await self.start_sender()

    async def start_sender(self) -> None:
        """Let a sender own the number."""
        await self.sender.start()
        await until(self._holds)

    async def _holds(self) -> bool:
        return (SENDER_STAGE.name, 3) in self.sender.held()

    async def restart_sender(self) -> None:
        """Another owner: memory gone, log kept."""
        await self.sender.stop(2.0)
        self.sender = self._sender(EXPIRED)
        await self.start_sender()

    async def close(self) -> None:
        """End everything."""
        await self.sender.stop(2.0)
        await self.customers.stop()
        await self.platform.stop()
        await self.engine.close()

    async def say(self, record: ConversationRecord, key: str = KEY) -> None:
        """Append to conversations what receiver or gateway would."""
        await self.engine.append(CONVERSATIONS, [Draft(key.encode(), encode(record))], 5.0)

    def offer(self, name: str, phone: str = PHONE) -> SendRequest:
        """A campaign's request to send somebody the sale."""
        template = {"name": SALE.name, "language": {"code": SALE.language}}
        body = {"messaging_product": "whatsapp", "to": phone, "type": "template", "template": template}
        asked = request(name, self.clock.now(), send_class="campaign", template=SALE.name, body=body)
        return replace(asked, wa_id=phone)

    def calls(self, name: str) -> list[Called]:
        """What the platform was asked to send under an id, taken or refused."""
        entries = [entry for entry in self.platform.journal.since(0, 10_000) if isinstance(entry, Called)]
        return [entry for entry in entries if entry.send == send_id(name)]

    async def handed_over(self, count: int) -> bool:
        """Whether the customer stage admitted so many sends."""
        records = [decode_sends(entry.value) async for entry in self.engine.read(sends("campaign"), 3)]
        return len([one for one in records if isinstance(one, Ready)]) >= count

    async def withdrawn(self) -> list[str]:
        """What the customer stage withdrew."""
        records = [decode_sends(entry.value) async for entry in self.engine.read(sends("reply"), 3)]
        return [one.send_id for one in records if isinstance(one, Withdraw)]

    async def failures(self) -> dict[str, int]:
        """The codes the bot was told, by send."""
        told: dict[str, int] = {}
        for partition in range(self.engine.logs[deliveries("bot")].partitions):
            async for entry in self.engine.read(deliveries("bot"), partition):
                value = json.loads(decode_delivery(entry.value).body)["entry"][0]["changes"][0]["value"]
                for status in value.get("statuses", []):
                    assert status["id"] not in told, "each is told once"
                    told[status["id"]] = status["errors"][0]["code"]
        return told


async def until(holds: Callable[[], Coroutine[Any, Any, bool]], timeout_s: float = 15.0) -> None:
    """Wait until it does."""
    for _ in range(int(timeout_s / 0.02)):
        if await holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen in time")


@pytest.fixture
async def brand(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Brand]:
    """A brand whose sender has room for all that waits, or for next to nothing."""
    brand = Brand(tmp_path / "log", request.param)
    await brand.start()
    try:
        yield brand
    finally:
        await brand.close()


@pytest.mark.parametrize(
    ("brand", "dies"),
    [
        pytest.param(10_000, False, id="in memory"),
        pytest.param(1, False, id="left in the log"),
        pytest.param(1, True, id="left in the log, and another owner"),
    ],
    indirect=["brand"],
)
async def test_a_campaign_that_waits_at_a_stopped_number_goes_nowhere_after_a_stop(brand: Brand, dies: bool) -> None:
    """The number is stopped for hours; who says stop meanwhile gets nothing when it runs again, whoever owns it then,
    and the bot hears 131050. Everybody else gets theirs."""
    others = [f"other {n}" for n in range(4)]
    for n, name in enumerate(others):
        phone = f"{BYSTANDER}{n}"
        await brand.say(brand.offer(name, phone), f"main:{phone}")

    async def is_stopped() -> bool:
        return any(brand.calls(name) for name in others)

    await until(is_stopped)
    await brand.say(brand.offer("unwanted"))
    await until(lambda: brand.handed_over(len(others) + 1))
    await brand.say(message("word", brand.clock.now(), type="text", text={"body": "STOP"}))

    async def is_withdrawn() -> bool:
        return await brand.withdrawn() == [send_id("unwanted")]

    await until(is_withdrawn)
    if dies:
        await brand.restart_sender()
    brand.sender.use(brand.settings.numbers, {NUMBER: GOOD})

    async def all_went() -> bool:
        return all(any(call.accepted for call in brand.calls(name)) for name in others)

    async def is_told() -> bool:
        return bool(await brand.failures())

    await until(all_went)
    await until(is_told)
    await asyncio.sleep(0.5)
    assert await brand.failures() == {send_id("unwanted"): 131050}
    assert brand.calls("unwanted") == []
