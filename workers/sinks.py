"""How an event looks to a sink: body, headers and signature, by the sink's kind.

`meta`: Meta's own webhook. The event's body as it stands, signed as Meta signs (Graph webhooks, "Validating payloads"),
with the sink's own secret: a bot built for the Cloud API needs no change. `standard`: Standard Webhooks. `{"type",
"timestamp", "data"}`, and `"tags"` where routes gave some, with a stable id, the time of the attempt, and a signature
for each secret valid at present. `kafka`: a message on a topic of the brand's own, JSON that a person can read, our
envelope around the same body:

    {"id", "type", "timestamp", "received_at", "sink", "customer", "phone_number_id", "tags"?, "data"}

Events that are to be joined come as a list, also of one: `{"type": "whatsapp.batch", …}` with what each would have been
alone, under an id that follows from theirs. A sink that debounces of its own accord gets nothing but lists, so that it
meets one form; at another only what a route joins is one. Beside each, as headers, stand the conversation's epoch and
whether an operator had the event delivered once more.

A body is the same bytes at every attempt, so that a sink can compare, and a signature made over it stays right.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from broker.core.debounce import Debounce, debounce_of
from broker.errors import Misconfigured
from broker.secrets import Secret
from schemas.records import DeliveryEvent
from schemas.settings import SinkSettings

WHSEC = "whsec_"
EPOCH = "X-Depesche-Epoch"
REPLAY = "X-Depesche-Replay"
LATEST_MS = 253_402_300_799_999
"""The last ms of the year 9999: beyond it a timestamp has no ISO form."""

_not_ascii = re.compile("[^\x00-\x7f]")


class Request(NamedTuple):
    """What is to be posted."""

    headers: dict[str, str]
    body: bytes


class Target:
    """One sink: where it is and how it is spoken to."""

    def __init__(
        self,
        settings: SinkSettings,
        secrets: Sequence[Secret],
        connect: Mapping[str, Any] | None = None,
        where: str = "sinks",
    ) -> None:
        """`secrets`: the present one first, then those still valid while one is being rotated (`standard` only signs
        with all; Meta's format has room for one). `connect`: how to reach the cluster of a `kafka` sink. `where`: the
        path of its settings, for errors. Raises `Misconfigured`."""
        self.settings = settings
        self.name = settings.name
        self.connect = dict(connect or {})
        self._keys: list[bytes] = []
        if settings.kind == "kafka":
            if not self.connect:
                raise Misconfigured(f"{where}.kafka: nothing says where its topic is")
            return
        if not secrets:
            raise Misconfigured(f"{where}.secret: a sink needs one; its events are signed with it")
        if not settings.url.startswith(("https://", "http://")):
            raise Misconfigured(f"{where}.url: must begin with https:// or http://")
        if settings.kind == "standard":
            names = ("secret", "previous_secret")
            self._keys = [_standard_key(f"{where}.{name}", each) for name, each in zip(names, secrets, strict=False)]
        else:
            self._keys = [secret.reveal().encode() for secret in secrets]

    @property
    def takes_lists(self) -> bool:
        """Whether its format has room for more than one event."""
        return self.settings.kind != "meta"

    def debounce_of(self, event: DeliveryEvent) -> Debounce | None:
        """How an event is joined with others of its customer; None: not at all."""
        return debounce_of(event.debounce, self.settings)

    def render_all(self, events: Sequence[DeliveryEvent], now: int) -> Request:
        """Return the request for one customer's events, at least one, in order; more than one only where lists are
        taken. One alone is a list where the sink debounces, or its own route has it joined."""
        if len(events) == 1 and not self._is_listed(events[0]):
            return self.render(events[0], now)
        ids = hashlib.blake2b("\0".join(event.delivery_id for event in events).encode(), digest_size=16)
        last = events[-1]
        joined = b'{"type":"whatsapp.batch","timestamp":"%b"' % iso(last.at or last.accepted_at).encode()
        batch_id = f"batch_{ids.hexdigest()}"
        if self.settings.kind == "kafka":
            around = {"id": batch_id, "sink": self.name, "customer": last.customer}
            body = b"%b,%b" % (joined, ascii_json(msgspec.json.encode(around))[1:-1])
            body += b',"events":[%b]}' % b",".join(self._message(event).body for event in events)
            return Request(
                {"content-type": "application/json", "depesche-id": batch_id, **_beside(last)},
                body,
            )
        body = b'%b,"data":[%b]}' % (joined, b",".join(_enveloped(event) for event in events))
        return self._signed(batch_id, body, last, now)

    def _is_listed(self, event: DeliveryEvent) -> bool:
        return self.takes_lists and (self.settings.debounce_ms > 0 or self.debounce_of(event) is not None)

    def render(self, event: DeliveryEvent, now: int) -> Request:
        """Return the request of an attempt at `now` (Unix ms)."""
        match self.settings.kind:
            case "standard":
                return self._standard(event, now)
            case "kafka":
                return self._message(event)
            case _:
                return self._meta(event)

    def _meta(self, event: DeliveryEvent) -> Request:
        body = ascii_json(event.body)
        signature = hmac.new(self._keys[0], body, hashlib.sha256).hexdigest()
        return Request(
            {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                "X-Hub-Signature-256": f"sha256={signature}",
                **_beside(event),
            },
            body,
        )

    def _standard(self, event: DeliveryEvent, now: int) -> Request:
        at = event.at or event.accepted_at
        body = b'{"type":%b,"timestamp":"%b","data":%b%b}' % (
            ascii_json(msgspec.json.encode(f"whatsapp.{event.kind}")),
            iso(at).encode(),
            ascii_json(event.body),
            b',"tags":%b' % msgspec.json.encode(event.tags) if event.tags else b"",
        )
        return self._signed(event.delivery_id, body, event, now)

    def _signed(self, webhook_id: str, body: bytes, event: DeliveryEvent, now: int) -> Request:
        seconds = str(now // 1_000)
        signed = b"%b.%b.%b" % (webhook_id.encode(), seconds.encode(), body)
        signatures = (b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in self._keys)
        return Request(
            {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                "webhook-id": webhook_id,
                "webhook-timestamp": seconds,
                "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
                **_beside(event),
            },
            body,
        )

    def _message(self, event: DeliveryEvent) -> Request:
        return Request(
            {"content-type": "application/json", "depesche-id": event.delivery_id, **_beside(event)},
            _enveloped(
                event,
                received_at=iso(event.accepted_at),
                sink=self.name,
                customer=event.customer,
                phone_number_id=event.phone_number_id,
            ),
        )


def _enveloped(event: DeliveryEvent, **more: str) -> bytes:
    """Return an event as JSON: what it is, whatever more is to be said, and Meta's body as it is, under `data`."""
    head: dict[str, Any] = {
        "id": event.delivery_id,
        "type": f"whatsapp.{event.kind}",
        "timestamp": iso(event.at or event.accepted_at),
        **more,
    }
    if event.tags:
        head["tags"] = list(event.tags)
    return b'%b,"data":%b}' % (ascii_json(msgspec.json.encode(head))[:-1], ascii_json(event.body))


def _beside(event: DeliveryEvent) -> dict[str, str]:
    """Return what we say beside a body: the conversation's epoch, which a bot may hand back when it sends, and when an
    operator had the event delivered once more."""
    said = {EPOCH: str(event.epoch)} if event.epoch else {}
    if event.replayed_at:
        said[REPLAY] = iso(event.replayed_at)
    return said


def iso(at: int) -> str:
    """Return Unix ms as ISO 8601 in UTC, as far as that has a form."""
    moment = datetime.fromtimestamp(min(max(at, 0), LATEST_MS) / 1_000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ascii_json(body: bytes) -> bytes:
    """Return JSON as Meta writes it: what is not ASCII as `\\uXXXX` in lower case. Bodies nearly always are already.

    Outside strings JSON has no such characters, so nothing needs to be parsed. Bytes that are no UTF-8 are replaced.
    """
    if body.isascii():
        return body
    return _not_ascii.sub(_escape, body.decode("utf-8", "replace")).encode("ascii")


def _escape(match: re.Match[str]) -> str:
    units = match.group().encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _standard_key(where: str, secret: Secret) -> bytes:
    text = secret.reveal()
    try:
        key = b64decode(text.removeprefix(WHSEC), validate=True)
    except binascii.Error:
        key = b""
    if not text.startswith(WHSEC) or not key:
        raise Misconfigured(f"{where}: a Standard Webhooks secret is {WHSEC!r} and 24 to 64 random bytes in base64")
    return key
