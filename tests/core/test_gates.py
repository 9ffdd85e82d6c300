"""Gates: what Meta stopped stays stopped, is tried by one, and opens; what it refuses costs no call."""

from __future__ import annotations

from broker.core.gates import Door, Gates
from broker.core.outcome import Scope
from broker.core.refusals import Refusal

DOOR = Door(Scope.WABA, "waba")
OTHER = Door(Scope.NUMBER, "number")


def closed(gates: Gates) -> list[str]:
    """Return what was said of gates since the last time, for people."""
    return [f"{door.name}: {'open' if gate is None else gate.why}" for door, gate in gates.changes()]


def test_a_gate_closes_for_longer_each_time_its_probe_fails() -> None:
    """A dead token is asked about less and less often, up to a bound."""
    gates, now = Gates(), 0.0
    for rest_s in (60, 120, 240, 240):
        assert gates.close(DOOR, now, 60, 240, "locked", is_stop=True)
        assert not gates.close(DOOR, now + 1, 60, 240, "locked", is_stop=True), "an answer of before it closed"
        assert gates.opens_at((DOOR,), now) == now + rest_s
        assert not gates.admits((DOOR,), now + rest_s - 1, "a")
        now += rest_s
        assert gates.admits((DOOR,), now, "a")
        gates.enter((DOOR,), "a")
        assert not gates.admits((DOOR,), now, "b"), "one probe at a time"
        assert gates.opens_at((DOOR,), now) is None
        assert gates.leave((DOOR,), "a", passed=False) == []
    assert gates.leave((DOOR,), "a", passed=True) == [], "it is nobody's probe any more"
    gates.enter((DOOR,), "c")
    assert gates.leave((DOOR,), "c", passed=True) == [DOOR]
    assert gates.admits((DOOR,), now, "b")


def test_an_announced_stop_lasts_at_least_as_long_as_announced() -> None:
    """A restriction until midnight is not forgotten because an answer closed the same gate for a minute."""
    gates = Gates()
    gates.close(DOOR, 0, 60, 60, "368", is_stop=True)
    gates.shut(DOOR, 1_000, "restricted")
    assert gates.opens_at((DOOR,), 0) == 1_000
    gates.shut(DOOR, 500, "restricted")
    assert gates.opens_at((DOOR,), 0) == 1_000
    assert not gates.close(DOOR, 10, 60, 60, "368", is_stop=True)
    assert closed(gates) == ["waba: 368", "waba: restricted"], "said once each"


def test_meta_opens_what_it_closed() -> None:
    """Nobody waits for the next probe when a webhook says that an account is back."""
    gates = Gates()
    assert not gates.open(DOOR)
    gates.shut(DOOR, 1_000, "disabled")
    gates.shut(OTHER, 1_000, "disabled")
    assert gates.open(DOOR)
    assert gates.admits((DOOR,), 1, "a")
    assert not gates.admits((DOOR, OTHER), 1, "a")
    assert closed(gates) == ["waba: disabled", "number: disabled", "waba: open"]


def test_what_a_gate_refuses_is_refused_until_it_may_be_tried() -> None:
    """A disabled template's sends come back in Meta's words; once in a while one asks whether that is still so."""
    gates, refusal = Gates(), Refusal(132016, "Template is disabled", "")
    gates.close(DOOR, 0, 60, 60, "132016", is_stop=True, refuses=refusal)
    gates.close(OTHER, 0, 60, 60, "131031", is_stop=True)
    assert gates.refusal(DOOR, 59) == refusal
    assert gates.refusal(DOOR, 60) is None
    assert gates.refusal(OTHER, 59) is None, "this one waits"


def test_the_version_tells_whether_there_is_anything_to_show() -> None:
    """Operators' view is made anew only when a gate changed: it is looked at with every step."""
    gates = Gates()
    gates.close(DOOR, 0, 60, 60, "368", is_stop=True)
    version = gates.version
    gates.close(DOOR, 1, 60, 60, "368", is_stop=True)
    gates.enter((DOOR,), "a")
    gates.retry(DOOR, 5)
    assert gates.version == version
    gates.leave((DOOR,), "a", passed=True)
    assert gates.version > version
