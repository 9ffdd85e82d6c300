"""What a record looks like to a person: readable where it can be, masked, and never able to steer a terminal."""

from __future__ import annotations

import json

import msgspec
import pytest

from broker import inspect
from broker.core.consent import Change
from broker.core.customer_state import Customer, Known, pack, pack_send_id, pack_wamid
from broker.core.opaque import derived_send_id
from broker.log.contract import Entry
from broker.masking import Masking
from schemas.records import DeadLetter, Item, Withdraw, encode

NUMBER = "4915550001234"
MASKING = Masking()
LATE = 12_345_678_901
"""An offset with as many digits as a phone number."""


def entry(value: bytes, key: bytes = b"main:4915550001234") -> Entry:
    """Return a record far along its partition."""
    return Entry("deadletters", 0, LATE, key, value, 1_700_000_000_123)


def letter(value: bytes, detail: str = "") -> bytes:
    """Return an encoded dead letter."""
    return encode(
        DeadLetter("conversations", 3, LATE, b"k", value, "customer", "malformed", detail, 2, 1_700_000_000_000)
    )


def test_places_and_instants_are_not_taken_for_numbers() -> None:
    """`deadletters show` is given the place that `list` printed: masked it would be useless."""
    line = inspect.dead_letter_line(entry(letter(b"x", f"from {NUMBER}")), MASKING)
    assert line == (
        f"0/{LATE} 2023-11-14T22:13:20.000Z customer malformed after 2 (conversations/3/{LATE}) from ••••234"
    )
    line = inspect.as_line(entry(letter(b"x")), MASKING)
    assert line.startswith(f"0/{LATE} 2023-11-14T22:13:20.123Z main:••••234 dead ")
    assert f"offset={LATE}" in line
    assert "at=1700000000000" in line


def test_masking_reaches_every_text_and_keeps_names_apart() -> None:
    """Bodies come from outside: a number may stand anywhere, even as a name."""
    tree = {"a": [NUMBER, {"b": f"+{NUMBER}!"}], NUMBER: 1, "4999990001234": 2, "at": 1_700_000_000_000, "none": None}
    assert MASKING.tree(tree) == {
        "a": ["••••234", {"b": "+••••234!"}],
        "••••234": 1,
        "••••234′": 2,
        "at": 1_700_000_000_000,
        "none": None,
    }


@pytest.mark.parametrize("bad", ["\x1b[2J", "\r\nforged line", "\u202egnp", "\x9b31m", "\x00"])
def test_what_steers_a_terminal_is_escaped(bad: str) -> None:
    """Whoever signs a webhook must not write on the operator's screen."""
    for line in (
        inspect.dead_letter_line(entry(letter(b"x", f"begin {bad} end")), MASKING),
        inspect.as_line(entry(letter(f"begin {bad} end".encode(), f"begin {bad} end"), bad.encode()), MASKING),
    ):
        assert line.isprintable()


def test_a_withdrawal_on_a_lane_is_readable_and_its_customer_masked() -> None:
    """Who asks why a campaign's message did not go finds it with `depesche tail sends.reply`."""
    withdraw = Withdraw(derived_send_id("tests", "offer"), 1, "106540352242922", f"main:{NUMBER}", 1_700_000_000_000)
    line = inspect.as_line(entry(encode(withdraw)), MASKING)
    assert f" withdraw send_id={withdraw.send_id} attempt=1 " in line
    assert NUMBER not in line


def test_a_text_of_several_lines_is_a_text() -> None:
    """Most bodies that do not parse end in a line end."""
    assert inspect.readable(b"{not json\n") == "{not json\n"
    assert inspect.readable(b"\xff\x00") == "base64:/wA="


def test_a_structure_we_do_not_know_is_shown_as_it_is() -> None:
    """A stage's own memory, or a record of a version to come."""
    value = msgspec.msgpack.encode(["step", {b"key": b"\x00\x01"}, {7: None}, 1.5, True])
    assert inspect.record_tree(value) == {
        "type": "structure",
        "value": ["step", {"key": "base64:AAE="}, {"7": None}, 1.5, True],
    }
    assert inspect.record_tree(b"7") == {"unreadable": "7"}
    assert json.loads(msgspec.json.encode(inspect.as_tree(entry(value))))["record"]["type"] == "structure"


@pytest.mark.parametrize("depth", [inspect.NESTING_MAX + 1, 450, 900, 100_000])
def test_what_is_nested_too_deeply_is_shown_as_bytes(depth: int) -> None:
    """One signed webhook full of brackets must not hide every record after it."""
    assert inspect.record_tree(b"\x91" * depth + b"\x01")["unreadable"].startswith("base64:")
    item = Item(kind="message", field="messages", app="a", waba_id="1", phone_number_id="2", dedupe="d", at=1,
                received_at=1, body=b"[" * depth + b"]" * depth)  # fmt: skip
    shown = MASKING.tree(inspect.as_tree(entry(encode(item))))
    assert shown["record"]["body"] == "[" * depth + "]" * depth
    assert inspect.as_line(entry(encode(item)), MASKING).isprintable()


def test_a_customers_state_is_shown_by_name_with_the_proof_of_an_opt_out() -> None:
    """Somebody asks why no offer came: the answer is what they said, when, to which number, and in which message."""
    stop = Change(1_790_000_000_000, True, "106540352242922", "word:stop", "wamid.HBgL")
    send_id, wamid = "wamid.D0123456789ABCDEFGHJKMNPQRS", "wamid.HBgLMTU1NTAwMDEyMzQVAgARGBI4RDMxQzQ2RDM2QjMyRjE2NjcA"
    known = Known(pack_send_id(send_id), pack_wamid(wamid), "assistant")
    customer = Customer(taken=b"x" * 26, windows={"106540352242922": 5}, consent=[stop], known=[known])
    entry = Entry("state", 0, 1, b"main:15550001234", pack(customer), 0)
    tree = inspect.as_tree(entry)["record"]
    assert tree == {
        "type": "customer",
        "taken": "26 bytes",
        "windows": {"106540352242922": 5},
        "known": [{"send_id": send_id, "wamid": wamid, "sink": "assistant", "own": None}],
        "consent": [
            {
                "at": "2026-09-21T14:13:20.000Z",
                "stopped": True,
                "number": "106540352242922",
                "source": "word:stop",
                "proof": "wamid.HBgL",
            }
        ],
    }
    assert "15550001234" not in inspect.as_line(entry, MASKING)
    assert inspect.as_tree(Entry("state", 0, 2, b"\x00position", b"7", 0))["record"] == {"unreadable": "7"}
