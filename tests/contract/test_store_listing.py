"""Pages of jobs: every filter with every other one, along indexes alone, however few of the jobs that are looked at belong there."""

import itertools
from typing import Any

import pytest

from ostler.coordinator.operations import jobs, listing, reads
from ostler.coordinator.store.tx import Tx
from ostler.model.job import JobState
from ostler.protocol import messages as m
from store_rig import Rig, manifest

OWNERS, QUEUES, LABELS = (None, "ann", "bob"), ("a", "b"), ({}, {"k": "v"})
FILTERS = {
    "state": (None, "queued", "done,running", "waiting", "waiting,cancelled", "queued,waiting", "failed"),
    "owner": (None, "ann", "nobody"), "queue": (None, "b"), "node": (None, "n1"), "group": (None, "g"), "label": (None, "k=v"),
}  # fmt: skip
QUERIES = [dict(zip(FILTERS, values, strict=True)) for values in itertools.product(*FILTERS.values())]

only_sqlite = pytest.mark.parametrize(
    "store_url", ["sqlite"], indirect=True
)  # how it explains a plan; PostgreSQL's: test_store_plans


async def _some(rig: Rig) -> list[m.JobView]:
    """Jobs of all sorts; all of them as views, newest first."""
    await rig.join("n1", slots=64)
    for owner, queue, labels in itertools.product(OWNERS, QUEUES, LABELS):
        plain = [manifest(queue=queue, labels=labels)] * 3
        late = [manifest(queue=queue, labels=labels, not_before="2099-01-01T00:00:00Z")]
        await rig.write(jobs.submit_jobs, [*plain, *late], owner)
    await rig.write(jobs.submit_jobs, [manifest(queue="a", labels={"k": "v"})] * 3, "ann", group="g")
    for number, lease in enumerate(await rig.pull("n1", slots=20)):
        await rig.ack("n1", [lease])
        if number % 2:
            await rig.finish("n1", lease)
    for view in (await rig.read(reads.list_jobs, m.JobQuery(state="waiting", owner="bob"))).items:
        await rig.write(jobs.cancel_job, view.job_id)
    return list((await rig.read(reads.list_jobs, m.JobQuery(limit=500))).items)


def _belongs(view: m.JobView, query: dict[str, Any]) -> bool:
    states = (query["state"] or "").split(",") if query["state"] else None
    is_waiting = view.waiting and view.state is JobState.QUEUED
    return (
        (states is None or view.state.value in states or ("waiting" in states and is_waiting))
        and all(query[name] in (None, getattr(view, attribute)) for name, attribute in (
            ("owner", "owner"), ("queue", "queue"), ("node", "node_id"), ("group", "group_id")))
        and (query["label"] is None or view.labels.get("k") == "v")
    )  # fmt: skip


@pytest.mark.parametrize(("looked", "queries"), [(7, QUERIES[::5]), (10_000, QUERIES)], ids=["few are looked at", "all"])
async def test_every_filter_with_every_other_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, looked: int, queries: list[dict[str, Any]]
):
    monkeypatch.setattr(listing, "MAX_LOOKED", looked)
    monkeypatch.setattr(listing, "WINDOW", 3)
    everything = await _some(rig)
    assert {view.state for view in everything} >= {JobState.QUEUED, JobState.DONE, JobState.ACKED, JobState.CANCELLED}
    for query in queries:
        wanted = [view.job_id for view in everything if _belongs(view, query)]
        found: list[str] = []
        cursor, pages = None, 0
        while pages == 0 or cursor is not None:
            page = await rig.read(reads.list_jobs, m.JobQuery(**query, cursor=cursor, limit=6, count=pages == 0))
            if pages == 0:
                assert page.total == len(wanted), query
            found += [view.job_id for view in page.items]
            cursor, pages = page.next_cursor, pages + 1
            assert pages <= len(everything)
        assert found == wanted, query


@only_sqlite
async def test_every_filter_walks_an_index_in_the_order_of_the_page(rig: Rig):
    await _some(rig)

    def plans(tx: Tx, query: dict[str, Any]) -> list[str]:
        walks = list(listing.walks_of(tx, m.JobQuery(**query), listing._states(query["state"])))
        found = []
        for walk in walks:
            sql = listing.window_sql(walk) if walk.besides else listing.walk_sql(walk)
            more = [9, 5] if walk.besides else [9, 1, 5]
            found += [row[3] for row in tx.rows(f"EXPLAIN QUERY PLAN {sql}", (*walk.besides_params, *walk.params, *more))]
        return found

    for query in QUERIES:
        for step in await rig.read(plans, query):
            assert "TEMP B-TREE" not in step, (query, step)
            assert not step.startswith("SCAN") or "ix_jobs_waiting" in step, (query, step)


@only_sqlite
@pytest.mark.parametrize(("column", "where", "params"), [
    ("owner", "", ["queued"]), ("queue", " AND owner = ?", ["queued", "ann"]), ("queue", " AND owner IS NULL", ["queued"]),
])  # fmt: skip
async def test_owners_and_queues_are_found_by_one_step_each(rig: Rig, column: str, where: str, params: list[str]):

    def plan(tx: Tx) -> str:
        rows = tx.rows(f"EXPLAIN QUERY PLAN {listing.steps_sql(tx, column, where)}", (*params, *params))
        return "\n".join(row[3] for row in rows)

    found = await rig.read(plan)
    assert f"{column}>?" in found
    assert "SCAN jobs" not in found
