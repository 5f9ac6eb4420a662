"""Endpoints that move bytes: uploaded inputs, artifacts and workspaces, all out of the one artifact store."""

from starlette.responses import Response

from ostler.coordinator.api.calls import Call
from ostler.coordinator.api.downloads import serve
from ostler.coordinator.artifacts.store import Stored
from ostler.coordinator.operations import leases, reads
from ostler.coordinator.operations.uploads import check_workspace_wanted, note_upload
from ostler.model.errors import NotFound
from ostler.protocol import messages as m


async def upload_blob(call: Call) -> m.Blob:
    """One input file of jobs to come."""
    stored = await _store(call)
    call.target = stored.sha256
    await call.write(note_upload, stored.sha256, call.caller.principal or "")
    return m.Blob(sha256=stored.sha256, size=stored.size)


async def upload_workspace(call: Call) -> m.Blob:
    """A workspace that was asked for: that is looked up before any bytes are taken."""
    store, node = call.services.store, call.node
    job_id, attempt = call.path["job_id"], int(call.path["attempt"])
    await store.read(check_workspace_wanted, node.node_id, job_id, attempt)
    stored = await _store(call)
    await store.write(leases.set_workspace, node.node_id, job_id, attempt, stored.sha256)
    return m.Blob(sha256=stored.sha256, size=stored.size)


async def _store(call: Call) -> Stored:
    call.body.check_announced()
    staging = await call.services.artifacts.stage()
    try:
        async for chunk in call.while_admitted(call.body.chunks()):
            await staging.write(chunk)
        return await staging.commit()
    finally:
        await staging.discard()


async def get_blob(call: Call) -> Response:
    """An uploaded input. A node reaches those alone that an attempt it holds names, a submitter their own."""
    sha256 = call.path["sha256"]
    if call.is_node and not await call.services.store.read(reads.blob_for_node, call.node.node_id, sha256):
        raise NotFound(f"no attempt that {call.node.node_id} holds has an input {sha256}")
    if call.owner is not None and not await call.read(reads.blob_for_owner, call.owner, sha256):
        raise NotFound(f"there is no blob {sha256}")
    return await serve(call, sha256, sha256, "application/octet-stream")


async def list_artifacts(call: Call) -> m.ArtifactPage:
    """What an attempt delivered."""
    return await call.read_job(reads.list_artifacts, call.query(m.ArtifactQuery).attempt)


async def get_artifact(call: Call) -> Response:
    """One delivered output."""
    attempt = call.query(m.ArtifactQuery).attempt
    entry = await call.read_job(reads.find_artifact, call.path["path"], attempt)
    await call.note_download()
    return await serve(call, entry.sha256, entry.path.rpartition("/")[2], entry.type)


async def get_workspace(call: Call) -> Response:
    """A workspace that a node uploaded."""
    job_id, attempt = call.path["job_id"], call.path["attempt"]
    sha256 = await call.read_job(reads.workspace_of, int(attempt))
    await call.note_download()
    return await serve(call, sha256, f"{job_id}-{attempt}.tar.gz", "application/gzip")
