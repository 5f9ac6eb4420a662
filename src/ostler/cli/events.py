"""`ostler events`: what happens in the fleet, as it happens."""

from typing import Annotated, Any

import typer

from ostler.cli import output
from ostler.cli.options import seconds

PAGE = 500
RECENT_S = 3600.0


def events(  # noqa: PLR0917 - the options of a command
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens from now on, until Ctrl-C.")] = False,
    job: Annotated[str | None, typer.Option("--job", metavar="JOB", help="Of this job.")] = None,
    node: Annotated[str | None, typer.Option("--node", metavar="NODE", help="Of this node.")] = None,
    group: Annotated[str | None, typer.Option("--group", metavar="ARRAY", help="Of the jobs of this array.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", metavar="KIND", help="Of this kind; may be given more than once.")
    ] = None,
    since: Annotated[
        float | None,
        typer.Option(
            "--since", metavar="S", parser=seconds,
            help="Of so long ago up to now: seconds, or 30m, 7d. Default: 1h, or with --follow none of before.",
        ),
    ] = None,
    after: Annotated[
        str | None, typer.Option("--after", metavar="CURSOR", help="Go on after this event; --json shows each one's cursor.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one event a line.")] = False,
) -> None:  # fmt: skip
    """Show what happened to jobs and nodes, and with `-f` what happens.

    Following rides out a coordinator that is away, and then shows what happened meanwhile: every event once. `docs/reference/events.md`
    lists the kinds.
    """
    from ostler.cli.session import open_session
    from ostler.protocol.messages import EventQuery

    if after is not None and since is not None:
        raise typer.BadParameter("--after says where to begin, and so does --since: give one")
    if after is None and since is None:
        after, since = ("latest", None) if follow else (None, RECENT_S)
    query = EventQuery(after=after, since_s=since, job=job, node=node, group=group, kind=",".join(kind or ()) or None, limit=PAGE)
    with open_session() as session:
        if follow:
            _follow(session, query, as_json=as_json)
        else:
            _list(session, query, as_json=as_json)


def _list(session: Any, query: Any, *, as_json: bool) -> None:
    from msgspec.structs import replace

    from ostler.protocol import routes

    while True:
        page = session.call(routes.EVENTS, query=query)
        for event in page.items:
            _show(event, as_json=as_json)
        if not page.more:
            return
        query = replace(query, after=page.next_cursor, since_s=None)


def _follow(session: Any, query: Any, *, as_json: bool) -> None:
    import sys

    from ostler.protocol.codec import decode
    from ostler.protocol.messages import FleetEvent

    with session.patient() as patient:
        for told in patient.follow_events(query):
            _show(decode(told.data.encode(), FleetEvent, what="event"), as_json=as_json)
            sys.stdout.flush()


def _show(event: Any, *, as_json: bool) -> None:
    if as_json:
        output.print_line(event)
        return
    words = [
        output.paint(f"{event.at.astimezone():%Y-%m-%d %H:%M:%S}", "dim"),
        f"{event.kind:<14}",
        event.job_id or "",
        f"attempt {event.attempt}" if event.attempt else "",
        f"on {event.node_id}" if event.node_id and event.job_id else event.node_id or "",
        f"({event.message})" if event.message else "",
    ]
    output.say("  ".join(output.clean(word) if at else word for at, word in enumerate(words) if word))
