"""The brand a simulation plays: its numbers, customers, bots, routes and keys. Small, so that limits are met often."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from broker.log.catalogue import catalogue
from broker.log.contract import LogSpec
from broker.sandbox.people import Person, bsuid_of
from broker.sandbox.platform import BusinessNumber
from broker.secrets import Secret
from schemas.ids import Sink
from schemas.records import SendClass
from schemas.settings import (
    App,
    BotKey,
    CustomerSettings,
    DoubtSettings,
    LogSettings,
    Number,
    Route,
    SecretSource,
    SenderSettings,
    Settings,
    SinkSettings,
    Then,
    When,
)

APP = "shop"
APP_SECRET = "the-app-secret"
WABA = "102290129340398"

UNKNOWN_NUMBER = "106540352242999"
"""In no setting of ours: Meta sends us webhooks of a number nobody has configured yet."""


class Line(NamedTuple):
    """A business number: what it may send, where its sender lives, which bot hears it."""

    phone_number_id: str
    display: str
    tier_mps: int
    slot: int
    sink: str

    @property
    def token(self) -> str:
        """Meta's token of the number."""
        return f"EAA{self.phone_number_id[-3:]}"


LINES = (
    Line("106540352242901", "15550001001", 12, 0, "steady"),
    Line("106540352242902", "15550001002", 5, 1, "flaky"),
    Line("106540352242903", "15550001003", 20, 0, "steady"),
)
"""Two numbers share a slot; the second has the smallest tier and the worse bot."""

BY_NUMBER = {line.phone_number_id: line for line in LINES}

DOUBT = DoubtSettings(otp_s=10.0, reply_s=45.0, transactional_s=90.0, campaign_s=-1.0)
DOUBT_S: dict[SendClass, float] = {
    "otp": DOUBT.otp_s,
    "reply": DOUBT.reply_s,
    "transactional": DOUBT.transactional_s,
    "campaign": DOUBT.campaign_s,
}

PENDING_MAX = 16
"""Sends of a lane in memory: so few that a burst is left in the log and read again. In production 10,000."""

GIVE_UP_S = 60.0
"""How long a customer's indigestible event is retried; ten minutes in production."""


class Key(NamedTuple):
    """A bot key: its name, its token, whose statuses go where, and what it sends when it says nothing."""

    name: str
    sink: str
    send_class: SendClass

    @property
    def token(self) -> str:
        """What the bot shows the gateway."""
        return f"key-of-{self.name}"


KEYS = (Key("steady", "steady", "reply"), Key("flaky", "flaky", "reply"), Key("campaigns", "steady", "campaign"))

SINK_SECRETS = {
    "steady": Secret("secret-of-steady"),
    "flaky": Secret("whsec_" + "c2VjcmV0LW9mLWZsYWt5LWZsYWt5LWZsYWt5"),
}


def settings() -> Settings:
    """Return what `depesche.toml` would say."""
    nowhere = SecretSource(env="SIMULATED")
    return Settings(
        apps=[App(name=APP, secrets=[nowhere], verify_token=nowhere)],
        numbers=[
            Number(
                phone_number_id=line.phone_number_id,
                waba_id=WABA,
                token=nowhere,
                slot=line.slot,
                display_phone_number=line.display,
                throughput_mps=line.tier_mps,
            )
            for line in LINES
        ],
        sinks=[
            SinkSettings(
                name="steady", kind="meta", url="http://bot-steady", secret=nowhere, timeout_s=10.0,
                give_up_after_s=GIVE_UP_S, partitions=2,
            ),
            SinkSettings(
                name="flaky", kind="standard", url="http://bot-flaky", secret=nowhere, timeout_s=10.0,
                give_up_after_s=GIVE_UP_S, partitions=2,
            ),
        ],
        keys=[
            BotKey(
                name=key.name,
                sha256=hashlib.sha256(key.token.encode()).hexdigest(),
                numbers=["*"],
                sink=key.sink,
                send_class=key.send_class,
            )
            for key in KEYS
        ],
        routes=[
            Route(
                name=f"{sink} hears its numbers",
                when=When(
                    numbers=[line.phone_number_id for line in LINES if line.sink == sink],
                    types=["text", "preference"],
                ),
                then=Then(sinks=[Sink(sink)]),
            )
            for sink in ("steady", "flaky")
        ],
        log=LogSettings(partitions=4, slots=2),
        customer=CustomerSettings(doubt=DOUBT),
        sender=SenderSettings(pending_max=PENDING_MAX),
    )  # fmt: skip


SETTINGS = settings()


def specs() -> list[LogSpec]:
    """Return the brand's logs."""
    return catalogue(SETTINGS)


def business_numbers() -> list[BusinessNumber]:
    """Return the numbers as Meta knows them, the one included that we do not know."""
    known = [BusinessNumber(line.phone_number_id, WABA, line.display, line.token, line.tier_mps) for line in LINES]
    return [*known, BusinessNumber(UNKNOWN_NUMBER, WABA, "15550001999", "EAA999", 20)]


def people() -> list[Person]:
    """Return the customers: most have a phone, some countries write it in two ways, some hide it for good, and some
    until we write to it. `Crowd` lets them change phones and ids."""
    phones = [f"1555000{number:04d}" for number in range(2_001, 2_017)]
    phones += ["551187654321", "5215512345678", "5491123456789", "4915550001234"]
    known = [
        Person(
            wa_id=phone,
            bsuid=bsuid_of(phone),
            name=f"Customer {phone[-4:]}",
            username=f"customer.{phone[-4:]}" if phone in HIDING else "",
            hides_phone=phone in HIDING,
        )
        for phone in phones
    ]
    known += [Person(wa_id=f"1555000{number}", name="Before 2026") for number in ("3001", "3002")]
    hidden = [f"US.1900000000000000000{number}" for number in range(4)]
    known += [Person(bsuid=bsuid, name="Sample", username=f"sample.{bsuid[-1]}") for bsuid in hidden]
    return known


HIDING = ("15550002003", "15550002005", "15550002008", "15550002012")
"""Seen by their BSUID alone until a number writes to the phone: a campaign makes one customer of two keys."""
