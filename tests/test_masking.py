"""Nobody's phone number is shown unless asked for, in whatever form it comes; what an operator looks for is."""

from __future__ import annotations

import json
import re
import time
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker import inspect
from broker.core.customer_state import Customer, Held, Known, pack, pack_wamid
from broker.log.contract import Entry
from broker.log.position import POSITION, Place, Position, encode_position
from broker.masking import Masking
from schemas.records import DeadLetter, Item, encode

PHONE = "15550001234"
WAMID = "wamid.HBgLMTU1NTAwMDEyMzQVAgASGBQzQTQyNDUwQzA3Q0MxRjRCRDMyQgA="
OURS = "wamid.D0123456789ABCDEFGHJKMNPQRS"
NUMBER, ACCOUNT = "106540352242922", "102290129340398"
MASKING = Masking([NUMBER, ACCOUNT])
WEBHOOKS = sorted((Path(__file__).parent / "wire" / "webhooks").glob("*.json"))


def holds_a_phone(text: str) -> bool:
    """Whether the phone can be had from a text by whoever decodes what looks like base 64, from any character on."""
    if PHONE in text:
        return True
    for run in re.findall(r"[A-Za-z0-9+/]{8,}", text):
        for begin in range(4):
            part = run[begin:]
            if PHONE.encode() in b64decode(part + "A" * (-len(part) % 4)):
                return True
    return False


def test_the_check_of_these_tests_finds_a_phone_in_a_message_id() -> None:
    """Else they could not fail."""
    assert holds_a_phone(WAMID)
    assert holds_a_phone("x" + b64encode(b"ab" + PHONE.encode()).decode())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (WAMID, "wamid.…RDMyQgA="),
        (f'cut {{"id":"{WAMID}","x":1', 'cut {"id":"wamid.…RDMyQgA=","x":1'),
        (WAMID.replace("=", "\\u003d"), "wamid.…gA\\u003d"),
        (WAMID[:30], "wamid.…"),
        (WAMID.removeprefix("wamid."), "…RDMyQgA="),
        (f"messages/{WAMID}/x", "messages/wamid.…MyQgA=/x"),
        (f"main:#mark:{WAMID}", "main:#mark:wamid.…RDMyQgA="),
        (OURS, OURS),
        (f"dp1|{OURS}|assistant|main:{PHONE}", f"dp1|{OURS}|assistant|main:••••234"),
        (OURS + "A", "wamid.…"),
    ],
)
def test_a_message_id_of_metas_shows_its_end_alone(text: str, shown: str) -> None:
    """Its base 64 begins with the customer's digits. Our own ids hold none and are what one looks for."""
    assert MASKING.text(text) == shown
    assert not holds_a_phone(MASKING.text(text))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("+1 555-000-1234", "+••••234"),
        ("call +1 (555) 000 1234!", "call +••••234!"),
        ("06.12.34.56.78", "••••678"),
        ("٠١٢٣٤٥٦٧٨", "••••٦٧٨"),
        (f"+{NUMBER}", "+••••922"),
        (f"x{PHONE}y", "x••••234y"),
        ("base64:" + b64encode(b"\xff" + PHONE.encode()).decode(), "base64:… (12 bytes)"),
    ],
)
def test_a_phone_is_hidden_however_it_is_written(text: str, shown: str) -> None:
    """People write blanks and dashes; bytes that are no text may hold anything."""
    assert MASKING.text(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        NUMBER,
        f"main:#{NUMBER}",
        f"main:#account:{ACCOUNT}",
        f"numbers: {NUMBER} (found {NUMBER})",
        "2026-11-24T11:00:00.000Z",
        "open at Tue 2026-11-24 12:00 CET",
        "9f86d081884c7d659a2feaa0c55ad015",
        "123e4567-e89b-12d3-a456-426614174000",
        "http://192.168.100.200:8091/webhook: refused",
    ],
)
def test_what_one_looks_for_is_shown(text: str) -> None:
    """Ids of the operator's own numbers, instants, ids of logs and deliveries, where a sink is."""
    assert MASKING.text(text) == text


@pytest.mark.parametrize(
    "piece", ["1234-", "1 ", "1     ", "0-", "wamid.", "HBg", "1.2.3.4.", f"{NUMBER} ", "base64:", "0" * 40 + " "]
)
def test_a_large_body_is_masked_in_time_that_grows_with_its_size(piece: str) -> None:
    """Whoever signs a webhook must not keep an operator's command busy: quadratic, this would take minutes."""
    began = time.process_time()
    MASKING.text(piece * (1_000_000 // len(piece)))
    assert time.process_time() - began < 10


@pytest.mark.parametrize("name", ["wa_id", "from", "to", "recipient_id", "input", "key", "customer"])
def test_an_id_of_a_number_where_a_customer_stands_is_hidden(name: str) -> None:
    """In doubt it is somebody's phone, also where it is a number and not a text."""
    for value in (NUMBER, int(NUMBER), [NUMBER], f"main:{NUMBER}"):
        assert NUMBER not in json.dumps(MASKING.tree({name: value}))
    assert MASKING.tree({name: f"main:#{NUMBER}"}) == {name: f"main:#{NUMBER}"}
    assert MASKING.text("106540352242955") == "••••955", "nobody configured that one"


def test_numbers_in_bodies_are_hidden_but_for_instants() -> None:
    """A bot may write `to` as a number; a timestamp is one, too."""
    kept = {"timestamp": "1700000978", "sent": 1_700_000_978, "ok": True, "latitude": 52.5200066, "n": 12}
    own = {"at": 1_700_000_000_000, "offset": 12_345_678_901}
    assert MASKING.tree({**own, "body": {"to": 15550001234, "x": 4915550001234.0, **kept}}) == {
        **own,
        "body": {"to": "••••234", "x": "••••234", **kept},
    }
    assert MASKING.tree({"timestamp": PHONE, "text": "1700000978"}) == {"timestamp": "••••234", "text": "••••978"}


def test_a_customers_memory_shows_no_phone() -> None:
    """It packs message ids in fewer bytes, and keeps whole events: neither is text."""
    event = b"\x82\xff" + PHONE.encode()
    customer = Customer(known=[Known(b"\x01" * 16, pack_wamid(WAMID), "s"), Known(b"", pack_wamid(WAMID), "s")])
    customer.held = [Held("s", event, wamids=(WAMID,))]
    entry = Entry("state", 0, 1, f"main:{PHONE}".encode(), pack(customer), 0)
    assert holds_a_phone(msgspec.json.encode(inspect.as_tree(entry)).decode())
    assert not holds_a_phone(msgspec.json.encode(MASKING.tree(inspect.as_tree(entry))).decode())
    assert not holds_a_phone(inspect.as_line(entry, MASKING))
    place = Position({"conversations": Place("9f86d081884c7d659a2feaa0c55ad015", 7)}, b"")
    line = inspect.as_line(Entry("state", 0, 2, POSITION, encode_position(place), 0), MASKING)
    assert "9f86d081884c7d659a2feaa0c55ad015" in line
    assert inspect.readable(POSITION) in line


def test_a_dead_letter_shows_no_phone_where_its_detail_is_cut() -> None:
    """Half a number, or half a message id, no longer looks like one."""
    for length in range(130, 175):
        detail = "x" * (length - 20) + f" {WAMID} {PHONE} {WAMID}"
        letter = encode(DeadLetter("conversations", 0, 1, b"k", WAMID.encode(), "customer", "poison", detail, 1, 0))
        line = inspect.dead_letter_line(Entry("deadletters", 0, 0, b"k", letter, 0), MASKING)
        assert "1555" not in line
        assert "HBgL" not in line


@pytest.mark.parametrize("path", WEBHOOKS, ids=lambda path: path.stem)
def test_no_sample_of_metas_shows_a_phone_or_a_message_id(path: Path) -> None:
    """Every shape of webhook, as `tail --json` and as `tail` show it: read, and as a body that cannot be read."""
    raw = path.read_bytes()
    for body in (raw, raw[:-2], b"\xff" + raw):
        item = Item(kind="message", field="messages", app="a", waba_id=ACCOUNT, phone_number_id=NUMBER, at=1,
                    dedupe=f"{NUMBER}:{WAMID}", received_at=1, body=body, wa_id=PHONE, wamid=WAMID)  # fmt: skip
        entry = Entry("conversations", 0, 1, f"main:{PHONE}".encode(), encode(item), 1_700_000_000_000)
        tree: dict[str, Any] = MASKING.tree(inspect.as_tree(entry))
        for shown in (json.dumps(tree, ensure_ascii=False), inspect.as_line(entry, MASKING)):
            assert not holds_a_phone(shown)
            assert "HBg" not in shown
        assert tree["record"]["phone_number_id"] == NUMBER
