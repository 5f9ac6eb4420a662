"""The OpenAPI document: valid, and the same as the router, the route table and the answers that really come."""

import re

import pytest
from openapi_spec_validator import validate
from starlette.routing import Route as StarletteRoute

from integration.api_rig import coordinator
from ostler.coordinator.api import about, app, jobs
from ostler.coordinator.api.openapi import document
from ostler.protocol.routes import ROUTES, Audience, Body

PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


@pytest.fixture(scope="module")
def described():
    return document(ROUTES)


def operations(described):
    return {(method, path): one for path, item in described["paths"].items() for method, one in item.items()}


def test_it_is_valid(described):
    validate(described)


def test_it_says_what_the_table_says(described):
    table = {(route.method.lower(), PARAMETER.sub(r"{\1}", route.url)): route for route in ROUTES}
    found = operations(described)
    assert found.keys() == table.keys()
    for key, operation in found.items():
        route = table[key]
        assert operation["operationId"] == route.name
        assert operation["summary"] == route.summary
        assert {str(route.status), *map(str, route.also)} <= operation["responses"].keys()
        for kind in route.errors:
            assert str(kind.status) in operation["responses"], (route.name, kind)
        assert operation.get("x-ostler-roles", {}) == {role.value: reach.value for role, reach in route.grants.items()}
        assert (operation["security"] == []) == (route.audience is Audience.PUBLIC)
        assert ("requestBody" in operation) == (route.body is not Body.NONE)
        named = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
        assert named == set(PARAMETER.findall(route.path))
        for status, answer in operation["responses"].items():
            if int(status) >= 400 and not (int(status) in route.also or int(status) == route.status):
                schema = answer["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ProblemReport"}


def test_every_reference_leads_somewhere(described):
    def references(value):
        if isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"]
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    known = {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}
    assert set(references(described)) <= known


def test_it_equals_the_router(described):
    made = app.build_app(None)
    routed = {
        (method.lower(), route.path_format)
        for route in made.routes
        if isinstance(route, StarletteRoute)
        for method in route.methods
    }
    assert {one for one in routed if one[0] != "head"} == operations(described).keys()


def test_a_route_without_an_endpoint_or_the_reverse_does_not_start():
    with pytest.raises(RuntimeError, match=r"routes without an endpoint: .*submit_jobs"):
        app.endpoints(ROUTES, [about])
    with pytest.raises(RuntimeError, match=r"endpoints without a route: .*healthz"):
        app.endpoints([route for route in ROUTES if route.name in {"version"}], [about])
    with pytest.raises(RuntimeError, match="two endpoints"):
        app.endpoints(ROUTES, [jobs, jobs])


async def test_it_is_served(tmp_path, described):
    async with coordinator(tmp_path / "c") as rig:
        answer = await rig.http.get("/openapi.json")
        assert answer.json() == described
