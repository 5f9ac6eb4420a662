"""What is submitted in a run: a pure function of a seed and a number of jobs, and what each job must look like afterwards.

A job's output is a function of its number, its attempt and its `nonce` (which process it was), so that bytes that are lost, doubled
or of another execution are seen. `body.sh` writes them; the checker knows the same rule by itself.
"""

import random
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RETRIES = {"max": 12, "backoff_s": 0.2, "max_backoff_s": 1.5}
SECRET = "chaos-secret"
SECRET_VALUE = "only-for-jobs-of-the-chaos-run"


@dataclass(frozen=True, slots=True)
class Plan:
    """One manifest. `jobs` is more than 1 for an array; `tries` is how often it may begin at the most.

    `ends` are the outcomes that need no excuse, as state or state:code; faults excuse others (the checker says which). `lines` are
    those of (stdout, stderr); `sizes` those of its artifacts in bytes; `fails` says how many executions fail first.
    """

    number: int
    kind: str
    manifest: dict[str, Any]
    ends: tuple[str, ...] = ("done",)
    tries: int = RETRIES["max"] + 1
    jobs: int = 1
    lines: tuple[int, int] = (1, 0)
    sizes: tuple[int, ...] = ()
    journal: bool = True
    parents: tuple[int, ...] = ()
    until: str = ""
    cancel_after: float | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """Manifests that are sent in one call, `at` so many seconds after the start.

    How it is made safe to repeat: by an idempotency `key`, by `named` jobs, or not at all (`bare`): then it is sent once.
    """

    number: int
    at: float
    way: str
    plans: tuple[Plan, ...] = field(default=())


KINDS: dict[str, int] = {  # by weight
    "instant": 26,
    "seconds": 14,
    "long": 4,
    "flaky": 6,
    "doomed": 3,
    "broken": 3,
    "overdue": 3,
    "cancelled": 9,
    "hungry": 2,
    "inputs": 4,
    "artifacts": 8,
    "chatty": 5,
    "child": 8,
    "array": 2,
    "detached": 4,
    "hasty": 5,
    "secret": 2,
    "fleeting": 2,
    "task": 4,
    "boxed": 3,
}


def workload(
    seed: int, jobs: int, duration_s: float, *, boxed: bool = True, only: Collection[str] = KINDS
) -> tuple[Submission, ...]:
    """Submissions of `jobs` jobs in all, first to last. `boxed` jobs need a sandbox with bubblewrap; `only` narrows the kinds."""
    dice = random.Random(f"workload {seed}")
    kinds = {kind: weight for kind, weight in KINDS.items() if kind in only and (boxed or kind != "boxed")}
    plans: list[Plan] = []
    left = jobs
    while left > 0:
        kind = dice.choices(list(kinds), list(kinds.values()))[0]
        plan = _plan(dice, len(plans), kind, plans, left)
        plans.append(plan)
        left -= plan.jobs
    submissions: list[Submission] = []
    while plans:
        size = min(len(plans), dice.choices((1, 2, 5, 20, 250), (40, 10, 10, 10, 1))[0])
        batch, plans = plans[:size], plans[size:]
        whole = len(batch) == 1 and batch[0].jobs > 1
        way = dice.choices(("key", "named", "bare"), (5, 3, 0 if any(one.parents for one in plans) or size > 1 else 1))[0]
        if whole or any(one.jobs > 1 for one in batch):
            way = "key"
        submissions.append(Submission(len(submissions), 0.0, way, tuple(batch)))
    # A third comes at once, so that there is a queue; the rest over most of the time.
    times = sorted(0.0 if dice.random() < 0.3 else dice.uniform(0, duration_s * 0.85) for _ in submissions)
    return tuple(Submission(one.number, round(at, 2), one.way, one.plans) for one, at in zip(submissions, times, strict=True))


def name_of(seed: int, number: int) -> str:
    """The job id of a plan whose submitter names it."""
    return f"chaos-{seed}-{number}"


def _plan(dice: random.Random, number: int, kind: str, earlier: list[Plan], left: int) -> Plan:
    env: dict[str, str] = {}
    manifest: dict[str, Any] = {"retries": dict(RETRIES)}
    more: dict[str, Any] = {"lines": (dice.randint(1, 4), dice.randint(0, 1))}
    match kind:
        case "seconds":
            env["STEPS"] = str(dice.randint(2, 12))
            env["PAUSE"] = dice.choice(("0.1", "0.3", "0.5"))
            more["lines"] = (int(env["STEPS"]) * dice.choice((1, 5, 40)), dice.randint(0, 3))
        case "long":
            env["STEPS"], env["PAUSE"] = str(dice.randint(12, 25)), "0.5"
            more["lines"] = (int(env["STEPS"]) * 3, dice.randint(0, 3))
        case "flaky":
            env["FAILS"] = str(dice.randint(1, 3))
            env["CODE"] = "3"
        case "doomed":
            env["FAILS"], env["CODE"] = "999", "7"
            retries = dice.randint(0, 2)
            manifest["retries"] = {**RETRIES, "max": retries}
            more |= {"ends": ("failed:E_EXIT",), "tries": retries + 1}
        case "broken":
            del manifest["retries"]
            env["FAILS"], env["CODE"] = "999", str(dice.randint(4, 60))
            more |= {"ends": ("failed:E_EXIT",), "tries": 4}
        case "overdue":
            manifest["timeout_s"] = round(dice.uniform(0.5, 2.0), 1)
            manifest["retries"] = {**RETRIES, "codes": ["E_LOST", "E_DISK"]}
            env["STEPS"], env["PAUSE"] = "600", "0.5"
            more |= {"ends": ("failed:E_TIMEOUT",), "lines": (600, 0)}
        case "cancelled":
            env["STEPS"], env["PAUSE"] = str(dice.choice((1, 4, 12, 600))), "0.25"
            more |= {
                "ends": ("cancelled", "done") if env["STEPS"] != "600" else ("cancelled",),
                "lines": (int(env["STEPS"]), 0),
                "cancel_after": round(dice.choice((0.0, dice.uniform(0, 1), dice.uniform(0, 6))), 2),
            }
        case "hungry":
            env["HUNGRY"] = "1"
            manifest["policy"] = {"memory_mb": 48}
            manifest["retries"] = {**RETRIES, "codes": ["E_LOST", "E_DISK"]}
            more["ends"] = ("failed:E_OOM",)
        case "inputs":
            manifest["input"] = {"inline": {"told.txt": f"input of {number}\n" * dice.randint(1, 50)}}
            env["INPUT"] = "told.txt"
        case "artifacts":
            sizes = tuple(dice.choice((0, 10, 5_000, 200_000, 2_000_000)) for _ in range(dice.randint(1, 3)))
            more["sizes"] = sizes
        case "chatty":
            more["lines"] = (dice.choice((2_000, 8_000, 30_000)), dice.choice((0, 500, 3_000)))
            env["STEPS"], env["PAUSE"] = dice.choice((("1", "0"), ("5", "0.2"), ("20", "0.1")))
        case "child":
            more |= _child(dice, manifest, env, earlier)
        case "array":
            more["jobs"] = min(left, dice.randint(3, 12))
            manifest["array"] = more["jobs"]
        case "detached":
            env["DETACH"] = dice.choice(("session", "double", "stopped", "deaf"))
            if dice.random() < 0.3:
                env["FAILS"], env["CODE"] = "999", "5"
                manifest["retries"] = {**RETRIES, "max": 1}
                more |= {"ends": ("failed:E_EXIT",), "tries": 2}
        case "hasty":
            manifest["queue"] = "interactive"
        case "secret":
            manifest["secrets"] = [{"name": SECRET, "file": "key"}]
            env["SECRET"] = "key"
        case "fleeting":
            manifest["ttl_s"] = round(dice.uniform(0.5, 6), 1)
            more["ends"] = ("done", "expired")
        case "task":
            manifest |= {"runner": "python", "task": "chaos_task"}
        case "boxed":
            manifest["policy"] = {"sandbox": "bwrap"}
            more |= {"journal": False, "lines": (dice.randint(1, 300), 0), "sizes": (dice.choice((10, 5_000)),)}
    return _finished(Plan(number, kind, manifest, **more), env)


def _child(dice: random.Random, manifest: dict[str, Any], env: dict[str, str], earlier: list[Plan]) -> dict[str, Any]:
    """Waits for jobs of before; a parent that does not do well takes it along where success is waited for."""
    fit = [one for one in earlier[-60:] if one.jobs == 1 and one.kind not in {"cancelled", "fleeting"}]
    if not fit:
        return {}
    parents = dice.sample(fit, min(len(fit), dice.randint(1, 3)))
    good = all(one.ends == ("done",) for one in parents)
    until = "success" if good and dice.random() < 0.7 else "done"
    manifest["depends_on"] = [{"job": one.number, "until": until} for one in parents]
    makers = [one for one in parents if one.sizes]
    if makers and until == "success":
        manifest["input"] = {"artifacts": [{"job": makers[0].number, "path": "out0", "name": "handed"}]}
        env["HANDED"] = "handed"
    return {"parents": tuple(one.number for one in parents), "until": until}


def _finished(plan: Plan, env: dict[str, str]) -> Plan:
    manifest = plan.manifest
    manifest["labels"] = {"chaos": str(plan.number), "kind": plan.kind}
    if plan.sizes:
        manifest["artifacts"] = [{"path": f"out{i}"} for i in range(len(plan.sizes))]
    env |= {"NUMBER": str(plan.number), "LINES": str(plan.lines[0]), "ERRORS": str(plan.lines[1])}
    env["SIZES"] = " ".join(map(str, plan.sizes))
    if manifest.get("runner") == "python":
        manifest["params"] = {"number": plan.number, "lines": plan.lines[0], "errors": plan.lines[1]}
    else:
        manifest["env"] = {f"CHAOS_{name}": value for name, value in env.items()}
    return plan


def placed(plan: Plan, seed: int, place: Path, ids: Mapping[int, str], *, named: bool) -> dict[str, Any]:
    """The manifest as it is sent: with the job ids of this run, and where the body and the journals lie."""
    manifest: dict[str, Any] = {**plan.manifest}
    if named and plan.jobs == 1:
        manifest["job_id"] = name_of(seed, plan.number)
    if "depends_on" in manifest:
        manifest["depends_on"] = [{**one, "job": ids[one["job"]]} for one in manifest["depends_on"]]
    if "artifacts" in manifest.get("input", {}):
        handed = manifest["input"]["artifacts"]
        manifest["input"] = {"artifacts": [{**one, "job": ids[one["job"]]} for one in handed]}
    if manifest.get("runner") == "python":
        manifest["params"] = {**manifest["params"], "place": str(place)}
    elif plan.journal:
        manifest |= {"command": "sh", "args": ["-c", f". {place}/body.sh"]}
        manifest["env"] = {**manifest["env"], "CHAOS_PLACE": str(place)}
    else:  # nothing of this place is seen in a sandbox
        manifest |= {"command": "sh", "args": ["-c", BOXED]}
    return manifest


BOXED = (
    "trap '[ $? = 0 ] || exit 66' EXIT; "  # as `body.sh` where it cannot write
    'set -e; i=0; while [ $i -lt $CHAOS_LINES ]; do echo "line $i of $CHAOS_NUMBER $OSTLER_ATTEMPT boxed"; i=$((i+1)); done; '
    'awk -v n="$CHAOS_SIZES" -v w="$CHAOS_NUMBER $OSTLER_ATTEMPT boxed 0" '
    '\'BEGIN{s=""; for(i=0; length(s)<n; i++) s = s i " " w "\\n"; printf "%s", substr(s, 1, n)}\' > out0; sleep 600 & true'
)


def as_data(submission: Submission) -> dict[str, Any]:
    """For a file."""
    return asdict(submission)
