"""A task as an operator writes one: `tasks.example:run(**params)`. Used by tests alone."""

import json

from ostler.task import input_dir, output_dir, progress


def run(words: list[str] | None = None, *, shout: bool = False) -> dict[str, int]:
    """Count words, given or in the input `text`; the counts become `output/counts.json` and the result."""
    if words is None:
        words = (input_dir() / "text").read_text().split()
    counts: dict[str, int] = {}
    for number, word in enumerate(words, 1):
        name = word.upper() if shout else word
        counts[name] = counts.get(name, 0) + 1
        progress(100 * number / len(words), f"word {number}")
    (output_dir() / "counts.json").write_text(json.dumps(counts))
    print(f"{len(words)} words")
    return counts
