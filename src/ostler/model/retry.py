"""Whether a failed attempt is tried again, and when."""

from datetime import timedelta

from ostler.model.failures import CODES, FailureCode, Retry
from ostler.model.manifest import RetryPolicy


def decide(policy: RetryPolicy, *, code: FailureCode, tries: int, jitter: float) -> timedelta | None:
    """The wait before the next attempt, or None when there is none.

    `tries` counts the attempts begun so far, this one included; `jitter` is a number from -1 to 1 that moves the wait by up
    to a tenth, so that jobs which failed together do not come back together.
    """
    if CODES[code].retry is Retry.NEVER or (policy.codes is not None and code not in policy.codes):
        return None
    if tries > policy.max:
        return None
    return _wait(policy, tries, jitter)


def longest(policy: RetryPolicy, *, tries: int) -> timedelta:
    """The wait after so many tries, with all of its jitter."""
    return _wait(policy, tries, 1.0)


def _wait(policy: RetryPolicy, tries: int, jitter: float) -> timedelta:
    wait = min(policy.backoff_s * 2.0 ** min(tries - 1, 32), policy.max_backoff_s)
    return timedelta(seconds=wait * (1 + jitter / 10))
