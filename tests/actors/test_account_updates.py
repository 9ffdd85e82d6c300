"""Account-level webhooks act on a sender stage that runs, and on one that begins later: real bodies, real split."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from broker import metrics
from broker.core.webhook import split
from broker.log.catalogue import ACCOUNTS
from broker.sandbox.faults import Fault
from broker.sandbox.platform import Rules
from schemas.records import NumberFault, encode
from tests.actors.sending import GREETING, NEWS, SALE, Sending, numbers, play, settings_of, template_send

pytestmark = pytest.mark.timeout(60)

SETTINGS = settings_of(numbers(4, slots=2), slots=2)
"""Two accounts of two numbers, at a slot each."""

FIRST, SECOND, FOREIGN, _ = (number.phone_number_id for number in SETTINGS.numbers)
WABA = SETTINGS.numbers[0].waba_id

HOUR_MS = 3_600_000

UNLIMITED = Rules(enforce_throughput=False)


async def tell(sending: Sending, field: str, value: dict[str, Any], *, ago_s: int = 0) -> None:
    """Append an update of the first account as the receiver would have, so long ago by Meta's clock."""
    at = sending.clock.now() // 1_000 - ago_s
    entry = {"id": WABA, "time": at, "changes": [{"value": value, "field": field}]}
    body = json.dumps({"object": "whatsapp_business_account", "entry": [entry]}).encode()
    [keyed] = split(body, "shop", at * 1_000, {}).accounts
    await sending.tell_accounts(WABA, encode(keyed.item))
    await asyncio.sleep(0.1)


def template_event(event: str, name: str = SALE, **more: object) -> dict[str, Any]:
    """Return the value of a `message_template_status_update`."""
    return {"event": event, "message_template_name": name, "message_template_language": "en_US", **more}


async def sent(sending: Sending, name: str, number: str, lane: str = "campaign", template: str = NEWS) -> str:
    """Put one send and return what came of it within two seconds. Each goes to a person of its own."""
    person = f"49151{abs(hash(name)) % 10_000_000:07d}"
    await sending.put(template_send(name, number, person, lane, template))  # type: ignore[arg-type]
    await asyncio.sleep(2.0)
    return sending.came_of(name)


def gauge(name: str, **labels: str) -> float:
    """Return a metric's value."""
    value = metrics.REGISTRY.get_sample_value(f"depesche_{name}", labels)
    return 0.0 if value is None else value


def test_a_disabled_account_stops_and_a_reinstated_one_goes_on_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """Both of its numbers, at once, without a call; the brand's other account is not concerned."""

    async def scene(sending: Sending) -> None:
        await tell(sending, "account_update", {"event": "DISABLED_UPDATE", "ban_info": {"waba_ban_state": "DISABLE"}})
        assert await sent(sending, "a", FIRST, "reply") == "waits"
        assert await sent(sending, "b", SECOND, "reply") == "waits"
        assert await sent(sending, "c", FOREIGN, "reply") == "accepted"
        assert gauge("number_stopped", phone_number_id=FIRST, reason="waba") == 1
        assert "Meta disabled the account" in caplog.text
        assert not sending.calls("a")
        await tell(sending, "account_update", {"event": "DISABLED_UPDATE", "ban_info": {"waba_ban_state": "REINSTATE"}})
        await asyncio.sleep(2.0)
        assert [sending.came_of(name) for name in "ab"] == ["accepted", "accepted"]
        assert gauge("number_stopped", phone_number_id=FIRST, reason="waba") == 0

    with caplog.at_level(logging.WARNING):
        play(scene, SETTINGS)


def test_a_restriction_stops_its_lanes_and_a_probe_finds_its_end() -> None:
    """No templates out: customers who ask are answered. Nobody tells us when it is over."""

    async def scene(sending: Sending) -> None:
        ends_at = sending.clock.now() // 1_000 + 1_800
        restriction = {"restriction_type": "RESTRICTED_BIZ_INITIATED_MESSAGING", "expiration": ends_at}
        await tell(sending, "account_update", {"event": "ACCOUNT_RESTRICTION", "restriction_info": [restriction]})
        assert await sent(sending, "campaign", FIRST) == "waits"
        assert await sent(sending, "confirmation", SECOND, "transactional") == "waits"
        assert await sent(sending, "reply", FIRST, "reply", GREETING) == "accepted"
        await asyncio.sleep(1_780.0)
        assert sending.came_of("campaign") == "waits"
        await asyncio.sleep(40.0)
        assert [sending.came_of(name) for name in ("campaign", "confirmation")] == ["accepted", "accepted"]

    play(scene, SETTINGS)


def test_a_paused_template_waits_until_it_is_approved_again_and_others_go_on() -> None:
    """On every number of the account, without one call for it; and the end is acted upon at once."""

    async def scene(sending: Sending) -> None:
        await tell(sending, "message_template_status_update", template_event("PAUSED"))
        assert await sent(sending, "a", FIRST, template=SALE) == "waits"
        assert await sent(sending, "b", SECOND, template=SALE) == "waits"
        assert await sent(sending, "other", FIRST, template=NEWS) == "accepted"
        assert await sent(sending, "foreign", FOREIGN, template=SALE) == "accepted"
        assert gauge("templates_stopped", waba_id=WABA) == 1
        await tell(sending, "message_template_status_update", template_event("APPROVED"))
        await asyncio.sleep(2.0)
        assert [sending.came_of(name) for name in "ab"] == ["accepted", "accepted"]
        assert gauge("templates_stopped", waba_id=WABA) == 0

    play(scene, SETTINGS)


def test_a_disabled_template_is_refused_in_metas_words() -> None:
    """It does not come back by waiting: whoever asked must hear so."""

    async def scene(sending: Sending) -> None:
        await tell(sending, "message_template_status_update", template_event("DISABLED"))
        assert await sent(sending, "a", FIRST, template=SALE) == "refused"
        assert sending.outcomes()["a"][-1].code == 132016
        assert not sending.calls("a")
        await tell(sending, "message_template_status_update", template_event("REINSTATED"))
        assert await sent(sending, "b", FIRST, template=SALE) == "accepted"

    play(scene, SETTINGS)


def test_a_tier_that_was_raised_is_used_without_a_restart_and_after_one() -> None:
    """At 80 a hundred and sixty sends take two seconds, at 1,000 a fraction of one."""

    async def burst(sending: Sending, name: str) -> int:
        await asyncio.gather(
            *(
                sending.put(template_send(f"{name}{n}", FIRST, f"49{name}{n:05d}", "reply", GREETING))
                for n in range(160)
            )
        )
        await asyncio.sleep(1.0)
        return sum(sending.came_of(f"{name}{n}") == "accepted" for n in range(160))

    async def scene(sending: Sending) -> None:
        assert await burst(sending, "1510") < 100
        await asyncio.sleep(5.0)
        value = {"display_phone_number": SETTINGS.numbers[0].display_phone_number, "event": "THROUGHPUT_UPGRADE"}
        await tell(sending, "phone_number_quality_update", value)
        assert gauge("throughput_limit_mps", phone_number_id=FIRST) == 1_000
        assert gauge("throughput_limit_mps", phone_number_id=SECOND) == 80
        assert await burst(sending, "1511") == 160
        await sending.restart_stage()
        assert gauge("throughput_limit_mps", phone_number_id=FIRST) == 1_000
        assert await burst(sending, "1512") == 160

    play(scene, SETTINGS, rules=UNLIMITED)


def test_what_still_holds_is_known_after_a_restart_and_what_is_over_costs_one_call() -> None:
    """The log of accounts is the memory. A stop whose time is over may have ended unheard: one send tries it."""

    async def scene(sending: Sending) -> None:
        await tell(sending, "message_template_status_update", template_event("PAUSED"))
        await tell(sending, "message_template_status_update", template_event("DISABLED", NEWS), ago_s=7_200)
        await tell(sending, "account_update", {"event": "ACCOUNT_RESTRICTION", "restriction_info": []})
        await sending.restart_stage()
        assert await sent(sending, "paused", FIRST, template=SALE) == "waits"
        sending.faults.set("answer", Fault(code=132016, number=FIRST))
        assert await sent(sending, "tries", FIRST, template=NEWS) == "refused"
        assert await sent(sending, "knows", FIRST, template=NEWS) == "refused"
        assert (len(sending.calls("tries")), len(sending.calls("knows"))) == (1, 0)

    play(scene, SETTINGS)


def test_a_cap_and_alerts_are_shown_to_operators(caplog: pytest.LogCaptureFixture) -> None:
    """What nobody can act upon automatically, people must see; after a restart they have seen it."""

    async def scene(sending: Sending) -> None:
        await tell(sending, "business_capability_update", {"max_daily_conversations_per_business": 2_000})
        assert gauge("messaging_limit_people", waba_id=WABA) == 2_000
        before = gauge("account_alerts_total", severity="warning")
        info = {"alert_severity": "WARNING", "alert_type": "SOMETHING_NEW", "alert_description": "Look."}
        await tell(sending, "account_alerts", {"entity_type": "BUSINESS", "entity_id": "1", "alert_info": info})
        assert gauge("account_alerts_total", severity="warning") == before + 1
        assert caplog.text.count("SOMETHING_NEW: Look.") == 1
        await sending.restart_stage()
        assert gauge("account_alerts_total", severity="warning") == before + 1
        assert gauge("messaging_limit_people", waba_id=WABA) == 2_000

    with caplog.at_level(logging.WARNING):
        play(scene, SETTINGS)


def test_spam_is_tried_again_when_the_cap_rises() -> None:
    """131048 rests for half an hour, or until Meta says that more people may be written to."""

    async def scene(sending: Sending) -> None:
        await tell(sending, "business_capability_update", {"max_daily_conversations_per_business": 2_000})
        sending.faults.set("answer", Fault(code=131048, number=FIRST, times=1))
        assert await sent(sending, "a", FIRST) == "waits"
        await asyncio.sleep(100.0)
        assert sending.came_of("a") == "waits"
        await tell(sending, "business_capability_update", {"max_daily_conversations_per_business": "TIER_10K"})
        await asyncio.sleep(2.0)
        assert sending.came_of("a") == "accepted"

    play(scene, SETTINGS)


def test_a_message_that_fails_after_acceptance_stops_what_its_answer_would_have_stopped() -> None:
    """Under spam limits Meta accepts and fails by webhook: nine hundred more of the campaign would follow."""

    async def scene(sending: Sending) -> None:
        at = sending.clock.now()
        await sending.put(NumberFault(FIRST, "main:1", 131048, at - 4 * HOUR_MS))
        assert await sent(sending, "old", FIRST) == "accepted", "an old status is no news"
        await sending.put(NumberFault(FIRST, "main:1", 131048, at), NumberFault(FOREIGN, "main:1", 368, at))
        assert await sent(sending, "campaign", FIRST) == "waits"
        assert await sent(sending, "confirmation", FIRST, "transactional") == "accepted"
        assert await sent(sending, "foreign", FOREIGN, "reply") == "waits"
        assert gauge("number_stopped", phone_number_id=FIRST, reason="campaign") == 1
        await asyncio.sleep(60.0)
        assert sending.came_of("foreign") == "accepted"
        await asyncio.sleep(1_800.0)
        assert sending.came_of("campaign") == "accepted"

    play(scene, SETTINGS)


def test_an_update_that_cannot_be_read_blinds_nobody() -> None:
    """One odd record must not end the reading of all later ones."""

    async def scene(sending: Sending) -> None:
        await sending.tell_accounts(WABA, b"\xff")
        await tell(sending, "account_update", {"event": ["odd"], "ban_info": 7})
        await tell(sending, "message_template_status_update", template_event("PAUSED"))
        assert await sent(sending, "a", FIRST, template=SALE) == "waits"

    play(scene, SETTINGS)


def test_a_reading_that_breaks_is_begun_again_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a log's client raises, the next update must act; and none is lost or heard twice."""

    async def scene(sending: Sending) -> None:
        await sending.stage.stop()
        read, broken = sending.log.read, 0

        def breaking(log: str, partition: int, start: int | None = None, *, tail: bool = False) -> Any:
            nonlocal broken
            if log == ACCOUNTS and tail and broken < 2:
                broken += 1
                raise RuntimeError("the client is at fault")
            return read(log, partition, start, tail=tail)

        monkeypatch.setattr(sending.log, "read", breaking)
        sending.stage = sending.new_stage()
        await sending.stage.start()
        await tell(sending, "message_template_status_update", template_event("PAUSED"))
        await asyncio.sleep(10.0)
        assert broken == 2
        assert await sent(sending, "a", FIRST, template=SALE) == "waits"

    play(scene, SETTINGS)
