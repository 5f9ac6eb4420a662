"""Manifests as people write them: every mistake at once, with its path, for an unknown key the one probably meant."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from functools import lru_cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import StructMeta
from pydantic import TypeAdapter, ValidationError

from ostler.coordinator.api.bodies import MAX_VALUES, guard_depth, guard_values
from ostler.coordinator.operations.groups import expand
from ostler.model.errors import InvalidSpec, Problem, TooLarge
from ostler.model.manifest import JOB_ID, Manifest, problems, problems_as_written, problems_at
from ostler.protocol import codec
from ostler.protocol.routes import SUBMIT
from ostler.protocol.spec_text import without_id

MAX_MANIFESTS = 10_000
MAX_PROBLEMS = 100
MAX_NAMED = 1000  # mistakes of one manifest, a few for each field; of more the first alone is told
LONG = 64 * 1024  # bytes of a manifest from which on the first value that does not fit is all that is said
REMEMBERED, REMEMBERED_BYTES = 256, 2048  # manifests, and the longest one
_ADAPTER = TypeAdapter(Manifest)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MESSAGES = {
    "unexpected_keyword_argument": "is not a known field",
    "missing": "is missing",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "dataclass_type": "must be an object",
}

_KNOWN = ", ".join(one.name for one in fields(Manifest))

Accepted = list[tuple[Manifest, str]]


@dataclass(frozen=True, slots=True)
class Submission:
    """What one call submits: each manifest with its text, byte for byte as it was sent, arrays as their jobs; and the one group that
    all of them are, where they are to be one.
    """

    manifests: Accepted
    group: str | None = None


def read_manifests(raw: bytes, content_type: str, now: datetime, limit: int = MAX_MANIFESTS) -> Submission:
    """The jobs of a body; raises InvalidSpec (all mistakes) or TooLarge."""
    if raw.count(b"\n") > MAX_VALUES:  # each of them may be a manifest
        raise TooLarge(f"the body has more than {MAX_VALUES} lines")
    guard_values(raw)
    listed, texts, group = _split(raw, content_type)
    if not texts:
        raise InvalidSpec("there is no manifest in the body", hint='send one manifest, a list, or {"jobs": [...]}')
    if len(texts) > limit:
        raise TooLarge(f"{len(texts)} manifests are more than the {limit} that one call takes", hint="send them in several calls")
    accepted: Accepted = []
    found: list[Problem] = []
    jobs, size = len(texts), 0
    for number, text in enumerate(texts):
        prefix = f"[{number}]" if listed else ""
        one = _read_one(text, prefix, now)
        if isinstance(one, list):
            found.extend(one)
            if len(found) > MAX_PROBLEMS:
                found = [*found[:MAX_PROBLEMS], Problem("", "and more: these are the first hundred")]
                break
        elif one[0].array is None:
            accepted.append(one)
        elif group is not None:
            found.append(Problem(f"{prefix}.array", "cannot stand in a group: an array is one of its own"))
        else:
            jobs += one[0].array - 1
            size += one[0].array * len(text)
            _check_room(jobs, limit, size)
            children = expand(*one)
            found.extend(_array_problems(children, prefix))
            accepted.extend(children)
    if found:
        raise InvalidSpec("the manifest is not valid" if not listed else "the manifests are not valid; none was accepted", found)
    return Submission(accepted, group)


def _split(raw: bytes, content_type: str) -> tuple[bool, list[bytes], str | None]:
    """Whether several were sent, the text of each, and the name of their group."""
    try:
        if content_type == "application/x-ndjson":
            return True, [line for line in (line.strip() for line in raw.split(b"\n")) if line], None
        body = raw.strip(b" \t\r\n")
        if body.startswith(b"["):
            return True, _list(body), None
        if body.startswith(b"{") and b'"jobs"' in body:
            jobs = _OBJECT.decode(body)
            if "jobs" in jobs:
                if unknown := [name for name in jobs if name not in {"jobs", "group"}]:
                    raise InvalidSpec("the body is not valid", [Problem(name, "is not known beside `jobs`") for name in unknown])
                return True, _list(jobs["jobs"]), _group(jobs["group"]) if "group" in jobs else None
        return False, [body] if body else [], None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidSpec("the body is not valid JSON", [Problem("", str(exc))]) from exc


def _group(raw: msgspec.Raw) -> str:
    name = msgspec.json.decode(raw)
    if not isinstance(name, str) or not JOB_ID.fullmatch(name):
        raise InvalidSpec("the body is not valid", [Problem("group", "must be a name as a `job_id` is one")])
    return name


def _list(raw: bytes | msgspec.Raw) -> list[bytes]:
    try:
        return [bytes(one) for one in _LIST.decode(raw)]
    except msgspec.ValidationError as exc:
        raise InvalidSpec("the body is not valid", [Problem("jobs", "must be a list of manifests")]) from exc


def _validated(text: bytes) -> tuple[Manifest, tuple[Problem, ...]]:
    guard_depth(text)
    # The validator of human input reads more than JSON allows (NaN, 1e999); what a node could not read is refused here.
    if len(text) > LONG:  # to describe all mistakes takes a thousand times what it takes to find one
        codec.decode(text, Manifest, what="manifest")
        manifest: Manifest = _ADAPTER.validate_json(text, strict=True)
        return manifest, tuple(problems_as_written(manifest))
    msgspec.json.decode(text)
    manifest = _ADAPTER.validate_json(text, strict=True)
    try:  # as nodes read it, and who takes their results: all of a field that stands twice, not the last alone
        codec.decode(text, Manifest, what="manifest")
    except InvalidSpec as exc:
        found = [Problem(one.path, f"stands twice, with different kinds of value: {one.message}") for one in exc.problems]
        raise InvalidSpec("the manifest cannot be read by nodes", found) from exc
    return manifest, tuple(problems_as_written(manifest))


# Callers send the same few manifests over and over, and what one says is a value that nobody changes.
_remembered = lru_cache(maxsize=REMEMBERED)(_validated)


def _recalled(text: bytes) -> tuple[Manifest, tuple[Problem, ...]]:
    """The same by way of what is remembered, where manifests that differ in nothing but the ids in front of them are one."""
    if len(text) > REMEMBERED_BYTES:
        return _validated(text)
    job_id, rest = without_id(text)
    if job_id is not None:
        try:
            manifest, mistakes = _remembered(rest)
        except (InvalidSpec, ValidationError, msgspec.DecodeError, UnicodeDecodeError):  # told of the text as it came
            return _remembered(text)
        if not mistakes and manifest.array is None:
            return manifest.named(job_id), ()
    return _remembered(text)


def _read_one(text: bytes, prefix: str, now: datetime) -> tuple[Manifest, str] | list[Problem]:
    try:
        manifest, mistakes = _recalled(text)
    except InvalidSpec as exc:
        return [Problem(_join(prefix, problem.path), f"{exc.message}: {problem.message}") for problem in exc.problems]
    except ValidationError as exc:
        if exc.error_count() > MAX_NAMED:
            return _first_of(exc.error_count(), text, prefix)
        return [Problem(_join(prefix, path), message) for path, message in _mistakes(exc)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        return [Problem(prefix, f"is not valid JSON: {exc}")]
    if found := mistakes or (() if manifest.not_before is None else tuple(problems_at(manifest, now))):
        return [Problem(_join(prefix, problem.path), problem.message) for problem in found]
    return manifest, text.decode()


def _first_of(count: int, text: bytes, prefix: str) -> list[Problem]:
    """Of so many mistakes that to describe them all would take long: the first value that does not fit, or else a name."""
    found = [Problem(prefix, f"has {count} mistakes, too many to name them all; known fields are {_KNOWN}")]
    try:
        codec.decode(text, Manifest, what="manifest")
    except InvalidSpec as exc:
        found += [Problem(_join(prefix, one.path), one.message) for one in exc.problems]
    return found


def _check_room(jobs: int, limit: int, size: int) -> None:
    """What arrays make of a call is held to the limits of one that sent it all."""
    if jobs > limit:
        raise TooLarge(f"{jobs} jobs are more than the {limit} that one call takes", hint="send smaller arrays in several calls")
    if size > SUBMIT.max_body:
        raise TooLarge(
            f"the manifests of all jobs of the arrays are {size} bytes, more than the {SUBMIT.max_body} that one call takes",
            hint="upload what is long as an input file, or send smaller arrays in several calls",
        )


def _array_problems(children: Accepted, prefix: str) -> list[Problem]:
    """The mistakes of the first job that has some: a number may make two names of one."""
    for index, (manifest, _) in enumerate(children):
        if found := problems(manifest):
            return [Problem(_join(prefix, one.path), f"{one.message} (in job {index} of the array)") for one in found]
    return []


def _join(prefix: str, path: str) -> str:
    return f"{prefix}.{path}" if prefix and path and not path.startswith("[") else prefix + path


def _mistakes(error: ValidationError) -> Iterator[tuple[str, str]]:
    """(path, message) pairs of the first fields. Where a field takes one of several forms, each form complains; the form that came
    closest speaks."""
    by_field: dict[tuple[str | int, ...], list[tuple[int, str, str]]] = {}
    for one in error.errors(include_url=False, include_context=True, include_input=False):
        field, below, at = _place(one["loc"])
        if len(by_field) > MAX_PROBLEMS and field not in by_field:
            break
        kind = one["type"]
        message = _MESSAGES.get(kind) or str(one["msg"]).replace("Input should be", "must be")
        if kind == "unexpected_keyword_argument":
            message += _suggestion(str(one["loc"][-1]), at)
        elif kind == "json_invalid":
            message = f"is not valid JSON: {one['ctx']['error']}"
        by_field.setdefault(field, []).append((len(below), _spell((*field, *below)), message))
    for complaints in by_field.values():
        deepest = max(depth for depth, _, _ in complaints)
        same = [(path, message) for depth, path, message in complaints if deepest in {depth, 0}]
        if deepest == 0 and len(same) > 1:
            yield same[0][0], " or ".join([same[0][1], *(message.removeprefix("must be ") for _, message in same[1:])])
        else:
            yield from same


def _spell(parts: tuple[str | int, ...]) -> str:
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _place(loc: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], tuple[str | int, ...], Any]:
    """The path to a field, what of it lies inside one of its forms, and the class where it ends.

    Pydantic mixes the names of forms (`str`, `InputUrl`) into paths; walking the types along tells them from keys.
    """
    above: list[str | int] = []
    below: list[str | int] = []
    inside = False
    here: Any = Manifest
    for part in loc:
        options = _options(here)
        form = next((option for option in options if getattr(option, "__name__", "") == part), None) if len(options) > 1 else None
        if form is not None:
            here, inside = form, True
            continue
        (below if inside else above).append(part)
        here = _child(here, part, last=part is loc[-1])
    return tuple(above), tuple(below), here


def _options(kind: Any) -> tuple[Any, ...]:
    if get_origin(kind) in {Union, UnionType}:
        return tuple(option for option in get_args(kind) if option is not type(None))
    return (kind,)


def _child(kind: Any, part: str | int, *, last: bool) -> Any:
    kind = _options(kind)[0]
    if _names(kind):
        hint = _hints(kind).get(str(part))
        return kind if hint is None and last else hint
    arguments = get_args(kind)
    return arguments[-1] if get_origin(kind) is dict and arguments else arguments[0] if arguments else kind


_hints = lru_cache(get_type_hints)


def _names(kind: Any) -> list[str]:
    """Of the fields of a message, or of a value of the model; none where it has none."""
    if isinstance(kind, StructMeta):
        return list(kind.__struct_fields__)
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []


def _suggestion(name: str, kind: Any) -> str:
    known = _names(kind)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else f"; known are {', '.join(known)}"
