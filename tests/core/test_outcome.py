"""Outcomes: every documented answer of Graph is understood, and what nobody documented is not repeated blindly."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.outcome import RETRY_AFTER_MAX_S, Outcome, Scope, classify, rule_of

RESPONSES = Path(__file__).parent.parent / "wire" / "responses"


def answer(code: int, subcode: int | None = None, **more: object) -> bytes:
    """Return the body of a Graph error."""
    error: dict[str, object] = {"message": "m", "type": "OAuthException", "code": code, **more}
    if subcode is not None:
        error["error_subcode"] = subcode
    return msgspec.json.encode({"error": error})


@pytest.mark.parametrize(
    ("name", "outcome", "scope"),
    [
        ("err_0_auth_exception", "stopped", Scope.NUMBER),
        ("err_10_permission", "stopped", Scope.NUMBER),
        ("err_100_33_object_not_found", "stopped", Scope.NUMBER),
        ("err_100_invalid_parameter", "refused", Scope.SEND),
        ("err_130429_throughput", "throttled", Scope.NUMBER),
        ("err_131000_unknown", "in_doubt", Scope.SEND),
        ("err_131009_parameter_value", "refused", Scope.SEND),
        ("err_131016_unavailable", "in_doubt", Scope.SEND),
        ("err_131030_not_in_allowed_list", "refused", Scope.SEND),
        ("err_131031_account_locked", "stopped", Scope.WABA),
        ("err_131048_spam", "stopped", Scope.LANE),
        ("err_131056_pair", "throttled", Scope.PAIR),
        ("err_131057_maintenance", "throttled", Scope.NUMBER),
        ("err_131062_bsuid_not_supported", "refused", Scope.SEND),
        ("err_132001_template_missing", "refused", Scope.SEND),
        ("err_132015_template_paused", "throttled", Scope.TEMPLATE),
        ("err_133010_not_registered", "stopped", Scope.NUMBER),
        ("err_190_token_expired", "stopped", Scope.NUMBER),
        ("err_1_unknown", "in_doubt", Scope.SEND),
        ("err_2_transient", "in_doubt", Scope.SEND),
        ("err_4_app_rate_limit", "throttled", Scope.APP),
        ("err_80007_waba_rate_limit", "throttled", Scope.WABA),
    ],
)
def test_every_sample_of_an_error_is_understood(name: str, outcome: Outcome, scope: Scope) -> None:
    """The whole table of what we do hangs on this one."""
    verdict = classify(400, (RESPONSES / f"{name}.json").read_bytes())
    assert (verdict.outcome, verdict.scope, verdict.known) == (outcome, scope, True)
    assert verdict.trace_id.startswith("AEXAMPLEtrace")
    if outcome in ("throttled", "stopped"):
        assert 0 < verdict.wait_s <= verdict.wait_s_max


def test_every_sample_of_an_error_has_a_case() -> None:
    """A sample that nobody judges would be decoration."""
    judged = test_every_sample_of_an_error_is_understood.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert {name for name, _, _ in judged} == {path.stem for path in RESPONSES.glob("err_*.json")}


@pytest.mark.parametrize("path", sorted(RESPONSES.glob("send_ok*.json")), ids=lambda path: path.stem)
def test_every_sample_of_a_success_yields_its_ids(path: Path) -> None:
    """The wamid is how statuses and answers find each other."""
    raw = msgspec.json.decode(path.read_bytes())
    verdict = classify(200, path.read_bytes())
    assert verdict.outcome == "accepted"
    assert verdict.wamid == raw["messages"][0]["id"]
    assert verdict.wa_id == raw["contacts"][0].get("wa_id", "")
    assert verdict.user_id == raw["contacts"][0].get("user_id", "")
    assert verdict.message_status == raw["messages"][0].get("message_status", "")


def test_a_mark_succeeds_without_a_message_id_and_a_message_does_not() -> None:
    """`{"success": true}` to a message says nothing about the message: better in doubt than lost."""
    body = (RESPONSES / "mark_read_ok.json").read_bytes()
    assert classify(200, body, is_mark=True).outcome == "accepted"
    assert classify(200, body).outcome == "in_doubt"
    assert classify(200, b"{}", is_mark=True).outcome == "in_doubt"


def test_a_success_with_strange_contacts_keeps_its_message_id() -> None:
    """A message id we hold must not be doubted because of a field beside it."""
    for contacts in ("null", '[{"wa_id": 7}]', '"x"', "[]", '[{"new": {}}]'):
        body = f'{{"contacts": {contacts}, "messages": [{{"id": "wamid.H1", "new": []}}]}}'.encode()
        assert classify(200, body).wamid == "wamid.H1"


@pytest.mark.parametrize("status", [200, 400, 403, 404, 500, 502, 503, 504])
@pytest.mark.parametrize(
    "body",
    [b"", b"<html>502 Bad Gateway</html>", b"\xff\xfe", b"[]", b"null", b'{"error": "no"}', b'{"error": {}}', b"{"],
)
def test_what_is_not_graphs_leaves_doubt(status: int, body: bytes) -> None:
    """A proxy's page says nothing about whether Meta took the message: never repeat blindly, never give up."""
    verdict = classify(status, body)
    assert verdict.outcome == "in_doubt"


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (401, b"", "stopped"),
        (429, b"<html>", "throttled"),
        (302, b"", "stopped"),
        (401, answer(999_999), "stopped"),
        (400, answer(150), "stopped"),
        (400, answer(150, type="Other"), "refused"),
        (429, answer(999_999), "throttled"),
        (400, answer(999_999, is_transient=True), "in_doubt"),
        (400, answer(999_999), "refused"),
        (404, answer(999_999), "refused"),
        (500, answer(999_999), "in_doubt"),
        (503, answer(999_999), "in_doubt"),
    ],
)
def test_unknown_codes_follow_their_rules_and_are_counted(status: int, body: bytes, outcome: Outcome) -> None:
    """`known` is what makes somebody look."""
    verdict = classify(status, body)
    assert (verdict.outcome, verdict.known) == (outcome, False)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (200, "stopped"),
        (250, "stopped"),
        (299, "stopped"),
        (132_099, "refused"),
        (132_015, "throttled"),
        (2_388_100, "refused"),
    ],
)
def test_rows_of_codes_are_known(code: int, outcome: Outcome) -> None:
    """Meta gives codes out in rows; one of its own goes before its row."""
    verdict = classify(400, answer(code))
    assert (verdict.outcome, verdict.known) == (outcome, True)
    assert rule_of(300) is None


def test_a_lost_number_is_told_from_a_bad_parameter() -> None:
    """100 alone is this send's fault, 100 with subcode 33 is the number's or the token's."""
    assert classify(400, answer(100)).outcome == "refused"
    assert classify(400, answer(100, 33)).outcome == "stopped"


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [("7", 7.0), ("", 0.5), ("-3", 0.5), ("Wed, 21 Oct", 0.5), ("²", 0.5), ("9" * 9, RETRY_AFTER_MAX_S)],
)
def test_retry_after_lengthens_a_wait_within_reason(text: str, wait_s: float) -> None:
    """It is not documented for sends; we obey it when it is seen, and never for ever."""
    verdict = classify(400, answer(130429), text)
    assert verdict.wait_s == wait_s
    assert verdict.wait_s_max >= verdict.wait_s
    assert classify(400, answer(131047), "7").wait_s == 0


@given(st.integers(100, 599), st.binary(max_size=200))
def test_no_answer_crashes_us(status: int, body: bytes) -> None:
    """Whatever a box in between makes of an answer."""
    assert classify(status, body).outcome in ("accepted", "refused", "throttled", "stopped", "in_doubt")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["error", "messages", "contacts", "code", "id", "error_data", "details", "success", "wa_id"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_no_json_crashes_us(said: object) -> None:
    """Meta adds and changes keys without notice."""
    classify(200, msgspec.json.encode(said))
    classify(400, msgspec.json.encode(said))
