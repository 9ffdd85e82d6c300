"""Places where a process can be made to die or to freeze, so that tests can do to it what a bad day does.

`DEPESCHE_FAILPOINT=receiver.appended:17` ends the process as `kill -9` would when it comes to that place for the 17th
time; `…:17:freeze` stops it there (SIGSTOP) until somebody lets it go on. Without the variable, as in production, a
place costs one comparison.
"""

from __future__ import annotations

import asyncio
import os
import signal

from broker.errors import Misconfigured

VARIABLE = "DEPESCHE_FAILPOINT"

POINTS = {
    "receiver.read": "a webhook's body was read",
    "receiver.verified": "its signature is right",
    "receiver.split": "its items are keyed and encoded, nothing is appended",
    "receiver.appended": "they are durable, the 200 has not left",
    "receiver.answered": "the 200 is with the kernel",
    "gateway.appended": "a bot's request is durable, its answer has not left",
    "embedded.written": "a batch is written, not committed",
    "embedded.committed": "it is committed, nobody was told",
    "customer.fetched": "a batch was fetched, nothing is decided",
    "customer.decided": "it is decided, not committed",
    "customer.committed": "the step is committed, memory does not know it",
    "sender.planned": "a step with intents, answers or both is about to be committed",
    "sender.stepped": "it is committed, its calls have not begun",
    "graph.permitted": "the permit is given, no byte of the call has left",
    "graph.written": "the call is with the kernel, nothing is heard",
    "graph.answered": "Graph's answer was read, nothing was done about it",
    "sender.reported": "the outcome is durable, the ledger does not know it",
    "delivery.posting": "an event is about to leave for its sink",
    "delivery.posted": "the sink has answered, nothing was noted",
    "delivery.committed": "what is done was committed",
}
"""Every place, and what is true there."""

_point = ""
_left = 0
_signal = signal.SIGKILL


def arm(text: str) -> None:
    """Arm one place: `<point>:<count>`, then `:freeze` or nothing. Empty: none. Raises `Misconfigured`."""
    global _point, _left, _signal
    point, _, rest = text.partition(":")
    count, _, action = rest.partition(":")
    if text and point not in POINTS:
        raise Misconfigured(f"{VARIABLE}: there is no point {point!r}; there are {', '.join(POINTS)}")
    if text and not (count.isdecimal() and int(count) > 0 and action in ("", "freeze")):
        raise Misconfigured(f"{VARIABLE}: {text!r} should be {point}:<count from 1>, then :freeze or nothing")
    _point, _left = point, int(count or 0)
    _signal = signal.SIGSTOP if action == "freeze" else signal.SIGKILL


def reached(point: str) -> None:
    """Say that the process has come to a place."""
    global _left
    if point != _point:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), _signal)


def reached_soon(point: str) -> None:
    """Say in the loop's next turn that the process came to a place: what this turn writes is with the kernel then."""
    if point == _point:
        asyncio.get_running_loop().call_soon(reached, point)
