"""Every message that pywa can build: what a bot of other people sends is taken, by the gateway and by the referee."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pywa import WhatsApp
from pywa import types as made
from pywa.types import templates as filled

from broker.core.message import Outgoing, check
from broker.sandbox.payload import Outgoing as Read
from broker.sandbox.payload import read

CUSTOMER = "4915550001234"
LINK = "https://example.com/a"
WHEN = dt.datetime(2027, 1, 1, tzinfo=dt.UTC)

ROWS = [made.Section("S", rows=[made.SectionRow("T", "r1", "D"), made.SectionRow("U", "r2")])]
CARDS = [made.ImageCarouselCard(image=LINK, body="B", buttons=made.URLButton(title="Open", url=LINK))] * 2
REPLIES = [
    made.VideoCarouselCard(video=LINK, buttons=[made.Button("Yes", "y1"), made.Button("No", "n1")]),
    made.ImageCarouselCard(image=LINK, buttons=[made.Button("Yes", "y2"), made.Button("No", "n2")]),
]
CONTACT = made.Contact(
    name=made.Contact.Name(formatted_name="Ada L", first_name="Ada"),
    birthday="1815-12-10",
    phones=[made.Contact.Phone(phone="+441", type="MOBILE", wa_id="441")],
    emails=[made.Contact.Email(email="ada@example.com", type="WORK")],
    urls=[made.Contact.Url(url=LINK)],
    addresses=[made.Contact.Address(street="S", city="London", country_code="GB")],
    org=made.Contact.Org(company="C", title="T"),
)

SENDS: dict[str, Callable[[WhatsApp], Any]] = {
    "text": lambda bot: bot.send_message(CUSTOMER, "hi", preview_url=True, reply_to_message_id="wamid.H", tracker="t"),
    "buttons": lambda bot: bot.send_message(
        CUSTOMER, "hi", header="H", footer="F", buttons=[made.Button("A", "a"), made.Button("B", "b")]
    ),
    "list": lambda bot: bot.send_message(CUSTOMER, "hi", buttons=made.SectionList("Choose", sections=ROWS)),
    "url": lambda bot: bot.send_message(CUSTOMER, "hi", buttons=made.URLButton(title="Open", url=LINK)),
    "voice call": lambda bot: bot.send_message(CUSTOMER, "hi", buttons=made.VoiceCallButton(title="Call")),
    "call permission": lambda bot: bot.send_message(CUSTOMER, "hi", buttons=made.CallPermissionRequestButton()),
    "contact info": lambda bot: bot.send_message(CUSTOMER, "hi", buttons=made.ContactInfoRequestButton()),
    "flow": lambda bot: bot.send_message(CUSTOMER, "hi", buttons=made.FlowButton(title="Book", flow_id="1")),
    "flow with a screen": lambda bot: bot.send_message(
        CUSTOMER,
        "hi",
        buttons=made.FlowButton(
            title="Book",
            flow_name="booking",
            flow_token="t",
            flow_action_type=made.FlowActionType.NAVIGATE,
            flow_action_screen="START",
        ),
    ),
    "image": lambda bot: bot.send_image(CUSTOMER, LINK, caption="c"),
    "image with buttons": lambda bot: bot.send_image(CUSTOMER, LINK, caption="c", buttons=[made.Button("A", "a")]),
    "video": lambda bot: bot.send_video(CUSTOMER, "17", caption="c"),
    "audio": lambda bot: bot.send_audio(CUSTOMER, "17"),
    "voice": lambda bot: bot.send_voice(CUSTOMER, "17"),
    "sticker": lambda bot: bot.send_sticker(CUSTOMER, "17"),
    "document": lambda bot: bot.send_document(CUSTOMER, "17", filename="a.pdf", caption="c"),
    "reaction": lambda bot: bot.send_reaction(CUSTOMER, "👍", "wamid.H"),
    "reaction taken back": lambda bot: bot.remove_reaction(CUSTOMER, "wamid.H"),
    "location": lambda bot: bot.send_location(CUSTOMER, 52.5, 13.4, "N", "A"),
    "location request": lambda bot: bot.request_location(CUSTOMER, "Where?"),
    "contact": lambda bot: bot.send_contact(CUSTOMER, CONTACT),
    "catalog": lambda bot: bot.send_catalog(CUSTOMER, "B", footer="F", thumbnail_product_sku="sku"),
    "product": lambda bot: bot.send_product(CUSTOMER, "1", "sku", "B", "F"),
    "products": lambda bot: bot.send_products(CUSTOMER, "1", [made.ProductsSection("S", ["a", "b"])], "T", "B", "F"),
    "carousel of links": lambda bot: bot.send_carousel(CUSTOMER, body="B", cards=CARDS),
    "carousel of buttons": lambda bot: bot.send_carousel(CUSTOMER, body="B", cards=REPLIES),
    "read mark": lambda bot: bot.mark_message_as_read("wamid.H"),
    "typing": lambda bot: bot.indicate_typing("wamid.H"),
    "pin": lambda bot: bot.pin_message(CUSTOMER, "wamid.H", expiration_days=7),
}

CARD = filled.CarouselCard.params(
    index=0,
    params=[
        filled.HeaderImage.params(image="17"),
        filled.BodyText.params("x"),
        filled.QuickReplyButton.params(callback_data="x", index=0),
    ],
)
COMPONENTS: dict[str, Any] = {
    "body": filled.BodyText.params("x", "y"),
    "body by name": filled.BodyText.params(name="x"),
    "currency": filled.BodyText.params(filled.Currency(fallback_value="1 $", code="USD", amount_1000=1_000)),
    "date": filled.BodyText.params(filled.DateTime(fallback_value="today")),
    "header": filled.HeaderText.params("x"),
    "header image": filled.HeaderImage.params(image=LINK),
    "header video": filled.HeaderVideo.params(video="17"),
    "header document": filled.HeaderDocument.params(document="17", filename="a.pdf"),
    "header gif": filled.HeaderGIF.params(gif="17"),
    "header location": filled.HeaderLocation.params(lat=1, lon=2, name="N", address="A"),
    "header product": filled.HeaderProduct.params(catalog_id="1", sku="sku"),
    "url": filled.URLButton.params(url_variable="x", index=0),
    "quick reply": filled.QuickReplyButton.params(callback_data="x", index=1),
    "coupon": filled.CopyCodeButton.params(coupon_code="X", index=0),
    "flow": filled.FlowButton.params(index=0, flow_token="t", flow_action_data={"a": 1}),
    "catalog": filled.CatalogButton.params(index=0, thumbnail_product_sku="sku"),
    "products": filled.MPMButton.params(
        product_sections=[made.ProductsSection("S", ["a"])], thumbnail_product_sku="sku", index=0
    ),
    "one-time code": filled.AuthenticationBody.params(otp="123456"),
    "one-time code's button": filled.OneTapOTPButton.params(otp="123456"),
    "offer": filled.LimitedTimeOffer.params(expiration_time=WHEN),
    "app link": filled.TapTargetConfiguration(url=LINK, title="Open"),
    "carousel": filled.Carousel.params(cards=[CARD]),
}


def sent(send: Callable[[WhatsApp], Any]) -> list[tuple[str, bytes]]:
    """What pywa asks Graph for: path and body of each request."""
    seen: list[tuple[str, bytes]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.path, request.content))
        contacts = [{"input": CUSTOMER, "wa_id": CUSTOMER}]
        messages = [{"id": "wamid.H", "message_status": "accepted"}]
        return httpx.Response(200, json={"contacts": contacts, "messages": messages, "success": True})

    graph = httpx.Client(transport=httpx.MockTransport(answer), base_url="https://graph.facebook.com")
    send(WhatsApp(phone_id="106540352242922", token="t", session=graph))
    return seen


@pytest.mark.parametrize("name", SENDS)
def test_what_pywa_sends_is_taken(name: str) -> None:
    """By the gateway with unknown types refused, and by the referee: nothing in it is a guess."""
    ((path, body),) = sent(SENDS[name])
    assert path.endswith("/messages")
    taken = check(body, unknown_types=False)
    assert isinstance(taken, Outgoing), (taken, body)
    understood = read(json.loads(body))
    assert isinstance(understood, Read), (understood, body)
    assert (taken.kind, taken.message_type) == (understood.kind, understood.type)


@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize("marketing", [False, True])
def test_what_pywa_fills_into_a_template_is_taken(name: str, marketing: bool) -> None:
    """At either endpoint."""
    language = filled.TemplateLanguage.GERMAN
    ((path, body),) = sent(
        lambda bot: bot.send_template(CUSTOMER, "t", language, [COMPONENTS[name]], use_mm_lite_api=marketing)
    )
    assert path.endswith("/marketing_messages" if marketing else "/messages")
    taken = check(body, unknown_types=False, marketing=marketing)
    assert isinstance(taken, Outgoing), (taken, body)
    understood = read(json.loads(body), marketing=marketing)
    assert isinstance(understood, Read), (understood, body)
    assert taken.template == "t"
