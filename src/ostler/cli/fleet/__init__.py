"""`ostler fleet`: the hosts that are reached over SSH. One module per command or group of commands; this one puts them together."""

import typer

from ostler.cli.fleet import commands, credentials, firewall, hosts, install, prune, status, update

app = typer.Typer(help="Look after hosts over SSH.", no_args_is_help=True)


@app.callback()
def fleet() -> None:
    """Look after hosts over SSH."""


app.command(name="hosts")(hosts.hosts)
app.command(name="install")(install.install)
app.command(name="uninstall")(install.uninstall)
app.command(name="rotate-credentials")(credentials.rotate_credentials)
app.command(name="firewall")(firewall.firewall)
app.command(name="prune")(prune.prune)
app.command(name="status")(status.status)
app.command(name="update")(update.update)
app.command(name="run")(commands.run)
app.command(name="logs")(commands.logs)
app.command(name="trust")(commands.trust)
app.add_typer(commands.lock, name="lock")
