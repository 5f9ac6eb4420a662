"""What `ostler up` writes into a new data directory: the node's configuration and an allowlist to begin with."""

import importlib
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from ostler.model.sandbox import SandboxAbilities, SandboxLevel
from ostler.node.allowlist import parse_entry
from ostler.node.allowlist_binary import BinaryCheck
from ostler.node.sandbox import abilities, observe

NODE_YAML = """\
# The node of `ostler up`. `ostler config show --origin` on this file tells what is in force and why;
# after a change: kill -HUP the daemon, or start `ostler up` anew. The coordinator's address is told to the daemon at each start.
coordinator:
  base_url: "http://127.0.0.1:7070/api/v1"

runners:
  cli:
    allowlist_dir: {allowlist}
    allow_own_binaries: {own}   # programs that belong to the node's own user, beside root's
  python:
    enable: false               # true, with task_paths, for trusted task modules

resources:
  max_concurrent_cpu: {slots}
  max_concurrent_gpu: 1

workspace:
  root: {jobs}
  keep_success: 24h
  keep_failed: 7d

logging:
  level: "info"
  json: true
  path: {log}

sandbox:
  level: {level}

network:
  allow: []                     # hosts that jobs may ask for, as ["example.org:443", "*.pkg.example"]; none: no job has a network

health:
  listen: "127.0.0.1:0"         # a free port; "off" for none

state_dir: {state}
"""

TRUE = """\
command: {path: %s}
"""
ECHO = """\
command: {path: %s}
args:
  - {match: [".*"], repeat: true, allow_slash: true, allow_colon: true, allow_dash: true}
"""
SLEEP = """\
command: {path: %s}
args:
  - {match: ["[0-9]{1,6}(\\\\.[0-9]{1,6})?"], required: true}
"""
SHA256SUM = """\
command: {path: %s}
args:
  - {match: [".+"], required: true, repeat: true}    # files of the working directory: no '/' and no leading '-'
"""
FFMPEG = """\
# Options that read and write files of the working directory alone: no URL, no filter that opens a file, no other protocol.
command: {name: ffmpeg, path: %s}
order: any
args:
  - ["-y"]
  - ["-hide_banner"]
  - ["-nostdin"]
  - ["-nostats"]
  - ["-progress", "pipe:1"]
  - ["-loglevel", "(quiet|error|warning|info)"]
  - {match: ["-i", ".+\\\\.(mp4|mov|wav|mkv|webm|mp3|flac|ogg|png|jpg)"], required: true, repeat: true}
  - ["-ss", "[0-9]{1,6}(\\\\.[0-9]{1,3})?"]
  - ["-t", "[0-9]{1,6}(\\\\.[0-9]{1,3})?"]
  - ["-threads", "[0-9]{1,3}"]
  - ["-c:v", "(libx264|libx265|libvpx-vp9|mpeg4|copy)"]
  - ["-c:a", "(aac|libmp3lame|libopus|flac|copy)"]
  - ["-b:v", "[1-9][0-9]{2,5}k"]
  - ["-b:a", "[1-9][0-9]{1,3}k"]
  - ["-crf", "[0-9]{1,2}"]
  - ["-preset", "(ultrafast|superfast|veryfast|faster|fast|medium|slow|slower|veryslow)"]
  - ["-pix_fmt", "(yuv420p|yuv444p)"]
  - ["-r", "[0-9]{1,3}"]
  - {match: ["-vf", "scale=-?[0-9]{1,4}:-?[0-9]{1,4}"]}
  - ["-movflags", "\\\\+faststart"]
  - ["-vn"]
  - ["-an"]
  - {match: [".+\\\\.(mp4|mov|mkv|webm|mp3|m4a|ogg|flac|wav|png|jpg)"], required: true}
max_total_args_len: 4096
max_runtime_s: 7200
max_output_mb: 5000
"""
_PLAIN = {"true": TRUE, "echo": ECHO, "sleep": SLEEP, "sha256sum": SHA256SUM}
_PLACES = ("/usr/bin", "/bin")


def default_data(env: Mapping[str, str]) -> Path:
    """Where `ostler up` keeps its data: `ostler` in the XDG state directory."""
    home = env.get("XDG_STATE_HOME") or f"{env.get('HOME') or '~'}/.local/state"
    return Path(home).expanduser() / "ostler"


def find_ffmpeg() -> Path | None:
    """The one of imageio-ffmpeg where that is installed, else the system's."""
    if find_spec("imageio_ffmpeg") is not None:
        try:
            return Path(str(importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe())).resolve()
        except (RuntimeError, OSError):
            pass  # installed without its binary
    return next((path for place in _PLACES if (path := Path(place) / "ffmpeg").exists()), None)


def prepare(data: Path, *, slots: int, tell: Callable[[str], None]) -> None:
    """Write what is missing; what is there already stays as it is."""
    if not (data / "allowlist.d").exists():
        write_allowlist(data / "allowlist.d", tell)
    if not (data / "node.yaml").exists():
        write_node(data, slots=slots, level=usable_level(look_at_host(), tell))


def look_at_host() -> SandboxAbilities:
    """Which sandbox levels work here, tried."""
    with tempfile.TemporaryDirectory(prefix="ostler-up-") as place:
        Path(place).chmod(0o711)
        return abilities(observe(Path(place) / "sandbox"))


def usable_level(found: SandboxAbilities, tell: Callable[[str], None]) -> SandboxLevel:
    """bwrap, or `process` with a loud word: who starts this on a laptop chooses it by reading that."""
    if SandboxLevel.BWRAP.value in found.levels:
        return SandboxLevel.BWRAP
    lacking = {one.level: one for one in found.missing}
    why = lacking.get(SandboxLevel.BWRAP.value)
    level = SandboxLevel.PROCESS if SandboxLevel.PROCESS.value in found.levels else SandboxLevel.NONE
    tell(
        f"WARNING: jobs run WITHOUT a bubblewrap sandbox (level `{level}`): they see this machine's files and network.\n"
        f"         {why.reason if why else 'bubblewrap does not work here'}; to mend it: {why.mend if why else 'ostler doctor'}\n"
        f"         then set `sandbox: {{level: bwrap}}` in node.yaml"
    )
    return level


def write_node(data: Path, *, slots: int, level: SandboxLevel) -> None:
    """node.yaml, in the form of the node's own documentation."""
    text = NODE_YAML.format(
        allowlist=_quoted(data / "allowlist.d"), own=str(os.geteuid() != 0).lower(), slots=slots, jobs=_quoted(data / "jobs"),
        log=_quoted(data / "log" / "node.jsonl"), level=level.value, state=_quoted(data / "node"),
    )  # fmt: skip
    _write(data / "node.yaml", text)


def write_allowlist(directory: Path, tell: Callable[[str], None]) -> None:
    """Entries for harmless programs that are here, and ffmpeg's; one that could not be used is written commented, with why."""
    directory.mkdir(mode=0o755, parents=True)
    for name, template in _PLAIN.items():
        path = next((found for place in _PLACES if (found := Path(place) / name).exists()), None)
        if path is not None:
            _write(directory / f"{name}.yaml", template % _quoted(path))
    ffmpeg = find_ffmpeg()
    text = FFMPEG % _quoted(ffmpeg or Path("/usr/bin/ffmpeg"))
    why = "it is not installed here" if ffmpeg is None else unusable(text)
    if why is not None:
        head = f"# Not in force: {why}.\n# Install it (apt-get install ffmpeg), set the path, and take the '#' away.\n"
        text = head + "".join(f"# {line}\n" for line in text.splitlines())
        tell(f"ffmpeg is not allowed yet: {why}; see {directory / 'ffmpeg.yaml.disabled'}")
    _write(directory / ("ffmpeg.yaml" if why is None else "ffmpeg.yaml.disabled"), text)


def unusable(text: str) -> str | None:
    """Why a node here would refuse this entry's program."""
    entry, problems = parse_entry(text, file="ffmpeg.yaml")
    if entry is None:
        return "; ".join(map(str, problems))
    problem = BinaryCheck(allow_own_binaries=os.geteuid() != 0).verify(entry)
    return None if problem is None else problem.message


def _quoted(path: Path) -> str:
    """A path as a YAML text, whatever characters it holds."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.chmod(0o644)
    part.replace(path)
