"""Media the platform keeps: uploads of senders and customers, by id, within a bound; the oldest go first."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from email.parser import BytesParser
from email.policy import HTTP

from broker.sandbox.journal import Uploaded
from broker.sandbox.shapes import GraphError, Json

UPLOAD_BYTES_MAX = 16_000_000
MEDIA_BYTES_MAX = 64_000_000
"""All media kept together."""


class Media:
    """The media by id."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Uploaded] = OrderedDict()
        self._bytes = 0

    def __contains__(self, media_id: str) -> bool:
        return media_id in self._kept

    def get(self, media_id: str) -> Uploaded | None:
        """Return a medium."""
        return self._kept.get(media_id)

    def all(self) -> list[Uploaded]:
        """Return every medium, oldest first."""
        return list(self._kept.values())

    def keep(self, medium: Uploaded) -> None:
        """Keep a medium, at the cost of the oldest."""
        self._kept[medium.id] = medium
        self._bytes += len(medium.data)
        while self._bytes > MEDIA_BYTES_MAX:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest.data)

    def drop(self, media_id: str) -> None:
        """Forget a medium."""
        self._bytes -= len(self._kept.pop(media_id).data)


URL_LIFE_MS = 5 * 60_000
"""How long a medium's url is good. Source: Meta Cloud API, "Media"."""


def node_of(medium: Uploaded, base_url: str, at: int) -> Json:
    """Return what Graph says about a medium; its url says until when it is good."""
    return {
        "messaging_product": "whatsapp",
        "url": f"{base_url}/sandbox/media/{medium.id}?ext={(at + URL_LIFE_MS) // 1_000}",
        "mime_type": medium.mime_type,
        "sha256": hashlib.sha256(medium.data).hexdigest(),
        "file_size": str(len(medium.data)),
        "id": medium.id,
    }


def read_upload(content_type: str, body: bytes) -> tuple[str, bytes, str] | GraphError:
    """Return type, bytes and file name of a multipart upload, or why it is none."""
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    fields: dict[str, str] = {}
    data, mime_type, filename = b"", "", ""
    for part in message.iter_parts() if message.is_multipart() else ():
        name = part.get_param("name", header="content-disposition")
        payload = part.get_payload(decode=True)
        if not isinstance(payload, bytes):
            continue
        if name == "file":
            data, mime_type, filename = payload, part.get_content_type(), part.get_filename() or ""
        elif isinstance(name, str):
            fields[name] = payload.decode("utf-8", "replace").strip()
    if fields.get("messaging_product") != "whatsapp":
        return GraphError(100, "The parameter messaging_product is required.")
    if not data:
        return GraphError(100, "The parameter file is required.")
    if len(data) > UPLOAD_BYTES_MAX:
        return GraphError(131053, "The file is too large.")
    return fields.get("type") or mime_type, data, filename
