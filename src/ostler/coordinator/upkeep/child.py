"""A backup by a process of its own: an order on standard input, the answer on standard output, both JSON."""

import logging
import os
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ostler.coordinator.config import CoordinatorConfig
from ostler.coordinator.upkeep.backing_up import back_up
from ostler.coordinator.upkeep.crypt import read_passphrase
from ostler.coordinator.upkeep.repository import Repository
from ostler.model.errors import OstlerError
from ostler.protocol import codec

NICE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be backed up where. `store` may hold a password: so it comes by standard input, and stands in no argument."""

    data: str
    store: str | None
    artifacts: str
    to: str
    keep: int
    with_keys: bool
    passphrase_file: str | None
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Which backup it was and which older ones were `removed`, or what went wrong."""

    backup_id: str | None = None
    jobs: int = 0
    missing: int = 0
    removed: tuple[str, ...] = ()
    error: str | None = None
    hint: str | None = None


def carry_out(order: Order) -> Answer:
    """Back up, then remove what is too much."""
    file = None if order.passphrase_file is None else Path(order.passphrase_file)

    def passphrase() -> str:
        return "" if file is None else read_passphrase(file)

    config = CoordinatorConfig(data=Path(order.data), store=order.store, artifacts=Path(order.artifacts))
    try:
        repository = Repository.create(order.to, encrypt=file is not None, passphrase=passphrase)
        made = back_up(
            config, repository, with_keys=order.with_keys, now=order.now, logger=logging.getLogger("ostler.upkeep")
        )  # fmt: skip
        pruned = repository.prune(order.keep, order.now)
    except OstlerError as exc:
        return Answer(error=exc.message, hint=exc.hint)
    except OSError as exc:
        return Answer(error=f"{exc.strerror}: {exc.filename}", hint="look at the directory of the backups and its disk")
    return Answer(backup_id=made.backup_id, jobs=made.tables["jobs"].rows, missing=made.missing, removed=pruned.backups)


def main() -> None:
    """See the module's first line."""
    os.nice(NICE)
    sys.stdout.buffer.write(codec.encode(carry_out(codec.decode(sys.stdin.buffer.read(), Order, what="order"))))


if __name__ == "__main__":
    main()
