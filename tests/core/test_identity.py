"""Who a customer is, held against the forms in which Meta and people write phones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.identity import (
    address,
    check_portfolio,
    customer_key,
    group_key,
    group_of,
    is_customer,
    mark_key,
    normalise_wa_id,
    number_key,
    portfolio_of,
    record_key,
    same_phone,
    whatsapp_id,
)


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("15550001234", "15550001234"),
        ("+1 (555) 000-1234", "15550001234"),
        ("+1\u00a0555\u2011000\u20111234", "15550001234"),
        ("\u202a+15550001234\u202c", "15550001234"),
        ("001 555 000 1234", "15550001234"),
        ("4915112345678", "4915112345678"),
        ("551187654321", "5511987654321"),
        ("5511987654321", "5511987654321"),
        ("+55 11 98765-4321", "5511987654321"),
        ("551133334444", "551133334444"),
        ("5215512345678", "525512345678"),
        ("525512345678", "525512345678"),
        ("541112345678", "5491112345678"),
        ("5491112345678", "5491112345678"),
    ],
)
def test_a_phone_has_one_form_however_it_is_written(written: str, normal: str) -> None:
    """Two forms would be two customers: two windows, two orders, two pair budgets at Meta's one."""
    assert normalise_wa_id(written) == normal


@pytest.mark.parametrize("text", ["", "   ", "US.13491208655302741918", "abc", "٣٤٥", "²", "1" * 21, "#12", "00"])
def test_what_is_no_phone_has_no_form(text: str) -> None:
    """A BSUID or a word taken for a phone would be addressed as one."""
    assert normalise_wa_id(text) == ""


@given(st.text(max_size=30) | st.from_regex(r"(00|\+)?5[245][0-9]{8,12}", fullmatch=True))
def test_normalising_twice_is_normalising_once(text: str) -> None:
    """A key that is made into a key again must stay the same customer."""
    once = normalise_wa_id(text)
    assert normalise_wa_id(once) == once
    assert once == "" or (once.isascii() and once.isdigit())


def test_a_phone_goes_before_a_bsuid() -> None:
    """Statuses of sends to a phone carry the phone; the key must be the one the customer writes under."""
    assert customer_key("main", "+1 555 000 1234", "US.13") == "main:15550001234"
    assert customer_key("main", "", "US.13") == "main:US.13"


def test_a_bsuid_means_something_within_its_portfolio_only() -> None:
    """The same person has another BSUID in each portfolio, and two persons may have the same."""
    assert customer_key("one", "", "US.13") != customer_key("two", "", "US.13")


@pytest.mark.parametrize(("wa_id", "bsuid"), [("", ""), (" ", ""), ("", " "), ("", "#US.1"), ("#1", "")])
def test_nobody_has_no_key(wa_id: str, bsuid: str) -> None:
    """A made-up key would gather strangers into one customer."""
    with pytest.raises(ValueError, match="no customer"):
        customer_key("main", wa_id, bsuid)
    assert record_key("main", "1065", wa_id=wa_id, bsuid=bsuid) == number_key("main", "1065")


@given(st.lists(st.text(min_size=1, max_size=400), min_size=2, max_size=2, unique_by=str.strip))
def test_two_ids_that_are_no_phones_are_two_people(ids: list[str]) -> None:
    """Fixtures of the field write "user-1" for a phone, Meta an id longer than any today: none may share a state."""
    keys = []
    for wa_id in ids:
        if normalise_wa_id(wa_id) or not wa_id.strip() or wa_id.strip()[0] == "#":
            return
        keys.append(customer_key("main", wa_id, ""))
    assert keys[0] != keys[1]
    assert all(len(key) <= 262 and is_customer(key) for key in keys)


def test_a_bsuid_of_digits_alone_is_not_the_customer_with_that_phone() -> None:
    """Meta's begin with a country and a dot. What says otherwise is somebody's fixture, or somebody's attempt."""
    key = customer_key("main", "", "15550001234")
    assert key != customer_key("main", "15550001234", "")
    assert address(key) == ("bsuid", "15550001234")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("5511987654321", "551187654321", True),
        ("+1 555 000 1234", "15550001234", True),
        ("user-1", "user-1", True),
        ("user-1", "user-2", False),
        ("15550001234", "15550001235", False),
    ],
)
def test_one_phone_is_known_in_all_its_forms(one: str, other: str, same: bool) -> None:
    """`from` and `wa_id` of one item may be written in two ways, and are one person; any other two are two."""
    assert same_phone(one, other) is same


def test_a_group_keeps_its_own_order() -> None:
    """What one member writes and what is delivered to another belong to the same thread."""
    assert record_key("main", "1065", wa_id="15550001234", group_id="Y2Fw") == "main:#group:Y2Fw"


def test_a_key_says_how_its_customer_is_addressed() -> None:
    """A synthesised status names its recipient from the key alone."""
    assert address("main:15550001234") == ("wa_id", "15550001234")
    assert address("main:US.13491208655302741918") == ("bsuid", "US.13491208655302741918")
    assert portfolio_of("main:US.13") == "main"


@pytest.mark.parametrize(
    "key", [number_key("main", "1065"), group_key("main", "Y2:F"), mark_key("main", "wamid.H"), "main:", "main", ""]
)
def test_what_names_no_customer_has_no_address(key: str) -> None:
    """A state kept under a pseudo key would grow with every mark."""
    assert not is_customer(key)
    with pytest.raises(ValueError, match="no customer"):
        address(key)


@pytest.mark.parametrize("name", ["", "a:b", "a\n"])
def test_a_portfolio_that_would_blur_keys_is_refused(name: str) -> None:
    """With a colon in it, portfolio "a" and customer "b:1" would be portfolio "a:b" and customer "1"."""
    with pytest.raises(ValueError, match="portfolio"):
        check_portfolio(name)
    check_portfolio("main")


@pytest.mark.parametrize(
    ("dialled", "wa_id"),
    [
        ("+49 1555 000-1234", "4915550001234"),
        ("0049 1555 0001234", "4915550001234"),
        ("5511900001234", "5511900001234"),
        ("+55 31 90000-1234", "553100001234"),
        ("553100001234", "553100001234"),
        ("+52 55 1234 5678", "5215512345678"),
        ("5215512345678", "5215512345678"),
        ("+54 11 1234 5678", "5491112345678"),
        ("5491112345678", "5491112345678"),
        ("CAFE", ""),
        ("", ""),
    ],
)
def test_the_wa_id_of_an_answer_is_the_one_webhooks_most_likely_carry(dialled: str, wa_id: str) -> None:
    """Listeners of a bot match on it; a reply's own address never changes."""
    assert whatsapp_id(dialled) == wa_id
    assert whatsapp_id(wa_id) == wa_id


def test_a_groups_key_gives_its_id_back_and_no_other_key_does() -> None:
    """A send to it that fails is reported on as Meta would: by the group's own id."""
    assert group_of(group_key("main", "Y2:F=")) == "Y2:F="
    for key in (number_key("main", "1065"), mark_key("main", "wamid.H"), customer_key("main", "15550001234", "")):
        assert group_of(key) == ""
