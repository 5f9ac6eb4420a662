"""The hot endpoints: pull, ack, progress, result and fail. Each takes a batch, or one item in the source's form."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from msgspec.structs import replace
from starlette.types import Receive

from ostler.coordinator.api import section8
from ostler.coordinator.api.bodies import JSON_LIMIT, decode_json, decode_query
from ostler.coordinator.api.calls import Call, Services
from ostler.coordinator.api.deliveries import receive_delivery
from ostler.coordinator.api.pulls import SLACK_S, Pull, PullLine
from ostler.coordinator.keys import Keys
from ostler.coordinator.operations import leases as ops
from ostler.coordinator.operations import nodes
from ostler.coordinator.operations.claims import any_queued
from ostler.coordinator.operations.uploads import work_waits
from ostler.coordinator.store.beside import beside_others
from ostler.coordinator.store.tx import Tx
from ostler.model.errors import Conflict, InvalidSpec, OffsetMismatch, OstlerError, Problem, StaleAttempt, TooLarge
from ostler.protocol import codec, dsse
from ostler.protocol import messages as m
from ostler.protocol.problems import CLASSES
from ostler.protocol.session_key import SessionKey

B = TypeVar("B", m.AckBatch, m.ProgressBatch, m.OutcomeBatch)
S = TypeVar("S", section8.Ack, section8.Progress, section8.Fail, section8.Result)
Claim = tuple[list[ops.Lease], list[m.Directive]]
MAX_NUMBER = 2**53  # of a session's pulls


class _Apply(Protocol):
    """An operation on items of a node's attempts."""

    def __call__(self, tx: Tx, node_id: str, items: Sequence[Any], /, *, boot_epoch: str | None) -> list[m.ItemResult]: ...


# --- pull --------------------------------------------------------------------------------------------------------------------


async def pull_jobs(call: Call) -> m.PullResponse | dict[str, Any]:
    """Leases and new directives as soon as there are some, else nothing when the wait is over."""
    services = call.services
    request = await call.json(m.PullRequest)
    node_id, epoch = call.own_node(request.node_id), call.node.boot_epoch
    if request.boot_epoch not in {None, epoch}:
        raise StaleAttempt(f"the token of {node_id} is for another session than the pull", hint="register the node anew")
    if min(request.slots, request.gpu_slots, request.begins, request.number) < 0 or request.number > MAX_NUMBER:
        raise InvalidSpec("the pull is not valid", [Problem("slots", "slots, `begins` and `number` are 0 or more")])
    if len(request.held) > services.config.max_batch:
        raise InvalidSpec("the pull is not valid", [Problem("held", f"lists at most {services.config.max_batch}")])
    request = replace(request, boot_epoch=epoch)
    async with services.store.wakeups.subscribe(("node", node_id)) as wake:
        with services.pulls.join(node_id, wake, request.slots, request.gpu_slots, patience_s=request.wait_s) as pull:
            leases, news = await _poll(call, request, pull)
            if pull.over:  # what was claimed in its last moment goes back with the newer poll, which does not hold it
                leases, news = [], []
            if leases:
                services.pulls.given(node_id, len(leases))
            if pull.passed_over:  # somebody else looks at it
                services.store.wakeups.publish(("queue",))
    if request.protocol is None:
        return {"job": section8.plain_job(leases[0].job_id, leases[0].spec) if leases else None}
    lease_s = services.config.lease.total_seconds()
    pulled = m.pull_name(epoch, request.number)
    assignments = [_assignment(lease, node_id, lease_s, pulled) for lease in leases]
    session = services.session_keys.find(node_id, request.session_key)
    return m.PullResponse(jobs=_sealed(assignments, services.keys, session, together=request.together), directives=tuple(news))


async def _poll(call: Call, request: m.PullRequest, pull: Pull) -> Claim:
    """Turns of one long poll, until one brings something or there is no time left."""
    services, node_id = call.services, request.node_id
    wakeups, loop = services.store.wakeups, asyncio.get_running_loop()
    until = loop.time() + max(0.0, min(request.wait_s, services.config.longest_poll.total_seconds()))
    watch: asyncio.Task[None] | None = None
    fresh = True
    try:
        while True:
            pull.wake.clear()
            if pull.slots != request.slots:
                request = replace(request, slots=pull.slots)
            leases, directives = await _turn(services, request, pull, fresh=fresh)
            if pull.over:
                return leases, []
            news = services.pulls.news(node_id, directives)
            if leases or news or wakeups.closed or loop.time() >= until:
                return leases, news
            fresh = False
            watch = watch or asyncio.create_task(_watch(call.receive, pull))
            leases = await _wait(services, pull, request, until)
            # Nothing is claimed for a caller that is gone, superseded, or about to be told that time is up.
            if leases or pull.over or wakeups.closed or not pull.wake.is_set():
                return leases, []
    finally:
        if watch is not None:
            watch.cancel()


async def _turn(services: Services, request: m.PullRequest, pull: Pull, *, fresh: bool) -> Claim:
    """One look at what there is."""
    store, pulls, latency = services.store, services.pulls, services.config.latency
    urgent = fresh and pull.rests
    how = _How(fresh, latency, spread=pulls.others_ask(request.node_id), pull=pull, urgent=urgent, late=pull.looks_again(urgent))
    # A lease that a power cut takes away was never run: an ack that names it is refused. One that this very call acknowledges must
    # not be forgotten; but where nothing is known to wait, or is to be had yet, nobody waits for the disk.
    sure = request.begins > 0 and pulls.work_waits and not urgent
    leases, directives = await (store.write if sure else store.write_lazily)(_claim, request, how)
    pull.turned()
    if not leases and request.slots and not how.urgent:
        pulls.work_waits = False
    return leases, directives


def _sealed(
    assignments: Sequence[m.Assignment], keys: Keys, session: SessionKey | None, *, together: bool
) -> tuple[dsse.Envelope, ...]:
    """Signed one by one, or all at once for a node that reads that; with a MAC where both have the session's key."""
    if together and len(assignments) > 1:
        parts = [(codec.encode(assignments), dsse.ASSIGNMENTS_TYPE)]
    else:
        parts = [(codec.encode(one), dsse.ASSIGNMENT_TYPE) for one in assignments]
    if session is not None:
        return tuple([dsse.seal(payload, kind, session.secret, session.keyid) for payload, kind in parts])
    return tuple([dsse.sign(payload, kind, keys.signing, keys.keyid) for payload, kind in parts])


def _assignment(lease: ops.Lease, node_id: str, lease_s: float, pulled: str) -> m.Assignment:
    return m.Assignment(
        job_id=lease.job_id,
        attempt=lease.attempt,
        node_id=node_id,
        lease_s=lease_s,
        spec=lease.spec,
        tries=lease.tries,
        inputs=lease.inputs,
        latency=lease.latency,
        acked=lease.acked,
        pull=pulled if lease.acked else "",
    )


class _How(NamedTuple):
    fresh: bool
    latency: frozenset[str]
    spread: bool
    pull: Pull | None = None
    urgent: bool = False  # work of the latency queues alone
    late: bool = False  # nobody else was told of what is looked at now


def _leases(tx: Tx, request: m.PullRequest, how: _How) -> list[ops.Lease]:
    """A caller of section 8 gets one job, on a GPU where it has one that is free."""
    if how.urgent:
        request = _urgent(request, how.latency)
    if request.protocol is None:
        leases = ops.lease_jobs(tx, replace(request, slots=0, gpu_slots=1), fresh=how.fresh, latency=how.latency)
        return leases or ops.lease_jobs(tx, replace(request, slots=1, gpu_slots=0), fresh=False, latency=how.latency)
    return ops.lease_jobs(tx, request, fresh=how.fresh, latency=how.latency, spread=how.spread)


@beside_others
def _claim(tx: Tx, request: m.PullRequest, how: _How) -> Claim:
    """Leases and directives in one transaction. Nothing for a poll that was replaced while it waited for its turn to write: a newer one
    would only take back what it claims, which on a slow disk never ends."""
    if how.pull is not None and how.pull.over:
        return [], []
    if request.protocol is None:
        return _leases(tx, request, how), []
    asked = _urgent(request, how.latency) if how.urgent else request
    pulled = ops.pull(tx, asked, fresh=how.fresh, latency=how.latency, spread=how.spread)
    if how.late and work_waits(tx):
        tx.wake(("queue",))
    if pulled.live is not None:
        return pulled.leases, nodes.derive(tx, pulled.node, pulled.live, request.held)
    # `held` is how things were when the poll came: later in its life it proves nothing any more.
    return pulled.leases, nodes.directives(tx, request.node_id)


def _urgent(request: m.PullRequest, latency: frozenset[str]) -> m.PullRequest:
    """The same for nothing but jobs of the latency queues."""
    filters = request.filters or {}
    named = filters.get("queues")
    queues = latency & frozenset(map(str, named)) if isinstance(named, list) else latency
    return replace(request, filters={**filters, "queues": sorted(queues)})


async def _wait(services: Services, pull: Pull, request: m.PullRequest, until: float) -> list[ops.Lease]:
    """Until the poll is woken or its time is over. Work that comes meanwhile is claimed in the very transaction that brings it."""
    store, loop = services.store, asyncio.get_running_loop()
    standing = store.stand_for(
        {("queue",): _claim_at_once, ("node", request.node_id): _take_commands_at_once},
        request, services.config.latency, services.pulls, pull,
    )  # fmt: skip
    pull.withdraw = partial(store.withdraw, standing)
    timers = [loop.call_at(until, pull.withdraw)]
    if pull.rests_until:
        timers.append(loop.call_later(max(0.0, pull.rests_until + SLACK_S - time.monotonic()), _rested, pull, timers))
    woken = loop.create_task(_withdraw_when_woken(pull))
    try:
        return await standing.future or []  # itself, with nothing between: whoever waits for work is the first to go on
    finally:
        woken.cancel()
        for timer in timers:
            timer.cancel()
        pull.withdraw()
        pull.withdraw = None


def _rested(pull: Pull, timers: list[asyncio.TimerHandle]) -> None:
    """Its rest is over; or not yet, and the last of the timers is for another look."""
    if (left_s := pull.rested()) > 0:
        timers[-1] = asyncio.get_running_loop().call_later(left_s, _rested, pull, timers)


async def _withdraw_when_woken(pull: Pull) -> None:
    await pull.wake.wait()
    if pull.withdraw is not None:
        pull.withdraw()


@beside_others
def _claim_at_once(tx: Tx, request: m.PullRequest, latency: frozenset[str], line: PullLine, pull: Pull) -> list[ops.Lease] | None:
    if pull.rests and not (latency and any_queued(tx, latency)):
        tx.hush(("queue",))
        return None
    pull.passed_over = False
    asks = request.slots or request.gpu_slots or request.protocol is None or any_queued(tx, latency)
    leases = _leases(tx, request, _How(fresh=False, latency=latency, spread=len(line) > 1)) if asks else []
    if not work_waits(tx):
        tx.hush(("queue",))
    return leases or None


@beside_others
def _take_commands_at_once(
    tx: Tx, request: m.PullRequest, latency: frozenset[str], line: PullLine, pull: Pull
) -> list[ops.Lease] | None:
    """What is told to this node may be a command to one of its services, for which it needs no slot and no rest."""
    return ops.lease_commands(tx, request) or None


async def _watch(receive: Receive, pull: Pull) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    pull.end()


# --- batches -----------------------------------------------------------------------------------------------------------------


async def ack_jobs(call: Call) -> m.BatchResponse | dict[str, Any]:
    """Accept leases, or hand them back."""
    if b"job_id=" in call.scope["query_string"]:
        said = decode_query(call.scope["query_string"], section8.Ack)
        return await _apply_one(call, ops.ack_jobs, said, lambda attempt: m.AckItem(job_id=said.job_id, attempt=attempt))
    batch = _batch(await call.body.whole(JSON_LIMIT), m.AckBatch, section8.Ack)
    if isinstance(batch, section8.Ack):
        one = batch
        return await _apply_one(call, ops.ack_jobs, one, lambda attempt: m.AckItem(job_id=one.job_id, attempt=attempt))
    return await _apply(call, ops.ack_jobs, batch.items)


async def report_progress(call: Call) -> m.BatchResponse | dict[str, Any]:
    """Stages and progress."""
    batch = _batch(await call.body.whole(JSON_LIMIT), m.ProgressBatch, section8.Progress)
    if isinstance(batch, section8.Progress):
        one = batch
        _check_progress([one])
        return await _apply_one(
            call, ops.report_progress, one,
            lambda attempt: m.ProgressItem(job_id=one.job_id, attempt=attempt, pct=one.pct, note=one.note),
        )  # fmt: skip
    _check_progress(batch.items)
    return await _apply(call, ops.report_progress, batch.items)


def _check_progress(items: Sequence[m.ProgressItem | section8.Progress]) -> None:
    for number, item in enumerate(items):
        if item.pct is not None and not 0 <= item.pct <= 100:
            raise InvalidSpec("the report is not valid", [Problem(f"items[{number}].pct", "must be from 0 to 100")])
        if item.note is not None and len(item.note) > 500:
            raise InvalidSpec("the report is not valid", [Problem(f"items[{number}].note", "is longer than 500 characters")])


async def deliver_results(call: Call) -> m.BatchResponse | dict[str, Any]:
    """Outcomes: a JSON batch carries small artifacts alone; a form carries one outcome with any."""
    if call.content_type() == "multipart/form-data":
        delivered = await receive_delivery(call)
        if delivered.source_form or delivered.result.code == StaleAttempt.code:
            return _answer_one(delivered.result)
        return m.BatchResponse(items=(delivered.result,))
    batch = _batch(await call.body.whole(JSON_LIMIT), m.OutcomeBatch, section8.Result)
    if isinstance(batch, section8.Result):
        one, job_id = batch, batch.job_id
        if job_id is None:
            raise InvalidSpec("the result is not valid", [Problem("items", "is missing")])
        return await _apply_one(
            call, _finish, one, lambda attempt: section8.outcome_of_result(one, job_id, attempt, {})
        )  # fmt: skip
    _check_contents(batch.items)
    return await _apply(call, _finish, batch.items)


def _check_contents(outcomes: Sequence[m.Outcome]) -> None:
    """What an outcome carries is all that it names, and as it says; raises InvalidSpec."""
    for number, outcome in enumerate(outcomes):
        if not outcome.contents:
            continue
        entries = {one.path: one for one in outcome.artifacts}
        place = f"items[{number}].contents"
        if entries.keys() != outcome.contents.keys() or len(entries) != len(outcome.artifacts):
            raise InvalidSpec(
                "the outcome is not valid", [Problem(place, "must hold the bytes of each of its artifacts, and no more")]
            )
        if sum(map(len, outcome.contents.values())) > m.INLINE_BYTES:
            raise InvalidSpec("the outcome is not valid", [Problem(place, f"is larger than {m.INLINE_BYTES} bytes: send a form")])
        for path, data in outcome.contents.items():
            if len(data) != entries[path].size or hashlib.sha256(data).hexdigest() != entries[path].sha256:
                raise InvalidSpec(
                    "the outcome is not valid", [Problem(f"{place}.{path}", "has another size or sha256 than announced")]
                )


async def report_failures(call: Call) -> m.BatchResponse | dict[str, Any]:
    """Outcomes of attempts that failed."""
    batch = _batch(await call.body.whole(JSON_LIMIT), m.OutcomeBatch, section8.Fail)
    if isinstance(batch, section8.Fail):
        one = batch
        return await _apply_one(call, _finish, one, lambda attempt: section8.outcome_of_failure(one, attempt))
    for number, outcome in enumerate(batch.items):
        if outcome.failure is None and not outcome.cancelled:
            raise InvalidSpec("this route takes failures", [Problem(f"items[{number}].failure", "is missing")])
    _check_contents(batch.items)
    return await _apply(call, _finish, batch.items)


def _finish(tx: Tx, node_id: str, items: Sequence[m.Outcome], /, *, boot_epoch: str | None) -> list[m.ItemResult]:
    """Artifacts come with bytes, in a form: what only names some would let a node pass another's content for its own."""
    return ops.finish_attempts(tx, node_id, items, boot_epoch=boot_epoch, stored=frozenset())


def _batch(raw: bytes, batch: type[B], one: type[S]) -> B | S:
    """The batch of this release; else the source's single form, where the body looks like one."""
    try:
        return decode_json(raw, batch)
    except InvalidSpec as exc:
        if b'"items"' in raw:
            raise
        try:
            return decode_json(raw, one)
        except InvalidSpec:
            raise exc from None


async def _apply(call: Call, operation: _Apply, items: Sequence[Any]) -> m.BatchResponse:
    if len(items) > call.services.config.max_batch:
        raise TooLarge(f"{len(items)} items are more than the {call.services.config.max_batch} that one call takes")
    node = call.node
    results = await call.services.store.write(operation, node.node_id, items, boot_epoch=node.boot_epoch)
    return m.BatchResponse(items=tuple(results))


async def _apply_one(call: Call, operation: _Apply, said: S, make: Callable[[int], Any]) -> dict[str, Any]:
    """One item of a caller that need not know its attempt's number: it then means its only live lease of that job."""
    node = call.node
    call.own_node(said.node_id)
    job_id = said.job_id or ""

    @beside_others
    def bound(tx: Tx) -> list[m.ItemResult]:
        attempt = said.attempt if said.attempt is not None else ops.bind_live_attempt(tx, node.node_id, job_id)
        return operation(tx, node.node_id, [make(attempt)], boot_epoch=node.boot_epoch)

    return _answer_one((await call.services.store.write(bound))[0])


def _answer_one(result: m.ItemResult) -> dict[str, Any]:
    if result.ok:
        return {"ok": True, "job_id": result.job_id, "attempt": result.attempt}
    raise _error_of(result)


def _error_of(result: m.ItemResult) -> OstlerError:
    message = result.message or f"attempt {result.attempt} of job {result.job_id} was refused"
    kind = CLASSES.get(result.code or "", Conflict)
    if issubclass(kind, OffsetMismatch):
        return kind(message, offset=result.offset or 0)
    return kind(message)
