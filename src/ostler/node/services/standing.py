"""What probes make of a service: pure, a value and `now` in, a value out (S5)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ostler.model.service import Health


@dataclass(frozen=True, slots=True)
class Terms:
    """After how many failures, or successes, in a row a probe changes its mind."""

    failures: int = 3
    successes: int = 1


@dataclass(frozen=True, slots=True)
class Standing:
    """One probe's: its word, and how many answers in a row contradict it. `why` is what the last failure said."""

    health: Health = Health.UNKNOWN
    against: int = 0
    why: str = ""


def advance(standing: Standing, failure: str | None, *, now: float, started_at: float, grace_s: float, terms: Terms) -> Standing:
    """One more answer of a probe to a service that runs since `started_at` (seconds of one clock): None is good, a text says what is
    wrong. While the service is young (`grace_s`) failures do not count; a success does."""
    if failure is None:
        if standing.health is Health.HEALTHY:
            return Standing(Health.HEALTHY)
        needed = terms.successes if standing.health is Health.UNHEALTHY else 1
        if standing.against + 1 >= needed:
            return Standing(Health.HEALTHY)
        return replace(standing, against=standing.against + 1)
    if standing.health is Health.UNHEALTHY:
        return Standing(Health.UNHEALTHY, 0, failure)
    if now - started_at < grace_s:
        return replace(standing, against=0, why=failure)
    if standing.against + 1 >= terms.failures:
        return Standing(Health.UNHEALTHY, 0, failure)
    return Standing(standing.health, standing.against + 1, failure)


def overall(standings: Iterable[Standing]) -> tuple[Health, str]:
    """All probes together, with the reason where the service is unhealthy. One that has no probe is healthy while it runs."""
    found = list(standings)
    if bad := [one.why for one in found if one.health is Health.UNHEALTHY]:
        return Health.UNHEALTHY, "; ".join(bad)
    return (Health.UNKNOWN if any(one.health is Health.UNKNOWN for one in found) else Health.HEALTHY), ""
