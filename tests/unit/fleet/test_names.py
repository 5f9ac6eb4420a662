"""Names: every refusal has its reason, and whatever is accepted stands in an argv or a shell's line as it is."""

import re
import shlex
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ostler.fleet import names

REFUSED = {
    "": "is empty",
    "mini-1; rm -rf /": "';' (character 7), which a shell",
    "../../../etc/passwd": "is a path",
    "/etc/passwd": "is a path",
    "..": "is a path",
    "mini 1": "a space",
    "-oProxyCommand=id": "as an option does",
    "-": "as an option does",
    "--": "as an option does",
    "mini-1\n": "a line break",
    "mini-1\nmini-2": "a line break",
    "mini\r": "a line break",
    "mini\t1": r"'\t'",
    "mini\x00": r"'\x00'",
    "mini\x1b[31m": r"'\x1b'",
    "mini\x7f": r"'\x7f'",
    "$(id)": "'$' (character 1), which a shell",
    "a$(id)": "'$'",
    "${HOME}": "'$'",
    "`id`": "'`'",
    "mini`id`": "'`'",
    "mini|id": "'|'",
    "mini&": "'&'",
    "mini>x": "'>'",
    "mini<x": "'<'",
    "mini'": '"\'"',
    'mini"': "'\"'",
    "mini\\": r"'\\\\'",
    "mini*": "'*'",
    "mini?": "'?'",
    "{a,b}": "'{'",
    "~root": "'~'",
    "#mini": "'#'",
    "%h": "'%'",
    "a=b": "'='",
    "a,b": "','",
    "!mini": "'!'",
    "root@mini": "'@'",
    "mini:22": "':'",
    "mini..lan": "nothing before, after or between dots",
    ".mini": "nothing before, after or between dots",
    "mini-.lan": "begins or ends with '-'",
    "mini.-lan": "begins or ends with '-'",
    "mini+1": "'+'",
    "a" * 64: "64 characters; between dots stand up to 63",
    ".".join(["a" * 49] * 6): "has 299 characters; names of hosts have up to 253",
    "münchen": "not ASCII",
    "ｍini": "not ASCII",
    "mini\u200b": "a control character",
    "mini\u2028": "a control character",
    "127.1": "looks like an IPv4 address",
    "0x7f.1": "looks like an IPv4 address",
    "2130706433": "looks like an IPv4 address",
    "256.1.1.1": "looks like an IPv4 address",
    "010.0.0.1": "looks like an IPv4 address",
    "fe80::1%eth0": "the zone",
    "[fe80::1%25eth0]": "the zone",
    "[::1": "one bracket",
    "::1]": "one bracket",
    "[mini]": "no IPv6 address",
    "a:b:c": "no IPv6 address",
    "[::1]; id": "one bracket",
    "[::1;id]": "no IPv6 address",
    "::ffff:1.2.3.4.5": "no IPv6 address",
}
GOOD = {
    "mini-1": "mini-1",
    "MINI-1.Lan": "mini-1.lan",
    "mini-1.": "mini-1",
    "host.example.com": "host.example.com",
    "3com": "3com",
    "a": "a",
    "xn--mnchen-3ya.de": "xn--mnchen-3ya.de",
    "a" * 63: "a" * 63,
    ".".join(["a" * 49] * 5): ".".join(["a" * 49] * 5),
    "10.0.0.1": "10.0.0.1",
    "2001:DB8::0:1": "2001:db8::1",
    "[2001:db8::1]": "2001:db8::1",
    "::ffff:10.0.0.1": "10.0.0.1",
    "::1": "::1",
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.items(), ids=ascii)
@pytest.mark.parametrize("reader", [names.read_address, names.read_host])
def test_what_is_refused_says_why(reader, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason).replace(r"\\\\", r"\\")):
        reader(text)


@pytest.mark.parametrize(("text", "read"), GOOD.items())
def test_what_is_accepted_has_one_form(text: str, read: str) -> None:
    assert names.read_address(text) == names.read_host(text) == read


def test_an_underscore_names_a_host_but_is_no_address() -> None:
    assert names.read_host("web_1") == "web_1"
    with pytest.raises(ValueError, match="give the host an address of its own"):
        names.read_address("web_1")


@pytest.mark.parametrize("text", [one for one in REFUSED if one not in {"127.1", "mini..lan", "mini-.lan", "mini.-lan", ".mini", "0x7f.1"}
                                  and not re.fullmatch(r"[a-z.]{64,}|[0-9.]+", one)], ids=ascii)  # fmt: skip
@pytest.mark.parametrize("reader", [names.read_user, names.read_group, names.read_pool])
def test_users_and_groups_are_as_safe(reader, text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the reasons are those of hosts
        reader(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("0", "a user's id"), ("1000", "a user's id"), ("u" * 33, "32 is the most"), ("DOM\\u", "obeys"), (".u", "begins with '.'")],
)
def test_users(text: str, reason: str) -> None:
    assert [names.read_user(one) for one in ("deploy", "_apt", "a.b-c", "Admin", "2fa")]
    with pytest.raises(ValueError, match=re.escape(reason)):
        names.read_user(text)


@pytest.mark.parametrize(
    "value",
    [0, -1, 65536, True, False, "", "0", "22 ", " 22", "+22", "2_2", "２２", "0x16", "22;id", "222222", "22\n", 22.0, None],
)
def test_ports_that_are_none(value) -> None:
    assert [names.read_port(one) for one in (1, 65535, "22", "0022")] == [1, 65535, 22, 22]
    with pytest.raises(ValueError, match="from 1 to 65535"):
        names.read_port(value)


@pytest.mark.parametrize(("text", "reason"), [("", "empty"), ("-i", "option"), ("a\nb", "control"), ("a\x00", "control")])
def test_paths(text: str, reason: str) -> None:
    assert names.read_path("~/.ssh/id with space") == "~/.ssh/id with space"
    with pytest.raises(ValueError, match=reason):
        names.read_path(text)


@pytest.mark.parametrize("text", ["", "-a", "a b", "a\n", "a" * 64, "$x"])
def test_labels(text: str) -> None:
    assert names.read_label("example.org/gpu") == "example.org/gpu"
    with pytest.raises(ValueError, match="no key of a label"):
        names.read_label(text)


def test_targets() -> None:
    assert names.split_target("u@h:1") == ("u", "h", "1")
    assert names.split_target("h") == (None, "h", None)
    assert names.split_target("u@[::1]:22") == ("u", "[::1]", "22")
    assert names.split_target("::1") == (None, "::1", None)
    assert names.split_target("a@b@h") == ("a@b", "h", None)
    for text in ("[::1", "[::1]22"):
        with pytest.raises(ValueError, match=r"\[ADDRESS\]"):
            names.split_target(text)


READERS = [names.read_address, names.read_host, names.read_user, names.read_group, names.read_pool, names.read_label]
NASTY = st.text(alphabet=st.sampled_from("ab1-_./:@%$`;&|<>(){}[]!*?\"'\\~#^=, \t\n\r\x00\x1b\x7fé\u2028０"), max_size=24)


def accepted(reader, text: str) -> str | None:
    try:
        return reader(text)
    except ValueError:
        return None


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=100, deadline=None)
@given(text=st.one_of(st.text(max_size=300), NASTY))
@example(text="a\n")
@example(text="::1\n")
def test_nothing_accepted_is_an_option_or_breaks_a_quotation(reader, text: str) -> None:
    value = accepted(reader, text)
    if value is None:
        return
    assert not value.startswith("-")
    assert shlex.quote(value) == value
    assert shlex.split(value, comments=True) == [value]
    assert re.fullmatch(r"[A-Za-z0-9_.:/-]+", value)
    assert accepted(reader, value) == value, "the form that it has is read as itself"


def test_a_real_shell_hands_accepted_names_on_as_they_are() -> None:
    """Unquoted, and behind a program that takes options: the worst place that a name can get to."""
    words = [*GOOD.values(), "web_1", "deploy", "_apt"]
    line = "printf '%s\\n' " + " ".join(words)
    shown = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == words
