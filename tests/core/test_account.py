"""What Meta says of accounts: decided from real webhooks, as the receiver splits them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.account import (
    UNLIMITED,
    Accounts,
    Cap,
    Effect,
    NumberPlace,
    Open,
    Retry,
    Shut,
    Slow,
    Tell,
    Throttled,
    Tier,
)
from broker.core.gates import Door
from broker.core.outcome import Scope
from broker.core.sender import lane_door
from broker.core.webhook import split
from schemas.records import Item, decode_item, encode

WEBHOOKS = Path(__file__).parent.parent / "wire" / "webhooks"
WABA = "102290129340398"
NUMBER, SECOND = "106540352242922", "106540352242923"
AT = 1_789_302_800_000
ACCOUNT = Door(Scope.WABA, WABA)
TEMPLATE = Door(Scope.TEMPLATE, f"{WABA}/order_update/en_US")
HOUR_MS = 3_600_000


def place(number: str = NUMBER, display: str = "15550001000", mps: int = 80, waba: str = WABA) -> NumberPlace:
    """Return a configured number."""
    return NumberPlace(number, waba, mps, 0, display)


BOTH = (place(), place(SECOND, "15550002000"))


def items(body: bytes) -> list[Item]:
    """Return what a receiver would append to the log of accounts, as a reader decodes it."""
    return [
        decode_item(encode(keyed.item))
        for keyed in split(body, app="shop", received_at=AT + 1_000, portfolios={}).accounts
    ]


def decide(
    name_or_body: str | dict[str, Any], *places: NumberPlace, now: int = AT + 2_000, accounts: Accounts | None = None
) -> list[Effect]:
    """Return what follows from a sample, or from a change {"field", "value"} of our account."""
    if isinstance(name_or_body, str):
        body = (WEBHOOKS / f"{name_or_body}.json").read_bytes()
    else:
        entry = {"id": WABA, "time": AT // 1_000, "changes": [name_or_body]}
        body = json.dumps({"object": "whatsapp_business_account", "entry": [entry]}).encode()
    found = accounts or Accounts()
    known = {place.phone_number_id: place for place in places or BOTH}
    return [effect for item in items(body) for effect in found.decide(item, known, now)]


def template(event: str, **more: object) -> dict[str, Any]:
    """Return a change of a template's status."""
    value = {"event": event, "message_template_name": "order_update", "message_template_language": "en_US", **more}
    return {"field": "message_template_status_update", "value": value}


def update(**value: object) -> dict[str, Any]:
    """Return an `account_update`."""
    return {"field": "account_update", "value": value}


def test_an_upgrade_raises_the_tier_of_the_number_it_names() -> None:
    """Meta tells it once. Another number of the account keeps its own."""
    effects = decide("phone_number_quality_update_throughput_upgrade")
    assert effects == [Tier(NUMBER, 1_000), Cap(WABA, UNLIMITED)]
    shown = place(display="+1 555-000-1000")
    assert decide("phone_number_quality_update_throughput_upgrade", shown)[0] == Tier(NUMBER, 1_000)


def test_a_number_that_shows_no_digits_is_meant_when_it_is_the_only_one() -> None:
    """`display_phone_number` may be left out of the configuration; a guess between two would be worse than a word."""
    assert decide("phone_number_quality_update_throughput_upgrade", place(display=""))[0] == Tier(NUMBER, 1_000)
    for others in ((place(display=""), place(SECOND, "")), (place(display="15550009999"),)):
        [said] = decide("phone_number_quality_update_throughput_upgrade", *others)
        assert isinstance(said, Tell)


@pytest.mark.parametrize(("mps", "kind"), [(20, Tell), (1_000, None)])
def test_a_configured_tier_is_not_overruled(mps: int, kind: type | None) -> None:
    """A number in the Business app stays at 20, whatever is read again from last week."""
    effects = decide("phone_number_quality_update_throughput_upgrade", place(mps=mps))
    assert [type(each) for each in effects if type(each) is not Cap] == ([kind] if kind else [])


def test_a_disabled_account_stops_and_a_reinstated_one_goes_on() -> None:
    """Each further call would be one more sin, or one more wait."""
    shut, said = decide("account_update_disabled")
    assert shut == Shut(ACCOUNT, AT + 600_000, "Meta disabled the account")
    assert isinstance(said, Tell)
    assert said.severity == "critical"
    effects = decide(update(event="DISABLED_UPDATE", ban_info={"waba_ban_state": "REINSTATE"}))
    assert effects[0] == Open(ACCOUNT)
    [said] = decide(update(event="DISABLED_UPDATE", ban_info={"waba_ban_state": "SCHEDULE_FOR_DISABLE"}))
    assert isinstance(said, Tell)
    assert said.severity == "critical"


def test_an_account_that_may_be_gone_is_tried_by_one_send() -> None:
    """PARTNER_REMOVED may be about another partner: to stop for an hour would be our own outage."""
    shut = decide("account_update_partner_removed")[0]
    assert isinstance(shut, Shut)
    assert (shut.door, shut.until) == (ACCOUNT, AT)
    for event in ("ACCOUNT_RECONNECTED", "PARTNER_ADDED"):
        assert decide(update(event=event))[0] == Open(ACCOUNT)


def test_a_restriction_closes_the_lanes_it_names_until_it_ends() -> None:
    """No templates out: replies go on. The restriction is of one number when it shows its digits."""
    shuts = [effect for effect in decide("account_update_restriction") if isinstance(effect, Shut)]
    assert [shut.door for shut in shuts] == [lane_door(NUMBER, "transactional"), lane_door(NUMBER, "campaign")]
    assert {shut.until for shut in shuts} == {1_789_905_600_000}
    whole = update(
        event="ACCOUNT_RESTRICTION",
        restriction_info=[{"restriction_type": "RESTRICTED_CUSTOMER_INITIATED_MESSAGING"}, "odd", {"expiration": "x"}],
    )
    shuts = [effect for effect in decide(whole) if isinstance(effect, Shut)]
    assert [shut.door for shut in shuts] == [lane_door(NUMBER, "reply"), lane_door(SECOND, "reply")]
    assert {shut.until for shut in shuts} == {AT + HOUR_MS}


def test_a_paused_template_waits_and_a_disabled_one_is_refused() -> None:
    """What comes back in three hours is worth holding; what does not is worth saying."""
    [paused] = decide("template_status_paused")
    assert isinstance(paused, Shut)
    assert (paused.door, paused.until, paused.refuses) == (TEMPLATE, AT + 3 * HOUR_MS, None)
    for event, code in (("DISABLED", 132016), ("DELETED", 132001)):
        [shut] = decide(template(event, reason="LOW_QUALITY"))
        assert isinstance(shut, Shut)
        assert shut.refuses is not None
        assert (shut.door, shut.refuses.code) == (TEMPLATE, code)
    for event in ("APPROVED", "REINSTATED"):
        assert decide(template(event)) == [Open(TEMPLATE)]
    assert isinstance(decide(template("FLAGGED"))[0], Tell)
    assert decide(template("PENDING")) == []


def test_a_template_of_bad_quality_is_sent_slowly_until_it_is_better() -> None:
    """RED comes before a pause. YELLOW is a warning only."""
    for score, is_slow in (("RED", True), ("YELLOW", False), ("GREEN", False)):
        value = {
            "message_template_name": "order_update",
            "message_template_language": "en_US",
            "new_quality_score": score,
        }
        assert decide({"field": "message_template_quality_update", "value": value}) == [Slow(TEMPLATE, is_slow)]
    assert decide("template_quality_update") == [Slow(TEMPLATE, is_slow=False)]


@pytest.mark.parametrize(
    ("said", "people"),
    [(2000, 2_000), ("2000", 2_000), ("TIER_10K", 10_000), ("TIER_UNLIMITED", UNLIMITED), (-1, UNLIMITED)],
)
def test_a_cap_is_understood_in_every_form(said: object, people: int) -> None:
    """An integer, a tier's name; minus one was seen for unlimited."""
    value = {"max_daily_conversations_per_business": said}
    assert decide({"field": "business_capability_update", "value": value}) == [Cap(WABA, people)]


@pytest.mark.parametrize("said", ["TIER_NOT_SET", None, True, [], "9" * 30])
def test_a_cap_nobody_understands_is_none(said: object) -> None:
    """A wrong number would be believed."""
    value = {"max_daily_conversations_per_business": said}
    assert decide({"field": "business_capability_update", "value": value}) == []


def test_a_cap_that_rises_lets_one_send_try_what_spam_had_stopped() -> None:
    """131048 is what Meta answers at the cap: half a day's rest would be for nothing."""
    accounts = Accounts()
    lanes = [lane_door(NUMBER, "transactional"), lane_door(NUMBER, "campaign")]
    for said, retries in ((2_000, 0), (2_000, 0), (1_000, 0), (10_000, 2), (-1, 2), (-1, 0), (50, 0)):
        value = {"max_daily_conversations_per_business": said}
        effects = decide({"field": "business_capability_update", "value": value}, place(), accounts=accounts)
        assert [effect.door for effect in effects if isinstance(effect, Retry)] == lanes[:retries]


def test_alerts_are_told_with_their_severity() -> None:
    """People act on them; nothing stops."""
    [said] = decide("account_alerts")
    assert isinstance(said, Tell)
    assert said.severity == "information"
    assert said.text.startswith("INCREASED_CAPABILITIES_ELIGIBILITY_DEFERRED: ")
    [said] = decide("account_review_update")
    assert isinstance(said, Tell)


def test_an_error_of_a_number_teaches_only_while_it_is_news() -> None:
    """A throughput error of last week must not slow a new process down."""
    assert decide("value_errors", place(), now=AT + 2_000) == [Throttled(NUMBER)]
    assert decide("value_errors", place(), now=AT + 120_000) == []
    value = {"metadata": {"phone_number_id": NUMBER}, "errors": [{"code": 368}, {"code": 131000}, "odd", {"code": "x"}]}
    [shut] = decide({"field": "messages", "value": value})
    assert isinstance(shut, Shut)
    assert (shut.door, shut.until) == (ACCOUNT, AT + 61_000)
    assert decide({"field": "messages", "value": value}, now=AT + 200_000) == []


def test_an_account_nobody_configured_means_nothing() -> None:
    """Another brand's app may be subscribed to the same endpoint."""
    assert decide("account_update_disabled", place(waba="other")) == []


FIELDS = (
    "account_update",
    "account_alerts",
    "account_review_update",
    "business_capability_update",
    "phone_number_quality_update",
    "message_template_status_update",
    "message_template_quality_update",
)
WORDS = st.sampled_from(
    ["DISABLED_UPDATE", "ACCOUNT_RESTRICTION", "PAUSED", "DISABLE", "RED", "THROUGHPUT_UPGRADE", "15550001000", "", "x"]
)
KEYS = st.sampled_from(
    [
        "event", "ban_info", "waba_ban_state", "restriction_info", "restriction_type", "expiration", "alert_info",
        "display_phone_number", "message_template_name", "message_template_language", "other_info", "title",
        "phone_number",
        "max_daily_conversations_per_business", "new_quality_score", "current_limit", "reason", "disconnection_info",
    ]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)


@given(st.sampled_from(FIELDS), st.dictionaries(KEYS, JSON, max_size=6) | JSON)
def test_no_shape_of_an_update_crashes_us(field: str, value: object) -> None:
    """A crash here would blind every sender for all later updates."""
    item = Item(
        kind="account", field=field, app="shop", waba_id=WABA, phone_number_id=NUMBER, dedupe="", at=AT, received_at=AT,
        body=json.dumps({"entry": [{"id": WABA, "changes": [{"field": field, "value": value}]}]}).encode(),
    )  # fmt: skip
    Accounts().decide(item, {NUMBER: place()}, AT)
