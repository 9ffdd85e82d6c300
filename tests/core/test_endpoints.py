"""What of Graph a bot may reach: the table, what is refused whatever anybody says, and what answers may hold."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.endpoints import (
    ACCOUNT,
    BATCH,
    MESSAGES,
    NAMES,
    NESTED,
    OVERRIDE,
    REASONS,
    SERVED,
    WEBHOOKS,
    Endpoints,
    Refusal,
    Scope,
    Target,
    clean_body,
    clean_query,
    credential,
    for_bot,
    forbidden,
    listed,
    read_path,
)

NUMBER = "106540352242922"
WABA = "102290129340398"
PUBLIC = "https://gateway.example.com/wa"
TOKEN = "EAAsecret"


def reason_of(found: object) -> str:
    """Return a refusal's reason, "" for what is none."""
    return found.reason if isinstance(found, Refusal) else ""


@pytest.mark.parametrize(
    ("path", "target"),
    [
        (f"/v26.0/{NUMBER}/messages", Target("v26.0", NUMBER, "messages", "")),
        (f"/v26.0/{NUMBER}/messages/?x=1", Target("v26.0", NUMBER, "messages", "x=1")),
        (f"/{NUMBER}/media", Target("", NUMBER, "media", "")),
        (f"/v100/{NUMBER}", Target("v100", NUMBER, "", "")),
        (f"/{NUMBER}/message_qrdls/AB.1/", Target("", NUMBER, "message_qrdls/AB.1", "")),
        (f"/media/{NUMBER}/Zm9v.YmFy", Target("", NUMBER, "", "", "Zm9v.YmFy")),
        ("/oauth/access_token", Target("", "oauth", "access_token", "")),
        ("/v26.0/", Target("v26.0", "", "", "")),
        ("/", Target("", "", "", "")),
    ],
)
def test_every_spelling_of_a_path_is_taken_apart(path: str, target: Target) -> None:
    """Clients are built for many versions, and some end their paths with a slash."""
    assert read_path(path) == target


@pytest.mark.parametrize(
    "path",
    [
        "",
        "messages",
        f"//{NUMBER}/messages",
        f"/{NUMBER}//messages",
        f"/{NUMBER}/../{WABA}",
        f"/{NUMBER}/x/..",
        f"/{NUMBER}/%2e%2e",
        f"/{NUMBER}/messages/a/b",
        f"/v26.0/{NUMBER}/mess ages",
        f"/{NUMBER}/{'x' * 129}",
        f"/media/{NUMBER}/{'x' * 5_000}.y",
        f"http://elsewhere/{NUMBER}/messages",
    ],
)
def test_what_is_no_path_of_graphs_is_none_of_ours(path: str) -> None:
    """What goes into a url with our token behind it has no dots, escapes or hosts in it."""
    assert read_path(path) is None


@pytest.mark.parametrize(
    ("method", "path", "reason"),
    [
        ("POST", f"/v26.0/{WABA}/subscribed_apps", WEBHOOKS),
        ("GET", f"/{WABA}/subscribed_apps/", WEBHOOKS),
        ("DELETE", f"/{WABA}/Subscribed_Apps", WEBHOOKS),
        ("POST", "/v26.0/1234567890/subscriptions", WEBHOOKS),
        ("GET", "/oauth/access_token?grant_type=fb_exchange_token", ACCOUNT),
        ("POST", f"/{NUMBER}/register", ACCOUNT),
        ("POST", f"/{NUMBER}/deregister", ACCOUNT),
        ("POST", f"/{NUMBER}/request_code", ACCOUNT),
        ("GET", "/debug_token?input_token=x", ACCOUNT),
        ("POST", "/", BATCH),
        ("POST", "/v26.0", BATCH),
        ("POST", f"/v26.0/{NUMBER}/messages", ""),
        ("GET", "/v26.0", ""),
    ],
)
def test_what_takes_webhooks_away_or_opens_an_account_is_refused_whatever_the_settings_say(
    method: str, path: str, reason: str
) -> None:
    """With the number's real token a bot would end everybody's events, or hand the account on."""
    target = read_path(path)
    assert target is not None
    assert reason_of(forbidden(method, target)) == reason


def test_the_table_says_what_is_served_and_the_settings_add_to_it() -> None:
    """An operator widens it by name; nothing is there by accident."""
    endpoints = Endpoints(
        listed(["GET number/settings", "DELETE number/message_qrdls/*", "POST waba/message_templates", "GET waba/"])
    )
    assert endpoints.find("POST", "number", "messages") is MESSAGES
    added: list[tuple[str, Scope, str]] = [
        ("GET", "number", "settings"),
        ("DELETE", "number", "message_qrdls/AB1"),
        ("POST", "waba", "message_templates"),
        ("GET", "waba", ""),
    ]
    for method, scope, edge in added:
        found = endpoints.find(method, scope, edge)
        assert found is not None
        assert found.name == "other"
    assert endpoints.methods("number", "block_users") == ("GET", "POST", "DELETE")
    assert endpoints.methods("waba", "message_templates") == ("GET", "POST")
    closed: list[tuple[str, Scope, str]] = [
        ("POST", "number", ""),
        ("POST", "number", "settings"),
        ("DELETE", "number", "message_qrdls"),
        ("DELETE", "number", "message_qrdls/A/B"),
        ("POST", "waba", "messages"),
        ("GET", "number", "message_templates"),
        ("POST", "waba", ""),
    ]
    for method, scope, edge in closed:
        assert endpoints.find(method, scope, edge) is None
    assert {endpoint.name for endpoint in SERVED} < set(NAMES)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("number/settings", "must be like"),
        ("PUT number/settings", "must be like"),
        ("GET flow/assets", "must be like"),
        ("POST number/", "must be like"),
        ("DELETE waba/", "must be like"),
        ("GET waba/ ", "must be like"),
        ("GET number/../x", "must be like"),
        ("POST waba/subscribed_apps", "is never passed on"),
        ("POST number/register", "is never passed on"),
        ("GET number/message_qrdls/access_token", "is never passed on"),
    ],
)
def test_the_settings_cannot_open_what_is_never_open(entry: str, said: str) -> None:
    """A line pasted from somewhere must not undo the broker."""
    with pytest.raises(ValueError, match=said):
        listed([entry])


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("limit=25&after=abc&name=order%20update", ""),
        ("fields=name,status,category", ""),
        ("fields=webhook_configuration", WEBHOOKS),
        ("fields=webhook_configuration,Webhook_Configuration", WEBHOOKS),
        ("fields=name,webhook_configuration{application}", NESTED),
        ("fields=verified_name,whatsapp_business_account{subscribed_apps}", NESTED),
        ("fields=a(b)", NESTED),
        ("override_callback_uri=https://evil.example", WEBHOOKS),
        ("webhook_configuration[override_callback_uri]=x", WEBHOOKS),
        ("webhook.configuration=x", WEBHOOKS),
        ("%20webhook%20configuration=x", WEBHOOKS),
        ("%2577ebhook_configuration=x", WEBHOOKS),
        ("WEBHOOK_CONFIGURATION=x", WEBHOOKS),
        ("x={%22webhook_configuration%22:1}", WEBHOOKS),
        ("verify_token=x", WEBHOOKS),
        ("method=delete", OVERRIDE),
        ("Method=delete", OVERRIDE),
        ("batch=[]", BATCH),
        ("batch[0]=x", BATCH),
        ("ids=1,2", OVERRIDE),
        ("callback=f", OVERRIDE),
    ],
)
def test_a_query_is_read_as_leniently_as_graph_may_read_it(query: str, reason: str) -> None:
    """Graph takes parameters in any spelling a server in PHP's tradition does; so must whoever looks for them."""
    assert reason_of(clean_query(query)) == reason


def test_a_library_that_asks_for_every_field_gets_all_others() -> None:
    """pywa asks for 29 fields of a number, the webhook configuration among them, and can do without any."""
    assert clean_query("fields=id,webhook_configuration,status") == "fields=id%2Cstatus"


@pytest.mark.parametrize("name", ["access_token", "Access_Token", "access.token", "appsecret_proof", "access_token[0]"])
def test_a_credential_goes_no_further(name: str) -> None:
    """The bot's key is for us; Meta gets the number's token in the header."""
    cleaned = clean_query(f"{quote(name)}=dk_secret&limit=2")
    assert cleaned == "limit=2"
    body, kind = _cleaned(json.dumps({name: "dk_secret", "about": "x"}).encode())
    assert (json.loads(body), kind) == ({"about": "x"}, "application/json")
    form, kind = _cleaned(f"{quote(name)}=dk_secret&about=x".encode(), "application/x-www-form-urlencoded")
    assert (form, kind) == (b"about=x", "application/x-www-form-urlencoded")


def test_a_key_may_stand_in_the_query_as_at_graph() -> None:
    """Some clients are built so."""
    assert credential("limit=1&access_token=dk_1") == "dk_1"
    assert credential("access_tokens=1") == ""


def _cleaned(body: bytes, content_type: str = "application/json") -> tuple[bytes, str]:
    found = clean_body(body, content_type)
    assert not isinstance(found, Refusal), found
    return found


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"messaging_product": "whatsapp", "about": "we sell webhooks"}, ""),
        ({"webhook_configuration": {"override_callback_uri": "https://evil.example"}}, WEBHOOKS),
        ({"a": [{"b": {"override_callback_uri": "x"}}]}, WEBHOOKS),
        ({"a": '{"override_callback_uri": "x"}'}, WEBHOOKS),
        ({"a": '[{"b": "{\\"webhook_configuration\\": 1}"}]'}, WEBHOOKS),
        ({"batch": [{"method": "POST", "relative_url": "1/subscribed_apps"}]}, BATCH),
        ({"method": "DELETE"}, OVERRIDE),
        ({"fields": "webhook_configuration"}, WEBHOOKS),
        ({"session": {"sdp": "v=0", "method": "x"}}, ""),
    ],
)
def test_a_body_with_a_webhook_configuration_is_refused_however_deep_it_stands(
    body: dict[str, Any], reason: str
) -> None:
    """Whatever the edge: Graph reads what it knows and ignores the rest."""
    assert reason_of(clean_body(json.dumps(body).encode(), "application/json")) == reason
    if not reason:
        assert clean_body(json.dumps(body).encode(), "application/json; charset=utf-8") == (
            json.dumps(body).encode(),
            "application/json",
        )


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{", "application/json"),
        (b"[1]", "application/json"),
        (b'{"a": 1} {}', "application/json"),
        (b"\xff", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"a": 1}', "text/plain"),
        (b"--x", "multipart/form-data; boundary=x"),
        ("ü=1".encode(), "application/x-www-form-urlencoded"),
        (b"&".join(b"a=1" for _ in range(65)), "application/x-www-form-urlencoded"),
    ],
)
def test_a_body_that_cannot_be_read_is_not_passed_on(body: bytes, content_type: str) -> None:
    """What we cannot read we cannot check."""
    with pytest.raises(ValueError, match=r"\w"):
        clean_body(body, content_type)


def test_a_body_of_nothing_is_nothing() -> None:
    """Some clients name a type for it, some do not."""
    for content_type in ("", "application/json", "text/plain"):
        assert clean_body(b" ", content_type) == (b"", "")


@given(st.dictionaries(st.text(), st.text(), max_size=5))
def test_whatever_the_parameters_are_nothing_crashes_and_what_passes_says_the_same(pairs: dict[str, str]) -> None:
    """Strangers choose the names."""
    try:
        query = "&".join(f"{quote(name)}={quote(value)}" for name, value in pairs.items())
    except UnicodeEncodeError:
        return
    cleaned = clean_query(query)
    if isinstance(cleaned, Refusal):
        assert cleaned.reason in REASONS
    else:
        assert dict(parse_qsl(cleaned, keep_blank_values=True)).items() <= pairs.items()


def test_links_to_further_pages_lead_to_us_without_the_token() -> None:
    """Graph writes its token into them: a bot would have it, and would go to Meta by itself."""
    link = f"https://graph.facebook.com/v26.0/{WABA}/message_templates?access_token={TOKEN}&limit=25&after=MjQZD"
    body = json.dumps(
        {"data": [{"name": "a", "price": 7.90}], "paging": {"cursors": {"after": "MjQZD"}, "next": link}}
    ).replace("/", "\\/")
    told = for_bot(body.encode(), PUBLIC, TOKEN)
    assert told is not None
    assert TOKEN.encode() not in told.body
    assert b'"price": 7.9' in told.body
    paging = json.loads(told.body)["paging"]
    assert paging["cursors"] == {"after": "MjQZD"}
    assert paging["next"] == f"{PUBLIC}/v26.0/{WABA}/message_templates?limit=25&after=MjQZD"
    assert urlsplit(paging["next"]).hostname == "gateway.example.com"


def test_an_answer_keeps_its_bytes_but_for_the_token_and_the_webhooks() -> None:
    """Drop-in means that nothing else changes."""
    body = b'{"id": "1",  "verified_name":"Caf\\u00e9", "throughput": {"level" : "HIGH"}}'
    assert for_bot(body, PUBLIC, TOKEN) == (body, 0)
    told = for_bot(b'{"id":"1","webhook_configuration":{"application":"https://x"},"a":"EAAsecret"}', PUBLIC, TOKEN)
    assert told == (b'{"id":"1","a":"***"}', 0)
    assert for_bot(b'{"error":{"code":190}}', PUBLIC, TOKEN) == (b'{"error":{"code":190}}', 190)
    assert for_bot(b'{"paging":{"next":"no link"}}', PUBLIC, TOKEN) == (b'{"paging":{"next":""}}', 0)
    for page in (b"", b"<html>", b"{", b"\xff"):
        assert for_bot(page, PUBLIC, TOKEN) is None
