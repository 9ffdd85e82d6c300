"""How a person moves from one customer key to another: whose a record is, who must be asked first, what is handed over.

A person is known by a phone, by a BSUID, or by both, and both change. Each key has an actor; a person lives under one
key at a time, and their state with them. What makes them move:

    both ids are seen together, for the first time      the phone claims what the BSUID's key knows
    another number of ours sees both, or again sees     the phone asks once more: nobody moves, but what was written
    them                                                to that number while it saw the BSUID alone comes first
    a system message: new phone, new BSUID              the new key claims what the old key knows
    a phone comes with another BSUID, unannounced       it is somebody else's now: whoever had it goes home to their
                                                        BSUID's key, and state and consent start anew

A claim asks, in the order of the old key's log, so all that came there before is decided first; the answer carries the
state. Until it is there, the one who asked parks what arrives, so the order of the person holds; after 30 s, or 100
records, it goes on alone and takes the answer when it comes. Whoever lived under a key leaves an **address** there, and
what still arrives for them is sent on, under the instant of the move: an older claim changes nothing, so a person who
goes from A to B and back to A ends at A. Everything here is one step of its key's actor: state, claim, answer and what
is sent on are durable together or not at all, so a crash between two of them leaves nobody in two places.

Downstream, a person keeps the key they were first known by (`order_key`), so lanes, pair budgets and deliveries go on
in one order. Where both keys had sends under way when they became one, the two debts of the pair are not added: Meta
may say 131056 once, which the sender waits out.

Nothing is guessed: a BSUID that is seen with two phones makes no one person of them (only a system message does), ids
of two portfolios never meet, and what names neither id of a key's customer goes elsewhere.
"""

from __future__ import annotations

from collections import deque
from heapq import merge
from typing import Final, TypeVar

from msgspec import Struct

from broker.core import consent, dedupe, idmap, window
from broker.core.consent import SCOPES, Change
from broker.core.customer_state import (
    KNOWN_MAX,
    SHOWN_MAX,
    WINDOWS_MAX,
    Address,
    Claiming,
    Customer,
    life_of,
    pack,
    unpack,
)
from broker.core.identity import address, customer_key, normalise_wa_id, portfolio_of
from schemas.ids import CustomerKey
from schemas.records import (
    Claim,
    ConversationRecord,
    Forwarded,
    Handover,
    Item,
    ItemKind,
    SendOutcome,
    SendRequest,
    decode_conversation,
    encode,
)

WAIT_MS = 30_000
"""How long a claim waits for its answer. Longer than a rebalance with a dead worker (6 s session, restore)."""

PARKED_MAX = 100
PARKED_BYTES_MAX = 1_000_000
"""What may wait for an answer: it stands in the state, which is written with each of them."""

HOPS_MAX = 8
"""How often a record is sent on. Each hop is a move of its person; eight addresses in a row are no person's history, so
it is decided where it is."""

ADDRESSES_MAX = 4
"""Residents of one key that are remembered; a phone changes hands less than once a year."""

FORMER_MAX = 4

REORDERED_MS = 10 * 60_000
"""How far two webhooks of one person may be out of order: a message of the new number before the system message."""

WRITTEN: Final[frozenset[ItemKind]] = frozenset(("message", "call", "preference"))
"""Kinds that a person makes with the phone in hand: they prove whose it is."""


class Append(Struct, frozen=True, gc=False):
    """Append to `conversations`, at this key."""

    key: str
    record: ConversationRecord


class Moved(Struct, frozen=True, gc=False):
    """Count it: "claimed", "handed_over", "forwarded", "late" (a claim's wait is over), "newcomer", "hops"."""

    what: str


class Arrival(Struct):
    """A record, the key it came in by, how often it was sent on, when its person came here (0: not said), and whether
    it waited for an answer here."""

    record: ConversationRecord
    origin: str
    hops: int
    move: int = 0
    was_parked: bool = False


def lives(customer: Customer) -> bool:
    """Whether somebody lives here: more is known than what came and went."""
    return bool(
        customer.windows
        or customer.known
        or customer.sends
        or customer.held
        or customer.consent
        or customer.marketing_refused_at
        or customer.bsuid
        or customer.epoch != 1
        or customer.language
    )


def next_look(customer: Customer) -> int:
    """Return when a claim's wait is over; 0 when nothing waits."""
    return 0 if customer.claim is None else customer.claim.asked_at + WAIT_MS


class Residence:
    """One key and who lives there, at work on one event. `customer` may become another one."""

    def __init__(self, customer: Customer, key: CustomerKey, now: int, *, apart: bool = False) -> None:
        """`apart`: put what waited on the log again instead of deciding it."""
        self._apart = apart
        self.customer = customer
        self._key = key
        self._now = now
        self._portfolio = portfolio_of(key)
        how, self._value = address(key)
        self._is_phone = how == "wa_id"
        self.commands: list[Append | Moved] = []
        self.arrivals: deque[Arrival] = deque()
        """What is to be decided, in order."""

    # -- what the actor asks

    def take(self, record: ConversationRecord) -> None:
        """Take in a record of the log."""
        if type(record) is Forwarded:
            self.arrivals.append(Arrival(decode_conversation(record.record), record.key, record.hops, record.move))
        else:
            self.arrivals.append(Arrival(record, self._key, 0))

    def look(self) -> None:
        """Go on alone when a claim's wait is over."""
        claim = self.customer.claim
        if claim is not None and self._now >= claim.asked_at + WAIT_MS:
            self.commands.append(Moved("late"))
            self._release()

    def lets_in(self, arrival: Arrival) -> bool:
        """Whether a record is to be decided here and now; else it was parked, sent on, or is about a move."""
        record = arrival.record
        kind = type(record)
        if kind is Handover:
            self._handed(record, arrival)  # type: ignore[arg-type]
            return False
        if kind is Claim:
            self._asked(record, arrival)  # type: ignore[arg-type]
            return False
        if self.customer.claim is not None:
            self._park(arrival)
            return False
        if kind is Item and self._moves_in(record, arrival):  # type: ignore[arg-type]
            return False
        left = self._elsewhere(arrival)
        if left is not None and self._send_on(arrival, left):
            return False
        return not (kind is Item and self._meets(record, arrival))  # type: ignore[arg-type]

    # -- waiting

    def _claim(self, source: str, move: int, bsuid: str, *, is_move: bool) -> None:
        self.customer.claim = Claiming(source, move, is_move, self._now)
        self.commands.append(Append(source, Claim(self._key, move, is_move, bsuid)))
        self.commands.append(Moved("claimed"))

    def _park(self, arrival: Arrival) -> None:
        claim = self.customer.claim
        assert claim is not None
        parked = encode(Forwarded(arrival.origin, arrival.hops, encode(arrival.record), arrival.move))
        if len(claim.parked) >= PARKED_MAX or sum(map(len, claim.parked)) + len(parked) > PARKED_BYTES_MAX:
            self.commands.append(Moved("late"))
            self.arrivals.appendleft(arrival)
            self._release()
        elif not claim.is_move and arrival.origin == claim.source and type(arrival.record) is not Claim:
            claim.parked.insert(claim.ahead, parked)
            claim.ahead += 1
        else:
            claim.parked.append(parked)

    def _admit(self) -> None:
        """Let who was waited for move in, with an answer or without."""
        claim = self.customer.claim
        if claim is None or not claim.is_move:
            return
        if claim.evicts and lives(self.customer):
            self._evict(claim.move)
            self.customer.claim = claim
        claim.evicts = False
        customer = self.customer
        customer.moved_at = max(customer.moved_at, claim.move)
        if claim.bsuid and claim.bsuid != customer.bsuid:
            customer.bsuid, customer.is_linked = claim.bsuid, False

    def _release(self) -> None:
        """Decide what waited, before anything else."""
        self._admit()
        claim, self.customer.claim = self.customer.claim, None
        released = []
        for parked in claim.parked if claim is not None else ():
            inner = decode_conversation(parked)
            assert type(inner) is Forwarded
            record = decode_conversation(inner.record)
            released.append(Arrival(record, inner.key, inner.hops, inner.move, was_parked=True))
        if self._apart:
            for arrival in released:
                self.give_back(arrival)
        else:
            self.arrivals.extendleft(reversed(released))

    def give_back(self, arrival: Arrival) -> None:
        """Put a record whose decision crashed, after it had waited, on the log again: alone, so that it is set aside
        by itself and not with what released it. A system message keeps the instant that was asked for: it has its
        answer."""
        record = arrival.record
        if arrival.hops or arrival.move:
            record = Forwarded(arrival.origin, arrival.hops + 1, encode(record), arrival.move)
        self.commands.append(Append(self._key, record))

    # -- who comes

    def _instant(self, item: Item) -> int:
        """Return when something happened, by Meta's clock where the receiver's or ours bears it out: two agree, so the
        third is wrong, and who moved last is known as well by a slow one. Else when it was received, whenever it is
        asked: by our present a system message would be a new move each time it is looked at."""
        received_at = item.received_at or self._now
        return item.at if 0 < item.at <= max(received_at, self._now) + window.SKEW_MS_MAX else received_at

    def _moves_in(self, item: Item, arrival: Arrival) -> bool:
        """Whether a system message brings its person to this key: then the old key is asked."""
        if item.kind != "message" or not (item.previous_wa_id or item.previous_bsuid):
            return False
        customer, at = self.customer, self._instant(item)
        try:
            source = customer_key(self._portfolio, item.previous_wa_id, item.previous_bsuid)
            named = customer_key(self._portfolio, item.wa_id, item.bsuid)
        except ValueError:
            return False
        if source == self._key or named != self._key:
            return False
        if (arrival.move or arrival.was_parked) and customer.moved_at >= (arrival.move or at):
            return False  # it is what brought them here, and the answer is there
        if item.dedupe and dedupe.find(customer.taken, dedupe.fingerprint(item.dedupe)) >= 0:
            return False  # a repetition
        if any(left.move >= at for left in customer.addresses):
            return False  # they have moved on since
        if customer.moved_at > at + REORDERED_MS and lives(customer):
            return False  # somebody came later
        is_known = item.previous_bsuid in (customer.bsuid, *customer.former_bsuids)
        if self._is_phone and not item.previous_wa_id and is_known:
            return False  # the same phone, another BSUID: `_meets`
        customer.addresses = [left for left in customer.addresses if left.to != source]
        self._claim(source, at, item.previous_bsuid, is_move=True)
        assert customer.claim is not None
        customer.claim.evicts = lives(customer) and not self._is_same(item, at)
        customer.claim.bsuid = item.bsuid
        # Its instant goes with it: a move that is not the one that was asked for is asked for anew.
        arrival.move = at
        self._park(arrival)
        return True

    def _is_same(self, item: Item, at: int) -> bool:
        """Whether who lives here is who moves in: their webhooks came before the system message."""
        customer = self.customer
        if item.bsuid and customer.bsuid:
            return item.bsuid == customer.bsuid or item.bsuid in customer.former_bsuids
        if not (item.previous_wa_id or customer.bsuid):
            return True  # the same phone, and nothing known against it
        return not customer.heard_at or customer.heard_at + REORDERED_MS >= at

    def _meets(self, item: Item, arrival: Arrival) -> bool:
        """Whether a phone is seen with a BSUID that is not known to be its own: then the BSUID's key is asked. So it is
        when somebody known first writes to a number with the phone shown: what they wrote to it before may still be
        unread there, and everything there is sent on before the answer."""
        customer, bsuid, number = self.customer, item.bsuid, item.phone_number_id
        is_written = item.kind in WRITTEN
        if self._is_phone and bsuid and not item.wa_id and is_written and number in customer.shown_to:
            if not arrival.was_parked:  # else it is older than what asked
                customer.shown_to = [other for other in customer.shown_to if other != number]
            return False
        if not (self._is_phone and bsuid):
            return False
        if item.wa_id != self._value and normalise_wa_id(item.wa_id) != self._value:
            return False
        if self._instant(item) < arrival.move:
            return False  # sent on, and older than what brought its person here: it says nothing of today
        is_known = bsuid == customer.bsuid and customer.is_linked
        if (is_known and (number in customer.shown_to or not is_written)) or bsuid in customer.former_bsuids:
            return False
        if item.previous_bsuid and item.previous_bsuid == customer.bsuid and item.kind == "message":
            customer.former_bsuids = [*customer.former_bsuids, customer.bsuid][-FORMER_MAX:]
        elif customer.bsuid and customer.bsuid != bsuid:
            if item.send_id and life_of(customer, item.send_id):
                return False  # our own send tells whose it is
            home = customer_key(self._portfolio, "", bsuid)
            at = self._instant(item)
            if not is_written or at < customer.moved_at:
                return self._send_on(arrival, Address(home, 0))  # about who had this phone, or will have it
            self._evict(at)
            customer = self.customer
        customer.bsuid, customer.is_linked = bsuid, True
        shown_to = customer.shown_to if is_known else []
        customer.shown_to = [*shown_to, number][-SHOWN_MAX:] if is_written else shown_to
        customer.addresses = [left for left in customer.addresses if bsuid not in left.bsuids]
        self._claim(customer_key(self._portfolio, "", bsuid), self._instant(item), bsuid, is_move=False)
        self._park(arrival)
        return True

    def _evict(self, at: int) -> None:
        """Somebody else has this phone now. Who had it goes home to their BSUID's key with all that is theirs; where no
        BSUID was known, only the ends of their sends are still told from here."""
        leaving, fresh = self.customer, Customer(seen_at=self._now, moved_at=at)
        fresh.addresses = leaving.addresses
        if leaving.bsuid:
            home = customer_key(self._portfolio, "", leaving.bsuid)
            self._pin(leaving, self._key)
            leaving.order_key, leaving.is_linked = home, False
            leaving.addresses, leaving.claim, leaving.shown_to = [], None, []
            self.commands.append(Append(home, Handover(self._key, at, pack(leaving), is_return=True)))
            bsuids = (*leaving.former_bsuids, leaving.bsuid)
            self._leave(fresh, Address(home, at - 1, bsuids, _unsettled(leaving)))
        else:
            fresh.sends, fresh.taken, fresh.held = leaving.sends, leaving.taken, leaving.held
        self.customer = fresh
        self.commands.append(Moved("newcomer"))

    # -- who left

    def _leave(self, customer: Customer, left: Address) -> None:
        others = [other for other in customer.addresses if (other.to, other.bsuids) != (left.to, left.bsuids)]
        customer.addresses = sorted([*others, left], key=lambda each: each.move)[-ADDRESSES_MAX:]

    def _elsewhere(self, arrival: Arrival) -> Address | None:
        """Return where a record's person went, None when it is to be decided here."""
        customer, record = self.customer, arrival.record
        if not customer.addresses:
            return None
        if type(record) is SendOutcome or (type(record) is Item and record.send_id):
            if life_of(customer, record.send_id):
                return None
            sender = self._sender(record.send_id)
            if sender is not None:
                return sender
        if arrival.move:
            return next((left for left in customer.addresses if left.move >= arrival.move), None)
        if type(record) is Item:
            return self._whose(record)
        if type(record) is SendRequest:
            return None if self._is_phone and lives(customer) else customer.addresses[-1]
        if type(record) is SendOutcome:
            return self._resident(record.called_at or record.at) or customer.addresses[-1]
        return None

    def _sender(self, send_id: str) -> Address | None:
        """Return where somebody went whose send this is, when it was not settled as they went."""
        wanted = dedupe.fingerprint(send_id)
        for left in reversed(self.customer.addresses):
            at = left.sends.find(wanted)
            if at >= 0 and at % len(wanted) == 0:
                return left
        return None

    def _whose(self, item: Item) -> Address | None:
        customer, bsuid, at = self.customer, item.bsuid, self._instant(item)
        is_written = self._is_phone and item.kind in WRITTEN
        if bsuid:
            for left in reversed(customer.addresses):
                if bsuid in left.bsuids:
                    return None if is_written and at > left.move and at > customer.moved_at else left
            if bsuid == customer.bsuid or bsuid in customer.former_bsuids:
                return None
        found = self._resident(at, bsuid)
        if found is not None:
            return found
        if is_written or (lives(customer) and not item.send_id):
            return None
        return customer.addresses[-1]  # a send nobody knows here was never one of who lives here

    def _resident(self, at: int, bsuid: str = "") -> Address | None:
        """Return where who lived here at an instant went; None for who lives here now, or another BSUID than theirs."""
        for left in self.customer.addresses:
            if at <= left.move:
                return left if not (bsuid and left.bsuids) else None
        return None

    def _send_on(self, arrival: Arrival, left: Address) -> bool:
        if left.to == self._key:
            return False
        if arrival.hops >= HOPS_MAX:
            self.commands.append(Moved("hops"))
            return False
        record = Forwarded(arrival.origin, arrival.hops + 1, encode(arrival.record), left.move)
        self.commands.append(Append(left.to, record))
        self.commands.append(Moved("forwarded"))
        return True

    # -- claims

    def _asked(self, claim: Claim, arrival: Arrival) -> None:
        """Answer a claim, pass it on to where its person went, or let it wait behind what waits."""
        customer = self.customer
        if claim.by == self._key or portfolio_of(claim.by) != self._portfolio:
            return
        waiting = customer.claim
        if waiting is not None:
            # Within a second a move comes after a phone's first sight: who moves wrote here before, and Meta's clock
            # has no finer steps. What they wrote waits with us, and would else be sent on behind the answer.
            if (claim.move, claim.is_move, claim.by) >= (waiting.move, waiting.is_move, self._key):
                self._park(arrival)
                return
            # By an earlier move than the one we wait for: so no two wait for each other, nor any more in a ring.
            left = self._resident(claim.move)
            if left is None:
                self._let_go(claim, arrival)
            elif left.to == claim.by or not self._send_on(arrival, left):
                self._answer(claim, b"")
        elif claim.is_move:
            self._asked_to_move(claim, arrival)
        else:
            self._asked_by_phone(claim, arrival)

    def _asked_to_move(self, claim: Claim, arrival: Arrival) -> None:
        customer = self.customer
        is_here = claim.move + REORDERED_MS >= customer.moved_at
        if claim.bsuid and customer.bsuid:
            is_here = is_here and (claim.bsuid == customer.bsuid or claim.bsuid in customer.former_bsuids)
        gone = next((left for left in customer.addresses if left.move >= arrival.move), None) if arrival.move else None
        if gone is None and is_here and (lives(customer) or not customer.addresses):
            self._let_go(claim, arrival)
            return
        left = gone or next((left for left in reversed(customer.addresses) if claim.bsuid in left.bsuids), None)
        if left is None:
            left = next((left for left in customer.addresses if claim.move <= left.move), None)
        if left is None and is_here:
            left = customer.addresses[-1]
        if left is None or left.to == claim.by or not self._send_on(arrival, left):
            self._answer(claim, b"")
        elif left.move < claim.move:
            customer.addresses = [other for other in customer.addresses if other is not left]
            self._leave(customer, Address(claim.by, claim.move, left.bsuids, left.sends))

    def _let_go(self, claim: Claim, arrival: Arrival) -> None:
        """Hand over who lives here. Under a phone that was never seen with the BSUID that moves, the BSUID's own key is
        asked as well: alone when nobody lives here, after us when somebody does."""
        is_unlinked = claim.is_move and self._is_phone and claim.bsuid and not self.customer.bsuid
        home = Address(customer_key(self._portfolio, "", claim.bsuid), 0) if is_unlinked else None
        if home is not None and not lives(self.customer) and self._send_on(arrival, home):
            self._leave(self.customer, Address(claim.by, claim.move, (claim.bsuid,)))
            return
        self._hand_over(claim)
        if home is not None:
            self._send_on(arrival, home)

    def _asked_by_phone(self, claim: Claim, arrival: Arrival) -> None:
        """A phone was seen with this BSUID. Where another phone was, the later one is where the BSUID's records go, and
        that is all: fixtures of the field show one BSUID with many phones, and they are many people."""
        customer = self.customer
        left = customer.addresses[-1] if customer.addresses else None
        if left is None:
            self._hand_over(claim)
            return
        is_alias = address(left.to)[0] == "bsuid"
        if left.to == claim.by or not (is_alias and self._send_on(arrival, left)):
            self._answer(claim, b"")
        if left.to != claim.by and left.move < claim.move:
            customer.addresses = [Address(claim.by, claim.move, left.bsuids, left.sends)]

    def _hand_over(self, claim: Claim) -> None:
        """Hand over who lives here. Who is on the way here by a later move stays expected."""
        leaving, waiting = self.customer, self.customer.claim
        stays = Customer(
            seen_at=leaving.seen_at or self._now, addresses=[left for left in leaving.addresses if left.to != claim.by]
        )
        if waiting is not None:
            stays.claim = waiting
            if not waiting.is_move:  # whose BSUID it is asked by
                stays.moved_at, stays.bsuid, stays.is_linked = leaving.moved_at, leaving.bsuid, leaving.is_linked
                stays.shown_to = leaving.shown_to
        leaving.addresses, leaving.claim, leaving.shown_to = [], None, []
        state = b""
        if lives(leaving) or leaving.taken:
            self._pin(leaving, self._key)
            leaving.order_key = leaving.order_key or self._key
            state = pack(leaving)
        bsuids = (*leaving.former_bsuids, leaving.bsuid or claim.bsuid) if self._is_phone else (self._value,)
        self._leave(stays, Address(claim.by, claim.move, tuple(filter(None, bsuids)), _unsettled(leaving)))
        self.customer = stays
        self._answer(claim, state)
        self.commands.append(Moved("handed_over"))

    def _answer(self, claim: Claim, state: bytes) -> None:
        self.commands.append(Append(claim.by, Handover(self._key, claim.move, state, claim.is_move)))

    def _handed(self, handover: Handover, arrival: Arrival) -> None:
        """Take in what another key knew."""
        customer = self.customer
        claim = customer.claim
        if handover.is_return:
            customer.addresses = [left for left in customer.addresses if left.to != handover.source]
            customer.moved_at = max(customer.moved_at, handover.move)
            self._join(handover)
        elif claim is not None and claim.move == handover.move and claim.is_move == handover.is_move:
            self._admit()
            self._join(handover)
            self._release()
        elif not handover.state:
            return
        else:  # late: who asked went on alone, and may have moved since
            left = next((left for left in customer.addresses if left.move >= handover.move), None)
            if left is None or left.to == handover.source or not self._send_on(arrival, left):
                self._join(handover, is_known=handover.move >= customer.moved_at)

    def _join(self, handover: Handover, *, is_known: bool = True) -> None:
        """Make one person of who lives here and who is handed over; of a stranger (`is_known` False), who lived here
        when they were asked for, take only what must still be brought to its end."""
        if not handover.state:
            return
        mine, theirs = self.customer, unpack(handover.state)
        mine.taken = dedupe.merged(theirs.taken, mine.taken)
        waiting = {send.send_id for send in theirs.sends}
        mine_first = [send for send in mine.sends if send.send_id not in waiting]
        mine.held = [*theirs.held, *mine.held]
        if is_known:
            self._order(mine, theirs, handover.source)
        # A gateway's clock orders the two among each other; what came by one key keeps its own order.
        mine.sends = list(merge(theirs.sends, mine_first, key=lambda send: send.requested_at))
        if not is_known:
            return
        mine.seen_at = max(mine.seen_at, theirs.seen_at)
        mine.heard_at = max(mine.heard_at, theirs.heard_at)
        mine.windows = _latest(theirs.windows, mine.windows, WINDOWS_MAX)
        mine.replied = _latest(theirs.replied, mine.replied, None)
        own = {known.send_id for known in mine.known}
        known = [*(known for known in theirs.known if known.send_id not in own), *mine.known]
        mine.older = idmap.joined(theirs.older, mine.older)
        for old in known[:-KNOWN_MAX]:
            mine.older = idmap.added(mine.older, old.send_id, old.wamid)
        mine.known = known[-KNOWN_MAX:]
        if theirs.epoch > mine.epoch or (theirs.epoch == mine.epoch and theirs.holder and not mine.holder):
            mine.epoch, mine.holder = theirs.epoch, theirs.holder
        mine.language = mine.language or theirs.language
        mine.sent_language = mine.sent_language or theirs.sent_language
        mine.consent = joined_consent(theirs.consent, mine.consent)
        mine.marketing_refused_at = max(mine.marketing_refused_at, theirs.marketing_refused_at)
        mine.wa_id = mine.wa_id or (theirs.wa_id if normalise_wa_id(theirs.wa_id) == self._value else "")
        self._join_ids(theirs, handover)

    def _join_ids(self, theirs: Customer, handover: Handover) -> None:
        mine = self.customer
        former = [*theirs.former_bsuids, *mine.former_bsuids]
        if not self._is_phone:
            mine.bsuid = self._value
        if theirs.bsuid and theirs.bsuid != mine.bsuid:
            if not handover.is_move and mine.bsuid in theirs.former_bsuids:  # passed on: it has a newer one
                former.append(mine.bsuid)
                mine.bsuid, mine.is_linked = theirs.bsuid, False
            else:
                former.append(theirs.bsuid)
        mine.former_bsuids = [one for one in dict.fromkeys(former) if one != mine.bsuid][-FORMER_MAX:]

    def _order(self, mine: Customer, theirs: Customer, source: str) -> None:
        """Keep one order: that of whoever was heard of last, since only of them something may still be under way."""
        self._pin(theirs, source)
        self._pin(mine, self._key)
        if theirs.heard_at > mine.heard_at or not (mine.heard_at or mine.sends or mine.known):
            order_key = theirs.order_key or source
            mine.order_key = "" if order_key == self._key else order_key

    def _pin(self, customer: Customer, key: str) -> None:
        """Let each send that was handed to a sender keep the key it was handed over under."""
        for send in customer.sends:
            if send.attempt and not send.order_key:
                send.order_key = customer.order_key or key


def _unsettled(customer: Customer) -> bytes:
    """Return the fingerprints of a customer's sends that are not settled."""
    return b"".join(dedupe.fingerprint(send.send_id) for send in customer.sends)


Name = TypeVar("Name", str, bytes)


def _latest(one: dict[Name, int], other: dict[Name, int], most: int | None) -> dict[Name, int]:
    """Return the later instant of each name, of at most so many the latest."""
    both = {name: max(one.get(name, 0), other.get(name, 0)) for name in {**one, **other}}
    if most is None or len(both) <= most:
        return both
    return dict(sorted(both.items(), key=lambda each: (each[1], each[0]))[-most:])


def joined_consent(one: list[Change], other: list[Change]) -> list[Change]:
    """Return what one person said under two keys. Where only one of them said stop, it is stop: who said what first to
    whom cannot be told from two clocks of two conversations, and a stop that is overlooked is the worse mistake."""
    if not (one and other):
        return one or other
    both = one
    for change in other:
        both = consent.changed(both, change)
    newest = both[-1].at
    for side in (one, other):
        for change in side:
            if not change.stopped:
                continue
            for scope in SCOPES:
                if consent.stopped(side, change.number, scope) and not consent.stopped(both, change.number, scope):
                    again = Change(newest, True, change.number, "merged", change.proof)
                    both = consent.changed(both, again)
    return both
