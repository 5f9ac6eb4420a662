"""Which module is a task: `tasks.<name>` from the configured folders, imported once and given up when its files change.

Each configured path is a folder `tasks` itself or the folder that holds one; both forms may be mixed, earlier ones win.
"""

# ruff: noqa: PTH113, PTH116, PTH118, PTH119, PTH120 - a handful of system calls before each task
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

PACKAGE = "tasks"

_Version = tuple[int, int]


class TaskRefused(Exception):
    """There is no such task, or it does not take these parameters; `code` is a failure code of the model."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class TaskFinder:
    """Imports tasks and remembers the version of every file below the task folders that this brought in."""

    def __init__(self, paths: list[str]) -> None:
        self._places = [place for path in paths for place in (os.path.join(path, PACKAGE), path)]
        self._runs: dict[str, Callable[..., Any]] = {}
        self._seen: dict[str, _Version] = {}
        self._package()

    def stale(self) -> bool:
        """Whether a file that was imported is no longer the same: this process then has old code in it."""
        return any(_version(file) != version for file, version in self._seen.items())

    def find(self, name: str) -> Callable[..., Any]:
        """The `run` of `tasks.<name>`, or for `name:function` that public function of it.

        Raises TaskRefused, and whatever importing the module raises.
        """
        found = self._runs.get(name)
        if found is None:
            found = self._runs[name] = self._load(name)
        return found

    def _load(self, name: str) -> Callable[..., Any]:
        name, _, function = name.partition(":")
        full = f"{PACKAGE}.{name}"
        importlib.invalidate_caches()
        try:
            module = importlib.import_module(full)
        except ModuleNotFoundError as exc:
            if exc.name and (full == exc.name or full.startswith(f"{exc.name}.")):
                raise TaskRefused("E_DENY", f"there is no task {name!r} in this node's task_paths") from None
            raise
        finally:
            self._note()
        if function:
            return _public(module, function)
        run: Callable[..., Any] | None = getattr(module, "run", None)
        if not callable(run):
            raise TaskRefused("E_SPEC", f"the task module {name} has no function `run`")
        return run

    def _package(self) -> None:
        """Make `tasks` a package over all the folders, with the first `__init__.py` found in one named so."""
        inits = (os.path.join(place, "__init__.py") for place in self._places)
        init = next((file for file in inits if os.path.isfile(file) and os.path.basename(os.path.dirname(file)) == PACKAGE), None)
        if init is None:
            module = ModuleType(PACKAGE)
            module.__path__ = self._places
            sys.modules[PACKAGE] = module
            return
        spec = importlib.util.spec_from_file_location(PACKAGE, init, submodule_search_locations=self._places)
        if spec is None or spec.loader is None:
            raise ImportError(f"{init} cannot be loaded")
        module = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = module
        spec.loader.exec_module(module)
        self._note()

    def _note(self) -> None:
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None)
            if isinstance(file, str) and file not in self._seen and self._ours(file):
                version = _version(file)
                if version is not None:
                    self._seen[file] = version

    def _ours(self, file: str) -> bool:
        """Below a task folder, and no library of a venv that lies there too."""
        return any(file.startswith(f"{place}/") for place in self._places) and not file.startswith(f"{sys.prefix}/")


def _public(module: ModuleType, name: str) -> Callable[..., Any]:
    """A function that the module offers: not private, its own, and in `__all__` where there is one.

    What a module imports for itself, or keeps for itself, is nobody else's to call.
    """
    found = vars(module).get(name)
    own = isinstance(found, FunctionType) and found.__module__ == module.__name__ and found.__qualname__ == name
    if not isinstance(found, FunctionType) or not own or name.startswith("_") or name not in getattr(module, "__all__", [name]):
        short = module.__name__.removeprefix(f"{PACKAGE}.")
        raise TaskRefused("E_DENY", f"the task module {short} defines no public function {name!r} at its top level")
    return found


def _version(file: str) -> _Version | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size)
