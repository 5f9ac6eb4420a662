"""`ostler node enrol`, `reach`, `install` and `uninstall`: what is done for this machine's own node beside its daemon."""

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

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

    done = enrolment.enrol(config, read_token(token) or "", env=os.environ)
    if as_json:
        output.print_json(done)
    else:
        output.say(f"{done.node_id} is enrolled at {done.coordinator}")


def reach(config: ConfigOption = SYSTEM_CONFIG, as_json: JsonOption = False) -> None:
    """Ask the coordinator whether it talks to this release of this node and knows its key. A daemon that runs is not disturbed."""
    from ostler.assembly import enrolment

    done = enrolment.reach(config, env=os.environ)
    if as_json:
        output.print_json(done)
    else:
        output.say(f"{done.coordinator} answers {done.node_id}")


def rotate_key(config: ConfigOption = SYSTEM_CONFIG, as_json: JsonOption = False) -> None:
    """Give this node a new key. Both are good until its daemon, started anew, opens a session with the new one; asked then, it says so.

    Run it as the user that the daemon has. `ostler fleet rotate-credentials` does all of it, on all hosts.
    """
    from ostler.assembly import rekeying

    done = rekeying.rotate(config, env=os.environ)
    if as_json:
        output.print_json(done)
    elif done.proven:
        output.say(f"{done.node_id} has the key {done.key_id}; the one before opens nothing any more")
    else:
        output.say(f"{done.node_id} has the key {done.key_id} from its daemon's next start on; then say this again")


def install(
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="What becomes /etc/ostler/node.yaml. Default: the one that is there."),
    ] = None,
    release: Annotated[
        str | None, typer.Option("--release", metavar="ID", help="Its id or a beginning. Default: the newest.")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", metavar="DIR", help="Where the release's file is. Default: as `ostler release list` has it."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option("--token", metavar="env:NAME", help="Read the join token from a variable instead of standard input."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make this machine a node under systemd: user, directories, units, enrolment. Needs root; again, it puts right what is not so.

    Done when the daemon has proven that it can run a job and is in contact with the coordinator. A machine that is enrolled needs no
    token: give it none (`</dev/null`).
    """
    from ostler.assembly import installing as bring
    from ostler.assembly.releases import release_places
    from ostler.assembly.resolve import resolve_node
    from ostler.fleet.installing import Installation
    from ostler.fleet.node_config import CANARY, Own
    from ostler.fleet.releases.store import ReleaseStore
    from ostler.model.errors import Conflict

    _need_root()
    text = None
    if config is not None:
        resolve_node(config, env={}, need_secrets=False)
        text = config.read_text()
    chosen = ReleaseStore(release_places(os.environ, store=store).store).find(release)
    secret = read_token(token, needed=False)

    async def told() -> str | None:
        return secret

    own = Own(config=text, files=CANARY)
    installation = Installation(bring.run_here, bring.wanted(chosen, token=told), own)

    async def carry_out() -> dict[str, Any]:
        looked = await installation.look()
        if looked.refusal is not None:
            raise Conflict(looked.refusal)
        return await installation.carry_out(looked)

    done = asyncio.run(carry_out())
    if as_json:
        output.print_json(done)
    else:
        what = ", ".join(done["changed"]) or "nothing had to be changed"
        output.say(output.clean(f"{done['health']['node_id']} is a node ({what})"))
        for warning in done["warnings"]:
            output.note(output.clean(f"warning: {warning}"))


def uninstall(
    keep_state: Annotated[
        bool,
        typer.Option("--keep-state", help="Leave user, key, journal and workspaces, for an installation that comes later."),
    ] = False,
    end_jobs: Annotated[bool, typer.Option("--end-jobs", help="End the jobs that run. Without it, they are a refusal.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take back what `install` did to this machine; what stays (logs) is named. Needs root."""
    from ostler.assembly.installing import run_here
    from ostler.fleet import installing

    _need_root()
    done = asyncio.run(installing.uninstall(run_here, keep_state=keep_state, end_jobs=end_jobs))
    if as_json:
        output.print_json(done)
        return
    for kind, word in (("removed", "removed"), ("restored", "put back"), ("left", "left")):
        for one in done[kind]:
            output.say(output.clean(f"{word} {one}"))


def _need_root() -> None:
    from ostler.model.errors import Forbidden

    if os.geteuid() != 0:
        raise Forbidden("this needs root: it makes a user and installs units", hint="run it by sudo")


def read_token(named: str | None, *, needed: bool = True) -> str | None:
    """A join token from a variable (`env:NAME`), a prompt or standard input; None for none where it is not `needed`. Raises InvalidSpec."""
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
    if not token and not needed:
        return None
    if not token or len(token) > _LONGEST_TOKEN or not token.isascii() or len(token.split()) != 1:
        raise InvalidSpec(
            "there is no join token on standard input" if not token else "what was given is no join token", hint=hint
        )
    return token
