"""In which order the suite runs: what takes longest begins first, so that two processes end at about the same time."""

from __future__ import annotations

import pytest

FIRST = ("tests/simulation/test_simulation.py", "tests/simulation/test_planted.py", "tests/flow/")
"""Minutes each. A file stays in one process; the other one takes the rest meanwhile."""


def rank(path: str) -> int:
    """Return a file's place: the smaller, the earlier."""
    return next((place for place, prefix in enumerate(FIRST) if path.startswith(prefix)), len(FIRST))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first and leave the order of the others, and within a file, as it is."""
    items.sort(key=lambda item: rank(item.nodeid))
