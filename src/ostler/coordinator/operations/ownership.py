"""Whose a job is: an operation about another's job finds nothing, as if there were no such job.

`owner` is the principal to which the caller is confined; None reaches everybody's.
"""

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from ostler.coordinator.store.tx import Tx
from ostler.model.errors import NotFound

P = ParamSpec("P")
T = TypeVar("T")


def of_job(owner: str | None, operation: Callable[Concatenate[Tx, str, P], T]) -> Callable[Concatenate[Tx, str, P], T]:
    """The same operation on a job, for one who reaches only the owner's."""
    return _checked(owner, operation, "SELECT 1 FROM jobs WHERE job_id = ? AND owner = ?", "job")


def of_group(owner: str | None, operation: Callable[Concatenate[Tx, str, P], T]) -> Callable[Concatenate[Tx, str, P], T]:
    """The same operation on a group; its jobs have one owner."""
    return _checked(owner, operation, "SELECT 1 FROM jobs WHERE group_id = ? AND owner = ? LIMIT 1", "array or group")


def owner_of(tx: Tx, job_id: str) -> str | None:
    """Whose a job is; None where it is nobody's, or there is none."""
    row = tx.row("SELECT owner FROM jobs WHERE job_id = ?", (job_id,))
    return None if row is None else row[0]


def _checked(owner: str | None, operation: Callable[..., Any], sql: str, what: str) -> Callable[..., Any]:
    if owner is None:
        return operation

    def checked(tx: Tx, name: str, /, *args: Any, **kwargs: Any) -> Any:
        if tx.row(sql, (name, owner)) is None:
            raise NotFound(f"there is no {what} {name}", hint="see `ostler job list`")
        return operation(tx, name, *args, **kwargs)

    return checked
