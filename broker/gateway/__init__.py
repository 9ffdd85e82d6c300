"""What bots talk to: Graph's send endpoint, taken by us, so that a bot changes its base URL and its token.

app.py          which path, whose key, how much at once; the port        keys.py         who a key belongs to
messages.py     `POST …/messages`: check, key, make durable, answer      repetitions.py  what a repetition of what is
answers.py      answers and errors in Graph's shape                      openapi.py      the document of all that

A request is a record on `conversations` before it is answered; no worker is waited for. The answer's message id is our
send id, which is accepted wherever a wamid is and stands in every status.
"""

from __future__ import annotations

from broker.gateway.app import Gateway, gateway_app

__all__ = ["Gateway", "gateway_app"]
