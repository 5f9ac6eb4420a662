"""Log bytes: appended at offsets, checked at the end, read in ranges. Streams of different attempts never mix."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ostler.coordinator.operations import sessions
from ostler.coordinator.operations.changes import Case, load
from ostler.coordinator.store.beside import beside_others
from ostler.coordinator.store.tx import Tx
from ostler.model.attempt import BEGUN
from ostler.model.errors import Gone, InvalidSpec, NotFound, OffsetMismatch, Problem, TooLarge
from ostler.protocol.messages import LOG_STREAMS, LogEnd

CHUNK_BYTES = 256 * 1024  # a range read loads whole chunks
MAX_HASHES = 10_000
_NOTHING = hashlib.sha256().hexdigest()

ChunkRow = tuple[int, int, str, int, int, bytes]


@dataclass(slots=True)
class RunningHashes:
    """The sha256 of each growing stream so far, so that its end costs no second reading. Only the writer uses it.

    An entry counts only where its length is what the database has: after an operation that was rolled back it has not, and is
    made anew.
    """

    by_stream: dict[tuple[int, int, str], tuple[int, Any]] = field(default_factory=dict)


@beside_others
def append_log(  # noqa: PLR0917 - the place of bytes has this many parts
    tx: Tx, node_id: str, job_id: str, attempt: int, stream: str, offset: int, data: bytes, final: LogEnd | None = None,
    *, boot_epoch: str | None = None, max_bytes: int | None = None,
) -> int:  # fmt: skip
    """Append log bytes at `offset`; answers the new length, which is 0 where the final checksum did not match: send it all anew.

    Raises NotFound (no such job or attempt of this node), Gone (the attempt is over or not acknowledged), OffsetMismatch (with
    the offset to rewind to), TooLarge (the stream would outgrow `max_bytes`), InvalidSpec (no such stream).
    """
    check_stream(stream)
    sessions.current(tx, node_id, boot_epoch)
    case = _begun(tx, node_id, job_id, attempt)
    stored = stored_length(tx, case.seq, attempt, stream)
    finished = tx.row("SELECT length FROM logs WHERE job_seq = ? AND attempt = ? AND stream = ?", (case.seq, attempt, stream))
    if offset != stored or (finished and data):
        raise OffsetMismatch(f"{stream} of job {job_id} has {stored} bytes, not {offset}", offset=stored)
    length = stored + len(data)
    if max_bytes is not None and length > max_bytes:
        raise TooLarge(
            f"{stream} of job {job_id} would be longer than {max_bytes} bytes", hint="raise the coordinator's log limit"
        )
    if final is not None and final.length != length:
        raise OffsetMismatch(
            f"{stream} of job {job_id} is said to end at {final.length}, with these bytes it ends at {length}", offset=stored
        )
    digest = hash_of(tx, case.seq, attempt, stream, stored)
    digest.update(data)
    if final is not None and digest.hexdigest() != final.sha256:
        discard(tx, case.seq, attempt, stream)
        return 0
    store_chunks(tx, chunk_rows(case.seq, attempt, stream, stored, data))
    tx.memo(RunningHashes).by_stream[case.seq, attempt, stream] = (length, digest)
    if final is not None and finished is None:
        store_ends(tx, [(case.seq, attempt, stream, length, final.sha256)])
    if data or final is not None:
        tx.wake(("log", job_id, attempt))
    return length


def check_stream(stream: str) -> None:
    """Raises InvalidSpec for a stream that no attempt has."""
    if stream not in LOG_STREAMS:
        raise InvalidSpec("there is no such log", [Problem("stream", f"{stream!r} is none of {', '.join(LOG_STREAMS)}")])


def _begun(tx: Tx, node_id: str, job_id: str, attempt: int) -> Case:
    case = load(tx, [job_id]).get(job_id)
    if case is not None and case.is_held_by(node_id, attempt) and case.attempt is not None and case.attempt.state in BEGUN:
        return case
    own = case and tx.row(
        "SELECT 1 FROM attempts WHERE job_seq = ? AND attempt = ? AND node_id = ?", (case.seq, attempt, node_id)
    )
    if own:
        raise Gone(f"attempt {attempt} of job {job_id} takes no bytes: it is over, or was not acknowledged")
    raise NotFound(f"node {node_id} has no attempt {attempt} of job {job_id}")


def stored_length(tx: Tx, seq: int, attempt: int, stream: str) -> int:
    """How many bytes of a stream are stored."""
    row = tx.row(
        "SELECT start + size FROM log_chunks WHERE job_seq = ? AND attempt = ? AND stream = ? ORDER BY start DESC LIMIT 1",
        (seq, attempt, stream),
    )
    return row[0] if row else 0


def hash_of(tx: Tx, seq: int, attempt: int, stream: str, stored: int) -> Any:
    """A sha256 object (the caller's own) over the `stored` bytes of a stream."""
    if not stored:
        return hashlib.sha256()
    memory = tx.memo(RunningHashes).by_stream
    known = memory.get((seq, attempt, stream))
    if known is not None and known[0] == stored:
        return known[1].copy()
    if len(memory) >= MAX_HASHES:
        memory.clear()
    digest = hashlib.sha256()
    at = 0
    while at < stored:  # chunk by chunk: a log may be larger than what should be in memory
        piece = read_range(tx, seq, attempt, stream, at, CHUNK_BYTES)
        digest.update(piece)
        at += len(piece)
    memory[seq, attempt, stream] = (stored, digest.copy())
    return digest


def forget_hashes(tx: Tx, seq: int, attempt: int) -> None:
    """The attempt is over: its streams grow no more."""
    memory = tx.memo(RunningHashes).by_stream
    for stream in LOG_STREAMS:
        memory.pop((seq, attempt, stream), None)


def chunk_rows(seq: int, attempt: int, stream: str, start: int, data: bytes) -> list[ChunkRow]:
    """Bytes from `start` as rows of `log_chunks`."""
    pieces = [data] if len(data) <= CHUNK_BYTES else [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    rows = []
    for piece in pieces:
        if piece:
            rows.append((seq, attempt, stream, start, len(piece), piece))
            start += len(piece)
    return rows


def store_chunks(tx: Tx, rows: list[ChunkRow]) -> None:
    """Write chunks."""
    if rows:
        tx.many("INSERT INTO log_chunks (job_seq, attempt, stream, start, size, data) VALUES (?, ?, ?, ?, ?, ?)", rows)


def store_ends(tx: Tx, rows: Sequence[tuple[int, int, str, int, str]]) -> None:
    """Write down that streams are whole: (seq, attempt, stream, length, sha256) each."""
    tx.many("INSERT INTO logs (job_seq, attempt, stream, length, sha256) VALUES (?, ?, ?, ?, ?)", rows)


def discard(tx: Tx, seq: int, attempt: int, stream: str) -> None:
    """Delete the bytes of a stream that turned out to be damaged; the node sends them anew."""
    for table in ("log_chunks", "logs"):
        tx.run(f"DELETE FROM {table} WHERE job_seq = ? AND attempt = ? AND stream = ?", (seq, attempt, stream))  # noqa: S608
    tx.memo(RunningHashes).by_stream.pop((seq, attempt, stream), None)


def read_range(  # noqa: PLR0917 - the place of bytes has this many parts
    tx: Tx, seq: int, attempt: int, stream: str, offset: int, limit: int
) -> bytes:
    """At most `limit` bytes of a stream from `offset`; empty at its end."""
    place = (seq, attempt, stream)
    found = tx.rows(
        "SELECT start, data FROM log_chunks WHERE job_seq = ? AND attempt = ? AND stream = ? AND start < ? AND start >= coalesce("
        "(SELECT max(start) FROM log_chunks WHERE job_seq = ? AND attempt = ? AND stream = ? AND start <= ?), 0) ORDER BY start",
        (*place, offset + limit, *place, offset),
    )
    if not found:
        return b""
    return b"".join(bytes(data) for _, data in found)[offset - found[0][0] :][:limit]


@dataclass(frozen=True, slots=True)
class Missing:
    """A stream that is not whole: the node must send it from `offset`. `damaged`: what is stored does not match its checksum."""

    stream: str
    offset: int
    message: str
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class Rest:
    """A stream that is whole once its last bytes are stored."""

    end: LogEnd
    stored: int
    data: bytes
    known: bool = False  # its end is stored already


def check_end(tx: Tx, case: Case, end: LogEnd, *, some_stored: bool) -> Rest | Missing:
    """Whether a stream is whole with the tail that came with its end; changes nothing.

    `some_stored=False` saves the look: the caller knows that no byte of this job's logs is stored.
    """
    if not (some_stored or end.length or end.tail) and end.sha256 == _NOTHING:
        return Rest(end, 0, b"")  # the stream of a silent job
    seq, attempt = case.seq, case.job.attempt
    stored = stored_length(tx, seq, attempt, end.stream) if some_stored else 0
    reach = end.offset + len(end.tail)
    if stored < end.length and (end.offset > stored or reach != end.length):
        return Missing(end.stream, stored, f"{end.stream} has {stored} of {end.length} bytes")
    if stored > end.length:
        return Missing(
            end.stream, 0, f"{end.stream} has {stored} bytes, more than the {end.length} it is said to have", damaged=True
        )
    data = end.tail[stored - end.offset :] if stored < end.length else b""
    digest = hash_of(tx, seq, attempt, end.stream, stored)
    digest.update(data)
    if digest.hexdigest() != end.sha256:
        return Missing(end.stream, 0, f"{end.stream} does not match its sha256", damaged=True)
    row = some_stored and tx.row(
        "SELECT 1 FROM logs WHERE job_seq = ? AND attempt = ? AND stream = ?", (seq, attempt, end.stream)
    )
    return Rest(end, stored, data, known=bool(row))
