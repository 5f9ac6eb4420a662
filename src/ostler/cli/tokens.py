"""`ostler token`: what lets nodes and people in."""

from typing import Annotated

import typer

from ostler.cli import output
from ostler.cli.options import JsonOption, LimitOption, seconds
from ostler.model.access import Role

JOIN_S = 3600.0
API_S = 90 * 86400.0

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke tokens.")


@app.command()
def create(  # noqa: PLR0917 - the options of a command
    join: Annotated[bool, typer.Option("--join", help="A token with which nodes join.")] = False,
    role: Annotated[
        Role | None, typer.Option("--role", help="An API token for a person or a program with this role; only an admin makes one.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="With --role: whose it is. All tokens of one name own the same jobs."),
    ] = None,
    uses: Annotated[int, typer.Option("--uses", metavar="N", min=1, help="With --join: how many nodes may join with it.")] = 1,
    pool: Annotated[str | None, typer.Option("--pool", metavar="POOL", help="With --join: the pool of its nodes.")] = None,
    expires: Annotated[
        float | None,
        typer.Option(
            "--expires", metavar="S", parser=seconds,
            help="How long it is good: seconds, or 30m, 7d. Default: 1h to join, 90d for the API.",
        ),
    ] = None,
    text: Annotated[str | None, typer.Option("--note", metavar="TEXT", help="What it is for; shown in the list.")] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Make a token and print it. It is shown this once; the coordinator keeps only its hash.

    Roles: a *viewer* sees everything and changes nothing; a *submitter* runs jobs and sees their own alone; an *operator* keeps all jobs
    and nodes running; an *admin* also decides who may do what.
    """
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import TokenKind, TokenRequest

    if join == (role is not None):
        raise typer.BadParameter(f"say which kind: --join, or --role {'|'.join(Role)}")
    if not join and (pool is not None or uses != 1):
        raise typer.BadParameter("--uses and --pool belong to --join")
    if join and name is not None:
        raise typer.BadParameter("--name belongs to --role")
    kind, life_s = (TokenKind.JOIN, JOIN_S) if join else (TokenKind.API, API_S)
    wanted = TokenRequest(
        kind=kind, role=role, principal=name, pool=pool, uses=uses, note=text, expires_s=life_s if expires is None else expires
    )
    with open_session() as session:
        made = session.call(routes.CREATE_TOKEN, wanted)
    if as_json:
        output.print_json(made)
    else:
        output.say(made.token)


@app.command("list")
def list_tokens(limit: LimitOption = 100, as_json: JsonOption = False) -> None:
    """List tokens, newest first, without their secrets."""
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import PageQuery

    with open_session() as session:
        tokens, more = session.pages(routes.LIST_TOKENS, PageQuery(limit=min(limit, 100)), limit)
    if as_json:
        output.print_json({"items": tokens, "more": more})
        return
    rows = [
        (
            one.token_id,
            one.kind.value if one.role is None else one.role.value,
            one.principal or one.pool,
            "revoked" if one.revoked_at else None,
            one.uses_left,
            output.ago(one.created_at),
            one.expires_at and f"{one.expires_at.astimezone():%Y-%m-%d %H:%M}",
            one.note,
        )
        for one in tokens
    ]
    columns = output.columns("TOKEN|FOR|NAME OR POOL|STATE|USES LEFT>|AGE>|EXPIRES|NOTE~")
    output.table(columns, rows, empty="no tokens")
    output.tell_more(limit, more)


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="The token's id, as `ostler token list` shows it.")],
    as_json: JsonOption = False,
) -> None:
    """Make a token useless from now on. Nodes that joined with it stay."""
    from ostler.cli.session import open_session
    from ostler.protocol import routes

    with open_session() as session:
        revoked = session.call(routes.REVOKE_TOKEN, token_id=token)
    if as_json:
        output.print_json(revoked)
    else:
        output.say(f"{revoked.token_id} is revoked")
