import json
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from ostler.model.errors import InvalidSpec
from ostler.model.manifest import Manifest
from ostler.runtime.documents import read_documents
from ostler.runtime.settings import Flag, check, load, schema
from ostler.runtime.shapes import MASK, plain

STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    __pydantic_config__ = STRICT

    size_mb: int = 1
    wait_s: float = 2.0
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    __pydantic_config__ = STRICT

    name: str
    inner: Inner = field(default_factory=Inner)
    keep: timedelta = timedelta(hours=1)
    places: tuple[Path, ...] = ()
    loud: bool = False


def problems_of(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> list[str]:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(InvalidSpec) as caught:
        load(Outer, file=file, env=env or {}, prefix="X")
    return [str(one).removeprefix(f"{file}:") for one in caught.value.problems]


def test_each_layer_overrides_the_one_before_and_is_named(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: a\nkeep: 2h\ninner:\n  size_mb: 5\n  wait_s: 3\n")
    loaded = load(
        Outer,
        file=file,
        env={"X__INNER__SIZE_MB": "6", "X__KEEP": "90s", "X__PLACES": "/a, /b", "X__LOUD": "true", "OTHER": "1"},
        prefix="X",
        flags={"keep": Flag(name="--keep", value="7d"), "name": Flag(name="--name", value=None)},
    )
    assert loaded.value == Outer(
        name="a",
        inner=Inner(size_mb=6, wait_s=3.0),
        keep=timedelta(days=7),
        places=(Path("/a"), Path("/b")),
        loud=True,
    )
    assert dict(loaded.origins) == {
        "name": f"{file}:1",
        "inner.size_mb": "variable X__INNER__SIZE_MB",
        "inner.wait_s": f"{file}:5",
        "inner.token": "default",
        "keep": "flag --keep",
        "places": "variable X__PLACES",
        "loud": "variable X__LOUD",
    }


def test_every_mistake_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    found = problems_of(
        tmp_path,
        "nmae: a\ninner:\n  size_mb: '5'\n  wait_s: 5m\n  token: 12345\n  bogus: 1\n"
        "places: /a\nloud: 'yes'\nkeep: 1h\nkeep: soon\n",
        {"X__INNER": "1", "X__KEPE": "1", "X__INNER__SIZE": "1", "X__INNER__TOKEN": "env:GONE"},
    )
    assert sorted(found) == sorted(
        [
            "1: name: is missing",
            "1: nmae: is not a known key; did you mean 'name'?",
            '3: inner.size_mb: must be a whole number, not "5"',
            '4: inner.wait_s: must be a number, not "5m"; write 300 (seconds)',
            "6: inner.bogus: is not a known key; known: size_mb, wait_s, token",
            '7: places: must be a list, not "/a"',
            '8: loud: must be true or false, not "yes"',
            "10: keep: stands twice; first on line 9",
            "10: keep: 'soon' is not a duration with units, such as 24h, 7d, 90s or 1h30m",
            "X__INNER: is a whole section; set one of its fields, such as X__INNER__SIZE_MB",
            "X__INNER__SIZE: is no setting; did you mean 'X__INNER__SIZE_MB'?",
            "X__INNER__TOKEN: inner.token: is taken from the variable GONE, which is not set; export GONE=…",
            "X__KEPE: is no setting; did you mean 'X__KEEP'?",
        ]
    )


def test_a_duration_needs_a_unit(tmp_path: Path) -> None:
    assert problems_of(tmp_path, "name: a\nkeep: 24\n") == ["2: keep: 24 has no unit; write 24s for seconds, or m, h, d, w"]


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    assert problems_of(tmp_path, "name: a\ninner: {token: [hunter2]}\n") == [
        "2: inner.token: must be a text, not what stands there"
    ]
    file = tmp_path / "good.yaml"
    file.write_text("name: a\ninner: {token: 'env:SECRET'}\n")
    loaded = load(Outer, file=file, env={"SECRET": "hunter2"}, prefix="X")
    assert loaded.value.inner.token == "hunter2"
    assert "hunter2" not in repr(loaded)
    assert plain(loaded.value)["inner"]["token"] == MASK
    assert loaded.origins["inner.token"] == f"variable SECRET by way of {file}:2"


@pytest.mark.parametrize(("env", "why"), [({}, "is not set"), ({"SECRET": ""}, "is empty")])
def test_a_missing_secret_is_a_problem_unless_only_checked(tmp_path: Path, env: dict[str, str], why: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: a\ninner:\n  token: env:SECRET\n")
    with pytest.raises(InvalidSpec) as caught:
        load(Outer, file=file, env=env, prefix="X")
    assert (
        str(caught.value.problems[0]) == f"{file}:3: inner.token: is taken from the variable SECRET, which {why}; export SECRET=…"
    )
    assert [one.line for one in load(Outer, file=file, env=env, prefix="X", need_secrets=False).unset] == [3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "must be a mapping of sections"),
        (b"name: a\n---\nname: b\n", "holds several documents"),
        (b"name: \xff", "is not UTF-8"),
        (b"name: [", "is not YAML"),
        (b" " * (4 * 2**20 + 1), "is larger than"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidSpec, match=message):
        load(Outer, file=file)


def test_a_file_that_cannot_be_read_lacks_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec) as caught:
        load(Outer, file=tmp_path)
    assert [one.message for one in caught.value.problems] == ["cannot be read: Is a directory"]


def test_an_empty_section_means_its_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: a\ninner:\n")
    assert load(Outer, file=file).value == Outer(name="a")


def test_types_that_may_be_several_things() -> None:
    def complaints(text: str) -> list[str]:
        (document,), problems = read_documents(text, "f")
        assert not problems
        return [str(one) for one in check(Manifest, document)[1]]

    keys = "or a mapping with the keys"
    assert complaints("command: x\nretries: abc\n") == [
        f'f:2: retries: must be a whole number, not "abc", {keys} max, backoff_s, max_backoff_s, codes'
    ]
    assert complaints("command: x\nretries: {mx: 1}\n") == ["f:2: retries.mx: is not a known key; did you mean 'max'?"]
    assert complaints("command: x\ninput:\n  urls:\n  - 3\n  - {name: y}\n") == [
        f"f:4: input.urls[0]: must be a text, not 3; put it in quotes, {keys} url, name, sha256, max_mb",
        "f:5: input.urls[1].url: is missing",
    ]
    assert complaints("command: x\nrunner: clii\n")[0].endswith("did you mean 'cli'?")
    assert complaints("command: x\nretries: 3\ninput: {urls: ['http://a/b', {url: 'http://a/c'}]}\n") == []


def test_part_of_a_document() -> None:
    (document,), _ = read_documents("- command: x\n- command: 5\n", "f")
    assert check(Manifest, document, at=(0,))[0] == Manifest(command="x")
    assert [str(one) for one in check(Manifest, document, at=(1,))[1]] == [
        "f:2: [1].command: must be a text, not 5; put it in quotes"
    ]


def test_the_schema_is_json_and_strict() -> None:
    found = json.loads(json.dumps(schema(Outer, title="outer")))
    assert found["additionalProperties"] is False
    assert found["properties"]["keep"]["type"] == "string"
    assert found["properties"]["keep"]["default"] == "1h"
    assert found["required"] == ["name"]
