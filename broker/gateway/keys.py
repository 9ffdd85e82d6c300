"""Whose key it is: keys are looked up by their SHA-256, which is all that we have of them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from schemas.settings import BotKey

KEY_CHARS_MAX = 512
"""Longer than any token of Meta's or ours."""


class Keys:
    """The bot keys in force, replaced whole when the settings change."""

    def __init__(self, keys: Sequence[BotKey]) -> None:
        self._by_digest = {key.sha256: key for key in keys}

    def find(self, text: str) -> BotKey | None:
        """Return the key of this text.

        What is compared are digests, which nobody can steer: how long the look-up takes says nothing about a key.
        """
        if not 0 < len(text) <= KEY_CHARS_MAX:
            return None
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        key = self._by_digest.get(digest)
        return key if key is not None and hmac.compare_digest(key.sha256, digest) else None


def bearer(authorization: str | None) -> str:
    """Return the text of a key in an `Authorization` header, by either of the names Graph has for it; or ""."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() in ("bearer", "oauth") else ""


def allows(key: BotKey, phone_number_id: str) -> bool:
    """Whether a key may send from a number."""
    return phone_number_id in key.numbers or "*" in key.numbers
