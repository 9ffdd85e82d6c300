"""Which logs there are, how they are kept, and which stages read which."""

from __future__ import annotations

from broker.log.contract import LogSpec, Stage
from schemas.records import LANES, Lane
from schemas.settings import Settings

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

CONVERSATIONS = "conversations"
STATE = "state"
LEDGER = "ledger"
TRAFFIC = "traffic"
ACCOUNTS = "accounts"
DEADLETTERS = "deadletters"
CONTROL = "control"

CUSTOMER_STAGE = Stage("customer", (CONVERSATIONS,), STATE)


def sends(lane: Lane) -> str:
    """Return the log of a lane."""
    return f"sends.{lane}"


def deliveries(sink: str) -> str:
    """Return the log of a sink."""
    return f"deliveries.{sink}"


SENDER_STAGE = Stage("sender", (*(sends(lane) for lane in LANES), TRAFFIC), LEDGER)
DELIVERY_GROUP = "delivery"


def catalogue(settings: Settings) -> list[LogSpec]:
    """Return every log a deployment with these settings has."""
    customers, slots = settings.log.partitions, settings.log.slots
    return [
        LogSpec(CONVERSATIONS, customers, "time", 7 * DAY_MS),
        LogSpec(STATE, customers, "last"),
        *(LogSpec(sends(lane), slots, "time", 7 * DAY_MS) for lane in LANES),
        LogSpec(LEDGER, slots, "journal", 8 * DAY_MS),  # outlives the sends it speaks of: a sender may rest for days
        LogSpec(TRAFFIC, slots, "time", HOUR_MS),
        *(LogSpec(deliveries(sink.name), sink.partitions, "time", 7 * DAY_MS) for sink in settings.sinks),
        LogSpec(ACCOUNTS, 1, "time", 7 * DAY_MS),
        LogSpec(DEADLETTERS, 1, "time", 30 * DAY_MS),
        LogSpec(CONTROL, 1, "last"),
    ]
