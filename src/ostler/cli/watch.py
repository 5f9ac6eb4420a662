"""Waiting for jobs: until they are over, through restarts of the coordinator, with one word on why one still waits."""

import time
from collections.abc import Callable

from ostler.cli import exits, output
from ostler.cli.session import FOLLOW_PATIENCE_S, Session
from ostler.model.errors import OstlerError, Rejected, Unavailable
from ostler.model.failures import CODES, FailureCode
from ostler.model.group import GroupState
from ostler.model.job import JobState
from ostler.protocol import routes
from ostler.protocol.messages import Explanation, GroupView, JobView, WaitQuery
from ostler.runtime.backoff import Backoff

EXPLAIN_AFTER_S = 3.0
_POLL_S = 30.0
_TOLD_AFTER = 4  # a restart takes two or three tries; only what lasts longer is worth a word
_WAITING = frozenset({JobState.QUEUED, JobState.RETRY_WAIT})


class Watch:
    """One job, array or group that is waited for. Its call may be interrupted by an exception out of a signal handler, and made again."""

    def __init__(
        self,
        session: Session,
        job_id: str,
        *,
        explain: bool = True,
        patience_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.session, self.job_id = session, job_id
        self.patience_s = patience_s
        self._clock = clock
        self._began = clock()
        self._explained = not explain

    def until_over(self, *, deadline: float | None = None) -> JobView | GroupView | None:
        """The job once it is over; None where the deadline (of the clock) passed first.

        Raises Rejected, and Unavailable where the coordinator is away for longer than the patience: an hour, once it answered.
        """
        backoff, heard_at = Backoff(min_s=0.2, max_s=5.0), self._clock()
        asked = False  # with no time at all it is looked at all the same
        while True:
            rest = _POLL_S if deadline is None else min(_POLL_S, deadline - self._clock())
            if rest < 0 and asked:
                return None
            rest, asked = max(0.0, rest), True
            if not self._explained:
                rest = min(rest, max(0.0, self._began + EXPLAIN_AFTER_S - self._clock()))
            try:
                view = self._ask(WaitQuery(wait_s=rest))
            except Unavailable as exc:
                if self._clock() - heard_at >= self.patience_s:
                    raise
                if backoff.failures == _TOLD_AFTER:
                    output.note(f"{exc.message}; {self.job_id} goes on without it, and is waited for")
                time.sleep(backoff.next_s())
                continue
            backoff.reset()
            heard_at, self.patience_s = self._clock(), FOLLOW_PATIENCE_S
            if view.finished_at is not None:
                return view
            if not self._explained and self._clock() - self._began >= EXPLAIN_AFTER_S:
                self._explained = True
                self._explain(view)

    def _ask(self, query: WaitQuery) -> JobView | GroupView:
        view: JobView | GroupView = self.session.call_either(routes.AWAIT_JOB, routes.SHOW_GROUP, self.job_id, query=query)
        return view

    def _explain(self, view: JobView | GroupView) -> None:
        if isinstance(view, GroupView) or view.state not in _WAITING:
            return
        try:
            why: Explanation = self.session.call(routes.EXPLAIN_JOB, job_id=self.job_id)
        except OstlerError:
            return
        output.note(f"{self.job_id} is {view.state}: {why.summary}")


def exit_code(view: JobView | GroupView) -> int:
    """The exit code that stands for this job, or for this array: that of its first job that failed."""
    if isinstance(view, GroupView):
        first = next(iter(view.failures), None)
        return exit_code(first) if first else exits.GOOD if view.state is GroupState.DONE else exits.NO_CODE
    return exits.job_code(view.state, view.exit_code, view.signal)


def tell_end(view: JobView | GroupView) -> None:
    """Say on standard error why a job did not end well, and what to do; of an array, for the first few that failed."""
    if isinstance(view, GroupView):
        if view.state is not GroupState.DONE:
            output.note(f"{'array' if view.array else 'group'} {view.group_id} is {view.state}: {output.tally(view.counts)}")
        for one in view.failures:
            tell_end(one)
        return
    if view.state is JobState.DONE:
        return
    if view.failure is None:
        why = view.timeline[-1].message if view.timeline else None  # a person's reason, or another job's end
        output.note(f"{view.job_id} is {view.state}{f': {why}' if why else ''}")
        return
    output.note(f"{view.job_id} {view.state}: {view.failure.code.value}: {view.failure.message}")
    output.note(f"hint: {advice(view.failure.code, view.job_id)}")


def advice(code: FailureCode, job_id: str) -> str:
    """What a person does about a failure, with the job's own id in the commands."""
    return CODES[code].advice.replace(" JOB`", f" {job_id}`")


def cancel(session: Session, job_id: str, reason: str) -> None:
    """Ask for a job's end; that it is over already is as good. A coordinator that restarts just now is asked again."""
    from ostler.protocol.messages import CancelRequest

    backoff = Backoff(min_s=0.2, max_s=2.0)
    while True:
        try:
            session.call(routes.CANCEL_JOB, CancelRequest(reason=reason), job_id=job_id)
        except Rejected:
            return
        except Unavailable:
            if backoff.failures >= 5:
                raise
            time.sleep(backoff.next_s())
        else:
            return
