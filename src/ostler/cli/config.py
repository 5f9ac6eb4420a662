"""`ostler config`: check a configuration file, show what is in force and why, export the JSON Schema."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ostler.cli import output
from ostler.cli.options import JsonOption

app = typer.Typer(no_args_is_help=True, help="Check and show configuration files.")


class Part(StrEnum):
    """What a file configures."""

    NODE = "node"
    COORDINATOR = "coordinator"


class Shape(StrEnum):
    """What has a schema."""

    NODE = "node"
    COORDINATOR = "coordinator"
    MANIFEST = "manifest"


FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The configuration file (YAML or JSON).")]
ForOption = Annotated[Part, typer.Option("--for", help="What the file configures: `node` or `coordinator`.")]


@app.command()
def check(file: FileArgument, part: ForOption = Part.NODE, as_json: JsonOption = False) -> None:
    """Check a configuration file, with this environment over it. All mistakes are told at once.

    What only this host lacks (a file that the configuration names, a variable with a secret) is a warning here, and a mistake
    when the daemon starts.
    """
    loaded, lacks, needs = _load(file, part, need_secrets=False)
    warnings = [*loaded.unset, *lacks]
    if as_json:
        told = {"warnings": [str(one) for one in warnings], "lacks": [str(one) for one in lacks], "needs": needs}
        said = {"file": str(file), **told}
        output.print_json(said)
        return
    for problem in warnings:
        output.note(f"warning: {problem}")
    counted = f", {len(warnings)} warning{'' if len(warnings) == 1 else 's'}" if warnings else ""
    set_by_hand = sum(origin != "default" for origin in loaded.origins.values())
    output.say(f"{file}: good ({set_by_hand} settings{counted})")


@app.command()
def show(
    file: FileArgument,
    part: ForOption = Part.NODE,
    origin: Annotated[
        bool, typer.Option("--origin", help="Also show what set each value: FILE:LINE, a variable, or `default`.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the configuration in force: the file with this environment over it. Secrets are masked."""
    from ostler.runtime.shapes import plain

    loaded, _, _ = _load(file, part, need_secrets=False)
    if as_json:
        output.print_json({"config": plain(loaded.value), "origins": dict(loaded.origins)} if origin else plain(loaded.value))
        return
    if origin:
        rows = [(path, value, loaded.origins[path]) for path, value in _flat(plain(loaded.value), loaded.origins)]
        columns = output.columns("SETTING|VALUE~|SET BY~")
        output.table(columns, rows)
        return
    import yaml

    output.say(yaml.safe_dump(plain(loaded.value), sort_keys=False).rstrip())


@app.command()
def schema(shape: Annotated[Shape, typer.Option("--for", help="What the schema describes.")] = Shape.NODE) -> None:
    """Print the JSON Schema (2020-12) for editors.

    In VS Code with the YAML extension: `# yaml-language-server: $schema=node.schema.json` as the first line of the file.
    """
    import json

    from ostler.coordinator.config import CoordinatorConfig
    from ostler.model.manifest import Manifest
    from ostler.node.config import NodeConfig
    from ostler.runtime import settings

    shapes: dict[Shape, type[Any]] = {Shape.NODE: NodeConfig, Shape.COORDINATOR: CoordinatorConfig, Shape.MANIFEST: Manifest}
    titles = {Shape.NODE: "Ostler node", Shape.COORDINATOR: "Ostler coordinator", Shape.MANIFEST: "Ostler job manifest"}
    output.say(json.dumps(settings.schema(shapes[shape], title=titles[shape]), indent=2))


def _load(file: Path, part: Part, *, need_secrets: bool) -> tuple[Any, list[Any], list[str]]:
    """What was read, what this host lacks of what it names, and the paths that were looked for."""
    if part is Part.COORDINATOR:
        from ostler.assembly import resolve_coordinator as resolving

        found = resolving.resolve_coordinator(file, env=os.environ, defaults={"data": "DIR"})  # `--data` says which
        return found, resolving.coordinator_host_problems(found), []
    from ostler.assembly import resolve

    loaded = resolve.resolve_node(file, env=os.environ, need_secrets=need_secrets)
    return loaded, resolve.host_problems(loaded), resolve.needed_paths(loaded)


def _flat(shown: dict[str, Any], paths: Any) -> list[tuple[str, str]]:
    rows = []
    for path in paths:
        value: Any = shown
        for part in path.split("."):
            value = value[part]
        rows.append((path, _word(value)))
    return rows


def _word(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
