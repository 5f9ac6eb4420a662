"""`ostler db`: look at a coordinator's database, bring it up to date, move it to another engine, from beside it."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ostler.cli import exits, output
from ostler.cli.options import JsonOption, folder
from ostler.cli.progress import progress

app = typer.Typer(no_args_is_help=True, help="Look at a coordinator's database, bring it up to date, move it.")

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", parser=folder,
        help="The coordinator's data directory, whose coordinator.yaml says where its database is. Default: as `ostler up` has it.",
    ),
]  # fmt: skip
StoreOption = Annotated[str | None, typer.Option("--store", metavar="URL", help="The database itself: a file, or a URL.")]


def store_of(data: Path | None, store: str | None) -> str:
    """The database that is meant."""
    from ostler.assembly.installation import find_installation

    return find_installation(data, env=os.environ, store=store).database


@app.command()
def status(data: DataOption = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show which schema a coordinator's database has, what made it, how much it holds, and whether a coordinator runs on it.

    Exits with 0 where this release can use it as it is, with 1 where `ostler db upgrade` is to be run first, and with 3 where it
    cannot be used: there is none, it is newer than this release, or it is not a coordinator's.
    """
    from datetime import UTC, datetime

    from ostler.coordinator.upkeep import standing

    found = standing.standing_of(store_of(data, store), now=datetime.now(UTC))
    if as_json:
        output.print_json(found)
    else:
        _tell(found)
    if found.state == standing.NEWER:
        raise exits.Exit(exits.REJECTED)
    if found.state == standing.PENDING:
        raise exits.Exit(exits.FAILED)


def _tell(found: Any) -> None:
    from ostler.coordinator.upkeep import standing

    what = {
        standing.CURRENT: "fits this release",
        standing.PENDING: f"this release needs {found.known}: run `ostler db upgrade`",
        standing.NEWER: f"this release knows up to {found.known}: run the release that made it, or a newer one",
    }[found.state]
    running = None if found.coordinator is None else f"runs on it{f' (pid {found.coordinator})' if found.coordinator else ''}"
    counts = ", ".join(f"{found.counts[name]} {name}" for name in ("jobs", "nodes", "events") if name in found.counts)
    output.fields(
        [
            ("database", found.store),
            ("schema", f"{'none yet' if found.schema is None else found.schema}; {what}"),
            ("release", found.release),
            ("coordinator", running or "none runs on it"),
            ("holds", counts),
            ("size", output.size(found.size) if found.size else None),
            ("left behind", ", ".join(f"{one.node_id} (protocol {one.protocol})" for one in found.behind) or None),
        ]
    )


@app.command()
def upgrade(
    data: DataOption = None,
    store: StoreOption = None,
    no_backup: Annotated[
        bool, typer.Option("--no-backup", help="Keep no copy of the database as it is now. By default it stands beside it.")
    ] = False,
    leave_nodes_behind: Annotated[
        bool,
        typer.Option(
            "--leave-nodes-behind",
            help="Go on although living nodes speak no protocol of this release: they get no new work until they are updated.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a coordinator's database to the schema of this release. Nothing happens where it has it.

    All in one transaction: whatever happens in between, the database is as it was, or new. Refused while a coordinator runs on it,
    and where nodes that were heard of in the last day speak no protocol of this release: they are named, with the command that
    updates them.
    """
    import logging
    from datetime import UTC, datetime

    from ostler.coordinator.upkeep import upgrading

    done = upgrading.upgrade(
        store_of(data, store), keep_copy=not no_backup, leave_behind=leave_nodes_behind, now=datetime.now(UTC),
        logger=logging.getLogger("ostler.upkeep"),
    )  # fmt: skip
    if as_json:
        output.print_json(done)
    elif done.before == done.after:
        output.say(f"{done.store} has schema {done.after}, which this release needs")
    else:
        output.say(f"{done.store} was upgraded from schema {done.before} to {done.after}")
        if done.copy is not None:
            output.say(f"as it was before: {done.copy}")


@app.command()
def copy(
    source: Annotated[
        str, typer.Option("--from", metavar="URL", help="The database that is copied: a file, or a URL. It stays as it is.")
    ],
    target: Annotated[str, typer.Option("--to", metavar="URL", help="An empty database, or a file that does not exist yet.")],
    as_json: JsonOption = False,
) -> None:
    """Copy a coordinator's database into one of another kind: from SQLite to PostgreSQL, or back.

    No coordinator may run on either. Everything is read back and compared, table by table, before it counts: whatever happens in
    between, the target is empty, and the same command begins anew. Passwords: see PGPASSFILE.
    """
    import logging

    from ostler.coordinator.config import refuse_password
    from ostler.coordinator.upkeep import transferring

    for one in (source, target):
        refuse_password(one)
    with progress() as tell:
        done = transferring.copy_database(source, target, logger=logging.getLogger("ostler.upkeep"), tell=tell)
    if as_json:
        rows = {name: {"rows": one.rows, "sum": one.sum} for name, one in done.tables.items()}
        output.print_json({"from": done.source, "to": done.target, "tables": rows, "replaced": done.replaced})
        return
    shown = [(name, one.rows, one.sum) for name, one in done.tables.items() if one.rows]
    output.table(output.columns("TABLE|ROWS>|CHECKSUM?"), shown)
    output.say(f"{done.rows} rows were copied from {done.source} to {done.target}, read back, and are the same")
    if done.replaced:
        output.note(
            f"note: {done.replaced} values held the character NUL, which PostgreSQL does not store; they have U+FFFD instead"
        )
    output.note("next: write `store: URL` into coordinator.yaml, start the coordinator, and put the old database away")
