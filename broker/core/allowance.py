"""How often a key may ask: a token bucket. Instants are monotonic seconds, given by whoever asks."""

from __future__ import annotations


class Allowance:
    """What one key may still ask for: `per_s` in the long run, up to one second's worth (at least one) at once.

    Kept as the instant at which the bucket is full again, so that nothing runs by itself and no rounding adds up.
    """

    __slots__ = ("_burst_s", "_full_at", "_interval_s", "per_s")

    def __init__(self, per_s: float) -> None:
        """Start full. Raises `ValueError` when `per_s` is not above zero: no limit is no bucket."""
        if not per_s > 0:
            raise ValueError(f"an allowance is above zero, not {per_s}")
        self.per_s = per_s
        self._interval_s = 1.0 / per_s
        self._burst_s = max(1.0, self._interval_s)
        self._full_at = float("-inf")

    def take(self, now_s: float) -> float:
        """Take one request; return 0.0 when it may go, else the seconds until one may. A refused one costs nothing."""
        full_at = max(self._full_at, now_s) + self._interval_s
        wait_s = full_at - self._burst_s - now_s
        if wait_s > 1e-9:
            return wait_s
        self._full_at = full_at
        return 0.0
