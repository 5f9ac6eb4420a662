"""What a seed decides, it decides alone; and what jobs write is what the checker expects of them."""

import os
import subprocess
from pathlib import Path

import pytest

from chaos import content
from chaos.faults import ACTS
from chaos.schedule import KINDS, schedule
from chaos.workload import placed, workload

ABLE = {"mount", "compiler", "postgresql", "replicas"}


def test_a_seed_is_a_schedule():
    assert schedule(7, 120, able=ABLE) == schedule(7, 120, able=ABLE)
    assert schedule(7, 120, able=ABLE) != schedule(8, 120, able=ABLE)
    assert workload(7, 300, 60) == workload(7, 300, 60)
    assert workload(7, 300, 60) != workload(8, 300, 60)


@pytest.mark.parametrize("seed", range(20))
def test_every_fault_is_healed_by_the_end_and_every_kind_comes(seed):
    faults = schedule(seed, 400, able=ABLE, every_s=1)
    assert [one.at for one in faults] == sorted(one.at for one in faults)
    assert all(one.at + one.lasts <= 400.01 and one.lasts >= 0 for one in faults)
    assert {one.kind for one in faults} == set(KINDS)
    assert all(one.target in KINDS[one.kind].targets for one in faults)


def test_what_a_machine_cannot_do_is_not_asked_of_it():
    assert not {one.kind for one in schedule(3, 900, able=())} & {name for name, kind in KINDS.items() if kind.needs}
    assert {one.kind for one in schedule(3, 90, able=(), only=("cut",))} == {"cut"}
    assert set(ACTS) == set(KINDS), "each kind can be done"


def test_jobs_are_as_many_as_asked_for_and_parents_come_first():
    submissions = workload(5, 700, 60)
    plans = [plan for one in submissions for plan in one.plans]
    assert sum(plan.jobs for plan in plans) == 700
    assert [plan.number for plan in plans] == list(range(len(plans)))
    assert all(parent < plan.number for plan in plans for parent in plan.parents)
    assert [one.at for one in submissions] == sorted(one.at for one in submissions)


@pytest.mark.parametrize("kind", ["instant", "seconds", "chatty", "artifacts", "boxed"])
def test_the_checker_knows_what_a_body_writes(kind, tmp_path):
    plan = next(plan for one in workload(11, 600, 60) for plan in one.plans if plan.kind == kind)
    (tmp_path / "journals").mkdir()
    body = Path(__file__).with_name("body.sh").read_text()
    (tmp_path / "body.sh").write_text(body)
    manifest = placed(plan, 11, tmp_path, {}, named=True)
    told = {"PATH": os.environ["PATH"], "OSTLER_JOB_ID": "j", "OSTLER_ATTEMPT": "3"}
    script = manifest["args"][1].replace("sleep 600 & true", "true")
    done = subprocess.run(
        ["sh", "-c", script], env={**told, **manifest["env"], "CHAOS_PAUSE": "0"}, cwd=tmp_path, capture_output=True, check=True
    )
    of = f"{plan.number} 3 boxed"
    if plan.journal:
        begin, end = [line.split() for line in (tmp_path / "journals" / str(plan.number)).read_text().splitlines()]
        assert (begin[:3], end[:3], end[5]) == (["begin", "j", "3"], ["end", "j", "3"], "0")
        of = f"{plan.number} 3 {begin[3]}"
    facts = {"lines": plan.lines}
    assert done.stdout == content.log(facts, "stdout", of)
    assert done.stderr == content.log(facts, "stderr", of)
    for place, size in enumerate(plan.sizes):
        assert (tmp_path / f"out{place}").read_bytes() == content.artifact(size, of, place)
