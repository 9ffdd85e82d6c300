"""Customers that play scripts, and a load of them."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any

import pytest

from broker.sandbox.customers import Await, OptOut, Pause, Read, Say, Screens, Tap, Unanswered
from broker.sandbox.journal import Ticked
from broker.sandbox.load import Load, run_load
from broker.sandbox.referee import Referee
from tests.sandbox.rig import ADA, CLEO, NUMBER, OTHER_NUMBER, Rig, play


class Echo:
    """A bot behind the receiver: answers each new text once, by Graph, with buttons when asked for."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._seen: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        """Take a webhook."""
        for entry in json.loads(body)["entry"]:
            for change in entry["changes"]:
                for message in change["value"].get("messages", []):
                    if message["id"] not in self._seen:
                        self._seen.add(message["id"])
                        self._answer(change["value"]["metadata"]["phone_number_id"], message)
        return 200

    def _answer(self, number: str, message: dict[str, Any]) -> None:
        to = {"to": message["from"]} if "from" in message else {"recipient": message["from_user_id"]}
        text = message["text"]["body"] if "text" in message else message["interactive"]["button_reply"]["title"]
        body: dict[str, Any] = {"messaging_product": "whatsapp", **to}
        if text == "menu":
            buttons = [{"type": "reply", "reply": {"id": f"b:{i}", "title": f"Choice {i}"}} for i in range(3)]
            content = {"type": "button", "body": {"text": "What?"}, "action": {"buttons": buttons}}
            body |= {"type": "interactive", "interactive": content}
        else:
            body |= {"type": "text", "text": {"body": f"echo: {text}"}}
        token = "EAAtoken" if number == NUMBER else "EAAother"
        task = asyncio.create_task(self._rig.call(body, number=number, token=token))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def with_echo(rig: Rig) -> Screens:
    """Put an echo bot behind the rig's webhooks."""
    rig.platform.postbox.poster = Echo(rig)
    return Screens(rig.platform)


@pytest.mark.parametrize("person", [ADA.id, CLEO.id])
def test_a_customer_talks_through_a_script(person: str) -> None:
    """Writes, waits, taps a button, reads: also one whose phone nobody knows."""

    async def scene(rig: Rig) -> None:
        customer = with_echo(rig).customer(NUMBER, person)
        received = await customer.play(
            [
                Say("hello"),
                Await("^echo: hello$"),
                Say("menu"),
                Await("What"),
                Tap("Choice 1"),
                Await("echo: Choice 1"),
                Pause(1),
                Read(),
            ]
        )
        assert [one.type for one in received] == ["text", "interactive", "text"]

    play(scene)


def test_a_customer_who_is_not_answered_says_so() -> None:
    """A script that hangs would be a test that proves nothing."""

    async def scene(rig: Rig) -> None:
        customer = Screens(rig.platform).customer(NUMBER, ADA.id)
        with pytest.raises(Unanswered):
            await customer.play([Say("hello"), Await("echo", timeout_s=5)])
        with pytest.raises(Unanswered):
            customer.tap("Choice 1")

    play(scene)


def test_receipts_follow_the_customers_habit() -> None:
    """ "open": read when the chat is opened; "never": not at all."""

    async def scene(rig: Rig) -> None:
        customer = with_echo(rig).customer(NUMBER, ADA.id)
        for reads, expected in (("open", 1), ("never", 0)):
            rig.platform.change(ADA.id, reads=reads)
            await customer.play([Say("hello"), Await("echo"), Pause(20)])
            before = sum(entry.status == "read" for entry in rig.entries(Ticked))
            assert customer.read() == expected
            assert sum(entry.status == "read" for entry in rig.entries(Ticked)) == before + expected

    play(scene)


def test_an_opt_out_is_a_webhook_and_stops_marketing() -> None:
    """The platform tells the business, and fails what it sends all the same."""

    async def scene(rig: Rig) -> None:
        customer = Screens(rig.platform).customer(NUMBER, ADA.id)
        await customer.play([Say("hi"), OptOut(), Pause(1)])
        [change] = [change for change in rig.receiver.changes() if change["field"] == "user_preferences"]
        assert change["value"]["user_preferences"][0]["value"] == "stop"
        sale = {
            "name": "autumn_sale",
            "language": {"code": "en_US"},
            "components": [
                {"type": "body", "parameters": [{"type": "text", "parameter_name": "first_name", "text": "Ada"}]}
            ],
        }
        await rig.call({"messaging_product": "whatsapp", "to": ADA.wa_id, "type": "template", "template": sale})
        await asyncio.sleep(5)
        [status] = rig.receiver.statuses()
        assert status["errors"][0]["code"] == 131050

    play(scene)


def test_a_load_is_answered_and_the_referee_has_nothing_to_say() -> None:
    """The load, the platform and the referee agree with each other before a broker stands between them."""

    async def scene(rig: Rig) -> None:
        screens = with_echo(rig)
        referee = Referee({NUMBER: 80, OTHER_NUMBER: 80}, expects_answer=lambda wrote: True)
        rig.platform.journal.listen(referee.see)
        load = Load(conversations=60, turns=3, conversations_per_s=10, think_s=13, duplicates=0.3, batch_items=20)
        report = await run_load(rig.platform, load, Random("load"))
        assert (report.begun, report.answered, report.unanswered) == (60, 180, 0)
        assert report.written == 180
        assert report.late_s_max == pytest.approx(0)
        assert 0.1 < report.quantile_s(0.5) <= report.quantile_s(0.99) < 10
        assert referee.unanswered() == []
        assert rig.faults.struck["duplicate"] > 10
        referee.check()
        screens.close()

    play(scene)


def test_a_load_counts_what_was_not_answered() -> None:
    """Otherwise a dead broker would look fast."""

    async def scene(rig: Rig) -> None:
        report = await run_load(rig.platform, Load(conversations=5, answer_within_s=10), Random("load"))
        assert (report.answered, report.unanswered) == (0, 5)

    play(scene)
