import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.runtime.documents import Opaque, join, read_documents


def test_yaml_with_several_documents_knows_each_line() -> None:
    documents, problems = read_documents("a: 1\nb:\n  - x\n  - y: 2\n---\n\nc: 3\n", "f.yaml")
    assert not problems
    assert [one.value for one in documents] == [{"a": 1, "b": ["x", {"y": 2}]}, {"c": 3}]
    assert documents[0].line_of(("b", 1, "y")) == 4
    assert documents[0].line_of(("b", 9)) == 2  # what is absent: the line of what should hold it
    assert documents[1].line_of(("c",)) == 7


def test_json_lines_know_their_lines_and_every_broken_one_is_told() -> None:
    documents, problems = read_documents('{"a": 1}\n\n{"b": }\n{"c": 3}\n', "f.jsonl")
    assert [(one.value, one.line) for one in documents] == [({"a": 1}, 1), ({"c": 3}, 4)]
    assert documents[1].line_of(("c",)) == 4
    assert [(one.line, one.message[:11]) for one in problems] == [(3, "is not JSON")]


def test_indented_json_knows_its_lines() -> None:
    documents, problems = read_documents('{\n  "a": {\n\t"b": [1,\n 2]\n}}', "f.json")
    assert not problems
    assert documents[0].line_of(("a", "b")) == 3


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", '{"a": 1,\n"b": 2,\n"a": 3}'])
def test_a_key_that_stands_twice_is_a_mistake(text: str) -> None:
    _, problems = read_documents(text, "f")
    assert [(one.path, one.line, one.message) for one in problems] == [("a", 3, "stands twice; first on line 1")]


def test_keys_are_words_whatever_yaml_thinks_of_them() -> None:
    documents, _ = read_documents("on: 1\n5: x\n", "f.yaml")
    assert documents[0].value == {"on": 1, "5": "x"}


def test_merge_keys_work_and_may_be_overridden() -> None:
    documents, problems = read_documents("base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\n", "f.yaml")
    assert not problems
    assert documents[0].value["one"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "is not YAML"),
        ("\ta: 1", "is not YAML"),
        ("{" * 100_000, "nested deeper"),
        ("[" * 100_000, "nested deeper"),
        ("a: &a [*a]\n", "nested deeper"),
        ("{[1]: 2}", "a key that is not a word"),
        ("a: !!int x\n", "cannot be read"),
        ("a: !!int ''\n", "cannot be read: '' is no int"),
        ("a: !!bool zz\n", "cannot be read: 'zz' is no bool"),
        (f"a: 0x{'f' * 9000}\n", "more than 4096 bits"),
        ("a: !!python/object/apply:os.system [x]\n", None),
    ],
)
def test_broken_text_is_a_problem_never_a_crash(text: str, message: str | None) -> None:
    _, problems = read_documents(text, "f.yaml")
    assert message is None or (problems and message in problems[0].message)


def test_aliases_cannot_expand_without_end() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    _, problems = read_documents(bomb, "f.yaml", most=10_000)  # the same as with a larger number, found sooner
    assert "expands to more than 10000" in problems[0].message


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcxyz", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text("abcxyz", min_size=1), plain, min_size=1), min_size=2, max_size=4))
def test_json_lines_come_back_as_they_were(values: list[object]) -> None:
    documents, problems = read_documents("\n".join(json.dumps(one) for one in values), "f.jsonl")
    assert not problems
    assert [one.value for one in documents] == values


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    read_documents(text, "f")


def test_paths_read_as_people_write_them() -> None:
    assert join(("input", "urls", 0, "name")) == "input.urls[0].name"
    assert join(()) == ""


def test_merged_mappings_that_double_at_each_level_cost_what_they_hold() -> None:
    bomb = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]\n  y{i}: 2\n" for i in range(1, 60))
    (document,), problems = read_documents(bomb, "f.yaml")
    assert not problems
    assert len(document.value["a59"]) == 60
    assert document.line_of(("a59", "y3")) == 10


@pytest.mark.parametrize("merged", ["3", "[{a: 1}, 3]", "text"])
def test_what_is_merged_is_a_mapping(merged: str) -> None:
    documents, (problem,) = read_documents(f"one:\n  <<: {merged}\n  b: 2\n", "f.yaml")
    assert str(problem) == "f.yaml:2: one: merges (`<<`) something that is no mapping"
    assert documents[0].value["one"]["b"] == 2


def test_a_limit_and_tags_of_others() -> None:
    assert read_documents("[1, 2, 3]", "f.yaml", most=4)[1] == []
    assert "more than 3 values" in str(read_documents("- 1\n- 2\n- 3\n", "f.yaml", most=3)[1])
    (document,), problems = read_documents("a: !vault 7\nb: !vault |\n  x\n", "f.yaml", opaque=("!vault",))
    assert (document.value, problems) == ({"a": Opaque("!vault"), "b": Opaque("!vault")}, [])
