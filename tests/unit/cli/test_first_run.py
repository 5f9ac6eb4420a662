from pathlib import Path

import pytest

from ostler.assembly import first_run
from ostler.assembly.resolve import host_problems, resolve_node
from ostler.model.sandbox import MissingLevel, SandboxAbilities, SandboxLevel
from ostler.node.allowlist import load_allowlist
from ostler.node.allowlist_match import check


@pytest.fixture
def data(tmp_path: Path) -> Path:
    place = tmp_path / 'odd "name" # é'
    place.mkdir()
    return place


def test_a_node_yaml_that_a_node_accepts(data: Path) -> None:
    (data / "allowlist.d").mkdir()
    first_run.write_node(data, slots=3, level=SandboxLevel.PROCESS)
    loaded = resolve_node(data / "node.yaml", env={})
    assert host_problems(loaded) == []
    config = loaded.value
    assert config.resources.max_concurrent_cpu == 3
    assert config.sandbox.level is SandboxLevel.PROCESS
    assert (config.state, config.workspace.root) == (data / "node", data / "jobs")
    assert config.coordinator.auth_token is None  # the join token never touches the disk


ALLOWED = [
    ["true"],
    ["echo", "-n", "a/b: c"],
    ["sleep", "0.5"],
    ["sha256sum", "a.txt", "b.txt"],
]
DENIED = [
    ["true", "x"],
    ["sleep", "-1"],
    ["sleep", "infinity"],
    ["sleep"],
    ["sha256sum", "/etc/passwd"],
    ["sha256sum", "../x"],
    ["sha256sum", "--check", "x"],
    ["sh", "-c", "true"],
]
FFMPEG_ALLOWED = [
    ["ffmpeg", "-y", "-i", "in.mp4", "-c:v", "libx264", "-c:a", "aac", "output.mp4"],
    [
        "ffmpeg",
        "-nostdin",
        "-loglevel",
        "error",
        "-i",
        "in.mkv",
        "-vf",
        "scale=320:-2",
        "-preset",
        "veryfast",
        "-crf",
        "30",
        "out.mp4",
    ],
    ["ffmpeg", "-i", "a.mp4", "-i", "b.wav", "-c:v", "copy", "x.mkv"],
]
FFMPEG_DENIED = [
    ["ffmpeg", "-i", "http://evil/a.mp4", "o.mp4"],
    ["ffmpeg", "-i", "/etc/a.mp4", "o.mp4"],
    ["ffmpeg", "-i", "concat:a.mp4", "o.mp4"],
    ["ffmpeg", "-f", "lavfi", "-i", "movie=x.mp4", "o.mp4"],
    ["ffmpeg", "-i", "a.mp4", "-vf", "movie=b.mp4", "o.mp4"],
    ["ffmpeg", "-i", "a.mp4", "../o.mp4"],
    ["ffmpeg", "-i", "a.mp4"],
]


def test_harmless_commands_and_no_others(data: Path) -> None:
    first_run.write_allowlist(data / "allowlist.d", lambda text: None)
    allowlist = load_allowlist([data / "allowlist.d"])
    assert [words for words in ALLOWED if not check(allowlist, words[0], words[1:]).allowed] == []
    assert [words for words in DENIED if check(allowlist, words[0], words[1:]).allowed] == []


def test_ffmpeg_reads_and_writes_here_alone(tmp_path: Path) -> None:
    file = tmp_path / "ffmpeg.yaml"
    file.write_text(first_run.FFMPEG % '"/usr/bin/ffmpeg"')
    allowlist = load_allowlist([file])
    assert [words for words in FFMPEG_ALLOWED if not check(allowlist, words[0], words[1:]).allowed] == []
    assert [words for words in FFMPEG_DENIED if check(allowlist, words[0], words[1:]).allowed] == []


def test_without_ffmpeg_its_entry_waits_commented(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_run, "find_ffmpeg", lambda: None)  # a machine without it cannot be had here
    said: list[str] = []
    first_run.write_allowlist(data / "allowlist.d", said.append)
    assert "ffmpeg" not in load_allowlist([data / "allowlist.d"]).entries
    text = (data / "allowlist.d/ffmpeg.yaml.disabled").read_text()
    assert text.startswith("# Not in force: it is not installed here")
    assert all(line.startswith("#") for line in text.splitlines())
    assert "not allowed yet" in said[0]


def test_the_sandbox_level_is_what_works() -> None:
    said: list[str] = []
    assert first_run.usable_level(SandboxAbilities(levels=("none", "process", "bwrap")), said.append) is SandboxLevel.BWRAP
    assert said == []
    missing = (MissingLevel(level="bwrap", reason="bubblewrap is not installed", mend="apt-get install bubblewrap"),)
    weak = SandboxAbilities(levels=("none", "process"), missing=missing)
    assert first_run.usable_level(weak, said.append) is SandboxLevel.PROCESS
    assert "WITHOUT" in said[0]
    assert "apt-get install bubblewrap" in said[0]
    assert first_run.usable_level(SandboxAbilities(levels=("none",)), said.append) is SandboxLevel.NONE


def test_what_is_there_stays(data: Path) -> None:
    (data / "allowlist.d").mkdir()
    (data / "node.yaml").write_text("mine")
    first_run.prepare(data, slots=1, tell=lambda text: None)
    assert (data / "node.yaml").read_text() == "mine"
    assert list((data / "allowlist.d").iterdir()) == []


def test_where_data_goes() -> None:
    assert first_run.default_data({"HOME": "/h"}) == Path("/h/.local/state/ostler")
    assert first_run.default_data({"HOME": "/h", "XDG_STATE_HOME": "/s"}) == Path("/s/ostler")
