"""What really ran, against what is on record of it."""

from collections import defaultdict
from collections.abc import Iterator

from .evidence import Evidence, Execution, Row

DISK = {"full_disk", "no_inodes", "read_only"}
AWAY = {  # a node that cannot give its jobs up in time: nobody decides there, or what decides does not know
    "kill_daemon", "kill_daemon_long", "stop_daemon", "stop_daemon_long", "restart_daemon", "kill_everything", "kill_machine",
    "revoke_join_token", "clone_node", "stop_keeper", "read_only", "full_disk", "no_inodes",
}  # fmt: skip
SLACK_S = 12.0  # how long after a fault its consequences are still its own: a lease, a wait before a retry, a start
NO_DISK = 66  # how `body.sh` ends where it could not write


def executions_belong_to_attempts(evidence: Evidence) -> Iterator[str]:
    """What ran was an attempt of the node on which it ran, which was acknowledged before; and no attempt ran twice."""
    acks: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for one in evidence.heard:
        if one["call"] in {"ack", "pull"} and one["ok"] and one["declined"] is None:  # some pulls acknowledge what they bring
            acks[one["job_id"], one["attempt"]].append(one["t"])
    for key, runs in evidence.ran.items():
        name = f"{key[0]}/{key[1]}"
        row = evidence.attempts.get(key)
        if len(runs) > 1:
            yield f"{name} ran {len(runs)} times: " + ", ".join(f"{one.node} at {one.began:.2f}" for one in runs)
        for one in runs:
            if row is None:
                yield f"{name} ran on {one.node}, and there is no such attempt"
            elif row["node_id"] != one.node:
                yield f"{name} ran on {one.node}, and is an attempt of {row['node_id']}"
            elif row["acked_at"] is None:
                yield f"{name} ran and was never acknowledged"
            elif not acks[key] or one.began < min(acks[key]) - 0.03:
                yield f"{name} began at {one.began:.2f}, before the answer to its ack ({acks[key][:1]})"
            plan = evidence.plan(key[0])
            if plan is not None and one.key.split(".")[0] != str(plan["number"]):
                yield f"{name} ran as job {one.key}, and is of plan {plan['number']}"


def attempts_do_not_run_at_once(evidence: Evidence) -> Iterator[str]:
    """A job runs at two places at the same time only where the one who should have ended it could not act."""
    by_job: defaultdict[str, list[Execution]] = defaultdict(list)
    for one in evidence.executions:
        by_job[one.job_id].append(one)
    for job_id, runs in by_job.items():
        for place, earlier in enumerate(runs):
            for later in runs[place + 1 :]:
                if earlier.ended is None or later.began >= earlier.ended or later.attempt == earlier.attempt:
                    continue
                if not _away(evidence, earlier):
                    yield (
                        f"{job_id}: attempt {later.attempt} on {later.node} began at {later.began:.2f} while attempt "
                        f"{earlier.attempt} on {earlier.node} ran until {earlier.ended:.2f}"
                    )


def _away(evidence: Evidence, run: Execution) -> bool:
    return any(
        one.kind in AWAY
        and one.target.partition(".")[0] in {run.node, "all"}
        and one.began < (run.ended or 0)
        and one.ended > run.began - 1
        for one in evidence.troubles
    )


def outcomes_are_true(evidence: Evidence) -> Iterator[str]:
    """An attempt that is done was run to a good end; one that failed failed as it is said; and no job ends in a way without a reason."""
    for key, row in evidence.attempts.items():
        plan = evidence.plan(key[0])
        if plan is not None:
            yield from (
                f"{key[0]}/{key[1]} ({plan['kind']}, {row['node_id']}): {what}" for what in _attempt(evidence, key, row, plan)
            )
    for job_id, job in evidence.jobs.items():
        plan = evidence.plan(job_id)
        if plan is not None:
            yield from (f"{job_id} ({plan['kind']}): {what}" for what in _job(evidence, job_id, job, plan))


def _attempt(evidence: Evidence, key: tuple[str, int], row: Row, plan: Row) -> Iterator[str]:
    runs = evidence.ran.get(key, [])
    code, state = row["failure_code"], row["state"]
    if state == "done":
        if row["exit_code"] != 0:
            yield f"done with exit code {row['exit_code']}"
        if plan["journal"] and not any(one.code == 0 for one in runs):
            yield f"done, and no execution of it came to a good end ({[one.code for one in runs]})"
    elif state in {"returned"} and runs:
        yield "returned unbegun, and it ran"
    elif state == "failed":
        if any(one.code == 0 for one in runs) and code not in {"E_LOST", "E_DISK"}:
            yield f"failed with {code}, and its execution came to a good end"
        if (
            code == "E_EXIT"
            and plan["journal"]
            and [row["exit_code"]] != [one.code for one in runs]
            and not _mute(evidence, row, plan, runs)
        ):
            yield f"failed with exit code {row['exit_code']}, its executions with {[one.code for one in runs]}"
        if not _excused(evidence, key, row, plan, runs):
            yield f"failed with {code}: {row['failure_message']}"


def _excused(evidence: Evidence, key: tuple[str, int], row: Row, plan: Row, runs: list[Execution]) -> bool:
    """Whether the plan or a fault explains how an attempt failed."""
    code = row["failure_code"]
    planned = {one.partition(":")[2] for one in plan["ends"]}
    if code in planned or (code == "E_EXIT" and plan["kind"] == "flaky" and row["exit_code"] == 3):
        return True
    if code == "E_LOST":
        return bool(evidence.troubles)
    node = row["node_id"]
    on_node = {one.kind for one in evidence.troubles if one.target.partition(".")[0] in {node, "all"}}
    if code == "E_EXIT" and (row["exit_code"] == NO_DISK or _mute(evidence, row, plan, runs)):
        return bool(on_node & DISK)
    if code == "E_DISK":
        return bool(on_node & DISK)
    if code == "E_SIGNAL":  # whoever pulls the plug kills the jobs before the keeper, sometimes
        return bool(on_node & {"kill_machine", "kill_everything", "read_only", "full_disk", "no_inodes"})
    if code == "E_TASK":
        return bool(on_node & DISK)
    return False


def _mute(evidence: Evidence, row: Row, plan: Row, runs: list[Execution]) -> bool:
    """Whether it is a Python task that began while its disk took neither its lines nor the record of how it ended."""
    return plan["kind"] == "task" and row["exit_code"] == 1 and any(
        one.kind in DISK and one.target.partition(".")[0] == row["node_id"] and one.began <= run.began <= one.ended
        for one in evidence.troubles for run in runs
    )  # fmt: skip


def _job(evidence: Evidence, job_id: str, job: Row, plan: Row) -> Iterator[str]:
    state, code = job["state"], job["failure_code"]
    end = f"{state}:{code}" if code else state
    if end in plan["ends"] or (state == "cancelled" and plan["cancel_after"] is not None):
        return
    parents = [evidence.jobs[one] for number in plan["parents"] for one in evidence.of_plan.get(number, ())]
    sad = any(one["state"] != "done" for one in parents)
    if plan["kind"] == "child" and sad and (state == "cancelled" or code == "E_INPUT"):
        return
    if state == "failed" and code in {"E_LOST", "E_DISK", "E_EXIT", "E_TASK"} and job["tries"] == plan["tries"]:
        return  # the faults used up all its tries; each of them was looked at above
    yield f"it ended {end} after {job['tries']} of {plan['tries']} tries, not {' or '.join(plan['ends'])}: {job['failure_message']}"


def children_come_after_their_parents(evidence: Evidence) -> Iterator[str]:
    """Nothing is leased, and nothing runs, before what it waits for is over; and what is handed on arrives as it was made."""
    over = {one["job_id"]: one["id"] for one in evidence.events if one["kind"] in {"finish", "fail", "cancel", "expire"}}
    for number, plan in evidence.plans.items():
        if not plan["parents"]:
            continue
        parents = [one for parent in plan["parents"] for one in evidence.of_plan.get(parent, ())]
        for child in evidence.of_plan.get(number, ()):
            leases = [one["id"] for one in evidence.timelines[child] if one["kind"] == "lease"]
            for parent in parents:
                if leases and not over.get(parent, 1 << 62) < leases[0]:
                    yield f"{child} was leased (event {leases[0]}) before {parent} was over"
                if leases and plan["until"] == "success" and evidence.jobs[parent]["state"] != "done":
                    yield f"{child} was leased, and {parent} is {evidence.jobs[parent]['state']}"
                last = (parent, evidence.jobs[parent]["attempt"])
                ends = [one.ended for one in evidence.ran.get(last, ()) if one.ended is not None]
                for run in (one for one in evidence.executions if one.job_id == child):
                    if ends and run.began < max(ends) - 0.03:
                        yield f"{child} began at {run.began:.2f}, before {parent} ended at {max(ends):.2f}"
            handed = plan["manifest"].get("input", {}).get("artifacts")
            if handed:
                (maker,) = evidence.of_plan[handed[0]["job"]]
                made = evidence.artifacts[maker, evidence.jobs[maker]["attempt"]].get("out0", {}).get("sha256")
                for run in (one for one in evidence.executions if one.job_id == child and "handed" in one.told):
                    if run.told["handed"] != made:
                        yield f"{child} was handed {run.told['handed']}, {maker} made {made}"
