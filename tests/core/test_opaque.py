"""Ids of sends, and the line by which a status names its send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.opaque import OPAQUE_CHARS_MAX, Opaque, derived_send_id, is_send_id, new_send_id, unwrap, wrap
from schemas.ids import SEND_ID_CHARS, CustomerKey, SendId, Sink

ID = derived_send_id("shop", "order-1")
names = st.text(max_size=60)


def test_an_id_has_the_promised_shape_and_sorts_by_age() -> None:
    """Clients look at "wamid."; operators like ids that stand in the order of their making."""
    older, newer = new_send_id(1_749_416_383_000, b"\xff" * 10), new_send_id(1_749_416_383_001, b"\0" * 10)
    assert older < newer
    assert len(older) == SEND_ID_CHARS
    assert is_send_id(older)
    assert is_send_id(newer)


def test_ten_random_bytes_are_asked_for() -> None:
    """Fewer would make ids that meet one another."""
    with pytest.raises(ValueError, match="10 random bytes"):
        new_send_id(0, b"\0" * 9)


def test_a_repetition_yields_the_same_id_and_another_key_another() -> None:
    """The customer stage takes an id once: that is what makes a bot's retry harmless."""
    assert derived_send_id("shop", "order-1") == ID
    assert derived_send_id("shop2", "order-1") != ID
    assert derived_send_id("sho", "porder-1") != ID


@given(st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_different_bytes_make_different_ids(one: bytes, other: bytes) -> None:
    """No bit of the random part is dropped on the way to base 32."""
    assert (new_send_id(5, one) == new_send_id(5, other)) == (one == other)


@pytest.mark.parametrize(
    "text", ["", "wamid.HBgLMTU1NTAwMDEyMzQVAgASGBQ", ID[:-1], ID + "0", ID[:-1] + "U", ID.lower()]
)
def test_what_is_not_ours_is_not_taken_for_ours(text: str) -> None:
    """A wamid of Meta's must reach Meta as it is."""
    assert not is_send_id(text)


@given(names.filter(bool), names.filter(bool), st.none() | st.text(max_size=600))
def test_a_line_comes_back_as_it_was_given_or_says_that_the_callers_value_did_not_fit(
    sink: str, key: str, own: str | None
) -> None:
    """Whatever names hold, separators included, a status must find its customer."""
    line = wrap(ID, Sink(sink), CustomerKey(key), own)
    assert len(line.encode("utf-8", "surrogatepass")) <= OPAQUE_CHARS_MAX
    opaque = unwrap(line)
    assert opaque is not None
    assert (opaque.send_id, opaque.sink, opaque.customer) == (ID, sink, key)
    assert (opaque.own, opaque.own_kept) in ((own, True), (None, False))
    if own is None:
        assert opaque.own_kept


def test_the_callers_value_stays_while_it_fits_to_the_character() -> None:
    """One more character and the state must keep it; the line says so."""
    room = OPAQUE_CHARS_MAX - len(wrap(ID, Sink("bot"), CustomerKey("main:15550001234"), ""))
    fits = unwrap(wrap(ID, Sink("bot"), CustomerKey("main:15550001234"), "x" * room))
    assert fits == Opaque(ID, Sink("bot"), CustomerKey("main:15550001234"), "x" * room, own_kept=True)
    cut = unwrap(wrap(ID, Sink("bot"), CustomerKey("main:15550001234"), "x" * (room + 1)))
    assert cut == Opaque(ID, Sink("bot"), CustomerKey("main:15550001234"), None, own_kept=False)


def test_an_empty_value_is_not_the_same_as_none() -> None:
    """A bot that sent "" is owed "" on its statuses."""
    empty = unwrap(wrap(ID, Sink("bot"), CustomerKey("main:1"), ""))
    none = unwrap(wrap(ID, Sink("bot"), CustomerKey("main:1"), None))
    assert empty is not None
    assert none is not None
    assert (empty.own, none.own) == ("", None)


@given(st.text(max_size=80) | st.text(max_size=80).map(lambda rest: f"dp1|{ID}|{rest}"))
def test_foreign_text_is_read_as_foreign_and_never_crashes(text: str) -> None:
    """Another app on the same account writes what it likes there."""
    opaque = unwrap(text)
    if opaque is not None:
        assert opaque.customer
        assert is_send_id(opaque.send_id)


def test_a_name_too_long_for_the_line_is_an_error_and_not_a_silent_cut() -> None:
    """A cut customer key would send a status to nobody."""
    with pytest.raises(ValueError, match="no room"):
        wrap(SendId(ID), Sink("s" * 500), CustomerKey("main:1"), None)
