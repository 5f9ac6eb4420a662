"""`ostler token`: what lets a node in."""

from typing import Annotated

import typer

from ostler.cli import output
from ostler.cli.options import JsonOption, LimitOption, seconds

JOIN_S = 3600.0

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke tokens.")


@app.command()
def create(
    join: Annotated[
        bool, typer.Option("--join", help="A token with which nodes join; the only kind that this command makes.")
    ] = False,
    uses: Annotated[int, typer.Option("--uses", metavar="N", min=1, help="How many nodes may join with it.")] = 1,
    expires: Annotated[
        float | None,
        typer.Option("--expires", metavar="S", parser=seconds, help="How long it is good: seconds, or 30m, 7d. Default: 1h."),
    ] = None,
    text: Annotated[str | None, typer.Option("--note", metavar="TEXT", help="What it is for; shown in the list.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a join token and print it. It is shown this once; the coordinator keeps only its hash."""
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import TokenRequest

    if not join:
        raise typer.BadParameter("say which kind: --join")
    with open_session() as session:
        made = session.call(
            routes.CREATE_TOKEN, TokenRequest(uses=uses, expires_s=JOIN_S if expires is None else expires, note=text)
        )
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
            one.kind.value,
            "revoked" if one.revoked_at else None,
            one.uses_left,
            output.ago(one.created_at),
            one.expires_at and f"{one.expires_at.astimezone():%Y-%m-%d %H:%M}",
            one.note,
        )
        for one in tokens
    ]
    columns = output.columns("TOKEN|KIND|STATE|USES LEFT>|AGE>|EXPIRES|NOTE~")
    output.table(columns, rows, empty="no tokens")


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
