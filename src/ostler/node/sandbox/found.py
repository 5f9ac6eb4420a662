"""What was found out about sandboxes, as one process tells it to another: the one that looks needs no event loop."""

from dataclasses import dataclass

from ostler.model.sandbox import SandboxAbilities
from ostler.node.sandbox.host import Host


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The host as plans see it, and what it can do."""

    host: Host
    abilities: SandboxAbilities
