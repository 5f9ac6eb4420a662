"""Endpoints for people's jobs: submit, look, wait, act."""

import asyncio
import hashlib
from dataclasses import replace

from ostler.coordinator.api.calls import Answer, Call
from ostler.coordinator.api.manifests import Accepted, read_manifests
from ostler.coordinator.operations import groups, reads
from ostler.coordinator.operations import jobs as ops
from ostler.coordinator.operations.idempotency import KEY, Mark, submit_once
from ostler.coordinator.operations.ownership import of_group, of_job
from ostler.coordinator.store.tx import Tx
from ostler.model.access import RUNNERS, Role
from ostler.model.errors import Forbidden, InvalidSpec, Problem
from ostler.model.job import TERMINAL
from ostler.protocol import messages as m

IN_A_THREAD = 64 * 1024  # bytes of manifests from which on reading them would hold up everybody else
MAX_REASON = 1000
MAX_STRANGE = 20


async def submit_jobs(call: Call) -> m.SubmitResponse | Answer:
    """All of them, or none and every mistake; with a key, once."""
    key = _key(call)
    raw, limit, now = await call.body.whole(), call.services.config.max_batch, call.services.clock.now()
    if len(raw) < IN_A_THREAD and b'"array"' not in raw:
        manifests = read_manifests(raw, call.content_type(), now, limit)
    else:
        manifests = await asyncio.to_thread(read_manifests, raw, call.content_type(), now, limit)
    _check_runners(call, manifests)
    if call.owner is not None and (named := {file.sha256 for one, _ in manifests for file in one.input.files}):
        await call.read(_check_files, call.owner, named)
    if key is None:
        return await call.write(ops.submit_jobs, manifests, call.caller.principal)
    mark = Mark(call.caller.principal or "", key, hashlib.sha256(raw).digest())
    made, again = await call.write(submit_once, mark, manifests, call.caller.principal)
    return Answer(made, headers={"Idempotent-Replayed": "true"} if again else {})


def _key(call: Call) -> str | None:
    key = call.header(b"idempotency-key")
    if key is not None and not KEY.fullmatch(key):
        raise InvalidSpec(
            "the header Idempotency-Key is not valid", [Problem("Idempotency-Key", "must be 1 to 255 printable ASCII characters")]
        )
    return key


def _check_runners(call: Call, manifests: Accepted) -> None:
    may = RUNNERS[call.caller.role or Role.VIEWER]
    if denied := sorted({one.runner.value for one, _ in manifests} - {one.value for one in may}):
        raise Forbidden(f"the role {call.caller.role} may not use the runner {', '.join(denied)}", hint="ask an operator")


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
    return await call.read_job(reads.show_job)


async def await_job(call: Call) -> m.JobView | Answer:
    """Holds the answer back until the job is over or the time is."""
    job_id = call.path["job_id"]
    view = await call.until_over(("job", job_id), of_job(call.owner, reads.job_state), job_id)
    if view.state in TERMINAL:
        return await call.read_job(reads.show_job)
    return Answer(view, 202, {"Retry-After": "1"})


async def explain_job(call: Call) -> m.Explanation:
    """Why it waits."""
    return await call.read_job(reads.explain_job)


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
    """The end of all jobs of an array."""
    return await call.write(of_group(call.owner, groups.cancel_group), call.path["group_id"], await _reason(call))


async def retry_job(call: Call) -> m.JobView:
    """Once more."""
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
