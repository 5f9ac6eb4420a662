"""The base of enumerations whose members stand in messages and rows."""

from enum import StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING


class Word(StrEnum):
    """Members that are text. `value` is read for each row and each answer; the library's own goes through two calls of Python."""

    if not TYPE_CHECKING:  # pragma: no branch - a type checker would take it for a member
        value = property(attrgetter("_value_"))
