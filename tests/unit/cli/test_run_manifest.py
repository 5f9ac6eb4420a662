from pathlib import Path

import pytest
import typer

from ostler.assembly.targets import safe_target
from ostler.cli.options import parse_labels, seconds
from ostler.cli.run import describe, inputs
from ostler.model.errors import InvalidSpec
from ostler.model.manifest import Artifact, problems


def test_a_command_as_a_manifest() -> None:
    sent, manifest = describe(
        ["ffmpeg", "-i", "in.mp4"], gpus=1, vram_mb=8000, threads=4, tags=["cuda"], outputs=["out.mp4"], timeout_s=90.0,
        labels={"a": "b"},
    )  # fmt: skip
    assert sent.pop("job_id").startswith("run-")
    assert sent == {
        "command": "ffmpeg",
        "args": ["-i", "in.mp4"],
        "requirements": {"gpus": 1, "vram_mb": 8000, "cpu_threads": 4, "tags": ["cuda"]},
        "artifacts": [{"path": "out.mp4"}],
        "labels": {"a": "b"},
        "timeout_s": 90.0,
    }
    assert manifest.artifacts == (Artifact(path="out.mp4"),)
    assert problems(manifest) == []


def test_what_is_not_said_is_not_sent() -> None:
    sent, _ = describe(["true"])
    assert set(sent) == {"job_id", "command", "args"}


def test_a_limit_of_nothing_is_a_mistake_and_not_the_default() -> None:
    assert [one.path for one in problems(describe(["true"], timeout_s=0.0)[1])] == ["timeout_s"]


def test_two_runs_are_two_jobs() -> None:
    assert describe(["true"])[0]["job_id"] != describe(["true"])[0]["job_id"]


def test_inputs_that_cannot_be_sent_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.txt").touch()
    mistakes: list = []
    files = [tmp_path / "a.txt", tmp_path / "sub/a.txt", tmp_path / "sub", tmp_path / "none"]
    assert list(inputs(files, mistakes)) == [tmp_path / "a.txt"]
    assert [str(one) for one in mistakes] == [
        "--in: two files have the name a.txt",
        f"--in: {tmp_path}/sub is not a regular file",
        f"--in: {tmp_path}/none does not exist",
    ]


@pytest.mark.parametrize(("text", "value"), [("90", 90.0), ("1h30m", 5400.0), ("0.5", 0.5)])
def test_durations_on_the_command_line(text: str, value: float) -> None:
    assert seconds(text) == value


def test_words_that_are_no_duration_or_label() -> None:
    with pytest.raises(typer.BadParameter, match="is not a duration"):
        seconds("soon")
    assert parse_labels(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    for bad in (["a"], ["=b"], ["a=1", "a=2"]):
        with pytest.raises(typer.BadParameter):
            parse_labels(bad)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "link/x", "dir"])
def test_an_artifact_cannot_leave_the_directory(tmp_path: Path, path: str) -> None:
    here = tmp_path / "here"
    (here / "dir").mkdir(parents=True)
    (here / "link").symlink_to(tmp_path)
    with pytest.raises(InvalidSpec, match="cannot be stored here"):
        safe_target(here, path)
    assert safe_target(here, "dir/deeper/x") == here / "dir/deeper/x"
