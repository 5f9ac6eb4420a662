"""The life of a job, said anew: which event may follow which, and what the tables must say in the end."""

from collections.abc import Iterator
from typing import Any

from .evidence import Evidence, Row

_ENDS = {"finish": "done", "fail": "failed", "retry": "retry_wait", "cancel": "cancelled"}
LEGAL: dict[str, dict[str, str]] = {
    "": {"submit": "queued"},
    "queued": {"lease": "leased", "cancel": "cancelled", "expire": "expired", "fail": "failed"},
    "leased": {"return": "queued", "ack": "acked", "cancel": "cancelled"},
    "acked": {"return": "queued", "prepare": "preparing", "start": "running", "upload": "uploading", **_ENDS},
    "preparing": {"start": "running", "upload": "uploading", **_ENDS},
    "running": {"upload": "uploading", **_ENDS},
    "uploading": _ENDS,
    "retry_wait": {"due": "queued", "cancel": "cancelled", "expire": "expired"},
}
OVER = {"done", "failed", "cancelled", "expired"}
SAID = {"hold", "release", "ready", "request_cancel", "request_debug", "workspace", "quota_warning"}  # these change no state
HELD = {"leased", "acked", "preparing", "running", "uploading"}
# What an event that ends an attempt leaves in its row.
LEFT = {
    "return": {"returned"},
    "finish": {"done"},
    "fail": {"failed", "cancelled"},
    "retry": {"failed", "cancelled"},
    "cancel": {"cancelled", "failed"},
}


def the_tables_are_sound(evidence: Evidence) -> Iterator[str]:
    """No damaged page, no row without the row that it refers to."""
    yield from evidence.problems


def every_history_is_legal(evidence: Evidence) -> Iterator[str]:
    """Each job's events in their order are a life that there may be, it ends once, and rows and events say the same."""
    for job_id, job in evidence.jobs.items():
        yield from (f"{job_id}: {what}" for what in _life(evidence, job_id, job))
    for job_id, attempt in evidence.attempts:
        leases = [one for one in evidence.timelines.get(job_id, ()) if one["kind"] == "lease" and one["attempt"] == attempt]
        if len(leases) != 1:
            yield f"{job_id}: attempt {attempt} has {len(leases)} leases"


def _life(evidence: Evidence, job_id: str, job: Row) -> Iterator[str]:
    state, attempt, tries, node = "", 0, 0, None
    left: dict[int, str] = {}
    for event in evidence.timelines.get(job_id, ()):
        kind = event["kind"]
        if kind in SAID:
            continue
        where = f"event {event['id']} ({kind}, attempt {event['attempt']}, {event['node_id']})"
        if state in OVER:
            yield f"{where} comes after it was {state}"
            continue
        following = LEGAL[state].get(kind)
        if following is None:
            yield f"{where} is not possible while it is {state or 'not there'}"
            continue
        if kind == "lease":
            if event["attempt"] != attempt + 1:
                yield f"{where} does not follow attempt {attempt}"
            attempt, node = event["attempt"], event["node_id"]
        elif state in HELD and (event["attempt"] != attempt or event["node_id"] not in {node, None}):
            yield f"{where} is not of attempt {attempt} on {node}"
        if kind == "ack":
            tries += 1
        elif kind == "return" and state == "acked":
            tries -= 1
        if state in HELD and kind in LEFT:
            left[attempt] = kind
        state = following
    yield from _rows(evidence, job_id, job, {"state": state, "attempt": attempt, "tries": tries}, left)


def _rows(evidence: Evidence, job_id: str, job: Row, told: dict[str, Any], left: dict[int, str]) -> Iterator[str]:
    for name, value in told.items():
        if job[name] != value:
            yield f"its row says {name} {job[name]}, its events {value}"
    plan = evidence.plan(job_id)
    if plan is None:
        yield "nobody planned it"
    elif told["tries"] > plan["tries"]:
        yield f"it was tried {told['tries']} times, {plan['tries']} are allowed"
    for number in range(1, told["attempt"] + 1):
        row = evidence.attempts.get((job_id, number))
        if row is None:
            yield f"attempt {number} has no row"
        elif number not in left:
            if told["state"] in OVER:
                yield f"attempt {number} ({row['state']}) never came to an end"
        elif row["state"] not in LEFT[left[number]]:
            yield f"attempt {number} is {row['state']} after {left[number]}"
