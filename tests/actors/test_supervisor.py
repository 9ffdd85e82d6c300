"""What becomes of a record that crashes whoever handles it."""

from __future__ import annotations

import logging

import pytest

from broker.log.contract import RECORD_BYTES_MAX, Entry
from schemas.records import decode_dead_letter
from workers.supervisor import DETAIL_CHARS_MAX, POISON, Crashes, dead_letter, describe


def entry(offset: int = 1, key: bytes = b"main:15550001234", value: bytes = b"value") -> Entry:
    return Entry("conversations", 3, offset, key, value, 0)


def crash(text: str = "no rule for 15550001234") -> Exception:
    try:
        raise KeyError(text)
    except KeyError as error:
        return error


def test_a_third_crash_is_one_too_many() -> None:
    """Twice may be chance; for ever would stop the partition."""
    crashes = Crashes("test")
    counts = [crashes.crashed(entry(), crash()) for _ in range(3)]
    assert counts == [1, 2, 3]
    assert counts[-1] == crashes.attempts_max
    assert crashes.crashed(entry(2), crash()) == 1


def test_a_settled_record_is_forgotten() -> None:
    """Otherwise memory grows with every record that ever crashed."""
    crashes = Crashes("test")
    crashes.crashed(entry(), crash())
    crashes.settled(entry())
    crashes.settled(entry(99))
    assert len(crashes) == 0
    assert crashes.attempts(entry()) == 0


def test_a_flood_of_crashes_stays_bounded() -> None:
    """A bug that crashes on every record must not fill the memory beside."""
    crashes = Crashes("test", places_max=10)
    for offset in range(50):
        crashes.crashed(entry(offset), crash())
    assert len(crashes) == 10
    assert crashes.attempts(entry(49)) == 1
    assert crashes.attempts(entry(0)) == 0


def test_a_crash_is_logged_with_its_places_and_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    """The text of an exception quotes what crashed it, which here is a customer's number."""
    with caplog.at_level(logging.ERROR):
        Crashes("test").crashed(entry(7), crash())
    assert "conversations/3@7" in caplog.text
    assert "test_supervisor.py" in caplog.text
    assert "15550001234" not in caplog.text


def test_a_dead_letter_can_be_replayed() -> None:
    """Key, value and place are all that a replay needs."""
    log, draft = dead_letter(entry(7), "customer", POISON, describe(crash()), 3, 1_000)
    assert log == "deadletters"
    assert draft.key == entry().key
    assert draft.value is not None
    letter = decode_dead_letter(draft.value)
    assert (letter.log, letter.partition, letter.offset) == ("conversations", 3, 7)
    assert (letter.key, letter.value, letter.attempts, letter.at) == (entry().key, b"value", 3, 1_000)
    assert letter.detail.startswith("KeyError")


def test_a_dead_letter_always_fits_its_log() -> None:
    """What sets an oversized record aside must not be refused for its size."""
    large = entry(value=b"x" * (RECORD_BYTES_MAX - 16), key=b"k" * 16)
    _, draft = dead_letter(large, "customer", POISON, "\u20ac" * 10 * DETAIL_CHARS_MAX, 3, 0)
    assert draft.value is not None
    assert len(draft.key) + len(draft.value) <= RECORD_BYTES_MAX
    letter = decode_dead_letter(draft.value)
    assert large.value.startswith(letter.value)
    assert str(len(large.value)) in letter.detail
