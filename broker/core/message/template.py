"""Templates: what is filled into a text that Meta has approved. The text itself is Meta's, so what can be checked here
is the form of each component, and that what is filled in alone is not longer than the whole may be.

Source: Meta Cloud API, "Template messages".
"""

from __future__ import annotations

from broker.core.message.contents import FILES, LOCATION, NAME
from broker.core.message.limits import (
    COMPONENTS,
    HEADER_TEXT,
    KIND,
    LANGUAGE,
    PARAMETERS,
    TEMPLATE_CARDS,
    TEMPLATE_NAME,
    TEMPLATE_TEXT,
    TEMPLATE_TEXT_BESIDE_OTHERS,
)
from broker.core.message.shapes import (
    Anything,
    Fault,
    Identifier,
    Json,
    ListOf,
    Number,
    Object,
    Shape,
    Text,
    Variants,
    Wrong,
)


def _parameter(**members: Shape) -> Object:
    """Return the shape of a parameter; `parameter_name` is for templates whose parameters have names."""
    return Object({**members, "parameter_name": NAME}, needed=tuple(members))


_ID = Identifier(empty=True)
PARAMETER = Variants(
    "type",
    {
        "text": Object({"text": Text(TEMPLATE_TEXT, empty=True), "parameter_name": NAME}, needed=("text",)),
        "currency": _parameter(currency=Object({"fallback_value": NAME, "code": NAME, "amount_1000": Anything()})),
        "date_time": _parameter(date_time=Object({"fallback_value": NAME})),
        **{name: _parameter(**{name: shape}) for name, shape in FILES.items()},
        "gif": _parameter(gif=FILES["video"]),
        "location": _parameter(location=LOCATION),
        "payload": _parameter(payload=Text(TEMPLATE_TEXT, empty=True)),
        "coupon_code": _parameter(coupon_code=NAME),
        "action": _parameter(action=Object({})),
        "limited_time_offer": _parameter(limited_time_offer=Object({"expiration_time_ms": Anything()})),
        "tap_target_configuration": _parameter(tap_target_configuration=Anything()),
        "product": _parameter(product=Object({"product_retailer_id": _ID, "catalog_id": _ID})),
    },
)

_PARAMETERS = {"parameters": ListOf(PARAMETER, PARAMETERS)}
_BUTTON = Object(
    {"sub_type": Text(KIND), "index": Number(0, 9, whole=True), **_PARAMETERS}, needed=("sub_type", "index")
)
_PLAIN = {"header": Object(_PARAMETERS), "body": Object(_PARAMETERS), "button": _BUTTON}
_CARD = Object({"card_index": Number(0, 9, whole=True), "components": ListOf(Variants("type", _PLAIN), COMPONENTS)})
COMPONENT = Variants(
    "type",
    {
        **_PLAIN,
        "carousel": Object({"cards": ListOf(_CARD, TEMPLATE_CARDS)}, needed=("cards",)),
        "limited_time_offer": Object(_PARAMETERS),
        "order_status": Object(_PARAMETERS),
        "tap_target_configuration": Object(_PARAMETERS),
    },
)


def _fits_when_filled_in(template: Json) -> None:
    """Refuse texts that cannot become a message, however short what Meta has approved around them is."""
    components = template.get("components") or []
    kinds = [str(component["type"]).lower() for component in components]
    beside_others = "header" in kinds or "button" in kinds
    for place, (kind, component) in enumerate(zip(kinds, components, strict=True)):
        if kind == "body":
            most = (TEMPLATE_TEXT_BESIDE_OTHERS if beside_others else TEMPLATE_TEXT).most
        elif kind == "header":
            most = HEADER_TEXT.most
        else:
            continue
        length = sum(
            len(parameter["text"])
            for parameter in component.get("parameters") or []
            if str(parameter["type"]).lower() == "text"
        )
        if length > most:
            what = f"must fill in at most {most} characters of text; they have {length}"
            raise Wrong(Fault.HYDRATED, what, "components", place, "parameters")


TEMPLATE = Object(
    {
        "name": Text(TEMPLATE_NAME),
        "language": Object({"code": Text(LANGUAGE), "policy": NAME}, needed=("code",)),
        "components": ListOf(COMPONENT, COMPONENTS),
    },
    needed=("name", "language"),
    rules=(_fits_when_filled_in,),
)
