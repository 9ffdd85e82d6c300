"""What a bot asks to be sent, checked before it is taken: a refusal now is worth more than a failed status later.

Every message type is written down as data, in shapes that also say what the OpenAPI document says:

    shapes.py        what a value must be: a text, a number, a list, an object, one of several kinds
    limits.py        every limit, with its source
    contents.py      text, files, location, contacts, reaction, pin
    template.py      templates
    interactive.py   everything to tap
    request.py       the whole request: addressee, type, and which of Meta's errors a wrong one becomes

The checks are Meta's documented ones (Meta Cloud API, "Messages"). Whatever we do not know passes: unknown members
always, unknown types and kinds unless the operator says otherwise. Nothing is changed: the body goes on as the bytes
it came in.
"""

from broker.core.message.request import INVALID, MISSING, TITLES, VALUE, Outgoing, check, error_of

__all__ = ["INVALID", "MISSING", "TITLES", "VALUE", "Outgoing", "check", "error_of"]
