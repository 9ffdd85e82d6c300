"""What a request repeats: by its `Idempotency-Key`, or by its bytes when its sender had no answer to rely on.

Two equal requests are two messages, as at Meta. One is the repetition of another only if that other's sender was told
that it is not known whether it was taken, or had gone before it was told anything: its client gave up waiting. Each
such request is repeated once: as many equal requests as were unanswered are repetitions, the next is a message anew.

The memory of one process, bounded and helpful: what it has forgotten is still taken once, by its send id, in the
customer stage. A client that may meet another process on its second try names its requests by `Idempotency-Key`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from msgspec import Struct

from schemas.ids import SendId

ENTRIES_MAX = 20_000
"""Of each kind: 100 B each."""
EQUAL_MAX = 100
"""Unanswered requests of equal bytes; the newest are remembered."""
UNKNOWN_S = 300.0
"""How long the same bytes from the same key are the repetition of a request that was not answered."""


class Attempt(Struct):
    """A request under way, without an idempotency key. `gone`: whether its sender is not there any more. `repeats`:
    whether it repeats another."""

    send_id: SendId
    fingerprint: bytes
    gone: Callable[[], bool]
    repeats: bool
    is_repeated: bool = False


class Repetitions:
    """Requests by their idempotency key, requests under way, and requests nobody had an answer to."""

    def __init__(self) -> None:
        self._named: OrderedDict[SendId, tuple[bytes, bool]] = OrderedDict()
        self._under_way: dict[bytes, list[Attempt]] = {}
        self._unanswered: OrderedDict[bytes, list[tuple[SendId, float]]] = OrderedDict()

    # ---- by name

    def contradicts(self, send_id: SendId, fingerprint: bytes) -> bool:
        """Whether this idempotency key stood for something else, be it answered or not."""
        known = self._named.get(send_id)
        return known is not None and known[0] != fingerprint

    def is_durable(self, send_id: SendId) -> bool:
        """Whether this very request has been answered before."""
        known = self._named.get(send_id)
        return known is not None and known[1]

    def name(self, send_id: SendId, fingerprint: bytes, *, durable: bool) -> None:
        """Note what an idempotency key stands for, and whether that is durable."""
        self._named[send_id] = fingerprint, durable
        self._named.move_to_end(send_id)
        if len(self._named) > ENTRIES_MAX:
            self._named.popitem(last=False)

    # ---- by bytes

    def begin(
        self, fingerprint: bytes, now_s: float, gone: Callable[[], bool], new_id: Callable[[], SendId]
    ) -> Attempt:
        """Take a request: under the id of the one it repeats, if it repeats one. `end` comes when it is over."""
        repeated = self._repeated(fingerprint, now_s)
        attempt = Attempt(repeated or new_id(), fingerprint, gone, repeated is not None)
        self._under_way.setdefault(fingerprint, []).append(attempt)
        return attempt

    def end(self, attempt: Attempt, now_s: float, *, answered: bool) -> None:
        """A request is over. `answered`: its sender was there and was told that it is taken."""
        fingerprint = attempt.fingerprint
        attempts = self._under_way[fingerprint]
        attempts.remove(attempt)
        if not attempts:
            del self._under_way[fingerprint]
        if answered or attempt.is_repeated:
            return
        unanswered = self._unanswered.setdefault(fingerprint, [])
        unanswered.append((attempt.send_id, now_s + UNKNOWN_S))
        del unanswered[:-EQUAL_MAX]
        self._unanswered.move_to_end(fingerprint)
        if len(self._unanswered) > ENTRIES_MAX:
            self._unanswered.popitem(last=False)

    def _repeated(self, fingerprint: bytes, now_s: float) -> SendId | None:
        """Return the id of the oldest request of these bytes that waits to be repeated; it waits no more."""
        unanswered = self._unanswered.get(fingerprint)
        if unanswered is not None:
            while unanswered and now_s >= unanswered[0][1]:
                del unanswered[0]
            found = unanswered.pop(0)[0] if unanswered else None
            if not unanswered:
                del self._unanswered[fingerprint]
            if found is not None:
                return found
        for attempt in self._under_way.get(fingerprint, ()):
            if not attempt.is_repeated and attempt.gone():
                attempt.is_repeated = True
                return attempt.send_id
        return None
