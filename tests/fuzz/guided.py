"""A gateway on the real embedded log, asked whatever a fuzzer thinks of: the target of atheris, and its program.

Atheris follows which lines a request reaches. Where it cannot be had (it is made for Linux on x86_64), the same target
is fed with random changes of the corpus for the same time.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import random
import sys
import tempfile
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker.gateway import Gateway

PLANTED = "DEPESCHE_PLANTED_BUG"
"""Set by the test that proves that a fuzzer of ours finds what is there: one value in one member is a crash."""

STRANGE: tuple[Any, ...] = (None, "", "x", "x" * 5_000, "\0", "\ud800", 0, -1, 1.5, 10**40, True, [], {}, [[]], [None])
PATHS = (
    "/v26.0/{}/messages",
    "/{}/messages/",
    "/{}/marketing_messages",
    "/{}/media",
    "/{}",
    "/v26.0/{}/messages?x=1",
    "/{}/whatsapp_business_profile",
    "/{}/block_users?fields=a",
    "/1234567890",
    "/media/{}/Zm9v.YmFy",
    "/{}/subscribed_apps",
    "/openapi.json",
    "/",
)
METHODS = ("POST", "POST", "POST", "POST", "GET", "DELETE", "PUT")
HEADERS = ("Idempotency-Key", "X-Depesche-Class", "X-Depesche-Not-After", "X-Depesche-Epoch", "Content-Type")


class Choices:
    """Decisions taken from bytes, one after the other; without bytes the first choice."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def below(self, count: int) -> int:
        """A number from 0 to `count` - 1."""
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1] % count

    def rest(self) -> bytes:
        """What no decision was taken from."""
        return self._data[self._at :]


def body_of(choices: Choices) -> bytes:
    """A body: the bytes as they are, or a sample with a few members changed, moved or repeated."""
    from tests.core.message.samples import BASE, GOOD

    if choices.below(2) == 0:
        return choices.rest()[1:]
    names = sorted(GOOD)
    message: Any = json.loads(json.dumps({**BASE, **GOOD[names[choices.below(len(names))]]}))
    for _ in range(choices.below(4)):
        place: Any = message
        while True:
            keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = keys[choices.below(len(keys))]
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or choices.below(4) == 0:
                change = choices.below(5)
                if change == 0 and isinstance(place, dict):
                    place[f"{key}x"] = place.pop(key)
                elif change == 1 and isinstance(place, list):
                    place.extend(copy.deepcopy(inner) for _ in range(choices.below(40)))
                elif change == 2:
                    place[key] = json.dumps(inner)
                else:
                    place[key] = copy.deepcopy(STRANGE[choices.below(len(STRANGE))])
                break
            place = inner
        if not message:
            break
    return json.dumps(message).encode("utf-8", "surrogatepass")


def ask(gateway: Gateway, loop: asyncio.AbstractEventLoop, data: bytes) -> int:
    """Ask the gateway what the bytes say; fails when the answer is a crash or cannot be read. Returns the status."""
    from tests.actors.ports import KEY, NUMBER

    choices = Choices(data)
    method, path, headers = "POST", PATHS[0], {"Authorization": f"Bearer {KEY}"}
    body = body_of(choices)
    if choices.below(8) == 7:
        method, path = METHODS[choices.below(len(METHODS))], PATHS[choices.below(len(PATHS))]
        headers[HEADERS[choices.below(len(HEADERS))]] = choices.rest().decode("latin-1")[:300]
    assert not (PLANTED in os.environ and b'"preview_url": -1' in body), "the planted bug"
    answer = loop.run_until_complete(gateway.handle(method, path.format(NUMBER), headers, body))
    assert answer.status < 500 or answer.result == "graph_unavailable", answer  # it has no way to Graph
    said = json.loads(answer.body)
    assert (answer.status == 200) != ("error" in said), answer
    if answer.status != 200:
        assert isinstance(said["error"]["code"], int)
        assert said["error"]["message"]
        assert said["error"]["fbtrace_id"]
    elif method == "POST":
        goes_on(body)
    return answer.status


def goes_on(body: bytes) -> None:
    """What was taken can be sent: the customer stage finds its ids and puts its line in, and it is the same message."""
    from broker.core.message import Outgoing, check
    from broker.core.reference import for_graph, own_ids

    taken = check(body, unknown_types=True)
    assert isinstance(taken, Outgoing), taken
    whole = taken.body or body
    wamids = dict.fromkeys(own_ids(whole), "wamid.H")
    sent = check(for_graph(whole, "dp1|x", wamids), unknown_types=True)
    assert isinstance(sent, Outgoing), sent
    assert (sent.message_type, sent.template, sent.known) == (taken.message_type, taken.template, taken.known)


def main(arguments: list[str]) -> None:
    """Fuzz until the time is up; ends the process with an error when something was found."""
    if find_spec("atheris") is None:
        run_blind(arguments)
        return
    atheris: Any = import_module("atheris")
    with atheris.instrument_imports(include=["broker.core", "broker.gateway"]):
        import_module("broker.gateway")

    with tempfile.TemporaryDirectory() as folder:
        gateway, loop = start(Path(folder))

        def target(data: bytes) -> None:
            ask(gateway, loop, data)

        atheris.Setup([sys.argv[0], *arguments], target)
        atheris.Fuzz()


def start(folder: Path) -> tuple[Gateway, asyncio.AbstractEventLoop]:
    """Return a gateway on an open log, and the loop both live on."""
    from broker.clock import SystemClock
    from broker.gateway import Gateway
    from broker.log.catalogue import catalogue
    from broker.log.embedded import EmbeddedLog
    from tests.actors.ports import settings

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    engine = EmbeddedLog(folder, catalogue(settings()), clock=SystemClock(), rng=random.Random(1))
    loop.run_until_complete(engine.start())
    return Gateway(settings(), engine, SystemClock(), random.Random(1)), loop


def run_blind(arguments: list[str]) -> None:
    """Feed random changes of the corpus, without knowing what they reach."""
    options = dict(argument.partition("=")[::2] for argument in arguments if argument.startswith("-"))
    seeds = [path.read_bytes() for path in sorted(Path(arguments[0]).iterdir())]
    rng, runs = random.Random(0), 0
    until = time.monotonic() + float(options["-max_total_time"])
    with tempfile.TemporaryDirectory() as folder:
        gateway, loop = start(Path(folder))
        while time.monotonic() < until:
            data = bytearray(rng.choice(seeds))
            for _ in range(rng.randrange(1, 12)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            ask(gateway, loop, bytes(data))
            runs += 1
    print(f"stat::number_of_executed_units: {runs}")


if __name__ == "__main__":
    main(sys.argv[1:])
