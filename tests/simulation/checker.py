"""Whether a run kept its promises, by what the outside saw of it. The invariants: I1 to I4 and I8.

I1 nothing accepted is lost · I2 nothing is sent twice but by policy · I3 order · I4 limits · I8 nothing silent.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, NamedTuple

from broker.core import dedupe
from broker.core.customer_state import unpack
from broker.core.moves import WAIT_MS
from broker.core.refusals import OPTED_OUT
from broker.core.status import OPAQUE
from broker.log.catalogue import CONVERSATIONS, DEADLETTERS, STATE, deliveries, sends
from broker.log.position import POSITION
from broker.sandbox.limits import PairDebt
from schemas.records import (
    LANES,
    Claim,
    DeliveryEvent,
    Forwarded,
    Handover,
    Item,
    Ready,
    SendRequest,
    decode_conversation,
    decode_dead_letter,
    decode_delivery,
    decode_sends,
)
from tests.simulation.bots import event_of, name_of
from tests.simulation.brand import BY_NUMBER, GIVE_UP_S, SETTINGS
from tests.simulation.cluster import SimulatedCluster
from tests.simulation.evidence import Digest, Evidence, Issued
from workers.delivery import GAVE_UP

PAIR_TOLERANCE_S = 0.002
"""Debts are kept in whole milliseconds."""

VIOLATIONS_MAX = 20

SLOT_OF = {number: line.slot for number, line in BY_NUMBER.items()}

INBOUND_KNOWN_S = 0.150
"""How long ago an inbound message must have been on the traffic log for a send to have reckoned with it."""


INBOUND_TAKEN_S = 0.020
"""How long after a fetch brought it a digest may be counted."""


class Event(NamedTuple):
    """A delivery event, what it says, and its name as a bot's receipt gives it."""

    event: DeliveryEvent
    body: Any
    name: str


class GivenUp(NamedTuple):
    """An event that its sink did not take for so long that it was set aside: how long, and what it says."""

    sink: str
    delivery_id: str
    tried_ms: int
    body: Any

    def told(self, kind: str) -> Iterator[dict[str, Any]]:
        """Each of its `messages`, or its `statuses`."""
        for change in (change for entry in self.body["entry"] for change in entry["changes"]):
            yield from change["value"].get(kind, [])


class Logs:
    """The committed records of a run, by log, decoded, each partition in order. `update` reads what is new."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster
        self._read_to: dict[tuple[str, int], int] = {}
        self.items: list[tuple[bytes, Item]] = []
        self.arrived: list[tuple[int, bytes, Item]] = []
        """The same messages, with when they were appended."""
        self.asked: dict[tuple[str, int], int] = {}
        self.joined_at: dict[tuple[bytes, bytes], int] = {}
        """By key and the key it asked: when it first did so."""
        self.answered: dict[tuple[str, int], int] = {}
        """By key and move: when another key was asked for a person, and when it answered."""
        self.questions: Counter[str] = Counter()
        """How often a key asked others for its person."""
        self.may_ask: Counter[str] = Counter()
        """How many records came to a key that it may ask about."""
        self.requests: list[tuple[bytes, SendRequest]] = []
        self.events: dict[str, list[Event]] = {sink.name: [] for sink in SETTINGS.sinks}
        self.ready: list[Ready] = []
        self.derived_at: dict[tuple[str, str], int] = {}
        """By sink and delivery id: when the event was appended."""
        self.set_aside: set[str] = set()
        self.given_up: list[GivenUp] = []
        self.letters: Counter[str] = Counter()
        self.update()

    def update(self) -> None:
        """Read on from where the last call came to."""
        for key, value, at in self._records(CONVERSATIONS):
            record = decode_conversation(value)
            if isinstance(record, Item | Forwarded):
                self.may_ask[key.decode()] += 1
            if isinstance(record, Item):
                self.items.append((key, record))
                if record.kind == "message":
                    self.arrived.append((at, key, record))
            elif isinstance(record, Claim):
                self.questions[record.by] += 1
                self.asked.setdefault((record.by, record.move), at)
                self.joined_at.setdefault((record.by.encode(), key), at)
            elif isinstance(record, Handover):
                self.answered[key.decode(), record.move] = at
            elif isinstance(record, SendRequest) and record.kind == "message":
                self.requests.append((key, record))
        for sink, events in self.events.items():
            for _, value, at in self._records(deliveries(sink)):
                event = decode_delivery(value)
                self.derived_at.setdefault((sink, event.delivery_id), at)
                body = event_of(event.body)
                events.append(Event(event, body, name_of(body)))
        for lane in LANES:
            records = [decode_sends(value) for _, value, _ in self._records(sends(lane))]
            self.ready += [one for one in records if isinstance(one, Ready) and one.kind == "message"]
        for _, value, at in self._records(DEADLETTERS):
            letter = decode_dead_letter(value)
            self.letters[letter.reason] += 1
            if letter.log.startswith("deliveries."):
                event = decode_delivery(letter.value)
                self.set_aside.add(event.delivery_id)
                if letter.reason == GAVE_UP:
                    sink = letter.log.removeprefix("deliveries.")
                    tried_ms = at - self.derived_at[sink, event.delivery_id]
                    self.given_up.append(GivenUp(sink, event.delivery_id, tried_ms, event_of(event.body)))

    def states(self) -> list[dict[bytes, bytes]]:
        """The last state of each customer, by partition."""
        return [dict(partition.last) for partition in self._cluster.logs[STATE].partitions]

    def _records(self, log: str) -> list[tuple[bytes, bytes, int]]:
        found = []
        for index, partition in enumerate(self._cluster.logs[log].partitions):
            entries, self._read_to[log, index] = partition.read(self._read_to.get((log, index), 0), 10_000_000)
            found += [(entry.key, entry.value, entry.appended_at) for entry in entries]
        return found


class Checker:
    """Holds a run's evidence to the promises. `open_matters`: what is not settled yet; `violations`: what broke."""

    def __init__(self, evidence: Evidence, cluster: SimulatedCluster) -> None:
        self._evidence = evidence
        self._logs = Logs(cluster)
        self.violations: list[str] = []

    def check(self) -> list[str]:
        """Return everything that broke a promise so far, and what is not settled at the end."""
        self._logs.update()
        self.violations = []
        self._given_up_in_time()
        self._derived_once()
        self._accepted_once()
        self._withdrawn_for_good()
        self._sends_in_order()
        self._events_in_order()
        self._moves_in_order()
        self._moves_come_to_an_end()
        self._one_person_each()
        self._within_limits()
        return self.violations[:VIOLATIONS_MAX] + self.open_matters()[:VIOLATIONS_MAX]

    def _say(self, promise: str, text: str) -> None:
        self.violations.append(f"{promise}: {text}")

    # ── I1, I8 ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def open_matters(self) -> list[str]:
        """Return what somebody still waits for: at the end there must be nothing."""
        evidence, logs = self._evidence, self._logs
        logs.update()
        found: list[str] = []
        on_log = {item.wamid for _, item in logs.items if item.kind == "message"}
        statuses_on_log = {(item.wamid, item.status) for _, item in logs.items if item.kind == "status"}
        until = evidence.meta_stopped_at
        for seq, webhook in evidence.webhooks.items():
            if seq not in evidence.acknowledged and (until is None or webhook.at < until):
                found.append(f"I8: webhook item {seq} ({webhook.kind}) was never answered with 200")
            elif webhook.kind == "message" and webhook.wamid not in on_log:
                found.append(f"I1: message of webhook item {seq} was answered with 200 and is on no log")
            elif webhook.kind == "status" and (webhook.wamid, webhook.status) not in statuses_on_log:
                found.append(f"I1: status of webhook item {seq} was answered with 200 and is on no log")
        taken = {(receipt.sink, receipt.event) for receipt in evidence.receipts if receipt.status == 200}
        by_message: dict[str, str] = {}
        for sink, events in logs.events.items():
            for event, body, name in events:
                if event.kind == "message":
                    by_message[body["entry"][0]["changes"][0]["value"]["messages"][0]["id"]] = sink
                if event.delivery_id not in logs.set_aside and (sink, name) not in taken:
                    found.append(f"I1: event {event.delivery_id} ({event.kind}) of {sink}: neither taken nor set aside")
        for wrote in evidence.wrote:
            line = BY_NUMBER.get(wrote.number)
            if line is not None and by_message.get(wrote.wamid) != line.sink:
                found.append(f"I1: message at {wrote.mono:.3f} of …{wrote.number[-3:]} was not derived for {line.sink}")
        heard: dict[str, set[str]] = {}
        for said in evidence.heard:
            heard.setdefault(said.send_id, set()).add(said.status)
        ticked: dict[str, set[str]] = {}
        for tick in evidence.ticks:
            ticked.setdefault(tick.send, set()).add(tick.status)
        for one in logs.given_up:  # the storm can lose every try at one event: then a dead letter says so
            for status in one.told("statuses"):
                heard.setdefault(status["id"], set()).add(status["status"])
        for _, request in logs.requests:
            known = heard.get(request.send_id, set())
            missing = ticked.get(request.send_id, set()) - known
            if not known or missing:
                found.append(
                    f"I8: send {request.send_id} of {request.key_name}: its bot was told {known}, not {missing}"
                )
        requested = {request.send_id for _, request in logs.requests}
        found += [
            f"I1: send {one.send_id} was taken, is on no log" for one in evidence.asked if one.send_id not in requested
        ]
        answers = {json.loads(call.request).get("text", {}).get("body", "").split(" ")[1:2].__str__()
                   for call in evidence.calls if call.accepted and call.type == "text"}  # fmt: skip
        failed = {said.own.split("-")[1] for said in evidence.heard if said.status == "failed" and said.own}
        failed |= {
            status[OPAQUE].split("-")[1]
            for one in logs.given_up
            for status in one.told("statuses")
            if status["status"] == "failed" and OPAQUE in status
        }
        unheard = {
            said.get("text", {}).get("body", "").split(" ")[0] for one in logs.given_up for said in one.told("messages")
        }
        for wrote in evidence.wrote:
            text = wrote.message["text"]["body"]
            place = text.split(" ")[0]
            if (
                wrote.number in BY_NUMBER
                and "#poison" not in text
                and str([place]) not in answers
                and place not in failed
                and place not in unheard
            ):
                found.append(f"I8: message {place} was not answered")
        return found

    def _given_up_in_time(self) -> None:
        """What a dead letter excuses, it excuses only after all the tries that were promised."""
        for one in self._logs.given_up:
            if one.tried_ms < GIVE_UP_S * 1_000:
                self._say("I1", f"event {one.delivery_id} of {one.sink} was given up after {one.tried_ms} ms")

    # ── I2 ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _derived_once(self) -> None:
        for sink, events in self._logs.events.items():
            for delivery_id, count in Counter(one.event.delivery_id for one in events).items():
                if count > 1:
                    self._say("I2", f"event {delivery_id} was derived {count} times for {sink}")
        for attempt, count in Counter((one.send_id, one.attempt) for one in self._logs.ready).items():
            if count > 1:
                self._say("I2", f"attempt {attempt} was admitted {count} times")

    def _accepted_once(self) -> None:
        asked = Counter(one.send_id for one in self._logs.ready)
        for one in self._logs.ready:
            if one.attempt > 1 and one.send_class == "campaign":
                self._say("I2", f"{one.send_id}: a campaign's message was repeated")
        for send_id, count in Counter(
            c.send for c in self._evidence.calls if c.accepted and c.kind == "message"
        ).items():
            if count > asked[send_id]:
                self._say("I2", f"{send_id} was accepted {count} times and asked for {asked[send_id]} times")
        called: Counter[str] = Counter()
        for issued in self._evidence.issued:
            called[issued.send_id] += 1
            if called[issued.send_id] > issued.intents:
                self._say("I2", f"{issued.send_id} was called at {issued.at:.3f} without an intent that stands")

    def _withdrawn_for_good(self) -> None:
        """What its customer said stop to does not begin once its sender knows, whoever owns the number by then; and of
        what a bot is told that it was not sent for that, Meta knows nothing. No template of ours is marketing by
        Meta's word, so 131050 is ours."""
        for issued in self._evidence.issued:
            known_at = self._evidence.withdrawn.get((issued.send_id, issued.attempt))
            if known_at is not None and known_at < issued.at:
                self._say("I8", f"{issued.send_id} was called at {issued.at:.3f}, withdrawn at {known_at:.3f}")
        accepted = {call.send for call in self._evidence.calls if call.accepted and call.kind == "message"}
        for said in self._evidence.heard:
            if said.code == OPTED_OUT.code and said.send_id in accepted:
                self._say("I8", f"{said.send_id} was accepted, and its bot told at {said.at:.3f} that it was withdrawn")

    # ── I3 ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _sends_in_order(self) -> None:
        place = {one.send_id: index for index, (_, one) in enumerate(reversed(self._logs.requests))}
        asked_by = {one.send_id: key for key, one in self._logs.requests}
        lane_of = {
            one.send_id: (one.phone_number_id, one.customer, one.lane, asked_by[one.send_id])
            for one in self._logs.ready
        }
        last: dict[tuple[str, str, str, bytes], str] = {}
        seen: set[str] = set()
        for call in self._evidence.calls:
            if not call.accepted or call.kind != "message" or call.send in seen or call.send not in lane_of:
                continue
            seen.add(call.send)
            lane = lane_of[call.send]
            before = last.get(lane)
            if before is not None and place[before] < place[call.send]:
                self._say("I3", f"{call.send} was accepted after {before}, which was asked for later")
            last[lane] = call.send

    def _events_in_order(self) -> None:
        taken: set[tuple[str, str]] = set()
        queue: dict[tuple[str, str], list[DeliveryEvent]] = {}
        where: dict[tuple[str, str], tuple[str, int]] = {}
        for sink, events in self._logs.events.items():
            for event, _, name in events:
                line = queue.setdefault((sink, event.customer), [])
                where.setdefault((sink, name), (event.customer, len(line)))
                line.append(event)
        done: dict[tuple[str, str], int] = {}
        for receipt in self._evidence.receipts:
            if receipt.status != 200 or (receipt.sink, receipt.event) in taken:
                continue
            taken.add((receipt.sink, receipt.event))
            spot = where.get((receipt.sink, receipt.event))
            if spot is None:
                self._say("I3", f"{receipt.sink} was given an event at {receipt.at:.3f} that is on no log")
                continue
            customer, index = spot
            if index < done.get((receipt.sink, customer), -1):
                self._say(
                    "I3", f"{receipt.sink} took event {index} of a customer at {receipt.at:.3f} after a later one"
                )
            done[receipt.sink, customer] = max(index, done.get((receipt.sink, customer), -1))

    def _moves_in_order(self) -> None:
        """What somebody wrote to a number under one key, before we could know that another key is theirs, is derived
        before what they wrote to it under that other key. Not where a claim waited for longer than it may, nor what
        came after the other key had asked for them, by a status perhaps: it does not ask again, and who hides their
        phone and shows it writes on two partitions."""
        person_of = {wrote.wamid: (wrote.number, wrote.person) for wrote in self._evidence.wrote}
        person_of |= {
            webhook.wamid: (webhook.number, webhook.person)
            for webhook in self._evidence.webhooks.values()
            if webhook.kind == "message"
        }
        where: dict[str, tuple[str, str, int]] = {}
        for sink, events in self._logs.events.items():
            for place, one in enumerate(events):
                if one.event.kind == "message":
                    wamid = one.body["entry"][0]["changes"][0]["value"]["messages"][0]["id"]
                    where[wamid] = (sink, one.event.customer, place)
        late = {
            by
            for (by, move), at in self._logs.asked.items()
            if self._logs.answered.get((by, move), at + WAIT_MS) >= at + WAIT_MS
        }
        met: dict[tuple[str, str], dict[bytes, int]] = {}
        streams: dict[tuple[str, str], list[tuple[int, bytes, str]]] = {}
        first: set[str] = set()
        for at, key, item in sorted(self._logs.arrived, key=lambda one: one[0]):
            who = person_of.get(item.wamid)
            if who is None or item.wamid in first:
                continue
            first.add(item.wamid)
            if item.previous_wa_id or item.previous_bsuid or (item.wa_id and item.bsuid):
                met.setdefault(who, {}).setdefault(key, at)
            if item.wamid in where:
                streams.setdefault(who, []).append((at, key, item.wamid))
        for who, stream in streams.items():
            for index, (_, key, wamid) in enumerate(stream):
                known_at = met.get(who, {}).get(key, 0)
                for before_at, before_key, before in stream[:index]:
                    joined_at = self._logs.joined_at.get((key, before_key), known_at)
                    if before_key == key or before_at >= min(known_at, joined_at) or key.decode() in late:
                        continue
                    (sink, customer, place), (other_sink, other_customer, other_place) = where[wamid], where[before]
                    if (sink, customer) == (other_sink, other_customer) and place < other_place:
                        self._say("I3", f"{wamid} of {who[1]} was derived before {before}, written under another key")

    def _moves_come_to_an_end(self) -> None:
        """A record lets its key ask for a move and for a BSUID, each once: two keys that ask and answer for ever fill
        the log, and whoever waits for them may still come out in order."""
        for key, count in self._logs.questions.items():
            if count > 2 * self._logs.may_ask[key]:
                self._say("I8", f"{key} asked other keys {count} times about {self._logs.may_ask[key]} records")

    def _one_person_each(self) -> None:
        """No state remembers messages of two people."""
        owner = {
            dedupe.fingerprint(f"msg:{wrote.number}:{wrote.wamid}"): wrote.person for wrote in self._evidence.wrote
        }
        for partition in self._logs.states():
            for key, value in partition.items():
                ring = b"" if key == POSITION else unpack(value).taken
                people = {
                    owner[hashed]
                    for at in range(0, len(ring), dedupe.ENTRY_BYTES)
                    if (hashed := ring[at : at + 8]) in owner
                }
                if len(people) > 1:
                    self._say("I1", f"the state of {key.decode()} remembers messages of {sorted(people)}")

    # ── I4 ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _within_limits(self) -> None:
        """Judge each send by what may be known when it leaves: the second up to it must fit the tier, sends and
        inbound together, but for inbound that was not on the log `INBOUND_KNOWN_S` before, or that a stalled fetch
        had not brought to the owner."""
        windows: dict[str, deque[float]] = {number: deque() for number in BY_NUMBER}
        inbound: dict[tuple[str, str], list[Digest]] = {}
        for digest in self._evidence.digests:
            inbound.setdefault((digest.process, digest.number), []).append(digest)
        pairs: dict[tuple[str, str], tuple[PairDebt, list[Issued]]] = {}
        order_of = {ready.send_id: ready.customer for ready in self._logs.ready}
        """A person's pair is told by the key their order is kept under: where two keys with sends under way become one,
        their debts stay two until these are repaid, and Meta may say 131056 (core/moves.py)."""
        for one in self._evidence.issued:
            window = windows[one.number]
            window.append(one.at)
            while window[0] <= one.at - 1.0:
                window.popleft()
            tier = BY_NUMBER[one.number].tier_mps
            known = inbound.get((one.process, one.number), [])
            began = bisect_right(known, one.at - 1.0, key=attrgetter("at"))
            until = bisect_right(known, one.at - INBOUND_KNOWN_S, key=attrgetter("at"))
            came = sum(each.messages for each in known[began:until] if each.fetched_at <= one.at - INBOUND_TAKEN_S)
            if len(window) + came > tier:
                spent = f"{len(window)} sends and {came} inbound in the second up to {one.at:.3f}, {tier} fit"
                self._say("I4", f"…{one.number[-3:]}: {spent} ({one.process})")
            pair = (one.number, order_of.get(one.send_id, one.customer))
            debt, burst = pairs.get(pair, (PairDebt(), []))
            if debt.free_at <= one.at:
                burst = []
            burst.append(one)
            if not _allows(debt, one.at):
                debt, burst = self._debt_of_its_owner(burst)
            if not _allows(debt, one.at):
                where = f"{one.process}, …{one.number[-3:]} wrote at {one.at:.3f} to a customer"
                sent = ", ".join(f"{each.at:.3f} {each.process} {each.offset_ms}" for each in burst)
                self._say("I4", f"{where} it owes until {debt.free_at:.3f}: {sent}")
                debt, burst = PairDebt(), [one]
            debt.charge(one.at)
            pairs[pair] = debt, burst

    def _debt_of_its_owner(self, burst: list[Issued]) -> tuple[PairDebt, list[Issued]]:
        """Return the debt that whoever made a burst's last send may believe in, and the sends it holds.

        A debt that was carried through a ledger is as exact as the wall clocks that carried it: core/pacing.py,
        `carried`. So what was sent before the ledger was last read back counts as repaid when those clocks differed
        by what was missing. In memory a debt knows no wall clock: what the same owner sent always counts.
        """
        slot, newest = SLOT_OF[burst[0].number], burst[-1].at
        held = [one for one in self._evidence.held if one.slot == slot and one.at <= newest]
        restored_at = max((one.at for one in held if one.is_new), default=0.0)
        before = [one for one in burst if one.at < restored_at]
        own = burst[len(before) :]
        offsets = [one.offset_ms for one in held if one.at > burst[0].at] + [one.offset_ms for one in burst]
        offsets += [one.offset_ms for one in held if one.at <= burst[0].at][-1:]
        owed = _debt_of(before)
        if before and (owed.free_at - own[0].at) * 1_000 <= max(offsets) - min(offsets):
            return _debt_of(own[:-1]), own
        return _debt_of(burst[:-1]), burst


def _debt_of(sent: list[Issued]) -> PairDebt:
    debt = PairDebt()
    for one in sent:
        debt.charge(one.at)
    return debt


def _allows(debt: PairDebt, at: float) -> bool:
    return debt.allows(at) or debt.allows(at + PAIR_TOLERANCE_S)
