"""The referee: reads the journal as it is written and says what a real Meta would have held against the sender.

It keeps limits of its own and trusts no refusal: a call the platform let pass is judged too. A test adds what it knows
and Meta does not: which sends may repeat, in which order texts were asked for, what counts as an answer.
"""

from __future__ import annotations

import json
import re
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Literal

from msgspec import Struct, field

from broker.sandbox.journal import Called, Ended, Entry, Posted, Webhook, Wrote
from broker.sandbox.limits import PairDebt, microseconds

Rule = Literal[
    "accepted twice",
    "above the tier",
    "pair limit",
    "out of order",
    "unknown message quoted",
    "unknown message marked",
    "dialogue broken",
]

VERDICTS_MAX = 1_000
"""Verdicts kept with their words; further ones are counted."""

SENDS_KEPT_MAX = 2_000_000
"""Ids of sends remembered to find one that was accepted twice; the oldest are forgotten."""

SEQUENCE = re.compile(r"\[([\w.-]{1,64}):(\d{1,9})\]")
"""How a text says its place: `[stream:7]`."""


class Verdict(Struct, frozen=True):
    """One thing that must not have happened. `subject`: the send id, number or pair."""

    rule: Rule
    subject: str
    at: int
    detail: str


class NumberReport(Struct):
    """What one number did. `peak_mps`: the most a sliding second held, inbound included."""

    calls: int = 0
    accepted: int = 0
    inbound: int = 0
    marks: int = 0
    """Messages marked as read, with or without typing."""
    dialogues: int = 0
    """Dialogues of simulated customers that were whole to their end."""
    peak_mps: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    """Honest refusals by code; those a fault made up are not among them."""
    excused: int = 0
    """Honest 130429 that only inbound of the last moments explains: the sender could not have known."""


def sequence_in_text(called: Called) -> tuple[str, int] | None:
    """Return the place a text says it has, `[stream:7]`, or None."""
    found = SEQUENCE.search(called.request)
    return (found[1], int(found[2])) if found else None


def answers_by_words(wrote: Wrote, called: Called) -> bool:
    """Say whether a send answers a message: it quotes it, or holds the place its text says, `[stream:7]`."""
    if called.context_id == wrote.wamid:
        return True
    body = wrote.message.get("text", {}).get("body", "")
    return (found := SEQUENCE.search(body)) is not None and found[0] in called.request


class Referee:
    """Judges every entry of a journal: `journal.listen(referee.see)`.

    `tiers`: mps by number. `inbound_known_after_s`: inbound younger than that is not held against a sender.
    `tolerance_s`: what the way from the sender to the platform may have shortened or stretched a pair's distances.
    `may_repeat`: whether a send may be accepted more than once (a one-time code, a marked duplicate).
    """

    def __init__(
        self,
        tiers: Mapping[str, int],
        *,
        inbound_known_after_s: float = 0.15,
        tolerance_s: float = 0.0,
        may_repeat: Callable[[str], bool] = lambda send: False,
        sequence_of: Callable[[Called], tuple[str, int] | None] = sequence_in_text,
        answers: Callable[[Wrote, Called], bool] = answers_by_words,
        expects_answer: Callable[[Wrote], bool] = lambda wrote: False,
    ) -> None:
        self._tiers = tiers
        self._inbound_known_after_us = microseconds(inbound_known_after_s)
        self._tolerance_s = tolerance_s
        self._may_repeat = may_repeat
        self._sequence_of = sequence_of
        self._answers = answers
        self._expects_answer = expects_answer
        self._accepted: OrderedDict[str, int] = OrderedDict()
        self._sends: dict[str, deque[int]] = {number: deque() for number in tiers}
        self._inbound: dict[str, deque[int]] = {number: deque() for number in tiers}
        self._pairs: dict[tuple[str, str], PairDebt] = {}
        self._places: dict[tuple[str, str, str], int] = {}
        self._unanswered: dict[tuple[str, str], OrderedDict[str, Wrote]] = {}
        self._unacknowledged: dict[int, Webhook] = {}
        self.numbers: dict[str, NumberReport] = {number: NumberReport() for number in tiers}
        self.verdicts: list[Verdict] = []
        self.counts: Counter[Rule] = Counter()
        self.repeats = 0
        """Sends accepted more than once that were allowed to be."""

    def see(self, entry: Entry) -> None:
        """Judge one entry."""
        match entry:
            case Called(kind="message") if entry.number in self._tiers:
                self._called(entry)
            case Called(kind="mark") if entry.number in self._tiers:
                self._marked(entry)
            case Ended() if entry.number in self._tiers:
                self._ended(entry)
            case Wrote() if entry.number in self._tiers:
                self._wrote(entry)
            case Webhook():
                self._unacknowledged[entry.seq] = entry
            case Posted() if entry.answer == 200:
                for seq in entry.items:
                    self._unacknowledged.pop(seq, None)
            case _:
                pass

    def accepted(self, send: str) -> int:
        """Return how often a send was accepted."""
        return self._accepted.get(send, 0)

    def unanswered(self) -> list[Wrote]:
        """Return the messages that expect an answer and have none yet, oldest first."""
        found = [wrote for chat in self._unanswered.values() for wrote in chat.values()]
        return sorted(found, key=lambda wrote: wrote.seq)

    def unacknowledged(self) -> list[Webhook]:
        """Return the webhook items nobody has answered with 200 yet."""
        return list(self._unacknowledged.values())

    def check(self) -> None:
        """Raise AssertionError with every verdict, if there is one."""
        if self.counts:
            lines = [f"{v.rule}: {v.subject}: {v.detail} (at {v.at})" for v in self.verdicts[:20]]
            raise AssertionError(f"the referee counts {dict(self.counts)}:\n" + "\n".join(lines))

    def _called(self, called: Called) -> None:
        report = self.numbers[called.number]
        report.calls += 1
        at = microseconds(called.mono)
        honest = not called.fault or called.accepted
        if called.accepted:
            report.accepted += 1
            self._sends[called.number].append(at)
            self._tier(called, report, at, extra=0)
            self._pair(called)
            self._once(called)
            self._in_order(called)
            self._answered(called)
            if not called.context_known:
                self._say("unknown message quoted", called.context_id, called.at, "no message of this platform")
        elif called.code and honest:
            report.refused[called.code] += 1
            if called.code == 130429:
                self._tier(called, report, at, extra=1)
            elif called.code == 131056:
                self._pair_refused(called)

    def _marked(self, called: Called) -> None:
        if called.accepted:
            self.numbers[called.number].marks += 1
        elif called.code == 131009 and not called.fault:
            self._say("unknown message marked", called.message_id, called.at, "no message to this number")

    def _ended(self, ended: Ended) -> None:
        if ended.why:
            self._say("dialogue broken", f"{ended.number} → {ended.person}", ended.at, f"{ended.name}: {ended.why}")
        else:
            self.numbers[ended.number].dialogues += 1

    def _tier(self, called: Called, report: NumberReport, at: int, extra: int) -> None:
        """Judge the second that ends now; `extra` is 1 for a call that was refused and does not count itself."""
        sends, inbound = self._sends[called.number], self._inbound[called.number]
        for instants in (sends, inbound):
            while instants and instants[0] <= at - 1_000_000:
                instants.popleft()
        tier = self._tiers[called.number]
        report.peak_mps = max(report.peak_mps, len(sends) + len(inbound))
        known = sum(1 for instant in inbound if instant <= at - self._inbound_known_after_us)
        if len(sends) + extra + known > tier:
            self._say(
                "above the tier",
                called.number,
                called.at,
                f"{len(sends) + extra} sends and {known} known inbound in a second, {tier} fit",
            )
        elif extra:
            report.excused += 1

    def _pair(self, called: Called) -> None:
        pair = self._pairs.setdefault((called.number, called.person), PairDebt())
        if not self._pair_allows(pair, called.mono):
            self._say("pair limit", f"{called.number} → {called.person}", called.at, f"owes until {pair.free_at:.3f}")
        pair.charge(called.mono)

    def _pair_refused(self, called: Called) -> None:
        pair = self._pairs.get((called.number, called.person))
        if pair is None or not self._pair_allows(pair, called.mono):
            self._say("pair limit", f"{called.number} → {called.person}", called.at, "was refused with 131056")

    def _pair_allows(self, pair: PairDebt, at: float) -> bool:
        return (
            pair.allows(at)
            or pair.allows(at + self._tolerance_s)
            or (self._tolerance_s > 0 and pair.allows(at - self._tolerance_s))
        )

    def _once(self, called: Called) -> None:
        if not called.send:
            return
        count = self._accepted[called.send] = self._accepted.get(called.send, 0) + 1
        if len(self._accepted) > SENDS_KEPT_MAX:
            self._accepted.popitem(last=False)
        if count > 1:
            if self._may_repeat(called.send):
                self.repeats += 1
            else:
                self._say("accepted twice", called.send, called.at, f"{count} times")

    def _in_order(self, called: Called) -> None:
        place = self._sequence_of(called)
        if place is None:
            return
        stream, number = place
        key = (called.number, called.person, stream)
        last = self._places.get(key, -1)
        if number < last or (number == last and self._accepted.get(called.send, 0) < 2):
            self._say("out of order", f"{called.number} → {called.person}", called.at, f"{number} after {last}")
        self._places[key] = max(last, number)

    def _answered(self, called: Called) -> None:
        chat = self._unanswered.get((called.number, called.person))
        if chat:
            for wamid in [wamid for wamid, wrote in chat.items() if self._answers(wrote, called)]:
                del chat[wamid]

    def _wrote(self, wrote: Wrote) -> None:
        self.numbers[wrote.number].inbound += 1
        self._inbound[wrote.number].append(microseconds(wrote.mono))
        if self._expects_answer(wrote):
            self._unanswered.setdefault((wrote.number, wrote.person), OrderedDict())[wrote.wamid] = wrote

    def _say(self, rule: Rule, subject: str, at: int, detail: str) -> None:
        self.counts[rule] += 1
        if len(self.verdicts) < VERDICTS_MAX:
            self.verdicts.append(Verdict(rule, subject, at, detail))


def text_of(called: Called) -> str:
    """Return the text of a send, "" where it is no text or cannot be read."""
    try:
        body = json.loads(called.request)
    except ValueError:
        return ""
    return str(body.get("text", {}).get("body", "")) if isinstance(body, dict) else ""
