"""A secret is read exactly, and cannot be printed by mistake."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import msgspec
import pytest

from broker.errors import Misconfigured
from broker.secrets import SECRET_BYTES_MAX, Secret, read_secret
from schemas.settings import SecretSource

VALUE = "EAAverysecret"


def test_no_way_of_printing_shows_it(caplog: pytest.LogCaptureFixture) -> None:
    """Log lines and tracebacks travel further than anybody thinks."""
    secret = Secret(VALUE)
    logging.getLogger("test").error("%s %r %s", secret, secret, {"token": [secret]})
    shown = [str(secret), repr(secret), f"{secret}", f"{secret!r}", repr([secret]), caplog.text]
    assert not [text for text in shown if VALUE in text]
    assert secret.reveal() == VALUE


def test_it_cannot_be_carried_away() -> None:
    """Neither pickled to another process nor encoded into a record."""
    with pytest.raises(TypeError):
        pickle.dumps(Secret(VALUE))
    with pytest.raises(TypeError):
        msgspec.json.encode({"token": Secret(VALUE)})


def test_equal_values_are_equal_secrets() -> None:
    """A reload has to see whether a secret changed."""
    assert Secret(VALUE) == Secret(VALUE)
    assert len({Secret(VALUE), Secret(VALUE)}) == 1
    assert Secret(VALUE) != Secret("another")
    assert Secret(VALUE) != VALUE


def test_the_line_end_of_a_file_is_not_part_of_it(tmp_path: Path) -> None:
    """Editors and `echo` add one."""
    (tmp_path / "token").write_text(f"  {VALUE}\r\n\n")
    assert read_secret(SecretSource(file="token"), "numbers[0].token", tmp_path).reveal() == VALUE


def test_an_environment_variable_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where a platform hands secrets over so."""
    monkeypatch.setenv("DEPESCHE_TEST_TOKEN", VALUE)
    assert read_secret(SecretSource(env="DEPESCHE_TEST_TOKEN"), "numbers[0].token", tmp_path).reveal() == VALUE


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfe", "is not text"),
        (b"x" * (SECRET_BYTES_MAX + 1), f"is larger than {SECRET_BYTES_MAX} bytes"),
    ],
)
def test_a_file_that_is_no_secret_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    """The error names the setting and the file, and never what stands in it."""
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(Misconfigured) as caught:
        read_secret(SecretSource(file="token"), "numbers[0].token", tmp_path)
    assert str(caught.value).startswith(f"numbers[0].token.file: {tmp_path / 'token'}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize("source", [SecretSource(), SecretSource(file="a", env="B")])
def test_exactly_one_source_is_named(tmp_path: Path, source: SecretSource) -> None:
    """Two would leave open which one holds."""
    with pytest.raises(Misconfigured, match=r"sinks\[0\].secret: name exactly one of `file` and `env`"):
        read_secret(source, "sinks[0].secret", tmp_path)


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty token would be refused by Meta much later."""
    monkeypatch.delenv("DEPESCHE_TEST_TOKEN", raising=False)
    with pytest.raises(Misconfigured, match="environment variable DEPESCHE_TEST_TOKEN: is empty or not set"):
        read_secret(SecretSource(env="DEPESCHE_TEST_TOKEN"), "numbers[0].token", tmp_path)
