"""What a node may deliver: asked before any of its bytes are taken."""

from collections.abc import Sequence
from dataclasses import dataclass

from ostler.coordinator.operations.removals import unnamed
from ostler.coordinator.store.beside import beside_others
from ostler.coordinator.store.schema import QUEUED_SQL
from ostler.coordinator.store.tx import Tx
from ostler.model.attempt import TERMINAL, AttemptState
from ostler.model.errors import InvalidSpec, NotFound, Problem, StaleAttempt
from ostler.model.manifest import Artifact, Manifest
from ostler.protocol import codec

MAX_STRANGE = 20


@dataclass(frozen=True, slots=True)
class Expected:
    """The artifacts that a job's manifest declares, by path; `over` when the attempt has ended: nothing more is stored for it."""

    artifacts: dict[str, Artifact]
    over: bool


def expected_artifacts(tx: Tx, node_id: str, job_id: str, attempt: int) -> Expected:
    """What this node may deliver for an attempt of its own; raises StaleAttempt where it is none. For `Store.read`."""
    row = tx.row(
        "SELECT a.state, s.body FROM jobs j JOIN attempts a ON a.job_seq = j.seq JOIN specs s ON s.job_seq = j.seq"
        " WHERE j.job_id = ? AND a.attempt = ? AND a.node_id = ?",
        (job_id, attempt, node_id),
    )
    if row is None:
        raise StaleAttempt(f"attempt {attempt} of job {job_id} is not held by {node_id}; nothing was stored")
    state, body = row
    declared = codec.decode(body, Manifest, what="manifest").artifacts
    return Expected({one.path: one for one in declared}, AttemptState(state) in TERMINAL)


@dataclass(frozen=True, slots=True)
class _Declared:
    """Of a manifest what it says of its artifacts: all of one takes ten times as long to read."""

    artifacts: tuple[Artifact, ...] = ()


def declared_artifacts(tx: Tx, seqs: Sequence[int]) -> dict[int, dict[str, Artifact]]:
    """What the manifests of these jobs declare, by path."""
    if not seqs:
        return {}
    rows = tx.rows(f"SELECT job_seq, body FROM specs WHERE {tx.any_of('job_seq')}", (tx.array(seqs),))  # noqa: S608 - a fragment of ours
    return {seq: {one.path: one for one in codec.decode(body, _Declared, what="manifest").artifacts} for seq, body in rows}


def check_workspace_wanted(tx: Tx, node_id: str, job_id: str, attempt: int) -> None:
    """Raises NotFound unless this node was asked for the workspace of an attempt of its own. For `Store.read`."""
    row = tx.row(
        "SELECT a.debug_at FROM jobs j JOIN attempts a ON a.job_seq = j.seq"
        " WHERE j.job_id = ? AND a.attempt = ? AND a.node_id = ?",
        (job_id, attempt, node_id),
    )
    if row is None or row[0] is None:
        raise NotFound(
            f"the workspace of attempt {attempt} of job {job_id} was not asked for of {node_id}",
            hint=f"`ostler job debug {job_id}`",
        )


@beside_others
def note_upload(tx: Tx, sha256: str, owner: str) -> None:
    """Who has these bytes: they may name them as an input, and the bytes are kept as long as somebody may yet do so."""
    tx.run(
        "INSERT INTO uploads (sha256, owner, uploaded_at) VALUES (?, ?, ?) "
        "ON CONFLICT (sha256, owner) DO UPDATE SET uploaded_at = excluded.uploaded_at",
        (sha256, owner, tx.at),
    )


def check_named(tx: Tx, digests: Sequence[str]) -> None:
    """Raises InvalidSpec for input files that nobody has here: what no row names may be removed at any moment."""
    if strange := unnamed(tx, digests):
        raise InvalidSpec(
            "the manifest names input files that are not stored here",
            [Problem("input.files", f"{sha256} was never uploaded, or is no longer kept") for sha256 in strange[:MAX_STRANGE]],
            hint="upload each file first: `ostler run --in FILE` does",
        )


def work_waits(tx: Tx) -> bool:
    """Whether any job could be leased, by whomever, commands apart. For `Store.read`."""
    return tx.row(f"SELECT 1 FROM jobs WHERE {QUEUED_SQL} LIMIT 1") is not None  # noqa: S608 - our own constant
