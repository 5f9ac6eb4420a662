"""Packages that are loaded when something of them is first used."""

import subprocess
import sys

import pytest

from ostler.runtime.later import later


def test_it_is_loaded_at_its_first_use():
    one = later("colorsys")
    assert one.rgb_to_hsv(0, 0, 0) == (0.0, 0.0, 0)
    assert one.hsv_to_rgb is sys.modules["colorsys"].hsv_to_rgb
    with pytest.raises(ModuleNotFoundError):
        _ = later("this_is_none").any


@pytest.mark.parametrize("part", ["ostler.cli.main", "ostler.sdk", "ostler.protocol.client", "ostler.assembly.node"])
def test_whoever_streams_nothing_loads_no_library_for_it(part):
    code = f"import sys, {part}; print(sorted(one for one in sys.modules if one in ('httpx', 'httpx._client', 'httpcore')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
