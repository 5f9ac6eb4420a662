"""Commands to services that wait: which of them a newer one to the same service takes the place of."""

from collections.abc import Iterable
from dataclasses import dataclass

from ostler.model.manifest import Requirements
from ostler.model.service import Verb

MOST = 16  # in one answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A command that waits for a node: for `target`, or where that is empty for whichever meets `requirements`.

    `since` is when it was given, or was to be carried out (microseconds).
    """

    seq: int
    job_id: str
    service: str
    verb: Verb
    target: str
    requirements: Requirements
    since: int

    @property
    def changes(self) -> bool:
        """Whether it is about what becomes of the service; the others only ask."""
        return self.verb is not Verb.STATUS


def outdated(waiting: Iterable[Waiting]) -> dict[int, Waiting]:
    """Those of them (by number) that a newer one stands for, each with that one.

    The newest wish about a service counts. Wishes about whichever node stand beside each other where they choose among other nodes.
    """
    by_place: dict[tuple[str, str, Requirements | None], list[Waiting]] = {}
    for one in waiting:
        if one.changes:
            by_place.setdefault((one.target, one.service, None if one.target else one.requirements), []).append(one)
    found: dict[int, Waiting] = {}
    for some in by_place.values():
        newest = max(some, key=lambda one: (one.since, one.seq))
        found |= {one.seq: newest for one in some if one is not newest}
    return found
