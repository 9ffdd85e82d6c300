"""The bots of other people, before a broker stands between them and Meta: each is what it is taken for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tests.flow.strangers import Stranger, node_bot, pywa_bot
from tests.kafka.cluster import free_ports


@pytest.mark.parametrize("make", [pywa_bot, node_bot], ids=["pywa", "node"])
async def test_a_bot_of_other_people_answers_the_handshake_and_takes_nothing_forged(
    make: Callable[..., Stranger], tmp_path: Path
) -> None:
    """If it did not check signatures, a tour would not show that ours are right."""
    (port,) = free_ports(1)
    bot = make(tmp_path, port, "http://127.0.0.1:1", "dk_test", "secret", "106540352242922")
    forged = {"X-Hub-Signature-256": "sha256=" + "0" * 64}
    try:
        await bot.start()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            for headers in ({}, forged):
                async with session.post(f"http://127.0.0.1:{port}/webhook", data=b"{}", headers=headers) as answer:
                    assert answer.status in (401, 403, 500), "whatsapp-api-js says 500 where no signature is"
    finally:
        bot.stop()
    assert bot.notes("message") == []
