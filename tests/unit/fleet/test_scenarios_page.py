"""The page that names a test for each sentence names tests that there are, and says truly which of them the default run has."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/explanation/fleet-scenarios.md").read_text()


def test_each_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`( \*)?", PAGE)
    assert len(named) > 30
    wrong = []
    for file, name, default in named:
        text = (ROOT / file).read_text()
        head = re.search(rf"((?:^@.*\n|^[ \])\"].*\n)*)^(?:async )?def {name}\(", text, re.MULTILINE)
        if head is None:
            wrong.append(f"{file}::{name} is not there")
            continue
        is_long = "pytest.mark.long" in head[1] or re.search(r"^pytestmark = .*mark\.long", text, re.MULTILINE) is not None
        if is_long is bool(default):
            wrong.append(f"{file}::{name} is {'long' if is_long else 'in the default run'}")
    assert not wrong
