"""Between people and coordinator: nodes, and the fleet at a glance."""

from datetime import datetime

from msgspec import Struct

from ostler.model.capabilities import Capabilities
from ostler.model.manifest import DEFAULT_POOL
from ostler.model.node import NodeState
from ostler.protocol.messages.jobs import JobView
from ostler.protocol.messages.leases import Held, Outside
from ostler.protocol.messages.services import ServiceView


class NodeView(Struct, frozen=True, kw_only=True):
    """One node as clients see it; `attempts` are those that it holds.

    `cordoned`: a person wants no new work for it. `draining`: the node itself takes none, by its own word, with `quarantine` because
    of what it found wrong with itself. `outside`: its `protocol` is none that the coordinator speaks.
    `release` is the one that its daemon was installed in, where it was in one. `services` are told of one node alone, not in lists.
    """

    node_id: str
    state: NodeState
    version: str
    protocol: int
    boot_epoch: str
    joined_at: datetime
    last_seen_at: datetime | None = None
    changed_at: datetime | None = None
    reason: str | None = None
    pool: str = DEFAULT_POOL
    cordoned: bool = False
    cordon_reason: str | None = None
    draining: bool = False
    quarantine: str | None = None
    outside: Outside | None = None
    release: str | None = None
    cpu_slots: int = 0
    gpu_slots: int = 0
    load: float = 0.0
    free_mb: int = 0
    gpu_free: int = 0
    disk_free_mb: int | None = None
    health: tuple[str, ...] = ()
    attempts: tuple[Held, ...] = ()
    capabilities: Capabilities | None = None
    services: tuple[ServiceView, ...] = ()


class NodePage(Struct, frozen=True, kw_only=True):
    """All nodes by id."""

    items: tuple[NodeView, ...]
    next_cursor: str | None = None
    total: int | None = None


class NodeLoad(Struct, frozen=True, kw_only=True):
    """One node, without its attempts and capabilities, and how many jobs it holds; of the caller's own, where they see no others'."""

    node: NodeView
    jobs: int = 0


class QueueLoad(Struct, frozen=True, kw_only=True):
    """What a submitter has in a queue: jobs that nodes hold, and those that could be leased. `more`: there are more than were counted."""

    owner: str | None
    queue: str
    running: int = 0
    queued: int = 0
    more: bool = False


class Overview(Struct, frozen=True, kw_only=True):
    """The fleet at one moment: nodes by id (at most 1000), what is queued and running, and the newest failures, last to first."""

    at: datetime
    nodes: tuple[NodeLoad, ...] = ()
    queues: tuple[QueueLoad, ...] = ()
    failures: tuple[JobView, ...] = ()


class PageQuery(Struct, frozen=True, kw_only=True):
    """Where to go on and how many."""

    cursor: str | None = None
    limit: int = 100
    count: bool = False


class DrainRequest(Struct, frozen=True, kw_only=True):
    """No new work for a node; what still runs after `timeout_s` is cancelled and retried elsewhere (absent: let it finish)."""

    reason: str | None = None
    timeout_s: float | None = None


class ReasonRequest(Struct, frozen=True, kw_only=True):
    """Why a node is cordoned or retired; shown with it."""

    reason: str | None = None


class PoolRequest(Struct, frozen=True, kw_only=True):
    """The pool that a node is moved to."""

    pool: str
