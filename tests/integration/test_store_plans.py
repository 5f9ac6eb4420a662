"""How PostgreSQL walks: what a claim, a page or a look at what is due reads does not grow with what is stored, whatever it believes."""

import json
from typing import Any

import pytest

import postgres
from ostler.coordinator.operations import duties, reads, services
from ostler.coordinator.operations.uploads import work_waits
from ostler.coordinator.store.tx import Tx
from ostler.model.manifest import Requirements, Runner
from ostler.protocol import messages as m
from store_rig import Rig

STORED = 20_000
MOST = 1_000  # rows that any one query may look at


def visited(plan: dict[str, Any]) -> float:
    """Rows that the scans of a plan have read, also those that a condition then left out."""
    own = 0.0
    if "Scan" in plan["Node Type"]:
        own = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    return own + sum(visited(below) for below in plan.get("Plans", ()))


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """Each SELECT of an operation, with how many rows it has looked at."""
    found: list[tuple[float, str]] = []
    plain = Tx.rows

    def rows(self: Tx, sql: str, params: Any = ()) -> Any:
        if sql.lstrip().startswith(("SELECT", "WITH")):
            ((plan,),) = plain(self, f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", params)
            (plan,) = json.loads(plan) if isinstance(plan, str) else plan
            found.append((visited(plan["Plan"]), sql))
        return plain(self, sql, params)

    monkeypatch.setattr(Tx, "rows", rows)
    return found


@pytest.mark.parametrize("statistics", ["none", "fresh", "of when there was little"])
async def test_no_query_grows_with_what_is_stored(walks, statistics):
    server = postgres.shared()
    name = server.with_tables()
    rig = Rig.open(server.url(name))
    try:
        await rig.join("n1", slots=4, runners=("cli", "service"), services=("miner",))
        await rig.submit(1)
        fill = f"""INSERT INTO jobs (seq, job_id, state, shape_id, priority, queue, runner, title, labels, submitted_at, attempt, tries,
                                    held, rank, owner, finished_at)
                   SELECT 1000 + g, 'j' || g, CASE WHEN g % 3 = 0 THEN 'done' WHEN g % 5000 = 1 THEN 'failed' ELSE 'queued' END, shape_id,
                          0, queue, runner, title, labels, submitted_at + g, 0, 0, 0, rank + g, 'alice', submitted_at + g
                   FROM jobs, generate_series(1, {STORED}) g WHERE seq = 1"""
        over = f"""INSERT INTO jobs (seq, job_id, state, shape_id, priority, queue, runner, title, labels, submitted_at, attempt, tries,
                                     held, rank, owner, service, verb, target, finished_at)
                   SELECT 100000 + g, 'c' || g, 'done', shape_id, 0, queue, 'service', title, labels, submitted_at, 0, 0, 0, rank, 'alice',
                          'miner', 'stop', 'n1', submitted_at
                   FROM jobs, generate_series(1, {STORED}) g WHERE seq = 1"""
        specs = "INSERT INTO specs SELECT seq, '{}' FROM jobs WHERE seq > 1"
        server.execute("ALTER TABLE jobs SET (autovacuum_enabled = off)", database=name)
        if statistics == "of when there was little":
            server.execute("ANALYZE", database=name)
        server.execute(fill, over, specs, database=name)
        if statistics == "fresh":
            server.execute("ANALYZE", database=name)
        walks.clear()
        assert len(await rig.pull("n1", slots=4)) == 4
        for verb in ("stop", "start", "status"):  # the second stands for the first
            await rig.submit(runner=Runner.SERVICE, command="miner", args=(verb,), requirements=Requirements(node="n1"))
        assert len(await rig.pull("n1", slots=0, fresh=False)) == 2
        await rig.read(services.list_services, m.ServiceQuery(), "miner")
        for query in (
            m.JobQuery(), m.JobQuery(state="queued"), m.JobQuery(state="failed"), m.JobQuery(state="running"), m.JobQuery(owner="alice"),
            m.JobQuery(state="failed", owner="alice"), m.JobQuery(queue="default"), m.JobQuery(queue="other"),
            m.JobQuery(state="done,failed", limit=5), m.JobQuery(state="waiting"), m.JobQuery(node="n1"),
        ):  # fmt: skip
            await rig.read(reads.list_jobs, query)
        for operation in (work_waits, duties.next_due_s, duties.next_start_s, duties.next_expiry_s):
            await rig.read(operation)
        await rig.write(duties.promote_due)
        (lease, *_) = await rig.pull("n1", slots=1, held=(), fresh=False)
        await rig.ack("n1", [lease])
        assert (await rig.finish("n1", lease)).ok
        assert len(walks) > 30
        far = [(rows, sql) for rows, sql in walks if rows > MOST]
        assert not far, far
    finally:
        rig.close()
        server.drop(name)
