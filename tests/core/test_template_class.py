"""Why a template message exists: by its category, as far as it is known."""

from __future__ import annotations

import json

from broker.core.template_class import NAMES_MAX, TemplateClasses, note, read_page

NUMBER, OTHER = "1", "2"


def classes() -> TemplateClasses:
    """Two accounts, of which one list was read."""
    found = TemplateClasses({NUMBER: "w1", OTHER: "w2"}, {"by_hand": "otp"})
    found.replace("w1", {"sale": "MARKETING", "parcel": "UTILITY", "code": "AUTHENTICATION", "by_hand": "MARKETING"})
    return found


def test_a_category_decides_the_class() -> None:
    """A campaign must not go before replies, and a code must not wait behind a campaign."""
    found = classes()
    assert [found.class_of(NUMBER, name, "reply") for name in ("sale", "parcel", "code")] == [
        "campaign",
        "transactional",
        "otp",
    ]
    assert found.category(NUMBER, "sale") == "MARKETING"


def test_the_settings_win() -> None:
    """Meta's category is about price; an operator may know better why a message goes out."""
    assert classes().class_of(NUMBER, "by_hand", "reply") == "otp"
    assert classes().is_known(OTHER, "by_hand")
    assert [classes().is_named(name) for name in ("by_hand", "sale")] == [True, False]


def test_an_unknown_template_goes_as_its_key_s_messages_do_but_never_as_a_reply() -> None:
    """Nobody unheard of delays a conversation."""
    found = classes()
    assert not found.is_known(OTHER, "sale")
    assert found.class_of(OTHER, "sale", "reply") == "transactional"
    assert found.class_of(OTHER, "sale", "campaign") == "campaign"
    assert found.class_of(OTHER, "sale", "otp") == "otp"
    assert found.class_of("999", "sale", "transactional") == "transactional"


def test_of_two_languages_the_more_patient_category_counts() -> None:
    """Meta moved one of them to marketing: the name alone does not say which will be sent."""
    page = read_page(
        json.dumps(
            {
                "data": [
                    {"name": "a", "category": "UTILITY"},
                    {"name": "a", "category": "MARKETING"},
                    {"name": "a", "category": "AUTHENTICATION"},
                    {"name": "b", "category": "NEWS"},
                    {"name": 7, "category": "UTILITY"},
                    "odd",
                ],
                "paging": {"cursors": {"after": "x"}, "next": "https://…"},
            }
        ).encode()
    )
    assert page is not None
    assert (page.categories, page.after) == ({"a": "MARKETING"}, "x")


def test_the_last_page_has_no_next_and_what_is_no_page_is_none() -> None:
    """Cursors stand on the last page, too; only `next` tells."""
    page = read_page(b'{"data": [], "paging": {"cursors": {"after": "x"}}}')
    assert page is not None
    assert page.after == ""
    for body in (b"", b"{", b"[]", b'{"data": 1}', b'{"error": {}}'):
        assert read_page(body) is None


def test_the_names_of_one_account_are_bounded() -> None:
    """A list that never ends must not fill our memory."""
    categories: dict[str, str] = {}
    for number in range(NAMES_MAX + 5):
        note(categories, str(number), "UTILITY")
    note(categories, "0", "MARKETING")
    assert len(categories) == NAMES_MAX
    assert categories["0"] == "MARKETING"
