"""The signals a run of the suite begins with: the same in a terminal and behind a shell's `&`."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Hear Ctrl-C. A shell starts background jobs deaf to it, children inherit that, and then no test of a Ctrl-C can
    pass."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
