"""Who a customer is: every rule by which a record gets its customer key, and what a key says back.

A key is `<portfolio>:<wa_id>` in one normal form, `<portfolio>:<bsuid>` where no phone is known, and `<portfolio>:#…`
for what concerns no customer. A portfolio's name holds no colon (`check_portfolio`), so the first colon ends it.
How a person moves from one key to another is `moves.py`'s.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from schemas.ids import CustomerKey

DIGITS_MAX = 20
"""E.164 ends at 15 digits; test numbers and odd ids of Meta's may be longer. Beyond it, it is no phone."""

ID_CHARS_MAX = 256
"""A longer id is keyed by its digest: a key stands in every record, and in what Meta hands back to us (512 characters).
Meta's own have at most 138 (country, dot, 128 characters; `ENT.` in a parent's)."""

_BLANKS = str.maketrans("", "", "+-.()/ \t\r\n\u00a0\u2007\u200b\u200e\u200f\u2010\u2011\u2013\u202a\u202c\u202f")
"""What people and spreadsheets put between digits, the invisible marks that are copied along included."""


def normalise_wa_id(text: str) -> str:
    """Return the one form of a phone number or wa_id that keys are made of: digits alone, or "" when it is no phone.

    The same phone is written in two ways in three countries, and Meta's `wa_id` may be either. Normal form is: Brazil
    with the ninth digit of mobiles, Mexico without the 1, Argentina with the 9.
    Source: Meta, "Send messages", Brazil and Mexico; chatwoot issue 13932.
    """
    digits = text if text.isascii() and text.isdigit() else text.translate(_BLANKS)
    if not (digits.isascii() and digits.isdigit()):
        return ""
    if digits.startswith("00"):  # dialled from abroad; no country's code begins with a zero
        digits = digits.lstrip("0")
    if not 0 < len(digits) <= DIGITS_MAX:
        return ""
    if len(digits) == 12:
        if (
            digits.startswith("55") and digits[4] in "6789"
        ):  # 55, area, eight digits of a mobile: landlines begin 2 to 5
            return f"{digits[:4]}9{digits[4:]}"
        if digits.startswith("54") and digits[2] != "9":
            return f"549{digits[2:]}"
    elif len(digits) == 13 and digits.startswith("521"):
        return f"52{digits[3:]}"
    return digits


def whatsapp_id(text: str) -> str:
    """Return the `wa_id` by which webhooks most likely speak of whoever has this phone; "" when it is no phone.

    Replies are addressed by what a webhook said, so what may be a `wa_id` stays as it is. Changed is only what rarely
    is one: Mexico without its 1, Argentina without its 9, Brazil with the ninth digit outside of São Paulo, Rio de
    Janeiro and Espírito Santo (area codes below 31), where Meta's ids kept eight.
    Source: megaapp977/stack issue 576.
    """
    digits = text if text.isascii() and text.isdigit() else text.translate(_BLANKS)
    if not normalise_wa_id(digits):
        return ""
    if digits.startswith("00"):
        digits = digits.lstrip("0")
    if len(digits) == 12 and digits.startswith("52") and digits[2] != "1":
        return f"521{digits[2:]}"
    if len(digits) == 12 and digits.startswith("54") and digits[2] != "9":
        return f"549{digits[2:]}"
    if len(digits) == 13 and digits.startswith("55") and digits[2:4] >= "31" and digits[4] == "9":
        return digits[:4] + digits[5:]
    return digits


def customer_key(portfolio: str, wa_id: str, bsuid: str) -> CustomerKey:
    """Return a customer's key: by phone where one is known, else by BSUID, which means something in one portfolio only.

    A `wa_id` that is no phone is an id like any other, and counts where there is no BSUID: two of them are two people.
    Raises `ValueError` when neither identifies anybody; `record_key` then says where the record belongs.
    """
    value = normalise_wa_id(wa_id) if wa_id else ""
    if not value:
        value = bsuid.strip() or wa_id.strip()
        if value.isascii() and value.isdigit():
            value = "." + value  # no BSUID of Meta's is digits alone, and no phone's key may be had by calling it one
    if not value or value[0] == "#":
        raise ValueError("neither a phone nor a BSUID: this names no customer")
    if len(value) > ID_CHARS_MAX:
        value = "~" + hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return CustomerKey(f"{portfolio}:{value}")


def same_phone(one: str, other: str) -> bool:
    """Whether two texts name one phone, in whichever of its forms; ids that are no phones must be equal."""
    return one == other or (normalise_wa_id(one) or one) == (normalise_wa_id(other) or other)


def number_key(portfolio: str, phone_number_id: str) -> CustomerKey:
    """Return the key of what concerns a business number and no customer."""
    return CustomerKey(f"{portfolio}:#{phone_number_id}")


def group_key(portfolio: str, group_id: str) -> CustomerKey:
    """Return the key of a group: its messages, statuses and changes keep their order among themselves."""
    return CustomerKey(f"{portfolio}:#group:{group_id}")


def group_of(key: str) -> str:
    """Return the id of the group a key names, "" when it names none."""
    group_id = key.partition(":")[2]
    return group_id.removeprefix("#group:") if group_id.startswith("#group:") else ""


def account_key(portfolio: str, waba_id: str) -> CustomerKey:
    """Return the key of what concerns a WhatsApp Business Account and none of its numbers."""
    return CustomerKey(f"{portfolio}:#account:{waba_id}")


def mark_key(portfolio: str, wamid: str) -> CustomerKey:
    """Return the key of a read mark or typing indicator: it names a message and no customer."""
    return CustomerKey(f"{portfolio}:#mark:{wamid}")


def record_key(
    portfolio: str, phone_number_id: str, *, wa_id: str = "", bsuid: str = "", group_id: str = ""
) -> CustomerKey:
    """Return the key of anything that concerns a number, whatever is known about it. Never fails."""
    if group_id:
        return group_key(portfolio, group_id)
    try:
        return customer_key(portfolio, wa_id, bsuid)
    except ValueError:
        return number_key(portfolio, phone_number_id)


def is_customer(key: str) -> bool:
    """Whether the key names a customer; if not, it names a number, a group or a mark."""
    _, colon, value = key.partition(":")
    return bool(colon and value) and value[0] != "#"


def address(key: str) -> tuple[Literal["wa_id", "bsuid"], str]:
    """Return how the customer is addressed: the phone in its normal form, or the BSUID.

    Meta takes the normal form of a phone for any other. Raises `ValueError` for a key that names no customer.
    """
    _, _, value = key.partition(":")
    if not value or value[0] == "#":
        raise ValueError("the key names no customer")
    return ("wa_id", value) if value.isascii() and value.isdigit() else ("bsuid", value.removeprefix("."))


def portfolio_of(key: str) -> str:
    """Return the portfolio within which the key means something."""
    return key.partition(":")[0]


def check_portfolio(name: str) -> None:
    """Raise `ValueError` when a configured portfolio could not be told from the rest of a key."""
    if not name or ":" in name or not name.isprintable():
        raise ValueError(f"a portfolio is named by printable characters without a colon, not {name!r}")
