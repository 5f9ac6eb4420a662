"""`ostler fleet`: the hosts that are reached over SSH. One module per command or group of commands; this one puts them together."""

import typer

from ostler.cli.fleet import hosts, install

app = typer.Typer(help="Look after hosts over SSH.", no_args_is_help=True)


@app.callback()
def fleet() -> None:
    """Look after hosts over SSH."""


app.command(name="hosts")(hosts.hosts)
app.command(name="install")(install.install)
app.command(name="uninstall")(install.uninstall)
