"""The edges of the broker in a simulation: Graph, bots and Meta's webhooks, over the simulated network.

Each is a second implementation of what production does over HTTP: `workers.graph.Graph`, `workers.poster.Poster`,
`broker.sandbox.postbox.Poster`. They decide nothing; what a broken connection means is said as production says it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import NamedTuple

from broker.core.opaque import unwrap
from broker.sandbox.platform import ConnectionCut, Platform
from broker.sandbox.shapes import Answer as PlatformAnswer
from tests.simulation.brand import APP
from tests.simulation.evidence import Evidence
from tests.simulation.faults import Latency, add_kind
from tests.simulation.loop import Process
from tests.simulation.net import Net
from workers.graph import GraphAnswer, GraphCall, NotSent, Unanswered
from workers.poster import Posted, PostFailed

GRAPH = "graph"
UPLINK = Latency(0.015, 0.045, tail_chance=0.0)
"""To Meta, one way. Steadier than the 40 ms the window allows for: closer together is a fault (`net.slow`)."""

CALL_TIMEOUT_S = 30.0
RECEIVERS = ("receiver-0", "receiver-1")

add_kind("graph.unreached", "no connection to Graph can be made")
add_kind("graph.stale", "a kept connection to Graph turns out to be closed before anything is written")
add_kind("graph.slow_connect", "a connection to Graph takes seconds to be made")


class Request(NamedTuple):
    """An HTTP request, as a service of the network gets it."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Response(NamedTuple):
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


CUT = Response(0, {}, b"")
"""The far side closed the connection without an answer."""


class SimGraph:
    """Graph for one process. The permit is the last thing before the bytes leave."""

    def __init__(self, net: Net, process: Process, evidence: Evidence, on_moment: Callable[[str], None]) -> None:
        self._net = net
        self._process = process
        self._evidence = evidence
        self._on_moment = on_moment

    async def _at_moment(self, moment: str) -> None:
        self._on_moment(moment)
        await self._net.wire_away(self._process, 0.0)

    async def call(self, call: GraphCall, permit: Callable[[], Awaitable[None]]) -> GraphAnswer:
        """Get a connection, await the permit, send."""
        process, faults = self._process, self._evidence.sim.faults
        await self._net.wire_away(process, faults.delay("graph.slow_connect"))
        if faults.strikes("graph.unreached"):
            raise NotSent("simulated: refused", is_unreached=True)
        await self._at_moment("call.begin")
        await permit()
        if faults.strikes("graph.stale"):
            raise NotSent("simulated: closed", is_unreached=False)
        said = json.loads(call.body)
        line = unwrap(said.get("biz_opaque_callback_data", ""))
        if line is not None:
            self._evidence.issue(process, call.phone_number_id, line.customer, line.send_id)
        path = f"/v26.0/{call.phone_number_id}/{call.edge}"
        request = Request("POST", path, {"Authorization": f"Bearer {call.token}"}, call.body)
        # What left has left: dying comes right after it, and before anything else of this process.
        self._evidence.sim.loop.call_soon(self._on_moment, "call.sent", context=self._evidence.sim.loop.world)
        try:
            answer: Response = await self._net.call(process, GRAPH, request, CALL_TIMEOUT_S)
        except ConnectionRefusedError:
            raise NotSent("simulated: refused", is_unreached=True) from None
        except (OSError, TimeoutError) as error:
            raise Unanswered(f"simulated: {type(error).__name__}") from None
        await self._at_moment("call.answered")
        if answer is CUT:
            raise Unanswered("simulated: cut")
        return GraphAnswer(answer.status, answer.body, answer.headers.get("Retry-After", ""))


def graph_service(platform: Platform) -> Callable[[Request], Awaitable[Response]]:
    """Return the platform's handler on the network."""

    async def handle(request: Request) -> Response:
        try:
            answer: PlatformAnswer = await platform.graph(request.method, request.path, request.headers, request.body)
        except ConnectionCut:
            return CUT
        return Response(answer.status, answer.headers, answer.body)

    return handle


class SimPoster:
    """HTTP to bots, for one process."""

    def __init__(self, net: Net, process: Process, on_moment: Callable[[str], None]) -> None:
        self._net = net
        self._process = process
        self._on_moment = on_moment

    async def _at_moment(self, moment: str) -> None:
        self._on_moment(moment)
        await self._net.wire_away(self._process, 0.0)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Posted:
        """Make one POST."""
        await self._at_moment("post.begin")
        try:
            answer: Response = await self._net.call(self._process, url, Request("POST", url, headers, body), timeout_s)
        except TimeoutError:
            raise PostFailed("timeout", "simulated") from None
        except OSError as error:
            raise PostFailed("connection", type(error).__name__) from None
        await self._at_moment("post.answered")
        return Posted(answer.status, answer.headers.get("Retry-After", ""))


class Balancer:
    """What stands between Meta and the receivers: gives each POST to one of them, alive or not."""

    def __init__(self, net: Net, process: Process, random: Random) -> None:
        self._net = net
        self._process = process
        self._random = random

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        """Carry a POST of the platform's; no answer is an OSError or TimeoutError."""
        receiver = self._random.choice(RECEIVERS)
        request = Request("POST", f"/webhooks/meta/{APP}", headers, body)
        answer: Response = await self._net.call(self._process, receiver, request, 10.0)
        return answer.status
