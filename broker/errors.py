"""What our machinery can fail with, and who must act next.

An answer of the world (a refusal by Meta, a bot that says 500) is a value on a log, not an exception. A broken
invariant is a crash and is left to the supervisor. What stands here lies between: each name is translated from a
library's own errors at the place where the library is called, and says in its text what happened, where, and what
would be right.
"""

from __future__ import annotations


class DepescheError(Exception):
    """The root of every error of ours, so that a caller can tell them from a crash."""


class LogUnavailable(DepescheError):
    """An append or a read did not come through in time. The caller still has the record and answers 503.

    The record may land all the same, later: whoever repeats it counts on the ids that facts carry.
    """


class RecordTooLarge(DepescheError):
    """A record exceeds the engine's limit. Raised before anything is written; repeating it cannot help."""


class LeaseRevoked(DepescheError):
    """The partition is not ours at this moment; nothing was written. It may come back: keep the memory, fetch again."""


class LeaseLost(DepescheError):
    """Somebody else owns the partition, or what we wrote last is in doubt: drop the memory and let go.

    The engine restores what was committed, for whoever is granted the partition next.
    """


class WrongIncarnation(DepescheError):
    """A position belongs to another incarnation of a log (it was deleted and made again). An operator must decide."""


class Malformed(DepescheError):
    """Bytes from outside that are not what they claim to be. They become a dead letter, their neighbours live."""


class Misconfigured(DepescheError):
    """A setting that cannot be right: its path, its value, what would be right. Nothing starts."""


class OutOfTurn(DepescheError):
    """An event that cannot happen in this state: we are wrong. The supervisor restarts the actor."""
