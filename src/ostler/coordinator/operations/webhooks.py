"""Webhooks in the store. The cursor of each is its outbox: events behind it are still to be delivered, first to last."""

from datetime import timedelta
from typing import NamedTuple

from msgspec.structs import replace

from ostler.coordinator.operations import events
from ostler.coordinator.operations.views import check_limit, read_cursor, write_cursor
from ostler.coordinator.store.beside import beside_others
from ostler.coordinator.store.times import span, when, when_or_none
from ostler.coordinator.store.tx import Row, Tx
from ostler.coordinator.webhooks import next_try
from ostler.model.errors import Conflict, NotFound
from ostler.protocol.codec import decode, encode
from ostler.protocol.messages import PageQuery, WebhookPage, WebhookRequest, WebhookView

MAX_WEBHOOKS = 100  # of one principal, and of the fleet's own
MAX_ERROR = 300
TOPIC = ("webhooks",)
_COLUMNS = "webhook_id, owner, url, kinds, created_at, failures, due_at, error, disabled_at"


class Due(NamedTuple):
    """A webhook that has events to deliver, or to look through."""

    webhook_id: str
    owner: str | None
    url: str
    kinds: frozenset[str]
    sealed: bytes
    cursor: int


def add_webhook(tx: Tx, webhook_id: str, owner: str | None, request: WebhookRequest, sealed: bytes) -> WebhookView:
    """Tell a URL of events from now on: of the owner's jobs, or of everything. Raises InvalidSpec, and Conflict where there are many."""
    kinds = frozenset(request.kinds)
    events.check_kinds(kinds)
    same = "owner IS NULL" if owner is None else "owner = ?"
    row = tx.row(f"SELECT count(*) FROM webhooks WHERE {same}", () if owner is None else (owner,))  # noqa: S608 - a fragment of ours
    if row is not None and row[0] >= MAX_WEBHOOKS:
        raise Conflict(f"there are {MAX_WEBHOOKS} webhooks already", hint="remove one: `ostler webhook rm ID`")
    tx.run(
        "INSERT INTO webhooks (webhook_id, owner, url, kinds, sealed, cursor, created_at, failures) VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
        (webhook_id, owner, request.url, encode(sorted(kinds)).decode(), sealed, events.head(tx), tx.at),
    )
    return show_webhook(tx, webhook_id, owner)


def show_webhook(tx: Tx, webhook_id: str, owner: str | None) -> WebhookView:
    """One webhook; NotFound where it is not the owner's."""
    row = tx.row(f"SELECT {_COLUMNS} FROM webhooks WHERE webhook_id = ?", (webhook_id,))  # noqa: S608 - our own constant
    if row is None or (owner is not None and row[1] != owner):
        raise NotFound(f"there is no webhook {webhook_id}", hint="see `ostler webhook list`")
    return _view(row)


def _view(row: Row) -> WebhookView:
    webhook_id, owner, url, kinds, created_at, failures, due_at, error, disabled_at = row
    return WebhookView(
        webhook_id=webhook_id, owner=owner, url=url, kinds=tuple(decode(kinds, list[str], what="kinds")), created_at=when(created_at),
        failures=failures, next_try_at=None if disabled_at else when_or_none(due_at), error=error,
        disabled_at=when_or_none(disabled_at),
    )  # fmt: skip


def list_webhooks(tx: Tx, query: PageQuery, owner: str | None) -> WebhookPage:
    """One page by id."""
    check_limit(query.limit)
    place = read_cursor(query.cursor, (str,))
    params: list[object] = [place[0] if place else ""]
    mine = ""
    if owner is not None:
        mine = "AND owner = ?"
        params.append(owner)
    rows = tx.rows(
        f"SELECT {_COLUMNS} FROM webhooks WHERE webhook_id > ? {mine} ORDER BY webhook_id LIMIT ?",  # noqa: S608 - fragments of ours
        (*params, query.limit + 1),
    )
    page = rows[: query.limit]
    return WebhookPage(
        items=tuple(_view(row) for row in page), next_cursor=write_cursor(page[-1][0]) if len(rows) > query.limit else None
    )


def remove_webhook(tx: Tx, webhook_id: str, owner: str | None) -> WebhookView:
    """Deliver nothing more to it."""
    view = show_webhook(tx, webhook_id, owner)
    tx.run("DELETE FROM webhooks WHERE webhook_id = ?", (webhook_id,))
    return view


def enable_webhook(tx: Tx, webhook_id: str, owner: str | None) -> WebhookView:
    """Try again now, as if nothing had failed; also one that was disabled. It goes on where it stopped."""
    view = show_webhook(tx, webhook_id, owner)
    tx.run(
        "UPDATE webhooks SET failures = 0, failing_since = NULL, due_at = NULL, error = NULL, disabled_at = NULL WHERE webhook_id = ?",
        (webhook_id,),
    )
    tx.wake(TOPIC)
    return replace(view, failures=0, next_try_at=None, error=None, disabled_at=None)


def sealed_secret(tx: Tx, webhook_id: str) -> bytes:
    """What its deliveries are signed with, sealed."""
    row = tx.row("SELECT sealed FROM webhooks WHERE webhook_id = ?", (webhook_id,))
    if row is None:
        raise NotFound(f"there is no webhook {webhook_id}", hint="see `ostler webhook list`")
    return bytes(row[0])


# --- for the loop that delivers ----------------------------------------------------------------------------------------------


def due_webhooks(tx: Tx) -> tuple[list[Due], float | None]:
    """Those with something behind their cursor whose time it is, and in how many seconds it is the next one's. For `Store.read`."""
    rows = tx.rows(
        "SELECT webhook_id, owner, url, kinds, sealed, cursor, due_at FROM webhooks WHERE disabled_at IS NULL AND cursor < ?",
        (events.head(tx),),
    )
    now = [
        Due(webhook_id, owner, url, frozenset(decode(kinds, list[str], what="kinds")), bytes(sealed), cursor)
        for webhook_id, owner, url, kinds, sealed, cursor, due_at in rows
        if due_at is None or due_at <= tx.at
    ]
    later = [row[-1] - tx.at for row in rows if row[-1] is not None and row[-1] > tx.at]
    return now, min(later) / 1e6 if later else None


@beside_others
def delivered(tx: Tx, webhook_id: str, cursor: int) -> bool:
    """All up to the cursor arrived, or was none of its business; False where the webhook is gone or disabled."""
    return bool(
        tx.run(
            "UPDATE webhooks SET cursor = ?, failures = 0, failing_since = NULL, due_at = NULL, error = NULL "
            "WHERE webhook_id = ? AND cursor <= ? AND disabled_at IS NULL",
            (cursor, webhook_id, cursor),
        )
    )


@beside_others
def failed(tx: Tx, webhook_id: str, error: str) -> WebhookView | None:
    """A delivery failed: it is tried again later, or after days of that no more. None where the webhook is gone."""
    row = tx.row("SELECT failures, failing_since FROM webhooks WHERE webhook_id = ? AND disabled_at IS NULL", (webhook_id,))
    if row is None:
        return None
    failures, since = row[0] + 1, tx.at if row[1] is None else row[1]
    wait = next_try(failures, timedelta(microseconds=tx.at - since))
    tx.run(
        "UPDATE webhooks SET failures = ?, failing_since = ?, error = ?, due_at = ?, disabled_at = ? WHERE webhook_id = ?",
        (
            failures,
            since,
            error[:MAX_ERROR],
            None if wait is None else tx.at + span(wait),
            tx.at if wait is None else None,
            webhook_id,
        ),
    )
    return show_webhook(tx, webhook_id, None)
