"""What decisions about customers need of the configuration, compiled once: routes, numbers, times, words."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from broker.core import consent, marketing_rest
from broker.core.consent import Scope
from broker.core.hours import compile_hours
from broker.core.media_url import public_url_of
from broker.core.routing import Rule, compile_routes
from schemas.records import SendClass
from schemas.settings import Settings


class NumberFacts(Struct, frozen=True):
    """What a decision needs of a business number's setting."""

    waba_id: str
    display_phone_number: str
    slot: int
    media_secret: bytes = b""
    """Signs the urls of its media; empty: Meta's stay."""


class Context(Struct, frozen=True):
    """The configuration as decisions see it; replaced whole when it changes."""

    rules: tuple[Rule, ...]
    numbers: Mapping[str, NumberFacts]
    doubt_ms: Mapping[SendClass, int]
    """How long a doubt lasts before the send is repeated; -1: it never is."""
    window_margin_ms: int
    waiting_sends_max: int
    marketing_rest_ms: int = 0
    """How long marketing to a customer rests after 131049; 0: it does not."""
    consent_scope: Scope = "portfolio"
    stop_words: frozenset[str] = frozenset()
    start_words: frozenset[str] = frozenset()
    public_url: str = ""
    """Where bots reach the gateway: media urls begin with it."""
    sinks: frozenset[str] = frozenset()
    account_sinks: tuple[str, ...] = ()
    """Sinks that ask for updates without `metadata`."""


def context_of(settings: Settings, media_secrets: Mapping[str, bytes] | None = None) -> Context:
    """Compile what decisions need of the settings. Raises `ValueError` when a route or a word cannot be compiled.

    `media_secrets`: what signs the urls of each number's media; without them, bots get Meta's urls.
    """
    signs = media_secrets or {}
    doubt = settings.customer.doubt
    seconds: dict[SendClass, float] = {
        "otp": doubt.otp_s,
        "reply": doubt.reply_s,
        "transactional": doubt.transactional_s,
        "campaign": doubt.campaign_s,
    }
    return Context(
        rules=compile_routes(settings.routes, {each.name: compile_hours(each) for each in settings.hours}),
        numbers={
            number.phone_number_id: NumberFacts(
                number.waba_id, number.display_phone_number, number.slot, signs.get(number.phone_number_id, b"")
            )
            for number in settings.numbers
        },
        doubt_ms={name: round(value * 1_000) if value >= 0 else -1 for name, value in seconds.items()},
        window_margin_ms=round(settings.customer.window_margin_s * 1_000),
        waiting_sends_max=settings.customer.waiting_sends_max,
        marketing_rest_ms=round(settings.customer.marketing_rest_h * marketing_rest.MS_PER_H),
        consent_scope=settings.customer.consent.scope,
        stop_words=consent.words(settings.customer.consent.stop_words),
        start_words=consent.words(settings.customer.consent.start_words),
        public_url=public_url_of(settings.gateway),
        sinks=frozenset(sink.name for sink in settings.sinks),
        account_sinks=tuple(sink.name for sink in settings.sinks if sink.account_updates),
    )
