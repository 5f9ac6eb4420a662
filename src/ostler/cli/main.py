"""The command line: `ostler NOUN VERB`, one module per noun; this one puts them together."""

import sys

import typer

from ostler.cli import (
    allowlist,
    audit,
    backup,
    ca,
    config,
    db,
    doctor,
    events,
    exits,
    fleet,
    jobs,
    nodes,
    quota,
    release,
    retention,
    rollout,
    run,
    secrets,
    services,
    sim,
    tokens,
    top,
    up,
    version,
    webhooks,
)

app = typer.Typer(
    name="ostler",
    help="One fleet out of the machines that you own or rent: jobs, nodes, tokens.",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # paragraphs of the help are wrapped to the terminal, not where they break here
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(up.up)
app.command()(run.run)
app.add_typer(jobs.app, name="job")
app.add_typer(nodes.app, name="node")
app.add_typer(services.app, name="service")
app.add_typer(fleet.app, name="fleet")
app.add_typer(tokens.app, name="token")
app.command()(top.top)
app.command()(events.events)
app.add_typer(secrets.app, name="secret")
app.command()(up.coordinator)
app.add_typer(quota.app, name="quota")
app.command()(retention.retention)
app.add_typer(allowlist.app, name="allowlist")
app.add_typer(audit.app, name="audit")
app.add_typer(webhooks.app, name="webhook")
app.add_typer(ca.app, name="ca")
app.add_typer(db.app, name="db")
app.add_typer(backup.app, name="backup")
app.command()(backup.restore)
app.add_typer(release.app, name="release")
app.add_typer(rollout.app, name="rollout")
app.add_typer(config.app, name="config")
app.add_typer(sim.app, name="sim")
app.command()(doctor.doctor)
app.command()(version.version)


def main() -> int:
    """The entry point of the `ostler` program."""
    return exits.guard(app)


if __name__ == "__main__":
    sys.exit(main())
