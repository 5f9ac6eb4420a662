"""`ostler up` and `ostler coordinator`: the whole set on one machine, or the coordinator alone."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ostler.cli import output
from ostler.cli.options import folder

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", parser=folder, help="The data directory. Default: ~/.local/state/ostler (XDG_STATE_HOME)."
    ),
]
ListenOption = Annotated[
    str | None,
    typer.Option(
        "--listen", metavar="HOST:PORT", help="Where the coordinator listens; port 0 takes a free one. Default: 127.0.0.1:7070."
    ),
]


def up(
    data: DataOption = None,
    listen: ListenOption = None,
    slots: Annotated[
        int | None,
        typer.Option("--slots", metavar="N", min=1, max=4096, help="Jobs that the node runs at once. Default: one per CPU."),
    ] = None,
    no_node: Annotated[bool, typer.Option("--no-node", help="The coordinator alone.")] = False,
) -> None:
    """Start a coordinator, a node and its keeper on this machine, and keep them alive until Ctrl-C.

    Prints `ready URL` once jobs can be submitted. A new data directory gets a node.yaml, an allowlist.d with a few harmless
    commands and ffmpeg, and an admin.token (0600). Other commands find the way by a profile: DIR/profile.yaml, and
    ~/.config/ostler/profile.yaml unless that names another coordinator. The end stops jobs that still run; they are tried again
    where they allow it.
    """
    from ostler.assembly.first_run import default_data
    from ostler.assembly.up import Up, Wanted

    env = dict(os.environ)
    place = (data or default_data(env)).absolute()
    Up(Wanted(data=place, listen=listen, slots=slots, node=not no_node, env=env), tell=output.note, ready=_ready).run()


def _ready(url: str) -> None:
    typer.echo(f"ready {url}")  # flushes: whoever started us waits for this line


def coordinator(
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", parser=folder, help="The data directory; it belongs to one coordinator."),
    ] = None,
    listen: ListenOption = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="URL",
            help="postgresql://USER@HOST:PORT/DATABASE, which coordinators may share, or an SQLite file. Default: ostler.db in DIR. "
            "No password here: see PGPASSFILE.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="More settings (YAML); options here win over it.")
    ] = None,
) -> None:
    """Run the coordinator in the foreground. It prints `ready URL`, logs JSON lines to standard error, and ends on SIGTERM."""
    from ostler.assembly import launch

    if data is None and config is None and not os.environ.get("OSTLER_COORDINATOR__DATA"):
        raise typer.BadParameter("say --data DIR")
    launch.become_coordinator(data, listen, config, store)
