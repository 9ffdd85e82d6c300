"""The sandbox on HTTP: Graph's paths for senders, a control API for tests and the page, the page itself.

Nobody is asked who they are: it belongs on a developer's machine. Requests from other sites' pages are refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from broker.clock import Clock
from broker.sandbox.customers import DEMO
from broker.sandbox.faults import FAULTS, Fault, FaultName, Faults, Latency
from broker.sandbox.history import History, person_view
from broker.sandbox.journal import Introduced, Journal, Switched
from broker.sandbox.journal import encode as encode_entry
from broker.sandbox.load import Load, LoadReport, run_load
from broker.sandbox.people import Person
from broker.sandbox.platform import BusinessNumber, ConnectionCut, Overfull, Platform, Rules, Timings
from broker.sandbox.postbox import Postage
from broker.sandbox.referee import Referee
from broker.secrets import Secret
from schemas.settings import SandboxSettings

logger = logging.getLogger("depesche.sandbox")

PAGE = Path(__file__).parent / "phone"
BODY_BYTES_MAX = 17 * 1024 * 1024
"""The largest upload the platform takes, and its frame."""

EVENTS_WAITING_MAX = 2_000
"""Events that wait for one page; a page that is further behind is told to load everything anew."""

HEARTBEAT_S = 15.0
JOURNAL_ENTRIES_MAX = 5_000
BACKLOG = 2_048
"""Connections nobody has taken yet: with aiohttp's 128, a second of a busy loop looked like a Meta that is gone."""

FREEZE_S_MAX = 600.0
LOADS_MAX = 8
"""Loads of different names at once: a number of businesses, not of customers."""

WRITES = ("text", "image", "audio", "video", "document", "location", "interactive", "button", "reaction", "contacts")
"""What a customer can write."""

CSP = "default-src 'self'; img-src 'self' data: https:; style-src 'self'; script-src 'self'; frame-ancestors 'none'"

encode_json = msgspec.json.Encoder().encode


class HttpPoster:
    """Carries webhooks over HTTP. Connections are kept; redirects are not followed, as Meta does not."""

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        """Return the answer's status. Raises OSError (which aiohttp's connection errors are) or TimeoutError."""
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=self._connections))
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                await answer.read()
                return answer.status
        except aiohttp.ClientError as error:
            raise OSError(str(error)) from error

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


class Sandbox:
    """A platform with its journal, history and referee, on one port. `folder`: where the journal is kept, None for
    memory alone. With port 0 the system chooses, and `port` tells after `start`."""

    def __init__(
        self,
        settings: SandboxSettings,
        tokens: Mapping[str, Secret],
        app_secret: Secret,
        folder: Path | None,
        clock: Clock,
        *,
        rules: Rules | None = None,
        timings: Timings | None = None,
        postage: Postage | None = None,
    ) -> None:
        self.settings = settings
        self.port = settings.port
        postage = postage or Postage()
        self._poster = HttpPoster(postage.connections)
        self.journal = Journal(folder / "journal.jsonl" if folder else None)
        rng = Random(f"{settings.seed}/platform")  # noqa: S311  # chance to be repeated by seed, not a secret
        self.faults = Faults(
            Random(f"{settings.seed}/faults"),  # noqa: S311
            Latency(median_ms=settings.latency_ms),
        )
        self.platform = Platform(
            [
                BusinessNumber(
                    number.phone_number_id,
                    number.waba_id,
                    number.display_phone_number.lstrip("+"),
                    tokens[number.phone_number_id].reveal(),
                    number.throughput_mps,
                    number.name,
                )
                for number in settings.numbers
            ],
            self.faults,
            clock,
            rng,
            self._poster,
            webhook_url=settings.webhook_url,
            app_secret=app_secret.reveal(),
            journal=self.journal,
            rules=rules,
            timings=timings,
            postage=postage,
        )
        self.history = History(self.platform.templates, self._publish)
        self.referee = Referee({number.phone_number_id: number.throughput_mps for number in settings.numbers})
        self._clock = clock
        self._pages: dict[int, asyncio.Queue[bytes]] = {}
        self._page_count = 0
        self._loads: dict[str, tuple[asyncio.Task[LoadReport], LoadReport]] = {}
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Read the journal back, open the port, let webhooks out. Raises OSError when the port cannot be had."""
        entries = self.platform.restore(self.history.see)
        self.journal.listen(self.history.see)
        self.journal.listen(self.referee.see)
        if not self.platform.people.named:
            for person in DEMO:
                self.platform.introduce(msgspec.structs.replace(person))
        self._runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.settings.host, self.port, backlog=BACKLOG).start()
        self.port = self._runner.addresses[0][1]
        self.platform.base_url = f"http://{self.settings.host}:{self.port}"
        self.platform.start()
        logger.info("sandbox: listening on %s:%d, %d journal entries read", self.settings.host, self.port, entries)

    async def stop(self) -> None:
        """Close the port, end the webhooks. What is under way stays in the journal."""
        tasks = [task for task, _ in self._loads.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        await self.platform.stop()
        for queue in self._pages.values():
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait(b"")
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self._poster.close()

    def app(self) -> web.Application:
        """Return the application with every route."""
        app = web.Application(middlewares=[self._guard], client_max_size=BODY_BYTES_MAX)
        app.add_routes(
            [
                web.get("/", self._front),
                web.get("/phone", self._front),
                web.get("/phone/", self._page),
                web.static("/phone/", PAGE),
                web.get("/healthz", self._healthy),
                web.get("/sandbox/state", self._state),
                web.get("/sandbox/events", self._events),
                web.get("/sandbox/journal", self._journal),
                web.get("/sandbox/referee", self._referee),
                web.post("/sandbox/messages", self._write),
                web.get("/sandbox/messages/{wamid}", self._behind),
                web.post("/sandbox/read", self._read),
                web.post("/sandbox/people", self._introduce),
                web.patch("/sandbox/people/{person}", self._change),
                web.post("/sandbox/preferences", self._prefer),
                web.post("/sandbox/media", self._upload),
                web.get("/sandbox/media/{id}", self._medium),
                web.get("/sandbox/faults", self._show_faults),
                web.put("/sandbox/faults/{name}", self._set_fault),
                web.delete("/sandbox/faults", self._clear_faults),
                web.post("/sandbox/freeze", self._freeze),
                web.put("/sandbox/tokens/{number}/revoked", self._revoke),
                web.delete("/sandbox/tokens/{number}/revoked", self._unrevoke),
                web.delete("/sandbox/history", self._forget),
                web.post("/sandbox/load", self._begin_load),
                web.get("/sandbox/load", self._show_load),
                web.route("*", "/{version:v[^/]*}/{rest:.*}", self._graph),
            ]
        )
        return app

    # Graph

    async def _graph(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        try:
            answer = await self.platform.graph(request.method, request.raw_path, request.headers, body)
        except ConnectionCut:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=499)
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)

    # The page

    async def _front(self, request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/phone/")

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    async def _healthy(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="ok\n")

    async def _state(self, request: web.Request) -> web.StreamResponse:
        return _json(self._whole_state())

    def _whole_state(self) -> dict[str, Any]:
        return {
            "seq": self.journal.seq,
            "now": self._clock.now(),
            "numbers": [
                {
                    "id": number.phone_number_id,
                    "digits": number.display_phone_number,
                    "name": number.name,
                    "throughput_mps": number.throughput_mps,
                }
                for number in self.platform.numbers.values()
            ],
            "people": [person_view(Introduced(at=0, person=person)) for person in self.platform.people.named.values()],
            "chats": self.history.chats(),
            "traffic": list(self.history.traffic.values()),
            "faults": self._fault_state(),
        }

    def _fault_state(self) -> dict[str, Any]:
        return {
            "known": FAULTS,
            "on": self.faults.on(),
            "struck": self.faults.struck,
            "revoked": list(self.faults.revoked),
            "frozen_s": max(0.0, self.faults.frozen_until - self._clock.monotonic()),
            "waiting": self.platform.postbox.waiting,
        }

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: bubble, typing, person, traffic, switch; `again` when a page has to load everything."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        queue: asyncio.Queue[bytes] = asyncio.Queue(EVENTS_WAITING_MAX + 2)
        self._page_count += 1
        key = self._page_count
        self._pages[key] = queue
        try:
            await response.write(b"event: hello\ndata: " + encode_json({"seq": self.journal.seq}) + b"\n\n")
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        event = await queue.get()
                except TimeoutError:
                    event = b": still here\n\n"
                if not event:
                    break
                await response.write(event)
        except ConnectionError:
            pass
        finally:
            self._pages.pop(key, None)
        return response

    def _publish(self, name: str, data: dict[str, Any]) -> None:
        if not self._pages:
            return
        event = b"event: " + name.encode() + b"\ndata: " + encode_json(data) + b"\n\n"
        for queue in self._pages.values():
            if queue.qsize() < EVENTS_WAITING_MAX:
                queue.put_nowait(event)
            elif queue.qsize() == EVENTS_WAITING_MAX:
                queue.put_nowait(b"event: again\ndata: {}\n\n")

    # The journal

    async def _journal(self, request: web.Request) -> web.StreamResponse:
        since, limit = _int(request, "since", 0), min(_int(request, "limit", 1_000), JOURNAL_ENTRIES_MAX)
        lines = b"".join(encode_entry(entry) + b"\n" for entry in self.journal.since(since, limit))
        return web.Response(body=lines, content_type="application/x-ndjson")

    async def _referee(self, request: web.Request) -> web.StreamResponse:
        return _json(
            {
                "counts": self.referee.counts,
                "verdicts": self.referee.verdicts,
                "numbers": self.referee.numbers,
                "repeats": self.referee.repeats,
                "unacknowledged": len(self.referee.unacknowledged()),
            }
        )

    # Loads of simulated customers

    async def _begin_load(self, request: web.Request) -> web.StreamResponse:
        """Begin a load (the fields of `Load`); its report stands at the same address, `?name=` says which one's."""
        given = await _object(request)
        try:
            load = msgspec.convert(given, Load)
        except msgspec.ValidationError as error:
            raise _wrong(400, str(error)) from None
        if load.name in self._loads and not self._loads[load.name][0].done():
            raise _wrong(409, "a load of this name is running; wait until it is over")
        if not load.people or load.conversations_per_s <= 0:
            raise _wrong(400, "people and conversations_per_s: at least one kind, above 0")
        if load.name not in self._loads and len(self._loads) >= LOADS_MAX:
            raise _wrong(409, f"there were {LOADS_MAX} loads; take one of their names")
        if unknown := [number for number in load.numbers if number not in self.platform.numbers]:
            raise _wrong(404, f"no such number: {', '.join(unknown)}")
        rng = Random(f"{self.settings.seed}/{load.name}")  # noqa: S311
        report = LoadReport()
        task = asyncio.create_task(run_load(self.platform, load, rng, report), name="sandbox load")
        self._loads[load.name] = (task, report)
        return _json({"begun": True})

    async def _show_load(self, request: web.Request) -> web.StreamResponse:
        found = self._loads.get(request.query.get("name", Load().name))
        if found is None:
            raise _wrong(404, "no load of this name was begun; POST one here")
        task, report = found
        crashed = task.exception() if task.done() and not task.cancelled() else None
        return _json(
            {
                "over": task.done(),
                "crashed": repr(crashed) if crashed is not None else "",
                "begun": report.begun,
                "written": report.written,
                "answered": report.answered,
                "unanswered": report.unanswered,
                "whole": report.whole,
                "broken": report.broken,
                "late_s_max": report.late_s_max,
                "p50_s": report.quantile_s(0.5),
                "p99_s": report.quantile_s(0.99),
            }
        )

    async def _behind(self, request: web.Request) -> web.StreamResponse:
        behind = self.history.behind(request.match_info["wamid"])
        if behind is None:
            raise _wrong(404, "no such message, or it is too old to be shown")
        return _json(behind)

    # What a customer does

    async def _write(self, request: web.Request) -> web.StreamResponse:
        given = await _object(request)
        kind = given.get("type", "text")
        if kind not in WRITES:
            raise _wrong(400, f"type: one of {', '.join(WRITES)}")
        content = given.get("content")
        if not isinstance(content, list if kind == "contacts" else dict):
            raise _wrong(400, "content: the object that the type names")
        if isinstance(content, dict) and kind == "text" and not 1 <= len(str(content.get("body", ""))) <= 4_096:
            raise _wrong(400, "content.body: 1 to 4,096 characters")
        try:
            wamid = self.platform.write(
                _text(given, "number"),
                _text(given, "person"),
                kind,
                content,
                quoting=str(given.get("quoting", "")),
            )
        except KeyError as error:
            raise _wrong(404, f"no such number or person: {error}") from None
        except Overfull as error:
            raise _wrong(503, str(error)) from None
        return _json({"wamid": wamid})

    async def _read(self, request: web.Request) -> web.StreamResponse:
        given = await _object(request)
        return _json({"read": self.platform.open_chat(_text(given, "number"), _text(given, "person"))})

    async def _introduce(self, request: web.Request) -> web.StreamResponse:
        given = await _object(request)
        try:
            person = msgspec.convert(given, Person)
        except msgspec.ValidationError as error:
            raise _wrong(400, str(error)) from None
        if not person.id:
            raise _wrong(400, "a person needs a wa_id or a bsuid")
        return _json(person_view(Introduced(at=0, person=self.platform.introduce(person))))

    async def _change(self, request: web.Request) -> web.StreamResponse:
        given = await _object(request)
        known = {"online", "reads", "on_whatsapp"}
        if not given.keys() <= known:
            raise _wrong(400, f"what can be changed: {', '.join(sorted(known))}")
        try:
            person = self.platform.change(request.match_info["person"], **given)
        except KeyError:
            raise _wrong(404, "no such person") from None
        except ValueError as error:
            raise _wrong(400, str(error)) from None
        return _json(person_view(Introduced(at=0, person=person)))

    async def _prefer(self, request: web.Request) -> web.StreamResponse:
        given = await _object(request)
        try:
            self.platform.prefer(_text(given, "number"), _text(given, "person"), marketing=bool(given.get("marketing")))
        except KeyError as error:
            raise _wrong(404, f"no such number or person: {error}") from None
        return _json({"success": True})

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        data = await request.read()
        number = request.query.get("number", "")
        if number not in self.platform.numbers:
            raise _wrong(404, "no such number")
        try:
            return _json(self.platform.attach(number, request.content_type, data, request.query.get("filename", "")))
        except ValueError as error:
            raise _wrong(413, str(error)) from None

    async def _medium(self, request: web.Request) -> web.StreamResponse:
        medium = self.platform.medium(request.match_info["id"])
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        from_page = request.headers.get("Sec-Fetch-Site") == "same-origin"
        if not from_page and token not in {number.token for number in self.platform.numbers.values()}:
            raise _wrong(401, "the number's token is needed")
        if medium is None or _int(request, "ext", 1 << 62) * 1_000 < self._clock.now():
            raise _wrong(404, "no such medium, or its url is too old")
        headers = {"Content-Security-Policy": "sandbox", "X-Content-Type-Options": "nosniff"}
        return web.Response(body=medium.data, content_type=medium.mime_type.partition(";")[0], headers=headers)

    # Switches

    async def _show_faults(self, request: web.Request) -> web.StreamResponse:
        return _json(self._fault_state())

    async def _set_fault(self, request: web.Request) -> web.StreamResponse:
        name: FaultName = request.match_info["name"]  # type: ignore[assignment]  # checked by `set`
        try:
            fault = msgspec.convert(await _object(request), Fault)
            self.faults.set(name, fault)
        except (ValueError, msgspec.ValidationError) as error:
            raise _wrong(400, str(error)) from None
        self._switched(name, value={"rate": fault.rate, "ms": fault.ms})
        return _json(self._fault_state())

    async def _clear_faults(self, request: web.Request) -> web.StreamResponse:
        self.faults.clear()
        self._switched("clear")
        return _json(self._fault_state())

    async def _freeze(self, request: web.Request) -> web.StreamResponse:
        given = await _object(request)
        seconds = given.get("seconds", 10)
        if not isinstance(seconds, int | float) or not 0 < seconds <= FREEZE_S_MAX:
            raise _wrong(400, f"seconds: above 0, at most {FREEZE_S_MAX:.0f}")
        self.platform.freeze(float(seconds))
        return _json(self._fault_state())

    async def _revoke(self, request: web.Request) -> web.StreamResponse:
        self.faults.revoke_token(self._number(request))
        self._switched("token_revoked", number=request.match_info["number"])
        return _json(self._fault_state())

    async def _unrevoke(self, request: web.Request) -> web.StreamResponse:
        self.faults.restore_token(self._number(request))
        self._switched("token_restored", number=request.match_info["number"])
        return _json(self._fault_state())

    async def _forget(self, request: web.Request) -> web.StreamResponse:
        """Empty every chat and the journal. Windows and debts stay as they are."""
        self.journal.forget()
        self.history.forget()
        for person in self.platform.people.named.values():
            self.platform.introduce(person)
        self._publish("again", {})
        return _json({"success": True})

    def _switched(self, name: str, number: str = "", value: dict[str, Any] | None = None) -> None:
        self.journal.write(Switched(at=self._clock.now(), name=name, number=number, value=value or {}))

    def _number(self, request: web.Request) -> str:
        number = request.match_info["number"]
        if number not in self.platform.numbers:
            raise _wrong(404, "no such number")
        return number

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Refuse other sites' pages: a foreign Origin, or a foreign name that resolves to this machine."""
        if not request.path.startswith("/v"):
            origin = request.headers.get("Origin")
            if (origin is not None and origin.partition("://")[2] != request.host) or not self._is_ours(request.host):
                raise _wrong(403, "not from another site")
        response = await handler(request)
        if request.path.startswith("/phone") and not response.prepared:
            response.headers["Content-Security-Policy"] = CSP
            response.headers["X-Content-Type-Options"] = "nosniff"
            response.headers["Referrer-Policy"] = "no-referrer"
            response.headers.setdefault("Cache-Control", "no-cache")
        return response

    def _is_ours(self, host: str) -> bool:
        """Whoever listens on loopback is called by a loopback name."""
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        try:
            listens_on_loopback = ipaddress.ip_address(self.settings.host).is_loopback
        except ValueError:
            listens_on_loopback = self.settings.host == "localhost"
        return not listens_on_loopback or name.strip("[]") in ("localhost", "127.0.0.1", "::1", self.settings.host)


def _json(value: Any) -> web.Response:
    return web.Response(body=encode_json(value), content_type="application/json", headers={"Cache-Control": "no-store"})


def _wrong(status: int, why: str) -> web.HTTPException:
    return WRONG[status](text=encode_json({"error": why}).decode(), content_type="application/json")


class _TooLarge(web.HTTPClientError):
    """aiohttp's own 413 wants two sizes that are not ours to know."""

    status_code = 413


WRONG: dict[int, type[web.HTTPException]] = {
    400: web.HTTPBadRequest,
    401: web.HTTPUnauthorized,
    403: web.HTTPForbidden,
    404: web.HTTPNotFound,
    409: web.HTTPConflict,
    413: _TooLarge,
    415: web.HTTPUnsupportedMediaType,
    503: web.HTTPServiceUnavailable,
}


async def _object(request: web.Request) -> dict[str, Any]:
    """Return a JSON body. Only JSON by its declared type: what a foreign page cannot send without asking first."""
    if request.content_type != "application/json":
        raise _wrong(415, "Content-Type: application/json")
    try:
        given = msgspec.json.decode(await request.read())
    except msgspec.DecodeError as error:
        raise _wrong(400, f"not JSON: {error}") from None
    if not isinstance(given, dict):
        raise _wrong(400, "a JSON object is needed")
    return given


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value:
        raise _wrong(400, f"{name}: is needed")
    return value


def _int(request: web.Request, name: str, default: int) -> int:
    try:
        return int(request.query.get(name, default))
    except ValueError:
        raise _wrong(400, f"{name}: a whole number") from None
