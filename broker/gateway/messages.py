"""`POST /{version}/{phone_number_id}/messages` and `/marketing_messages`: checked, keyed, made durable, answered. No
worker is waited for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from typing import Final, get_args

from msgspec import UNSET, Struct

from broker import failpoints, metrics
from broker.clock import Clock
from broker.core.identity import mark_key, record_key, whatsapp_id
from broker.core.message import INVALID, VALUE, Outgoing, check, error_of
from broker.core.opaque import derived_send_id, new_send_id
from broker.core.template_class import TemplateClasses
from broker.errors import LogUnavailable
from broker.gateway import answers
from broker.gateway.repetitions import Repetitions
from broker.listener import Answer
from broker.log.catalogue import CONVERSATIONS
from broker.log.contract import Draft, LogEngine
from schemas.graph import ContactRef, Error, MessageRef
from schemas.ids import SendId
from schemas.records import Edge, SendClass, SendRequest, encode
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
        classes: TemplateClasses,
        engine: LogEngine,
        clock: Clock,
        rng: random.Random,
        met_unknown: Callable[[str], None] = lambda phone_number_id: None,
    ) -> None:
        """Prepare. `portfolios`: a number's portfolio, by `phone_number_id`. `met_unknown`: told the number by which a
        template went whose category is not known."""
        self._settings = settings
        self._portfolios = portfolios
        self._classes = classes
        self._met_unknown = met_unknown
        self._engine = engine
        self._clock = clock
        self._rng = rng
        self._repetitions = Repetitions()

    async def take(
        self,
        key: BotKey,
        phone_number_id: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        edge: Edge = "messages",
        gone: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Take one request of a key that may send from the number. `gone`: whether its sender hears no answer more."""
        now = self._clock.now()
        asked = wishes(headers, now)
        if isinstance(asked, Error):
            return answers.refused(400, asked, "refused", self._rng)
        outgoing = check(body, unknown_types=self._settings.unknown_types, marketing=edge == "marketing_messages")
        if isinstance(outgoing, Error):
            return answers.refused(400, outgoing, "refused", self._rng)
        category = self._classes.category(phone_number_id, outgoing.template) if outgoing.template else ""
        if edge == "marketing_messages" and category not in ("", "MARKETING"):
            return answers.refused(400, answers.ONLY_MARKETING, "refused", self._rng)
        if not outgoing.known:
            metrics.gateway_unknown_types.inc()
        fingerprint = _fingerprint(key.name, phone_number_id, edge, body)
        if asked.idempotency_key is not None:
            return await self._take_named(key, phone_number_id, outgoing, asked, body, edge, fingerprint, now)
        attempt = self._repetitions.begin(
            fingerprint, self._clock.monotonic(), gone, lambda: new_send_id(now, self._rng.randbytes(10))
        )
        if attempt.repeats:
            metrics.gateway_repetitions.labels("bytes").inc()
        answered = False
        try:
            request = self._request(
                attempt.send_id, key, phone_number_id, outgoing, asked, body, edge, fingerprint, now
            )
            if not await self._is_durable(request, outgoing):
                return self._unknown()
            answered = not gone()
        finally:
            self._repetitions.end(attempt, self._clock.monotonic(), answered=answered)
        return _answer(attempt.send_id, outgoing)

    async def _take_named(
        self,
        key: BotKey,
        phone_number_id: str,
        outgoing: Outgoing,
        asked: Wishes,
        body: bytes,
        edge: Edge,
        fingerprint: bytes,
        now: int,
    ) -> Answer:
        """Take a request with an idempotency key: its id is derived, so that a repetition has the same one anywhere."""
        send_id = derived_send_id(key.name, asked.idempotency_key or "")
        if self._repetitions.contradicts(send_id, fingerprint):
            error = error_of(VALUE, f"This {IDEMPOTENCY_KEY} was used for another request.")
            return answers.refused(422, error, "refused", self._rng)
        if self._repetitions.is_durable(send_id):
            metrics.gateway_repetitions.labels("key").inc()
        else:
            self._repetitions.name(send_id, fingerprint, durable=False)
            request = self._request(send_id, key, phone_number_id, outgoing, asked, body, edge, fingerprint, now)
            if not await self._is_durable(request, outgoing):
                return self._unknown()
            self._repetitions.name(send_id, fingerprint, durable=True)
        return _answer(send_id, outgoing)

    async def _is_durable(self, request: SendRequest, outgoing: Outgoing) -> bool:
        """Append a request; False when it is not known whether it is on the log."""
        key = self._key(request.phone_number_id, outgoing).encode()
        try:
            await self._engine.append(CONVERSATIONS, [Draft(key, encode(request))], self._settings.append_timeout_s)
        except LogUnavailable:
            return False
        failpoints.reached("gateway.appended")
        return True

    def _unknown(self) -> Answer:
        error = answers.unavailable(
            "It is not known whether the request was taken. Send the same bytes again within 5 minutes: they are "
            "taken as its repetition."
        )
        return answers.refused(503, error, "log_unavailable", self._rng, retry_after_s=5)

    def _class(
        self, key: BotKey, phone_number_id: str, outgoing: Outgoing, asked: SendClass | None, edge: Edge
    ) -> tuple[SendClass, bool]:
        """Why the send exists: as the request says, else by the template's category, else as the key's sends do; and
        whether that is presumed, so that the customer's window has a say in it (`template_class.by_window`).

        Free-form messages go inside the customer service window alone, so what is no template is a reply by nature.
        """
        if outgoing.kind == "mark":
            return "reply", False
        if asked is not None:
            return asked, False
        if edge == "marketing_messages":
            return "campaign", False
        if not outgoing.template:
            return key.send_class, False
        if not self._classes.is_known(phone_number_id, outgoing.template):
            self._met_unknown(phone_number_id)
        send_class = self._classes.class_of(phone_number_id, outgoing.template, key.send_class)
        return send_class, not self._classes.is_named(outgoing.template)

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
        edge: Edge,
        fingerprint: bytes,
        now: int,
    ) -> SendRequest:
        send_class, presumed = self._class(key, phone_number_id, outgoing, asked.send_class, edge)
        return SendRequest(
            send_id,
            phone_number_id,
            outgoing.kind,
            outgoing.message_type,
            send_class,
            key.name,
            key.sink,
            outgoing.body or body,
            now,
            outgoing.wa_id,
            outgoing.recipient,
            outgoing.template,
            outgoing.opaque,
            asked.not_after,
            asked.epoch,
            fingerprint,
            edge == "marketing_messages" or self._is_marketing(phone_number_id, outgoing),
            edge,
            presumed,
        )

    def _is_marketing(self, phone_number_id: str, outgoing: Outgoing) -> bool:
        """Whether Meta approved its template as marketing: somebody who wants none is not to get it, by any class."""
        return bool(outgoing.template) and self._classes.category(phone_number_id, outgoing.template) == "MARKETING"


def _fingerprint(key_name: str, phone_number_id: str, edge: Edge, body: bytes) -> bytes:
    return hashlib.blake2b(f"{key_name}\0{phone_number_id}\0{edge}\0".encode() + body, digest_size=16).digest()


def _answer(send_id: SendId, outgoing: Outgoing) -> Answer:
    """The answer Graph would give, with our id in place of Meta's."""
    if outgoing.kind == "mark":
        return answers.MARKED
    contact = ContactRef(
        input=outgoing.to or outgoing.recipient,
        wa_id=outgoing.group_id or (whatsapp_id(outgoing.to) if outgoing.to else "") or UNSET,
        user_id=outgoing.recipient or UNSET,
    )
    message = MessageRef(
        id=send_id,
        message_status="accepted" if outgoing.template else UNSET,
        group_id=outgoing.group_id or UNSET,
    )
    return answers.taken(contact, message)
