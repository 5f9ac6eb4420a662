"""Join tokens and API tokens: `ostler_<kind>_<id>_<secret>`, of which only the sha256 is stored."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

from ostler.coordinator.operations.views import check_limit, read_cursor, write_cursor
from ostler.coordinator.store.times import span, when, when_or_none
from ostler.coordinator.store.tx import Row, Tx
from ostler.model.access import Role
from ostler.model.errors import Conflict, Forbidden, InvalidSpec, NotFound, Problem, Unauthenticated
from ostler.model.manifest import DEFAULT_POOL, NAME
from ostler.protocol.messages import PageQuery, RegisterRequest, TokenKind, TokenPage, TokenRequest, TokenView

MAX_USES = 10_000
MAX_LIFE_S = 366 * 86400.0
MAX_NOTE = 200
_COLUMNS = "token_id, kind, created_at, expires_at, uses_left, revoked_at, note, role, principal, pool"
ADMIN = "admin"  # the principal of the coordinator's own token
_GOOD = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?) AND (uses_left IS NULL OR uses_left > 0)"


class ApiToken(NamedTuple):
    """What a good API token says of who shows it; `expires_at` in microseconds."""

    token_id: str
    role: Role
    principal: str
    expires_at: int | None


def create_token(tx: Tx, request: TokenRequest) -> TokenView:
    """Make a token; `token` is in this answer and nowhere else. Raises InvalidSpec."""
    found = list(_kind_problems(request))
    if not 1 <= request.uses <= MAX_USES:
        found.append(Problem("uses", f"must be from 1 to {MAX_USES}"))
    if not 1 <= request.expires_s <= MAX_LIFE_S:
        found.append(Problem("expires_s", f"must be from 1 to {MAX_LIFE_S:.0f} (a year)"))
    if request.note is not None and len(request.note) > MAX_NOTE:
        found.append(Problem("note", f"is longer than {MAX_NOTE} characters"))
    if found:
        raise InvalidSpec("the token request is not valid", found)
    token_id = _word(5)
    token = f"ostler_{request.kind.value}_{token_id}_{_word(35)}"
    expires_at = tx.at + span(timedelta(seconds=request.expires_s))
    about: Row
    if request.kind is TokenKind.JOIN:
        about = (request.uses, None, request.note, None, None, request.pool or DEFAULT_POOL)
    else:
        about = (None, None, request.note, request.role, request.principal or token_id, None)
    row = (token_id, request.kind.value, tx.at, expires_at, *about)
    _insert(tx, row, token)
    return _view(row, token)


def _kind_problems(request: TokenRequest) -> Iterator[Problem]:
    """What does not belong to a token of this kind, or must."""
    if request.kind is TokenKind.JOIN:
        for name in ("role", "principal"):
            if getattr(request, name) is not None:
                yield Problem(name, "belongs to an API token; a join token has a `pool`")
        if request.pool is not None and not NAME.fullmatch(request.pool):
            yield Problem("pool", "must be 1 to 63 letters, digits, '.', '_' or '-'")
        return
    if request.role is None:
        yield Problem("role", f"is missing: one of {', '.join(Role)}")
    if request.pool is not None:
        yield Problem("pool", "belongs to a join token")
    if request.principal is not None and not NAME.fullmatch(request.principal):
        yield Problem("principal", "must be 1 to 63 letters, digits, '.', '_' or '-'")


def _word(size: int) -> str:
    return base64.b32encode(secrets.token_bytes(size)).decode().lower()


def digest_of(token: str) -> bytes:
    """What is stored of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _insert(tx: Tx, row: Row, token: str) -> None:
    tx.run(f"INSERT INTO tokens ({_COLUMNS}, digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, digest_of(token)))  # noqa: S608


def _view(row: Row, token: str | None = None) -> TokenView:
    token_id, kind, created_at, expires_at, uses_left, revoked_at, note, role, principal, pool = row
    return TokenView(
        token_id=token_id, kind=TokenKind(kind), created_at=when(created_at), expires_at=when_or_none(expires_at),
        uses_left=uses_left, revoked_at=when_or_none(revoked_at), note=note, token=token,
        role=Role(role) if role else None, principal=principal, pool=pool,
    )  # fmt: skip


def _find(tx: Tx, kind: TokenKind, token: str) -> Row | None:
    """The row of a token, good or not. The look-up is by digest, whose prefixes nobody can steer; the comparison is in constant
    time.
    """
    digest = digest_of(token)
    row = tx.row(f"SELECT {_COLUMNS}, digest FROM tokens WHERE digest = ? AND kind = ?", (digest, kind.value))  # noqa: S608
    return row if row is not None and hmac.compare_digest(bytes(row[-1]), digest) else None


def _why_not(row: Row | None, now: int) -> str | None:
    if row is None:
        return "is not known"
    _, _, _, expires_at, _, revoked_at, *_ = row
    if revoked_at is not None:
        return f"was revoked at {when(revoked_at).isoformat(timespec='seconds')}"
    if expires_at is not None and expires_at <= now:
        return f"expired at {when(expires_at).isoformat(timespec='seconds')}"
    return None


def use_join_token(tx: Tx, token: str, request: RegisterRequest | None = None) -> str:
    """Take one use of a join token and answer its id; call it in the same transaction as `enrol_node`.

    A node that asks again with the key that this token enrolled (its first answer was lost) takes no second use: pass its
    `request`. Raises Unauthenticated (unknown, expired, revoked, used up).
    """
    row = _find(tx, TokenKind.JOIN, token)
    why = _why_not(row, tx.at)
    if row is None or why is not None:
        raise Unauthenticated(f"the join token {why}", hint="make a new one: `ostler token create --join`")
    token_id: str = row[0]
    if request is not None and tx.row(
        "SELECT 1 FROM nodes WHERE node_id = ? AND public_key = ? AND token_id = ? AND state <> 'retired'",
        (request.node_id, request.public_key, token_id),
    ):
        return token_id
    if not tx.run("UPDATE tokens SET uses_left = uses_left - 1 WHERE token_id = ? AND uses_left > 0", (token_id,)):
        raise Unauthenticated("the join token is used up", hint="make a new one: `ostler token create --join --uses N`")
    return token_id


def check_api_token(tx: Tx, token: str) -> ApiToken:
    """Who shows a good API token, which is compared in constant time; raises Unauthenticated. For `Store.read`."""
    row = _find(tx, TokenKind.API, token)
    why = _why_not(row, tx.at)
    if row is None or why is not None:
        raise Unauthenticated(
            f"the API token {why}",
            hint="put a good one into OSTLER_TOKEN; an admin makes it: `ostler token create --role ROLE --name NAME`",
        )
    return ApiToken(row[0], Role(row[7]), row[8], row[3])


def roles_of(tx: Tx, principal: str | None) -> set[Role]:
    """The roles for which a principal has a good API token at this moment. Works in a read."""
    rows = tx.rows(f"SELECT DISTINCT role FROM tokens WHERE principal = ? AND role IS NOT NULL AND {_GOOD}", (principal, tx.at))  # noqa: S608
    return {Role(row[0]) for row in rows}


def list_tokens(tx: Tx, query: PageQuery) -> TokenPage:
    """One page of tokens, newest first, without their secrets. For `Store.read`."""
    check_limit(query.limit)
    place = read_cursor(query.cursor, (int, str))
    after = "" if place is None else "WHERE created_at < ? OR (created_at = ? AND token_id < ?)"
    rows = tx.rows(
        f"SELECT {_COLUMNS} FROM tokens {after} ORDER BY created_at DESC, token_id DESC LIMIT ?",  # noqa: S608 - fragments of ours
        (*([] if place is None else [place[0], place[0], place[1]]), query.limit + 1),
    )
    page = rows[: query.limit]
    total = tx.row("SELECT count(*) FROM tokens") if query.count else None
    return TokenPage(
        items=tuple(_view(row) for row in page),
        next_cursor=write_cursor(page[-1][2], page[-1][0]) if len(rows) > query.limit else None,
        total=total[0] if total else None,
    )


def revoke_token(tx: Tx, token_id: str, role: Role = Role.ADMIN) -> TokenView:
    """Make a token useless from now on; a second call is no error. `role` is the caller's.

    Raises NotFound; Forbidden for an API token where the caller is no admin; Conflict for the last good token of an admin.
    """
    row = tx.row(f"SELECT {_COLUMNS} FROM tokens WHERE token_id = ?", (token_id,))  # noqa: S608 - our own constant
    if row is None:
        raise NotFound(f"there is no token {token_id}", hint="see `ostler token list`")
    if row[1] == TokenKind.API and role is not Role.ADMIN:
        raise Forbidden(f"{token_id} is an API token, which only an admin revokes")
    if row[5] is None:
        others = tx.row(f"SELECT 1 FROM tokens WHERE role = 'admin' AND token_id <> ? AND {_GOOD} LIMIT 1", (token_id, tx.at))  # noqa: S608
        if row[7] == Role.ADMIN and others is None:
            raise Conflict(
                "this is the last good token of an admin: nobody could make tokens any more", hint="make another one first"
            )
        tx.run("UPDATE tokens SET revoked_at = ? WHERE token_id = ? AND revoked_at IS NULL", (tx.at, token_id))
        row = (*row[:5], tx.at, *row[6:])
        tx.wake(("token", token_id))
    return _view(row)


def ensure_admin_token(tx: Tx, token: str) -> str:
    """Make sure that this API token (its text chosen by the caller) is known and good; answers its id. Idempotent.

    One that was revoked is good again: who can put it into the coordinator's own directory may do so.
    """
    row = _find(tx, TokenKind.API, token)
    if row is None:
        token_id = f"admin{_word(5)}"
        _insert(
            tx,
            (token_id, TokenKind.API.value, tx.at, None, None, None, "the coordinator's own", Role.ADMIN.value, ADMIN, None),
            token,
        )
        return token_id
    tx.run("UPDATE tokens SET revoked_at = NULL, expires_at = NULL, role = 'admin' WHERE token_id = ?", (row[0],))
    found: str = row[0]
    return found
