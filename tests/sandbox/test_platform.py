"""The platform as a caller meets it: what is accepted, what is refused and how, and what comes back by webhook."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import json
from pathlib import Path

import pytest

from broker.sandbox.faults import Fault
from broker.sandbox.journal import Called, Journal, Posted, Ticked
from broker.sandbox.people import Person
from broker.sandbox.platform import ConnectionCut, Rules
from broker.sandbox.postbox import Postage
from broker.sandbox.shapes import sign
from tests.sandbox.rig import (
    ADA,
    CLEO,
    LEO,
    NUMBER,
    OTHER_NUMBER,
    SECRET,
    Rig,
    body_of,
    code_of,
    play,
    text_to,
)

SAMPLES = Path(__file__).parent.parent / "wire"


def sample(name: str) -> object:
    """Return one of Meta's answers as documented."""
    return json.loads((SAMPLES / "responses" / f"{name}.json").read_text())


def keys_of(value: object) -> object:
    """Return the shape of a JSON value: its keys, not its contents."""
    if isinstance(value, dict):
        return {key: keys_of(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [keys_of(value[0])] if value else []
    return type(value).__name__


def test_a_text_to_a_phone_is_answered_in_metas_shape() -> None:
    """Bots read contacts and messages[0].id; a difference in shape would only show in production."""

    async def scene(rig: Rig) -> None:
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        answer = await rig.call(text_to("+1 555-000-1234"))
        assert answer.status == 200
        assert keys_of(body_of(answer)) == keys_of(sample("send_ok"))
        assert body_of(answer)["contacts"] == [{"input": "+1 555-000-1234", "wa_id": ADA.wa_id}]
        assert body_of(answer)["messages"][0]["id"].startswith("wamid.HBg")

    play(scene)


def test_the_answer_names_the_ids_that_were_asked_for() -> None:
    """wa_id only for a phone, user_id only when the request held a BSUID, and the phone wins."""

    async def scene(rig: Rig) -> None:
        for person in (ADA, CLEO):
            rig.platform.write(NUMBER, person.id, "text", {"body": "hi"})
        both = await rig.call(text_to(ADA.wa_id, recipient=ADA.bsuid))
        assert keys_of(body_of(both)) == keys_of(sample("send_ok_with_user_id"))
        body = text_to("", recipient=CLEO.bsuid)
        del body["to"]
        assert keys_of(body_of(await rig.call(body))) == keys_of(sample("send_ok_bsuid"))

    play(scene)


def test_brazils_extra_nine_is_gone_from_the_wa_id() -> None:
    """The number dialled and the WhatsApp id differ; whoever compares raw strings loses the customer."""

    async def scene(rig: Rig) -> None:
        template = {"name": "hello_world", "language": {"code": "en_US"}}
        body = {"messaging_product": "whatsapp", "to": "+5511900001234", "type": "template", "template": template}
        contact = body_of(await rig.call(body))["contacts"][0]
        assert contact == {"input": "+5511900001234", "wa_id": "551100001234"}

    play(scene)


@pytest.mark.parametrize(
    ("call", "code", "name"),
    [
        ({"token": "wrong"}, 190, ""),
        ({"token": ""}, 104, ""),
        ({"number": "106540352249999"}, 100, "err_100_33_object_not_found"),
        ({"number": OTHER_NUMBER}, 100, "err_100_33_object_not_found"),
        ({"version": "v99.0"}, 2500, ""),
        ({"version": "latest"}, 2500, ""),
    ],
)
def test_a_call_with_the_wrong_key_or_path_is_refused(call: dict[str, str], code: int, name: str) -> None:
    """A token is good for its own numbers alone, and says so the way Graph does."""

    async def scene(rig: Rig) -> None:
        answer = await rig.call(text_to(ADA.wa_id), **call)
        assert code_of(answer) == code
        assert answer.status in (400, 401)
        if name:
            assert keys_of(body_of(answer)) == keys_of(sample(name))

    play(scene)


def test_a_revoked_token_is_refused_as_an_expired_session() -> None:
    """The sender has to stop the number, not to retry."""

    async def scene(rig: Rig) -> None:
        rig.faults.revoke_token(NUMBER)
        answer = await rig.call(text_to(ADA.wa_id))
        assert answer.status == 401
        assert keys_of(body_of(answer)) == keys_of(sample("err_190_token_expired"))
        assert body_of(answer)["error"]["error_subcode"] == 463
        rig.faults.restore_token(NUMBER)
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        assert code_of(await rig.call(text_to(ADA.wa_id))) == 0
        assert rig.faults.struck["token_revoked"] == 1

    play(scene)


def test_eighty_messages_go_in_a_second_and_the_eighty_first_is_told_130429() -> None:
    """The tier, as the sender meets it; refused calls do not count, so that it is free again a second later."""

    async def scene(rig: Rig) -> None:
        people = [Person(wa_id=f"1555000{i:04d}") for i in range(82)]
        for person in people:
            rig.platform.introduce(person)
            rig.platform.windows.wrote(NUMBER, person.id, rig.clock.now())
        for person in people[:80]:
            assert code_of(await rig.call(text_to(person.wa_id))) == 0
        await asyncio.sleep(0.999)
        answer = await rig.call(text_to(people[80].wa_id))
        assert keys_of(body_of(answer)) == keys_of(sample("err_130429_throughput"))
        await asyncio.sleep(0.001)
        assert code_of(await rig.call(text_to(people[80].wa_id))) == 0

    play(scene)


def test_inbound_messages_take_their_share_of_the_tier() -> None:
    """79 customers write, so one reply goes and the second has to wait."""

    async def scene(rig: Rig) -> None:
        for i in range(79):
            person = rig.platform.introduce(Person(wa_id=f"1555000{i:04d}"))
            rig.platform.write(NUMBER, person.id, "text", {"body": "hi"})
        assert code_of(await rig.call(text_to("15550000000"))) == 0
        assert code_of(await rig.call(text_to("15550000001"))) == 130429

    play(scene)


def test_the_forty_sixth_message_of_a_burst_to_one_customer_is_told_131056() -> None:
    """The pair limit strikes whichever address was used: the phone and the BSUID are one customer."""

    async def scene(rig: Rig) -> None:
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        by_bsuid = text_to("", recipient=ADA.bsuid)
        del by_bsuid["to"]
        for i in range(45):
            assert code_of(await rig.call(text_to(ADA.wa_id) if i % 2 else by_bsuid)) == 0
        answer = await rig.call(text_to(ADA.wa_id))
        assert keys_of(body_of(answer)) == keys_of(sample("err_131056_pair"))
        rig.platform.write(NUMBER, LEO.id, "text", {"body": "hi"})
        assert code_of(await rig.call(text_to(LEO.wa_id))) == 0
        await asyncio.sleep(270)
        assert code_of(await rig.call(text_to(ADA.wa_id))) == 0

    play(scene)


def test_a_closed_window_takes_templates_alone() -> None:
    """131047 for anything else, from the first millisecond after 24 h."""

    async def scene(rig: Rig) -> None:
        template = {"name": "hello_world", "language": {"code": "en_US"}}
        hello = {"messaging_product": "whatsapp", "to": ADA.wa_id, "type": "template", "template": template}
        assert code_of(await rig.call(text_to(ADA.wa_id))) == 131047
        assert code_of(await rig.call(hello)) == 0
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        await asyncio.sleep(24 * 3_600 - 0.001)
        assert code_of(await rig.call(text_to(ADA.wa_id))) == 0
        await asyncio.sleep(0.001)
        assert code_of(await rig.call(text_to(ADA.wa_id))) == 131047

    play(scene)


def test_a_closed_window_may_be_told_by_webhook_instead() -> None:
    """Meta mostly accepts such a message and fails it later; a broker has to stand both."""

    async def scene(rig: Rig) -> None:
        answer = await rig.send(biz_opaque_callback_data="mine")
        await asyncio.sleep(5)
        [status] = rig.receiver.statuses(answer["messages"][0]["id"])
        assert status["status"] == "failed"
        assert status["errors"][0]["code"] == 131047
        assert status["biz_opaque_callback_data"] == "mine"

    play(scene, rules=Rules(closed_window="webhook"))


@pytest.mark.parametrize(
    ("template", "code"),
    [
        ({"name": "hello_world", "language": {"code": "en_US"}}, 0),
        ({"name": "hello_world", "language": {"code": "en_GB"}}, 132001),
        ({"name": "nothing_of_the_kind", "language": {"code": "en_US"}}, 132001),
        ({"name": "order_update", "language": {"code": "en_US"}}, 132000),
        ({"name": "flash_sale", "language": {"code": "en_US"}}, 132015),
    ],
)
def test_templates_are_known_by_name_and_language(template: dict[str, object], code: int) -> None:
    """A name in another language is another template."""

    async def scene(rig: Rig) -> None:
        body = {"messaging_product": "whatsapp", "to": ADA.wa_id, "type": "template", "template": template}
        answer = await rig.call(body)
        assert code_of(answer) == code
        if not code:
            assert keys_of(body_of(answer)) == keys_of(sample("send_ok_template_accepted"))

    play(scene)


def test_a_login_code_needs_a_phone() -> None:
    """131062: authentication templates do not go to a BSUID."""

    async def scene(rig: Rig) -> None:
        body = {
            "messaging_product": "whatsapp",
            "recipient": CLEO.bsuid,
            "type": "template",
            "template": {
                "name": "login_code",
                "language": {"code": "en_US"},
                "components": [{"type": "body", "parameters": [{"type": "text", "text": "123456"}]}],
            },
        }
        answer = await rig.call(body)
        assert keys_of(body_of(answer)) == keys_of(sample("err_131062_bsuid_not_supported"))

    play(scene)


def test_a_portfolio_reaches_no_more_people_than_its_limit_in_a_day() -> None:
    """Outside their windows only, and one person once."""

    async def scene(rig: Rig) -> None:
        def hello(to: str) -> dict[str, object]:
            template = {"name": "hello_world", "language": {"code": "en_US"}}
            return {"messaging_product": "whatsapp", "to": to, "type": "template", "template": template}

        assert code_of(await rig.call(hello("15550000001"))) == 0
        assert code_of(await rig.call(hello("15550000002"))) == 0
        assert code_of(await rig.call(hello("15550000003"))) == 131048
        assert code_of(await rig.call(hello("15550000001"))) == 0
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        assert code_of(await rig.call(hello(ADA.wa_id))) == 0
        await asyncio.sleep(24 * 3_600)
        assert code_of(await rig.call(hello("15550000003"))) == 0

    play(scene, rules=Rules(portfolio_people_max=2))


def test_a_number_does_not_write_to_itself() -> None:
    """131021."""

    async def scene(rig: Rig) -> None:
        assert code_of(await rig.call(text_to("15550001000"))) == 131021

    play(scene)


def test_statuses_follow_in_metas_shape_with_the_opaque_data() -> None:
    """Settlement of doubt rests on the opaque data coming back on every status."""

    async def scene(rig: Rig) -> None:
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        answer = await rig.send(biz_opaque_callback_data="dp1|wamid.D0|bot|main:15550001234|x")
        await asyncio.sleep(10)
        found = rig.receiver.statuses(answer["messages"][0]["id"])
        assert [status["status"] for status in found] == ["sent", "delivered", "read"]
        assert {status["biz_opaque_callback_data"] for status in found} == {"dp1|wamid.D0|bot|main:15550001234|x"}
        for name, status in zip(("st_sent", "st_delivered", "st_read"), found, strict=True):
            documented = json.loads((SAMPLES / "webhooks" / f"{name}.json").read_text())
            assert keys_of(status) == keys_of(documented["entry"][0]["changes"][0]["value"]["statuses"][0])
        assert all(
            change["value"]["contacts"][0]["user_id"] == ADA.bsuid
            for change in rig.receiver.changes()
            if "statuses" in change["value"]
        )
        assert [entry.send for entry in rig.entries(Ticked)] == ["wamid.D0"] * 3

    play(scene)


def test_a_failed_status_has_no_contacts_and_no_business_scoped_id() -> None:
    """Meta leaves both out when the send went to a phone; a broker that needs them would drop the failure."""

    async def scene(rig: Rig) -> None:
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        rig.platform.change(ADA.id, on_whatsapp=False)
        await rig.send()
        await asyncio.sleep(10)
        [change] = [change for change in rig.receiver.changes() if "statuses" in change["value"]]
        assert "contacts" not in change["value"]
        status = change["value"]["statuses"][0]
        assert status["errors"][0]["code"] == 131026
        assert "recipient_user_id" not in status
        assert status["recipient_id"] == ADA.wa_id

    play(scene)


def test_a_phone_that_is_off_gets_its_messages_when_it_is_on_again() -> None:
    """`sent` may stay for weeks."""

    async def scene(rig: Rig) -> None:
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        rig.platform.change(ADA.id, online=False)
        await rig.send()
        await asyncio.sleep(3_600)
        assert [status["status"] for status in rig.receiver.statuses()] == ["sent"]
        rig.platform.change(ADA.id, online=True)
        await asyncio.sleep(10)
        assert [status["status"] for status in rig.receiver.statuses()] == ["sent", "delivered", "read"]

    play(scene)


@pytest.mark.parametrize(
    ("person", "name"),
    [(ADA, "in_text"), (LEO, "in_text_legacy_no_bsuid"), (CLEO, "in_text_bsuid_only")],
)
def test_a_customers_message_has_metas_shape(person: Person, name: str) -> None:
    """Phone and BSUID, phone alone, BSUID alone: the three customers there are in 2026."""

    async def scene(rig: Rig) -> None:
        rig.platform.write(NUMBER, person.id, "text", {"body": "hi"})
        await asyncio.sleep(1)
        documented = json.loads((SAMPLES / "webhooks" / f"{name}.json").read_text())
        assert keys_of(json.loads(rig.receiver.posts[0][1])) == keys_of(documented)

    play(scene)


def test_webhooks_are_signed_over_escaped_compact_bytes() -> None:
    r"""The sample's own bytes and signature: `\uXXXX` in lower case, `\/`, no spaces."""
    raw = (SAMPLES / "webhooks" / "raw_compact_escaped.json").read_bytes()
    assert sign(raw, SECRET) == "sha256=91ac3cfe55cad98c5e6b495cc9cde8626ce55964505df9dfb5b8418956eb9cfa"

    async def scene(rig: Rig) -> None:
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "Grüße 😀 https://example.com/a?b=1&c=@x"})
        await asyncio.sleep(1)
        headers, body = rig.receiver.posts[0]
        assert rb'"body":"Gr\u00fc\u00dfe \ud83d\ude00 https:\/\/example.com\/a?b=1&c=@x"' in body
        expected = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        assert headers["X-Hub-Signature-256"] == f"sha256={expected}"

    play(scene)


def test_a_webhook_comes_again_until_it_is_answered_with_200() -> None:
    """Even 204 is not 200. The whole POST comes again, byte for byte, with growing pauses."""

    async def scene(rig: Rig) -> None:
        rig.receiver.answers = [503, 204, 500]
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        await asyncio.sleep(30)
        assert len(rig.receiver.posts) == 4
        assert len({body for _, body in rig.receiver.posts}) == 1
        posted = rig.entries(Posted)
        assert [entry.answer for entry in posted] == [503, 204, 500, 200]
        pauses = [later.mono - earlier.mono for earlier, later in itertools.pairwise(posted)]
        assert pauses == sorted(pauses)
        assert rig.platform.postbox.waiting == 0

    play(scene)


def test_reads_and_typing_need_a_message_of_this_number() -> None:
    """A broker that passes its own ids on to Meta would be found here."""

    async def scene(rig: Rig) -> None:
        wamid = rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        read = {"messaging_product": "whatsapp", "status": "read", "message_id": wamid}
        answer = await rig.call({**read, "typing_indicator": {"type": "text"}})
        assert body_of(answer) == {"success": True}
        assert code_of(await rig.call({**read, "message_id": "wamid.D0123"})) == 131009

    play(scene)


def test_reactions_need_a_message_of_this_chat() -> None:
    """131009 for an unknown message, another chat's, or a reaction."""

    async def scene(rig: Rig) -> None:
        wamid = rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        rig.platform.write(NUMBER, LEO.id, "text", {"body": "hi"})

        def reaction(to: str, message_id: str) -> dict[str, object]:
            content = {"message_id": message_id, "emoji": "👍"}
            return {"messaging_product": "whatsapp", "to": to, "type": "reaction", "reaction": content}

        answer = body_of(await rig.call(reaction(ADA.wa_id, wamid)))
        assert "messages" in answer
        assert code_of(await rig.call(reaction(LEO.wa_id, wamid))) == 131009
        assert code_of(await rig.call(reaction(ADA.wa_id, answer["messages"][0]["id"]))) == 131009

    play(scene)


def test_a_lost_answer_is_a_message_all_the_same() -> None:
    """The caller hears nothing, the customer gets the message: the reason for settling doubt by status."""

    async def scene(rig: Rig) -> None:
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        rig.faults.set("lost_answer", Fault())
        with pytest.raises(ConnectionCut):
            await rig.send(biz_opaque_callback_data="mine")
        await asyncio.sleep(10)
        assert {status["biz_opaque_callback_data"] for status in rig.receiver.statuses()} == {"mine"}
        [called] = rig.entries(Called)
        assert (called.accepted, called.answered, called.fault) == (True, False, "lost_answer")
        assert rig.faults.struck["lost_answer"] == 1

    play(scene)


def test_a_caller_that_gives_up_has_sent_its_message_all_the_same() -> None:
    """A time-out is no undo."""

    async def scene(rig: Rig) -> None:
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        rig.faults.set("silence", Fault(ms=60_000))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await rig.send()
        assert [called.accepted for called in rig.entries(Called)] == [True]

    play(scene)


def test_a_sandbox_started_again_remembers_everything(tmp_path: Path) -> None:
    """`make run` twice: histories, windows, pair debts and open webhooks are still there."""
    path = tmp_path / "journal.jsonl"

    async def before(rig: Rig) -> None:
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        for _ in range(45):
            await rig.send()
        rig.receiver.answers = [503] * 1_000
        await asyncio.sleep(0.05)

    async def after(rig: Rig) -> None:
        assert rig.restored > 45
        assert rig.platform.people.named.keys() == {ADA.id, LEO.id, CLEO.id}
        assert code_of(await rig.call(text_to(ADA.wa_id))) == 131056
        await asyncio.sleep(10)
        assert len({status["id"] for status in rig.receiver.statuses() if status["status"] == "read"}) == 45

    play(before, journal=Journal(path))
    play(after, journal=Journal(path))


def test_an_unanswered_webhook_outlives_the_process(tmp_path: Path) -> None:
    """Meta's queue is durable: what was refused before a restart is posted after it."""
    path = tmp_path / "journal.jsonl"

    async def before(rig: Rig) -> None:
        rig.receiver.answers = [503] * 100
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "are you there?"})
        await asyncio.sleep(5)

    async def after(rig: Rig) -> None:
        await asyncio.sleep(1)
        assert [message["text"]["body"] for message in rig.receiver.messages()] == ["are you there?"]

    play(before, journal=Journal(path))
    play(after, journal=Journal(path))


def test_a_torn_last_line_does_not_stop_a_start(tmp_path: Path) -> None:
    """The machine may die in the middle of a write."""
    path = tmp_path / "journal.jsonl"

    async def before(rig: Rig) -> None:
        rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
        await asyncio.sleep(1)

    async def after(rig: Rig) -> None:
        assert rig.platform.windows.is_open(NUMBER, ADA.id, rig.clock.now())

    play(before, journal=Journal(path))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    play(after, journal=Journal(path))
    play(after, journal=Journal(path))


def test_a_journal_that_grows_steps_back_and_keeps_the_people(tmp_path: Path) -> None:
    """The file is bounded: twice its limit, and nobody is forgotten."""
    path = tmp_path / "journal.jsonl"

    async def scene(rig: Rig) -> None:
        for _ in range(400):
            rig.platform.write(NUMBER, ADA.id, "text", {"body": "x" * 200})
            await asyncio.sleep(1)

    async def after(rig: Rig) -> None:
        assert rig.platform.people.named.keys() == {ADA.id, LEO.id, CLEO.id}

    play(scene, journal=Journal(path, file_bytes_max=100_000), postage=Postage(connections=1))
    assert path.stat().st_size <= 100_000
    assert path.with_name("journal.jsonl.1").stat().st_size <= 100_000
    play(after, journal=Journal(path, file_bytes_max=100_000))


def test_one_seed_is_one_story() -> None:
    """A run that failed can be looked at again."""

    def story() -> list[bytes]:
        seen: list[bytes] = []

        async def scene(rig: Rig) -> None:
            rig.faults.set("duplicate", Fault(rate=0.5))
            rig.faults.set("reorder_statuses", Fault(rate=0.5))
            for _ in range(10):
                rig.platform.write(NUMBER, ADA.id, "text", {"body": "hi"})
                await rig.send()
                await asyncio.sleep(7)
            await asyncio.sleep(20)
            seen.extend(body for _, body in rig.receiver.posts)

        play(scene, seed=7)
        return seen

    assert story() == story()


def test_nothing_is_sent_to_a_user_the_number_blocked() -> None:
    """Until it is taken back: 130403, at that number alone. Only who wrote within a day can be blocked."""

    async def scene(rig: Rig) -> None:
        for number in (NUMBER, OTHER_NUMBER):
            rig.platform.write(number, ADA.id, "text", {"body": "hi"})
        users = {"messaging_product": "whatsapp", "block_users": [{"user": ADA.wa_id}, {"user": LEO.wa_id}]}
        answer = body_of(await rig.call(users, edge="block_users"))["block_users"]
        assert [user["wa_id"] for user in answer["added_users"]] == [ADA.wa_id]
        assert [user["input"] for user in answer["failed_users"]] == [LEO.wa_id]
        assert code_of(await rig.call(text_to(ADA.wa_id))) == 130403
        assert code_of(await rig.call(text_to(ADA.wa_id), number=OTHER_NUMBER, token="EAAother")) == 0
        headers = {"Authorization": "Bearer EAAtoken"}
        path = f"/v26.0/{NUMBER}/block_users"
        await rig.platform.graph("DELETE", path, headers, json.dumps(users).encode())
        assert code_of(await rig.call(text_to(ADA.wa_id))) == 0

    play(scene)
