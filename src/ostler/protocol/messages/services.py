"""Between people and coordinator: services of nodes, and commands to them."""

from collections.abc import Mapping
from datetime import datetime

from msgspec import Struct, field

from ostler.model.job import JobState
from ostler.model.node import NodeState
from ostler.model.service import Desired, Health, ServiceState, Verb


class ServiceView(Struct, frozen=True, kw_only=True):
    """One service of one node, as the node saw it when it last had news (`told_at`; None: it has not told yet).

    `health` is stale once nothing was heard of the node for five minutes. `since` is when the service came into this state, `restarts`
    how often the node started it anew after a crash since a person last asked for something, `retry_s` how long it then had until
    the next time. `metrics` are numbers that the service tells of itself.
    """

    name: str
    node_id: str
    node_state: NodeState
    pool: str
    state: ServiceState | None = None
    health: Health = Health.UNKNOWN
    desired: Desired | None = None
    unit: str = ""
    since: datetime | None = None
    pid: int | None = None
    restarts: int = 0
    retry_s: float | None = None
    message: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    told_at: datetime | None = None


class ServicePage(Struct, frozen=True, kw_only=True):
    """Services by name, each by node."""

    items: tuple[ServiceView, ...]
    next_cursor: str | None = None


class ServiceQuery(Struct, frozen=True, kw_only=True):
    """Where to go on and how many; of one `node` alone."""

    cursor: str | None = None
    limit: int = 100
    node: str | None = None


class ServiceRequest(Struct, frozen=True, kw_only=True):
    """Whom a command is for: `any` node that declares the service, `all` of them, the id of one, or selectors (`pool=NAME`,
    `tag=NAME`) that must all hold, as a list. Without `on` the only node that declares it; for `status` all that do.

    A delivery that found its node for `ttl_s` not to be there is not carried out any more. `timeout_s` is how long carrying it out may
    take, `retries` how often it is tried again where it fails.
    """

    on: str | tuple[str, ...] | None = None
    ttl_s: float = 300.0
    timeout_s: float = 300.0
    retries: int | None = None


class Delivery(Struct, frozen=True, kw_only=True):
    """One job of a command: for this node, or where none is named for exactly one of those that match, whichever is first."""

    job_id: str
    node_id: str | None = None
    state: JobState = JobState.QUEUED


class LeftOut(Struct, frozen=True, kw_only=True):
    """One node that matches and gets nothing, and why. `unreached`: it is one of the fleet's and declares the service."""

    node_id: str
    reason: str
    unreached: bool = False


class ServiceResponse(Struct, frozen=True, kw_only=True):
    """What a command became: a delivery for each node, or one for any. Several are a group.

    Of those `left_out` at most the first hundred are named.
    """

    service: str
    verb: Verb
    deliveries: tuple[Delivery, ...]
    group_id: str | None = None
    left_out: tuple[LeftOut, ...] = ()
    left_out_count: int = 0
