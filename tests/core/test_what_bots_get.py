"""What a customer's actor makes of an update before it stands on a sink's log: ids, urls, whom it goes to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from broker.core.customer import HELD_BYTES_MAX, HELD_MAX, HOLD_MS_MAX, Deliver, next_due
from broker.core.customer_context import context_of
from broker.core.customer_state import KNOWN_MAX, KNOWN_QUIET_MAX, QUIET_AFTER_MS, SEEN_EVERY_MS, quieted
from broker.core.identity import account_key, number_key
from broker.core.media_url import PREFIX, Medium, from_ours, media_secret
from broker.core.webhook import for_sinks, split
from schemas.ids import CustomerKey
from schemas.records import RouteDebounce
from schemas.settings import Route, Settings, Then, When
from tests.core.conversation import (
    NUMBER,
    SETTINGS,
    START,
    WABA,
    Story,
    delivered,
    message,
    notes,
    outcome,
    readies,
    request,
    send_id,
    status,
    wamid,
)

SECRET = media_secret("EAAtoken")
META = "https://lookaside.fbsbx.com/whatsapp_business/attachments/?mid=1"


def picture(url: str = META) -> dict[str, str]:
    return {"mime_type": "image/jpeg", "sha256": "x", "id": "1003383421380001", "url": url}


def test_a_mediums_url_is_ours_once_the_numbers_secret_is_known() -> None:
    """Opened at Meta with the bot's key it would fail and show Meta the key."""
    story = Story(context_of(SETTINGS, {NUMBER: SECRET}))
    story.writes("photo", type="image", image=picture())
    (told,) = delivered(story.commands, "bot")
    number, _, last = told["image"]["url"].partition(PREFIX)[2].partition("/")
    assert from_ours(number, last, SECRET) == Medium(NUMBER, "1003383421380001", META)
    assert told["image"] == picture(told["image"]["url"])


def test_without_a_secret_metas_url_stays() -> None:
    """A number that is not configured has no token that could open it."""
    story = Story(context_of(SETTINGS, {"another": SECRET}))
    story.writes("photo", type="image", image=picture())
    assert delivered(story.commands, "bot")[0]["image"] == picture()


# ---- sends that are settled for long


def test_what_was_said_sixty_messages_ago_is_still_known_by_both_ids() -> None:
    """Customers tap a button of yesterday's menu, and bots quote what they said before lunch."""
    story = Story()
    story.writes()
    for index in range(KNOWN_MAX + 60):
        story.take(request(str(index), story.now))
        story.take(outcome(str(index), "accepted", story.now))
    story.writes("tap", type="button", button={"payload": "P", "text": "T"}, context={"from": "1", "id": wamid("0")})
    assert delivered(story.commands)[0]["context"]["id"] == send_id("0")
    (ready,) = readies(story.take(request("quote", story.now, body={"context": {"message_id": send_id("0")}})))
    assert json.loads(ready.body)["context"]["message_id"] == wamid("0")


def test_silence_leaves_the_last_few() -> None:
    """Millions of states must stay small."""
    story = Story()
    story.writes()
    for index in range(KNOWN_MAX + 5):
        story.take(request(str(index), story.now))
        story.take(outcome(str(index), "accepted", story.now))
    customer = story.customer
    assert customer.older
    assert quieted(customer, story.now + QUIET_AFTER_MS + 2 * SEEN_EVERY_MS)
    assert (len(customer.known), customer.older) == (KNOWN_QUIET_MAX, b"")


# ---- an update that may speak of a send whose wamid is not known yet


def under_way() -> Story:
    """A customer who wrote, and a send that was handed to its sender: whether Meta has it is not known."""
    story = Story()
    story.writes()
    story.take(request("one", story.now))
    story.now += 1_000
    return story


def reacts(story: Story, name: str = "r", to: str = "one") -> list[dict[str, Any]]:
    """The customer reacts to a message, and this is what the bot gets of it now."""
    return delivered(story.writes(name, type="reaction", reaction={"message_id": wamid(to), "emoji": "x"}))


@pytest.mark.parametrize("by", ["answer", "status"])
def test_a_reaction_that_is_quicker_than_the_answer_waits_for_it(by: str) -> None:
    """Else the bot would be told of a message it never heard of."""
    story = under_way()
    assert reacts(story) == []
    learned = outcome("one", "accepted", story.now) if by == "answer" else status("one", "sent", story.now)
    told = delivered(story.take(learned, after_ms=500))
    assert told[0]["reaction"] == {"message_id": send_id("one"), "emoji": "x"}
    assert [one.get("status") for one in told[1:]] == ([] if by == "answer" else ["sent"])
    assert story.customer.held == []


def test_what_comes_behind_it_stays_behind_it() -> None:
    """Order per customer, for every sink."""
    story = under_way()
    reacts(story)
    assert delivered(story.writes("a")) == []
    assert delivered(story.writes("b")) == []
    told = delivered(story.take(outcome("one", "accepted", story.now)))
    assert [one["id"] for one in told] == [wamid("r"), wamid("a"), wamid("b")]


def test_it_waits_for_ten_seconds_at_most() -> None:
    """A doubt may last for hours; then it goes as Meta wrote it."""
    story = under_way()
    story.take(outcome("one", "in_doubt", story.now))
    began = story.now
    reacts(story)
    story.writes("a")
    assert next_due(story.customer, story.now) == began + HOLD_MS_MAX
    assert delivered(story.due(after_ms=HOLD_MS_MAX - 1)) == []
    told = delivered(story.due(after_ms=1))
    assert [one["id"] for one in told] == [wamid("r"), wamid("a")]
    assert told[0]["reaction"]["message_id"] == wamid("one")


def test_nothing_waits_that_can_not_speak_of_a_send_under_way() -> None:
    """Each wait is a customer's: none without a reason."""
    story = under_way()
    story.take(outcome("one", "accepted", story.now))
    assert len(reacts(story, "1", to="strange")) == 1  # nothing is under way
    story.take(request("two", story.now))
    assert len(reacts(story, "2", to="one")) == 1  # known
    assert len(reacts(story, "3", to="hello")) == 1  # the customer's own
    assert len(delivered(story.writes("4"))) == 1  # speaks of nothing
    early = message(
        "5", story.now - 60_000, story.now, type="reaction", reaction={"message_id": wamid("x"), "emoji": "x"}
    )
    assert len(delivered(story.take(early))) == 1  # was written before the send was asked for
    assert reacts(story, "6", to="two") == []
    assert len(delivered(story.take(outcome("two", "refused", story.now, code=131026)))) == 2  # nothing to wait for


def test_what_waits_is_bounded() -> None:
    """A customer cannot make us remember more than so much; the first goes as it is."""
    story = under_way()
    reacts(story)
    for index in range(HELD_MAX - 1):
        assert delivered(story.writes(str(index))) == []
    assert len(delivered(story.writes("one more"))) == HELD_MAX + 1
    assert reacts(story, "again") == []
    large = story.writes("large", type="text", text={"body": "x" * HELD_BYTES_MAX})
    assert [one["id"] for one in delivered(large)] == [wamid("again"), wamid("large")]


# ---- statuses: whoever sent, and who observes


def sinks(story: Story) -> list[str]:
    return [command.sink for command in story.commands if isinstance(command, Deliver)]


def asked(story: Story, own: str | None = None) -> Story:
    story.writes()
    story.take(request("one", story.now, own=own))
    story.take(outcome("one", "accepted", story.now))
    return story


def test_a_rule_that_names_statuses_observes_those_of_our_sends() -> None:
    """An archive wants to see what a bot sees, in the same words; the bot gets it in any case, and first."""
    story = asked(Story(), own="mine")
    story.take(status("one", "sent", story.now, own="mine"))
    assert sinks(story) == ["bot", "audit"]
    assert delivered(story.commands, "audit") == delivered(story.commands, "bot")
    (seen,) = delivered(story.commands, "audit")
    assert (seen["id"], seen["biz_opaque_callback_data"]) == (send_id("one"), "mine")
    assert notes(story.commands) == [("status", "forwarded")]
    ids = [command.event.delivery_id for command in story.commands if isinstance(command, Deliver)]
    assert len(set(ids)) == 2


def test_whoever_sent_gets_a_status_once_even_when_it_observes_too() -> None:
    """A rule for the bot's own sink adds nothing."""
    route = Route(name="all", when=When(types=["status"]), then=Then(sinks=["audit", "bot"]))
    story = asked(Story(context_of(replace(SETTINGS, routes=[route, *SETTINGS.routes]))))
    story.take(status("one", "sent", story.now))
    assert sinks(story) == ["bot", "audit"]


def test_without_such_a_rule_nobody_but_the_sender_hears_of_a_send() -> None:
    """A catch-all rule is for what customers do."""
    route = Route(name="all", then=Then(sinks=["audit"]))
    story = asked(Story(context_of(replace(SETTINGS, routes=[route]))))
    story.take(status("one", "sent", story.now))
    assert sinks(story) == ["bot"]


def test_a_refusal_of_ours_is_observed_like_one_of_metas() -> None:
    """Whoever counts failures counts these."""
    story = Story()
    story.take(request("one", story.now))
    assert sinks(story) == ["bot", "audit"]
    assert delivered(story.commands, "audit") == delivered(story.commands, "bot")
    assert delivered(story.commands, "audit")[0]["errors"][0]["code"] == 131047


def test_a_send_without_a_sink_is_observed_without_our_line() -> None:
    """A campaign of the brand's own has no bot behind it."""
    story = Story()
    story.writes()
    story.take(replace(request("one", story.now), sink=""))
    story.take(outcome("one", "accepted", story.now))
    story.take(status("one", "sent", story.now, line=""))
    assert sinks(story) == ["audit"]
    assert delivered(story.commands, "audit")[0]["id"] == send_id("one")
    assert notes(story.commands) == [("status", "routed")]


# ---- updates about accounts: whoever asks


SAMPLES = Path(__file__).parents[1] / "wire" / "webhooks"
ASKS = replace(
    SETTINGS, sinks=[replace(SETTINGS.sinks[0], account_updates=True), *SETTINGS.sinks[1:]], routes=SETTINGS.routes
)
"""The bot asks for account updates, the archive does not."""
WITHOUT_METADATA = sorted(
    path for path in SAMPLES.glob("*.json") if not re.search(rb'"metadata":\s*{', path.read_bytes())
)


def told(body: bytes, settings: Settings, times: int = 1) -> list[tuple[str, bytes]]:
    """What sinks get of a POST that comes so many times: (sink, body)."""
    parts = split(body, "brand", START, {NUMBER: "main"})
    found = []
    for keyed in (*parts.conversations, *for_sinks(parts.accounts, {NUMBER: "main"})):
        story = Story(context_of(settings), CustomerKey(keyed.key.decode()))
        for _ in range(times):
            story.take(keyed.item)
        found += [(c.sink, c.event.body) for c in story.told if isinstance(c, Deliver)]
    return found


@pytest.mark.parametrize("sample", WITHOUT_METADATA, ids=lambda path: path.stem)
def test_updates_without_metadata_go_only_to_sinks_that_ask(sample: Path) -> None:
    """Some libraries answer 500 to them, which would open a breaker and hold customers up."""
    body = sample.read_bytes()
    catch_all = replace(SETTINGS, routes=[Route(name="all", then=Then(sinks=["audit", "bot"]))])
    assert told(body, catch_all) == []
    assert [sink for sink, _ in told(body, ASKS)] == ["bot"]


def test_the_samples_without_metadata_are_there() -> None:
    """Thirteen fields about accounts, and a hand-over."""
    assert len(WITHOUT_METADATA) == 14


def test_an_account_update_comes_once_however_often_meta_repeats_it() -> None:
    """The same promise as for a message, by the same actor: taken once, in one step."""
    body = (SAMPLES / "template_status_paused.json").read_bytes()
    assert len(told(body, ASKS, times=3)) == 1
    later = body.replace(b"PAUSED", b"APPROVED")
    story = Story(context_of(ASKS), account_key("main", "102290129340398"))
    for each in (body, later, body, later):
        for keyed in for_sinks(split(each, "brand", START, {}).accounts, {}):
            assert keyed.key.decode() == story.key
            story.take(keyed.item)
    assert [b"APPROVED" in c.event.body for c in story.told if isinstance(c, Deliver)] == [False, True]


def test_an_error_of_a_number_goes_where_the_numbers_updates_go() -> None:
    """It has metadata: a bot that had Meta's webhook saw it, too."""
    body = json.dumps(
        {
            "object": "whatsapp_business_account",
            "entry": [
                {
                    "id": WABA,
                    "changes": [
                        {
                            "value": {
                                "messaging_product": "whatsapp",
                                "metadata": {"display_phone_number": "15550001000", "phone_number_id": NUMBER},
                                "errors": [{"code": 130429, "title": "Rate limit hit"}],
                            },
                            "field": "messages",
                        }
                    ],
                }
            ],
        }
    ).encode()
    (keyed,) = for_sinks(split(body, "brand", START, {NUMBER: "main"}).accounts, {NUMBER: "main"})
    assert keyed.key.decode() == number_key("main", NUMBER)
    assert told(body, SETTINGS) == [("bot", body)]


def test_an_event_carries_what_its_route_said_of_joining_it() -> None:
    """A status that no rule names is none of a rule's events: it says nothing, and the sink's own setting holds."""
    routes = [
        Route(name="words", when=When(types=["text"]), then=Then(sinks=["bot"], debounce_ms=2_000)),
        Route(name="rest", then=Then(sinks=["bot"])),
    ]
    story = Story(context_of(replace(SETTINGS, routes=routes)))
    story.writes("hello")
    story.writes("photo", type="image", image=picture())
    story.take(request("answer", story.now))
    story.take(outcome("answer", "accepted", story.now))
    story.take(status("answer", "delivered", story.now))
    said = [(each.event.kind, each.event.debounce) for each in story.told if isinstance(each, Deliver)]
    assert said == [("message", RouteDebounce(2_000)), ("message", None), ("status", None)]
