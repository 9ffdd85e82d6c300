"""Media urls of ours: what they carry, that nobody else can make one, and that they never change."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.media_url import OURS_CHARS_MAX, PREFIX, Medium, from_ours, media_secret, public_url_of, to_ours
from schemas.settings import GatewaySettings

NUMBER = "106540352242922"
META = "https://lookaside.fbsbx.com/whatsapp_business/attachments/?mid=1003383421380001&ext=1789301400&hash=EXAMPLE"
PUBLIC = "https://gateway.example.com/wa"
SECRET = media_secret("EAAtoken")


def ours(url: str) -> tuple[str, str]:
    """Return number and last part of a url of ours."""
    _, _, rest = url.partition(PREFIX)
    number, _, last = rest.partition("/")
    return number, last


def test_a_url_of_ours_says_whose_medium_it_is_and_where_meta_has_it() -> None:
    """All the gateway needs to fetch it, at any replica."""
    url = to_ours(META, "1003383421380001", NUMBER, PUBLIC, SECRET)
    assert url.startswith(f"{PUBLIC}/media/{NUMBER}/")
    assert "lookaside" not in url
    assert from_ours(*ours(url), SECRET) == Medium(NUMBER, "1003383421380001", META)


def test_the_same_medium_always_has_the_same_url() -> None:
    """A webhook that is delivered again must be the same bytes."""
    assert to_ours(META, "1", NUMBER, PUBLIC, SECRET) == to_ours(META, "1", NUMBER, PUBLIC, media_secret("EAAtoken"))


def test_nobody_makes_or_changes_a_url_without_the_secret() -> None:
    """It decides where we send Meta's token."""
    number, last = ours(to_ours(META, "1", NUMBER, PUBLIC, SECRET))
    named, _, signature = last.partition(".")
    other_named = ours(to_ours("https://evil.example/", "1", NUMBER, PUBLIC, SECRET))[1].partition(".")[0]
    assert from_ours(number, f"{other_named}.{signature}", SECRET) is None
    assert from_ours("999", last, SECRET) is None
    assert from_ours(number, last, media_secret("EAAother")) is None
    for wrong in ("", ".", named, f"{named}.", f"{named}.{signature}x", f"{named}.{signature[:-1]}", "é.é", last * 40):
        assert from_ours(number, wrong, SECRET) is None


@given(st.text(), st.text())
def test_whatever_a_webhook_holds_is_carried_or_left_out(url: str, media_id: str) -> None:
    """A url that does not fit costs one more question to Meta; the id alone finds the medium. Nothing crashes."""
    try:
        made = to_ours(url, media_id, NUMBER, PUBLIC, SECRET)
    except ValueError:
        return
    number, last = ours(made)
    assert len(last) <= OURS_CHARS_MAX
    assert urlsplit(made).path == f"/wa/media/{number}/{last}"
    found = from_ours(number, last, SECRET)
    assert found is not None
    assert found.url in (url, "")
    assert found.media_id in (media_id, "")


def test_the_longest_url_fits_and_a_longer_one_is_left_out() -> None:
    """Servers take some 8 kB as a request line."""
    longest = META.ljust(2_048, "x")
    number, last = ours(to_ours(longest, "1" * 256, NUMBER, PUBLIC, SECRET))
    assert len(last) <= OURS_CHARS_MAX
    assert from_ours(number, last, SECRET) == Medium(NUMBER, "1" * 256, longest)
    assert from_ours(*ours(to_ours(longest + "x", "1", NUMBER, PUBLIC, SECRET)), SECRET) == Medium(NUMBER, "1")
    with pytest.raises(ValueError, match="neither"):
        to_ours(longest + "x", "", NUMBER, PUBLIC, SECRET)


def test_a_gateway_without_a_public_url_is_reached_where_it_listens() -> None:
    """On a laptop nothing needs to be said."""
    assert public_url_of(GatewaySettings(host="127.0.0.1", port=8081)) == "http://127.0.0.1:8081"
    assert public_url_of(GatewaySettings(host="::1", port=8081)) == "http://[::1]:8081"
    assert public_url_of(GatewaySettings(public_url="https://wa.example.com/gw/")) == "https://wa.example.com/gw"
