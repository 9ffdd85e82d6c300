"""Each fault does what it says, and is counted when it strikes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from random import Random

import pytest

from broker.sandbox.errors import ERRORS
from broker.sandbox.faults import FAULTS, Fault, FaultName, Faults
from broker.sandbox.journal import Called
from broker.sandbox.platform import ConnectionCut
from broker.sandbox.postbox import POST_BYTES_MAX, Postage
from tests.sandbox.rig import ADA, CLEO, LEO, NUMBER, Rig, body_of, code_of, play, text_to


def test_a_rate_is_kept_and_a_seed_repeats_it() -> None:
    """A fault that struck more or less than asked would make a test prove something else."""

    def strikes(seed: int) -> list[bool]:
        faults = Faults(Random(seed))
        faults.set("delay", Fault(rate=0.2))
        return [faults.strikes("delay", NUMBER) is not None for _ in range(2_000)]

    assert 320 <= sum(strikes(3)) <= 480
    assert strikes(3) == strikes(3)
    assert strikes(3) != strikes(4)


def test_a_fault_may_be_limited_to_one_number() -> None:
    """One number's trouble is not another's."""
    faults = Faults(Random(1))
    faults.set("delay", Fault(number=NUMBER))
    assert faults.strikes("delay", "another") is None
    assert faults.strikes("delay", NUMBER) is not None
    faults.set("delay", Fault(rate=0))
    assert faults.strikes("delay", NUMBER) is None
    assert faults.struck["delay"] == 1


def test_a_number_may_have_a_fault_of_its_own_and_a_fault_its_count() -> None:
    """A test of many numbers sets each its own error; one that is over must not strike again."""
    faults = Faults(Random(1))
    faults.set("answer", Fault(code=131048))
    faults.set("answer", Fault(code=100, subcode=33, number=NUMBER, times=2))
    assert [faults.answers(NUMBER) for _ in range(3)] == [(100, 33, False), (100, 33, False), (131048, 0, False)]
    assert faults.answers("another") == (131048, 0, False)
    assert list(faults.on()) == ["answer"]
    faults.set("answer", Fault(code=368, number=NUMBER))
    assert faults.on().keys() == {"answer", f"answer {NUMBER}"}
    faults.set("answer", Fault(rate=0, number=NUMBER))
    assert faults.answers(NUMBER) == (131048, 0, False)
    faults.set("answer", Fault(rate=0))
    assert faults.answers(NUMBER) is None
    assert faults.struck["answer"] == 5


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_every_error_of_metas_table_can_be_asked_for(code: int) -> None:
    """In Meta's shape: an integer code, a type, a message that names the code where Graph's does, a trace."""

    async def scene(rig: Rig) -> None:
        rig.faults.set("answer", Fault(code=code, share=0))
        answer = await rig.call(text_to(ADA.wa_id))
        error = body_of(answer)["error"]
        assert (answer.status, error["code"]) == (ERRORS[code].status, code)
        assert error["message"].startswith(f"(#{code}) " if ERRORS[code].prefixed else ERRORS[code].title)
        assert error["type"] == ERRORS[code].type
        assert len(error["fbtrace_id"]) == 23
        assert [(called.code, called.accepted) for called in rig.entries(Called)] == [(code, False)]

    play(scene)


def test_an_error_in_no_table_cannot_be_asked_for() -> None:
    """A typo must not become a code nobody has ever seen."""
    with pytest.raises(ValueError, match="131999"):
        Faults(Random(1)).set("answer", Fault(code=131999))


@pytest.mark.parametrize(
    "fault", [Fault(times=-1), Fault(rate=1.5), Fault(rate=-1), Fault(ms=-1), Fault(items=0), Fault(share=2)]
)
def test_a_fault_that_cannot_be_is_refused(fault: Fault) -> None:
    """A typo in a fault is an error, not a quiet sandbox."""
    with pytest.raises(ValueError, match=r"rate|times"):
        Faults(Random(1)).set("delay", fault)


@pytest.mark.parametrize(
    ("name", "accepted"),
    [("lost_request", False), ("lost_answer", True), ("silence", True)],
)
def test_a_cut_connection_says_nothing_about_the_message(name: FaultName, accepted: bool) -> None:
    """The caller cannot tell the two apart; only a status can."""

    async def scene(rig: Rig) -> None:
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        rig.faults.set(name, Fault())
        with pytest.raises(ConnectionCut):
            await rig.send()
        rig.faults.clear()
        [called] = rig.entries(Called)
        assert (called.accepted, called.answered, called.fault) == (accepted, False, name)
        await asyncio.sleep(10)
        assert bool(rig.receiver.statuses()) == accepted

    play(scene)


@pytest.mark.parametrize(("name", "accepted"), [("error_before", False), ("error_after", True)])
def test_a_gateway_error_comes_with_a_page_instead_of_json(name: FaultName, accepted: bool) -> None:
    """5xx without a Graph error is an unknown outcome; here it is known which one it was."""

    async def scene(rig: Rig) -> None:
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        rig.faults.set(name, Fault())
        answer = await rig.call(text_to(ADA.wa_id))
        assert answer.status == 502
        assert answer.body.startswith(b"<html>")
        assert [called.accepted for called in rig.entries(Called)] == [accepted]

    play(scene)


@pytest.mark.parametrize("code", [1, 2, 4, 80007, 130429, 131000, 131016, 131056, 131057])
def test_an_error_answer_can_be_asked_for(code: int) -> None:
    """Each code of the throttling and failure tables; the honest ones never accept the message in secret."""

    async def scene(rig: Rig) -> None:
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        name: FaultName = f"answer_{code}"  # type: ignore[assignment]
        rig.faults.set(name, Fault(share=0.5))
        for _ in range(20):
            assert code_of(await rig.call(text_to(ADA.wa_id))) == code
        accepted = sum(called.accepted for called in rig.entries(Called))
        assert (0 < accepted < 20) if code in (1, 2, 131000, 131016) else accepted == 0
        assert rig.faults.struck[name] == 20

    play(scene)


def test_a_frozen_platform_answers_late_or_never_and_posts_nothing() -> None:
    """Until it thaws; half of the calls it froze on were taken in."""

    async def scene(rig: Rig) -> None:
        for person in (ADA, LEO):
            rig.platform.write(NUMBER, person.id, "text", {"body": "hi"})
        await asyncio.sleep(1)
        before = len(rig.receiver.posts)
        rig.platform.freeze(20)
        began = rig.clock.monotonic()
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "anybody?"})
        calls = [asyncio.create_task(rig.call(text_to(ADA.wa_id))) for _ in range(20)]
        await asyncio.sleep(19)
        assert not any(call.done() for call in calls)
        assert len(rig.receiver.posts) == before
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert rig.clock.monotonic() - began == pytest.approx(20)
        cut = sum(isinstance(result, ConnectionCut) for result in results)
        assert cut == 20 - sum(called.accepted for called in rig.entries(Called))
        assert 0 < cut < 20
        await asyncio.sleep(1)
        assert len(rig.receiver.posts) > before

    play(scene)


def test_clearing_the_faults_thaws_at_once() -> None:
    """Somebody at the page does not wait for a freeze they switched off."""

    async def scene(rig: Rig) -> None:
        rig.platform.freeze(600)
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        await asyncio.sleep(1)
        assert rig.receiver.posts == []
        rig.faults.clear()
        await asyncio.sleep(1)
        assert len(rig.receiver.posts) == 1

    play(scene)


def test_a_duplicate_is_the_same_bytes_again() -> None:
    """Though it was answered with 200."""

    async def scene(rig: Rig) -> None:
        rig.faults.set("duplicate", Fault())
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        await asyncio.sleep(10)
        rig.faults.clear()
        await asyncio.sleep(10)
        assert len(rig.receiver.posts) == 1 + rig.faults.struck["duplicate"]
        assert len(rig.receiver.posts) > 2
        assert len({body for _, body in rig.receiver.posts}) == 1

    play(scene)


def test_statuses_overtake_each_other() -> None:
    """delivered before sent, read before delivered: the broker's lattice has to stand it."""

    async def scene(rig: Rig) -> None:
        rig.faults.set("reorder_statuses", Fault(ms=20_000))
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        for _ in range(30):
            await rig.send()
            await asyncio.sleep(7)
        await asyncio.sleep(60)
        orders = Counter(
            tuple(status["status"] for status in rig.receiver.statuses(called.wamid)) for called in rig.entries(Called)
        )
        assert ("sent", "delivered", "read") in orders
        assert len(orders) > 2

    play(scene)


def test_customers_overtake_each_other_and_each_stays_in_order() -> None:
    """What Meta may do between customers, without the disorder it also may make within one."""

    async def scene(rig: Rig) -> None:
        rig.faults.set("reorder_customers", Fault(ms=5_000))
        for i in range(20):
            for person in (ADA, CLEO):
                rig.platform.write(NUMBER, person.id, "text", {"body": str(i)})
            await asyncio.sleep(0.5)
        await asyncio.sleep(60)
        seen = [(message.get("from", ""), int(message["text"]["body"])) for message in rig.receiver.messages()]
        for phone in (ADA.wa_id, ""):
            assert [i for sender, i in seen if sender == phone] == list(range(20))
        assert seen != sorted(seen, key=lambda one: one[1])

    play(scene, postage=Postage(connections=1))


def test_a_customers_messages_overtake_each_other_when_asked_for() -> None:
    """Meta promises no order at all."""

    async def scene(rig: Rig) -> None:
        rig.faults.set("reorder_messages", Fault(ms=5_000))
        for i in range(20):
            rig.platform.write(NUMBER, ADA.id, "text", {"body": str(i)})
            await asyncio.sleep(0.5)
        await asyncio.sleep(60)
        seen = [int(message["text"]["body"]) for message in rig.receiver.messages()]
        assert sorted(seen) == list(range(20))
        assert seen != list(range(20))

    play(scene)


def test_a_delayed_webhook_keeps_its_timestamp() -> None:
    """The window opens with Meta's time, not with ours."""

    async def scene(rig: Rig) -> None:
        rig.faults.set("delay", Fault(ms=3_600_000))
        wrote_at = rig.clock.now()
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        await asyncio.sleep(3_599)
        assert rig.receiver.posts == []
        await asyncio.sleep(2)
        [message] = rig.receiver.messages()
        assert message["timestamp"] == str(wrote_at // 1_000)

    play(scene)


def test_a_batch_holds_a_thousand_items_and_at_most_three_megabytes() -> None:
    """Nothing of it is lost, whether items share a change or not."""

    async def scene(rig: Rig) -> None:
        rig.faults.set("batch", Fault(items=1_000, ms=500))
        for i in range(1_500):
            person = (ADA, LEO, CLEO)[i % 3]
            rig.platform.write(NUMBER, person.id, "text", {"body": f"{i} " + "ü" * 1_000})
        await asyncio.sleep(5)
        assert all(len(body) <= POST_BYTES_MAX for _, body in rig.receiver.posts)
        assert len(rig.receiver.posts) < 10
        seen = [int(message["text"]["body"].split()[0]) for message in rig.receiver.messages()]
        assert sorted(seen) == list(range(1_500))

    play(scene)


def test_batches_sometimes_share_a_change_and_name_every_contact() -> None:
    """Both shapes are Meta's; a broker that takes the first message of a change would lose the others."""

    async def scene(rig: Rig) -> None:
        rig.faults.set("batch", Fault(items=3, ms=500))
        shapes = set()
        for _ in range(20):
            before = len(rig.receiver.posts)
            for person in (ADA, LEO, CLEO):
                rig.platform.write(NUMBER, person.id, "text", {"body": "hi"})
            await asyncio.sleep(1)
            [(_, body)] = rig.receiver.posts[before:]
            changes = json.loads(body)["entry"][0]["changes"]
            shapes.add(len(changes))
            if len(changes) == 1:
                assert len(changes[0]["value"]["messages"]) == len(changes[0]["value"]["contacts"]) == 3
        assert shapes == {1, 3}

    play(scene)


def test_slow_calls_are_slow_and_true() -> None:
    """The caller waits and hears the truth in the end."""

    async def scene(rig: Rig) -> None:
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        rig.faults.set("slow", Fault(ms=8_000))
        began = rig.clock.monotonic()
        assert code_of(await rig.call(text_to(ADA.wa_id))) == 0
        assert rig.clock.monotonic() - began == pytest.approx(8)

    play(scene)


def test_every_fault_has_a_meaning_and_a_counter() -> None:
    """A fault nobody can read about or count proves nothing."""
    faults = Faults(Random(1))
    assert all(FAULTS.values())
    assert set(FAULTS) <= set(faults.struck)
