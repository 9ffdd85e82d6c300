"""What an answer of Graph to a send means: one table of codes, and the rules for what no table foresaw.

Five things can come of a call. Meta took the message (**accepted**). It did not and will not (**refused**). It did
not for now, and says so of a pair, a number, an account, an app, a template (**throttled**: wait, it was no attempt).
It will not take anything from us until somebody acts (**stopped**: wait and probe). Or nobody knows (**in_doubt**).

Source of the codes: Meta Cloud API, "Error codes". Branch on `code`, then on what it is
known to hide; never on the title, the HTTP status or a deprecated subcode, except where the table says so.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

import msgspec
from msgspec import Struct

Outcome = Literal["accepted", "refused", "throttled", "stopped", "in_doubt"]


class Scope(Enum):
    """Whom a throttle or a stop concerns, from the narrowest to the widest."""

    SEND = "send"
    """This send alone."""
    PAIR = "pair"
    """This number and this customer."""
    TEMPLATE = "template"
    """This template."""
    LANE = "lane"
    """This number's lane it came for, and the less urgent ones: of a campaign's send the campaigns alone."""
    INITIATED = "initiated"
    """What the business begins: this number's transactional and campaign lanes. Replies go on."""
    NUMBER = "number"
    WABA = "waba"
    APP = "app"


Kind = Literal["request", "recipient", "window", "throttle", "retry", "auth", "account", "unknown"]
"""Whose turn it is: the sender of the request, nobody (this recipient cannot have it), the customer (who must write
first, or a template must go), time (a limit; a fault that passes), whoever keeps the token, whoever keeps the account
with Meta, and nobody knows. Counted with each code, so that an alert finds the right people."""


class Rule(Struct, frozen=True):
    """What one code means for a send.

    `wait_s`: how long what `scope` names rests; it doubles with every repetition up to `wait_s_max`. `tries_max`: a
    throttle of one send that goes on so often is a refusal. `says`: why, for operators and for the sender. A refusal
    with a wait is one of everything in its scope: for so long no more calls are made to hear the same.
    """

    outcome: Outcome
    says: str
    kind: Kind
    scope: Scope = Scope.SEND
    wait_s: float = 0.0
    wait_s_max: float = 0.0
    tries_max: int = 0


class Verdict(Struct, frozen=True):
    """What came of one call. `known` is False when the code stands in no table: then somebody should look.

    `wait_s` is the rule's, or what the answer's `Retry-After` said. Three throttles have a regime of their own in
    `pacing`: `THROUGHPUT` slows a number down, `MAINTENANCE` freezes it, `PAIR_LIMIT` strikes a pair.
    """

    outcome: Outcome
    scope: Scope = Scope.SEND
    wait_s: float = 0.0
    wait_s_max: float = 0.0
    tries_max: int = 0
    code: int = 0
    subcode: int = 0
    title: str = ""
    details: str = ""
    says: str = ""
    kind: Kind = "unknown"
    known: bool = True
    trace_id: str = ""
    wamid: str = ""
    wa_id: str = ""
    user_id: str = ""
    message_status: str = ""


PROBE_S = 60.0
"""A stopped number is asked again with one send a minute: cheap, and nobody has to tell us that it is mended."""

RETRY_AFTER_MAX_S = 3_600.0
"""What we obey of a `Retry-After`; it is not documented for sends, so a nonsensical one must not stop a number."""

TEXT_CHARS_MAX = 400
"""What is kept of a title and of details."""

THROUGHPUT = 130429
MAINTENANCE = 131057
PAIR_LIMIT = 131056
NOT_FOUND = 33
"""Subcode of code 100 when the number or the right to it is gone."""


def _refused(says: str, kind: Kind = "request") -> Rule:
    return Rule("refused", says, kind)


def _without(says: str, wait_s: float, wait_s_max: float) -> Rule:
    return Rule("refused", says, "request", Scope.TEMPLATE, wait_s, wait_s_max)


def _stopped(
    scope: Scope, says: str, kind: Kind = "auth", wait_s: float = PROBE_S, wait_s_max: float = PROBE_S
) -> Rule:
    return Rule("stopped", says, kind, scope, wait_s, wait_s_max)


def _throttled(scope: Scope, says: str, wait_s: float, wait_s_max: float, kind: Kind = "throttle") -> Rule:
    return Rule("throttled", says, kind, scope, wait_s, wait_s_max)


def _again(says: str, wait_s: float, tries_max: int) -> Rule:
    return Rule("throttled", says, "retry", Scope.SEND, wait_s, wait_s * 4, tries_max)


def _doubtful(says: str) -> Rule:
    return Rule("in_doubt", says, "unknown")


# fmt: off
BY_CODE: dict[int, Rule] = {
    # 6.1 Authorisation and integrity
    0:       _stopped(Scope.NUMBER, "Meta could not authenticate the token"),
    3:       _stopped(Scope.NUMBER, "the app lacks the capability"),
    10:      _stopped(Scope.NUMBER, "permission denied"),
    102:     _stopped(Scope.NUMBER, "the session is invalid"),
    104:     _stopped(Scope.NUMBER, "the token is missing or not proven"),
    190:     _stopped(Scope.NUMBER, "the token has expired or is invalid"),
    131005:  _stopped(Scope.NUMBER, "access denied"),
    368:     _stopped(Scope.WABA, "blocked for a policy violation", "account"),
    130497:  _refused("the account may not message this country", "recipient"),
    131031:  _stopped(Scope.WABA, "the account is locked", "account"),
    131037:  _stopped(Scope.NUMBER, "the display name is not approved", "account"),
    131042:  _stopped(Scope.INITIATED, "the account has a payment problem", "account"),
    131044:  _refused("the account has a payment problem with calls", "account"),
    131045:  _stopped(Scope.NUMBER, "the number's registration is at fault", "account"),
    133010:  _stopped(Scope.NUMBER, "the number is not registered", "account"),
    134011:  _refused("the payments terms are not accepted", "account"),
    33:      _stopped(Scope.NUMBER, "the number was deleted", "account"),
    # 6.2 Throttling
    4:       _throttled(Scope.APP, "the app made too many calls", 60, 3_600),
    17:      _throttled(Scope.APP, "Graph's rate limit of the user", 60, 3_600),
    32:      _throttled(Scope.APP, "Graph's rate limit of the page", 60, 3_600),
    341:     _throttled(Scope.APP, "Graph's rate limit of the application", 60, 3_600),
    613:     _throttled(Scope.APP, "Graph's rate limit of the call", 60, 3_600),
    80007:   _throttled(Scope.WABA, "the account made too many calls", 60, 3_600),
    80008:   _throttled(Scope.WABA, "the account made too many calls", 60, 3_600),
    130429:  _throttled(Scope.NUMBER, "the number's throughput is reached", 0.5, 2),
    131048:  _stopped(Scope.LANE, "customers reported messages of the number as spam", "throttle", 1_800, 21_600),
    131056:  _throttled(Scope.PAIR, "too many messages from this number to this customer", 1, 256),
    131064:  _stopped(Scope.LANE, "the account misused template categories", "throttle", 1_800, 21_600),
    131208:  _throttled(Scope.PAIR, "too many operations on groups", 60, 600),
    131214:  _refused("the creation of groups is suspended", "throttle"),
    132069:  _throttled(Scope.TEMPLATE, "the flow is throttled", 3_600, 3_600),
    133016:  _stopped(Scope.NUMBER, "too many attempts to register", "throttle"),
    133008:  _stopped(Scope.NUMBER, "too many guesses of the PIN", "throttle"),
    133009:  _stopped(Scope.NUMBER, "PINs were guessed too fast", "throttle"),
    133015:  _stopped(Scope.NUMBER, "the number was deleted a moment ago", "throttle"),
    # 6.3 Platform failures
    1:       _doubtful("unknown error"),
    2:       _doubtful("temporary error"),
    131000:  _doubtful("something went wrong"),
    131016:  _doubtful("the service is unavailable"),
    131057:  _throttled(Scope.NUMBER, "the number is in maintenance", 15, 60, "retry"),
    133004:  _doubtful("the server is temporarily unavailable"),
    135000:  _refused("generic error"),
    2494100: _throttled(Scope.NUMBER, "the number is in maintenance", 60, 600, "retry"),
    131059:  _refused("bad cursor"),
    # 6.4 Recipient and window
    130403:  _refused("the business blocked this user", "recipient"),
    130472:  _refused("the user is part of an experiment", "recipient"),
    131021:  _refused("the recipient is the sender", "recipient"),
    131026:  _refused("undeliverable", "recipient"),
    131030:  _refused("the recipient is not in the test number's list", "recipient"),
    131047:  _refused("the customer service window is closed", "window"),
    131049:  _refused("Meta chose not to deliver, to keep the user engaged", "recipient"),
    131050:  _refused("the user stopped marketing messages", "recipient"),
    131060:  _refused("the message is unavailable"),
    131062:  _refused("this message needs the recipient's phone number"),
    137000:  _refused("the user's identity key changed", "recipient"),
    # 6.5 Request and template
    100:     _refused("invalid parameter"),
    131008:  _refused("a required parameter is missing"),
    131009:  _refused("a parameter's value is invalid"),
    131051:  _refused("unsupported message type"),
    131052:  _refused("the media could not be downloaded"),
    131053:  _again("the media could not be fetched", 5, 3),
    131055:  _refused("method not allowed"),
    131063:  _refused("marketing is disabled on this endpoint"),
    132000:  _refused("the number of template parameters does not match"),
    132001:  _refused("the template does not exist in this language"),
    132005:  _refused("the template's text became too long"),
    132007:  _refused("the template violates the content policy"),
    132012:  _refused("the format of a template parameter does not match"),
    132015:  _throttled(Scope.TEMPLATE, "the template is paused", 600, 3_600),
    132016:  _without("the template is disabled", 3_600, 21_600),
    132018:  _refused("the template did not pass validation"),
    132068:  _refused("the flow is blocked"),
    134100:  _refused("only marketing is allowed on this endpoint"),
    134101:  _throttled(Scope.TEMPLATE, "the template is still being synchronised", 600, 600, "retry"),
    134102:  _refused("the template is not available on this endpoint"),
    2388019: _refused("too many templates"),
    # 6.6 Groups, calls, blocking, registration, sync
    130501:  _refused("unsupported message type in a group"),
    131020:  _refused("the group has one member", "recipient"),
    131041:  _refused("the group is unknown or does not have this number", "recipient"),
    131201:  _refused("partial success"),
    131202:  _refused("a participant is named twice"),
    131204:  _refused("too many participants"),
    131207:  _refused("the group is suspended", "recipient"),
    131209:  _refused("the group's picture has the wrong shape"),
    131210:  _refused("the group's picture has the wrong size"),
    131211:  _refused("the limit of groups is reached"),
    131212:  _refused("not a participant"),
    131213:  _refused("no such request to join"),
    131215:  _refused("the number is not eligible for groups"),
    138000:  _refused("calling is not enabled"),
    138001:  _refused("the recipient cannot be called", "recipient"),
    138002:  _throttled(Scope.PAIR, "too many calls at once", 10, 60),
    138003:  _throttled(Scope.PAIR, "a call with this user is running", 60, 600, "recipient"),
    138004:  _refused("the call could not be connected"),
    138005:  _throttled(Scope.PAIR, "calls are made too fast", 10, 60),
    138006:  _refused("the user gave no permission to call", "recipient"),
    138007:  _refused("the call timed out"),
    138009:  _refused("the limit of permission requests is reached", "throttle"),
    138012:  _refused("the limit of calls by the business is reached", "throttle"),
    138013:  _refused("calls by the business are not available", "account"),
    138014:  _refused("calls by the business are disabled for now", "account"),
    138015:  _refused("calling cannot be enabled"),
    138017:  _refused("no permission can be requested now", "throttle"),
    138018:  _refused("calling cannot be enabled"),
    138019:  _refused("the call's relay failed"),
    138020:  _refused("the call's relay failed"),
    138021:  _refused("the call's media failed"),
    138022:  _refused("the call's media failed"),
    138023:  _refused("the call's media failed"),
    139000:  _refused("the flow is blocked"),
    139001:  _refused("the flow is not found"),
    139002:  _refused("the flow is a draft"),
    139003:  _refused("the flow is not published"),
    139004:  _refused("the flow is not available"),
    139100:  _refused("some users were not blocked"),
    139101:  _refused("the block list is full"),
    139102:  _again("the block list changed meanwhile", 1, 3),
    139103:  _again("the block list had an internal error", 1, 3),
    133000:  _stopped(Scope.NUMBER, "an earlier deregistration is incomplete", "account"),
    133005:  _stopped(Scope.NUMBER, "the PIN is wrong", "account"),
    133006:  _stopped(Scope.NUMBER, "the number is not verified", "account"),
    136024:  _refused("the verification code could not be requested"),
    1752041: _refused("onboarding was requested before"),
    2593107: _refused("the history was synchronised before"),
    2593108: _refused("it is too late to synchronise the history"),
    2593109: _refused("the business refused to share its history"),
}

RANGES: tuple[tuple[int, int, Rule], ...] = (
    (200, 299, _stopped(Scope.NUMBER, "a permission is missing")),
    (132000, 132999, _refused("the template is at fault")),
    (138000, 138099, _refused("the call is at fault")),
    (139000, 139099, _refused("the flow is at fault")),
    (147001, 147005, _refused("the username is at fault")),
    (200005, 200007, _refused("template insights are at fault")),
    (2388039, 2388299, _refused("template management is at fault")),
)
"""Codes Meta gives out in rows (first, last). A code of its own above goes first."""
# fmt: on

_LOST_NUMBER = _stopped(Scope.NUMBER, "the number does not exist or the token has no right to it")
_UNAUTHORISED = _stopped(Scope.NUMBER, "unauthorised (no code we know)")
_TOO_MANY = _throttled(Scope.NUMBER, "too many requests (no code we know)", 2, 60)
_REDIRECTED = _stopped(Scope.NUMBER, "the address answers with a redirect: check graph_url and the way out")
_UNKNOWN = _refused("an error with a code we do not know")
_NO_ANSWER = _doubtful("the answer is not Graph's")


class _ErrorData(Struct):
    details: str | None = None


class _Error(Struct):
    code: int = -1
    message: str | None = None
    type: str | None = None
    error_subcode: int | None = None
    error_data: _ErrorData | str | None = None
    error_user_msg: str | None = None
    is_transient: bool | None = None
    fbtrace_id: str | None = None


class _Contact(Struct):
    wa_id: str | None = None
    user_id: str | None = None


class _Message(Struct):
    id: str | None = None
    message_status: str | None = None


class _Answer(Struct):
    error: _Error | None = None
    success: bool | None = None
    messages: list[_Message] | None = None
    contacts: msgspec.Raw = msgspec.Raw(b"[]")
    """Read apart: whatever is wrong with it must not cost us the message id."""


_decode = msgspec.json.Decoder(_Answer, strict=False).decode
"""Not strict: a code that comes as a string is the same code."""

_decode_contacts = msgspec.json.Decoder(list[_Contact]).decode


def rule_of(code: int, subcode: int = 0) -> Rule | None:
    """Return the rule of a code, None when no table has it."""
    if code == 100 and subcode == NOT_FOUND:
        return _LOST_NUMBER
    rule = BY_CODE.get(code)
    if rule is not None:
        return rule
    for first, last, ranged in RANGES:
        if first <= code <= last:
            return ranged
    return None


def is_of_number(code: int) -> bool:
    """Whether a message that failed with this code tells of its number or account: its sender should know."""
    rule = rule_of(code)
    return rule is not None and (rule.outcome == "stopped" or code == THROUGHPUT)


def classify(status: int, body: bytes, retry_after: str = "", *, is_mark: bool = False) -> Verdict:
    """Return what an answer means. `retry_after` is the header's text; `is_mark` when a read mark or typing indicator
    was sent, whose success carries no message id.

    A body that is not Graph's (HTML of an edge, nothing at all) leaves doubt whatever its status, unless the status
    itself says that the request was turned away at the door (401, 429, a redirect).
    """
    try:
        answer = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _without_graph(status, retry_after)
    if answer.error is not None and answer.error.code >= 0:
        return _error(status, answer.error, retry_after)
    if 200 <= status < 300 and answer.error is None:
        return _success(answer, is_mark)
    return _without_graph(status, retry_after)


def _success(answer: _Answer, is_mark: bool) -> Verdict:
    try:
        contacts = _decode_contacts(answer.contacts)
    except (msgspec.DecodeError, UnicodeDecodeError):
        contacts = []
    contact = contacts[0] if contacts else _Contact()
    message = answer.messages[0] if answer.messages else _Message()
    if not message.id and not (is_mark and answer.success):
        return _verdict(_NO_ANSWER, details="a success without a message id")
    return Verdict(
        "accepted",
        wamid=message.id or "",
        wa_id=contact.wa_id or "",
        user_id=contact.user_id or "",
        message_status=message.message_status or "",
    )


def _error(status: int, error: _Error, retry_after: str) -> Verdict:
    subcode = error.error_subcode or 0
    rule = rule_of(error.code, subcode)
    known = rule is not None
    if rule is None:
        rule = _rule_of_unknown(status, error)
    details = error.error_data.details if isinstance(error.error_data, _ErrorData) else error.error_data
    return _verdict(
        rule,
        retry_after,
        code=error.code,
        subcode=subcode,
        title=error.message or "",
        details=details or error.error_user_msg or "",
        known=known,
        trace_id=error.fbtrace_id or "",
    )


def _rule_of_unknown(status: int, error: _Error) -> Rule:
    """Return the rule for a code no table has."""
    if status == 401 or (error.type == "OAuthException" and 101 <= error.code <= 199):
        return _UNAUTHORISED
    if status == 429:
        return _TOO_MANY
    if error.is_transient or status >= 500:
        return _NO_ANSWER
    return _UNKNOWN


def _without_graph(status: int, retry_after: str) -> Verdict:
    """Return the verdict on an answer without a Graph body."""
    rule = _NO_ANSWER
    if status == 401:
        rule = _UNAUTHORISED
    elif status == 429:
        rule = _TOO_MANY
    elif 300 <= status < 400:
        rule = _REDIRECTED
    return _verdict(rule, retry_after, title=f"HTTP {status} without a Graph answer", known=False)


def _verdict(
    rule: Rule,
    retry_after: str = "",
    *,
    code: int = 0,
    subcode: int = 0,
    title: str = "",
    details: str = "",
    known: bool = True,
    trace_id: str = "",
) -> Verdict:
    waits = rule.outcome != "in_doubt" and rule.wait_s > 0
    asked_s = _seconds(retry_after) if waits else 0.0
    return Verdict(
        outcome=rule.outcome,
        scope=rule.scope,
        wait_s=max(rule.wait_s, asked_s) if waits else 0.0,
        wait_s_max=max(rule.wait_s_max, asked_s) if waits else 0.0,
        tries_max=rule.tries_max,
        code=code,
        subcode=subcode,
        title=title[:TEXT_CHARS_MAX],
        details=details[:TEXT_CHARS_MAX],
        says=rule.says,
        kind=rule.kind,
        known=known,
        trace_id=trace_id[:TEXT_CHARS_MAX],
    )


def _seconds(retry_after: str) -> float:
    """Return a `Retry-After` in seconds, 0 when it is absent, a date or nonsense."""
    text = retry_after.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        return 0.0
    return min(RETRY_AFTER_MAX_S, float(text))
