"""The Graph client against sockets that misbehave: what is certain is told from what nobody knows, and nothing is sent
twice."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from tests.actors.graph_server import GraphServer, Seen, accept, answering, eventually
from workers.graph import ANSWER_BYTES_MAX, GraphAnswer, GraphCall, GraphClient, NotSent, PermitRefused, Unanswered

CALL = GraphCall("106540352242922", b'{"messaging_product":"whatsapp"}', "secret")

pytestmark = pytest.mark.timeout(30)


async def granted() -> None:
    """A permit that is there."""


@pytest.fixture
async def server() -> AsyncIterator[GraphServer]:
    """Graph on a raw socket."""
    async with GraphServer() as server:
        yield server


@pytest.fixture
async def client(server: GraphServer) -> AsyncIterator[GraphClient]:
    """A client of it with a short patience."""
    client = GraphClient(server.url, "v26.0", 1.0)
    await client.start()
    yield client
    await client.close()


async def test_a_send_goes_out_as_one_post_with_its_token(client: GraphClient, server: GraphServer) -> None:
    """What a bot gave is what Meta gets, byte for byte."""
    answer = await client.call(CALL, granted)
    assert answer.status == 200
    assert b"wamid.H1" in answer.body
    [seen] = server.seen
    assert seen.path == "/v26.0/106540352242922/messages"
    assert seen.headers["authorization"] == "Bearer secret"
    assert seen.headers["content-type"] == "application/json"
    assert seen.body == CALL.body


async def test_a_marketing_send_goes_by_its_own_endpoint(client: GraphClient, server: GraphServer) -> None:
    """Meta optimises what comes by it, and some accounts may send marketing in no other way."""
    await client.call(replace(CALL, edge="marketing_messages"), granted)
    assert [seen.path for seen in server.seen] == ["/v26.0/106540352242922/marketing_messages"]


async def test_errors_come_back_as_they_are(client: GraphClient, server: GraphServer) -> None:
    """The client decides nothing: 4xx, 5xx, HTML and redirects are answers like any other."""
    server.queue = [
        answering(400, b'{"error": {}}'),
        answering(502, b"<html>Bad Gateway</html>"),
        answering(429, b"", "Retry-After: 7\r\n"),
        answering(302, b"", "Location: https://elsewhere.example/\r\n"),
    ]
    answers = [await client.call(CALL, granted) for _ in range(4)]
    assert [(answer.status, answer.retry_after) for answer in answers] == [(400, ""), (502, ""), (429, "7"), (302, "")]
    assert answers[1].body == b"<html>Bad Gateway</html>"
    assert len(server.seen) == 4


async def test_no_byte_leaves_before_the_permit_and_the_connection_comes_first(
    client: GraphClient, server: GraphServer
) -> None:
    """The permit is the very last thing: headers wait for it too."""
    asked, go = asyncio.Event(), asyncio.Event()

    async def permit() -> None:
        asked.set()
        await go.wait()

    calling = asyncio.create_task(client.call(CALL, permit))
    await asyncio.wait_for(asked.wait(), 5)
    await asyncio.sleep(0.1)
    assert server.connections == 1
    assert server.seen == []
    go.set()
    assert (await calling).status == 200


async def test_bytes_leave_in_the_turn_of_the_permit(server: GraphServer) -> None:
    """A loop that stalls right after a permit must not have held the bytes back: what was granted is out by then."""
    client = GraphClient(server.url, "v26.0", 5.0)
    await client.start()
    listener = socket.create_server(("127.0.0.1", 0))
    client._root = f"http://127.0.0.1:{listener.getsockname()[1]}/v26.0"
    listener.setblocking(False)
    loop = asyncio.get_running_loop()
    arrived: list[bytes] = []

    async def permit() -> None:
        # Runs after whatever follows the permit in this turn; blocks the loop and looks what has arrived.
        loop.call_soon(stall)

    peers: list[socket.socket] = []

    async def take() -> None:
        peer, _ = await loop.sock_accept(listener)
        peers.append(peer)

    def stall() -> None:
        time.sleep(0.3)
        peers[0].setblocking(False)
        arrived.append(peers[0].recv(65_536))

    accepting = asyncio.create_task(take())
    calling = asyncio.create_task(client.call(CALL, permit))
    await asyncio.wait_for(accepting, 5)
    await eventually(lambda: arrived)
    assert arrived[0].startswith(b"POST ")
    assert arrived[0].endswith(CALL.body)
    peers[0].close()
    with pytest.raises(Unanswered):
        await calling
    listener.close()
    await client.close()


async def test_a_refused_permit_sends_nothing(client: GraphClient, server: GraphServer) -> None:
    """A void intent is no call, and its connection serves the next one or is dropped."""

    async def permit() -> None:
        raise PermitRefused("void")

    with pytest.raises(PermitRefused):
        await client.call(CALL, permit)
    await asyncio.sleep(0.05)
    assert server.seen == []
    assert (await client.call(CALL, granted)).status == 200
    assert len(server.seen) == 1


async def test_a_refused_connection_is_certain() -> None:
    """Nobody listens: nothing was sent, whatever is decided later."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    client = GraphClient(f"http://127.0.0.1:{port}", "v26.0", 1.0)
    await client.start()
    with pytest.raises(NotSent) as refused:
        await client.call(CALL, granted)
    assert refused.value.is_unreached
    await client.close()
    with pytest.raises(NotSent):
        await client.call(CALL, granted)


async def test_a_name_that_does_not_resolve_is_certain() -> None:
    """As is a wrong host in the settings."""
    client = GraphClient("http://graph.invalid", "v26.0", 1.0)
    await client.start()
    with pytest.raises(NotSent) as refused:
        await client.call(CALL, granted)
    assert refused.value.is_unreached
    await client.close()


async def test_tls_that_fails_is_certain(server: GraphServer) -> None:
    """A plain server where TLS is expected: no request was written."""
    client = GraphClient(f"https://127.0.0.1:{server.port}", "v26.0", 1.0)
    await client.start()
    with pytest.raises(NotSent) as refused:
        await client.call(CALL, granted)
    assert refused.value.is_unreached
    assert server.bodies == []
    await client.close()


async def reset(_: GraphServer, __: Seen, ___: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Read the request, then reset the connection."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


async def half_close(_: GraphServer, __: Seen, ___: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """End our side without an answer."""
    writer.write_eof()
    await asyncio.sleep(3)
    return False


async def cut(_: GraphServer, __: Seen, ___: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Send half an answer and close."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b'{"messages": [{"id": "wam')
    await writer.drain()
    return False


async def drip(_: GraphServer, __: Seen, ___: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """A byte a second."""
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}":
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(1)
    return True


async def silence(_: GraphServer, __: Seen, ___: asyncio.StreamReader, ____: asyncio.StreamWriter) -> bool:
    """Say nothing."""
    await asyncio.sleep(60)
    return False


async def garbage(_: GraphServer, __: Seen, ___: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Not HTTP at all."""
    writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
    await writer.drain()
    return False


@pytest.mark.parametrize("behaviour", [reset, half_close, cut, drip, silence, garbage])
async def test_whatever_fails_after_the_bytes_left_is_unknown_and_happens_once(
    client: GraphClient, server: GraphServer, behaviour: object
) -> None:
    """Reset, half-closed, cut, dripping, silent, unreadable: Meta may have taken it. Never sent again by the client."""
    server.behave = behaviour  # type: ignore[assignment]
    began = time.monotonic()
    with pytest.raises(Unanswered):
        await client.call(CALL, granted)
    assert time.monotonic() - began < 2.0, "bounded by the call's timeout"
    await asyncio.sleep(0.05)
    assert len(server.seen) == 1


async def test_the_timeout_counts_from_the_permit(client: GraphClient, server: GraphServer) -> None:
    """Waiting for a permit is not Graph's silence."""

    async def permit() -> None:
        await asyncio.sleep(1.5)

    assert (await client.call(CALL, permit)).status == 200


async def test_a_kept_connection_that_the_server_closed_is_not_used_for_a_second_try(
    client: GraphClient, server: GraphServer
) -> None:
    """aiohttp repeats idempotent requests on a stale connection by itself; a POST must not be among them."""

    async def answer_and_close(
        graph: GraphServer, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await accept(graph, seen, reader, writer)
        await reader.readexactly(1)  # the next request: read a byte of it, then close without an answer
        writer.transport.abort()
        return False

    server.queue = [answer_and_close]
    assert (await client.call(CALL, granted)).status == 200
    with pytest.raises(Unanswered):
        await client.call(CALL, granted)
    await asyncio.sleep(0.1)
    assert len(server.seen) == 1
    assert server.connections == 1


async def test_a_connection_that_closes_while_the_permit_is_awaited_is_certain(
    client: GraphClient, server: GraphServer
) -> None:
    """No byte left: another connection may do, and the permit's wait ends at once."""
    waiting, ended = asyncio.Event(), asyncio.Event()

    async def close_after_a_while(
        graph: GraphServer, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await accept(graph, seen, reader, writer)
        await waiting.wait()
        return False

    async def permit() -> None:
        waiting.set()
        try:
            await asyncio.sleep(20)
        finally:
            ended.set()

    server.queue = [close_after_a_while]
    await client.call(CALL, granted)
    with pytest.raises(NotSent) as closed:
        await client.call(CALL, permit)
    assert not closed.value.is_unreached
    await asyncio.wait_for(ended.wait(), 1)
    assert len(server.seen) == 1


async def test_an_endless_answer_is_cut(client: GraphClient, server: GraphServer) -> None:
    """I5: nobody fills our memory with an answer."""

    async def flood(_: GraphServer, __: Seen, ___: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900000000\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    server.behave = flood
    answer = await client.call(CALL, granted)
    assert len(answer.body) == ANSWER_BYTES_MAX


async def test_hundreds_of_calls_share_the_pool(client: GraphClient, server: GraphServer) -> None:
    """1,000 mps at 350 ms need 350 at once; the next round uses the same connections."""
    server.delay_s = 0.2
    for _ in range(2):
        answers: list[GraphAnswer] = await asyncio.gather(*(client.call(CALL, granted) for _ in range(300)))
        assert {answer.status for answer in answers} == {200}
    assert len(server.seen) == 600
    assert server.connections == 300


async def test_a_cancelled_call_lets_go(client: GraphClient, server: GraphServer) -> None:
    """A stage that ends leaves nothing behind."""
    server.behave = silence
    calling = asyncio.create_task(client.call(CALL, granted))
    await eventually(lambda: server.seen)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
