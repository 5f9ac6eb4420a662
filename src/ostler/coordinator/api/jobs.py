"""Endpoints for people's jobs: submit, look, wait, act."""

import asyncio

from ostler.coordinator.api.calls import Answer, Call
from ostler.coordinator.api.manifests import read_manifests
from ostler.coordinator.operations import groups, reads
from ostler.coordinator.operations import jobs as ops
from ostler.model.errors import InvalidSpec, Problem
from ostler.model.job import TERMINAL
from ostler.protocol import messages as m

IN_A_THREAD = 64 * 1024  # bytes of manifests from which on reading them would hold up everybody else
MAX_REASON = 1000


async def submit_jobs(call: Call) -> m.SubmitResponse:
    """All of them, or none and every mistake."""
    raw, limit = await call.body.whole(), call.services.config.max_batch
    if len(raw) < IN_A_THREAD and b'"array"' not in raw:
        manifests = read_manifests(raw, call.content_type(), limit)
    else:
        manifests = await asyncio.to_thread(read_manifests, raw, call.content_type(), limit)
    return await call.services.store.write(ops.submit_jobs, manifests)


async def list_jobs(call: Call) -> m.JobPage:
    """Newest first."""
    return await call.services.store.read(reads.list_jobs, call.query(m.JobQuery))


async def show_job(call: Call) -> m.JobView:
    """One job whole."""
    return await call.services.store.read(reads.show_job, call.path["job_id"])


async def await_job(call: Call) -> m.JobView | Answer:
    """Holds the answer back until the job is over or the time is."""
    job_id = call.path["job_id"]
    view = await call.until_over(("job", job_id), reads.job_state, job_id)
    if view.state in TERMINAL:
        return await call.services.store.read(reads.show_job, job_id)
    return Answer(view, 202, {"Retry-After": "1"})


async def explain_job(call: Call) -> m.Explanation:
    """Why it waits."""
    return await call.services.store.read(reads.explain_job, call.path["job_id"])


async def cancel_job(call: Call) -> m.JobView:
    """The end of a job, as soon as it can be."""
    return await call.services.store.write(ops.cancel_job, call.path["job_id"], await _reason(call))


async def _reason(call: Call) -> str | None:
    reason = (await call.json(m.CancelRequest)).reason
    if reason is not None and len(reason) > MAX_REASON:
        raise InvalidSpec("the request is not valid", [Problem("reason", f"is longer than {MAX_REASON} characters")])
    return reason


async def show_group(call: Call) -> m.GroupView:
    """An array by the states of its jobs."""
    group_id = call.path["group_id"]
    return await call.until_over(("group", group_id), groups.show_group, group_id)


async def cancel_group(call: Call) -> m.GroupView:
    """The end of all jobs of an array."""
    return await call.services.store.write(groups.cancel_group, call.path["group_id"], await _reason(call))


async def retry_job(call: Call) -> m.JobView:
    """Once more."""
    return await call.services.store.write(ops.retry_job, call.path["job_id"])


async def hold_job(call: Call) -> m.JobView:
    """Not yet."""
    return await call.services.store.write(ops.hold_job, call.path["job_id"])


async def release_job(call: Call) -> m.JobView:
    """Now."""
    return await call.services.store.write(ops.release_job, call.path["job_id"])


async def debug_job(call: Call) -> m.JobView:
    """Asks for the latest attempt's workspace."""
    return await call.services.store.write(ops.request_debug, call.path["job_id"])
