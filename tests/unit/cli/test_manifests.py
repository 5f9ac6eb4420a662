import io
import json
from pathlib import Path

import pytest

from ostler.cli.manifests import MAX_MANIFESTS, read_manifests, relocate
from ostler.model.errors import InvalidSpec, Problem


def write(tmp_path: Path, name: str, text: str) -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def complaints(*files: str) -> list[str]:
    with pytest.raises(InvalidSpec) as caught:
        read_manifests(files)
    return [str(one).replace(str(Path(files[0]).parent) + "/", "") for one in caught.value.problems]


def test_an_array_counts_as_its_jobs(tmp_path: Path) -> None:
    text = "command: 'true'\narray: 6000\n---\ncommand: 'true'\narray: 4000\n"
    assert len(read_manifests([write(tmp_path, "all.yaml", text)])) == 2
    file = write(tmp_path, "more.yaml", text + "---\ncommand: 'true'\n")
    assert complaints(file) == ["more.yaml: 10001 jobs are more than the 10000 that one call takes"]
    assert complaints(write(tmp_path, "bad.yaml", "command: x\narray: 0\narray_index: 1\n")) == [
        "bad.yaml:2: array: must be from 1 to 10000",
        "bad.yaml:3: array_index: is set by the coordinator alone; write `array: N` for N jobs",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("one.yaml", "command: 'true'\n"),
        ("docs.yaml", "command: 'true'\n---\ncommand: echo\nargs: [a]\n"),
        ("list.yaml", "- command: 'true'\n- command: echo\n"),
        ("jobs.yaml", "jobs:\n- command: 'true'\n"),
        ("one.json", '{"command": "true"}'),
        ("list.json", '[{"command": "true"}, {"command": "echo"}]'),
        ("lines.jsonl", '{"command": "true"}\n{"command": "echo"}\n'),
        ("bom.json", '\ufeff{"command": "true"}'),
    ],
)
def test_every_form_is_read(tmp_path: Path, name: str, text: str) -> None:
    found = read_manifests([write(tmp_path, name, text)])
    assert found[0].manifest.command == "true"
    assert found[0].plain == {"command": "true"}  # sent as written, without the defaults
    assert len(found) == (1 if name in {"one.yaml", "jobs.yaml", "one.json", "bom.json"} else 2)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"command: 'true'\nbogus: 1\n")))
    with pytest.raises(InvalidSpec) as caught:
        read_manifests(["-"])
    assert str(caught.value).startswith("standard input has 1 mistake\n  <stdin>:2: bogus: is not a known key")


def test_every_mistake_of_every_file_at_once(tmp_path: Path) -> None:
    one = write(tmp_path, "a.yaml", "command: echo\nargs: [1]\ntimeout_s: 5m\n---\nrunner: cli\n")
    two = write(
        tmp_path,
        "b.yaml",
        "- command: x\n  requirements:\n    gpuz: 1\n- command: y\n  artifacts:\n  - path: ../x\n  - path: /y\n",
    )
    three = write(tmp_path, "c.json", '{"command": ')
    assert complaints(one, two, three, str(tmp_path / "none.yaml")) == [
        "a.yaml:2: args[0]: must be a text, not 1; put it in quotes",
        'a.yaml:3: timeout_s: must be a number, not "5m"; write 300 (seconds)',
        "a.yaml:5: command: is missing: the cli runner needs the name of an allowlisted command",
        "b.yaml:3: [0].requirements.gpuz: is not a known key; did you mean 'gpu'?",
        "b.yaml:6: [1].artifacts[0].path: '../x' leaves the workspace",
        "b.yaml:7: [1].artifacts[1].path: '/y' is absolute; give it relative to the working directory",
        "c.json:1: is not JSON: Expecting value (column 13)",
        "none.yaml: cannot be read: No such file or directory",
    ]


def test_two_jobs_with_one_id(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", "job_id: j\ncommand: x\n---\ncommand: y\njob_id: j\n")
    assert complaints(file) == ["a.yaml:5: job_id: 'j' stands already at " + f"{file}:1".replace(f"{tmp_path}/", "")]


@pytest.mark.parametrize(
    ("text", "message"), [("", "there is no manifest"), ("[]", "there is no manifest"), ("5", "must be a mapping")]
)
def test_nothing_to_submit(tmp_path: Path, text: str, message: str) -> None:
    assert message in complaints(write(tmp_path, "a.yaml", text))[0]


def test_too_many(tmp_path: Path) -> None:
    file = write(tmp_path, "a.jsonl", '{"command": "true"}\n' * (MAX_MANIFESTS + 1))
    assert complaints(file) == ["a.jsonl: 10001 manifests are more than the 10000 that one call takes"]


def test_a_name_that_is_empty() -> None:
    with pytest.raises(InvalidSpec, match="a file's name is empty"):
        read_manifests([""])


def test_a_flood_of_mistakes_is_cut(tmp_path: Path) -> None:
    file = write(tmp_path, "a.jsonl", '{"comand": "true"}\n' * 300)
    found = complaints(file)
    assert len(found) == 101
    assert found[-1] == "and 200 more"


def test_what_the_coordinator_finds_is_located_here(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", json.dumps([{"command": "x"}]) + "\n")
    more = write(tmp_path, "b.yaml", "command: y\nlabels:\n  a: b\n")
    written = read_manifests([file, more])
    told = relocate(
        InvalidSpec("no", [Problem("[1].labels.a", "is bad"), Problem("[9].x", "is odd"), Problem("", "and more")]), written
    )
    assert [str(one) for one in told.problems] == [f"{more}:3: labels.a: is bad", "[9].x: is odd", "and more"]
