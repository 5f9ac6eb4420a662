"""The application: every route of the table bound to the endpoint of its name, and every error to its problem details."""

import asyncio
import inspect
import logging
import math
import random
import re
import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from starlette.types import Message, Receive, Scope, Send

from ostler import __version__
from ostler.coordinator.api import (
    about,
    audit,
    blobs,
    events,
    jobs,
    leases,
    logs,
    nodes,
    quotas,
    releases,
    retention,
    rollouts,
    services,
    tokens,
    webhooks,
)
from ostler.coordinator.api import secrets as confidential
from ostler.coordinator.api.auth import NOBODY, CallerKind
from ostler.coordinator.api.bodies import Body, ClientGone
from ostler.coordinator.api.calls import Answer, Call, Endpoint, Services
from ostler.coordinator.api.exchanges import Header, Whole, exchange_of
from ostler.coordinator.api.trail import entry_of
from ostler.model.errors import (
    InvalidSpec,
    NotFound,
    OffsetMismatch,
    OstlerError,
    Problem,
    Unauthenticated,
    Unavailable,
    UpgradeRequired,
)
from ostler.model.manifest import JOB_ID, NAME, SHA256, unsafe_path
from ostler.model.service import Verb
from ostler.protocol import codec
from ostler.protocol.messages import LOG_STREAMS, PROTOCOL, ProblemReport
from ostler.protocol.problems import MEDIA_TYPE, describe, encode
from ostler.protocol.routes import ROUTES, Route

_MODULES = (
    audit, events, nodes, leases, logs, blobs, jobs, tokens, confidential, services, quotas, releases, rollouts, retention,
    webhooks, about,
)  # fmt: skip
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_DRAIN = 2**20  # what is left of a refused body is read up to here, so that the answer is not lost in a reset
_DRAIN_S = 2.0
_OUR_HEADERS = [(b"ostler-version", __version__.encode()), (b"ostler-protocol", str(PROTOCOL).encode())]
_JSON, _PROBLEM = b"application/json", MEDIA_TYPE.encode()
_PATH_RULES = {
    "job_id": JOB_ID,
    "group_id": JOB_ID,
    "node_id": NAME,
    "attempt": re.compile(r"[0-9]{1,9}"),
    "stream": re.compile("|".join(LOG_STREAMS)),
    "sha256": SHA256,
    "token_id": NAME,
    "name": NAME,
    "principal": NAME,
    "verb": re.compile("|".join(Verb)),
    "webhook_id": NAME,
    "rollout_id": NAME,
    "release": re.compile(r"(?a)[A-Za-z0-9][A-Za-z0-9._+-]{0,99}"),
}
_SHAPES = {NAME: "1 to 63 letters, digits, '.', '_' or '-'", JOB_ID: "1 to 128 letters, digits, '.', '_' or '-'"}


def endpoints(routes: Iterable[Route], modules: Iterable[ModuleType]) -> dict[str, Endpoint]:
    """The endpoint of each route, by name; a route without one, or one without a route, is a mistake of ours at start-up."""
    found: dict[str, Endpoint] = {}
    for module in modules:
        for name, function in inspect.getmembers(module, inspect.iscoroutinefunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                if name in found:
                    raise RuntimeError(f"two endpoints are called {name}")
                found[name] = function
    listed = [route.name for route in routes]
    names = set(listed)
    if len(listed) != len(names):
        raise RuntimeError(
            f"routes that stand twice in the table: {', '.join(sorted(one for one in names if listed.count(one) > 1))}"
        )
    if missing := names - found.keys():
        raise RuntimeError(f"routes without an endpoint: {', '.join(sorted(missing))}")
    if extra := found.keys() - names:
        raise RuntimeError(f"endpoints without a route: {', '.join(sorted(extra))}")
    return found


def build_app(services: Services) -> Starlette:
    """The whole API over some services."""
    found = endpoints(ROUTES, _MODULES)
    bound = [(route, _Bound(route, found[route.name], services)) for route in ROUTES]
    app = _Api(
        routes=[StarletteRoute(route.url, one, methods=[route.method], name=route.name) for route, one in bound],
        exception_handlers={HTTPException: _unrouted, Exception: _crashed},
    )
    app.plain = {(route.method, route.url): one for route, one in bound if "{" not in route.url}
    app.router.redirect_slashes = False  # a path that is not in the table is not there
    return app


class _Api(Starlette):
    """The routes, and a shorter way to those whose path has no parameter, the hot ones among them."""

    plain: Mapping[tuple[str, str], "_Bound"] = MappingProxyType({})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. A bound route answers for its own crashes, so nothing needs to stand around it."""
        bound = self.plain.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if bound is None:
            await super().__call__(scope, receive, send)
        else:
            await bound(scope, receive, send)


class _Bound:
    """One route as an ASGI application: admit, run the endpoint, encode; nothing leaves it but an answer."""

    def __init__(self, route: Route, endpoint: Endpoint, services: Services) -> None:
        self._route = route
        self._endpoint = endpoint
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        request_id = _request_id(scope)
        body = Body(scope, receive, self._route.max_body)
        status = 500
        started = False
        open_as: list[str] = []

        async def ours(headers: Iterable[Header]) -> list[Header]:
            complete = [*headers, *_OUR_HEADERS, (b"ostler-request-id", request_id.encode())]
            if not body.finished and status >= 400 and not await _drained(body):
                complete.append((b"connection", b"close"))
            return complete

        async def send_ours(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                message["headers"] = await ours(message["headers"])
            await send(message)

        self._services.metrics.begun(self._route)
        try:
            response = await self._answer(scope, receive, body, request_id, open_as)
            if isinstance(response, Whole):
                started, status = True, response.status
                if status < 400:
                    response.headers += [*_OUR_HEADERS, (b"ostler-request-id", request_id.encode())]
                else:
                    response.headers = await ours(response.headers)
                await exchange_of(scope).reply(response)
            else:
                await response(scope, receive, send_ours)
        except ClientGone:
            status = 499
        except asyncio.CancelledError:
            # The server stops and has waited long enough. Whether the work was done is not known here: the caller asks again.
            if not started:
                stopping = Unavailable("the coordinator is shutting down", retry_after=1, hint="try again in a moment")
                answer = _problem(stopping, request_id)
                status, answer.headers = answer.status, await ours(answer.headers)
                await exchange_of(scope).reply(answer)
        except Exception as exc:
            if not started:
                self._services.logger.exception("request_crashed", extra={"attrs": {"request": request_id}})
                answer = _crash(request_id)
                answer.headers = await ours(answer.headers)
                await exchange_of(scope).reply(answer)
                return
            if not isinstance(exc, OstlerError):
                raise
            # From a body that was being streamed: too late for another answer. The server closes the connection in front of this
            # one's end, so that the caller notices.
            self._services.logger.warning("answer_broken", extra={"attrs": {"route": self._route.name, "error": str(exc)}})
        finally:
            for key in open_as:
                self._services.door.leave(key)
            self._services.metrics.answered(self._route, status, time.perf_counter() - began)

    async def _answer(self, scope: Scope, receive: Receive, body: Body, request_id: str, open_as: list[str]) -> Whole | Response:
        services, route = self._services, self._route
        path, known = scope.get("path_params", {}), [NOBODY]
        try:
            caller, key = await services.door.admit(route, scope, known)
            open_as.append(key)
            _check_path(path)
            body.check_announced()
            call = Call(
                services=services,
                route=route,
                scope=scope,
                receive=receive,
                caller=caller,
                body=body,
                path=path,
                request_id=request_id,
            )
            return _response(route, await self._endpoint(call))
        except ClientGone:
            raise
        except OstlerError as exc:
            if isinstance(exc, Unauthenticated) and open_as and open_as[0].startswith(CallerKind.JOINER):
                services.door.failed(scope)
            entry = entry_of(route, known[-1], scope, path, request_id, status=exc.status)
            await services.trail.refused(entry, known[-1], exc)
            return _problem(exc, request_id)
        except OverflowError:
            # A number that fits JSON and no column or clock: the one mistake of a caller that shows as a crash of ours.
            return _problem(InvalidSpec("a number is out of range", [Problem("", "is too large")]), request_id)
        except Exception:
            services.logger.exception("request_crashed", extra={"attrs": {"route": route.name, "request": request_id}})
            return _crash(request_id)


def _response(route: Route, answer: Any) -> Whole | Response:
    if isinstance(answer, Response):
        return Whole(answer.status_code, answer.raw_headers, bytes(answer.body)) if type(answer) is Response else answer
    if isinstance(answer, Answer):
        status, more, value = answer.status or route.status, answer.headers, answer.value
        return Whole.of(status, more=more) if value is None else Whole.of(status, codec.encode(value), _JSON, more)
    return Whole.of(route.status) if answer is None else Whole.of(route.status, codec.encode(answer), _JSON)


def _check_path(path: dict[str, str]) -> None:
    for name, value in path.items():
        rule = _PATH_RULES.get(name)
        if (rule is not None and not rule.fullmatch(value)) or (name == "path" and unsafe_path(value)):
            shape = f", which has {_SHAPES[rule]}" if rule in _SHAPES else ""
            raise NotFound(f"there is nothing here: {value[:200]!r} is no {name.replace('_', ' ')}{shape}")


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"ostler-request-id" and _REQUEST_ID.fullmatch(value):
            return bytes(value).decode()
    return f"{random.getrandbits(64):016x}"  # a name and no secret: the kernel's random numbers cost as much as a tenth of a call


async def _drained(body: Body) -> bool:
    """Whether what is left of a refused body has been read: only where its end is known and near."""
    if body.length is None or body.length > _DRAIN:
        return False
    try:
        async with asyncio.timeout(_DRAIN_S):
            return await body.drop()
    except TimeoutError:
        return False


def _problem(error: OstlerError, request_id: str) -> Whole:
    """An error of the tree as problem details: the one place where a class becomes a status and its headers."""
    headers: dict[str, str] = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="ostler"'
    elif isinstance(error, OffsetMismatch):
        headers["Upload-Offset"] = str(error.offset)
    elif isinstance(error, Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after or 1)))
    elif isinstance(error, UpgradeRequired):
        headers["Upgrade"] = f"ostler/{PROTOCOL}"
    report = describe(error, instance=_instance(request_id))
    return Whole.of(error.status, encode(report), _PROBLEM, headers)


def _instance(request_id: str) -> str:
    return f"urn:ostler:request:{request_id}"


def _crash(request_id: str) -> Whole:
    report = ProblemReport(
        title="Internal error",
        status=500,
        code="internal",
        detail="the coordinator failed at this; its log names the request",
        instance=_instance(request_id),
        hint=f"look for {request_id} in the coordinator's log",
    )
    return Whole.of(500, encode(report), _PROBLEM)


def _asgi(whole: Whole, request_id: str) -> Response:
    """The same for Starlette, where no route answers."""
    response = Response(whole.body, whole.status)
    response.raw_headers = [*whole.headers, *_OUR_HEADERS, (b"ostler-request-id", request_id.encode())]
    return response


async def _unrouted(request: Request, exc: Exception) -> Response:
    """No such path, or not with this method."""
    request_id = _request_id(request.scope)
    status = exc.status_code if isinstance(exc, HTTPException) else 404
    headers: dict[str, str] = {}
    if status == 405:
        known = sorted({one.method for one in ROUTES if _matches(request, one)})
        headers["Allow"] = ", ".join(known)
        report = ProblemReport(
            title="Method not allowed", status=405, code="method_not_allowed", instance=_instance(request_id),
            detail=f"{request.method} is not among the methods of this path: {', '.join(known)}",
        )  # fmt: skip
    else:
        report = describe(
            NotFound("there is no such path", hint="GET /api/v1/openapi.json lists all"), instance=_instance(request_id)
        )
    return _asgi(Whole.of(report.status, encode(report), _PROBLEM, headers), request_id)


def _matches(request: Request, route: Route) -> bool:
    bound = next(one for one in request.app.routes if isinstance(one, StarletteRoute) and one.name == route.name)
    return bound.path_regex.match(request.scope["path"]) is not None


async def _crashed(request: Request, exc: Exception) -> Response:
    """What even a bound route did not catch."""
    request_id = _request_id(request.scope)
    logging.getLogger("ostler").error("request_crashed", exc_info=exc, extra={"attrs": {"request": request_id}})
    return _asgi(_crash(request_id), request_id)
