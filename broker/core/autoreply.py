"""What the broker itself answers when a route says so: the message, and how often one customer gets it."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from broker.core.message import Outgoing, check
from schemas.settings import Reply

EVERY_S_MIN, EVERY_S_MAX = 60.0, 30 * 86_400.0
"""Less would let two automata talk to each other without end; more would keep state of customers who are forgotten."""

NOT_ANSWERED: Final = frozenset(("reaction", "system", "unsupported", "unknown", "edit", "revoke"))
"""Types of messages nobody expects an answer to, or that nobody wrote."""

ADDRESSING = ("messaging_product", "recipient_type", "to", "recipient")


class AutoReply(Struct, frozen=True):
    """A compiled reply. `content`: the members of the body behind its addressing, as JSON without the first brace."""

    rule: str
    content: bytes
    message_type: str
    template: str
    every_ms: int

    def body(self, wa_id: str, bsuid: str) -> bytes:
        """Return the request to Graph for one customer, by phone where there is one."""
        who = b'"to":%b' % msgspec.json.encode(wa_id) if wa_id else b'"recipient":%b' % msgspec.json.encode(bsuid)
        return b'{"messaging_product":"whatsapp","recipient_type":"individual",%b,%b' % (who, self.content)


def compile_reply(rule: str, reply: Reply) -> AutoReply:
    """Compile a reply as the gateway would check it. Raises `ValueError` that begins with the setting that is wrong."""
    if bool(reply.text) == bool(reply.message):
        raise ValueError("then.reply: name exactly one of `text` and `message`")
    if not EVERY_S_MIN <= reply.every_s <= EVERY_S_MAX:
        raise ValueError(f"then.reply.every_s = {reply.every_s}: must be from {EVERY_S_MIN:.0f} to {EVERY_S_MAX:.0f}")
    content = reply.message or {"type": "text", "text": {"body": reply.text}}
    where = "then.reply.message" if reply.message else "then.reply.text"
    for name in ADDRESSING:
        if name in content:
            raise ValueError(f"{where}.{name}: is put in by the broker")
    whole = {"messaging_product": "whatsapp", "to": "15550000000", **content}
    try:
        encoded = msgspec.json.encode(content)
        outgoing = check(msgspec.json.encode(whole), unknown_types=False)
    except (TypeError, UnicodeEncodeError) as error:  # TOML has dates, JSON has not
        raise ValueError(f"{where}: cannot be written as JSON: {error}") from None
    if not isinstance(outgoing, Outgoing):
        data = outgoing.error_data
        raise ValueError(f"{where}: {outgoing.message if data is msgspec.UNSET else data.details}")
    if outgoing.kind != "message":
        raise ValueError(f"{where}: is no message")
    return AutoReply(rule, encoded[1:], outgoing.message_type, outgoing.template, round(reply.every_s * 1_000))
