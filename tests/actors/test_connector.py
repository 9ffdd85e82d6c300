"""Requests to sinks: what is reached, and what an answer may do to us. Real sockets, real names, no mocks."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from broker.core.addresses import AddressGuard
from broker.errors import Misconfigured
from schemas.settings import ConnectorSettings
from workers.connector import ANSWER_BYTES_MAX, Connector, guard_of
from workers.poster import Posted, PostFailed

LOOPBACK = ["127.0.0.0/8", "::1/128"]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, 0)
    await site.start()
    assert site._server is not None
    try:
        yield site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    finally:
        await runner.cleanup()


async def answer_ok(request: web.Request) -> web.StreamResponse:
    return web.Response(text="ok")


async def post(connector: Connector, url: str, timeout_s: float = 2.0) -> Posted:
    return await asyncio.wait_for(connector.post(url, {"Content-Type": "application/json"}, b"{}", timeout_s), 10)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "0x7f.0.0.1", "2130706433", "0.0.0.0", "[::ffff:127.0.0.1]", "[::1]", "[::]"],
)
async def test_our_own_machine_is_not_reached_however_its_address_is_written(host: str) -> None:
    """An address as such, a name that resolves to it, and the forms resolvers accept: the guard sees what is left."""
    reached = 0

    async def count(request: web.Request) -> web.StreamResponse:
        nonlocal reached
        reached += 1
        return web.Response()

    async with serving(count) as port, Connector(AddressGuard()) as connector:
        with pytest.raises(PostFailed) as failure:
            await post(connector, f"http://{host}:{port}/")
        if host not in ("[::]", "0.0.0.0"):
            assert failure.value.reason in ("forbidden", "connection")
        assert reached == 0
    assert "127" not in str(failure.value)


async def test_a_forbidden_address_is_named_so() -> None:
    """The operator must see that it is the guard, not the network."""
    async with Connector(AddressGuard()) as connector:
        for host in ("127.0.0.1", "169.254.169.254", "[::ffff:169.254.169.254]", "localhost"):
            with pytest.raises(PostFailed, match="not public") as failure:
                await post(connector, f"http://{host}:1/")
            assert failure.value.reason == "forbidden"


async def test_an_allowed_network_is_reached_and_a_denied_one_inside_it_is_not() -> None:
    """Bots of the own cluster have private addresses."""
    async with serving(answer_ok) as port:
        async with Connector(AddressGuard(allow=LOOPBACK)) as connector:
            for host in ("127.0.0.1", "localhost"):
                assert (await post(connector, f"http://{host}:{port}/")).status == 200
        async with Connector(AddressGuard(allow=LOOPBACK, deny=["127.0.0.1/32"])) as connector:
            with pytest.raises(PostFailed, match="not public"):
                await post(connector, f"http://127.0.0.1:{port}/")


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    """A public server that redirects to the metadata service must not have us fetch it."""
    paths: list[str] = []

    async def redirect(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        to = "http://169.254.169.254/latest/meta-data/" if request.path == "/away" else "/elsewhere"
        return web.Response(status=307, headers={"Location": to})

    async with serving(redirect) as port, Connector(AddressGuard(allow=LOOPBACK)) as connector:
        assert (await post(connector, f"http://127.0.0.1:{port}/away")).status == 307
        assert (await post(connector, f"http://127.0.0.1:{port}/here")).status == 307
    assert paths == ["/away", "/here"]


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would connect on our behalf, past the guard."""
    proxied = 0

    async def proxy(request: web.Request) -> web.StreamResponse:
        nonlocal proxied
        proxied += 1
        return web.Response()

    async with serving(proxy) as proxy_port, serving(answer_ok) as port:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy_port}")
        async with Connector(AddressGuard(allow=LOOPBACK)) as connector:
            assert (await post(connector, f"http://127.0.0.1:{port}/")).status == 200
    assert proxied == 0


async def test_exactly_the_given_bytes_and_headers_arrive() -> None:
    """Signatures are made over them."""
    seen: list[tuple[bytes, dict[str, str]]] = []

    async def record(request: web.Request) -> web.StreamResponse:
        seen.append((await request.read(), dict(request.headers)))
        return web.Response(status=204, headers={"Retry-After": "7", "Set-Cookie": "a=b"})

    body = b'{"text":"\\u00e4 \\ud83d\\ude00","n":1.0}'
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "X-Hub-Signature-256": "sha256=0"}
    async with serving(record) as port, Connector(AddressGuard(allow=LOOPBACK)) as connector:
        for _ in range(2):
            posted = await connector.post(f"http://127.0.0.1:{port}/a?b=c", headers, body, 2.0)
            assert posted == Posted(204, "7")
    assert [sent for sent, _ in seen] == [body, body]
    for _, got in seen:
        assert {**got, **headers} == got
        assert set(got) - set(headers) == {"Host", "User-Agent", "Accept"}


async def test_a_silent_sink_is_a_timeout() -> None:
    """Fifteen seconds in production; a request must never be waited for without end."""

    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    async with serving(silent) as port, Connector(AddressGuard(allow=LOOPBACK)) as connector:
        with pytest.raises(PostFailed) as failure:
            await post(connector, f"http://127.0.0.1:{port}/", timeout_s=0.1)
    assert failure.value.reason == "timeout"


async def test_a_long_or_dripping_answer_costs_neither_memory_nor_time() -> None:
    """The status is the answer; whoever sends a gigabyte after it, or a byte a second, holds nothing up."""
    written = 0

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            for _ in range(2_000):
                await response.write(bytes(50_000))
                written += 50_000
        except ConnectionError:
            pass
        return response

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=201)
        await response.prepare(request)
        try:
            for _ in range(100):
                await response.write(b".")
                await asyncio.sleep(0.1)
        except ConnectionError:
            pass
        return response

    async with Connector(AddressGuard(allow=LOOPBACK)) as connector:
        async with serving(flood) as port:
            assert (await post(connector, f"http://127.0.0.1:{port}/")).status == 200
            await asyncio.sleep(0.1)
            assert written < 100 * ANSWER_BYTES_MAX, "the connection was closed, not read to its end"
        async with serving(drip) as port:
            assert (await post(connector, f"http://127.0.0.1:{port}/", timeout_s=0.3)).status == 201


@pytest.mark.parametrize(
    "wire",
    [b"", b"HTTP/1.1 2000 OK\r\n\r\n", b"\x00" * 100, b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000 + b"\r\n\r\n"],
)
async def test_an_answer_that_is_no_http_is_a_broken_connection(wire: bytes) -> None:
    """Nothing a server writes may crash the stage or fill its memory."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(wire)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, Connector(AddressGuard(allow=LOOPBACK)) as connector:
        with pytest.raises(PostFailed) as failure:
            await post(connector, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    assert failure.value.reason == "connection"


@pytest.mark.parametrize(
    "url", ["http://no-such-host.invalid/", "http://127.0.0.1:1/", "http://127.0.0.1:99999/", "x:/"]
)
async def test_what_cannot_be_connected_to_is_a_failed_connection(url: str) -> None:
    """A name that is gone, a closed port, a URL that is none: the sink's trouble, not a crash."""
    async with Connector(AddressGuard(allow=LOOPBACK)) as connector:
        with pytest.raises(PostFailed) as failure:
            await post(connector, url)
    assert failure.value.reason == "connection"


async def test_ipv6_loopback_needs_to_be_allowed_too() -> None:
    """The same rule on both protocols. A machine without IPv6 shows the refusal alone: that comes before connecting."""
    async with serving(answer_ok, "::1" if has_ipv6() else "127.0.0.1") as port:
        async with Connector(AddressGuard(allow=["127.0.0.0/8"])) as connector:
            with pytest.raises(PostFailed, match="not public"):
                await post(connector, f"http://[::1]:{port}/")
        if has_ipv6():
            async with Connector(AddressGuard(allow=["::1/128"])) as connector:
                assert (await post(connector, f"http://[::1]:{port}/")).status == 200


def test_a_wrong_list_is_a_wrong_setting() -> None:
    """A typo there would open or close everything."""
    with pytest.raises(Misconfigured, match=r"10\.0\.0\.1/8"):
        guard_of(ConnectorSettings(allow=["10.0.0.1/8"]))
    assert guard_of(ConnectorSettings(allow=["10.0.0.0/8"])).permits("10.9.9.9")
