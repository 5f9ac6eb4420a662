"""What people change goes through the one door that leaves a row in the audit log."""

import inspect

import pytest

from ostler.coordinator.api import app
from ostler.protocol.routes import ROUTES, Audience

ENDPOINTS = app.endpoints(ROUTES, app._MODULES)
READS = {"await_jobs", "prove_node"}  # a query too long for an address, and one that is signed
CHANGING = [
    one
    for one in ROUTES
    if one.name not in READS and one.method != "GET" and one.audience in {Audience.CLIENT, Audience.MEMBER, Audience.ENROL}
]


@pytest.mark.parametrize("route", CHANGING, ids=lambda route: route.name)
def test_each_route_that_changes_something_is_audited(route):
    source = inspect.getsource(ENDPOINTS[route.name])
    assert any(f"call.{write}(" in source for write in ("write", "write_job", "write_for"))
