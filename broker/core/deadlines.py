"""When to look at whom again: a heap of instants with one entry in force for each key."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

K = TypeVar("K", str, bytes)

SLACK = 1_024
"""A heap this much longer than twice what is in force is built anew: most deadlines are moved, few fall due."""


class Deadlines(Generic[K]):
    """The next deadline of each key. Instants are Unix ms; keys whose deadline is the same fall due in key order."""

    def __init__(self) -> None:
        self._at: dict[K, int] = {}
        self._heap: list[tuple[int, K]] = []

    def __len__(self) -> int:
        return len(self._at)

    def set(self, key: K, at: int) -> None:
        """Put a key's deadline in place of the one before; 0 means it has none."""
        if not at:
            self._at.pop(key, None)
            return
        if self._at.get(key) == at:
            return
        self._at[key] = at
        heapq.heappush(self._heap, (at, key))
        if len(self._heap) > 2 * len(self._at) + SLACK:
            self._heap = [(at, key) for key, at in self._at.items()]
            heapq.heapify(self._heap)

    def next_at(self) -> int:
        """Return the earliest instant in force, 0 when there is none."""
        heap = self._heap
        while heap and self._at.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else 0

    def take_due(self, now: int, keys_max: int) -> list[K]:
        """Return the keys whose deadline is not after now, earliest first, and forget these deadlines."""
        due: list[K] = []
        while len(due) < keys_max and 0 < self.next_at() <= now:
            _, key = heapq.heappop(self._heap)
            del self._at[key]
            due.append(key)
        return due
