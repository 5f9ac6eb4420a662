"""`ostler webhook`: events, delivered to a URL."""

from typing import Annotated

import typer

from ostler.cli import exits, output
from ostler.cli.options import JsonOption, LimitOption

app = typer.Typer(no_args_is_help=True, help="Have events delivered to a URL.")

WebhookArgument = Annotated[str, typer.Argument(metavar="WEBHOOK", help="The webhook's id, as `ostler webhook list` shows it.")]


@app.command()
def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to deliver: https://…")],
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="KIND", help="Only events of this kind; may be given more than once. Default: all."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Deliver events to a URL from now on. Prints the webhook's id, and the secret that signs its deliveries: it is shown this once.

    A submitter's webhook tells of own jobs, an operator's of everything. `docs/how-to/follow-events-and-webhooks.md` shows how a
    receiver checks the signature.
    """
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import WebhookRequest

    with open_session() as session:
        made = session.call(routes.ADD_WEBHOOK, WebhookRequest(url=url, kinds=tuple(kind or ())))
    if as_json:
        output.print_json(made)
    else:
        output.fields([("webhook", made.webhook_id), ("secret", made.secret)])


@app.command("list")
def list_webhooks(limit: LimitOption = 100, as_json: JsonOption = False) -> None:
    """List webhooks, and how they do."""
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import PageQuery

    with open_session() as session:
        found, more = session.pages(routes.LIST_WEBHOOKS, PageQuery(limit=min(limit, 100)), limit)
    if as_json:
        output.print_json({"items": found, "more": more})
        return
    rows = [
        (
            one.webhook_id, one.owner or "(everything)", ",".join(one.kinds) or "all",
            "disabled" if one.disabled_at else f"failing ({one.failures})" if one.failures else "ok",
            one.next_try_at and f"{one.next_try_at.astimezone():%H:%M:%S}", one.url, one.error,
        )
        for one in found
    ]  # fmt: skip
    output.table(output.columns("WEBHOOK|OF|KINDS~|STATE|NEXT TRY|URL~|ERROR~"), rows, empty="no webhooks")
    output.tell_more(limit, more)


@app.command()
def rm(webhook: WebhookArgument, as_json: JsonOption = False) -> None:
    """Deliver nothing more to it."""
    from ostler.cli.session import open_session
    from ostler.protocol import routes

    with open_session() as session:
        removed = session.call(routes.REMOVE_WEBHOOK, webhook_id=webhook)
    if as_json:
        output.print_json(removed)
    else:
        output.say(f"{removed.webhook_id} is removed")


@app.command("test")
def try_webhook(webhook: WebhookArgument, as_json: JsonOption = False) -> None:
    """Make a delivery without events now and say what came of it; exits with 1 where it was not taken."""
    from ostler.cli.session import open_session
    from ostler.protocol import routes

    with open_session() as session:
        tried = session.call(routes.TEST_WEBHOOK, webhook_id=webhook)
    if as_json:
        output.print_json(tried)
    else:
        output.say(f"delivered: answered {tried.status}" if tried.ok else f"not delivered: {tried.error}")
    if not tried.ok:
        raise exits.Exit(exits.FAILED)


@app.command()
def enable(webhook: WebhookArgument, as_json: JsonOption = False) -> None:
    """Deliver again, at once, where it stopped after failures."""
    from ostler.cli.session import open_session
    from ostler.protocol import routes

    with open_session() as session:
        enabled = session.call(routes.ENABLE_WEBHOOK, webhook_id=webhook)
    if as_json:
        output.print_json(enabled)
    else:
        output.say(f"{enabled.webhook_id} is enabled")
