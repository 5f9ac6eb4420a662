"""`ostler retention`: how long things are kept, what takes space, what goes."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ostler.cli import output
from ostler.cli.options import JsonOption

_KINDS = ("jobs", "events", "logs", "artifacts", "uploads", "idempotency", "audit", "nodes")


def retention(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Also show what would be removed now, and why.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Remove it now, instead of at the next pass.")] = False,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=0, max=1000, help="With --dry-run: so many one by one.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Show how long jobs, events, logs and artifacts are kept, and the space that they take. For operators.

    The coordinator's configuration decides (`retention`); it removes by itself, once an hour unless told otherwise.
    """
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import RetentionQuery

    if dry_run and now:
        raise typer.BadParameter("--dry-run and --now exclude each other")
    with open_session() as session:
        if now:
            view = session.call(routes.APPLY_RETENTION, timeout_s=600.0)
        else:
            view = session.call(routes.SHOW_RETENTION, query=RetentionQuery(dry_run=dry_run, limit=limit), timeout_s=600.0)
    if as_json:
        output.print_json(view)
    elif now:
        _tell(view.last.removed, view.last.freed, "removed")
    else:
        _show(view)


def _show(view: Any) -> None:
    used = view.last.used if view.last else {}
    rows = [(kind, view.policy[kind], _limit(view.policy, kind), _size(used, kind)) for kind in _KINDS]
    for name, own in view.policy["pools"].items():
        rows += [
            (f"{kind} of {name}", own.get(kind), _limit(own, kind), None)
            for kind in _KINDS
            if own.get(kind) or own.get(f"{kind}_mb") is not None
        ]
    output.table(output.columns("KIND|KEPT FOR>|AT MOST>|USED>"), rows)
    if view.last is not None:
        output.say(f"files of the artifact store: {output.size(used.get('blobs', 0))}; last pass {output.ago(view.last.at)} ago")
    if view.plan is None:
        return
    output.say()
    _tell(view.plan.counts, view.plan.sizes, "to be removed")
    if view.plan.items:
        output.table(
            output.columns("JOB|WHAT|SIZE>|WHY~"),
            [(one.job_id, one.part, output.size(one.size) if one.size else None, one.why) for one in view.plan.items],
        )


def _limit(policy: Mapping[str, Any], kind: str) -> str | None:
    size = policy.get(f"{kind}_mb")
    return None if size is None else f"{size} MB"


def _size(used: Mapping[str, int], kind: str) -> str | None:
    return output.size(used[kind]) if kind in used else None


def _tell(counts: Mapping[str, int], sizes: Mapping[str, int], verb: str) -> None:
    some = [f"{counts[kind]} {kind}" + (f" ({output.size(sizes[kind])})" if sizes.get(kind) else "") for kind in sorted(counts)]
    output.say(f"{verb}: {', '.join(some) or 'nothing'}")
