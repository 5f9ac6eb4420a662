"""Groups of hosts that may stand in each other. Pure."""

from ostler.fleet.inventory.host import Place


class Groups:
    """Which hosts are in which groups, by themselves or by way of groups inside."""

    def __init__(self) -> None:
        self._parents: dict[str, list[str]] = {}
        self._joined: dict[str, dict[str, Place]] = {}
        self._above: dict[str, tuple[str, ...]] = {}

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
