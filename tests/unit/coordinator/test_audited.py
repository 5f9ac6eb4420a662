"""What people change goes through the one door that leaves a row in the audit log."""

import inspect

import pytest

from ostler.coordinator.api import app
from ostler.protocol.routes import ROUTES, Audience

ENDPOINTS = app.endpoints(ROUTES, app._MODULES)
READS = {"await_jobs"}  # a query too long for an address
CHANGING = [
    one
    for one in ROUTES
    if one.name not in READS and one.method != "GET" and one.audience in {Audience.CLIENT, Audience.MEMBER, Audience.ENROL}
]


@pytest.mark.parametrize("route", CHANGING, ids=lambda route: route.name)
def test_each_route_that_changes_something_is_audited(route):
    source = inspect.getsource(ENDPOINTS[route.name])
    assert "call.write(" in source or "call.write_job(" in source
