"""Every documented webhook on its whole way to a bot: what a sink of kind `meta` is posted is what Meta wrote.

The receiver's split, the customer's decision and the sink's rendering, over all samples. What differs is said here:
one update in each POST, the sink's own signature, urls of media.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.core.customer import Deliver, decide
from broker.core.customer_context import context_of
from broker.core.customer_state import Customer
from broker.core.media_url import PREFIX, from_ours, media_secret, public_url_of
from broker.core.moves import Append
from broker.core.webhook import for_sinks, split
from broker.secrets import Secret
from schemas.ids import CustomerKey
from schemas.records import ConversationRecord
from schemas.settings import Number, Route, SecretSource, Settings, SinkSettings, Then, When
from workers.sinks import Request, Target

SAMPLES = sorted((Path(__file__).parent / "webhooks").glob("*.json"))
NUMBER = "106540352242922"
NOW = 1_789_400_000_000
SECRET = "the bot's own app secret"
MEDIA = media_secret("EAAtoken")
SINK = SinkSettings(
    name="bot",
    kind="meta",
    url="https://bot.example/",
    secret=SecretSource(env="SECRET"),
    account_updates=True,
)
SETTINGS = Settings(
    numbers=[Number(phone_number_id=NUMBER, waba_id="102290129340398", token=SecretSource(env="TOKEN"), slot=3)],
    sinks=[SINK],
    routes=[
        Route(name="named", when=When(types=["status", "standby"]), then=Then(sinks=["bot"])),
        Route(name="all", then=Then(sinks=["bot"])),
    ],
)
CONTEXT = context_of(SETTINGS, {NUMBER: MEDIA})

Path_ = tuple[str, ...]


class Spelled(str):
    """A number by its spelling, so that 7.90 is not 7.9."""


def exact(body: bytes) -> Any:
    return json.loads(body, parse_float=Spelled, parse_int=Spelled)


def as_metas(value: Any) -> Any:
    """The same with Meta's urls where ours stand, each checked for being the one."""
    match value:
        case dict():
            return {name: as_metas(member) for name, member in value.items()}
        case list():
            return [as_metas(member) for member in value]
        case str() if value.startswith(public_url_of(SETTINGS.gateway) + PREFIX):
            medium = from_ours(NUMBER, value.rpartition("/")[2], MEDIA)
            assert medium is not None
            return medium.url
    return value


def leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, str]]:
    """Every scalar under its names; positions in lists do not count, since lists are taken apart."""
    match value:
        case dict() if value:
            for name, member in value.items():
                yield from leaves(member, (*path, name))
        case list():
            for member in value:
                yield from leaves(member, (*path, "[]"))
        case _:
            yield path, f"{type(value).__name__} {value}"


def objects(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, tuple[str, ...]]]:
    """The names of every object's members, in their order."""
    match value:
        case dict():
            yield path, tuple(value)
            for name, member in value.items():
                yield from objects(member, (*path, name))
        case list():
            for member in value:
                yield from objects(member, (*path, "[]"))


def posts(body: bytes) -> list[Request]:
    """What the bot is posted of a webhook, twice the same: at once, and again an hour later."""
    parts = split(body, "brand", NOW, {NUMBER: "main"})
    assert not parts.malformed
    target, found = Target(SINK, [Secret(SECRET)]), []
    customers: dict[CustomerKey, Customer | None] = {}
    keyed = (*parts.conversations, *for_sinks(parts.accounts, {NUMBER: "main"}))
    log = deque[tuple[str, ConversationRecord]]((each.key.decode(), each.item) for each in keyed)
    while log:
        name, record = log.popleft()
        key = CustomerKey(name)
        customers[key], commands = decide(customers.get(key), key, record, CONTEXT, NOW)
        log += ((command.key, command.record) for command in commands if isinstance(command, Append))
        for event in (command.event for command in commands if isinstance(command, Deliver)):
            request = target.render(event, NOW)
            assert request == target.render(event, NOW + 3_600_000)
            found.append(request)
    return found


@pytest.mark.parametrize("spelling", ["as it stands", "compact", "not escaped"])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_a_sink_is_posted_what_meta_wrote(sample: Path, spelling: str) -> None:
    """Nothing lost, nothing added, nothing moved; ASCII, and signed over exactly these bytes."""
    body = sample.read_bytes()
    if spelling != "as it stands":
        body = json.dumps(json.loads(body), separators=(",", ":"), ensure_ascii=spelling == "compact").encode(
            "utf-8", "surrogatepass"
        )
    requests = posts(body)
    assert requests
    told = [as_metas(exact(request.body)) for request in requests]
    original = exact(body)
    assert {leaf for each in told for leaf in leaves(each)} == set(leaves(original))
    orders = list(objects(original))
    for each in told:
        for path, names in objects(each):
            assert any(path == other and tuple(n for n in order if n in names) == names for other, order in orders)
    assert len({request.body for request in requests}) == len(requests)
    for request in requests:
        assert request.body.isascii()
        assert request.headers["Content-Length"] == str(len(request.body))
        signature = hmac.new(SECRET.encode(), request.body, hashlib.sha256).hexdigest()
        assert request.headers["X-Hub-Signature-256"] == f"sha256={signature}"
        assert "Transfer-Encoding" not in request.headers


def test_there_are_all_of_them() -> None:
    """A loop over nothing would prove nothing."""
    assert len(SAMPLES) == 79


def test_an_update_alone_in_its_post_is_the_same_bytes() -> None:
    """Unless it has a medium: blanks and line feeds included."""
    alone = []
    for sample in SAMPLES:
        parts = split(sample.read_bytes(), "brand", NOW, {})
        if len(parts.conversations) + len(parts.accounts) == 1:
            alone.append(sample)
    assert len(alone) > 60
    for sample in alone:
        body = sample.read_bytes()
        if b"lookaside" not in body and body.isascii():
            assert posts(body)[0].body == body
