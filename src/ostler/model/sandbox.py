"""The sandbox levels, weakest to strongest, and what a host can do about each."""

from dataclasses import dataclass

from ostler.model.enumeration import Word

BUILT_IN = "built in"


class SandboxLevel(Word):
    """How far an attempt is kept from the host. They are ordered by `rank`, never by their spelling.

    none: nothing; process: no new privileges, a filter on system calls and a session of its own; bwrap: namespaces
    of its own for files, processes, network and names; unit: a systemd unit that its owner may make; container: an
    image run by an engine.
    """

    NONE = "none"
    PROCESS = "process"
    BWRAP = "bwrap"
    UNIT = "unit"
    CONTAINER = "container"

    @property
    def rank(self) -> int:
        """0 for the weakest."""
        return _RANKS[self]

    def at_least(self, minimum: "SandboxLevel") -> bool:
        """True where a job that demands `minimum` may run at this level."""
        return self.rank >= minimum.rank


_RANKS = {level: rank for rank, level in enumerate(SandboxLevel)}


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingLevel:
    """A level that a host does not have: why, and the command or setting that mends it."""

    level: str
    reason: str
    mend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxAbilities:
    """What a host's kernel and tools offer to sandboxes; each level stands in `levels` or in `missing`.

    Levels are plain strings here: a node one release newer may name one that this release does not know.
    `bwrap`: the version of bubblewrap, or BUILT_IN where the node makes those sandboxes by itself. `bwrap_userns`: as root, bwrap
    works only with a user namespace. `landlock_abi` is 0 without Landlock; `cgroup` is v1, v2, hybrid or none.
    """

    levels: tuple[str, ...] = ()
    missing: tuple[MissingLevel, ...] = ()
    bwrap: str | None = None
    bwrap_userns: bool = False
    userns: bool = False
    seccomp: bool = False
    landlock_abi: int = 0
    cgroup: str = "none"

    def known_levels(self) -> tuple[SandboxLevel, ...]:
        """The levels offered that this release knows, weakest first."""
        return tuple(level for level in SandboxLevel if level.value in self.levels)


def strongest(*levels: SandboxLevel | None) -> SandboxLevel:
    """The strongest of some wishes, of which any may be None; `none` where all are."""
    found = SandboxLevel.NONE
    for level in levels:
        if level is not None and _RANKS[level] > _RANKS[found]:
            found = level
    return found
