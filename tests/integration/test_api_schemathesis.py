"""The OpenAPI document taken at its word: what it allows is sent by every kind of caller, and what comes back stands in it."""

import asyncio
import itertools
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from integration.api_rig import coordinator
from ostler.model.access import Role
from ostler.protocol import codec
from ostler.protocol import messages as m
from ostler.protocol.routes import ROUTES

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
CALLERS = ["nobody", "node", "join", *Role]
DONE = "j-done"  # an id that leads somewhere, so that more than the door is tried
SLOW = {"follow", "wait_s", "slots"}  # what holds an answer back


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A coordinator in a thread of its own, since the callers here wait; with a node, a job that is over and one of each token."""
    ready: SimpleNamespace = SimpleNamespace(began=threading.Event(), error=None)
    data = tmp_path_factory.mktemp("schemathesis") / "c"

    async def serve(data: Path) -> None:
        async with coordinator(data) as rig:
            node = await rig.enrolled("n-known")
            held = await node.take(job_id=DONE)
            await node.finish(m.Outcome(job_id=held.job_id, attempt=held.attempt, exit_code=0))
            tokens = {role: (await rig.token_for(role, role.value)).token for role in Role}
            ready.tokens = {"nobody": None, "node": node.token, "join": await rig.join_token(10_000), **tokens}
            ready.url, ready.loop, ready.end = rig.url, asyncio.get_running_loop(), asyncio.Event()
            ready.began.set()
            await ready.end.wait()

    def run() -> None:
        try:
            asyncio.run(serve(data))
        except BaseException as exc:
            ready.error = exc
        finally:
            ready.began.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.began.wait()
    if ready.error is not None:
        raise ready.error
    yield ready
    ready.loop.call_soon_threadsafe(ready.end.set)
    thread.join()
    if ready.error is not None:
        raise ready.error


@pytest.fixture(scope="module")
def schema(served):
    return schemathesis.openapi.from_url(f"{served.url}/api/v1/openapi.json")


def steered(case, number: int) -> None:
    """Every other case goes to things that exist; none waits."""
    if number % 2:
        known = {"job_id": DONE, "node_id": "n-known", "attempt": 1, "stream": "stdout", "token_id": "t-none"}
        case.path_parameters = {name: known.get(name, value) for name, value in (case.path_parameters or {}).items()}
    if isinstance(case.query, dict):
        case.query = {name: value for name, value in case.query.items() if name not in SLOW}
    if isinstance(case.body, dict):
        case.body = {name: value for name, value in case.body.items() if name not in SLOW}


def exercise(operation, headers: dict[str, str]) -> None:
    number = itertools.count()

    @settings(
        max_examples=8, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )  # fmt: skip
    @given(operation.as_strategy())
    def ask(case):
        steered(case, next(number))
        case.call_and_validate(headers=headers, checks=CHECKS, timeout=30)

    ask()


@pytest.mark.parametrize("caller", CALLERS)
def test_each_caller_gets_what_is_documented(served, schema, caller):
    headers = {"Authorization": f"Bearer {served.tokens[caller]}"} if served.tokens[caller] else {}
    seen: set[str] = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        seen.add(operation.definition.raw["operationId"])
        exercise(operation, headers)
    assert seen == {route.name for route in ROUTES} - {"openapi"}  # the document itself is how it got here


def test_the_coordinator_is_well_after_all_that(served, schema):
    import httpx

    answer = httpx.get(f"{served.url}/healthz", trust_env=False)
    assert codec.decode(answer.content, m.HealthView).status == "ok"
