"""What the python runner is asked for: a task, a call of a function by its name, or one by value."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ostler.model.errors import Problem

TASK = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z]\w*)?", re.ASCII)
BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
PYTHON_VERSION = re.compile(r"3\.[0-9]{1,3}")
MAX_CODE_NAME = 128
BY_VALUE_TAG = "python-by-value"  # nodes that allow `code` advertise it, so that placement finds them


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A Python function with its arguments by value: what cloudpickle made of it (base64), the Python that it is for (`3.11`), and a
    name for lists.

    To take it in is to run it, so a node does neither unless its own configuration allows it.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by the validator of human input

    pickle: str
    python: str
    name: str = "function"


def task_problems(task: str | None, code: Code | None, params: Mapping[str, Any], tags: Collection[str]) -> Iterator[Problem]:
    """Every mistake in what a job of the python runner says of its task."""
    if code is not None:
        if task is not None:
            yield Problem("task", "stands beside `code`; a call is either by name or by value")
        if BY_VALUE_TAG not in tags:
            yield Problem("requirements.tags", f"must hold {BY_VALUE_TAG!r} where there is `code`: other nodes refuse it")
        if not BASE64.fullmatch(code.pickle):
            yield Problem("code.pickle", "is not base64")
        if not 0 < len(code.name) <= MAX_CODE_NAME or not code.name.isprintable():
            yield Problem("code.name", f"must be 1 to {MAX_CODE_NAME} printable characters")
        if not PYTHON_VERSION.fullmatch(code.python):
            yield Problem("code.python", f"{code.python[:20]!r} is no Python version such as 3.11")
        if unknown := sorted(params.keys() - {"results"}):
            yield Problem(f"params.{unknown[0][:80]}", "does not go with `code`, which holds its arguments")
    elif not task:
        yield Problem("task", "is missing: the python runner needs the name of a task module")
    elif not TASK.fullmatch(task):
        yield Problem("task", f"{task[:200]!r} is neither a dotted Python module name nor MODULE:FUNCTION with a public function")
    elif ":" in task:
        yield from _call_problems(params)
    if (code is not None or ":" in (task or "")) and params.get("results", "data") not in ("data", "pickle"):
        yield Problem("params.results", "must be data or pickle")


def _call_problems(params: Mapping[str, Any]) -> Iterator[Problem]:
    batch = params.get("batch")
    if batch is not None and not isinstance(batch, list):
        yield Problem("params.batch", "must be a list of calls, each {args: [...], kwargs: {...}}")
        return
    calls = [("params", {key: value for key, value in params.items() if key not in {"results", "batch"}})]
    if batch is not None:
        if calls[0][1]:
            yield Problem(
                f"params.{next(iter(calls[0][1]))[:80]}", "stands beside `batch`, which holds the arguments of each call"
            )
        calls = [(f"params.batch[{i}]", call) for i, call in enumerate(batch)]
    for path, call in calls:
        if not isinstance(call, dict):
            yield Problem(path, "must be {args: [...], kwargs: {...}}")
            continue
        if unknown := sorted(call.keys() - {"args", "kwargs"}):
            yield Problem(f"{path}.{unknown[0][:80]}", "is not known; a call takes `args` (a list) and `kwargs` (by name)")
        if not isinstance(call.get("args", []), list):
            yield Problem(f"{path}.args", "must be a list")
        if not isinstance(call.get("kwargs", {}), dict):
            yield Problem(f"{path}.kwargs", "must be an object")
