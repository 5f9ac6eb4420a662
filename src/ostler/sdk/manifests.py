"""Manifests out of keyword arguments, as plain JSON. Pure, but for what it says of files."""

import math
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ostler.model.errors import InvalidSpec, Problem
from ostler.model.manifest import Manifest, Policy, Requirements, RetryPolicy
from ostler.protocol import codec

InputSource = Path | str | bytes
Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Draft:
    """A manifest, and what is to be uploaded before it is sent: by the input's name."""

    manifest: dict[str, Any]
    uploads: Mapping[str, InputSource] = field(default_factory=dict)


def draft(
    command: Sequence[str] | None,
    *,
    inputs: Mapping[str, InputSource] | None,
    artifacts: Sequence[str | Fields],
    **given: Any,
) -> Draft:
    """A manifest that says what was given and nothing else. Raises InvalidSpec for what cannot be meant."""
    if isinstance(command, str):
        raise InvalidSpec("a command is a list of words", [Problem("command", f"write {command.split()!r}; there is no shell")])
    if command is not None and (not isinstance(command, Sequence) or isinstance(command, bytes | bytearray | range)):
        raise InvalidSpec("a command is a list of words", [Problem("command", f"is of the type {type(command).__name__}")])
    for number, word in enumerate(command or ()):
        if not isinstance(word, str | int | float | os.PathLike):
            raise InvalidSpec(
                "a command is a list of words", [Problem(f"command[{number}]", f"is of the type {type(word).__name__}")]
            )
    if command is not None and given.get("args") is not None:
        raise InvalidSpec("a command is a list of words", [Problem("args", "stand in the command")])
    if inputs is not None and not isinstance(inputs, Mapping):
        raise InvalidSpec("inputs cannot be sent", [Problem("inputs", "map names to files or bytes: {'words.txt': 'words.txt'}")])
    if not isinstance(artifacts, list | tuple):
        raise InvalidSpec("artifacts cannot be kept", [Problem("artifacts", "are a list of paths: ['out.txt']")])
    if given.get("array") is not None:
        raise InvalidSpec("a future stands for one job", [Problem("array", "is not for `submit`; use `submit_many`")])
    manifest, _ = named(plain({name: value for name, value in given.items() if value is not None}))
    if command is not None:
        if not command:
            raise InvalidSpec("a command is a list of words", [Problem("command", "is empty")])
        manifest["command"], manifest["args"] = str(command[0]), [str(word) for word in command[1:]]
    elif "task" in manifest:
        manifest.setdefault("runner", "python")
    if artifacts:
        manifest["artifacts"] = [{"path": one} if isinstance(one, str) else plain(one) for one in artifacts]
    return Draft(manifest, dict(inputs or {}))


def with_files(manifest: dict[str, Any], files: Sequence[Fields]) -> dict[str, Any]:
    """The manifest with uploaded inputs beside those that it has."""
    if not files:
        return manifest
    asked = dict(manifest.get("input") or {})
    return {**manifest, "input": {**asked, "files": [*asked.get("files", ()), *files]}}


def plain(given: Fields) -> dict[str, Any]:
    """Values of the model (`Requirements`, `Policy`, `RetryPolicy`) as the JSON that stands for them. Raises InvalidSpec for a number that
    JSON does not have."""
    found = {name: _plain(value) for name, value in given.items()}
    _check_numbers(found, "")
    return found


def _check_numbers(value: Any, place: str) -> None:
    """Written as JSON, NaN and the infinities would be `null`."""
    if isinstance(value, float):
        if not math.isfinite(value):
            hint = f"{value} is no number of JSON: send it as text, or leave it out"
            raise InvalidSpec("the manifest cannot be written", [Problem(place, hint)])
    elif isinstance(value, dict):
        for name, one in value.items():
            _check_numbers(one, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            _check_numbers(one, f"{place}[{number}]")


def _plain(value: Any) -> Any:
    if isinstance(value, Requirements | Policy | RetryPolicy):
        said = {one.name: getattr(value, one.name) for one in fields(value) if getattr(value, one.name) != one.default}
        return codec.to_plain(said)
    return codec.to_plain(value)


def manifest_of(value: Manifest | Fields) -> dict[str, Any]:
    """A manifest of `submit_many`, which may have no id yet."""
    if not isinstance(value, Mapping | Manifest):
        raise InvalidSpec(f"{value!r:.80} is no manifest", hint="a manifest is a mapping of its fields, or an ostler Manifest")
    found = plain(value if isinstance(value, Mapping) else _said(value))
    if found.get("array") is not None:
        raise InvalidSpec("a future stands for one job", [Problem("array", "is not for `submit_many`; list the jobs")])
    if "task" in found:
        found.setdefault("runner", "python")
    return found


def named(manifest: dict[str, Any], kind: str = "job") -> tuple[dict[str, Any], bool]:
    """The manifest with an id, in front, where the coordinator can look past it; and whether that was chosen here.

    Then it has 64 random bits that nobody can guess, so a job that bears it already is this one: a submission whose answer was lost
    can be made again. In front stand the milliseconds: ids that come one after the other lie side by side in an index.
    """
    given = manifest.pop("job_id", None)
    return {"job_id": given or f"{kind}-{time.time_ns() // 10**6:011x}{secrets.token_hex(8)}", **manifest}, not given


def _said(value: Manifest) -> dict[str, Any]:
    """The fields that are not as they are anyway; what only the coordinator sets is among those."""
    default = Manifest(runner=value.runner)
    said = {one.name: getattr(value, one.name) for one in fields(value)}
    return {name: one for name, one in said.items() if name == "runner" or one != getattr(default, name)}
