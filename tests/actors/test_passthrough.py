"""Graph through the gateway: the real sandbox behind a real port, and a Meta that sees all and misbehaves on request.

What a bot must never have: Meta's token. What Meta must never have: the bot's key. What nobody may do: reach through us
beyond the numbers of the key.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from msgspec.structs import replace

from broker import metrics
from broker.clock import SystemClock
from broker.core.media_url import media_secret, to_ours
from broker.gateway import Gateway, gateway_app
from broker.gateway.control import Control
from broker.gateway.passthrough import Passthrough
from broker.sandbox.app import Sandbox
from broker.secrets import Secret
from schemas.records import SendRequest, decode_conversation
from schemas.settings import GatewaySettings, SandboxNumber, SandboxSettings, SenderSettings, Settings
from tests.actors.graph_server import eventually
from tests.actors.ports import KEY, NARROW_KEY, NOWHERE, NUMBER, OTHER_NUMBER, embedded, entries, gated, settings
from tests.sandbox.rig import ADA

WABA = "102290129340398"
TOKEN = "EAAnumber-token"
OTHER_TOKEN = "EAAother-token"
PICTURE = random.Random(1).randbytes(300_000)
SHORT = GatewaySettings(port=0, template_refresh_s=0)

pytestmark = pytest.mark.timeout(60)


class Bot:
    """A bot with its key, at a gateway."""

    def __init__(self, gateway: Gateway, url: str, http: aiohttp.ClientSession, log: Any) -> None:
        self.gateway = gateway
        self.url = url
        self.http = http
        self.log = log

    async def call(
        self, method: str, path: str, body: Any = None, *, key: str | None = KEY, **headers: str
    ) -> tuple[int, Any]:
        """Return status and JSON of a call. No answer has Meta's token in it, in whatever part."""
        sent = {"Authorization": f"Bearer {key}"} if key else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = (
            {"data": body}
            if isinstance(body, aiohttp.FormData | bytes) or hasattr(body, "__aiter__")
            else {"json": body}
        )
        url = path if path.startswith("http") else self.url + path
        async with self.http.request(method, url, headers=sent, **data, allow_redirects=False) as answer:
            raw = await answer.read()
            for token in (TOKEN, OTHER_TOKEN):
                assert token.encode() not in raw
                assert token not in str(answer.headers)
            return answer.status, json.loads(raw)

    async def upload(self, data: bytes = PICTURE, *, number: str = NUMBER, key: str = KEY) -> str:
        """Return the id of a picture, uploaded as pywa does: the file first."""
        status, answer = await self.call("POST", f"/v26.0/{number}/media", form(data), key=key)
        assert status == 200, answer
        return str(answer["id"])

    async def fetch(self, url: str, *, key: str = KEY, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        """Return what stands behind a url."""
        sent = {"Authorization": f"Bearer {key}", **headers}
        async with self.http.get(url, headers=sent, allow_redirects=False) as answer:
            return answer.status, await answer.read(), dict(answer.headers)

    async def requests(self) -> list[SendRequest]:
        """Return the sends that are on the log."""
        found = [decode_conversation(entry.value) for entry in await entries(self.log, "conversations")]
        return [record for record in found if isinstance(record, SendRequest)]


def form(data: Any = PICTURE, **more: str) -> aiohttp.FormData:
    """An upload."""
    made = aiohttp.FormData()
    made.add_field("file", data, filename='a "b".png', content_type="image/png")
    for name, value in {"messaging_product": "whatsapp", "type": "image/png", **more}.items():
        made.add_field(name, value)
    return made


def code_of(answer: tuple[int, Any]) -> tuple[int, int]:
    """Status and code of an error."""
    return answer[0], answer[1]["error"]["code"]


@asynccontextmanager
async def gateway_to(
    graph_url: str, folder: Path, gateway: GatewaySettings = SHORT, engine: Any = None, of: Settings | None = None
) -> AsyncIterator[Bot]:
    """A gateway before some Graph."""
    of = replace(of or settings(), gateway=gateway, sender=SenderSettings(graph_url=graph_url))
    clock, rng = SystemClock(), random.Random(2)
    async with AsyncExitStack() as stack:
        if engine is None:
            engine = await stack.enter_async_context(embedded(folder, of))
        graph = Passthrough(of, {NUMBER: Secret(TOKEN), OTHER_NUMBER: Secret(OTHER_TOKEN)}, clock, rng)
        await graph.start()
        stack.push_async_callback(graph.stop)
        made = Gateway(of, engine, clock, rng, graph, Control(of, engine, clock))
        port = gateway_app(made, of, clock)
        await made.start()
        stack.push_async_callback(made.stop, 1.0)
        await port.start()
        stack.push_async_callback(port.stop, 1.0)
        graph.public_url = f"http://127.0.0.1:{port.port}"
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)))
        yield Bot(made, graph.public_url, http, engine)


@asynccontextmanager
async def sandbox() -> AsyncIterator[Sandbox]:
    """Meta's stand-in with two numbers, a token each."""

    def number(id_: str, digits: str) -> SandboxNumber:
        return SandboxNumber(phone_number_id=id_, waba_id=WABA, display_phone_number=digits, token=NOWHERE, name="Shop")

    made = Sandbox(
        SandboxSettings(
            port=0,
            latency_ms=0,
            webhook_url="http://127.0.0.1:9/",
            numbers=[number(NUMBER, "15550001000"), number(OTHER_NUMBER, "15550002000")],
        ),
        {NUMBER: Secret(TOKEN), OTHER_NUMBER: Secret(OTHER_TOKEN)},
        Secret("s"),
        None,
        SystemClock(),
    )
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@pytest.fixture
async def meta() -> AsyncIterator[Sandbox]:
    """The sandbox."""
    async with sandbox() as made:
        yield made


@pytest.fixture
async def bot(meta: Sandbox, tmp_path: Path) -> AsyncIterator[Bot]:
    """A bot whose gateway leads to the sandbox."""
    async with gateway_to(meta.platform.base_url, tmp_path) as made:
        yield made


class Elsewhere:
    """A server that keeps what it is sent and answers as it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[web.BaseRequest, bytes]] = []
        self.answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]] = self._plain
        self.chunks = 0
        self.url = ""

    async def _plain(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"success": True})

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Read a request and answer it."""
        body = b""
        async for chunk in request.content.iter_any():
            body += chunk
            self.chunks += 1
        self.seen.append((request, body))
        return await self.answer(request)

    def says(self, value: Any, status: int = 200, **headers: str) -> None:
        """Answer all with this from now on."""

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            if isinstance(value, bytes):
                return web.Response(body=value, status=status, headers=headers)
            return web.json_response(value, status=status, headers=headers)

        self.answer = answer


@asynccontextmanager
async def elsewhere() -> AsyncIterator[Elsewhere]:
    """A server on a port of its own."""
    server = Elsewhere()
    runner = web.ServerRunner(web.Server(server.handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


@pytest.fixture
async def graph() -> AsyncIterator[Elsewhere]:
    """A Graph that answers as it is told."""
    async with elsewhere() as server:
        yield server


# ---- media


async def test_a_medium_goes_up_comes_down_and_is_gone_when_it_is_deleted(bot: Bot) -> None:
    """The whole life of a picture, with a key of ours alone: its url is ours, and the token is never seen."""
    media_id = await bot.upload()
    status, node = await bot.call("GET", f"/v26.0/{media_id}")
    assert status == 200
    assert (node["id"], node["mime_type"], node["file_size"]) == (media_id, "image/png", str(len(PICTURE)))
    assert node["url"].startswith(f"{bot.url}/media/{NUMBER}/")
    status, data, headers = await bot.fetch(node["url"])
    assert (status, data) == (200, PICTURE)
    assert headers["Content-Type"] == "image/png"
    assert (headers["Content-Disposition"], headers["X-Content-Type-Options"]) == ("attachment", "nosniff")
    assert await bot.call("DELETE", f"/{media_id}/") == (200, {"success": True})
    assert code_of(await bot.call("GET", f"/{media_id}")) == (400, 100)
    assert (await bot.fetch(node["url"]))[0] in (400, 404)


async def test_a_key_touches_the_media_of_its_own_numbers_alone(bot: Bot) -> None:
    """Another bot's customers sent them."""
    media_id = await bot.upload()
    url = (await bot.call("GET", f"/{media_id}?phone_number_id={NUMBER}"))[1]["url"]
    for method, query in (("GET", ""), ("DELETE", ""), ("GET", f"?phone_number_id={NUMBER}")):
        answer = await bot.call(method, f"/{media_id}{query}", key=NARROW_KEY)
        assert code_of(answer) == (400, 100)
        assert answer[1]["error"]["error_subcode"] == 33
    assert (await bot.fetch(url, key=NARROW_KEY))[0] == 404
    assert (await bot.fetch(url, key="wrong"))[0] == 401
    assert (await bot.fetch(url))[1] == PICTURE
    assert code_of(await bot.call("GET", f"/{media_id}?phone_number_id={OTHER_NUMBER}")) == (400, 100)


async def test_a_medium_is_found_at_whichever_number_of_the_key_it_belongs_to(bot: Bot) -> None:
    """Bots rarely say which: libraries ask by the id alone."""
    media_id = await bot.upload(number=OTHER_NUMBER)
    bot.gateway._media._number_of.clear()  # type: ignore[union-attr]  # as at another replica
    assert (await bot.call("GET", f"/{media_id}"))[0] == 200
    other = await bot.upload(number=OTHER_NUMBER, key=NARROW_KEY)
    assert (await bot.call("GET", f"/{other}", key=NARROW_KEY))[1]["url"].startswith(f"{bot.url}/media/{OTHER_NUMBER}/")


async def test_an_id_that_is_no_medium_s_is_neither_shown_nor_deleted(graph: Elsewhere, tmp_path: Path) -> None:
    """With the real token, any object might stand behind an id: a template, a flow, another account."""
    graph.says({"id": "1234567890", "name": "Somebody else's account", "url": "https://x"})
    async with gateway_to(graph.url, tmp_path) as bot:
        assert code_of(await bot.call("GET", "/v26.0/1234567890?fields=name,url")) == (400, 100)
        assert code_of(await bot.call("DELETE", "/v26.0/1234567890")) == (400, 100)
    assert {(request.method, request.path_qs) for request, _ in graph.seen} == {
        ("GET", f"/v26.0/1234567890?phone_number_id={number}") for number in (NUMBER, OTHER_NUMBER)
    }


async def test_a_url_of_ours_outlives_meta_s(bot: Bot, meta: Sandbox) -> None:
    """Meta's is good for 5 minutes; an event may wait an hour for its bot."""
    media_id = await bot.upload()
    url = (await bot.call("GET", f"/{media_id}"))[1]["url"]
    old = f"{meta.platform.base_url}/sandbox/media/{media_id}?ext=1"
    assert (await bot.fetch(to_ours(old, media_id, NUMBER, bot.url, media_secret(TOKEN))))[1] == PICTURE
    assert (await bot.fetch(to_ours("", media_id, NUMBER, bot.url, media_secret(TOKEN))))[1] == PICTURE
    await bot.call("DELETE", f"/{media_id}")
    assert json.loads((await bot.fetch(url))[1])["error"]["code"] == 100


async def test_meta_s_token_is_shown_to_meta_alone(graph: Elsewhere, tmp_path: Path) -> None:
    """A url in a webhook, in an answer or in a redirect may be anybody's."""
    async with elsewhere() as stranger, gateway_to(graph.url, tmp_path) as bot:
        secret = media_secret(TOKEN)
        strange = f"{stranger.url}/x"
        assert (await bot.fetch(to_ours(strange, "", NUMBER, bot.url, secret)))[0] == 503
        graph.says({"id": "77", "messaging_product": "whatsapp", "mime_type": "x/y", "url": strange})
        assert (await bot.fetch(to_ours(strange, "77", NUMBER, bot.url, secret)))[0] == 502
        graph.says(b"", 302, Location=strange)
        assert (await bot.fetch(to_ours(f"{graph.url}/y", "", NUMBER, bot.url, secret)))[0] == 504
        assert code_of(await bot.call("GET", f"/{NUMBER}")) == (502, 2)
        assert not stranger.seen


async def test_a_url_nobody_signed_is_not_fetched(bot: Bot) -> None:
    """Otherwise the gateway would be anybody's way into the network."""
    forged = to_ours("http://169.254.169.254/latest", "1", NUMBER, bot.url, media_secret("guessed"))
    assert (await bot.fetch(forged))[0] == 404


async def test_part_of_a_medium_can_be_asked_for(graph: Elsewhere, tmp_path: Path) -> None:
    """A download that broke off goes on where it was."""

    async def part(request: web.BaseRequest) -> web.StreamResponse:
        assert request.headers["Range"] == "bytes=2-4"
        headers = {"Content-Range": "bytes 2-4/9", "Set-Cookie": "a=b", "X-Secret": "x"}
        return web.Response(body=b"cde", status=206, headers=headers)

    graph.answer = part
    async with gateway_to(graph.url, tmp_path) as bot:
        url = to_ours(f"{graph.url}/m", "", NUMBER, bot.url, media_secret(TOKEN))
        status, data, headers = await bot.fetch(url, Range="bytes=2-4")
        assert (status, data, headers["Content-Range"]) == (206, b"cde", "bytes 2-4/9")
        assert not {"Set-Cookie", "X-Secret"} & headers.keys()


async def test_a_download_that_breaks_off_at_meta_breaks_off_here(graph: Elsewhere, tmp_path: Path) -> None:
    """Half a picture that ends cleanly would be taken for a whole one."""

    async def half(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return response

    graph.answer = half
    async with gateway_to(graph.url, tmp_path) as bot:
        with pytest.raises(aiohttp.ClientError):
            await bot.fetch(to_ours(f"{graph.url}/m", "", NUMBER, bot.url, media_secret(TOKEN)))


async def test_a_medium_beyond_the_limit_is_not_passed_on(graph: Elsewhere, tmp_path: Path) -> None:
    """Neither when its size is said, nor when it only shows."""
    small = replace(SHORT, media_bytes_max=100)
    async with gateway_to(graph.url, tmp_path, small) as bot:
        url = to_ours(f"{graph.url}/m", "", NUMBER, bot.url, media_secret(TOKEN))
        graph.says(b"x" * 101)
        assert (await bot.fetch(url))[0] == 413

        async def endless(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            for _ in range(200):
                await response.write(b"x" * 10)
            return response

        graph.answer = endless
        with pytest.raises(aiohttp.ClientError):
            await bot.fetch(url)
        assert code_of(await bot.call("POST", f"/{NUMBER}/media", form(b"x" * 1_000))) == (413, 100)


async def test_an_upload_goes_on_while_it_comes_in(graph: Elsewhere, tmp_path: Path) -> None:
    """A hundred megabytes are never held: the first of them are at Meta before the last have left the bot."""
    first_is_there = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"a" * 200_000
        await eventually(lambda: graph.chunks)
        first_is_there.set()
        yield b"b" * 10

    graph.says({"id": "42"})
    async with gateway_to(graph.url, tmp_path) as bot:
        assert await bot.call("POST", f"/{NUMBER}/media", form(slowly(), ttl_minutes="60")) == (200, {"id": "42"})
    assert first_is_there.is_set()
    ((request, body),) = graph.seen
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert b"a" * 200_000 + b"b" * 10 in body
    assert b'name="ttl_minutes"\r\n\r\n60\r\n' in body
    assert b'filename="a%20%22b%22.png"\r\nContent-Type: image/png\r\n' in body


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"webhook_configuration": "{}"}, "has not"),
        ({"batch": "[]"}, "has not"),
        ({"method": "delete"}, "has not"),
        ({"note": KEY}, "the key itself"),
        ({"note": "x" * 2_000}, "too long"),
    ],
)
async def test_a_form_carries_a_file_and_nothing_that_is_more_than_that(
    graph: Elsewhere, tmp_path: Path, fields: dict[str, str], says: str
) -> None:
    """A field of a form is a parameter to Graph, like any other."""
    async with gateway_to(graph.url, tmp_path) as bot:
        answer = await bot.call("POST", f"/{NUMBER}/media", form(b"data", **fields))
        assert code_of(answer) == (400, 100)
        assert says in answer[1]["error"]["error_data"]["details"].lower()
        await bot.call("POST", f"/{NUMBER}/media", form(b"data", access_token=KEY))
    assert KEY.encode() not in b"".join(body for _, body in graph.seen)


MULTIPART = "multipart/form-data; boundary=x"


def part(head: str) -> bytes:
    """A form of one part."""
    return f"--x\r\nContent-Disposition: form-data; {head}\r\n\r\nAAAA\r\n--x--\r\n".encode()


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"--x\r\n", MULTIPART),
        (b"--x--\r\n", MULTIPART),
        (b"garbage", MULTIPART),
        (b"garbage", "multipart/form-data"),
        (b"garbage", "image/png"),
        (part('name="type"'), MULTIPART),
        (part('name="file"\r\nContent-Transfer-Encoding: base64'), MULTIPART),
        (part('filename="nameless"'), MULTIPART),
        (part('name="a\x16b"'), MULTIPART),
        (part('name="file"')[:-6], MULTIPART),
    ],
)
async def test_what_is_no_upload_is_refused(bot: Bot, body: bytes, content_type: str) -> None:
    """In Graph's shape, whatever it is."""
    assert code_of(await bot.call("POST", f"/{NUMBER}/media", body, Content_Type=content_type)) == (400, 100)


async def test_an_upload_that_meta_refuses_is_told_so(bot: Bot) -> None:
    """With Meta's own code, while the bot is still sending."""
    answer = await bot.call("POST", f"/{NUMBER}/media", form(b"data", messaging_product="telegram"))
    assert code_of(answer) == (400, 100)


# ---- the rest of Graph


async def test_profile_blocked_users_calls_and_the_number_itself_are_graph_s(bot: Bot, meta: Sandbox) -> None:
    """Served as Meta serves them, with the number's own token."""
    profile = f"/v26.0/{NUMBER}/whatsapp_business_profile"
    assert await bot.call("POST", profile, {"messaging_product": "whatsapp", "about": "Grüße"}) == (
        200,
        {"success": True},
    )
    assert (await bot.call("GET", f"{profile}?fields=about"))[1]["data"][0]["about"] == "Grüße"
    meta.platform.introduce(replace(ADA))
    meta.platform.write(OTHER_NUMBER, ADA.id, "text", {"body": "hi"})
    users = {"messaging_product": "whatsapp", "block_users": [{"user": f"+{ADA.wa_id}"}]}
    blocked = f"/{OTHER_NUMBER}/block_users"
    _, answer = await bot.call("POST", blocked, users)
    assert answer["block_users"]["added_users"][0]["wa_id"] == ADA.wa_id
    assert (await bot.call("GET", blocked))[1]["data"][0]["block_users"][0]["wa_id"] == ADA.wa_id
    assert (await bot.call("DELETE", blocked, users))[0] == 200
    call = {"messaging_product": "whatsapp", "to": ADA.wa_id, "action": "connect", "session": {"sdp": "v=0"}}
    assert (await bot.call("POST", f"/{NUMBER}/calls", call))[1]["calls"][0]["id"].startswith("wacid.")
    status, node = await bot.call("GET", f"/{NUMBER}?fields=display_phone_number,throughput")
    assert (status, node["display_phone_number"]) == (200, "+15550001000")
    assert "webhook_configuration" not in node


async def test_a_list_of_templates_can_be_walked_by_its_links(bot: Bot) -> None:
    """Meta's links would lead to Meta, with Meta's token in them."""
    seen: list[str] = []
    url = f"/v26.0/{WABA}/message_templates?limit=3&fields=name,language"
    while url:
        status, page = await bot.call("GET", url)
        assert status == 200
        seen += [f"{template['name']}/{template['language']}" for template in page["data"]]
        url = page["paging"].get("next", "")
        assert "access_token" not in url
        assert not url or url.startswith(f"{bot.url}/v26.0/{WABA}/")
    assert len(seen) == len(set(seen)) == 7


async def test_nothing_goes_to_meta_but_what_was_checked(graph: Elsewhere, tmp_path: Path) -> None:
    """Headers may carry anything: cookies of somebody, a method override, the bot's key."""
    async with gateway_to(graph.url, tmp_path) as bot:
        status, _ = await bot.call(
            "POST",
            f"/{NUMBER}/whatsapp_business_profile?access_token={KEY}&x=1%202",
            {"messaging_product": "whatsapp", "access_token": KEY},
            Cookie="a=b",
            X_HTTP_Method_Override="DELETE",
            X_Forwarded_For="10.0.0.1",
            X_Api_Key=KEY,
        )
        assert status == 200
        await bot.call("GET", f"/v23.0/{OTHER_NUMBER}?access_token={KEY}", key=None)
    (posted, body), (got, _) = graph.seen
    assert posted.path_qs == f"/v26.0/{NUMBER}/whatsapp_business_profile?x=1+2"
    assert json.loads(body) == {"messaging_product": "whatsapp"}
    assert set(posted.headers) == {
        "Host", "Authorization", "Accept", "Accept-Encoding", "User-Agent", "Content-Type", "Content-Length"
    }  # fmt: skip
    assert posted.headers["Authorization"] == f"Bearer {TOKEN}"
    assert (got.path_qs, got.headers["Authorization"]) == (f"/v23.0/{OTHER_NUMBER}", f"Bearer {OTHER_TOKEN}")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", f"/v26.0/{WABA}/subscribed_apps", {"override_callback_uri": "https://evil.example"}, 403),
        ("DELETE", f"/{WABA}/subscribed_apps", None, 403),
        ("POST", "/v26.0/1234567890/subscriptions", {"object": "whatsapp_business_account"}, 403),
        ("GET", "/oauth/access_token?grant_type=client_credentials", None, 403),
        ("POST", f"/{NUMBER}/register", {"pin": "000000"}, 403),
        ("POST", f"/{NUMBER}/deregister", None, 403),
        ("POST", f"/{NUMBER}", {"webhook_configuration": {}}, 403),
        ("POST", f"/{NUMBER}/whatsapp_business_profile", {"webhook_configuration": {}}, 403),
        ("GET", f"/{NUMBER}?fields=webhook_configuration", None, 403),
        ("GET", f"/{NUMBER}?method=delete", None, 403),
        ("POST", "/", {"batch": [{"method": "POST", "relative_url": f"{WABA}/subscribed_apps"}]}, 403),
        ("POST", f"/{WABA}/message_templates", {"name": "x"}, 405),
        ("GET", f"/{NUMBER}/message_qrdls", None, 403),
        ("GET", f"/{WABA}", None, 403),
        ("GET", "/1234567890/flows", None, 400),
        ("POST", "/1234567890", {"name": "x"}, 400),
        ("PATCH", f"/{NUMBER}/media", None, 405),
    ],
)
async def test_what_is_not_served_never_reaches_meta(
    graph: Elsewhere, tmp_path: Path, method: str, path: str, body: Any, status: int
) -> None:
    """Said in Graph's shape, with a reason for whoever reads the bot's log."""
    async with gateway_to(graph.url, tmp_path) as bot:
        found, answer = await bot.call(method, path, body)
        assert found == status
        assert isinstance(answer["error"]["code"], int)
        if status == 403:
            assert answer["error"]["code"] == 10
            assert len(answer["error"]["error_data"]["details"]) > 40
    assert not graph.seen


async def test_an_operator_opens_more_by_name(graph: Elsewhere, tmp_path: Path) -> None:
    """And no more than that."""
    opened = replace(SHORT, passthrough=["GET number/settings", "DELETE number/message_qrdls/*"])
    async with gateway_to(graph.url, tmp_path, opened) as bot:
        assert (await bot.call("GET", f"/{NUMBER}/settings"))[0] == 200
        assert (await bot.call("DELETE", f"/{NUMBER}/message_qrdls/AB1"))[0] == 200
        assert (await bot.call("GET", f"/{NUMBER}/settings", key=NARROW_KEY))[0] == 400
        assert (await bot.call("POST", f"/{NUMBER}/settings", {}))[0] == 405
    assert [request.path_qs for request, _ in graph.seen] == [
        f"/v26.0/{NUMBER}/settings",
        f"/v26.0/{NUMBER}/message_qrdls/AB1",
    ]


async def test_a_key_s_account_is_the_one_that_holds_a_number_of_it(graph: Elsewhere, tmp_path: Path) -> None:
    """And the token is that number's."""
    async with gateway_to(graph.url, tmp_path) as bot:
        await bot.call("GET", f"/{WABA}/message_templates", key=NARROW_KEY)
    assert graph.seen[0][0].headers["Authorization"] == f"Bearer {OTHER_TOKEN}"


async def test_that_meta_refuses_our_token_is_not_the_bot_s_fault(graph: Elsewhere, tmp_path: Path) -> None:
    """Told 190, a bot would throw its key away."""
    async with gateway_to(graph.url, tmp_path) as bot:
        for status, body in ((401, {"error": {"code": 190}}), (400, {"error": {"code": 190}}), (401, {"x": 1})):
            graph.says(body, status)
            assert code_of(await bot.call("GET", f"/{NUMBER}")) == (503, 131016)
        graph.says({"error": {"code": 80007, "message": "slow down"}}, 400, **{"Retry-After": "7"})
        for node in (NUMBER, "4711"):
            assert code_of(await bot.call("GET", f"/{node}")) == (400, 80007)


async def test_a_graph_that_fails_is_said_in_graph_s_shape(graph: Elsewhere, tmp_path: Path) -> None:
    """A page of a proxy is no answer; an answer that does not come says nothing about what was done."""
    async with gateway_to(graph.url, tmp_path, replace(SHORT, graph_timeout_s=0.3)) as bot:
        graph.says(b"<html>Bad Gateway</html>", 502)
        assert code_of(await bot.call("GET", f"/{NUMBER}")) == (502, 2)

        async def silent(request: web.BaseRequest) -> web.StreamResponse:
            await asyncio.sleep(5)
            return web.Response()

        graph.answer = silent
        assert code_of(await bot.call("POST", f"/{NUMBER}/calls", {"messaging_product": "whatsapp"})) == (504, 2)
    async with gateway_to("http://127.0.0.1:9", tmp_path / "other") as bot:
        answer = await bot.call("GET", f"/{NUMBER}")
        assert code_of(answer) == (503, 131016)
        assert answer[1]["error"]["is_transient"] is True
        assert code_of(await bot.call("POST", f"/{NUMBER}/media", form(b"data"))) == (503, 131016)
        assert code_of(await bot.call("GET", "/4711")) == (503, 131016)


async def test_one_key_does_not_keep_the_others_out(
    graph: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bot whose calls hang has half of the places, whatever it does.

    What waits in vain is told so; the rest goes on."""
    go = asyncio.Event()

    async def held(request: web.BaseRequest) -> web.StreamResponse:
        await go.wait()
        return web.json_response({})

    graph.answer = held
    monkeypatch.setattr("broker.gateway.passthrough.PLACE_S_MAX", 0.4)
    async with gateway_to(graph.url, tmp_path, replace(SHORT, graph_in_flight_max=4)) as bot:
        under_way = [asyncio.create_task(bot.call("GET", f"/{NUMBER}")) for _ in range(2)]
        await eventually(lambda: len(graph.seen) == 2)
        assert code_of(await bot.call("GET", f"/{NUMBER}")) == (503, 131016)
        under_way += [asyncio.create_task(bot.call("GET", f"/{NUMBER}")) for _ in range(5)]
        other = asyncio.create_task(bot.call("GET", f"/{OTHER_NUMBER}", key=NARROW_KEY))
        await eventually(lambda: len(graph.seen) == 3)
        go.set()
        assert [status for status, _ in await asyncio.gather(*under_way, other)] == [200] * 8
        assert (await bot.call("GET", f"/{NUMBER}"))[0] == 200


async def test_a_key_that_asks_too_often_is_told_when_to_come_back(graph: Elsewhere, tmp_path: Path) -> None:
    """429 in the shape of a throttle, before anything is read or taken; another key is not concerned."""
    of = settings()
    of = replace(of, keys=[replace(of.keys[0], requests_per_s_max=2.0), of.keys[1]])
    text = {"messaging_product": "whatsapp", "to": "4915550001234", "type": "text", "text": {"body": "hi"}}
    async with gateway_to(graph.url, tmp_path, of=of) as bot:
        before = metrics.gateway_requests.labels("limited")._value.get()
        assert [(await bot.call("POST", f"/{NUMBER}/messages", text))[0] for _ in range(2)] == [200, 200]
        assert code_of(await bot.call("POST", f"/{NUMBER}/messages", text)) == (429, 130429)
        assert code_of(await bot.call("GET", f"/{NUMBER}")) == (429, 4)
        assert metrics.gateway_requests.labels("limited")._value.get() == before + 2
        assert (await bot.call("POST", f"/{OTHER_NUMBER}/messages", text, key=NARROW_KEY))[0] == 200
        bot.gateway.use_keys(of.keys)  # a reload that changes nothing
        assert (await bot.call("POST", f"/{NUMBER}/messages", text))[0] == 429
        await asyncio.sleep(0.6)
        assert (await bot.call("POST", f"/{NUMBER}/messages", text))[0] == 200
        bot.gateway.use_keys([replace(of.keys[0], requests_per_s_max=0.0), of.keys[1]])
        assert {(await bot.call("POST", f"/{NUMBER}/messages", text))[0] for _ in range(5)} == {200}
        assert len(await bot.requests()) == 9


# ---- what sends are, and what they repeat


def template(name: str) -> dict[str, Any]:
    """The body of a template message."""
    content = {"name": name, "language": {"code": "en_US"}}
    return {"messaging_product": "whatsapp", "to": "4915550001234", "type": "template", "template": content}


async def test_a_template_s_lane_follows_from_the_category_meta_approved_it_in(meta: Sandbox, tmp_path: Path) -> None:
    """A bot built for the Cloud API says nothing of lanes, and a sale must not go before answers."""
    named = GatewaySettings(port=0, template_classes={"hello_world": "otp"})
    async with gateway_to(meta.platform.base_url, tmp_path, named) as bot:
        read = metrics.gateway_template_reads.labels("read")
        before = read._value.get()
        await eventually(lambda: read._value.get() > before)
        for name in ("autumn_sale", "order_update", "login_code", "hello_world", "never_heard_of"):
            assert (await bot.call("POST", f"/{NUMBER}/messages", template(name)))[0] == 200
        await bot.call("POST", f"/{NUMBER}/messages", template("order_update"), X_Depesche_Class="reply")
        found = sorted((request.template, request.send_class) for request in await bot.requests())
    assert found == [
        ("autumn_sale", "campaign"),
        ("hello_world", "otp"),
        ("login_code", "otp"),
        ("never_heard_of", "transactional"),
        ("order_update", "reply"),
        ("order_update", "transactional"),
    ]


async def test_a_list_of_templates_that_cannot_be_had_is_asked_for_again(
    graph: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway may start before its network does; a quarter of an hour of campaigns as replies would be a long one."""
    monkeypatch.setattr("broker.gateway.templates.LOOK_S", 0.05)
    monkeypatch.setattr("broker.gateway.templates.WANTED_S_MIN", 0.1)
    graph.says({"error": {"code": 2}}, 503)
    async with gateway_to(graph.url, tmp_path, GatewaySettings(port=0)) as bot:
        await eventually(lambda: len(graph.seen) > 1)
        graph.says({"data": [{"name": "sale", "category": "MARKETING"}]})
        read = metrics.gateway_template_reads.labels("read")
        before = read._value.get()
        await eventually(lambda: read._value.get() > before)
        await bot.call("POST", f"/{NUMBER}/messages", template("sale"))
        seen = len(graph.seen)
        await bot.call("POST", f"/{NUMBER}/messages", template("new"))
        await eventually(lambda: len(graph.seen) > seen)
        assert [request.send_class for request in await bot.requests()] == ["campaign", "transactional"]


async def test_the_marketing_endpoint_takes_marketing_alone(meta: Sandbox, tmp_path: Path) -> None:
    """As at Meta, with its code; what it takes goes by the same endpoint at Meta."""
    async with gateway_to(meta.platform.base_url, tmp_path, GatewaySettings(port=0)) as bot:
        read = metrics.gateway_template_reads.labels("read")
        before = read._value.get()
        await eventually(lambda: read._value.get() > before)
        path = f"/v26.0/{NUMBER}/marketing_messages"
        sale = {**template("autumn_sale"), "product_policy": "STRICT"}
        assert (await bot.call("POST", path, sale))[1]["messages"][0]["message_status"] == "accepted"
        text = {"messaging_product": "whatsapp", "to": "4915550001234", "type": "text", "text": {"body": "hi"}}
        assert code_of(await bot.call("POST", path, text)) == (400, 100)
        assert code_of(await bot.call("POST", path, template("order_update"))) == (400, 134100)
        (request,) = await bot.requests()
    assert (request.edge, request.send_class, request.marketing) == ("marketing_messages", "campaign", True)
    assert json.loads(request.body)["product_policy"] == "STRICT"


async def test_a_client_that_gave_up_waiting_repeats_and_sends_once(graph: Elsewhere, tmp_path: Path) -> None:
    """Its timeout is shorter than a log's bad moment: the second try is the first one's repetition, a third is new."""
    of = settings()
    text = {"messaging_product": "whatsapp", "to": "4915550001234", "type": "text", "text": {"body": "ok"}}
    before = metrics.gateway_repetitions.labels("bytes")._value.get()
    async with gated(tmp_path, of) as engine, gateway_to(graph.url, tmp_path, engine=engine, of=of) as bot:
        engine.open.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bot.call("POST", f"/{NUMBER}/messages", text), 0.3)
        second = asyncio.create_task(bot.call("POST", f"/{NUMBER}/messages", text))
        await asyncio.sleep(0.2)
        engine.open.set()
        assert (await second)[0] == 200
        assert (await bot.call("POST", f"/{NUMBER}/messages", text))[0] == 200
        ids = [request.send_id for request in await bot.requests()]
    assert len(ids) == 3
    assert len(set(ids)) == 2
    assert metrics.gateway_repetitions.labels("bytes")._value.get() == before + 1


async def test_a_client_that_left_before_its_answer_repeats_and_sends_once(graph: Elsewhere, tmp_path: Path) -> None:
    """The request was durable, but nobody was told."""
    of = settings()
    text = {"messaging_product": "whatsapp", "to": "4915550001234", "type": "text", "text": {"body": "ok"}}
    async with gated(tmp_path, of) as engine, gateway_to(graph.url, tmp_path, engine=engine, of=of) as bot:
        engine.open.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bot.call("POST", f"/{NUMBER}/messages", text), 0.3)
        engine.open.set()
        await asyncio.sleep(0.2)
        assert len(await bot.requests()) == 1
        assert (await bot.call("POST", f"/{NUMBER}/messages", text))[0] == 200
        assert len({request.send_id for request in await bot.requests()}) == 1
