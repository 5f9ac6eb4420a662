"""What a command outside of the system's directories needs to see of the host, so that it runs in a sandbox."""

from collections.abc import Iterator
from pathlib import Path

_SCRIPTS_DEEP = 4  # an interpreter may be a script itself; the kernel follows as many


def needed(command: str) -> tuple[str, ...]:
    """The paths to show read-only for an absolute command path; plans drop those that are shown anyway.

    That is the file itself; for a script its interpreter; for Python the prefixes (a virtual environment and the
    installation it was made from); for a conda environment the whole of it. Paths that do not exist are left out.
    Libraries in places of their own belong to the allowlist entry.
    """
    return tuple(dict.fromkeys(_needed(Path(command), _SCRIPTS_DEEP)))


def _needed(command: Path, deep: int) -> Iterator[str]:
    if not command.is_file():
        return
    prefixes = [prefix for hop in _hops(command) for prefix in _prefixes(hop)]
    if not any(command.is_relative_to(prefix) for prefix in prefixes):
        yield str(command)
    yield from (str(prefix) for prefix in prefixes)
    interpreter = _interpreter(command)
    if interpreter is not None and deep:
        yield from _needed(interpreter, deep - 1)


def _hops(path: Path) -> Iterator[Path]:
    """The path and what it links to, link by link; each may lie in another prefix."""
    for _ in range(40):  # as many as the kernel follows
        yield path
        if not path.is_symlink():
            return
        target = path.parent / path.readlink()
        path = target.parent.resolve() / target.name


def _prefixes(binary: Path) -> Iterator[Path]:
    if binary.parent.name != "bin":
        return
    prefix = binary.parent.parent
    config = prefix / "pyvenv.cfg"
    if config.is_file():
        yield prefix
        home = base_of(config.read_text(errors="replace"))
        if home is not None:
            yield home.parent
    elif (prefix / "conda-meta").is_dir() or _is_python_installation(prefix, binary):
        yield prefix


def _is_python_installation(prefix: Path, binary: Path) -> bool:
    return binary.name.startswith("python") and any(prefix.glob("lib*/python*/os.py"))


def base_of(pyvenv_cfg: str) -> Path | None:
    """The directory with the interpreter that a virtual environment was made from (`home = …`)."""
    for line in pyvenv_cfg.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "home" and value.strip().startswith("/"):
            return Path(value.strip())
    return None


def _interpreter(script: Path) -> Path | None:
    try:
        with script.open("rb") as file:
            line = file.read(256).split(b"\n", 1)[0]
    except OSError:
        return None
    if not line.startswith(b"#!"):
        return None
    words = line[2:].decode(errors="replace").split()
    return Path(words[0]) if words and words[0].startswith("/") else None
