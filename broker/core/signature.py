"""Whether a webhook comes from Meta: HMAC-SHA256 over the raw bytes, with the app's secret.

More than one secret is current while one is being rotated. The signature has no timestamp, so a captured POST stays
valid: dedupe is the replay guard. Source: meta-cloud-api.md 1.2.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

PREFIX = "sha256="
HEX_CHARS = 64


def sign(body: bytes, secret: bytes) -> str:
    """Return the value of `X-Hub-Signature-256` for a body."""
    return PREFIX + hmac.digest(secret, body, "sha256").hex()


def verify(body: bytes, header: str | None, secrets: Sequence[bytes]) -> int | None:
    """Return the position of the secret that made the signature; None when none did or there is no signature.

    Takes as long for a wrong signature as for a right one: every secret is tried, each compared in constant time.
    """
    if header is None or len(header) != len(PREFIX) + HEX_CHARS or not header.startswith(PREFIX):
        return None
    if not header.isascii():
        return None
    matched: int | None = None
    for position, secret in enumerate(secrets):
        if hmac.compare_digest(sign(body, secret), header) and matched is None:
            matched = position
    return matched
