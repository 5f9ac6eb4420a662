"""Options that several commands share, and what their values mean."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from ostler.runtime.durations import parse_seconds

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LimitOption = Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Show at most so many.")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]
JobsArgument = Annotated[list[str], typer.Argument(metavar="JOB", help="The jobs' ids.")]
JobOrArrayArgument = Annotated[str, typer.Argument(metavar="JOB", help="The id of a job, an array or a group.")]
JobsOrArraysArgument = Annotated[list[str], typer.Argument(metavar="JOB", help="The ids of jobs, arrays or groups.")]
AttemptOption = Annotated[int | None, typer.Option("--attempt", metavar="N", min=1, help="Which attempt; the latest if absent.")]


def seconds(text: str) -> float:
    """Seconds, or a duration with units (90s, 2h, 1h30m); a usage error where it is neither."""
    try:
        return parse_seconds(text)
    except ValueError as exc:
        raise typer.BadParameter(f"{text!r} {exc}") from exc


def moment(text: str) -> str:
    """A time as manifests write it, or a duration (90s, 2h) from now; a usage error where it is neither."""
    from ostler.model.manifest import MOMENT

    if MOMENT.fullmatch(text):
        return text
    try:
        return f"{datetime.now(UTC) + timedelta(seconds=parse_seconds(text)):%Y-%m-%dT%H:%M:%S.%fZ}"
    except (ValueError, OverflowError) as exc:
        message = f"{text!r} is neither a time with its offset from UTC, such as 2030-01-31T20:00:00Z, nor a duration, such as 2h"
        raise typer.BadParameter(message) from exc


def folder(text: str) -> Path:
    """A folder's path; an empty one is a variable that was not set, and not the current directory."""
    if not text:
        raise typer.BadParameter("the path is empty; is the variable that holds it set? The current directory is `.`")
    return Path(text)


def place(text: str) -> str:
    """A folder's path, made absolute, or an address of S3; a usage error where it is neither."""
    from ostler.coordinator.config import S3_SCHEME, s3_parts

    scheme, separator, _ = text.partition("://")
    if not separator:
        return str(folder(text).absolute())
    if f"{scheme}://" != S3_SCHEME:
        raise typer.BadParameter("backups lie in a directory or in s3://BUCKET/PREFIX, and nowhere else")
    try:
        s3_parts(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc
    return text


def parse_labels(texts: Sequence[str]) -> dict[str, str]:
    """`key=value` words as a mapping; a usage error where one is none."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="'--label'")
        if key in found:
            raise typer.BadParameter(f"{key!r} is given twice", param_hint="'--label'")
        found[key] = value
    return found
