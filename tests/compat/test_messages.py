"""Messages that past releases sent are understood by this one, and nothing in them is lost."""

import json
from pathlib import Path

import pytest

from ostler.protocol import codec, messages

RECORDED = {
    f"{path.stem}:{name}": (getattr(messages, name), body)
    for path in sorted((Path(__file__).parent / "fixtures").glob("messages-*.json"))
    for name, body in json.loads(path.read_text()).items()
}


def within(old, new):
    """Whether everything that stands in `old` stands in `new`; a later release may add."""
    if isinstance(old, dict):
        return all(key in new and within(value, new[key]) for key, value in old.items())
    if isinstance(old, list):
        return len(old) == len(new) and all(within(a, b) for a, b in zip(old, new, strict=True))
    return old == new


@pytest.mark.parametrize("name", RECORDED)
def test_it_is_understood_whole(name):
    shape, body = RECORDED[name]
    value = codec.decode(json.dumps(body), shape)
    assert within(body, json.loads(codec.encode(value)))


@pytest.mark.parametrize("name", RECORDED)
def test_a_field_of_a_later_release_is_ignored(name):
    shape, body = RECORDED[name]
    assert codec.decode(json.dumps(body | {"aura": {"x": [1]}}), shape) == codec.decode(json.dumps(body), shape)
