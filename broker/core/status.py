"""Statuses as a bot gets to see them: under the id we gave it, with its own opaque data, or made by us in Meta's shape.

Rewriting touches two members of the status, `id` and `biz_opaque_callback_data`; every other member keeps its place
and its bytes. Bodies are ASCII, as Meta writes them.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from msgspec import Raw

from broker.core.envelope import ascii_body, hide_lone_surrogates, show_lone_surrogates

OPAQUE = "biz_opaque_callback_data"

ERRORS_HREF = "https://developers.facebook.com/documentation/business-messaging/whatsapp/support/error-codes"
"""Where Meta's own errors point to."""

_object = msgspec.json.Decoder(dict[str, Raw]).decode
_objects = msgspec.json.Decoder(list[dict[str, Raw]]).decode
_string = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode


class StatusBody:
    """The body of a POST that holds one status, opened down to the status."""

    __slots__ = ("_hidden", "_levels", "_raw", "opaque")

    def __init__(self, body: bytes) -> None:
        """Open it. Raises `ValueError` when there is not exactly one status in it."""
        self._raw, self._hidden = True, False
        try:
            self._levels = _open(body, raw=True)
        except msgspec.DecodeError:  # such as half a surrogate pair in a text, which Meta does send
            masked = hide_lone_surrogates(body)
            self._raw = self._hidden = masked is not None
            try:
                self._levels = _open(body if masked is None else masked, raw=self._raw)
            except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError) as error:
                raise ValueError(f"not one status in Meta's shape: {type(error).__name__}") from None
        opaque = self._levels[-1].get(OPAQUE)
        if self._raw and opaque is not None:
            raw = show_lone_surrogates(bytes(opaque)) if self._hidden else bytes(opaque)
            opaque = _text(raw) if raw[:1] == b'"' else None
        self.opaque: str | None = opaque if type(opaque) is str else None
        """What we or somebody else put beside the send; None when there is none."""

    @property
    def code(self) -> int:
        """The code of the status' first error, 0 when there is none."""
        errors = self._levels[-1].get("errors")
        if errors is None:
            return 0
        try:
            first = (msgspec.json.decode(errors) if self._raw else errors)[0]
            code = first["code"]
        except (msgspec.DecodeError, LookupError, TypeError):
            return 0
        return code if type(code) is int else 0

    def rewritten(self, message_id: str, own: str | None) -> bytes:
        """Return the body under another message id, with the caller's own opaque data, or without any for None."""
        outer, entry, change, value, *inner, status = (dict(level) for level in self._levels)
        status["id"] = message_id
        if own is None:
            status.pop(OPAQUE, None)
        else:
            status[OPAQUE] = Raw(_spelled(own, private=self._hidden)) if self._raw else own
        for standby in inner:
            standby["statuses"] = [status]
            value["standby"] = standby
        if not inner:
            value["statuses"] = [status]
        change["value"] = value
        entry["changes"] = [change]
        outer["entry"] = [entry]
        if not self._raw:
            return json.dumps(outer, separators=(",", ":")).encode()
        body = _encode(outer)
        return ascii_body(show_lone_surrogates(body) if self._hidden else body)  # names come out as UTF-8


def _text(raw: bytes) -> str:
    """Read a JSON string; half a surrogate pair may stand in it, which only the slower reader takes."""
    try:
        return _string(raw)
    except msgspec.DecodeError:
        return str(json.loads(raw))


def _spelled(own: str, *, private: bool) -> bytes:
    """Return the caller's own data as JSON. `private`: without escapes of the characters that halves are hidden in."""
    if not private:
        return json.dumps(own).encode()
    return f'"{"".join(c if _PRIVATE[0] <= c <= _PRIVATE[1] else json.dumps(c)[1:-1] for c in own)}"'.encode()


_PRIVATE = "\ue000", "\ue7ff"


def _open(body: bytes, *, raw: bool) -> tuple[dict[str, Any], ...]:
    """Return the levels: body, entry, change, value, perhaps `standby`, status."""
    if raw:
        outer: dict[str, Any] = _object(body)
        try:
            (entry,) = _objects(outer["entry"])
            (change,) = _objects(entry["changes"])
            value = _object(change["value"])
            inner = [] if "statuses" in value else [_object(value["standby"])]
            (status,) = _objects((inner or [value])[0]["statuses"])
        except (KeyError, ValueError):
            raise ValueError("not one status in Meta's shape") from None
        return outer, entry, change, value, *inner, status
    outer = json.loads(body)
    (entry,) = outer["entry"]
    (change,) = entry["changes"]
    value = change["value"]
    around: Any = value if "statuses" in value else value["standby"]
    (status,) = around["statuses"]
    levels = (outer, entry, change, value, *([] if around is value else [around]), status)
    if not all(type(level) is dict for level in levels):
        raise ValueError("not a status in Meta's shape")
    return levels


def failed(
    *,
    message_id: str,
    waba_id: str,
    phone_number_id: str,
    display_phone_number: str,
    wa_id: str,
    bsuid: str,
    at: int,
    code: int,
    title: str,
    details: str,
    own: str | None,
    group_id: str = "",
) -> bytes:
    """Return the body of a `failed` status in Meta's shape, for a send that never reached Meta or was refused by it.

    As Meta's: no contacts, the recipient as it was addressed, `message` equals `title`. `at` is Unix ms.
    """
    status: dict[str, Any] = {"id": message_id, "status": "failed", "timestamp": str(at // 1_000)}
    if group_id:
        status |= {"recipient_id": group_id, "recipient_type": "group"}
    elif wa_id:
        status["recipient_id"] = wa_id
    if bsuid:
        status["recipient_user_id"] = bsuid
    status["errors"] = [
        {
            "code": code,
            "title": title,
            "message": title,
            "error_data": {"details": details},
            "href": ERRORS_HREF,
        }
    ]
    if own is not None:
        status[OPAQUE] = own
    value = {
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": display_phone_number, "phone_number_id": phone_number_id},
        "statuses": [status],
    }
    body = {
        "object": "whatsapp_business_account",
        "entry": [{"id": waba_id, "changes": [{"value": value, "field": "messages"}]}],
    }
    return json.dumps(body, separators=(",", ":")).encode()
