"""`ostler service`: what the services of hosts are to do, and how they do."""

import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ostler.cli import exits, output
from ostler.cli.options import JsonOption, LimitOption, seconds
from ostler.model.service import COMMAND_TTL, Verb

app = typer.Typer(no_args_is_help=True, help="Start and stop services of hosts, and see how they do.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The service, as the configuration of its nodes calls it.")]
OnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--on", metavar="WHERE",
        help="all, any (whichever takes it first), NODE, pool=NAME or tag=NAME; several, or with commas between, must all hold. "
        "Default: the only node that declares it; for status, all.",
    ),
]  # fmt: skip
TtlOption = Annotated[
    float | None,
    typer.Option(
        "--ttl", metavar="S", parser=seconds, help="A node that is away for longer does not get it (seconds, or 2h). Default: 5m."
    ),
]  # fmt: skip
NoWaitOption = Annotated[bool, typer.Option("--no-wait", help="Print the jobs and do not wait for their ends.")]
TOLD_AFTER_S = 3.0
POLL_S = 30.0
MOST_NAMED = 5


@app.command()
def start(
    name: NameArgument, on: OnOption = None, ttl: TtlOption = None, no_wait: NoWaitOption = False, as_json: JsonOption = False
) -> None:  # fmt: skip
    """Start a service, and keep it started: its nodes start it anew after crashes.

    Exits with 0 where every node that is meant did so, else with 1. A newer command to the same service of a node takes the place of
    those that have not begun there.
    """
    _command(Verb.START, name, on, ttl, no_wait=no_wait, as_json=as_json)


@app.command()
def stop(
    name: NameArgument, on: OnOption = None, ttl: TtlOption = None, no_wait: NoWaitOption = False, as_json: JsonOption = False
) -> None:  # fmt: skip
    """Stop a service. It stays stopped until somebody starts it, over restarts of the daemon and of its host.

    Exits with 0 where every node that is meant did so, else with 1.
    """
    _command(Verb.STOP, name, on, ttl, no_wait=no_wait, as_json=as_json)


@app.command()
def restart(
    name: NameArgument, on: OnOption = None, ttl: TtlOption = None, no_wait: NoWaitOption = False, as_json: JsonOption = False
) -> None:  # fmt: skip
    """Stop a service and start it anew; one that is stopped is started. Exits with 0 where every node that is meant did so, else with 1."""
    _command(Verb.RESTART, name, on, ttl, no_wait=no_wait, as_json=as_json)


@app.command()
def status(
    name: NameArgument, on: OnOption = None, ttl: TtlOption = None, no_wait: NoWaitOption = False, as_json: JsonOption = False
) -> None:  # fmt: skip
    """Have nodes look at a service now. `ostler service list` shows what they told last, and asks nobody.

    Exits with 0 where every node that is meant answered, whatever it found, else with 1.
    """
    _command(Verb.STATUS, name, on, ttl, no_wait=no_wait, as_json=as_json)


@app.command("list")
def list_services(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this service.")] = None,
    node: Annotated[str | None, typer.Option("--node", metavar="NODE", help="Only services of this node.")] = None,
    limit: LimitOption = 500,
    as_json: JsonOption = False,
) -> None:
    """List services, a row for each node: how each was found, its health, what was last asked for, and what it tells of itself.

    *stale*: nothing was heard of its node for five minutes.
    """
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import ServiceQuery

    query = ServiceQuery(limit=min(limit, 100), node=node)
    with open_session() as session:
        if name is None:
            found, more = session.pages(routes.LIST_SERVICES, query, limit)
        else:
            found, more = session.pages(routes.SHOW_SERVICE, query, limit, name=name)
    if as_json:
        output.print_json({"items": found, "more": more})
        return
    show(found)
    output.tell_more(limit, more)


def show(found: Sequence[Any], *, of_one_node: bool = False) -> None:
    """The table of services as nodes told of them."""
    rows: list[tuple[Any, ...]] = [
        (
            one.name, one.node_id, one.state, one.health, one.desired, output.ago(one.since), one.restarts or None, numbers(one.metrics),
            output.ago(one.told_at), one.message,
        )
        for one in found
    ]  # fmt: skip
    titles = "SERVICE|NODE~|STATE|HEALTH|WANTED?|SINCE?>|RESTARTS?>|NUMBERS?~|TOLD?>|WHY+"
    if of_one_node:
        rows, titles = [(row[0], *row[2:]) for row in rows], titles.replace("NODE~|", "")
    output.table(output.columns(titles), rows, empty="no services: declare them in the configuration of a node, under `services`")


def numbers(metrics: Any) -> str:
    """What a service tells of itself, on one line."""
    return ", ".join(f"{name} {value:g}" for name, value in sorted(metrics.items()))


# --- commands ----------------------------------------------------------------------------------------------------------------


def _command(verb: Verb, name: str, on: list[str] | None, ttl: float | None, *, no_wait: bool, as_json: bool) -> None:
    from ostler.cli.session import SUBMIT_PATIENCE_S, open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import ServiceRequest

    words = None if on is None else tuple(word for text in on for word in text.split(","))
    request = ServiceRequest(on=words, ttl_s=COMMAND_TTL.total_seconds() if ttl is None else ttl)
    with open_session() as session:
        made = session.call(routes.COMMAND_SERVICE, request, patience_s=SUBMIT_PATIENCE_S, name=name, verb=verb.value)
        _tell_left_out(made)
        if no_wait:
            if as_json:
                output.print_json(made)
            else:
                jobs = [(one.node_id or "(any)", one.job_id) for one in made.deliveries]
                output.table(output.columns("NODE~|JOB"), jobs)
            return
        try:
            ends = _wait(session, made, request.ttl_s)
        except KeyboardInterrupt:
            output.note(f"the command goes on: `ostler job show {made.group_id or made.deliveries[0].job_id}`")
            raise
        rows = [_row(session, one, ends[one.job_id]) for one in made.deliveries]
    if as_json:
        output.print_json(
            {
                "service": made.service, "verb": made.verb, "group_id": made.group_id, "deliveries": rows,
                "left_out": made.left_out, "left_out_count": made.left_out_count,
            }
        )  # fmt: skip
    else:
        titles = "NODE~|OUTCOME|TOOK>|STATE|HEALTH|WHY+"
        cells = [(one["node_id"], one["outcome"], one["took"], one["state"], one["health"], one["why"]) for one in rows]
        output.table(output.columns(titles), cells)
    if any(one["outcome"] != "done" for one in rows) or any(one.unreached for one in made.left_out):
        raise exits.Exit(exits.FAILED)


def _tell_left_out(made: Any) -> None:
    """One line for each reason: of a selector many nodes may declare no such service."""
    by_reason: dict[str, list[str]] = {}
    for one in made.left_out:
        by_reason.setdefault(one.reason, []).append(one.node_id)
    for reason, nodes in by_reason.items():
        some = ", ".join(nodes[:MOST_NAMED]) + (f" and {len(nodes) - MOST_NAMED} more" if len(nodes) > MOST_NAMED else "")
        output.note(f"left out: {some} ({reason})")
    if made.left_out_count > len(made.left_out):
        output.note(f"left out: {made.left_out_count - len(made.left_out)} more")


def _wait(session: Any, made: Any, ttl: float) -> dict[str, Any]:
    """The jobs of all deliveries once they are over, through restarts of the coordinator. Who interrupts this leaves them as they are."""
    from ostler.cli.session import FOLLOW_PATIENCE_S
    from ostler.model.errors import Unavailable
    from ostler.protocol import routes
    from ostler.protocol.messages import AwaitRequest
    from ostler.runtime.backoff import Backoff

    nodes = {one.job_id: one.node_id or "any node" for one in made.deliveries}
    ends: dict[str, Any] = {}
    began = heard_at = time.monotonic()
    backoff, told = Backoff(min_s=0.2, max_s=5.0), False
    while len(ends) < len(nodes):
        left = tuple(job_id for job_id in nodes if job_id not in ends)
        waited = time.monotonic() - began
        if waited >= TOLD_AFTER_S and not told:
            told = True
            some = ", ".join(nodes[job_id] for job_id in left[:MOST_NAMED]) + (", …" if len(left) > MOST_NAMED else "")
            output.note(f"waiting for {some}; what no node takes within {output.span(ttl)} is given up")
        rest = POLL_S if told else max(0.0, TOLD_AFTER_S - waited)
        try:
            answer = session.call(routes.AWAIT_JOBS, AwaitRequest(job_ids=left, wait_s=rest))
        except Unavailable:  # the command goes on without the coordinator, where a node has it
            if time.monotonic() - heard_at >= FOLLOW_PATIENCE_S:
                raise
            time.sleep(backoff.next_s())
            continue
        backoff.reset()
        heard_at = time.monotonic()
        ends |= {one.job.job_id: one.job for one in answer.items} | dict.fromkeys(answer.missing)
    return ends


def _row(session: Any, delivery: Any, job: Any) -> dict[str, Any]:
    """What became of one delivery, and how its node found the service afterwards."""
    from ostler.model.job import JobState

    if job is None:
        return {"job_id": delivery.job_id, "node_id": delivery.node_id, "outcome": "deleted"} | dict.fromkeys(
            ("took", "took_s", "state", "health", "why", "seen")
        )
    seen = _seen(session, job.job_id) if job.attempt and job.state in {JobState.DONE, JobState.FAILED} else None
    took_s = (job.finished_at - job.submitted_at).total_seconds()
    return {
        "job_id": job.job_id, "node_id": job.node_id or delivery.node_id, "outcome": job.state.value, "took": output.span(took_s),
        "took_s": took_s, "state": seen and seen.state, "health": seen and seen.health, "why": _why(session, job, seen), "seen": seen,
    }  # fmt: skip


def _why(session: Any, job: Any, seen: Any) -> str | None:
    from ostler.model.job import JobState
    from ostler.protocol import routes

    if job.state is JobState.DONE:
        return seen.message if seen is not None else None
    if job.failure is not None:
        return f"{job.failure.code.value}: {job.failure.message}"
    timeline = session.call(routes.SHOW_JOB, job_id=job.job_id).timeline
    return timeline[-1].message if timeline else None


def _seen(session: Any, job_id: str) -> Any:
    """The observation that a node writes as the output of the job; None where it wrote none."""
    from ostler.model.errors import Rejected
    from ostler.model.service import Observation
    from ostler.protocol.codec import decode

    try:
        lines = b"".join(session.read_log(job_id, "stdout")).splitlines()
        return decode(lines[-1], Observation, what="observation") if lines else None
    except Rejected:
        return None
