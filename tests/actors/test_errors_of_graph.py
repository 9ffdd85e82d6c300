"""Each error code Meta documents, answered by the sandbox, met by the real sender stage: who stops, waits, goes on."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import pytest

from broker.core.outcome import BY_CODE, RANGES, rule_of
from broker.sandbox.errors import ERRORS
from broker.sandbox.faults import Fault
from schemas.records import Lane, Ready
from tests.actors.sending import GREETING, NEWS, SALE, Sending, numbers, play, settings_of, template_send

pytestmark = pytest.mark.timeout(60)

DOCUMENTED = (
    # Authorisation and integrity
    "0 3 10 102 104 190 200-299 131005 368 130497 131031 131037 131042 131044 131045 133010 134011 33 "
    # Throttling
    "4 17 32 341 613 80007 80008 130429 131048 131056 131064 131208 132069 133016 133008 133009 133015 "
    # Platform failures
    "1 2 131000 131016 131057 133004 135000 2494100 131059 "
    # Recipient and window
    "130403 130472 131021 131026 131030 131047 131049 131050 131060 131062 137000 "
    # Request and template
    "100 131008 131009 131051 131052 131053 131055 131063 132000 132001 132005 132007 132012 132015 132016 132018 "
    "132068 134100 134101 134102 2388019 2388039-2388299 "
    # Groups, calls, blocking, registration, sync
    "130501 131020 131041 131201 131202 131204 131207 131208 131209 131210 131211 131212 131213 131214 131215 138000 "
    "138001 138002 138003 138004 138005 138006 138007 138009 138012 138013 138014 138015 138017 138018 138019-138023 "
    "139000-139004 139100 139101 139102 139103 147001-147005 133000 133005 133006 136024 200005-200007 "
    "2593107 2593108 2593109 1752041"
)
"""Every code and row of codes that Meta's "Error codes" names."""


def first_and_last(word: str) -> tuple[int, int]:
    """Return a row of codes; a code of its own is one of one."""
    first, _, last = word.partition("-")
    return int(first), int(last or first)


class Behaviour(NamedTuple):
    """What everybody sees when one campaign send is answered with a code.

    `hit`: what came of it. `waits`: who of the others does not go out at once: "next" (of its customer), "same" (of
    its template), "other" (of the campaign), "confirmation" (the transactional lane), "reply", "twin" (another
    number of the account), "stranger" (a number of another account). `after_s`: when the send itself, and who waited,
    has gone out: the end of a stop is found by a probe. 0: there is nothing to come.
    """

    hit: str
    waits: str = ""
    after_s: float = 0.0


ALL_OF_NUMBER = "next same other confirmation reply"

REFUSED = Behaviour("refused")
DOUBTED = Behaviour("in_doubt", "next")
NUMBER = Behaviour("waits", ALL_OF_NUMBER, 75)
ACCOUNT = Behaviour("waits", f"{ALL_OF_NUMBER} twin", 75)
APP = Behaviour("waits", f"{ALL_OF_NUMBER} twin stranger", 75)

BEHAVIOURS: dict[Behaviour, str] = {
    REFUSED: "130497 131044 134011 131214 135000 131059 130403 130472 131021 131026 131030 131047 131049 131050 131060 "
    "131062 137000 100 131008 131009 131051 131052 131055 131063 132000 132001 132005 132007 132012 132018 "
    "132068 134100 134102 2388019 2388039 2388299 130501 131020 131041 131201 131202 131204 131207 131209 131210 "
    "131211 131212 131213 131215 138000 138001 138004 138006 138007 138009 138012 138013 138014 138015 138017 138018 "
    "138019 138020 138021 138022 138023 139000 139001 139002 139003 139004 139100 139101 147001 147002 147003 147004 "
    "147005 136024 200005 200006 200007 2593107 2593108 2593109 1752041",
    DOUBTED: "1 2 131000 131016 133004",
    NUMBER: "0 3 10 102 104 190 200 299 131005 131037 131045 133010 33 133016 133008 133009 133015 133000 133005 "
    "133006 2494100",
    Behaviour("waits", ALL_OF_NUMBER, 20): "131057",
    ACCOUNT: "368 131031 80007 80008",
    APP: "4 17 32 341 613",
    Behaviour("waits", "next", 5): "130429 139102 139103",
    Behaviour("waits", "next", 30): "131053 131056",
    Behaviour("waits", "next", 20): "138002 138005",
    Behaviour("waits", "next", 75): "131208 138003",
    Behaviour("waits", "next same", 700): "132015 134101",
    Behaviour("waits", "next same", 3_700): "132069",
    Behaviour("refused", "same"): "132016",
    Behaviour("waits", "next same other", 1_900): "131048 131064",
    Behaviour("waits", "next same other confirmation", 75): "131042",
}
"""What comes of each code. A code that stops or throttles is no attempt: the send goes out later, once."""

EXPECTED = {int(code): behaviour for behaviour, codes in BEHAVIOURS.items() for code in codes.split()}

OF_APP = [int(code) for code in BEHAVIOURS[APP].split()]
"""These stop every number of a process, so each has a process of its own."""

DISABLED = 132016
"""A template that is disabled: others of its sends are refused in Meta's words, without a call."""


def test_the_table_knows_every_code_meta_documents() -> None:
    """A code that stands in no table is refused blindly; one that stands there and not in Meta's list is a typo."""
    rows = [first_and_last(word) for word in DOCUMENTED.split()]
    for first, last in rows:
        for code in dict.fromkeys((first, last)):
            assert rule_of(code) is not None, code
            assert code in ERRORS or code == 201, f"the sandbox cannot answer {code}"
            assert code in EXPECTED, f"nobody says what comes of {code}"
    for code in BY_CODE:
        assert any(first <= code <= last for first, last in rows), f"{code} is documented nowhere"
    for first, last, _ in RANGES:
        assert any(first <= code <= last for code in EXPECTED), f"no code of {first}-{last} is tried"


def test_each_rule_says_who_acts_and_waits_within_bounds() -> None:
    """Operators read `says` and `kind`; a wait without an end would be a send that is never tried again."""
    for code, rule in BY_CODE.items():
        assert rule.says, code
        assert (rule.wait_s > 0) == (rule.outcome in ("throttled", "stopped") or code == 132016), code
        assert rule.wait_s <= rule.wait_s_max <= 6 * 3_600, code
        assert (rule.kind == "unknown") == (rule.outcome == "in_doubt"), code
        assert rule.outcome != "stopped" or rule.kind in ("auth", "account", "throttle"), code


class Trial:
    """One code, met by a number nobody else uses."""

    def __init__(self, sending: Sending, code: int, index: int) -> None:
        names = [number.phone_number_id for number in sending.settings.numbers]
        self._sending = sending
        self._code = code
        self._number, self._twin = names[2 * index], names[2 * index + 1]
        self._stranger = names[-1] if code in OF_APP else ""
        self._people = f"49151{index:04d}"

    async def run(self) -> list[str]:
        """Return what is not as it should be."""
        sending, code, expected = self._sending, self._code, EXPECTED[self._code]
        sending.faults.set("answer", Fault(code=code, share=0, number=self._number, times=1))
        await sending.put(self._send("hit", 1, "campaign", SALE))
        await asyncio.sleep(0.35)
        others = [
            self._send("next", 1, "campaign", NEWS),
            self._send("same", 2, "campaign", SALE),
            self._send("other", 3, "campaign", NEWS),
            self._send("confirmation", 4, "transactional", GREETING),
            self._send("reply", 5, "reply", GREETING),
            self._send("twin", 6, "reply", GREETING, self._twin),
        ]
        if self._stranger:
            others.append(self._send("stranger", 7, "reply", GREETING, self._stranger))
        await asyncio.gather(*(sending.put(send) for send in others))
        await asyncio.sleep(0.4)
        found = {name: sending.came_of(f"{code}/{name}") for name in self._names(others)}
        wanted = dict.fromkeys(found, "accepted") | dict.fromkeys(expected.waits.split(), "waits")
        wanted["hit"] = expected.hit
        if code == DISABLED:
            wanted["same"] = "refused"
        wrong = [f"{code}: {name} {found[name]}, not {wanted[name]}" for name in found if found[name] != wanted[name]]
        if expected.after_s:
            await asyncio.sleep(expected.after_s)
            wrong += [
                f"{code}: {name} {sending.came_of(f'{code}/{name}')} after {expected.after_s} s"
                for name in found
                if sending.came_of(f"{code}/{name}") != "accepted"
            ]
            answers = [call.code for call in sending.calls(f"{code}/hit")]
            wrong += [f"{code}: answered {answers}"] * (answers != [code, 0])
        else:
            outcome = sending.outcomes()[f"{code}/hit"][-1]
            wrong += [f"{code}: reported as {outcome.code} {outcome.title!r}"] * (
                outcome.code != code or ERRORS[code].title not in outcome.title
            )
        return wrong

    def _send(self, name: str, person: int, lane: Lane, template: str, number: str = "") -> Ready:
        return template_send(
            f"{self._code}/{name}", number or self._number, f"{self._people}{person:02d}", lane, template
        )

    def _names(self, others: list[Ready]) -> list[str]:
        return ["hit", *(send.send_id.partition("/")[2] for send in others)]


def test_every_code_of_meta_does_what_the_table_says_and_no_more() -> None:
    """Who must not wait for a code does not, who must does, and every stop has an end that is found by a probe."""
    codes = [code for code in EXPECTED if code not in OF_APP]
    wrong: list[str] = []

    async def scene(sending: Sending) -> None:
        found = await asyncio.gather(*(Trial(sending, code, index).run() for index, code in enumerate(codes)))
        wrong.extend(line for lines in found for line in lines)

    play(scene, settings_of(numbers(2 * len(codes))))
    assert wrong == []


@pytest.mark.parametrize("code", OF_APP)
def test_a_limit_of_the_app_stops_every_number_of_the_process(code: int) -> None:
    """The app's budget is one for all accounts: another number's call would only prolong it."""
    wrong: list[str] = []

    async def scene(sending: Sending) -> None:
        wrong.extend(await Trial(sending, code, 0).run())

    play(scene, settings_of(numbers(4, slots=2), slots=2))
    assert wrong == []


def test_a_disabled_template_is_refused_without_a_call_until_a_probe_finds_it_open() -> None:
    """A call for each of a million sends would teach nothing; but a template can be reinstated."""

    async def scene(sending: Sending) -> None:
        number, twin = (found.phone_number_id for found in sending.settings.numbers)
        sending.faults.set("answer", Fault(code=DISABLED, number=number, times=1))
        await sending.put(template_send("first", number, "4915100001", "campaign", SALE))
        await asyncio.sleep(1.0)
        await sending.put(
            *(template_send(f"in vain {n}", number, f"49152{n:05d}", "campaign", SALE) for n in range(600)),
            template_send("twin", twin, "4915100002", "campaign", SALE),
            template_send("german", number, "4915100003", "campaign", SALE, language="de"),
        )
        await asyncio.sleep(20.0)
        assert {outcome[-1].code for name, outcome in sending.outcomes().items() if "in vain" in name} == {DISABLED}
        assert [sending.came_of(f"in vain {n}") for n in range(600)] == ["refused"] * 600
        assert not any(sending.calls(f"in vain {n}") for n in range(600))
        assert sending.came_of("twin") == "refused", "templates belong to the account"
        assert sending.came_of("german") == "accepted", "each language is judged for itself"
        await asyncio.sleep(3_600.0)
        await sending.put(template_send("probe", number, "4915300000", "campaign", SALE))
        await asyncio.sleep(1.0)
        assert sending.came_of("probe") == "accepted"

    play(scene, settings_of(numbers(2, slots=1), slots=1))


def test_a_reply_that_is_told_of_spam_is_tried_once_a_minute_and_not_at_once_again() -> None:
    """131048 stops what the business begins. A reply may be tested, but it must not run into the same wall all day."""

    async def scene(sending: Sending) -> None:
        number = sending.settings.numbers[0].phone_number_id
        sending.faults.set("answer", Fault(code=131048, number=number))
        await sending.put(template_send("reply", number, "4915100001", "reply"))
        await asyncio.sleep(50.0)
        assert len(sending.calls("reply")) == 1
        await asyncio.sleep(200.0)
        assert 2 <= len(sending.calls("reply")) <= 3
        sending.faults.clear()
        await asyncio.sleep(300.0)
        assert sending.came_of("reply") == "accepted"

    play(scene, settings_of(numbers(2, slots=1), slots=1))
