"""`ostler rollout`: a release onto nodes that call in, through the coordinator; for hosts with SSH there is `ostler fleet update`."""

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ostler.cli import exits, output
from ostler.cli.options import JsonOption, LimitOption, seconds
from ostler.model.words import many

if TYPE_CHECKING:
    from ostler.cli.session import Session
    from ostler.protocol.messages import RolloutView
    from ostler.protocol.routes import Route

LOOK_S = 1.0
JOURNAL_LINES = 12
app = typer.Typer(no_args_is_help=True, help="Bring a release to nodes that have no SSH: they fetch it from the coordinator.")
RolloutArgument = Annotated[str | None, typer.Argument(metavar="ROLLOUT", help="Its id; the newest if absent.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; shown with it.")]


@app.command()
def start(  # noqa: PLR0917 - the options of a command
    release: Annotated[
        str | None, typer.Argument(metavar="RELEASE", help="Its id, or the beginning of it; the one pushed last if absent.")
    ] = None,
    node: Annotated[
        list[str] | None, typer.Option("--node", "-n", metavar="NODE", help="This node; may be repeated. Default: all nodes.")
    ] = None,
    pool: Annotated[str | None, typer.Option("--pool", metavar="POOL", help="The nodes of this pool.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="Nodes with this tag; may be repeated.")] = None,
    canary: Annotated[int, typer.Option("--canary", metavar="N", help="So many nodes go first, and are watched for longer.")] = 1,
    serial: Annotated[
        str | None, typer.Option("--serial", metavar="N|P%", help="At most so many nodes at once. Default: all.")
    ] = None,
    max_failures: Annotated[
        str, typer.Option("--max-failures", metavar="N|P%", help="With more failed nodes nothing new begins.")
    ] = "0",
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", parser=seconds, help="How long a node may take for one phase.")
    ] = "10m",  # type: ignore[assignment]
    window: Annotated[
        float,
        typer.Option("--window", metavar="S", parser=seconds, help="How long a node must be good; the canary three times that."),
    ] = "15s",  # type: ignore[assignment]
    message: Annotated[str | None, typer.Option("--message", "-m", help="A word that is shown with it.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and begin nothing.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Begin, and do not wait for the end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a release that was pushed (`ostler release push`) to nodes. The plan is shown, and asked about.

    The canary goes first, then the others. A node fetches the release, verifies it by its own release keys, switches, and is watched by its
    host, which goes back by itself from one that is no good; a canary job must be done there. The coordinator carries the rollout on, also
    when this command is gone: `ostler rollout show -f` watches it again.

    Exit code 0: all nodes are as they should be; 1: some are not; 2: wrong usage; 3: refused as a
    whole, and nothing was begun; 4: the coordinator does not answer.
    """
    from ostler.cli.release_pushed import find
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import RolloutRequest

    if not (yes or dry_run or sys.stdin.isatty()):
        raise typer.BadParameter("there is nobody to ask; say --yes, or --dry-run to look", param_hint="'--yes'")
    with open_session() as session:
        asked = RolloutRequest(
            release=find(session, release).release, nodes=tuple(node) if node else None, pool=pool, tags=tuple(tag or ()),
            canary=canary, serial=serial, max_failures=max_failures, window_s=window, timeout_s=timeout, message=message,
        )  # fmt: skip
        view = session.call(routes.PLAN_ROLLOUT, asked)
        begins = [host for host in view.hosts if host.phase.value == "planned"]
        if not as_json:
            _show_plan(view)
        if dry_run or not begins or not _agreed(len(begins), yes=yes):
            _act(session, routes.ABORT_ROLLOUT, view, reason="only looked at" if dry_run or begins else "nothing to do")
            if as_json:
                output.print_json(view)
            raise exits.Exit(exits.GOOD if dry_run else exits.FAILED if begins or _left(view) else exits.GOOD)
        view = _act(session, routes.RESUME_ROLLOUT, view)
        if detach:
            _tell(view, as_json)
            return
        raise exits.Exit(_follow(session, view, as_json=as_json))


@app.command("list")
def list_rollouts(limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List rollouts, the newest first."""
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import PageQuery

    with open_session() as session:
        found, more = session.pages(routes.LIST_ROLLOUTS, PageQuery(limit=min(limit, 100)), limit)
    if as_json:
        output.print_json({"items": found, "more": more})
        return
    rows = [
        (one.rollout_id, one.state, one.release, output.ago(one.created_at), one.created_by, _tally(one.counts), one.reason or one.message)
        for one in found
    ]  # fmt: skip
    output.table(output.columns("ROLLOUT|STATE|RELEASE|MADE>|BY?|NODES|WHY+?"), rows, empty="no rollouts: `ostler rollout start`")
    output.tell_more(limit, more)


@app.command()
def show(
    rollout: RolloutArgument = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Watch until it is over.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show how far each node is.

    With --follow the exit code says how it ended, as that of `start` does.
    """
    from ostler.cli.session import open_session

    with open_session() as session:
        view = _find(session, rollout)
        if follow:
            raise exits.Exit(_follow(session, view, as_json=as_json))
    if as_json:
        output.print_json(view)
    else:
        _summarise(view)


@app.command()
def pause(rollout: RolloutArgument = None, reason: ReasonOption = None, as_json: JsonOption = False) -> None:
    """Begin no further node; those under way are brought to an end."""
    from ostler.protocol import routes

    _change(routes.PAUSE_ROLLOUT, rollout, as_json, reason=reason)


@app.command()
def resume(rollout: RolloutArgument = None, as_json: JsonOption = False) -> None:
    """Go on with a rollout that was paused, or begin one that was planned."""
    from ostler.protocol import routes

    _change(routes.RESUME_ROLLOUT, rollout, as_json)


@app.command()
def abort(rollout: RolloutArgument = None, reason: ReasonOption = None, as_json: JsonOption = False) -> None:
    """End a rollout: no further node is begun, those under way are brought to an end."""
    from ostler.protocol import routes

    _change(routes.ABORT_ROLLOUT, rollout, as_json, reason=reason)


# --- what they share ---------------------------------------------------------------------------------------------------------


def _change(route: "Route", rollout: str | None, as_json: bool, *, reason: str | None = None) -> None:
    from ostler.cli.session import open_session

    with open_session() as session:
        _tell(_act(session, route, _find(session, rollout), reason=reason), as_json)


def _act(session: "Session", route: "Route", view: "RolloutView", *, reason: str | None = None) -> "RolloutView":
    """A decision about exactly what was seen. Raises Outdated where it has changed since."""
    from ostler.protocol.messages import ReasonRequest
    from ostler.protocol.routes import Body

    message = ReasonRequest(reason=reason) if route.body is Body.JSON else None
    found: RolloutView = session.call(route, message, rollout_id=view.rollout_id, headers={"If-Match": f'"{view.revision}"'})
    return found


def _find(session: "Session", rollout: str | None) -> "RolloutView":
    from ostler.model.errors import NotFound
    from ostler.protocol import routes
    from ostler.protocol.messages import PageQuery

    if rollout is None:
        newest = session.call(routes.LIST_ROLLOUTS, query=PageQuery(limit=1)).items
        if not newest:
            raise NotFound("there are no rollouts", hint="ostler rollout start")
        rollout = newest[0].rollout_id
    view: RolloutView = session.call(routes.SHOW_ROLLOUT, rollout_id=rollout)
    return view


def _tell(view: "RolloutView", as_json: bool) -> None:
    if as_json:
        output.print_json(view)
    else:
        output.say(f"rollout {view.rollout_id} is {view.state} ({_tally(view.counts)})")


def _show_plan(view: "RolloutView") -> None:
    outlooks = {
        "planned": "be updated",
        "current": "stay as it is",
        "excluded": "be left out",
        "unreachable": "not be reached",
        "failed": "be refused",
    }
    rows = []
    for host in view.hosts:
        first = host.canary and host.phase.value == "planned"
        rows.append(
            (host.node_id, host.release, "go first" if first else outlooks.get(host.phase.value, host.phase), host.reason)
        )
    output.say(f"release {view.release} onto {many(len(view.hosts), 'node')} (rollout {view.rollout_id})")
    output.table(output.columns("NODE|NOW?|WILL|WHY+?"), rows, empty="no nodes")


def _agreed(count: int, *, yes: bool) -> bool:
    if yes:
        return True
    return typer.confirm(f"Update {many(count, 'node')}?", err=True)


def _follow(session: "Session", view: "RolloutView", *, as_json: bool) -> int:
    """Until it is over; the exit code. Ctrl-C ends the watching alone."""
    from ostler.cli.phases import Board
    from ostler.model.rollout.state import TERMINAL
    from ostler.protocol import routes

    patient = session.patient()
    with contextlib.closing(patient), Board(_progress(view), quiet=as_json) as board:
        while True:
            for name, one in _progress(view).items():
                if one != board.hosts[name]:
                    at = one.since or datetime.now().astimezone()
                    board.change(one, at=at.astimezone(), reason=one.reason if one.failed else None)
                    if as_json:
                        output.print_line({"at": at, "host": name, "phase": one.phase, "reason": one.reason})
            if view.state in TERMINAL and not any(host.phase.value in _FLIGHT for host in view.hosts):
                break
            time.sleep(LOOK_S)
            board.tick()
            view = patient.call(routes.SHOW_ROLLOUT, rollout_id=view.rollout_id)
    if as_json:
        output.print_line(view)
    else:
        _summarise(view)
    return exits.FAILED if _left(view) else exits.GOOD


_FLIGHT = frozenset({"locking", "uploading", "switching", "gating", "confirming", "going_back", "unlocking"})


def _progress(view: "RolloutView") -> Mapping[str, Any]:
    from ostler.model.rollout.progress import Progress

    return {
        host.node_id: Progress(host=host.node_id, phase=host.phase, reason=host.reason, began_at=host.began_at, since=host.since)
        for host in view.hosts
    }


def _left(view: "RolloutView") -> Sequence[str]:
    """The nodes that are not where they should be."""
    return [host.node_id for host in view.hosts if host.phase.value in {"failed", "unhealthy", "unreachable", "held"}]


def _summarise(view: "RolloutView") -> None:
    from ostler.cli.phases import WORDS, took

    output.say(f"rollout {view.rollout_id} of release {view.release} is {view.state}{f': {view.reason}' if view.reason else ''}")
    hosts = _progress(view)
    rows = [(host.node_id, host.release, WORDS[host.phase], took(hosts[host.node_id]), host.reason) for host in view.hosts]
    output.table(output.columns("NODE|RELEASE?|IS|TOOK>?|WHY+?"), rows, empty="no nodes")
    for host in view.hosts:
        if host.detail:
            output.note(f"{host.node_id}, the last lines of its journal:")
            for line in host.detail.splitlines()[-JOURNAL_LINES:]:
                output.note(f"  {output.clean(line)}")
    if view.state.value in {"failed", "aborted"} and (left := _left(view)):
        again = " ".join(f"--node {name}" for name in left)
        output.note(f"try again: ostler rollout start {view.release} {again}")


def _tally(counts: Mapping[Any, int]) -> str:
    from ostler.cli.phases import WORDS

    return ", ".join(f"{count} {WORDS[phase]}" for phase, count in counts.items() if count)
