"""Packages that take long to load, and that most processes never use."""

import importlib
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    def __getattr__(self, name: str) -> Any:
        loaded = importlib.import_module(self.__name__)
        self.__dict__.update(loaded.__dict__)
        return getattr(loaded, name)


def later(name: str) -> Any:
    """A package that is loaded when something of it is first used."""
    return _Later(name)
