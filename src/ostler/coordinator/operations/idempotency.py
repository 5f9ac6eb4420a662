"""Submissions that bear a key: made once, and answered alike for a day, so that who lost the answer may ask again."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Concatenate, ParamSpec, TypeVar

from ostler.coordinator.operations.dependencies import Accepted
from ostler.coordinator.operations.jobs import submit_jobs
from ostler.coordinator.store.beside import Changed, beside_others
from ostler.coordinator.store.times import span, when
from ostler.coordinator.store.tx import Tx
from ostler.model.errors import Conflict
from ostler.protocol.codec import decode, encode
from ostler.protocol.messages import SubmitResponse

P = ParamSpec("P")
A = TypeVar("A")
KEY = re.compile(r"[\x20-\x7e]{1,255}")
HONOURED = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Mark:
    """What tells one submission from another: whose it is, its key, and the sha256 of its body."""

    principal: str
    key: str
    digest: bytes
    honoured: timedelta = HONOURED  # for how long


def answered(tx: Tx, mark: Mark, shape: type[A]) -> A | None:
    """What the same submission was answered before; raises Conflict where the key stands for another body. Works in a read."""
    row = tx.row("SELECT digest, answer, created_at FROM idempotency WHERE principal = ? AND key = ?", (mark.principal, mark.key))
    if row is None or row[2] <= tx.at - span(mark.honoured):
        return None
    digest, answer, created_at = row
    if digest != mark.digest:
        raise Conflict(
            f"the idempotency key {mark.key!r} stands for another submission, of {when(created_at):%Y-%m-%d %H:%M:%S} UTC, "
            "with another body; nothing was submitted",
            hint="choose a new key for each new submission",
        )
    return decode(answer, shape, what="answer")


@beside_others
def submit_once(
    tx: Tx, mark: Mark, accepted: Accepted, owner: str | None, *, reach: str | None = None, group: str | None = None
) -> tuple[SubmitResponse, bool]:
    """`submit_jobs` the first time; then its answer, and True. Raises Conflict where the key stands for another body."""
    return once(tx, mark, SubmitResponse, submit_jobs, accepted, owner, reach=reach, group=group)


def once(
    tx: Tx, mark: Mark, shape: type[A], operation: Callable[Concatenate[Tx, P], A], *args: P.args, **kwargs: P.kwargs
) -> tuple[A, bool]:
    """The same of any operation, whose answers have this shape."""
    before = answered(tx, mark, shape)
    if before is not None:
        return before, True
    made = operation(tx, *args, **kwargs)
    kept = tx.run(
        "INSERT INTO idempotency (principal, key, digest, created_at, answer) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (principal, key) DO UPDATE "
        "SET digest = excluded.digest, created_at = excluded.created_at, answer = excluded.answer WHERE idempotency.created_at <= ?",
        (mark.principal, mark.key, mark.digest, tx.at, encode(made).decode(), tx.at - span(mark.honoured)),
    )
    if not kept:
        raise Changed("the same submission was made by way of another coordinator at the same time", hint="try again")
    return made, False
