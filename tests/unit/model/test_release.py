"""Which of two releases is older: by what stands in their manifests, or, of one that is not here, by its id."""

import pytest

from ostler.fleet.host.archive import Manifest
from ostler.model.release import age, is_older

KNOWN = {"1.0-aaaaaaaaaaaa": age("1.0", 100), "1.1-bbbbbbbbbbbb": age("1.1", 50), "strange": age("x", 100)}


@pytest.mark.parametrize(
    ("version", "made", "other", "older"),
    [
        ("1.0", 99, "1.0-aaaaaaaaaaaa", True),
        ("1.0", 100, "1.0-aaaaaaaaaaaa", False),
        ("1.0", 0, "1.0-aaaaaaaaaaaa", True),  # nobody knows when: hosts take it for the older one
        ("1.0.1", 0, "1.0-aaaaaaaaaaaa", False),
        ("1.0", 200, "1.1-bbbbbbbbbbbb", True),
        ("1.9", 0, "1.10.dev1-cccccccccccc", True),  # not here: the version is all there is to tell
        ("1.0", 0, "1.0-cccccccccccc", False),
        ("1.0", 0, "no-id", False),
        ("0.9", 0, "strange", False),
    ],
)
def test_older(version: str, made: int, other: str, older: bool) -> None:
    assert is_older(age(version, made), other, KNOWN) is older
    manifest = Manifest(
        version=version, commit=None, protocol=(1, 1), schema=1, platforms=(), files={}, generation=1, keys={}, digest="", signed_by=(),
        made=made,
    )  # fmt: skip
    assert manifest.age == age(version, made)  # as a host tells it
