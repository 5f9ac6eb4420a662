"""One command's session with the coordinator: the typed client, and what commands do with files, pages and logs."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ostler.assembly.endpoint import Endpoint, find_endpoint
from ostler.cli.transfer import blocks, progress
from ostler.model.errors import InvalidSpec, NotFound, Unavailable
from ostler.protocol import routes
from ostler.protocol.client import Client
from ostler.protocol.exchange import understand
from ostler.protocol.messages import ArtifactEntry, ArtifactQuery, Blob, LogQuery
from ostler.protocol.routes import Route
from ostler.protocol.trust import Trust
from ostler.runtime.backoff import Backoff

FOLLOW_PATIENCE_S = 3600.0  # as long as nodes ride out a coordinator that is away
SUBMIT_PATIENCE_S = 5.0  # a call whose answer was lost is made again with the same key, and finds what it did
BUSY_S = 15.0  # a call that was one too many is made again for so long
_FETCH_TRIES = 5


class Session(Client):
    """Calls raise the error tree at once where the coordinator does not answer; who wants patience has it."""

    def __init__(self, endpoint: Endpoint, *, patience_s: float = 0.0) -> None:
        super().__init__(endpoint.url, token=endpoint.token, trust=trust_in(endpoint), patience_s=patience_s, busy_s=BUSY_S)
        self.endpoint = endpoint

    def patient(self) -> "Session":
        """A session of its own, for a thread that follows a log through restarts."""
        return Session(self.endpoint, patience_s=FOLLOW_PATIENCE_S)

    def call_either(self, of_job: Route, of_group: Route, name: str, message: Any = None, **more: Any) -> Any:
        """The answer of the first route where a job has this name, of the second where an array has. NotFound where neither."""
        try:
            return self.call(of_job, message, job_id=name, **more)
        except NotFound as exc:
            try:
                return self.call(of_group, message, group_id=name, **more)
            except NotFound:
                raise exc from None

    def pages(
        self, route: Route, query: Any, limit: int, *, keep: Callable[[Any], bool] = lambda _: True, **path: Any
    ) -> tuple[list[Any], bool]:
        """At most `limit` items of those to `keep`, over as many pages as that takes, and whether there may be more."""
        from msgspec.structs import replace

        found: list[Any] = []
        while True:
            page = self.call(route, query=query, **path)
            found += filter(keep, page.items)
            if len(found) >= limit or page.next_cursor is None:
                return found[:limit], page.next_cursor is not None or len(found) > limit
            query = replace(query, cursor=page.next_cursor)

    def send_file(self, file: Path) -> Blob:
        """Upload an input, in constant memory; raises InvalidSpec where it changed on the way."""
        size = file.stat().st_size
        digest = hashlib.sha256()
        sent = 0

        def content() -> Iterator[bytes]:
            nonlocal sent
            with progress(f"uploading {file.name}", size) as advance:
                for block in blocks(file, advance):
                    digest.update(block)
                    sent += len(block)
                    yield block
                    if sent > size:
                        break

        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        prepared = self._prepare(routes.UPLOAD_BLOB, None, {"headers": headers}, {})
        try:
            status, _, answer = self._exchange(prepared, None, content())
        except OSError as exc:
            raise InvalidSpec(f"{file} cannot be read: {exc.strerror or exc}") from exc
        except Exception as exc:
            if sent > size or (sent != size and file.stat().st_size != size):
                raise _changed(file) from exc
            raise
        blob: Blob = understand(routes.UPLOAD_BLOB, status, answer)
        if blob.sha256 != digest.hexdigest() or blob.size != size:
            raise _changed(file)
        return blob

    def fetch_artifact(self, job_id: str, entry: ArtifactEntry, target: Path, *, attempt: int | None = None) -> None:
        """Download one artifact to `target`, which bears its name only once it is whole and verified."""
        more = {"query": ArtifactQuery(attempt=attempt), "job_id": job_id, "path": entry.path}
        self._fetch(routes.GET_ARTIFACT, target, more, sha256=entry.sha256, size=entry.size)

    def fetch_workspace(self, job_id: str, attempt: int, target: Path, *, sha256: str) -> None:
        """Download a pinned workspace (tar.gz) to `target`."""
        self._fetch(routes.GET_WORKSPACE, target, {"job_id": job_id, "attempt": attempt}, sha256=sha256, size=None)

    def _fetch(self, route: Route, target: Path, more: dict[str, Any], *, sha256: str, size: int | None) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.part")
        try:
            with part.open("xb") as stream, progress(f"downloading {target.name}", size) as advance:
                digest, backoff, done = hashlib.sha256(), Backoff(min_s=0.2, max_s=5.0), 0
                while True:
                    # A broken download goes on where it broke, as long as the bytes are still those that it began with.
                    headers = {"Range": f"bytes={done}-", "If-Range": f'"{sha256}"'} if done else {}
                    try:
                        with self.download(route, headers=headers, **more) as answer:
                            if done and answer.status != 206:
                                stream.seek(0)
                                stream.truncate()
                                digest, done = hashlib.sha256(), 0
                            for block in answer.blocks():
                                stream.write(block)
                                digest.update(block)
                                done += len(block)
                                advance(len(block))
                        break
                    except Unavailable:
                        if backoff.failures >= _FETCH_TRIES:
                            raise
                        _sleep(backoff.next_s())
                if digest.hexdigest() != sha256:
                    raise Unavailable(f"{target.name} arrived with other bytes than were stored", hint="try again")
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def read_log(self, job_id: str, stream: str, *, attempt: int | None = None, offset: int = 0) -> Iterator[bytes]:
        """What a stream holds so far."""
        query = LogQuery(stream=stream, attempt=attempt, offset=offset)
        with self.download(routes.READ_LOG, query=query, job_id=job_id) as answer:
            yield from answer.blocks()


def trust_in(endpoint: Endpoint) -> Trust:
    """Whom to believe at an endpoint, and what to show there."""
    return Trust(ca_file=endpoint.ca_file, client_cert=endpoint.client_cert, client_key=endpoint.client_key)


def _sleep(seconds: float) -> None:
    import time

    time.sleep(seconds)


def _changed(file: Path) -> InvalidSpec:
    hint = "wait until it is complete, or copy it where it cannot change, and try again"
    return InvalidSpec(f"{file} changed while it was sent", hint=hint)


@contextlib.contextmanager
def open_session() -> Iterator[Session]:
    """A session with the coordinator that the environment or the profile names. Raises Rejected where none does."""
    with Session(find_endpoint()) as session:
        yield session
