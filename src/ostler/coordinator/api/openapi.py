"""The OpenAPI 3.1 document, made from the route table alone."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, get_type_hints

import msgspec
from msgspec import NODEFAULT
from msgspec.structs import fields

from ostler import __version__
from ostler.model import errors
from ostler.model.manifest import JOB_ID
from ostler.protocol import codec
from ostler.protocol import messages as m
from ostler.protocol import routes as r
from ostler.protocol.problems import MEDIA_TYPE
from ostler.protocol.routes import Audience, Body, Route

_REF = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_SECURITY: dict[Audience, list[dict[str, list[str]]]] = {
    Audience.PUBLIC: [],
    Audience.ENROL: [{"joinToken": []}, {}],
    Audience.NODE: [{"nodeToken": []}],
    Audience.CLIENT: [{"apiToken": []}],
    Audience.MEMBER: [{"nodeToken": []}, {"apiToken": []}],
}
_SCHEMES = {
    "joinToken": "A join token (ostler_join_…): enrols nodes, made by `ostler token create --join`.",
    "nodeToken": "A node token (ostler_node_…): short-lived, answered by registration.",
    "apiToken": "An API token (ostler_api_…): for people and their programs.",
}
_RANGED = frozenset({"get_artifact", "get_blob", "get_bundle", "get_workspace"})
_HEADERS: dict[str, Sequence[tuple[str, bool, str]]] = {
    **dict.fromkeys(
        ("submit_jobs", "command_service"),
        (
            (
                "Idempotency-Key",
                False,
                "For 24 hours the same key with the same body gets the same answer, with `Idempotent-Replayed: true`, and submits nothing.",
            ),
        ),
    ),
    "append_log": (
        ("Upload-Offset", True, "The byte of the stream at which the body begins."),
        ("Upload-Length", False, "With the last bytes: the length of the whole stream."),
        ("Upload-Checksum", False, "With the last bytes: `sha256` and the whole stream's digest in base64."),
    ),
    "read_log": (("Last-Event-ID", False, "With `follow`: go on after this event."),),
    "list_events": (("Last-Event-ID", False, "With `follow`: go on after this event, whatever the query says."),),
    **dict.fromkeys(
        ("resume_rollout", "pause_rollout", "abort_rollout", "remove_release"),
        (("If-Match", False, "Only while its ETag is this one."),),
    ),
    **dict.fromkeys(_RANGED, (("Range", False, "One range of bytes."), ("If-Range", False, "Only while the ETag is this one."))),
}
_SECTION8_FORMS: dict[str, dict[str, Any]] = {
    "ack_jobs": {"job_id": {"type": "string"}, "node_id": {"type": "string"}},
    "report_progress": {"job_id": {"type": "string"}, "pct": {"type": "number"}, "note": {"type": "string"}},
    "report_failures": {
        "job_id": {"type": "string"},
        "error_code": {"type": "string"},
        "error_msg": {"type": "string"},
        "logs_ref": {"type": "string"},
    },
    "deliver_results": {"job_id": {"type": "string"}, "exit_code": {"type": "integer"}},
}


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The whole description; every path, parameter, answer and error of the table stands in it."""
    routes = tuple(routes)
    shapes = [m.ProblemReport]
    for route in routes:
        shapes.extend(shape for shape in (route.request, route.response) if shape is not None and shape not in shapes)
    references, schemas = msgspec.json.schema_components(shapes, ref_template=_REF)
    known = dict(zip(shapes, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(_PARAMETER.sub(r"{\1}", route.url), {})[route.method.lower()] = _operation(route, known)
    described = {
        "openapi": "3.1.0",
        "info": {
            "title": "Ostler coordinator",
            "version": __version__,
            "description": "Jobs, nodes, logs and artifacts of one fleet. Fields that a reader does not know are ignored.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                name: {"type": "http", "scheme": "bearer", "description": text} for name, text in _SCHEMES.items()
            },
        },
    }
    # Defaults are tuples here and lists in JSON: what callers get is the plain form.
    plain: dict[str, Any] = codec.decode(codec.encode(described), dict[str, Any])
    return plain


def _operation(route: Route, known: dict[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.path.split("/")[1].partition(".")[0]],
        "security": _SECURITY[route.audience],
        "responses": _responses(route, known),
    }
    if route.grants:
        operation["x-ostler-roles"] = {role.value: reach.value for role, reach in route.grants.items()}
    if parameters := [*_path_parameters(route), *_query_parameters(route), *_header_parameters(route)]:
        operation["parameters"] = parameters
    if route.body is not Body.NONE:
        operation["requestBody"] = _request_body(route, known)
    return operation


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "integer" if name == "attempt" else "string"}}
        for name in _PARAMETER.findall(route.path)
    ]


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    if route.query is None:
        if route.name == "ack_jobs":
            form = {"type": "string"}
            return [{"name": name, "in": "query", "schema": form} for name in ("job_id", "node_id")]
        return []
    hints = get_type_hints(route.query)
    found = []
    for one in fields(route.query):
        schema = msgspec.json.schema(hints[one.name])
        if one.default is not NODEFAULT and one.default is not None:
            schema["default"] = one.default
        found.append({"name": one.name, "in": "query", "schema": schema})
    return found


def _header_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "required": required, "description": text, "schema": {"type": "string"}}
        for name, required, text in _HEADERS.get(route.name, ())
    ]


def _request_body(route: Route, known: dict[Any, Any]) -> dict[str, Any]:
    if route.body is Body.BYTES:
        return {"required": True, "content": {"application/octet-stream": {}}}
    shape = known[route.request]
    if route is r.SUBMIT:
        many = {"type": "array", "items": shape, "minItems": 1, "maxItems": 10_000}
        group = {"type": "string", "pattern": f"^{JOB_ID.pattern}$", "description": "Makes one group of all, under this name."}
        properties = {"jobs": many, "group": group}
        wrapped = {"type": "object", "required": ["jobs"], "properties": properties, "additionalProperties": False}
        lines = {"schema": {"type": "string", "description": "One manifest a line."}}
        return {
            "required": True,
            "content": {"application/json": {"schema": {"anyOf": [shape, many, wrapped]}}, "application/x-ndjson": lines},
        }
    content: dict[str, Any] = {"application/json": {"schema": shape}}
    if (form := _SECTION8_FORMS.get(route.name)) is not None:
        single = {"type": "object", "required": ["job_id"], "properties": form}
        content["application/json"] = {"schema": {"anyOf": [shape, single]}}
    if route.name == "deliver_results":
        schema = {
            "type": "object",
            "required": ["metadata"],
            "properties": {
                "metadata": {"type": "string", "description": "One Outcome as JSON; before the artifacts."},
                "artifacts": {"type": "array", "items": {"type": "string", "contentMediaType": "application/octet-stream"}},
            },
        }
        content["multipart/form-data"] = {"schema": schema}
    return {"required": route.body is Body.JSON and bool(_required(route.request)), "content": content}


def _required(shape: Any) -> list[str]:
    return [one.name for one in fields(shape) if one.required]


def _responses(route: Route, known: dict[Any, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status in (route.status, *route.also):
        responses[str(status)] = {"description": route.summary, "headers": _COMMON_HEADERS, **_content(route, known, status)}
    classes: list[type[errors.OstlerError]] = list(route.errors)
    if route.audience is not Audience.PUBLIC:
        classes += [errors.Unauthenticated, errors.Forbidden]
    if _PARAMETER.search(route.path):
        classes.append(errors.NotFound)
    if route.body is not Body.NONE:
        classes += [errors.InvalidSpec, errors.TooLarge]
    if route.query is not None:
        classes.append(errors.InvalidSpec)
    if route.name in _RANGED:
        classes.append(errors.Gone)
    classes += [errors.StoreBusy, errors.NoCapacity]
    by_status: dict[int, set[str]] = {}
    for kind in classes:
        by_status.setdefault(kind.status, set()).add(kind.code)
    if route.name in _RANGED:
        by_status[416] = {"range_not_satisfiable"}
    problem = {MEDIA_TYPE: {"schema": known[m.ProblemReport]}}
    for status, codes in sorted(by_status.items()):
        if str(status) not in responses:
            text = "Problem with the code " + " or ".join(sorted(codes))
            responses[str(status)] = {"description": text, "headers": _COMMON_HEADERS, "content": problem}
    return responses


_COMMON_HEADERS = {
    name: {"description": text, "schema": {"type": "string"}}
    for name, text in (
        ("Ostler-Version", "The coordinator's release."),
        ("Ostler-Protocol", "The newest protocol that it speaks."),
        ("Ostler-Request-Id", "Names this call in the coordinator's log."),
    )
}


def _content(route: Route, known: dict[Any, Any], status: int) -> dict[str, Any]:
    if status == 204:
        return {}
    if route.response is not None:
        schema = known[route.response]
        if route.name in _SECTION8_FORMS:
            schema = {"anyOf": [schema, {"type": "object", "required": ["ok"], "properties": {"ok": {"const": True}}}]}
        return {"content": {"application/json": {"schema": schema}}}
    if route.name == "openapi":
        return {"content": {"application/json": {"schema": {"type": "object"}}}}
    content: dict[str, Any] = {route.media: {}}
    if route.name in {"read_log", "list_events"} and status == 200:
        content["text/event-stream"] = {}
    return {"content": content}
