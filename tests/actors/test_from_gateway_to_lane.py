"""From the gateway's port to a sender's lane: what a bot asks for, what the customer said, and what comes of both.

A receiver and a gateway on real sockets, the customer stage on the embedded log between them, and the sandbox as the
Meta that knows the templates' categories.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from broker import metrics
from broker.clock import SystemClock
from broker.core.customer_context import context_of
from broker.log.catalogue import deliveries, sends
from schemas.records import LANES, Ready, decode_delivery, decode_sends
from schemas.settings import GatewaySettings
from tests.actors import test_passthrough as gateways
from tests.actors import test_receiver as receivers
from tests.actors.graph_server import eventually
from tests.actors.ports import NUMBER, embedded, entries, settings
from tests.actors.test_customer_stage import eventually as until
from tests.actors.test_passthrough import template
from workers.customer import CustomerStage, StageLimits

PHONE = "4915550001234"
"""Whom `template` is addressed to."""

pytestmark = pytest.mark.timeout(60)


class Brand:
    """A bot's way in, a customer's way in, and what came of both."""

    def __init__(self, bot: gateways.Bot, customer: receivers.Port) -> None:
        self.bot = bot
        self.customer = customer
        self._written = 0

    async def writes(self, text: str) -> None:
        """The customer writes to the number, and the stage has heard it: some sink's log would have it, were there a
        route, so the count of what no route took is what to wait for."""
        self._written += 1
        taken = metrics.routed.labels("none")
        before = taken._value.get()
        message = {
            "from": PHONE,
            "id": f"wamid.{text}{self._written}",
            "timestamp": str(int(time.time()) + self._written),  # of two words in one second, stop would win
            "type": "text",
            "text": {"body": text},
        }
        assert (await self.customer.post(receivers.batch([message])))[0] == 200
        await eventually(lambda: taken._value.get() == before + 1)

    async def sends(self, name: str, path: str = "messages", **headers: str) -> str:
        """The bot sends a template; return the id it is told."""
        status, answer = await self.bot.call("POST", f"/v26.0/{NUMBER}/{path}", template(name), **headers)
        assert status == 200, answer
        return str(answer["messages"][0]["id"])

    async def ready(self) -> dict[str, Ready]:
        """What senders are asked to send, by the id the bot was told."""
        found = [decode_sends(entry.value) for lane in LANES for entry in await entries(self.bot.log, sends(lane))]
        return {record.send_id: record for record in found if isinstance(record, Ready)}

    async def statuses(self) -> list[dict[str, Any]]:
        """What the bot is told of its sends."""
        bodies = [decode_delivery(entry.value).body for entry in await entries(self.bot.log, deliveries("bot"))]
        return [json.loads(body)["entry"][0]["changes"][0]["value"]["statuses"][0] for body in bodies]

    async def fails(self, ready: Ready, code: int) -> int:
        """Meta took a send and says that it was not delivered; return when it said so, in Unix seconds."""
        at = int(time.time())
        status = {
            "id": f"wamid.{ready.send_id[-8:]}",
            "status": "failed",
            "timestamp": str(at),
            "recipient_id": PHONE,
            "biz_opaque_callback_data": json.loads(ready.body)["biz_opaque_callback_data"],
            "errors": [{"code": code, "title": "Not delivered"}],
        }
        value = {"messaging_product": "whatsapp", "metadata": {"phone_number_id": NUMBER}, "statuses": [status]}
        entry = {"id": "102290129340398", "changes": [{"value": value, "field": "messages"}]}
        body = receivers.compact({"object": "whatsapp_business_account", "entry": [entry]})
        assert (await self.customer.post(body))[0] == 200
        return at

    async def told(self, count: int) -> None:
        """Wait until the bot is told of so many statuses."""

        async def there() -> bool:
            return len(await self.statuses()) >= count

        await until(there)

    async def has(self, wanted: list[str]) -> None:
        """Wait until all of these are at a lane."""

        async def there() -> bool:
            return set(wanted) <= set(await self.ready())

        await until(there)


@asynccontextmanager
async def brand(folder: Path) -> AsyncIterator[Brand]:
    """A brand whose gateway has read the categories of its templates."""
    of = replace(settings(), gateway=GatewaySettings(port=0))
    async with AsyncExitStack() as stack:
        meta = await stack.enter_async_context(gateways.sandbox())
        engine = await stack.enter_async_context(embedded(folder, of))
        stage = CustomerStage(engine, context_of(of), SystemClock(), random.Random(3), StageLimits(idle_s=0.2))
        await stage.start()
        stack.push_async_callback(stage.stop)
        read = metrics.gateway_template_reads.labels("read")
        before = read._value.get()
        bot = await stack.enter_async_context(
            gateways.gateway_to(meta.platform.base_url, folder, of.gateway, engine=engine, of=of)
        )
        customer = await stack.enter_async_context(receivers.serving(engine, of))
        await eventually(lambda: read._value.get() > before)
        yield Brand(bot, customer)


async def test_a_template_goes_by_its_category_and_by_the_window_of_whoever_gets_it(tmp_path: Path) -> None:
    """A bot built for the Cloud API says nothing of lanes. What its customer waits for goes with the conversation, what
    it begins itself waits behind that, and a sale behind both; what it does say stays said."""
    async with brand(tmp_path) as shop:
        before = [await shop.sends(name) for name in ("order_update", "login_code", "autumn_sale", "never_heard_of")]
        await shop.has(before)
        await shop.writes("where is my order?")
        after = [await shop.sends(name) for name in ("order_update", "login_code", "autumn_sale", "never_heard_of")]
        after.append(await shop.sends("order_update", X_Depesche_Class="transactional"))
        after.append(await shop.sends("autumn_sale", "marketing_messages"))
        await shop.has(after)
        found = await shop.ready()
    assert [(found[one].lane, found[one].send_class) for one in before] == [
        ("transactional", "transactional"),
        ("transactional", "otp"),
        ("campaign", "campaign"),
        ("transactional", "transactional"),
    ]
    assert [(found[one].lane, found[one].send_class) for one in after] == [
        ("reply", "reply"),
        ("reply", "otp"),
        ("campaign", "campaign"),
        ("reply", "reply"),
        ("transactional", "transactional"),
        ("campaign", "campaign"),
    ]


async def test_who_said_stop_gets_no_marketing_template_in_whatever_lane_it_is_sent(tmp_path: Path) -> None:
    """A caller that calls a sale transactional does not get it past somebody's STOP: its template's category says what
    it is. The bot is told in Meta's words; what is no marketing still goes."""
    async with brand(tmp_path) as shop:
        await shop.writes("STOP")
        sale = await shop.sends("autumn_sale", X_Depesche_Class="transactional")
        parcel = await shop.sends("order_update", X_Depesche_Class="transactional")
        await shop.has([parcel])
        (told,) = await shop.statuses()
        assert (told["id"], told["status"], told["recipient_id"]) == (sale, "failed", PHONE)
        assert [(error["code"], error["title"]) for error in told["errors"]] == [
            (131050, "User stopped marketing messages")
        ]
        assert list(await shop.ready()) == [parcel]
        await shop.writes("START")
        again = await shop.sends("autumn_sale", X_Depesche_Class="transactional")
        await shop.has([again])
        assert (await shop.ready())[again].lane == "transactional"
        assert len(await shop.statuses()) == 1


async def test_marketing_meta_did_not_deliver_is_not_tried_again_that_day(tmp_path: Path) -> None:
    """The bot's next sale to that customer comes back in Meta's words and says until when, without a call; inside the
    window that the customer then opens it goes."""
    async with brand(tmp_path) as shop:
        first = await shop.sends("autumn_sale")
        await shop.has([first])
        at = await shop.fails((await shop.ready())[first], 131049)
        await shop.told(1)
        second = await shop.sends("autumn_sale", "marketing_messages")
        await shop.told(2)
        told = await shop.statuses()
        assert [(one["id"], one["errors"][0]["code"]) for one in told] == [(first, 131049), (second, 131049)]
        assert time.strftime("Until %Y-%m-%dT%H:%M:%SZ", time.gmtime(at + 86_400)) in str(told[1]["errors"])
        assert list(await shop.ready()) == [first]
        await shop.writes("what is on sale?")
        third = await shop.sends("autumn_sale")
        await shop.has([third])
        assert (await shop.ready())[third].lane == "campaign"
