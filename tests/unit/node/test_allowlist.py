"""Reading `allowlist.d`: the source's example as it stands, and every mistake at once with its line."""

import pytest

from ostler.model.errors import InvalidSpec
from ostler.model.sandbox import SandboxLevel
from ostler.node.allowlist import UNLIMITED, Allowlist, Order, load_allowlist, parse_entry

# Section 15 of the node's plan, to the letter.
SECTION_15 = r"""
# /etc/aitbc/miner/allowlist.d/ffmpeg.yaml
command:
  path: "/usr/bin/ffmpeg"
args:
  - ["-y"]
  - ["-i", ".+\\.(mp4|wav|mkv)$"]
  - ["-c:v", "(libx264|copy)"]
  - ["-c:a", "(aac|copy)"]
  - ["-b:v", "[1-9][0-9]{2,5}k"]
  - ["output\\.(mp4|mkv)"]
max_total_args_len: 4096
max_runtime_s: 7200
max_output_mb: 5000
"""

FULL = r"""
command: {path: /opt/tool/bin/tool, name: mytool, sha256: %s}
args:
  - {match: ["--file", ".+"], required: true, repeat: 3, allow_slash: true, allow_colon: true, allow_dash: true}
  - {match: ["-v"], repeat: true}
  - {match: ["-q"], repeat: false}
order: any
stdout: out.txt
stdin: in.txt
env: [OMP_NUM_THREADS, LANG]
sandbox: bwrap
""" % ("a" * 64)


def test_section_15_works_unchanged():
    entry, problems = parse_entry(SECTION_15, file="ffmpeg.yaml")
    assert problems == []
    assert (entry.name, entry.path, entry.sha256) == ("ffmpeg", "/usr/bin/ffmpeg", None)
    assert [len(group.parts) for group in entry.groups] == [1, 2, 2, 2, 2, 1]
    assert [group.line for group in entry.groups] == [6, 7, 8, 9, 10, 11]
    assert all(not group.required and group.repeat == 1 for group in entry.groups)
    assert entry.order is Order.FILE
    assert (entry.max_total_args_len, entry.max_runtime_s, entry.max_output_mb) == (4096, 7200, 5000)


def test_everything_that_an_entry_can_say():
    entry, problems = parse_entry(FULL, file="tool.yaml")
    assert problems == []
    assert (entry.name, entry.path, entry.sha256) == ("mytool", "/opt/tool/bin/tool", "a" * 64)
    file, verbose, quiet = entry.groups
    assert (file.required, file.repeat, file.parts[1].grants) == (True, 3, frozenset("/:-"))
    assert (verbose.repeat, quiet.repeat) == (UNLIMITED, 1)
    assert entry.order is Order.ANY
    assert (entry.stdout, entry.stdin, entry.env) == ("out.txt", "in.txt", {"OMP_NUM_THREADS", "LANG"})
    assert entry.sandbox is SandboxLevel.BWRAP


def test_without_args_no_arguments_are_allowed():
    entry, problems = parse_entry("command: {path: /bin/true}", file="true.yaml")
    assert problems == []
    assert entry.groups == ()


def test_every_mistake_at_once_with_its_line():
    text = """\
command: {path: bin/x, nam: y, sha256: ABC}
args:
  - -y
  - [-z, 5]
  - [yes]
  - []
  - {match: [a], repeat: 0, required: 1, alow_slash: true}
  - ["(?i)a", "("]
  - {required: true}
ordr: any
order: anny
max_runtime_s: 1.5
max_output_mb: 0
max_total_args_len: 1000000
env: [LD_PRELOAD, 1, "A B"]
stdout: a/b
stdin: ..
stdout: c
sandbox: bwrapp
"""
    entry, problems = parse_entry(text, file="x.yaml")
    assert entry is None
    assert [(problem.line, problem.path) for problem in problems] == [
        (1, "command.nam"),
        (1, "command.path"),
        (1, "command.sha256"),
        (3, "args[0]"),
        (4, "args[1][1]"),
        (5, "args[2][0]"),
        (6, "args[3]"),
        (7, "args[4].alow_slash"),
        (7, "args[4].required"),
        (7, "args[4].repeat"),
        (8, "args[5][0]"),
        (8, "args[5][1]"),
        (9, "args[6]"),
        (10, "ordr"),
        (11, "order"),
        (12, "max_runtime_s"),
        (13, "max_output_mb"),
        (14, "max_total_args_len"),
        (15, "env[0]"),
        (15, "env[1]"),
        (15, "env[2]"),
        (16, "stdout"),
        (17, "stdin"),
        (18, "stdout"),
        (19, "sandbox"),
    ]
    assert {problem.file for problem in problems} == {"x.yaml"}
    said = "\n".join(map(str, problems))
    for words in (
        "x.yaml:10: ordr: is not a known key; did you mean 'order'?",
        "did you mean 'name'?",
        "did you mean 'allow_slash'?",
        "did you mean 'any'?",
        "did you mean 'bwrap'?",
        "put it in quotes",
        "stands twice; first on line 16",
        "LD_PRELOAD can make the program run other code",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("- a", "must be a mapping"),
        ("command: [", "is not YAML"),
        ("command: {path: /bin/x}\n---\ncommand: {path: /bin/y}", "is not YAML"),
        ("command: /bin/x", "must be a mapping"),
        ("args: []", "command: is missing"),
        ("command: {name: x}", "command.path: is missing"),
        ("command: {path: /bin/../x}", "without '..'"),
        ("command: {path: /bin/}", "absolute path"),
        ("command: {path: /bin/x, name: a/b}", "path separator"),
        ("command: {path: !!int x}", "must be a text"),
        ("command: {path: /bin/x}\nargs: x", "must be a list of groups"),
        ("command: {path: /bin/x}\nargs: [{match: a}]", "must be a list with one pattern"),
        ("command: {path: /bin/x}\nenv: A", "must be a list of names"),
        ("command: {path: /bin/x}\nargs: [" + "[a]," * 300 + "]", "more than 256 groups"),
        ("? [a]\n: b", "is not a known key"),
        ("[" * 5000, "nested too deeply"),
        ("command: {path: \x07}", "is not YAML"),
    ],
)
def test_files_that_are_no_entry(text, says):
    entry, problems = parse_entry(text, file="x.yaml")
    assert entry is None
    assert says in "\n".join(map(str, problems))


def test_a_folder_and_files_are_loaded_together(tmp_path):
    folder = tmp_path / "allowlist.d"
    folder.mkdir()
    (folder / "ffmpeg.yaml").write_text(SECTION_15)
    (folder / "more.yml").write_text("command: {path: /opt/ffmpeg}\nargs: [[-version]]")
    (folder / "notes.txt").write_text("not read")
    single = tmp_path / "true.yaml"
    single.write_text("command: {path: /bin/true}")
    allowlist = load_allowlist([folder, single, single])
    assert set(allowlist.entries) == {"ffmpeg", "true"}
    assert [entry.path for entry in allowlist.find("ffmpeg")] == ["/usr/bin/ffmpeg", "/opt/ffmpeg"]
    assert [entry.path for entry in allowlist.find("/opt/ffmpeg")] == ["/opt/ffmpeg"]
    assert len(allowlist.find("true")) == 1
    assert allowlist.find("/bin/ffmpeg") == ()
    assert Allowlist().find("ffmpeg") == ()


def test_all_files_mistakes_come_at_once(tmp_path):
    one, two, three, four, five = (tmp_path / f"{i}.yaml" for i in range(5))
    one.write_text("comand: {path: /bin/x}")
    two.write_bytes(b"\xff\xfe\xfd")
    three.write_text("command: {path: /bin/true}")
    three.chmod(0o666)
    four.write_text("#" * 300_000)
    with pytest.raises(InvalidSpec) as caught:
        load_allowlist([one, two, three, four, five])
    said = str(caught.value)
    assert "did you mean 'command'?" in said
    for words in ("is not UTF-8", "writable by everyone", "larger than", "No such file"):
        assert words in said
    assert {problem.file for problem in caught.value.problems} == {str(p) for p in (one, two, three, four, five)}
