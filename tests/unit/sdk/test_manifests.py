"""Manifests out of keyword arguments."""

import pytest

from ostler.model.errors import InvalidSpec
from ostler.model.manifest import Manifest
from ostler.sdk.manifests import draft, manifest_of


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"params": {"a": [1, float("nan")]}}, r"params\.a\[1\]"),
        ({"params": {"a": {"b": float("inf")}}}, r"params\.a\.b"),
        ({"timeout_s": float("inf")}, "timeout_s"),
    ],
)
def test_a_number_that_json_does_not_have_is_refused_and_not_written_as_null(fields, place):
    with pytest.raises(InvalidSpec, match=place):
        draft(None, inputs=None, artifacts=(), task="m:f", **fields)
    with pytest.raises(InvalidSpec, match=place):
        manifest_of({"task": "m:f", **fields})


def test_other_numbers_are_as_they_are():
    assert manifest_of({"task": "m:f", "params": {"a": [1, 2.5, -0.0]}})["params"] == {"a": [1, 2.5, -0.0]}
    assert manifest_of(Manifest(command="x", timeout_s=2.5))["timeout_s"] == 2.5
