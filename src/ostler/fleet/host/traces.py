"""What an installation changed on a host, written down before each change, so that all of it can be taken back."""

import base64
import os
import shutil
import stat
from pathlib import Path
from typing import Any

from ostler.fleet.host.places import Places, half, read_json, sync, write, write_json
from ostler.fleet.host.unit_files import is_as_written


class Traces:
    """`made` are directories and files that were not there, the outer ones first; `before` are files that were, as they were, and
    directories that were empty and were taken over, or got another owner and mode."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._note = places.updates / "installed.json"
        found = read_json(self._note) or {}
        self.made: list[str] = list(found.get("made", ()))
        self.before: dict[str, dict[str, Any]] = dict(found.get("before", {}))

    def directory(self, path: Path, *, mode: int, owner: tuple[int, int] = (0, 0)) -> bool:
        """Make a directory and those above it; one that is ours gets mode and owner. True where something changed."""
        changed = False
        for one in reversed([path, *path.parents]):
            if not one.is_dir():
                self._add(one)
                one.mkdir(mode=0o755)
                one.chmod(0o755)
                sync(one.parent)
                changed = True
        name = self._name(path)
        if name in self.made or self.before.get(name, {}).get("empty"):
            found = path.stat()
            if (found.st_uid, found.st_gid) != owner:
                os.chown(path, *owner)
                changed = True
            if stat.S_IMODE(found.st_mode) != mode:
                path.chmod(mode)
                changed = True
        return changed

    def take_over(self, path: Path) -> None:
        """A directory that is there and empty is ours from now on, such as a disk that was mounted for it. `take_back` empties it."""
        name = self._name(path)
        if name in self.made or name in self.before:
            return
        found = path.stat()
        self.before[name] = {"mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid, "empty": True}
        self._save()

    def file(self, path: Path, content: bytes, *, mode: int = 0o644) -> bool:
        """Write a file whole; what stood there is kept. True where something changed."""
        self.expect(path)
        if is_as_written(path, content, mode=mode):
            return False
        write(path, content, mode=mode)
        return True

    def expect(self, path: Path) -> None:
        """Somebody is about to write this file or link, or to give a directory another owner and mode: remember it as it is now, unless it
        is ours already."""
        name = self._name(path)
        if name in self.made or name in self.before:
            return
        if not os.path.lexists(path):
            self._add(path)
            return
        found = path.lstat()
        self.before[name] = {"mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid} | (
            {"link": str(path.readlink())}
            if path.is_symlink()
            else {"folder": True}
            if path.is_dir()
            else {"content": base64.b64encode(path.read_bytes()).decode()}
        )
        self._save()

    def is_back(self, path: Path) -> bool:
        """Whether what was there before is there again."""
        was = self.before.get(self._name(path))
        if was is None or not os.path.lexists(path):
            return False
        if "link" in was:
            return path.is_symlink() and str(path.readlink()) == was["link"]
        return path.is_file() and path.read_bytes() == base64.b64decode(was["content"])

    def take_back(self, keep: tuple[Path, ...] = ()) -> tuple[list[str], list[str]]:
        """Put back what was there and remove what was made, with all that came into it, but `keep`. Answers what was removed and what
        was put back.
        """
        for name in (*self.made, *self.before):
            path = self._places.root / name
            half(path).unlink(missing_ok=True)
        restored = []
        for name, was in self.before.items():
            if self._places.root / name in keep:
                continue
            self._restore(self._places.root / name, was)
            restored.append(f"/{name}")
        removed = []
        for name in reversed(self.made):
            path = self._places.root / name
            if not os.path.lexists(path) or any(one == path or path in one.parents for one in keep):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed.append(f"/{name}")
        return removed, restored

    def _restore(self, path: Path, was: dict[str, Any]) -> None:
        if was.get("empty") or was.get("folder"):
            path.mkdir(parents=True, exist_ok=True)
            for one in contents(path) if was.get("empty") else []:
                shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
            os.chown(path, was["uid"], was["gid"])
            path.chmod(was["mode"])
            return
        if "link" in was:
            if not path.is_symlink() or str(path.readlink()) != was["link"]:
                path.unlink(missing_ok=True)
                path.symlink_to(was["link"])
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, base64.b64decode(was["content"]), mode=was["mode"])
        os.chown(path, was["uid"], was["gid"])

    def _add(self, path: Path) -> None:
        if self._name(path) not in self.made:
            self.made.append(self._name(path))
            self._save()

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._places.root))

    def _save(self) -> None:
        write_json(self._note, {"made": self.made, "before": self.before})


def contents(folder: Path) -> list[Path]:
    """What is in a directory, but for what a file system brings along."""
    return sorted(one for one in folder.iterdir() if one.name != "lost+found")
