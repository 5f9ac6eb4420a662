"""What every test shares: property tests are not judged by the clock."""

from hypothesis import HealthCheck, settings

settings.register_profile("ostler", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ostler")
