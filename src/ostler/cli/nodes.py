"""`ostler node`: the daemon itself, what its machine can do, and the nodes of the fleet."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ostler.cli import node_host, output
from ostler.cli.node_host import SYSTEM_CONFIG
from ostler.cli.options import JsonOption, LimitOption, seconds
from ostler.model.node import NodeState

app = typer.Typer()
app.command()(node_host.enrol)
app.command()(node_host.reach)
app.command()(node_host.rotate_key)
app.command()(node_host.install)
app.command()(node_host.uninstall)

NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="The node's id.")]
OptionalNode = Annotated[
    str | None, typer.Argument(metavar="NODE", help="The node's id; without one, the daemon on this machine.")
]
LocalConfig = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Without NODE: the configuration of the daemon meant. Default: /etc/ostler/node.yaml, else that of `ostler up`.",
    ),
]


@app.callback(invoke_without_command=True)
def node(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Run the daemon in the foreground with this configuration (YAML)."),
    ] = None,
    await_keeper: Annotated[
        bool, typer.Option("--await-keeper", help="Start no keeper: a unit of its own runs `ostler node keeper`.")
    ] = False,
) -> None:
    """Run the node daemon (--config FILE), or look at nodes and decide about them.

    The daemon starts its keeper where none runs. On SIGHUP it reads FILE anew; a running job outlives the daemon.
    """
    if ctx.invoked_subcommand is not None:
        if config is not None:
            raise typer.BadParameter(f"--config before {ctx.invoked_subcommand} runs the daemon; put it behind")
        return
    if config is None:
        raise typer.BadParameter("say --config FILE to run the daemon, or name a command: `ostler node --help` lists them")
    from ostler.assembly import launch

    launch.become_node(config, await_keeper=await_keeper)


@app.command()
def keeper(
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="The configuration of the daemon that it is for.")
    ] = SYSTEM_CONFIG,
) -> None:
    """Run the keeper in the foreground: the parent of all attempts, for a service manager that keeps it apart from the daemon.

    A restart of the daemon does not touch it; its own end ends the attempts.
    """
    from ostler.assembly import launch

    launch.become_keeper(config)


@app.command()
def probe(as_json: JsonOption = False) -> None:
    """Show what this machine would offer as a node: processor, memory, disks, GPUs, sandbox levels, what is not well."""
    import tempfile

    import ostler
    from ostler.node.probe.probe import probe as look
    from ostler.node.sandbox import abilities, observe
    from ostler.protocol import codec

    with tempfile.TemporaryDirectory(prefix="ostler-probe-") as place:
        Path(place).chmod(0o711)
        found = look(node_id="this-machine", version=ostler.__version__, sandbox=abilities(observe(Path(place) / "sandbox")))
    if as_json:
        output.print_json(found)
        return
    import yaml

    output.say(yaml.safe_dump(codec.to_plain(found), sort_keys=False, allow_unicode=True).rstrip())


@app.command("list")
def list_nodes(
    limit: LimitOption = 500,
    retired: Annotated[bool, typer.Option("--all", help="Show retired nodes too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the nodes: what is wrong first, with the command that mends it.

    An *unknown* node was silent for two heartbeats: it gets no new work and keeps what it has. A *lost* one was silent for a whole
    lease: what it ran is tried elsewhere. A *quarantined* one found its own disk or GPU faulty.
    """
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import PageQuery

    with open_session() as session:
        nodes, more = session.pages(
            routes.LIST_NODES,
            PageQuery(limit=min(limit, 100)),
            limit,
            keep=lambda one: retired or one.state is not NodeState.RETIRED,
        )
        release = session.call(routes.VERSION).version
    if as_json:
        output.print_json({"items": nodes, "more": more})
        return
    from ostler.cli import node_table

    node_table.show(nodes, release)
    output.tell_more(limit, more)


@app.command()
def show(name: NodeArgument, as_json: JsonOption = False) -> None:
    """Show one node: its state, what it can do and what it runs."""
    from ostler.cli.session import open_session
    from ostler.protocol import codec, routes
    from ostler.protocol.standing import standing

    with open_session() as session:
        view = session.call(routes.SHOW_NODE, node_id=name)
        release = session.call(routes.VERSION).version
    if as_json:
        output.print_json(view)
        return
    about = standing(view, release=release)
    output.fields(
        [
            ("node", view.node_id),
            ("state", about.word),
            ("since", view.changed_at and f"{output.ago(view.changed_at)} ago"),
            ("why", about.why),
            ("do", about.mend),
            ("pool", view.pool),
            ("health", "; ".join(view.health) or "good"),
            ("last seen", view.last_seen_at and f"{output.ago(view.last_seen_at)} ago"),
            ("joined", f"{view.joined_at.astimezone():%Y-%m-%d %H:%M:%S}"),
            ("version", f"{view.version}, protocol {view.protocol}"),
            ("release", view.release),
            ("slots", f"{view.cpu_slots} CPU, {view.gpu_slots} GPU"),
            ("load", f"{view.load:.2f}"),
            ("free memory", output.size(view.free_mb * 2**20)),
            ("free disk", output.size(view.disk_free_mb * 2**20) if view.disk_free_mb is not None else None),
            ("jobs", ", ".join(f"{one.job_id} (attempt {one.attempt})" for one in view.attempts)),
        ]
    )
    if view.services:
        from ostler.cli import services

        output.say()
        services.show(view.services, of_one_node=True)
    if view.capabilities is not None:
        import yaml

        output.say()
        output.say(
            yaml.safe_dump({"capabilities": codec.to_plain(view.capabilities)}, sort_keys=False, allow_unicode=True).rstrip()
        )


@app.command()
def drain(
    name: OptionalNode = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", metavar="S", parser=seconds,
            help="What still runs after so long (seconds, or 5m) is cancelled and retried elsewhere. Without it, it may finish.",
        ),
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; shown with NODE.")] = None,
    config: LocalConfig = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Give a node no new work; it stays so until `ostler node resume`, also over restarts.

    With NODE the coordinator is asked, without it the daemon on this machine, which needs no token.
    """
    from ostler.protocol import routes
    from ostler.protocol.messages import DrainRequest

    if name is None:
        _local("drain", config, {} if timeout is None else {"timeout": f"{timeout:g}"}, as_json=as_json)
    else:
        _remote(routes.DRAIN_NODE, name, DrainRequest(reason=reason, timeout_s=timeout), as_json=as_json)


@app.command()
def resume(name: OptionalNode = None, config: LocalConfig = None, as_json: JsonOption = False) -> None:
    """Give a drained node work again. With NODE the coordinator is asked, without it the daemon on this machine."""
    from ostler.protocol import routes

    if name is None:
        _local("resume", config, {}, as_json=as_json)
    else:
        _remote(routes.RESUME_NODE, name, None, as_json=as_json)


@app.command()
def cordon(
    name: NodeArgument,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; shown with NODE.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Give a node no new work until `ostler node uncordon`; what it runs goes on.

    A cordon is the coordinator's alone: the node is not told. To empty a node before its machine is worked on, drain it.
    """
    from ostler.protocol import routes
    from ostler.protocol.messages import ReasonRequest

    _remote(routes.CORDON_NODE, name, ReasonRequest(reason=reason), as_json=as_json)


@app.command()
def uncordon(name: NodeArgument, as_json: JsonOption = False) -> None:
    """End a cordon. A node that is drained as well waits for `ostler node resume`."""
    from ostler.protocol import routes

    _remote(routes.UNCORDON_NODE, name, None, as_json=as_json)


@app.command()
def pool(
    name: NodeArgument,
    to: Annotated[str, typer.Argument(metavar="POOL", help="The pool that it belongs to from now on.")],
    as_json: JsonOption = False,
) -> None:
    """Move a node to another pool; what it runs stays.

    Jobs run in the pool that they name (`requirements.pool`), and in the pool `default` where they name none.
    """
    from ostler.protocol import routes
    from ostler.protocol.messages import PoolRequest

    _remote(routes.MOVE_NODE, name, PoolRequest(pool=to), as_json=as_json)


@app.command()
def retire(
    name: NodeArgument,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; shown with NODE.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """End a node for good: its key and tokens open nothing from now on, what it ran is tried elsewhere.

    On a terminal it asks. Its name is free again for a machine that joins with another key.
    """
    from ostler.model.errors import Conflict
    from ostler.protocol import routes
    from ostler.protocol.messages import ReasonRequest

    if not yes and sys.stdin.isatty() and not typer.confirm(f"Retire {name} for good?", err=True):
        raise Conflict(f"{name} stays as it is")
    _remote(routes.RETIRE_NODE, name, ReasonRequest(reason=reason), as_json=as_json)


def _remote(route: Any, name: str, message: Any, *, as_json: bool) -> None:
    from ostler.cli.session import open_session
    from ostler.protocol.standing import standing

    with open_session() as session:
        view = session.call(route, message, node_id=name)
    if as_json:
        output.print_json(view)
    else:
        about = standing(view)
        output.say(
            output.clean(f"{view.node_id} is {about.word}" + (f" (pool {view.pool})" if route.name == "move_node" else ""))
        )


def _local(verb: str, config: Path | None, query: dict[str, str], *, as_json: bool) -> None:
    """One call on the daemon's control socket."""
    import httpx

    from ostler.assembly import resolve
    from ostler.model.errors import MachineUnreachable, NotFound, Rejected

    file = config or _local_config()
    if file is None:
        raise NotFound(f"no node is configured here ({SYSTEM_CONFIG})", hint="say --config FILE, or name a NODE")
    socket = resolve.resolve_node(file, env=os.environ, need_secrets=False).value.state / "daemon.sock"
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=10.0) as http:
            answer = http.post(f"http://daemon/{verb}", params=query)
    except httpx.TransportError as exc:
        raise MachineUnreachable(
            f"the daemon of {file} does not answer on {socket}: {exc}", hint=f"ostler node --config {file}"
        ) from exc
    if not answer.is_success:
        raise Rejected(f"the daemon refused to {verb}: {answer.text.strip()[:500]}")
    if as_json:
        output.say(answer.text.strip() or "{}")
    else:
        output.say("draining" if verb == "drain" else "taking work again")


def _local_config() -> Path | None:
    from ostler.assembly.first_run import default_data

    return next((file for file in (SYSTEM_CONFIG, default_data(os.environ) / "node.yaml") if file.exists()), None)
