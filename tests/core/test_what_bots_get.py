"""What a customer's actor makes of an update before it stands on a sink's log: ids, urls, whom it goes to."""

from __future__ import annotations

from broker.core.customer import context_of
from broker.core.media_url import PREFIX, Medium, from_ours, media_secret
from tests.core.conversation import NUMBER, SETTINGS, Story, delivered

SECRET = media_secret("EAAtoken")
META = "https://lookaside.fbsbx.com/whatsapp_business/attachments/?mid=1"


def picture(url: str = META) -> dict[str, str]:
    return {"mime_type": "image/jpeg", "sha256": "x", "id": "1003383421380001", "url": url}


def test_a_mediums_url_is_ours_once_the_numbers_secret_is_known() -> None:
    """Opened at Meta with the bot's key it would fail and show Meta the key."""
    story = Story(context_of(SETTINGS, {NUMBER: SECRET}))
    story.writes("photo", type="image", image=picture())
    (told,) = delivered(story.commands, "bot")
    number, _, last = told["image"]["url"].partition(PREFIX)[2].partition("/")
    assert from_ours(number, last, SECRET) == Medium(NUMBER, "1003383421380001", META)
    assert told["image"] == picture(told["image"]["url"])


def test_without_a_secret_metas_url_stays() -> None:
    """A number that is not configured has no token that could open it."""
    story = Story(context_of(SETTINGS, {"another": SECRET}))
    story.writes("photo", type="image", image=picture())
    assert delivered(story.commands, "bot")[0]["image"] == picture()
