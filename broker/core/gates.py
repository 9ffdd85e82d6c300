"""What rests because Meta said so: an app, an account, a number or one of its lanes, a template. Half-open ends it.

A gate is closed for a time that doubles with each repetition. When the time is over it lets one send through, the
probe, and what comes of that decides: it opens, or closes for longer. So a number with a dead token costs one call a
minute, and four hundred answers that say the same close it once. What stands before a closed gate waits, unless the
gate `refuses`: then Meta's own refusal is what it gets, without a call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from msgspec import Struct

from broker.core.outcome import Scope
from broker.core.refusals import Refusal


class Door(NamedTuple):
    """What a gate stands before: a scope, and whose (a phone_number_id, a WABA id, "<number>/<lane>",
    "<WABA>/<template>/<language>", "" for the app)."""

    scope: Scope
    name: str


class Gate(Struct):
    """Closed until an instant (monotonic seconds), then half-open. `why` is for operators."""

    until: float
    strikes: int
    why: str
    is_stop: bool
    refuses: Refusal | None = None
    probe: str = ""
    """The send that is trying it, "" when none is."""


class Gates:
    """The gates of one process. Those of an app or an account concern numbers of several slots."""

    def __init__(self) -> None:
        self._gates: dict[Door, Gate] = {}
        self._changes: list[tuple[Door, Gate | None]] = []
        self.version = 0
        """Grows whenever a gate closes, changes or opens: who shows them looks only then."""
        self.slowed: dict[Door, None] = {}
        """Templates that are to be sent slowly."""

    def __len__(self) -> int:
        return len(self._gates)

    def close(
        self,
        door: Door,
        now: float,
        wait_s: float,
        wait_s_max: float,
        why: str,
        *,
        is_stop: bool,
        refuses: Refusal | None = None,
    ) -> bool:
        """Close a gate, for longer each time in a row. Return whether this was news: answers of calls that were under
        way when it closed are none."""
        gate = self._gates.get(door)
        if gate is not None and now < gate.until:
            return False
        strikes = 0 if gate is None else gate.strikes + 1
        until = now + min(wait_s_max, wait_s * 2.0 ** min(strikes, 20))
        self._put(door, Gate(until, strikes, why, is_stop, refuses))
        return True

    def shut(self, door: Door, until: float, why: str, *, refuses: Refusal | None = None) -> None:
        """Close a gate because Meta announced it, not because of an answer: at least until then. Said again, or of one
        that is closed for longer, it changes the reason alone."""
        gate = self._gates.get(door)
        if gate is None:
            self._put(door, Gate(until, 0, why, True, refuses))
        elif until > gate.until or (why, refuses) != (gate.why, gate.refuses):
            self._put(door, Gate(max(until, gate.until), gate.strikes, why, True, refuses, gate.probe))

    def open(self, door: Door) -> bool:
        """Open a gate because Meta said so. Return whether it was closed."""
        if self._gates.pop(door, None) is None:
            return False
        self._note(door, None)
        return True

    def refusal(self, door: Door, now: float) -> Refusal | None:
        """Return what a closed gate answers instead of letting wait. None when it is open, waits, or may be tried."""
        gate = self._gates.get(door)
        return gate.refuses if gate is not None and now < gate.until else None

    def admits(self, doors: Iterable[Door], now: float, send_id: str) -> bool:
        """Whether this send may pass all these gates: they are open, or it is their probe, or can be."""
        return all(
            gate is None or (now >= gate.until and gate.probe in ("", send_id)) for gate in map(self._gates.get, doors)
        )

    def opens_at(self, doors: Iterable[Door], now: float) -> float | None:
        """Return when the last of these gates may be tried; `now` when all may. None: it depends on a running probe."""
        opens_at = now
        for door in doors:
            gate = self._gates.get(door)
            if gate is None:
                continue
            if now >= gate.until and gate.probe:
                return None
            opens_at = max(opens_at, gate.until)
        return opens_at

    def enter(self, doors: Iterable[Door], send_id: str) -> None:
        """Let a send pass that was admitted: it becomes the probe of each gate that is half-open."""
        for door in doors:
            gate = self._gates.get(door)
            if gate is not None:
                gate.probe = send_id

    def leave(self, doors: Iterable[Door], send_id: str, *, passed: bool) -> list[Door]:
        """End a send's passage. `passed`: Meta judged the message itself, so each gate it probed is open again; return
        those. Otherwise the next send may try."""
        opened = []
        for door in doors:
            gate = self._gates.get(door)
            if gate is None or gate.probe != send_id:
                continue
            gate.probe = ""
            if passed:
                del self._gates[door]
                self._note(door, None)
                opened.append(door)
        return opened

    def retry(self, door: Door, now: float) -> None:
        """Let a closed gate be tried at once: what it waited for may have happened, e.g. there is a new token."""
        gate = self._gates.get(door)
        if gate is not None:
            gate.until = min(gate.until, now)

    def _put(self, door: Door, gate: Gate) -> None:
        self._gates[door] = gate
        self._note(door, gate)

    def _note(self, door: Door, gate: Gate | None) -> None:
        self._changes.append((door, gate))
        self.version += 1

    def changes(self) -> list[tuple[Door, Gate | None]]:
        """Return, and forget, which gates closed (again) or opened (None) since the last time, for operators."""
        changes, self._changes = self._changes, []
        return changes

    def at(self, door: Door) -> Gate | None:
        """Return the gate at a door, None when it is open."""
        return self._gates.get(door)

    def closed(self) -> dict[Door, Gate]:
        """Return every gate that is not open, for operators."""
        return dict(self._gates)
