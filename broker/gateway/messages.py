"""`POST /{version}/{phone_number_id}/messages`: checked, keyed, made durable, answered. No worker is waited for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Final, get_args

from msgspec import UNSET, Struct

from broker import metrics
from broker.clock import Clock
from broker.core.identity import mark_key, record_key
from broker.core.message import INVALID, VALUE, Outgoing, check, error_of
from broker.core.opaque import derived_send_id, new_send_id
from broker.errors import LogUnavailable
from broker.gateway import answers
from broker.gateway.repetitions import Repetitions
from broker.listener import Answer
from broker.log.catalogue import CONVERSATIONS
from broker.log.contract import Draft, LogEngine
from schemas.graph import ContactRef, Error, MessageRef
from schemas.ids import SendId
from schemas.records import SendClass, SendRequest, encode
from schemas.settings import BotKey, GatewaySettings

IDEMPOTENCY_KEY: Final = "Idempotency-Key"
CLASS: Final = "X-Depesche-Class"
NOT_AFTER: Final = "X-Depesche-Not-After"
EPOCH: Final = "X-Depesche-Epoch"

IDEMPOTENCY_CHARS_MAX = 255
NOT_AFTER_MS_MAX = 30 * 86_400_000
"""Meta itself gives a message up after 30 days."""

_CLASSES: dict[str, SendClass] = {name: name for name in get_args(SendClass)}


class Wishes(Struct, frozen=True):
    """What the optional headers of a request say. `not_after` is Unix ms, 0 when nothing is said."""

    idempotency_key: str | None
    send_class: SendClass | None
    not_after: int
    epoch: int | None


def wishes(headers: Mapping[str, str], now: int) -> Wishes | Error:
    """Read the optional headers, or say which is wrong."""
    named = headers.get(IDEMPOTENCY_KEY)
    if named is not None and not (0 < len(named) <= IDEMPOTENCY_CHARS_MAX and named.isprintable()):
        return error_of(INVALID, f"{IDEMPOTENCY_KEY} must be 1 to {IDEMPOTENCY_CHARS_MAX} printable characters.")
    text = headers.get(CLASS)
    send_class = None if text is None else _CLASSES.get(text)
    if text is not None and send_class is None:
        return error_of(INVALID, f"{CLASS} must be one of {', '.join(_CLASSES)}.")
    text = headers.get(NOT_AFTER)
    not_after = 0 if text is None else _integer(text)
    if not_after is None or (text is not None and not now < not_after <= now + NOT_AFTER_MS_MAX):
        return error_of(INVALID, f"{NOT_AFTER} must be an instant in Unix ms, from now to 30 days ahead.")
    text = headers.get(EPOCH)
    epoch = None if text is None else _integer(text)
    if text is not None and epoch is None:
        return error_of(INVALID, f"{EPOCH} must be the integer you were given.")
    return Wishes(named, send_class, not_after, epoch)


def _integer(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else None


class Messages:
    """Takes what bots ask to be sent. Owns what it remembers of repetitions."""

    def __init__(
        self,
        settings: GatewaySettings,
        portfolios: Mapping[str, str],
        engine: LogEngine,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        """Prepare. `portfolios`: a number's portfolio, by `phone_number_id`."""
        self._settings = settings
        self._portfolios = portfolios
        self._engine = engine
        self._clock = clock
        self._rng = rng
        self._repetitions = Repetitions()

    async def take(self, key: BotKey, phone_number_id: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Take one request of a key that may send from the number."""
        now = self._clock.now()
        asked = wishes(headers, now)
        if isinstance(asked, Error):
            return answers.refused(400, asked, "refused", self._rng)
        outgoing = check(body, unknown_types=self._settings.unknown_types)
        if isinstance(outgoing, Error):
            return answers.refused(400, outgoing, "refused", self._rng)
        if not outgoing.known:
            metrics.gateway_unknown_types.inc()
        fingerprint = _fingerprint(key.name, phone_number_id, body)
        if asked.idempotency_key is not None:
            send_id = derived_send_id(key.name, asked.idempotency_key)
            if self._repetitions.contradicts(send_id, fingerprint):
                error = error_of(VALUE, f"This {IDEMPOTENCY_KEY} was used for another request.")
                return answers.refused(422, error, "refused", self._rng)
            if self._repetitions.is_durable(send_id):
                return _answer(send_id, outgoing)
        else:
            repeated = self._repetitions.unknown(fingerprint, self._clock.monotonic())
            send_id = repeated or new_send_id(now, self._rng.randbytes(10))
        request = self._request(send_id, key, phone_number_id, outgoing, asked, body, fingerprint, now)
        try:
            await self._engine.append(
                CONVERSATIONS,
                [Draft(self._key(phone_number_id, outgoing).encode(), encode(request))],
                self._settings.append_timeout_s,
            )
        except LogUnavailable:
            if asked.idempotency_key is None:
                self._repetitions.doubted(send_id, fingerprint, self._clock.monotonic())
            error = answers.unavailable(
                "It is not known whether the request was taken. Send the same bytes again within 5 minutes: they are "
                "taken as its repetition."
            )
            return answers.refused(503, error, "log_unavailable", self._rng, retry_after_s=5)
        self._repetitions.settled(send_id, fingerprint, named=asked.idempotency_key is not None)
        return _answer(send_id, outgoing)

    def _key(self, phone_number_id: str, outgoing: Outgoing) -> str:
        portfolio = self._portfolios[phone_number_id]
        if outgoing.kind == "mark":
            return mark_key(portfolio, outgoing.about)
        return record_key(
            portfolio, phone_number_id, wa_id=outgoing.wa_id, bsuid=outgoing.recipient, group_id=outgoing.group_id
        )

    def _request(
        self,
        send_id: SendId,
        key: BotKey,
        phone_number_id: str,
        outgoing: Outgoing,
        asked: Wishes,
        body: bytes,
        fingerprint: bytes,
        now: int,
    ) -> SendRequest:
        is_mark = outgoing.kind == "mark"
        return SendRequest(
            send_id,
            phone_number_id,
            outgoing.kind,
            outgoing.message_type,
            "reply" if is_mark else asked.send_class or key.send_class,
            key.name,
            key.sink,
            body,
            now,
            outgoing.wa_id,
            outgoing.recipient,
            outgoing.template,
            outgoing.opaque,
            asked.not_after,
            asked.epoch,
            fingerprint,
        )


def _fingerprint(key_name: str, phone_number_id: str, body: bytes) -> bytes:
    return hashlib.blake2b(f"{key_name}\0{phone_number_id}\0".encode() + body, digest_size=16).digest()


def _answer(send_id: SendId, outgoing: Outgoing) -> Answer:
    """The answer Graph would give, with our id in place of Meta's."""
    if outgoing.kind == "mark":
        return answers.MARKED
    contact = ContactRef(
        input=outgoing.to or outgoing.recipient,
        wa_id=outgoing.wa_id or outgoing.group_id or UNSET,
        user_id=outgoing.recipient or UNSET,
    )
    message = MessageRef(
        id=send_id,
        message_status="accepted" if outgoing.template else UNSET,
        group_id=outgoing.group_id or UNSET,
    )
    return answers.taken(contact, message)
