"""Every limit on what a message may hold, each with its source.

"Meta" is the platform's documentation of that message type, as of September 2026. "Field": documented nowhere, but
held by libraries that run against the platform. "Ours": nothing is documented, so it only keeps one message from
being absurd, and is far above what anybody has been seen to use.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Limit(Struct, frozen=True):
    """One limit, inclusive. `most` counts characters (Unicode code points) of a string, or elements of a list."""

    most: int
    source: Literal["Meta", "Field", "Ours"]
    least: int = 1


TEXT_BODY = Limit(4_096, "Meta")
CAPTION = Limit(1_024, "Meta")
INTERACTIVE_BODY = Limit(1_024, "Meta")
LIST_BODY = Limit(4_096, "Meta")
HEADER_TEXT = Limit(60, "Meta")
FOOTER_TEXT = Limit(60, "Meta")
BUTTONS = Limit(3, "Meta")
BUTTON_TITLE = Limit(20, "Meta")
BUTTON_ID = Limit(256, "Meta")
LIST_BUTTON = Limit(20, "Meta")
LIST_SECTIONS = Limit(10, "Meta")
LIST_ROWS = Limit(10, "Meta")
"""Of one section, and of all sections together."""
SECTION_TITLE = Limit(24, "Meta")
ROW_TITLE = Limit(24, "Meta")
ROW_ID = Limit(200, "Meta")
ROW_DESCRIPTION = Limit(72, "Meta")
CTA_URL_TEXT = Limit(20, "Meta")
VOICE_CALL_TEXT = Limit(20, "Meta")
FLOW_CTA = Limit(30, "Field")
PRODUCT_SECTIONS = Limit(10, "Meta")
PRODUCTS = Limit(30, "Meta")
"""Of one section, and of all sections together."""
CAROUSEL_CARDS = Limit(10, "Meta", least=2)
CARD_BODY = Limit(160, "Meta")
CARD_LINE_BREAKS = Limit(2, "Meta", least=0)
CARD_REPLY_ID = Limit(20, "Meta")
CARD_REPLY_TITLE = Limit(20, "Meta")
CARD_BUTTONS = Limit(3, "Ours")
CONTACTS = Limit(257, "Meta")
OPAQUE = Limit(512, "Meta")
DIRECT_SEND_BODY = Limit(1_024, "Meta")
"""Of a free-form message with a category, which is charged and treated as a template."""
TEMPLATE_TEXT = Limit(32_768, "Meta")
"""Of the body of a template that has nothing but a body."""
TEMPLATE_TEXT_BESIDE_OTHERS = Limit(1_024, "Meta")
"""Of the body of a template that has a header or buttons, too."""
TEMPLATE_NAME = Limit(512, "Meta")
TEMPLATE_CARDS = Limit(10, "Meta")

LANGUAGE = Limit(32, "Ours")
COUNTRY = Limit(2, "Meta", least=2)
COMPONENTS = Limit(32, "Ours", least=0)
PARAMETERS = Limit(256, "Ours", least=0)
ELEMENTS = Limit(256, "Ours", least=0)
"""Phones of a contact, and the like."""
EMOJI = Limit(64, "Ours")
"""A family of four is seven code points, a flag of a region up to fourteen."""
KIND = Limit(64, "Ours")
"""The name of a message type or of anything else with kinds."""
BSUID = Limit(300, "Ours")
"""Meta's are `CC.` and up to 128 characters; drafts of its pages said 256."""
ID = Limit(1_024, "Ours")
"""Of a message, a group, a file, a product: several times what Meta has ever used."""
URL = Limit(2_048, "Ours")
WORDS = Limit(4_096, "Ours")
"""Where Meta documents no limit: no name of anything is longer than the longest text."""
