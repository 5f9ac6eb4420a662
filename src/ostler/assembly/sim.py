"""`ostler sim`: a simulated fleet against the coordinator of this call, in an event loop of its own."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable

import uvloop

from ostler.assembly.endpoint import Endpoint
from ostler.protocol.trust import Trust
from ostler.sim.figures import Report
from ostler.sim.fleet import SimFleet
from ostler.sim.plan import Plan


def simulate(plan: Plan, endpoint: Endpoint, trust: Trust, tell: Callable[[str], None]) -> Report:
    """Run it to its end; Ctrl-C and SIGTERM end it early, with what was measured so far. Raises the error tree."""

    async def run() -> Report:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        fleet = SimFleet(plan, url=endpoint.url, token=endpoint.token, trust=trust, tell=tell)
        return await fleet.run(stop)

    gc.set_threshold(50_000, 10, 1_000)  # a collection among a million objects would be measured as the coordinator's lateness
    with contextlib.closing(uvloop.new_event_loop()) as loop:
        return loop.run_until_complete(run())
