"""Endpoints for people's jobs: submit, look, wait, act."""

import asyncio
import contextlib
import hashlib
import math
from collections.abc import Sequence

from msgspec.structs import replace

from ostler.coordinator.api.calls import MAX_WAIT_S, Answer, Call
from ostler.coordinator.api.keyed import replayed
from ostler.coordinator.api.manifests import Accepted, Submission, read_manifests
from ostler.coordinator.operations import contents, groups, reads
from ostler.coordinator.operations import jobs as ops
from ostler.coordinator.operations.idempotency import Mark, submit_once
from ostler.coordinator.operations.ownership import of_group, of_job
from ostler.coordinator.operations.secrets import check_named, check_named_by
from ostler.coordinator.store.tx import Tx
from ostler.model.access import RUNNERS, Role
from ostler.model.errors import Forbidden, InvalidSpec, NotFound, Problem, TooLarge
from ostler.model.job import TERMINAL
from ostler.model.manifest import JOB_ID, Runner
from ostler.protocol import messages as m

IN_A_THREAD = 64 * 1024  # bytes of manifests from which on reading them would hold up everybody else
MAX_REASON = 1000
MAX_STRANGE = 20
MAX_AWAITED = 10_000
MAX_ENDED = 500  # in one answer
MAX_CONTENT = 64 * 1024
MAX_CONTENTS = 4 * 2**20
LINGER_S = 0.0005  # for each job that is waited for
MAX_LINGER_S = 0.1
PACE_S = 0.005  # who waits for several is not answered more often than this


async def submit_jobs(call: Call) -> m.SubmitResponse | Answer:
    """All of them, or none and every mistake; with a key, once."""
    key, raw, owner = call.idempotency_key(), await call.body.whole(), call.caller.principal
    if key is None:
        read = await _accept(call, raw)
        return await call.write(ops.submit_jobs, read.manifests, owner, reach=call.owner, group=read.group)
    mark = Mark(owner or "", key, hashlib.sha256(raw).digest(), call.services.config.retention.idempotency)

    async def submit() -> tuple[m.SubmitResponse, bool]:
        read = await _accept(call, raw)
        return await call.write(submit_once, mark, read.manifests, owner, reach=call.owner, group=read.group)

    return await replayed(call, mark, m.SubmitResponse, submit)


async def _accept(call: Call, raw: bytes) -> Submission:
    limit, now = call.services.config.max_batch, call.services.clock.now()
    if len(raw) < IN_A_THREAD and b'"array"' not in raw:
        read = read_manifests(raw, call.content_type(), now, limit)
    else:
        read = await asyncio.to_thread(read_manifests, raw, call.content_type(), now, limit)
    manifests = read.manifests
    _check_runners(call, manifests)
    if call.owner is not None and (named := {file.sha256 for one, _ in manifests for file in one.input.files}):
        await call.read(_check_files, call.owner, named)
    if secretive := [one for one, _ in manifests if one.secrets]:
        await call.read(check_named, secretive, call.caller.principal, call.caller.role or Role.VIEWER)
    return read


def _check_runners(call: Call, manifests: Accepted) -> None:
    may = RUNNERS[call.caller.role or Role.VIEWER]
    if denied := sorted({one.runner for one, _ in manifests} - may):
        raise Forbidden(f"the role {call.caller.role} may not use the runner {', '.join(denied)}", hint="ask an operator")
    for service in sorted({one.command or "" for one, _ in manifests if one.runner is Runner.SERVICE}):
        call.services.door.command(service, call.caller.principal)


def _check_files(tx: Tx, owner: str, named: set[str]) -> None:
    """Who knows a hash does not have the bytes yet: an input was uploaded, or made, by whoever names it."""
    if strange := sorted(sha256 for sha256 in named if not reads.blob_for_owner(tx, owner, sha256)):
        raise InvalidSpec(
            "the manifest names input files that were not uploaded",
            [Problem("input.files", f"{sha256} was not uploaded by {owner}") for sha256 in strange[:MAX_STRANGE]],
            hint="upload each file first: `ostler run --in FILE` does",
        )


async def list_jobs(call: Call) -> m.JobPage:
    """Newest first."""
    query = call.query(m.JobQuery)
    return await call.read(reads.list_jobs, query if call.owner is None else replace(query, owner=call.owner))


async def show_job(call: Call) -> m.JobView:
    """One job whole."""
    return await call.read_job(reads.show_job, call.owner)


async def await_job(call: Call) -> m.JobView | Answer:
    """Holds the answer back until the job is over or the time is."""
    job_id = call.path["job_id"]
    view = await call.until_over(("over", job_id), of_job(call.owner, reads.job_state), job_id)
    if view.state in TERMINAL:
        return await call.read_job(reads.show_job, call.owner)
    return Answer(view, 202, {"Retry-After": "1"})


async def await_jobs(call: Call) -> m.AwaitResponse:
    """Answers as soon as one of them is over, and with it those that end a moment later."""
    asked = await call.json(m.AwaitRequest)
    _check_await(asked)
    store, loop = call.services.store, asyncio.get_running_loop()
    ids = list(dict.fromkeys(asked.job_ids))
    began = loop.time()
    until = began + min(asked.wait_s, MAX_WAIT_S)
    async with call.subscribe(*(("over", job_id) for job_id in ids)) as event:
        while True:
            event.clear()
            await call.readmit()
            found, missing = await call.read(reads.ended_jobs, ids, MAX_ENDED, call.owner)
            if found or missing or loop.time() >= until or store.wakeups.closed or call.gone:
                return m.AwaitResponse(items=await _with_contents(call, found, set(asked.contents)), missing=missing)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await event.wait()
                    if len(ids) > 1:  # jobs of one caller end in swarms, and looked at together they cost little
                        await asyncio.sleep(max(min(len(ids) * LINGER_S, MAX_LINGER_S), began + PACE_S - loop.time()))


def _check_await(asked: m.AwaitRequest) -> None:
    if len(asked.job_ids) > MAX_AWAITED:
        raise TooLarge(f"{len(asked.job_ids)} jobs are more than the {MAX_AWAITED} that one call waits for")
    if not (math.isfinite(asked.wait_s) and asked.wait_s >= 0):
        raise InvalidSpec("the request is not valid", [Problem("wait_s", "must be 0 or more")])
    for i, job_id in enumerate(asked.job_ids):
        if not JOB_ID.fullmatch(job_id):
            raise InvalidSpec("the request is not valid", [Problem(f"job_ids[{i}]", "is not the id of a job")])


async def _with_contents(call: Call, found: Sequence[m.JobView], wanted: set[str]) -> tuple[m.Ended, ...]:
    """Each with the bytes of what was asked for, as many as one answer has room for; what is large is fetched as any artifact."""
    room = MAX_CONTENTS
    told: list[tuple[m.JobView, list[m.ArtifactEntry]]] = []
    small: dict[str, m.ArtifactEntry] = {}
    for job in found:
        asked = [one for one in job.artifacts if one.path in wanted and one.size <= MAX_CONTENT]
        room -= sum(one.size for one in asked)
        if room < 0 and told:
            break  # the others are over the next time, too
        told.append((job, asked))
        small |= {one.sha256: one for one in asked}
    known = await call.read(contents.find, small) if small else {}
    for one in small.values():
        if one.sha256 not in known:
            with contextlib.suppress(NotFound):  # no longer stored: the call for it alone says so
                blocks = call.services.artifacts.read(one.sha256, end=one.size)
                known[one.sha256] = b"".join([block async for block in blocks])
    return tuple(
        m.Ended(job=job, contents={one.path: known[one.sha256] for one in asked if one.sha256 in known}) for job, asked in told
    )


async def explain_job(call: Call) -> m.Explanation:
    """Why it waits."""
    return await call.read_job(reads.explain_job, call.services.config.latency)


async def cancel_job(call: Call) -> m.JobView:
    """The end of a job, as soon as it can be."""
    return await call.write_job(ops.cancel_job, await _reason(call))


async def _reason(call: Call) -> str | None:
    reason = (await call.json(m.CancelRequest)).reason
    if reason is not None and len(reason) > MAX_REASON:
        raise InvalidSpec("the request is not valid", [Problem("reason", f"is longer than {MAX_REASON} characters")])
    return reason


async def show_group(call: Call) -> m.GroupView:
    """An array by the states of its jobs."""
    group_id = call.path["group_id"]
    return await call.until_over(("group", group_id), of_group(call.owner, groups.show_group), group_id)


async def cancel_group(call: Call) -> m.GroupView:
    """The end of all jobs of an array, in pieces, so that nobody waits long for this."""
    group_id, reason = call.path["group_id"], await _reason(call)
    after = await call.write(of_group(call.owner, groups.cancel_some), group_id, reason)
    while after is not None:
        after = await call.services.store.write(groups.cancel_some, group_id, reason, after)
    return await call.read(groups.show_group, group_id)


async def retry_job(call: Call) -> m.JobView:
    """Once more, as who calls could submit it now."""
    _check_runners(call, [(await call.read_job(reads.manifest_of), "")])
    await call.read_job(check_named_by, call.caller.role or Role.VIEWER)
    return await call.write_job(ops.retry_job)


async def hold_job(call: Call) -> m.JobView:
    """Not yet."""
    return await call.write_job(ops.hold_job)


async def release_job(call: Call) -> m.JobView:
    """Now."""
    return await call.write_job(ops.release_job)


async def debug_job(call: Call) -> m.JobView:
    """Asks for the latest attempt's workspace."""
    return await call.write_job(ops.request_debug)
