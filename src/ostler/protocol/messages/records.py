"""Between people and coordinator: events, webhooks and the audit log."""

from datetime import datetime

from msgspec import Struct


class FleetEvent(Struct, frozen=True, kw_only=True):
    """One event of the fleet; `cursor` is where a reader goes on after it. Events of nodes alone have no job and no owner."""

    cursor: str
    at: datetime
    kind: str
    job_id: str | None = None
    group_id: str | None = None
    owner: str | None = None
    attempt: int | None = None
    node_id: str | None = None
    message: str | None = None


class EventPage(Struct, frozen=True, kw_only=True):
    """Events, first to last; `next_cursor` is where to go on, also where nothing more is yet; `more` says whether something is."""

    items: tuple[FleetEvent, ...]
    next_cursor: str
    more: bool = False


class EventQuery(Struct, frozen=True, kw_only=True):
    """Which events: behind the cursor `after` (`latest`: from now on; absent: from the oldest that is kept), or of the last `since_s`
    seconds. `kind` may hold several, comma-separated; `group` is an array's id; `follow` streams on.
    """

    after: str | None = None
    since_s: float | None = None
    job: str | None = None
    node: str | None = None
    group: str | None = None
    kind: str | None = None
    limit: int = 100
    follow: bool = False


class WebhookRequest(Struct, frozen=True, kw_only=True):
    """Where to deliver events, and which: all that the caller may see where `kinds` is empty."""

    url: str
    kinds: tuple[str, ...] = ()


class WebhookView(Struct, frozen=True, kw_only=True):
    """One webhook. `secret` signs its deliveries and is shown once, when it is made. `owner`: of whose jobs it tells; null is all.

    `failures` counts deliveries that failed in a row, `error` says why the latest did. One that is disabled gets nothing any more.
    """

    webhook_id: str
    url: str
    kinds: tuple[str, ...]
    created_at: datetime
    owner: str | None = None
    failures: int = 0
    next_try_at: datetime | None = None
    error: str | None = None
    disabled_at: datetime | None = None
    secret: str | None = None


class WebhookPage(Struct, frozen=True, kw_only=True):
    """Webhooks by id."""

    items: tuple[WebhookView, ...]
    next_cursor: str | None = None


class WebhookDelivery(Struct, frozen=True, kw_only=True):
    """The body of a delivery: events, first to last. One that was sent before may come again; its `cursor` tells. Empty: a test."""

    webhook_id: str
    events: tuple[FleetEvent, ...]


class WebhookTest(Struct, frozen=True, kw_only=True):
    """What came of a test delivery: the status of the answer, or why there was none that is good."""

    ok: bool
    status: int | None = None
    error: str | None = None


class AuditView(Struct, frozen=True, kw_only=True):
    """One row of the audit log. `action` is a route's name, `target` what its path named, `peer` the address that called."""

    id: int
    at: datetime
    action: str
    status: int
    principal: str | None = None
    token_id: str | None = None
    role: str | None = None
    target: str | None = None
    peer: str | None = None
    request_id: str | None = None
    detail: str | None = None


class AuditPage(Struct, frozen=True, kw_only=True):
    """One page of the audit log, newest first; it may be empty and not the last where the filters match little."""

    items: tuple[AuditView, ...]
    next_cursor: str | None = None


class AuditQuery(Struct, frozen=True, kw_only=True):
    """Filters of `GET /audit`: what is equal to these, of the last `since_s` seconds."""

    principal: str | None = None
    action: str | None = None
    target: str | None = None
    status: int | None = None
    since_s: float | None = None
    cursor: str | None = None
    limit: int = 100


class AuditFinding(Struct, frozen=True, kw_only=True):
    """One thing in the audit log that is not as it was sealed; `row` is its id where it is about one row."""

    message: str
    row: int | None = None


class AuditCheck(Struct, frozen=True, kw_only=True):
    """A piece of the audit log that was verified; ask on with `after=` its `next` until that is null.

    `head` is the digest of the last seal so far, `unsealed` how many rows are too young to have one, `key` the public key in base64,
    `head_found` whether a seal of this piece has the digest that was asked for.
    """

    rows: int
    seals: int
    findings: tuple[AuditFinding, ...]
    key: str
    head: str | None = None
    head_found: bool | None = None
    unsealed: int = 0
    next: int | None = None


class AuditCheckQuery(Struct, frozen=True, kw_only=True):
    """Where to go on verifying: behind the seal that ends at row `after`. `head` is a digest that was noted earlier."""

    after: int = 0
    head: str | None = None
