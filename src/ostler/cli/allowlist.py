"""`ostler allowlist`: what a node would say to a command, and why."""

from pathlib import Path
from typing import Annotated

import typer

from ostler.cli import exits, output
from ostler.cli.options import JsonOption

app = typer.Typer(no_args_is_help=True, help="Look into the allowlist of commands.")


@app.command("test")
def explain_verdict(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An allowlist file, or a directory of them (allowlist.d).")],
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="The command with its arguments, after `--`.")],
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="NAME", help="A variable that the manifest would set; may be repeated.")
    ] = None,
    allow_own: Annotated[
        bool, typer.Option("--allow-own", help="Accept a program that you own, as `allow_own_binaries: true` does on a node.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Explain whether a node with this allowlist would run a command. Exit code 3 where it would not (E_DENY)."""
    from ostler.node.allowlist import load_allowlist
    from ostler.node.allowlist_binary import BinaryCheck
    from ostler.node.allowlist_match import check

    verdict = check(load_allowlist([file]), command[0], command[1:], env=env or ())
    problem = BinaryCheck(allow_own_binaries=allow_own).verify(verdict.entry) if verdict.allowed and verdict.entry else None
    allowed = verdict.allowed and problem is None
    lines = verdict.lines()
    if problem is not None:
        lines = [f"denied: E_DENY: {problem}", "the arguments themselves are allowed:", *lines]
    if as_json:
        failure = verdict.failure.message if verdict.failure else str(problem) if problem else None
        output.print_json(
            {"allowed": allowed, "failure": failure, "entry": verdict.entry.file if verdict.entry else None, "lines": lines}
        )
    else:
        for line in lines:
            output.say(output.clean(line))
    if not allowed:
        raise exits.Exit(exits.REJECTED)
