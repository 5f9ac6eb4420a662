"""`ostler top`: the fleet as it is now, every other second, through restarts of the coordinator and lines that break."""

import contextlib
import signal
import sys
from typing import Annotated

import typer

from ostler.cli import output
from ostler.cli.options import JsonOption, seconds

EVERY_S = 2.0
TERMINATED = 128 + signal.SIGTERM


def top(
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    every: Annotated[
        float | None,
        typer.Option("--every", metavar="S", parser=seconds, help="How often it is looked up: seconds, or 500ms. Default: 2."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Watch the fleet: nodes with what is wrong first, who has what queued and running, the newest failures.

    A submitter sees their own jobs. While the coordinator does not answer, what was last seen stays, and it goes on by itself. Ctrl-C
    ends it. --json prints it once, as JSON.
    """
    from ostler.cli import top_page
    from ostler.cli.session import open_session
    from ostler.protocol import routes

    every = EVERY_S if every is None else every
    if not 0.1 <= every <= 3600:
        raise typer.BadParameter("must be from 0.1 s to 1 h", param_hint="'--every'")
    with open_session() as session:
        release = session.call(routes.VERSION).version
        seen = session.call(routes.OVERVIEW)
        if as_json:
            output.print_json(seen)
        elif once:
            output.say("\n".join(top_page.page(seen, release=release, width=output.terminal_width())))
        else:
            signal.signal(signal.SIGTERM, _terminate)
            show = top_page.screen if sys.stdout.isatty() else top_page.plain
            with contextlib.suppress(KeyboardInterrupt):  # how it is meant to end
                show(top_page.readings(session, seen, every), release)


def _terminate(_number: int, _frame: object) -> None:
    raise SystemExit(TERMINATED)  # not at once: the terminal is given back first
