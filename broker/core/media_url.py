"""Media urls of ours: where a bot fetches a medium from us, and what such a url stands for.

Meta's own url is opened with Meta's token, which bots do not have; opened with their key, it would show Meta the key.
Ours carries the number (whose token opens it), the medium's id and Meta's url, signed, so that nobody can make one and
let us fetch what they like. Meta's url is good for 5 minutes, ours as long as the medium's id: the gateway asks for a
fresh url when the old one has died. Source: Meta Cloud API, "Media".

    <public url>/media/<phone_number_id>/<base64url of id, line feed, Meta's url>.<base64url of the signature>

The same medium always gets the same url, for a body that is delivered again must be the same bytes.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from urllib.parse import urlsplit

from msgspec import Struct

from schemas.settings import GatewaySettings

PREFIX = "/media/"

URL_BYTES_MAX = 2_048
"""A longer url of Meta's is left out: the id alone finds the medium. Ours stays within what servers take as a line."""

ID_BYTES_MAX = 256
"""Meta's ids have some 16 digits."""

OURS_CHARS_MAX = 4_096
"""Of the part behind the number: base64 of id and url, and the signature."""

_SIGNATURE_BYTES = 16
"""128 of the 256 bits: nobody finds them by trying, and the url stays short."""


class Medium(Struct, frozen=True):
    """What a url of ours stands for. `url` is Meta's, possibly too old, or "" when the id alone is known."""

    phone_number_id: str
    media_id: str
    url: str = ""


def media_secret(token: str) -> bytes:
    """Return what signs the urls of a number's media: derived from its Graph token, so that every process that knows
    the token knows it, and nobody has one more secret to keep. A new token ends the old urls; the ids live on."""
    return hmac.digest(token.encode(), b"depesche media url 1", "sha256")


def public_url_of(settings: GatewaySettings) -> str:
    """Return the url under which bots reach the gateway, without a slash at its end."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return settings.public_url.rstrip("/") or f"http://{host}:{settings.port}"


def to_ours(url: str, media_id: str, phone_number_id: str, public_url: str, secret: bytes) -> str:
    """Return our url for a medium of a number's.

    `url`: Meta's, or "" where only the id is known. `public_url`: `public_url_of`; `secret`: `media_secret` of the
    number's token. Raises `ValueError` when neither id nor url can stand in ours.
    """
    if not url.isprintable() or len(url.encode()) > URL_BYTES_MAX:
        url = ""
    if not media_id.isprintable() or len(media_id.encode()) > ID_BYTES_MAX:
        media_id = ""
    if not (url or media_id):
        raise ValueError("neither an id nor a url that names a medium")
    named = _encoded(f"{media_id}\n{url}".encode())
    return f"{public_url}{PREFIX}{phone_number_id}/{named}.{_signature(phone_number_id, named, secret)}"


def from_ours(phone_number_id: str, ours: str, secret: bytes) -> Medium | None:
    """Return what the last part of a path of ours stands for; None when it is not ours, or another number's."""
    named, dot, signature = ours.partition(".")
    if not dot or len(ours) > OURS_CHARS_MAX or not ours.isascii():
        return None
    if not hmac.compare_digest(signature, _signature(phone_number_id, named, secret)):
        return None
    try:
        media_id, _, url = urlsafe_b64decode(named + "=" * (-len(named) % 4)).decode().partition("\n")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return Medium(phone_number_id, media_id, url)


def is_metas(url: str, hosts: Sequence[str], graph_url: str) -> bool:
    """Whether Meta's token may be shown to whoever answers at a url: by TLS at one of the hosts or below it, or at
    Graph itself, wherever the settings have it. That a url was signed by us proves nothing: it came by webhook."""
    try:
        found, graph = urlsplit(url), urlsplit(graph_url)
        port, graph_port = found.port, graph.port
    except ValueError:
        return False
    host = (found.hostname or "").rstrip(".")
    if not host or found.username is not None or found.password is not None:
        return False
    if (found.scheme, host, port) == (graph.scheme, graph.hostname, graph_port):
        return True
    return (
        found.scheme == "https"
        and port in (None, 443)
        and any(host == known or host.endswith("." + known) for known in hosts)
    )


def _signature(phone_number_id: str, named: str, secret: bytes) -> str:
    return _encoded(hmac.digest(secret, f"{phone_number_id}/{named}".encode(), "sha256")[:_SIGNATURE_BYTES])


def _encoded(value: bytes) -> str:
    return urlsafe_b64encode(value).decode().rstrip("=")
