"""The signature of a webhook: the sample's own vector, rotation, and everything that must not pass."""

from __future__ import annotations

import hmac
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.signature import Signer, sign, verify

BODY = (Path(__file__).parents[1] / "wire" / "webhooks" / "raw_compact_escaped.json").read_bytes()
SECRET = b"example-app-secret"
HEADER = "sha256=91ac3cfe55cad98c5e6b495cc9cde8626ce55964505df9dfb5b8418956eb9cfa"


def test_the_vector_of_the_samples_verifies() -> None:
    """The one signature we know to be right without trusting our own code."""
    assert sign(BODY, SECRET) == HEADER
    assert verify(BODY, HEADER, [Signer(SECRET)]) == 0


def test_the_bytes_are_signed_and_not_what_they_mean() -> None:
    """Whoever decodes and encodes again breaks on the first accent or slash: the usual bug."""
    assert verify(BODY.replace(b"\\/", b"/"), HEADER, [Signer(SECRET)]) is None


def test_during_a_rotation_either_secret_passes_and_is_told_apart() -> None:
    """A rotation is over when the previous one matches no more; an operator must be able to see it."""
    assert verify(BODY, HEADER, [Signer(b"new"), Signer(SECRET)]) == 1
    assert verify(BODY, sign(BODY, b"new"), [Signer(b"new"), Signer(SECRET)]) == 0


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "sha256=",
        HEADER[:-1],
        HEADER + "0",
        HEADER.upper(),
        HEADER.replace("sha256=", "sha1=00"),
        HEADER[:-1] + "é",
        f" {HEADER}"[: len(HEADER)],
        f"{HEADER}, {HEADER}",
        "sha256=" + "0" * 64,
    ],
)
def test_anything_else_does_not_pass(header: str | None) -> None:
    """Missing, cut, of another kind, not even ASCII: none of it may raise, none of it may pass."""
    assert verify(BODY, header, [Signer(SECRET)]) is None


@given(st.binary(max_size=200), st.binary(max_size=300))
def test_a_prepared_secret_signs_as_the_standard_library_does(secret: bytes, body: bytes) -> None:
    """Longer than a block or empty, the key is padded and hashed as RFC 2104 says."""
    assert Signer(secret).sign(body) == "sha256=" + hmac.new(secret, body, "sha256").hexdigest()


def test_without_a_secret_nothing_passes() -> None:
    """An app whose secrets could not be read takes nothing."""
    assert verify(BODY, HEADER, []) is None
