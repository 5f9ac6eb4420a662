"""The source's section 8 as its mock coordinator (section 16) speaks it: one plain job at a time, no session, no attempts.

`pull` is the only route that this node cannot do without. What else is missing there (404, 405, 422) is logged once and lived
with.
"""

import logging
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ostler.model.attempt import Usage
from ostler.model.errors import InvalidSpec, NotFound, Unavailable
from ostler.model.manifest import JOB_ID
from ostler.node.links.link import Attachment, PlainOffer, Pulled
from ostler.node.session import Session
from ostler.protocol import codec, routes
from ostler.protocol import messages as m
from ostler.protocol.client import AsyncClient
from ostler.protocol.forms import FilePart, Form
from ostler.protocol.routes import Route

UPLOAD_TIMEOUT_S = 300.0


class SourceLink:
    """A Link. Attempts are numbered by `number`: such a coordinator may hand out the same job for ever."""

    ships_logs = False
    takes_files_alone = True

    def __init__(self, session: Session, *, client: AsyncClient, number: Callable[[str], int], logger: logging.Logger) -> None:
        self._session = session
        self._client = client
        self._number = number
        self._logger = logger
        self._missing: set[str] = set()

    async def pull(self, request: m.PullRequest) -> Pulled:
        """At most one job."""
        body = codec.encode({"node_id": request.node_id, "filters": request.filters})
        answer = await self._call(routes.PULL, body)
        job = answer.get("job") if isinstance(answer, dict) else None
        if not isinstance(job, dict):
            return Pulled()
        job_id = job.get("job_id")
        if not isinstance(job_id, str) or not JOB_ID.fullmatch(job_id):
            raise Unavailable(f"the coordinator handed out a job without a usable job_id: {job_id!r:.100}")
        return Pulled(plain=(PlainOffer(job_id, self._number(job_id), codec.encode(job).decode()),))

    async def heartbeat(self, request: m.HeartbeatRequest) -> m.HeartbeatResponse | None:
        """Only what section 8 names."""
        body = {
            "node_id": request.node_id,
            "load": request.load,
            "free_mb": request.free_mb,
            "gpu_free": request.gpu_free,
        }
        await self._optional(routes.HEARTBEAT, partial(self._call, routes.HEARTBEAT, codec.encode(body)))
        return None

    async def ack(self, items: Sequence[m.AckItem]) -> Sequence[m.ItemResult]:
        """Nothing can be handed back there; what is declined is only forgotten here."""
        for item in items:
            if item.decline is None:
                query = {"job_id": item.job_id, "node_id": self._session.identity.node_id}
                await self._call(routes.ACK, query=query)
        return [_ok(item.job_id, item.attempt) for item in items]

    async def progress(self, items: Sequence[m.ProgressItem]) -> Sequence[m.ItemResult]:
        """Percent and note; stages are not known there."""
        for item in items:
            if item.pct is not None or item.note is not None:
                body = codec.encode({"job_id": item.job_id, "pct": item.pct, "note": item.note})
                await self._optional(routes.PROGRESS, partial(self._call, routes.PROGRESS, body))
        return [_ok(item.job_id, item.attempt) for item in items]

    async def deliver(self, outcomes: Sequence[m.Outcome]) -> Sequence[m.ItemResult]:
        """Failures, each by itself."""
        for outcome in outcomes:
            code = outcome.failure.code.value if outcome.failure is not None else "CANCELLED"
            message = outcome.failure.message if outcome.failure is not None else "cancelled"
            body = codec.encode({"job_id": outcome.job_id, "error_code": code, "error_msg": message, "logs_ref": None})
            await self._optional(routes.FAIL, partial(self._call, routes.FAIL, body))
        return [_ok(outcome.job_id, outcome.attempt) for outcome in outcomes]

    async def deliver_files(self, outcome: m.Outcome, files: Sequence[Attachment], root: Path | None) -> m.ItemResult:
        """A form with the fields job_id and metadata, and one file named artifact: the form wants one, so a log stands in."""
        if outcome.failure is not None or outcome.cancelled:
            [result] = await self.deliver([outcome])
            return result
        fields = {"job_id": outcome.job_id.encode(), "metadata": _metadata(outcome, self._session.identity.node_id)}
        with tempfile.TemporaryDirectory() as folder:
            parts = [FilePart("artifact", Path(one.entry.path).name, one.file, one.entry.size) for one in files]
            if not parts:
                parts = [_log_part(root, Path(folder))]
            form = Form.of(fields, parts)
            await self._session.within(
                lambda token: self._client.send_form(routes.RESULT, form, token=token, timeout_s=UPLOAD_TIMEOUT_S, shape=None)
            )
        return _ok(outcome.job_id, outcome.attempt)

    async def append_log(self, held: m.Held, stream: str, offset: int, chunk: bytes) -> None:
        """There is no such route there."""
        raise NotFound("this coordinator takes no logs")

    async def upload_workspace(self, held: m.Held, archive: Path) -> None:
        """There is no such route there."""
        raise NotFound("this coordinator takes no workspaces")

    async def secrets(self, held: m.Held) -> Sequence[m.SecretValue]:
        """There is no such route there."""
        raise NotFound("this coordinator has no secrets")

    async def _call(self, route: Route, body: bytes | None = None, query: dict[str, str] | None = None) -> Any:
        return await self._session.within(
            lambda token: self._client.call(
                route, body, token=token, query=query, timeout_s=self._session.address.timeout_s, shape=Any
            )
        )

    async def _optional(self, route: Route, call: Callable[[], Awaitable[Any]]) -> None:
        if route.name in self._missing:
            return
        try:
            await call()
        except (NotFound, InvalidSpec) as exc:
            self._missing.add(route.name)
            attrs = {"route": route.path, "error": str(exc)}
            self._logger.warning("route_missing", extra={"attrs": attrs})


def _ok(job_id: str, attempt: int) -> m.ItemResult:
    return m.ItemResult(job_id=job_id, attempt=attempt)


def _metadata(outcome: m.Outcome, node_id: str) -> bytes:
    usage: Usage = outcome.usage
    return codec.encode(
        {
            "job_id": outcome.job_id,
            "node_id": node_id,
            "exit_code": outcome.exit_code,
            "wall_s": usage.wall_s,
            "artifacts": outcome.artifacts,
        }
    )


def _log_part(root: Path | None, folder: Path) -> FilePart:
    """Standard output as the one file; an empty file where even that is not there any more."""
    log = root / "logs" / "stdout.log" if root is not None else None
    if log is not None and log.is_file() and not log.is_symlink():
        return FilePart("artifact", "stdout.log", log, log.stat().st_size)
    empty = folder / "stdout.log"
    empty.touch()
    return FilePart("artifact", "stdout.log", empty, 0)
