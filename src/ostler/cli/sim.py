"""`ostler sim`: how many nodes and jobs a coordinator carries, found out without any of them."""

from typing import Annotated, Any

import typer

from ostler.cli import output
from ostler.cli.options import JsonOption, seconds
from ostler.model.words import many

app = typer.Typer(help="Find out what a coordinator carries.", no_args_is_help=True)


@app.callback()
def sim() -> None:
    """Find out what a coordinator carries."""


@app.command()
def nodes(  # noqa: PLR0917 - the options of a command
    count: Annotated[int, typer.Argument(metavar="N", help="How many nodes.")],
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=0, help="Submit so many jobs at the beginning.")] = 0,
    rate: Annotated[float, typer.Option("--rate", metavar="N", min=0, help="Submit so many jobs a second, too.")] = 0.0,
    time: Annotated[
        float | None,
        typer.Option("--for", metavar="TIME", parser=seconds, help="End after this time. Default: once all jobs are over."),
    ] = None,
    job_time: Annotated[
        float, typer.Option("--job-time", metavar="TIME", parser=seconds, help="What a job takes, on average.")
    ] = "1s",  # type: ignore[assignment]
    slots: Annotated[int, typer.Option("--slots", metavar="N", min=1, max=4096, help="Jobs that a node runs at once.")] = 1,
    fail: Annotated[float, typer.Option("--fail", metavar="SHARE", help="The share of the jobs that fail.")] = 0.0,
    churn: Annotated[
        float,
        typer.Option(
            "--churn", metavar="SHARE", help="The share of the nodes that dies in a minute; each comes back ten seconds later."
        ),
    ] = 0.0,
    log_bytes: Annotated[int, typer.Option("--log-bytes", metavar="N", min=0, help="What each job prints.")] = 0,
    verify: Annotated[
        float, typer.Option("--verify", metavar="SHARE", help="The share of the leases whose signature is checked.")
    ] = 0.01,
    share: Annotated[
        bool, typer.Option("--share", help="One connection for each node and a few for all, in place of two for each.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of chance.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Simulate N nodes against the coordinator, and tell what calls took, which leases were lost, and what it cost there.

    Everything is real but the work: each node has a key, a session and connections of its own, polls, sends heartbeats, acknowledges
    and delivers. No job is run, and none of anybody else is touched: the nodes stand in a pool of their own, which the simulated
    jobs name. At the end, or at Ctrl-C, the nodes are retired.

    The coordinator must let so many connections in from one address (`limits.connections`), and so must the limits of both processes
    on open files.
    """
    from ostler.assembly.endpoint import find_endpoint
    from ostler.assembly.sim import simulate
    from ostler.cli.session import trust_in
    from ostler.sim.plan import Plan

    plan = Plan(
        nodes=count, slots=slots, jobs=jobs, rate=rate, job_s=job_time, for_s=time, fail=fail, churn=churn, log_bytes=log_bytes,
        verify=verify, share=share, seed=seed,
    )  # fmt: skip
    endpoint = find_endpoint()
    report = simulate(plan, endpoint, trust_in(endpoint), output.note)
    if as_json:
        output.print_json(report)
    else:
        _show(report)


def _show(report: Any) -> None:
    rows = [
        [name, str(one.count), f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}", f"{one.max_ms:.1f}"]
        for name, one in sorted(report.calls.items())
    ]
    output.table(output.columns("CALL|COUNT>|P50 MS>|P99 MS>|MAX MS>"), rows)
    lines = [""]
    ends = [
        f"{count} {what}"
        for count, what in ((report.jobs_done, "done"), (report.jobs_failed, "failed"), (report.jobs_cancelled, "cancelled"))
        if count
    ]
    over = f"{', '.join(ends) or 'no job over'}, {report.jobs_per_s:g} a second"
    lines.append(f"{many(report.nodes, 'node')} for {report.seconds:.1f} s ({report.stopped}): {over}")
    lines.append(f"leases lost: {report.lost}; with nodes that died: {report.killed}; signatures checked: {report.verified}")
    if report.coordinator_memory_mb is not None:
        used = "started anew meanwhile"
        if report.coordinator_cpu is not None:
            used = f"{report.coordinator_cpu:.2f} of a core ({report.coordinator_cpu_s:g} s)"
        lines.append(f"coordinator: {used}, {report.coordinator_memory_mb:.0f} MB, {report.coordinator_descriptors} descriptors")
    lines.append(
        f"simulator: {report.simulator_cpu:.2f} of a core, {report.simulator_memory_mb:.0f} MB, itself late by "
        f"{report.simulator_late_p99_ms:.1f} ms (p99), which is in the figures above"
    )
    lines += [f"{count} × {what}" for what, count in sorted(report.troubles.items())]
    output.say("\n".join(lines))
