"""Bytes: what is stored is what that very execution wrote, whole, once, and in its order."""

from collections.abc import Iterator

from .content import artifact, log, sha256
from .evidence import Evidence, Execution, Row

ASKED_TO_END = (
    b"Terminated\n"  # what a shell says of a child that the end of its attempt has met, after what was written until then
)


def logs_are_whole(evidence: Evidence) -> Iterator[str]:
    """No byte of a log is lost or doubled, or of another execution. Of an attempt that did not come to its own end it is a beginning."""
    stored: dict[tuple[str, int], set[str]] = {}
    for key, stream, pieces in evidence.logs():
        name = f"{key[0]}/{key[1]} {stream}"
        stored.setdefault(key, set()).add(stream)
        at = 0
        for start, data in pieces:
            if start != at:
                yield f"{name}: a piece begins at {start}, the one before ends at {at}"
            at = start + len(data)
        plan = evidence.plan(key[0])
        if plan is not None:
            data = b"".join(piece for _, piece in pieces)
            end = evidence.log_ends[key].get(stream)
            if end is not None and (end["length"], end["sha256"]) != (len(data), sha256(data)):
                yield f"{name}: {len(data)} bytes are stored, its end says {end['length']}, or another checksum"
            yield from (f"{name}: {what}" for what in _stream(evidence, key, stream, data, plan, ended=end is not None))
    for key, row in evidence.attempts.items():  # streams of which nothing at all is stored
        plan = evidence.plan(key[0])
        if plan is None or not _whole(evidence, key, row):
            continue
        for stream in ("stdout", "stderr"):
            if plan["lines"][stream == "stderr"] and stream not in stored.get(key, set()):
                yield f"{key[0]}/{key[1]} {stream}: nothing is stored of {plan['lines'][stream == 'stderr']} lines"


def _whole(evidence: Evidence, key: tuple[str, int], row: Row) -> bool:
    """Whether the attempt wrote all that it had to write, and its node could tell: it ended by itself, and its end was taken."""
    if row["state"] == "done":
        return True
    return row["failure_code"] == "E_EXIT" and any(one.code == row["exit_code"] != 66 for one in evidence.ran.get(key, ()))


def _stream(evidence: Evidence, key: tuple[str, int], stream: str, data: bytes, plan: Row, *, ended: bool) -> Iterator[str]:
    row = evidence.attempts[key]
    runs = evidence.ran.get(key, [])
    if not plan["journal"]:
        expected = [log(plan, stream, f"{plan['number']} {key[1]} boxed")]
    else:
        expected = [log(plan, stream, _of(one)) for one in runs]
    if not expected:
        if data and row["state"] != "failed":
            yield f"{len(data)} bytes are stored, and it never ran"
        return
    if _whole(evidence, key, row):
        if data not in expected:
            yield f"{_difference(data, expected[-1])} (attempt {row['state']})"
        elif not ended:
            yield "it is whole, and nothing says so"
    elif not any(one.startswith(data.removesuffix(ASKED_TO_END) if stream == "stderr" else data) for one in expected):
        if stream == "stderr" and row["failure_code"] in {"E_EXIT", "E_TASK", "E_DISK"}:
            return  # what a shell says of its own trouble
        yield f"{_difference(data, expected[-1])} (attempt {row['state']} {row['failure_code'] or ''})"


def _of(run: Execution) -> str:
    return f"{run.key.partition('.')[0]} {run.attempt} {run.nonce}"


def _difference(data: bytes, expected: bytes) -> str:
    at = next((i for i, (a, b) in enumerate(zip(data, expected, strict=False)) if a != b), min(len(data), len(expected)))
    return f"{len(data)} bytes, {len(expected)} expected; from byte {at} on {data[at : at + 60]!r} in place of {expected[at : at + 60]!r}"


def artifacts_are_whole(evidence: Evidence) -> Iterator[str]:
    """Each artifact of a job that is done is what its execution wrote, and its bytes are on their shelf."""
    for (job_id, number), row in evidence.attempts.items():
        plan, name = evidence.plan(job_id), f"{job_id}/{number}"
        if plan is None:
            continue
        there = evidence.artifacts[job_id, number]
        if row["state"] != "done":
            if there:
                yield f"{name} is {row['state']} and has artifacts"
            continue
        wanted = {f"out{place}" for place in range(len(plan["sizes"]))}
        if set(there) != wanted:
            yield f"{name} has the artifacts {sorted(there)}, not {sorted(wanted)}"
        runs = [_of(one) for one in evidence.ran.get((job_id, number), ()) if one.code == 0]
        of = runs[0] if runs else f"{plan['number']} {number} boxed"
        for place, size in enumerate(plan["sizes"]):
            one = there.get(f"out{place}")
            if one is not None and (one["size"], one["sha256"]) != (size, sha256(artifact(size, of, place))):
                yield f"{name}: out{place} is not what its execution wrote ({one['size']} bytes, {size} expected)"
    for sha in sorted({row["sha256"] for some in evidence.artifacts.values() for row in some.values()}):
        content = evidence.content(sha)
        if content is None:
            yield f"the bytes {sha} are not there"
        elif sha256(content) != sha:
            yield f"the bytes under the name {sha} are others"
