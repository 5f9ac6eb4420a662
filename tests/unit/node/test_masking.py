"""Masking by position: against a plain definition, in pieces as in one, and for the encodings that programs print."""

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.node.masking import SHORTEST, Masker, patterns

few = st.lists(st.sampled_from(b"ab*\n"), max_size=40).map(bytes)
values = st.lists(st.lists(st.sampled_from(b"ab"), min_size=SHORTEST, max_size=9).map(bytes), min_size=1, max_size=3)
CANARY = b"s3cr3t/+canary=V4lue"


def plainly(found: set[bytes], data: bytes) -> bytes:
    covered = [False] * len(data)
    for pattern in found:
        for at in range(len(data)):
            if data.startswith(pattern, at):
                covered[at : at + len(pattern)] = [True] * len(pattern)
    return bytes(42 if hidden else byte for hidden, byte in zip(covered, data, strict=True))


def in_pieces(masker: Masker, data: bytes, cuts: list[int]) -> bytes:
    """As the node does it: what is decided goes out, with what may cover it from before kept at hand."""
    out, written = b"", b""
    for end in [*sorted(cuts), None]:
        written = data[:end]
        base = max(0, len(out) - max(0, masker.longest - 1))
        window = written[base:]
        last = len(window) if end is None else masker.settled(window)
        out += masker.mask(window)[len(out) - base : max(last, len(out) - base)]
    return out


@given(values, few)
def test_exactly_the_covered_bytes_are_masked(secrets: list[bytes], data: bytes) -> None:
    found = {pattern for value in secrets for pattern in patterns(value)}
    assert Masker(secrets).mask(data) == plainly(found, data)


@given(values, few, st.lists(st.integers(0, 40), max_size=6))
def test_pieces_are_masked_as_the_whole_is(secrets: list[bytes], data: bytes, cuts: list[int]) -> None:
    masker = Masker(secrets)
    assert in_pieces(masker, data, [min(cut, len(data)) for cut in cuts]) == masker.mask(data)


@given(values, few)
def test_what_is_settled_does_not_wait_without_need(secrets: list[bytes], data: bytes) -> None:
    masker = Masker(secrets)
    settled = masker.settled(data)
    found = {pattern for value in secrets for pattern in patterns(value)}
    assert settled == len(data) or any(pattern.startswith(data[settled:]) for pattern in found)


@pytest.mark.parametrize("around", [b"", b"x", b"xy", b"xyz", b'{"a": "'])
@pytest.mark.parametrize(
    "encode",
    [
        bytes,
        base64.b64encode,
        base64.urlsafe_b64encode,
        lambda value: quote(value, safe="").encode(),
        lambda value: quote(value, safe="").lower().encode() if b"%" in quote(value, safe="").encode() else value,
        lambda value: value.hex().encode(),
        lambda value: value.hex().upper().encode(),
        lambda value: json.dumps(value.decode()).encode(),
    ],
)
def test_usual_encodings_are_found(around: bytes, encode: object) -> None:
    assert callable(encode)
    data = around + encode(CANARY) + around
    masked = Masker([CANARY]).mask(data)
    assert len(masked) == len(data)
    if encode(CANARY).lower() != quote(CANARY, safe="").lower().encode():  # the lower-case value itself is another
        assert CANARY not in masked
        assert b"*" * len(CANARY) in masked


@pytest.mark.parametrize("before", range(6))
def test_base64_of_more_than_the_value_is_masked_but_for_its_edges(before: int) -> None:
    encoded = base64.b64encode(b"q" * before + CANARY + b"rest")
    masked = Masker([CANARY]).mask(encoded)
    kept = base64.b64decode(masked.replace(b"*", b"A") + b"==")
    assert masked.count(b"*") >= len(CANARY) * 8 // 6 - 2
    assert not any(CANARY[at : at + 3] in kept for at in range(len(CANARY) - 2))


@pytest.mark.parametrize("width", [1, 3, 60, 64, 76])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_are_found_where_they_are_broken_into_lines(width: int, end: str) -> None:
    value = CANARY * 5
    for encode in (base64.b64encode, lambda one: one.hex().encode()):
        text = encode(b"before " + value).decode()
        broken = "".join(text[at : at + width] + end for at in range(0, len(text), width)).encode()
        masked = Masker([value]).mask(broken)
        assert (len(masked), masked.count(b"\n")) == (len(broken), broken.count(b"\n"))
        assert masked.count(b"*") >= len(encode(value).rstrip(b"=")) - 2
        if end == "\n":
            assert in_pieces(Masker([value]), broken, [len(broken) // 3, len(broken) // 2]) == masked


def test_lines_of_a_long_value_are_masked_one_by_one_and_short_values_not_at_all() -> None:
    key = b"-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG\n\nab\n-----END KEY-----\n"
    masked = Masker([key]).mask(b"> MIIEvQIBADANBgkqhkiG\n> ab\n")
    assert masked == b"> " + b"*" * 20 + b"\n> ab\n"
    assert Masker([b"abc", b" abc\n", b""]).mask(b"abc") == b"abc"
    assert Masker([b"hunter2\n"]).mask(b"hunter2!") == b"*******!"
    assert Masker([CANARY]).text(f"no {CANARY.decode()}: ü") == f"no {'*' * len(CANARY)}: ü"


def test_repetitive_values_cost_no_more_than_others() -> None:
    masker = Masker([b"a" * 65536])
    data = b"a" * 400_000
    assert masker.mask(data) == b"*" * len(data)
    assert masker.settled(data) == len(data) - 65535
