"""All that is outside of Depesche, in one process: Meta with its customers, Graph, and the bot.

In the proportions Meta sizes receivers by, three statuses for each message out and as many again as 30 % of those in:
of 11 webhooks one is a customer's text, which the bot answers with 3 1/3 messages 1.5 s apart; the other ten are
`sent`, `delivered` and `read` of those. Texts are due at a steady rate; a latency counts from when a webhook was due.
Nothing is decoded twice or checked here that the broker's own tests check: signatures of the bot's events are not.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from statistics import median

import msgspec

from benchmarks.child import Facts, Part, be
from benchmarks.load import NUMBER, webhook
from benchmarks.raw_http import Pool, Taken
from broker.core.signature import Signer
from tests.flow.deployment import DOUBT_S

WEBHOOKS_OF_A_TEXT = 11
BUBBLE_S = 1.5
GRAPH_S = 0.35
STATUSES_S = (("sent", 0.1), ("delivered", 0.4), ("read", 1.5))
"""After Graph's answer."""

CONNECTIONS = 64
TICK_S = 0.001
LOOK_S = 0.05
LATE_S = 1.0

WABA = "102290129340398"
NAMES = ("webhook", "bot", "graph")
"""What latencies are of: a webhook's own 200, the bot's, and a text's first answer at Graph."""


class _Id(msgspec.Struct):
    id: str
    status: str = ""
    sender: str = msgspec.field(default="", name="from")


class _Value(msgspec.Struct):
    messages: list[_Id] = []
    statuses: list[_Id] = []


class _Change(msgspec.Struct):
    value: _Value


class _Entry(msgspec.Struct):
    changes: list[_Change]


class _Event(msgspec.Struct):
    entry: list[_Entry]


class _Send(msgspec.Struct):
    to: str
    opaque: str = msgspec.field(name="biz_opaque_callback_data")


_events, _sends = msgspec.json.Decoder(_Event), msgspec.json.Decoder(_Send)


class Outside:
    """One run after another. Instants are `time.perf_counter`'s, which all processes of a machine share."""

    def __init__(self, spec: Facts) -> None:
        self._signer = Signer(spec["app_secret"].encode())
        self._key = spec["key"]
        self._bubble_s: float = spec["bubble_s"]
        self.meta, self.bot = Pool(), Pool()
        self._loop = asyncio.get_running_loop()
        self._n = 0
        self._ticking: asyncio.Task[None] | None = None
        self._calls = 0
        self.clear()

    def clear(self) -> None:
        """Forget the last run."""
        self.seen: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
        """When it was due, when it was there."""
        self.at_graph: list[float] = []
        self.refused = self.again = 0
        self._owed: dict[str, float] = {}
        """Webhooks that have not reached the bot: when each was due, by its message and status."""
        self._asked: dict[str, float] = {}
        """Sends the gateway was asked for and Graph has not seen: when the text was due, by the bot's own name."""
        self._posted = 0

    # Meta

    def begin(self, rate: float) -> None:
        """Let customers write from now on, so that `rate` webhooks a second come of it."""
        self.clear()
        self._ticking = asyncio.create_task(self._write(rate / WEBHOOKS_OF_A_TEXT), name="customers")

    def end(self) -> None:
        """Let them write no more; what they have begun goes on."""
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None

    async def _write(self, rate: float) -> None:
        began, made = time.perf_counter(), 0
        while True:
            while made / rate <= time.perf_counter() - began:
                due = began + made / rate
                body = webhook(self._n, int(time.time()))
                self._post(f"wamid.HBgNFDNB{self._n:012}", body, due)
                made, self._n = made + 1, self._n + 1
            await asyncio.sleep(TICK_S)

    def _post(self, name: str, body: bytes, due: float) -> None:
        self._owed[name] = due
        self._posted += 1
        head = (
            "POST /webhooks/meta/main HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"X-Hub-Signature-256: {self._signer.sign(body)}\r\nContent-Length: {len(body)}\r\n\r\n"
        )

        def done(status: int) -> None:
            self.seen["webhook"].append((due, time.perf_counter()))
            self.refused += status != 200

        self.meta.call(head.encode() + body, done)

    def _status(self, wamid: str, to: str, opaque: str, status: str, due: float) -> None:
        body = (
            f'{{"object":"whatsapp_business_account","entry":[{{"id":"{WABA}","changes":[{{"value":{{'
            '"messaging_product":"whatsapp","metadata":{"display_phone_number":"15550001000",'
            f'"phone_number_id":"{NUMBER}"}},"statuses":[{{"id":"{wamid}","status":"{status}",'
            f'"timestamp":"{int(time.time())}","recipient_id":"{to}","recipient_user_id":"DE.1{to}",'
            f'"biz_opaque_callback_data":{json.dumps(opaque)}}}]}},"field":"messages"}}]}}]}}'
        ).encode()
        self._post(f"{opaque.split('|', 2)[1]} {status}", body, due)

    # Graph

    def graph(self, path: str, body: bytes, connection: Taken) -> None:
        """Take a call; its answer and its statuses come later."""
        if not path.endswith("/messages"):
            connection.answer(b'{"data":[]}')
            return
        now = time.perf_counter()
        send = _sends.decode(body)
        self.at_graph.append(now)
        self._calls += 1
        wamid = f"wamid.HBgNGRAPH{self._calls:040}"
        own = send.opaque.split("|", 4)[4]
        due = self._asked.pop(own, None)
        if due is not None and own.endswith(".0"):
            self.seen["graph"].append((due, now))

        def answer() -> None:
            connection.answer(
                f'{{"messaging_product":"whatsapp","contacts":[{{"input":"{send.to}","wa_id":"{send.to}"}}],'
                f'"messages":[{{"id":"{wamid}"}}]}}'.encode()
            )
            for status, after_s in STATUSES_S:
                due = time.perf_counter() + after_s
                self._loop.call_later(after_s, self._status, wamid, send.to, send.opaque, status, due)

        self._loop.call_later(GRAPH_S, answer)

    # The bot

    def event(self, _: str, body: bytes, connection: Taken) -> None:
        """Take an event at once; answer a text afterwards."""
        connection.answer()
        now = time.perf_counter()
        value = _events.decode(body).entry[0].changes[0].value
        for item in value.messages or value.statuses:
            name = f"{item.id} {item.status}" if item.status else item.id
            due = self._owed.pop(name, None)
            if due is None:
                self.again += 1
                continue
            self.seen["bot"].append((due, now))
            if value.messages:
                for bubble in range(3 + (int(item.id[-12:]) % 3 == 0)):
                    own = f"{item.id[-12:]}.{bubble}"
                    self._loop.call_later(bubble * self._bubble_s, self._say, item.sender, own, due)

    def _say(self, to: str, own: str, due: float) -> None:
        body = (
            f'{{"messaging_product":"whatsapp","to":"{to}","type":"text","biz_opaque_callback_data":"{own}",'
            '"text":{"body":"Your order left our warehouse and arrives tomorrow."}}'
        ).encode()
        head = (
            f"POST /v26.0/{NUMBER}/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nIdempotency-Key: {own}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._asked[own] = due

        def done(status: int) -> None:
            if status != 200:
                self.refused += 1
                self._asked.pop(own, None)

        self.bot.call(head.encode() + body, done)

    # What came of it

    def backlog(self) -> Facts:
        """What is due by now and has not arrived."""
        now = time.perf_counter()
        return {
            "backlog_webhooks": sum(due <= now for due in self._owed.values()),
            "backlog_sends": len(self._asked),
        }

    async def report(self, since: float, until: float, drain_s: float, killed_at: float) -> Facts:
        """End the load, wait for what is under way, and tell of what was due from `since` to `until`."""
        left = self.backlog()
        self.end()
        patience = time.perf_counter() + drain_s
        longest_s = 4 * self._bubble_s + GRAPH_S + STATUSES_S[-1][1]
        quiet_at = time.perf_counter() + longest_s
        while time.perf_counter() < patience:
            if time.perf_counter() > quiet_at and not self._owed and not self._asked:
                break
            await asyncio.sleep(LOOK_S)
        facts: Facts = {
            **left,
            "posted": self._posted,
            "refused": self.refused,
            "again": self.again,
            "lost_webhooks": len(self._owed),
            "lost_sends": len(self._asked),
            "sends_per_s": sum(since <= at < until for at in self.at_graph) / (until - since),
        }
        for name in NAMES:
            took = sorted(there - due for due, there in self.seen[name] if since <= due < until)
            facts[f"{name}_per_s"] = len(took) / (until - since)
            facts[f"{name}_p50_ms"] = median(took) * 1e3 if took else 0.0
            facts[f"{name}_p99_ms"] = took[len(took) * 99 // 100] * 1e3 if took else 0.0
            facts[f"{name}_max_s"] = took[-1] if took else 0.0
        if killed_at:
            late = [there for due, there in self.seen["bot"] if there > killed_at and there - due > LATE_S]
            facts["flows_again_s"] = max((there for there in late), default=killed_at) - killed_at
            late = [there for due, there in self.seen["graph"] if there > killed_at and there - due > LATE_S]
            soon = [there for there in late if there < killed_at + DOUBT_S]
            facts["sends_flow_again_s"] = max(soon, default=killed_at) - killed_at
            facts["after_doubt"] = len(late) - len(soon)
        return facts


async def play(spec: Facts) -> AsyncIterator[Part]:
    """Graph at `graph_port`, the bot at `bot_port`; {"open"} connects to receiver and gateway, the rest is a run's."""
    outside = Outside(spec)
    loop = asyncio.get_running_loop()
    servers: Sequence[asyncio.Server] = [
        await loop.create_server(lambda: Taken(outside.graph), "127.0.0.1", spec["graph_port"], backlog=4_096),
        await loop.create_server(lambda: Taken(outside.event), "127.0.0.1", spec["bot_port"], backlog=4_096),
    ]

    async def answer(question: Facts) -> Facts:
        if "open" in question:
            await outside.meta.open(question["open"][0], CONNECTIONS)
            await outside.bot.open(question["open"][1], CONNECTIONS)
        elif "rate" in question:
            outside.begin(question["rate"])
        else:
            return await outside.report(**question)
        return {}

    try:
        yield Part({}, answer)
    finally:
        outside.end()
        outside.meta.close()
        outside.bot.close()
        for server in servers:
            server.close()


if __name__ == "__main__":
    be(play)
