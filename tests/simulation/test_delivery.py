"""The delivery stage through an hour of faults, at its real times: workers die and freeze, bots fall over.

Three workers deliver to two bots, to one of them some events as lists, as routes say. Some events are indigestible.
When the faults are over everything must have come to an end by itself: taken, or a dead letter with evidence against
it; first deliveries in order for each customer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from random import Random

import pytest

from broker.errors import LogUnavailable
from broker.log.catalogue import CONTROL, CONVERSATIONS, DEADLETTERS, DELIVERY_GROUP, deliveries
from broker.log.contract import Draft, LogSpec
from broker.secrets import Secret
from schemas.records import (
    DeliveryEvent,
    DeliveryFailed,
    RouteDebounce,
    decode_conversation,
    decode_dead_letter,
    decode_delivery,
    encode,
)
from schemas.settings import SecretSource, SinkSettings
from tests.simulation.cluster import SimulatedCluster
from tests.simulation.log import SimulatedLog
from tests.simulation.loop import Process, Sim
from tests.simulation.net import WAN, Net
from workers.delivery import DeliveryStage
from workers.poster import Posted, PostFailed
from workers.sinks import Target

SINKS = ("steady", "frail")
PARTITIONS = 3
SPECS = [
    *(LogSpec(deliveries(sink), PARTITIONS) for sink in SINKS),
    LogSpec(CONVERSATIONS, 4),
    LogSpec(DEADLETTERS, 1),
    LogSpec(CONTROL, 1, "last"),
]
FAULTS_END_S = 1_800.0

JOINED = (None, RouteDebounce(0), RouteDebounce(3_000), RouteDebounce(20_000, 3))
"""What routes say of the events of the frail sink: at a customer's pace of some seconds, lists of all kinds."""

Event = tuple[str, str, int]
"""Sink, customer, number."""


class SimPoster:
    """HTTP over the simulated network, from one process."""

    def __init__(self, net: Net, process: Process) -> None:
        self._net = net
        self._process = process

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Posted:
        """Return the answer, or say what failed, as the real connector does."""
        try:
            status = await self._net.call(self._process, url, body, timeout_s)
        except TimeoutError:
            raise PostFailed("timeout", "in the simulation") from None
        except OSError as error:
            raise PostFailed("connection", type(error).__name__) from None
        return Posted(status, "2" if status == 429 else "")


class Hour:
    """One run: what was appended, what each bot took, in order."""

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        self.cluster = SimulatedCluster(sim)
        self.net = Net(sim)
        self.random = sim.random("scenario")
        self.appended: list[Event] = []
        self.troubled: set[Event] = set()
        self.taken: list[Event] = []
        self.joined: dict[Event, RouteDebounce | None] = {}
        self.lists: list[list[Event]] = []
        nowhere = SecretSource(env="X")
        self.targets = [
            Target(SinkSettings(name="steady", kind="meta", url="http://steady", secret=nowhere), [Secret("s")]),
            Target(
                SinkSettings(name="frail", kind="standard", url="http://frail", secret=nowhere),
                [Secret("whsec_" + "c2VjcmV0LW9mLWZyYWls")],
            ),
        ]

    async def worker(self, process: Process) -> None:
        log = SimulatedLog(self.cluster, process, SPECS)
        while not process.stopping.is_set():
            try:
                await log.start()
                break
            except LogUnavailable:
                await asyncio.sleep(1.0)
        stage = DeliveryStage(log, self.targets, SimPoster(self.net, process), process.clock, process.random)
        await stage.start()
        await process.stopping.wait()
        await stage.stop()
        await log.close()

    async def bot(self, process: Process) -> None:
        random = Random(f"{process.random.random()}")

        async def handle(body: bytes) -> int:
            said, sink = json.loads(body), process.name
            inner = said.get("data", said)
            events = [one["data"] for one in inner] if isinstance(inner, list) else [inner]
            troubles = {event["trouble"] for event in events}
            await asyncio.sleep(random.random() * 0.2)
            if "refused" in troubles:
                return 422
            if "crashes" in troubles:
                return 500
            if "hangs" in troubles:
                await asyncio.sleep(40)
            if sink == "frail" and self.sim.now < FAULTS_END_S and random.random() < 0.1:
                return random.choice([429, 500, 503])
            taken = [(sink, event["c"], event["n"]) for event in events]
            if "hangs" in troubles:
                self.troubled.update(
                    taken
                )  # nobody knows whether a list that timed out was taken: all of it comes again
            self.taken += taken
            self.lists.append(taken)
            for event in taken:
                self.sim.note("taken", *event)
            return 200

        self.net.serve(process, f"http://{process.name}", handle, WAN)
        await process.stopping.wait()
        await self.net.drain(process, f"http://{process.name}", 5.0)

    async def source(self, process: Process) -> None:
        """Appends events: some customers talk much, some little, one in eighty says what a bot cannot digest.

        After the faults others go on: that a bot takes somebody's events is the evidence against those it does not.
        """
        log = SimulatedLog(self.cluster, process, SPECS)
        await log.start()
        numbers: dict[tuple[str, str], int] = {}
        while not process.stopping.is_set():
            is_late = self.sim.now >= FAULTS_END_S
            sink = self.random.choice(SINKS)
            customer = (
                f"main:{int(self.random.expovariate(1 / 15)) % 80}"
                if not is_late
                else f"main:9{self.random.randrange(20):02}"
            )
            number = numbers[sink, customer] = numbers.get((sink, customer), -1) + 1
            trouble = ""
            if not is_late and self.random.random() < 1 / 80:
                trouble = self.random.choice(["refused", "crashes", "hangs"])
                self.troubled.add((sink, customer, number))
            body = json.dumps({"c": customer, "n": number, "trouble": trouble}).encode()
            joined = self.random.choice(JOINED) if sink == "frail" and number % 3 == 0 else None
            if sink == "frail" and number % 3:  # people stay with what they are at for a while
                joined = self.joined[sink, customer, number - 1]
            self.joined[sink, customer, number] = joined
            event = DeliveryEvent(f"{sink}/{customer}/{number}", "message", "1", customer, body, 0, 0, debounce=joined)
            while True:
                try:
                    await log.append(deliveries(sink), [Draft(customer.encode(), encode(event))], 5.0)
                    break
                except LogUnavailable:
                    await asyncio.sleep(0.5)
            if not is_late:
                self.appended.append((sink, customer, number))
            await asyncio.sleep(self.random.expovariate(0.2 if is_late else 1.0))
        await log.close()

    def plan(self) -> None:
        """Let things go wrong for half an hour."""
        faults, random = self.sim.faults, self.random
        for kind, chance in (
            ("append.slow", 0.02), ("append.refused", 0.02), ("append.landed_unheard", 0.02), ("append.twice", 0.02),
            ("fetch.slow", 0.01), ("net.request_lost", 0.01), ("net.request_reset", 0.01), ("net.answer_lost", 0.01),
            ("net.answer_reset", 0.01), ("net.slow", 0.01),
        ):  # fmt: skip
            faults.plan(kind, chance, until_s=FAULTS_END_S)
        for second in range(60, int(FAULTS_END_S) - 60, 45):
            worker = f"worker-{random.randrange(3)}"
            what = random.randrange(8)
            at = second + random.random() * 40
            if what == 0:
                self.sim.at(at, self.sim.restart, worker, 3 + random.random() * 20)
            elif what == 1:
                self.sim.at(at, self.sim.freeze, worker, random.choice([2.0, 9.0, 40.0]))
            elif what == 2:
                self.sim.at(at, self.sim.stop, worker)
                self.sim.at(at + 20, self.sim.start, worker)
            elif what == 3:
                self.sim.at(at, self.sim.restart, "frail", 20 + random.random() * 900)
            elif what == 4:
                self.sim.at(at, self.sim.freeze, "frail", 60.0)
            elif what == 5:
                self.sim.at(at, self.cluster.down, 5 + random.random() * 20)
            elif what == 6:
                self.sim.at(at, self.cluster.cut, worker, 15.0)
            else:
                self.sim.at(at, self.cluster.rebalance, DELIVERY_GROUP)

    def start(self) -> None:
        for sink in SINKS:
            self.sim.process(sink, self.bot)
        for number in range(3):
            self.sim.process(f"worker-{number}", self.worker)
        self.sim.process("source", self.source)

    def heal(self) -> None:
        for sink in SINKS:
            self.sim.start(sink)
        for number in range(3):
            self.sim.start(f"worker-{number}")

    def records(self, log: str) -> list[bytes]:
        entries: list[bytes] = []
        for partition in self.cluster.logs[log].partitions:
            entries.extend(entry.value for entry in partition.read(partition.first_offset, 1_000_000)[0])
        return entries

    def set_aside(self) -> dict[Event, str]:
        letters = {}
        for value in self.records(DEADLETTERS):
            letter = decode_dead_letter(value)
            said = json.loads(decode_delivery(letter.value).body)
            letters[letter.log.removeprefix("deliveries."), said["c"], said["n"]] = said["trouble"]
            assert letter.reason == "gave_up", letter.detail
        return letters

    def settled(self) -> bool:
        return {*self.taken, *self.set_aside()} >= set(self.appended) and self.sim.now > FAULTS_END_S


def live(seed: int) -> Hour:
    with Sim(seed, cpu_seconds_max=90.0) as sim:
        hour = Hour(sim)
        hour.start()
        hour.plan()
        sim.run(FAULTS_END_S + 60)
        hour.heal()
        sim.run_until(hour.settled, 3 * 3_600.0, every_s=10.0)
        sim.run(10.0)
        for name in list(sim.processes):
            sim.stop(name)
        sim.run(60.0)
        check(hour)
    return hour


def check(hour: Hour) -> None:
    aside = hour.set_aside()
    assert all(aside.values()), f"good events were given up: {aside}"
    first: dict[tuple[str, str], list[int]] = {}
    for event in dict.fromkeys(hour.taken):
        first.setdefault(event[:2], []).append(event[2])
    for who, numbers in first.items():
        assert numbers == sorted(numbers), f"out of order: {who}: {numbers}"
    for together in hour.lists:
        (joined,) = {hour.joined[event] for event in together}
        assert len(together) == 1 or (joined is not None and len(together) <= (joined.events_max or 20))
    told = set()
    for value in hour.records(CONVERSATIONS):
        record = decode_conversation(value)
        assert isinstance(record, DeliveryFailed)
        sink, customer, number = record.delivery_id.split("/")
        told.add((sink, customer, int(number)))
    assert told == set(aside), "the conversation is told of every dead letter"
    healthy = [event for event in hour.taken if event[0] == "steady" and event not in hour.troubled]
    assert len(healthy) < 1.2 * len(set(healthy)), "repetitions are the exception"


@pytest.mark.parametrize("seed", range(4))
def test_an_hour_of_faults_ends_with_everything_in_its_place(seed: int) -> None:
    """At least once, in order, nothing given up for another's fault, and no hand needed."""
    hour = live(seed)
    assert len(hour.appended) > 1_000
    assert sum(len(together) > 1 for together in hour.lists) > 20


def test_a_seed_decides_everything() -> None:
    """A failure that cannot be repeated cannot be understood."""
    assert live(100).sim.digest() == live(100).sim.digest()


def test_without_faults_nothing_is_repeated_by_deployments() -> None:
    """Workers that stop and start in turn, as a rollout does: each event arrives exactly once."""
    with Sim(5, cpu_seconds_max=60.0) as sim:
        hour = Hour(sim)
        hour.start()
        for turn in range(12):
            sim.at(60 + turn * 100, sim.stop, f"worker-{turn % 3}")
            sim.at(90 + turn * 100, sim.start, f"worker-{turn % 3}")
        sim.run(FAULTS_END_S + 60)
        sim.run_until(hour.settled, 3_600.0, every_s=10.0)
        for name in list(sim.processes):
            sim.stop(name)
        sim.run(60.0)
        check(hour)
    healthy = [event for event in hour.taken if event not in hour.troubled]
    assert len(healthy) == len(set(healthy))
