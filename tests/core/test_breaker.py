"""When a sink's breaker opens, and when it lets the sink be tried again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.breaker import Breaker, BreakerLimits, Phase
from broker.core.retry import Verdict


def call(breaker: Breaker, found: Verdict, now: float, *, first: bool = True, timed_out: bool = False) -> bool:
    assert breaker.may_call(now)
    number = breaker.begin(now)
    return breaker.ended(number, found, now, first=first, timed_out=timed_out, chance=0.0)


def is_open(breaker: Breaker) -> bool:
    return breaker.phase is Phase.OPEN


def is_closed(breaker: Breaker) -> bool:
    return breaker.phase is Phase.CLOSED


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(10):
        call(breaker, Verdict.SINK, now)
    assert is_open(breaker)
    return breaker


def test_ten_failing_events_open_it_and_nine_do_not() -> None:
    """A handful of failures is weather; ten of ten is an outage."""
    breaker = Breaker()
    for _ in range(9):
        call(breaker, Verdict.SINK, 0.0)
    assert is_closed(breaker)
    call(breaker, Verdict.SINK, 0.0)
    assert is_open(breaker)
    assert not breaker.may_call(4.99)
    assert breaker.may_call(5.0)


def test_below_half_failing_it_stays_closed() -> None:
    """A sink that fails at four of ten kinds of update is still the best place for the other six."""
    breaker = Breaker()
    for round_ in range(200):
        call(breaker, Verdict.TAKEN if round_ % 5 < 3 else Verdict.SINK, round_ * 0.1)
    assert is_closed(breaker)


def test_five_timeouts_in_a_row_open_it_at_once() -> None:
    """Each timeout occupies a request for 15 s: ten of them would be too dear."""
    breaker = Breaker()
    for _ in range(4):
        call(breaker, Verdict.SINK, 0.0, timed_out=True)
    call(breaker, Verdict.TAKEN, 0.0)
    for _ in range(4):
        call(breaker, Verdict.SINK, 0.0, timed_out=True)
    assert is_closed(breaker)
    call(breaker, Verdict.SINK, 0.0, timed_out=True)
    assert is_open(breaker)


def test_one_event_that_fails_again_and_again_opens_nothing() -> None:
    """The sink is judged by distinct events: one that hangs the bot, retried for ten minutes, is one."""
    breaker = Breaker()
    for attempt in range(100):
        call(breaker, Verdict.SINK, attempt * 1.0, first=attempt == 0, timed_out=True)
    assert is_closed(breaker)


def test_refused_events_say_that_the_sink_works() -> None:
    """A 422 is the event's own fault: it neither opens the breaker nor keeps it open."""
    breaker = Breaker()
    for _ in range(100):
        call(breaker, Verdict.EVENT, 0.0)
    assert is_closed(breaker)
    breaker = opened()
    assert call(breaker, Verdict.EVENT, 5.0)
    assert is_closed(breaker)


def test_program_errors_count_only_when_nothing_else_is_taken() -> None:
    """Two of three updates crash the bot: the third kind goes on. When nothing goes any more, it opens."""
    breaker = Breaker()
    for round_ in range(300):
        call(breaker, Verdict.TAKEN if round_ % 3 == 0 else Verdict.UNSURE, round_ * 0.05)
    assert is_closed(breaker)
    for _ in range(400):
        if breaker.phase is Phase.CLOSED:
            call(breaker, Verdict.UNSURE, 30.0)
    assert is_open(breaker)


def test_old_calls_are_forgotten() -> None:
    """Nine failures an hour ago and one now are no outage."""
    breaker = Breaker()
    for _ in range(9):
        call(breaker, Verdict.SINK, 0.0)
    call(breaker, Verdict.SINK, 3_600.0)
    assert is_closed(breaker)


def test_a_failed_probe_doubles_the_cool_down_up_to_five_minutes() -> None:
    """A sink that is away for a night is asked every five minutes, not every second."""
    breaker, now, cool_downs = opened(), 0.0, []
    for _ in range(9):
        cool_downs.append(breaker.until - now)
        now = breaker.until
        call(breaker, Verdict.SINK, now, first=False)
    assert cool_downs == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_there_is_one_probe_at_a_time() -> None:
    """A sink that comes back is met by one request, not by everything that waited."""
    breaker = opened()
    probe = breaker.begin(5.0)
    assert breaker.phase is Phase.HALF_OPEN
    assert not breaker.may_call(1_000.0)
    breaker.given_back(probe, 6.0)
    assert breaker.may_call(6.0)


def test_calls_from_before_the_opening_change_nothing() -> None:
    """Sixty-four requests were under way when it opened; their failures must not lengthen the cool-down."""
    breaker = Breaker()
    old = breaker.begin(0.0)
    for _ in range(10):
        call(breaker, Verdict.SINK, 0.0)
    until = breaker.until
    assert not breaker.ended(old, Verdict.SINK, 1.0, first=True, timed_out=True, chance=0.0)
    assert not breaker.ended(old, Verdict.TAKEN, 1.0, first=True, timed_out=False, chance=0.0)
    breaker.given_back(old, 1.0)
    assert (breaker.phase, breaker.until) == (Phase.OPEN, until)


def test_a_minute_of_health_forgives_earlier_trips() -> None:
    """A sink that relapses at once is left alone for longer; one that was well starts anew."""
    for healthy_s, cool_down_s in ((10.0, 10.0), (61.0, 5.0)):
        breaker = opened()
        assert call(breaker, Verdict.TAKEN, 5.0)
        relapse = 5.0 + healthy_s
        for _ in range(10):
            call(breaker, Verdict.SINK, relapse)
        assert breaker.until - relapse == cool_down_s


def test_gone_opens_it_at_once_for_the_longest_time() -> None:
    """410 says the endpoint will not be back; its events wait, and a probe every five minutes finds out otherwise."""
    breaker = Breaker()
    call(breaker, Verdict.GONE, 0.0)
    assert is_open(breaker)
    assert breaker.until == 300.0
    assert call(breaker, Verdict.TAKEN, 300.0)
    for _ in range(10):
        call(breaker, Verdict.SINK, 400.0)
    assert breaker.until == 405.0, "after a minute of health even that is forgiven"


def test_jitter_only_lengthens() -> None:
    """It spreads the probes of many processes, and never comes too early."""
    breaker = Breaker()
    for _ in range(10):
        breaker.ended(breaker.begin(0.0), Verdict.SINK, 0.0, first=True, timed_out=False, chance=0.999)
    assert 5.9 < breaker.until <= 6.0


@given(
    st.lists(
        st.tuples(st.sampled_from(list(Verdict)), st.floats(0, 20), st.booleans(), st.booleans(), st.floats(0, 0.99)),
        max_size=200,
    )
)
@settings(deadline=None)
def test_whatever_happens_a_probe_comes_within_six_minutes(
    calls: list[tuple[Verdict, float, bool, bool, float]],
) -> None:
    """Recovery needs no hand: no order of answers leaves a breaker shut for good."""
    breaker, now = Breaker(BreakerLimits(calls_min=2)), 0.0
    for found, later, first, timed_out, chance in calls:
        now += later
        if breaker.may_call(now):
            breaker.ended(breaker.begin(now), found, now, first=first, timed_out=timed_out, chance=chance)
        assert breaker.phase is not Phase.HALF_OPEN
        assert breaker.may_call(now + 360)


def tried(breaker: Breaker, kind: str, found: Verdict, now: float) -> None:
    """One event of a kind, wherever the breaker stands."""
    assert breaker.may_call(now) or breaker.may_try(kind)
    breaker.ended(breaker.begin(now), found, now, first=True, timed_out=False, chance=0.0, kind=kind)


def test_a_kind_the_sink_never_took_does_not_open_it_while_it_takes_others() -> None:
    """A bot that answers 500 to whatever has no metadata: a hundred account updates at night are no outage."""
    breaker = Breaker()
    tried(breaker, "message", Verdict.TAKEN, 0.0)
    for index in range(100):
        tried(breaker, "account", Verdict.UNSURE, 3_600.0 + index)
    assert is_closed(breaker)
    assert breaker.is_its_kind("account")
    assert not breaker.is_its_kind("message")


def test_a_bot_that_is_down_is_found_out_although_it_took_other_kinds_before() -> None:
    """It has taken both; now it fails at each. A kind it once took is no excuse, nor one that it never took."""
    breaker = Breaker()
    for kind in ("message", "status"):
        tried(breaker, kind, Verdict.TAKEN, 0.0)
    for index in range(10):
        tried(breaker, "message", Verdict.UNSURE, 100.0 + index / 100)
    assert is_open(breaker)


def test_a_way_that_is_down_opens_it_whatever_the_kind() -> None:
    """A refused connection says nothing about what was to be sent over it."""
    breaker = Breaker()
    tried(breaker, "message", Verdict.TAKEN, 0.0)
    for _ in range(10):
        tried(breaker, "account", Verdict.SINK, 100.0)
    assert is_open(breaker)
    assert not breaker.may_try("message")


def test_another_kind_may_be_tried_at_once_while_it_is_open() -> None:
    """A fresh process met account updates first; the first customer does not wait for a cool-down of minutes."""
    breaker = Breaker()
    for _ in range(10):
        tried(breaker, "account", Verdict.UNSURE, 0.0)
    assert is_open(breaker)
    assert not breaker.may_try("account")
    assert breaker.has_failed_at("account")
    tried(breaker, "message", Verdict.TAKEN, 1.0)
    assert is_closed(breaker)
    for index in range(100):
        tried(breaker, "account", Verdict.UNSURE, 100.0 + index)
    assert is_closed(breaker), "from now on it is known whose trouble that is"


def test_a_kind_is_tried_once_and_its_failure_makes_the_cool_down_no_longer() -> None:
    """A bot that is down altogether gets one more request for each kind, not for each event."""
    breaker = Breaker()
    for _ in range(10):
        tried(breaker, "account", Verdict.UNSURE, 0.0)
    until = breaker.until
    tried(breaker, "message", Verdict.UNSURE, 1.0)
    assert (breaker.phase, breaker.until) == (Phase.OPEN, until)
    assert not breaker.may_try("message")
    assert breaker.may_try("status")
    number = breaker.begin(2.0)
    breaker.given_back(number, 2.0)
    assert (breaker.phase, breaker.until) == (Phase.OPEN, until)
