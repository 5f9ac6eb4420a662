"""The audit log: what principals did to what, from where. Rows are only ever added, and sealed in batches afterwards."""

from collections.abc import Callable, Sequence
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar
from urllib.parse import urlsplit

from ostler.coordinator.operations.quotas import Standing
from ostler.coordinator.operations.views import check_limit, read_cursor, write_cursor
from ostler.coordinator.store.beside import beside_if, beside_others, runs_beside
from ostler.coordinator.store.times import when
from ostler.coordinator.store.tx import Row, Tx
from ostler.model.words import many
from ostler.protocol import audit
from ostler.protocol import messages as m

P = ParamSpec("P")
T = TypeVar("T")

BATCH = 1000  # rows under one seal
STRIDE = 20_000  # ids that one step of a filtered list looks at
STEPS = 20
MAX_WORDS = 300
UNREADABLE = "(unreadable)"


class Entry(NamedTuple):
    """Who calls what, from where; `status` is how it is answered where all goes well."""

    principal: str | None
    token_id: str | None
    role: str | None
    action: str
    target: str | None
    status: int
    peer: str | None
    request_id: str | None


@beside_others
def append(tx: Tx, entry: Entry, detail: str | None = None) -> None:
    """One row."""
    tx.run(_INSERT, (tx.at, *entry, detail))


_INSERT = (
    "INSERT INTO audit (at, principal, token_id, role, action, target, status, peer, request_id, detail) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


@beside_if(lambda _entry, operation, *args: runs_beside(operation, args))
def audited(tx: Tx, entry: Entry, operation: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """An operation and its row: both are durable, or neither is."""
    value = operation(tx, *args, **kwargs)
    append(tx, entry, detail_of(value))
    return value


def detail_of(value: Any) -> str | None:
    """What of an answer belongs into the log: what was made, never a secret."""
    match value:
        case tuple() if value and isinstance(value[0], m.SubmitResponse):
            return detail_of(value[0]) + (", made before with this key" if value[1] else "")  # type: ignore[operator]
        case m.SubmitResponse(items=items):
            return items[0].job_id if len(items) == 1 else f"{len(items)} jobs, {items[0].job_id} to {items[-1].job_id}"
        case m.TokenView(token_id=token_id, kind=kind, role=role, principal=principal, pool=pool):
            return " ".join(str(one) for one in (kind.value, token_id, role, principal, pool) if one is not None)
        case m.WebhookView(webhook_id=webhook_id, url=url):
            return f"{webhook_id} at {urlsplit(url).hostname}"  # the rest of a URL may be what lets one in
        case Standing(quota=quota) if quota is not None:
            return quota.text()
        case m.KeyStanding(key_id=key_id, next_key_id=next_key_id):
            return f"key {key_id}, to be replaced by {next_key_id or 'none'}"
        case m.SecretView(shared=shared, version=version):
            return f"{'shared' if shared else 'own'}, version {version}"
        case m.JobView(job_id=job_id):
            return job_id
        case m.ReleaseView(digest=digest, signed_by=signed_by):
            return f"digest {digest}, signed by {', '.join(signed_by)}"
        case m.RolloutView(release=release, state=state, counts=counts):
            return f"{release} onto {many(sum(counts.values()), 'node')}, {state}"
        case Standing(quota=quota):
            return "no quota" if quota is None else quota.text()
        case m.RetentionPass(removed=removed):
            return "removed " + (", ".join(f"{removed[kind]} {kind}" for kind in sorted(removed)) or "nothing")
    return None


# --- reading -----------------------------------------------------------------------------------------------------------------


def list_audit(tx: Tx, query: m.AuditQuery) -> m.AuditPage:
    """One page, newest first; a page may be empty and not the last where the filters match little."""
    check_limit(query.limit)
    place = read_cursor(query.cursor, (int,))
    row = tx.row("SELECT max(id) FROM audit")
    below = int(place[0]) if place else (int(row[0]) if row and row[0] is not None else 0) + 1
    filters = {"principal": query.principal, "action": query.action, "target": query.target, "status": query.status}
    given = {name: value for name, value in filters.items() if value is not None}
    where = "".join(f" AND {name} = ?" for name in given)
    params = [*given.values()]
    if query.since_s is not None:
        where, params = where + " AND at >= ?", [*params, tx.at - int(query.since_s * 1_000_000)]
    found: list[Row] = []
    for _ in range(STEPS):
        if below <= 1 or len(found) == query.limit:
            break
        above = max(0, below - STRIDE)
        rows = _rows(tx, f"id > ? AND id < ?{where} ORDER BY id DESC LIMIT ?", (above, below, *params, query.limit - len(found)))
        found += rows
        below = above + 1 if len(found) < query.limit else rows[-1][0]
    return m.AuditPage(items=tuple(_view(one) for one in found), next_cursor=write_cursor(below) if below > 1 else None)


def _view(row: Row) -> m.AuditView:
    if len(row) == 1:
        return m.AuditView(id=row[0], at=when(0), action=UNREADABLE, status=0)
    number, at, principal, token_id, role, action, target, status, peer, request_id, detail = row
    return m.AuditView(
        id=number, at=when(at), principal=principal, token_id=token_id, role=role, action=action, target=target, status=status,
        peer=peer, request_id=request_id, detail=detail,
    )  # fmt: skip


def _rows(tx: Tx, where: str, params: Sequence[Any]) -> list[Row]:
    """Rows of the log. One that somebody damaged so that it is text no longer is its id alone."""
    try:
        return tx.rows(f"SELECT {audit.COLUMNS} FROM audit WHERE {where}", params)  # noqa: S608 - columns and conditions of ours
    except Exception:
        found: list[Row] = []
        for (number,) in tx.rows(f"SELECT id FROM audit WHERE {where}", params):  # noqa: S608
            try:
                found += tx.rows(f"SELECT {audit.COLUMNS} FROM audit WHERE id = ?", (number,))  # noqa: S608
            except Exception:
                found.append((number,))
        return found


# --- seals -------------------------------------------------------------------------------------------------------------------


def seal(tx: Tx, sign: audit.Sign) -> int:
    """Seal the oldest rows that are not, at most a batch; how many."""
    last = tx.row("SELECT last_id, digest FROM seals ORDER BY last_id DESC LIMIT 1")
    after, previous = (int(last[0]), bytes(last[1])) if last else (0, audit.GENESIS)
    rows = tx.rows(
        f"SELECT {audit.COLUMNS} FROM audit a WHERE a.id > ? AND {tx.settled('audit', 'a')} ORDER BY a.id LIMIT ?",  # noqa: S608
        (after, BATCH),
    )
    if not rows:
        return 0
    one = audit.seal(rows, after=after, previous=previous, at=tx.at, sign=sign)
    tx.run(
        f"INSERT INTO seals ({audit.SEAL_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608 - our own constant
        (one.first_id, one.last_id, one.at, one.leaves, one.digest, one.signature),
    )
    return len(rows)


def old_seal(tx: Tx, age_us: int) -> tuple[int, bytes] | None:
    """The last seal (where it ends, its digest) all of whose rows are older than that; None where nothing more is. For `Store.read`."""
    found, after = None, _cut_at(tx)
    while rows := tx.rows("SELECT last_id, at, digest FROM seals WHERE last_id > ? ORDER BY last_id LIMIT ?", (after, BATCH)):
        for last_id, at, digest in rows:
            if tx.at - at <= age_us:
                return found
            found = (int(last_id), bytes(digest))
        after = rows[-1][0]
    return found


def _cut_at(tx: Tx) -> int:
    row = tx.row("SELECT max(last_id) FROM audit_cuts")
    return int(row[0]) if row and row[0] is not None else 0


def cut_off(tx: Tx, last_id: int, digest: bytes, sign: audit.Sign) -> None:
    """Note, signed, that rows up to the end of a seal go for their age. It comes before they do, and replaces the note before it."""
    one = audit.cut(last_id, tx.at, digest, sign)
    tx.run("DELETE FROM audit_cuts")
    tx.run(f"INSERT INTO audit_cuts ({audit.CUT_COLUMNS}) VALUES (?, ?, ?, ?)", (one.last_id, one.at, one.digest, one.signature))  # noqa: S608


def remove_rows(tx: Tx, limit: int) -> int:
    """Remove some of the rows up to the cut; how many."""
    return tx.run("DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE id <= ? ORDER BY id LIMIT ?)", (_cut_at(tx), limit))


def allowed(tx: Tx, verifier: audit.Verifier) -> list[audit.Finding]:
    """Tell a verifier of the cut, where there is one. For `Store.read`."""
    rows = tx.rows(f"SELECT {audit.CUT_COLUMNS} FROM audit_cuts")  # noqa: S608 - our own constant
    return [finding for row in rows for finding in verifier.allow(audit.Cut(*row))]


class Checked(NamedTuple):
    """A piece of the log that was verified; `done` where nothing sealed is left, and then `unsealed` rows follow."""

    findings: list[audit.Finding]
    done: bool
    unsealed: int


def seal_before(tx: Tx, last_id: int) -> bytes | None:
    """The digest of the seal that ends at a row; None where there is none."""
    row = tx.row("SELECT digest FROM seals WHERE last_id = ?", (last_id,))
    return bytes(row[0]) if row else None


def verify(tx: Tx, verifier: audit.Verifier, count: int) -> Checked:
    """Go on verifying, over at most so many seals. For `Store.read`."""
    sql = f"SELECT {audit.SEAL_COLUMNS} FROM seals WHERE last_id > ? ORDER BY last_id LIMIT ?"  # noqa: S608 - our own constant
    seals = tx.rows(sql, (verifier.last_id, count))
    findings: list[audit.Finding] = []
    for row in seals:
        one = audit.Seal(*row)
        since = "" if verifier.last_id == 0 else "id > ? AND "  # ids before the first are nobody's, and must be seen
        params = (one.last_id,) if verifier.last_id == 0 else (verifier.last_id, one.last_id)
        findings += verifier.check(one, _rows(tx, f"{since}id <= ? ORDER BY id", params))
    if len(seals) == count:
        return Checked(findings, False, 0)
    left = tx.row("SELECT count(*) FROM audit WHERE id > ?", (verifier.last_id,))
    return Checked(findings, True, int(left[0]) if left else 0)
