"""Interactive messages: a text, and something to tap.

Source: Meta Cloud API, "Interactive messages".
"""

from __future__ import annotations

from broker.core.message.contents import FILES, NAME
from broker.core.message.limits import (
    BUTTON_ID,
    BUTTON_TITLE,
    BUTTONS,
    CARD_BODY,
    CARD_BUTTONS,
    CARD_LINE_BREAKS,
    CARD_REPLY_ID,
    CARD_REPLY_TITLE,
    CAROUSEL_CARDS,
    COUNTRY,
    CTA_URL_TEXT,
    FLOW_CTA,
    FOOTER_TEXT,
    HEADER_TEXT,
    INTERACTIVE_BODY,
    LIST_BODY,
    LIST_BUTTON,
    LIST_ROWS,
    LIST_SECTIONS,
    PRODUCT_SECTIONS,
    PRODUCTS,
    ROW_DESCRIPTION,
    ROW_ID,
    ROW_TITLE,
    SECTION_TITLE,
    VOICE_CALL_TEXT,
    Limit,
)
from broker.core.message.shapes import (
    Anything,
    Choice,
    Fault,
    Identifier,
    Json,
    ListOf,
    Object,
    Rule,
    Shape,
    Text,
    Url,
    Variants,
    Wrong,
)

_TEXT_HEADER = {"text": Object({"text": Text(HEADER_TEXT)}, needed=("text",))}
_ANY_HEADER = _TEXT_HEADER | {name: Object({name: shape}, needed=(name,)) for name, shape in FILES.items()}
HEADER = Variants("type", _ANY_HEADER)
TEXT_HEADER = Object({"type": Choice(("text",)), **_TEXT_HEADER["text"].members}, needed=("type", "text"))


def _kind(
    action: Object, *needed: str, body: Limit = INTERACTIVE_BODY, header: Shape = HEADER, optional: str = ""
) -> Object:
    """Return the shape of one kind: its action, and what stands around it. A body is needed unless it is `optional`."""
    around: dict[str, Shape] = {
        "header": header,
        "body": Object({"text": Text(body)}, needed=("text",)),
        "footer": Object({"text": Text(FOOTER_TEXT)}, needed=("text",)),
        "action": action,
    }
    always = ("action",) if optional == "body" else ("body", "action")
    return Object(around, needed=(*always, *needed))


def _action(name: str, parameters: Object | None = None) -> Object:
    """Return the shape of an action that is chosen by its name. Its parameters are needed when one of them is."""
    needed = ("name", "parameters") if parameters is not None and parameters.needed else ("name",)
    return Object({"name": Choice((name,)), "parameters": parameters or Object({})}, needed=needed)


def _sections(entries: str, most: int, label: str) -> Rule:
    """Return the rule about what all sections hold together, and that titles are there where there are several."""

    def rule(action: Json) -> None:
        sections = action["sections"]
        count = sum(len(section[entries]) for section in sections)
        if count > most:
            raise Wrong(Fault.BEYOND, f"must hold at most {most} {label} in total; they hold {count}", "sections")
        for place, section in enumerate(sections):
            if len(sections) > 1 and not section.get("title"):
                raise Wrong(Fault.MISSING, "is missing", "sections", place, "title")

    return rule


def _unique_rows(action: Json) -> None:
    """An answer says which row was tapped by its id alone."""
    seen: dict[str, None] = {}
    for place, section in enumerate(action["sections"]):
        for index, row in enumerate(section["rows"]):
            if row["id"] in seen:
                raise Wrong(Fault.VALUE, "is there twice", "sections", place, "rows", index, "id")
            seen[row["id"]] = None


def _unique_buttons(action: Json) -> None:
    """An answer says which button was tapped by its id alone."""
    seen: dict[str, None] = {}
    for place, button in enumerate(action["buttons"]):
        if button["reply"]["id"] in seen:
            raise Wrong(Fault.VALUE, "is there twice", "buttons", place, "reply", "id")
        seen[button["reply"]["id"]] = None


def _few_lines(body: Json) -> None:
    """A card has room for three lines."""
    if body["text"].count("\n") > CARD_LINE_BREAKS.most:
        raise Wrong(Fault.BEYOND, f"must hold at most {CARD_LINE_BREAKS.most} line breaks", "text")


def _opens_its_link(card: Json) -> None:
    """A card whose type is a link, and which has no buttons instead, says which."""
    action = card["action"]
    if str(card.get("type", "")).lower() != "cta_url" or action.get("buttons") is not None:
        return
    if not action.get("name"):
        raise Wrong(Fault.MISSING, "is missing", "action", "name")
    for name in ("display_text", "url"):
        if (action.get("parameters") or {}).get(name) is None:
            raise Wrong(Fault.MISSING, "is missing", "action", "parameters", name)


_REPLY = Object({"id": Text(BUTTON_ID), "title": Text(BUTTON_TITLE)}, needed=("id", "title"))
_BUTTON = Object({"type": Choice(("reply",)), "reply": _REPLY}, needed=("type", "reply"))
_TITLE = Text(SECTION_TITLE, empty=True)
_ROW = Object(
    {"id": Text(ROW_ID), "title": Text(ROW_TITLE), "description": Text(ROW_DESCRIPTION, empty=True)},
    needed=("id", "title"),
)
_ROWS = Object({"title": _TITLE, "rows": ListOf(_ROW, LIST_ROWS)}, needed=("rows",))
_PRODUCT = Object({"product_retailer_id": Identifier()}, needed=("product_retailer_id",))
_PRODUCTS = Object({"title": _TITLE, "product_items": ListOf(_PRODUCT, PRODUCTS)}, needed=("product_items",))
_CTA_URL = _action(
    "cta_url", Object({"display_text": Text(CTA_URL_TEXT), "url": Url()}, needed=("display_text", "url"))
)
_ONE_PRODUCT = Object(
    {"catalog_id": Identifier(), "product_retailer_id": Identifier()}, needed=("catalog_id", "product_retailer_id")
)
_FLOW = Object(
    {
        "flow_message_version": Identifier(),
        "flow_id": Identifier(empty=True),
        "flow_name": NAME,
        "flow_token": NAME,
        "flow_cta": Text(FLOW_CTA),
        "flow_action": Choice(("navigate", "data_exchange")),
        "flow_action_payload": Anything(),
        "mode": Choice(("published", "draft")),
    },
    needed=("flow_message_version", "flow_cta"),
    one_of=("flow_id", "flow_name"),
)

_CARD_REPLY = Object({"id": Text(CARD_REPLY_ID), "title": Text(CARD_REPLY_TITLE)}, needed=("id", "title"))
_CARD_BUTTON = Object({"type": Choice(("quick_reply",)), "quick_reply": _CARD_REPLY}, needed=("quick_reply",))
_CARD_BODY = Object({"text": Text(CARD_BODY)}, needed=("text",), rules=(_few_lines,))
_CARD_ACTION = Object(
    {
        "buttons": ListOf(_CARD_BUTTON, CARD_BUTTONS),
        "name": NAME,
        "parameters": Object({"display_text": Text(CTA_URL_TEXT), "url": Url()}),
        "catalog_id": Identifier(empty=True),
        "product_retailer_id": Identifier(empty=True),
    }
)
_CARD = Object(
    {"card_index": Anything(), "type": NAME, "header": HEADER, "body": _CARD_BODY, "action": _CARD_ACTION},
    needed=("action",),
    rules=(_opens_its_link,),
)

INTERACTIVE = Variants(
    "type",
    {
        "button": _kind(Object({"buttons": ListOf(_BUTTON, BUTTONS)}, needed=("buttons",), rules=(_unique_buttons,))),
        "list": _kind(
            Object(
                {"button": Text(LIST_BUTTON), "sections": ListOf(_ROWS, LIST_SECTIONS)},
                needed=("button", "sections"),
                rules=(_sections("rows", LIST_ROWS.most, "rows"), _unique_rows),
            ),
            body=LIST_BODY,
            header=TEXT_HEADER,
        ),
        "cta_url": _kind(_CTA_URL),
        "flow": _kind(_action("flow", _FLOW)),
        "product": _kind(_ONE_PRODUCT, optional="body"),
        "product_list": _kind(
            Object(
                {"catalog_id": Identifier(), "sections": ListOf(_PRODUCTS, PRODUCT_SECTIONS)},
                needed=("catalog_id", "sections"),
                rules=(_sections("product_items", PRODUCTS.most, "products"),),
            ),
            "header",
            header=TEXT_HEADER,
        ),
        "catalog_message": _kind(_action("catalog_message")),
        "location_request_message": _kind(_action("send_location")),
        "address_message": _kind(_action("address_message", Object({"country": Text(COUNTRY)}, needed=("country",)))),
        "call_permission_request": _kind(_action("call_permission_request")),
        "voice_call": _kind(
            _action("voice_call", Object({"display_text": Text(VOICE_CALL_TEXT, empty=True)})), optional="body"
        ),
        "request_contact_info": _kind(_action("request_contact_info")),
        "carousel": _kind(Object({"cards": ListOf(_CARD, CAROUSEL_CARDS)}, needed=("cards",))),
    },
)
