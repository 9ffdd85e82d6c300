"""The referee finds what it is there to find, and accuses nobody of what they could not know."""

from __future__ import annotations

import asyncio

import pytest

from broker.sandbox.faults import Fault
from broker.sandbox.people import Person
from broker.sandbox.platform import Rules
from broker.sandbox.referee import Referee
from tests.sandbox.rig import ADA, LEO, NUMBER, Rig, play, text_to


def referee_of(rig: Rig, tier: int = 80, **knowledge: object) -> Referee:
    """Return a referee that watches the rig."""
    referee = Referee({NUMBER: tier}, **knowledge)  # type: ignore[arg-type]
    rig.platform.journal.listen(referee.see)
    return referee


def test_a_send_that_was_accepted_twice_is_found() -> None:
    """Promise 3: no send goes out twice, unless its class says so; then it is counted."""

    async def scene(rig: Rig) -> None:
        strict, lenient = referee_of(rig), referee_of(rig, may_repeat=lambda send: send == "one-time-code")
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        for _ in range(2):
            await rig.send(biz_opaque_callback_data="one-time-code")
        assert strict.counts["accepted twice"] == 1
        assert lenient.counts["accepted twice"] == 0
        assert lenient.repeats == 1
        with pytest.raises(AssertionError, match="one-time-code"):
            strict.check()
        lenient.check()

    play(scene)


def test_a_send_whose_answer_was_lost_counts_as_accepted() -> None:
    """Otherwise blind repetition would look innocent."""

    async def scene(rig: Rig) -> None:
        referee = referee_of(rig)
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        rig.faults.set("lost_answer", Fault())
        with pytest.raises(ConnectionError):
            await rig.send(biz_opaque_callback_data="dp1|wamid.D1|bot|main:15550001234")
        rig.faults.clear()
        await rig.send(biz_opaque_callback_data="dp1-|wamid.D1|bot|main:15550001234")
        assert referee.accepted("wamid.D1") == 2
        assert referee.counts["accepted twice"] == 1

    play(scene)


def test_a_second_above_the_tier_is_found_even_where_the_platform_lets_it_pass() -> None:
    """The referee keeps the limit itself."""

    async def scene(rig: Rig) -> None:
        referee = referee_of(rig, tier=20)
        for i in range(21):
            person = rig.platform.introduce(Person(wa_id=f"1555000{i:04d}"))
            rig.platform.windows.wrote(NUMBER, person.id, rig.clock.now())
            await rig.call(text_to(person.wa_id))
            if i == 19:
                referee.check()
        assert referee.counts["above the tier"] == 1
        assert referee.numbers[NUMBER].peak_mps == 21

    play(scene, rules=Rules(enforce_throughput=False))


def test_a_refusal_that_only_the_newest_inbound_explains_is_excused() -> None:
    """No sender can know of a message that came 100 ms ago; of one that came 200 ms ago it has to."""

    async def scene(rig: Rig) -> None:
        for pause_s, excused in ((0.1, 1), (0.2, 0)):
            referee = referee_of(rig, tier=20)
            for i in range(20):
                person = rig.platform.introduce(Person(wa_id=f"1555000{i:04d}"))
                rig.platform.write(NUMBER, person.id, "text", {"body": "hi"})
            await asyncio.sleep(pause_s)
            await rig.call(text_to("15550000001"))
            assert referee.numbers[NUMBER].refused[130429] == 1
            assert referee.numbers[NUMBER].excused == excused
            assert referee.counts["above the tier"] == 1 - excused
            await asyncio.sleep(60)

    play(scene, tier=20)


def test_an_invented_refusal_is_not_held_against_the_sender() -> None:
    """130429 and 131056 by fault say nothing about its pacing."""

    async def scene(rig: Rig) -> None:
        referee = referee_of(rig)
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        for name in ("answer_130429", "answer_131056"):
            rig.faults.set(name, Fault())
            await rig.send()
            rig.faults.clear()
        referee.check()
        assert referee.numbers[NUMBER].refused.total() == 0

    play(scene)


def test_a_pair_in_debt_is_found_in_either_reading_of_the_platform() -> None:
    """Whether the platform refuses it or lets it pass."""

    async def scene(rig: Rig) -> None:
        referee = referee_of(rig)
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        for _ in range(46):
            await rig.send()
        assert referee.counts["pair limit"] == 1

    play(scene)
    play(scene, rules=Rules(enforce_pair=False))


def test_the_way_may_stretch_a_burst_within_the_tolerance() -> None:
    """A sender counts from when it sends, the platform from when it arrives."""

    async def scene(rig: Rig) -> None:
        strict, lenient = referee_of(rig), referee_of(rig, tolerance_s=0.05)
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        await rig.send()
        await asyncio.sleep(5.97)
        await rig.send()
        await asyncio.sleep(0.04)
        await rig.send()
        assert strict.counts["pair limit"] == 1
        assert lenient.counts["pair limit"] == 0

    play(scene, rules=Rules(enforce_pair=False))


def test_texts_out_of_order_are_found_for_each_customer() -> None:
    """Order is promised for one customer, not between them; a repetition of the same send is no disorder."""

    async def scene(rig: Rig) -> None:
        referee = referee_of(rig, may_repeat=lambda send: True)
        for person in (ADA, LEO):
            rig.platform.write(NUMBER, person.id, "text", {"body": "hi"})
        await rig.send("[a:2]", ADA.wa_id, biz_opaque_callback_data="s2")
        await rig.send("[a:1]", LEO.wa_id, biz_opaque_callback_data="s1")
        await rig.send("[a:2]", ADA.wa_id, biz_opaque_callback_data="s2")
        referee.check()
        await rig.send("[a:1]", ADA.wa_id, biz_opaque_callback_data="s3")
        assert referee.counts["out of order"] == 1

    play(scene)


def test_messages_without_an_answer_are_listed() -> None:
    """Nothing accepted is lost: by the end every one of them has its answer."""

    async def scene(rig: Rig) -> None:
        referee = referee_of(rig, expects_answer=lambda wrote: True)
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "first [a:1]"})
        second = rig.platform.write(NUMBER, ADA.id, "text", {"body": "second"})
        assert len(referee.unanswered()) == 2
        await rig.send("echo: first [a:1]")
        assert [wrote.wamid for wrote in referee.unanswered()] == [second]
        await rig.send("this one", context={"message_id": second})
        assert referee.unanswered() == []

    play(scene)


def test_a_quoted_id_that_is_not_metas_is_found() -> None:
    """The broker's own ids have to be translated before they leave it."""

    async def scene(rig: Rig) -> None:
        referee = referee_of(rig)
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        await rig.send(context={"message_id": "wamid.D0123456789"})
        assert referee.counts["unknown message quoted"] == 1

    play(scene)


def test_webhooks_nobody_answered_are_listed() -> None:
    """What the receiver refused has to be taken in the end."""

    async def scene(rig: Rig) -> None:
        referee = referee_of(rig)
        rig.receiver.answers = [503]
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        await asyncio.sleep(0.1)
        assert len(referee.unacknowledged()) == 1
        await asyncio.sleep(10)
        assert referee.unacknowledged() == []

    play(scene)
