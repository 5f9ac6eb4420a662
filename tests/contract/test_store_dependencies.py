"""The store contract: jobs that wait for others, what each end means to them, and artifacts that are handed on."""

import pytest

from ostler.coordinator.operations import duties, groups, jobs, reads
from ostler.coordinator.operations.dependencies import MAX_EDGES
from ostler.model.dependencies import Dependency, Otherwise, Until
from ostler.model.errors import InvalidSpec, TooLarge
from ostler.model.failures import Failure, FailureCode
from ostler.model.group import GroupState
from ostler.model.job import JobState
from ostler.model.manifest import Artifact, InputArtifact, InputFile, Inputs
from ostler.protocol import messages as m
from store_rig import Rig, manifest

S = JobState
HOLD = Dependency(job="a", otherwise=Otherwise.HOLD)
ANY = Dependency(job="a", until=Until.DONE)


async def submit(rig: Rig, *some: dict, **how) -> list[str]:
    """Several manifests in one call; arrays among them."""
    accepted = []
    for fields in some:
        one = manifest(**fields)
        accepted += groups.expand(*one) if one[0].array else [one]
    answer = await rig.write(jobs.submit_jobs, accepted, **how)
    return [one.job_id for one in answer.items]


async def states(rig: Rig, *names: str) -> list[str]:
    found = [await rig.job(name) for name in names]
    return ["held" if one.held else "waiting" if one.waiting else one.state.value for one in found]


async def end(rig: Rig, name: str, code: FailureCode | None = None, **outcome) -> None:
    """Lease everything, and end the attempt of this job (others go back)."""
    for lease in await rig.pull(slots=100):
        if lease.job_id == name:
            assert all(one.ok for one in await rig.ack("n1", [lease]))
            assert (await (rig.finish("n1", lease, **outcome) if code is None else rig.fail("n1", lease, code))).ok
            break
    else:
        raise AssertionError(f"{name} was not to be had")
    await rig.pull(slots=0)


async def last(rig: Rig, name: str) -> tuple[str, str | None]:
    event = (await rig.job(name)).timeline[-1]
    return event.kind, event.message


@pytest.fixture(autouse=True)
async def node(rig: Rig):
    await rig.join(slots=100)


async def test_a_job_waits_for_another(rig: Rig):
    await submit(rig, {"job_id": "b", "depends_on": ("a",)}, {"job_id": "a"})  # in any order
    assert await states(rig, "a", "b") == ["queued", "waiting"]
    assert (await rig.read(reads.explain_job, "b")).summary == "it waits for 1 job: a (queued)"
    (only,) = (await rig.job("b")).depends_on
    assert only == m.DependencyView(job_id="a", state=S.QUEUED, until=Until.SUCCESS, otherwise=Otherwise.CANCEL)
    assert [one.job_id for one in (await rig.job("a")).dependents] == ["b"]
    await end(rig, "a")
    assert await states(rig, "a", "b") == ["done", "queued"]
    assert await last(rig, "b") == ("ready", "what it waited for is over")
    await end(rig, "b")
    assert await states(rig, "b") == ["done"]
    assert ((await rig.job("b")).depends_on[0].state, (await rig.job("a")).dependents[0].state) == (S.DONE, S.DONE)


@pytest.mark.parametrize(
    ("dependency", "how", "expected", "said"),
    [
        ("a", "done", "queued", ("ready", "what it waited for is over")),
        ("a", "failed", "cancelled", ("cancel", "it depends on the success of a, which failed")),
        ("a", "cancelled", "cancelled", ("cancel", "it depends on the success of a, which was cancelled")),
        ("a", "expired", "cancelled", ("cancel", "it depends on the success of a, which expired")),
        (HOLD, "done", "queued", ("ready", "what it waited for is over")),
        (HOLD, "failed", "held", ("ready", "what it waited for is over")),
        (ANY, "done", "queued", ("ready", "what it waited for is over")),
        (ANY, "failed", "queued", ("ready", "what it waited for is over")),
        (ANY, "cancelled", "queued", ("ready", "what it waited for is over")),
        (ANY, "expired", "queued", ("ready", "what it waited for is over")),
    ],
)
@pytest.mark.parametrize("before", [False, True])
async def test_what_each_end_means(rig: Rig, dependency, how, expected, said, before):
    async def over():
        if how == "cancelled":
            await rig.write(jobs.cancel_job, "a")
        elif how == "expired":
            rig.clock.advance(100)
            await rig.write(duties.expire_due)
        else:
            await end(rig, "a", None if how == "done" else FailureCode.EXIT)

    await submit(rig, {"job_id": "a", "ttl_s": 50.0, "retries": 0})
    if before:  # already over when somebody comes to wait for it
        await over()
    await submit(rig, {"job_id": "b", "depends_on": (dependency,)})
    if not before:
        assert await states(rig, "b") == ["waiting"]
        await over()
    assert await states(rig, "a", "b") == [how, expected]
    assert await last(rig, "b") == said
    if expected == "held":
        assert (await rig.kinds("b"))[-2:] == ["hold", "ready"]
        await rig.write(jobs.release_job, "b")
        await end(rig, "b")
        assert await states(rig, "b") == ["done"]


async def test_a_retry_in_between_is_no_end(rig: Rig):
    await submit(rig, {"job_id": "a", "retries": 1}, {"job_id": "b", "depends_on": ("a",)})
    await end(rig, "a", FailureCode.EXIT)
    assert await states(rig, "a", "b") == ["retry_wait", "waiting"]
    rig.clock.advance(60)
    await rig.write(duties.promote_due)
    await end(rig, "a")
    assert await states(rig, "a", "b") == ["done", "queued"]


async def test_it_waits_for_all_of_them(rig: Rig):
    await submit(
        rig, {"job_id": "a"}, {"job_id": "b"}, {"job_id": "c", "depends_on": ("a", Dependency(job="b", until=Until.DONE))}
    )
    await end(rig, "b", FailureCode.DENY)
    assert await states(rig, "c") == ["waiting"]
    await end(rig, "a")
    assert await states(rig, "c") == ["queued"]


async def test_it_waits_for_jobs_and_for_its_time(rig: Rig):
    from datetime import timedelta

    later = f"{rig.clock.now() + timedelta(seconds=60):%Y-%m-%dT%H:%M:%SZ}"
    await submit(rig, {"job_id": "a"}, *({"job_id": name, "depends_on": ("a",), "not_before": later} for name in "bc"))
    assert "for 1 job: a (queued) and until" in (await rig.read(reads.explain_job, "b")).summary
    await end(rig, "a")
    assert await states(rig, "b") == ["waiting"]
    assert await rig.kinds("b") == ["submit"]
    rig.clock.advance(60)
    await rig.write(duties.start_due)
    assert await states(rig, "b", "c") == ["queued", "queued"]
    await submit(rig, {"job_id": "d"}, {"job_id": "e", "depends_on": ("d",), "not_before": later.replace("Z", "+00:00")})
    assert await states(rig, "e") == ["waiting"]


async def test_an_array_is_all_its_jobs(rig: Rig):
    await submit(rig, {"job_id": "a", "array": 3}, {"job_id": "b", "depends_on": ("a",)}, {"job_id": "c", "depends_on": ("a-1",)})
    await submit(rig, {"job_id": "d", "depends_on": ("a",)})
    for name, expected in (("a-2", "waiting"), ("a-1", "waiting"), ("a-0", "queued")):
        await end(rig, name)
        assert await states(rig, "b", "d") == [expected] * 2
        if name == "a-1":
            assert await states(rig, "c") == ["queued"]
    await submit(rig, {"job_id": "e", "array": 2, "depends_on": ("b",)})
    await rig.write(jobs.cancel_job, "b")
    assert await states(rig, "e-0", "e-1") == ["cancelled"] * 2
    assert (await rig.read(groups.show_group, "e")).state is GroupState.CANCELLED


async def test_what_cannot_come_any_more_falls_through_to_the_end(rig: Rig):
    await submit(
        rig, {"job_id": "a"},
        {"job_id": "b", "depends_on": ("a",)}, {"job_id": "c", "depends_on": ("b",)},
        {"job_id": "d", "depends_on": (Dependency(job="c", otherwise=Otherwise.HOLD),)},
        {"job_id": "e", "depends_on": (Dependency(job="c", until=Until.DONE),)},
        {"job_id": "f", "depends_on": ("d",)}, {"job_id": "g", "depends_on": ("e", "x")}, {"job_id": "x"},
    )  # fmt: skip
    await rig.write(jobs.cancel_job, "a", "not any more")
    assert await states(rig, *"abcdefg") == ["cancelled"] * 3 + ["held", "queued", "waiting", "waiting"]
    assert await last(rig, "c") == ("cancel", "it depends on the success of b, which was cancelled")
    assert (await rig.job("d")).timeline[-2].message == "it depends on the success of c, which was cancelled"


async def test_people_act_on_what_waits(rig: Rig):
    await submit(rig, {"job_id": "a"}, *({"job_id": name, "depends_on": ("a",)} for name in "bcd"))
    await rig.write(jobs.hold_job, "b")
    await rig.write(jobs.cancel_job, "c")
    await rig.write(jobs.hold_job, "d")
    await rig.write(jobs.release_job, "d")
    assert await states(rig, *"bcd") == ["held", "cancelled", "waiting"]
    await end(rig, "a")
    assert await states(rig, *"bcd") == ["held", "cancelled", "queued"]
    assert (await rig.kinds("c"))[-1] == "cancel"
    await rig.write(jobs.release_job, "b")
    assert await states(rig, "b") == ["queued"]


async def test_a_hold_is_said_once_and_a_release_stands(rig: Rig):
    await submit(rig, {"job_id": "a", "retries": 0}, {"job_id": "x"}, {"job_id": "b", "depends_on": (HOLD, "x")})
    await end(rig, "a", FailureCode.EXIT)
    assert (await states(rig, "b"), (await rig.job("b")).waiting) == (["held"], True)
    await rig.write(jobs.release_job, "b")
    assert await states(rig, "b") == ["waiting"]
    await submit(rig, {"job_id": "y", "depends_on": (HOLD,)})  # who comes later to what is over moves nobody else
    assert await states(rig, "b", "y") == ["waiting", "held"]
    await end(rig, "x")
    assert await states(rig, "b") == ["queued"]
    assert (await rig.kinds("b")).count("hold") == 1


async def test_a_retry_is_a_job_of_its_own(rig: Rig):
    await submit(rig, {"job_id": "a", "retries": 0}, {"job_id": "x"}, {"job_id": "b", "depends_on": ("a", "x")})
    await end(rig, "a", FailureCode.EXIT)
    anew = (await rig.write(jobs.retry_job, "a")).job_id
    assert await states(rig, "b") == ["cancelled"]  # it stays as it ended
    again = (await rig.write(jobs.retry_job, "b")).job_id
    assert await states(rig, again) == ["waiting"]
    assert [one.job_id for one in (await rig.job(again)).depends_on] == ["x"]  # a person's wish: what is over is over
    await end(rig, "x")
    assert await states(rig, again) == ["queued"]
    assert await states(rig, (await rig.write(jobs.retry_job, "b")).job_id, anew) == ["queued", "queued"]


# --- what is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("some", "path", "said"),
    [
        ([{"depends_on": ("none",)}], "depends_on[0]", "there is no job, array or group none"),
        ([{"depends_on": ("old",)}, {"depends_on": ("old", "x-0")}], "[1].depends_on[1]", "there is no job, array or group x-0"),
        ([{"job_id": "a", "depends_on": ("a",)}], "depends_on", "a depends on itself"),
        (
            [{"job_id": "a", "depends_on": ("b",)}, {"job_id": "b", "depends_on": ("c",)}, {"job_id": "c", "depends_on": ("a",)}],
            "[0].depends_on",
            "a → b → c → a: they depend on each other in a circle, and none could ever begin",
        ),
        ([{"job_id": "a", "array": 3, "depends_on": ("a",)}], "depends_on", "a depends on itself"),
        ([{"job_id": "a", "array": 3, "depends_on": ("a-1",)}], "depends_on", "a depends on itself"),
        (
            [{"job_id": "a", "array": 2, "depends_on": ("b",)}, {"job_id": "b", "depends_on": ("a-0",)}],
            "[0].depends_on",
            "a → b → a:",
        ),
        (
            [{"job_id": "a", "array": 2}, {"depends_on": ("a", Dependency(job="a-1", until=Until.DONE))}],
            "[1].depends_on[1]",
            "a-1 is depended on through a already",
        ),
    ],
)
async def test_dependencies_that_are_refused(rig: Rig, some, path, said):
    await rig.submit(job_id="old")
    before = await rig.everything()
    with pytest.raises(InvalidSpec) as caught:
        await submit(rig, *some)
    assert [(one.path, one.message.startswith(said)) for one in caught.value.problems] == [(path, True)], caught.value.problems
    assert await rig.everything() == before
    for table in ("dependencies", "handed", "groups"):
        assert await rig.rows(f"SELECT * FROM {table}") == []


async def test_a_long_cycle_is_told_in_short(rig: Rig):
    ring = [{"job_id": f"j{i}", "depends_on": (f"j{(i + 1) % 500}",)} for i in range(500)]
    with pytest.raises(InvalidSpec, match=r"j0 → j1 → j2 → j3 → j4 → \(490 more\) → j495 → .* → j499 → j0: they depend"):
        await submit(rig, *ring)


async def test_jobs_of_others_are_not_there(rig: Rig):
    await submit(rig, {"job_id": "a"}, {"job_id": "arr", "array": 2}, owner="ann", reach="ann")
    for name in ("a", "arr", "arr-0"):
        with pytest.raises(InvalidSpec, match=f"there is no job, array or group {name}"):
            await submit(rig, {"depends_on": (name,)}, owner="bob", reach="bob")
    await submit(rig, {"job_id": "b", "depends_on": ("a", "arr")}, owner="ann", reach="ann")
    await submit(rig, {"job_id": "c", "depends_on": ("a", "arr")}, owner="root", reach=None)  # who reaches all
    assert [one.job_id for one in (await rig.job("a")).dependents] == ["b", "c"]
    assert [one.job_id for one in (await rig.read(reads.show_job, "a", "ann")).dependents] == ["b"]


async def test_too_many_pairs_are_refused_before_they_are_made(rig: Rig):
    wide = int(MAX_EDGES**0.5) + 1
    await submit(rig, {"job_id": "old", "array": wide})
    for name in ("a", "old"):
        with pytest.raises(TooLarge, match=r"pairs of a job and one that it depends on are more than the 100000"):
            await submit(rig, {"job_id": "a", "array": wide}, {"job_id": "b", "array": wide, "depends_on": (name,)})


# --- artifacts that are handed on --------------------------------------------------------------------------------------------

OUT = m.ArtifactEntry(path="out/film.mp4", type="video/mp4", size=3, sha256="a" * 64)
MAKER = {"job_id": "a", "artifacts": (Artifact(path="out/film.mp4", optional=True),), "retries": 0}


def taker(name: str = "b", *, job: str = "a", path: str = "out/film.mp4", to: str | None = None, **more) -> dict:
    return {
        "job_id": name,
        "depends_on": (job,),
        "input": Inputs(artifacts=(InputArtifact(job=job, path=path, name=to),)),
        **more,
    }


async def test_an_artifact_is_handed_on(rig: Rig):
    await submit(rig, MAKER, taker(), taker("c", to="in.mp4"))
    assert not await rig.read(reads.blob_for_node, "n1", OUT.sha256)
    await end(rig, "a", artifacts=(OUT,))
    (first, second) = await rig.begin(slots=9)
    assert first.inputs == (InputFile(name="film.mp4", sha256=OUT.sha256, size=3),)
    assert second.inputs == (InputFile(name="in.mp4", sha256=OUT.sha256, size=3),)
    assert await rig.read(reads.blob_for_node, "n1", OUT.sha256)  # while it holds an attempt that needs the bytes
    for lease in (first, second):
        await rig.finish("n1", lease)
    assert not await rig.read(reads.blob_for_node, "n1", OUT.sha256)


async def test_only_the_last_attempt_counts(rig: Rig):
    await submit(rig, {**MAKER, "retries": 1}, taker())
    old = m.ArtifactEntry(path=OUT.path, type="x", size=9, sha256="b" * 64)
    (lease,) = await rig.begin()
    failure = Failure(FailureCode.EXIT, "it broke")
    await rig.finish("n1", lease, failure=failure, artifacts=(old,))
    rig.clock.advance(60)
    await rig.write(duties.promote_due)
    await end(rig, "a", artifacts=(OUT,))
    (lease,) = await rig.begin()
    assert [one.sha256 for one in lease.inputs] == [OUT.sha256]


async def test_an_artifact_that_is_missing_is_the_end(rig: Rig):
    await submit(
        rig,
        MAKER,
        taker(),
        {"job_id": "c", "depends_on": ("b",)},
        {"job_id": "d", "depends_on": (Dependency(job="b", until=Until.DONE),)},
    )
    await end(rig, "a")
    view = await rig.job("b")
    assert (view.state, view.attempt, view.tries) == (S.FAILED, 0, 0)
    assert view.failure is not None
    assert (view.failure.code, view.failure.message) == (
        FailureCode.INPUT, "job a delivered no artifact 'out/film.mp4', which is its input",
    )  # fmt: skip
    assert await states(rig, "c", "d") == ["cancelled", "queued"]
    assert await rig.rows("SELECT * FROM inputs") == []
    await submit(rig, {**MAKER, "job_id": "e"}, taker("f", job="e", depends_on=(Dependency(job="e", otherwise=Otherwise.HOLD),)))
    await end(rig, "e", FailureCode.EXIT)
    failure = (await rig.job("f")).failure
    assert failure is not None
    assert failure.message == "job e, whose artifact 'out/film.mp4' is its input, failed"


async def test_artifacts_of_jobs_that_are_done(rig: Rig):
    await submit(rig, MAKER)
    with pytest.raises(InvalidSpec) as caught:
        await submit(rig, taker(depends_on=()))
    assert [(one.path, one.message) for one in caught.value.problems] == [
        ("input.artifacts[0].job", "the success of a is not waited for; name it in `depends_on`")
    ]
    await end(rig, "a", artifacts=(OUT,))
    await submit(rig, taker(depends_on=()), taker("c"))
    assert await states(rig, "b", "c") == ["queued", "queued"]
    assert [[one.name for one in lease.inputs] for lease in await rig.begin()] == [["film.mp4"]] * 2


@pytest.mark.parametrize(
    ("fields", "path", "said"),
    [
        (taker(path="none"), "input.artifacts[0].path", "that job delivered no artifact 'none'"),
        (taker(depends_on=(), path="none"), "input.artifacts[0].path", "that job delivered no artifact 'none'"),
        (taker(job="fresh", path="none"), "input.artifacts[0].path", "that job declares no artifact 'none'"),
        (taker(job="nobody", depends_on=()), "input.artifacts[0].job", "nobody is no job that is there"),
        (taker(job="arr"), "input.artifacts[0].job", "arr is an array or group; name one of its jobs"),
        (
            taker(depends_on=(Dependency(job="a", until=Until.DONE),)),
            "input.artifacts[0].job",
            "the success of a is not waited for; name it in `depends_on`",
        ),
    ],
)
async def test_artifacts_that_cannot_come_are_refused(rig: Rig, fields, path, said):
    await submit(rig, MAKER)
    await end(rig, "a", artifacts=(OUT,))
    with pytest.raises(InvalidSpec) as caught:
        await submit(rig, fields, {"job_id": "fresh"}, {"job_id": "arr", "array": 2})
    assert [(one.path, one.message) for one in caught.value.problems] == [(f"[0].{path}", said)]


async def test_arrays_hand_on_number_by_number(rig: Rig):
    make = {"job_id": "make", "array": 3, "artifacts": (Artifact(path="{index}.out"),)}
    take = taker("take", job="make-{index}", path="{index}.out", array=3, depends_on=("make",))
    await submit(rig, make, take)
    for lease in await rig.begin(slots=9):
        index = lease.job_id[-1]
        entry = m.ArtifactEntry(path=f"{index}.out", type="x", size=1, sha256=index * 64)
        await rig.finish("n1", lease, artifacts=(entry,))
    some = await rig.begin(slots=9)
    assert {one.job_id: [file.sha256[0] for file in one.inputs] for one in some} == {f"take-{i}": [str(i)] for i in range(3)}


async def test_a_retry_gets_the_same_artifacts(rig: Rig):
    await submit(rig, MAKER, taker(retries=0))
    await end(rig, "a", artifacts=(OUT,))
    await end(rig, "b", FailureCode.EXIT)
    anew = await rig.write(jobs.retry_job, "b")
    (lease,) = await rig.begin()
    assert (lease.job_id, [one.sha256 for one in lease.inputs]) == (anew.job_id, [OUT.sha256])


# --- size --------------------------------------------------------------------------------------------------------------------


async def test_ten_thousand_in_a_chain_and_in_a_fan(rig: Rig):
    chain = [{"job_id": "c0"}] + [{"job_id": f"c{i}", "depends_on": (f"c{i - 1}",)} for i in range(1, 5000)]
    fan = [{"job_id": f"f{i}", "depends_on": ("c4999",)} for i in range(5000)]
    await submit(rig, *chain, *fan)
    await rig.write(jobs.cancel_job, "c0")
    assert await rig.rows("SELECT state, waits, count(*) FROM jobs GROUP BY state, waits") == [("cancelled", 0, 10_000)]
    assert await last(rig, "f0") == ("cancel", "it depends on the success of c4999, which was cancelled")


async def test_one_look_tells_that_nobody_waits(rig: Rig):
    await submit(rig, {"job_id": "a"}, {"job_id": "b", "depends_on": ("a",)})
    plan = await rig.plan(
        "SELECT d.on_seq FROM dependencies d JOIN jobs j ON j.seq = d.job_seq "
        "WHERE d.on_seq IN (1, 2) AND d.job_seq >= 0 AND (j.waits & 1) = 1"
    )
    # PostgreSQL counts the rows now and then, and begins a table of one with whichever index it likes.
    wanted = ("pk_dependencies", "ix_dependencies_job") if rig.on_postgres else ("SEARCH d USING PRIMARY KEY (on_seq=?",)
    assert any(way in plan for way in wanted), plan
