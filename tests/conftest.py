"""What every test shares: property tests are not judged by the clock, and servers end with the tests."""

import signal
import sys

from _pytest.nodeid import coerce_node_id
from hypothesis import HealthCheck, settings

settings.register_profile("ostler", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ostler")

# A shell starts what runs in its background with Ctrl-C and Ctrl-\\ ignored, and `nohup` with SIGHUP; so would be all that the tests start.
for number, default in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)


def pytest_collection_modifyitems(config, items) -> None:
    """What belongs to a group runs in one worker. xdist 3.8 writes the group where pytest 9 does not read it any more."""
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        if (group := item.get_closest_marker("xdist_group")) is not None and "@" not in item.nodeid.rpartition("]")[2]:
            item._id = coerce_node_id(f"{item.nodeid}@{group.args[0]}")


def pytest_sessionfinish() -> None:
    if (postgres := sys.modules.get("postgres")) is not None:
        postgres.close_all()
