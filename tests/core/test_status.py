"""Statuses as a bot gets to see them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.status import OPAQUE, StatusBody, failed

WEBHOOKS = Path(__file__).parent.parent / "wire" / "webhooks"
SINGLE = sorted(
    path.name
    for path in WEBHOOKS.glob("st_*.json")
    if path.name not in ("st_group_delivered_aggregated.json", "st_out_of_order_batch.json")
)


def body_of(name: str) -> bytes:
    """A sample, compact as Meta sends it."""
    return json.dumps(json.loads((WEBHOOKS / name).read_bytes()), separators=(",", ":")).encode()


def status_of(body: bytes) -> dict[str, Any]:
    (status,) = json.loads(body)["entry"][0]["changes"][0]["value"]["statuses"]
    assert isinstance(status, dict)
    return status


@pytest.mark.parametrize("name", SINGLE)
def test_a_rewritten_status_differs_in_two_members_alone(name: str) -> None:
    """A bot built for the Cloud API may read any member, known to us or not, in any order."""
    body = body_of(name)
    before = status_of(body)
    rewritten = StatusBody(body).rewritten("wamid.DNEW", "mine")
    wanted = body.replace(json.dumps(before["id"]).encode(), b'"wamid.DNEW"', 1)
    if OPAQUE in before:
        wanted = wanted.replace(json.dumps(before[OPAQUE]).encode(), b'"mine"', 1)
        assert rewritten == wanted
    else:
        after = status_of(rewritten)
        assert list(after) == [*before, OPAQUE]
        assert {**before, "id": "wamid.DNEW", OPAQUE: "mine"} == after


def test_the_callers_own_data_is_gone_when_it_gave_none() -> None:
    """Our line is nobody's business."""
    body = body_of("st_sent.json")
    assert OPAQUE in status_of(body)
    assert OPAQUE not in status_of(StatusBody(body).rewritten("x", None))
    assert StatusBody(body).opaque == status_of(body)[OPAQUE]


def test_numbers_keep_their_spelling() -> None:
    """7.90 is a price; 7.9 is another body."""
    body = body_of("st_sent.json").replace(b'"billable":true', b'"billable":true,"price":7.90,"big":1e400')
    assert b'"price":7.90,"big":1e400' in StatusBody(body).rewritten("x", None)


@given(st.text(max_size=40))
def test_a_rewritten_status_is_ascii_and_says_what_was_given(own: str) -> None:
    """Meta writes ASCII; a bot's parser may have come to depend on it."""
    body = StatusBody(body_of("st_sent.json")).rewritten("x", own)
    assert body.isascii()
    assert status_of(body)[OPAQUE] == own


@pytest.mark.parametrize("private", [b"", b" \\ue123"], ids=["alone", "beside a private character"])
def test_half_a_surrogate_pair_does_not_stop_a_status(private: bytes) -> None:
    """Meta sends them, and a strict reader refuses the whole body."""
    body = body_of("st_sent.json").replace(b'"sent"', b'"sent","note":"\\ud83d%b"' % private)
    opened = StatusBody(body)
    assert opened.opaque is not None
    rewritten = opened.rewritten("x", "\u00e9")
    assert rewritten.isascii()
    assert status_of(rewritten)["note"] == json.loads(b'"\\ud83d%b"' % private)
    assert status_of(rewritten)[OPAQUE] == "\u00e9"


def test_numbers_keep_their_spelling_beside_half_a_pair_and_private_data_is_given_back() -> None:
    """One odd character must not change the rest; a caller may use the very characters we hide halves in."""
    body = body_of("st_sent.json").replace(b'"billable":true', b'"billable":true,"price":7.90,"note":"\\ud83d"')
    rewritten = StatusBody(body).rewritten("x", "a\ue123b")
    assert b'"price":7.90,"note":"\\ud83d"' in rewritten
    assert status_of(rewritten)[OPAQUE] == "a\ue123b"
    own = body.replace(json.dumps(status_of(body)[OPAQUE]).encode(), b'"half \\ud83d"')
    assert StatusBody(own).opaque == "half \ud83d"
    assert StatusBody(own).rewritten(status_of(own)["id"], "half \ud83d") == own


@pytest.mark.parametrize("note", [b"x", b"\\ud83d", b"\\ud83d \\ue123"], ids=["plain", "half a pair", "both"])
def test_a_status_that_comes_by_standby_is_rewritten_where_it_stands(note: bytes) -> None:
    """While another app owns the thread, that is where Meta may tell what became of our template."""
    plain = body_of("st_sent.json").replace(b'"sent"', b'"sent","note":"%b"' % note)
    body = plain.replace(b'"statuses":', b'"standby":{"statuses":').replace(
        b'}]},"field":"messages"', b'}]}},"field":"standby"'
    )
    opened = StatusBody(body)
    assert opened.opaque == StatusBody(plain).opaque
    wanted = StatusBody(plain).rewritten("wamid.DNEW", "mine")
    assert json.loads(opened.rewritten("wamid.DNEW", "mine")) == json.loads(
        wanted.replace(b'"statuses":', b'"standby":{"statuses":').replace(
            b'}]},"field":"messages"', b'}]}},"field":"standby"'
        )
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"entry":[]}',
        b'{"entry":[{"changes":[{"value":{"statuses":[]}}]}]}',
        b'{"entry":[{"changes":[{"value":{"statuses":[{},{}]}}]}]}',
        b'{"entry":[{"changes":[{"value":{"statuses":[1]}}]}]}',
        b'{"entry":[{"changes":[{"value":[]}]}]}',
        b'{"entry":{"changes":1}}',
    ],
)
def test_what_is_not_one_status_is_said_so(body: bytes) -> None:
    """The caller then passes it on as it came."""
    with pytest.raises(ValueError, match="status"):
        StatusBody(body)


def test_a_failure_of_ours_reads_like_one_of_metas() -> None:
    """A bot's handling of failures must not have to know whose they are."""
    sample = json.loads(body_of("st_failed_131047.json"))
    theirs = status_of(body_of("st_failed_131047.json"))
    ours = failed(
        message_id=theirs["id"],
        waba_id=sample["entry"][0]["id"],
        phone_number_id="106540352242922",
        display_phone_number="15550001000",
        wa_id="15550001234",
        bsuid="",
        at=1_789_301_088_999,
        code=131047,
        title="Re-engagement message",
        details=theirs["errors"][0]["error_data"]["details"],
        own=theirs[OPAQUE],
    )
    assert ours == body_of("st_failed_131047.json")


def test_a_failure_names_the_recipient_as_it_was_addressed() -> None:
    """A send to a BSUID has no phone to name."""
    body = failed(
        message_id="x", waba_id="1", phone_number_id="2", display_phone_number="3", wa_id="", bsuid="US.13", at=1_000,
        code=131056, title="t", details="d", own=None,
    )  # fmt: skip
    status = status_of(body)
    assert status["recipient_user_id"] == "US.13"
    assert "recipient_id" not in status
    assert OPAQUE not in status
