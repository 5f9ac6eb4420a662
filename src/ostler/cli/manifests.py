"""Manifests as people write them: files of YAML, JSON or JSON lines, checked whole before anything is sent."""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostler.model.errors import InvalidSpec, Problem
from ostler.model.manifest import Manifest
from ostler.model.manifest import problems_as_written as rules
from ostler.runtime.documents import Document, join, read_documents
from ostler.runtime.settings import check, invalid
from ostler.runtime.shapes import FieldPath

STDIN = "-"
MAX_MANIFESTS = 10_000
MAX_SHOWN = 100
_NUMBERED = re.compile(r"\[(\d+)\]\.?(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Written:
    """One manifest and where it stands: the part `at` of a document."""

    manifest: Manifest
    document: Document
    at: FieldPath

    @property
    def plain(self) -> Any:
        """The manifest as it was written, without the defaults."""
        value: Any = self.document.value
        for part in self.at:
            value = value[part]
        return value


def read_manifests(files: Sequence[str]) -> list[Written]:
    """All manifests of some files (`-` is standard input). Raises InvalidSpec with every mistake of every file."""
    found: list[Written] = []
    problems: list[Problem] = []
    first: dict[str, Written] = {}
    count = jobs = 0
    for file in files:
        for document, at in _places(file, problems):
            count += 1
            if count > MAX_MANIFESTS:
                continue
            manifest, mistakes = check(Manifest, document, at=at)
            problems += mistakes
            if manifest is None:
                continue
            one = Written(manifest, document, at)
            problems += [_located(one, problem) for problem in rules(manifest)]
            if manifest.job_id is not None:
                taken = first.setdefault(manifest.job_id, one)
                if taken is not one:
                    where = f"{taken.document.file}:{taken.document.line_of((*taken.at, 'job_id'))}"
                    problems.append(_located(one, Problem("job_id", f"{manifest.job_id!r} stands already at {where}")))
            jobs += manifest.array or 1
            found.append(one)
    if not problems and jobs > MAX_MANIFESTS >= count:
        problems.append(Problem("", f"{jobs} jobs are more than the {MAX_MANIFESTS} that one call takes", ", ".join(files)))
    if count > MAX_MANIFESTS:
        problems.append(Problem("", f"{count} manifests are more than the {MAX_MANIFESTS} that one call takes", ", ".join(files)))
    if not count and not problems:
        problems.append(Problem("", "there is no manifest", ", ".join(files)))
    if problems:
        raise _in_short(invalid(", ".join("standard input" if file == STDIN else file for file in files), problems))
    return found


def group_of(written: Sequence[Written], asked: str | None) -> str | None:
    """The one group that all of them shall be: as asked for, or as the only document says. Raises InvalidSpec."""
    named: dict[str, Written] = {}
    for one in written:
        if one.at[:1] == ("jobs",) and (name := one.document.value.get("group")) is not None:
            named.setdefault(str(name), one)
    if not named:
        return asked
    name, first = next(iter(named.items()))
    if asked not in {None, name} or any(one.document is not first.document for one in written):
        problem = first.document.problem(("group",), "makes one group of all that one call submits; submit this file on its own")
        raise invalid(first.document.file, [problem])
    return name


def _places(file: str, problems: list[Problem]) -> Iterator[tuple[Document, FieldPath]]:
    """Each manifest of a file: its documents, the items of those that are lists, and what stands under `jobs`."""
    if not file:  # a variable that is not set, most likely
        problems.append(Problem("", "a file's name is empty"))
        return
    name = "<stdin>" if file == STDIN else file
    try:
        content = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as exc:
        problems.append(Problem("", f"cannot be read: {exc.strerror}", name))
        return
    except UnicodeDecodeError:
        problems.append(Problem("", "is not UTF-8", name))
        return
    documents, mistakes = read_documents(text, name)
    problems += mistakes
    for document in documents:
        value = document.value
        if isinstance(value, dict) and "jobs" in value and value.keys() <= {"jobs", "group"} and isinstance(value["jobs"], list):
            yield from ((document, ("jobs", i)) for i in range(len(value["jobs"])))
        elif isinstance(value, list):
            yield from ((document, (i,)) for i in range(len(value)))
        else:
            yield document, ()


def _located(one: Written, problem: Problem) -> Problem:
    inner = tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", problem.path))
    shown = ".".join(filter(None, (join(one.at), problem.path)))
    return Problem(shown, problem.message, one.document.file, one.document.line_of((*one.at, *inner)))


def _in_short(error: InvalidSpec) -> InvalidSpec:
    if len(error.problems) <= MAX_SHOWN:
        return error
    rest = len(error.problems) - MAX_SHOWN
    return InvalidSpec(error.message, [*error.problems[:MAX_SHOWN], Problem("", f"and {rest} more")])


def relocate(error: InvalidSpec, written: Sequence[Written]) -> InvalidSpec:
    """What the coordinator found, with the file and line where it stands here. Its paths begin with the manifest's number."""

    def place(problem: Problem) -> Problem:
        numbered = _NUMBERED.fullmatch(problem.path)
        number, path = (int(numbered[1]), numbered[2]) if numbered else (0, problem.path)
        if number >= len(written) or (numbered is None and len(written) != 1):
            return problem
        return _located(written[number], Problem(path, problem.message))

    return InvalidSpec(error.message, [place(problem) for problem in error.problems], hint=error.hint)
