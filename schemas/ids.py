"""The names by which everything is addressed, as types of their own so that one is never passed for another."""

from __future__ import annotations

from typing import NewType

PhoneNumberId = NewType("PhoneNumberId", str)
"""Meta's id of one business number, e.g. "106540352242922"; not its digits."""

WabaId = NewType("WabaId", str)
"""Meta's id of a WhatsApp Business Account."""

CustomerKey = NewType("CustomerKey", str)
"""The customer number, the unit of order: `<portfolio>:<wa_id>`, or `<portfolio>:<bsuid>` where no phone is known.

Its UTF-8 bytes are the key of every record about the customer. What concerns no customer is keyed
`<portfolio>:#<what>` and has no state.
"""

SendId = NewType("SendId", str)
"""Our id of a send, and the message id its sender gets: "wamid.D" and 26 characters of Crockford's base 32.

Meta's own wamids begin "wamid.H". The prefix satisfies clients that look at it; we look at the whole.
"""

Wamid = NewType("Wamid", str)
"""Meta's id of a message. It holds the customer's digits: personal data, never parsed, never logged."""

Sink = NewType("Sink", str)
"""The configured name of a place events are delivered to."""

SEND_ID_CHARS = 33
