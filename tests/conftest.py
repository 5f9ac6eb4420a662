"""What every test shares: property tests are not judged by the clock, and servers end with the tests."""

import sys

from hypothesis import HealthCheck, settings

settings.register_profile("ostler", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ostler")


def pytest_sessionfinish() -> None:
    if (postgres := sys.modules.get("postgres")) is not None:
        postgres.close_all()
