"""`ostler ca`: a certificate authority of one's own, for coordinators, nodes and people who shall believe it alone."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ostler.cli import output
from ostler.cli.options import JsonOption, folder

app = typer.Typer(no_args_is_help=True, help="Make a private certificate authority, and certificates with it.")

DirOption = Annotated[
    Path | None,
    typer.Option(
        "--dir", metavar="DIR", parser=folder,
        help="The authority's directory. Default: `ca` in the coordinator's data directory, as `ostler up` has it.",
    ),
]  # fmt: skip
DaysOption = Annotated[int | None, typer.Option("--days", metavar="N", min=1, max=36500, help="How long it is good.")]


@app.command()
def init(directory: DirOption = None, days: DaysOption = None, as_json: JsonOption = False) -> None:
    """Make an authority: ca.pem, which others pin, and ca.key (0600), which whoever has it can forge every certificate with.

    It is good for ten years unless --days says otherwise. What is there already is never replaced.
    """
    from datetime import UTC, datetime, timedelta

    from ostler.coordinator.tls import authority, certificates

    place = _directory(directory)
    life = timedelta(days=certificates.CA_DAYS if days is None else days)
    made = authority.create(place, datetime.now(UTC), life=life)
    _tell(place / authority.CA_CERT, certificates.facts_of(made.certificate), as_json=as_json)


@app.command()
def issue(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose certificate: it names the files and stands in them.")],
    *,
    san: Annotated[
        list[str] | None,
        typer.Option(
            "--san", metavar="HOST", help="A host name or IP address by which clients reach this server; may be repeated."
        ),
    ] = None,
    client: Annotated[bool, typer.Option("--client", help="For a node or a person, who shows it to the coordinator.")] = False,
    days: DaysOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", parser=folder, help="Where it goes. Default: the authority's directory."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a certificate of this name and its key.")] = False,
    directory: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a certificate and its key: NAME.pem and NAME.key (0600).

    A server's needs at least one --san. It is good for a year unless --days says otherwise, and never longer than its authority.
    """
    from datetime import UTC, datetime, timedelta

    from ostler.coordinator.tls import authority, certificates

    life = timedelta(days=certificates.DAYS if days is None else days)
    wanted = certificates.wish(name, san or (), client=client, life=life)
    place = _directory(directory)
    pair = authority.issue(authority.open_authority(place), wanted, (out or place).absolute(), datetime.now(UTC), force=force)
    _tell(pair.cert, certificates.facts_of(authority.read_certificates(pair.cert)[0]), as_json=as_json, key=pair.key)


@app.command()
def renew(
    which: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A name in the authority's directory, or a certificate's file.")
    ],
    rekey: Annotated[bool, typer.Option("--rekey", help="With a new key.")] = False,
    days: DaysOption = None,
    directory: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a certificate a new life: the same names and use, and the same key unless told otherwise.

    A coordinator that uses it takes it up within seconds, without a restart.
    """
    from datetime import UTC, datetime, timedelta

    from ostler.coordinator.tls import authority, certificates

    place = _directory(directory)
    life = None if days is None else timedelta(days=days)
    pair, made = authority.renew(
        authority.open_authority(place), _certificate(which, place), datetime.now(UTC), rekey=rekey, life=life
    )
    _tell(pair.cert, certificates.facts_of(made), as_json=as_json, key=pair.key)


@app.command()
def show(
    which: Annotated[
        str, typer.Argument(metavar="[NAME|FILE]", help="A name in the authority's directory, or a file. Default: the authority.")
    ] = "ca",
    directory: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a certificate says: whose it is, for which names, until when, and its fingerprint."""
    from ostler.coordinator.tls import authority, certificates

    file = _certificate(which, _directory(directory))
    _tell(file, certificates.facts_of(authority.read_certificates(file)[0]), as_json=as_json)


def _directory(given: Path | None) -> Path:
    from ostler.assembly.first_run import default_data

    if given is not None:
        return given.absolute()
    return (Path(os.environ.get("OSTLER_COORDINATOR__DATA") or default_data(os.environ)) / "ca").absolute()


def _certificate(which: str, directory: Path) -> Path:
    """A file where one is meant; else the authority's of that name."""
    from ostler.model.errors import NotFound

    file = Path(which).absolute() if "/" in which or which.endswith(".pem") else directory / f"{which}.pem"
    if not file.is_file():
        raise NotFound(
            f"there is no certificate {file}", hint="`ostler ca init` makes an authority, `ostler ca issue` certificates"
        )
    return file


def _tell(file: Path, facts: Any, *, as_json: bool, key: Path | None = None) -> None:
    from dataclasses import asdict

    if as_json:
        output.print_json({"file": str(file), "key": None if key is None else str(key), **asdict(facts)})
        return
    output.fields(
        [
            ("certificate", str(file)),
            ("key", None if key is None else str(key)),
            ("name", facts.name),
            ("from", facts.issuer if facts.issuer != facts.name else "itself"),
            ("for", ", ".join(facts.uses)),
            ("hosts", ", ".join(facts.sans) or None),
            ("expires", f"{facts.not_after.astimezone():%Y-%m-%d %H:%M:%S}"),
            ("sha256", facts.sha256),
        ]
    )
