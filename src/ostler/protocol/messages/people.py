"""Between people and coordinator: tokens, secrets, quotas, and what is kept for how long."""

from datetime import datetime
from typing import Any

from msgspec import Struct

from ostler.model.access import Role
from ostler.model.enumeration import Word


class TokenKind(Word):
    """Which door a stored token opens."""

    JOIN = "join"
    API = "api"


class TokenRequest(Struct, frozen=True, kw_only=True):
    """Asks for a join token that enrols `uses` nodes into `pool` within `expires_s` seconds, or for an API token.

    An API token has a `role`, and is one of `principal`: whoever shows it owns the jobs of that name. Without a name it is a
    principal of its own.
    """

    kind: TokenKind = TokenKind.JOIN
    role: Role | None = None
    principal: str | None = None
    pool: str | None = None
    uses: int = 1
    expires_s: float = 3600.0
    note: str | None = None


class TokenView(Struct, frozen=True, kw_only=True):
    """One stored token; `token` itself is shown once, when it is made."""

    token_id: str
    kind: TokenKind
    created_at: datetime
    role: Role | None = None
    principal: str | None = None
    pool: str | None = None
    expires_at: datetime | None = None
    uses_left: int | None = None
    revoked_at: datetime | None = None
    note: str | None = None
    token: str | None = None


class TokenPage(Struct, frozen=True, kw_only=True):
    """All tokens, newest first."""

    items: tuple[TokenView, ...]
    next_cursor: str | None = None
    total: int | None = None


class RetentionQuery(Struct, frozen=True, kw_only=True):
    """With `dry_run` also what would go now: the first `limit` removals one by one."""

    dry_run: bool = False
    limit: int = 50


class RetentionPass(Struct, frozen=True, kw_only=True):
    """One pass: how many of each kind went, how many bytes that freed, and how many bytes of `logs`, `artifacts` and `blobs` are left.

    Artifacts are counted as often as they were delivered; blobs are files, which equal bytes share.
    """

    at: datetime
    took_s: float
    removed: dict[str, int]
    freed: dict[str, int]
    used: dict[str, int]


class PlannedRemoval(Struct, frozen=True, kw_only=True):
    """One thing that would go: a `job` whole, its `logs` or its `artifacts`; `size` in bytes."""

    job_id: str
    part: str
    size: int
    why: str


class RetentionPlan(Struct, frozen=True, kw_only=True):
    """What would go now, by kind in numbers and bytes, and the first of it one by one; `used` is what would be left."""

    counts: dict[str, int]
    sizes: dict[str, int]
    items: tuple[PlannedRemoval, ...]
    used: dict[str, int]


class RetentionView(Struct, frozen=True, kw_only=True):
    """The policy as configured, what the last pass did (null before the first), and the plan where one was asked for."""

    policy: dict[str, Any]
    last: RetentionPass | None = None
    plan: RetentionPlan | None = None


class SecretQuery(Struct, frozen=True, kw_only=True):
    """Which secret a name means: one's own, or the one that is `shared`, whose jobs and places `roles` and `pools` bound (names with
    commas between them; absent: all)."""

    shared: bool = False
    roles: str | None = None
    pools: str | None = None


class SecretView(Struct, frozen=True, kw_only=True):
    """What is told of a secret: never its value. `version` grows each time it is set; `roles` and `pools` are empty for all."""

    name: str
    shared: bool
    version: int
    created_at: datetime
    updated_at: datetime
    updated_by: str
    roles: tuple[Role, ...] = ()
    pools: tuple[str, ...] = ()


class SecretPage(Struct, frozen=True, kw_only=True):
    """The caller's own secrets and the shared ones that the caller may name, by name."""

    items: tuple[SecretView, ...]


class QuotaRequest(Struct, frozen=True, kw_only=True):
    """All limits of a principal; absent or null: none. `money` is a decimal as text, such as "12.50"."""

    queued: int | None = None
    running: int | None = None
    cpu_hours: float | None = None
    gpu_hours: float | None = None
    money: str | None = None


class QuotaUse(Struct, frozen=True, kw_only=True):
    """What is taken: jobs `queued` and `running` now (null where nobody limits them), and the use of this month, UTC, with what runs."""

    queued: int | None
    running: int | None
    cpu_hours: float
    gpu_hours: float
    money: str


class QuotaView(Struct, frozen=True, kw_only=True):
    """How a principal stands; `limits` is null without a quota, `resets_at` when the month's use begins anew."""

    principal: str
    limits: QuotaRequest | None
    used: QuotaUse
    month: str
    resets_at: datetime


class QuotaPage(Struct, frozen=True, kw_only=True):
    """Principals by name."""

    items: tuple[QuotaView, ...]
    next_cursor: str | None = None
    total: int | None = None


class QuotaQuery(Struct, frozen=True, kw_only=True):
    """Where to go on and how many; `mine`: the caller's alone."""

    cursor: str | None = None
    limit: int = 100
    mine: bool = False
