"""Writes the generated reference pages (configuration, command line, API, error codes); `--check` fails when one is stale."""

import dataclasses
import inspect
import sys
import types
import typing
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

import typer.main

from ostler.cli.main import app
from ostler.coordinator.config import CoordinatorConfig
from ostler.fleet.inventory.own import FleetFile
from ostler.model import errors
from ostler.model.access import RUNNERS, Role
from ostler.model.events import JOB_KINDS, NODE_KINDS
from ostler.model.failures import CODES, FailureCode
from ostler.model.manifest import Manifest, Runner
from ostler.node.config import NodeConfig
from ostler.protocol.routes import ROUTES, Audience

DOCS = Path(__file__).resolve().parent.parent / "docs" / "reference"
REQUIRED = "**required**"
NOTE = "<!-- Written by tools/reference.py; change the code and run `make docs`. -->\n"


def type_name(hint: object) -> str:
    """A field's type as a person writes it in YAML."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        return " or ".join("nothing" if arg is type(None) else type_name(arg) for arg in args)
    if origin in {tuple, list}:
        return f"list of {type_name(args[0])}" if args else "list"
    if origin is dict:
        return f"map of {type_name(args[1])}"
    if hint is FailureCode:
        return "[error code](errors.md)"
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return " \\| ".join(f"`{one.value}`" for one in hint)
    if dataclasses.is_dataclass(hint):
        return "section"
    names = {
        "Any": "anything",
        "str": "text",
        "int": "number",
        "float": "number",
        "bool": "true/false",
        "Path": "path",
        "timedelta": "duration",
    }
    name = getattr(hint, "__name__", str(hint))
    return names.get(name, name)


def default_text(field: dataclasses.Field[object]) -> str:
    """A field's default as it would stand in YAML."""
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return REQUIRED
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
    if isinstance(value, timedelta):
        return f"`{int(value.total_seconds())}s`"
    if isinstance(value, StrEnum):
        return f"`{value.value}`"
    if dataclasses.is_dataclass(value) or value in ((), {}, None):
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def absence(field: dataclasses.Field[object], section: type) -> str:
    """What holds without the whole section, where that is not what its own defaults say."""
    if field.default_factory is dataclasses.MISSING or any(default_text(one) == REQUIRED for one in dataclasses.fields(section)):
        return ""
    unsaid, said = field.default_factory(), section()
    if type(unsaid) is not section:
        return ""
    names = [one for one in dataclasses.fields(section) if getattr(unsaid, one.name) != getattr(said, one.name)]
    settings = ", ".join(f"`{one.name}: {str(getattr(unsaid, one.name)).lower()}`" for one in names)
    return f" Without this section: {settings}." if settings else ""


def within(hint: object) -> typing.Iterator[object]:
    """A type and all that it is made of."""
    yield hint
    for arg in typing.get_args(hint):
        yield from within(arg)


def keys(shape: type, prefix: str = "", absent: str = "") -> typing.Iterator[tuple[str, str, str, str]]:
    """(key, type, default, docstring of its section) for each key, sections flattened."""
    hints = typing.get_type_hints(shape)
    doc = " ".join(inspect.getdoc(shape).split()) if shape.__doc__ else ""
    yield prefix.rstrip(".") or "Top level", "", "", doc + absent
    nested = []
    for field in dataclasses.fields(shape):
        hint = hints[field.name]
        inner = next((arg for arg in within(hint) if dataclasses.is_dataclass(arg)), None)
        if inner is not None:
            many = typing.get_origin(hint) is tuple
            named = any(typing.get_origin(arg) is dict for arg in within(hint))
            nested.append((inner, f"{prefix}{field.name}{'[]' if many else '.NAME' if named else ''}.", absence(field, inner)))
            if not many and inner is hint:
                continue
        yield f"{prefix}{field.name}", type_name(hint), default_text(field), ""
    for inner, path, without in nested:
        yield from keys(inner, path, without)


def keys_page(title: str, intro: str, shape: type) -> str:
    """A page with one table per section of a configuration or manifest."""
    lines = [f"# {title}\n", NOTE, intro]
    headed = False
    for key, kind, default, doc in keys(shape):
        if doc:
            lines.append(f"\n## {key}\n\n{doc}")
            headed = False
            continue
        if not headed:
            lines.append("\n| key | type | default |\n|---|---|---|")
            headed = True
        lines.append(f"| `{key}` | {kind} | {default} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """A text that fits into one cell of a table."""
    return " ".join(text.split()).replace("|", "&#124;")


def cli_page() -> str:
    """Every command with its options, from the program itself."""
    lines = [
        "# Command line\n",
        NOTE,
        "Exit codes: 0 good; 1 some of what was asked for failed, or a check found something; "
        "`run` and `job wait` exit with the job's own code (125 where it has none); 2 usage; 3 rejected, mistakes in files among it; "
        "4 unreachable; 124 `job wait --timeout` ran out.\n",
    ]

    def walk(command: typing.Any, path: str, above: typing.Any = None) -> None:
        ctx = command.make_context(path, ["--nothing"], parent=above, ignore_unknown_options=True, resilient_parsing=True)
        group = hasattr(
            command, "list_commands"
        )  # typer brings its own copy of click: what a command is, is known by what it can
        usage = " ".join(command.collect_usage_pieces(ctx))
        lines.append(f"\n## {path}\n\n```\n{path} {usage}\n```\n\n{inspect.cleandoc(command.help or '')}\n")
        rows = [record for param in command.params if (record := param.get_help_record(ctx)) and not param.hidden]
        if rows:
            lines.append("| option | meaning |\n|---|---|")
            lines.extend(f"| `{name.split(' <')[0].replace('|', chr(92) + '|')}` | {cell(meaning)} |" for name, meaning in rows)
        for name in command.list_commands(ctx) if group else ():
            walk(command.get_command(ctx, name), f"{path} {name}", ctx)

    walk(typer.main.get_command(app), "ostler")
    return "\n".join(lines) + "\n"


def shape_name(shape: object) -> str:
    """A message class's name, or a dash."""
    return f"`{shape.__name__}`" if isinstance(shape, type) else "–"


def api_page() -> str:
    """The route table."""
    lines = [
        "# HTTP API\n",
        NOTE,
        "The OpenAPI 3.1 document is served at `/api/v1/openapi.json`. "
        "Errors are RFC 9457 problem details with a stable `code`.\n",
        "| call | who | what | request | response | errors |\n|---|---|---|---|---|---|",
    ]
    for route in ROUTES:
        failures = ", ".join(f"{e.status} `{e.code}`" for e in route.errors) or "–"
        lines.append(
            f"| `{route.method} {route.url}` | {route.audience.value} | {route.summary.replace('|', '&#124;')} | "
            f"{shape_name(route.request)} | {shape_name(route.response)} | {failures} |"
        )
    return "\n".join(lines) + "\n"


def access_page() -> str:
    """Which role may call what, and with which runners."""
    roles = list(Role)
    lines = [
        "# Who may call what\n",
        NOTE,
        "*all*: everybody's things. *own*: the caller's own jobs; others are as if they did not exist. –: refused with 403. "
        "Calls of nodes and those that need no token are not listed; see the [HTTP API](api.md).\n",
        f"| call | {' | '.join(roles)} |\n|---|{'---|' * len(roles)}",
    ]
    for route in ROUTES:
        if route.audience in {Audience.CLIENT, Audience.MEMBER}:
            reaches = " | ".join(route.grants[role].value if role in route.grants else "–" for role in roles)
            lines.append(f"| `{route.method} {route.url}` | {reaches} |")
    lines += ["\n## With which runners\n", f"| runner | {' | '.join(roles)} |\n|---|{'---|' * len(roles)}"]
    for runner in Runner:
        lines.append(f"| `{runner}` | {' | '.join('yes' if runner in RUNNERS[role] else '–' for role in roles)} |")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """Failure codes of attempts, and error codes of calls."""
    lines = [
        "# Error codes\n",
        NOTE,
        "## Why an attempt failed\n",
        "| code | meaning | retried | what to do |\n|---|---|---|---|",
        *(f"| `{code.value}` | {i.meaning} | {i.retry.value} | {i.advice} |" for code, i in CODES.items()),
        "\n*never*: the same would happen again. *asked*: where the manifest sets `retries`. "
        "*always*: by default, three times.\n",
        "## Why a call was refused\n",
        "| code | HTTP | meaning |\n|---|---|---|",
    ]

    def walk(cls: type[errors.OstlerError]) -> None:
        lines.append(f"| `{cls.code}` | {cls.status} | {inspect.getdoc(cls).splitlines()[0]} |")
        for sub in cls.__subclasses__():
            walk(sub)

    walk(errors.OstlerError)
    return "\n".join(lines) + "\n"


def events_page() -> str:
    """Every kind of event."""
    lines = ["# Events\n", NOTE, "What `ostler events`, `GET /api/v1/events` and webhooks tell, by `kind`."]
    for title, kinds in (("Of jobs", JOB_KINDS), ("Of nodes", NODE_KINDS)):
        lines.append(f"\n## {title}\n\n| kind | what happened |\n|---|---|")
        lines.extend(f"| `{kind}` | {meaning} |" for kind, meaning in kinds.items())
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """File name to text."""
    sources = (
        "YAML or JSON. Precedence: defaults < file < environment (`OSTLER_{}__SECTION__KEY`) < flags. "
        "`env:NAME` as a value reads a secret from the environment. Durations are seconds, or written as `90s`, `24h`, `7d`."
    )
    return {
        "node-config.md": keys_page("Node configuration", sources.format("NODE"), NodeConfig),
        "coordinator-config.md": keys_page("Coordinator configuration", sources.format("COORDINATOR"), CoordinatorConfig),
        "inventory.md": keys_page("Inventory of hosts", "YAML or JSON, `ostler-fleet.yml`. Unknown keys are refused.", FleetFile),
        "manifest.md": keys_page("Job manifest", "YAML or JSON. Unknown keys are refused.", Manifest),
        "cli.md": cli_page(),
        "api.md": api_page(),
        "access.md": access_page(),
        "errors.md": errors_page(),
        "events.md": events_page(),
    }


def main() -> int:
    """Write the pages, or with --check compare them."""
    stale = []
    DOCS.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        path = DOCS / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text)
    if stale and "--check" in sys.argv:
        print(f"stale: {', '.join(stale)} in docs/reference; run `make docs`")
        return 1
    print(f"docs/reference: {len(stale)} written" if stale else "docs/reference is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
