"""What the daemon counts from its start."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Counts:
    """What happened since the daemon began. Labels are from closed sets."""

    started: int = 0
    adopted: int = 0
    ended: dict[str, int] = field(default_factory=dict)  # by "done", "cancelled" or the failure's code
    delivered: int = 0
    discarded: int = 0
    seconds: float = 0.0

    def end(self, verdict: str, seconds: float) -> None:
        """One attempt is over."""
        self.ended[verdict] = self.ended.get(verdict, 0) + 1
        self.seconds += seconds
