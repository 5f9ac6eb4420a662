"""The trail that calls leave in the audit log."""

import logging
from collections.abc import Mapping

from starlette.types import Scope

from ostler.coordinator.api.auth import Caller, CallerKind
from ostler.coordinator.api.refusals import Refusals
from ostler.coordinator.operations import audit
from ostler.coordinator.operations.audit import Entry
from ostler.coordinator.store.store import Store
from ostler.model.errors import Conflict, Forbidden, NoCapacity, OstlerError, Unauthenticated
from ostler.protocol.routes import Route
from ostler.runtime.clock import Clock

AUDITED = frozenset({CallerKind.CLIENT, CallerKind.JOINER})
REFUSED = frozenset(one.status for one in (Unauthenticated, Forbidden, Conflict, NoCapacity))
MAX_TEXT = 300
LEFT_OUT = "refused_calls"


def entry_of(
    route: Route, caller: Caller, scope: Scope, path: Mapping[str, str], request_id: str, *,
    status: int | None = None, target: str | None = None,
) -> Entry:  # fmt: skip
    """What the log says of a call."""
    client = scope.get("client")
    token_id = caller.token_id
    if caller.kind is CallerKind.JOINER and caller.secret is not None:
        parts = caller.secret.split("_")
        token_id = (
            parts[2] if len(parts) == 4 else None
        )  # `ostler_join_ID_SECRET`; of anything else no part is known to be no secret
    principal = f"node {caller.token.node_id}" if caller.token is not None else caller.principal
    return Entry(
        principal=principal,
        token_id=_plain(token_id),
        role=caller.role.value if caller.role is not None else None,
        action=route.name,
        target=_plain(target or "/".join(path.values())),
        status=route.status if status is None else status,
        peer=client[0] if client else "local",
        request_id=request_id,
    )


def _plain(text: str | None) -> str | None:
    return text.encode("utf-8", "replace").decode()[:MAX_TEXT] if text else None


class Trail:
    """Notes refused calls, as many as the log can bear."""

    def __init__(self, store: Store, *, clock: Clock, logger: logging.Logger) -> None:
        self._store = store
        self._clock = clock
        self._logger = logger
        self._refusals = Refusals(clock.monotonic())

    async def refused(self, entry: Entry, caller: Caller, error: OstlerError) -> None:
        """One call that was refused. It is answered whether or not this could be written."""
        if not _matters(caller, error):
            return
        if not self._refusals.take(f"{entry.peer} {entry.principal or '(nobody)'}", self._clock.monotonic()):
            return
        await self.note(entry, _plain(error.message))

    async def tell_left_out(self) -> None:
        """One row of what got none, if there was any."""
        if (told := self._refusals.left_out()) is not None:
            await self.note(Entry(None, None, None, LEFT_OUT, None, 0, None, None), told)

    async def note(self, entry: Entry, detail: str | None) -> None:
        """One row. What it is about goes on whether or not this could be written."""
        try:
            await self._store.write_lazily(audit.append, entry, detail)
        except OstlerError as exc:
            self._logger.warning("audit_failed", extra={"attrs": {"action": entry.action, "error": str(exc)}})


def _matters(caller: Caller, error: OstlerError) -> bool:
    """Challenges, and conflicts of nodes, are steps of the protocol and nobody's attempt at anything."""
    if isinstance(error, Unauthenticated) and error.challenge is not None:
        return False
    return error.status in REFUSED and (error.status != Conflict.status or caller.kind is not CallerKind.NODE)
