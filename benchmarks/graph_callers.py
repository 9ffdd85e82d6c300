"""Who sends: the sender stage on either log with a backlog, and a bare loop over aiohttp's client."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack

import aiohttp
from msgspec.structs import replace

from benchmarks.child import Facts, Lag, Part, be
from benchmarks.course import LOOK_S, Course, watched
from benchmarks.graph_servers import FIRST_PHONE, TOKEN
from benchmarks.load import APP, NUMBER, SECRET
from benchmarks.webhook_servers import engine_for, settings
from broker import garbage, metrics
from broker.clock import SystemClock
from broker.core.opaque import new_send_id, wrap
from broker.log.catalogue import CONVERSATIONS, sends
from broker.log.contract import Draft, LogEngine
from broker.receiver import Receiver, receiver_app
from broker.secrets import Secret
from schemas.ids import CustomerKey, Sink
from schemas.records import Lane, Ready, SendOutcome, decode_conversation, encode
from schemas.settings import Number, Settings
from workers.graph import GraphClient
from workers.sender import SenderStage

VERSION = "v26.0"
APPEND_RECORDS = 500
FINISH_S_MAX = 150.0
HOUR_MS = 3_600_000


def with_numbers(of: Settings, numbers: int) -> Settings:
    """The same brand with so many numbers, each in a slot of its own."""
    (first,) = of.numbers
    return replace(
        of, numbers=[first, *(replace(first, phone_number_id=f"{NUMBER}{n}", slot=n) for n in range(1, numbers))]
    )


def readies(count: int, lane: Lane, now_ms: int, numbers: Sequence[Number]) -> Iterator[Ready]:
    """Sends as the customer stage admits them, the numbers in turns, each to another customer, so that no pair limit
    plays a part."""
    chance = random.Random(4)
    for n in range(count):
        phone = str(FIRST_PHONE + n)
        customer = CustomerKey(f"main:{phone}")
        send_id = new_send_id(now_ms, chance.randbytes(10))
        body = {
            "messaging_product": "whatsapp",
            "recipient_type": "individual",
            "to": phone,
            "type": "text",
            "text": {"preview_url": False, "body": f"Your order {n:06} left our warehouse and arrives tomorrow."},
            "biz_opaque_callback_data": wrap(send_id, Sink("assistant"), customer, None),
        }
        yield Ready(
            send_id=send_id,
            attempt=1,
            phone_number_id=numbers[n % len(numbers)].phone_number_id,
            customer=customer,
            lane=lane,
            send_class=lane,
            kind="message",
            body=json.dumps(body, separators=(",", ":")).encode(),
            admitted_at=now_ms,
            not_after=now_ms + HOUR_MS,
            requested_at=now_ms,
        )


async def play_stage(spec: Facts) -> AsyncIterator[Part]:
    """The sender stage, its log already holding `count` sends; and a receiver, for what customers write meanwhile.

    {"run": "all"}: send everything, answered with rate and CPU. {"run": "some", "seconds"}: send for so many seconds,
    then stop; what is left stays on the log.
    """
    of, clock, rng = with_numbers(settings(spec["throughput_mps"]), spec["numbers"]), SystemClock(), random.Random(1)
    of = replace(of, sender=replace(of.sender, in_flight_max=spec["in_flight_max"]))
    metrics.prepare()
    async with AsyncExitStack() as stack:
        engine = engine_for(spec, of)
        stack.push_async_callback(engine.close)
        await engine.start()
        lane: Lane = spec["lane"]
        slots = {number.phone_number_id: number.slot for number in of.numbers}
        drafts = [
            Draft(ready.customer.encode(), encode(ready), slots[ready.phone_number_id])
            for ready in readies(spec["count"], lane, clock.now(), of.numbers)
        ]
        for start in range(0, len(drafts), APPEND_RECORDS):
            await engine.append(sends(lane), drafts[start : start + APPEND_RECORDS], 30.0)
        receiver = Receiver(of, {APP: (Secret(SECRET),)}, {APP: Secret("token")}, engine, clock)
        await receiver.start()
        stack.push_async_callback(receiver.stop, 5.0)
        port = receiver_app(receiver, of, clock)
        await port.start()
        stack.push_async_callback(port.stop, 2.0)

        garbage.settle()  # as `depesche` does when everything has started

        async def run(question: Facts) -> Facts:
            graph = GraphClient(f"http://127.0.0.1:{question['graph_port']}", VERSION, of.sender.call_timeout_s)
            await graph.start()
            stack.push_async_callback(graph.close)
            tokens = {number.phone_number_id: Secret(TOKEN) for number in of.numbers}
            stage = SenderStage(engine, of, tokens=tokens, graph=graph, clock=clock, rng=rng)
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            await stage.start()
            stack.push_async_callback(stage.stop, 5.0)
            if question["run"] == "some":
                lag = Lag()
                await asyncio.sleep(question["seconds"])
                seen = lag.report()
                lag.stop()
                await stage.stop(5.0)
                return {**seen, "cpu_s": time.process_time() - cpu_s, "wall_s": time.perf_counter() - wall_s}
            course = Course(metrics.sends.labels(lane, "accepted")._value.get)
            with watched(course):
                async with asyncio.timeout(FINISH_S_MAX):
                    while course.look() < spec["count"]:  # noqa: ASYNC110  # nobody tells
                        await asyncio.sleep(LOOK_S)
            return {**course.report(), "accepted": await accepted(engine)}

        yield Part({"port": port.port}, run)


async def accepted(engine: LogEngine) -> int:
    """How many outcomes on the log say that Graph took the send."""
    found = 0
    for partition in range(engine.logs[CONVERSATIONS].partitions):
        async for entry in engine.read(CONVERSATIONS, partition):
            record = decode_conversation(entry.value)
            found += isinstance(record, SendOutcome) and record.outcome == "accepted"
    return found


async def play_loop(spec: Facts) -> AsyncIterator[Part]:
    """The least a sender in aiohttp can be: some coroutines that post the same bodies and read the answers."""
    of = with_numbers(settings(), spec["numbers"])
    ready = list(readies(spec["count"], spec["lane"], SystemClock().now(), of.numbers))
    took = 0

    async def work(session: aiohttp.ClientSession, base: str, left: Iterator[Ready]) -> None:
        nonlocal took
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        for each in left:
            url = f"{base}/{each.phone_number_id}/messages"
            async with session.post(url, data=each.body, headers=headers) as answer:
                took += answer.status == 200 and json.loads(await answer.read())["messages"][0]["id"] != ""

    async def run(question: Facts) -> Facts:
        nonlocal took
        took = 0
        base = f"http://127.0.0.1:{question['graph_port']}/{VERSION}"
        left, course = iter(ready), Course(lambda: took)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            with watched(course):
                async with asyncio.timeout(FINISH_S_MAX):
                    await asyncio.gather(*(work(session, base, left) for _ in range(spec["in_flight_max"])))
        return {**course.report(), "accepted": took}

    yield Part({}, run)


async def play(spec: Facts) -> AsyncIterator[Part]:
    """Whichever the spec names."""
    async for part in play_loop(spec) if spec["kind"] == "loop" else play_stage(spec):
        yield part


if __name__ == "__main__":
    be(play)
