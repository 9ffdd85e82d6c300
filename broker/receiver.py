"""Webhooks in: `GET` and `POST /webhooks/meta/{app}`. A 200 means that every item of the POST is on a log.

`Receiver.begin` takes a POST without any socket: size, signature over the raw bytes, split, append, answer; `accept`
waits for the answer. It waits for no worker. `receiver_app` is the port around it: a POST that came whole goes to
`begin` directly, all else (and every refusal that closes) through aiohttp.

| what came                                            | answer                                                     |
| ---------------------------------------------------- | ---------------------------------------------------------- |
| signed, and now durable; also what is no webhook     | 200; what does not parse is a dead letter                  |
| no signature, a wrong one, two of them               | 401, empty                                                 |
| an app nobody configured; another path               | 404                                                        |
| a method that is neither                             | 405                                                        |
| a body too slow, broken off; what is no HTTP         | 408, 400, 400                                              |
| more than `body_bytes_max`                           | 413                                                        |
| `Content-Encoding`                                   | 415: the signature is over bytes, and bombs are compressed |
| not durable in time; more bytes in flight than bound | 503 and `Retry-After`: Meta keeps it and comes again       |
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple
from urllib.parse import parse_qs

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage

from broker import failpoints, metrics
from broker.clock import Clock
from broker.core.signature import Signer, verify
from broker.core.webhook import Bad, Keyed, Split, for_sinks, split
from broker.errors import DepescheError, LogUnavailable
from broker.listener import Answer, Begin, Listener, Refused, read_body
from broker.log.catalogue import ACCOUNTS, CONVERSATIONS, DEADLETTERS, TRAFFIC
from broker.log.contract import RECORD_BYTES_MAX, Draft, LogEngine
from broker.secrets import Secret
from schemas.records import DeadLetter, InboundDigest, Item, encode
from schemas.settings import Settings

logger = logging.getLogger("depesche.receiver")

PATH = "/webhooks/meta/"

DIGEST_S = 0.1
"""How often senders learn what came in for their numbers; what they do not know yet they allow for."""
DIGEST_TIMEOUT_S = 1.0
"""A digest older than this is of no use to anybody."""
INBOUND_AGE_MS_MAX = 60_000
"""Older messages come from Meta's queue after an outage and were counted against the tier when they were written."""

FAILING_S_MAX = 15.0
"""Appends that fail for so long on end take us out of service."""

CHALLENGE_CHARS_MAX = 256
"""Meta's are ten digits."""

BATCH_BYTES_MAX = 1024 * 1024
"""Bodies whose items are appended in one call: beyond it the call's own cost no longer counts."""

DEAD_LETTER_BYTES = RECORD_BYTES_MAX - 16_384
"""What of a body one dead letter holds, its other fields beside it; a larger body becomes several."""

_PLAIN = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
_ACCEPTED = Answer(200, result="accepted")
_NO_SIGNATURE = Answer(401, result="bad_signature")
_NO_APP = Answer(404, result="bad_request")
_NO_METHOD = Answer(405, {"Allow": "GET, POST"}, result="bad_request")
_TOO_LARGE = Answer(413, result="too_large", close=True)
_ENCODED = Answer(415, result="bad_request", close=True)
_OVERLOADED = Answer(503, {"Retry-After": "1"}, result="overloaded", close=True)
_NOT_DURABLE = Answer(503, {"Retry-After": "5"}, result="log_unavailable")


class _Post(NamedTuple):
    """A POST whose items wait to be durable."""

    size: int
    began: float
    parts: Split
    answered: Callable[[Answer], None]


class _Batch:
    """What the POSTs of one turn of the loop append together: a log's work is per call, not per record."""

    def __init__(self) -> None:
        self.drafts: dict[str, list[Draft]] = {CONVERSATIONS: [], ACCOUNTS: [], DEADLETTERS: []}
        self.bytes = 0
        self.posts: list[_Post] = []


class Receiver:
    """Takes webhooks. Owns the bytes in flight, the digests of inbound traffic, and nothing that outlives it."""

    def __init__(
        self,
        settings: Settings,
        app_secrets: Mapping[str, Sequence[Secret]],
        verify_tokens: Mapping[str, Secret],
        engine: LogEngine,
        clock: Clock,
    ) -> None:
        """Prepare. `app_secrets`: by app, the current one first."""
        self._settings = settings.receiver
        self._engine = engine
        self._clock = clock
        self._portfolios = {number.phone_number_id: number.portfolio for number in settings.numbers}
        self._slots = {number.phone_number_id: number.slot for number in settings.numbers}
        self._secrets: dict[str, list[Signer]] = {}
        self._tokens: dict[str, bytes] = {}
        self.use_secrets(app_secrets, verify_tokens)
        self._in_flight_bytes = 0
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._batch: _Batch | None = None
        self._appends: dict[asyncio.Task[None], None] = {}
        self._inbound: dict[str, int] = {}
        self._digests: asyncio.Task[None] | None = None
        self._failing_since: float | None = None
        self.draining = False
        self._overloaded = False
        self._requests = {result: metrics.webhook_requests.labels(result) for result in metrics.WEBHOOK_RESULTS}
        self._durations = {result: metrics.webhook_request_duration.labels(result) for result in self._requests}
        self._items = {kind: metrics.webhook_items.labels(kind) for kind in metrics.ITEM_KINDS}
        self._ages = {kind: metrics.webhook_item_age.labels(kind) for kind in metrics.ITEM_KINDS}
        self._slot_matches = [metrics.webhook_secret_matches.labels(slot) for slot in ("current", "previous")]
        self._backpressure = metrics.backpressure_active.labels("receiver")

    def use_secrets(self, app_secrets: Mapping[str, Sequence[Secret]], verify_tokens: Mapping[str, Secret]) -> None:
        """Replace every app's secrets and verify token at once: at the start, and when their files have changed."""
        self._secrets = {app: [Signer(secret.reveal().encode()) for secret in of] for app, of in app_secrets.items()}
        self._tokens = {app: token.reveal().encode() for app, token in verify_tokens.items()}

    async def start(self) -> None:
        """Begin to tell senders about inbound traffic."""
        self._digests = asyncio.create_task(self._digest_for_ever(), name="receiver digests")

    async def stop(self, timeout_s: float = 10.0) -> None:
        """Finish the appends under way, within the timeout. Never raises."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d webhooks were not durable after %.0f s; Meta keeps them", self._under_way, timeout_s)
        if self._digests is not None:
            self._digests.cancel()
            await asyncio.wait([self._digests], timeout=DIGEST_TIMEOUT_S)

    def why_not_ready(self) -> str | None:
        """Return why this receiver should get no webhooks, None when it should."""
        if self.draining:
            return "draining"
        if self._failing_since is not None:
            failing_s = self._clock.monotonic() - self._failing_since
            if failing_s > FAILING_S_MAX:
                return f"appends have been failing for {failing_s:.0f} s"
        return None

    def knows(self, app: str) -> bool:
        """Whether an app is configured."""
        return app in self._secrets

    def reserve(self, size: int) -> bool:
        """Take room for bytes read and not yet on a log (or give it back); False when there is none.

        Bodies that are only being read may take half of it: otherwise a few that never end would keep the rest out.
        """
        if size > 0 and self._in_flight_bytes + size > self._settings.bytes_in_flight_max // 2:
            return False
        self._in_flight_bytes += size
        metrics.webhook_inflight_bytes.set(self._in_flight_bytes)
        return True

    def handshake(self, app: str, query: str) -> Answer:
        """Answer Meta's `GET`: `query` is the raw query string, since its names hold dots."""
        token = self._tokens.get(app)
        if token is None:
            return _NO_APP
        try:
            given = parse_qs(query, max_num_fields=16)
        except ValueError:
            return Answer(400, result="bad_request")
        mode, challenge, offered = (given.get(f"hub.{name}", [""])[0] for name in ("mode", "challenge", "verify_token"))
        right = hmac.compare_digest(offered.encode("utf-8", "replace"), token)
        if mode != "subscribe" or not right or not 0 < len(challenge) <= CHALLENGE_CHARS_MAX:
            return Answer(403, result="bad_request")
        return Answer(200, _PLAIN, challenge.encode("utf-8", "replace"))

    async def accept(self, app: str, headers: Mapping[str, str], body: bytes, began: float | None = None) -> Answer:
        """Take one POST and return its answer. See `begin`."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def answered(answer: Answer) -> None:
            if not future.done():
                future.set_result(answer)

        self.begin(app, headers, body, answered, began)
        return await future

    def begin(
        self,
        app: str,
        headers: Mapping[str, str],
        body: bytes,
        answered: Callable[[Answer], None],
        began: float | None = None,
    ) -> None:
        """Take one POST; `answered` is told its answer once: at once, or when the append has returned. Never raises.

        `headers` are named as Meta names them, or in a mapping that ignores case; `began`: the monotonic second its
        first byte came.
        """
        began = self._clock.monotonic() if began is None else began
        size = len(body)
        self._under_way += 1
        self._idle.clear()
        self._in_flight_bytes += size
        failpoints.reached("receiver.read")
        refusal = self._refusal(app, headers, body)
        if refusal is not None:
            self._end(size, refusal, answered)
            self.count(refusal, began)
            return
        failpoints.reached("receiver.verified")
        received_at = self._clock.now()
        try:
            parts = split(body, app, received_at, self._portfolios)
        except Exception:  # a bug of ours must not bring the body back for seven days
            logger.exception("a webhook of app %s could not be split; it is a dead letter, whole", app)
            parts = Split([], [], [Bad("crash", "the split crashed", body)])
        self._gather(_Post(size, began, parts, answered), received_at)

    def _end(self, size: int, answer: Answer, answered: Callable[[Answer], None]) -> None:
        self._in_flight_bytes -= size
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()
        try:
            answered(answer)
        except Exception:  # one connection's trouble is not its neighbours'
            logger.exception("an answer to a webhook could not be given")

    def count(self, answer: Answer, began: float) -> None:
        """Count a POST when its answer is decided; `began` is monotonic."""
        self._requests[answer.result].inc()
        self._durations[answer.result].observe(self._clock.monotonic() - began)

    def _refusal(self, app: str, headers: Mapping[str, str], body: bytes) -> Answer | None:
        """Return why a POST is not taken; None when it is."""
        secrets = self._secrets.get(app)
        if secrets is None:
            return _NO_APP
        if "Content-Encoding" in headers:
            return _ENCODED
        if len(body) > self._settings.body_bytes_max:
            return _TOO_LARGE
        if self._in_flight_bytes > self._settings.bytes_in_flight_max and self._under_way > 1:
            self._overloaded = True
            self._backpressure.set(1)
            return _OVERLOADED
        if self._overloaded:
            self._overloaded = False
            self._backpressure.set(0)
        matched = verify(body, headers.get("X-Hub-Signature-256"), secrets)
        if matched is None:
            return _NO_SIGNATURE
        self._slot_matches[min(matched, 1)].inc()
        metrics.webhook_body_bytes.observe(len(body))
        return None

    def _gather(self, post: _Post, received_at: int) -> None:
        """Put what a POST holds into the batch that this turn of the loop appends."""
        parts = post.parts
        batch = self._batch
        if batch is None:
            batch = self._batch = _Batch()
            asyncio.get_running_loop().call_soon(self._begin_append, batch)
        batch.bytes += post.size
        batch.posts.append(post)
        drafts = batch.drafts
        if parts.accounts or parts.malformed:
            dead = [draft for bad in parts.malformed for draft in self._dead_letters(bad, b"", received_at)]
            drafts[ACCOUNTS] += self._drafts(parts.accounts, dead, received_at)
            # Senders read `accounts`; sinks get the same from the customer stage. What no record holds is `dead`.
            drafts[CONVERSATIONS] += self._drafts(for_sinks(parts.accounts, self._portfolios), [], received_at)
            drafts[DEADLETTERS] += dead
        drafts[CONVERSATIONS] += self._drafts(parts.conversations, drafts[DEADLETTERS], received_at)
        if batch.bytes > BATCH_BYTES_MAX:
            self._batch = None

    def _begin_append(self, batch: _Batch) -> None:
        if self._batch is batch:
            self._batch = None
        metrics.webhook_inflight_bytes.set(self._in_flight_bytes)
        failpoints.reached("receiver.split")
        task = asyncio.get_running_loop().create_task(self._append(batch), name="receiver append")
        self._appends[task] = None
        task.add_done_callback(self._appends.pop)

    async def _append(self, batch: _Batch) -> None:
        due = self._clock.monotonic() + self._settings.append_timeout_s
        answer = _NOT_DURABLE
        try:
            for log, drafts in batch.drafts.items():
                if drafts:
                    await self._engine.append(log, drafts, max(0.0, due - self._clock.monotonic()))
            answer = _ACCEPTED
            self._failing_since = None
            failpoints.reached("receiver.appended")
        except LogUnavailable:
            if self._failing_since is None:
                self._failing_since = self._clock.monotonic()
        except Exception:  # Meta keeps what we could not keep
            logger.exception("an append of webhooks crashed; they are answered 503")
        finally:
            for post in batch.posts:
                self._end(post.size, answer, post.answered)
            failpoints.reached_soon("receiver.answered")
            metrics.webhook_inflight_bytes.set(self._in_flight_bytes)
            self._count_batch(batch, answer)

    def _count_batch(self, batch: _Batch, answer: Answer) -> None:
        """Count the POSTs of a batch, and their items where they are on a log now: together, counting is dear."""
        now = self._clock.monotonic()
        self._requests[answer.result].inc(len(batch.posts))
        observe = self._durations[answer.result].observe
        kinds: dict[str, int] = {}
        for post in batch.posts:
            observe(now - post.began)
            if answer is not _ACCEPTED:
                continue
            for bad in post.parts.malformed:
                kinds["malformed"] = kinds.get("malformed", 0) + 1
                metrics.dead_letters.labels("", bad.reason).inc()
            for items in (post.parts.conversations, post.parts.accounts):
                for _, item in items:
                    kinds[item.kind] = kinds.get(item.kind, 0) + 1
                    if item.at:
                        self._ages[item.kind].observe(max(0.0, (item.received_at - item.at) / 1_000))
        for kind, count in kinds.items():
            self._items[kind].inc(count)

    def _drafts(self, items: list[Keyed], dead: list[Draft], at: int) -> list[Draft]:
        """Encode items for their log. One that no record can hold goes to `dead`, in pieces."""
        drafts: list[Draft] = []
        for key, item in items:
            if item.kind == "message":
                self._note_inbound(item)
            value = encode(item)
            if len(key) + len(value) > RECORD_BYTES_MAX:
                dead += self._dead_letters(Bad("too_large", f"{item.kind} of {len(value)} bytes", item.body), key, at)
            else:
                drafts.append(Draft(key, value))
        return drafts

    def _dead_letters(self, bad: Bad, key: bytes, at: int) -> list[Draft]:
        key = key[:1_024]
        pieces = [bad.body[start : start + DEAD_LETTER_BYTES] for start in range(0, len(bad.body), DEAD_LETTER_BYTES)]
        drafts = []
        for number, piece in enumerate(pieces or [b""], 1):
            detail = bad.detail if len(pieces) < 2 else f"{bad.detail}; part {number} of {len(pieces)}"
            letter = DeadLetter("", -1, -1, key, piece, "receiver", bad.reason, detail, 1, at)
            drafts.append(Draft(key, encode(letter)))
        return drafts

    # Inbound traffic, which counts against a number's tier

    def _note_inbound(self, item: Item) -> None:
        number = item.phone_number_id
        if number in self._slots and (not item.at or item.received_at - item.at < INBOUND_AGE_MS_MAX):
            self._inbound[number] = self._inbound.get(number, 0) + 1

    async def _digest_for_ever(self) -> None:
        while True:
            await asyncio.sleep(DIGEST_S)
            if self._inbound:
                counts, self._inbound = self._inbound, {}
                at = self._clock.now()
                drafts = [
                    Draft(number.encode(), encode(InboundDigest(number, count, at)), self._slots[number])
                    for number, count in counts.items()
                ]
                try:
                    await self._engine.append(TRAFFIC, drafts, DIGEST_TIMEOUT_S)
                except DepescheError as error:  # loss is harmless: senders keep room for what they do not know
                    logger.debug("a digest of inbound traffic was lost: %s", type(error).__name__)


_REFUSALS = {413: _TOO_LARGE, 503: _OVERLOADED}


def receiver_app(receiver: Receiver, settings: Settings, clock: Clock) -> Listener:
    """Return the public port of a receiver."""
    bytes_max = settings.receiver.body_bytes_max

    async def handle(request: web.BaseRequest) -> Answer:
        path, _, query = request.raw_path.partition("?")
        app = path[len(PATH) :] if path.startswith(PATH) else ""
        if request.method == "GET":
            return receiver.handshake(app, query)
        if request.method != "POST":
            return _NO_METHOD
        began = clock.monotonic()
        answer: Answer | None = None
        headers = request.headers
        if not receiver.knows(app):
            answer = _NO_APP._replace(close=True)
        elif "Content-Encoding" in headers:
            answer = _ENCODED
        elif len(headers.getall("X-Hub-Signature-256", ())) != 1:
            answer = _NO_SIGNATURE._replace(close=True)
        else:
            try:
                body = await read_body(request, bytes_max, receiver.reserve)
            except Refused as refusal:
                answer = _REFUSALS.get(refusal.status) or Answer(refusal.status, result="bad_request", close=True)
        if answer is not None:
            receiver.count(answer, began)
            return answer
        return await receiver.accept(app, headers, body, began)

    begins: dict[str, Begin] = {}

    def direct(message: RawRequestMessage) -> Begin | None:
        headers = message.headers
        path = message.path
        app = path[len(PATH) :] if path.startswith(PATH) else ""
        if (
            message.method != "POST"
            or not receiver.knows(app)
            or "Content-Encoding" in headers
            or "Expect" in headers
            or len(headers.getall("X-Hub-Signature-256", ())) != 1
        ):
            return None
        begin = begins.get(app)
        if begin is None:
            begin = begins[app] = partial(receiver.begin, app)
        return begin

    def malformed() -> Answer:
        answer = Answer(400, result="bad_request", close=True)
        receiver.count(answer, clock.monotonic())
        return answer

    return Listener("receiver", handle, settings.receiver.host, settings.receiver.port, malformed, direct)
