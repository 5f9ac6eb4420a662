"""What the loops ask of a coordinator, whatever it speaks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ostler.protocol import messages as m
from ostler.protocol.dsse import Envelope


@dataclass(frozen=True, slots=True)
class PlainOffer:
    """An unsigned manifest from a coordinator of the source's section 8, its attempt numbered by this node."""

    job_id: str
    attempt: int
    spec: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What a pull brought: signed offers, or a plain one."""

    signed: tuple[Envelope, ...] = ()
    plain: tuple[PlainOffer, ...] = ()
    directives: tuple[m.Directive, ...] = ()


@dataclass(frozen=True, slots=True)
class Attachment:
    """One artifact to deliver: its entry and the file that holds it."""

    entry: m.ArtifactEntry
    file: Path


class Link(Protocol):
    """The calls of the loops. All raise Unavailable (try again) or Rejected (do not)."""

    async def pull(self, request: m.PullRequest) -> Pulled:
        """One long poll."""
        ...

    async def heartbeat(self, request: m.HeartbeatRequest) -> m.HeartbeatResponse | None:
        """Renew the leases held; None where the coordinator has no such thing."""
        ...

    async def ack(self, items: Sequence[m.AckItem]) -> Sequence[m.ItemResult]:
        """Accept or hand back offers."""
        ...

    async def progress(self, items: Sequence[m.ProgressItem]) -> Sequence[m.ItemResult]:
        """Tell stages and progress."""
        ...

    async def deliver(self, outcomes: Sequence[m.Outcome]) -> Sequence[m.ItemResult]:
        """Deliver outcomes without artifacts."""
        ...

    async def deliver_files(self, outcome: m.Outcome, files: Sequence[Attachment], root: Path | None) -> m.ItemResult:
        """Deliver one outcome with its artifacts; `root` is the attempt's workspace where there is one."""
        ...

    async def append_log(self, held: m.Held, stream: str, offset: int, chunk: bytes) -> None:
        """Append log bytes. Raises OffsetMismatch, Gone, NotFound."""
        ...

    async def upload_workspace(self, held: m.Held, archive: Path) -> None:
        """Hand over a workspace as tar.gz."""
        ...

    async def secrets(self, held: m.Held) -> Sequence[m.SecretValue]:
        """The values that an attempt's manifest names. Raises NotFound, Forbidden, StaleAttempt, Unsealable."""
        ...

    @property
    def ships_logs(self) -> bool:
        """Whether log bytes can be appended while an attempt runs."""
        ...

    @property
    def takes_files_alone(self) -> bool:
        """Whether a good outcome must go by `deliver_files`, artifacts or not."""
        ...
