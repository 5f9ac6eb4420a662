"""`ostler audit`: who did what, and whether the log of it is whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ostler.cli import exits, output
from ostler.cli.options import JsonOption, LimitOption, seconds

if TYPE_CHECKING:
    from ostler.protocol.messages import AuditCheck

SHOWN = 100  # findings that are printed

app = typer.Typer(no_args_is_help=True, help="Look at the audit log, and verify it.")


@app.command("list")
def list_audit(  # noqa: PLR0917 - the options of a command
    principal: Annotated[str | None, typer.Option("--principal", metavar="NAME", help="What this principal did.")] = None,
    action: Annotated[str | None, typer.Option("--action", metavar="NAME", help="Calls of this name, such as cancel_job.")] = None,
    target: Annotated[str | None, typer.Option("--target", metavar="ID", help="What was done to this job, node or token.")] = None,
    status: Annotated[int | None, typer.Option("--status", metavar="N", help="Calls that were answered so, such as 403.")] = None,
    since: Annotated[
        float | None, typer.Option("--since", metavar="S", parser=seconds, help="Not longer ago: seconds, or 30m, 7d.")
    ] = None,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Show who did what to what, from where, newest first: calls that changed something, and calls that were refused."""
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import AuditQuery

    query = AuditQuery(principal=principal, action=action, target=target, status=status, since_s=since, limit=min(limit, 500))
    with open_session() as session:
        rows, more = session.pages(routes.LIST_AUDIT, query, limit)
    if as_json:
        output.print_json({"items": rows, "more": more})
        return
    cells = [
        (
            one.id, f"{one.at.astimezone():%Y-%m-%d %H:%M:%S}", one.principal, one.role, one.action, one.target, one.status or None,
            one.peer, one.detail,
        )
        for one in rows
    ]  # fmt: skip
    output.table(output.columns("ROW>|WHEN|WHO|ROLE|WHAT|TO|STATUS>|FROM|DETAIL~"), cells, empty="no rows")
    output.tell_more(limit, more)


@app.command()
def verify(
    database: Annotated[
        Path | None,
        typer.Option("--database", metavar="FILE", help="Verify this SQLite file itself, without asking a coordinator; needs --key."),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="KEY", help="With --database: the public key in base64, as it was noted; may be given again."),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option("--head", metavar="DIGEST", help="A head that was noted earlier: the log must still hold it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Verify that the audit log is as it was written: nothing changed, added in between, removed or cut off.

    Prints the head, the digest of the last seal. Note it outside of the coordinator, with the key: with `--head` a later call tells
    whether the log was cut off, or written anew, before that place. Exits with 1 where something is wrong.
    """
    if (database is None) != (not key):
        raise typer.BadParameter("--database and --key belong together")
    check = _verified_by_coordinator(head) if database is None else _verified_here(database, key or [], head)
    if as_json:
        output.print_json(check)
    else:
        _tell(check)
    if check.findings:
        raise exits.Exit(exits.FAILED)


def _tell(check: "AuditCheck") -> None:
    for one in check.findings[:SHOWN]:
        output.say(one.message)
    if len(check.findings) > SHOWN:
        output.say(f"and {len(check.findings) - SHOWN} more; --json shows all")
    young = f"; {check.unsealed} more are too young to have a seal" if check.unsealed else ""
    if count := len(check.findings):
        places = "1 finding" if count == 1 else f"{count} findings"
        output.say(f"the audit log is not as it was written: {places} in {check.rows} rows{young}")
    else:
        output.say(f"{check.rows} rows under {check.seals} seals are as they were written{young}")
    output.fields([("head", check.head), ("key", check.key)])


def _verified_by_coordinator(head: str | None) -> "AuditCheck":
    from msgspec.structs import replace

    from ostler.cli.session import open_session
    from ostler.protocol import audit, routes
    from ostler.protocol.messages import AuditCheckQuery, AuditFinding

    with open_session() as session:
        total = session.call(routes.VERIFY_AUDIT, query=AuditCheckQuery(head=head))
        while total.next is not None:
            more = session.call(routes.VERIFY_AUDIT, query=AuditCheckQuery(after=total.next, head=head))
            total = replace(
                more, rows=total.rows + more.rows, seals=total.seals + more.seals, findings=total.findings + more.findings,
                head=more.head or total.head, head_found=total.head_found or more.head_found,
            )  # fmt: skip
    if head is not None and not total.head_found:
        lost = audit.head_missing(bytes.fromhex(head))
        total = replace(total, findings=(*total.findings, AuditFinding(message=lost.message)))
    checked: AuditCheck = total
    return checked


def _verified_here(database: Path, keys: list[str], head: str | None) -> "AuditCheck":
    """The same over the file alone: whoever runs the coordinator need not be trusted for it."""
    import sqlite3
    from contextlib import closing

    from ostler.model.errors import InvalidSpec
    from ostler.protocol import audit
    from ostler.protocol.messages import AuditCheck, AuditFinding

    noted = _digest(head)
    verifier = audit.Verifier([_key(one) for one in keys])
    if not database.is_file():
        raise InvalidSpec(f"--database: {database} is not a file")
    # A copy that stands alone is read without the lock files that SQLite would make beside it: it may lie where we cannot write.
    alone = not database.with_name(f"{database.name}-wal").exists()
    findings: list[Any] = []
    try:
        place = f"{database.absolute().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
        with closing(sqlite3.connect(place, uri=True)) as connection:
            connection.text_factory = bytes  # text that somebody damaged may be text no longer
            connection.execute("BEGIN")
            for row in connection.execute(f"SELECT {audit.CUT_COLUMNS} FROM audit_cuts"):  # noqa: S608 - ours
                findings += verifier.allow(audit.Cut(*row))
            for row in connection.execute(f"SELECT {audit.SEAL_COLUMNS} FROM seals ORDER BY last_id"):  # noqa: S608 - ours
                one = audit.Seal(*row)
                findings += verifier.check(one, _rows(connection, verifier, one.last_id))
            [unsealed] = connection.execute("SELECT count(*) FROM audit WHERE id > ?", (verifier.last_id,)).fetchone()
    except sqlite3.Error as exc:
        raise InvalidSpec(
            f"--database: {database} cannot be read as a coordinator's database: {exc}",
            hint="it is DATA/ostler.db of a coordinator, or a copy of it; `ostler coordinator` brings an older one up to date",
        ) from exc
    if noted is not None and noted not in verifier.digests:
        findings.append(audit.head_missing(noted))
    return AuditCheck(
        rows=verifier.rows, seals=verifier.seals, unsealed=unsealed, key=" ".join(keys),
        findings=tuple(AuditFinding(message=one.message, row=one.row) for one in findings),
        head=verifier.previous.hex() if verifier.seals else None, head_found=None if noted is None else noted in verifier.digests,
    )  # fmt: skip


def _rows(connection: Any, verifier: Any, last_id: int) -> Iterator[Any]:
    from ostler.protocol import audit

    since, params = ("", (last_id,)) if verifier.last_id == 0 else ("id > ? AND ", (verifier.last_id, last_id))
    yield from connection.execute(f"SELECT {audit.COLUMNS} FROM audit WHERE {since}id <= ? ORDER BY id", params)  # noqa: S608


def _key(text: str) -> Any:
    import base64

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from ostler.protocol.dsse import is_public_key

    try:
        found = base64.b64decode(text, validate=True)
    except ValueError:
        found = b""
    if not is_public_key(found):
        raise typer.BadParameter(f"{text!r} is not an Ed25519 public key in base64", param_hint="'--key'")
    return Ed25519PublicKey.from_public_bytes(found)


def _digest(text: str | None) -> bytes | None:
    try:
        found = None if text is None else bytes.fromhex(text)
    except ValueError:
        found = b""
    if found is not None and len(found) != 32:
        raise typer.BadParameter(f"{text!r} is not a digest: 64 hexadecimal digits", param_hint="'--head'")
    return found
