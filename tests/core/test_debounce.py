"""When a customer's events are joined."""

from __future__ import annotations

import msgspec

from broker.core.debounce import ALONG, AT_ONCE, Debounce, Gathered, behind, debounce_of, gather
from schemas.records import DeliveryEvent, RouteDebounce, decode_delivery, encode
from schemas.settings import SinkSettings

RULE = Debounce(silence_ms=2_000, events_max=3, wait_ms_max=5_000)


def test_a_lone_event_waits_for_the_silence_alone() -> None:
    """Whoever writes once is answered two seconds later."""
    assert RULE.due_at([1_000]) == 3_000


def test_each_further_event_begins_the_silence_anew_until_the_first_has_waited_enough() -> None:
    """Somebody who types a line every second is not left without an answer."""
    assert RULE.due_at([1_000, 2_500]) == 4_500
    assert Debounce(2_000, 10, 5_000).due_at([1_000, 2_500, 4_000, 5_500]) == 6_000


def test_enough_events_are_due_at_once() -> None:
    """The list has a bound; what comes then begins the next one."""
    assert RULE.due_at([1_000, 1_001, 1_002]) == 1_000


def test_a_backlog_is_due_already() -> None:
    """After an outage nothing waits for a silence that has long been."""
    assert RULE.due_at([1_000, 1_500]) < 1_000_000


OTHER = Debounce(silence_ms=500, events_max=3, wait_ms_max=5_000)


def test_neighbours_of_one_mind_wait_together_for_the_silence() -> None:
    """The whole burst is one question."""
    assert gather(RULE, 1_000, []) == Gathered(1, 3_000)
    assert gather(RULE, 1_000, [(1_500, RULE)]) == Gathered(2, 3_500)


def test_an_event_that_goes_alone_makes_those_before_it_due_and_is_not_among_them() -> None:
    """A tap on a button is answered at once, and never before the words that were written before it."""
    assert gather(RULE, 1_000, [(1_500, RULE), (1_600, None), (1_700, RULE)]) == Gathered(2, AT_ONCE)


def test_an_event_that_is_to_be_joined_otherwise_ends_a_list_as_well() -> None:
    """Two routes, two lists: the bot is told which were which, in the customer's order."""
    assert gather(RULE, 1_000, [(1_500, OTHER)]) == Gathered(1, AT_ONCE)
    assert gather(OTHER, 1_000, [(1_100, OTHER), (1_200, RULE)]) == Gathered(2, AT_ONCE)


def test_a_status_of_which_no_route_speaks_goes_along_and_makes_nobody_wait() -> None:
    """The ticks of a bot's last answer come while its customer types, and would cut every burst in two."""
    assert gather(RULE, 1_000, [(2_900, ALONG)]) == Gathered(2, 3_000)
    assert gather(RULE, 1_000, [(1_200, ALONG), (1_500, RULE)]) == Gathered(3, 1_000)
    assert gather(OTHER, 1_000, [(1_200, ALONG), (1_300, None)]) == Gathered(2, AT_ONCE)


def event(kind: str, said: RouteDebounce | None = None) -> DeliveryEvent:
    return DeliveryEvent("evt_1", kind, "1", "main:49", b"{}", 1, 2, debounce=said)


def test_only_a_status_of_which_nobody_speaks_goes_along() -> None:
    """A sink's own debounce holds for statuses, and so does what a route says of them."""
    assert behind(event("status"), sink()) == ALONG
    assert behind(event("message"), sink()) is None
    assert behind(event("status"), sink(debounce_ms=700)) == Debounce(700, 7, 900)
    assert behind(event("status", RouteDebounce(0)), sink()) is None


def test_what_comes_behind_a_full_list_does_not_matter_to_it() -> None:
    """It begins the next one."""
    assert gather(RULE, 1_000, [(1_001, RULE), (1_002, RULE), (1_003, None)]) == Gathered(3, 1_000)


def sink(kind: str = "standard", debounce_ms: int = 0) -> SinkSettings:
    return SinkSettings(name="bot", kind=kind, debounce_ms=debounce_ms, debounce_events_max=7, debounce_wait_ms_max=900)  # type: ignore[arg-type]


def test_a_sinks_own_setting_holds_for_events_of_which_no_route_said_anything() -> None:
    """Statuses of its own sends, and whatever was on the log before there were such routes."""
    assert debounce_of(None, sink()) is None
    assert debounce_of(None, sink(debounce_ms=300)) == Debounce(300, 7, 900)


def test_what_a_route_says_goes_before_what_the_sink_says() -> None:
    """Zero is a word, too. A bound it leaves out is the sink's."""
    assert debounce_of(RouteDebounce(0), sink(debounce_ms=300)) is None
    assert debounce_of(RouteDebounce(2_000), sink()) == Debounce(2_000, 7, 900)
    assert debounce_of(RouteDebounce(2_000, 3, 5_000), sink(debounce_ms=300)) == RULE


def test_nothing_is_joined_for_a_sink_that_takes_no_list() -> None:
    """Records outlive a configuration: an event that was to be joined may meet a sink of another kind."""
    assert debounce_of(RouteDebounce(2_000), sink("meta")) is None


def test_an_event_written_before_routes_had_a_say_means_what_its_sink_is_set_to() -> None:
    """The log keeps seven days of them over an upgrade, and a downgrade reads the new ones."""
    before = event("message")
    assert b"debounce" not in encode(before)
    assert decode_delivery(encode(before)).debounce is None
    said = msgspec.structs.replace(before, debounce=RouteDebounce(0))
    assert decode_delivery(encode(said)) == said
