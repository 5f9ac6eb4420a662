"""Which operations may run while another coordinator writes, too.

Whatever is not marked runs alone: no other transaction that writes is under way on the database, as on SQLite always. A marked one
may find, under READ COMMITTED, that what it read a moment ago was changed by another marked one meanwhile. It must then say so by the
number of rows that its guarded statements changed (`changes.write`), and runs once more, alone. What only operations that run alone
change stays as it was read, to the end of the transaction.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from ostler.model.errors import StoreBusy

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "_runs_beside"


class Changed(StoreBusy):
    """A row is no longer as it was read: an operation that ran beside others is undone, and run again alone."""


class NotAlone(Exception):
    """An operation has found that it must run alone: it is undone, and run again so."""


def beside_others(operation: F) -> F:
    """Marks an operation that may run beside others."""
    setattr(operation, _MARK, lambda *_: True)
    return operation


def beside_if(rule: Callable[..., bool]) -> Callable[[F], F]:
    """The same where `rule` says so of its arguments."""

    def mark(operation: F) -> F:
        setattr(operation, _MARK, rule)
        return operation

    return mark


def runs_beside(operation: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether this call may."""
    rule = getattr(operation, _MARK, None)
    return rule is not None and bool(rule(*args))
