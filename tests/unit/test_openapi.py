"""The document of the API says what the routes do: every path, every struct that it names."""

import json

from magnum import policy
from magnum.api import app, openapi, routing


def _references(value):
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for part in value.values():
            yield from _references(part)
    elif isinstance(value, list):
        for part in value:
            yield from _references(part)


def test_every_operation_is_described_and_every_reference_leads_somewhere():
    document = json.loads(routing.encode(openapi.document()))
    described = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(o.method.lower(), o.path) for o in app.OPERATIONS}
    schemas = document["components"]["schemas"]
    names = {reference.removeprefix("#/components/schemas/") for reference in _references(document)}
    assert names <= set(schemas)
    ids = [o["operationId"] for methods in document["paths"].values() for o in methods.values()]
    assert len(ids) == len(set(ids))
    assert all(o["summary"] for methods in document["paths"].values() for o in methods.values())


def test_every_rule_that_a_route_asks_for_is_known():
    known = {rule.name for rule in policy.list_rules()}
    assert {o.rule for o in app.OPERATIONS if o.rule} <= known


def test_only_what_describes_the_api_is_open_to_everyone():
    public = {o.path for o in app.OPERATIONS if o.public}
    assert public == {
        "/", "/v1", "/healthcheck", "/metrics", "/openapi.json", "/docs",
        "/identity", "/identity/v3", "/identity/v3/auth/tokens",
    }  # fmt: skip
    assert not [o.path for o in app.OPERATIONS if not o.public and o.rule is None]
