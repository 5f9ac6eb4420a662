"""A model of the legal outcomes walks beside the real store: lease, ack, finish, expire, cancel, retry, restart in any order."""

import asyncio
import random
import shutil
import tempfile
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ostler.coordinator.operations import duties, jobs, leases
from ostler.model.attempt import LIVE, AttemptState
from ostler.model.errors import Gone, InvalidTransition, NotFound, OffsetMismatch
from ostler.model.failures import Failure, FailureCode
from ostler.model.job import TERMINAL, JobState
from ostler.protocol import messages as m
from store_rig import Rig, log_end

NODES = ("n1", "n2")
RETRIES = 2
J, A = JobState, AttemptState
WHICH = st.integers(0, 6)  # counted from the lease given out last
WRONG = st.sampled_from([False] * 15 + [True])


SITUATIONS: dict[str, tuple[int, tuple[Any, ...]]] = {  # name: (how often, what it is given)
    "submit": (3, (st.integers(1, 3),)),
    "pull": (5, (st.sampled_from(NODES), st.integers(1, 3))),
    "pull_that_forgot_its_offers": (1, (st.sampled_from(NODES),)),
    "ack": (8, (WHICH, WRONG)),
    "progress": (4, (WHICH, WRONG, st.sampled_from([A.PREPARING, A.RUNNING, A.UPLOADING]))),
    "append": (3, (WHICH, WRONG, st.binary(min_size=1, max_size=5), st.sampled_from([0, 0, 1, 7]))),
    "finish": (5, (WHICH, WRONG, st.sampled_from(["done", "failed", "denied", "cancelled"]), st.booleans())),
    "cancel": (2, (WHICH,)),
    "expire": (1, (st.sampled_from(NODES),)),
    "let_waits_pass": (3, ()),
    "restart": (1, ()),
}
NAMES = [name for name, (weight, _) in SITUATIONS.items() for _ in range(weight)]
EVENTS = st.sampled_from(NAMES).flatmap(lambda name: st.tuples(st.just(name), *SITUATIONS[name][1]))


@dataclass
class Job:
    """What the model knows of a job; `attempts` holds (node, state, begun) from the first on."""

    state: JobState = J.QUEUED
    tries: int = 0
    cancel: bool = False
    attempts: list[list[Any]] = field(default_factory=list)
    log: dict[int, bytes] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return len(self.attempts)

    def live_on(self, node: str, attempt: int) -> bool:
        return self.number == attempt and bool(attempt) and self.attempts[-1][0] == node and self.attempts[-1][1] in LIVE

    def after_failure(self) -> None:
        self.state = J.CANCELLED if self.cancel else J.RETRY_WAIT if self.tries <= RETRIES else J.FAILED


class Leases(RuleBasedStateMachine):
    """Calls are about any of the leases given out last, live or long over."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.where = Path(tempfile.mkdtemp(prefix="ostler-model-"))
        self.rig = Rig.open(self.where / "ostler.db")
        self.jobs: dict[str, Job] = {}
        self.given: list[tuple[str, leases.Lease]] = []
        random.seed(0)

    def do(self, call: Awaitable[Any]) -> Any:
        async def run() -> Any:
            return await call

        return self.runner.run(run())

    def caller(self, which: int, wrong: bool) -> tuple[str, Any]:
        """A lease that was once given out, and who speaks of it: now and then a node that it was not given to."""
        node, lease = self.given[-1 - which % len(self.given)]
        return (NODES[1 - NODES.index(node)] if wrong else node), lease

    @initialize()
    def join(self) -> None:
        for node in NODES:
            self.do(self.rig.join(node, slots=8))

    # One rule with many choices: Hypothesis leaves whole rules out of most runs, and a lease's life needs several in a row.
    @rule(event=EVENTS)
    def happens(self, event: tuple[Any, ...]) -> None:
        name, *details = event
        getattr(self, name)(*details)

    def submit(self, count: int) -> None:
        for job_id in self.do(self.rig.submit(count, retries=RETRIES)):
            self.jobs[job_id] = Job()

    def pull(self, node: str, slots: int) -> None:
        """Names all that it holds, offers included."""
        held = [m.Held(job_id, job.number) for job_id, job in self.jobs.items() if job.attempts and job.live_on(node, job.number)]
        some = self.do(self.rig.pull(node, slots=slots, held=held))
        queued = [job_id for job_id, job in self.jobs.items() if job.state is J.QUEUED]
        assert [one.job_id for one in some] == queued[:slots]
        for one in some:
            job = self.jobs[one.job_id]
            job.attempts.append([node, A.LEASED])
            job.state = J.LEASED
            assert (one.attempt, one.tries) == (job.number, job.tries)
            self.given.append((node, one))

    def pull_that_forgot_its_offers(self, node: str) -> None:
        held = [
            m.Held(job_id, job.number)
            for job_id, job in self.jobs.items()
            if job.attempts and job.live_on(node, job.number) and job.state is not J.LEASED
        ]
        assert self.do(self.rig.pull(node, slots=0, held=held)) == []
        for job in self.jobs.values():
            if job.state is J.LEASED and job.attempts[-1][0] == node:
                job.attempts[-1][1], job.state = A.RETURNED, J.QUEUED

    def ack(self, which: int, wrong: bool) -> None:
        if not self.given:
            return
        node, lease = self.caller(which, wrong)
        job = self.jobs[lease.job_id]
        live = job.live_on(node, lease.attempt)
        (result,) = self.do(self.rig.ack(node, [lease]))
        assert (result.ok, result.code) == (live, None if live else "stale_attempt")
        if live and job.state is J.LEASED:
            job.state, job.attempts[-1][1] = J.ACKED, A.ACKED
            job.tries += 1

    def progress(self, which: int, wrong: bool, state: AttemptState) -> None:
        if not self.given:
            return
        order = [A.ACKED, A.PREPARING, A.RUNNING, A.UPLOADING]
        node, lease = self.caller(which, wrong)
        job = self.jobs[lease.job_id]
        result = self.do(self.rig.progress(node, lease, state))
        if not job.live_on(node, lease.attempt):
            assert result.code == "stale_attempt"
        elif job.state is J.LEASED:
            assert result.code == "invalid_transition"
        else:
            assert result.ok
            if order.index(state) > order.index(job.attempts[-1][1]):
                job.attempts[-1][1], job.state = state, J(state.value)

    def append(self, which: int, wrong: bool, data: bytes, slip: int) -> None:
        if not self.given:
            return
        node, lease = self.caller(which, wrong)
        job = self.jobs[lease.job_id]
        stored = job.log.get(lease.attempt, b"")
        offset = len(stored) + slip
        if not job.live_on(node, lease.attempt) or job.state is J.LEASED:
            with pytest.raises((Gone, NotFound)):
                self.do(self.rig.append(node, lease, offset, data))
        elif slip:
            with pytest.raises(OffsetMismatch) as caught:
                self.do(self.rig.append(node, lease, offset, data))
            assert caught.value.offset == len(stored)
        else:
            job.log[lease.attempt] = stored + data
            assert self.do(self.rig.append(node, lease, offset, data)) == len(stored) + len(data)

    def finish(self, which: int, wrong: bool, how: str, again: bool) -> None:
        if not self.given:
            return
        code = {"failed": FailureCode.EXIT, "denied": FailureCode.DENY}.get(how)
        node, lease = self.caller(which, wrong)
        job = self.jobs[lease.job_id]
        whole = job.log.get(lease.attempt, b"")
        changes = {
            "failure": None if code is None else Failure(code, how),
            "cancelled": how == "cancelled",
            "logs": (log_end(whole, offset=len(whole)),),
        }
        live = job.live_on(node, lease.attempt)
        result = self.do(self.rig.finish(node, lease, **changes))
        if live and job.state is not J.LEASED:
            assert result.ok, result
            end = {"done": A.DONE, "cancelled": A.CANCELLED}.get(how, A.FAILED)
            job.attempts[-1][1] = end
            job.attempts[-1].append(how)
            if how == "done":
                job.state = J.DONE
            elif how == "denied":
                job.state = J.CANCELLED if job.cancel else J.FAILED
            else:
                job.after_failure()
            if again:
                assert self.do(self.rig.finish(node, lease, **changes)).ok
        elif live:
            assert result.code == "invalid_transition"
        else:
            mine = job.attempts[lease.attempt - 1]
            same = mine[0] == node and mine[2:] == [how]
            coordinators = mine[1] is A.CANCELLED and how == "cancelled" and mine[0] == node
            assert result.ok == (same or coordinators), (mine, how, result)

    def expire(self, node: str) -> None:
        self.do(self.rig.write(leases.expire_attempts, node))
        for job in self.jobs.values():
            if not job.attempts or not job.live_on(node, job.number):
                continue
            if job.state is J.LEASED:
                job.attempts[-1][1], job.state = A.RETURNED, J.QUEUED
            else:
                job.attempts[-1][1] = A.CANCELLED if job.cancel else A.FAILED
                job.after_failure()

    def restart(self) -> None:
        self.rig.reopen()

    def cancel(self, which: int) -> None:
        """A job that is leased, or else the first one there is."""
        if not self.jobs:
            return
        job_id = self.caller(which, False)[1].job_id if self.given and which else next(iter(self.jobs))
        job = self.jobs[job_id]
        try:
            self.do(self.rig.write(jobs.cancel_job, job_id))
        except InvalidTransition:
            assert job.state in TERMINAL - {J.CANCELLED}
            return
        if job.state is J.LEASED:
            job.attempts[-1][1] = A.CANCELLED
        if job.state in {J.QUEUED, J.RETRY_WAIT, J.LEASED}:
            job.state = J.CANCELLED
        elif job.state not in TERMINAL:
            job.cancel = True

    def let_waits_pass(self) -> None:
        self.rig.clock.advance(400)
        self.do(self.rig.write(duties.promote_due))
        for job in self.jobs.values():
            if job.state is J.RETRY_WAIT:
                job.state = J.QUEUED

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        found = self.do(
            self.rig.rows(
                "SELECT job_id, state, attempt, tries, cancel_at IS NOT NULL, (finished_at IS NULL) FROM jobs ORDER BY seq"
            )
        )
        expected = [
            (job_id, job.state.value, job.number, job.tries, int(job.cancel), int(job.state not in TERMINAL))
            for job_id, job in self.jobs.items()
        ]
        assert found == expected
        rows = self.do(
            self.rig.rows(
                "SELECT job_id, a.attempt, a.node_id, a.state FROM attempts a JOIN jobs ON seq = job_seq ORDER BY seq, a.attempt"
            )
        )
        assert rows == [
            (job_id, number, one[0], one[1].value)
            for job_id, job in self.jobs.items()
            for number, one in enumerate(job.attempts, 1)
        ]

    @invariant()
    def every_change_has_its_event(self) -> None:
        rows = self.do(self.rig.rows("SELECT job_id, kind FROM events JOIN jobs ON seq = job_seq"))
        leased: dict[str, int] = {}
        for job_id, kind in rows:
            leased[job_id] = leased.get(job_id, 0) + (kind == "lease")
        assert leased == {job_id: job.number for job_id, job in self.jobs.items()}

    def teardown(self) -> None:
        self.rig.close()
        self.runner.close()
        shutil.rmtree(self.where)


Leases.TestCase.settings = settings(max_examples=50, stateful_step_count=60, deadline=None)
TestLeases = Leases.TestCase
