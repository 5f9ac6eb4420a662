"""Endpoints about the coordinator itself: version, API description, health, metrics."""

import asyncio
from functools import cache

from starlette.responses import Response

from ostler import __version__
from ostler.coordinator.api.calls import Answer, Call
from ostler.coordinator.api.openapi import document
from ostler.coordinator.operations import reads
from ostler.coordinator.operations.uploads import work_waits
from ostler.coordinator.store.schema import SCHEMA
from ostler.model.errors import StoreBusy
from ostler.protocol import codec
from ostler.protocol import messages as m
from ostler.protocol.routes import ROUTES

STORE_ANSWERS_S = 5.0
ELSEWHERE = "another coordinator does it"
LATE = 3  # a loop that has not turned for so many intervals is not well
LATE_AT_LEAST_S = 60.0


async def version(call: Call) -> m.VersionView:
    """What this is and speaks."""
    return m.VersionView(version=__version__, protocol=m.PROTOCOL, protocol_min=m.PROTOCOL_MIN, schema=SCHEMA)


@cache
def _openapi() -> bytes:
    return codec.encode(document(ROUTES))


async def openapi(call: Call) -> Response:
    """The route table as OpenAPI 3.1."""
    return Response(_openapi(), media_type="application/json")


async def healthz(call: Call) -> Answer:
    """Whether every loop turns."""
    services, checks = call.services, {}
    now = services.clock.monotonic()
    for loop in services.loops:
        if not loop.on_duty:
            checks[loop.name] = ELSEWHERE
            continue
        age = now - loop.turned_at
        late = age > max(LATE * loop.interval_s, LATE_AT_LEAST_S)
        checks[loop.name] = f"has not turned for {age:.0f} s" if late else loop.failure or "ok"
    return _health(checks)


async def readyz(call: Call) -> Answer:
    """Whether the store answers. Its schema fits, or the coordinator would not have started."""
    try:
        async with asyncio.timeout(STORE_ANSWERS_S):
            await call.services.store.read(work_waits)
    except (StoreBusy, TimeoutError) as exc:
        return _health({"store": str(exc) or f"has not answered within {STORE_ANSWERS_S:g} s"})
    return _health({"store": "ok"})


def _health(checks: dict[str, str]) -> Answer:
    good = all(value in {"ok", ELSEWHERE} for value in checks.values())
    view = m.HealthView(
        status="ok" if good else "unhealthy", version=__version__, protocol=m.PROTOCOL, protocol_min=m.PROTOCOL_MIN,
        schema=SCHEMA, checks=checks,
    )  # fmt: skip
    return Answer(view, 200 if good else 503)


async def metrics(call: Call) -> Response:
    """The store's numbers as they are now, and what was counted since the start."""
    services = call.services
    counts = await services.store.read(reads.counts)
    services.metrics.set_counts(counts.jobs, counts.nodes, counts.live_attempts)
    services.metrics.set_running(counts.running)
    services.metrics.set_services(counts.services)
    if services.pruner.last is not None:
        services.metrics.set_kept(services.pruner.last.used)
    now = services.clock.monotonic()
    for loop in (one for one in services.loops if one.on_duty):
        services.metrics.set_loop_age(loop.name, now - loop.turned_at)
    return Response(services.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
