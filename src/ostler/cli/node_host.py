"""`ostler node enrol` and `reach`: what is done with a node's configuration beside its daemon."""

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from ostler.cli import output
from ostler.cli.options import JsonOption

SYSTEM_CONFIG = Path("/etc/ostler/node.yaml")
_VARIABLE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_LONGEST_TOKEN = 4096

ConfigOption = Annotated[Path, typer.Option("--config", metavar="FILE", help="The node's configuration.")]


def enrol(
    config: ConfigOption = SYSTEM_CONFIG,
    token: Annotated[
        str | None,
        typer.Option("--token", metavar="env:NAME", help="Read the join token from a variable instead of standard input."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Enrol this node with a join token, once: its key is made, the coordinator's is pinned, and the daemon then needs no token.

    Run it as the user that the daemon has. The token comes on standard input, never as an argument. A node that is enrolled with this
    coordinator stays so, and the token is not used up.
    """
    from ostler.assembly import enrolment

    done = enrolment.enrol(config, read_token(token), env=os.environ)
    if as_json:
        output.print_json(done)
    else:
        output.say(f"{done.node_id} is enrolled at {done.coordinator}")


def reach(config: ConfigOption = SYSTEM_CONFIG, as_json: JsonOption = False) -> None:
    """Ask the coordinator whether it talks to this release of this node. Opens no session: a daemon that runs is not disturbed."""
    from ostler.assembly import enrolment

    done = enrolment.reach(config, env=os.environ)
    if as_json:
        output.print_json(done)
    else:
        output.say(f"{done.coordinator} answers {done.node_id}")


def read_token(named: str | None) -> str:
    """A join token from a variable (`env:NAME`), a prompt or standard input. Raises InvalidSpec."""
    from ostler.model.errors import InvalidSpec

    hint = "ostler token create --join | ostler node enrol"
    if named is not None:
        match = _VARIABLE.fullmatch(named)
        if match is None:  # not repeated here: it may be the token
            raise typer.BadParameter(
                "the token is no argument, which everybody could see: say env:NAME, or give it on standard input"
            )
        token = os.environ.get(match[1], "")
        if not token:
            raise InvalidSpec(f"the variable {match[1]} holds no token", hint=f"export {match[1]}=…")
    elif sys.stdin.isatty():
        token = str(typer.prompt("join token", hide_input=True, err=True))
    else:
        token = sys.stdin.read(_LONGEST_TOKEN + 1)
    token = token.strip()
    if not token or len(token) > _LONGEST_TOKEN or not token.isascii() or len(token.split()) != 1:
        raise InvalidSpec(
            "there is no join token on standard input" if not token else "what was given is no join token", hint=hint
        )
    return token
