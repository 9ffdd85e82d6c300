"""A platform on virtual time for the tests of its rules: one coroutine talks to it, a receiver answers its webhooks."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from broker.sandbox.faults import Faults, Latency
from broker.sandbox.journal import Entry, Journal
from broker.sandbox.people import Person
from broker.sandbox.platform import BusinessNumber, Platform, Rules
from broker.sandbox.postbox import Postage
from broker.sandbox.shapes import Answer
from tests.simulation.loop import Process, Sim

NUMBER = "106540352242922"
OTHER_NUMBER = "106540352242955"
WABA = "102290129340398"
TOKEN = "EAAtoken"
SECRET = "example-app-secret"

ADA = Person(wa_id="15550001234", bsuid="US.13000000000000000001", name="Ada Example")
LEO = Person(wa_id="4915550001234", name="Leo Legacy")
CLEO = Person(bsuid="US.19000000000000000003", name="Cleo Sample", username="cleo.sample")


class Receiver:
    """Takes webhooks and answers as it is told, 200 by default."""

    def __init__(self) -> None:
        self.posts: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        """Keep a POST, answer it."""
        self.posts.append((headers, body))
        return self.answers.pop(0) if self.answers else 200

    def changes(self) -> list[dict[str, Any]]:
        """Return every change of every POST."""
        return [change for _, body in self.posts for entry in json.loads(body)["entry"] for change in entry["changes"]]

    def statuses(self, wamid: str = "") -> list[dict[str, Any]]:
        """Return every status that came, of one message or of all."""
        found = [status for change in self.changes() for status in change["value"].get("statuses", [])]
        return [status for status in found if not wamid or status["id"] == wamid]

    def messages(self) -> list[dict[str, Any]]:
        """Return every message that came."""
        return [message for change in self.changes() for message in change["value"].get("messages", [])]


class Rig:
    """A platform, its receiver, and how to talk to it."""

    def __init__(self, process: Process, rules: Rules, tier: int, journal: Journal | None, postage: Postage) -> None:
        self.clock = process.clock
        self.receiver = Receiver()
        self.faults = Faults(Random("faults"), Latency(median_ms=0))
        self.platform = Platform(
            [
                BusinessNumber(NUMBER, WABA, "15550001000", TOKEN, tier),
                BusinessNumber(OTHER_NUMBER, WABA, "15550002000", "EAAother", tier),
            ],
            self.faults,
            process.clock,
            Random("platform"),
            self.receiver,
            webhook_url="http://receiver/webhooks/meta/trial",
            app_secret=SECRET,
            journal=journal,
            rules=rules,
            postage=postage,
        )
        self.restored = self.platform.restore()
        for person in (ADA, LEO, CLEO):
            if self.platform.people.get(person.id) is None:
                self.platform.introduce(_copy(person))

    async def call(
        self, body: object, *, number: str = NUMBER, token: str = TOKEN, edge: str = "messages", version: str = "v26.0"
    ) -> Answer:
        """Make a Graph call."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return await self.platform.graph("POST", f"/{version}/{number}/{edge}", headers, raw)

    async def send(self, text: str = "hello", to: str = ADA.wa_id, **more: object) -> dict[str, Any]:
        """Send a text; return the answer's body."""
        return body_of(await self.call(text_to(to, text, **more)))

    def entries(self, kind: type[Entry]) -> list[Any]:
        """Return the journal's entries of one kind."""
        return [entry for entry in self.platform.journal.since(0, 100_000) if isinstance(entry, kind)]


def _copy(person: Person) -> Person:
    return Person(wa_id=person.wa_id, bsuid=person.bsuid, name=person.name, username=person.username)


def text_to(to: str, text: str = "hello", **more: object) -> dict[str, Any]:
    """Return the body of a text message."""
    return {"messaging_product": "whatsapp", "to": to, "type": "text", "text": {"body": text}, **more}


def body_of(answer: Answer) -> dict[str, Any]:
    """Return an answer's body as JSON."""
    found: dict[str, Any] = json.loads(answer.body)
    return found


def code_of(answer: Answer) -> int:
    """Return the code of an error answer, 0 for a success."""
    code: int = body_of(answer).get("error", {}).get("code", 0)
    return code


def play(
    scene: Callable[[Rig], Awaitable[None]],
    *,
    seed: int = 1,
    rules: Rules | None = None,
    tier: int = 80,
    journal: Journal | None = None,
    postage: Postage | None = None,
    seconds: float = 100_000.0,
) -> None:
    """Run one scene against a platform on virtual time; fails when the scene does not come to its end."""
    done: list[bool] = []

    async def main(process: Process) -> None:
        rig = Rig(process, rules or Rules(), tier, journal, postage or Postage(connections=2))
        rig.platform.start()
        try:
            await scene(rig)
        finally:
            await rig.platform.stop()
        done.append(True)

    with Sim(seed=seed) as sim:
        sim.process("sandbox", main)
        sim.run(seconds)
        sim.check()
    assert done, "the scene did not come to its end"
