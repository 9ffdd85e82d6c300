"""Why a message goes where it goes, as a tree JSON can say: for `depesche route explain`, and over HTTP."""

from __future__ import annotations

from typing import Any

from broker.core.debounce import debounce_of
from broker.core.routing import Case, Judged, Routed
from broker.inspect import instant
from schemas.records import Item
from schemas.settings import Settings


def as_tree(about: Case, judged: list[Judged], routed: Routed, settings: Settings) -> dict[str, Any]:
    """Return an explanation as a tree JSON can say."""
    return {
        "what": what(about.item),
        "number": about.item.phone_number_id,
        "received_at": instant(about.item.received_at),
        "sinks": list(routed.sinks),
        "tags": list(routed.tags),
        "reply": None if routed.reply is None else routed.reply.rule,
        "holder": routed.holder,
        "language": routed.language,
        "debounce": debounces(routed, settings),
        "routes": [
            {
                "name": rule.name,
                "verdict": verdict,
                "conditions": [each._asdict() for each in conditions],
            }
            for rule, verdict, conditions in judged
        ],
    }


def debounces(routed: Routed, settings: Settings) -> dict[str, dict[str, int] | None]:
    """Return, of each sink where a route or the sink itself says something of joining, how events are joined (None: not
    at all), in the words of the settings."""
    found: dict[str, dict[str, int] | None] = {}
    by_name = {sink.name: sink for sink in settings.sinks}
    for sink in (by_name[name] for name in routed.sinks if name in by_name):
        said = routed.debounce_of(sink.name)
        joined = debounce_of(said, sink)
        if joined is not None:
            found[sink.name] = {
                "debounce_ms": joined.silence_ms,
                "debounce_events_max": joined.events_max,
                "debounce_wait_ms_max": joined.wait_ms_max,
            }
        elif said is not None:
            found[sink.name] = None
    return found


def what(item: Item) -> str:
    """Say what an item is."""
    return f"{item.kind} of type {item.message_type}" if item.message_type else item.kind
