"""Where what was downloaded may be stored: never outside of the directory that the user named."""

from pathlib import Path

from ostler.model.errors import InvalidSpec, Problem
from ostler.model.manifest import unsafe_path


def safe_target(directory: Path, path: str) -> Path:
    """Where an artifact goes below a directory; raises InvalidSpec for a path, or a link on the way, that leads out of it."""
    if why := unsafe_path(path):
        raise InvalidSpec("an artifact cannot be stored here", [Problem(path, why)])
    root, target = directory.resolve(), directory / path
    if not target.parent.resolve().is_relative_to(root):
        raise InvalidSpec(
            "an artifact cannot be stored here", [Problem(path, f"{target.parent} is a link that leaves {directory}")]
        )
    if target.is_dir():
        raise InvalidSpec("an artifact cannot be stored here", [Problem(path, f"{target} is a directory")])
    return target
