"""What bots talk to: Graph, taken by us, so that a bot changes its base URL and its token.

app.py          which path, whose key, how much at once; the port        keys.py         who a key belongs to
messages.py     `POST …/messages`: check, key, make durable, answer      repetitions.py  what a repetition of what is
passthrough.py  the rest of Graph, with the number's token               media.py        uploads, downloads, whose
templates.py    categories, read from Meta: they decide lanes            openapi.py, openapi_control.py  the document
answers.py      answers and errors in Graph's shape       control.py     what operators ask for, under /control/v1

A request to send is a record on `conversations` before it is answered; no worker is waited for. The answer's message id
is our send id, which is accepted wherever a wamid is and stands in every status. What else of Graph may be reached says
`broker.core.endpoints`; all of it is called with a token of the key's own numbers, which no bot ever sees.
"""

from __future__ import annotations

from broker.gateway.app import Gateway, gateway_app

__all__ = ["Gateway", "gateway_app"]
