"""Patterns: the same language as `re`, matched without backtracking, and wildcards that cannot reach what is dangerous."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.node.allowlist_pattern import EVERYTHING, MAX_ARG_CHARS, PARENT, Pattern, PatternRefused
from pace import at_most

LETTERS = "ab0_ ./:-,é"


def patterns(atoms: list[str]) -> st.SearchStrategy[str]:
    """Regular expressions made of these atoms."""
    repeats = st.sampled_from(["*", "+", "?", "{0,2}", "{2}", "{1,}", "*?", "+?"])
    return st.recursive(
        st.sampled_from(atoms),
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map("".join),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
            st.tuples(inner, repeats).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
        ),
        max_leaves=6,
    )


SPELLING = [
    "a",
    "b",
    "/",
    ":",
    "-",
    r"\.",
    ".",
    "[^/]",
    "[^a]",
    r"\S",
    r"\W",
    r"\w",
    r"\d",
    "[a-z]",
    r"[\w./-]",
    "[-+]",
    "[!-~]",
    "^",
    "$",
    "",
]
WILD = ["a", "b", ".", "[^a]", "[^,]", r"\S", r"\W", r"\D", r"[\W]", "[!-~]", "[,-;]", "[a-z]", r"[\w]", "^", "$"]
VALUES = st.text(LETTERS, max_size=8)


@given(pattern=patterns(SPELLING), data=st.data())
def test_with_all_grants_a_pattern_matches_what_re_matches(pattern, data):
    compiled = Pattern(pattern, EVERYTHING)
    value = data.draw(st.one_of(VALUES, st.from_regex(pattern, fullmatch=True, alphabet=st.sampled_from(LETTERS))))
    expected = re.fullmatch(pattern, value) is not None
    if PARENT.search(value):
        assert expected or not compiled.matches(value)
    else:
        assert compiled.matches(value) == expected
    assert (compiled.refusal(value) is None) == compiled.matches(value)


@given(pattern=patterns(WILD), data=st.data())
def test_what_no_pattern_spells_no_wildcard_reaches(pattern, data):
    value = data.draw(st.one_of(VALUES, st.from_regex(pattern, fullmatch=True, alphabet=st.sampled_from(LETTERS))))
    if Pattern(pattern).matches(value):
        assert "/" not in value
        assert ":" not in value
        assert not value.startswith("-")
        assert ".." not in re.split(r"[/=, ]", value)


@given(pattern=patterns(SPELLING), data=st.data(), grants=st.sets(st.sampled_from("/:-")))
def test_a_grant_only_ever_adds(pattern, data, grants):
    value = data.draw(st.one_of(VALUES, st.from_regex(pattern, fullmatch=True, alphabet=st.sampled_from(LETTERS))))
    strict, granted, loose = Pattern(pattern), Pattern(pattern, frozenset(grants)), Pattern(pattern, EVERYTHING)
    assert strict.matches(value) <= granted.matches(value) <= loose.matches(value)


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        (r".+\.(mp4|wav|mkv)$", "in.mp4"),
        (r".+\.(mp4|wav|mkv)$", "a-b c.mkv"),
        (r"^[a-z]+$", "abc"),
        (r"https://cdn\.example/[a-z0-9/]+", "https://cdn.example/a/b"),  # spelled by literals and by a class
        (r"https://cdn\.example/.+", "https://cdn.example/a"),
        (r"--title=.*", "--title=a-b"),
        (r"-[0-9]+", "-12"),
        (r"[-+]?[0-9]+", "-12"),  # a class of single characters, used once, spells its '-'
        (r"[\w.-]+", "a-b.c"),
        (r"[\w./-]+", "a/b.c"),
        (r"\.\./other", "../other"),
        (r"(\.\./)?other/[a-z]+", "../other/x"),  # nothing but literals can be the dots
        (r".+", "..a"),
        (r".+", "wait..."),
        (r".+", "1..10"),
        (r".*", ""),
        (r".+", "é\u20ac"),
        (r"(?P<name>a)\Z", "a"),
        (r"(^a$|a)b", "ab"),
        (r"(a|$)+$", "aa"),
        (r".?-x", "-x"),  # the optional wildcard is not used: the '-' is the literal
    ],
)
def test_allowed(pattern, value):
    assert Pattern(pattern).matches(value)
    assert Pattern(pattern).refusal(value) is None


@pytest.mark.parametrize(
    ("pattern", "value", "says"),
    [
        (r".+\.mp4", "a/b.mp4", "allow_slash: true"),
        (r".+\.mp4", "http://h/b.mp4", "allow_slash: true and allow_colon: true"),
        (r".+\.mp4", "-x.mp4", "begins with '-'"),
        (r"[^ ]+", "a:b", "allow_colon: true"),
        (r"\S+", "/etc/passwd", "allow_slash: true"),
        (r"[!-~]+", "a/b", "allow_slash: true"),  # a range that merely spans it
        (r"[\w.-]+", "-rf", "allow_dash: true"),  # the '-' of a name's alphabet
        (r"[-\w]\w+", "-rf", "allow_dash: true"),
        (r"[ab-]+", "-ab", "allow_dash: true"),
        (r"([-a])+", "-a", "allow_dash: true"),
        (r"a$b", "ab", "does not match"),
        (r"a^b", "ab", "does not match"),
        (r"(^a)+", "aa", "does not match"),
        (r"[\w.]+", "..", "parent directory"),
        (r"[\w./-]+", "../other/input/x", "parent directory"),
        (r"[\w./-]+", "a/..", "parent directory"),
        (r"--out=.+", "--out=..", "parent directory"),
        (r"-o.+", "-o..", "parent directory"),
        (r"https://cdn\.example/.+", "https://cdn.example/a/b", "allow_slash: true"),
        (r"(a/.b|a.:b)", "a/:b", "allow_slash: true and allow_colon: true"),
        (r"a", "b", "does not match a"),
        (r"a+", "b", "does not match a+"),
        (r".*", "a" * (MAX_ARG_CHARS + 1), "longer than 4096"),
    ],
)
def test_refused(pattern, value, says):
    compiled = Pattern(pattern)
    assert not compiled.matches(value)
    assert says in compiled.refusal(value)


def test_parent_directories_are_refused_even_where_slashes_are_granted():
    compiled = Pattern(".+", EVERYTHING)
    assert compiled.matches("frames/001.png")
    assert not compiled.matches("../other/input/x")
    assert not compiled.matches("a/../../x")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(", "not a regular expression"),
        ("(?i)a", "sets a flag"),
        ("(?i:a)b", "sets a flag"),
        ("a++", "possessive"),
        ("(?>a)b", "atomic"),
        ("(?=a)a", "look-ahead"),
        ("(?<!a)a", "look-behind"),
        (r"(a)\1", "back-reference"),
        (r"(a)?(?(1)b|c)", "conditional"),
        (r"a\b", "word boundary"),
        ("[[a]", "ambiguous"),
        ("((a{100}){100}){100}", "too large"),
        ("(){1000000000}", "too large"),
        (".{0,5000}", "too large"),
        ("a" * 1025, "longer than 1024"),
        ("(" * 500 + ")" * 500, "nested too deeply"),
    ],
)
def test_patterns_that_cannot_be_matched_in_bounded_time_are_refused(pattern, says):
    with pytest.raises(PatternRefused, match=re.escape(says)):
        Pattern(pattern)


@pytest.mark.parametrize("pattern", [r"(a+)+b", r"(a|a)*b", r"(a*)*b", r".*.*.*.*.*.*=.*b", r"(.?){50}a{50}b", r"(a|aa)+b"])
def test_no_pattern_hangs(pattern):
    compiled = Pattern(pattern)
    with at_most(200):
        assert not compiled.matches("a" * MAX_ARG_CHARS)
        assert not compiled.matches("".join(map(chr, range(0x4E00, 0x4E00 + MAX_ARG_CHARS))))


def test_memory_does_not_follow_what_strangers_send():
    compiled = Pattern("(a|b)*a(a|b){12}|.*x")
    for i in range(20):
        compiled.matches("".join(map(chr, range(0x4E00 + i * 4000, 0x4E00 + (i + 1) * 4000))))
        compiled.matches(f"{i:b}".replace("0", "a").replace("1", "b") * 100)
    steps = {id(step): step for step in [*compiled._matcher._steps.values(), compiled._matcher._first]}
    assert sum(len(step.then) for step in steps.values()) <= 2 * 8192
    assert compiled.matches("x")
