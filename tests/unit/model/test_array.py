"""Arrays: the number stands wherever it should and nowhere else, and each job is a good manifest of its own."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ostler.model.array import PLACE, child
from ostler.model.manifest import MAX_ARRAY, Manifest, problems, problems_as_written

texts = st.lists(st.sampled_from([PLACE, "a", "{", "}", "index", "{Index}", "{{index}}", "ü", " "]), max_size=4).map("".join)
values = st.recursive(
    texts | st.none() | st.booleans() | st.integers(-9, 9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
# Plain JSON as people write it: every field of the manifest may be there or not, and any text may hold the place.
manifests = st.fixed_dictionaries(
    {"array": st.integers(1, MAX_ARRAY)},
    optional={
        "command": texts,
        "args": st.lists(texts, max_size=3),
        "task": texts,
        "params": st.dictionaries(texts, values, max_size=3),
        "job_id": st.none() | texts,
        "requirements": st.fixed_dictionaries({"node": texts, "tags": st.lists(texts, max_size=2)}),
        "input": st.fixed_dictionaries(
            {},
            optional={
                "urls": st.lists(texts | st.fixed_dictionaries({"url": texts, "name": st.none() | texts}), max_size=3),
                "inline": st.dictionaries(texts, texts, max_size=2),
                "files": st.lists(st.fixed_dictionaries({"name": texts, "sha256": st.just("0" * 64), "size": st.just(1)}), max_size=2),
            },
        ),
        "artifacts": st.lists(st.fixed_dictionaries({"path": texts}, optional={"type": texts}), max_size=2),
        "labels": st.dictionaries(texts, texts, max_size=2),
        "queue": texts,
        "env": st.dictionaries(texts, texts, max_size=2),
        "stdout": st.none() | texts,
    },
)  # fmt: skip
EVERYWHERE = {
    "array": 9, "command": PLACE, "args": [PLACE, "a" + PLACE * 2], "task": PLACE, "job_id": PLACE, "stdout": PLACE, "queue": PLACE,
    "params": {PLACE: PLACE, "deep": [{PLACE: [PLACE, 1, None]}]}, "requirements": {"node": PLACE, "tags": [PLACE]},
    "input": {"urls": [PLACE, {"url": PLACE, "name": PLACE}], "inline": {PLACE: PLACE}, "files": [{"name": PLACE, "size": 1}]},
    "artifacts": [{"path": PLACE, "type": PLACE}], "labels": {PLACE: PLACE}, "env": {PLACE: PLACE},
}  # fmt: skip
REPLACED = re.compile(
    r"args/\d+|stdout|params/.*|input/urls/\d+(/(url|name))?|input/files/\d+/name|artifacts/\d+/path", re.DOTALL
)


def leaves(value: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict | list):
        yield path, (type(value), len(value))
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(one, *path, str(key))
    else:
        yield path, value


@given(manifests, st.integers(0, MAX_ARRAY - 1))
@example(EVERYWHERE, 7)
def test_the_number_stands_where_it_should_and_nowhere_else(manifest, index):
    found = child(manifest, index)
    assert (found.pop("array_index"), found.pop("array_count")) == (index, manifest["array"])
    expected = {key: value for key, value in manifest.items() if key != "array"}
    if expected.get("job_id") is not None:
        assert found.pop("job_id") == f"{expected.pop('job_id')}-{index}"
    said, before = dict(leaves(found)), dict(leaves(expected))
    assert said.keys() == before.keys()
    for path, value in before.items():
        if isinstance(value, str) and REPLACED.fullmatch("/".join(path)):
            assert said[path] == value.replace("{index}", str(index)), path
        else:
            assert said[path] == value, path


@given(manifests)
def test_the_manifest_of_the_array_is_left_as_it_was(manifest):
    before = msgspec.json.encode(manifest)
    child(manifest, 3)
    assert msgspec.json.encode(manifest) == before


def test_every_job_is_a_good_manifest_without_an_array():
    asked = {
        "array": MAX_ARRAY, "job_id": "x" * 123, "command": "cut", "args": ["part-{index}.csv", "{index}{index}"], "stdout": "{index}",
        "input": {"urls": ["http://h/part-{index}.csv", {"url": "http://h/{index}", "name": "name-{index}"}]},
        "artifacts": [{"path": "out/{index}.txt"}],
    }  # fmt: skip
    assert problems_as_written(msgspec.convert(asked, Manifest)) == []
    for index in (0, 7, MAX_ARRAY - 1):
        one = msgspec.convert(child(asked, index), Manifest)
        assert problems(one) == []
        assert (one.array, one.array_index, one.array_count) == (None, index, MAX_ARRAY)
        assert one.args == (f"part-{index}.csv", f"{index}{index}")
        assert one.job_id == "x" * 123 + f"-{index}"


@pytest.mark.parametrize(
    ("fields", "path", "said"),
    [
        ({"array": 0}, "array", "from 1 to 10000"),
        ({"array": -1}, "array", "from 1 to 10000"),
        ({"array": 10_001}, "array", "from 1 to 10000"),
        ({"array": 10_000, "job_id": "x" * 124}, "job_id", "at most 123 characters"),
        ({"array": 1, "job_id": "x" * 127}, "job_id", "at most 126 characters"),
        ({"array": 1, "job_id": "x" * 129}, "job_id", "1 to 128"),
        ({"array_index": 0}, "array_index", "coordinator alone"),
        ({"array_count": 1}, "array_count", "coordinator alone"),
    ],
)
def test_mistakes(fields, path, said):
    (problem,) = problems_as_written(Manifest(command="true", **fields))
    assert problem.path == path
    assert said in problem.message


@pytest.mark.parametrize("array", [1, MAX_ARRAY])
def test_an_array_needs_no_id(array):
    assert problems_as_written(Manifest(command="true", array=array)) == []


@pytest.mark.parametrize(("array", "length"), [(1, 126), (10, 126), (11, 125), (10_000, 123)])
def test_the_longest_id_of_an_array(array, length):
    assert problems(Manifest(command="true", array=array, job_id="x" * length)) == []
    assert problems(Manifest(command="true", array=array, job_id="x" * (length + 1)))
