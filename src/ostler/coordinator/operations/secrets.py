"""Secrets: set, listed, deleted, named by jobs, and given to the node that runs one. Only sealed values reach the store.

A secret belongs to a principal, whose jobs alone may name it and for whom alone it exists, or it is shared (owner ""): `roles` says
who may name it, `pools` where such jobs may run. A name means the owner's own secret first, then the shared one.
"""

from collections.abc import Iterable, Sequence

from ostler.coordinator.operations import sessions
from ostler.coordinator.operations.changes import load
from ostler.coordinator.operations.tokens import roles_of
from ostler.coordinator.sealing import Sealer
from ostler.coordinator.store.times import when
from ostler.coordinator.store.tx import Row, Tx
from ostler.model.access import Role
from ostler.model.errors import Forbidden, InvalidSpec, NotFound, Problem, StaleAttempt
from ostler.model.manifest import NAME, Manifest
from ostler.model.resources import pool_of
from ostler.protocol.codec import decode, encode
from ostler.protocol.messages import SecretPage, SecretQuery, SecretValue, SecretValues, SecretView

PURPOSE = "secret"
MAX_SECRETS = 1000  # of one principal, and shared
SHARED = ""
_COLUMNS = "name, owner, roles, pools, version, created_at, updated_at, updated_by"


def set_secret(tx: Tx, sealer: Sealer, name: str, value: bytes, *, query: SecretQuery, principal: str) -> SecretView:
    """Make a secret, or give one another value (and scope); raises InvalidSpec."""
    roles, pools = _scope(query)
    owner = SHARED if query.shared else principal
    row = tx.row("SELECT version, created_at FROM secrets WHERE owner = ? AND name = ?", (owner, name))
    if row is None:
        count = tx.row("SELECT count(*) FROM secrets WHERE owner = ?", (owner,))
        if count is not None and count[0] >= MAX_SECRETS:
            raise InvalidSpec(f"there are {count[0]} secrets already, and no room for more", hint="`ostler secret rm` makes some")
    version, created_at = (1, tx.at) if row is None else (row[0] + 1, row[1])
    written = (name, owner, encode(roles).decode(), encode(pools).decode(), version, created_at, tx.at, principal)
    sealed = sealer.seal(PURPOSE, _context(owner, name, version), value)
    tx.run("DELETE FROM secrets WHERE owner = ? AND name = ?", (owner, name))
    tx.run(f"INSERT INTO secrets ({_COLUMNS}, sealed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*written, sealed))  # noqa: S608
    return _view(written)


def list_secrets(tx: Tx, principal: str, role: Role) -> SecretPage:
    """The principal's own, and those shared ones that the role may name. For `Store.read`."""
    rows = tx.rows(
        f"SELECT {_COLUMNS} FROM secrets WHERE owner IN (?, ?) ORDER BY name, owner DESC",  # noqa: S608 - our own constant
        (principal, SHARED),
    )
    views = [_view(row) for row in rows]
    return SecretPage(items=tuple(view for view in views if not view.shared or _may_name(role, view.roles)))


def delete_secret(tx: Tx, name: str, query: SecretQuery, principal: str) -> SecretView:
    """Delete one's own secret, or the shared one; raises NotFound."""
    owner = SHARED if query.shared else principal
    row = tx.row(f"SELECT {_COLUMNS} FROM secrets WHERE owner = ? AND name = ?", (owner, name))  # noqa: S608
    if row is None:
        kind = "shared secret" if query.shared else f"secret of {principal}'s"
        raise NotFound(f"there is no {kind} called {name}", hint="see `ostler secret list`; `--shared` means the shared one")
    tx.run("DELETE FROM secrets WHERE owner = ? AND name = ?", (owner, name))
    return _view(row)


def check_named(tx: Tx, manifests: Iterable[Manifest], principal: str | None, role: Role) -> None:
    """Raises InvalidSpec where a manifest names a secret that is not there, that its submitter may not name, or that must not come
    to the pool in which the job would run. For `Store.read`.
    """
    found: dict[tuple[str, str], Problem] = {}
    known: dict[str, list[str] | None] = {}
    for manifest in manifests:
        pool = pool_of(manifest.requirements)
        for number, use in enumerate(manifest.secrets):
            path = f"secrets[{number}].name"
            if use.name not in known:
                known[use.name] = _pools_for(tx, principal, use.name, role)
            pools = known[use.name]
            if pools is None:
                found[path, use.name] = Problem(path, f"there is no secret {use.name!r} that you may name")
            elif pools and pool is not None and pool not in pools:
                message = (
                    f"{use.name!r} is for jobs in the pool {' or '.join(pools)}; this one runs in {pool} (requirements.pool)"
                )
                found[path, use.name] = Problem(path, message)
    if found:
        raise InvalidSpec(
            "the manifest names secrets that it cannot have", list(found.values())[:100],
            hint="`ostler secret list` shows yours and those shared with you; `ostler secret set NAME` makes one",
        )  # fmt: skip


def _pools_for(tx: Tx, principal: str | None, name: str, role: Role) -> list[str] | None:
    """Where jobs that name it may run (nowhere named: everywhere), or None where there is none to be named."""
    row = _find(tx, principal, name)
    if row is None or (row[1] == SHARED and not _may_name(role, _roles(row))):
        return None
    return decode(row[3], list[str])


def check_named_by(tx: Tx, job_id: str, role: Role) -> None:
    """The same for a job that is submitted anew. For `Store.read`."""
    row = tx.row("SELECT s.body, j.owner FROM jobs j JOIN specs s ON s.job_seq = j.seq WHERE j.job_id = ?", (job_id,))
    if row is not None:
        check_named(tx, [decode(row[0], Manifest, what="manifest")], row[1], role)


def values_for(tx: Tx, sealer: Sealer, node_id: str, job_id: str, attempt: int, *, boot_epoch: str | None = None) -> SecretValues:
    """What an attempt's manifest names, opened. For `Store.read`.

    Raises StaleAttempt unless it is alive, acknowledged and this node's; NotFound for a secret that is gone; Forbidden for one that
    the job's owner may not name (now: another of that name may have gone since the submission), or that must not come to this
    node's pool; Unsealable.
    """
    sessions.current(tx, node_id, boot_epoch)
    case = load(tx, [job_id]).get(job_id)
    if case is None or not case.is_held_by(node_id, attempt) or case.acked_at is None:
        raise StaleAttempt(f"attempt {attempt} of job {job_id} is not acknowledged and held by {node_id}")
    row = tx.row(
        "SELECT s.body, j.owner, n.pool FROM jobs j JOIN specs s ON s.job_seq = j.seq, nodes n WHERE j.seq = ? AND n.node_id = ?",
        (case.seq, node_id),
    )
    spec, owner, pool = row or ("{}", None, "")
    manifest = decode(spec, Manifest, what="manifest")
    opened = {name: _open(tx, sealer, owner, name, pool) for name in {use.name for use in manifest.secrets}}
    return SecretValues(items=tuple(SecretValue(name=use.name, value=opened[use.name]) for use in manifest.secrets))


def _open(tx: Tx, sealer: Sealer, owner: str | None, name: str, pool: str) -> bytes:
    row = _find(tx, owner, name)
    if row is None:
        raise NotFound(f"there is no secret {name} any more", hint="set it again and submit the job anew: `ostler job retry JOB`")
    roles = _roles(row)
    if row[1] == SHARED and roles and not roles_of(tx, owner) & set(roles):
        raise Forbidden(
            f"the secret {name} is for jobs of the role {' or '.join(roles)}; {owner or 'nobody'} has no good token of that role",
            hint="`ostler secret list` shows what you may name; an admin makes tokens: `ostler token create --role ROLE`",
        )
    pools: Sequence[str] = decode(row[3], list[str])
    if pools and pool not in pools:
        raise Forbidden(f"the secret {name} is for nodes of the pool {' or '.join(pools)}; this one is in {pool}")
    return sealer.open(PURPOSE, _context(row[1], name, row[4]), bytes(row[-1]))


def _find(tx: Tx, owner: str | None, name: str) -> Row | None:
    return tx.row(
        f"SELECT {_COLUMNS}, sealed FROM secrets WHERE owner IN (?, ?) AND name = ? ORDER BY owner DESC LIMIT 1",  # noqa: S608
        (owner or SHARED, SHARED, name),
    )


def _context(owner: str, name: str, version: int) -> tuple[str, str, str]:
    return owner, name, str(version)


def _scope(query: SecretQuery) -> tuple[list[str], list[str]]:
    problems: list[Problem] = []
    given = {"roles": _names(query.roles), "pools": _names(query.pools)}
    for field, names in given.items():
        if names and not query.shared:
            problems.append(Problem(field, "bounds a shared secret; your own is for your own jobs alone"))
    problems += [
        Problem("roles", f"{one!r} is no role; roles are {', '.join(Role)}") for one in given["roles"] if one not in set(Role)
    ]
    problems += [
        Problem("pools", f"{one[:80]!r} must be 1 to 63 letters, digits, '.', '_' or '-'")
        for one in given["pools"]
        if not NAME.fullmatch(one)
    ]
    if problems:
        raise InvalidSpec("the secret cannot be set so", problems)
    return given["roles"], given["pools"]


def _names(text: str | None) -> list[str]:
    return sorted(set(text.split(","))) if text else []


def _may_name(role: Role, roles: Sequence[Role]) -> bool:
    return not roles or role in roles


def _roles(row: Row) -> tuple[Role, ...]:
    return tuple(Role(one) for one in decode(row[2], list[str]))


def _view(row: Row) -> SecretView:
    name, owner, _, pools, version, created_at, updated_at, updated_by, *_ = row
    return SecretView(
        name=name, shared=owner == SHARED, version=version, created_at=when(created_at), updated_at=when(updated_at),
        updated_by=updated_by, roles=_roles(row), pools=tuple(decode(pools, list[str])),
    )  # fmt: skip
