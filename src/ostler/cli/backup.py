"""`ostler backup` and `ostler restore`: a coordinator's state into a directory or S3 and out of it, from beside the coordinator."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ostler.cli import exits, output
from ostler.cli.options import JsonOption, folder, place
from ostler.cli.progress import progress

app = typer.Typer(no_args_is_help=True, help="Back a coordinator up while it runs, and prove that its backups can be restored.")

PASSPHRASE = "OSTLER_BACKUP_PASSPHRASE"  # noqa: S105 - the name of a variable

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", parser=folder, help="The coordinator's data directory. Default: as `ostler up` has it."
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The coordinator's settings. Default: coordinator.yaml in its data directory."),
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file", metavar="FILE",
        help=f"The passphrase of encrypted backups: the file's first line. Default: {PASSPHRASE}, or a question on the terminal.",
    ),
]  # fmt: skip
PlaceArgument = Annotated[
    str, typer.Argument(metavar="PLACE", parser=place, help="Where the backups lie: a directory, or s3://BUCKET/PREFIX.")
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key", metavar="KEY",
        help="The coordinator's public key in base64, as `ostler audit verify` shows it: a backup that it did not sign is refused.",
    ),
]  # fmt: skip
WhichArgument = Annotated[str | None, typer.Argument(metavar="BACKUP", help="Which one; the newest if absent.")]


@app.command()
def create(  # noqa: PLR0917 - the options of a command
    to: PlaceArgument,
    data: DataOption = None,
    config: ConfigOption = None,
    with_keys: Annotated[
        bool,
        typer.Option(
            "--with-keys",
            help="Also what makes it this coordinator: keys, admin.token, certificates, coordinator.yaml. Whoever reads such a backup "
            "can do whatever the coordinator can.",
        ),
    ] = False,
    encrypt: Annotated[
        bool, typer.Option("--encrypt", help="With the first backup: encrypt all in PLACE under a passphrase.")
    ] = False,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Back up database and artifacts, while the coordinator runs and nodes work. What is in PLACE already is not copied again.

    In a directory on the same file system artifacts are hard links: then it must itself be copied to another machine. For S3 the
    environment has AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, beyond Amazon, AWS_ENDPOINT_URL.
    """
    import logging
    from datetime import UTC, datetime

    from ostler.assembly.installation import find_installation
    from ostler.coordinator.upkeep.backing_up import back_up, check_source
    from ostler.coordinator.upkeep.repository import Repository

    found = find_installation(data, env=os.environ, config=config)
    check_source(found)
    repository = Repository.create(to, encrypt=encrypt, passphrase=lambda: _passphrase(passphrase_file, new=True))
    with progress() as tell:
        made = back_up(
            found, repository, with_keys=with_keys, now=datetime.now(UTC), logger=logging.getLogger("ostler.upkeep"), tell=tell
        )
    if as_json:
        output.print_json(_facts(made))
        return
    output.say(f"backup {made.backup_id}: {_contents(made)}")
    if made.missing:
        output.note(f"warning: {made.missing} artifacts that the database names are not in the artifact store")


@app.command("list")
def list_backups(where: PlaceArgument, as_json: JsonOption = False) -> None:
    """Show the backups in PLACE, oldest first.

    Exits with 3 where one of them is damaged, after it has shown the others.
    """
    from ostler.coordinator.upkeep.repository import Repository

    found, wrong = Repository.open(where).listed()
    if as_json:
        output.print_json([_facts(one) for one in found])
    else:
        _show(found)
    for one in wrong:
        output.note(exits.describe(one))
    if wrong:
        raise exits.Exit(exits.REJECTED)


def _show(found: list[Any]) -> None:
    rows = [
        (
            one.backup_id, f"{one.taken_at.astimezone():%Y-%m-%d %H:%M:%S}", one.release, one.schema, one.tables["jobs"].rows,
            output.size(sum(file.size for file in one.files.values())), one.objects, output.size(one.object_bytes),
            ", ".join(word for word, said in (("keys", one.keys), ("encrypted", one.encrypted)) if said),
        )
        for one in found
    ]  # fmt: skip
    titles = output.columns("BACKUP|TAKEN|RELEASE?|SCHEMA>?|JOBS>|DATABASE>|ARTIFACTS>|BYTES>|WITH")
    output.table(titles, rows, empty="no backups")


@app.command()
def verify(  # noqa: PLR0917 - the options of a command
    where: PlaceArgument,
    which: WhichArgument = None,
    scratch: Annotated[
        Path | None,
        typer.Option("--scratch", metavar="DIR", parser=folder, help="Where there is room for the database meanwhile."),
    ] = None,
    key: KeyOption = None,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that a backup can be restored: restore its database into a scratch directory, compare it row by row, read every artifact.

    Exits with 3 where it is not whole, and says what is wrong.
    """
    import logging
    import tempfile
    from datetime import UTC, datetime

    from ostler.coordinator.upkeep.repository import Repository
    from ostler.coordinator.upkeep.restoring import verify as verify_backup

    repository = Repository.open(where).unlocked(lambda: _passphrase(passphrase_file))
    backup = repository.find(which, datetime.now(UTC))
    repository.check_signature(backup, _public(key))
    with tempfile.TemporaryDirectory(prefix="ostler-verify-", dir=scratch) as room, progress() as tell:
        verify_backup(repository, backup, Path(room), logger=logging.getLogger("ostler.upkeep"), tell=tell)
    if as_json:
        output.print_json({**_facts(backup), "verified": True})
        return
    output.say(f"backup {backup.backup_id} can be restored: {_contents(backup)}")


@app.command()
def prune(
    where: PlaceArgument,
    keep: Annotated[int, typer.Option("--keep", metavar="N", min=1, help="How many of the newest stay.")],
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove all but the newest backups, and the artifacts that none of them has."""
    from datetime import UTC, datetime

    from ostler.coordinator.upkeep.repository import Repository

    repository = Repository.open(where).unlocked(lambda: _passphrase(passphrase_file))
    repository.backups()  # where one is damaged a person decides first what becomes of it
    pruned = repository.prune(keep, datetime.now(UTC))
    if as_json:
        output.print_json({"removed": pruned.backups, "objects": pruned.objects})
    else:
        output.say(f"removed {len(pruned.backups)} backups and {pruned.objects} artifacts that no other one has")
    if pruned.spared:
        output.note("note: another backup is being taken, or was killed a moment ago: artifacts stay until the next prune")


def restore(  # noqa: PLR0917 - the options of a command
    where: PlaceArgument,
    which: WhichArgument = None,
    data: DataOption = None,
    config: ConfigOption = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="URL", help="Where the database goes: an empty one of PostgreSQL, or a file.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Move the database that is there aside, under another name, instead of refusing.")
    ] = False,
    key: KeyOption = None,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a data directory what it was when a backup was taken. No coordinator may run on it.

    Nodes that know the coordinator go on by themselves once it starts: what they run and it knows is kept, what it does not know
    any more is ended, and what it believed to run and is over is tried again. No attempt gets a number that an earlier one had.
    """
    import logging
    from datetime import UTC, datetime

    from ostler.assembly.installation import find_installation
    from ostler.coordinator.upkeep.repository import Repository
    from ostler.coordinator.upkeep.restoring import restore as restore_backup

    target = find_installation(data, env=os.environ, config=config, store=store)
    repository = Repository.open(where).unlocked(lambda: _passphrase(passphrase_file))
    backup = repository.find(which, datetime.now(UTC))
    repository.check_signature(backup, _public(key))
    with progress() as tell:
        done = restore_backup(
            repository,
            backup,
            target,
            replace=replace,
            now=datetime.now(UTC),
            logger=logging.getLogger("ostler.upkeep"),
            tell=tell,
        )
    if as_json:
        output.print_json(
            {
                "backup": backup.backup_id,
                "taken_at": backup.taken_at,
                "store": done.store,
                "artifacts": done.artifacts,
                "keys": done.keys,
                "kept": done.kept,
                "moved": done.moved,
                "warnings": done.warnings,
            }
        )
        return
    output.say(f"{done.store} is as it was at {backup.taken_at.astimezone():%Y-%m-%d %H:%M:%S}: {_contents(backup)}")
    output.fields(
        [
            ("written", ", ".join(done.keys)),
            ("left as it was", ", ".join(done.kept)),
            ("the database before", done.moved),
        ]
    )
    for warning in done.warnings:
        output.note(f"note: {warning}")


def _public(key: str | None) -> bytes | None:
    import base64

    from ostler.protocol.dsse import is_public_key

    if key is None:
        return None
    try:
        found = base64.b64decode(key, validate=True)
    except ValueError:
        found = b""
    if not is_public_key(found):
        raise typer.BadParameter(f"{key!r} is not an Ed25519 public key in base64", param_hint="'--key'")
    return found


def _contents(backup: Any) -> str:
    sizes = f"{backup.objects} artifacts ({output.size(backup.object_bytes)})"
    return f"{backup.tables['jobs'].rows} jobs, {backup.tables['events'].rows} events, {sizes}"


def _facts(backup: Any) -> dict[str, Any]:
    """What a program wants to know of a backup."""
    return {
        "backup": backup.backup_id, "taken_at": backup.taken_at, "release": backup.release, "schema": backup.schema,
        "rows": {name: one.rows for name, one in backup.tables.items()},
        "bytes": sum(file.size for file in backup.files.values()), "artifacts": backup.objects,
        "artifact_bytes": backup.object_bytes, "missing": backup.missing, "keys": backup.keys, "encrypted": backup.encrypted,
    }  # fmt: skip


def _passphrase(file: Path | None, *, new: bool = False) -> str:
    """From the file, the environment, or a person at the terminal. Never from the command line, which everybody can read."""
    from ostler.coordinator.upkeep.crypt import read_passphrase
    from ostler.model.errors import InvalidSpec

    if file is not None:
        found = read_passphrase(file)
    elif (said := os.environ.get(PASSPHRASE)) is not None:
        found = said
    elif sys.stdin.isatty():
        found = typer.prompt("Passphrase of the backups", hide_input=True, confirmation_prompt=new, err=True)
    else:
        raise InvalidSpec(
            "the backups are encrypted, and there is no passphrase", hint=f"--passphrase-file FILE, or {PASSPHRASE}"
        )
    if not found:
        raise InvalidSpec("the passphrase of the backups is empty")
    return found
