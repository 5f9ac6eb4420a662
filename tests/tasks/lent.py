"""What tasks leave in a workspace that they were lent. Used by tests alone."""

import ctypes
import os
import shutil
import sys
from pathlib import Path


def where() -> list[object]:
    """The working directory, what lies beside it, and how many files there are in all."""
    root = Path.cwd().parent
    files = [one for one in root.rglob("*") if one.is_file() and (one.parent.name != "logs" or one.stat().st_size)]
    return [str(Path.cwd()), sorted(one.name for one in root.iterdir()), len(files)]


def leave(what: str) -> str:
    """Leave something, in one way or another."""
    work = Path.cwd()
    root = work.parent
    match what:
        case "print":
            print("left")
        case "complain":
            print("left", file=sys.stderr)
        case "c":
            ctypes.CDLL(None).puts(b"left")
        case "file":
            (work / "a").touch()
        case "output" | "input" | "logs":
            (root / what / "a").touch()
        case "beside":
            (root / "a").mkdir()
        case "mode":
            work.chmod(0o500)
        case "replaced":
            shutil.rmtree(work)
            work.mkdir(mode=0o700)
        case "linked":
            (root / "output").rename(root.with_name("moved"))
            (root / "output").symlink_to("../moved")
        case "linked root":
            root.rename(root.with_name("moved"))
            root.symlink_to("moved")
        case "close":
            os.close(1)
    return what


def fail() -> None:
    """Fail."""
    raise ValueError("on purpose")


def echo(what: str) -> str:
    """Give it back."""
    return what
