"""What others saw, against what is on record: submitters, watchers, the lines to the nodes, the readers at the end, the machine."""

import json
from collections.abc import Iterator
from itertools import zip_longest

from .evidence import Evidence

CRASHES = ("Traceback (most recent call last)", "_crashed", "a bug of the node")


def acknowledged_jobs_are_there_once(evidence: Evidence) -> Iterator[str]:
    """Each job that a submitter was told of exists, as the only one of its kind; what was refused does not exist."""
    refused = {
        number for one in evidence.history if one.get("op") == "submit" and one["event"] == "refused" for number in one["numbers"]
    }
    for one in evidence.history:
        if one.get("op") == "submit" and one["event"] == "refused":
            yield f"submission {one['submission']} was refused: {one['why']}"
    for number, plan in evidence.plans.items():
        there = evidence.of_plan.get(number, [])
        told = evidence.acknowledged.get(number)
        if told is not None and (len(told) != plan["jobs"] or len(set(told)) != len(told)):
            yield f"plan {number} is {plan['jobs']} jobs, and was answered with {told}"
        if told is not None and sorted(told) != sorted(there):
            yield f"plan {number} ({plan['kind']}) was acknowledged as {told}, there is {there}"
        elif told is None and len(there) > plan["jobs"]:
            yield f"plan {number} was submitted once and is there as {there}"
        elif number in refused and there:
            yield f"plan {number} was refused and is there as {there}"


def everything_came_to_an_end(evidence: Evidence) -> Iterator[str]:
    """After all faults were healed nothing waits, runs or is undelivered."""
    settled = [one for one in evidence.history if one.get("event") == "settled"]
    if not settled:
        yield "the run did not come to its end"
    for one in settled:
        yield from (f"{what} was not over in time" for what in one["stuck"])
    for job_id, job in evidence.jobs.items():
        if job["state"] not in {"done", "failed", "cancelled", "expired"}:
            yield f"{job_id} is {job['state']}"
    yield from evidence.undelivered()


def what_was_seen_stays(evidence: Evidence) -> Iterator[str]:
    """Events that a reader got are on record in that order; a job that was seen over is today what it was then."""
    told = [(one["kind"], one["job_id"], one["attempt"]) for one in evidence.watched if "event" in one]
    stored = [(one["kind"], one["job_id"], one["attempt"]) for one in evidence.events]
    for place, (seen, is_) in enumerate(zip_longest(told, stored[: len(told)])):
        if seen != is_:
            yield f"event {place + 1} was told as {seen}, on record is {is_}"
            break
    for one in evidence.watched:
        job_id = one.get("seen")
        if job_id is None:
            continue
        job = evidence.jobs.get(job_id)
        if job is None:
            yield f"{job_id} was seen {one['state']} and is not there"
            continue
        last = evidence.attempts.get((job_id, job["attempt"]), {})
        now = {
            "state": job["state"], "attempt": job["attempt"], "tries": job["tries"], "failure": job["failure_code"],
            "exit_code": last.get("exit_code"),
            "artifacts": {path: row["sha256"] for path, row in evidence.artifacts[job_id, job["attempt"]].items()},
        }  # fmt: skip
        for name, value in now.items():
            if one[name] != value:
                yield f"{job_id} was seen with {name} {one[name]!r}, now it is {value!r}"


def what_nodes_were_promised_stands(evidence: Evidence) -> Iterator[str]:
    """An outcome that the coordinator took from a node is the attempt's outcome, and an acknowledged attempt was begun."""
    for one in evidence.heard:
        if not one["ok"] or one["call"] == "pull":  # the answer to a pull may be lost: what it acknowledged is undone then
            continue
        key = (one["job_id"], one["attempt"])
        row = evidence.attempts.get(key)
        name = f"{one['job_id']}/{one['attempt']} of {one['node']}"
        if row is None:
            yield f"{name} was answered well, and there is no such attempt"
        elif row["node_id"] != one["node"]:
            yield f"{name} was answered well, and the attempt is of {row['node_id']}"
        elif one["call"] == "ack":
            if (one["declined"] is None) == (row["acked_at"] is None):
                yield f"{name}: the answer to its ack says otherwise than its row ({row['state']})"
        else:
            expected = "cancelled" if one["cancelled"] else "failed" if one["failure"] else "done"
            if row["state"] != expected or ((one["failure"] or None) != row["failure_code"] and expected == "failed"):
                yield f"{name} delivered {expected} {one['failure'] or ''}, on record is {row['state']} {row['failure_code'] or ''}"
            elif expected == "done" and one["artifacts"] != {path: a["sha256"] for path, a in evidence.artifacts[key].items()}:
                yield f"{name} delivered other artifacts than those on record"


def what_is_served_is_what_is_stored(evidence: Evidence) -> Iterator[str]:
    """What the API answered at the end is what the tables and the artifact store hold."""
    if any(one.get("event") == "settled" and one["stuck"] for one in evidence.history):
        return  # it was read while it still changed; another rule tells
    served = {one["job_id"]: one for one in evidence.served}
    for ids in evidence.acknowledged.values():
        for job_id in ids:
            one, job = served.get(job_id), evidence.jobs.get(job_id)
            if one is None or one["status"] != 200 or job is None:
                yield f"{job_id} was answered with {one and one['status']}"
                continue
            for name, column in (("state", "state"), ("attempt", "attempt"), ("tries", "tries"), ("failure", "failure_code")):
                if one[name] != job[column]:
                    yield f"{job_id} was served with {name} {one[name]!r}, stored is {job[column]!r}"
            if job["state"] != "done" or not one["whole"]:
                continue
            key = (job_id, job["attempt"])
            files = {path: [200, row["sha256"], row["size"]] for path, row in evidence.artifacts[key].items()}
            if one["artifacts"] != files:
                yield f"{job_id} was served with artifacts {one['artifacts']}, stored are {files}"
            for stream, row in evidence.log_ends[key].items():
                if one["logs"][stream] != [200, row["sha256"], row["length"]]:
                    yield f"{job_id} was served with another {stream}: {one['logs'][stream]}"


def a_cancel_holds(evidence: Evidence) -> Iterator[str]:
    """Nothing of a job begins after its cancel was acknowledged, other than what had begun before."""
    for one in evidence.history:
        if one.get("op") != "cancel" or one["event"] != "acknowledged" or one["status"] != 200:
            continue
        job_id = one["job_id"]
        job = evidence.jobs.get(job_id)
        if job is None:
            continue  # another rule tells
        if one["state"] == "cancelled":
            if job["state"] != "cancelled":
                yield f"{job_id} was answered as cancelled and is {job['state']}"
            yield from (
                f"{job_id} began (attempt {run.attempt}) after its cancel was answered"
                for run in evidence.executions
                if run.job_id == job_id and run.began > one["t"] + 0.05
            )
        asked = False
        for event in evidence.timelines.get(job_id, ()):
            asked = asked or event["kind"] == "request_cancel"
            if asked and event["kind"] in {"lease", "retry", "due"}:
                yield f"{job_id}: event {event['id']} ({event['kind']}) after its cancel was asked for"


def nothing_is_left_behind(evidence: Evidence) -> Iterator[str]:
    """No process, control group, secret box, mount or workspace outlives what it was for; all ended in good order when asked to."""
    census = evidence.census
    if not census:
        yield "nobody looked"
        return
    for one in census["settled"]["processes"]:
        if one["part"] == "job":
            yield f"process {one['pid']} of {one['job']} still runs: {one['command']} in {one['cwd']}"
    yield from (f"process {one['pid']} outlived its node: {one['command']}" for one in census["after"]["processes"])
    yield from (f"control group {one}" for one in census["after"]["groups"])
    for when in ("settled", "after"):
        yield from (f"secret box {one} ({when})" for one in census[when]["boxes"])
    yield from (f"mount {one}" for one in census["mounts"])
    for node, left in census["swept"].items():
        yield from (f"workspace {one} on {node}" for one in left if not _blank(evidence, node, one))
    yield from (f"{part} did not stop well: {code}" for part, code in census["codes"].items() if code != 0)


def _blank(evidence: Evidence, node: str, name: str) -> bool:
    """A workspace whose last word could not be written, or never was, is removed after five minutes, which this run did not wait for."""
    troubled = any(one.target.partition(".")[0] in {node, "all"} for one in evidence.troubles)
    return troubled and not any((evidence.place / "evidence" / f"{node}.jobs" / name).rglob("state.json"))


def nobody_crashed(evidence: Evidence) -> Iterator[str]:
    """A failed job is data and a fault is told in words; a stack trace is a bug."""
    for file in sorted((evidence.place / "logs").glob("*.log")):
        for line in file.read_text(errors="replace").splitlines():
            if any(mark in line for mark in CRASHES):
                yield f"{file.name}: {_told(line)}"


def _told(line: str) -> str:
    try:
        said = json.loads(line)
    except ValueError:
        return line[:400]
    attrs = said.get("attrs") or {}
    return f"{said.get('event')} {said.get('job_id') or ''} {attrs.pop('traceback', '')[-500:]!r} {attrs}"[:900]
