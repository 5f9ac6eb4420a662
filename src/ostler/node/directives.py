"""What the coordinator tells this node to do, done. Directives come again until their cause is gone, so each is idempotent."""

import logging
from collections.abc import Callable, Sequence

from ostler.model.attempt import AttemptState
from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Manifest
from ostler.node.attempts import AttemptTable, Live
from ostler.node.executor import Executor
from ostler.node.leases import Lease
from ostler.node.readiness import Readiness, Reason
from ostler.node.session import Session
from ostler.protocol.messages import Directive, DirectiveKind, WantedUpdate
from ostler.runtime.clock import Clock


class Directives:
    """Applies them at once; nothing here waits."""

    def __init__(
        self,
        session: Session,
        *,
        table: AttemptTable,
        executor: Executor,
        readiness: Readiness,
        drain: Callable[[Reason, str, float | None], None],
        debug: Callable[[str, int], None],
        update: Callable[[WantedUpdate | None], None],
        clock: Clock,
        logger: logging.Logger,
    ) -> None:
        """`drain` begins a drain, with the seconds after which what still runs is ended; `debug` uploads a workspace,
        `update` sees to a release."""
        self._session = session
        self._table = table
        self._executor = executor
        self._readiness = readiness
        self._drain = drain
        self._debug = debug
        self._update = update
        self._clock = clock
        self._logger = logger

    def apply(self, directives: Sequence[Directive]) -> None:
        """One after the other."""
        for one in directives:
            self._apply(one)

    def _apply(self, one: Directive) -> None:
        match one.kind:
            case DirectiveKind.CANCEL | DirectiveKind.RECONCILE | DirectiveKind.FORGET | DirectiveKind.DEBUG:
                if one.job_id is not None and one.attempt is not None:
                    self._about_attempt(one, one.job_id, one.attempt)
            case DirectiveKind.DRAIN:
                self._drain(Reason.COORDINATOR, f"drained by the coordinator: {one.reason or 'no reason given'}", one.timeout_s)
            case DirectiveKind.RESUME:
                self._readiness.release(Reason.COORDINATOR)
            case DirectiveKind.REFRESH_TOKEN:
                if one.token is not None:
                    self._session.refresh(one.token)
            case DirectiveKind.REGISTER:
                self._session.close()
            case DirectiveKind.UPDATE:
                self._update(one.update)

    def _about_attempt(self, one: Directive, job_id: str, attempt: int) -> None:
        if one.kind is DirectiveKind.DEBUG:
            self._debug(job_id, attempt)
            return
        live = self._table.get(job_id, attempt)
        if one.kind is DirectiveKind.RECONCILE:
            if live is None:
                self._disown(job_id, attempt)
            return
        if live is None:
            return
        if one.kind is DirectiveKind.FORGET:
            self._logger.info("forgotten", extra={"job_id": job_id, "attrs": {"attempt": attempt, "reason": one.reason}})
            self._executor.forget(live)
        elif live.outcome is None and live.cancelled is None:
            self._logger.info("cancelled", extra={"job_id": job_id, "attrs": {"attempt": attempt, "reason": one.reason}})
            self._executor.cancel(live, one.reason or "cancelled")

    def _disown(self, job_id: str, attempt: int) -> None:
        """The coordinator believes that it is here, and it is not."""
        now = self._clock.monotonic()
        live = Live(job_id, attempt, Manifest(job_id=job_id), Lease(now, self._session.terms.lease_s), now)
        live.state = AttemptState.ACKED
        self._logger.warning("attempt_unknown", extra={"job_id": job_id, "attrs": {"attempt": attempt}})
        self._table.add(live)
        self._executor.refuse(live, Failure(FailureCode.LOST, "the node knows nothing of this attempt (any more)"))
