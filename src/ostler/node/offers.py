"""What a poll brought becomes offers: believed or not, decoded or not, each attempt once and the newest of its job."""

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache

from ostler.model.errors import InvalidSpec
from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import InputFile, Manifest, problems, with_inputs
from ostler.node.attempts import AttemptTable, Live
from ostler.node.identity import Identity
from ostler.node.leases import Lease
from ostler.node.links.link import PlainOffer, Pulled
from ostler.node.signatures import Verdict, judge
from ostler.protocol import codec
from ostler.protocol.dsse import Envelope
from ostler.protocol.session_key import SessionKey
from ostler.protocol.spec_text import without_id
from ostler.runtime.clock import Clock

SHORT = 4096  # characters of a spec that is remembered: jobs come in thousands alike, and share one manifest then


class Offers:
    """Takes in leases. One that is not believed, or cannot be read, is offered too: it must be acknowledged to be reported failed."""

    def __init__(
        self,
        *,
        identity: Identity,
        table: AttemptTable,
        discard: Callable[[Live, str], None],
        clock: Clock,
        logger: logging.Logger,
    ) -> None:
        """`discard` ends an older attempt of the same job."""
        self._identity = identity
        self._table = table
        self._discard = discard
        self._clock = clock
        self._logger = logger

    def take(self, pulled: Pulled, sent_at: float, *, newest: str | None, session: SessionKey | None = None) -> bool:
        """Add what was pulled by a call sent at `sent_at` (monotonic seconds), which named this `session`'s key; whether there was
        anything.

        The word of the `newest` call, of this name, counts as the ack of what it named. What an older one brings (None) may have been
        taken back meanwhile, and is acknowledged like any other offer; so is what names another call, as whoever is in between may have
        kept it from an earlier one.
        """
        for envelope in pulled.signed:
            self._signed(envelope, sent_at, newest=newest, session=session)
        for offer in pulled.plain:
            self._plain(offer, sent_at)
        return bool(pulled.signed or pulled.plain)

    def _signed(self, envelope: Envelope, sent_at: float, *, newest: str | None, session: SessionKey | None) -> None:
        key = self._identity.coordinator_key
        if key is None:
            return
        for verdict in judge(envelope, key, self._identity.node_id, session):
            self._judged(verdict, sent_at, newest=newest)

    def _judged(self, verdict: Verdict, sent_at: float, *, newest: str | None) -> None:
        assignment, refusal = verdict.assignment, verdict.failure
        if refusal is not None:
            job_id = assignment.job_id if assignment is not None else None
            self._logger.error("assignment_not_believed", extra={"job_id": job_id, "attrs": {"error": refusal.message}})
        if assignment is None:
            return
        manifest = Manifest(job_id=assignment.job_id)
        if refusal is None:
            manifest, refusal = _read(assignment.job_id, assignment.spec, assignment.inputs)
        self._add(
            Live(
                job_id=assignment.job_id,
                attempt=assignment.attempt,
                manifest=manifest,
                lease=Lease(sent_at, assignment.lease_s),
                offered_at=self._clock.monotonic(),
                spec=assignment.spec,
                inputs=assignment.inputs,
                tries=assignment.tries,
                latency=assignment.latency,
                ordered=assignment.acked and assignment.pull == newest and refusal is None,
                refusal=refusal,
            )
        )
        for older in self._table.of_job(assignment.job_id):
            if older.attempt < assignment.attempt and older.outcome is None:
                self._discard(older, f"attempt {assignment.attempt} of the same job was handed out")

    def _plain(self, offer: PlainOffer, sent_at: float) -> None:
        """Nobody has looked at this manifest before, and nobody may take it back."""
        manifest, refusal = _read(offer.job_id, offer.spec)
        if refusal is None and (found := problems(manifest)):
            refusal = Failure(FailureCode.SPEC, str(InvalidSpec("the manifest is not valid", found)))
        self._add(
            Live(
                job_id=offer.job_id,
                attempt=offer.attempt,
                manifest=manifest,
                lease=Lease(sent_at, float("inf")),
                offered_at=self._clock.monotonic(),
                spec=offer.spec,
                refusal=refusal,
            )
        )

    def _add(self, live: Live) -> None:
        """A poll that was answered twice, or a stale one, brings nothing new."""
        if not any(other.attempt >= live.attempt for other in self._table.of_job(live.job_id)):
            self._table.add(live)


def _decoded(spec: bytes) -> Manifest:
    return codec.decode(spec, Manifest, what="manifest")


_manifest = lru_cache(maxsize=256)(_decoded)


def _read(job_id: str, spec: str, inputs: Sequence[InputFile] = ()) -> tuple[Manifest, Failure | None]:
    try:
        text = spec.encode()
        # Without its id, which nothing here looks for in a manifest: so those that differ in nothing else are one.
        manifest = _manifest(without_id(text)[1]) if len(text) <= SHORT else _decoded(text)
        manifest, lacking = with_inputs(manifest, inputs)
        if lacking:  # whoever handed it out does not know of such inputs: without them it is not what was asked for
            return manifest, Failure(FailureCode.INPUT, f"the coordinator did not hand over {', '.join(lacking[:3])}")
        return manifest, None
    except InvalidSpec as exc:  # of a release with runners or fields' types that this one does not know
        return Manifest(job_id=job_id), Failure(FailureCode.SPEC, str(exc))
