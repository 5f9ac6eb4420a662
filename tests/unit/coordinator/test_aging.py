"""What retention decides: ages from the end of a job, arrays whole, the oldest first where a size is the limit."""

from collections import Counter
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from ostler.coordinator.config import CoordinatorConfig, PoolPrice, PoolRetention, Retention
from ostler.coordinator.operations.aging import MB, Aged, Part, Survey, due
from ostler.coordinator.store.times import span

DAY = span(timedelta(days=1))
NOW = 1000 * DAY
POLICY = Retention(
    jobs=timedelta(days=90), logs=timedelta(days=30), artifacts=timedelta(days=20),
    pools={"lab": PoolRetention(logs=timedelta(days=2), artifacts_mb=1)},
)  # fmt: skip


def aged(days: float | None = 0, **changes) -> Aged:
    at = None if days is None else NOW - int(days * DAY)
    return Aged(**{"seq": 1, "job_id": "j", "ended_at": at, "settled_at": at, "pool": None, "needed": False, "logs": 5,
                   "artifacts": 7, **changes})  # fmt: skip


def parts(job: Aged) -> list[Part]:
    return [one.part for one in due(job, POLICY, NOW)]


def test_each_kind_has_its_age():
    assert parts(aged(20)) == []
    assert parts(aged(21)) == [Part.ARTIFACTS]
    assert parts(aged(31)) == [Part.LOGS, Part.ARTIFACTS]
    assert parts(aged(91)) == [Part.LOGS, Part.ARTIFACTS, Part.JOB]
    assert parts(aged(91, logs=0, artifacts=0)) == [Part.JOB]
    assert parts(aged(21, artifacts=0, workspaces=1)) == [Part.ARTIFACTS]


def test_what_is_not_over_or_waited_for_keeps_everything():
    assert parts(aged(None)) == []
    assert parts(aged(500, needed=True)) == []


def test_an_array_goes_whole():
    assert parts(aged(100, settled_at=NOW - DAY)) == [Part.LOGS, Part.ARTIFACTS]
    assert parts(aged(100, settled_at=None)) == [Part.LOGS, Part.ARTIFACTS]


def test_a_pool_has_its_own_ages():
    assert parts(aged(3, pool="lab")) == [Part.LOGS]
    assert parts(aged(3, pool="other")) == []
    assert POLICY.shortest("logs", "jobs") == timedelta(days=2)


def test_a_reason_names_the_age():
    assert [one.why for one in due(aged(91), POLICY, NOW)] == ["older than 30d", "older than 20d", "older than 90d"]


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 4), st.booleans(), st.sampled_from([None, "lab"])), max_size=30))
def test_too_much_goes_from_its_old_end_and_no_more_than_needed(found):
    """Against the plain way: sort all by their end and drop from the front until the rest fits."""
    jobs = [
        aged(days, seq=number, job_id=f"j{number}", artifacts=size * MB, logs=0, needed=needed, pool=pool)
        for number, (days, size, needed, pool) in enumerate(found)
    ]
    policy = Retention(artifacts_mb=10, pools={"lab": PoolRetention(artifacts_mb=4)})
    first = Survey(policy, NOW)
    assert first.see(jobs) == []
    second = Survey(policy, NOW, first.used)
    second.see(jobs)
    gone = {one.seq for one in second.oldest()}

    def plainly(some: list[Aged], limit: int) -> set[int]:
        total, out = sum(one.artifacts for one in some), set()
        for one in sorted(some, key=lambda one: (one.ended_at, one.seq)):
            if total > limit and one.artifacts and not one.needed:
                total -= one.artifacts
                out.add(one.seq)
        return out

    assert gone == plainly(jobs, 10 * MB) | plainly([one for one in jobs if one.pool == "lab"], 4 * MB)
    assert first.excessive() == (
        sum(one.artifacts for one in jobs) > 10 * MB or sum(one.artifacts for one in jobs if one.pool == "lab") > 4 * MB
    )


def test_the_first_walk_only_measures():
    survey = Survey(Retention(logs_mb=0), NOW, Counter())
    survey.see([aged(1)])
    assert survey.oldest() == []
    assert survey.excessive()


def test_mistakes_are_named():
    bad = Retention(jobs=timedelta(0), logs_mb=-1, pools={"lab": PoolRetention(logs=timedelta(seconds=-1))})
    assert list(bad.problems()) == [
        "jobs: must be longer than 0 s", "logs_mb: must be 0 or more", "pools.lab.logs: must be longer than 0 s",
    ]  # fmt: skip


def test_names_that_no_pool_can_have_are_named(tmp_path):
    bad = CoordinatorConfig(data=tmp_path, retention=Retention(pools={"A b": PoolRetention()}), prices={"": PoolPrice()})
    assert bad.problems() == ["prices: '' is no pool's name", "retention.pools: 'A b' is no pool's name"]
