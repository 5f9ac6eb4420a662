"""Manifests: what is accepted, what is refused and under which path; encodings round-trip and ignore unknown fields."""

import dataclasses
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.model.calls import Code
from ostler.model.errors import InvalidSpec, Problem
from ostler.model.failures import CODES, FailureCode, Retry
from ostler.model.manifest import (
    MAX_DEPENDENCIES,
    Artifact,
    InputArtifact,
    InputFile,
    Inputs,
    InputUrl,
    Manifest,
    Policy,
    Requirements,
    RetryPolicy,
    Runner,
    SecretUse,
    problems,
    problems_at,
    retry_policy,
    unsafe_name,
    unsafe_path,
)

SECTION_8 = b"""{
  "job_id": "j-20250926-001",
  "runner": "cli",
  "requirements": {"gpu": true, "vram_mb": 12000, "cpu_threads": 4},
  "timeout_s": 3600,
  "input": {"urls": ["https://.../input1"], "inline": {"text": "..."}},
  "command": "ffmpeg",
  "args": ["-y", "-i", "input1.mp4", "-c:v", "libx264", "output.mp4"],
  "artifacts": [{"path": "output.mp4", "type": "video/mp4", "max_mb": 5000}]
}"""


def ok(**fields):
    return Manifest(**{"command": "true", **fields})


def paths(manifest):
    return [problem.path for problem in problems(manifest)]


def test_the_manifest_of_the_source_is_accepted_as_printed():
    manifest = msgspec.json.decode(SECTION_8, type=Manifest)
    assert problems(manifest) == []
    assert manifest.requirements.gpu_count == 1
    assert manifest.timeout == timedelta(hours=1)
    assert manifest.artifacts == (Artifact(path="output.mp4", type="video/mp4", max_mb=5000),)


def test_unknown_fields_of_a_later_release_are_ignored():
    assert msgspec.json.decode(b'{"command": "true", "aura": {"x": [1]}, "policy": {"glow": 3}}', type=Manifest) == ok()


texts = st.text(max_size=20)
manifests = st.builds(
    Manifest,
    runner=st.sampled_from(Runner),
    job_id=st.none() | texts,
    command=st.none() | texts,
    args=st.lists(texts, max_size=3).map(tuple),
    params=st.dictionaries(texts, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts, max_size=3),
    requirements=st.builds(
        Requirements, gpu=st.booleans(), vram_mb=st.integers(0, 10**6), tags=st.lists(texts, max_size=2).map(tuple)
    ),
    timeout_s=st.floats(0.1, 1e6),
    input=st.builds(
        Inputs,
        urls=st.lists(texts | st.builds(InputUrl, url=texts, name=st.none() | texts), max_size=2).map(tuple),
        inline=st.dictionaries(texts, texts, max_size=2),
        files=st.lists(st.builds(InputFile, name=texts, sha256=texts, size=st.integers(0, 10**12)), max_size=2).map(tuple),
    ),
    retries=st.none() | st.integers(0, 100) | st.builds(RetryPolicy, max=st.integers(0, 9)),
    labels=st.dictionaries(texts, texts, max_size=2),
    policy=st.builds(Policy, memory_mb=st.none() | st.integers(1, 10**6)),
)


@given(manifests)
def test_encoding_round_trips(manifest):
    assert msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest) == manifest


@given(manifests)
def test_any_manifest_of_the_right_shape_gets_a_verdict(manifest):
    for problem in problems(manifest):
        assert problem.message
        assert isinstance(problem.path, str)


BAD = [
    ({"job_id": "../x"}, "job_id"),
    ({"job_id": ""}, "job_id"),
    ({"command": None}, "command"),
    ({"command": "a" * 256}, "command"),
    ({"task": "resize"}, "task"),
    ({"runner": Runner.CONTAINER}, "runner"),
    ({"args": ("a\0b",)}, "args[0]"),
    ({"args": ("a", "\udcff")}, "args[1]"),
    ({"command": "\udcff"}, "command"),
    ({"stdout": "\udcff"}, "stdout"),
    ({"artifacts": (Artifact(path="a/\udcff"),)}, "artifacts[0].path"),
    ({"labels": {"a": "\udcff"}}, "labels.a"),
    ({"args": ("x" * 70_000, "y" * 70_000)}, "args"),
    ({"retries": 101}, "retries"),
    ({"timeout_s": 0}, "timeout_s"),
    ({"timeout_s": float("nan")}, "timeout_s"),
    ({"ttl_s": -1.0}, "ttl_s"),
    ({"priority": 1001}, "priority"),
    ({"queue": "a b"}, "queue"),
    ({"retries": -1}, "retries"),
    ({"retries": RetryPolicy(backoff_s=-1)}, "retries.backoff_s"),
    ({"retries": RetryPolicy(codes=(FailureCode.DENY,))}, "retries.codes"),
    ({"stdout": "../log"}, "stdout"),
    ({"requirements": Requirements(vram_mb=-1)}, "requirements.vram_mb"),
    ({"requirements": Requirements(tags=("a b",))}, "requirements.tags[0]"),
    ({"requirements": Requirements(node="a/b")}, "requirements.node"),
    ({"requirements": Requirements(pool="a/b")}, "requirements.pool"),
    ({"policy": Policy(memory_mb=0)}, "policy.memory_mb"),
    ({"labels": {"-": "x"}}, "labels.-"),
    ({"labels": {"a": "x" * 256}}, "labels.a"),
    ({"labels": {f"k{i}": "" for i in range(65)}}, "labels"),
    ({"env": {"A-B": "x"}}, "env.A-B"),
    ({"env": {"A": "x\0"}}, "env.A"),
    ({"input": Inputs(urls=("ftp://x/y",))}, "input.urls[0]"),
    ({"input": Inputs(urls=(InputUrl(url="http://h/x", name="../x"),))}, "input.urls[0].name"),
    ({"input": Inputs(urls=(InputUrl(url="http://h/x", sha256="ABC"),))}, "input.urls[0].sha256"),
    ({"input": Inputs(urls=(InputUrl(url="http://h/x", max_mb=0),))}, "input.urls[0].max_mb"),
    ({"input": Inputs(inline={"a/b": ""})}, "input.inline.a/b"),
    ({"input": Inputs(files=(InputFile(name="-i", sha256="0" * 64, size=1),))}, "input.files[0].name"),
    ({"input": Inputs(files=(InputFile(name="i", sha256="0", size=-1),))}, "input.files[0].sha256"),
    ({"artifacts": (Artifact(path="/etc/passwd"),)}, "artifacts[0].path"),
    ({"artifacts": (Artifact(path="a/../b"),)}, "artifacts[0].path"),
    ({"artifacts": (Artifact(path="a"), Artifact(path="a"))}, "artifacts[1].path"),
    ({"artifacts": (Artifact(path="a", max_mb=0),)}, "artifacts[0].max_mb"),
]


@pytest.mark.parametrize(("fields", "path"), BAD, ids=[path for _, path in BAD])
def test_each_mistake_is_named_by_its_path(fields, path):
    assert path in paths(ok(**fields))


def test_python_jobs_need_a_task_and_no_command():
    assert paths(Manifest(runner=Runner.PYTHON)) == ["task"]
    assert paths(Manifest(runner=Runner.PYTHON, task="a-b")) == ["task"]
    assert paths(Manifest(runner=Runner.PYTHON, task="resize.fast", params={"w": 3})) == []
    assert paths(Manifest(runner=Runner.PYTHON, task="x", command="y")) == ["command"]


@pytest.mark.parametrize(
    ("task", "params", "expected"),
    [
        ("x:f", {}, []),
        ("a.b:f", {"args": [1], "kwargs": {"k": 2}}, []),
        ("x:f", {"batch": [{"args": [1]}, {}], "results": "pickle"}, []),
        ("x:_f", {}, ["task"]),
        ("x:f.g", {}, ["task"]),
        ("x:", {}, ["task"]),
        (":f", {}, ["task"]),
        ("x:f:g", {}, ["task"]),
        ("x:f", {"width": 3}, ["params.width"]),
        ("x:f", {"args": {"a": 1}}, ["params.args"]),
        ("x:f", {"kwargs": [1]}, ["params.kwargs"]),
        ("x:f", {"batch": {}}, ["params.batch"]),
        ("x:f", {"batch": [1]}, ["params.batch[0]"]),
        ("x:f", {"batch": [{}, {"args": 1}]}, ["params.batch[1].args"]),
        ("x:f", {"batch": [], "args": []}, ["params.args"]),
        ("x:f", {"results": "yaml"}, ["params.results"]),
        ("x", {"results": "yaml", "args": 1}, []),  # a task's own parameters
    ],
)
def test_calls_of_functions(task, params, expected):
    assert paths(Manifest(runner=Runner.PYTHON, task=task, params=params)) == expected


def test_functions_by_value():
    code, tagged = Code(pickle="gAQu", python="3.11"), Requirements(tags=("python-by-value",))
    assert paths(Manifest(runner=Runner.PYTHON, code=code, requirements=tagged)) == []
    assert paths(Manifest(runner=Runner.PYTHON, code=code)) == ["requirements.tags"]
    assert paths(Manifest(runner=Runner.PYTHON, code=code, task="x", requirements=tagged)) == ["task"]
    assert paths(Manifest(runner=Runner.PYTHON, code=code, params={"a": 1}, requirements=tagged)) == ["params.a"]
    bad = Code(pickle="no base64!", python="2.7", name="")
    assert paths(Manifest(runner=Runner.PYTHON, code=bad, requirements=tagged)) == ["code.pickle", "code.name", "code.python"]
    assert paths(Manifest(command="true", code=code)) == ["code"]


def test_two_inputs_may_not_share_a_name():
    inputs = Inputs(inline={"a": "1"}, files=(InputFile(name="a", sha256="0" * 64, size=1),))
    assert [p.message for p in problems(ok(input=inputs))] == ["'a' is already the name of input.inline.a"]


@pytest.mark.parametrize(
    ("uses", "path"),
    [
        ([SecretUse(name="a b", env="TOKEN")], "secrets[0].name"),
        ([SecretUse(name="a")], "secrets[0]"),
        ([SecretUse(name="a", env="A", file="a")], "secrets[0]"),
        ([SecretUse(name="a", env="1A")], "secrets[0].env"),
        ([SecretUse(name="a", env="LD_PRELOAD")], "secrets[0].env"),
        ([SecretUse(name="a", env="OSTLER_JOB_ID")], "secrets[0].env"),
        ([SecretUse(name="a", env="SET")], "secrets[0].env"),
        ([SecretUse(name="a", file="../a")], "secrets[0].file"),
        ([SecretUse(name="a", file="")], "secrets[0].file"),
        ([SecretUse(name="a", env="A"), SecretUse(name="b", env="A")], "secrets[1].env"),
        ([SecretUse(name="a", file="A"), SecretUse(name="b", file="A")], "secrets[1].file"),
        ([SecretUse(name="a", env=f"A{i}") for i in range(33)], "secrets"),
    ],
)
def test_each_mistake_about_secrets_is_named_by_its_path(uses, path):
    assert paths(ok(secrets=tuple(uses), env={"SET": "1"})) == [path]


def test_one_secret_may_come_in_several_ways():
    uses = (SecretUse(name="a", env="A"), SecretUse(name="a", env="B"), SecretUse(name="a", file="A"))
    assert paths(ok(secrets=uses)) == []


def test_all_mistakes_come_at_once():
    assert len(problems(ok(timeout_s=0, queue="", priority=5000, stdout="..", job_id="?"))) == 5


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "-rf", "a\nb", "\x7f", "x" * 256, "ü" * 128])
def test_unsafe_names(name):
    assert unsafe_name(name)


@pytest.mark.parametrize("name", ["a", "input1.mp4", "ü", ".hidden", "a b", "x" * 255])
def test_safe_names(name):
    assert unsafe_name(name) is None


def test_long_paths_are_refused():
    assert unsafe_path("/".join(["abcdefgh"] * 200))
    assert unsafe_path("a//b")
    assert unsafe_path("a/b/c.txt") is None


def test_inputs_are_false_when_there_are_none():
    assert not Inputs()
    assert Inputs(inline={"a": ""})


def test_gpus_are_counted():
    assert Requirements().gpu_count == 0
    assert Requirements(vram_mb=1).gpu_count == 1
    assert Requirements(gpu=True, gpus=3).gpu_count == 3


def test_retries_absent_cover_the_machine_and_a_number_the_program_too():
    absent = retry_policy(ok())
    assert FailureCode.LOST in absent.codes
    assert FailureCode.EXIT not in absent.codes
    assert retry_policy(ok(retries=2)) == RetryPolicy(max=2)
    own = RetryPolicy(max=1, codes=(FailureCode.OOM,))
    assert retry_policy(ok(retries=own)) is own


def test_each_code_is_documented():
    assert set(CODES) == set(FailureCode)
    for code, info in CODES.items():
        assert code.value.startswith("E_")
        assert info.meaning.endswith(".")
        assert info.advice.endswith(".")
        assert isinstance(info.retry, Retry)


def test_a_problem_says_where():
    assert str(Problem("a.b", "is wrong", "f.yaml", 3)) == "f.yaml:3: a.b: is wrong"
    assert str(Problem("", "is wrong", "f.yaml")) == "f.yaml: is wrong"
    assert "a: is wrong" in str(InvalidSpec("bad manifest", [Problem("a", "is wrong")]))


def test_values_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ok().command = "other"


@pytest.mark.parametrize("text", ["2030-01-31T20:00:00Z", "2024-02-29T00:00:00.123456-11:30", "1999-12-31T23:59:59+00:00"])
def test_times_that_are_accepted(text):
    manifest = ok(not_before=text)
    assert problems(manifest) == []
    assert manifest.start == datetime.fromisoformat(text)


@pytest.mark.parametrize(
    "text",
    ["", "now", "2030-01-31", "2030-01-31 20:00:00Z", "2030-01-31T20:00:00", "2030-01-31T20:00Z", "2030-02-30T20:00:00Z",
     "20300131T200000Z",
     "2030-01-31T20:00:00z",
     "2030-01-31T20:00:00+99:00", "0001-01-01T00:00:00+01:00", "\u0662030-01-31T20:00:00Z", "2030-01-31T20:00:00Z\n"],
)  # fmt: skip
def test_times_that_are_none(text):
    assert paths(ok(not_before=text)) == ["not_before"]


def test_times_against_the_clock():
    now = datetime(2030, 1, 1, tzinfo=UTC)

    def found(**fields):
        return [one.path for one in problems_at(ok(**fields), now)]

    assert found() == found(not_before="2029-01-01T00:00:00Z", ttl_s=1.0) == found(not_before="2031-01-01T00:00:00Z") == []
    assert found(not_before="2031-01-01T00:00:01Z") == ["not_before"]
    assert found(not_before="2030-01-01T00:01:00Z", ttl_s=60.0) == ["ttl_s"]
    assert found(not_before="2030-01-01T00:01:00Z", ttl_s=60.1) == []


def test_files_of_other_jobs_are_counted():
    many = tuple(InputArtifact(job="a", path="p", name=f"n{number}") for number in range(MAX_DEPENDENCIES + 1))
    assert "input.artifacts" in paths(ok(depends_on=("a",), input=Inputs(artifacts=many)))
