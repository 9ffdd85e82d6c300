"""How an event looks to a sink, checked by the tools its receivers use."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from standardwebhooks import Webhook, WebhookVerificationError

from broker.errors import Misconfigured
from broker.secrets import Secret
from schemas.records import DeliveryEvent
from schemas.settings import SecretSource, SinkSettings
from workers.sinks import Target, ascii_json

WHSEC = "whsec_" + b64encode(bytes(range(32))).decode()
NEXT_WHSEC = "whsec_" + b64encode(bytes(range(100, 132))).decode()
BODY = b'{"object":"whatsapp_business_account","entry":[{"id":"1","changes":[{"value":{"t":"\\u00e4\\/"}}]}]}'


def target(kind: str, *secrets: str) -> Target:
    settings = SinkSettings(name="bot", kind=kind, url="https://bot.example/hook", secret=SecretSource(env="X"))  # type: ignore[arg-type]
    return Target(settings, [Secret(secret) for secret in secrets])


def event(body: bytes = BODY, at: int = 1_700_000_000_123, kind: str = "message") -> DeliveryEvent:
    return DeliveryEvent(
        delivery_id="evt_1", kind=kind, phone_number_id="1", customer="main:49", body=body, at=at, accepted_at=at + 5
    )


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_a_meta_sink_gets_the_body_as_it_stands_and_metas_signature() -> None:
    """A bot built for the Cloud API verifies it with the code it has."""
    request = target("meta", "app secret").render(event(), now_ms())
    assert request.body == BODY
    expected = hmac.new(b"app secret", request.body, hashlib.sha256).hexdigest()
    assert request.headers == {
        "Content-Type": "application/json",
        "Content-Length": str(len(BODY)),
        "X-Hub-Signature-256": f"sha256={expected}",
    }


def test_a_message_tells_its_epoch_and_its_tags_where_there_is_room() -> None:
    """A `meta` bot's body is Meta's to the byte, so it has the epoch as a header; `standard` shows the tags, too."""
    tagged = replace(event(), tags=("vip", "late"), epoch=3)
    plain, told = target("meta", "s").render(event(), 0), target("meta", "s").render(tagged, 0)
    assert told.body == plain.body
    assert told.headers == {**plain.headers, "X-Depesche-Epoch": "3"}
    shown = target("standard", WHSEC).render(tagged, now_ms())
    assert json.loads(shown.body)["tags"] == ["vip", "late"]
    assert json.loads(shown.body)["data"] == json.loads(BODY)
    assert shown.headers["X-Depesche-Epoch"] == "3"
    Webhook(WHSEC).verify(shown.body, shown.headers)
    assert "tags" not in json.loads(target("standard", WHSEC).render(event(), 0).body)


def test_a_meta_body_is_the_same_at_every_attempt() -> None:
    """A receiver that dedupes by the hash of the body (pywa does) must see a retry as such."""
    sink = target("meta", "s")
    first, later = sink.render(event(), 1_000), sink.render(event(), 900_000_000)
    assert first == later


def test_a_standard_sink_is_verified_by_the_published_library() -> None:
    """The other implementation of the same text."""
    request = target("standard", WHSEC).render(event(), now_ms())
    said = Webhook(WHSEC).verify(request.body, request.headers)
    assert said["type"] == "whatsapp.message"
    assert said["timestamp"] == "2023-11-14T22:13:20.123Z"
    assert said["data"] == json.loads(BODY)
    assert BODY in request.body, "values untouched, escapes included"
    assert request.headers["webhook-id"] == "evt_1"
    assert request.headers["Content-Length"] == str(len(request.body))
    with pytest.raises(WebhookVerificationError):
        Webhook(NEXT_WHSEC).verify(request.body, request.headers)


def test_while_a_secret_is_rotated_both_verify() -> None:
    """A receiver can change at any moment of the rotation."""
    request = target("standard", NEXT_WHSEC, WHSEC).render(event(), now_ms())
    for secret in (WHSEC, NEXT_WHSEC):
        assert Webhook(secret).verify(request.body, request.headers)


def test_a_standard_retry_has_the_same_id_and_body_and_a_new_time() -> None:
    """The id is how a receiver dedupes; the time is what its tolerance of five minutes is checked against."""
    sink, now = target("standard", WHSEC), now_ms()
    first, later = sink.render(event(), now - 600_000), sink.render(event(), now)
    assert first.body == later.body
    assert first.headers["webhook-id"] == later.headers["webhook-id"]
    with pytest.raises(WebhookVerificationError):
        Webhook(WHSEC).verify(first.body, first.headers)
    assert Webhook(WHSEC).verify(later.body, later.headers)


@given(at=st.integers(-(2**63), 2**63 - 1), kind=st.text(max_size=30))
def test_no_event_is_beyond_rendering(at: int, kind: str) -> None:
    """Timestamps and kinds come from outside; a crash here would set a good event aside."""
    body = target("standard", WHSEC).render(event(at=at, kind=kind), now_ms()).body
    assert body.isascii()
    assert json.loads(body)["type"] == f"whatsapp.{kind}"


@given(
    value=st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_what_is_not_ascii_leaves_as_meta_escapes_it(value: object) -> None:
    """Graph webhooks: escaped unicode with lower-case hex digits, signed in that form."""
    escaped = ascii_json(json.dumps(value, ensure_ascii=False).encode())
    assert escaped.isascii()
    assert json.loads(escaped) == value
    assert escaped == ascii_json(escaped)


def test_escapes_are_lower_case_and_pairs_beyond_the_basic_plane() -> None:
    """Byte for byte what Meta would have written."""
    assert ascii_json('"äÖ😀€"'.encode()) == b'"\\u00e4\\u00d6\\ud83d\\ude00\\u20ac"'


@pytest.mark.parametrize("secret", ["plain", "whsec_", "whsec_%%%", b64encode(bytes(32)).decode()])
def test_a_standard_secret_must_be_one(secret: str) -> None:
    """A secret typed wrong must not become a key nobody else has."""
    with pytest.raises(Misconfigured, match=r"sinks\.secret: a Standard") as failure:
        target("standard", secret)
    assert secret not in str(failure.value) or secret == "whsec_"


def test_a_topic_gets_a_list_with_each_event_as_it_would_be_alone() -> None:
    """One form for whoever reads: an envelope, and in it the messages it knows."""
    settings = SinkSettings(name="bot", kind="kafka", topic="brand", debounce_ms=100)
    topic = Target(settings, [], {"bootstrap_servers": ["127.0.0.1:9"]})
    events = [event(), event(at=1_700_000_001_000)]
    request = topic.render_all(events, now_ms())
    said = json.loads(request.body)
    assert (said["type"], said["sink"], said["customer"]) == ("whatsapp.batch", "bot", "main:49")
    assert said["id"] == request.headers["depesche-id"]
    assert said["events"] == [json.loads(topic.render(one, now_ms()).body) for one in events]
    assert json.loads(topic.render_all(events[:1], now_ms()).body)["events"] == said["events"][:1]
