"""The checker: `python -m tests.chaos.check DIR` proves from what a run left behind that everything held, or says what did not.

It shares no code with the system that it judges: the states, their order, and what jobs write are said anew in `law` and `content`.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from . import bytes_rules, law, outcome_rules, stalls, witness_rules
from .evidence import Evidence

Rule = Callable[[Evidence], Iterator[str]]
RULES: tuple[Rule, ...] = (
    law.the_tables_are_sound,
    law.every_history_is_legal,
    witness_rules.acknowledged_jobs_are_there_once,
    witness_rules.everything_came_to_an_end,
    witness_rules.what_was_seen_stays,
    witness_rules.what_nodes_were_promised_stands,
    witness_rules.what_is_served_is_what_is_stored,
    witness_rules.a_cancel_holds,
    witness_rules.nothing_is_left_behind,
    witness_rules.nobody_crashed,
    outcome_rules.executions_belong_to_attempts,
    outcome_rules.attempts_do_not_run_at_once,
    outcome_rules.outcomes_are_true,
    outcome_rules.children_come_after_their_parents,
    bytes_rules.logs_are_whole,
    bytes_rules.artifacts_are_whole,
    stalls.nobody_stood_still,
)
SHOWN = 12


def violations(evidence: Evidence) -> dict[str, list[str]]:
    """What each rule found, by its name."""
    return {rule.__name__: list(rule(evidence)) for rule in RULES}


def report(evidence: Evidence) -> Iterator[str]:
    """What happened in the run: without it, nobody knows whether a proof proves much."""
    ends = Counter(f"{row['state']}{':' + row['failure_code'] if row['failure_code'] else ''}" for row in evidence.jobs.values())
    yield "jobs      " + _listed(ends)
    codes = Counter(row["failure_code"] or row["state"] for row in evidence.attempts.values())
    yield "attempts  " + _listed(codes)
    kept = [one for one in evidence.executions if one.code is not None]
    yield f"ran       {len(evidence.executions)} executions, {len(kept)} to their own end"
    told = Counter(f"{one['call']} {'ok' if one['ok'] else one['code']}" for one in evidence.heard)
    yield "answers   " + _listed(told)
    yield "faults    " + _listed(Counter(one.kind for one in evidence.troubles))
    yield "longest stall  " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stalls.stalls(evidence).items())
    starts = evidence.census.get("starts", {})
    yield "starts    " + _listed(Counter(starts))


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def main(arguments: Sequence[str]) -> int:
    """0: proven. 1: something did not hold. 2: wrong usage."""
    if len(arguments) != 1 or not (Path(arguments[0]) / "run.json").exists():
        print("usage: python -m tests.chaos.check DIR, where DIR is that of a chaos run", file=sys.stderr)
        return 2
    evidence = Evidence(Path(arguments[0]))
    for line in report(evidence):
        print(line)
    broken = False
    for name, found in violations(evidence).items():
        if found:
            broken = True
            print(f"VIOLATED  {name.replace('_', ' ')}: {len(found)}")
            for line in found[:SHOWN]:
                print(f"    {line}")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
