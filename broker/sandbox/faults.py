"""The platform's misbehaviour: which fault strikes whom, and how often it did. By seed, switched at run time.

Every fault is counted when it strikes, so that a test can say that what it withstood has really happened.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Literal

from msgspec import Struct

from broker.clock import Clock
from broker.sandbox.errors import ERRORS

FaultName = Literal[
    "slow",
    "lost_request",
    "lost_answer",
    "error_before",
    "error_after",
    "silence",
    "answer_130429",
    "answer_131056",
    "answer_131057",
    "answer_131016",
    "answer_131000",
    "answer_1",
    "answer_2",
    "answer_4",
    "answer_80007",
    "answer",
    "duplicate",
    "reorder_customers",
    "reorder_statuses",
    "reorder_messages",
    "delay",
    "batch",
]

FAULTS: dict[FaultName, str] = {
    "slow": "a Graph call takes `ms` longer",
    "lost_request": "the connection is cut before the call is read",
    "lost_answer": "the message is accepted, then the connection is cut",
    "error_before": "5xx with an HTML page; the message is not accepted",
    "error_after": "5xx with an HTML page; the message was accepted",
    "silence": "the message is accepted, and no answer comes for `ms`; then the connection is cut",
    "answer_130429": "refused: throughput reached, whatever the tier says",
    "answer_131056": "refused: pair limit, whatever the pair owes",
    "answer_131057": "refused: number in maintenance",
    "answer_131016": "service unavailable; a `share` of the messages was accepted all the same",
    "answer_131000": "something went wrong; a `share` of the messages was accepted all the same",
    "answer_1": "unknown error; a `share` of the messages was accepted all the same",
    "answer_2": "temporary error; a `share` of the messages was accepted all the same",
    "answer_4": "refused: the app makes too many calls",
    "answer_80007": "refused: the account makes too many calls",
    "answer": "any error of Meta's table, by its `code`; of one that leaves doubt a `share` was accepted",
    "duplicate": "a webhook comes again within `ms`, though it was answered with 200",
    "reorder_customers": "all webhooks of a customer wait up to `ms`, in their order: customers overtake each other",
    "reorder_statuses": "a status waits up to `ms`: delivered overtakes sent",
    "reorder_messages": "a customer's message waits up to `ms`: the next overtakes it",
    "delay": "a webhook comes `ms` late",
    "batch": "webhooks wait up to `ms` and come together, up to `items` in one POST",
}
"""Every fault, and what it does."""

DEFAULT_MS: dict[FaultName, int] = {
    "slow": 5_000,
    "silence": 60_000,
    "duplicate": 3_000,
    "reorder_customers": 2_000,
    "reorder_statuses": 4_000,
    "reorder_messages": 2_000,
    "delay": 30_000,
    "batch": 200,
}

GIVES_UP_ANSWER_S = 90.0
"""The longest the platform leaves a call without an answer before it cuts the connection."""

ANSWERS: dict[FaultName, int] = {
    name: int(name.removeprefix("answer_")) for name in FAULTS if name.startswith("answer_")
}

LEAVES_DOUBT = frozenset({1, 2, 131000, 131016, 133004})
"""Codes after which nobody knows whether the message was accepted. Source: Meta Cloud API, "Error codes"."""


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """One fault as it is switched on. `rate` 0 … 1 of the occasions; `number` limits it to one business number.

    `share`: of the messages answered with an error that leaves doubt, how many were accepted all the same. `items`: of
    a batch. `code` and `subcode`: of `answer`. `times`: it strikes so often and is over then; 0 is for ever.
    """

    rate: float = 1.0
    number: str = ""
    ms: int = 0
    share: float = 0.5
    items: int = 1_000
    code: int = 0
    subcode: int = 0
    times: int = 0


class Latency(Struct, frozen=True, forbid_unknown_fields=True):
    """How long a Graph call takes: before the platform decides, uniformly between two bounds, and after it, around a
    median with a long tail. Meta's own calls take about 350 ms."""

    uplink_min_ms: float = 0.0
    uplink_max_ms: float = 0.0
    median_ms: float = 80.0
    sigma: float = 0.35


class Faults:
    """The switches and their counters. All chance comes from one seeded generator of their own."""

    def __init__(self, rng: Random, latency: Latency | None = None) -> None:
        self._rng = rng
        self.latency = latency or Latency()
        self._on: dict[FaultName, dict[str, Fault]] = {}
        self._left: dict[tuple[FaultName, str], int] = {}
        self.struck: dict[str, int] = dict.fromkeys([*FAULTS, "freeze", "token_revoked", "webhook_refused"], 0)
        self.frozen_until = float("-inf")
        """Monotonic seconds until which the platform is silent."""
        self.revoked: dict[str, int] = {}
        """Numbers whose token is refused with 190, with the subcode."""
        self._thawed = asyncio.Event()

    def set(self, name: FaultName, fault: Fault) -> None:
        """Switch a fault on for its number, or for all that have none of their own. With a rate of 0 it goes off: for
        its number, without one for every number. Raises ValueError for what is no fault, no rate, no code."""
        if name not in FAULTS:
            raise ValueError(f"{name}: is no fault; there are {', '.join(FAULTS)}")
        if not 0 <= fault.rate <= 1 or not 0 <= fault.share <= 1 or fault.ms < 0 or not 1 <= fault.items <= 1_000:
            raise ValueError(f"{name}: rate and share lie in 0 … 1, ms is not negative, items lie in 1 … 1000")
        if fault.times < 0:
            raise ValueError(f"{name}: times is not negative")
        if name == "answer" and fault.rate and fault.code not in ERRORS:
            raise ValueError(f"{name}: code {fault.code} stands in no table of Meta's")
        if fault.rate == 0 and not fault.number:
            self._on.pop(name, None)
        elif fault.rate == 0:
            self._on.get(name, {}).pop(fault.number, None)
        else:
            self._on.setdefault(name, {})[fault.number] = fault
            self._left[name, fault.number] = fault.times

    def clear(self) -> None:
        """Switch every fault off and thaw. Counters stay."""
        self._on.clear()
        self._left.clear()
        self.revoked.clear()
        self.frozen_until = float("-inf")
        self._thawed.set()

    def on(self) -> dict[str, Fault]:
        """Return what is switched on: by its name, with the number where it is limited to one."""
        return {
            f"{name} {number}".strip(): fault for name, faults in self._on.items() for number, fault in faults.items()
        }

    def strikes(self, name: FaultName, number: str) -> Fault | None:
        """Draw: return the fault if it strikes now, and count it."""
        faults = self._on.get(name)
        if not faults:
            return None
        fault = faults.get(number) or faults.get("")
        if fault is None:
            return None
        if fault.rate < 1 and self._rng.random() >= fault.rate:
            return None
        if fault.times:
            self._left[name, fault.number] -= 1
            if not self._left[name, fault.number]:
                del faults[fault.number]
        self.struck[name] += 1
        return fault

    def answers(self, number: str) -> tuple[int, int, bool] | None:
        """Draw among the error answers: return code and subcode, and whether the message is accepted all the same."""
        if fault := self.strikes("answer", number):
            return fault.code, fault.subcode, fault.code in LEAVES_DOUBT and self._rng.random() < fault.share
        for name, code in ANSWERS.items():
            if name in self._on and (fault := self.strikes(name, number)):
                return code, 0, code in LEAVES_DOUBT and self._rng.random() < fault.share
        return None

    def freeze(self, now: float, seconds: float) -> None:
        """The platform falls silent: calls hang, no webhook goes out, until it thaws."""
        self.frozen_until = max(self.frozen_until, now + seconds)
        self.struck["freeze"] += 1
        self._thawed.clear()

    async def wait_for_thaw(self, clock: Clock, longest_s: float = float("inf")) -> None:
        """Wait while the platform is frozen, at most `longest_s`."""
        give_up_at = clock.monotonic() + longest_s
        while (left_s := min(self.frozen_until, give_up_at) - clock.monotonic()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self._thawed.wait()
            except TimeoutError:
                continue

    def revoke_token(self, number: str, subcode: int = 463) -> None:
        """Refuse the number's token from now on."""
        self.revoked[number] = subcode

    def restore_token(self, number: str) -> None:
        """Take the number's token again."""
        self.revoked.pop(number, None)

    def uplink_s(self) -> float:
        """Draw how long a call is under way before the platform decides."""
        latency = self.latency
        if latency.uplink_max_ms <= 0:
            return 0.0
        return self._rng.uniform(latency.uplink_min_ms, latency.uplink_max_ms) / 1_000

    def answer_s(self) -> float:
        """Draw how long the platform takes to answer once it has decided."""
        latency = self.latency
        if latency.median_ms <= 0:
            return 0.0
        return float(latency.median_ms * self._rng.lognormvariate(0.0, latency.sigma)) / 1_000

    def up_to_s(self, fault: Fault, name: FaultName) -> float:
        """Draw a delay of up to the fault's length."""
        return self._rng.uniform(0, fault.ms or DEFAULT_MS[name]) / 1_000

    def length_s(self, fault: Fault, name: FaultName) -> float:
        """Return a fault's length."""
        return (fault.ms or DEFAULT_MS[name]) / 1_000

    def chance(self) -> float:
        """Draw from the faults' own generator."""
        return self._rng.random()
