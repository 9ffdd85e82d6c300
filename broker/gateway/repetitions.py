"""What a request repeats: by its `Idempotency-Key`, or by its bytes after we had to say that we do not know.

The memory of one process, bounded and helpful: what it has forgotten is still taken once, by its send id, in the
customer stage.
"""

from __future__ import annotations

from collections import OrderedDict

from schemas.ids import SendId

ENTRIES_MAX = 20_000
"""Of each kind: 100 B each."""
UNKNOWN_S = 300.0
"""How long the same bytes from the same key are the repetition of a request whose durability was not known."""


class Repetitions:
    """Requests by their idempotency key, and requests that may be on the log."""

    def __init__(self) -> None:
        self._durable: OrderedDict[SendId, bytes] = OrderedDict()
        self._unknown: OrderedDict[bytes, tuple[SendId, float]] = OrderedDict()

    def contradicts(self, send_id: SendId, fingerprint: bytes) -> bool:
        """Whether this idempotency key stood for something else."""
        known = self._durable.get(send_id)
        return known is not None and known != fingerprint

    def is_durable(self, send_id: SendId) -> bool:
        """Whether this very request has been answered before."""
        return send_id in self._durable

    def unknown(self, fingerprint: bytes, now_s: float) -> SendId | None:
        """Return the id that these bytes were given when we did not know whether they were durable."""
        found = self._unknown.get(fingerprint)
        return found[0] if found is not None and now_s < found[1] else None

    def settled(self, send_id: SendId, fingerprint: bytes, *, named: bool) -> None:
        """Note that a request is durable; `named`: by an idempotency key."""
        self._unknown.pop(fingerprint, None)
        if named:
            self._durable[send_id] = fingerprint
            self._durable.move_to_end(send_id)
            if len(self._durable) > ENTRIES_MAX:
                self._durable.popitem(last=False)

    def doubted(self, send_id: SendId, fingerprint: bytes, now_s: float) -> None:
        """Note that it is not known whether a request without idempotency key is durable."""
        self._unknown[fingerprint] = (send_id, now_s + UNKNOWN_S)
        self._unknown.move_to_end(fingerprint)
        if len(self._unknown) > ENTRIES_MAX:
            self._unknown.popitem(last=False)
