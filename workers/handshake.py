"""The GET handshake towards a `meta` sink: a webhook proves that it knows the verify token by repeating a challenge.

Source: Graph API, "Webhooks", "Verification requests": hub.mode, hub.challenge, hub.verify_token; the answer is 200
with the challenge as its body. We do it on request alone: Meta does it once, when a webhook is configured.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from broker.secrets import Secret
from schemas.settings import SinkSettings
from workers.connector import Connector
from workers.poster import PostFailed

CHALLENGE_MAX = 2**31


class Handshake(NamedTuple):
    """What came of it: `wrong` says what was not as it should be, "" when all was."""

    wrong: str


async def shake(connector: Connector, sink: SinkSettings, token: Secret, rng: random.Random) -> Handshake:
    """Ask once. Never raises for what the sink does."""
    challenge = str(rng.randrange(CHALLENGE_MAX // 10, CHALLENGE_MAX))
    asked = {"hub.mode": "subscribe", "hub.challenge": challenge, "hub.verify_token": token.reveal()}
    try:
        status, body = await connector.get(sink.url, asked, sink.timeout_s)
    except PostFailed as error:
        return Handshake(str(error))
    if status == 403:
        return Handshake("answered 403: it expects another verify token")
    if status != 200:
        return Handshake(f"answered {status}, and should answer 200 with the challenge")
    if body != challenge.encode():
        return Handshake(f"answered 200 with {len(body)} bytes that are not the challenge")
    return Handshake("")
