"""What stands on the customers' phones: chats of bubbles with their ticks, and behind each bubble what made it.

Made from the journal alone, entry by entry, so that a sandbox that was started again shows what it showed before.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from msgspec import Struct, field

from broker.sandbox.journal import Called, Entry, Introduced, Posted, Switched, Ticked, Webhook, Wrote
from broker.sandbox.limits import WINDOW_MS
from broker.sandbox.payload import unfolded
from broker.sandbox.postbox import envelope
from broker.sandbox.shapes import Json
from broker.sandbox.templates import Templates

BUBBLES_MAX = 5_000
"""Bubbles of all chats together; the oldest go. A phone shows some dozens."""

CHAT_BUBBLES_MAX = 300
POSTS_MAX = 20
"""POSTs shown of one webhook that keeps coming back."""

TRAFFIC_MAX = 200
"""Lines of the newest calls, webhooks and switches."""

TYPING_MS = 25_000
"""A typing indicator ends with the reply, or after this. Source: Meta Cloud API, "Typing indicators"."""

RANK = {"": 0, "sent": 1, "delivered": 2, "read": 3, "failed": 4}

Publish = Callable[[str, Json], None]
"""Takes the name of an event and its data."""


class Bubble(Struct, omit_defaults=True):
    """One message on a phone. `by`: "customer" or "business". `status` of a customer's own: "sent", "delivered" once
    its webhook was answered with 200, "read". `reactions`: by whom, which. `body`: what the type's object holds, of a
    template what it looks like."""

    id: str
    number: str
    person: str
    by: str
    at: int
    type: str
    body: Any
    status: str = ""
    quoted: str = ""
    code: int = 0
    details: str = ""
    fault: str = ""
    send: str = ""
    reactions: dict[str, str] = field(default_factory=dict)


class Behind(Struct):
    """What made a bubble: Graph calls, and webhook items with the POSTs that carried them."""

    calls: list[Called] = field(default_factory=list)
    webhooks: list[tuple[Webhook, list[Posted]]] = field(default_factory=list)


class Chat(Struct):
    """One customer and one number."""

    number: str
    person: str
    bubbles: OrderedDict[str, Bubble] = field(default_factory=OrderedDict)
    window_closes_at: int = 0
    typing_until: int = 0


class History:
    """The chats. `publish` hears what changes on a phone: bubble, typing, person, traffic, switch."""

    def __init__(self, templates: Templates, publish: Publish = lambda name, data: None) -> None:
        self._templates = templates
        self.publish = publish
        self._chats: dict[tuple[str, str], Chat] = {}
        self._bubbles: OrderedDict[str, Bubble] = OrderedDict()
        self._behind: dict[str, Behind] = {}
        self._items: dict[int, tuple[str, list[Posted]]] = {}
        self.traffic: OrderedDict[int, Json] = OrderedDict()

    def see(self, entry: Entry) -> None:
        """Take one entry of the journal in."""
        match entry:
            case Wrote():
                self._wrote(entry)
            case Called():
                self._called(entry)
            case Ticked():
                self._ticked(entry)
            case Webhook():
                self._webhook(entry)
            case Posted():
                self._posted(entry)
            case Introduced():
                self.publish("person", person_view(entry))
            case Switched():
                self.publish("switch", {"name": entry.name, "number": entry.number, "value": entry.value})
            case _:
                pass

    def chats(self) -> list[Json]:
        """Return every chat with its bubbles, oldest first."""
        return [
            {
                "number": chat.number,
                "person": chat.person,
                "window_closes_at": chat.window_closes_at,
                "typing_until": chat.typing_until,
                "bubbles": list(chat.bubbles.values()),
            }
            for chat in self._chats.values()
        ]

    def behind(self, wamid: str) -> Json | None:
        """Return what made a bubble, for the inspector."""
        behind = self._behind.get(wamid)
        if behind is None:
            return None
        return {
            "calls": [call_view(called) for called in behind.calls],
            "webhooks": [
                {
                    "seq": webhook.seq,
                    "at": webhook.at,
                    "kind": webhook.kind,
                    "status": webhook.status,
                    "body": envelope([webhook]),
                    "posts": [post_view(posted) for posted in posts],
                }
                for webhook, posts in behind.webhooks
            ],
        }

    def forget(self) -> None:
        """Begin anew."""
        self._chats.clear()
        self._bubbles.clear()
        self._behind.clear()
        self._items.clear()
        self.traffic.clear()

    def _wrote(self, wrote: Wrote) -> None:
        chat = self._chat(wrote.number, wrote.person)
        chat.window_closes_at = max(chat.window_closes_at, wrote.at + WINDOW_MS)
        kind = str(wrote.message.get("type", ""))
        content = wrote.message.get(kind)
        if kind == "reaction" and isinstance(content, dict):
            self._react(content.get("message_id", ""), "customer", content.get("emoji", ""))
            self._behind[wrote.wamid] = self._behind.get(content.get("message_id", ""), Behind())
            return
        quoted = wrote.message.get("context", {}).get("id", "")
        self._add(
            chat,
            Bubble(wrote.wamid, wrote.number, wrote.person, "customer", wrote.at, kind, content, "sent", quoted),
        )

    def _called(self, called: Called) -> None:
        self._line(called.seq, call_line(called))
        if called.kind == "mark":
            if called.accepted:
                self._marked(called)
            return
        if called.kind != "message" or not called.accepted:
            return
        body = unfolded(json.loads(called.request))
        kind = called.type
        content: Any = body.get(kind)
        if kind == "template":
            content = {**self._templates.render(content), "name": content["name"]}
        elif kind == "reaction":
            self._react(content["message_id"], "business", content.get("emoji", ""))
            behind = self._behind.setdefault(content["message_id"], Behind())
            behind.calls.append(called)
            self._behind[called.wamid] = behind
            return
        chat = self._chat(called.number, called.person)
        chat.typing_until = 0
        bubble = Bubble(
            called.wamid, called.number, called.person, "business", called.at, kind, content, "", called.context_id
        )
        bubble.fault, bubble.send = called.fault, called.send
        self._add(chat, bubble)
        self._behind[called.wamid].calls.append(called)

    def _marked(self, called: Called) -> None:
        chat = self._chats.get((called.number, called.person))
        if chat is None:
            return
        if called.message_id in self._behind:
            self._behind[called.message_id].calls.append(called)
        for bubble in chat.bubbles.values():
            if bubble.by == "customer" and bubble.status != "read":
                bubble.status = "read"
                self.publish("bubble", bubble_view(bubble))
            if bubble.id == called.message_id:
                break
        if called.type == "typing":
            chat.typing_until = called.at + TYPING_MS
            self.publish("typing", {"number": chat.number, "person": chat.person, "until": chat.typing_until})

    def _ticked(self, ticked: Ticked) -> None:
        bubble = self._bubbles.get(ticked.wamid)
        if bubble is None or RANK.get(ticked.status, 0) <= RANK.get(bubble.status, 0):
            return
        bubble.status = ticked.status
        bubble.code, bubble.details = ticked.code, ticked.details
        self.publish("bubble", bubble_view(bubble))

    def _webhook(self, webhook: Webhook) -> None:
        behind = self._behind.get(webhook.wamid)
        posts: list[Posted] = []
        if behind is not None:
            behind.webhooks.append((webhook, posts))
        self._items[webhook.seq] = (webhook.wamid, posts)
        while len(self._items) > BUBBLES_MAX * 4:
            del self._items[next(iter(self._items))]
        self._line(webhook.seq, webhook_line(webhook))

    def _posted(self, posted: Posted) -> None:
        for seq in posted.items:
            wamid, posts = self._items.get(seq, ("", []))
            posts.append(posted)
            if len(posts) > POSTS_MAX:
                del posts[1]
            line = self.traffic.get(seq)
            if line is not None:
                line["answer"], line["attempts"], line["batch"] = posted.answer, posted.attempt, len(posted.items)
                line["repeats"] = line.get("repeats", 0) + posted.repeat
                self.publish("traffic", line)
            bubble = self._bubbles.get(wamid)
            if posted.answer == 200 and bubble is not None and bubble.by == "customer" and bubble.status == "sent":
                bubble.status = "delivered"
                self.publish("bubble", bubble_view(bubble))

    def _react(self, wamid: str, by: str, emoji: str) -> None:
        bubble = self._bubbles.get(wamid)
        if bubble is None:
            return
        if emoji:
            bubble.reactions[by] = emoji
        else:
            bubble.reactions.pop(by, None)
        self.publish("bubble", bubble_view(bubble))

    def _chat(self, number: str, person: str) -> Chat:
        return self._chats.setdefault((number, person), Chat(number, person))

    def _add(self, chat: Chat, bubble: Bubble) -> None:
        chat.bubbles[bubble.id] = bubble
        self._bubbles[bubble.id] = bubble
        self._behind[bubble.id] = Behind()
        if len(chat.bubbles) > CHAT_BUBBLES_MAX:
            self._drop(next(iter(chat.bubbles.values())))
        if len(self._bubbles) > BUBBLES_MAX:
            self._drop(next(iter(self._bubbles.values())))
        self.publish("bubble", {**bubble_view(bubble), "window_closes_at": chat.window_closes_at})

    def _drop(self, bubble: Bubble) -> None:
        chat = self._chats[bubble.number, bubble.person]
        del chat.bubbles[bubble.id]
        del self._bubbles[bubble.id]
        self._behind.pop(bubble.id, None)
        if not chat.bubbles:
            del self._chats[chat.number, chat.person]

    def _line(self, seq: int, line: Json) -> None:
        line["seq"] = seq
        self.traffic[seq] = line
        if len(self.traffic) > TRAFFIC_MAX:
            self.traffic.popitem(last=False)
        self.publish("traffic", line)


def bubble_view(bubble: Bubble) -> Json:
    """Return a bubble as the page gets it."""
    return {name: getattr(bubble, name) for name in bubble.__struct_fields__}


def person_view(entry: Introduced) -> Json:
    """Return a person as the page gets it."""
    person = entry.person
    return {
        "id": person.id,
        "wa_id": person.wa_id,
        "bsuid": person.bsuid,
        "name": person.name,
        "username": person.username,
        "hides_phone": person.hides_phone,
        "reads": person.reads,
        "online": person.online,
        "on_whatsapp": person.on_whatsapp,
        "opted_out": person.opted_out,
    }


def call_view(called: Called) -> Json:
    """Return a Graph call as the inspector shows it."""
    return {
        "seq": called.seq,
        "at": called.at,
        "path": called.path,
        "http": called.http,
        "code": called.code,
        "fault": called.fault,
        "accepted": called.accepted,
        "answered": called.answered,
        "request": _parsed(called.request),
        "response": _parsed(called.response),
    }


def post_view(posted: Posted) -> Json:
    """Return a POST as the inspector shows it."""
    return {
        "at": posted.at,
        "attempt": posted.attempt,
        "answer": posted.answer,
        "ms": posted.ms,
        "batch": len(posted.items),
        "repeat": posted.repeat,
        "signature": posted.signature,
    }


def call_line(called: Called) -> Json:
    """Return a Graph call as one line of the traffic."""
    return {
        "line": "call",
        "at": called.at,
        "number": called.number,
        "person": called.person,
        "wamid": called.wamid or called.message_id,
        "what": called.type or "call",
        "http": called.http,
        "code": called.code,
        "fault": called.fault,
        "accepted": called.accepted,
        "answered": called.answered,
    }


def webhook_line(webhook: Webhook) -> Json:
    """Return a webhook item as one line of the traffic."""
    return {
        "line": "webhook",
        "at": webhook.at,
        "number": webhook.number,
        "person": webhook.person,
        "wamid": webhook.wamid,
        "what": webhook.status or webhook.kind,
    }


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
