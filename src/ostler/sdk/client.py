"""`ostler.Client`: the same for programs that wait, with futures that `concurrent.futures.wait` and `as_completed` take."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ostler.model.errors import OstlerError
from ostler.model.job import JobState
from ostler.model.manifest import Manifest, Requirements, RetryPolicy
from ostler.protocol import messages as m
from ostler.protocol import routes
from ostler.sdk.aio import AsyncClient, AsyncJob, batches, good
from ostler.sdk.core import PATIENCE_S, Core
from ostler.sdk.failed import JobFailed
from ostler.sdk.manifests import Fields, InputSource, draft, manifest_of, named
from ostler.sdk.portal import Portal


class Client:
    """Submits jobs to a coordinator and waits for them. May be used by any number of threads.

    Arguments, errors and patience are those of AsyncClient. All its futures together hold one connection.
    """

    def __init__(
        self, url: str | None = None, *, token: str | None = None, ca_file: Path | None = None, patience_s: float = PATIENCE_S
    ) -> None:
        client = AsyncClient(url, token=token, ca_file=ca_file, patience_s=patience_s)  # an address that is none starts no thread
        self._client = client
        self._portal = Portal()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Jobs go on; futures of those that are not over raise Rejected."""
        if not self._portal.closed and not self._portal.forked:
            self._portal.run(self._client.close())
            self._portal.close()

    def submit(
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
    ) -> "JobFuture":
        """Submit one job: a command as a list of words, or a `task` with `params`.

        `inputs` maps names in the job's folder to local files (Path or str) or bytes, which are uploaded. All other arguments are the
        manifest's fields. Raises InvalidSpec with every mistake.
        """
        self._portal.check()
        found = draft(
            command, inputs=inputs, artifacts=artifacts, task=task, params=params, requirements=requirements, timeout_s=timeout_s,
            retries=retries, labels=labels, job_id=job_id, **fields,
        )  # fmt: skip
        manifest = self._portal.run(self._client.uploaded(found)) if found.uploads else found.manifest
        self._client.core.submit_here([manifest], fresh=job_id is None)
        return self._futures([manifest])[0]

    def submit_many(self, manifests: Iterable[Manifest | Fields]) -> list["JobFuture"]:
        """Submit many jobs with few calls. What one call carries (1,000) is accepted as a whole or not at all."""
        self._portal.check()
        found = [named(manifest_of(one)) for one in manifests]
        for some, fresh in batches(found):
            self._client.core.submit_here(some, fresh=fresh)
        return self._futures(one for one, _ in found)

    def job(self, job_id: str) -> "JobFuture":
        """A job that was submitted before, by whomever. Raises NotFound."""
        view: m.JobView = self._portal.run(self._client.core.call(routes.SHOW_JOB, job_id=job_id))
        job = AsyncJob(self._client.core, job_id, view, loop=self._portal.loop)
        future = JobFuture(self._portal, job)
        self._portal.soon(job.follow)
        return future

    def jobs(self, *, limit: int = 100, **filters: Any) -> list[m.JobView]:
        """The newest jobs; filters are those of `GET /jobs`: state, label (`key=value`), queue, node, group."""
        return self._portal.run(self._client.jobs(limit=limit, **filters))

    def _futures(self, manifests: Iterable[Fields]) -> list["JobFuture"]:
        core, loop = self._client.core, self._portal.loop
        jobs = [AsyncJob(core, one["job_id"], loop=loop) for one in manifests]

        def follow() -> None:
            for one in jobs:
                one.follow()

        futures = [JobFuture(self._portal, one) for one in jobs]
        with suppress(RuntimeError):  # the client was closed meanwhile, and its futures do not end any more
            core.soon(follow, loop)
        return futures

    def door(self) -> tuple[Portal, Core]:
        """For an executor on this client; no business of others."""
        return self._portal, self._client.core


class JobFuture(Future[m.JobView]):
    """One job as a `concurrent.futures.Future`. Its result is how the job ended, as a JobView.

    Two things are a job's own: `cancel()` asks for the end of a running one too, and it is `cancelled()` once it has ended so; what
    `exception()` says of a failed one is a JobFailed.
    """

    def __init__(self, portal: Portal, job: AsyncJob) -> None:
        super().__init__()
        self.job_id = job.job_id
        self._portal = portal
        self._job = job
        job.add_done_callback(lambda _: portal.end(self._over))

    def __repr__(self) -> str:
        return f"<JobFuture {self.job_id} {self._job.job.state.value if self._job.job is not None else 'submitted'}>"

    @property
    def job(self) -> m.JobView | None:
        """How it ended, or how it stood when it was last looked at; None before that."""
        return self._job.job

    def refresh(self) -> m.JobView:
        """The job as it stands now, whole: attempts, timeline, artifacts, manifest."""
        return self._portal.run(self._job.refresh())

    def cancel(self, reason: str | None = None) -> bool:
        """Ask for its end. False where it was over already."""
        return not self.done() and self._portal.run(self._job.cancel(reason))

    def logs(self, stream: str = "stdout") -> str:
        """What it wrote so far to `stdout` or `stderr`."""
        return self._portal.run(self._job.logs(stream))

    def artifacts(self) -> tuple[m.ArtifactEntry, ...]:
        """What it delivered."""
        return self._portal.run(self._job.artifacts())

    def download(self, directory: Path | str, *paths: str) -> list[Path]:
        """Fetch its artifacts (all, or those named) into a directory; each bears its name only once it is whole and verified."""
        return self._portal.run(self._job.download(directory, *paths))

    def _over(self) -> None:
        """In the thread where futures end."""
        with suppress(InvalidStateError):
            try:
                view = self._job.ended()
                if view.state is JobState.CANCELLED:
                    super().cancel()
                    self.set_running_or_notify_cancel()
                else:
                    self.set_result(good(view))
            except (JobFailed, OstlerError) as exc:
                self.set_exception(exc)
