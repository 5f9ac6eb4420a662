"""Calls of functions as manifests, and what comes back as results. Pure: neither side runs anything that the other one wrote.

The exceptions to that are the two that a caller asks for: functions by value (to nodes that allow it), and results as pickles.
"""

import base64
import builtins
import functools
import json
import sys
import sysconfig
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, Literal

from ostler.model.calls import BY_VALUE_TAG, MAX_CODE_NAME, TASK
from ostler.model.errors import InvalidSpec, Problem
from ostler.model.job import JobState
from ostler.protocol import values
from ostler.protocol.messages import JobView
from ostler.sdk.failed import JobFailed, RemoteError, RemoteTraceback

Results = Literal["data", "pickle"]
Arguments = tuple[Sequence[Any], Mapping[str, Any]]

RESULT, PICKLE, ERROR = "result.json", "result.pkl", "error.json"
MAX_CALL_BYTES = 4 * 2**20
_PICKLING = threading.Lock()  # which modules go by value is told to cloudpickle as a whole
_BY_NAME = "put it at the top level of a module in the nodes' task folders (tasks/NAME.py), and import it from there"
_BY_VALUE = "or send it by value: Executor(by_value=True), to nodes with runners.python.by_value: true"


@dataclass(frozen=True, slots=True)
class Call:
    """A function and the arguments of one call or, as a batch, of several."""

    function: Callable[..., Any] | str
    arguments: Sequence[Arguments]
    batch: bool = False


def manifest_of(call: Call, *, by_value: bool, results: Results, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a call, without its id. Raises InvalidSpec for what does not travel."""
    artifacts = [{"path": RESULT, "type": "application/json", "optional": True}]
    artifacts.append({"path": ERROR, "type": "application/json", "optional": True, "always": True})
    params: dict[str, Any] = {}
    if results == "pickle":
        artifacts.append({"path": PICKLE, "optional": True})
        params["results"] = results
    manifest: dict[str, Any] = {"runner": "python", **extra, "artifacts": artifacts}
    if by_value:
        need = dict(manifest.get("requirements") or {})
        manifest["requirements"] = {**need, "tags": [*need.get("tags", ()), BY_VALUE_TAG]}
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        manifest["code"] = {"pickle": _pickled(call), "python": version, "name": _title(call.function)}
    else:
        task, calls = _by_name(call)
        manifest["task"] = task
        params |= {"batch": calls} if call.batch else calls[0]
    if params:
        manifest["params"] = params
    return manifest


def _by_name(call: Call) -> tuple[str, list[dict[str, Any]]]:
    function = call.function
    before: tuple[Any, ...] = ()
    names: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        before, names = (*function.args, *before), {**function.keywords, **names}
        function = function.func
    task = function if isinstance(function, str) else _name(function)
    if not TASK.fullmatch(task) or ":" not in task:
        raise InvalidSpec(f"{task!r} does not name a function", hint="write MODULE:FUNCTION, both without a leading underscore")
    return task, [_written([*before, *args], {**names, **more}) for args, more in call.arguments]


def _name(function: Any) -> str:
    if not isinstance(function, FunctionType):
        raise InvalidSpec(f"{function!r} is not a function that can be called by its name", hint=f"{_BY_NAME}, {_BY_VALUE}")
    module, name = function.__module__, function.__qualname__
    if module == "__main__" or not name.isidentifier():
        where = "in the program itself" if module == "__main__" else "within another function or class, or without a name"
        raise InvalidSpec(f"{name!r} is defined {where}: no node knows it by name", hint=f"{_BY_NAME}, {_BY_VALUE}")
    if name.startswith("_"):
        raise InvalidSpec(f"{name!r} is private to its module: no node calls it", hint="give it a name without the underscore")
    return f"{module.removeprefix('tasks.')}:{name}"


def _written(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        place = ""
        if args:
            found["args"] = []
        for number, one in enumerate(args, 1):
            place = f"argument {number}"
            found["args"].append(values.encode(one))
        for name, one in kwargs.items():
            place = f"argument {name!r}"
            found.setdefault("kwargs", {})[name] = values.encode(one)
    except values.NotData as exc:
        hint = "arguments are data: numbers, text, bytes, lists, tuples, dicts, sets, dates; others go with by_value=True alone"
        raise InvalidSpec(f"{place} cannot be sent: {exc}", hint=hint) from exc
    return found


def _title(function: Any) -> str:
    """What lists show of it."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(name).replace("<locals>.", "")[:MAX_CODE_NAME]


def _pickled(call: Call) -> str:
    import cloudpickle  # takes a while to load, and most executors send names

    function = call.function
    if isinstance(function, str):
        raise InvalidSpec(f"{function!r} is a name", hint="without by_value=True functions are called by their names")
    own = _own_module(function)
    with _PICKLING:
        ours = own is not None and own.__name__ not in cloudpickle.list_registry_pickle_by_value()
        if ours:
            cloudpickle.register_pickle_by_value(own)
        try:
            content = cloudpickle.dumps((function, [(list(args), dict(more)) for args, more in call.arguments], call.batch))
        except Exception as exc:  # whatever an object's own code raises
            raise InvalidSpec(f"the function or an argument cannot be pickled: {type(exc).__name__}: {exc}") from exc
        finally:
            if ours:
                cloudpickle.unregister_pickle_by_value(own)
    return base64.b64encode(content).decode()


def _own_module(function: Any) -> ModuleType | None:
    """The function's module where it is the caller's own file, which no node has: it goes by value then, whole."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    if module is None or module.__name__ == "__main__" or not file:
        return None
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return None if any(file.startswith(f"{place}/") for place in installed) else module


def check_size(manifest: Mapping[str, Any], size: int) -> None:
    """Raises InvalidSpec for a call that is too large for a manifest."""
    if size > MAX_CALL_BYTES:
        raise InvalidSpec(
            f"the call of {manifest.get('task', 'a function by value')} has {size} bytes with its arguments; at most {MAX_CALL_BYTES} go",
            hint="put what is large into a file and submit a job with it: Client.submit(task=…, inputs={…})",
        )


def contents_of(results: Results) -> tuple[str, ...]:
    """The artifacts that hold what came of a call."""
    return (RESULT, ERROR, PICKLE) if results == "pickle" else (RESULT, ERROR)


def result_of(job: JobView, contents: Mapping[str, bytes], *, results: Results) -> Any:
    """What the function returned. Raises what it raised, JobFailed where the job did not get to its end, CancelledError."""
    if job.state is JobState.CANCELLED:
        raise CancelledError(f"job {job.job_id} was cancelled")
    if job.state is not JobState.DONE:
        error = _read(contents.get(ERROR), job) if job.failure is not None and job.failure.code == "E_TASK" else None
        if isinstance(error, dict):
            raise _raised(error)
        raise JobFailed(job)
    if PICKLE in contents and results == "pickle":
        import pickle

        return pickle.loads(contents[PICKLE])  # noqa: S301 - the caller said `results="pickle"`
    if RESULT not in contents:
        raise RemoteError(f"job {job.job_id} ended without a result")
    try:
        return values.decode(_read(contents[RESULT], job))
    except ValueError as exc:
        raise RemoteError(f"the result of job {job.job_id} cannot be read: {exc}") from exc


def _read(content: bytes | None, job: JobView) -> Any:
    if content is None:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise RemoteError(f"what came of job {job.job_id} is no JSON: {exc}") from exc


def _raised(error: Mapping[str, Any]) -> BaseException:
    """The exception again where its class is known here, else a RemoteError that names it; the traceback is its cause."""
    raised = _rebuilt(error)
    if raised is None:
        raised = RemoteError(_clean(error.get("text") or error.get("name")))
    raised.__cause__ = RemoteTraceback(_clean(error.get("traceback") or error.get("text") or ""))
    return raised


def _clean(text: Any) -> str:
    """What a node wrote, for a terminal: signs that would move its cursor are shown, not sent."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else ascii(sign)[1:-1] for sign in str(text))


def _rebuilt(error: Mapping[str, Any]) -> BaseException | None:
    kind = _class(error.get("module"), error.get("name"))
    if kind is None or not isinstance(error.get("args"), list):
        return None
    try:
        raised = kind(*values.decode(error["args"]))
        state = values.decode(error.get("state"))
        if isinstance(state, dict):
            vars(raised).update(state)
        if not isinstance(raised, kind):
            return None
        str(raised)
    except Exception:  # its constructor wants something else, or it is not what was meant
        return None
    return raised


def _class(module: Any, name: Any) -> type[Exception] | None:
    """A class of exceptions among those that this program has loaded. Nothing is imported because a node says so."""
    found: Any = builtins if module == "builtins" else sys.modules.get(module) if isinstance(module, str) else None
    if found is None and isinstance(module, str):  # tasks/x.py may be imported as `x` or as `tasks.x`
        found = sys.modules.get(module.removeprefix("tasks."))
    for part in str(name).split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def problem_indices(problems: Sequence[Problem]) -> set[int]:
    """Which manifests of a batch the mistakes are about."""
    heads = (problem.path[1:].partition("]")[0] for problem in problems if problem.path.startswith("["))
    return {int(head) for head in heads if head.isdigit()}
