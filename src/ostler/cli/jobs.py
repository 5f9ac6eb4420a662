"""`ostler job`: submit, look, wait, act."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ostler.cli import exits, output
from ostler.cli.options import (
    AttemptOption,
    JobArgument,
    JobOrArrayArgument,
    JobsArgument,
    JobsOrArraysArgument,
    JsonOption,
    LimitOption,
    seconds,
)

app = typer.Typer(no_args_is_help=True, help="Submit jobs, look at them, wait for them, act on them.")
DEBUG_PATIENCE_S = 120.0
_PAGE = 500


class Stream(StrEnum):
    """Which log."""

    STDOUT = "stdout"
    STDERR = "stderr"
    BOTH = "both"


@app.command()
def submit(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE|-", help="Files of manifests (YAML, JSON, JSON lines); `-` is standard input.")
    ],
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="NAME", help="Make one group of all of them, to be shown, waited for and cancelled."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all are over, and exit like `job wait`.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Submit jobs, all of them or none; prints one id a line, and one line for an array or a group.

    A file holds one manifest, a list, several YAML documents, or JSON lines; at most 10,000 jobs in one call. Every mistake is
    shown with its file, line and path before anything is sent.
    """
    from ostler.cli.manifests import group_of, read_manifests, relocate
    from ostler.cli.session import SUBMIT_PATIENCE_S, open_session
    from ostler.model.errors import InvalidSpec
    from ostler.protocol import routes

    written = read_manifests(files)
    group = group_of(written, group)
    plain: Any = [one.plain for one in written]
    if group is not None:
        plain = {"jobs": plain, "group": group}
    with open_session() as session:
        try:
            answer = session.call(routes.SUBMIT, plain, timeout_s=120.0, patience_s=SUBMIT_PATIENCE_S)
        except InvalidSpec as exc:
            raise relocate(exc, written) from exc
        for warning in answer.warnings:
            output.note(f"warning: {warning}")
        arrays = {item.group_id for item in answer.items}
        counts = Counter(item.group_id or item.job_id for item in answer.items)
        if as_json:
            output.print_json(answer)
        else:
            for name, count in counts.items():
                what = "group" if name == group else "array"
                output.say(f"{what} {name}: {count} jobs" if name in arrays else name)
        sys.stdout.flush()
        if wait:
            _wait_for(session, list(counts), deadline=None, as_json=False)


@app.command("list")
def list_jobs(
    *,
    state: Annotated[
        str | None, typer.Option("--state", metavar="S[,S]", help="Only jobs in these states, such as `queued,running`.")
    ] = None,
    label: Annotated[str | None, typer.Option("--label", metavar="K=V", help="Only jobs with this label.")] = None,
    queue: Annotated[str | None, typer.Option("--queue", metavar="Q", help="Only jobs of this queue.")] = None,
    node: Annotated[str | None, typer.Option("--node", metavar="NODE", help="Only jobs on this node.")] = None,
    group: Annotated[str | None, typer.Option("--group", metavar="ID", help="Only jobs of this array or group.")] = None,
    owner: Annotated[str | None, typer.Option("--owner", metavar="NAME", help="Only jobs of this principal.")] = None,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first. A submitter sees their own."""
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import JobQuery

    with open_session() as session:
        query = JobQuery(state=state, label=label, queue=queue, node=node, group=group, owner=owner, limit=min(limit, _PAGE))
        jobs, more = session.pages(routes.LIST_JOBS, query, limit)
    if as_json:
        output.print_json({"items": jobs, "more": more})
        return
    columns = output.columns("JOB|STATE|TITLE~|NODE~|TRIES>|AGE>|TOOK>|WHY~")
    output.table(columns, map(_row, jobs), empty="no jobs")
    if more:
        output.note(f"these are the newest {len(jobs)}; --limit shows more")


def _row(job: Any) -> tuple[object, ...]:
    state = job.state.value
    if state == "queued":
        state = "held" if job.held else "waiting" if job.waiting else state
    took = output.span((job.finished_at - job.submitted_at).total_seconds()) if job.finished_at else None
    why = job.failure.code.value if job.failure else f"{job.pct:.0f} %" if job.pct is not None else None
    return job.job_id, state, job.title, job.node_id, job.tries, output.ago(job.submitted_at), took, why


@app.command()
def show(job: JobOrArrayArgument, as_json: JsonOption = False) -> None:
    """Show one job: its attempts with the time in each state, what they used, the timeline and the artifacts.

    Of an array or a group: how many of its jobs are in which state, and the first few that failed.
    """
    from ostler.cli.job_page import print_group, print_job
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import GroupView

    with open_session() as session:
        view = session.call_either(routes.SHOW_JOB, routes.SHOW_GROUP, job)
    if as_json:
        output.print_json(view)
    elif isinstance(view, GroupView):
        print_group(view)
    else:
        print_job(view)


@app.command()
def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job is over, through its retries.")] = False,
    stream: Annotated[
        Stream, typer.Option("--stream", help="Which log. `both` writes stdout to standard output and stderr to standard error.")
    ] = Stream.BOTH,
    attempt: AttemptOption = None,
    offset: Annotated[int, typer.Option("--offset", metavar="BYTES", min=0, help="Where to begin; without --follow alone.")] = 0,
) -> None:
    """Print what a job wrote, byte for byte."""
    from ostler.cli.follow import Follower
    from ostler.cli.session import open_session
    from ostler.protocol import routes

    streams = [Stream.STDOUT, Stream.STDERR] if stream is Stream.BOTH else [stream]
    targets = {one: sys.stderr if one is Stream.STDERR and stream is Stream.BOTH else sys.stdout for one in streams}
    with open_session() as session:
        if not follow:
            for one in streams:
                for block in session.read_log(job, one.value, attempt=attempt, offset=offset):
                    targets[one].buffer.write(block)
                targets[one].flush()
            return
        session.call(routes.SHOW_JOB, job_id=job)  # who names no job, or reaches no coordinator, is told at once
        followers = [Follower(session, job, one.value, targets[one].fileno(), attempt=attempt) for one in streams]
        for follower in followers:
            follower.start()
        for follower in followers:
            follower.join()
        for follower in followers:
            if follower.failure is not None:
                raise follower.failure


@app.command()
def wait(
    jobs: JobsOrArraysArgument,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", metavar="S", parser=seconds, help="Give up after so long (seconds, or 90s, 2h), with code 124."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Wait until jobs are over, and exit with the job's own code.

    125 where it has none, 128+n for a signal. Of several jobs, the code of the first (as named) that did not end well; 0 if all
    did. An array is over when all its jobs are, and its code is that of its first job that failed.
    """
    from ostler.cli.session import open_session

    deadline = None if timeout is None else time.monotonic() + timeout
    with open_session() as session:
        _wait_for(session, jobs, deadline=deadline, as_json=as_json)


def _wait_for(session: Any, jobs: Sequence[str], *, deadline: float | None, as_json: bool) -> None:
    from ostler.cli import watch

    views = []
    for job in jobs:
        view = watch.Watch(session, job).until_over(deadline=deadline)
        if view is None:
            output.note(f"{job} is not over yet")
            raise exits.Exit(exits.TIMED_OUT)
        views.append(view)
        watch.tell_end(view)
    if as_json:
        output.print_json(views[0] if len(views) == 1 else views)
    code = next((code for view in views if (code := watch.exit_code(view))), exits.GOOD)
    if code:
        raise exits.Exit(code)


@app.command()
def cancel(
    jobs: JobsOrArraysArgument,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; shown in the job's timeline.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Cancel jobs: at once where no node holds them, else as soon as the node has ended them. Of an array, all that are not over."""
    from ostler.protocol import routes
    from ostler.protocol.messages import CancelRequest

    _act(
        jobs,
        routes.CANCEL_JOB,
        lambda view: "is being cancelled" if view.finished_at is None else f"is {view.state}",
        as_json,
        CancelRequest(reason=reason),
        of_group=routes.CANCEL_GROUP,
    )


@app.command()
def retry(jobs: JobsArgument, as_json: JsonOption = False) -> None:
    """Try jobs again: at once where they wait for a retry; those that are over are submitted anew, under a new id."""
    from ostler.protocol import routes

    _act(
        jobs,
        routes.RETRY_JOB,
        lambda view: f"is submitted anew as {view.job_id}" if view.retry_of else f"is {view.state}",
        as_json,
    )


@app.command()
def hold(jobs: JobsArgument, as_json: JsonOption = False) -> None:
    """Keep pending jobs from being given to a node."""
    from ostler.protocol import routes

    _act(jobs, routes.HOLD_JOB, lambda _view: "is held", as_json)


@app.command()
def release(jobs: JobsArgument, as_json: JsonOption = False) -> None:
    """Let held jobs go on."""
    from ostler.protocol import routes

    _act(jobs, routes.RELEASE_JOB, lambda _view: "is released", as_json)


def _act(
    jobs: Sequence[str], route: Any, said: Callable[[Any], str], as_json: bool, message: Any = None, *, of_group: Any = None
) -> None:
    """One call a job, or an array where there is a route for it. All are tried; the first error decides the exit code."""
    from ostler.cli.session import open_session
    from ostler.model.errors import OstlerError

    views, first = [], None
    with open_session() as session:
        for job in jobs:
            try:
                view = (
                    session.call_either(route, of_group, job, message) if of_group else session.call(route, message, job_id=job)
                )
            except OstlerError as exc:
                if len(jobs) == 1:
                    raise
                output.note(exits.describe(exc))
                first = first or exc
                continue
            views.append(view)
            if not as_json:
                output.say(output.clean(f"{job} {said(view)}"))
    if as_json:
        output.print_json(views[0] if len(jobs) == 1 else views)
    if first is not None:
        raise exits.Exit(exits.error_code(first))


@app.command()
def explain(job: JobArgument, as_json: JsonOption = False) -> None:
    """Tell why a job is where it is: which requirement how many nodes fail, or who is ahead."""
    from ostler.cli.session import open_session
    from ostler.protocol import routes

    with open_session() as session:
        found = session.call(routes.EXPLAIN_JOB, job_id=job)
    if as_json:
        output.print_json(found)
        return
    output.say(output.clean(f"{found.job_id} is {found.state}: {found.summary}"))
    if found.nodes_total:
        output.say(f"nodes: {found.nodes_total} in all, {found.nodes_fitting} fit, {found.nodes_free} of those have room now")
    if found.ahead:
        output.say(f"ahead in the queue: {found.ahead}")
    if found.blockers:
        rows = [(one.requirement, one.nodes, "; ".join(one.examples)) for one in found.blockers]
        output.table(output.columns("REQUIREMENT|NODES THAT FAIL IT>|FOR EXAMPLE~"), rows)


@app.command()
def artifacts(
    job: JobArgument,
    download: Annotated[Path | None, typer.Option("--download", metavar="DIR", help="Download all of them into DIR.")] = None,
    attempt: AttemptOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what a job delivered, or download it. A download bears its name only once it is whole and its sha256 is right."""
    from ostler.assembly.targets import safe_target
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import ArtifactQuery

    with open_session() as session:
        page = session.call(routes.LIST_ARTIFACTS, query=ArtifactQuery(attempt=attempt), job_id=job)
        if download is not None:
            for entry in page.items:
                session.fetch_artifact(job, entry, safe_target(download, entry.path), attempt=attempt)
    if as_json:
        output.print_json(page)
        return
    rows = [(one.path, output.size(one.size), one.type, one.sha256) for one in page.items]
    columns = output.columns("PATH~|SIZE>|TYPE~|SHA256~")
    output.table(columns, rows, empty="no artifacts")


@app.command()
def debug(
    job: JobArgument,
    download: Annotated[
        Path | None, typer.Option("--download", metavar="DIR", help="Where to put the archive; here if absent.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Pin the workspace of a job's latest attempt on its node, and fetch it as tar.gz. Prints the archive's path."""
    from ostler.cli.session import open_session
    from ostler.protocol import routes

    with open_session() as session:
        view = session.call(routes.DEBUG_JOB, job_id=job)
        target = (download or Path.cwd()) / f"{job}-{view.attempt}.tar.gz"
        sha256 = _workspace(session, job, view.attempt)
        session.fetch_workspace(job, view.attempt, target, sha256=sha256)
    if as_json:
        output.print_json({"path": str(target), "attempt": view.attempt, "sha256": sha256})
    else:
        output.say(str(target))


def _workspace(session: Any, job: str, attempt: int) -> str:
    """Waits until the node has uploaded it; answers its sha256. Raises Unavailable after two minutes."""
    from ostler.model.errors import Unavailable
    from ostler.protocol import routes
    from ostler.runtime.backoff import Backoff

    deadline, backoff = time.monotonic() + DEBUG_PATIENCE_S, Backoff(min_s=0.1, max_s=2.0)
    while time.monotonic() < deadline:
        view = session.call(routes.SHOW_JOB, job_id=job)
        found: str | None = next((one.workspace_sha256 for one in view.attempts if one.attempt == attempt), None)
        if found is not None:
            return found
        time.sleep(backoff.next_s())
    raise Unavailable(f"the node has not uploaded the workspace of {job} yet", hint=f"try again: ostler job debug {job}")
