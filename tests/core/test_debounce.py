"""When a customer's events are joined."""

from __future__ import annotations

from broker.core.debounce import Debounce

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
