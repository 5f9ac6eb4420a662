from datetime import UTC, datetime

import pytest

from ostler.coordinator.api.manifests import read_manifests
from ostler.model.errors import InvalidSpec
from ostler.model.manifest import Manifest

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def read(text: str) -> Manifest:
    [(manifest, spec)] = read_manifests(text.encode(), "application/json", NOW).manifests
    assert spec == text
    return manifest


def test_manifests_that_differ_in_their_ids_alone_keep_all_the_rest() -> None:
    found = [read(f'{{"job_id":"job-{i}","command":"echo","args":["{i // 2}"],"priority":7}}') for i in range(4)]
    assert [one.job_id for one in found] == ["job-0", "job-1", "job-2", "job-3"]
    assert [one.args for one in found] == [("0",), ("0",), ("1",), ("1",)]
    assert {(one.command, one.priority) for one in found} == {("echo", 7)}


@pytest.mark.parametrize("rest", ['"job_id":"b"', '"job\\u005fid":"b"', '"command":"y","job_id":"b"'])
def test_an_id_that_is_told_twice_is_the_last_one_as_any_reader_has_it(rest: str) -> None:
    for _ in range(2):
        assert read(f'{{"job_id":"a","command":"true",{rest}}}').job_id == "b"


def test_an_id_in_the_parameters_is_no_id_of_the_job() -> None:
    for name in ("x", "y"):
        found = read(f'{{"job_id":"job-{name}","task":"t","runner":"python","params":{{"job_id":"{name}"}}}}')
        assert (found.job_id, found.params) == (f"job-{name}", {"job_id": name})


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ('{"job_id":"a","command":3}', "command", "must be text"),
        ('{"job_id":"-a","command":"true"}', "job_id", "starting with a letter or digit"),
        ('{"job_id":"a","command":"true","priority":}', "", "byte 42"),
        ('{"job_id":"a","command":"true","array":3,"array_index":1}', "array_index", "set by the coordinator"),
        ('{"job_id":"' + "a" * 129 + '","command":"true"}', "job_id", "1 to 128"),
    ],
)
def test_mistakes_are_told_of_the_text_as_it_came(text: str, path: str, message: str) -> None:
    for _ in range(2):
        with pytest.raises(InvalidSpec) as caught:
            read_manifests(text.encode(), "application/json", NOW)
        assert path in [one.path for one in caught.value.problems]
        assert message in str(caught.value.problems[0])
