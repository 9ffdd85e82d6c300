"""The OpenAPI document: what it says is what is taken and answered."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from broker.core.endpoints import SERVED
from broker.core.message import Outgoing, check
from broker.gateway.openapi import document
from tests.actors.ports import NUMBER, embedded, settings
from tests.actors.test_gateway import Port, serving
from tests.core.message.samples import BASE, GOOD
from tests.core.message.test_limits import PLACES, put, written

DOCUMENT = document()


def validator(name: str) -> Any:
    """A validator of one of the document's schemas."""
    whole = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return jsonschema_rs.Draft202012Validator(whole)


MESSAGE = validator("Message")


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    async with embedded(tmp_path, settings()) as engine, serving(engine, settings()) as port:
        yield port


def schemas(value: Any) -> Iterator[dict[str, Any]]:
    """Every schema of the document, wherever it stands."""
    if isinstance(value, dict):
        for key, member in value.items():
            if key == "schema":
                yield member
            yield from schemas(member)
    elif isinstance(value, list):
        for element in value:
            yield from schemas(element)


def test_every_schema_of_the_document_is_one_and_every_reference_leads_somewhere() -> None:
    """Generators of clients stop at the first that does not."""
    found = [*schemas(DOCUMENT), *DOCUMENT["components"]["schemas"].values()]
    assert len(found) > 30
    for schema in found:
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    references = {line for line in json.dumps(DOCUMENT).split('"') if line.startswith("#/")}
    assert references
    for reference in references:
        place: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


@pytest.mark.parametrize("name", [name for name in GOOD if "type" in GOOD[name]])
def test_the_document_knows_every_sample(name: str) -> None:
    """Whoever builds a client from it can send what Meta documents."""
    MESSAGE.validate({**BASE, **GOOD[name]})


@pytest.mark.parametrize(
    ("path", "whole"), [pytest.param(path, whole, id=written(path)) for path, _, whole in PLACES if path[0] != "status"]
)
def test_what_the_check_refuses_of_one_value_the_document_refuses_too(path: tuple[Any, ...], whole: Any) -> None:
    """And the other way round: a client that keeps to the document is never refused for the form of a member."""
    if "status" in whole:
        return
    values: list[Any] = ["x", "x" * 40_000, 7, -1, True, [], {}, [[]], ["x"], "\0"]
    for value in values:
        message = put(whole, path, value)
        taken = isinstance(check(json.dumps(message).encode(), unknown_types=False), Outgoing)
        assert MESSAGE.is_valid(message) == taken, (value, list(MESSAGE.iter_errors(message))[:2])


def test_everything_that_is_served_stands_in_the_document() -> None:
    """With its own summary: a call that nobody described is one that nobody thought of."""
    for endpoint in SERVED:
        found = [
            operations[endpoint.method.lower()]
            for path, operations in DOCUMENT["paths"].items()
            if path.startswith("/{")
            and path.partition("}")[2].lstrip("/") == endpoint.edge
            and endpoint.method.lower() in operations
        ]
        assert len(found) == 1, endpoint
        assert found[0]["summary"].endswith(".")
    operations_of = [path.values() for path in DOCUMENT["paths"].values()]
    known = [operation for path in operations_of for operation in path if isinstance(operation, dict)]
    names = [operation["operationId"] for operation in known]
    assert len(names) == len(set(names)) > 10


async def test_anybody_may_read_the_document_and_only_read_it(port: Port) -> None:
    """It says nothing about this installation, and a developer looks at it before there is a key."""
    async with port.client.get(port.url + "/openapi.json") as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        served = await answer.json()
    assert served == json.loads(json.dumps(DOCUMENT))
    assert NUMBER not in json.dumps(served)
    async with port.client.post(port.url + "/openapi.json", data=b"{}") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET")
