"""What else Graph knows of a number and its account: profile, blocked users, calls, the list of templates.

Kept in memory alone: nothing of it outlives the sandbox. Source: Meta Cloud API, "Block users", "Business profiles".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from random import Random
from typing import Any
from urllib.parse import urlencode

from broker.sandbox.limits import Windows
from broker.sandbox.people import People
from broker.sandbox.shapes import GraphError, Json
from broker.sandbox.templates import Template, Templates

PROFILE_FIELDS = ("about", "address", "description", "email", "profile_picture_url", "websites", "vertical")
PAGE_MAX = 250
BLOCKED_MAX = 64_000
CALLS_MAX = 1_000


class Accounts:
    """The numbers' profiles, block lists and calls."""

    def __init__(self, people: People, windows: Windows, templates: Templates, rng: Random) -> None:
        self._people = people
        self._windows = windows
        self._templates = templates
        self._rng = rng
        self._profiles: dict[str, Json] = {}
        self._blocked: dict[str, dict[str, None]] = {}
        self._calls: dict[str, None] = {}

    def of_number(self, method: str, number: str, edge: str, raw: bytes, at: int) -> Json | GraphError | None:
        """Answer a call on an edge of a number; None when there is no such edge."""
        if edge == "whatsapp_business_profile" and method == "GET":
            return {"data": [{**self._profiles.get(number, {}), "messaging_product": "whatsapp"}]}
        if edge == "call_permissions" and method == "GET":
            return {
                "messaging_product": "whatsapp",
                "permission": {"status": "temporary", "expiration_time": at // 1_000 + 7 * 86_400},
                "actions": [{"action_name": "start_call", "can_perform_action": True}],
            }
        if edge == "block_users" and method == "GET":
            blocked = [{"messaging_product": "whatsapp", "wa_id": person} for person in self._blocked.get(number, {})]
            return {"data": [{"block_users": blocked}], "paging": {"cursors": {}}}
        if edge not in ("whatsapp_business_profile", "block_users", "calls") or method not in ("POST", "DELETE"):
            return None
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict) or body.get("messaging_product") != "whatsapp":
            return GraphError(100, "The parameter messaging_product is required.")
        if edge == "block_users":
            return self._block(number, body, at, add=method == "POST")
        if method == "DELETE":
            return None
        if edge == "calls":
            return self._call(body)
        self._profiles.setdefault(number, {}).update({name: body[name] for name in PROFILE_FIELDS if name in body})
        return {"success": True}

    def of_waba(
        self, method: str, waba: str, edge: str, query: Mapping[str, str], base_url: str, token: str
    ) -> Json | GraphError | None:
        """Answer a call on an edge of an account; None when there is no such edge. Links to further pages carry the
        token, as Graph's do."""
        if edge != "message_templates" or method != "GET":
            return None
        try:
            limit, start = int(query.get("limit", "25")), int(query.get("after", "0"))
        except ValueError:
            return GraphError(131059)
        if not 0 < limit <= PAGE_MAX or start < 0:
            return GraphError(100, "Param limit must be from 1 to 250.")
        found = [template for template in self._templates.all() if query.get("name", template.name) == template.name]
        names = [name for name in query.get("fields", "name,language,status,category,components").split(",") if name]
        page = [_template_node(template, names) for template in found[start : start + limit]]
        paging: Json = {"cursors": {"before": str(start), "after": str(start + len(page))}}
        if start + limit < len(found):
            kept = {**query, "access_token": token, "limit": str(limit), "after": str(start + limit)}
            paging["next"] = f"{base_url}/v26.0/{waba}/{edge}?{urlencode(kept)}"
        return {"data": page, "paging": paging}

    def is_blocked(self, number: str, person: str) -> bool:
        """Whether a number blocked a user, by the platform's own handle: nothing is sent to them."""
        return person in self._blocked.get(number, {})

    def _block(self, number: str, body: Json, at: int, *, add: bool) -> Json | GraphError:
        users = body.get("block_users")
        if not isinstance(users, list) or not users:
            return GraphError(100, "The parameter block_users is required.")
        blocked = self._blocked.setdefault(number, {})
        done: list[Json] = []
        failed: list[Json] = []
        for user in users:
            given = user if isinstance(user, dict) else {}
            phone, bsuid = str(given.get("user", "")), str(given.get("user_id", ""))
            person = self._people.by_phone(phone) if phone else self._people.by_bsuid(bsuid)
            entry: Json = {"input": phone or bsuid}
            if person is None or (add and not self._windows.is_open(number, person.id, at)):
                errors = [{"message": "Re-engagement required", "code": 131047}]
                failed.append({**entry, "errors": errors})
                continue
            if add and len(blocked) < BLOCKED_MAX:
                blocked[person.id] = None
            elif not add:
                blocked.pop(person.id, None)
            done.append({**entry, "wa_id": person.wa_id})
        result: Json = {"added_users" if add else "removed_users": done}
        if failed:
            result["failed_users"] = failed
        return {"messaging_product": "whatsapp", "block_users": result}

    def _call(self, body: Json) -> Json | GraphError:
        action = body.get("action")
        if action == "connect":
            if not (body.get("to") or body.get("recipient")):
                return GraphError(131008, "The parameter to is required.")
            wacid = f"wacid.{self._rng.getrandbits(96):024X}"
            if len(self._calls) < CALLS_MAX:
                self._calls[wacid] = None
            return {"messaging_product": "whatsapp", "calls": [{"id": wacid}], "success": True}
        if action not in ("pre_accept", "accept", "reject", "terminate") or not body.get("call_id"):
            return GraphError(131008, "The parameters action and call_id are required.")
        if action in ("reject", "terminate"):
            self._calls.pop(str(body["call_id"]), None)
        return {"success": True}


def _template_node(template: Template, names: list[str]) -> Json:
    components: list[dict[str, Any]] = [{"type": "BODY", "text": template.body}]
    if template.header:
        components.insert(0, {"type": "HEADER", "format": "TEXT", "text": template.header})
    if template.footer:
        components.append({"type": "FOOTER", "text": template.footer})
    if template.quick_replies:
        buttons = [{"type": "QUICK_REPLY", "text": text} for text in template.quick_replies]
        components.append({"type": "BUTTONS", "buttons": buttons})
    node: Json = {
        "name": template.name,
        "language": template.language,
        "status": "APPROVED" if template.status == "HELD" else template.status,
        "category": template.category,
        "components": components,
    }
    return {**{name: node[name] for name in names if name in node}, "id": id_of(template)}


def id_of(template: Template) -> str:
    """Return a template's id: digits, the same in every process."""
    named = f"{template.name}/{template.language}".encode()
    return str(int.from_bytes(hashlib.sha256(named).digest()[:6], "big"))
