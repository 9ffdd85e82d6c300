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

    def find(self, authorization: str | None) -> BotKey | None:
        """Return the key of an `Authorization: Bearer …` header.

        What is compared are digests, which nobody can steer: how long the look-up takes says nothing about a key.
        """
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not 0 < len(token) <= KEY_CHARS_MAX:
            return None
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        key = self._by_digest.get(digest)
        return key if key is not None and hmac.compare_digest(key.sha256, digest) else None


def allows(key: BotKey, phone_number_id: str) -> bool:
    """Whether a key may send from a number."""
    return phone_number_id in key.numbers or "*" in key.numbers
