"""Endpoints about what is kept and what goes."""

from ostler.coordinator.api.calls import Call
from ostler.coordinator.store.tx import Tx
from ostler.model.errors import InvalidSpec, Problem
from ostler.protocol import messages as m
from ostler.runtime.shapes import plain

MAX_PLANNED = 1000


async def show_retention(call: Call) -> m.RetentionView:
    """The policy, what the last pass did, and with `dry_run` what the next one would."""
    services, query = call.services, call.query(m.RetentionQuery)
    if not 0 <= query.limit <= MAX_PLANNED:
        raise InvalidSpec("the query is not valid", [Problem("limit", f"must be from 0 to {MAX_PLANNED}")])
    plan = await services.pruner.plan(query.limit) if query.dry_run else None
    return m.RetentionView(policy=plain(services.config.retention), last=services.pruner.last, plan=plan)


async def apply_retention(call: Call) -> m.RetentionView:
    """A pass now."""
    last = await call.write(_noted, await call.services.pruner.prune())
    return m.RetentionView(policy=plain(call.services.config.retention), last=last)


def _noted(_tx: Tx, done: m.RetentionPass) -> m.RetentionPass:
    """Nothing more to do: the pass was many transactions, and this one is for the audit log."""
    return done
