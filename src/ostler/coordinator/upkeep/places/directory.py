"""A directory of backups: contents are files (0600), whoever changes it has its lock."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from ostler.coordinator.upkeep.copying import disk_of, sync
from ostler.coordinator.upkeep.places.port import Hold
from ostler.model.errors import Conflict, OperationInFlight, StoreBusy

BLOCK = 2**20
_LOCK = ".lock"


class DirectoryPlace:
    """See `Place`."""

    lanes = 1

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def shown(self) -> str:
        """The directory's path."""
        return str(self.root)

    def folders(self) -> list[str]:
        """See `Place`."""
        try:
            with os.scandir(self.root) as found:
                return sorted(one.name for one in found if one.is_dir(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def names(self, folder: str = "") -> Iterator[str]:
        """See `Place`."""
        for place, _, files in os.walk(self.root / folder):
            below = os.path.relpath(place, self.root)
            yield from (f"{below}/{file}" if below != "." else file for file in files if below != "." or file != _LOCK)

    def read(self, name: str) -> bytes:
        """See `Place`."""
        try:
            return (self.root / name).read_bytes()
        except NotADirectoryError as exc:
            raise FileNotFoundError(name) from exc

    def stream(self, name: str) -> Iterator[bytes]:
        """See `Place`."""
        with (self.root / name).open("rb") as file:
            while block := file.read(BLOCK):
                yield block

    def claim(self, name: str, content: bytes) -> bool:
        """See `Place`."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as exc:
            raise Conflict(f"{self.root} is no directory", hint="name an empty or a new directory for the backups") from exc
        with self._locked():
            if (self.root / name).exists():
                return False
            write_file(self.root / name, [content])
            sync(self.root)
        return True

    def write(self, name: str, blocks: Iterable[bytes], size: int) -> None:
        """See `Place`."""
        write_file(self.local(name), blocks)

    def local(self, name: str) -> Path:
        """See `Place`."""
        path = self.root / name
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync(path.parent.parent)
        return path

    def new_folder(self, stem: str) -> str:
        """See `Place`: whoever asks has the lock."""
        name, count = stem, 1
        while (self.root / name).exists():
            count += 1
            name = f"{stem}-{count}"
        return name

    def settle(self, folder: str) -> None:
        """See `Place`: files are durable when they are written, their names are not."""
        for place, _, _ in os.walk(self.root / folder, topdown=False):
            sync(Path(place))
        sync(self.root)

    def remove(self, names: Iterable[str]) -> None:
        """See `Place`."""
        for name in names:
            (self.root / name).unlink(missing_ok=True)

    def drop(self, folder: str) -> None:
        """See `Place`."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.root / folder)

    @contextlib.contextmanager
    def hold(self, *, prune: bool) -> Iterator[Hold]:
        """See `Place`."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._locked(wait=False))
            except BlockingIOError as exc:
                raise OperationInFlight(f"another backup works on {self.root}", hint="wait until it is over") from exc
            yield Hold(alone=True)

    @contextlib.contextmanager
    def _locked(self, *, wait: bool = True) -> Iterator[None]:
        descriptor = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield
        finally:
            os.close(descriptor)

    def removal(self, folder: str) -> str:
        """See `Place`."""
        return f"rm -r {self.root / folder}"


def write_file(path: Path, blocks: Iterable[bytes]) -> None:
    """A whole file or none, 0600, durable but for its name. Raises StoreBusy where the disk does not let us."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(descriptor)
        part.replace(path)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise StoreBusy(f"{path} cannot be written: {exc.strerror}", hint=f"df -h {disk_of(path)}") from exc
    finally:
        part.unlink(missing_ok=True)
