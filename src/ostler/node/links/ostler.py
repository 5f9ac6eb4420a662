"""The whole protocol."""

from collections.abc import Sequence
from pathlib import Path

from ostler.node.links.link import Attachment, Pulled
from ostler.node.session import Session
from ostler.protocol import messages as m
from ostler.protocol import routes
from ostler.protocol.client import AsyncClient

LOG_TIMEOUT_S = 60.0
UPLOAD_TIMEOUT_S = 300.0  # between two blocks, and until the coordinator has made the last one durable


class OstlerLink:
    """A Link. Heartbeats go over a client of their own, so that no upload can stand in their way."""

    ships_logs = True
    takes_files_alone = False

    def __init__(self, session: Session, *, client: AsyncClient, heart: AsyncClient) -> None:
        self._session = session
        self._client = client
        self._heart = heart
        self._timeout_s = session.address.timeout_s

    async def pull(self, request: m.PullRequest) -> Pulled:
        """Long poll."""
        answer: m.PullResponse = await self._session.within(
            lambda token: self._client.call(routes.PULL, request, token=token, timeout_s=self._timeout_s)
        )
        return Pulled(signed=answer.jobs, directives=answer.directives)

    async def heartbeat(self, request: m.HeartbeatRequest) -> m.HeartbeatResponse | None:
        """Renew."""
        answer: m.HeartbeatResponse = await self._session.within(
            lambda token: self._heart.call(routes.HEARTBEAT, request, token=token, timeout_s=self._timeout_s)
        )
        return answer

    async def ack(self, items: Sequence[m.AckItem]) -> Sequence[m.ItemResult]:
        """One transaction."""
        return await self._batch(routes.ACK, m.AckBatch(items=tuple(items)))

    async def progress(self, items: Sequence[m.ProgressItem]) -> Sequence[m.ItemResult]:
        """One transaction."""
        return await self._batch(routes.PROGRESS, m.ProgressBatch(items=tuple(items)))

    async def deliver(self, outcomes: Sequence[m.Outcome]) -> Sequence[m.ItemResult]:
        """One transaction."""
        return await self._batch(routes.RESULT, m.OutcomeBatch(items=tuple(outcomes)))

    async def deliver_files(self, outcome: m.Outcome, files: Sequence[Attachment], root: Path | None) -> m.ItemResult:
        """A form of metadata and files, read in blocks."""
        paths = {one.entry.path: one.file for one in files}
        return await self._session.within(
            lambda token: self._client.deliver(outcome, paths, token=token, timeout_s=UPLOAD_TIMEOUT_S)
        )

    async def append_log(self, held: m.Held, stream: str, offset: int, chunk: bytes) -> None:
        """One chunk."""
        await self._session.within(
            lambda token: self._client.append_log(held, stream, offset, chunk, token=token, timeout_s=LOG_TIMEOUT_S)
        )

    async def upload_workspace(self, held: m.Held, archive: Path) -> None:
        """Read in blocks."""
        await self._session.within(
            lambda token: self._client.upload(
                routes.UPLOAD_WORKSPACE,
                archive,
                token=token,
                timeout_s=UPLOAD_TIMEOUT_S,
                job_id=held.job_id,
                attempt=held.attempt,
            )
        )

    async def secrets(self, held: m.Held) -> Sequence[m.SecretValue]:
        """Asked for just before the start."""
        answer: m.SecretValues = await self._session.within(
            lambda token: self._client.call(
                routes.FETCH_SECRETS, token=token, timeout_s=self._timeout_s, job_id=held.job_id, attempt=held.attempt
            )
        )
        return answer.items

    async def _batch(self, route: routes.Route, message: object) -> Sequence[m.ItemResult]:
        answer: m.BatchResponse = await self._session.within(
            lambda token: self._client.call(route, message, token=token, timeout_s=self._timeout_s)
        )
        return answer.items
