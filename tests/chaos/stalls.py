"""How long somebody stood still: a submitter without an answer, or a node to which nothing was answered while there was work."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from .evidence import Evidence

PLENTY = 60  # unfinished jobs; with fewer of them a node may rightly have nothing to do


def stalls(evidence: Evidence) -> dict[str, float]:
    """The longest one of each, in seconds: of `submitters` from the first time that one asked to the answer, of each node from one
    acknowledgement or outcome that was answered well to the next.
    """
    found = {"submitters": 0.0}
    asked: dict[int, float] = {}
    told: list[float] = []
    for one in evidence.history:
        if one.get("op") == "submit" and one["event"] == "sent":
            asked.setdefault(one["submission"], one["t"])
        elif one.get("op") == "submit" and one["event"] == "acknowledged":
            found["submitters"] = max(found["submitters"], one["t"] - asked[one["submission"]])
            told += [one["t"]] * sum(map(len, one["jobs"].values()))
    over: list[float] = []
    heard: defaultdict[str, list[float]] = defaultdict(list)
    for one in evidence.heard:
        if one["ok"]:
            heard[one["node"]].append(one["t"])
            over += [one["t"]] if one["call"] not in {"ack", "pull"} else []
    for node, times in heard.items():
        plenty = [(a, b) for a, b in pairwise(times) if bisect_left(told, a) - bisect_left(over, a) >= PLENTY]
        found[node] = max((b - a for a, b in plenty), default=0.0)
    return found


def nobody_stood_still(evidence: Evidence) -> Iterator[str]:
    """In a run that promises it, nobody stood still for as long as a lease, and no node lost a job by silence."""
    longest = evidence.run.get("longest_stall_s")
    if longest is None:
        return
    for name, seconds in stalls(evidence).items():
        if seconds >= longest:
            yield f"{name} stood still for {seconds:.1f} s, {longest:g} s are a lease"
    for (job_id, attempt), row in evidence.attempts.items():
        if row["failure_code"] == "E_LOST":
            yield f"{job_id}/{attempt} on {row['node_id']}: {row['failure_message']}"
