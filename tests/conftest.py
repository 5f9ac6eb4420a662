"""What every test shares: property tests are not judged by the clock, and servers end with the tests."""

import signal
import sys

from hypothesis import HealthCheck, settings

settings.register_profile("ostler", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ostler")

# A shell starts what runs in its background with Ctrl-C and Ctrl-\\ ignored, and so would be all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_sessionfinish() -> None:
    if (postgres := sys.modules.get("postgres")) is not None:
        postgres.close_all()
