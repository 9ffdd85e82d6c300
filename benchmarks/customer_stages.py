"""Who reads `conversations` on Kafka: the feed that fills it, the customer stage, and a loop as a user would write it.

Both readers find the log filled. Their cost is taken between a tenth and nine tenths of the records, so that joining a
group and the last batch's wait play no part.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import islice, starmap

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from benchmarks.child import Facts, Part, be, rss_bytes
from benchmarks.conversations import brand, records, states
from benchmarks.course import LOOK_S, Course, watched
from benchmarks.webhook_servers import kafka_settings
from broker import garbage, metrics
from broker.clock import SystemClock
from broker.core.customer_context import context_of
from broker.log.catalogue import CONVERSATIONS, STATE, catalogue, deliveries, sends
from broker.log.contract import Draft
from broker.log.kafka import KafkaLog
from broker.log.kafka_connection import connection, producer_of, topic_name
from broker.log.kafka_lease import BATCH_BYTES_MAX
from broker.log.kafka_reading import FETCH_BYTES_MAX
from broker.log.position import POSITION
from schemas.records import LANES
from schemas.settings import Settings
from workers.customer import NAME, CustomerStage, StageLimits

APPEND_RECORDS = 5_000
APPEND_S_MAX = 60.0
FINISH_S_MAX = 150.0


def settings_of(spec: Facts) -> Settings:
    """The brand a spec describes."""
    return brand(spec["partitions"], numbers=spec["numbers"], sinks=spec["sinks"])


@asynccontextmanager
async def opened(spec: Facts, of: Settings) -> AsyncIterator[KafkaLog]:
    """The engine, open."""
    engine = KafkaLog(kafka_settings(spec), catalogue(of), clock=SystemClock(), rng=random.Random(1))
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


async def play_feed(spec: Facts) -> AsyncIterator[Part]:
    """Make customers known: {"known": how many} writes their states, answered with how many bytes those have. Fill
    `conversations`: {"customers", "turns", "every", "steps"} is answered with how many records there are now.
    {"written": how many customers were known} is answered with what a stage wrote: records and states, their sizes."""
    of = settings_of(spec)
    async with opened(spec, of) as engine:

        async def answer(question: Facts) -> Facts:
            now = SystemClock().now()
            drafts: Iterator[Draft]
            if "written" in question:
                return await written(engine, of, question["written"])
            if "known" in question:
                log, drafts = STATE, starmap(Draft, states(question["known"], of, now))
            else:
                log = CONVERSATIONS
                shape = {name: question[name] for name in ("every", "steps") if name in question}
                drafts = records(question["customers"], question["turns"], of, now, **shape)
            count = size = 0
            while some := list(islice(drafts, APPEND_RECORDS)):
                await engine.append(log, some, APPEND_S_MAX)
                count += len(some)
                size += sum(len(draft.value or b"") for draft in some)
            there = sum(end - first for first, end in await engine.ends(log))
            if there != count:
                raise RuntimeError(f"{count} records were appended, {there} are there")
            return {"records": count, "bytes": size}

        yield Part({}, answer)


async def written(engine: KafkaLog, of: Settings, known: int) -> Facts:
    """Count what a customer stage wrote; `known` of the states were there before."""
    facts: Facts = {}
    lanes, events = [sends(lane) for lane in LANES], [deliveries(sink.name) for sink in of.sinks]
    for name, logs in (("sends", lanes), ("events", events), ("states", [STATE])):
        count = size = 0
        for log in logs:
            for partition in range(engine.logs[log].partitions):
                async for entry in engine.read(log, partition):
                    if entry.key != POSITION:
                        count += 1
                        size += len(entry.key) + len(entry.value)
        facts |= {name: count, f"{name}_bytes_each": size // max(1, count)}
    facts["states"] -= known
    return facts


async def play_stage(spec: Facts) -> AsyncIterator[Part]:
    """The customer stage. {"records"}: work until so many are committed, answered with rate and CPU."""
    of, clock = settings_of(spec), SystemClock()
    metrics.prepare()
    async with opened(spec, of) as engine:
        stage = CustomerStage(engine, context_of(of), clock, random.Random(2), StageLimits())
        garbage.settle()  # as `depesche` does when everything has started
        consumed = metrics.step_records.labels(NAME)._sum.get

        async def run(question: Facts) -> Facts:
            course = Course(consumed)
            steps = metrics.steps.labels(NAME, "committed")._value.get
            await stage.start()
            try:
                with watched(course):
                    await until(lambda: consumed() >= question["records"])
            finally:
                await stage.stop(5.0)
            return {**course.report(), "records": consumed(), "records_a_step": consumed() / steps()}

        yield Part({}, run)


async def play_restore(spec: Facts) -> AsyncIterator[Part]:
    """The customer stage when it is granted its partitions: {"known"} is answered once so many customers are in memory,
    with how many a second were restored, joining included; {"records"} once so many are committed; both with the memory
    of the process."""
    of = settings_of(spec)
    metrics.prepare()
    async with opened(spec, of) as engine:
        stage = CustomerStage(engine, context_of(of), SystemClock(), random.Random(2), StageLimits())
        garbage.settle()
        living = metrics.actors_live.labels(NAME)._value.get
        consumed = metrics.step_records.labels(NAME)._sum.get

        async def answer(question: Facts) -> Facts:
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            if "known" in question:
                await stage.start()
                await until(lambda: living() >= question["known"])
            else:
                await until(lambda: consumed() >= question["records"])
            count = living()
            return {
                "customers": count,
                "rate": count / (time.perf_counter() - began_s),
                "cpu_us": (time.process_time() - began_cpu_s) * 1e6 / count,
                "rss": rss_bytes(os.getpid()),
            }

        try:
            yield Part({}, answer)
        finally:
            await stage.stop(5.0)


async def play_read(spec: Facts) -> AsyncIterator[Part]:
    """Who reads the states and does nothing with them: {"known"} is answered once so many records were fetched."""
    connect = connection(kafka_settings(spec), None)
    topic = topic_name(spec["prefix"], STATE)
    places = [TopicPartition(topic, partition) for partition in range(spec["partitions"])]

    async def answer(question: Facts) -> Facts:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        consumer = AIOKafkaConsumer(
            **connect,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=FETCH_BYTES_MAX,
        )
        await consumer.start()
        try:
            consumer.assign(places)
            count = 0
            async with asyncio.timeout(FINISH_S_MAX):
                while count < question["known"]:
                    for found in (await consumer.getmany(timeout_ms=200)).values():
                        count += sum(1 for record in found if record.key != POSITION)
            return {
                "customers": count,
                "rate": count / (time.perf_counter() - began_s),
                "cpu_us": (time.process_time() - began_cpu_s) * 1e6 / count,
            }
        finally:
            await consumer.stop()

    yield Part({}, answer)


async def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds. Raises `TimeoutError`."""
    async with asyncio.timeout(FINISH_S_MAX):
        while not condition():  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(LOOK_S)


async def play_loop(spec: Facts) -> AsyncIterator[Part]:
    """What a user would write: fetch, send as many records of like size as our stage did, commit both as one.

    It decodes nothing and decides nothing. Its producer is set as ours is (batch size, compression, acks), which is
    more than a user would think of. {"records", "derived", "states", "state_bytes"}: how many it reads, how many it
    writes of either kind; what is derived is as large as what it came from.
    """
    logging.getLogger("aiokafka").setLevel(logging.ERROR)  # it warns of each retry while the last step's end is marked
    settings = kafka_settings(spec)
    source, derived, kept = (topic_name(spec["prefix"], log) for log in (CONVERSATIONS, deliveries("bot-0"), STATE))
    group = f"{spec['prefix']}loop"
    connect = connection(settings, None)

    async def run(question: Facts) -> Facts:
        done = 0
        course = Course(lambda: done)
        consumer = AIOKafkaConsumer(
            source,
            **connect,
            group_id=group,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        producer = producer_of(
            connect,
            transactional_id=f"{spec['prefix']}loop",
            transaction_timeout_ms=settings.transaction_timeout_ms,
            max_batch_size=BATCH_BYTES_MAX,
        )
        await producer.start()
        await consumer.start()
        derived_each, kept_each = question["derived"] / question["records"], question["states"] / question["records"]
        state_bytes = question["state_bytes"]
        derived_owed = kept_owed = 0.0
        sent = 0
        try:
            with watched(course):
                async with asyncio.timeout(FINISH_S_MAX):
                    while done < question["records"]:
                        fetched = await consumer.getmany(timeout_ms=200, max_records=StageLimits().records_max)
                        if not fetched:
                            continue
                        positions: dict[TopicPartition, int] = {}
                        batch = 0
                        async with producer.transaction():
                            for place, found in fetched.items():
                                for record in found:
                                    derived_owed += derived_each
                                    kept_owed += kept_each
                                    if derived_owed >= 1:
                                        derived_owed -= 1
                                        await producer.send(derived, record.value, record.key)
                                        sent += 1
                                    if kept_owed >= 1:
                                        kept_owed -= 1
                                        await producer.send(kept, record.value[:state_bytes], record.key)
                                        sent += 1
                                positions[place] = found[-1].offset + 1
                                batch += len(found)
                            await producer.send_offsets_to_transaction(positions, group)
                        done += batch
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(10.0):
                    await consumer.stop()
                    await producer.stop()
        return {**course.report(), "records": done, "sent": sent}

    yield Part({}, run)


PLAYS = {"feed": play_feed, "stage": play_stage, "loop": play_loop, "restore": play_restore, "read": play_read}


async def play(spec: Facts) -> AsyncIterator[Part]:
    """Whichever the spec names."""
    async for part in PLAYS[spec["kind"]](spec):
        yield part


if __name__ == "__main__":
    be(play)
