"""Which processes belong to an attempt, and how all of them are killed, wherever they forked and detached to.

Two ways: a cgroup tells (`GroupTree`); or, without one, ancestry does (`WalkedTree`), with orphans attributed by
`Orphans`, since the keeper, being the subreaper, becomes their parent.
"""

import os

from ostler.node.keeper import kernel, proc
from ostler.node.keeper.cgroups import Group

MARKER = b"OSTLER_ATTEMPT_KEY"
KEEPER_MARKER = b"OSTLER_KEEPER"
_PASSES = 100


def send(pid: int, number: int) -> None:
    """Signal a process that may be gone."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


class GroupTree:
    """The processes in an attempt's cgroup."""

    __slots__ = ("_group", "_root")

    def __init__(self, group: Group, root: int) -> None:
        self._group = group
        self._root = root

    def living(self) -> list[int]:
        """The pids that have not ended."""
        return self._group.members()

    def sample(self) -> None:
        """Nothing to remember: the kernel does."""

    def root_ended(self) -> None:
        """Nothing to forget: the kernel does."""

    def end(self) -> None:
        """The attempt is over; its group is removed by whoever made it."""

    def kill(self) -> set[int]:
        """Send SIGKILL to all, those that are forked meanwhile included; returns whom."""
        self._group.forbid_forks()
        found = set(self._group.members())
        if found and self._group.kill_at_once():
            return found
        # the root first: a shell whose child was killed could still end by itself, with a code that nobody meant
        for pid in sorted(found, key=lambda pid: pid != self._root):
            send(pid, kernel.SIGKILL)
        for _ in range(_PASSES):
            fresh = set(self._group.members()) - found
            if not fresh:
                break
            for pid in fresh:
                send(pid, kernel.SIGKILL)
            found |= fresh
        return found


class WalkedTree:
    """The descendants of an attempt's root and the orphans that were found to be its own.

    `seen` remembers every process by (pid, start time), so that one which detaches later is recognised.
    """

    __slots__ = ("_adopted", "_orphans", "_root", "key", "marker", "seen", "start_time")

    def __init__(self, key: str, pid: int, start_time: int, orphans: "Orphans") -> None:
        self.key = key
        self.start_time = start_time
        self.seen = {pid: start_time}
        self._root: int | None = pid
        self.marker = MARKER + b"=" + key.encode()
        self._adopted: set[int] = set()
        self._orphans = orphans
        orphans.trees.append(self)

    def living(self) -> list[int]:
        """The pids that have not ended."""
        self._orphans.claim(ending=self if self._root is None else None)
        return self._walk(stop=False)

    def sample(self) -> None:
        """Remember who is there now."""
        self._orphans.claim()
        if len(self.seen) > 1000:
            self._forget_the_gone()
        self._walk(stop=False)

    def root_ended(self) -> None:
        """The root was reaped: its pid may soon be another's."""
        self._root = None

    def end(self) -> None:
        """The attempt is over."""
        self._orphans.tree_ended(self)

    def kill(self) -> set[int]:
        """Send SIGKILL to all; returns whom.

        All are stopped first, in passes until no new one is found: a stopped process forks no more, so none is missed.
        """
        found: set[int] = set()
        for _ in range(_PASSES):
            self._orphans.claim(ending=self if self._root is None else None)
            now = set(self._walk(stop=True))
            if now <= found:
                break
            found |= now
        for pid in found:
            send(pid, kernel.SIGKILL)
        return found

    def adopt(self, pid: int, start_time: int) -> None:
        """Count a child of the keeper among this attempt's processes."""
        self._adopted.add(pid)
        self.seen[pid] = start_time

    def reaped(self, pid: int) -> None:
        """A child of the keeper is gone."""
        self._adopted.discard(pid)

    def descends(self, pid: int, found: proc.Stat) -> bool:
        """Tell by memory, session or process group whether an orphan comes from this attempt."""
        return self.seen.get(pid) == found.start_time or self._led(found.session) or self._led(found.group)

    def _led(self, leader: int) -> bool:
        """The leader's pid cannot be another's while its session or group lives, unless that one is there to be seen."""
        start_time = self.seen.get(leader)
        return start_time is not None and proc.start_time(leader) in (0, start_time)

    def _walk(self, *, stop: bool) -> list[int]:
        waiting = [*self._adopted] if self._root is None else [self._root, *self._adopted]
        living = []
        for pid in waiting:  # grows while it is read
            found = proc.stat(pid)
            if found is None:
                continue
            if not found.dead:
                if stop:
                    send(pid, kernel.SIGSTOP)
                living.append(pid)
            self.seen[pid] = found.start_time
            waiting += proc.children(pid)
        return living

    def _forget_the_gone(self) -> None:
        self.seen = {pid: start for pid, start in self.seen.items() if proc.start_time(pid) == start}


class Orphans:
    """The keeper's children that it did not start itself, and whose they are.

    One that cannot be told is noted with all attempts that ran when it started; it is the leftover of the last of
    them to end, unless a later look tells: while it executes a program, for a moment it has no environment to be seen.
    `roots` are the children that the keeper did start.
    """

    def __init__(self, keeper_id: bytes) -> None:
        self._keeper_marker = KEEPER_MARKER + b"=" + keeper_id
        self.trees: list[WalkedTree] = []
        self.roots: set[int] = set()
        self._strangers = set(proc.own_children())
        self._owners: dict[int, WalkedTree] = {}
        self._unclaimed: dict[int, list[WalkedTree]] = {}

    def claim(self, ending: WalkedTree | None = None) -> None:
        """Look for new orphans and attribute them; `ending` takes those that only it could own."""
        for pid in proc.own_children():
            if pid in self.roots or pid in self._owners or pid in self._strangers:
                continue
            found = proc.stat(pid)
            if found is None or found.dead:
                continue
            entries = proc.environment(pid)  # read once: a second look, after it executed a program, could tell something else
            owner = self._owner(pid, found, entries)
            if owner is not None:
                self._unclaimed.pop(pid, None)
                self._give(pid, found.start_time, owner)
                continue
            if self._is_left_over(entries):
                self._unclaimed.pop(pid, None)
                self._kill(pid)
                continue
            if pid in self._unclaimed:
                continue
            possible = [tree for tree in self.trees if tree.start_time <= found.start_time]
            if len(possible) == 1:
                self._give(pid, found.start_time, possible[0])
            elif possible:
                self._unclaimed[pid] = possible
            else:
                self._kill(pid)
        if ending is not None:
            for pid, possible in list(self._unclaimed.items()):
                if possible == [ending]:
                    del self._unclaimed[pid]
                    self._give(pid, proc.start_time(pid), ending)

    def tree_ended(self, tree: WalkedTree) -> None:
        """Take an attempt off the list of those that may own orphans."""
        self.trees.remove(tree)
        self._owners = {pid: owner for pid, owner in self._owners.items() if owner is not tree}
        for pid, possible in list(self._unclaimed.items()):
            if tree in possible:
                possible.remove(tree)
            if not possible:
                del self._unclaimed[pid]
                self._kill(pid)

    def reaped(self, pid: int) -> None:
        """A child that is no attempt's root is gone."""
        owner = self._owners.pop(pid, None)
        if owner is not None:
            owner.reaped(pid)
        self._unclaimed.pop(pid, None)
        self._strangers.discard(pid)

    def key_of(self, pid: int, found: proc.Stat) -> str | None:
        """The attempt whose tree a child belonged to, dead or alive, where that is known."""
        owner = self._owners.get(pid) or next((tree for tree in self.trees if tree.descends(pid, found)), None)
        return owner.key if owner is not None else None

    def _owner(self, pid: int, found: proc.Stat, entries: list[bytes]) -> WalkedTree | None:
        """Ancestry is believed first; the environment is the process's own word."""
        for tree in self.trees:
            if tree.descends(pid, found):
                return tree
        return next((tree for tree in self.trees if tree.marker in entries), None)

    def _is_left_over(self, entries: list[bytes]) -> bool:
        """Whether it says that it belongs to an attempt of this keeper; asked of one that belongs to none that runs."""
        return self._keeper_marker in entries and any(entry.startswith(MARKER) for entry in entries)

    def _give(self, pid: int, start_time: int, tree: WalkedTree) -> None:
        self._owners[pid] = tree
        tree.adopt(pid, start_time)

    def _kill(self, pid: int) -> None:
        """Kill what belonged to attempts that are all over. Its children become the keeper's and come up next."""
        send(pid, kernel.SIGKILL)
