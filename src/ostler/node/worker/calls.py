"""Calls of functions: by name in a module that the node trusts, or by value where its configuration allows that.

Arguments by name are data and nothing else. The result is data too; only where the caller said so may it be a pickle, which is then
the caller's to open. What a function raises stands in a file of its own beside the traceback for people.
"""

import base64
import json
import sys
import traceback
from collections.abc import Callable
from types import CoroutineType
from typing import Any

from ostler.node.worker.finder import TaskFinder, TaskRefused
from ostler.protocol import values

RESULT = "result.json"
PICKLE = "result.pkl"
ERROR = "error.json"
MAX_TRACEBACK = 64 * 1024
_Call = tuple[list[Any], dict[str, Any]]


def result_of(finder: TaskFinder, task: str, params: dict[str, Any], code: dict[str, Any] | None) -> Any:
    """Make the call or, one after another, all calls of a batch, which gives the list of their results.

    Raises TaskRefused, and whatever the function raises.
    """
    if code is not None:
        function, calls, batch = _by_value(code)
    else:
        function = finder.find(task)
        batch = "batch" in params
        calls = [_arguments(one) for one in (params["batch"] if batch else [params])]
    results = [_awaited(function(*args, **kwargs)) for args, kwargs in calls]
    return results if batch else results[0]


def _arguments(call: dict[str, Any]) -> _Call:
    try:
        return values.decode(call.get("args", [])), {name: values.decode(one) for name, one in call.get("kwargs", {}).items()}
    except ValueError as exc:
        raise TaskRefused("E_SPEC", f"the arguments cannot be read: {exc}") from None


def _by_value(code: dict[str, Any]) -> tuple[Callable[..., Any], list[_Call], bool]:
    """Unpickles a function, which runs what its sender wrote: the node's configuration was asked before this."""
    import pickle

    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    if code["python"] != ours:
        raise TaskRefused("E_SPEC", f"the function was sent by Python {code['python']}; this node runs tasks with {ours}")
    try:
        import cloudpickle  # noqa: F401 - what it made asks for it
    except ModuleNotFoundError:
        raise TaskRefused(
            "E_SPEC", f"functions by value need cloudpickle, which {sys.executable} lacks: install it in runners.python.venv"
        ) from None
    try:
        function, calls, batch = pickle.loads(base64.b64decode(code["pickle"]))  # noqa: S301 - allowed by runners.python.by_value
    except ModuleNotFoundError as exc:
        raise TaskRefused("E_SPEC", f"the function needs the module {exc.name!r}, which this node does not have") from exc
    return function, calls, batch


def _awaited(result: Any) -> Any:
    if isinstance(result, CoroutineType):
        import asyncio  # as long to load as all the rest

        return asyncio.run(result)
    return result


def content_of(result: Any, *, pickled: bool) -> tuple[str, bytes]:
    """What was returned as a file: its name and content. Raises NotData, or what pickling it raises."""
    try:
        return RESULT, json.dumps(values.encode(result), ensure_ascii=False, allow_nan=False).encode()
    except values.NotData as exc:
        if not pickled:
            raise values.NotData(f"the result cannot be sent as data: {exc}") from None
    try:
        import cloudpickle as pickler  # classes of the function's own go by value, too
    except ModuleNotFoundError:
        import pickle as pickler
    try:
        return PICKLE, pickler.dumps(result)
    except Exception as exc:  # whatever an object's own code raises
        raise values.NotData(f"the result cannot be pickled: {type(exc).__name__}: {exc}") from None


def error_of(exc: BaseException, *, mask: Callable[[str], str]) -> bytes:
    """What was raised, as the content of ERROR: its class by name, its arguments and attributes where they are data, and the traceback
    as text; all of it through `mask`.
    """
    kind = type(exc)
    args, state = _parts(exc)
    error = {
        "module": kind.__module__,
        "name": kind.__qualname__,
        "args": _data(list(args)),
        "state": _data(state),
        "text": mask("".join(traceback.format_exception_only(exc)).strip())[:MAX_TRACEBACK],
        "traceback": mask("".join(traceback.format_exception(exc)))[-MAX_TRACEBACK:],
    }
    return mask(json.dumps(error, ensure_ascii=False)).encode("utf-8", "backslashreplace")


def _parts(exc: BaseException) -> tuple[Any, dict[str, Any]]:
    """What its class is called with to make it again, and its attributes; OSError keeps its file name out of `args`."""
    try:
        reduced = exc.__reduce__()
        args = reduced[1] if isinstance(reduced, tuple) and reduced[0] is type(exc) else exc.args
    except Exception:  # an object's own code
        args = exc.args
    return args, {name: one for name, one in vars(exc).items() if name != "__notes__"}


def _data(value: Any) -> Any:
    """None where it is no data."""
    try:
        return values.encode(value)
    except (values.NotData, RecursionError):
        return None
