"""What is remembered of one customer, small enough for millions: the value of its record in the state log.

A quiet customer has at most 400 bytes: ids are kept in fewer than they are written in, and silence makes a state
smaller (`quieted`) and at last superfluous (`is_forgotten`). Times are Unix ms.
"""

from __future__ import annotations

import binascii
from base64 import b64encode
from typing import Final

import msgspec
from msgspec import Struct, field

from broker.core import consent, dedupe
from broker.core.consent import Change
from broker.core.opaque import new_send_id
from schemas.records import LANE_OF, Edge, Lane, SendClass

QUIET_BYTES_MAX = 400
"""What a quiet customer may occupy; a test measures it."""

QUIET_AFTER_MS = dedupe.KEPT_MS
"""Silent for so long there is nothing left that could come twice."""

KNOWN_MAX = 16
"""Settled sends of which all is remembered, newest last: those whose statuses may still come. Of some 65 before them
the two ids are (`core/idmap.py`): what a customer's tap or a bot's reply may still speak of."""

REPLIED_MAX = 4
"""The broker's own replies of which it is remembered that a customer had them; the one due again first goes first."""

WINDOWS_MAX = 16
"""Business numbers one customer wrote to; the window opened longest ago goes first."""

SHOWN_MAX = WINDOWS_MAX
"""Business numbers that saw one customer's phone; one that is left out costs one question more."""

KNOWN_QUIET_MAX = 4
"""Of a quiet customer: the last things said before the silence."""

FORGOTTEN_AFTER_MS = 30 * 24 * 3_600_000
"""A customer silent for so long, with nothing to remember, is forgotten."""

SEEN_EVERY_MS = 3_600_000
"""How exactly it is kept when a customer was last heard of: a repetition alone should not change the state."""


class Send(Struct, array_like=True, gc=False):
    """A send that is not settled. `attempt` 0: held, `body` is the caller's. Else `body` is what would be sent again,
    empty when its class is never sent again. `doubt_until` 0: not in doubt."""

    send_id: str
    phone_number_id: str
    send_class: SendClass
    sink: str
    attempt: int
    body: bytes
    requested_at: int
    not_after: int
    called_at: int = 0
    doubt_until: int = 0
    wa_id: str = ""
    bsuid: str = ""
    template: str = ""
    own: str | None = None
    marketing: bool = False
    """Besides those of class "campaign", which always are."""
    edge: Edge = "messages"
    order_key: str = ""
    """What it was handed over under, where its customer has moved since."""
    other_lane: Lane | None = None
    """Where it does not go in the lane of its class (`template_class.by_window`)."""
    withdrawn: int = 0
    """The attempt that its sender was told not to begin, because the customer said stop; 0: none."""

    @property
    def lane(self) -> Lane:
        """Which of its number's queues it waits in."""
        return self.other_lane or LANE_OF[self.send_class]

    @property
    def is_marketing(self) -> bool:
        """Whether it is marketing, by its class or by what it is."""
        return self.marketing or self.send_class == "campaign"


class Known(Struct, array_like=True, gc=False, frozen=True):
    """A settled send: its id and wamid, packed, its sink, and the caller's own data where the line had no room."""

    send_id: bytes
    wamid: bytes
    sink: str
    own: str | None = None


class Held(Struct, array_like=True, gc=False, frozen=True):
    """What a sink gets a little later: an update that may speak of a send whose wamid is not known yet, or one behind
    it. `event` is the encoded `DeliveryEvent`; `until` 0: it only waits behind another; `wamids`: the strange ones."""

    sink: str
    event: bytes
    until: int = 0
    at: int = 0
    wamids: tuple[str, ...] = ()


class Address(Struct, array_like=True, gc=False, frozen=True):
    """Where somebody went who lived under this key: the key, the instant of the move, and the BSUIDs they had until
    then, as far as they were known. `sends`: fingerprints of their sends not settled then: reports come here."""

    to: str
    move: int
    bsuids: tuple[str, ...] = ()
    sends: bytes = b""


class Claiming(Struct, array_like=True):
    """A question to another key that is not answered yet, and what arrived meanwhile, encoded as `Forwarded`.

    `evicts`: whoever lives here seems to be another one than who moves in; they go when the answer is there, unless an
    earlier move has taken them along by then. `bsuid`: of who moves in, "" when it was not said. `ahead`: so many of
    `parked` were sent on by the key that was asked, before it answered: they are older than what asked.
    """

    source: str
    move: int
    is_move: bool
    asked_at: int
    parked: list[bytes] = field(default_factory=list)
    evicts: bool = False
    bsuid: str = ""
    ahead: int = 0


class Customer(Struct, array_like=True, gc=False):
    """All that is remembered of one customer; packed, it is the value in the state log. An older reader ignores fields
    added behind. `decide` changes it in place: whoever keeps the committed one keeps its bytes."""

    seen_at: int = 0
    heard_at: int = 0
    """Meta's instant of the newest webhook item: proof that webhooks of that time arrive."""
    taken: bytes = b""
    """The dedupe ring."""
    windows: dict[str, int] = field(default_factory=dict)
    """When each number's window was last opened."""
    known: list[Known] = field(default_factory=list)
    sends: list[Send] = field(default_factory=list)
    """In the order they were asked for."""
    epoch: int = 1
    """Counts the holders of the conversation; the first is the bot."""
    wa_id: str = ""
    """As Meta writes it, where that is not the key's form."""
    bsuid: str = ""
    holder: str = ""
    """The sink that holds the conversation; "" is the bot."""
    language: str = ""
    """As a route said; and, where none did, of the last template that was sent."""
    sent_language: str = ""
    replied: dict[bytes, int] = field(default_factory=dict)
    """By the hash of number and route: until when the broker does not reply again."""
    consent: list[Change] = field(default_factory=list)
    """What the customer said about marketing, oldest first, each with its proof (`core/consent.py`)."""
    older: bytes = b""
    """The two ids of sends that fell out of `known` (`core/idmap.py`)."""
    held: list[Held] = field(default_factory=list)
    """In the order in which sinks are to get it. Who makes one customer of two keeps both: nothing may be lost."""
    addresses: list[Address] = field(default_factory=list)
    """Where those went who lived under this key before, oldest move first (`core/moves.py`)."""
    claim: Claiming | None = None
    moved_at: int = 0
    """The move by which the present customer came to this key; 0 for the first one."""
    is_linked: bool = False
    """Whether the BSUID's own key knows that its person lives here."""
    former_bsuids: list[str] = field(default_factory=list)
    """That this same person had before; Meta gives a new one with a new phone."""
    order_key: str = ""
    """Under which the logs keep this person's order, "" for the key itself: it stays what it was when they move."""
    shown_to: list[str] = field(default_factory=list)
    """Of a linked phone: the business numbers that this person last wrote to with the phone shown, newest last."""
    marketing_refused_at: int = 0
    """When Meta last said that they get no more marketing now (`core/marketing_rest.py`); 0: never, or long ago."""


pack = msgspec.msgpack.Encoder().encode
"""A `Customer` to bytes, and back. `unpack` raises `msgspec.DecodeError`."""
unpack = msgspec.msgpack.Decoder(Customer).decode


# ---- the life of a send

ACCEPTED: Final = 1
ACCEPTED_TWICE: Final = 64
STATUS_MARKS: Final = {"sent": 2, "delivered": 4, "read": 8, "played": 16, "failed": 32}
"""Marks of a send's entry in the dedupe ring. A status of another name is a fact of its own."""

_RANKS: Final = ((16, "played"), (8, "read"), (4, "delivered"), (32, "failed"), (2, "sent"), (1, "accepted"))
"""The lattice, highest first. Failed gives way to a delivery that is proven."""


def life_of(customer: Customer, send_id: str) -> str:
    """Return how far a send is known to have come: "" unknown, "taken", "accepted", … It never goes backwards."""
    at = dedupe.find(customer.taken, dedupe.fingerprint(send_id))
    if at < 0:
        return ""
    marks = dedupe.marks(customer.taken, at)
    return next((name for mark, name in _RANKS if marks & mark), "taken")


def in_doubt(customer: Customer) -> int:
    """Return how many sends are in doubt."""
    return sum(1 for send in customer.sends if send.doubt_until) if customer.sends else 0


def quieted(customer: Customer, now: int) -> bool:
    """Leave out what nobody will ask for after so long a silence; False when there was nothing to leave out."""
    is_busy = customer.sends or customer.held or customer.claim is not None
    if now - customer.seen_at <= QUIET_AFTER_MS + SEEN_EVERY_MS or is_busy:
        return False
    replied = {mark: until for mark, until in customer.replied.items() if until > now}
    changes = consent.quieted(customer.consent) if customer.consent else customer.consent
    if (
        not customer.taken
        and not customer.older
        and len(customer.known) <= KNOWN_QUIET_MAX
        and len(replied) == len(customer.replied)
        and len(changes) == len(customer.consent)
        and not customer.marketing_refused_at
    ):
        return False
    customer.replied = replied
    customer.taken = customer.older = b""
    del customer.known[:-KNOWN_QUIET_MAX]
    customer.consent = changes
    customer.marketing_refused_at = 0  # a rest is shorter than this silence
    return True


def is_forgotten(customer: Customer, now: int) -> bool:
    """Whether the customer was silent for long enough and there is nothing that must be remembered."""
    if now - customer.seen_at <= FORGOTTEN_AFTER_MS or customer.sends or customer.held:
        return False
    if customer.addresses or customer.claim is not None:
        return False
    return customer.epoch == 1 and not customer.language and not customer.consent


# ---- ids in fewer bytes: a state holds several, and there are millions of states

_TO_INT32 = str.maketrans("0123456789ABCDEFGHJKMNPQRSTVWXYZ", "0123456789abcdefghijklmnopqrstuv")
_WAMID = "wamid."


def pack_send_id(send_id: str) -> bytes:
    """Return the 16 bytes an id of ours is made of."""
    return int(send_id[7:].translate(_TO_INT32), 32).to_bytes(17, "big")[1:]


def unpack_send_id(packed: bytes) -> str:
    """Return the id again."""
    return new_send_id(int.from_bytes(packed[:6], "big"), packed[6:])


def pack_wamid(wamid: str) -> bytes:
    """Return a wamid in three quarters of its bytes where it is base 64 (its first byte is 0 then), else as it is."""
    if wamid.startswith(_WAMID):
        try:
            raw = binascii.a2b_base64(wamid[6:], strict_mode=True)
        except (binascii.Error, ValueError):
            raw = b""
        if raw and binascii.b2a_base64(raw, newline=False).decode() == wamid[6:]:
            return b"\0" + raw
    return b"\1" + wamid.encode("utf-8", "surrogatepass") if wamid else b""


def unpack_wamid(packed: bytes) -> str:
    """Return the wamid again, to the character."""
    if packed[:1] == b"\0":
        return _WAMID + b64encode(packed[1:]).decode()
    return packed[1:].decode("utf-8", "surrogatepass")
