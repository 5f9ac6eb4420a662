"""What attempts are told in confidence: asked of the coordinator just before the start, kept in the vault, wiped with the end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from ostler.model.attempt import AttemptState
from ostler.model.errors import Rejected, StaleAttempt, Unavailable
from ostler.model.failures import Failure, FailureCode
from ostler.node.attempts import Live
from ostler.node.vault import Vault
from ostler.protocol.messages import Held, SecretValue
from ostler.protocol.ports import Confidence, Ending, Progress
from ostler.runtime.backoff import Backoff

WITHHELD = "its message is withheld: the secrets to mask in it are gone"


class Confidences:
    """Used by the executor for attempts whose manifests name secrets; the values never touch the journal or a workspace."""

    def __init__(self, vault: Vault, *, ask: Callable[[Held], Awaitable[Sequence[SecretValue]]], logger: logging.Logger) -> None:
        """`ask` is a call to the coordinator."""
        self._vault = vault
        self._ask = ask
        self._logger = logger

    async def fetch(self, live: Live) -> Confidence | Failure:
        """The values, delivered; asks for as long as the coordinator does not answer and nobody cancels."""
        backoff = Backoff(min_s=0.2, max_s=10.0)
        while True:
            try:
                values = await self._ask(live.held)
            except Unavailable:
                await asyncio.sleep(backoff.next_s())
            except StaleAttempt as exc:
                return Failure(FailureCode.LOST, f"the coordinator no longer takes this attempt for this node's: {exc.message}")
            except Rejected as exc:
                return Failure(FailureCode.SECRET, exc.message)
            else:
                break
        for name in self._vault.unmasked(values):
            attrs = {"attempt": live.attempt, "secret": name}
            self._logger.warning("secret_too_short_to_mask", extra={"job_id": live.job_id, "attrs": attrs})
        filling = asyncio.ensure_future(asyncio.to_thread(self._vault.fill, _key(live), live.manifest, values))
        try:
            return await asyncio.shield(filling)
        except asyncio.CancelledError:  # the thread goes on: what it makes must be there before it is wiped
            await asyncio.gather(filling, return_exceptions=True)
            raise

    def news(self, live: Live, news: Progress) -> Progress:
        """What an attempt says of itself, masked."""
        return news if news.note is None else replace(news, note=self._vault.text(_key(live), news.note))

    async def end(self, live: Live, ending: Ending) -> Ending:
        """Mask what its ending says, bring its output over, and wipe all that it was told."""
        if ending.failure is not None:
            code, message = ending.failure.code, ending.failure.message
            # Where nothing ran, or nothing of it was seen, the words are the node's own.
            own = live.state is not AttemptState.RUNNING or code is FailureCode.LOST
            masked = self._vault.text(_key(live), message)
            ending = replace(ending, failure=Failure(code, masked if masked is not None else message if own else WITHHELD))
        await asyncio.to_thread(self._close, live)
        return ending

    def _close(self, live: Live) -> None:
        try:
            if live.workspace is not None:
                self._vault.copy(_key(live), live.workspace.logs, whole=True)
        except OSError as exc:
            attrs = {"attempt": live.attempt, "error": str(exc)}
            self._logger.warning("log_not_masked", extra={"job_id": live.job_id, "attrs": attrs})
        self._vault.wipe(_key(live))


def _key(live: Live) -> str:
    return f"{live.job_id}/{live.attempt}"
