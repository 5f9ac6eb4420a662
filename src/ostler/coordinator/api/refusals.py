"""Refused calls in the audit log: each is noted, and a flood of them is counted."""

from collections import Counter, OrderedDict
from dataclasses import dataclass

BURST = 20  # of one peer and principal
EACH_S = 10.0  # and then one in so many seconds
ALL_BURST = 200  # of everybody together
ALL_EACH_S = 1.0
REMEMBERED = 1000
OTHERS = "others"
TOLD = 5


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float

    def take(self, now: float, *, burst: float, each_s: float) -> bool:
        self.left = min(burst, self.left + (now - self.at) / each_s)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Refusals:
    """Decides which refusals get a row of their own; the others are counted by who made them. Times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self._all = _Bucket(ALL_BURST, now)
        self._known: OrderedDict[str, _Bucket] = OrderedDict()
        self._left_out: Counter[str] = Counter()

    def take(self, who: str, now: float) -> bool:
        """Whether this one gets a row."""
        bucket = self._known.pop(who, None) or _Bucket(BURST, now)
        self._known[who] = bucket
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        if bucket.take(now, burst=BURST, each_s=EACH_S) and self._all.take(now, burst=ALL_BURST, each_s=ALL_EACH_S):
            return True
        self._left_out[who if who in self._left_out or len(self._left_out) < REMEMBERED else OTHERS] += 1
        return False

    def left_out(self) -> str | None:
        """What was left out since the last time this was asked, in words; None where nothing was."""
        counted, self._left_out = self._left_out, Counter()
        if not counted:
            return None
        most = counted.most_common(TOLD)
        rest = counted.total() - sum(count for _, count in most)
        told = [f"{count} of {who}" for who, count in most] + ([f"{rest} of {OTHERS}"] if rest else [])
        return f"{counted.total()} refused calls have no row of their own: {', '.join(told)}"
