"""A thousand jobs that depend on each other, over a real coordinator with nodes that fail, retry, deliver and are cancelled by a
script: all ends are those that a checker works out from the manifests and the script alone.
"""

import asyncio
import contextlib
import json
import os
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from integration.api_rig import Node, Rig, coordinator, sha256
from ostler.model.errors import InvalidTransition
from ostler.model.failures import Failure, FailureCode
from ostler.model.job import LIVE, JobState
from ostler.protocol import messages as m
from ostler.protocol import routes

JOBS = 1000
CALLS = 6  # the graph comes in so many pieces, while nodes are at work already
SEEDS = [int(seed) for seed in os.environ.get("OSTLER_GRAPH_SEEDS", "1,2").split(",")]
CONTENT = b"made"
OUT = m.ArtifactEntry(path="out", type="text/plain", size=len(CONTENT), sha256=sha256(CONTENT))


@dataclass
class Item:
    """One manifest, and what shall happen to each of its jobs."""

    name: str
    count: int | None  # of an array
    depends_on: list[dict] = field(default_factory=list)
    takes: str | None = None  # whose artifact it gets
    retries: int = 0
    fails: int = 0  # so many tries fail first
    delivers: bool = True
    fate: str = "runs"  # or "cancelled" by a person at some time, or "expires"
    released: bool = False  # where it is held, a person lets it go

    @property
    def jobs(self) -> list[str]:
        return [self.name] if self.count is None else [f"{self.name}-{index}" for index in range(self.count)]

    def manifest(self) -> dict:
        found = {
            "job_id": self.name, "command": "true", "array": self.count, "artifacts": [{"path": "out", "optional": True}],
            "retries": {"max": self.retries, "backoff_s": 0.01, "max_backoff_s": 0.01},
            "depends_on": [one["job"] if one.keys() == {"job"} else one for one in self.depends_on],
        }  # fmt: skip
        if self.takes is not None:
            found["input"] = {"artifacts": [{"job": self.takes, "path": "out", "name": "in"}]}
        if self.fate == "expires":
            found |= {"ttl_s": 0.2, "requirements": {"tags": ["nowhere"]}}
        return {key: value for key, value in found.items() if value}


def draw(seed: int, jobs: int = JOBS) -> list[Item]:
    """A graph without cycles: each item depends on earlier ones alone."""
    rng = random.Random(seed)
    items: list[Item] = []
    while (left := jobs - sum(len(one.jobs) for one in items)) > 0:
        item = Item(f"j{len(items)}", min(left, rng.randint(2, 6)) if rng.random() < 0.05 else None)
        near = items[-60:]
        for other in rng.sample(near, min(len(near), rng.choice([0, 1, 1, 2, 2, 3]))):
            name = other.name if other.count is None or rng.random() < 0.7 else rng.choice(other.jobs)
            how = rng.choice([{}, {}, {}, {"until": "done"}, {"until": "done"}, {"otherwise": "hold"}, {"otherwise": "cancel"}])
            item.depends_on.append({"job": name, **how})
        item.retries = rng.choice([0, 0, 1, 2])
        item.fails = rng.choice([0] * 8 + [1, 2])
        item.delivers = rng.random() < 0.95
        item.released = rng.random() < 0.6
        if rng.random() < 0.04:
            item.fate = "cancelled"
        elif not item.depends_on and rng.random() < 0.1:
            item.fate = "expires"
        else:
            sources = [
                one["job"] for one in item.depends_on if "until" not in one and jobs_named(items, one["job"]) == [one["job"]]
            ]
            if sources and rng.random() < 0.3:
                item.takes = rng.choice(sources)
        items.append(item)
    return items


def jobs_named(items: list[Item], name: str) -> list[str]:
    return next((one.jobs for one in items if one.name == name), [name])


def expected(items: list[Item]) -> dict[str, str]:
    """How each job ends: `done`, `failed`, `cancelled`, `expired`, or for ever `held` or `waiting`. A fixpoint over the manifests: a
    job's end is put down once what is known of the others leaves no choice.
    """
    item_of = {job: one for one in items for job in one.jobs}
    members = {one.name: one.jobs for one in items} | {job: [job] for job in item_of}
    ends: dict[str, str] = {}
    while True:
        news: dict[str, str] = {}
        for job, one in item_of.items():
            if job in ends:
                continue
            waits = [(ends.get(other), wait) for wait in one.depends_on for other in members[wait["job"]]]
            missed = [wait for end, wait in waits if end not in {None, "done"} and wait.get("until", "success") == "success"]
            if one.fate == "cancelled" or any(wait.get("otherwise", "cancel") == "cancel" for wait in missed):
                news[job] = "cancelled"
            elif one.fate == "expires":
                news[job] = "expired"
            elif any(end is None for end, _ in waits):
                continue
            elif one.takes is not None and (ends[one.takes] != "done" or not item_of[one.takes].delivers):
                news[job] = "failed"
            elif not missed or one.released:
                news[job] = "done" if one.fails <= one.retries else "failed"
        if not news:
            break
        ends |= news
    left = {}
    for job, one in item_of.items():  # what is left waits for a person, or for somebody who does
        if job not in ends:
            over = [(ends.get(other), wait) for wait in one.depends_on for other in members[wait["job"]]]
            missed = [end for end, wait in over if end not in {None, "done"} and wait.get("until", "success") == "success"]
            left[job] = "held" if missed and not one.released else "waiting"
    return ends | left


class Worker:
    """A node that speaks the protocol and does what the script says."""

    def __init__(self, node: Node, script: dict[str, Item], file) -> None:
        self.node, self.script, self.file = node, script, file
        self.held: dict[m.Held, Item] = {}

    async def run(self) -> None:
        while True:
            answer = await self.node.pull_raw(8, 0.2, tuple(self.held))
            for directive in answer.directives:
                if directive.kind is m.DirectiveKind.CANCEL:
                    held = m.Held(directive.job_id, directive.attempt)
                    if self.held.pop(held, None) is not None:
                        [result] = await self.node.finish(m.Outcome(job_id=held.job_id, attempt=held.attempt, cancelled=True))
                        assert result.ok, result
            leases = self.node.open(answer)
            offered = {m.Held(one.job_id, one.attempt): one for one in leases}
            for result in await self.node.ack(*offered) if offered else ():
                lease = offered[m.Held(result.job_id, result.attempt)]
                if result.ok:
                    await self.work(lease)
                else:  # a person was faster
                    assert self.script[lease.job_id].fate == "cancelled", result

    async def work(self, lease: m.Assignment) -> None:
        item = self.script[lease.job_id]
        if item.takes is not None:
            assert [(one.name, one.sha256) for one in lease.inputs] == [("in", OUT.sha256)]
            assert await self.node.call(routes.GET_BLOB, sha256=OUT.sha256) == CONTENT
        outcome = m.Outcome(job_id=lease.job_id, attempt=lease.attempt)
        if item.fate == "cancelled":  # runs until it is asked to end
            self.held[m.Held(lease.job_id, lease.attempt)] = item
            return
        if lease.tries < item.fails:
            failed = m.Outcome(
                job_id=lease.job_id, attempt=lease.attempt, failure=Failure(FailureCode.EXIT, "as the script says")
            )
            [result] = await self.node.finish(failed)
        elif item.delivers:
            delivered = m.Outcome(job_id=lease.job_id, attempt=lease.attempt, artifacts=(OUT,))
            result = await self.node.rig.nobody.deliver(delivered, {"out": self.file}, token=self.node.token)
        else:
            [result] = await self.node.finish(outcome)
        assert result.ok, result


async def all_jobs(rig: Rig) -> dict[str, m.JobView]:
    found: dict[str, m.JobView] = {}
    cursor = None
    while True:
        page = await rig.people.call(routes.LIST_JOBS, query=m.JobQuery(limit=500, cursor=cursor))
        found |= {one.job_id: one for one in page.items}
        cursor = page.next_cursor
        if cursor is None:
            return found


def seen(view: m.JobView) -> str:
    return (
        view.state.value
        if view.state is not JobState.QUEUED
        else "held"
        if view.held
        else "waiting"
        if view.waiting
        else "queued"
    )


async def people(rig: Rig, items: list[Item], rng: random.Random) -> dict[str, m.JobView]:
    """Submit piece by piece, cancel at any time, release what is held; answers all jobs once nothing moves any more."""
    pieces = [items[len(items) * part // CALLS : len(items) * (part + 1) // CALLS] for part in range(CALLS)]
    cancels: list[str] = []
    for piece in pieces:
        mixed = rng.sample(piece, len(piece))  # within a call the order does not matter
        await rig.people.call(routes.SUBMIT, json.dumps([one.manifest() for one in mixed]).encode())
        cancels += [job for one in piece if one.fate == "cancelled" for job in one.jobs]
        rng.shuffle(cancels)
        while len(cancels) > 5 or (piece is pieces[-1] and cancels):
            await rig.people.call(routes.CANCEL_JOB, m.CancelRequest(reason="the script"), job_id=cancels.pop())
    letting_go = {job for one in items if one.released for job in one.jobs}
    moving = {"queued", "retry_wait", *(state.value for state in LIVE)}
    while True:
        views = await all_jobs(rig)
        states = {job: seen(view) for job, view in views.items()}
        held = [job for job, state in states.items() if state == "held" and job in letting_go]
        for job in held:
            with contextlib.suppress(InvalidTransition):  # it fell meanwhile, because of another one
                await rig.people.call(routes.RELEASE_JOB, job_id=job)
        if not held and not moving & set(states.values()):
            return views
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_thousand_jobs_end_as_the_checker_works_out(tmp_path, seed):
    items = draw(seed)
    script = {job: one for one in items for job in one.jobs}
    file = tmp_path / "out"
    file.write_bytes(CONTENT)
    async with coordinator(tmp_path / "c") as rig:
        workers = [asyncio.create_task(Worker(await rig.enrolled(), script, file).run()) for _ in range(3)]
        person = asyncio.create_task(people(rig, items, random.Random(seed)))
        try:
            done, _ = await asyncio.wait([person, *workers], return_when=asyncio.FIRST_COMPLETED)
            views = next(one.result() for one in done)  # of a worker: why it broke
        finally:
            for task in (person, *workers):
                task.cancel()
            await asyncio.gather(person, *workers, return_exceptions=True)
        wanted = expected(items)
        found = {job: seen(view) for job, view in views.items()}
        differ = {job: (found.get(job), end) for job, end in wanted.items() if found.get(job) != end}
        assert not differ, f"(found, expected) of {len(differ)}: {dict(list(differ.items())[:10])}"
        assert len(found) == len(wanted) == JOBS
        counts = Counter(wanted.values())
        assert all(counts[end] >= 5 for end in ("done", "failed", "cancelled", "expired", "held", "waiting")), counts
        # Who fell because of another says whose end that was, and it is one that it depends on.
        for job in [job for job, end in wanted.items() if end == "cancelled" and script[job].fate != "cancelled"]:
            last = (await rig.show(job)).timeline[-1]
            named = last.message.removeprefix("it depends on the success of ").partition(",")[0]
            assert wanted[named] in {"failed", "cancelled", "expired"}, last
            assert named in {other for wait in script[job].depends_on for other in jobs_named(items, wait["job"])}, last
        tried = {job: view.tries for job, view in views.items() if wanted[job] == "done"}
        assert all(tries == script[job].fails + 1 for job, tries in tried.items())
