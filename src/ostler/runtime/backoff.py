"""How long to wait after failures."""

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Exponential waits from `min_s` to `max_s`, each with ± `jitter` (a share of it); `reset` after a success."""

    min_s: float = 1.0
    max_s: float = 60.0
    jitter: float = 0.1
    failures: int = field(default=0, init=False)

    def next_s(self) -> float:
        """The wait after one more failure, in seconds."""
        wait = min(self.min_s * 2.0 ** min(self.failures, 32), self.max_s)
        self.failures += 1
        return wait * (1 + random.uniform(-self.jitter, self.jitter))  # noqa: S311 - jitter, not a secret

    def reset(self) -> None:
        """After a success the next failure waits `min_s` again."""
        self.failures = 0
