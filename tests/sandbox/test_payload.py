"""The referee's own reading of what is a message."""

from __future__ import annotations

from typing import Any

import pytest

from broker.sandbox.payload import Outgoing, read
from broker.sandbox.shapes import GraphError

BUTTONS = [{"type": "reply", "reply": {"id": f"b{i}", "title": f"Button {i}"}} for i in range(3)]
ROWS = [{"id": f"r{i}", "title": f"Row {i}", "description": "d" * 72} for i in range(10)]


def message(kind: str, content: Any, **more: Any) -> dict[str, Any]:
    """Return a message of a type."""
    return {"messaging_product": "whatsapp", "to": "15550001234", "type": kind, kind: content, **more}


def interactive(kind: str, action: Any, text: str = "Choose", **more: Any) -> dict[str, Any]:
    """Return an interactive message."""
    return message("interactive", {"type": kind, "body": {"text": text}, "action": action, **more})


TAKEN = [
    message("text", {"body": "x" * 4_096, "preview_url": True}),
    {"messaging_product": "whatsapp", "to": "15550001234", "text": {"body": "type is text by default"}},
    message("image", {"link": "https://example.com/a.png", "caption": "c" * 1_024}),
    message("document", {"id": "100", "filename": "a.pdf", "caption": "c"}),
    message("audio", {"id": "100", "voice": True}),
    message("sticker", {"id": "100"}),
    message("location", {"latitude": "52.5", "longitude": 13.4, "name": "n", "address": "a"}),
    message("contacts", [{"name": {"formatted_name": "B", "first_name": "B"}, "phones": [{"phone": "+1"}]}]),
    message("reaction", {"message_id": "wamid.H", "emoji": ""}),
    message("template", {"name": "hello_world", "language": {"code": "en_US"}}),
    interactive("button", {"buttons": BUTTONS}, "x" * 1_024, footer={"text": "f" * 60}),
    interactive("list", {"button": "b" * 20, "sections": [{"title": "s", "rows": ROWS}]}, "x" * 4_096),
    interactive("cta_url", {"name": "cta_url", "parameters": {"display_text": "Open", "url": "https://example.com"}}),
    interactive("location_request_message", {"name": "send_location"}),
    message("text", {"body": "x"}, context={"message_id": "wamid.H"}, biz_opaque_callback_data="o" * 512),
    message("text", {"body": "x"}, recipient="US.13000000000000000001", recipient_type="individual"),
]

TAKEN += [message("contacts", '[{"name": {"formatted_name": "B", "first_name": "B"}}]')]

REFUSED = [
    (message("text", {"body": "x" * 4_097}), 100),
    (message("text", {"body": ""}), 100),
    (message("text", {"bodyy": "x"}), 100),
    (message("text", {"body": "x"}, mystery=1), 100),
    (message("text", {"body": "x"}, biz_opaque_callback_data="o" * 513), 100),
    (message("text", {"body": "x"}, recipient_type="crowd"), 100),
    ({"to": "15550001234", "type": "text", "text": {"body": "x"}}, 100),
    ({"messaging_product": "sms", "to": "1", "type": "text", "text": {"body": "x"}}, 100),
    ({"messaging_product": "whatsapp", "type": "text", "text": {"body": "x"}}, 100),
    ({"messaging_product": "whatsapp", "recipient": "nobody", "type": "text", "text": {"body": "x"}}, 131009),
    ({"messaging_product": "whatsapp", "to": "15550001234", "type": "text"}, 100),
    (message("hologram", {}), 100),
    (message("image", {"link": "https://example.com/a.png", "id": "100"}), 100),
    (message("image", {}), 100),
    (message("image", {"link": "ftp://example.com/a.png"}), 100),
    (message("image", {"id": "1", "caption": "c" * 1_025}), 100),
    (message("sticker", {"id": "1", "caption": "c"}), 100),
    (message("location", {"latitude": 91, "longitude": 0}), 100),
    (message("location", {"latitude": "north", "longitude": 0}), 100),
    (message("contacts", []), 100),
    (message("contacts", [{"name": {"formatted_name": "B"}}]), 100),
    (message("reaction", {"message_id": "wamid.H"}), 100),
    (message("reaction", {"message_id": "wamid.H", "emoji": "👍"}, context={"message_id": "wamid.H"}), 100),
    (message("template", {"name": "hello_world"}), 100),
    (interactive("button", {"buttons": [*BUTTONS, *BUTTONS]}), 131009),
    (interactive("button", {"buttons": [BUTTONS[0], BUTTONS[0]]}), 131009),
    (interactive("button", {"buttons": [{"type": "reply", "reply": {"id": "a", "title": "t" * 21}}]}), 131009),
    (interactive("button", {"buttons": BUTTONS}, "x" * 1_025), 131009),
    (interactive("button", {"buttons": BUTTONS}, footer={"text": "f" * 61}), 131009),
    (interactive("list", {"button": "b", "sections": [{"rows": [*ROWS, {"id": "r10", "title": "one more"}]}]}), 131009),
    (interactive("list", {"button": "b" * 21, "sections": [{"rows": ROWS}]}), 131009),
    (interactive("list", {"button": "b", "sections": [{"rows": [{"id": "r", "title": "t" * 25}]}]}), 131009),
    (interactive("list", {"button": "b", "sections": [{"rows": ROWS[:1]}, {"rows": ROWS[1:2]}]}), 131008),
    (interactive("poll", {}), 100),
    ([], 100),
    ({"messaging_product": "whatsapp", "status": "delivered", "message_id": "wamid.H"}, 100),
    ({"messaging_product": "whatsapp", "status": "read"}, 100),
    ({"messaging_product": "whatsapp", "status": "read", "message_id": "m", "typing_indicator": {"type": "x"}}, 100),
]


@pytest.mark.parametrize("body", TAKEN, ids=lambda body: str(body.get("type")))
def test_what_the_documents_allow_is_taken(body: dict[str, Any]) -> None:
    """Up to the last character of each limit."""
    assert isinstance(read(body), Outgoing)


@pytest.mark.parametrize(("body", "code"), REFUSED)
def test_what_the_documents_forbid_is_refused(body: Any, code: int) -> None:
    """One character or one button too many, a misspelt key: refused with Meta's code before anything is counted."""
    refused = read(body)
    assert isinstance(refused, GraphError)
    assert refused.code == code


def test_a_mark_is_not_a_message() -> None:
    """Read marks have no recipient; typing comes with them."""
    body = {
        "messaging_product": "whatsapp",
        "status": "read",
        "message_id": "wamid.H",
        "typing_indicator": {"type": "text"},
    }
    outgoing = read(body)
    assert isinstance(outgoing, Outgoing)
    assert (outgoing.kind, outgoing.typing) == ("mark", True)
