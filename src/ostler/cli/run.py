"""`ostler run`: one command on whichever node fits, as if it ran here: files in, output through, files out, its exit code."""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ostler.cli import exits
from ostler.cli.options import moment, parse_labels, seconds


def run(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="The command with its arguments, after `--`.")],
    *,
    gpu: Annotated[int, typer.Option("--gpu", metavar="N", min=0, help="GPUs that the job occupies.")] = 0,
    vram: Annotated[int, typer.Option("--vram", metavar="MB", min=0, help="Video memory that each GPU must have, in MB.")] = 0,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=0, help="CPU threads that the node must have free.")] = 0,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="T", help="A tag that the node must have; may be repeated.")
    ] = None,
    pool: Annotated[str | None, typer.Option("--pool", metavar="POOL", help="The pool to run in. Default: `default`.")] = None,
    queue: Annotated[
        str | None,
        typer.Option("--queue", metavar="QUEUE", help="The queue; jobs of `interactive` go before what waits in batches."),
    ] = None,
    file_in: Annotated[
        list[Path] | None,
        typer.Option(
            "--in", metavar="FILE", help="A file to upload; the job finds it in its working directory. May be repeated."
        ),
    ] = None,
    file_out: Annotated[
        list[str] | None,
        typer.Option("--out", metavar="PATH", help="A file that the job makes; it is downloaded to PATH here. May be repeated."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="HOST[:PORT]",
            help="A host that the job may reach through the node's network gate (port 443 by default). May be repeated.",
        ),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            "--secret",
            metavar="NAME[=VARIABLE]",
            help="A secret that the job gets in that variable, or as the file of its name in $OSTLER_SECRETS_DIR. May be repeated.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="S",
            parser=seconds,
            help="Wall-clock limit of one attempt: seconds, or 90s, 2h. Default: 1h.",
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="K=V", help="A label to find the job by; may be repeated.")
    ] = None,
    not_before: Annotated[
        str | None,
        typer.Option(
            "--not-before",
            metavar="TIME",
            help="No node gets it before: 2030-01-31T20:00:00Z, or 90s, 2h from now.",
            parser=moment,
        ),
    ] = None,
    after: Annotated[
        list[str] | None,
        typer.Option("--after", metavar="JOB", help="A job, array or group that must end well first; may be repeated."),
    ] = None,
    after_any_end: Annotated[
        list[str] | None,
        typer.Option("--after-any-end", metavar="JOB", help="The same, however it ends; may be repeated."),
    ] = None,
) -> None:
    """Run one command on whichever node fits, and exit with its code.

    Output comes here as the job writes it. Files named by --out replace those of the same name here once they are whole and
    verified. Where the job has no exit code of its own, the code is 125; where a signal killed it, 128 plus the signal's number.

    Ctrl-C asks once whether to cancel the job; a second one leaves it running and says how to come back. Without a terminal
    SIGINT and SIGTERM cancel the job, and the code is 130 or 143.
    """
    from ostler.cli.foreground import Foreground
    from ostler.cli.session import open_session
    from ostler.model.errors import InvalidSpec, Problem
    from ostler.model.manifest import problems

    manifest, found = describe(
        command, gpus=gpu, vram_mb=vram, threads=threads, tags=tag or (), pool=pool, queue=queue, outputs=file_out or (), timeout_s=timeout,
        labels=parse_labels(label or ()), not_before=not_before, hosts=allow_host or (), uses=map(secret_use, secret or ()),
        depends_on=[*(after or ()), *({"job": one, "until": "done"} for one in after_any_end or ())],
    )  # fmt: skip
    mistakes = [Problem(_option_of(one.path), one.message) for one in problems(found)]
    files = list(inputs(file_in or (), mistakes))
    if mistakes:
        raise InvalidSpec("the command cannot be sent", mistakes)
    with open_session() as session:
        raise exits.Exit(Foreground(session, manifest, files).carry_out())


def describe(
    command: Sequence[str],
    *,
    gpus: int = 0,
    vram_mb: int = 0,
    threads: int = 0,
    tags: Sequence[str] = (),
    pool: str | None = None,
    queue: str | None = None,
    outputs: Sequence[str] = (),
    timeout_s: float | None = None,
    labels: dict[str, str] | None = None,
    not_before: str | None = None,
    hosts: Sequence[str] = (),
    uses: Iterable[dict[str, str]] = (),
    depends_on: Sequence[Any] = (),
) -> tuple[dict[str, Any], Any]:
    """The manifest for a command, as it is sent (without what is default) and as a value."""
    from ostler.model.manifest import Manifest
    from ostler.protocol import codec

    requirements = {"gpus": gpus, "vram_mb": vram_mb, "cpu_threads": threads, "tags": list(tags), "pool": pool}
    manifest: dict[str, Any] = {
        # Chosen here, so that a signal while it is sent finds its job.
        "job_id": f"run-{secrets.token_hex(6)}",
        "command": command[0],
        "args": list(command[1:]),
        "requirements": {key: value for key, value in requirements.items() if value},
        "artifacts": [{"path": path} for path in outputs],
        "labels": labels or {},
        "timeout_s": timeout_s,
        "queue": queue,
        "not_before": not_before,
        "policy": {"network": list(hosts)} if hosts else {},
        "secrets": list(uses),
        "depends_on": list(depends_on),
    }
    manifest = {key: value for key, value in manifest.items() if value or value == 0 or key in {"command", "args"}}
    return manifest, codec.convert(manifest, Manifest, what="command")


def secret_use(text: str) -> dict[str, str]:
    """`NAME=VARIABLE` or `NAME` as an entry of the manifest's `secrets`."""
    name, equals, variable = text.partition("=")
    return {"name": name, "env": variable} if equals else {"name": name, "file": name}


def _option_of(path: str) -> str:
    """The option that a field of the manifest came from."""
    options = {
        "artifacts": "--out",
        "labels": "--label",
        "policy.network": "--allow-host",
        "secrets": "--secret",
        "timeout_s": "--timeout",
        "queue": "--queue",
        "not_before": "--not-before",
        "depends_on": "--after",
        "requirements.tags": "--tag",
        "requirements.pool": "--pool",
        "requirements.gpus": "--gpu",
        "requirements.vram_mb": "--vram",
        "requirements.cpu_threads": "--threads",
    }
    return next((option for field, option in options.items() if path.startswith(field)), path)


def inputs(files: Sequence[Path], mistakes: list[Any]) -> Iterator[Path]:
    """The files that can be sent; why another cannot is added to the mistakes."""
    from ostler.model.errors import Problem
    from ostler.model.manifest import unsafe_name

    seen: set[str] = set()
    for file in files:
        if not file.is_file():
            mistakes.append(Problem("--in", f"{file} {'is not a regular file' if file.exists() else 'does not exist'}"))
        elif why := unsafe_name(file.name):
            mistakes.append(Problem("--in", f"{file} {why}"))
        elif file.name in seen:
            mistakes.append(Problem("--in", f"two files have the name {file.name}"))
        else:
            seen.add(file.name)
            yield file
