"""What of Graph a bot may reach through us: a decision about method, path and parameters. Pure tables.

Behind us stands the number's real token, which may do much more than any bot should. So a call is served when a table
says so, and its scope is checked: a number of the key's, a WhatsApp Business Account (WABA) that holds one, a medium of
one. All else is refused, with a reason a person can act on. Refused whatever the settings say is what would take the
broker's webhooks away, unregister a number, or hide another call inside a harmless one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode

import msgspec
from msgspec import Raw, Struct

from broker.core.envelope import object_bytes

Scope = Literal["number", "waba", "medium"]

METHODS: Final = ("GET", "POST", "DELETE")


class Endpoint(Struct, frozen=True):
    """One thing a bot may do. `name`: in our metrics; `edge` "" is the node itself, a `*` in it any one segment."""

    name: str
    method: str
    scope: Scope
    edge: str


MESSAGES = Endpoint("messages", "POST", "number", "messages")
MARKETING = Endpoint("marketing_messages", "POST", "number", "marketing_messages")
UPLOAD = Endpoint("media_upload", "POST", "number", "media")
MEDIUM = Endpoint("media_get", "GET", "medium", "")
MEDIUM_DELETE = Endpoint("media_delete", "DELETE", "medium", "")
DOWNLOAD = Endpoint("media_download", "GET", "medium", "*")
NUMBER_NODE = Endpoint("number", "GET", "number", "")

SERVED: Final = (
    MESSAGES,
    MARKETING,
    UPLOAD,
    MEDIUM,
    MEDIUM_DELETE,
    NUMBER_NODE,
    Endpoint("block_users", "GET", "number", "block_users"),
    Endpoint("block_users", "POST", "number", "block_users"),
    Endpoint("block_users", "DELETE", "number", "block_users"),
    Endpoint("calls", "POST", "number", "calls"),
    Endpoint("calls", "GET", "number", "call_permissions"),
    Endpoint("business_profile", "GET", "number", "whatsapp_business_profile"),
    Endpoint("business_profile", "POST", "number", "whatsapp_business_profile"),
    Endpoint("templates", "GET", "waba", "message_templates"),
)
"""What bots of the field use and what is safe to give them. `gateway.passthrough` adds to it."""

NAMES: Final = (*dict.fromkeys(endpoint.name for endpoint in (*SERVED, DOWNLOAD)), "other")
"""Every value of `Endpoint.name`; "other" is what the settings add."""

WEBHOOKS = "it would take the broker's webhooks away, and with them every bot's events"
ACCOUNT = "it registers, unregisters or opens up an account; an operator does so at Meta"
NODE = "it changes the object itself, its webhooks or its PIN; an operator does so at Meta"
BATCH = "a batch hides calls from the checks; make each call by itself"
OVERRIDE = "it changes what the call is, or how it is answered, behind the checks"
NOT_LISTED = "it is not among what this gateway passes on; an operator can add it to gateway.passthrough"
NESTED = "a list of fields may hold plain names alone: through nested ones a call would reach beyond its own object"

REASONS: Final = {
    WEBHOOKS: "webhooks",
    ACCOUNT: "account",
    NODE: "account",
    BATCH: "batch",
    OVERRIDE: "override",
    NOT_LISTED: "not_listed",
    NESTED: "nested",
}
"""Each reason's name in our metrics."""

_FORBIDDEN_EDGES: Final = {
    "subscribed_apps": WEBHOOKS,
    "subscriptions": WEBHOOKS,
    "webhooks": WEBHOOKS,
    "register": ACCOUNT,
    "deregister": ACCOUNT,
    "request_code": ACCOUNT,
    "verify_code": ACCOUNT,
    "assigned_users": ACCOUNT,
    "access_token": ACCOUNT,
    "access_tokens": ACCOUNT,
    "system_users": ACCOUNT,
}
_FORBIDDEN_NODES: Final = {"oauth": ACCOUNT, "debug_token": ACCOUNT}

_WEBHOOK_WORDS: Final = ("webhook", "callback_ur", "verify_token", "subscribed_fields", "subscribed_apps")
"""In a parameter's name, wherever it stands. Source: Meta, "Webhook overrides"."""

_OVERRIDES: Final = frozenset(
    ("batch", "method", "relative_url", "callback", "ids", "id", "suppress_http_code", "include_headers", "debug")
)
"""Parameters of Graph itself, which it takes in the query and in the body alike."""

_CREDENTIALS: Final = frozenset(("access_token", "appsecret_proof", "appsecret_time"))
"""Left out: the token of ours takes their place."""

PATH_CHARS_MAX = 4_500
_PATH = re.compile(
    r"/(?:(v[0-9]{1,3}(?:\.[0-9]{1,3})?)(?:/|$))?(?:([A-Za-z0-9_-]{1,64})((?:/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}){0,2}))?/?"
)
_DOWNLOAD = re.compile(r"/media/([0-9]{1,32})/([A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)")
_LISTED = re.compile(r"(?=GET |\w+ \w+/\w)(GET|POST|DELETE) (number|waba)/((?:[a-z_]{1,64}(?:/(?:[a-z_]{1,64}|\*))?)?)")
"""Only read may an object itself be: what is posted to it sets its webhooks."""
_FIELDS = re.compile(r"[A-Za-z0-9_, ]{0,2000}")


class Target(NamedTuple):
    """A path of Graph's, taken apart. `version` "" when the bot names none; `ours`: of a media url, its last part."""

    version: str
    node: str
    edge: str
    query: str
    ours: str = ""


class Refusal(NamedTuple):
    """Why something is not passed on."""

    what: str
    reason: str


def read_path(raw: str) -> Target | None:
    """Return what a request's target names, or None when it is no path of Graph's."""
    path, _, query = raw.partition("?")
    if len(path) > PATH_CHARS_MAX:
        return None
    download = _DOWNLOAD.fullmatch(path)
    if download is not None:
        return Target("", download[1], "", query, download[2])
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    return Target(found[1] or "", found[2] or "", (found[3] or "").lstrip("/"), query)


def credential(query: str) -> str:
    """Return the `access_token` of a query, which Graph takes in place of a header; "" when there is none."""
    if "access_token" not in query:
        return ""
    return next((value for name, value in parse_qsl(query) if name == "access_token"), "")


def listed(entries: Sequence[str]) -> tuple[Endpoint, ...]:
    """Return what `gateway.passthrough` adds. Raises `ValueError` for an entry that cannot be."""
    endpoints = []
    for entry in entries:
        found = _LISTED.fullmatch(entry)
        if found is None:
            raise ValueError(f"{entry!r}: must be like 'GET number/settings' or 'POST waba/message_templates'")
        method, scope, edge = found[1], found[2], found[3]
        reason = _forbidden("", edge)
        if reason:
            raise ValueError(f"{entry!r}: is never passed on; {reason}")
        endpoints.append(Endpoint("other", method, "waba" if scope == "waba" else "number", edge))
    return tuple(endpoints)


class Endpoints:
    """What may be reached: the table and what the settings add to it."""

    def __init__(self, also: Iterable[Endpoint] = ()) -> None:
        self._exact: dict[tuple[str, str, str], Endpoint] = {}
        self._any: dict[tuple[str, str, str], Endpoint] = {}
        for endpoint in (*SERVED, *also):
            stem, star, _ = endpoint.edge.partition("*")
            known = self._any if star else self._exact
            known.setdefault((endpoint.scope, stem, endpoint.method), endpoint)

    def find(self, method: str, scope: Scope, edge: str) -> Endpoint | None:
        """Return what a call is, or None when it is not served."""
        exact = self._exact.get((scope, edge, method))
        if exact is not None:
            return exact
        stem, slash, last = edge.partition("/")
        return self._any.get((scope, stem + slash, method)) if last and "/" not in last else None

    def methods(self, scope: Scope, edge: str) -> tuple[str, ...]:
        """Return by which methods an edge can be called."""
        return tuple(method for method in METHODS if self.find(method, scope, edge) is not None)


def forbidden(method: str, target: Target) -> Refusal | None:
    """Say why a call is refused whatever the settings say, whosever object it names; None when it is not."""
    if not target.node:
        return Refusal("A call without an object", BATCH) if method == "POST" else None
    reason = _forbidden(target.node, target.edge)
    if reason:
        return Refusal("/".join(filter(None, (target.node, target.edge))), reason)
    return None


def _forbidden(node: str, edge: str) -> str:
    if reason := _FORBIDDEN_NODES.get(node.lower()):
        return reason
    for segment in edge.lower().split("/"):
        if reason := _FORBIDDEN_EDGES.get(segment):
            return reason
    return ""


# ---- parameters: in the query, a form or a JSON body, which are all one to Graph


def clean_query(query: str) -> str | Refusal:
    """Return a query without credentials, written anew so that nobody reads it otherwise than we did; or the refusal.

    Raises `ValueError` when it has too many parameters.
    """
    if not query:
        return ""
    pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=64)
    kept = []
    for name, value in pairs:
        if _plain(name) in _CREDENTIALS:
            continue
        if _plain(name) == "fields":
            value = _without_webhooks(value)
        refusal = _refusal(name, value)
        if refusal is not None:
            return refusal
        kept.append((name, value))
    return urlencode(kept)


def _without_webhooks(fields: str) -> str:
    """Leave a webhook configuration out of what is asked for. Libraries ask for every field of a number; who asks for
    nothing else is refused."""
    kept = [field for field in fields.split(",") if not _speaks_of_webhooks(field)]
    return ",".join(kept) if kept and _FIELDS.fullmatch(fields) else fields


def clean_body(body: bytes, content_type: str) -> tuple[bytes, str] | Refusal:
    """Return a body without credentials, and the content type it goes by; or the refusal.

    Raises `ValueError` for what is neither a JSON object nor a form: what cannot be read cannot be checked.
    """
    if not body.strip():
        return b"", ""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        try:
            text = body.decode("ascii")
        except UnicodeDecodeError:
            raise ValueError("the form holds what must be escaped") from None
        form = clean_query(text)
        return form if isinstance(form, Refusal) else (form.encode(), kind)
    if kind not in ("application/json", ""):
        raise ValueError("a body is application/json or application/x-www-form-urlencoded")
    try:
        tree: Any = msgspec.json.decode(body)
        members = msgspec.json.decode(body, type=dict[str, Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("the body is not a JSON object") from None
    for name, value in tree.items():
        if _plain(name) in _CREDENTIALS:
            del members[name]
            continue
        refusal = _refusal(name, value if isinstance(value, str) else "") or _inside(value)
        if refusal is not None:
            return refusal
    return (body if len(members) == len(tree) else object_bytes(members)), "application/json"


def _inside(value: Any) -> Refusal | None:
    """Look for a webhook configuration, however deep it stands. A string may itself be JSON: Graph reads such."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for name, inner in value.items():
                if _speaks_of_webhooks(name):
                    return Refusal(f"The parameter {name[:64]}", WEBHOOKS)
                waiting.append(inner)
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
            try:
                waiting.append(msgspec.json.decode(value))
            except (msgspec.DecodeError, UnicodeDecodeError, UnicodeEncodeError, RecursionError):
                continue
    return None


def _refusal(name: str, value: str) -> Refusal | None:
    """Judge one parameter at the top. Graph reads `a[b]`, `a.b` and ` a` as servers in PHP's tradition do."""
    plain = _plain(name)
    if _speaks_of_webhooks(name):
        return Refusal(f"The parameter {name[:64]}", WEBHOOKS)
    if plain == "fields":
        if not _FIELDS.fullmatch(value):
            return Refusal("The parameter fields", NESTED)
        if any(_speaks_of_webhooks(field) for field in value.split(",")):
            return Refusal("The parameter fields", WEBHOOKS)
    elif plain in _OVERRIDES:
        return Refusal(f"The parameter {name[:64]}", BATCH if plain == "batch" else OVERRIDE)
    return _inside(value)


def _plain(name: str) -> str:
    """A parameter's name as a lenient server reads it."""
    return re.sub(r"[^a-z0-9]+", "_", unquote(name).partition("[")[0].casefold()).strip("_")


def _speaks_of_webhooks(name: str) -> bool:
    plain = re.sub(r"[^a-z0-9]+", "_", unquote(name).casefold())
    return any(word in plain for word in _WEBHOOK_WORDS)


# ---- answers: nothing of Meta's token in them, and links that lead to us


class Answered(NamedTuple):
    """A body for a bot. `code`: of the error in it, 0 when it is none."""

    body: bytes
    code: int


def for_bot(body: bytes, public_url: str, token: str) -> Answered | None:
    """Return Graph's answer as a bot may see it; None when it is not a JSON value.

    Links to further pages lead to us and carry no token; a webhook configuration is left out; the token, should it
    stand anywhere else, is blotted out. Everything else keeps its bytes.
    """
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(tree, dict):
        members = msgspec.json.decode(body, type=dict[str, Raw])
        changed = False
        for name in list(members):
            if _speaks_of_webhooks(name):
                del members[name]
                changed = True
        paging = tree.get("paging")
        if isinstance(paging, dict) and any(isinstance(paging.get(way), str) for way in ("next", "previous")):
            links = {
                way: _our_link(value, public_url) if way in ("next", "previous") and isinstance(value, str) else value
                for way, value in paging.items()
            }
            members["paging"] = Raw(msgspec.json.encode(links))
            changed = True
        if changed:
            body = object_bytes(members)
    return Answered(without_token(body, token), _code(tree))


def error_code(body: bytes) -> int:
    """Return the code of the error in an answer of Graph's, 0 when there is none to be read."""
    try:
        return _code(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


def _code(tree: Any) -> int:
    error = tree.get("error") if isinstance(tree, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 0


def without_token(text: bytes, token: str) -> bytes:
    """Return bytes in which Meta's token does not stand."""
    return text.replace(token.encode(), b"***") if token else text


def _our_link(link: str, public_url: str) -> str:
    """A link to another page, as our own; "" when it is none."""
    _, scheme, rest = link.partition("://")
    _, slash, path = rest.partition("/")
    if not scheme or not slash:
        return ""
    path, _, query = path.partition("?")
    kept = [(name, value) for name, value in parse_qsl(query) if _plain(name) not in _CREDENTIALS]
    return f"{public_url}/{path}" + (f"?{urlencode(kept)}" if kept else "")
