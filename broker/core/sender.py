"""What one business number's sender decides: who is sent to next, when exactly, what each answer means for the rest.

A send's life here:

    queued ──intend──▶ intended ──permit──▶ called ──answered──▶ landing ──land──▶ done, back in its queue, or in doubt
                          └───────────void──────────────────────▶ back in its queue

`intend` chooses what the next step writes down, for a fraction of a second of the tier. `permit` is asked once that
step stands and a connection is there: the last thing before the bytes leave. `answered` is what came of the call, and
`land` follows when that has been reported. Each customer has one send between `intend` and `land`, over all lanes.

Nothing here waits, reads a clock or writes: `broker.core.slot` keeps the ledger of several numbers, `workers.sender`
does it all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import Enum
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import msgspec
from msgspec import Struct

from broker.core.gates import Door, Gate, Gates
from broker.core.lanes import LanePlanner, Ring
from broker.core.outcome import MAINTENANCE, PAIR_LIMIT, PROBE_S, THROUGHPUT, Scope, Verdict
from broker.core.pacing import (
    NO_DEBT,
    PAIR_WAY_MS,
    PairDebt,
    Window,
    is_settled,
    pair_spent,
    pair_struck,
    pair_surely_open_at,
)
from broker.core.refusals import Refusal
from schemas.ledger import Doubt, Learned
from schemas.records import LANES, Lane, Ready

AHEAD_S = 0.5
AHEAD_MAX = 500
AHEAD_MIN = 2
"""How much is intended and not yet called: half a second of the tier, 500 at most. Every one of these is in doubt when
the process dies; fewer would let the tier run dry during a step."""

LANE_SHARE_MAX: dict[Lane, float] = {"reply": 1.0, "transactional": 0.75, "campaign": 0.5}
"""What a lane may fill of that, so that a reply never waits for an intention of a campaign to be called."""

INTENT_S_MAX = 2.0
"""A permit is for intents younger than this by the monotonic clock. A process that was frozen thaws believing it owns
its numbers; a successor exists at the earliest after a session of 6 s and begins with a full window."""

PROBE_LOOK_S = 1.0
"""How long a send rests that waits for another's probe of a template."""

SLOW_SHARE = 0.1
"""Of a number's tier, for a template of bad quality: what people say of it comes minutes late, and at full speed a
campaign is over, and the template paused, before anybody heard."""

SLOW_LOOK_S = 0.5
"""How long a send rests that waits for its turn among those of a slowed template."""

REFUSED_MAX = 500
"""Sends of one number refused in one step without a call: each is a report of its own."""

STALE_RETRY_S = 0.2
UNREACHED_S = 0.5
UNREACHED_S_MAX = 10.0
"""No byte went out: at once again when only a connection was stale, with growing rests when Graph cannot be reached."""


class Instant(NamedTuple):
    """Now, on both clocks: monotonic seconds for durations, Unix ms for what others wrote."""

    monotonic: float
    wall: int

    @property
    def ms(self) -> int:
        """Monotonic milliseconds: what pair debts are kept in."""
        return int(self.monotonic * 1_000)


class Phase(Enum):
    """Where a send stands; see the module's picture."""

    QUEUED = "queued"
    INTENDED = "intended"
    CALLED = "called"
    LANDING = "landing"
    DONE = "done"


class Permit(Enum):
    """What the gate says just before the bytes leave."""

    GRANTED = "granted"
    """Send now, with nothing awaited in between."""
    WAIT = "wait"
    """The window has no room: ask again when it opens."""
    VOID = "void"
    """Not any more: no call was made, it goes back to its queue."""
    EXPIRED = "expired"
    """It is too late for this send."""


class Send:
    """One admitted send in memory, from its record on the lane's log until it is done there."""

    __slots__ = (
        "called_at",
        "intended_at",
        "is_settled",
        "is_timed",
        "is_withdrawn",
        "lane",
        "offset",
        "phase",
        "ready",
        "template",
        "tries",
    )

    def __init__(self, ready: Ready, lane: Lane, offset: int) -> None:
        self.ready = ready
        self.lane = lane
        self.offset = offset
        self.phase = Phase.QUEUED
        self.intended_at = 0.0
        self.called_at = 0
        self.tries = 0
        self.is_settled = False
        self.is_timed = False
        self.is_withdrawn = False
        self.template = template_of(ready)

    @property
    def is_mark(self) -> bool:
        """A read mark or typing indicator: it has no customer and nobody waits for its outcome."""
        return self.ready.kind == "mark"

    @property
    def has_pair(self) -> bool:
        """Whether it goes to one person, whom the pair limit protects; a mark or a group does not."""
        return not self.is_mark and ":#" not in self.ready.customer


class _Language(Struct):
    code: str = ""


class _Template(Struct):
    language: _Language | None = None


class _Body(Struct):
    template: _Template | None = None


_decode = msgspec.json.Decoder(_Body).decode


def template_of(ready: Ready) -> str:
    """Return "<name>/<language>" of the template a send goes by, "" when it goes by none. Meta pauses, disables and
    rates each language of a template for itself."""
    if not ready.template:
        return ""
    try:
        template = _decode(ready.body).template
    except (msgspec.DecodeError, UnicodeDecodeError):
        template = None
    language = "" if template is None or template.language is None else template.language.code
    return f"{ready.template}/{language}"


class Conversation:
    """One customer at this number: a queue for each lane, what is under way, what is in doubt, what is owed."""

    __slots__ = ("debt", "doubts", "flying", "held_back", "parked", "queues", "rests")

    def __init__(self) -> None:
        self.queues: dict[Lane, deque[Send]] = {}
        self.flying: Send | None = None
        self.doubts: dict[str, Doubt] = {}
        self.debt: PairDebt = NO_DEBT
        self.rests: dict[Lane, int] = {}
        self.parked: dict[Lane | None, int] = {}
        self.held_back: dict[Lane, int] = {}

    def is_held(self, lane: Lane) -> bool:
        """Whether a lane waits for a doubt to end. There may be several: of a call, and of one that was too late."""
        return any(doubt.lane == lane for doubt in self.doubts.values())

    def is_idle(self, now_ms: int) -> bool:
        """Whether nothing about this customer need be remembered."""
        return (
            self.flying is None
            and not self.doubts
            and not any(self.queues.values())
            and not any(rest > now_ms for rest in self.rests.values())
            and is_settled(self.debt, now_ms - PAIR_WAY_MS)
        )


def lane_door(phone_number_id: str, lane: Lane) -> Door:
    """Return the gate of one lane of a number."""
    return Door(Scope.LANE, f"{phone_number_id}/{lane}")


def template_door(waba_id: str, template: str) -> Door:
    """Return the gate of a template ("<name>/<language>") of an account: all its numbers share it."""
    return Door(Scope.TEMPLATE, f"{waba_id}/{template}")


class NumberSender:
    """One business number: its window, its lanes, its customers. Changes nothing but itself and the gates."""

    def __init__(
        self, phone_number_id: str, waba_id: str, throughput_mps: int, in_flight_max: int, gates: Gates, now: Instant
    ) -> None:
        """Begin with a full window and nobody waiting."""
        self.phone_number_id = phone_number_id
        self.waba_id = waba_id
        self.window = Window(throughput_mps, now.monotonic)
        self.pending: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self.held_back: dict[Lane, int] = dict.fromkeys(LANES, 0)
        """Of these, what queues behind a doubt."""
        self._in_flight_max = in_flight_max
        self._gates = gates
        self._unreached = Door(Scope.NUMBER, f"{phone_number_id}/unreached")
        self._doors_by_lane: dict[Lane, tuple[Door, ...]] = {
            lane: (
                Door(Scope.APP, ""),
                Door(Scope.WABA, waba_id),
                Door(Scope.NUMBER, phone_number_id),
                self._unreached,
                lane_door(phone_number_id, lane),
            )
            for lane in LANES
        }
        self._refused: list[tuple[Send, Refusal]] = []
        self._slow_turns: dict[Door, tuple[float, float]] = {}
        self._planner = LanePlanner()
        self._rings: dict[Lane, Ring] = {lane: Ring() for lane in LANES}
        self._conversations: dict[str, Conversation] = {}
        self._ahead: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self._calls = 0
        self._wakes: list[tuple[int, int, str, Lane | None]] = []
        self._deadlines: list[tuple[int, int, Send]] = []
        self._tick = 0

    # What comes in

    def put(self, send: Send) -> None:
        """Take a send into its customer's queue. A second attempt goes to the head and ends its own doubt."""
        ready = send.ready
        conversation = self._conversation(ready.customer)
        queue = conversation.queues.setdefault(send.lane, deque())
        if ready.attempt > 1:
            queue.appendleft(send)
            conversation.doubts.pop(ready.send_id, None)
        else:
            queue.append(send)
        self.pending[send.lane] += 1
        self._count_held_back(conversation)
        self._time(send)
        self._rouse(ready.customer)

    def hold(self, doubt: Doubt) -> None:
        """Let a customer's lane wait until the doubt about one of its sends is over."""
        conversation = self._conversation(doubt.customer)
        conversation.doubts[doubt.send_id] = doubt
        self._count_held_back(conversation)

    def settle(self, customer: str, lane: Lane, send_id: str) -> Send | None:
        """End the doubt about a send that will not be sent again. Return another attempt that was queued meanwhile:
        it must not go out either and is taken from its queue. One that is intended will get no permit."""
        conversation = self._conversations.get(customer)
        if conversation is None:
            return None
        conversation.doubts.pop(send_id, None)
        dropped = next((send for send in conversation.queues.get(lane, ()) if send.ready.send_id == send_id), None)
        if dropped is not None:
            conversation.queues[lane].remove(dropped)
            dropped.phase = Phase.LANDING
        self._count_held_back(conversation)
        flying = conversation.flying
        if flying is not None and flying.ready.send_id == send_id and flying.phase is Phase.INTENDED:
            flying.is_settled = True
        self._rouse(customer)
        self._park(customer, None, conversation, conversation.debt.free_at)
        return dropped

    def withdraw(self, send: Send) -> bool:
        """Let a send not begin any more. Return whether it was taken from its queue: it lands once that is reported.
        One that is intended will get no permit; when it comes back to its queue, this is to be asked again."""
        send.is_withdrawn = True
        if send.phase is not Phase.QUEUED:
            return False
        conversation = self._conversations[send.ready.customer]
        conversation.queues[send.lane].remove(send)
        self._count_held_back(conversation)
        self._rouse(send.ready.customer)
        send.phase = Phase.LANDING
        return True

    def is_doubtful(self, send: Send) -> bool:
        """Whether the doubt about this send still holds its customer's lane."""
        conversation = self._conversations.get(send.ready.customer)
        return conversation is not None and send.ready.send_id in conversation.doubts

    def owe(self, customer: str, debt: PairDebt) -> None:
        """Set what is owed to a customer, in monotonic ms; from the ledger."""
        conversation = self._conversation(customer)
        conversation.debt = debt
        self._park(customer, None, conversation, debt.free_at)

    def debts(self, now: Instant) -> Iterator[tuple[str, PairDebt]]:
        """Return every customer that is owed something, and the debt in monotonic ms."""
        for customer, conversation in self._conversations.items():
            if not is_settled(conversation.debt, now.ms):
                yield customer, conversation.debt

    def expire(self, wall: int) -> list[Send]:
        """Take every queued send that is too late out of its queue and return it; it lands once that is reported."""
        expired = []
        while self._deadlines and self._deadlines[0][0] < wall:
            send = heappop(self._deadlines)[2]
            send.is_timed = False
            if send.phase is Phase.QUEUED:
                conversation = self._conversations[send.ready.customer]
                conversation.queues[send.lane].remove(send)
                self._count_held_back(conversation)
                self._rouse(send.ready.customer)
                send.phase = Phase.LANDING
                expired.append(send)
        return expired

    # What goes out

    def intend(self, now: Instant) -> list[Send]:
        """Choose what to send next, and mark it as intended; `void` undoes it when the step does not come about."""
        self._wake(now)
        room = self._room(now)
        chosen: list[Send] = []
        while len(chosen) < room and len(self._refused) < REFUSED_MAX:
            lane = self._planner.pick([lane for lane in LANES if self._is_waiting(lane, now)])
            if lane is None:
                break
            send = self._next(lane, now)
            if send is not None:
                self._ahead[lane] += 1
                chosen.append(send)
        return chosen

    def refused(self) -> list[tuple[Send, Refusal]]:
        """Return, and forget, what `intend` took out of its queue because Meta would refuse it; it lands once that is
        reported."""
        refused, self._refused = self._refused, []
        return refused

    def permit(self, send: Send, now: Instant, asked_at: float, *, is_held: bool) -> Permit:
        """Decide, synchronously with the write that follows, whether this send's bytes may leave now.

        `asked_at`: monotonic seconds since when it waits for this. `is_held`: whether the lease is HELD.
        """
        if send.phase is not Phase.INTENDED or send.is_settled or send.is_withdrawn or not is_held:
            return Permit.VOID
        if now.monotonic - send.intended_at > INTENT_S_MAX:
            return Permit.VOID
        if 0 < send.ready.not_after < now.wall:
            return Permit.EXPIRED
        if len(self._gates) and not self._gates.admits(self._doors(send), now.monotonic, send.ready.send_id):
            return Permit.VOID
        if send.has_pair and pair_surely_open_at(self._conversations[send.ready.customer].debt, now.ms) > now.ms:
            return Permit.VOID  # its burst ended while it waited in line
        if not self.window.take(now.monotonic, asked_at):
            return Permit.WAIT
        if len(self._gates):
            self._gates.enter(self._doors(send), send.ready.send_id)
        send.phase = Phase.CALLED
        send.called_at = now.wall
        self._ahead[send.lane] -= 1
        self._calls += 1
        if send.has_pair:
            conversation = self._conversations[send.ready.customer]
            conversation.debt = pair_spent(conversation.debt, now.ms)
        return Permit.GRANTED

    def void(self, send: Send, now: Instant) -> None:
        """Take an intended send back into its queue: no call was made."""
        self._leave_intended(send)
        self._return(send, now)

    def expire_intended(self, send: Send) -> None:
        """Note that an intended send was too late; it lands once that is reported."""
        self._leave_intended(send)
        send.phase = Phase.LANDING

    def unsent(self, send: Send, now: Instant, chance: float, *, is_unreached: bool) -> None:
        """Take a send back of which no byte left: the connection was refused, or found closed. `chance` in [0, 1)."""
        if send.phase is Phase.INTENDED:
            self._leave_intended(send)
        else:
            self._calls -= 1
            self._gates.leave(self._doors(send), send.ready.send_id, passed=False)
        if is_unreached:
            wait_s = UNREACHED_S * (1 + chance / 4)
            self._gates.close(
                self._unreached, now.monotonic, wait_s, UNREACHED_S_MAX, "Graph cannot be reached", is_stop=False
            )
        else:
            self._rest(send, now, STALE_RETRY_S * chance)
        self._return(send, now)

    def answered(self, send: Send, verdict: Verdict, now: Instant, chance: float) -> Learned:
        """Learn from an answer, for the number and for this send: done, in doubt, or back in its queue.

        "back" takes effect at once; "done" and "doubt" when `land` says they are reported. `chance` in [0, 1).
        """
        self._calls -= 1
        closing = self._doors_to_close(verdict, send)
        for door in self._doors(send) if len(self._gates) else ():
            passed = door == self._unreached or (door not in closing and verdict.outcome != "in_doubt")
            self._gates.leave((door,), send.ready.send_id, passed=passed)
        if verdict.outcome == "accepted":
            self.window.thawed()
        elif verdict.outcome == "refused" and closing:
            self._close(closing, verdict, now)
        if verdict.outcome in ("accepted", "refused") or (verdict.outcome == "in_doubt" and send.is_mark):
            send.phase = Phase.LANDING
            return "done"
        if verdict.outcome == "in_doubt":
            send.phase = Phase.LANDING
            ready = send.ready
            self.hold(Doubt(self.phone_number_id, ready.customer, send.lane, ready.send_id, ready.attempt))
            return "doubt"
        if verdict.tries_max and send.tries + 1 >= verdict.tries_max:
            send.phase = Phase.LANDING
            return "done"
        self._slow_down(send, verdict, closing, now, chance)
        self._return(send, now)
        return "back"

    def land(self, send: Send, now: Instant) -> None:
        """End a send that is done or in doubt and reported: the customer's next may go."""
        conversation = self._conversation(send.ready.customer)  # one that expired in its queue may be forgotten already
        if conversation.flying is send:
            conversation.flying = None
        send.phase = Phase.DONE
        self.pending[send.lane] -= 1
        self._rouse(send.ready.customer)
        self._park(send.ready.customer, None, conversation, max(conversation.debt.free_at, now.ms))

    def can_intend(self, now: Instant) -> bool:
        """Whether `intend` may choose somebody at once."""
        self._wake(now)
        return any(self._is_waiting(lane, now) for lane in LANES) and self._room(now) > 0

    def wakes_at(self, now: Instant) -> float:
        """Return the next monotonic instant at which time alone may change what `intend` or `expire` would do."""
        moments = [now.monotonic + 60.0]
        if self._wakes:
            moments.append(self._wakes[0][0] / 1_000)
        if self._deadlines:
            moments.append(now.monotonic + (self._deadlines[0][0] + 1 - now.wall) / 1_000)
        for lane in LANES:
            if len(self._rings[lane]):
                moments.append(self.window.open_at(now.monotonic) - AHEAD_S)
                opens_at = self._gates.opens_at(self._doors_of_lane(lane), now.monotonic)
                moments.append(now.monotonic + PROBE_LOOK_S if opens_at is None else opens_at)
        return min(moment for moment in moments if moment > now.monotonic)

    @property
    def ahead(self) -> int:
        """How many are intended and not called."""
        return sum(self._ahead.values())

    @property
    def calls(self) -> int:
        """How many calls are under way."""
        return self._calls

    def is_reply_waiting(self, now: Instant) -> bool:
        """Whether a reply could be intended now: the step should not wait for company."""
        return self._is_waiting("reply", now) and self._room(now) > 0

    def __len__(self) -> int:
        """How many customers are remembered."""
        return len(self._conversations)

    @property
    def door(self) -> Door:
        """This number's own gate: what its token opens."""
        return Door(Scope.NUMBER, self.phone_number_id)

    def stops(self) -> Iterator[tuple[str, Gate]]:
        """Return what of this number does not send: "app", "waba", "number" or a lane, and the closed gate."""
        if not len(self._gates):
            return
        doors = [("app", Door(Scope.APP, "")), ("waba", Door(Scope.WABA, self.waba_id)), ("number", self.door)]
        for what, door in (*doors, *((lane, lane_door(self.phone_number_id, lane)) for lane in LANES)):
            if (gate := self._gates.at(door)) is not None:
                yield what, gate

    def look_again(self) -> None:
        """Look at every customer that has something to send: a gate was opened before its time."""
        for customer, conversation in self._conversations.items():
            if any(conversation.queues.values()):
                self._rouse(customer)

    # Inside

    def _conversation(self, customer: str) -> Conversation:
        conversation = self._conversations.get(customer)
        if conversation is None:
            conversation = self._conversations[customer] = Conversation()
        return conversation

    def _count_held_back(self, conversation: Conversation) -> None:
        """Count anew what queues behind a customer's doubts: these, or a queue, may have changed."""
        if not (conversation.doubts or conversation.held_back):
            return
        for lane, before in conversation.held_back.items():
            self.held_back[lane] -= before
        lanes = dict.fromkeys(doubt.lane for doubt in conversation.doubts.values())
        conversation.held_back = {lane: len(conversation.queues.get(lane, ())) for lane in lanes}
        for lane, count in conversation.held_back.items():
            self.held_back[lane] += count

    def _room(self, now: Instant) -> int:
        if self.window.open_at(now.monotonic) - now.monotonic > AHEAD_S:
            return 0
        ahead = self.ahead
        return min(self._ahead_max(now) - ahead, self._in_flight_max - self._calls - ahead)

    def _ahead_max(self, now: Instant) -> int:
        return min(AHEAD_MAX, max(AHEAD_MIN, int(self.window.limit(now.monotonic) * AHEAD_S)))

    def _is_waiting(self, lane: Lane, now: Instant) -> bool:
        if not len(self._rings[lane]):
            return False
        if self._ahead[lane] >= max(1, int(self._ahead_max(now) * LANE_SHARE_MAX[lane])):
            return False
        return not len(self._gates) or self._gates.admits(self._doors_of_lane(lane), now.monotonic, "")

    def _next(self, lane: Lane, now: Instant) -> Send | None:
        ring = self._rings[lane]
        while len(ring):
            customer = ring.pop()
            conversation = self._conversations.get(customer)
            if conversation is None or conversation.flying is not None or conversation.is_held(lane):
                continue  # whatever ends that puts the customer here again
            queue = conversation.queues.get(lane)
            if not queue:
                continue
            refusal = self._refusal(queue[0], now)
            if refusal is not None:
                self._refuse(customer, queue.popleft(), refusal)
                if len(self._refused) >= REFUSED_MAX:
                    return None
                continue
            opens_at_ms = self._opens_at_ms(queue[0], conversation, now)
            if opens_at_ms <= now.ms and not self._has_turn(queue[0], now):
                opens_at_ms = now.ms + int(SLOW_LOOK_S * 1_000)
            if opens_at_ms > now.ms:
                self._park(customer, lane, conversation, opens_at_ms)
                continue
            send = queue.popleft()
            conversation.flying = send
            send.phase = Phase.INTENDED
            send.intended_at = now.monotonic
            if len(self._gates):
                self._gates.enter(self._doors(send), send.ready.send_id)
            return send
        return None

    def _opens_at_ms(self, send: Send, conversation: Conversation, now: Instant) -> int:
        opens_at = max(now.ms, conversation.rests.get(send.lane, 0))
        if send.has_pair:
            opens_at = max(opens_at, pair_surely_open_at(conversation.debt, now.ms))
        if send.template and len(self._gates):
            template_at = self._gates.opens_at((self._template_door(send),), now.monotonic)
            if template_at is None:
                template_at = now.monotonic + PROBE_LOOK_S
            opens_at = max(opens_at, int(1_000 * template_at))
        return opens_at

    def _has_turn(self, send: Send, now: Instant) -> bool:
        """Whether a send of a slowed template may go now, counting its turn: a bucket that holds `SLOW_LOOK_S`."""
        if not self._gates.slowed or not send.template:
            return True
        door = self._template_door(send)
        if door not in self._gates.slowed:
            self._slow_turns.pop(door, None)
            return True
        rate_mps = self.window.limit(now.monotonic) * SLOW_SHARE
        turns_max = max(1.0, rate_mps * SLOW_LOOK_S)
        turns, counted_at = self._slow_turns.get(door, (turns_max, now.monotonic))
        turns = min(turns_max, turns + (now.monotonic - counted_at) * rate_mps)
        if turns < 1.0:
            self._slow_turns[door] = turns, now.monotonic
            return False
        self._slow_turns[door] = turns - 1.0, now.monotonic
        return True

    def _refusal(self, send: Send, now: Instant) -> Refusal | None:
        """Return what Meta would say to a send, when that is known without asking."""
        if not send.template or not len(self._gates):
            return None
        return self._gates.refusal(self._template_door(send), now.monotonic)

    def _refuse(self, customer: str, send: Send, refusal: Refusal) -> None:
        send.phase = Phase.LANDING
        self._refused.append((send, refusal))
        self._rouse(customer)

    def _slow_down(self, send: Send, verdict: Verdict, closing: tuple[Door, ...], now: Instant, chance: float) -> None:
        """Let rest what a throttle or a stop names."""
        if verdict.code == THROUGHPUT:
            self.window.throttled(now.monotonic)
            self._rest(send, now, verdict.wait_s * (1 + 3 * chance))
            return
        if verdict.code == MAINTENANCE:
            self.window.freeze(now.monotonic)
            return
        if verdict.code == PAIR_LIMIT:
            conversation = self._conversations[send.ready.customer]
            conversation.debt = pair_struck(conversation.debt, now.ms)
            return
        self._close(closing, verdict, now)
        if not any(door in closing for door in self._doors(send)):
            # Nothing that closed stands before this send itself, such as a reply told 131048: without a rest of its
            # own it would go out again at once. A reply is worth a try a minute.
            wait_s = min(verdict.wait_s, PROBE_S) if closing else verdict.wait_s
            self._rest(send, now, min(verdict.wait_s_max, wait_s * 2.0 ** min(send.tries, 20)))
            send.tries += 1

    def _close(self, doors: tuple[Door, ...], verdict: Verdict, now: Instant) -> None:
        """Close what a verdict names, until a probe finds it open."""
        refuses = None
        if verdict.outcome == "refused":
            refuses = Refusal(verdict.code, verdict.title or verdict.says, verdict.details)
        for door in doors:
            self._gates.close(
                door,
                now.monotonic,
                verdict.wait_s,
                verdict.wait_s_max,
                f"{verdict.code} ({verdict.kind}): {verdict.says}",
                is_stop=verdict.outcome != "throttled",
                refuses=refuses,
            )

    def _doors_to_close(self, verdict: Verdict, send: Send) -> tuple[Door, ...]:
        """Return the gates an answer closes; none when it concerns this customer alone, the window, or nothing."""
        if verdict.wait_s <= 0 or verdict.outcome not in ("throttled", "stopped", "refused"):
            return ()
        if verdict.code in (THROUGHPUT, MAINTENANCE, PAIR_LIMIT):
            return ()
        match verdict.scope:
            case Scope.APP:
                return (Door(Scope.APP, ""),)
            case Scope.WABA:
                return (Door(Scope.WABA, self.waba_id),)
            case Scope.NUMBER:
                return (self.door,)
            case Scope.LANE:
                first = max(1, LANES.index(send.lane))
                return tuple(lane_door(self.phone_number_id, lane) for lane in LANES[first:])
            case Scope.INITIATED:
                return tuple(lane_door(self.phone_number_id, lane) for lane in LANES[1:])
            case Scope.TEMPLATE:
                return (self._template_door(send),) if send.template else ()
            case _:
                return ()

    def _template_door(self, send: Send) -> Door:
        return template_door(self.waba_id, send.template)

    def _doors_of_lane(self, lane: Lane) -> tuple[Door, ...]:
        return self._doors_by_lane[lane]

    def _doors(self, send: Send) -> tuple[Door, ...]:
        doors = self._doors_by_lane[send.lane]
        return (*doors, self._template_door(send)) if send.template else doors

    def _leave_intended(self, send: Send) -> None:
        self._ahead[send.lane] -= 1
        if len(self._gates):
            self._gates.leave(self._doors(send), send.ready.send_id, passed=False)

    def _return(self, send: Send, now: Instant) -> None:
        """Put a send back where it came from: the head of its queue."""
        conversation = self._conversations[send.ready.customer]
        conversation.flying = None
        send.phase = Phase.QUEUED
        conversation.queues.setdefault(send.lane, deque()).appendleft(send)
        self._count_held_back(conversation)
        self._time(send)
        self._rouse(send.ready.customer)

    def _time(self, send: Send) -> None:
        """Put a send among those that may become too late."""
        if send.ready.not_after <= 0 or send.is_timed:
            return
        if len(self._deadlines) > 2 * sum(self.pending.values()) + 1_024:
            # Most windows close in a day; what was sent long ago must not be kept for it.
            self._deadlines = [entry for entry in self._deadlines if entry[2].phase is not Phase.DONE]
            heapify(self._deadlines)
        send.is_timed = True
        self._tick += 1
        heappush(self._deadlines, (send.ready.not_after, self._tick, send))

    def _rest(self, send: Send, now: Instant, wait_s: float) -> None:
        self._conversations[send.ready.customer].rests[send.lane] = now.ms + int(wait_s * 1_000)

    def _rouse(self, customer: str) -> None:
        """Put a customer into the rings of the lanes where it has something to send."""
        conversation = self._conversations[customer]
        if conversation.flying is not None:
            return
        for lane, queue in conversation.queues.items():
            if queue and not conversation.is_held(lane):
                self._rings[lane].add(customer)

    def _park(self, customer: str, lane: Lane | None, conversation: Conversation, at_ms: int) -> None:
        """Look at a customer's lane again at an instant; with None, whether the customer can be forgotten."""
        if conversation.parked.get(lane, at_ms + 1) <= at_ms:
            return  # an earlier look comes first, and parks it again
        conversation.parked[lane] = at_ms
        self._tick += 1
        heappush(self._wakes, (at_ms, self._tick, customer, lane))

    def _wake(self, now: Instant) -> None:
        while self._wakes and self._wakes[0][0] <= now.ms:
            at_ms, _, customer, lane = heappop(self._wakes)
            conversation = self._conversations.get(customer)
            if conversation is None or conversation.parked.get(lane) != at_ms:
                continue
            del conversation.parked[lane]
            if lane is not None:
                self._rouse(customer)
            elif conversation.is_idle(now.ms):
                del self._conversations[customer]
            elif conversation.flying is None and not conversation.doubts and not any(conversation.queues.values()):
                self._park(customer, None, conversation, max(conversation.debt.free_at, now.ms + 60_000))
