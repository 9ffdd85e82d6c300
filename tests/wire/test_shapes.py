"""Every documented payload is read by our types, and says what the sample's file name says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from schemas import webhook
from schemas.graph import Answer, decode_answer

HERE = Path(__file__).parent
WEBHOOKS = sorted((HERE / "webhooks").glob("*.json"))
RESPONSES = sorted((HERE / "responses").glob("*.json"))

LISTS: dict[str, type[Any]] = {
    "messages": webhook.Message,
    "statuses": webhook.Status,
    "message_echoes": webhook.Echo,
    "calls": webhook.Call,
    "user_preferences": webhook.Preference,
    "groups": webhook.Group,
    "state_sync": webhook.StateSync,
    "contacts": webhook.Contact,
    "history": webhook.Other,
    "errors": webhook.Other,
    "user_actions": webhook.Other,
}


def items_of(path: Path) -> Iterator[tuple[type[Any], dict[str, Any]]]:
    """Every item of a sample, with the type that reads it."""
    for entry in json.loads(path.read_bytes())["entry"]:
        for change in entry["changes"]:
            value = change["value"].get("standby", change["value"])
            for name, kind in LISTS.items():
                if isinstance(value.get(name), list):
                    yield from ((kind, element) for element in value[name])


def test_all_samples_are_there() -> None:
    """A loop over nothing would prove nothing."""
    assert (len(WEBHOOKS), len(RESPONSES)) == (79, 35)
    read = Counter(kind.__name__ for path in WEBHOOKS for kind, _ in items_of(path))
    assert set(read) == {kind.__name__ for kind in LISTS.values()}
    assert read["Message"] >= 37
    assert read["Status"] >= 30


@pytest.mark.parametrize("path", WEBHOOKS, ids=lambda path: path.stem)
def test_a_webhooks_items_are_read_by_their_types(path: Path) -> None:
    """What a type names it reads, under Meta's own spelling."""
    for kind, element in items_of(path):
        item = msgspec.json.decode(json.dumps(element), type=kind)
        for ours, theirs in zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True):
            assert getattr(item, ours) == element.get(theirs)


@pytest.mark.parametrize("path", RESPONSES, ids=lambda path: path.stem)
def test_a_response_is_read_and_written_as_it_came(path: Path) -> None:
    """What a type names survives both ways; an error's code is the one its file is named after."""
    said = json.loads(path.read_bytes())
    answer = decode_answer(path.read_bytes())
    if path.stem.startswith("err_"):
        assert answer.error is not UNSET
        assert answer.error.code == int(path.stem.split("_")[1])
    elif "messages" in said:
        assert answer.messages is not UNSET
        assert answer.messages[0].id == said["messages"][0]["id"]
    written = json.loads(msgspec.json.encode(answer))
    assert written == {name: said[name] for name in said if name in Answer.__struct_fields__}
