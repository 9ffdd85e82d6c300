"""One good message of every documented kind, each member of it at least once, for whoever needs something to send."""

from __future__ import annotations

from typing import Any

BASE: dict[str, Any] = {"messaging_product": "whatsapp", "to": "+4915550001234"}
IMAGE = {"type": "image", "image": {"link": "https://example.com/a.png"}}


def interactive(kind: str, action: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "interactive", "interactive": {"type": kind, "body": {"text": "B"}, "action": action, **more}}


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"id": f"r{start + n}", "title": "T", "description": "D"} for n in range(count)]


def cards(count: int) -> list[dict[str, Any]]:
    action = {"name": "cta_url", "parameters": {"display_text": "Open", "url": "https://example.com"}}
    return [
        {"card_index": n, "type": "cta_url", "header": IMAGE, "body": {"text": "B"}, "action": action}
        for n in range(count)
    ]


BUTTONS = [{"type": "reply", "reply": {"id": f"b{n}", "title": "Yes"}} for n in range(3)]
PRODUCTS = [{"title": "P", "product_items": [{"product_retailer_id": "sku"}]}]
TEMPLATE = {
    "name": "order_update",
    "language": {"code": "en_US"},
    "components": [
        {"type": "header", "parameters": [{"type": "image", "image": {"id": "1"}}]},
        {"type": "body", "parameters": [{"type": "text", "parameter_name": "first_name", "text": "Ada"}]},
        {
            "type": "button",
            "sub_type": "quick_reply",
            "index": "0",
            "parameters": [{"type": "payload", "payload": "P"}],
        },
        {"type": "button", "sub_type": "url", "index": 1, "parameters": [{"type": "text", "text": "suffix"}]},
        {"type": "carousel", "cards": [{"card_index": 0, "components": []}]},
    ],
}

GOOD: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": {"body": "Hello", "preview_url": True}},
    "text without type": {"text": {"body": "Hello"}},
    "image": IMAGE,
    "video": {"type": "video", "video": {"id": "17", "caption": "c"}},
    "audio": {"type": "audio", "audio": {"id": 17, "voice": True}},
    "document": {"type": "document", "document": {"id": "17", "caption": "c", "filename": "a.pdf"}},
    "sticker": {"type": "sticker", "sticker": {"id": "17"}},
    "location": {"type": "location", "location": {"latitude": "52.5", "longitude": 13.4, "name": "n"}},
    "contacts": {
        "type": "contacts",
        "contacts": [{"name": {"formatted_name": "A"}, "phones": [{"phone": "+1", "type": "CELL"}]}],
    },
    "reaction": {"type": "reaction", "reaction": {"message_id": "wamid.H", "emoji": "👍"}},
    "reaction taken back": {"type": "reaction", "reaction": {"message_id": "wamid.H", "emoji": ""}},
    "pin": {"type": "pin", "pin": {"type": "pin", "message_id": "wamid.H", "expiration_days": 7}},
    "template": {"type": "template", "template": TEMPLATE},
    "button": interactive("button", {"buttons": BUTTONS}, header=IMAGE, footer={"text": "F"}),
    "list": interactive("list", {"button": "Choose", "sections": [{"rows": rows(10)}]}),
    "list of sections": interactive(
        "list",
        {"button": "Choose", "sections": [{"title": "1", "rows": rows(5)}, {"title": "2", "rows": rows(5, 5)}]},
        header={"type": "text", "text": "H"},
    ),
    "cta_url": interactive(
        "cta_url", {"name": "cta_url", "parameters": {"display_text": "Open", "url": "https://example.com"}}
    ),
    "flow": interactive(
        "flow",
        {
            "name": "flow",
            "parameters": {
                "flow_message_version": "3",
                "flow_id": "1",
                "flow_cta": "Book",
                "flow_action": "navigate",
                "mode": "published",
            },
        },
    ),
    "product": interactive("product", {"catalog_id": "1", "product_retailer_id": "sku"}),
    "product_list": interactive(
        "product_list", {"catalog_id": "1", "sections": PRODUCTS}, header={"type": "text", "text": "H"}
    ),
    "catalog_message": interactive("catalog_message", {"name": "catalog_message"}),
    "location_request_message": interactive("location_request_message", {"name": "send_location"}),
    "address_message": interactive("address_message", {"name": "address_message", "parameters": {"country": "IN"}}),
    "call_permission_request": interactive("call_permission_request", {"name": "call_permission_request"}),
    "voice_call": interactive("voice_call", {"name": "voice_call", "parameters": {"display_text": "Call"}}),
    "request_contact_info": interactive("request_contact_info", {"name": "request_contact_info"}),
    "carousel": interactive("carousel", {"cards": cards(10)}),
}
