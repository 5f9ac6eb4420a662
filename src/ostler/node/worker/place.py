"""A workspace that is lent to one task after another, as long as they leave nothing in it.

To make folders and log files for each task, and to remove them, costs more than most tasks. So a worker has one spare workspace, with
standard output and error open in it. It is moved to where the next task's is to be, and back if that task wrote nothing.
"""

# ruff: noqa: PTH102, PTH104, PTH208 - as in attempt.py
import contextlib
import os
import shutil

FOLDERS = ("input", "work", "output", "logs")
STREAMS = {"stdout.log": 1, "stderr.log": 2}


class Place:
    """The spare one lies at `spare`, on the file system of all workspaces. A task that took `lasting_s` keeps its workspace, whatever is
    in it."""

    def __init__(self, spare: str, lasting_s: float) -> None:
        self.lasting_s = lasting_s
        self._spare = spare
        self._files: dict[int, tuple[int, int]] | None = None  # which file each stream is; None: there is no spare workspace
        self._folders: list[tuple[int, int, int]] = []
        self._work = -1

    def take(self, root: str) -> None:
        """Have a workspace at `root`, work in it, write into its logs. Raises OSError."""
        if self._files is None:
            self._make()
        os.rename(self._spare, root)
        os.fchdir(self._work)

    def give_back(self, root: str) -> bool:
        """Whether nothing was left at `root`; it is the spare one again then, and else stays there for good."""
        files = self._files
        silent = files is not None and all(_is_empty(number, file) for number, file in files.items())
        empty = silent and _is_bare(root, self._folders)
        if empty:
            try:
                os.rename(root, self._spare)
            except OSError:
                empty = False
        if not empty:
            self.let_go()
        return empty

    def let_go(self) -> None:
        """What is at the root of the last task stays there for good; nobody writes into its logs any more."""
        if self._files is not None:
            self._files = None
            os.close(self._work)
        for number in STREAMS.values():
            redirect(os.devnull, number)
        os.chdir("/")

    def rest(self) -> None:
        """Hold nothing on that disk, which somebody may want to unmount; the next task gets a new spare one."""
        if self._files is not None:
            self.let_go()
            with contextlib.suppress(OSError):
                shutil.rmtree(self._spare)

    def _make(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._spare)
        os.mkdir(self._spare, 0o700)
        for name in FOLDERS:
            os.mkdir(f"{self._spare}/{name}", 0o700)
        files = {}
        for name, number in STREAMS.items():
            redirect(f"{self._spare}/logs/{name}", number)
            files[number] = _identity(number)
        self._work = os.open(f"{self._spare}/work", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folders = _folders(self._spare)
        self._files = files


def redirect(path: str, number: int) -> None:
    """Have a stream written to the end of a file; never through a link."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if handle == number:  # the task had closed it
        os.set_inheritable(number, True)
    else:
        os.dup2(handle, number)
        os.close(handle)


def _identity(number: int) -> tuple[int, int]:
    status = os.fstat(number)
    return status.st_dev, status.st_ino


def _is_empty(number: int, file: tuple[int, int]) -> bool:
    """Whether this stream is still that file, and nothing was written."""
    try:
        status = os.fstat(number)
    except OSError:  # the task closed it
        return False
    return not status.st_size and (status.st_dev, status.st_ino) == file


def _folders(root: str) -> list[tuple[int, int, int]]:
    """What a task may have changed of a workspace and its empty folders: a link to one that it moved away is another one."""
    some = [os.lstat(path) for path in (root, *(f"{root}/{name}" for name in FOLDERS))]
    return [(status.st_dev, status.st_ino, status.st_mode) for status in some]


def _is_bare(root: str, folders: list[tuple[int, int, int]]) -> bool:
    """Whether it is as `_make` made it."""
    try:
        return (
            not any(os.listdir(f"{root}/{name}") for name in FOLDERS if name != "logs")
            and len(os.listdir(f"{root}/logs")) == len(STREAMS)
            and len(os.listdir(root)) == len(FOLDERS)
            and _folders(root) == folders
        )
    except OSError:
        return False
