"""`ostler secret`: values that jobs get by name. They come from a file, a pipe or a prompt, and no command shows one."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ostler.cli import output
from ostler.cli.options import JsonOption
from ostler.model.access import Role

SHORT = 4  # bytes; what is shorter is not masked in logs, where it would stand everywhere

app = typer.Typer(no_args_is_help=True, help="Set, list and remove secrets that jobs name.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The secret's name.")]
SharedOption = Annotated[bool, typer.Option("--shared", help="The shared secret of that name, instead of your own.")]


@app.command("set", context_settings={"allow_extra_args": True})
def set_secret(  # noqa: PLR0917 - the options of a command
    context: typer.Context,
    name: NameArgument,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Take the value from a file, byte for byte, instead of standard input."),
    ] = None,
    shared: SharedOption = False,
    role: Annotated[
        list[Role] | None, typer.Option("--role", help="With --shared: who may name it; may be repeated. Default: all.")
    ] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(
            "--pool", metavar="POOL", help="With --shared: where jobs that name it may run; may be repeated. Default: all."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Set a secret that your own jobs may name, or (as an operator) a shared one.

    The value is read from standard input, without the last line end, or asked for where that is a terminal. It is never an
    argument, which everybody on this machine could see.
    """
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import SecretQuery

    if context.args:  # not repeated here: it may be the value
        raise typer.BadParameter("the value is no argument, which everybody could see: give it on standard input, or by --file")
    if (role or pool) and not shared:
        raise typer.BadParameter("--role and --pool belong to --shared")
    value = read_value(file)
    query = SecretQuery(shared=shared, roles=",".join(role) if role else None, pools=",".join(pool) if pool else None)
    with open_session() as session:
        view = session.call(routes.SET_SECRET, value, query=query, name=name)
    if len(value.strip()) < SHORT:
        output.note(f"{name} is shorter than {SHORT} bytes: where a job prints it, it is not masked")
    if as_json:
        output.print_json(view)
    else:
        output.say(f"{view.name} is set (version {view.version})")


def read_value(file: Path | None) -> bytes:
    """The value from a file, a prompt or standard input. Raises InvalidSpec."""
    from ostler.model.errors import InvalidSpec
    from ostler.protocol.routes import MAX_SECRET_BYTES

    if file is not None:
        try:
            with file.open("rb") as stream:
                value = stream.read(MAX_SECRET_BYTES + 1)
        except OSError as exc:
            raise InvalidSpec(f"{file} cannot be read: {exc.strerror or exc}") from exc
    elif sys.stdin.isatty():
        value = str(typer.prompt("value", hide_input=True, confirmation_prompt=True, err=True)).encode()
    else:
        value = sys.stdin.buffer.read(MAX_SECRET_BYTES + 2)
        value = value.removesuffix(b"\n").removesuffix(b"\r")
    if not value:
        raise InvalidSpec("the value is empty", hint="printf %s VALUE | ostler secret set NAME, or --file FILE")
    if len(value) > MAX_SECRET_BYTES:
        raise InvalidSpec(
            f"the value is longer than {MAX_SECRET_BYTES} bytes", hint="encrypt the data, and keep its key as the secret"
        )
    return value


@app.command("list")
def list_secrets(as_json: JsonOption = False) -> None:
    """List your secrets and those that are shared with you, without their values."""
    from ostler.cli.session import open_session
    from ostler.protocol import routes

    with open_session() as session:
        page = session.call(routes.LIST_SECRETS)
    if as_json:
        output.print_json(page)
        return
    rows = [
        (
            one.name, "shared" if one.shared else "own", one.version, output.ago(one.updated_at), one.updated_by,
            ", ".join(one.roles) or ("all" if one.shared else None), ", ".join(one.pools) or ("all" if one.shared else None),
        )
        for one in page.items
    ]  # fmt: skip
    output.table(output.columns("NAME|KIND|VERSION>|AGE>|SET BY|ROLES|POOLS"), rows, empty="no secrets")


@app.command("rm")
def remove(name: NameArgument, shared: SharedOption = False, as_json: JsonOption = False) -> None:
    """Remove a secret. Jobs that run keep it until they end; those that name it and have not begun fail."""
    from ostler.cli.session import open_session
    from ostler.protocol import routes
    from ostler.protocol.messages import SecretQuery

    with open_session() as session:
        view = session.call(routes.DELETE_SECRET, query=SecretQuery(shared=shared), name=name)
    if as_json:
        output.print_json(view)
    else:
        output.say(f"{view.name} is removed")
