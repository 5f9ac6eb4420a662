"""Verdicts: which arguments the groups of an entry allow, and what is said when they do not."""

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.model.failures import FailureCode
from ostler.node.allowlist import UNLIMITED, Allowlist, Entry, Group, Order, parse_entry
from ostler.node.allowlist_match import check
from ostler.node.allowlist_pattern import Pattern

FFMPEG = r"""
command: {path: /usr/bin/ffmpeg}
args:
  - ["-y"]
  - ["-i", ".+\\.(mp4|wav|mkv)$"]
  - ["-c:v", "(libx264|copy)"]
  - ["output\\.(mp4|mkv)"]
"""


def listed(*texts: str) -> Allowlist:
    entries: dict[str, tuple[Entry, ...]] = {}
    for i, text in enumerate(texts):
        entry, problems = parse_entry(text, file=f"{i}.yaml")
        assert problems == []
        entries[entry.name] = (*entries.get(entry.name, ()), entry)
    return Allowlist(entries)


def tool(groups: str, more: str = "") -> Allowlist:
    return listed(f"command: {{path: /bin/tool}}\nargs: {groups}\n{more}")


@pytest.mark.parametrize(
    ("args", "allowed"),
    [
        ("-y -i input1.mp4 -c:v libx264 output.mp4", True),
        ("-i in.wav output.mkv", True),
        ("", True),
        ("-i https://host/in.mp4 output.mp4", False),
        ("-i /srv/jobs/other/in.mp4 output.mp4", False),
        ("-i ../in.mp4 output.mp4", False),
        ("-i -x.mp4", False),
        ("-i in.avi", False),
        ("-i a.mp4 -y output.mp4", False),
        ("-y -y", False),
        ("-c:v", False),
        ("-f lavfi", False),
    ],
)
def test_section_15(args, allowed):
    verdict = check(listed(FFMPEG), "ffmpeg", args.split())
    assert verdict.allowed is allowed
    assert (verdict.failure is None) is allowed
    if not allowed:
        assert verdict.failure.code is FailureCode.DENY
        assert "0.yaml" in verdict.failure.message


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("-i h://x.mp4", "argument 2 'h://x.mp4' holds '/' and holds ':', which a wildcard of .+\\.(mp4|wav|mkv)$ may not match"),
        ("-i in.mp4 -c:v h264 output.mp4", "argument 4 'h264' does not match (libx264|copy); closest rule: 0.yaml:6 group 3"),
        ("-i in.mp4 -y", "argument 3 '-y' comes too late: 0.yaml:4 group 1 (-y) stands before group 2"),
        ("-y -y", "stands too often"),
        ("-c:v", "the arguments end too early: 0.yaml:6 group 3 (-c:v (libx264|copy)) has 2 parts, 1 were given"),
        ("-c:x copy", "argument 1 '-c:x' matches no rule that may stand here; closest rule: 0.yaml:6 group 3"),
    ],
)
def test_a_denial_names_the_rule_that_came_closest(args, says):
    assert says in check(listed(FFMPEG), "ffmpeg", args.split()).failure.message


def test_required_repeat_and_order():
    groups = '[{match: ["-i", "[a-z]+"], required: true, repeat: 2}, ["-v"], {match: ["[0-9]+"], repeat: true}]'
    ordered, free = tool(groups), tool(groups, "order: any")
    for args, in_order, anyhow in [
        ("-i a", True, True),
        ("-i a -i b -v 1 2 3", True, True),
        ("-i a -i b -i c", False, False),
        ("-v", False, False),
        ("-v -i a", False, True),
        ("1 -i a 2 -v 3", False, True),
        ("-i a -v -v", False, False),
        ("", False, False),
    ]:
        assert check(ordered, "tool", args.split()).allowed is in_order, args
        assert check(free, "tool", args.split()).allowed is anyhow, args
    assert "required arguments of 0.yaml:2 group 1 (-i [a-z]+) are missing" in check(free, "tool", ["-v"]).failure.message
    assert "comes too early" in check(ordered, "tool", ["-v"]).failure.message
    assert "may be used 2 times" in check(free, "tool", ["-i", "a", "-i", "b", "-i", "c"]).failure.message


def test_groups_that_overlap_are_tried_in_all_ways():
    assert check(tool('[[".+"], ["a", ".+"]]'), "tool", ["a", "b"]).allowed  # the first fit is a dead end
    assert check(tool("[{match: [a], repeat: true}, [a, b]]"), "tool", ["a", "a", "a", "b"]).allowed


def test_any_entry_for_the_name_grants_and_the_closest_one_explains():
    allowlist = listed("command: {path: /bin/tool}\nargs: [[-a]]", "command: {path: /bin/tool}\nargs: [[-b, x]]")
    assert check(allowlist, "tool", ["-a"]).entry.file == "0.yaml"
    assert check(allowlist, "tool", ["-b", "x"]).entry.file == "1.yaml"
    verdict = check(allowlist, "tool", ["-b", "y"])
    assert verdict.entry.file == "1.yaml"
    assert "1.yaml:2 group 1" in verdict.failure.message


def test_unknown_commands():
    allowlist = listed(FFMPEG)
    assert "did you mean 'ffmpeg'?" in check(allowlist, "fmpeg", []).failure.message
    assert "allowed: ffmpeg" in check(allowlist, "rm", []).failure.message
    assert "is empty" in check(Allowlist(), "rm", []).failure.message
    assert check(allowlist, "/usr/bin/ffmpeg", ["-y"]).allowed
    assert not check(allowlist, "/tmp/ffmpeg", ["-y"]).allowed
    assert not check(allowlist, "../usr/bin/ffmpeg", ["-y"]).allowed
    assert not check(allowlist, "x" * 100_000, []).allowed


@pytest.mark.parametrize("bad", ["a\0b", "a\nb", "a\rb", "\ud800", "-y\n"])
def test_what_no_rule_can_allow(bad):
    allowlist = tool(r'[["(.|\\n|\\r|\\x00)*"]]')
    verdict = check(allowlist, "tool", [bad])
    assert not verdict.allowed
    verdict.failure.message.encode()


def test_lengths():
    allowlist = tool('[{match: [".*"], repeat: true}]', "max_total_args_len: 10")
    assert check(allowlist, "tool", ["aaaa", "aaaa"]).allowed
    assert not check(allowlist, "tool", ["aaaa", "aaaaa"]).allowed
    assert not check(allowlist, "tool", ["aaa", "aaé", "a"]).allowed  # bytes, not characters
    assert check(allowlist, "tool", [""] * 10).allowed
    assert "11 bytes long; 0.yaml allows 10" in check(allowlist, "tool", ["a" * 10]).failure.message
    many = tool('[{match: [".*"], repeat: true}]', "max_total_args_len: 100000")
    assert check(many, "tool", ["a"] * 1024).allowed
    assert "more than 1024" in check(many, "tool", ["a"] * 1025).failure.message
    assert not check(many, "tool", ["a" * 5000]).allowed


def test_environment():
    allowlist = tool("[]", "env: [LANG]")
    assert check(allowlist, "tool", [], env={"LANG": "C"}).allowed
    verdict = check(allowlist, "tool", [], env={"LANG": "C", "LD_PRELOAD": "x"})
    assert "does not let a manifest set 'LD_PRELOAD'" in verdict.failure.message


def test_the_explanation():
    allowlist = listed(FFMPEG + "max_runtime_s: 60\nmax_output_mb: 5\nstdin: i\nstdout: o\nenv: [A]\nsandbox: bwrap")
    lines = check(allowlist, "ffmpeg", ["-i", "in.mp4", "output.mp4"]).lines()
    assert lines[0] == "allowed: /usr/bin/ffmpeg by 0.yaml"
    assert lines[1] == r"  arguments 1-2: '-i' 'in.mp4'  <- group 2, line 5: -i .+\.(mp4|wav|mkv)$"
    assert lines[2] == r"  argument 3: 'output.mp4'  <- group 4, line 7: output\.(mp4|mkv)"
    said = "\n".join(lines)
    for words in ("4096 bytes", "60 s", "5 MB", "input: i", "output/o", "environment: A", "at least bwrap"):
        assert words in said
    lines = check(allowlist, "ffmpeg", ["-y", "-q"]).lines()
    assert lines[0].startswith("denied: E_DENY: 'ffmpeg': argument 2 '-q'")
    assert lines[-1] == "  argument 1: '-y'  <- group 1, line 4: -y"
    assert check(allowlist, "x", []).lines()[0].startswith("denied: E_DENY")


def test_ambiguous_rules_deny_instead_of_hanging():
    allowlist = tool("[" + ", ".join(['[".+", ".+"]', '[".+"]'] * 12) + "]", "order: any")
    assert _calls(lambda: check(allowlist, "tool", ["a"] * 40)) < 5_000_000
    verdict = check(allowlist, "tool", ["a"] * 40)  # 36 fit
    assert not verdict.allowed
    assert "too ambiguous" in verdict.failure.message
    assert check(allowlist, "tool", ["a"] * 30).allowed


@given(args=st.lists(st.text(max_size=12), max_size=6), command=st.sampled_from(["ffmpeg", "", "\0", "\ud800", "x"]))
def test_a_verdict_on_anything_is_a_verdict(args, command):
    verdict = check(listed(FFMPEG), command, args)
    assert verdict.allowed == (verdict.failure is None)
    for line in verdict.lines():
        line.encode()
    if verdict.allowed:
        assert sum(use.count for use in verdict.uses) == len(args)


GROUPS = st.lists(
    st.tuples(st.text("ab", min_size=1, max_size=2), st.booleans(), st.sampled_from([1, 1, 2, UNLIMITED])),
    max_size=4,
)


def entry_of(groups, order) -> Allowlist:
    made = tuple(Group(tuple(map(Pattern, letters)), required, repeat, 1) for letters, required, repeat in groups)
    return Allowlist({"t": (Entry(name="t", path="/t", file="t.yaml", groups=made, order=order),)})


@given(groups=GROUPS, args=st.text("ab", max_size=7))
def test_file_order_is_the_regular_language_that_it_says(groups, args):
    expected = "".join(f"(?:{text}){{{int(need)},{times or ''}}}" for text, need, times in groups)
    verdict = check(entry_of(groups, Order.FILE), "t", list(args))
    assert verdict.allowed == bool(re.fullmatch(expected, args))


@given(groups=GROUPS, args=st.text("ab", max_size=7))
def test_any_order_is_some_sequence_of_uses(groups, args):
    def possible(rest: str, used: tuple[int, ...]) -> bool:
        if not rest:
            return all(times or not group[1] for times, group in zip(used, groups, strict=True))
        return any(
            rest.startswith(text)
            and (not repeat or used[i] < repeat)
            and possible(rest[len(text) :], (*used[:i], used[i] + 1, *used[i + 1 :]))
            for i, (text, _, repeat) in enumerate(groups)
        )

    verdict = check(entry_of(groups, Order.ANY), "t", list(args))
    assert verdict.allowed == possible(args, (0,) * len(groups))
    if verdict.allowed:
        assert "".join("".join(p.text for p in verdict.entry.groups[use.group].parts) for use in verdict.uses) == args


def test_a_decision_is_cheap():
    allowlist = listed(FFMPEG)
    args = ["-y", "-i", "input1.mp4", "-c:v", "libx264", "output.mp4"]
    check(allowlist, "ffmpeg", args)
    assert _calls(lambda: check(allowlist, "ffmpeg", args)) < 300
    assert _calls(lambda: check(allowlist, "ffmpeg", args * 4)) < 3000  # a refusal and its reasons


def _calls(work) -> int:
    """Of functions, Python's and C's: how much is done, however fast the machine is."""
    seen = []
    sys.setprofile(lambda _, event, __: seen.append(event) if event in {"call", "c_call"} else None)
    try:
        work()
    finally:
        sys.setprofile(None)
    return len(seen)
