"""Settings: one frozen value per part, from defaults < file < environment < flags, checked whole, with the origin of each field.

The only module that knows pydantic, which here checks the model's own frozen dataclasses. What it answers is rewritten for the
person who wrote the file: every mistake at once, with file, line and path, and a suggestion for a key that is not known. A field
with `repr=False` is a secret: it is never shown, and `env:NAME` there is read from the environment.
"""

import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from ostler.model.errors import InvalidSpec, Problem
from ostler.runtime.documents import Document, join, read_documents
from ostler.runtime.durations import FORM, format_duration, parse_duration
from ostler.runtime.shapes import (
    FieldPath,
    field_paths,
    hints_of,
    is_secret,
    keys_at,
    kind_at,
    leaves,
    members_of,
    section_of,
    suggest,
)

T = TypeVar("T")
MAX_FILE_BYTES = 4 * 2**20
_ENV_REF = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_ISO_UNITS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A value given on the command line: `name` is the option as typed, such as `--listen`."""

    name: str
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(Generic[T]):
    """A checked value.

    `origins` says for each leaf (`resources.cpu_nice`) what set it: `default`, `FILE:LINE`, `variable X` or `flag --y`. `unset`
    are the secrets whose variable is missing, tolerated where the loader was told so.
    """

    value: T
    origins: Mapping[str, str]
    unset: tuple[Problem, ...] = ()
    locate: Callable[[Problem], Problem] = field(default=lambda one: one, repr=False)  # adds the place of a field


def load(
    shape: type[T],
    *,
    file: Path | None = None,
    env: Mapping[str, str] | None = None,
    prefix: str = "",
    flags: Mapping[str, Flag] | None = None,
    rules: Callable[[T], Iterable[Problem]] | None = None,
    defaults: Mapping[str, Any] | None = None,
    need_secrets: bool = True,
) -> Loaded[T]:
    """Read, merge and check. Variables are `PREFIX__SECTION__FIELD`; `flags` maps field paths to what was typed; `defaults` (by
    field path too) stand in for those of the shape.

    `rules` finds mistakes that types cannot express. Raises InvalidSpec with every problem. `need_secrets=False` leaves
    a secret whose variable is missing as it is written, and tells of it in `unset`.
    """
    what = str(file) if file else shape.__name__
    layers = _Layers(shape)
    document, problems = _one_document(file) if file else (Document({}, "default"), [])
    if document is None:  # what it lacks would only hide why
        raise invalid(what, problems)
    layers.document = document
    layers.data = _copy(document.value)
    for path, value in (defaults or {}).items():
        if _get(layers.data, tuple(path.split("."))) is None:
            layers.put(tuple(path.split(".")), value, "", "default")
    if env is not None and prefix:
        problems += layers.add_variables(env, f"{prefix}__")
    for path, flag in (flags or {}).items():
        if flag.value is not None:
            layers.put(tuple(path.split(".")), flag.value, "flag", flag.name)
    missing = list(layers.resolve_secrets(env or {}))
    if need_secrets:
        problems += missing
    checked, mistakes = _check(shape, layers.data, layers.problem)
    problems += mistakes
    if checked is not None and rules is not None:
        problems += [layers.located(problem) for problem in rules(checked)]
    if problems or checked is None:
        raise invalid(what, problems)
    return Loaded(value=checked, origins=layers.origins(checked), unset=tuple(missing), locate=layers.located)


def check(shape: type[T], document: Document, *, at: FieldPath = ()) -> tuple[T | None, list[Problem]]:
    """The part of a document at `at` as a value of `shape`, or None and every mistake in it."""
    value: Any = document.value
    for part in at:
        value = value[part]
    return _check(shape, value, lambda path, message: document.problem((*at, *path), message))


def check_parts(shape: type[Any], document: Document) -> tuple[Document | None, list[FieldPath], list[Problem]]:
    """Every mistake in a document's form, and what is left of it without them, so that the rest can be looked at too: None where that is
    nothing. The paths are those that were left out: a list goes whole, since what stands behind would get another place."""
    wrong: list[FieldPath] = []

    def place(path: FieldPath, message: str) -> Problem:
        number = next((i for i, part in enumerate(path) if isinstance(part, int)), len(path))
        wrong.append(tuple(path[:number]))
        return document.problem(path, message)

    _, problems = _check(shape, document.value, place)
    if not problems:
        return document, [], []
    rest = _without(document.value, set(wrong))
    sound = isinstance(rest, dict) and _check(shape, rest, document.problem)[0] is not None
    return (replace(document, value=rest) if sound else None), wrong, problems


def _without(value: Any, paths: set[FieldPath], at: FieldPath = ()) -> Any:
    if not isinstance(value, dict) or at in paths:
        return None if at in paths else value
    return {key: _without(one, paths, (*at, key)) for key, one in value.items() if (*at, key) not in paths}


_adapters: dict[Any, TypeAdapter[Any]] = {}


def _adapter(shape: Any) -> TypeAdapter[Any]:
    found = _adapters.get(shape)
    if found is None:
        found = _adapters[shape] = TypeAdapter(shape)
    return found


def invalid(what: str, problems: Iterable[Problem]) -> InvalidSpec:
    """The error for some problems, in the order of their lines."""
    found = sorted(dict.fromkeys(problems), key=lambda one: (one.file or "", one.line or 0))
    return InvalidSpec(f"{what} has {len(found)} mistake{'' if len(found) == 1 else 's'}", found)


def schema(shape: type[Any], *, title: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a configuration or manifest, for editors."""
    found = _adapter(shape).json_schema(schema_generator=_Schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": title}


def _one_document(file: Path) -> tuple[Document | None, list[Problem]]:
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        return None, [Problem("", f"cannot be read: {exc.strerror or exc}", str(file))]
    if len(content) > MAX_FILE_BYTES:
        return None, [Problem("", f"is larger than {MAX_FILE_BYTES} bytes", str(file))]
    try:
        text = content.decode()
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        return None, [Problem("", "is not UTF-8", str(file), line)]
    documents, problems = read_documents(text, str(file))
    if len(documents) > 1:
        problems.append(Problem("", "holds several documents; a configuration is one", str(file), documents[1].line))
    if not documents:
        return Document({}, str(file)), problems
    if not isinstance(documents[0].value, dict):
        problems.append(Problem("", "must be a mapping of sections", str(file), documents[0].line))
        return Document({}, str(file)), problems
    return documents[0], problems


class _Layers:
    """The merged data of all layers, and for each field which layer set it last."""

    def __init__(self, shape: type[Any]) -> None:
        self.shape = shape
        self.document = Document({}, "default")
        self.data: dict[str, Any] = {}
        self.set_by: dict[FieldPath, tuple[str, str]] = {}

    def put(self, path: FieldPath, value: Any, kind: str, name: str) -> None:
        at = self.data
        for part in path[:-1]:
            below = at.get(str(part))
            if not isinstance(below, dict):
                below = at[str(part)] = {}
            at = below
        at[str(path[-1])] = value
        self.set_by[path] = (kind, name)

    def add_variables(self, env: Mapping[str, str], prefix: str) -> Iterator[Problem]:
        for name in sorted(env):
            if not name.startswith(prefix):
                continue
            path = tuple(name[len(prefix) :].lower().split("__"))
            kind = kind_at(self.shape, path)
            if kind is None:
                known = [prefix + "__".join(map(str, one)).upper() for one, _ in field_paths(self.shape)]
                yield Problem("", f"is no setting{suggest(name, known)}", name)
            elif section_of(kind) is not None:
                yield Problem(
                    "", "is a whole section; set one of its fields, " + f"such as {name}__{keys_at(kind, ())[0].upper()}", name
                )
            else:
                self.put(path, _from_text(env[name], kind), "variable", name)

    def resolve_secrets(self, env: Mapping[str, str]) -> Iterator[Problem]:
        for path, secret in field_paths(self.shape):
            if not secret:
                continue
            text = _get(self.data, path)
            found = _ENV_REF.fullmatch(text) if isinstance(text, str) else None
            if found is None:
                continue
            name = found[1]
            if env.get(name):
                kind, origin = self.set_by.get(path, ("", self._place(path)))
                self.put(path, env[name], "", f"variable {name} by way of {kind} {origin}".replace("  ", " "))
            else:
                why = "is empty" if name in env else "is not set"
                yield self.problem(path, f"is taken from the variable {name}, which {why}; export {name}=…")

    def problem(self, path: FieldPath, message: str) -> Problem:
        """A mistake at a field, with the place of the layer that set it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.set_by:
                kind, name = self.set_by[path[:length]]
                return Problem(join(path), message, name if kind else None)
        if self.document.file == "default":
            return Problem(join(path), message)
        return self.document.problem(path, message)

    def located(self, problem: Problem) -> Problem:
        """A problem that a rule found, with its place."""
        path = tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", problem.path))
        return self.problem(path, problem.message)

    def origins(self, value: Any) -> dict[str, str]:
        result = {}
        for path, _, _ in leaves(value):
            if path in self.set_by:
                result[join(path)] = " ".join(self.set_by[path]).strip()
            else:
                result[join(path)] = self._place(path) if _get(self.document.value, path) is not None else "default"
        return result

    def _place(self, path: FieldPath) -> str:
        return f"{self.document.file}:{self.document.line_of(path)}"


def _get(data: Any, path: FieldPath) -> Any:
    for part in path:
        if not isinstance(data, dict) or part not in data:
            return None
        data = data[part]
    return data


def _copy(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _copy(value) for key, value in data.items()}
    return [_copy(value) for value in data] if isinstance(data, list) else data


def _from_text(text: str, kind: Any) -> Any:
    """What a variable's text stands for, by the type of its field: numbers, flags and lists are read as YAML, words are not."""
    members = members_of(kind)
    if types.NoneType in members and text in {"", "null", "~"}:
        return None
    if any(typing.get_origin(one) in (tuple, list) for one in members) and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    if any(one in (int, float, bool) or typing.get_origin(one) in (tuple, list, dict) for one in members):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text
    return text


# --- types: pydantic finds the mistakes, and here they become sentences --------------------------------------------------------


def _check(shape: type[T], data: Any, place: Callable[[FieldPath, str], Problem]) -> tuple[T | None, list[Problem]]:
    problems: list[Problem] = []
    prepared = _prepare(data, shape, (), problems, place)
    try:
        value: T = _adapter(shape).validate_json(json.dumps(prepared, default=str), strict=True)
    except ValidationError as exc:
        problems += [place(path, message) for path, message in _sentences(shape, prepared, exc)]
        return None, problems
    return (None if problems else value), problems


def _prepare(data: Any, kind: Any, path: FieldPath, problems: list[Problem], place: Callable[[FieldPath, str], Problem]) -> Any:
    """Durations as ISO 8601, which pydantic takes; the rest as it is. `null` for a section means its defaults."""
    if timedelta in members_of(kind):
        if data is None:
            return data
        try:
            micros = round(parse_duration(str(data)).total_seconds() * _ISO_UNITS)
            return f"PT{micros // _ISO_UNITS}.{micros % _ISO_UNITS:06d}S"
        except ValueError as exc:
            problems.append(place(path, f"{data!r} {exc}"))
            return "PT1S"  # goes on, so that the other mistakes are found too
    if isinstance(data, dict):
        section = section_of(kind)
        return {
            key: _prepare(value, kind_at(kind, (key,)), (*path, key), problems, place)
            for key, value in data.items()
            if not (value is None and section is not None and section_of(hints_of(section).get(key)) is not None)
        }
    if isinstance(data, list):
        return [_prepare(value, kind_at(kind, (i,)), (*path, i), problems, place) for i, value in enumerate(data)]
    return data


def _sentences(shape: type[Any], data: Any, exc: ValidationError) -> Iterator[tuple[FieldPath, str]]:
    """(path, message) of each mistake. Where a field may be of several types, those that the value is nearest to speak."""
    found: dict[FieldPath, list[str]] = {}
    or_mapping: dict[FieldPath, list[str]] = {}
    for error in exc.errors(include_url=False, include_context=True):
        path, value, meant = _walk(data, error["loc"], error["type"])
        if meant is not None and meant[1] != isinstance(meant[2], dict):
            if meant[1] and error["type"] in {"dataclass_type", "dict_type"}:
                or_mapping.setdefault(path, keys_at(shape, path))
            continue
        found.setdefault(path, []).append(_sentence(shape, path, value, (error["type"], error["msg"])))
    for path, messages in found.items():
        keys = or_mapping.get(path)
        yield path, " or ".join(dict.fromkeys(messages)) + (f", or a mapping with the keys {', '.join(keys)}" if keys else "")


def _walk(data: Any, loc: tuple[int | str, ...], error: str) -> tuple[FieldPath, Any, tuple[str, bool, Any] | None]:
    """The field path of a pydantic location, without the names of union members that stand in it; the value there; and the member
    (name, whether it is a mapping, the value that was tried)."""
    path: FieldPath = ()
    meant = None
    for i, part in enumerate(loc):
        if part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int) and part < len(data):
            data, path = data[part], (*path, part)
        elif i == len(loc) - 1 and error == "missing":
            data, path = None, (*path, part)
        else:
            meant = (str(part), str(part)[:1].isupper() or str(part).startswith("dict"), data)
    return path, data, meant


def _sentence(shape: type[Any], path: FieldPath, value: Any, error: tuple[str, str]) -> str:
    kind, (name, fallback) = kind_at(shape, path), error
    shown = "what stands there" if is_secret(shape, path) else _shown(value)
    match name:
        case "unexpected_keyword_argument" | "extra_forbidden":
            known = keys_at(shape, path[:-1])
            return f"is not a known key{suggest(str(path[-1]), known) or '; known: ' + ', '.join(known)}"
        case "missing":
            return "is missing"
        case "string_type":
            return f"must be a text, not {shown}" + ("; put it in quotes" if isinstance(value, int | float) else "")
        case "int_type" | "int_from_float" | "int_parsing":
            return f"must be a whole number, not {shown}"
        case "float_type" | "float_parsing":
            return f"must be a number, not {shown}" + _seconds_hint(path, value)
        case "bool_type" | "bool_parsing":
            return f"must be true or false, not {shown}"
        case "tuple_type" | "list_type":
            return f"must be a list, not {shown}"
        case "dataclass_type" | "dict_type":
            known = keys_at(shape, path)
            return f"must be a mapping{' with the keys ' + ', '.join(known) if known else ''}, not {shown}"
        case "enum":
            enums = [one for one in members_of(kind) if isinstance(one, type) and issubclass(one, Enum)]
            words = [str(word.value) for one in enums for word in one]
            return f"{shown} is none of {', '.join(words)}{suggest(str(value), words)}"
        case _:
            return fallback[:1].lower() + fallback[1:]


def _seconds_hint(path: FieldPath, value: Any) -> str:
    if not (isinstance(value, str) and path and str(path[-1]).endswith("_s")):
        return ""
    try:
        return f"; write {parse_duration(value).total_seconds():g} (seconds)"
    except ValueError:
        return ""


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + '…"'


class _Schema(GenerateJsonSchema):
    """Durations as people write them."""

    def timedelta_schema(self, schema: Any) -> dict[str, Any]:
        return {"type": "string", "description": FORM, "examples": ["24h", "7d", "1h30m"]}

    def default_schema(self, schema: Any) -> dict[str, Any]:
        found = super().default_schema(schema)
        if "default" in schema and isinstance(schema["default"], timedelta):
            found["default"] = format_duration(schema["default"])
        return found
