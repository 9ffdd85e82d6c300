"""What is done to whoever works: killed at each step between an event and its effect, while conversations go on."""

from __future__ import annotations

from collections import Counter

import aiohttp

from broker import failpoints
from tests.faults.row import Figures, Rig, Row
from tests.flow.bot import QuotingBot
from tests.flow.deployment import SINK_SECRET, Deployment, Number, Seat
from tests.flow.meta import Meta
from tests.kafka.cluster import free_ports

NUMBER = Number("106540352242922", 0)
TURNS = 6
BEGUN_PER_S = 2.0
CONVERSATIONS_A_KILL = 6

AFTER = 40
"""Who writes once nobody is killed any more. What is in doubt wants later statuses in its own partition, heard by its
last owner: ten customers in each of four."""

AFTER_PHONE = 15_550_200_000
PASSES_MAX = 6
DIES_S_MAX = 60.0
ANSWER_S_MAX = 180.0
"""A send whose owner died between intent and answer is repeated after half a minute of doubt, which the next death
may begin anew."""

STEPS = [point for point in failpoints.POINTS if point.partition(".")[0] in ("customer", "sender", "graph", "delivery")]


async def killed_at_each_step(rig: Rig) -> Figures:
    """The single process dies at one place after the other; the referee, who stays, says what a real Meta saw."""
    kills = rig.scale(1, 12) * len(STEPS)
    conversations = kills * CONVERSATIONS_A_KILL
    log: dict[str, object] = {"partitions": 4, "slots": 4, "embedded": {"path": "log"}}
    seat = Seat("bot", free_ports(1)[0], [NUMBER.phone_number_id])
    deployment = Deployment(rig.folder, log, [NUMBER], [seat])
    bot = QuotingBot(seat.port, f"http://127.0.0.1:{deployment.gateway_port}", seat.key, SINK_SECRET)
    died: Counter[str] = Counter()
    await bot.start()
    try:
        await deployment.start("sandbox", "sandbox")
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            meta = Meta(deployment.sandbox_port, session)
            how = {
                "turns": TURNS,
                "conversations_per_s": BEGUN_PER_S,
                "think_s": 0.5,
                "answer_within_s": ANSWER_S_MAX,
                "numbers": [NUMBER.phone_number_id],
            }
            await meta.begin(conversations=conversations, **how)
            for number in range(kills):
                point = STEPS[number % len(STEPS)]
                passes = rig.chance.randint(1, PASSES_MAX)
                process, _ = await deployment.start_to_die(f"all-{number}", "run", f"{point}:{passes}")
                await process.dies(DIES_S_MAX)
                died[point] += 1
            await deployment.start("all", "run")
            await meta.begin(name="after", conversations=AFTER, first_phone=AFTER_PHONE, **how)
            reports = [await meta.over(), await meta.over("after")]
            view = await meta.settled()
    finally:
        deployment.close()
        await bot.stop()
    assert view["counts"] == {}, f"the referee: {view['verdicts'][:10]}"
    messages = (conversations + AFTER) * TURNS
    assert sum(report["unanswered"] for report in reports) == 0, str(reports)
    assert sum(report["answered"] for report in reports) == messages, str(reports)
    accepted = view["numbers"][NUMBER.phone_number_id]["accepted"]
    assert accepted == messages, f"{accepted} accepted of {messages} answers"
    for texts in bot.received.values():
        assert texts == sorted(texts, key=lambda text: int(text.split()[1])), "a customer's texts came out of order"
    return {"kills": sum(died.values()), "messages": messages, "accepted": accepted, "verdicts": 0}


ROWS = [
    Row(
        name="worker-killed",
        fault="kill -9 of the single process before and after each step of customer, sender, call and delivery",
        invariants="I1 I2 I3 I8",
        passes="every message answered, each answer accepted once, order kept, the referee silent",
        play=killed_at_each_step,
        limit_s=280,
        limit_full_s=3_600,
    )
]
