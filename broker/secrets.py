"""Secrets: where they are read from, and a type that cannot be printed by mistake."""

from __future__ import annotations

import os
from pathlib import Path

from broker.errors import Misconfigured
from schemas.settings import SecretSource

SECRET_BYTES_MAX = 8_192
"""A token or key is shorter; a larger file is a wrong path."""


class Secret:
    """A secret value. Every way of printing it shows `***`; only `reveal` gives it, so uses can be found by name."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value itself. For a header or a key, never for a log line."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled: read it again from its file or environment variable")


def read_secret(source: SecretSource, path: str, base: Path) -> Secret:
    """Read a secret; `path` is the setting's, for the error; `base` the folder relative files start from.

    Raises `Misconfigured` when not exactly one source is named, or the source is missing, empty or too long.
    """
    if bool(source.file) == bool(source.env):
        raise Misconfigured(f"{path}: name exactly one of `file` and `env`")
    if source.env:
        value = os.environ.get(source.env, "")
        where = f"{path}.env: environment variable {source.env}"
    else:
        file = base / source.file
        where = f"{path}.file: {file}"
        try:
            with file.open("rb") as stream:
                raw = stream.read(SECRET_BYTES_MAX + 1)
        except OSError as error:
            raise Misconfigured(f"{where}: cannot be read ({error.strerror}); it must hold the secret alone") from None
        if len(raw) > SECRET_BYTES_MAX:
            raise Misconfigured(f"{where}: is larger than {SECRET_BYTES_MAX} bytes; it must hold the secret alone")
        try:
            value = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise Misconfigured(f"{where}: is not text; it must hold the secret alone") from None
    value = value.strip()
    if not value:
        raise Misconfigured(f"{where}: is empty or not set; it must hold the secret")
    return Secret(value)
