"""`ostler quota`: what people may have and use, and what they have and used."""

import re
from typing import Annotated, Any

import typer
from msgspec.structs import replace

from ostler.cli import output
from ostler.cli.options import JsonOption, LimitOption

app = typer.Typer()
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The principal, as in `ostler token create --name`.")]
_NONE = "none"
_TOKENS = 1000  # where there are more, one that bears a name may be among those that were not looked at
_DIGITS = re.compile(r"[0-9]{1,9}", re.ASCII)
_HOURS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?", re.ASCII)


def _count(text: str) -> int | str:
    if text != _NONE and not _DIGITS.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is neither a number of jobs nor `{_NONE}`")
    return text if text == _NONE else int(text)


def _hours(text: str) -> float | str:
    if text != _NONE and not _HOURS.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is neither a number of hours nor `{_NONE}`")
    return text if text == _NONE else float(text)


@app.callback(invoke_without_command=True)
def quota(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Show what you may have and use, and what you have and used this month; as an admin, decide it for others."""
    if ctx.invoked_subcommand is not None:
        if as_json:
            raise typer.BadParameter(f"--json stands behind {ctx.invoked_subcommand}")
    else:
        from ostler.cli.session import open_session
        from ostler.protocol import routes
        from ostler.protocol.messages import QuotaQuery

        with open_session() as session:
            page = session.call(routes.LIST_QUOTAS, query=QuotaQuery(mine=True))
        _show(page.items[0], as_json)


@app.command("list")
def list_quotas(limit: LimitOption = 100, as_json: JsonOption = False) -> None:
    """List who has a quota, or used anything this month. A submitter sees their own."""
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import QuotaQuery

    with open_session() as session:
        found, more = session.pages(routes.LIST_QUOTAS, QuotaQuery(limit=min(limit, 100)), limit)
    if as_json:
        output.print_json({"items": found, "more": more})
    else:
        _table(found)
        output.tell_more(limit, more)


@app.command()
def show(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show how one principal stands."""
    from ostler.protocol import routes

    _one(routes.SHOW_QUOTA, name, as_json)


@app.command("set")
def set_quota(  # noqa: PLR0917 - the options of a command
    name: NameArgument,
    queued: Annotated[
        Any, typer.Option("--queued", metavar="N", parser=_count, help="Jobs waiting at once; those that run do not count.")
    ] = None,
    running: Annotated[
        Any, typer.Option("--running", metavar="N", parser=_count, help="Jobs running at once; further ones wait.")
    ] = None,
    cpu_hours: Annotated[
        Any, typer.Option("--cpu-hours", metavar="H", parser=_hours, help="Hours of one processor thread, in a calendar month.")
    ] = None,
    gpu_hours: Annotated[
        Any, typer.Option("--gpu-hours", metavar="H", parser=_hours, help="Hours of one GPU, in a calendar month.")
    ] = None,
    money: Annotated[
        str | None,
        typer.Option("--money", metavar="M", help="What a calendar month may cost, by the coordinator's `prices`: 12 or 12.50."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Limit a principal from now on. What is not named stays as it was; `none` takes a limit away.

    Beyond a limit on what waits or is used, submissions are refused; jobs that were submitted before go on.
    """
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import PageQuery, QuotaRequest

    named = {"queued": queued, "running": running, "cpu_hours": cpu_hours, "gpu_hours": gpu_hours, "money": money}
    changes = {key: None if value == _NONE else value for key, value in named.items() if value is not None}
    if not changes:
        raise typer.BadParameter("name a limit: --queued, --running, --cpu-hours, --gpu-hours or --money")
    with open_session() as session:
        before = session.call(routes.SHOW_QUOTA, principal=name)
        view = session.call(routes.SET_QUOTA, replace(before.limits or QuotaRequest(), **changes), principal=name)
        tokens, more = session.pages(routes.LIST_TOKENS, PageQuery(limit=100), _TOKENS)
    if not more and all(one.principal != name for one in tokens):
        output.note(f"no token bears the name {name} yet: `ostler token create --role submitter --name {name}`")
    _show(view, as_json)


@app.command()
def rm(name: NameArgument, as_json: JsonOption = False) -> None:
    """Limit a principal no longer. What they used stays on record."""
    from ostler.protocol import routes

    _one(routes.REMOVE_QUOTA, name, as_json)


def _one(route: Any, name: str, as_json: bool) -> None:
    from ostler.cli.session import open_session

    with open_session() as session:
        view = session.call(route, principal=name)
    _show(view, as_json)


def _show(view: Any, as_json: bool) -> None:
    if as_json:
        output.print_json(view)
    else:
        _table([view])


def _table(views: Any) -> None:
    rows = []
    for one in views:
        limits = one.limits
        cells = [
            _cell(getattr(one.used, field), limits and getattr(limits, field))
            for field in ("queued", "running", "cpu_hours", "gpu_hours", "money")
        ]
        rows.append((one.principal, *cells))
    output.table(output.columns("NAME|QUEUED>|RUNNING>|CPU HOURS>|GPU HOURS>|MONEY>"), rows, empty="nobody has a quota")
    if views:
        output.say(f"hours and money of {views[0].month}, which ends {views[0].resets_at:%Y-%m-%d %H:%M} UTC; used / limit")


def _cell(used: Any, limit: Any) -> str:
    return f"{_word(used)} / {_word(limit)}"


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return "-" if value is None else str(value)
