"""Media of a number: uploads and downloads as streams, ids and urls that a key may touch, and no others.

Whose a medium is, Meta knows: it serves an id together with a `phone_number_id` only if it was uploaded on, or came in
at, that number. So every question about an id names one of the key's own numbers, and what
answers must look like a medium: behind an id might stand anything else that the token may read or delete. A url of ours
carries its number, signed.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp import MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from msgspec import Raw
from yarl import URL

from broker import metrics
from broker.core.endpoints import DOWNLOAD, MEDIUM, MEDIUM_DELETE, UPLOAD, Target, clean_query, error_code
from broker.core.envelope import object_bytes
from broker.core.media_url import from_ours, is_metas, media_secret, to_ours
from broker.core.message import INVALID, error_of
from broker.gateway import answers
from broker.gateway.passthrough import (
    CHUNK_BYTES,
    CONNECT_S_MAX,
    SILENCE_S_MAX,
    Broken,
    Exchange,
    Passthrough,
    Unreached,
)
from broker.listener import BODY_S_MAX, Answer, Refused, go_on

NUMBERS_TRIED_MAX = 20
"""For an id whose number is not said: at 100 ms a question, an answer within 2 s. Names further back need
`phone_number_id`."""

NUMBERS_KEPT_MAX = 20_000
"""Media whose number is known: some 100 B each."""

FIELD_BYTES_MAX = 1_024
FIELDS_MAX = 16
REDIRECTS_MAX = 3

WRITE_S_MAX = 30.0
"""A bot that takes nothing for so long has gone, whatever its connection says."""

_TYPE = re.compile(
    r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}(?:; ?[A-Za-z0-9_-]{1,32}=[\"A-Za-z0-9_.,+ -]{1,64})?"
)
_FIELD = re.compile(r"[a-z_]{1,64}")
_DROPPED: Final = frozenset(("access_token", "appsecret_proof"))
_FIELD_REFUSED: Final = re.compile(r"webhook|callback|batch|method|token")

HEADERS_PASSED: Final = (
    "Content-Type",
    "Content-Length",
    "Content-Range",
    "Content-Encoding",
    "Accept-Ranges",
    "ETag",
    "Last-Modified",
)
HEADERS_OURS: Final = {
    "Content-Disposition": "attachment",
    "Content-Security-Policy": "sandbox",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, no-store",
}
"""Customers send what they like: opened in a browser, a medium must not act as a page of ours."""


class Media:
    """Serves media. Owns which number a medium is known to belong to."""

    def __init__(self, graph: Passthrough, rng: random.Random) -> None:
        self._graph = graph
        self._settings = graph.settings.gateway
        self._rng = rng
        self._number_of: OrderedDict[str, str] = OrderedDict()
        self._last_found: dict[str, None] = {}
        """Numbers at which media were found, the latest last: the next is most likely at one of them."""

    # ---- an id

    async def get(self, target: Target, numbers: Sequence[str], query: str) -> Answer:
        """Answer `GET /{media_id}`: what Meta says of the medium, with a url of ours. Never raises."""
        try:
            found = await self._find(target, numbers, query)
        except (Unreached, Broken) as failed:
            return self._graph.failed(MEDIUM.name, failed)
        if isinstance(found, Answer):
            return found
        number, exchange, members = found
        url = to_ours(_text(members, "url"), target.node, number, self._graph.public_url, self._secret(number))
        members["url"] = Raw(msgspec.json.encode(url))
        told = Exchange(exchange.status, exchange.headers, object_bytes(members))
        return self._graph.answer(MEDIUM.name, told, number)

    async def delete(self, target: Target, numbers: Sequence[str], query: str) -> Answer:
        """Answer `DELETE /{media_id}`, after making sure that the id is a medium's. Never raises."""
        try:
            found = await self._find(target, numbers, query)
            if isinstance(found, Answer):
                return found
            number = found[0]
            exchange = await self._graph.exchange(
                MEDIUM_DELETE.name,
                "DELETE",
                number,
                target.node,
                version=target.version,
                query=f"phone_number_id={number}",
            )
        except (Unreached, Broken) as failed:
            return self._graph.failed(MEDIUM_DELETE.name, failed)
        self._number_of.pop(target.node, None)
        return self._graph.answer(MEDIUM_DELETE.name, exchange, number)

    async def _find(
        self, target: Target, numbers: Sequence[str], query: str
    ) -> tuple[str, Exchange, dict[str, Raw]] | Answer:
        """Return the number a medium belongs to, and what Meta says of it; or the answer that ends it."""
        try:
            named = _named_number(query)
        except ValueError as wrong:
            return answers.refused(400, error_of(INVALID, str(wrong)), "refused", self._rng)
        if named and named not in numbers:
            return self._not_found(target.node)
        last: Answer | None = None
        for number in (named,) if named else self._likely(target.node, numbers):
            exchange = await self._node(target, number)
            members = _medium(exchange, target.node)
            if members is not None:
                self._note(target.node, number)
                return number, exchange, members
            if exchange.status >= 300 and error_code(exchange.body) != INVALID:
                last = self._graph.answer(MEDIUM.name, exchange, number)  # no word about the id: a throttle, a failure
        return last or self._not_found(target.node)

    async def _node(self, target: Target, number: str) -> Exchange:
        return await self._graph.exchange(
            MEDIUM.name, "GET", number, target.node, version=target.version, query=f"phone_number_id={number}"
        )

    def _likely(self, media_id: str, numbers: Sequence[str]) -> Sequence[str]:
        """Return a key's numbers, the most likely first, as many as are tried."""
        known = self._number_of.get(media_id)
        recent = [number for number in reversed(self._last_found) if number in numbers]
        first = [known] if known in numbers and known is not None else []
        return list(dict.fromkeys((*first, *recent, *numbers)))[:NUMBERS_TRIED_MAX]

    def _note(self, media_id: str, number: str) -> None:
        self._number_of[media_id] = number
        self._number_of.move_to_end(media_id)
        if len(self._number_of) > NUMBERS_KEPT_MAX:
            self._number_of.popitem(last=False)
        self._last_found.pop(number, None)
        self._last_found[number] = None

    def _not_found(self, node: str) -> Answer:
        return answers.refused(400, answers.not_found(node, "get"), "not_found", self._rng)

    def _secret(self, number: str) -> bytes:
        return media_secret(self._graph.token(number))

    # ---- an upload

    async def upload(self, number: str, request: web.BaseRequest, version: str, secret: str) -> Answer:
        """Answer `POST /{phone_number_id}/media`: the file goes on to Meta while it comes in. Never raises.

        The form is taken apart and made anew: of a bot's own bytes only the file's go along. `secret`: the bot's key,
        which must not.
        """
        boundary = f"depesche-{self._rng.getrandbits(128):032x}"
        try:
            form = _Form(self._reader(request), boundary, self._settings.media_bytes_max, secret.encode())
            await go_on(request)
        except Refused as refused:
            return self._refused(refused)
        try:
            exchange = await self._graph.exchange(
                UPLOAD.name,
                "POST",
                number,
                f"{number}/media",
                version=version,
                content=form.parts(),
                content_type=f"multipart/form-data; boundary={boundary}",
                timeout_s=self._settings.media_timeout_s,
                done=lambda: form.is_done,
            )
        except (Unreached, Broken) as failed:
            if form.refused is not None:
                return self._refused(form.refused)
            return self._graph.failed(UPLOAD.name, failed)._replace(close=not form.is_done)
        finally:
            metrics.gateway_media_bytes.labels("up").inc(form.bytes)
        answer = self._graph.answer(UPLOAD.name, exchange, number)
        if answer.status == 200 and (media_id := _text(_object(answer.body), "id")):
            self._note(media_id, number)
        return answer if form.is_done else answer._replace(close=True)

    def _reader(self, request: web.BaseRequest) -> MultipartReader:
        if (request.content_length or 0) > self._settings.media_bytes_max:
            raise Refused(413, f"an upload holds up to {self._settings.media_bytes_max} bytes")
        if request.content_type != "multipart/form-data":
            raise Refused(400, "an upload is multipart/form-data with the parts messaging_product, type and file")
        try:
            return MultipartReader(request.headers, request.content, max_field_size=2_048, max_headers=FIELDS_MAX)
        except ValueError:
            raise Refused(400, "the Content-Type names no boundary") from None

    def _refused(self, refused: Refused) -> Answer:
        result = "too_large" if refused.status == 413 else "refused"
        metrics.gateway_graph_calls.labels(UPLOAD.name, "not_made").inc()
        text = str(refused)
        return answers.refused(
            refused.status, error_of(INVALID, text[:1].upper() + text[1:] + "."), result, self._rng, close=True
        )

    # ---- a download

    async def download(
        self, target: Target, number: str, request: web.BaseRequest
    ) -> tuple[web.StreamResponse, Answer]:
        """Answer a url of ours with the medium's bytes, while they come. Never raises.

        Returns the response, and what is counted of it.
        """
        medium = from_ours(number, target.ours, self._secret(number))
        if medium is None:
            answer = answers.refused(404, answers.not_found(number, "get"), "not_found", self._rng)
            return _response(answer), answer
        try:
            async with asyncio.timeout(self._settings.graph_timeout_s):
                url = medium.url if self._is_metas(medium.url) else ""
                response = await self._open(url, number, request) if url else None
                if medium.media_id and (response is None or (400 <= response.status < 500 and response.status != 416)):
                    if response is not None:
                        response.close()
                    fresh = await self._fresh(medium.media_id, number)
                    if isinstance(fresh, Answer):
                        return _response(fresh), fresh
                    response = await self._open(fresh, number, request)
                if response is None:
                    raise Unreached("the url is not Meta's, and there is no id")
        except (Unreached, Broken, TimeoutError) as failed:
            answer = self._graph.failed(DOWNLOAD.name, Broken() if isinstance(failed, TimeoutError) else failed)
            return _response(answer), answer
        return await self._stream(response, request)

    def _is_metas(self, url: str) -> bool:
        return bool(url) and is_metas(url, self._settings.media_hosts, self._graph.settings.sender.graph_url)

    async def _fresh(self, media_id: str, number: str) -> str | Answer:
        """Ask Meta for a url that is good now."""
        exchange = await self._node(Target("", media_id, "", ""), number)
        members = _medium(exchange, media_id)
        if members is None:
            answer = self._graph.answer(DOWNLOAD.name, exchange, number)
            return answer if answer.status >= 400 else self._not_found(media_id)
        url = _text(members, "url")
        if not self._is_metas(url):
            return self._graph.unreadable(DOWNLOAD.name)
        return url

    async def _open(self, url: str, number: str, request: web.BaseRequest) -> aiohttp.ClientResponse:
        """Return Meta's answer up to its headers. Follows what leads to Meta itself. Raises `Unreached`, `Broken`."""
        headers = {"Authorization": f"Bearer {self._graph.token(number)}", "Accept": "*/*"}
        if wanted := request.headers.get("Range"):
            headers["Range"] = wanted[:100]
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S_MAX, sock_read=SILENCE_S_MAX)
        for _ in range(REDIRECTS_MAX + 1):
            try:
                response = await self._graph.session.get(
                    URL(url, encoded=True), headers=headers, allow_redirects=False, timeout=timeout
                )
            except (
                aiohttp.ClientConnectorError,
                aiohttp.ConnectionTimeoutError,
                aiohttp.InvalidURL,
                ValueError,
            ) as error:
                raise Unreached(type(error).__name__) from None
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise Broken(type(error).__name__) from None
            if response.status not in (301, 302, 303, 307, 308):
                return response
            url = str(response.url.join(URL(response.headers.get("Location", ""), encoded=True)))
            response.close()
            if not self._is_metas(url):
                raise Broken("redirected to somebody else")
        raise Broken("redirected without end")

    async def _stream(
        self, response: aiohttp.ClientResponse, request: web.BaseRequest
    ) -> tuple[web.StreamResponse, Answer]:
        """Pass Meta's bytes on as they come, or say why there are none."""
        try:
            if response.status not in (200, 206, 416):
                answer = self._graph.unreadable(DOWNLOAD.name)
                return _response(answer), answer
            length = response.content_length or 0
            if length > self._settings.media_bytes_max:
                error = error_of(INVALID, f"The medium has {length} bytes, more than this gateway passes on.")
                answer = answers.refused(413, error, "too_large", self._rng)
                return _response(answer), answer
            headers = {name: response.headers[name] for name in HEADERS_PASSED if name in response.headers}
            ours = web.StreamResponse(status=response.status, headers={**headers, **HEADERS_OURS})
            await ours.prepare(request)
            passed = 0
            try:
                async with asyncio.timeout(self._settings.media_timeout_s):
                    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                        passed += len(chunk)
                        if passed > self._settings.media_bytes_max:
                            raise Broken("more bytes than were announced")
                        async with asyncio.timeout(WRITE_S_MAX):
                            await ours.write(chunk)
                    await ours.write_eof()
            except (Broken, aiohttp.ClientError, OSError, TimeoutError):
                # Half is out: the bot must see it break off, not end.
                metrics.gateway_graph_calls.labels(DOWNLOAD.name, "broken_off").inc()
                ours.force_close()
                if request.transport is not None:
                    request.transport.abort()
            else:
                metrics.gateway_graph_calls.labels(DOWNLOAD.name, "done").inc()
            finally:
                metrics.gateway_media_bytes.labels("down").inc(passed)
            return ours, Answer(response.status, result="passed")
        finally:
            response.close()


class _Form:
    """An upload on its way: the parts that come in, made anew as they go out."""

    def __init__(self, reader: MultipartReader, boundary: str, bytes_max: int, secret: bytes) -> None:
        self._reader = reader
        self._secret = secret
        self._boundary = boundary.encode()
        self._bytes_max = bytes_max
        self.bytes = 0
        self.is_done = False
        self.refused: Refused | None = None
        """What was wrong with what came in: then nothing of it may be believed to have arrived."""

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the outgoing body. Raises `Refused`, which is kept, for the client wraps it."""
        try:
            async for piece in self._parts():
                yield piece
        except Refused as refused:
            self.refused = refused
            raise
        except TimeoutError:
            self.refused = Refused(408, f"nothing came for {BODY_S_MAX:.0f} s")
            raise self.refused from None
        except (
            ValueError,
            HttpProcessingError,  # a part's headers hold what no header may
            web.RequestPayloadError,
            ConnectionError,
            asyncio.IncompleteReadError,
            AssertionError,
        ) as error:
            self.refused = Refused(400, f"the body broke off or is no multipart/form-data ({type(error).__name__})")
            raise self.refused from None

    async def _parts(self) -> AsyncIterator[bytes]:
        has_file = False
        for _ in range(FIELDS_MAX):
            async with asyncio.timeout(BODY_S_MAX):
                part = await self._reader.next()
            if part is None:
                break
            if isinstance(part, MultipartReader) or part.name is None:
                raise Refused(400, "a part of the form has no name")
            if part.headers.get("Content-Transfer-Encoding", "binary").lower() not in ("binary", "7bit", "8bit"):
                raise Refused(400, "a part of the form has a transfer encoding")
            if part.name == "file":
                if has_file:
                    raise Refused(400, "the form holds more than one file")
                has_file = True
                yield self._head("file", part.filename or "file", part.headers.get("Content-Type", ""))
                while chunk := await self._chunk(part):
                    yield chunk
                yield b"\r\n"
            else:
                value = await self._field(part)
                if part.name in _DROPPED:
                    continue
                if self._secret in value:
                    raise Refused(400, "the key itself stands in the form")
                if not _FIELD.fullmatch(part.name) or _FIELD_REFUSED.search(part.name):
                    raise Refused(400, f"the form has a field {part.name[:64]!r}, which an upload has not")
                yield self._head(part.name) + value + b"\r\n"
        else:
            raise Refused(400, f"the form has more than {FIELDS_MAX} parts")
        if not has_file:
            raise Refused(400, "the parameter file is required")
        self.is_done = True
        yield b"--" + self._boundary + b"--\r\n"

    async def _chunk(self, part: aiohttp.BodyPartReader) -> bytes:
        async with asyncio.timeout(BODY_S_MAX):
            chunk = await part.read_chunk(CHUNK_BYTES)
        self.bytes += len(chunk)
        if self.bytes > self._bytes_max:
            raise Refused(413, f"an upload holds up to {self._bytes_max} bytes")
        return bytes(chunk)

    async def _field(self, part: aiohttp.BodyPartReader) -> bytes:
        value = b""
        while chunk := await self._chunk(part):
            value += chunk
            if len(value) > FIELD_BYTES_MAX:
                raise Refused(400, f"the form's field {(part.name or '')[:64]!r} is too long")
        return value

    def _head(self, name: str, filename: str = "", content_type: str = "") -> bytes:
        lines = f'--{self._boundary.decode()}\r\nContent-Disposition: form-data; name="{name}"'
        if filename:
            plain = re.sub(r"[\x00-\x1f\x7f]", "_", filename)[:240].replace("\\", "_").replace('"', "%22")
            kind = content_type if _TYPE.fullmatch(content_type) else "application/octet-stream"
            lines += f'; filename="{plain}"\r\nContent-Type: {kind}'
        return f"{lines}\r\n\r\n".encode("utf-8", "replace")


def _named_number(query: str) -> str:
    """Return the `phone_number_id` of a query, or ""; raises `ValueError` for a query that cannot be read."""
    cleaned = clean_query(query)
    if not isinstance(cleaned, str):
        raise ValueError(f"{cleaned.what} cannot be used here.")
    found = re.search(r"(?:^|&)phone_number_id=([0-9]*)(?:&|$)", cleaned)
    return found[1] if found else ""


def _medium(exchange: Exchange, media_id: str) -> dict[str, Raw] | None:
    """Return the members of a medium's node, or None when the answer is none."""
    members = _object(exchange.body) if exchange.status == 200 else {}
    if _text(members, "messaging_product") != "whatsapp" or _text(members, "id") != media_id:
        return None
    return members if _text(members, "url") and _text(members, "mime_type") else None


def _object(body: bytes) -> dict[str, Raw]:
    try:
        return msgspec.json.decode(body, type=dict[str, Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _text(members: dict[str, Any], name: str) -> str:
    raw = members.get(name)
    try:
        value = msgspec.json.decode(raw) if raw is not None else ""
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return value if isinstance(value, str) else ""


def _response(answer: Answer) -> web.Response:
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body or None)
