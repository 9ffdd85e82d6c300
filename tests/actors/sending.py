"""The real sender stage towards the sandbox's platform, on the simulated log and virtual time: hours pass in a second.

Every call goes to `Platform.graph` itself, so the stage meets Meta's shapes and not what a test thinks they are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from random import Random

from broker.log.catalogue import ACCOUNTS, CONVERSATIONS, catalogue, sends
from broker.log.contract import Draft
from broker.sandbox.faults import Faults, Latency
from broker.sandbox.journal import Called, Journal
from broker.sandbox.platform import BusinessNumber, ConnectionCut, Platform, Rules
from broker.sandbox.templates import Template, Templates
from broker.secrets import Secret
from schemas.records import Lane, NumberFault, Ready, SendOutcome, Settle, decode_conversation, encode
from schemas.settings import LogSettings, Number, SecretSource, SenderSettings, Settings
from tests.simulation.cluster import SimulatedCluster
from tests.simulation.log import SimulatedLog
from tests.simulation.loop import Process, Sim
from workers.graph import GraphAnswer, GraphCall, Unanswered
from workers.sender import SenderStage

TOKEN = "EAAtoken"
SALE, NEWS, GREETING = "sale", "news", "hello_world"
"""Templates without parameters: two of marketing, one of utility."""


class NoWebhooks:
    """Takes the platform's webhooks and forgets them: these tests are about answers."""

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        """Answer 200."""
        return 200


class PlatformGraph:
    """Graph without a wire: the permit is asked, the platform called."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    async def call(self, call: GraphCall, permit: Callable[[], Awaitable[None]]) -> GraphAnswer:
        """Make one call."""
        await permit()
        path, headers = f"/v26.0/{call.phone_number_id}/messages", {"Authorization": f"Bearer {call.token}"}
        try:
            answer = await self._platform.graph("POST", path, headers, call.body)
        except ConnectionCut:
            raise Unanswered("cut") from None
        return GraphAnswer(answer.status, answer.body, answer.headers.get("Retry-After", ""))


class Sending:
    """One process with a sender stage, and what it is asked to send."""

    def __init__(self, cluster: SimulatedCluster, process: Process, settings: Settings, rules: Rules) -> None:
        self.cluster = cluster
        self.process = process
        self.clock = process.clock
        self.settings = settings
        self.slots = {number.phone_number_id: number.slot for number in settings.numbers}
        self.faults = Faults(Random("faults"), Latency(median_ms=80))
        self.platform = Platform(
            [
                BusinessNumber(
                    number.phone_number_id,
                    number.waba_id,
                    number.display_phone_number,
                    TOKEN,
                    number.throughput_mps,
                )
                for number in settings.numbers
            ],
            self.faults,
            process.clock,
            Random("platform"),
            NoWebhooks(),
            webhook_url="http://receiver",
            app_secret="secret",
            journal=Journal(kept_max=100_000),
            templates=Templates(
                (
                    Template(SALE, "en_US", "MARKETING", "Everything must go."),
                    Template(SALE, "de", "MARKETING", "Alles muss raus."),
                    Template(NEWS, "en_US", "MARKETING", "What is new."),
                    Template(GREETING, "en_US", "UTILITY", "Welcome."),
                )
            ),
            rules=rules,
        )
        self._outcomes: dict[str, list[SendOutcome]] = {}
        self._read: dict[int, int] = {}
        self.log = SimulatedLog(cluster, process, catalogue(settings))
        self.stage = self.new_stage()

    def new_stage(self) -> SenderStage:
        """Return a stage that has not begun."""
        tokens = {number.phone_number_id: Secret(TOKEN) for number in self.settings.numbers}
        return SenderStage(
            self.log, self.settings, tokens, PlatformGraph(self.platform), self.clock, self.process.random
        )

    async def start(self) -> None:
        """Begin, and wait until the first permits may be given."""
        await self.log.start()
        self.platform.start()
        await self.stage.start()
        await asyncio.sleep(5.0)

    async def stop(self) -> None:
        """End everything."""
        await self.stage.stop()
        await self.platform.stop()
        await self.log.close()

    async def restart_stage(self) -> None:
        """Let another incarnation of the stage take over: memory gone, log kept."""
        await self.stage.stop()
        self.stage = self.new_stage()
        await self.stage.start()
        await asyncio.sleep(5.0)

    async def put(self, *records: Ready | Settle | NumberFault) -> None:
        """Have the customer stage ask for these."""
        for record in records:
            draft = Draft(record.customer.encode(), encode(record), self.slots[record.phone_number_id])
            await self.log.append(sends(record.lane), [draft], 5.0)

    async def tell_accounts(self, key: str, record: bytes) -> None:
        """Append what a receiver would to the log of account-level updates."""
        await self.log.append(ACCOUNTS, [Draft(key.encode(), record)], 5.0)

    def outcomes(self) -> dict[str, list[SendOutcome]]:
        """Return what was reported, by send."""
        for partition in self.cluster.logs[CONVERSATIONS].partitions:
            read = self._read.get(partition.index, 0)
            for entry in partition.entries[read:]:
                record = decode_conversation(entry.value)
                assert isinstance(record, SendOutcome)
                self._outcomes.setdefault(record.send_id, []).append(record)
            self._read[partition.index] = len(partition.entries)
        return self._outcomes

    def came_of(self, send_id: str) -> str:
        """Return the newest outcome of a send, "waits" when there is none."""
        outcomes = self.outcomes().get(send_id, [])
        return outcomes[-1].outcome if outcomes else "waits"

    def calls(self, send_id: str) -> list[Called]:
        """Return the calls the platform saw for a send."""
        return [
            entry
            for entry in self.platform.journal.since(0, 200_000)
            if isinstance(entry, Called) and entry.send == send_id
        ]


def numbers(count: int, *, slots: int = 4, throughput_mps: int = 80) -> list[Number]:
    """Return numbers in pairs: two and two belong to one account."""
    return [
        Number(
            phone_number_id=f"1065403{index:04d}",
            waba_id=f"10229{index // 2:04d}",
            token=SecretSource(env="TOKEN"),
            slot=index // 2 % slots,
            display_phone_number=f"1555010{index:04d}",
            throughput_mps=throughput_mps,
        )
        for index in range(count)
    ]


def settings_of(found: Iterable[Number], *, slots: int = 4, pending_max: int = 10_000) -> Settings:
    """Return settings for these numbers."""
    return Settings(
        numbers=list(found),
        log=LogSettings(partitions=2, slots=slots),
        sender=SenderSettings(pending_max=pending_max),
    )


def template_send(
    name: str,
    number: str,
    customer: str,
    lane: Lane,
    template: str = GREETING,
    *,
    language: str = "en_US",
    not_after: int = 0,
    attempt: int = 1,
) -> Ready:
    """Return one admitted send of a template: it needs no window."""
    body = {
        "messaging_product": "whatsapp",
        "to": customer,
        "type": "template",
        "template": {"name": template, "language": {"code": language}},
        "biz_opaque_callback_data": name,
    }
    return Ready(
        send_id=name,
        attempt=attempt,
        phone_number_id=number,
        customer=f"main:{customer}",
        lane=lane,
        send_class=lane,
        kind="message",
        body=json.dumps(body).encode(),
        admitted_at=0,
        not_after=not_after,
        template=template,
    )


def play(
    scene: Callable[[Sending], Awaitable[None]],
    settings: Settings,
    *,
    seed: int = 1,
    seconds: float = 20_000.0,
    rules: Rules | None = None,
    cpu_seconds_max: float = 60.0,
) -> None:
    """Run one scene; fails when it does not come to its end."""
    done: list[bool] = []

    async def main(process: Process) -> None:
        sending = Sending(cluster, process, settings, rules or Rules())
        await sending.start()
        try:
            await scene(sending)
        finally:
            await sending.stop()
        done.append(True)

    with Sim(seed=seed, cpu_seconds_max=cpu_seconds_max) as sim:
        cluster = SimulatedCluster(sim)
        sim.process("sender", main)
        while not done and sim.now < seconds and not sim.loop.failures:
            sim.run(10.0)
        sim.run(1.0)
        sim.check()
    assert done, "the scene did not come to its end"
