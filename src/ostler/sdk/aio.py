"""`ostler.AsyncClient`: jobs as awaitables, in the caller's own event loop."""

import asyncio
import hashlib
import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ostler.assembly.targets import safe_target
from ostler.model.errors import InvalidSpec, InvalidTransition, OstlerError, Problem, Unavailable
from ostler.model.job import TERMINAL, JobState
from ostler.model.manifest import Manifest, Requirements, RetryPolicy
from ostler.protocol import messages as m
from ostler.protocol import routes
from ostler.runtime.backoff import Backoff
from ostler.sdk.core import PATIENCE_S, Core, endpoint_of
from ostler.sdk.failed import JobFailed
from ostler.sdk.manifests import Draft, Fields, InputSource, draft, manifest_of, named, with_files

MAX_BATCH = 1000
_FETCH_TRIES = 5


class AsyncClient:
    """Submits jobs to a coordinator and waits for them. One instance keeps its connections and waits for all its jobs with one call.

    Without `url` and `token` it goes where the command line goes: OSTLER_URL and OSTLER_TOKEN, else the profile that `ostler up` wrote.
    Errors are those of the tree (`ostler.OstlerError`). A coordinator that never answered raises CoordinatorUnreachable at once; one that
    answered before and is away now is waited for, for up to `patience_s`.
    """

    def __init__(
        self, url: str | None = None, *, token: str | None = None, ca_file: Path | None = None, patience_s: float = PATIENCE_S
    ) -> None:
        self.core = Core(endpoint_of(url, token, ca_file), patience_s=patience_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Jobs go on; futures of those that are not over raise Rejected."""
        await self.core.close()

    async def submit(
        self,
        command: Sequence[str] | None = None,
        *,
        task: str | None = None,
        params: Mapping[str, Any] | None = None,
        inputs: Mapping[str, InputSource] | None = None,
        artifacts: Sequence[str | Fields] = (),
        requirements: Requirements | Fields | None = None,
        timeout_s: float | None = None,
        retries: int | RetryPolicy | Fields | None = None,
        labels: Mapping[str, str] | None = None,
        job_id: str | None = None,
        **fields: Any,
    ) -> "AsyncJob":
        """Submit one job: a command as a list of words, or a `task` with `params`.

        `inputs` maps names in the job's folder to local files (Path or str) or bytes, which are uploaded. All other arguments are the
        manifest's fields. Raises InvalidSpec with every mistake.
        """
        found = draft(
            command, inputs=inputs, artifacts=artifacts, task=task, params=params, requirements=requirements, timeout_s=timeout_s,
            retries=retries, labels=labels, job_id=job_id, **fields,
        )  # fmt: skip
        manifest = await self.uploaded(found)
        await self.core.submit([manifest], fresh=job_id is None)
        return AsyncJob(self.core, manifest["job_id"])

    async def submit_many(self, manifests: Iterable[Manifest | Fields]) -> list["AsyncJob"]:
        """Submit many jobs with few calls. What one call carries (1,000) is accepted as a whole or not at all."""
        found = [named(manifest_of(one)) for one in manifests]
        for some, fresh in batches(found):
            await self.core.submit(some, fresh=fresh)
        return [AsyncJob(self.core, one["job_id"]) for one, _ in found]

    async def job(self, job_id: str) -> "AsyncJob":
        """A job that was submitted before, by whomever. Raises NotFound."""
        view: m.JobView = await self.core.call(routes.SHOW_JOB, job_id=job_id)
        return AsyncJob(self.core, job_id, view)

    async def jobs(self, *, limit: int = 100, **filters: Any) -> list[m.JobView]:
        """The newest jobs; filters are those of `GET /jobs`: state, label (`key=value`), queue, node, group."""
        found: list[m.JobView] = []
        cursor: str | None = None
        while len(found) < limit:
            query = m.JobQuery(**filters, cursor=cursor, limit=min(500, limit - len(found)))
            page: m.JobPage = await self.core.call(routes.LIST_JOBS, query=query)
            found += page.items
            cursor = page.next_cursor
            if cursor is None:
                break
        return found

    async def uploaded(self, found: Draft) -> dict[str, Any]:
        """The manifest of a draft, once its inputs are there."""
        files = [{"name": name, **await self._upload(source)} for name, source in found.uploads.items()]
        return with_files(found.manifest, files)

    async def _upload(self, source: InputSource) -> dict[str, Any]:
        if isinstance(source, bytes):
            blob: m.Blob = await self.core.call(routes.UPLOAD_BLOB, source)
            return {"sha256": blob.sha256, "size": blob.size}
        if not isinstance(source, str | os.PathLike):
            raise InvalidSpec("an input cannot be sent", [Problem("inputs", f"{source!r:.40} is neither a file nor bytes")])
        file = Path(source)
        try:
            facts = await asyncio.to_thread(file.stat)
            if not stat.S_ISREG(facts.st_mode):
                raise InvalidSpec("an input cannot be sent", [Problem("inputs", f"{file} is not a regular file")])
            before = facts.st_size
            blob = await self.core.wire.upload(routes.UPLOAD_BLOB, file)
        except OSError as exc:
            raise InvalidSpec("an input cannot be sent", [Problem("inputs", f"{file}: {exc.strerror or exc}")]) from exc
        if blob.size != before:
            raise InvalidSpec("an input cannot be sent", [Problem("inputs", f"{file} changed while it was sent")])
        return {"sha256": blob.sha256, "size": blob.size}


def batches(found: Sequence[tuple[dict[str, Any], bool]]) -> Iterator[tuple[list[dict[str, Any]], bool]]:
    """As many as one call carries, and the next; and whether all of their ids were chosen here."""
    for start in range(0, len(found), MAX_BATCH):
        some = found[start : start + MAX_BATCH]
        yield [manifest for manifest, _ in some], all(ours for _, ours in some)


class AsyncJob:
    """One job as a future: `await job`, `await job.result(timeout=60)`, `job.done()`.

    `job` is what is known of it: as it was submitted or last looked up, and how it ended once it did.
    """

    def __init__(
        self, core: Core, job_id: str, view: m.JobView | None = None, *, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        """Made outside of its `loop`, it is followed once `follow` is called there."""
        self.job_id = job_id
        self._core = core
        self._view = view
        self._ended: asyncio.Future[m.JobView] = (loop or asyncio.get_running_loop()).create_future()
        self._callbacks: list[Callable[[AsyncJob], object]] = []
        if loop is None:
            self.follow()

    def __repr__(self) -> str:
        return f"<AsyncJob {self.job_id} {self._view.state.value if self._view is not None else 'submitted'}>"

    def follow(self) -> None:
        """Wait for its end, or see that it is over."""
        if self._view is not None and self._view.state in TERMINAL:
            self._told(m.Ended(job=self._view))
        else:
            self._core.watch(self.job_id, self._told)

    def __await__(self) -> Generator[Any, None, m.JobView]:
        return self.result().__await__()

    @property
    def job(self) -> m.JobView | None:
        """How it ended, or how it stood when it was last looked at; None before that."""
        return self._view

    async def refresh(self) -> m.JobView:
        """The job as it stands now, whole: attempts, timeline, artifacts, manifest."""
        self._view = await self._core.call(routes.SHOW_JOB, job_id=self.job_id)
        return self._view

    def ended(self) -> m.JobView:
        """How it ended, of one that is over; raises the error for which it could not be waited for."""
        return self._ended.result()

    def done(self) -> bool:
        """Whether it is over."""
        return self._ended.done()

    def cancelled(self) -> bool:
        """Whether it ended by being cancelled."""
        return self._ended.done() and self._view is not None and self._view.state is JobState.CANCELLED

    async def wait(self, timeout: float | None = None) -> m.JobView:  # noqa: ASYNC109 - as futures have it
        """How it ended, well or not. Raises TimeoutError, and the error tree where it cannot be waited for."""
        async with asyncio.timeout(timeout):
            return await asyncio.shield(self._ended)

    async def result(self, timeout: float | None = None) -> m.JobView:  # noqa: ASYNC109
        """How it ended, where that is well. Raises JobFailed, concurrent.futures.CancelledError, TimeoutError."""
        return good(await self.wait(timeout))

    async def exception(self, timeout: float | None = None) -> BaseException | None:  # noqa: ASYNC109
        """What `result` would raise, or None. Raises TimeoutError and CancelledError as futures do."""
        try:
            await self.result(timeout)
        except (JobFailed, OstlerError) as exc:
            return exc
        return None

    def add_done_callback(self, callback: Callable[["AsyncJob"], object]) -> None:
        """Have `callback(job)` called in the event loop when it is over; at once where it is."""
        if self._ended.done():
            asyncio.get_running_loop().call_soon(callback, self)
        else:
            self._callbacks.append(callback)

    async def cancel(self, reason: str | None = None) -> bool:
        """Ask for its end. False where it was over already."""
        try:
            await self._core.call(routes.CANCEL_JOB, m.CancelRequest(reason=reason), job_id=self.job_id)
        except InvalidTransition:
            return False
        return True

    async def logs(self, stream: str = "stdout") -> str:
        """What it wrote so far to `stdout` or `stderr`."""
        content = await self._core.read(routes.READ_LOG, query=m.LogQuery(stream=stream), job_id=self.job_id)
        return content.decode(errors="replace")

    async def artifacts(self) -> tuple[m.ArtifactEntry, ...]:
        """What it delivered."""
        page: m.ArtifactPage = await self._core.call(routes.LIST_ARTIFACTS, job_id=self.job_id)
        return page.items

    async def download(self, directory: Path | str, *paths: str) -> list[Path]:
        """Fetch its artifacts (all, or those named) into a directory; each bears its name only once it is whole and verified."""
        there = await self.artifacts()
        if unknown := sorted(set(paths) - {one.path for one in there}):
            raise InvalidSpec("there is no such artifact", [Problem("paths", f"{unknown[0]!r} is none of {self.job_id}'s")])
        wanted = [one for one in there if not paths or one.path in paths]
        targets = [safe_target(Path(directory), one.path) for one in wanted]
        for entry, target in zip(wanted, targets, strict=True):
            await self._fetch(entry, target)
        return targets

    async def _fetch(self, entry: m.ArtifactEntry, target: Path) -> None:
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        part = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.part")
        backoff = Backoff(min_s=0.2, max_s=5.0)
        try:
            while True:
                try:
                    await self._fetch_once(entry, part)
                    break
                except Unavailable:
                    if backoff.failures >= _FETCH_TRIES:
                        raise
                await asyncio.sleep(backoff.next_s())
            await asyncio.to_thread(part.replace, target)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    async def _fetch_once(self, entry: m.ArtifactEntry, part: Path) -> None:
        digest = hashlib.sha256()
        with part.open("wb") as stream:
            async for block in self._blocks(entry):
                digest.update(block)
                await asyncio.to_thread(stream.write, block)
            await asyncio.to_thread(stream.flush)
            await asyncio.to_thread(os.fsync, stream.fileno())
        if digest.hexdigest() != entry.sha256:
            raise Unavailable(f"{entry.path} arrived with other bytes than were stored", hint="try again")

    async def _blocks(self, entry: m.ArtifactEntry) -> AsyncIterator[bytes]:
        async with self._core.wire.download(routes.GET_ARTIFACT, job_id=self.job_id, path=entry.path) as answer:
            async for block in answer.blocks():
                yield block

    def _told(self, news: m.Ended | OstlerError) -> None:
        if self._ended.done():
            return
        if isinstance(news, m.Ended):
            self._view = news.job
            self._ended.set_result(news.job)
        else:
            self._ended.set_exception(news)
            self._ended.exception()  # somebody who asks is told; nobody need ask
        for callback in self._callbacks:
            asyncio.get_running_loop().call_soon(callback, self)
        self._callbacks.clear()


def good(view: m.JobView) -> m.JobView:
    """The job where it is done. Raises JobFailed and concurrent.futures.CancelledError."""
    if view.state is JobState.CANCELLED:
        raise CancelledError(f"job {view.job_id} was cancelled")
    if view.state is not JobState.DONE:
        raise JobFailed(view)
    return view
