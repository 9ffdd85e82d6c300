"""The templates Meta approved for the sandbox's accounts: name, language, category, text, and what they ask for."""

from __future__ import annotations

import re
from typing import Any, Literal

from msgspec import Struct, field

from broker.sandbox.shapes import GraphError, Json

Category = Literal["MARKETING", "UTILITY", "AUTHENTICATION"]

PARAMETER = re.compile(r"\{\{(\w+)\}\}")


class Template(Struct, frozen=True):
    """One template in one language. `body` holds `{{1}}` or `{{name}}`; `quick_replies` are its buttons, in order.

    `status` is Meta's: an approved one goes out, a paused one is refused with 132015, a held one is accepted with
    `held_for_quality_assessment`.
    """

    name: str
    language: str
    category: Category
    body: str
    header: str = ""
    footer: str = ""
    quick_replies: list[str] = field(default_factory=list)
    status: Literal["APPROVED", "PAUSED", "HELD"] = "APPROVED"

    def parameters(self) -> list[str]:
        """Return the names of the body's parameters in order of their first appearance."""
        return list(dict.fromkeys(PARAMETER.findall(self.body)))


KNOWN: tuple[Template, ...] = (
    Template(
        "hello_world",
        "en_US",
        "UTILITY",
        "Welcome and congratulations! This message shows that you can send templates.",
        header="Hello World",
        footer="Depesche sandbox",
    ),
    Template(
        "order_update",
        "en_US",
        "UTILITY",
        "Hi {{1}}, your order {{2}} is on its way and should arrive {{3}}.",
        quick_replies=["Track parcel", "Talk to us"],
    ),
    Template(
        "order_update",
        "de",
        "UTILITY",
        "Hallo {{1}}, Ihre Bestellung {{2}} ist unterwegs und kommt voraussichtlich {{3}} an.",
        quick_replies=["Sendung verfolgen", "Mit uns sprechen"],
    ),
    Template("login_code", "en_US", "AUTHENTICATION", "{{1}} is your verification code."),
    Template(
        "autumn_sale",
        "en_US",
        "MARKETING",
        "{{first_name}}, everything for the garden is 20 % off until Sunday.",
        header="Autumn sale",
        quick_replies=["Show me", "Stop promotions"],
    ),
    Template("flash_sale", "en_US", "MARKETING", "Today only: two for one.", status="PAUSED"),
    Template("spring_preview", "en_US", "MARKETING", "A first look at spring.", status="HELD"),
)


class Templates:
    """The templates by name and language; an operator's sandbox may add and pause some."""

    def __init__(self, known: tuple[Template, ...] = KNOWN) -> None:
        self._known = {(template.name, template.language): template for template in known}

    def add(self, template: Template) -> None:
        """Approve a template, or put it in another state."""
        self._known[template.name, template.language] = template

    def all(self) -> list[Template]:
        """Return every template."""
        return list(self._known.values())

    def find(self, name: str, language: str) -> Template | None:
        """Return a template by name and language code."""
        return self._known.get((name, language))

    def check(self, content: Json) -> GraphError | None:
        """Return why a template message (its `template` object, of the right shape) is refused, or None."""
        name, language = content["name"], content["language"]["code"]
        template = self.find(name, language)
        if template is None:
            return GraphError(132001, f"template name ({name}) does not exist in {language}")
        if template.status == "PAUSED":
            return GraphError(132015)
        given = body_parameters(content)
        expected = template.parameters()
        if len(given) != len(expected):
            return GraphError(
                132000,
                f"body: number of localizable_params ({len(given)}) does not match the expected number of params "
                f"({len(expected)})",
            )
        named = [parameter for parameter in expected if not parameter.isdigit()]
        if named and [parameter.get("parameter_name") for parameter in given] != expected:
            return GraphError(100, "Parameter name is missing or empty", "(#100) Invalid parameter")
        return None

    def render(self, content: Json) -> Json:
        """Return what the customer sees: header, text, footer, quick replies with their payloads."""
        template = self.find(content["name"], content["language"]["code"])
        if template is None:
            return {"text": content["name"], "buttons": []}
        values = dict(zip(template.parameters(), (_shown(p) for p in body_parameters(content)), strict=False))
        text = PARAMETER.sub(lambda match: values.get(match[1], match[0]), template.body)
        payloads = quick_reply_payloads(content)
        return {
            "header": template.header,
            "text": text,
            "footer": template.footer,
            "buttons": [
                {"title": title, "payload": payloads.get(i, title)} for i, title in enumerate(template.quick_replies)
            ],
        }


def body_parameters(content: Json) -> list[Json]:
    """Return the parameters of a template's body component."""
    for component in content.get("components", []):
        if str(component.get("type", "")).lower() == "body":
            parameters: list[Json] = component.get("parameters", [])
            return parameters
    return []


def quick_reply_payloads(content: Json) -> dict[int, str]:
    """Return the payloads a send gave its quick replies, by index. Libraries write the kinds in either case."""
    payloads: dict[int, str] = {}
    for component in content.get("components", []):
        kinds = [str(component.get(name, "")).lower() for name in ("type", "sub_type")]
        if kinds == ["button", "quick_reply"]:
            for parameter in component.get("parameters", []):
                payloads[int(component.get("index", 0))] = str(parameter.get("payload", ""))
    return payloads


def _shown(parameter: Json) -> str:
    kind = parameter.get("type", "text")
    content: Any = parameter.get(kind)
    if isinstance(content, dict):
        return str(content.get("fallback_value", kind))
    return str(content)
