"""A model walks beside the real store: submit, lease, ack, report, deliver, expire, cancel, hold, drain, depend, reboot, in any order.

The model knows words and the rules of the product's description, and nothing of the product's own tables of states. After each step
every row must be as it says: so what is late, doubled, stale or somebody else's has changed nothing.

`OSTLER_MODEL_EXAMPLES=2000 OSTLER_MODEL_STEPS=200` goes deeper.
"""

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import Awaitable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import postgres
from contract.conftest import ADAPTERS
from ostler.coordinator.operations import duties, jobs, leases, nodes
from ostler.model.attempt import AttemptState
from ostler.model.dependencies import Dependency, Until
from ostler.model.errors import Gone, InvalidTransition, NotFound, OffsetMismatch, StaleAttempt
from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import Artifact
from ostler.protocol import messages as m
from store_rig import Rig, log_end

EXAMPLES = int(os.environ.get("OSTLER_MODEL_EXAMPLES", "0")) or {"sqlite": 30, "postgresql": 6}
STEPS = int(os.environ.get("OSTLER_MODEL_STEPS", "60"))
NODES = ("n1", "n2")
RETRIES = 1
OVER = {"done", "failed", "cancelled", "expired"}
BEGUN = ("acked", "preparing", "running", "uploading")
WHICH = st.integers(0, 6)  # counted from the lease given out last, or from the job submitted last
WRONG = st.sampled_from([False] * 15 + [True])
RESULT = "r.json"

SITUATIONS: dict[str, tuple[int, tuple[Any, ...]]] = {  # name: (how often, what it is given)
    "submit": (3, (st.integers(1, 3),)),
    "submit_after": (2, (WHICH, st.sampled_from(["success", "done"]))),
    "pull": (6, (st.sampled_from(NODES), st.integers(1, 3))),
    "pull_that_begins": (4, (st.sampled_from(NODES), st.integers(1, 3), st.integers(1, 3))),
    "pull_that_forgot_its_offers": (1, (st.sampled_from(NODES), st.sampled_from(["newest", "newest", "late", "unnumbered"]))),
    "heartbeat": (1, (st.sampled_from(NODES), st.booleans())),
    "ack": (9, (WHICH, WRONG)),
    "decline": (1, (WHICH, WRONG)),
    "progress": (4, (WHICH, WRONG, st.sampled_from(BEGUN[1:]))),
    "append": (3, (WHICH, WRONG, st.binary(min_size=1, max_size=5), st.sampled_from([0, 0, 1, 7]))),
    "finish": (
        6,
        (WHICH, WRONG, st.sampled_from(["done", "failed", "denied", "cancelled"]), st.sampled_from([None, b"1", b"2"])),
    ),
    "finish_twice": (1, (WHICH, st.sampled_from(["done", "failed"]))),
    "fail_often": (1, (st.sampled_from(NODES), st.integers(1, RETRIES + 2))),
    "cancel": (2, (WHICH,)),
    "hold_or_release": (1, (WHICH,)),
    "expire": (1, (st.sampled_from(NODES),)),
    "drain_or_resume": (1, (st.sampled_from(NODES),)),
    "reboot": (1, (st.sampled_from(NODES), st.booleans())),
    "ghost": (2, (WHICH, st.sampled_from(["ack", "progress", "finish"]))),
    "let_waits_pass": (3, ()),
    "restart": (1, ()),
}
NAMES = [name for name, (weight, _) in SITUATIONS.items() for _ in range(weight)]
EVENTS = st.sampled_from(NAMES).flatmap(lambda name: st.tuples(st.just(name), *SITUATIONS[name][1]))


@dataclass
class Attempt:
    """`how` is what its node said at its end, None where the coordinator ended it; `pull` which pull acknowledged it, until its node
    names it."""

    node: str
    state: str = "leased"
    pull: int | None = None
    how: str | None = None
    log: bytes = b""
    result: bytes | None = None

    @property
    def live(self) -> bool:
        return self.state in {"leased", *BEGUN}

    @property
    def unheard(self) -> bool:
        return self.state == "acked" and self.pull is not None


@dataclass
class Job:
    """`after` is the job that it waits for, and until when."""

    state: str = "queued"
    tries: int = 0
    cancel: bool = False
    held: bool = False
    after: tuple[str, str] | None = None
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def number(self) -> int:
        return len(self.attempts)

    def live_on(self, node: str, attempt: int) -> Attempt | None:
        """Its attempt of that number, where it lives on that node: whose word about it counts."""
        last = self.attempts[-1] if self.attempts and self.number == attempt else None
        return last if last is not None and last.live and last.node == node else None

    def failed(self) -> None:
        self.state = "cancelled" if self.cancel else "retry_wait" if self.tries <= RETRIES else "failed"

    def lost(self, *, told: bool = True) -> None:
        """Its node does not have it any more; it says so itself, or is silent (not `told`)."""
        last = self.attempts[-1]
        if last.state == "leased" or (told and last.unheard and not self.cancel):
            self.tries -= last.unheard
            last.state, self.state = "returned", "queued"
        else:
            last.state = "cancelled" if self.cancel else "failed"
            self.failed()


class Life(RuleBasedStateMachine):
    """Calls are about any of the leases given out last, live or long over."""

    adapter: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = ExitStack()
        if self.adapter == "sqlite":
            where = Path(tempfile.mkdtemp(prefix="ostler-model-"))
            self.stack.callback(shutil.rmtree, where)
            url = str(where / "ostler.db")
        else:
            server = postgres.shared()
            url = server.url(self.stack.enter_context(server.borrowed()))
        self.rig = Rig.open(url)
        self.stack.callback(self.rig.close)  # the same rig, whatever store it has opened anew by then
        self.jobs: dict[str, Job] = {}
        self.given: list[tuple[str, Any]] = []
        self.epochs = dict.fromkeys(NODES, 1)
        self.pulls = dict.fromkeys(NODES, 1)
        self.draining: set[str] = set()
        random.seed(0)

    def do(self, call: Awaitable[Any]) -> Any:
        async def run() -> Any:
            return await call

        return self.runner.run(run())

    def caller(self, which: int, wrong: bool = False) -> tuple[str, Any, Job]:
        """A lease that was once given out, its job, and who speaks of it: now and then a node that it was not given to."""
        node, lease = self.given[-1 - which % len(self.given)]
        return (NODES[1 - NODES.index(node)] if wrong else node), lease, self.jobs[lease.job_id]

    def some_job(self, which: int) -> str:
        names = list(self.jobs)
        return names[-1 - which % len(names)]

    def held(self, node: str, *, offers: bool = True) -> list[m.Held]:
        return [
            m.Held(job_id, job.number)
            for job_id, job in self.jobs.items()
            if job.live_on(node, job.number) and (offers or not (job.state == "leased" or job.attempts[-1].unheard))
        ]

    def hear(self, node: str) -> None:
        """The node has named all that it holds."""
        for job in self.jobs.values():
            if job.live_on(node, job.number):
                job.attempts[-1].pull = None

    @initialize()
    def join(self) -> None:
        for node in NODES:
            self.do(self.rig.join(node, "boot:1", slots=8))
            self.do(self.rig.pull(node, slots=0))

    # One rule with many choices: Hypothesis leaves whole rules out of most runs, and a lease's life needs several in a row.
    @rule(event=EVENTS)
    def happens(self, event: tuple[Any, ...]) -> None:
        name, *details = event
        of_leases = {"ack", "decline", "progress", "append", "finish", "finish_twice", "ghost"}
        if (name in of_leases and not self.given) or (name in {"submit_after", "cancel", "hold_or_release"} and not self.jobs):
            return
        getattr(self, name)(*details)
        self.follow()

    def follow(self) -> None:
        """Whoever waited for a job that is over goes on, or falls with it."""
        changed = True
        while changed:
            changed = False
            for job in self.jobs.values():
                if job.after is None or job.state in OVER or self.jobs[job.after[0]].state not in OVER:
                    continue
                if self.jobs[job.after[0]].state == "done" or job.after[1] == "done":
                    job.after = None
                else:
                    job.state = "cancelled"
                changed = True

    # --- people ---

    def submit(self, count: int, **how: Any) -> None:
        artifacts = (Artifact(path=RESULT, optional=True),)
        for job_id in self.do(self.rig.submit(count, retries=RETRIES, artifacts=artifacts, **how)):
            self.jobs[job_id] = Job()

    def submit_after(self, which: int, until: str) -> None:
        before = self.some_job(which)
        if self.jobs[before].state not in OVER:
            self.submit(1, depends_on=(Dependency(job=before, until=Until(until)),))
            self.jobs[self.some_job(0)].after = (before, until)

    def cancel(self, which: int) -> None:
        job_id = self.some_job(which)
        job = self.jobs[job_id]
        if job.state in OVER - {"cancelled"}:
            with pytest.raises(InvalidTransition):
                self.do(self.rig.write(jobs.cancel_job, job_id))
            return
        self.do(self.rig.write(jobs.cancel_job, job_id))
        if job.state == "leased":
            job.attempts[-1].state = "cancelled"
        if job.state in {"queued", "retry_wait", "leased"}:
            job.state = "cancelled"
        elif job.state not in OVER:
            job.cancel = True

    def hold_or_release(self, which: int) -> None:
        job_id = self.some_job(which)
        job = self.jobs[job_id]
        act = jobs.release_job if job.held else jobs.hold_job
        if job.state in {"queued", "retry_wait"}:
            self.do(self.rig.write(act, job_id))
            job.held = not job.held
        else:
            with pytest.raises(InvalidTransition):
                self.do(self.rig.write(act, job_id))

    def drain_or_resume(self, node: str) -> None:
        if node in self.draining:
            self.do(self.rig.write(nodes.resume_node, node))
        else:
            self.do(self.rig.write(nodes.drain_node, node, m.DrainRequest()))
        self.draining ^= {node}

    # --- nodes ---

    def pull(self, node: str, slots: int, begins: int = 0) -> None:
        """Names all that it holds, offers included."""
        self.pulls[node] += 1
        some = self.do(self.rig.pull(node, slots=slots, held=self.held(node), begins=begins, number=self.pulls[node]))
        self.hear(node)
        free = [job_id for job_id, job in self.jobs.items() if job.state == "queued" and not job.held and job.after is None]
        assert [one.job_id for one in some] == ([] if node in self.draining else free[:slots])
        for place, one in enumerate(some):
            job = self.jobs[one.job_id]
            job.attempts.append(Attempt(node))
            job.state = "leased"
            assert (one.attempt, one.tries, one.acked) == (job.number, job.tries, place < begins)
            self.given.append((node, one))
            if one.acked:
                job.state = job.attempts[-1].state = "acked"
                job.attempts[-1].pull = self.pulls[node]
                job.tries += 1

    def pull_that_begins(self, node: str, slots: int, begins: int) -> None:
        self.pull(node, slots, begins)

    def pull_that_forgot_its_offers(self, node: str, how: str) -> None:
        """Answers did not reach the node. A call that comes late takes back nothing that a later one has acknowledged."""
        self.pulls[node] += 1
        number = {"newest": self.pulls[node], "late": 1, "unnumbered": 0}[how]
        assert self.do(self.rig.pull(node, slots=0, held=self.held(node, offers=False), number=number)) == []
        for job in self.jobs.values():
            if job.live_on(node, job.number) and (job.state == "leased" or (job.attempts[-1].unheard and how == "newest")):
                job.lost()

    def heartbeat(self, node: str, early: bool) -> None:
        """One that was sent before what is held had come asks for nothing of it; another one names it."""
        said = self.do(self.rig.beat(node, self.held(node, offers=not early)))
        assert m.DirectiveKind.RECONCILE not in {one.kind for one in said}
        if not early:
            self.hear(node)

    def ack(self, which: int, wrong: bool) -> None:
        node, lease, job = self.caller(which, wrong)
        live = job.live_on(node, lease.attempt)
        (result,) = self.do(self.rig.ack(node, [lease]))
        assert (result.ok, result.code) == ((True, None) if live else (False, "stale_attempt"))
        if live:
            live.pull = None
        if live and live.state == "leased":
            job.state = live.state = "acked"
            job.tries += 1

    def decline(self, which: int, wrong: bool) -> None:
        """Handed back: rested here for a moment, so time passes until it may be leased to this node again."""
        node, lease, job = self.caller(which, wrong)
        live = job.live_on(node, lease.attempt)
        (result,) = self.do(self.rig.ack(node, [lease], decline="no room"))
        if live and (live.state == "leased" or live.unheard):
            assert result.ok
            job.lost()
            self.rig.clock.advance(60)
        else:
            assert result.code == ("invalid_transition" if live else "stale_attempt")

    def progress(self, which: int, wrong: bool, state: str) -> None:
        node, lease, job = self.caller(which, wrong)
        result = self.do(self.rig.progress(node, lease, AttemptState(state)))
        live = job.live_on(node, lease.attempt)
        if live is None:
            assert result.code == "stale_attempt"
        elif live.state == "leased":
            assert result.code == "invalid_transition"
        else:
            assert result.ok
            if BEGUN.index(state) > BEGUN.index(live.state):
                job.state = live.state = state

    def append(self, which: int, wrong: bool, data: bytes, slip: int) -> None:
        node, lease, job = self.caller(which, wrong)
        live = job.live_on(node, lease.attempt)
        offset = len(job.attempts[lease.attempt - 1].log) + slip
        if live is None or live.state == "leased":
            with pytest.raises((Gone, NotFound)):
                self.do(self.rig.append(node, lease, offset, data))
        elif slip:
            with pytest.raises(OffsetMismatch) as caught:
                self.do(self.rig.append(node, lease, offset, data))
            assert caught.value.offset == len(live.log)
        else:
            live.log += data
            assert self.do(self.rig.append(node, lease, offset, data)) == len(live.log)

    def outcome(self, lease: Any, job: Job, how: str, result: bytes | None) -> dict[str, Any]:
        code = {"failed": FailureCode.EXIT, "denied": FailureCode.DENY}.get(how)
        log = job.attempts[lease.attempt - 1].log
        said: dict[str, Any] = {
            "failure": None if code is None else Failure(code, how),
            "cancelled": how == "cancelled",
            "logs": (log_end(log, offset=len(log)),),
        }
        if result is not None and how != "cancelled":
            entry = m.ArtifactEntry(path=RESULT, type="application/octet-stream", size=len(result), sha256=log_end(result).sha256)
            said |= {"artifacts": (entry,), "contents": {RESULT: result}}
        return said

    def finish(self, which: int, wrong: bool, how: str, result: bytes | None) -> None:
        node, lease, job = self.caller(which, wrong)
        live = job.live_on(node, lease.attempt)
        answer = self.do(self.rig.finish(node, lease, **self.outcome(lease, job, how, result)))
        if live is None:
            then = job.attempts[lease.attempt - 1]
            same = then.node == node and (then.how == how or (then.state == how == "cancelled"))
            assert (answer.ok, answer.code) == ((True, None) if same else (False, "stale_attempt")), (then, how)
        elif live.state == "leased":
            assert answer.code == "invalid_transition"
        else:
            assert answer.ok, answer
            live.how = how
            live.state = {"done": "done", "cancelled": "cancelled"}.get(how, "failed")
            live.result = None if how == "cancelled" else result
            if how == "done":
                job.state = "done"
            elif how == "denied":
                job.state = "cancelled" if job.cancel else "failed"
            else:
                job.failed()

    def finish_twice(self, which: int, how: str) -> None:
        """Its answer was lost, and what it says the second time is not what it said the first time."""
        self.finish(which, False, how, b"first")
        self.finish(which, False, how, b"second")

    def fail_often(self, node: str, times: int) -> None:
        """What seldom comes about by chance: one job through all its retries."""
        for _ in range(times):
            before = len(self.given)
            self.pull(node, 1)
            if len(self.given) > before:
                self.ack(0, False)
                self.finish(0, False, "failed", None)
                self.follow()
            self.let_waits_pass()

    def ghost(self, which: int, act: str) -> None:
        """A daemon of an earlier session still speaks."""
        node, lease, job = self.caller(which)
        if self.epochs[node] == 1:
            return
        key = {"job_id": lease.job_id, "attempt": lease.attempt}
        operation, item = {
            "ack": (leases.ack_jobs, m.AckItem(**key)),
            "progress": (leases.report_progress, m.ProgressItem(**key, state=AttemptState.RUNNING)),
            "finish": (leases.finish_attempts, m.Outcome(**key, **self.outcome(lease, job, "done", b"ghost"))),
        }[act]
        with pytest.raises(StaleAttempt):
            self.do(self.rig.write(operation, node, [item], boot_epoch=f"boot:{self.epochs[node] - 1}"))

    # --- what happens to them ---

    def expire(self, node: str) -> None:
        self.do(self.rig.write(leases.expire_attempts, node))
        self.all_lost(node, told=False)

    def all_lost(self, node: str, *, told: bool = True) -> None:
        for job in self.jobs.values():
            if job.live_on(node, job.number):
                job.lost(told=told)

    def reboot(self, node: str, forgets: bool) -> None:
        """A new session, which adopts everything or knows nothing."""
        self.epochs[node] += 1
        some = [] if forgets else self.held(node)
        self.do(self.rig.register(node, f"boot:{self.epochs[node]}", slots=8, held=some))
        self.pulls[node] = 1
        if forgets:
            self.all_lost(node)
        self.hear(node)

    def let_waits_pass(self) -> None:
        self.rig.clock.advance(400)
        self.do(self.rig.write(duties.promote_due))
        for job in self.jobs.values():
            if job.state == "retry_wait":
                job.state = "queued"

    def restart(self) -> None:
        self.rig.reopen()

    # --- what must be so ---

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.do(self.rig.rows(sql))

    @invariant()
    def jobs_are_as_the_model_says(self) -> None:
        found = self.rows(
            "SELECT job_id, state, attempt, tries, cancel_at IS NOT NULL, finished_at IS NOT NULL, held, waits FROM jobs ORDER BY seq"
        )
        assert [(*row[:4], bool(row[4]), bool(row[5])) for row in found] == [
            (job_id, job.state, job.number, job.tries, job.cancel, job.state in OVER) for job_id, job in self.jobs.items()
        ]
        assert {row[0]: (bool(row[6]), bool(row[7])) for row in found if row[1] not in OVER} == {
            job_id: (job.held, job.after is not None) for job_id, job in self.jobs.items() if job.state not in OVER
        }

    @invariant()
    def attempts_are_as_the_model_says(self) -> None:
        found = self.rows(
            """SELECT j.job_id, a.attempt, a.node_id, a.state, f.sha256, c.data
               FROM attempts a JOIN jobs j ON j.seq = a.job_seq
               LEFT JOIN artifacts f ON f.job_seq = a.job_seq AND f.attempt = a.attempt LEFT JOIN contents c ON c.sha256 = f.sha256
               ORDER BY j.seq, a.attempt"""
        )
        assert [(*row[:4], row[4], None if row[5] is None else bytes(row[5])) for row in found] == [
            (job_id, number, one.node, one.state, None if one.result is None else log_end(one.result).sha256, one.result)
            for job_id, job in self.jobs.items()
            for number, one in enumerate(job.attempts, 1)
        ]

    @invariant()
    def every_lease_has_its_event(self) -> None:
        found = self.rows(
            "SELECT j.job_id, e.attempt FROM events e JOIN jobs j ON j.seq = e.job_seq WHERE e.kind = 'lease' ORDER BY e.id"
        )
        assert sorted(found) == sorted((lease.job_id, lease.attempt) for _, lease in self.given)

    @invariant()
    def logs_are_whole(self) -> None:
        kept: dict[tuple[str, int], bytes] = {}
        for job_id, attempt, data in self.rows(
            "SELECT j.job_id, c.attempt, c.data FROM log_chunks c JOIN jobs j ON j.seq = c.job_seq ORDER BY c.job_seq, c.attempt, c.start"
        ):
            kept[job_id, attempt] = kept.get((job_id, attempt), b"") + bytes(data)
        logs = {
            (job_id, number): one.log
            for job_id, job in self.jobs.items()
            for number, one in enumerate(job.attempts, 1)
            if one.log
        }
        assert kept == logs

    def teardown(self) -> None:
        self.stack.close()
        self.runner.close()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_store_does_what_the_model_says(adapter: str) -> None:
    machine = type("Machine", (Life,), {"adapter": adapter})
    examples = EXAMPLES if isinstance(EXAMPLES, int) else EXAMPLES[adapter]
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=STEPS, deadline=None))
