"""Groups of hosts that may stand in each other. Pure."""

from ostler.fleet.inventory.host import Place
from ostler.model.errors import InvalidSpec

MAX_SHOWN = 10
MAX_MEMBERSHIPS = 500_000  # a few lines can put many hosts into a long chain of groups


class Groups:
    """Which hosts are in which groups, by themselves or by way of groups inside."""

    def __init__(self) -> None:
        self._parents: dict[str, list[str]] = {}
        self._joined: dict[str, dict[str, Place]] = {}
        self._above: dict[str, tuple[str, ...]] = {}
        self._depths: dict[str, int] = {}
        self._memberships = 0

    def __contains__(self, group: str) -> bool:
        return group in self._parents

    def add(self, group: str) -> None:
        """Name a group."""
        self._parents.setdefault(group, [])

    def put(self, child: str, parent: str) -> None:
        """Put a group into another."""
        self._parents.setdefault(parent, [])
        if parent not in self._parents.setdefault(child, []):
            self._parents[child].append(parent)
        self._above.clear()
        self._depths.clear()

    def join(self, group: str, host: str, place: Place) -> None:
        """Put a host into a group."""
        self.add(group)
        self._joined.setdefault(host, {}).setdefault(group, place)

    def of(self, host: str) -> dict[str, Place]:
        """The groups of a host, its own ones first, each with the place that put it there."""
        own = self._joined.get(host, {})
        found = dict(own)
        for group, place in own.items():
            for above in self.above(group):
                found.setdefault(above, place)
        self._memberships += len(found)
        if self._memberships > MAX_MEMBERSHIPS:
            raise InvalidSpec(f"the inventory puts its hosts into groups more than {MAX_MEMBERSHIPS} times")
        return found

    def above(self, group: str) -> tuple[str, ...]:
        """The groups that a group is in, the nearest first."""
        known = self._above.get(group)
        if known is None:
            seen, queue = {group}, list(self._parents.get(group, ()))
            found = []
            while queue:
                one = queue.pop(0)
                if one not in seen:
                    seen.add(one)
                    found.append(one)
                    queue += self._parents.get(one, ())
            known = self._above[group] = tuple(found)
        return known

    def depth(self, group: str) -> int:
        """How many groups the longest way from the top to this one has, itself included; there must be no loops."""
        way = [group]
        while way:
            parents = self._parents.get(way[-1], ())
            unknown = [one for one in parents if one not in self._depths]
            if unknown:
                way += unknown
            else:
                self._depths[way.pop()] = 1 + max((self._depths[one] for one in parents), default=0)
        return self._depths[group]

    def inside(self, child: str, parent: str) -> bool:
        """Whether a group is in another."""
        return parent in self.above(child)

    def loops(self) -> list[list[str]]:
        """Groups that contain themselves, each with the way back to itself."""
        found: list[list[str]] = []
        done: set[str] = set()
        for start in self._parents:
            way, seen = [iter((start,))], list[str]()
            while way:
                group = next(way[-1], None)
                if group is None:
                    way.pop()
                    if seen:
                        done.add(seen.pop())
                elif group in seen:
                    found.append([*seen[seen.index(group) :], group])
                elif group not in done:
                    seen.append(group)
                    way.append(iter(self._parents.get(group, ())))
        return found


def way(loop: list[str]) -> str:
    """A loop for a message."""
    return " → ".join(loop if len(loop) <= MAX_SHOWN else [*loop[: MAX_SHOWN - 1], "…", loop[-1]])
